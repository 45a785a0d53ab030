"""``direct-naive-cupy``: the definition with one thread an output, on the GPU."""

from __future__ import annotations

from convbench.backends._cuda import CudaBackend
from convbench.cuda.direct_naive import VARIANTS, DirectNaive, why_not
from convbench.cuda.forward import C_TYPES
from convbench.geometry import BOUNDARIES
from convbench.ops import front_doors
from convbench.refusals import Limits
from convbench.spec import LAYOUTS, OPS

BACKEND = CudaBackend(
    name="direct-naive-cupy",
    summary="one thread an output, the textbook kernel",
    algorithm=DirectNaive,
    variants=VARIANTS,
    limits=Limits(dtypes=tuple(C_TYPES), ops=OPS, boundaries=BOUNDARIES, layouts=LAYOUTS, tile=True, also=why_not),
)
__getattr__ = front_doors("direct-naive-cupy")
