"""Arrays as kernels see them: addresses, strides in items, and buffers that begin on a cache line."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.arrays import address as address_of

__all__ = ["CACHE_LINE", "address_of", "aligned", "item_strides"]

CACHE_LINE = 64  # bytes


def item_strides(array: NDArray[Any]) -> tuple[int, ...]:
    """Return the distance of neighbours along each axis, in items."""
    return tuple(stride // array.itemsize for stride in array.strides)


def aligned(shape: tuple[int, ...] | int, dtype: str) -> NDArray[Any]:
    """Return an array without values that begins on a cache line: vectors that straddle two cost two reads.

    >>> address_of(aligned((3, 5), "float32")) % CACHE_LINE
    0
    """
    kind = np.dtype(dtype)
    size = prod(shape) if isinstance(shape, tuple) else shape
    room = np.empty(size * kind.itemsize + CACHE_LINE, np.uint8)
    start = -address_of(room) % CACHE_LINE
    return room[start : start + size * kind.itemsize].view(kind).reshape(shape)
