"""``im2col-f16-cupy``: implicit GEMM on tensor cores: float16 arrays, float32 sums."""

from __future__ import annotations

from convbench.backends._tensor import tensor_backend
from convbench.cuda.implicit_gemm_tc import FLOAT16
from convbench.ops import front_doors

BACKEND = tensor_backend("im2col-f16-cupy", FLOAT16)
__getattr__ = front_doors("im2col-f16-cupy")
