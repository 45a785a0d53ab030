"""``im2col-cupy``: implicit GEMM on the GPU's general-purpose cores, no column stored."""

from __future__ import annotations

from convbench.backends._cuda import CudaBackend
from convbench.cuda.forward import C_TYPES
from convbench.cuda.implicit_gemm import VARIANTS, native, planned, why_not
from convbench.geometry import BOUNDARIES
from convbench.ops import front_doors
from convbench.refusals import Limits
from convbench.spec import LAYOUTS, OPS

BACKEND = CudaBackend(
    name="im2col-cupy",
    summary="implicit GEMM by register tiles",
    algorithm=planned,
    variants=VARIANTS,
    native=native,
    limits=Limits(dtypes=tuple(C_TYPES), ops=OPS, boundaries=BOUNDARIES, layouts=LAYOUTS, tile=True, also=why_not),
)
__getattr__ = front_doors("im2col-cupy")
