"""``direct-cupy``: the definition's sums in registers, samples in shared memory, on the GPU."""

from __future__ import annotations

from convbench.backends._cuda import CudaBackend
from convbench.cuda.direct import VARIANTS, direct, native, why_not
from convbench.cuda.forward import C_TYPES
from convbench.geometry import BOUNDARIES
from convbench.ops import front_doors
from convbench.refusals import Limits
from convbench.spec import LAYOUTS, OPS

BACKEND = CudaBackend(
    name="direct-cupy",
    summary="tiles in shared memory, sums in registers",
    algorithm=direct,
    variants=VARIANTS,
    native=native,
    limits=Limits(dtypes=tuple(C_TYPES), ops=OPS, boundaries=BOUNDARIES, layouts=LAYOUTS, tile=True, also=why_not),
)
__getattr__ = front_doors("direct-cupy")
