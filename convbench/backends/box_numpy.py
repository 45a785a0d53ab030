"""``box-numpy``: running sums on NumPy for kernels whose taps are all equal; other weights are refused."""

from __future__ import annotations

from dataclasses import replace

from convbench import bounds
from convbench.algorithms.box import Box, additions_passed, why_not_box
from convbench.backend import AlgorithmBackend
from convbench.bounds import ErrorBound
from convbench.ops import front_doors
from convbench.refusals import WHOLE_FAMILY
from convbench.spec import ConvSpec


def _bound(spec: ConvSpec) -> ErrorBound:
    return bounds.box(spec, additions_passed(spec))


BACKEND = AlgorithmBackend(
    name="box-numpy",
    summary="running sums by addition chains, mixed by GEMM",
    algorithm=Box,
    bound=_bound,
    limits=replace(WHOLE_FAMILY, ops=("forward", "input_grad"), also=why_not_box),
)
__getattr__ = front_doors("box-numpy")
