"""``im2col-tf32-cupy``: implicit GEMM on tensor cores: float32 arrays, TF32 operands, float32 sums."""

from __future__ import annotations

from convbench.backends._tensor import tensor_backend
from convbench.cuda.implicit_gemm_tc import TF32
from convbench.ops import front_doors

BACKEND = tensor_backend("im2col-tf32-cupy", TF32)
__getattr__ = front_doors("im2col-tf32-cupy")
