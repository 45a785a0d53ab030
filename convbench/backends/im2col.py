"""``im2col``: blocks of columns + GEMM, on NumPy."""

from __future__ import annotations

from convbench.algorithms.im2col import Im2col
from convbench.backend import AlgorithmBackend
from convbench.ops import front_doors

BACKEND = AlgorithmBackend(name="im2col", summary="blocks of columns + GEMM", algorithm=Im2col)
conv, convolve, correlate, plan = front_doors("im2col")
