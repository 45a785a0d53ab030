"""``kn2row``: one GEMM a kernel tap on the shifted input, no columns, on NumPy."""

from __future__ import annotations

from dataclasses import replace

from convbench.algorithms.kn2row import kn2row, why_not_kn2row
from convbench.backend import AlgorithmBackend
from convbench.ops import front_doors
from convbench.refusals import WHOLE_FAMILY

BACKEND = AlgorithmBackend(
    name="kn2row",
    summary="one GEMM a tap, accumulated",
    algorithm=kn2row,
    limits=replace(WHOLE_FAMILY, also=why_not_kn2row),
)
__getattr__ = front_doors("kn2row")
