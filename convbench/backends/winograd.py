"""``winograd``: minimal filtering F(m, r), transforms and products fused over blocks of tiles in a generated kernel."""

from __future__ import annotations

from convbench import bounds
from convbench.algorithms.tiling import reach_of
from convbench.algorithms.winograd_tiles import choose_tiling, growth, why_not_fused
from convbench.arrays import Namespace
from convbench.backend import Algorithm
from convbench.backends._compiled import CompiledBackend
from convbench.bounds import ErrorBound
from convbench.geometry import BOUNDARIES
from convbench.ops import front_doors
from convbench.refusals import FLOATS, Limits
from convbench.spec import LAYOUTS, ConvSpec


def _algorithm(ns: Namespace, spec: ConvSpec, threads: int) -> Algorithm:
    from convbench.algorithms.winograd_fused import FusedWinograd

    return FusedWinograd(ns, spec, threads)


def _bound(spec: ConvSpec) -> ErrorBound:
    tiling = choose_tiling(spec)
    amplified, reach = growth(spec, tiling.outputs), reach_of(spec, tiling)
    summed = spec.in_channels // spec.groups
    return bounds.winograd(spec, amplified, tiling.size, reach, exact=False, summed=summed)


BACKEND = CompiledBackend(
    name="winograd",
    summary="minimal filtering F(m, r), transforms and products fused over blocks of tiles, one generated kernel",
    algorithm=_algorithm,
    bound=_bound,
    limits=Limits(
        dtypes=FLOATS,
        ops=("forward", "input_grad"),
        boundaries=BOUNDARIES,
        layouts=LAYOUTS,
        stride=False,
        dilation=False,
        also=why_not_fused,
    ),
)
__getattr__ = front_doors("winograd")
