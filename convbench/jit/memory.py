"""Arrays as kernels see them: addresses, strides in items, and buffers that begin on a cache line."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from convbench.arrays import address as address_of
from convbench.spec import ConvSpec

__all__ = ["CACHE_LINE", "address_of", "aligned", "keep", "usual_strides"]

CACHE_LINE = 64  # bytes
_MOST_KEPT = 16

Call = TypeVar("Call")


def keep(calls: dict[Any, Call], strides: Any, call: Call) -> Call:
    """Keep what was worked out for arrays of some strides; where there is too much of it, all else is forgotten."""
    if len(calls) >= _MOST_KEPT:
        calls.clear()
    calls[strides] = call
    return call


def usual_strides(spec: ConvSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the strides, in bytes, of x and y that lie as the layout suggests, their groups split off.

    >>> usual_strides(ConvSpec.parse("c4 o2 g2 i5x6 k1 f32 layout=channels_last"))
    ((480, 8, 4, 96, 16), (240, 4, 4, 48, 8))
    """

    def strides(channels: int, sizes: Sequence[int]) -> tuple[int, ...]:
        last = spec.layout == "channels_last"
        memory = (*sizes, channels) if last else (channels, *sizes)
        image, *steps = (spec.itemsize * prod(memory[place:]) for place in range(len(memory) + 1))
        channel, *axes = (steps[-1], *steps[:-1]) if last else steps
        return image, channels // spec.groups * channel, channel, *axes

    return strides(spec.in_channels, spec.input_size), strides(spec.out_channels, spec.output_size)


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
