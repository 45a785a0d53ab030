"""``jax``: ``jax.lax.conv_general_dilated``, for unshared weights ``conv_general_dilated_local``, compiled by XLA.

Compiled once a spec, in the plan. Weights are put beforehand into the order in which XLA's code for CPUs reads them,
channels out last; ``layout=channels_last`` is JAX's NHWC. Gradients are JAX's own transposes of the operation, which is
what ``jax.grad`` comes to, without a forward pass before them.

XLA's threads come with its client, as many as NPROC says when that is made, and nothing changes them afterwards. So
there is a client of its own for each number of threads.

JAX's arrays begin at multiples of 64 bytes. A NumPy array that does so, in the order of its spec's layout, is taken as
it is; another one is copied in the call.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache, lru_cache
from math import prod
from threading import Lock
from typing import Any

from convbench import bounds
from convbench.arrays import Array
from convbench.backend import FunctionBackend, Plan
from convbench.backends._views import Writeable
from convbench.bounds import ErrorBound
from convbench.geometry import BOUNDARIES
from convbench.ops import front_doors
from convbench.refusals import NUMPY_DTYPES, Limits, refuse
from convbench.spec import DTYPES, LAYOUTS, OPS, ConvSpec

#: ``jax.numpy.pad``'s names of the boundaries.
_MODES = {"circular": "wrap", "reflect": "reflect", "replicate": "edge"}
_KEPT_PROGRAMS = 64
_lock = Lock()


def _library() -> Any:
    return importlib.import_module("jax")


@cache
def _device(threads: int) -> Any:
    """Return the one device of a CPU client with that many threads; as long as the client is made, NPROC says so."""
    client: Any = importlib.import_module("jaxlib.xla_client")
    with _lock:
        before = os.environ.get("NPROC")
        os.environ["NPROC"] = str(threads)
        try:
            return client.make_cpu_client(asynchronous=False).local_devices()[0]
        finally:
            if before is None:
                del os.environ["NPROC"]
            else:
                os.environ["NPROC"] = before


def _wide_numbers() -> AbstractContextManager[Any]:
    """JAX makes 32-bit numbers of 64-bit ones, but within this block."""
    context: AbstractContextManager[Any] = _library().enable_x64(True)
    return context


# -- the operation as a user of JAX writes it -----------------------------------------------------


def _layouts(spec: ConvSpec) -> tuple[str, str, str]:
    """Return the orders in memory of x, weights and y."""
    space = "DHW"[-spec.ndim :]
    data = f"NC{space}" if spec.layout == "channels_first" else f"N{space}C"
    return data, f"{space}IO", data


def _forward(spec: ConvSpec, x: Any, w: Any, bias: Any = None) -> Any:
    """Convolve in the orders that :func:`_layouts` says; sums in the result's dtype, of half precision in float32."""
    lax, numpy = _library().lax, _library().numpy
    wide = getattr(numpy, _accumulates(spec))
    if spec.dtype == "float16" or spec.tile is not None:  # the gradient of a boundary, too, is then summed in it
        x, w = x.astype(wide), w.astype(wide)
    x, padding = _padded(spec, x)
    options: dict[str, Any] = {
        "window_strides": spec.stride,
        "padding": padding,
        "rhs_dilation": spec.dilation,
        "dimension_numbers": _layouts(spec),
    }
    if spec.tile is not None:
        y = lax.conv_general_dilated_local(x, w, filter_shape=spec.kernel_size, **options)
    else:
        y = lax.conv_general_dilated(x, w, feature_group_count=spec.groups, preferred_element_type=wide, **options)
    if bias is not None:
        y = y + bias.astype(wide)
    return y.astype(spec.result_dtype)


def _padded(spec: ConvSpec, x: Any) -> tuple[Any, list[tuple[int, int]]]:
    """Return the input and what the convolution is left to pad: zeros, if nothing is cropped.

    With negative padding of the convolution's own, JAX 0.10.2 gives a wrong weight gradient.
    """
    if spec.boundary == "zero" and all(min(pair) >= 0 for pair in spec.padding):
        return x, list(spec.padding)
    jax, first = _library(), 2 if spec.layout == "channels_first" else 1

    def everywhere(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return [(0, 0)] * first + pairs + [(0, 0)] * (2 - first)

    ends = list(spec.padding)
    if spec.boundary != "zero":
        margins = [(max(0, before), max(0, after)) for before, after in ends]
        x = jax.numpy.pad(x, everywhere(margins), _MODES[spec.boundary])
        ends = [(min(0, before), min(0, after)) for before, after in ends]
    zero = jax.numpy.zeros((), x.dtype)
    return jax.lax.pad(x, zero, [(*pair, 0) for pair in everywhere(ends)]), [(0, 0)] * spec.ndim


def _operation(spec: ConvSpec) -> Callable[..., Any]:
    """Return what is compiled: a function of the operands in the order of ``spec.operand_names``, and of a bias."""
    jax = _library()
    shape_of = {name: jax.ShapeDtypeStruct(_shape(spec, name), spec.dtype) for name in "xw"}

    def forward(x: Any, w: Any, bias: Any = None) -> Any:
        return _forward(spec, x, w, bias)

    def input_grad(g: Any, w: Any) -> Any:
        return jax.linear_transpose(lambda x: _forward(spec, x, w.conj()), shape_of["x"])(g)[0]

    def weight_grad(x: Any, g: Any) -> Any:
        return jax.linear_transpose(lambda w: _forward(spec, x.conj(), w), shape_of["w"])(g)[0]

    operations: dict[str, Callable[..., Any]] = {
        "forward": forward,
        "input_grad": input_grad,
        "weight_grad": weight_grad,
    }
    return operations[spec.op]


# -- between convbench's shapes and the orders above ------------------------------------------------


def _shape(spec: ConvSpec, name: str) -> tuple[int, ...]:
    shapes = {"x": spec.input_shape, "y": spec.output_shape, "g": spec.output_shape}
    if name != "w":
        return (
            tuple(shapes[name])
            if spec.layout == "channels_first"
            else (*shapes[name][:1], *shapes[name][2:], shapes[name][1])
        )
    channels = spec.in_channels // spec.groups
    if spec.tile is None:
        return (*spec.kernel_size, channels, spec.out_channels)
    return (*spec.output_size, channels * prod(spec.kernel_size), spec.out_channels)


def _ordered(spec: ConvSpec, name: str, array: Array) -> Array:
    """Return an operand in JAX's order: x and g as views, weights (K…, C/g, O), unshared ones (P…, C·∏K, O)."""
    import numpy as np

    if name != "w":
        return array if spec.layout == "channels_first" else np.moveaxis(array, 1, -1)
    if spec.flip:
        array = np.flip(array, tuple(range(-spec.ndim, 0)))
    if spec.tile is None:
        return np.moveaxis(array, (0, 1), (-1, -2))
    return np.moveaxis(array, 0, -1).reshape(_shape(spec, "w"))


def _restored(spec: ConvSpec, result: Array) -> Array:
    """Return a view of a result in convbench's shape."""
    import numpy as np

    if spec.op != "weight_grad":
        return result if spec.layout == "channels_first" else np.moveaxis(result, -1, 1)
    if spec.tile is None:
        w = np.moveaxis(result, (-1, -2), (0, 1))
    else:
        w = np.moveaxis(
            result.reshape(*spec.output_size, spec.in_channels, *spec.kernel_size, spec.out_channels), -1, 0
        )
    return np.flip(w, tuple(range(-spec.ndim, 0))) if spec.flip else w


def _spread_bias(spec: ConvSpec, bias: Array) -> Array:
    """Return the bias so that it broadcasts over y in JAX's order."""
    spread = bias.reshape(*bias.shape, *(1,) * (spec.ndim if spec.bias == "channel" else 0))
    return _ordered(spec, "x", spread[None])


# -- programs -------------------------------------------------------------------------------------


class _Program:
    """One spec compiled for one number of threads."""

    def __init__(self, spec: ConvSpec, threads: int) -> None:
        jax = _library()
        self._device = _device(threads)
        place = jax.sharding.SingleDeviceSharding(self._device)
        shapes = [_shape(spec, name) for name in spec.operand_names]
        if spec.bias_shape is not None:
            spread = spec.bias_shape if spec.bias != "channel" else (*spec.bias_shape, *(1,) * spec.ndim)
            shapes.append((1, *spread) if spec.layout == "channels_first" else (1, *spread[1:], spread[0]))
        with _wide_numbers():
            taken = [jax.ShapeDtypeStruct(shape, spec.dtype, sharding=place) for shape in shapes]
            self._compiled = jax.jit(_operation(spec)).lower(*taken).compile()
        copied = (0, 1) if spec.op == "weight_grad" else (0,)
        inputs = sum(prod(shapes[i]) for i in copied) + prod(spec.bias_shape or (0,))
        temporary = getattr(self._compiled.memory_analysis(), "temp_size_in_bytes", 0)
        self.workspace_bytes = int(temporary) + inputs * spec.itemsize
        self.flops = _flops(spec, self._compiled)

    def put(self, array: Array) -> Any:
        """Return JAX's array of an ordered operand."""
        with _wide_numbers():
            return _library().device_put(array, self._device)

    def run(self, spec: ConvSpec, first: Array, second: Any, bias: Array | None) -> Array:
        """Call the program; its result is nobody else's, so it may be written."""
        import numpy as np

        operands = [self.put(_ordered(spec, spec.operand_names[0], first))]
        operands.append(self.put(_ordered(spec, "g", second)) if spec.op == "weight_grad" else second)
        if bias is not None:
            operands.append(self.put(_spread_bias(spec, bias)))
        with _wide_numbers():
            result = np.asarray(self._compiled(*operands))
        return _restored(spec, np.asarray(Writeable(result)))


def _flops(spec: ConvSpec, compiled: Any) -> int:
    """What XLA counts: taps beyond the input left out, and for unshared weights the making of the columns too."""
    counted = (compiled.cost_analysis() or {}).get("flops", 0)
    return round(counted) if counted > 0 and "complex" not in spec.dtype else spec.flops


@lru_cache(_KEPT_PROGRAMS)
def _program(spec: ConvSpec, threads: int) -> _Program:
    return _Program(spec, threads)


# -- the backend ----------------------------------------------------------------------------------


def _why_not(spec: ConvSpec) -> str | None:
    if spec.tile is not None:
        if spec.tile != spec.output_size:
            return refuse("tile", f"{'x'.join(map(str, spec.tile))} given, only unshared weights are done")
        if spec.groups != 1:
            return refuse("groups", f"{spec.groups} given, only 1 is done with unshared weights")
    if "int" in spec.dtype and spec.op != "forward":
        return refuse("dtype", f"{spec.dtype} given, JAX has gradients of floating-point and complex numbers only")
    return None


def _accumulates(spec: ConvSpec) -> str:
    return "float32" if spec.dtype == "float16" else spec.result_dtype


def _bound(spec: ConvSpec) -> ErrorBound:
    """Direct summation. JAX treats denormal numbers as zero.

    Columns of unshared weights are made by a convolution with ones and zeros, and XLA may do one with groups as one
    without, with zeros: there 0·∞ is NaN.
    """
    spreads = spec.tile is not None or spec.groups > 1
    return replace(bounds.direct(spec), spreads_nonfinite=spreads, flushes_denormals=True)


class _Jax(FunctionBackend):
    """Compiles in the plan."""

    def unavailable(self) -> str | None:
        """Return what is missing and how to install it, or None."""
        missing = super().unavailable()
        if missing is None:
            from jaxlib import xla_client

            jax = _library()
            if not hasattr(jax, "enable_x64") or not hasattr(xla_client, "make_cpu_client"):
                return refuse(
                    "not installed", f"needs another JAX than {jax.__version__}, such as 0.10: pip install -U jax"
                )
        return missing

    def _plan(self, spec: ConvSpec, threads: int) -> Plan:
        program = _program(spec, threads)
        planned = replace(
            self,
            function=program.run,
            prepare=lambda spec, w: program.put(_ordered(spec, "w", w)),
            workspace=lambda spec: program.workspace_bytes,
            work=lambda spec: program.flops,
        )
        return super(_Jax, planned)._plan(spec, threads)


def _never(*operands: Any) -> Array:
    raise AssertionError("plans have functions of their own")


BACKEND = _Jax(
    name="jax",
    summary="jax.lax.conv_general_dilated, conv_general_dilated_local and their transposes, compiled by XLA",
    kind="rival",
    function=_never,
    takes_bias=True,
    prepared=lambda spec: prod(spec.weight_shape) * DTYPES[spec.dtype],
    pool=lambda threads: nullcontext(),  # the client has them
    bound=_bound,
    accumulates=_accumulates,
    requires={"jax": "jax"},
    limits=Limits(dtypes=NUMPY_DTYPES, ops=OPS, boundaries=BOUNDARIES, layouts=LAYOUTS, tile=True, also=_why_not),
)
__getattr__ = front_doors("jax")
