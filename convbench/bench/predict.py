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
_LEAST_FLOPS = 10**6  # below this, what a call costs is mostly the call itself
_ALIKE = ("op", "in_channels", "out_channels", "stride", "dilation", "groups", "tile", "boundary", "layout", "dtype")
_PROBED: dict[tuple[str, str, str, int], float] = {}  # seconds a FLOP, once a process


@dataclass(frozen=True)
class Known:
    """A call that has been timed: what, the FLOPs really done, and the seconds."""

    spec: ConvSpec
    flops: int
    seconds: float


def expected_seconds(
    backend: Backend,
    spec: ConvSpec,
    threads: int | None = None,
    *,
    flops: int | None = None,
    known: Sequence[Known] = (),
) -> float:
    """Return how long one call should take, scaled in proportion to the FLOPs that the backend really does.

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
        did at least 10⁶ FLOPs; else a probe is run: :func:`shrink`'s spec, once a process.

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
    smaller = [k for k in known if _LEAST_FLOPS <= k.flops <= flops and _alike(k.spec, spec)]
    if smaller:
        nearest = max(smaller, key=lambda k: k.flops)
        return nearest.seconds * flops / nearest.flops
    return flops * _seconds_per_flop(backend, shrink(spec), threads)


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


def _seconds_per_flop(backend: Backend, probe: ConvSpec, threads: int) -> float:
    key = (backend.name, backend.implementation, str(probe), threads)
    if key not in _PROBED:
        _PROBED[key] = _probe(backend, probe, threads)
    return _PROBED[key]


def _probe(backend: Backend, spec: ConvSpec, threads: int) -> float:
    """Run the spec once to warm up and twice by the clock, on weights of rank 1, which every backend takes."""
    if prod(spec.output_shape) == 0 or backend.why_not(spec) is not None:
        return math.nan
    try:
        plan = backend.plan(spec, threads=threads)
        x, w, bias = _ones(spec)
        weights = plan.prepare(w)
        plan(x, weights, bias)
        seconds = math.inf
        for _ in range(2):
            began = time.perf_counter()
            plan(x, weights, bias)
            seconds = min(seconds, time.perf_counter() - began)
    except Exception:  # whatever goes wrong here, the real call will show it better
        return math.nan
    flops = getattr(weights, "flops", None) or plan.flops
    return seconds / flops if flops else math.nan


def _ones(spec: ConvSpec) -> tuple[Any, Any, Any]:
    import numpy as np

    shapes = (spec.input_shape, spec.weight_shape, spec.bias_shape)
    x, w, bias = (None if shape is None else np.ones(shape, spec.dtype) for shape in shapes)
    return x, w, bias
