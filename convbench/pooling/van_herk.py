"""Running maxima in three comparisons a sample and axis, however large the window (van Herk 1992; Gil and Werman 1993).

An axis is cut into blocks of a window's length. Within each, maxima are accumulated from its start (prefixes) and from
its end (suffixes); a window reaches over two blocks at most, so its maximum is that of one suffix and one prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convbench.pooling.frame import Array, better
from convbench.pooling.separable import ByAxes, along
from convbench.pooling.spec import PoolSpec
from convbench.pooling.windows import Selector, Windows, selector
from convbench.refusals import refuse

__all__ = ["VanHerk", "cut", "why_not"]


@dataclass(frozen=True)
class Cut:
    """Blocks along an axis, and what each output is made of.

    Attributes
    ----------
    length : int
        Of a block; the last may be shorter.
    head, tail : int
        Outputs before ``head`` are a prefix alone, those from ``tail`` on a suffix alone: windows cut by the ends of
        the input. The others are both.
    suffixes, prefixes : slice or array
        Positions whose suffix (of outputs from ``head`` on) and prefix (of outputs before ``tail``) are needed.
    """

    length: int
    head: int
    tail: int
    suffixes: Selector
    prefixes: Selector


def cut(windows: Windows) -> Cut | None:
    """Find a block length for the windows; None if there is none.

    Lengths that differ by one (bins) are done by blocks of the shorter one. An interval within a block and touching
    neither end of it is no union of a suffix and a prefix.
    """
    starts, stops = windows.bounds()
    for length in range(max(1, windows.longest), max(0, windows.longest - 2), -1):
        low, high = starts // length, (stops - 1) // length
        one = low == high
        aligned = starts % length == 0
        whole = one & aligned & ((stops % length == 0) | (stops == windows.size))
        prefix = one & aligned & ~whole
        suffix = one & ~aligned & (stops == windows.size)
        both = whole | (high == low + 1)
        head, tail = int(prefix.sum()), len(starts) - int(suffix.sum())
        if prefix[:head].all() and suffix[tail:].all() and both[head:tail].all():
            return Cut(length, head, tail, selector(starts[head:]), selector(stops[:tail] - 1))
    return None


def why_not(spec: PoolSpec) -> str | None:
    """Refuse windows that no block length suits."""
    if all(cut(windows) for windows in spec.windows):
        return None
    return refuse("kernel size", "the windows' lengths are too unequal for blocks of one length")


class VanHerk(ByAxes):
    """Passes along each axis by prefixes and suffixes of blocks."""

    def _pass_work(self, windows: Windows, lines: float) -> float:
        return lines * (2 * windows.size + windows.outputs)

    def _pass_bytes(self, before: int, after: int, windows: Windows) -> int:
        item = self.spec.itemsize
        if self._scatters:
            return 2 * (8 + item) * before + (8 + item) * after + 3 * max(before, after)
        return 2 * item * (before + after)

    def _pass(self, ufunc: Any, x: Array, axis: int, windows: Windows, out: Array) -> None:
        if windows.longest == 1:
            out[...] = x[along(axis, selector(windows.bounds()[0]))]
            return
        blocks = cut(windows)
        assert blocks is not None
        prefixes, suffixes = (_stepped(ufunc, x, axis, blocks.length, steps) for steps in _steps(blocks.length))
        out[along(axis, slice(blocks.tail))] = prefixes[along(axis, blocks.prefixes)]
        needed = suffixes[along(axis, blocks.suffixes)]
        middle = blocks.tail - blocks.head
        y = out[along(axis, slice(blocks.head, blocks.tail))]
        ufunc(y, needed[along(axis, slice(middle))], out=y)
        out[along(axis, slice(blocks.tail, None))] = needed[along(axis, slice(middle, None))]

    def _first_pass(self, x: Array, places: Array, axis: int, windows: Windows) -> tuple[Array, Array]:
        blocks = cut(windows)
        assert blocks is not None
        forwards, backwards = _steps(blocks.length)
        ahead = _carried(x, places, axis, blocks.length, forwards, later=True)
        behind = _carried(x, places, axis, blocks.length, backwards, later=False)
        chosen = []
        for prefixes, suffixes in zip(ahead, behind, strict=True):
            y = np.empty((*x.shape[:axis], windows.outputs, *x.shape[axis + 1 :]), prefixes.dtype)
            y[along(axis, slice(blocks.tail))] = prefixes[along(axis, blocks.prefixes)]
            chosen.append((y, suffixes[along(axis, blocks.suffixes)]))
        (held, earlier), (found, where) = chosen
        middle = blocks.tail - blocks.head
        inner, first, rest = (
            along(axis, s) for s in (slice(blocks.head, blocks.tail), slice(middle), slice(middle, None))
        )
        keep = ~better(held[inner], earlier[first])  # the suffix comes first
        np.copyto(held[inner], earlier[first], where=keep)
        np.copyto(found[inner], where[first], where=keep)
        held[along(axis, slice(blocks.tail, None))] = earlier[rest]
        found[along(axis, slice(blocks.tail, None))] = where[rest]
        return held, found


def _steps(length: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return, forwards and backwards through a block, from which position to which."""
    return [(t - 1, t) for t in range(1, length)], [(t + 1, t) for t in range(length - 2, -1, -1)]


def _neighbours(axis: int, source: int, target: int, length: int, size: int) -> tuple[Any, Any] | None:
    """Return indices of ``source`` and ``target`` in all blocks that have both; None if there is none."""
    count = len(range(max(source, target), size, length))  # the last block may end before
    if not count:
        return None
    there, here = (along(axis, slice(t, t + (count - 1) * length + 1, length)) for t in (source, target))
    return there, here


def _stepped(ufunc: Any, x: Array, axis: int, length: int, steps: list[tuple[int, int]]) -> Array:
    """Return what is accumulated within blocks; all of them take a step at once, so that NumPy has long loops."""
    held = x.copy()
    for source, target in steps:
        pair = _neighbours(axis, source, target, length, x.shape[axis])
        if pair:
            there, here = pair
            ufunc(held[there], held[here], out=held[here])
    return held


def _carried(
    x: Array, places: Array, axis: int, length: int, steps: list[tuple[int, int]], *, later: bool
) -> tuple[Array, Array]:
    """Return maxima accumulated within blocks, and the places of the first ones.

    ``later``: each step goes to a position later in the input, which yields to an equal one.
    """
    held, found = x.copy(), places.copy()
    for source, target in steps:
        pair = _neighbours(axis, source, target, length, x.shape[axis])
        if pair:
            there, here = pair
            takes = ~better(held[here], held[there]) if later else better(held[there], held[here])
            np.copyto(held[here], held[there], where=takes)
            np.copyto(found[here], found[there], where=takes)
    return held, found
