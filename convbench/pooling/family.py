"""Pooling as the benchmark knows it: its cases, and its backends behind the protocol that the clock times."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from convbench.backend import Backend
from convbench.bench.cases import Case
from convbench.bench.data import DEFAULT_WEIGHTS, Data, make_data
from convbench.bench.predict import PROBE_FLOPS, Known
from convbench.bounds import ErrorBound
from convbench.errors import SpecError
from convbench.memory import Memory
from convbench.pooling.backend import PoolBackend, PoolPlan
from convbench.pooling.oracle import PoolTruth
from convbench.pooling.registry import get_pool_backend, pool_backend_names
from convbench.pooling.spec import PoolSpec
from convbench.spec import ConvSpec

__all__ = ["POOLING", "PoolCase", "Pooling", "shrink"]

Array = NDArray[Any]

_GRADIENT_STREAM = 3


@dataclass(frozen=True)
class PoolCase(Case):
    """A pooling and its data: ``x=`` and ``seed=`` as for convolution; a gradient's g is standard normal.

    Examples
    --------
    >>> case = Case.parse("pool=max c3 i64x64 k3 s2 f32 x=photo")
    >>> print(type(case).__name__, case)
    PoolCase pool=max n1 c3 i64x64 k3 s2 f32 x=photo
    """

    spec: PoolSpec  # type: ignore[assignment]  # Case's is ConvSpec; what the benchmark reads, both have

    def _check(self) -> None:
        if self.w != DEFAULT_WEIGHTS:
            raise SpecError("w", self.w, "has no place here: pooling has no weights")
        Case(self._as_convolution, self.x, DEFAULT_WEIGHTS, self.seed)

    @property
    def _as_convolution(self) -> ConvSpec:
        """A spec with the same input."""
        spec = self.spec
        return ConvSpec(
            batch=spec.batch, in_channels=spec.channels, input_size=spec.input_size, kernel_size=1, dtype=spec.dtype
        )

    def data(self) -> Data:
        """Return freshly made operands."""
        spec, g = self.spec, None
        if spec.op == "grad":
            rng = np.random.default_rng([self.seed, _GRADIENT_STREAM])
            g = rng.standard_normal(spec.output_shape).astype(spec.dtype)
        return Data(make_data(self._as_convolution, self.x, DEFAULT_WEIGHTS, self.seed).first, cast("Array", g), None)

    def truth(self, data: Data) -> Any:
        """Return the right answer."""
        return PoolTruth(self.spec, *_operands(data.first, data.second))


def _operands(x: Array, g: Array | None) -> tuple[Array, ...]:
    return (x,) if g is None else (x, g)


class _TimedPlan:
    """A pooling plan as the clock calls it: a second operand (g or None) that is not prepared, and no bias."""

    prepared_bytes = 0

    def __init__(self, plan: PoolPlan) -> None:
        self._plan, self.spec, self.backend, self.threads = plan, plan.spec, plan.backend, plan.threads
        self.accumulate_dtype, self.flops = plan.spec.dtype, plan.flops
        self.workspace_bytes = plan.workspace_bytes

    def prepare(self, second: Array | None) -> Array | None:
        """Return g as it is."""
        return second

    def __call__(self, x: Array, g: Array | None, bias: None = None, out: Array | None = None) -> Array:
        """Run the plan."""
        return self._plan(x, out=out) if g is None else self._plan(x, g, out=out)


@dataclass(frozen=True)
class _Timed:
    """A pooling backend of which the plans are :class:`_TimedPlan`."""

    inner: PoolBackend

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def kind(self) -> str:
        return self.inner.kind

    @property
    def device(self) -> str:
        return self.inner.device

    @property
    def implementation(self) -> str:
        return self.inner.implementation

    def unavailable(self) -> str | None:
        return self.inner.unavailable()

    def why_not(self, spec: PoolSpec) -> str | None:
        return self.inner.why_not(spec)

    def plan(self, spec: PoolSpec, *, threads: int | None = None) -> _TimedPlan:
        return _TimedPlan(self.inner.plan(spec, threads=threads))

    def error_bound(self, spec: PoolSpec) -> ErrorBound:
        return self.inner.error_bound(spec)


class Pooling:
    """What :class:`convbench.PoolSpec` describes; see :class:`convbench.bench.families.Family`."""

    name = "pooling"
    baselines: tuple[str, ...] = ("direct", "separable")
    legend: Mapping[str, str] = {
        "with prepare": "the same, as pooling has nothing to prepare",
        "GFLOP/s": "nominal operations (for each sample of each window 1, for norms 2, for their gradients 3; the same "
        "for all) over time; executed: operations really done over time",
        "error": "largest |ŷ − y| over the same pooling of |x| (and |g|), in which nothing cancels, in units of the "
        "dtype's eps; bound: what the algorithm promises, 0 for maxima, which are not computed but chosen",
    }

    def __init__(self) -> None:
        self._rates: dict[tuple[str, str, int], float] = {}  # seconds a nominal operation, found once a process

    def case_type(self) -> type[Case]:
        """Return :class:`PoolCase`."""
        return PoolCase

    def parse_spec(self, line: str) -> PoolSpec:
        """Read a :class:`convbench.PoolSpec`."""
        return PoolSpec.parse(line)

    def backend_names(self) -> list[str]:
        """Return the registered names."""
        return pool_backend_names()

    def all_backends(self) -> dict[str, Backend]:
        """Return all that are registered, as the clock calls them."""
        return {name: self.get_backend(name) for name in self.backend_names()}

    def get_backend(self, name: str) -> Backend:
        """Return a registered backend, as the clock calls it."""
        return cast("Backend", _Timed(get_pool_backend(name)))

    def adopt(self, candidate: Any) -> Backend:
        """Return any object that follows the protocol, as the clock calls it."""
        if isinstance(candidate, type) or not isinstance(candidate, PoolBackend):
            rule = "must be registered names or objects that follow convbench.pooling.PoolBackend"
            raise SpecError("backends", type(candidate).__name__, rule)
        return cast("Backend", _Timed(candidate))

    def check(self, name: str, *, specs: int, seed: int) -> Sequence[Any]:
        """Run :func:`convbench.pooling.check_pool_backend`."""
        from convbench.pooling.checks import check_pool_backend

        return check_pool_backend(name, specs=specs, seed=seed)

    def measure_memory(self, backend: Backend, spec: PoolSpec, data: Data, threads: int) -> Memory:
        """Ask :func:`convbench.pooling.checks.measure_pool`."""
        from convbench.pooling.checks import measure_pool

        return measure_pool(cast("_Timed", backend).inner, spec, _operands(data.first, data.second), threads)

    def expected_seconds(
        self, backend: Backend, spec: PoolSpec, threads: int, *, flops: int, known: Sequence[Known]
    ) -> float:
        """Scale a smaller run of the same kind: the spec shrunk to 2·10⁷ operations, timed once a process."""
        small = shrink(spec)
        key = (backend.name, str(small), threads)
        if key not in self._rates:
            self._rates[key] = _timed(backend, small, threads) / max(1, small.flops)
        return self._rates[key] * spec.flops


def shrink(spec: PoolSpec, most: int = PROBE_FLOPS) -> PoolSpec:
    """Return the spec with fewer examples and channels, then rows, until it does at most ``most`` operations.

    Windows stay; so it may remain above ``most``.

    >>> print(shrink(PoolSpec.parse("pool=max n8 c64 i512x512 k3 s2 p1 f32")))
    pool=max n1 c33 i512x512 k3 s2 p1 f32
    """
    least = max(1, spec.flops // max(1, spec.batch * spec.channels))
    small = spec.replace(batch=min(spec.batch, 1), channels=max(1, min(spec.channels, most // least)))
    while small.flops > most and not small.adaptive:
        rows = max(small.input_size[0] // 2, small.kernel_size[0])
        if rows >= small.input_size[0]:
            break
        small = small.replace(input_size=(rows, *small.input_size[1:]))
    return small


def _timed(backend: Backend, spec: PoolSpec, threads: int) -> float:
    if backend.why_not(cast("Any", spec)) is not None:
        return math.nan
    plan = cast("Any", backend).plan(spec, threads=threads)
    ones = [np.ones(shape, spec.dtype) for shape in spec.operand_shapes]
    x, g = (*ones, None)[:2]
    plan(x, g)  # to warm up
    began = time.perf_counter()
    plan(x, g)
    return time.perf_counter() - began


POOLING = Pooling()
