"""``direct-numpy``: shift and add over taps, in blocks, on NumPy."""

from __future__ import annotations

from convbench.algorithms.direct import ShiftAndAdd
from convbench.backend import AlgorithmBackend
from convbench.ops import front_doors
from convbench.refusals import WHOLE_FORWARD_FAMILY, Limits

LIMITS = Limits(dtypes=WHOLE_FORWARD_FAMILY.dtypes, axes=WHOLE_FORWARD_FAMILY.axes)
BACKEND = AlgorithmBackend(
    name="direct-numpy", summary="shift and add over taps, in blocks", algorithm=ShiftAndAdd, limits=LIMITS
)
conv, convolve, correlate, plan = front_doors("direct-numpy")
