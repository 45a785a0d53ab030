"""``matrix-sparse``: multiplication by the convolution's matrix in compressed sparse rows, by SciPy."""

from __future__ import annotations

from dataclasses import replace

from convbench.algorithms.matrix import SparseMatrix, has_matrix, why_not_sparse
from convbench.backend import AlgorithmBackend
from convbench.ops import front_doors
from convbench.refusals import WHOLE_FAMILY

BACKEND = AlgorithmBackend(
    name="matrix-sparse",
    summary="its matrix in compressed sparse rows (scipy.sparse)",
    algorithm=SparseMatrix,
    native=has_matrix,
    requires={"scipy": "scipy"},
    limits=replace(WHOLE_FAMILY, also=why_not_sparse),
)
__getattr__ = front_doors("matrix-sparse")
