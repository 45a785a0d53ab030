"""``box``: sums of windows, for kernels whose taps are all equal, compiled; other weights are refused."""

from __future__ import annotations

from dataclasses import replace

from convbench import bounds
from convbench.algorithms.box import why_not_box
from convbench.arrays import Namespace
from convbench.backend import Algorithm
from convbench.backends._compiled import CompiledBackend
from convbench.bounds import ErrorBound
from convbench.ops import front_doors
from convbench.refusals import FLOATS, WHOLE_FAMILY
from convbench.spec import ConvSpec


def _planned(ns: Namespace, spec: ConvSpec, threads: int) -> Algorithm:
    from convbench.algorithms.fused_box import FusedBox

    return FusedBox(ns, spec, threads)


def _bound(spec: ConvSpec) -> ErrorBound:
    """Sums of K along an axis pass at most K additions, however they are formed."""
    return bounds.box(spec, sum(spec.kernel_size))


BACKEND = CompiledBackend(
    name="box",
    summary="running sums, or equal taps multiplied (few, strided, dilated, 3-D, channels last), compiled",
    algorithm=_planned,
    bound=_bound,
    limits=replace(WHOLE_FAMILY, dtypes=FLOATS, ops=("forward", "input_grad"), axes=(1, 2, 3), also=why_not_box),
)
__getattr__ = front_doors("box")
