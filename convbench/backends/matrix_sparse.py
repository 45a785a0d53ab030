"""``matrix-sparse``: multiplication by the convolution's matrix in compressed sparse rows, by SciPy."""

from __future__ import annotations

from dataclasses import replace

from convbench.algorithms.matrix import SparseMatrix, why_not_sparse
from convbench.backend import AlgorithmBackend
from convbench.ops import front_doors
from convbench.refusals import WHOLE_FORWARD_FAMILY

BACKEND = AlgorithmBackend(
    name="matrix-sparse",
    summary="its matrix in compressed sparse rows (scipy.sparse)",
    algorithm=SparseMatrix,
    requires={"scipy": "scipy"},
    limits=replace(WHOLE_FORWARD_FAMILY, also=why_not_sparse),
)
conv, convolve, correlate, plan = front_doors("matrix-sparse")
