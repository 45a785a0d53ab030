"""``im2col-bf16-cupy``: implicit GEMM on tensor cores: float32 arrays, bfloat16 operands, float32 sums."""

from __future__ import annotations

from convbench.backends._tensor import tensor_backend
from convbench.cuda.implicit_gemm_tc import BFLOAT16
from convbench.ops import front_doors

BACKEND = tensor_backend("im2col-bf16-cupy", BFLOAT16)
__getattr__ = front_doors("im2col-bf16-cupy")
