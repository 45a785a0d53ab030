"""``direct-numpy``: shift and add over taps, in blocks, on NumPy."""

from __future__ import annotations

from convbench.algorithms.direct import ShiftAndAdd
from convbench.algorithms.family import planned
from convbench.backend import AlgorithmBackend
from convbench.ops import front_doors
from convbench.refusals import WHOLE_FAMILY

BACKEND = AlgorithmBackend(
    name="direct-numpy",
    summary="shift and add over taps, in blocks",
    algorithm=planned(ShiftAndAdd),
    native=ShiftAndAdd.native,
    limits=WHOLE_FAMILY,
)
__getattr__ = front_doors("direct-numpy")
