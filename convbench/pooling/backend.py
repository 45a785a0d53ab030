"""What a pooling backend and its plans are: the siblings of :mod:`convbench.backend`, without weights to prepare."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from convbench.backend import DeclaredBackend, overlap
from convbench.bounds import ErrorBound
from convbench.errors import SpecError
from convbench.pooling import bounds
from convbench.pooling.spec import KINDS, POOL_DTYPES, PoolSpec
from convbench.refusals import refuse

__all__ = ["Algorithm", "PoolBackend", "PoolFunction", "PoolLimits", "PoolPlan", "PoolRegistrant"]

Array = NDArray[Any]


@runtime_checkable
class PoolBackend(Protocol):
    """One implementation of pooling, under one name."""

    @property
    def name(self) -> str:
        """As it is registered."""
        ...

    @property
    def kind(self) -> str:
        """Either "own" or "rival"."""
        ...

    @property
    def device(self) -> str:
        """Either "cpu" or "cuda"."""
        ...

    @property
    def implementation(self) -> str:
        """What stands behind the name now, libraries and versions included."""
        ...

    def unavailable(self) -> str | None:
        """Return what is missing and how to install it, or None."""
        ...

    def why_not(self, spec: PoolSpec, /) -> str | None:
        """Return the reason why this spec is not done here ("topic: sentence"), or None for "I can"."""
        ...

    def plan(self, spec: PoolSpec, /, *, threads: int | None = None) -> PoolPlan:
        """Make a spec ready to run."""
        ...

    def error_bound(self, spec: PoolSpec, /) -> ErrorBound:
        """Return the bound of the errors, in the sense of :mod:`convbench.pooling.bounds`."""
        ...


class Algorithm(Protocol):
    """One algorithm planned for one spec and number of threads.

    ``run`` writes into ``out``, whatever its strides, or into an array of its own if that is None; it returns the one
    or the other.
    """

    workspace_bytes: int
    flops: int

    def run(self, operands: tuple[Array, ...], out: Array | None) -> Array:
        """Return the result, in ``out`` if that is given."""
        ...


class PoolPlan:
    """One spec made ready on one backend; it may be called from several threads at once.

    Attributes
    ----------
    spec : PoolSpec
    backend : str
    threads : int
        That a run may use: as asked for, or 1 where the backend has no threads.
    """

    def __init__(self, spec: PoolSpec, backend: str, threads: int, algorithm: Algorithm) -> None:
        self.spec, self.backend, self.threads = spec, backend, threads
        self._algorithm = algorithm

    @property
    def workspace_bytes(self) -> int:
        """Memory beyond the operands and the result."""
        return self._algorithm.workspace_bytes

    @property
    def flops(self) -> int:
        """Operations really done (``spec.flops`` is the nominal count)."""
        return self._algorithm.flops

    def __call__(self, *operands: Array, out: Array | None = None) -> Array:
        """Return y = ``plan(x)``, or ∂J/∂x = ``plan(x, g)``.

        Parameters
        ----------
        *operands : numpy.ndarray
            ``spec.operand_names``, of ``spec.operand_shapes``: any strides, read-only too; never written.
        out : numpy.ndarray, shape ``spec.result_shape``, optional
            Receives the result and is returned; must not share memory with an operand.
        """
        names = self.spec.operand_names
        if len(operands) != len(names):
            raise SpecError("operands", len(operands), f"must be {' and '.join(names)} for {self.spec}")
        for name, operand, shape in zip(names, operands, self.spec.operand_shapes, strict=True):
            self._check(name, operand, shape)
        if out is not None:
            self._check("out", out, self.spec.result_shape)
            if not out.flags.writeable:
                raise SpecError("out", "a read-only array", "must be writeable")
            for name, operand in zip(names, operands, strict=True):
                if overlap(out, operand):
                    raise SpecError("out", f"memory shared with {name}", "must be an array of its own")
        with np.errstate(all="ignore"):
            return self._algorithm.run(operands, out)

    def _check(self, name: str, array: Array, shape: tuple[int, ...]) -> None:
        if not isinstance(array, np.ndarray):
            raise SpecError(name, type(array).__name__, "must be an array of NumPy")
        if array.shape != shape:
            raise SpecError(name, array.shape, f"must have shape {shape} for {self.spec}")
        if array.dtype != np.dtype(self.spec.dtype):
            raise SpecError(name, str(array.dtype), f"must have dtype {self.spec.dtype} for {self.spec}")


@dataclass(frozen=True, kw_only=True)
class PoolLimits:
    """What a backend takes, declared once.

    Attributes
    ----------
    kinds, grads : tuple of str
        Kinds of pooling that go forward, and those that have a gradient.
    dtypes : tuple of str
    axes : tuple of int
        Numbers of spatial axes.
    adaptive : bool
    also : callable, optional
        ``also(spec)`` returns a further reason or None.
    """

    kinds: tuple[str, ...] = KINDS
    grads: tuple[str, ...] = KINDS
    dtypes: tuple[str, ...] = POOL_DTYPES
    axes: tuple[int, ...] = tuple(range(1, 9))
    adaptive: bool = True
    also: Callable[[PoolSpec], str | None] | None = None

    def why_not(self, spec: PoolSpec) -> str | None:
        """Return the first reason against ``spec``, or None."""
        if spec.dtype not in self.dtypes:
            return refuse("dtype", f"{spec.dtype} given, only {', '.join(self.dtypes)} is done")
        if spec.kind not in self.kinds:
            return refuse("kind", f"{spec.kind} given, only {', '.join(self.kinds)} is done")
        if spec.op == "grad" and spec.kind not in self.grads:
            return refuse("op", f"gradient of {spec.kind} given, done is {', '.join(self.grads) or 'none'}")
        if spec.ndim not in self.axes:
            return refuse("axes", f"{spec.ndim} given, only {', '.join(map(str, self.axes))} is done")
        if spec.adaptive is not None and not self.adaptive:
            return refuse("kernel size", "adaptive bins are not done")
        return self.also(spec) if self.also else None


@dataclass(frozen=True, kw_only=True)
class PoolRegistrant(DeclaredBackend[PoolSpec, PoolPlan]):
    """A backend that says once what it is, what it needs and what it takes; a :class:`PoolBackend`.

    Attributes
    ----------
    name, summary, kind, device, limits, bound, requires
        As :class:`convbench.backend.DeclaredBackend` has them.
    algorithm : callable
        ``algorithm(spec, threads) -> Algorithm``.
    threaded : bool
        Whether ``algorithm`` makes use of more than one thread.
    """

    algorithm: Callable[[PoolSpec, int], Algorithm]
    limits: PoolLimits = PoolLimits()
    bound: Callable[[PoolSpec], ErrorBound] = bounds.direct
    threaded: bool = True

    def _plan(self, spec: PoolSpec, threads: int) -> PoolPlan:
        count = threads if self.threaded else 1
        return PoolPlan(spec, self.name, count, self.algorithm(spec, count))


class PoolFunction:
    """Turns a pure function ``function(spec, *operands) -> result`` into an :class:`Algorithm`.

    Parameters
    ----------
    function : callable
        Returns a new array; must not keep or change its arguments.
    workspace : callable
        ``workspace(spec)``: bytes allocated beyond operands and result.
    pool : callable, optional
        ``pool(threads)``: a context in which the library uses that many threads.

    Examples
    --------
    >>> from convbench.pooling import PoolLimits, PoolRegistrant, PoolSpec
    >>> def first_axis(spec, x):
    ...     return x.reshape(*x.shape[:2], -1, *spec.kernel_size).max(axis=-1)
    >>> def blocks_only(spec):
    ...     whole = spec.stride == spec.kernel_size and not spec.padded and not spec.input_size[0] % spec.kernel_size[0]
    ...     return None if whole else "stride: only windows side by side"
    >>> mine = PoolRegistrant(
    ...     name="mine",
    ...     summary="reshape and max",
    ...     algorithm=PoolFunction.algorithm(first_axis),
    ...     limits=PoolLimits(kinds=("max",), grads=(), axes=(1,), adaptive=False, also=blocks_only),
    ... )
    >>> mine.plan(PoolSpec.parse("pool=max i6 k2"))(np.arange(6, dtype="f4").reshape(1, 1, 6)).tolist()
    [[[1.0, 3.0, 5.0]]]
    """

    def __init__(
        self,
        spec: PoolSpec,
        threads: int,
        function: Callable[..., Array],
        workspace: Callable[[PoolSpec], int],
        pool: Callable[[int], AbstractContextManager[Any]] | None,
    ) -> None:
        self.workspace_bytes, self.flops = workspace(spec), spec.flops
        self._spec, self._threads, self._function, self._pool = spec, threads, function, pool

    @classmethod
    def algorithm(
        cls,
        function: Callable[..., Array],
        *,
        workspace: Callable[[PoolSpec], int] = lambda spec: 0,
        pool: Callable[[int], AbstractContextManager[Any]] | None = None,
    ) -> Callable[[PoolSpec, int], Algorithm]:
        """Return what :class:`PoolRegistrant` takes as its algorithm."""
        return lambda spec, threads: cls(spec, threads, function, workspace, pool)

    def run(self, operands: tuple[Array, ...], out: Array | None) -> Array:
        """Call the function."""
        spec = self._spec
        with self._pool(self._threads) if self._pool else nullcontext():
            result = self._function(spec, *operands)
        if not isinstance(result, np.ndarray) or result.shape != spec.result_shape or result.dtype != spec.dtype:
            given = f"{type(result).__name__} {getattr(result, 'shape', '')} {getattr(result, 'dtype', '')}"
            raise SpecError("function", given, f"must return a {spec.dtype} array of shape {spec.result_shape}")
        if out is None:
            return result
        out[...] = result
        return out
