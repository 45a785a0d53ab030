"""``im2col``: blocks of columns + GEMM, on NumPy."""

from __future__ import annotations

from convbench.algorithms.im2col import Im2col
from convbench.backend import AlgorithmBackend
from convbench.ops import front_doors
from convbench.refusals import WHOLE_FORWARD_FAMILY, Limits

LIMITS = Limits(dtypes=("float32", "float64", "complex64", "complex128"), axes=WHOLE_FORWARD_FAMILY.axes)
BACKEND = AlgorithmBackend(name="im2col", summary="blocks of columns + GEMM", algorithm=Im2col, limits=LIMITS)
conv, convolve, correlate, plan = front_doors("im2col")
