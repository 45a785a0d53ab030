"""Summed-area tables (Crow 1984; Viola and Jones 2001): a window's sum from 2^d entries, however large the window.

Entry q of the table is the sum of all samples before q along every axis, in float64. Tables cover one band each, so
that sums drift no further than across it; integers stay exact as long as the band's sum is below 2⁵³.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from convbench.pooling.frame import Array, AxisWindows, Reduction
from convbench.pooling.separable import along
from convbench.pooling.spec import PoolSpec
from convbench.pooling.windows import selector
from convbench.refusals import refuse

__all__ = ["IntegralImage", "why_not"]


def why_not(spec: PoolSpec) -> str | None:
    """Refuse the gradient of the norm."""
    if spec.kind == "l2" and spec.op == "grad":
        return refuse("op", "gradient of l2 divides by norms, of which differences keep no digits where they are small")
    return None


class IntegralImage(Reduction):
    """d additions a sample, then 2^d operations an output."""

    def __init__(self, spec: PoolSpec, threads: int) -> None:
        super().__init__(spec, threads)
        source, result = (spec.output_shape, spec.input_shape)[:: 1 if spec.op == "grad" else -1]
        self.flops = spec.ndim * prod(source) + 2**spec.ndim * prod(result)

    def _reduce_bytes(self, planes: int, windows: AxisWindows) -> int:
        sizes = [planes, *(axis.size + 1 for axis in windows)]
        most = 2 * prod(sizes)  # NumPy accumulates in place by way of a copy
        for axis, one in enumerate(windows, start=1):
            before = prod(sizes)
            sizes[axis] = one.outputs
            most = max(most, before + 3 * prod(sizes))  # the two terms of the difference may be gathered
        return 8 * most

    def _reduce(self, ufunc: Any, x: Array, windows: AxisWindows, out: Array) -> None:
        assert ufunc is np.add
        table = _summed_area(x)
        for axis, one in enumerate(windows, start=1):
            starts, stops = one.bounds()
            table = table[along(axis, selector(stops))] - table[along(axis, selector(starts))]
        if self.spec.kind == "l2":  # rounding may leave less than nothing of squares
            np.maximum(table, 0, out=table)
        out[...] = table


def _summed_area(x: Array) -> Array:
    """Return the table: entry q is the sum of all samples before q along every axis."""
    table = np.zeros((len(x), *(size + 1 for size in x.shape[1:])))
    table[(slice(None), *(slice(1, None),) * (x.ndim - 1))] = x
    np.add.accumulate(table, x.ndim - 1, out=table)
    for axis in range(1, x.ndim - 1):  # row by row: NumPy accumulates along other axes element by element
        for row in range(2, table.shape[axis]):
            held = table[along(axis, row)]
            np.add(table[along(axis, row - 1)], held, out=held)
    return table
