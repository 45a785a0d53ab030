"""The windows of pooling along one axis: which samples each output reads, as two affine edges (eqs. in the classes)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd

import numpy as np
from numpy.typing import NDArray

__all__ = ["Edge", "Selector", "Windows", "selector"]

Indices = NDArray[np.intp]
Selector = slice | Indices

_OUTPUTS_A_PHASE = 8  # below it index arrays cost less than one slice a phase


@dataclass(frozen=True)
class Edge:
    """p ↦ ⌊(step·p + offset) / per⌋, with step and per in lowest terms."""

    step: int
    offset: int
    per: int = 1

    def __post_init__(self) -> None:
        common = gcd(self.step, self.per)
        for name in ("step", "offset", "per"):  # ⌊(n + β)/C⌋ = ⌊(n + ⌊β⌋)/C⌋ for whole n and C
            object.__setattr__(self, name, getattr(self, name) // common)

    def __call__(self, p: int) -> int:
        """Return the edge at one output."""
        return (self.step * p + self.offset) // self.per

    def of(self, p: Indices) -> Indices:
        """Return the edge at each of several outputs."""
        return (self.step * p + self.offset) // self.per

    def moved(self, outputs: int, samples: int) -> Edge:
        """Return the edge for outputs counted from ``outputs`` on and samples counted from ``samples`` on."""
        return Edge(self.step, self.step * outputs + self.offset - samples * self.per, self.per)


@dataclass(frozen=True)
class Windows:
    """Output p reads the samples from start(p) to stop(p) − 1, as far as they lie in 0 … size − 1.

    Both edges grow with p, so the outputs that read sample q are consecutive too: the adjoint of a window sum is a
    window sum (:meth:`transposed`).

    Examples
    --------
    >>> plain = Windows.plain(7, kernel=3, stride=2, before=1, outputs=4)
    >>> [list(map(int, edge)) for edge in plain.bounds()]
    [[0, 1, 3, 5], [2, 4, 6, 7]]
    >>> bins = Windows.adaptive(7, outputs=3)
    >>> [list(map(int, edge)) for edge in bins.bounds()]
    [[0, 2, 4], [3, 5, 7]]
    >>> bins.transposed() == Windows.adaptive(3, outputs=7)
    True
    """

    size: int
    outputs: int
    start: Edge
    stop: Edge

    @classmethod
    def plain(cls, size: int, kernel: int, stride: int, before: int, outputs: int) -> Windows:
        """Kernel, stride and padding: from p·s − a to p·s − a + K."""
        return cls(size, outputs, Edge(stride, -before), Edge(stride, kernel - before))

    @classmethod
    def adaptive(cls, size: int, outputs: int) -> Windows:
        """Return the n bins of any input size: from ⌊iH/n⌋ to ⌈(i+1)H/n⌉."""
        return cls(size, outputs, Edge(size, 0, outputs), Edge(size, size + outputs - 1, outputs))

    def bounds(self) -> tuple[Indices, Indices]:
        """Return the starts and stops of all outputs, cut to the input; an empty window stops where it starts."""
        p = np.arange(self.outputs)
        starts = np.clip(self.start.of(p), 0, self.size)
        return starts, np.maximum(np.clip(self.stop.of(p), 0, self.size), starts)

    def lengths(self) -> Indices:
        """Return the number of samples that each output reads."""
        starts, stops = self.bounds()
        return stops - starts

    def part(self, first: int, last: int) -> tuple[slice, Windows]:
        """Return the samples that outputs ``first`` … ``last`` − 1 read, and their windows on those alone."""
        low = min(max(self.start(first), 0), self.size)
        high = max(min(self.stop(last - 1), self.size), low)
        edges = (edge.moved(first, low) for edge in (self.start, self.stop))
        return slice(low, high), Windows(high - low, last - first, *edges)

    def transposed(self) -> Windows:
        """Return, for each sample, the outputs that read it.

        start(p) ≤ q < stop(p) solved for p: ⌊(a·p + b)/c⌋ ≤ q where a·p < c·(q + 1) − b, and so on.
        """
        start, stop = self.start, self.stop
        first = Edge(stop.per, stop.per - stop.offset + stop.step - 1, stop.step)
        last = Edge(start.per, start.per - start.offset - 1 + start.step, start.step)
        return Windows(self.outputs, self.size, first, last)

    @cached_property
    def longest(self) -> int:
        """Most samples that a window would read of an unlimited input."""
        p = np.arange(min(self.outputs, self.start.per))  # the edges repeat, moved, after that many
        return int((self.stop.of(p) - self.start.of(p)).max(initial=0))

    @property
    def sliced(self) -> bool:
        """Are all :meth:`taps` slices?"""
        return self.start.per == 1 or self.outputs >= _OUTPUTS_A_PHASE * self.start.per

    def taps(self) -> Iterator[tuple[Selector, Selector]]:
        """Go through the windows' samples in order: for each, the outputs that have it and where it lies.

        Within one step no output occurs twice. Both are slices where the edges allow: always with a stride; where
        windows begin at a fraction (bins, transposed strides), one phase after the other.
        """
        per = self.start.per
        if self.sliced:
            for phase in range(per):
                yield from self._steps(phase, per)
        else:
            starts, stops = self.bounds()
            for tap in range(self.longest):
                has = np.flatnonzero(starts + tap < stops)
                if has.size:
                    yield selector(has), selector(starts[has] + tap)

    def _steps(self, phase: int, per: int) -> Iterator[tuple[slice, slice]]:
        """Take every ``per``-th output from ``phase`` on: their windows begin at equal steps."""
        count = len(range(phase, self.outputs, per))
        start, step = self.start(phase), self.start.step
        for position in range(start, self.stop(phase)):
            first = max(0, -(position // step))  # the least p with position + p·step ≥ 0
            last = min(count, (self.size - 1 - position) // step + 1)
            if first < last:
                low = position + first * step
                yield (
                    slice(phase + first * per, phase + (last - 1) * per + 1, per),
                    slice(low, low + (last - 1 - first) * step + 1, step),
                )


def selector(indices: Indices | Sequence[int]) -> Selector:
    """Return increasing indices as a slice if they go up in equal steps.

    >>> selector([3, 5, 7])
    slice(3, 8, 2)
    """
    array = np.asarray(indices, np.intp)
    steps = np.diff(array)
    if array.size and (steps == steps[:1]).all() and (array.size == 1 or steps[0] > 0):
        return slice(int(array[0]), int(array[-1]) + 1, int(steps[0]) if array.size > 1 else 1)
    return array
