"""``im2col-numpy``: blocks of columns + GEMM, on NumPy."""

from __future__ import annotations

from convbench.algorithms.family import planned
from convbench.algorithms.im2col import Im2col
from convbench.backend import AlgorithmBackend
from convbench.ops import front_doors
from convbench.refusals import WHOLE_FAMILY

BACKEND = AlgorithmBackend(
    name="im2col-numpy",
    summary="blocks of columns + GEMM",
    algorithm=planned(Im2col),
    native=Im2col.native,
    limits=WHOLE_FAMILY,
)
__getattr__ = front_doors("im2col-numpy")
