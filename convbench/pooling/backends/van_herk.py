"""``van-herk``: running maxima by van Herk, Gil and Werman."""

from __future__ import annotations

from convbench.pooling.backend import PoolLimits, PoolRegistrant
from convbench.pooling.van_herk import VanHerk, why_not

BACKEND = PoolRegistrant(
    name="van-herk",
    summary="prefix and suffix maxima of blocks, one axis after the other",
    algorithm=VanHerk,
    limits=PoolLimits(kinds=("max",), grads=("max",), also=why_not),
)
