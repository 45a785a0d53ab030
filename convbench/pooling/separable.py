"""One axis after the other: windows are products of intervals, so their maxima and sums are those of lines."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from convbench.pooling.direct import fill_identity
from convbench.pooling.frame import Array, AxisWindows, Reduction, better, cells
from convbench.pooling.spec import PoolSpec
from convbench.pooling.windows import Selector, Windows

__all__ = ["ByAxes", "Separable", "along"]


class ByAxes(Reduction):
    """Algorithms made of passes along single axes.

    Sums and maxima go from the first axis to the last: the first passes run over whole rows, and strides thin out the
    rows before the last pass. First maxima go from the last axis to the first, and so come out first in row-major
    order: of equal ones, the first in its row; of rows with equal ones, the first row.
    """

    def __init__(self, spec: PoolSpec, threads: int) -> None:
        super().__init__(spec, threads)
        planes, shape = spec.batch * spec.channels, list(spec.input_size)
        work = 0.0
        for axis, windows in enumerate(spec.windows):
            shape[axis] = spec.output_size[axis]
            work += planes * self._pass_work(windows, np.prod(shape, dtype=float) / max(1, shape[axis]))
        self.flops = int(work) * (2 if spec.op == "grad" and spec.kind == "l2" else 1)

    def _pass_work(self, windows: Windows, lines: float) -> float:
        return lines * float(windows.lengths().sum())

    def _reduce_bytes(self, planes: int, windows: AxisWindows) -> int:
        """What stands before and after each pass, and what the pass needs beside."""
        item, last, most = self.spec.itemsize, len(windows) - 1, 0
        sizes = [planes, *(axis.size for axis in windows)]
        order = reversed(range(last + 1)) if self._scatters else range(last + 1)
        held = 0
        for axis in order:
            before = prod(sizes)
            sizes[1 + axis] = windows[axis].outputs
            after = prod(sizes)
            passing = self._pass_bytes(before, after, windows[axis])
            if self._scatters:  # values and places
                most = max(most, held + (8 + item) * after + passing)
                held = (8 + item) * after
            else:
                made = item * after * (axis != last)
                most, held = max(most, held + made + passing), made
        return most

    def _pass_bytes(self, before: int, after: int, windows: Windows) -> int:
        """Bytes that a pass over ``before`` elements that makes ``after`` allocates beside its result."""
        item = self.spec.itemsize
        if self._scatters:
            return 2 * (8 + item) * after + 3 * after
        return 0 if windows.sliced else 3 * item * after

    def _reduce(self, ufunc: Any, x: Array, windows: AxisWindows, out: Array) -> None:
        last = len(windows) - 1
        for axis, one in enumerate(windows):
            shape = (*x.shape[: 1 + axis], one.outputs, *x.shape[2 + axis :])
            y = out if axis == last else np.empty(shape, x.dtype)
            self._pass(ufunc, x, 1 + axis, one, y)
            x = y

    def _first_maxima(self, x: Array, windows: AxisWindows) -> Array:
        places: Array = np.broadcast_to(cells(x.shape[1:]), x.shape)
        for axis in reversed(range(len(windows))):
            x, places = self._first_pass(x, places, 1 + axis, windows[axis])
        return places

    def _pass(self, ufunc: Any, x: Array, axis: int, windows: Windows, out: Array) -> None:
        raise NotImplementedError

    def _first_pass(self, x: Array, places: Array, axis: int, windows: Windows) -> tuple[Array, Array]:
        """Return the maxima along one axis, and the places of the first ones."""
        raise NotImplementedError


class Separable(ByAxes):
    """ΣK operations an output instead of ∏K: tap by tap along each axis."""

    def _pass(self, ufunc: Any, x: Array, axis: int, windows: Windows, out: Array) -> None:
        fill_identity(ufunc, out)
        for outputs, samples in windows.taps():
            there = along(axis, outputs)
            if isinstance(outputs, slice):
                y = out[there]
                ufunc(y, x[along(axis, samples)], out=y)
            else:
                out[there] = ufunc(out[there], x[along(axis, samples)])

    def _first_pass(self, x: Array, places: Array, axis: int, windows: Windows) -> tuple[Array, Array]:
        starts = windows.bounds()[0]
        held, found = x.take(starts, axis), places.take(starts, axis)
        for outputs, samples in windows.taps():
            there, candidates = along(axis, outputs), x[along(axis, samples)]
            wins = better(candidates, held[there])
            if isinstance(outputs, slice):
                np.copyto(held[there], candidates, where=wins)
                np.copyto(found[there], places[along(axis, samples)], where=wins)
            else:
                held[there] = np.where(wins, candidates, held[there])
                found[there] = np.where(wins, places[along(axis, samples)], found[there])
        return held, found


def along(axis: int, index: Selector | int) -> tuple[Any, ...]:
    """Return an index that selects along one axis."""
    return (slice(None),) * axis + (index,)
