"""``winograd-cupy``: minimal filtering F(2, 3) and F(4, 3) on the GPU, in one kernel or with a GEMM a frequency."""

from __future__ import annotations

from convbench.backends._cuda import CudaBackend, needs
from convbench.cuda.forward import C_TYPES
from convbench.cuda.winograd import VARIANTS, error_bound, planned, why_not
from convbench.geometry import BOUNDARIES
from convbench.ops import front_doors
from convbench.refusals import Limits
from convbench.spec import LAYOUTS

BACKEND = CudaBackend(
    name="winograd-cupy",
    summary="minimal filtering F(2, 3) and F(4, 3), fused, or with a GEMM a frequency where there are many channels",
    algorithm=planned,
    variants=VARIANTS,
    bound=error_bound,
    device_problem=needs("cublas"),
    limits=Limits(
        dtypes=tuple(C_TYPES),
        ops=("forward", "input_grad"),
        boundaries=BOUNDARIES,
        layouts=LAYOUTS,
        also=why_not,
    ),
)
__getattr__ = front_doors("winograd-cupy")
