"""``im2col-full``: all columns of an example in memory + one GEMM a group, on NumPy; what most people write."""

from __future__ import annotations

from convbench.algorithms.family import planned
from convbench.algorithms.im2col import Im2colFull
from convbench.backend import AlgorithmBackend
from convbench.ops import front_doors
from convbench.refusals import WHOLE_FAMILY

BACKEND = AlgorithmBackend(
    name="im2col-full",
    summary="all columns of an example + GEMM",
    algorithm=planned(Im2colFull),
    native=Im2colFull.native,
    limits=WHOLE_FAMILY,
)
__getattr__ = front_doors("im2col-full")
