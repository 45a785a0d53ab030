"""``separable``: fused 1-D passes for kernels of low rank, compiled; other weights are refused with their rank."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

from convbench import bounds
from convbench.algorithms.lowrank import factor_error, max_rank
from convbench.algorithms.separable import EPS, long_axes, why_not_separable
from convbench.arrays import Namespace
from convbench.backend import Algorithm
from convbench.backends._compiled import CompiledBackend
from convbench.bounds import ErrorBound
from convbench.ops import front_doors
from convbench.refusals import FLOATS, WHOLE_FAMILY
from convbench.spec import ConvSpec


def _planned(ns: Namespace, spec: ConvSpec, threads: int) -> Algorithm:
    from convbench.algorithms.fused_separable import FusedSeparable

    return FusedSeparable(ns, spec, threads)


def _bound(spec: ConvSpec) -> ErrorBound:
    """Products are added up one by one, of all channels and all pairs of ranks."""
    sizes = tuple(spec.kernel_size[axis] for axis in long_axes(spec))
    rank = max(1, max_rank(sizes))
    passes = bounds.separable(spec, rank, factor_error(sizes, EPS[spec.dtype]))
    adding_up = bounds.gamma(spec.in_channels // spec.groups * rank ** (len(sizes) - 1), spec.dtype)
    growth = sqrt(rank) ** (spec.ndim - 1) * (rank > 1)
    return replace(
        passes, componentwise=passes.componentwise + adding_up, normwise=passes.normwise + growth * adding_up
    )


BACKEND = CompiledBackend(
    name="separable",
    summary="tensor-train factors, 1-D passes fused in strips, compiled",
    algorithm=_planned,
    bound=_bound,
    limits=replace(WHOLE_FAMILY, dtypes=FLOATS, ops=("forward", "input_grad"), axes=(2, 3), also=why_not_separable),
)
__getattr__ = front_doors("separable")
