"""``im2col-full``: all columns of an example in memory + one GEMM a group, on NumPy; what most people write."""

from __future__ import annotations

from convbench.algorithms.im2col import Im2colFull
from convbench.backend import AlgorithmBackend
from convbench.backends.im2col import LIMITS
from convbench.ops import front_doors

BACKEND = AlgorithmBackend(
    name="im2col-full", summary="all columns of an example + GEMM", algorithm=Im2colFull, limits=LIMITS
)
conv, convolve, correlate, plan = front_doors("im2col-full")
