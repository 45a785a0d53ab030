"""``matrix-dense``: multiplication by the convolution's matrix in full; the answer to "why not just use a matrix?"."""

from __future__ import annotations

from dataclasses import replace

from convbench import bounds
from convbench.algorithms.matrix import DenseMatrix, has_matrix, why_not_dense
from convbench.backend import AlgorithmBackend
from convbench.bounds import ErrorBound
from convbench.ops import front_doors
from convbench.refusals import WHOLE_FAMILY
from convbench.spec import ConvSpec


def _bound(spec: ConvSpec) -> ErrorBound:
    """The zeros add nothing, but they turn a NaN or infinity elsewhere into NaN."""
    return replace(bounds.direct(spec), spreads_nonfinite=True)


BACKEND = AlgorithmBackend(
    name="matrix-dense",
    summary="its matrix in full, by GEMM",
    algorithm=DenseMatrix,
    native=has_matrix,
    bound=_bound,
    limits=replace(WHOLE_FAMILY, also=why_not_dense),
)
__getattr__ = front_doors("matrix-dense")
