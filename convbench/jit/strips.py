"""Strips: rows of input as kernels read them, padded, in scratch memory that stays in cache.

What lies where is said by tables, one an axis: for each position of the padded axis the index of the sample that it
reads, or −1 for zero. Every boundary is a table, so kernels know of none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from convbench.geometry import extension_runs
from convbench.jit.ir import Code, Value

__all__ = ["Columns", "Sources", "axis_sources", "copy", "fill_row", "fill_zeros"]


@dataclass(frozen=True, eq=False)
class Sources:
    """What the positions of a padded axis read: 0 is the first sample of the first output.

    Attributes
    ----------
    table : array of int64
        The index of a sample, or −1.
    first, last : int
        Positions first … last − 1 read samples in order, each ``step`` after the one before.
    step : int
    """

    table: NDArray[np.int64]
    first: int
    last: int
    step: int = 1

    @property
    def in_place(self) -> bool:
        """Do all positions read samples in order?"""
        return self.first == 0 and self.last == len(self.table)


@lru_cache(maxsize=64)  # whoever uses a table's address keeps the table
def axis_sources(size: int, extent: int, before: int, boundary: str, step: int = 1) -> Sources:
    """Return the table of an axis of ``size`` samples: every ``step``-th of ``extent`` positions, padding ``before``.

    >>> axis_sources(3, 5, 1, "zero").table.tolist()
    [-1, 0, 1, 2, -1]
    """
    table = np.full(extent, -1, np.int64)
    for run in extension_runs(-before, extent - before, size, boundary):
        table[run.start + before : run.stop + before] = run.first + run.step * np.arange(run.stop - run.start)
    table = np.ascontiguousarray(table[::step])
    table.setflags(write=False)
    first, last = max(0, -(-before // step)), min(len(table), (before + size - 1) // step + 1)
    return Sources(table, first, last, step) if first < last else Sources(table, 0, 0, step)


@dataclass(frozen=True)
class Columns:
    """The last axis in a kernel: its table, where neighbours begin and end, and its extent."""

    table: Value
    first: Value
    last: Value
    extent: Value


def fill_row(code: Code, columns: Columns, row: Value, step: Value, strip: Value, *, every: int = 1) -> None:
    """Copy a row of input to a strip, margins included.

    Parameters
    ----------
    row, strip : address
        Of the row's sample 0, and of where position 0 goes.
    step : int or integer
        Between neighbours of the row. 1 as a Python integer copies vectors.
    every : int
        The step of the columns' sources.
    """

    def margin(start: Value, stop: Value) -> None:
        with code.loop(start, stop) as position:
            index = code.item(columns.table, position)
            sample = code.variable(code.number(0.0))
            with code.when(code.less(-1, index)):
                sample.set(code.item(row, code.mul(index, step)))
            code.put(sample.get(), strip, position)

    margin(0, columns.first)
    margin(columns.last, columns.extent)
    with code.when(code.less(columns.first, columns.last)):
        source = code.at(row, code.mul(code.item(columns.table, columns.first), step))
        copy(code, source, code.mul(step, every), code.at(strip, columns.first), code.sub(columns.last, columns.first))


def copy(code: Code, source: Value, step: Value, target: Value, count: Value) -> None:
    """Copy ``count`` numbers that lie ``step`` apart to neighbours, by vectors for small steps known beforehand."""
    if step == 1:
        whole = code.sub(count, code.rem(count, code.lanes))
        with code.loop(0, whole, code.lanes) as i:
            code.store(code.load(source, i), target, i)
        rest = code.sub(count, whole)
        with code.when(code.less(0, rest)):
            code.store_some(code.load_some(source, whole, rest), target, whole, rest)
        return
    whole = code.const(0)
    if isinstance(step, int) and step in (2, 4):  # nothing beyond the last sample is read
        whole = code.sub(count, code.add(code.rem(code.sub(count, 1), code.lanes), 1))
        with code.loop(0, whole, code.lanes) as i:
            begin = code.at(source, code.mul(i, step))
            code.store(code.every([code.load(begin, part * code.lanes) for part in range(step)]), target, i)
    with code.loop(whole, count) as i:
        code.put(code.item(source, code.mul(i, step)), target, i)


def fill_zeros(code: Code, target: Value, count: Value) -> None:
    """Write ``count`` zeros."""
    whole = code.sub(count, code.rem(count, code.lanes))
    with code.loop(0, whole, code.lanes) as i:
        code.store(code.zeros(), target, i)
    with code.loop(whole, count) as i:
        code.put(code.number(0.0), target, i)
