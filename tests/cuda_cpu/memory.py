"""The memory of the arrays that a kernel is launched with: as on a device, apart and with nothing near it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convbench.arrays import address

__all__ = ["DeviceMemory", "Span"]

_ALIGNMENT = 256  # of an allocation on a device, at least
_ZONE = 2048  # free bytes around each array
_FILL = 0xFF  # a NaN in every floating-point type, −1 among integers


@dataclass(frozen=True)
class Span:
    """The bytes from the first to the last element of an argument."""

    argument: int
    low: int
    size: int
    writable: bool


class DeviceMemory:
    """Copies of the arguments' arrays for one launch, in one allocation.

    What a kernel reads beyond an array or between its elements is NaN, and what it writes there is found; a kernel that
    is wrong cannot damage the process. Arrays that overlap do so in the copy; each begins where it would on a device,
    whose allocations are aligned to 256 bytes.

    Parameters
    ----------
    arrays : dict of int to ndarray
        By position among the arguments.
    constant : set of int
        Those that the kernel takes as pointers to const.
    """

    def __init__(self, arrays: dict[int, Any], constant: set[int]) -> None:
        self._arrays, self._constant = arrays, constant
        bounds = {i: _bounds(array) for i, array in arrays.items()}
        pieces: list[list[int]] = []  # from where to where, and how far from the start of its allocation
        piece_of = {}
        for i in sorted(bounds, key=bounds.__getitem__):
            low, high = bounds[i]
            if pieces and low < pieces[-1][1]:
                pieces[-1][1] = max(pieces[-1][1], high)
            else:
                pieces.append([low, high, low - _bounds(_root(arrays[i]))[0]])
            piece_of[i] = len(pieces) - 1
        total = sum(high - low + _ZONE + _ALIGNMENT for low, high, _ in pieces) + _ZONE
        self._memory = np.full(total, _FILL, np.uint8)
        self._base = at = self._memory.ctypes.data
        shifts = []
        for low, high, position in pieces:
            at += _ZONE + (position - at - _ZONE) % _ALIGNMENT
            shifts.append(at - low)
            at += high - low
        self._shift = {i: shifts[piece] for i, piece in piece_of.items()}
        self.spans = [
            Span(i, low + self._shift[i], high - low, bool(arrays[i].flags.writeable))
            for i, (low, high) in bounds.items()
        ]
        for i, array in arrays.items():
            self._copy(i)[...] = array

    def pointer(self, i: int) -> int:
        """Return where the first element of an argument is."""
        return address(self._arrays[i]) + self._shift[i]

    def collect(self) -> str | None:
        """Copy back what the kernel may have written; return what it must not have, or None."""
        for i, array in self._arrays.items():
            if i not in self._constant and array.flags.writeable:
                array[...] = self._copy(i)
        for i, array in self._arrays.items():
            if self._copy(i).tobytes() != array.tobytes():
                return f"argument {i} was written to, and is {'const' if i in self._constant else 'read-only'}"
        for i, array in self._arrays.items():
            offset, shape = self.pointer(i) - self._base, (*array.shape, array.itemsize)
            np.ndarray(shape, np.uint8, self._memory, offset, (*array.strides, 1)).fill(_FILL)
        if int(self._memory.min()) == _FILL:
            return None
        where = int(np.flatnonzero(self._memory != _FILL)[0]) + self._base
        return f"something was written outside all arrays ({self.whereabouts(where)})"

    def whereabouts(self, address: int) -> str:
        """Return the position of an address relative to the array nearest to it."""
        if not self.spans:
            return "no array was passed"
        nearest = min(self.spans, key=lambda s: max(s.low - address, address - s.low - s.size + 1))
        array = self._arrays[nearest.argument]
        at = f"byte {address - nearest.low} of {nearest.size}"
        return f"{at} of argument {nearest.argument}, {array.dtype}{array.shape}"

    def _copy(self, i: int) -> Any:
        array = self._arrays[i]
        return np.ndarray(array.shape, array.dtype, self._memory, self.pointer(i) - self._base, array.strides)


def _bounds(array: Any) -> tuple[int, int]:
    start = address(array)
    if array.size == 0:
        return start, start
    low, high = np.lib.array_utils.byte_bounds(array)
    return low, high


def _root(array: Any) -> Any:
    """Return the array that owns the memory, or the last one before whatever does."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
