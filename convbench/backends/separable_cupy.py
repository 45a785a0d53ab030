"""``separable-cupy``: 1-D passes, two in one kernel, on the GPU; weights of high rank are refused with it."""

from __future__ import annotations

from dataclasses import replace

from convbench.backends import separable
from convbench.backends._cuda import CudaBackend
from convbench.cuda.separable import VARIANTS, planned, why_not
from convbench.ops import front_doors
from convbench.refusals import FLOATS, WHOLE_FAMILY

BACKEND = CudaBackend(
    name="separable-cupy",
    summary="tensor-train factors, two passes in one kernel",
    algorithm=planned,
    variants=VARIANTS,
    bound=separable.BACKEND.bound,
    limits=replace(WHOLE_FAMILY, dtypes=FLOATS, ops=("forward", "input_grad"), axes=(2, 3), also=why_not),
)
__getattr__ = front_doors("separable-cupy")
