"""``im2col-full-cupy``: columns in the GPU's memory, band by band, and cuBLAS."""

from __future__ import annotations

from convbench.backends._cuda import CudaBackend, needs
from convbench.cuda.forward import C_TYPES
from convbench.cuda.implicit_gemm import native
from convbench.cuda.unfold import VARIANTS, planned, why_not
from convbench.geometry import BOUNDARIES
from convbench.ops import front_doors
from convbench.refusals import Limits
from convbench.spec import LAYOUTS, OPS

BACKEND = CudaBackend(
    name="im2col-full-cupy",
    summary="bands of columns, products by cuBLAS",
    algorithm=planned,
    variants=VARIANTS,
    native=native,
    device_problem=needs("cublas"),
    limits=Limits(dtypes=tuple(C_TYPES), ops=OPS, boundaries=BOUNDARIES, layouts=LAYOUTS, tile=True, also=why_not),
)
__getattr__ = front_doors("im2col-full-cupy")
