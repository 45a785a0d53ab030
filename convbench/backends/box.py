"""``box``: running sums for kernels whose taps are all equal; other weights are refused."""

from __future__ import annotations

from convbench import bounds
from convbench.algorithms.box import Box, additions_passed, why_not_box
from convbench.backend import AlgorithmBackend
from convbench.bounds import ErrorBound
from convbench.ops import front_doors
from convbench.refusals import WHOLE_FORWARD_FAMILY, Limits
from convbench.spec import ConvSpec


def _bound(spec: ConvSpec) -> ErrorBound:
    return bounds.box(spec, additions_passed(spec))


BACKEND = AlgorithmBackend(
    name="box",
    summary="running sums by addition chains, mixed by GEMM",
    algorithm=Box,
    bound=_bound,
    limits=Limits(dtypes=WHOLE_FORWARD_FAMILY.dtypes, axes=WHOLE_FORWARD_FAMILY.axes, also=why_not_box),
)
conv, convolve, correlate, plan = front_doors("box")
