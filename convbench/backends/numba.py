"""``numba``: the plain loops that a user would write, compiled for this CPU."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from math import prod
from threading import Lock
from typing import Any

from convbench.arrays import Array
from convbench.backend import FunctionBackend, Plan
from convbench.ops import front_doors
from convbench.refusals import NUMPY_DTYPES, Limits
from convbench.spec import ConvSpec
from convbench.threads import Pool


def _library() -> Any:
    return importlib.import_module("numba")


#: Numba masks its pool for the calling thread.
_POOL = Pool(lambda: (_library(),), each_thread=True)
_lock = Lock()
_PIECE = 8192  # outputs of a row that stay in the first-level cache, and that a thread takes at a time


@cache
def _compiled(dtype: str, result_dtype: str) -> Any:
    """Compile for contiguous arrays of one dtype, once a machine where Numba finds a folder to keep it in.

    Products of narrow integers are 64-bit ones in Numba.
    """
    library = _library()
    piece = _PIECE
    int64, njit, prange, types = library.int64, library.njit, library.prange, library.types

    def loops(x: Any, w: Any, y: Any, groups: Any, stride: Any, dilation: Any, before: Any) -> None:
        """Pieces of the output's rows in parallel; one tap at a time is added to as much of a piece as it reaches.

        Padding is a matter of where the loops begin and end. x (N, C, *3 axes), w (O, C/groups, *3), y (N, O, *3).
        """
        channels, taps0, taps1, taps2 = w.shape[1:]
        size0, size1, size2 = x.shape[2:]
        outputs, rows0, rows1, length = y.shape[1:]
        pieces = (length + piece - 1) // piece
        for number in prange(y.shape[0] * outputs * rows0 * rows1 * pieces):
            row, cut = divmod(int64(number), pieces)  # prange counts without a sign
            begin, end = cut * piece, min(length, (cut + 1) * piece)
            rest, p1 = divmod(row, rows1)
            rest, p0 = divmod(rest, rows0)
            n, o = divmod(rest, outputs)
            start0, start1 = p0 * stride[0] - before[0], p1 * stride[1] - before[1]
            first0, first1 = max(0, -(start0 // dilation[0])), max(0, -(start1 // dilation[1]))
            stop0 = min(taps0, (size0 - 1 - start0) // dilation[0] + 1)
            stop1 = min(taps1, (size1 - 1 - start1) // dilation[1] + 1)
            first_channel = o // (outputs // groups) * channels
            line = y[n, o, p0, p1]
            line[begin:end] = 0
            for k2 in range(taps2):
                shift = k2 * dilation[2] - before[2]
                first = max(begin, -(shift // stride[2]))
                stop = min(end, (size2 - 1 - shift) // stride[2] + 1)
                if first >= stop:
                    continue
                part, start2 = line[first:stop], first * stride[2] + shift
                for c in range(channels):
                    for k0 in range(first0, stop0):
                        for k1 in range(first1, stop1):
                            tap = w[o, c, k0, k1, k2]
                            at0, at1 = start0 + k0 * dilation[0], start1 + k1 * dilation[1]
                            samples = x[n, first_channel + c, at0, at1, start2:]
                            if stride[2] == 1:  # said twice for the compiler, which then uses vectors
                                for p in range(stop - first):
                                    part[p] += tap * samples[p]
                            else:
                                for p in range(stop - first):
                                    part[p] += tap * samples[p * stride[2]]

    read = types.Array(getattr(types, dtype), 5, "C", readonly=True)
    sizes = types.UniTuple(int64, 3)
    signature = types.void(read, read, types.Array(getattr(types, result_dtype), 5, "C"), int64, sizes, sizes, sizes)
    # Sums may be reordered and products fused into them; NaN and infinity stay what they are.
    options: dict[str, Any] = {"parallel": True, "error_model": "numpy", "fastmath": {"reassoc", "contract"}}
    try:
        return njit(signature, cache=True, **options)(loops)
    except RuntimeError:  # no folder can be written: compiled anew in each process
        return njit(signature, **options)(loops)


def _prepare(spec: ConvSpec, w: Array) -> Array:
    import numpy as np

    kernels = np.flip(w, axis=tuple(range(2, 2 + spec.ndim))) if spec.flip else w
    return np.ascontiguousarray(kernels).reshape(*w.shape[:2], *_three(spec.kernel_size))


def _conv(spec: ConvSpec, x: Array, w: Array) -> Array:
    """Axes that the spec has not are of size 1. An input that is not contiguous is copied."""
    import numpy as np

    y = np.empty((*spec.output_shape[:2], *_three(spec.output_size)), spec.result_dtype)
    x = np.ascontiguousarray(x).reshape(*x.shape[:2], *_three(spec.input_size))
    before = tuple(before for before, _ in spec.padding)
    with _one_at_a_time():
        _compiled(spec.dtype, spec.result_dtype)(
            x, w, y, spec.groups, _three(spec.stride), _three(spec.dilation), _three(before, 0)
        )
    return y.reshape(spec.output_shape)


def _three(sizes: tuple[int, ...], rest: int = 1) -> tuple[int, ...]:
    return (rest,) * (3 - len(sizes)) + sizes


def _one_at_a_time() -> AbstractContextManager[Any]:
    """Numba's own threading layer, its last resort, ends the process if two threads use it at once."""
    return _lock if _library().threading_layer() == "workqueue" else nullcontext()


class _NumbaBackend(FunctionBackend):
    """Compiles in the plan, and uses no more threads than Numba has started."""

    def _plan(self, spec: ConvSpec, threads: int) -> Plan:
        library = _library()
        library.get_num_threads()  # which chooses the threading layer
        _compiled(spec.dtype, spec.result_dtype)
        return super()._plan(spec, min(threads, library.config.NUMBA_NUM_THREADS))


BACKEND = _NumbaBackend(
    name="numba",
    summary="plain loops over taps, pieces of rows in parallel, compiled by Numba",
    kind="rival",
    function=_conv,
    prepare=_prepare,
    prepared=lambda spec: spec.flip * prod(spec.weight_shape) * spec.itemsize,
    accumulates=lambda spec: spec.result_dtype,
    pool=_POOL.held,
    requires={"numba": "numba"},
    limits=Limits(dtypes=tuple(name for name in NUMPY_DTYPES if name != "float16")),
)
__getattr__ = front_doors("numba")
