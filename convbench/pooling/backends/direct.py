"""``direct``: tap by tap over the whole window."""

from __future__ import annotations

from convbench.pooling.backend import PoolRegistrant
from convbench.pooling.direct import Direct

BACKEND = PoolRegistrant(name="direct", summary="reduce over taps, in bands that stay in cache", algorithm=Direct)
