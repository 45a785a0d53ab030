"""``separable``: tap by tap along one axis after the other."""

from __future__ import annotations

from convbench.pooling.backend import PoolRegistrant
from convbench.pooling.separable import Separable

BACKEND = PoolRegistrant(name="separable", summary="reduce over taps, one axis after the other", algorithm=Separable)
