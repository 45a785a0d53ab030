"""How much memory a backend really needs, in planning, preparing and running, beyond operands and result."""

from __future__ import annotations

import ctypes
import gc
import tracemalloc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from convbench.arrays import Array, numpy_namespace
from convbench.backend import Backend, second_operand
from convbench.cuda.timing import Device, DeviceMemory, device_of
from convbench.spec import DTYPES, ConvSpec
from convbench.threads import blas_threads

__all__ = ["PYTHON_OBJECTS_BYTES", "Memory", "measure_memory", "measure_stages", "slack_bytes", "tracing"]

#: What Python's own objects (plans, views, tuples) may take beyond a declaration.
PYTHON_OBJECTS_BYTES = 65536
_UFUNC_OPERANDS = 3
_UFUNC_BUFFER = 8192  # elements, NumPy's default: np.getbufsize()

P = TypeVar("P")
W = TypeVar("W")


def slack_bytes(spec: ConvSpec, threads: int = 1) -> int:
    """Return what a run may take beyond its declaration.

    That is Python's own objects and the buffers that a NumPy ufunc may set up for strided operands, of a fixed number
    of elements for each operand and thread.

    >>> slack_bytes(ConvSpec.parse("i9 k3 f64"))
    262144
    """
    return PYTHON_OBJECTS_BYTES + threads * _UFUNC_OPERANDS * _UFUNC_BUFFER * max(8, spec.itemsize)


@dataclass(frozen=True)
class Memory:
    """What planning, preparing and running once have taken, beyond operands and result.

    Two counters stand behind the figures. :mod:`tracemalloc` sees Python's objects and NumPy's buffers, those of
    pyFFTW included, to the byte; it does not see what a native library allocates on its own (BLAS packing buffers,
    PyTorch's tensors, OpenCV's images). The resident memory of the process sees all that, but in pages, only those
    that were written to, and neither what the library had set aside before nor what it keeps between calls.

    On a GPU the memory of the device is counted instead, by what CuPy's pool hands out and gets back, in units of 512
    bytes; what libraries take for themselves, such as PyTorch's own pool, is not seen.

    Attributes
    ----------
    workspace_bytes : int
        What ``plan.workspace_bytes`` declares: what planning leaves behind, and the most that the run holds at once
        beyond its result. By tracemalloc.
    prepared_bytes : int
        What ``plan.prepared_bytes`` declares: what preparing leaves behind beyond the weights themselves. By
        tracemalloc.
    prepare_peak_bytes : int
        The most that preparing holds at once, what it leaves behind included. By tracemalloc.
    rss_peak_bytes : int or None
        The same as ``workspace_bytes``, by resident memory, if the process has run the spec before: a library's first
        call loads some MiB of code and tables. A rough figure, which may miss or repeat a buffer that the library's
        threads keep. None where the system has no such counter, or none that can begin anew: Linux with the GNU C
        library has.
    y : array
        The result of the run.
    """

    workspace_bytes: int
    prepared_bytes: int
    prepare_peak_bytes: int
    rss_peak_bytes: int | None
    y: Array = field(repr=False, compare=False)


def measure_memory(
    backend: Backend, spec: ConvSpec, first: Array, second: Array, bias: Array | None = None, threads: int | None = 1
) -> Memory:
    """Plan, prepare and run once; return what memory that took, and the result.

    Parameters
    ----------
    backend : Backend
    spec : ConvSpec
    first, second, bias : array
        Operands of the spec's shapes, in the backend's own kind of array.
    threads : int, optional

    Returns
    -------
    Memory
        Compare it with the declarations plus :func:`slack_bytes`.

    Raises
    ------
    UnsupportedSpec, UnsupportedWeights, BackendUnavailable, SpecError
        As the backend does.

    Notes
    -----
    A run under tracemalloc is slower: do not time it. Libraries are loaded by a tiny run first, so that they do not
    count.

    Examples
    --------
    >>> import numpy as np
    >>> from convbench import ConvSpec, FunctionBackend
    >>> def waste(spec, x, w):
    ...     return (np.ones(10**6) * x[..., :1] * w[0, 0])[..., :8]
    >>> wasteful = FunctionBackend(name="wasteful", function=waste)
    >>> spec = ConvSpec.parse("i1 k1 p0:7 f64")
    >>> memory = measure_memory(wasteful, spec, np.ones(spec.input_shape), np.ones(spec.weight_shape))
    >>> round(memory.workspace_bytes / 8e6), memory.y.shape
    (2, (1, 1, 8))
    """
    _load_libraries(backend, spec)
    return measure_stages(
        lambda: backend.plan(spec, threads=threads),
        lambda plan: second_operand(plan, second),
        lambda plan, weights: plan(first, weights, bias),
        prod(spec.result_shape) * DTYPES[spec.result_dtype],
        device_of(backend),
    )


def _load_libraries(backend: Backend, spec: ConvSpec) -> None:
    """Run something tiny of the same kind, if the backend takes it: imports are no workspace."""
    with blas_threads(1):  # imports threadpoolctl
        pass
    tiny = ConvSpec(input_size=(2,) * spec.ndim, kernel_size=(2,) * spec.ndim, dtype=spec.dtype, op=spec.op)
    with suppress(Exception):  # the real run says what is wrong
        if backend.why_not(tiny) is None:
            plan = backend.plan(tiny, threads=1)
            xp = getattr(backend, "ns", numpy_namespace)().xp
            ones = (xp.ones(shape, dtype=getattr(xp, spec.dtype)) for shape in tiny.operand_shapes)
            plan(next(ones), second_operand(plan, next(ones)))


def measure_stages(
    make: Callable[[], P],
    prepare: Callable[[P], W],
    run: Callable[[P, W], Array],
    result_bytes: int,
    device: Device | None = None,
) -> Memory:
    """Return what memory three stages take, each of which is handed what those before it returned.

    Parameters
    ----------
    make : callable
        Returns a plan.
    prepare : callable
        ``prepare(plan)`` returns weights.
    run : callable
        ``run(plan, weights)`` returns the result.
    result_bytes : int
        Of the result, which does not count.
    device : Device, optional
        Whose memory counts; None: the host's.
    """
    with tracing() if device is None else device.memory() as used, _quick_collections():
        traced = _Traced() if used is None else _Handed(used)
        resident = _Resident() if used is None and _resident_is_counted() else None
        stages: list[_Counter] = [traced] if resident is None else [traced, resident]
        _mark(stages)
        plan = make()
        _mark(stages)
        weights = prepare(plan)
        _mark(stages)
        y = run(plan, weights)
        _mark(stages)
    _, planned, prepared, _ = traced.marks
    return Memory(
        workspace_bytes=traced.workspace_bytes(result_bytes),
        prepared_bytes=max(0, prepared.now - planned.now),
        prepare_peak_bytes=max(0, prepared.peak - planned.now),
        rss_peak_bytes=None if resident is None else resident.workspace_bytes(result_bytes),
        y=y,
    )


@contextmanager
def tracing() -> Iterator[None]:
    """Trace allocations within the block; leave a trace that someone else started as it is."""
    if tracemalloc.is_tracing():
        yield
        return
    tracemalloc.start(1)
    try:
        yield
    finally:
        tracemalloc.stop()


@contextmanager
def _quick_collections() -> Iterator[None]:
    """Let the garbage collector look through new objects only: going through all of PyTorch takes it 0.1 s."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


# -- counters -------------------------------------------------------------------------------------------------


class _Count(NamedTuple):
    now: int  # bytes
    peak: int  # since the counter was last reset


class _Counter(ABC):
    """Bytes in use, noted at the end of each stage: before planning, planned, prepared, run."""

    def __init__(self) -> None:
        self.marks: list[_Count] = []

    @abstractmethod
    def read(self) -> _Count: ...

    @abstractmethod
    def reset(self) -> None: ...

    def workspace_bytes(self, result_bytes: int) -> int:
        """Return what planning leaves behind, and what the run holds at once beyond that and its result."""
        start, planned, prepared, ran = self.marks
        return max(0, planned.now - start.now) + max(0, ran.peak - prepared.now - result_bytes)


class _Traced(_Counter):
    """What tracemalloc sees."""

    def read(self) -> _Count:
        return _Count(*tracemalloc.get_traced_memory())

    def reset(self) -> None:
        tracemalloc.reset_peak()


class _Handed(_Counter):
    """What a device's pool has handed out."""

    def __init__(self, used: DeviceMemory) -> None:
        super().__init__()
        self._used = used

    def read(self) -> _Count:
        return _Count(self._used.now, self._used.peak)

    def reset(self) -> None:
        self._used.peak = self._used.now


class _Resident(_Counter):
    """The pages of the process that are in memory: proc_pid_status(5), and proc_pid_clear_refs(5) for the peak."""

    def read(self) -> _Count:
        """Give back what is free first, else a later stage would be given pages that are there already."""
        _c_library().malloc_trim(0)
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        now, peak = (1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
        return _Count(now, peak)

    def reset(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")


def _mark(counters: Sequence[_Counter]) -> None:
    """End a stage. What only cycles hold is not left behind, nor are Python's lists of free objects."""
    gc.collect()
    for counter in counters:
        counter.marks.append(counter.read())
    for counter in reversed(counters):  # the first, which sees what reading the others takes, begins anew last
        counter.reset()


@cache
def _c_library() -> Any:
    return ctypes.CDLL(None)


@cache
def _resident_is_counted() -> bool:
    """Tell whether resident memory can be read, its peak reset, and what is free given back to the system."""
    try:
        _Resident().read()
        _Resident().reset()
    except (OSError, TypeError, AttributeError, KeyError, ValueError):  # ctypes' among them: no such library, no symbol
        return False
    return True
