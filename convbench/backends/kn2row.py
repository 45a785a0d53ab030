"""``kn2row``: one GEMM a kernel tap on the shifted input, no columns, on NumPy."""

from __future__ import annotations

from convbench.algorithms.kn2row import kn2row
from convbench.backend import AlgorithmBackend
from convbench.backends.im2col import LIMITS
from convbench.ops import front_doors

BACKEND = AlgorithmBackend(name="kn2row", summary="one GEMM a tap, accumulated", algorithm=kn2row, limits=LIMITS)
conv, convolve, correlate, plan = front_doors("kn2row")
