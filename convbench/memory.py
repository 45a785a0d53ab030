"""How much memory a backend really needs beyond operands, prepared weights and result."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import prod

from convbench.arrays import Array, numpy_namespace
from convbench.backend import Backend, second_operand
from convbench.spec import DTYPES, ConvSpec
from convbench.threads import blas_threads

__all__ = ["measure_workspace", "slack_bytes", "tracing"]

_PYTHON_OBJECTS_BYTES = 65536
_UFUNC_OPERANDS = 3
_UFUNC_BUFFER = 8192  # elements, NumPy's default: np.getbufsize()


def slack_bytes(spec: ConvSpec, threads: int = 1) -> int:
    """Return what a run may take beyond its declaration.

    That is Python's own objects (plans, views, tuples) and the buffers that a NumPy ufunc may set up for
    strided operands, of a fixed number of elements for each operand and thread.

    >>> slack_bytes(ConvSpec.parse("i9 k3 f64"))
    262144
    """
    return _PYTHON_OBJECTS_BYTES + threads * _UFUNC_OPERANDS * _UFUNC_BUFFER * max(8, spec.itemsize)


def measure_workspace(
    backend: Backend, spec: ConvSpec, first: Array, second: Array, bias: Array | None = None, threads: int | None = 1
) -> tuple[int, Array]:
    """Plan, prepare and run once; return the workspace in bytes and the result of that run.

    Workspace is what ``plan.workspace_bytes`` declares: what planning leaves behind, and the most that the run
    holds at once beyond its result. Memory of ``prepare`` is that of the prepared weights and does not count.

    Parameters
    ----------
    backend : Backend
    spec : ConvSpec
    first, second, bias : array
        Operands of the spec's shapes, in the backend's own kind of array.
    threads : int, optional

    Returns
    -------
    workspace_bytes : int
        Compare it with the declaration plus :func:`slack_bytes`.
    y : array
        The run's result.

    Raises
    ------
    UnsupportedSpec, UnsupportedWeights, BackendUnavailable, SpecError
        As the backend does.

    Notes
    -----
    Counted by :mod:`tracemalloc`: Python's objects and NumPy's buffers, those of pyFFTW included. What a native
    library allocates on its own (BLAS packing buffers, PyTorch's tensors) is not seen. A run under tracemalloc
    is slower: do not time it. Libraries are loaded by a tiny run first, so that they do not count.

    Examples
    --------
    >>> import numpy as np
    >>> from convbench import ConvSpec, FunctionBackend
    >>> def waste(spec, x, w):
    ...     return (np.ones(10**6) * x[..., :1] * w[0, 0])[..., :8]
    >>> wasteful = FunctionBackend(name="wasteful", function=waste)
    >>> spec = ConvSpec.parse("i1 k1 p0:7 f64")
    >>> measured, y = measure_workspace(wasteful, spec, np.ones(spec.input_shape), np.ones(spec.weight_shape))
    >>> round(measured / 8e6), y.shape
    (2, (1, 1, 8))
    """
    _load_libraries(backend, spec)
    with tracing():
        start, _ = tracemalloc.get_traced_memory()
        plan = backend.plan(spec, threads=threads)
        planned, _ = tracemalloc.get_traced_memory()
        weights = second_operand(plan, second)
        prepared, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        y = plan(first, weights, bias)
        _, peak = tracemalloc.get_traced_memory()
    result_bytes = prod(spec.result_shape) * DTYPES[spec.result_dtype]
    return max(0, planned - start) + max(0, peak - prepared - result_bytes), y


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
