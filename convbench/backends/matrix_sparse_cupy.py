"""``matrix-sparse-cupy``: multiplication by the convolution's matrix in compressed sparse rows, by cuSPARSE."""

from __future__ import annotations

from dataclasses import replace

from convbench.algorithms.matrix import has_matrix, why_not_sparse
from convbench.backends._cuda import CudaBackend, needs
from convbench.bounds import ErrorBound, direct
from convbench.cuda.sparse import CudaSparseMatrix
from convbench.ops import front_doors
from convbench.refusals import FLOATS_AND_COMPLEX, WHOLE_FAMILY
from convbench.spec import ConvSpec


def _bound(spec: ConvSpec) -> ErrorBound:
    return replace(direct(spec), flushes_denormals=True)


BACKEND = CudaBackend(
    name="matrix-sparse-cupy",
    summary="its matrix in compressed sparse rows (cuSPARSE)",
    algorithm=CudaSparseMatrix,
    native=has_matrix,
    bound=_bound,
    device_problem=needs("cusparse"),
    limits=replace(WHOLE_FAMILY, dtypes=FLOATS_AND_COMPLEX, also=why_not_sparse),
)
__getattr__ = front_doors("matrix-sparse-cupy")
