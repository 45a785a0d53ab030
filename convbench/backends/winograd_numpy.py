"""``winograd-numpy``: minimal filtering F(m, r) in tiles, transforms and products as NumPy's GEMM."""

from __future__ import annotations

from dataclasses import replace
from math import prod, sqrt

from convbench import bounds
from convbench.algorithms.tiling import does_itself, lowered_taps, overlap, reach_of, values_summed
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
from convbench.refusals import FLOATS_AND_COMPLEX, WHOLE_FAMILY
from convbench.spec import ConvSpec
from convbench.transforms import real_of


def _bound(spec: ConvSpec) -> ErrorBound:
    tiling = choose_tiling(spec)
    axes, dtype = zip(tiling.outputs, lowered_taps(spec), strict=True), real_of(spec.dtype)
    growth = prod(amplification(m, r, dtype, spec.op) for m, r in axes)
    if spec.op == "weight_grad":
        growth *= sqrt(overlap(tiling))
    exact, summed = exact_on_small_integers(spec), values_summed(spec, tiling)
    return bounds.winograd(spec, growth, tiling.size, reach_of(spec, tiling), exact, summed)


BACKEND = AlgorithmBackend(
    name="winograd-numpy",
    summary="minimal filtering F(m, r) in tiles, a GEMM a frequency",
    algorithm=Winograd,
    native=does_itself,
    bound=_bound,
    limits=replace(WHOLE_FAMILY, dtypes=FLOATS_AND_COMPLEX, axes=(1, 2, 3), also=why_not_winograd),
)
__getattr__ = front_doors("winograd-numpy")
