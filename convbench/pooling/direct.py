"""The definition, tap by tap: each is a shifted, strided view of the input, reduced into the output."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from convbench.pooling.frame import Array, AxisWindows, Reduction, better
from convbench.pooling.windows import Selector

__all__ = ["Direct", "fill_identity", "pick"]

_Step = tuple[Selector, Selector]


class Direct(Reduction):
    """∏K operations an output, vectorised over the outputs of a band."""

    def _reduce_bytes(self, planes: int, windows: AxisWindows) -> int:
        outputs, item = prod(axis.outputs for axis in windows), self.spec.itemsize
        if self._scatters:  # maxima and places, before and after a tap, and what compares them
            return planes * outputs * (2 * 8 + 3 * item + 2) + 2 * 8 * outputs
        return 0 if all(axis.sliced for axis in windows) else 3 * item * planes * outputs

    def _reduce(self, ufunc: Any, x: Array, windows: AxisWindows, out: Array) -> None:
        fill_identity(ufunc, out)
        for taps in product(*(list(axis.taps()) for axis in windows)):
            outputs, samples = pick(tap[0] for tap in taps), pick(tap[1] for tap in taps)
            if all(isinstance(index, slice) for index in outputs):
                y = out[outputs]
                ufunc(y, x[samples], out=y)
            else:
                out[outputs] = ufunc(out[outputs], x[samples])

    def _first_maxima(self, x: Array, windows: AxisWindows) -> Array:
        places = _places([axis.bounds()[0] for axis in windows], x.shape[1:])
        held = x.reshape(len(x), -1)[:, places]
        found = np.broadcast_to(places, held.shape).copy()
        for taps in product(*(list(axis.taps()) for axis in windows)):
            outputs, samples = pick(tap[0] for tap in taps), pick(tap[1] for tap in taps)
            there = _places([np.arange(size)[tap[1]] for size, tap in zip(x.shape[1:], taps, strict=True)], x.shape[1:])
            candidates, before = x[samples], held[outputs]
            wins = better(candidates, before)
            held[outputs] = np.where(wins, candidates, before)
            found[outputs] = np.where(wins, there, found[outputs])
        return found


def fill_identity(ufunc: Any, out: Array) -> None:
    """Begin a reduction: 0 for sums, the least value for maxima."""
    if ufunc is np.add:
        out[...] = 0
    else:
        out[...] = -np.inf if out.dtype.kind == "f" else np.iinfo(out.dtype).min


def pick(selectors: Any) -> tuple[Any, ...]:
    """Return an index into (planes, *space) that selects these along each axis: a view if all are slices."""
    chosen = tuple(selectors)
    if all(isinstance(index, slice) for index in chosen):
        return (slice(None), *chosen)
    stop = [index.stop if isinstance(index, slice) else 0 for index in chosen]
    arrays = [
        np.arange(index.start, end, index.step) if isinstance(index, slice) else index
        for index, end in zip(chosen, stop, strict=True)
    ]
    return (slice(None), *np.ix_(*arrays))


def _places(positions: Sequence[Any], size: Sequence[int]) -> Array:
    """Return where in a flattened plane the grid of these positions lies."""
    places = np.zeros((), np.intp)
    for entries, length in zip(positions, size, strict=True):
        places = places[..., None] * length + entries
    return places
