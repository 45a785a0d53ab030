"""``winograd-numpy``: minimal filtering F(m, r) in tiles, transforms and products as NumPy's GEMM."""

from __future__ import annotations

from math import prod

from convbench import bounds
from convbench.algorithms.tiling import lowered_taps, reach_of
from convbench.algorithms.winograd import (
    Winograd,
    amplification,
    choose_tiling,
    exact_on_small_integers,
    why_not_winograd,
)
from convbench.backend import AlgorithmBackend
from convbench.bounds import ErrorBound
from convbench.ops import front_doors
from convbench.refusals import Limits
from convbench.spec import ConvSpec


def _bound(spec: ConvSpec) -> ErrorBound:
    tiling = choose_tiling(spec)
    growth = prod(amplification(m, r, spec.dtype) for m, r in zip(tiling.outputs, lowered_taps(spec), strict=True))
    return bounds.winograd(spec, growth, tiling.size, reach_of(spec, tiling), exact_on_small_integers(spec))


BACKEND = AlgorithmBackend(
    name="winograd-numpy",
    summary="minimal filtering F(m, r) in tiles, a GEMM a frequency",
    algorithm=Winograd,
    bound=_bound,
    limits=Limits(axes=(1, 2, 3), also=why_not_winograd),
)
conv, convolve, correlate, plan = front_doors("winograd-numpy")
