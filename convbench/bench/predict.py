"""How long will a call take? Known before it is made, from something smaller that has been run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from convbench.backend import Backend
from convbench.errors import SpecError
from convbench.spec import ConvSpec
from convbench.threads import resolve

__all__ = ["Known", "expected_seconds", "shrink"]

PROBE_FLOPS = 2 * 10**7
ENLARGED = 8  # times as much work in the second probe, which tells what a call costs apart from its work
_LONG_PROBE_S = 0.3  # a first probe that takes longer is the only one
_LEAST_FLOPS = 10**6  # below this, what a call costs is mostly the call itself
_ALIKE = ("op", "in_channels", "out_channels", "stride", "dilation", "groups", "tile", "boundary", "layout", "dtype")
_NEAR = 8  # a timed call tells of others up to so many times as large; beyond, two probes say more


@dataclass(frozen=True)
class Known:
    """A call that has been timed: what, the FLOPs really done, and the seconds."""

    spec: ConvSpec
    flops: int
    seconds: float


@dataclass(frozen=True)
class _Rate:
    """Seconds of a call of some kind: ``overhead_s`` + ``flop_s`` · FLOPs.

    ``by_weights``: the FLOPs depend on the weights' values, those of the probes being of rank 1.
    """

    overhead_s: float
    flop_s: float
    by_weights: bool = False


_RATES: dict[tuple[str, str, str, int], _Rate] = {}  # found once a process


def expected_seconds(
    backend: Backend,
    spec: ConvSpec,
    threads: int | None = None,
    *,
    flops: int | None = None,
    known: Sequence[Known] = (),
) -> float:
    """Return how long one call should take, from the FLOPs that the backend really does.

    Parameters
    ----------
    backend : Backend
    spec : ConvSpec
    threads : int, optional
        None: every core.
    flops : int, optional
        Work of one call if known (of a plan or of prepared weights); else a plan is made to ask it.
    known : sequence of Known
        This backend's own timed calls. The largest smaller one that differs in its sizes alone is scaled up, if it
        did at least 10⁶ FLOPs and an eighth of these; else two probes are run, once a process: :func:`shrink`'s spec
        and one 8 times as large (no larger than ``spec``; none if the first is slow). A line through both separates
        the cost of the call from that of the work.

    Returns
    -------
    float
        Seconds; NaN if nothing smaller can be run.

    Raises
    ------
    UnsupportedSpec, BackendUnavailable
        If the backend refuses ``spec``.
    """
    threads = resolve(threads)
    if flops is None:
        flops = backend.plan(spec, threads=threads).flops
    least = max(_LEAST_FLOPS, flops / _NEAR)
    smaller = [k for k in known if least <= k.flops <= flops and _alike(k.spec, spec)]
    if smaller:
        nearest = max(smaller, key=lambda k: k.flops)
        return nearest.seconds * flops / nearest.flops
    rate = _rate(backend, spec, threads)
    likened = _flops_of_ones(backend, spec, threads) if rate.by_weights else flops
    # Weights of a higher rank than the probes' make the same calls more often: their overhead grows as their work does.
    return (rate.overhead_s + rate.flop_s * likened) * flops / likened if likened else rate.overhead_s


def _alike(a: ConvSpec, b: ConvSpec) -> bool:
    return a.ndim == b.ndim and all(getattr(a, name) == getattr(b, name) for name in _ALIKE)


def shrink(spec: ConvSpec, max_flops: float = PROBE_FLOPS) -> ConvSpec:
    """Return the spec with batch 1 and its largest axes halved until it does at most ``max_flops``.

    Kernel, channels and all else stay, padding words too, so the probe does the same kind of work. It may remain above
    ``max_flops`` where nothing more can be halved.

    >>> print(shrink(ConvSpec.parse("n8 c64 o64 i224x224 k3 psame f32")))
    n1 c64 o64 i14x14 k3 psame f32
    """
    small = spec.replace(batch=min(spec.batch, 1))
    while small.flops > max_flops:
        halved = next(_halved(small), None)
        if halved is None:
            break
        small = halved
    return small


def _halved(spec: ConvSpec) -> Iterator[ConvSpec]:
    """The spec with one axis halved, the largest first, where an output remains."""
    for axis in sorted(range(spec.ndim), key=lambda a: -spec.input_size[a]):
        size = spec.input_size[axis]
        if size > 1:
            try:
                yield spec.replace(input_size=(*spec.input_size[:axis], size // 2, *spec.input_size[axis + 1 :]))
            except SpecError:  # no output left along this axis
                continue


def _rate(backend: Backend, spec: ConvSpec, threads: int) -> _Rate:
    small, large = (shrink(spec, most) for most in (PROBE_FLOPS, ENLARGED * PROBE_FLOPS))
    key = (backend.name, backend.implementation, f"{small}, {large}", threads)
    if key not in _RATES:
        try:
            _RATES[key] = _probe(backend, small, large, threads)
        except Exception:  # whatever goes wrong here, the real call will show it better
            _RATES[key] = _Rate(math.nan, math.nan)
    return _RATES[key]


def _probe(backend: Backend, small: ConvSpec, large: ConvSpec, threads: int) -> _Rate:
    flops, seconds, by_weights = _timed(backend, small, threads)
    if large == small or not seconds <= _LONG_PROBE_S:
        return _Rate(0.0, seconds / flops, by_weights)
    more_flops, more_seconds, _ = _timed(backend, large, threads, once=seconds > _LONG_PROBE_S / ENLARGED)
    slope = (more_seconds - seconds) / (more_flops - flops) if more_flops > flops else 0.0
    overhead_s = seconds - slope * flops
    if slope > 0 and overhead_s > 0:
        return _Rate(overhead_s, slope, by_weights)
    return _Rate(0.0, more_seconds / more_flops, by_weights)


def _timed(backend: Backend, spec: ConvSpec, threads: int, *, once: bool = False) -> tuple[int, float, bool]:
    """Run the spec on weights of rank 1, which every backend takes: to warm up, then twice by the clock; or once.

    Returns the FLOPs, the least seconds, and whether the weights' values decide on the FLOPs.
    """
    if prod(spec.output_shape) == 0 or backend.why_not(spec) is not None:
        return 1, math.nan, False
    plan = backend.plan(spec, threads=threads)
    x, w, bias = _ones(spec)
    weights = plan.prepare(w)
    if not once:
        plan(x, weights, bias)
    seconds = math.inf
    for _ in range(1 if once else 2):
        began = time.perf_counter()
        plan(x, weights, bias)
        seconds = min(seconds, time.perf_counter() - began)
    own_flops = getattr(weights, "flops", None)
    return own_flops or plan.flops, seconds, bool(own_flops)


def _flops_of_ones(backend: Backend, spec: ConvSpec, threads: int) -> int:
    import numpy as np

    weights = backend.plan(spec, threads=threads).prepare(np.ones(spec.weight_shape, spec.dtype))
    return int(weights.flops)


def _ones(spec: ConvSpec) -> tuple[Any, Any, Any]:
    import numpy as np

    shapes = (spec.input_shape, spec.weight_shape, spec.bias_shape)
    x, w, bias = (None if shape is None else np.ones(shape, spec.dtype) for shape in shapes)
    return x, w, bias
