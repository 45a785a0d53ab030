"""Stride and dilation taken away: any spec as unit-stride, dense convolutions.

With g = gcd(s, d), s' = s/g, d' = d/g, kernel offset k = s'·m + r and output p = d'·j + i, the position read is

    p·s + k·d − a = (s·d')·(j + m) + (s·i + r·d − a),

so a spec is a dense unit-stride correlation over j + m with s' times the channels (the *polyphase* components r)
and d' times the batch (the *subgrids* i). Nothing is computed to be thrown away: at stride s a transform works
on 1/s of the samples a channel. Every sample of the input, as its boundary continues it, belongs to one component on
one subgrid (s' and d' are coprime), so that gradients are adjoints of the same maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import gcd, prod
from typing import NamedTuple

from convbench.geometry import Run, extension_runs, reduced
from convbench.spec import ConvSpec

__all__ = ["AxisLowering", "Lowering", "Reading"]


class Reading(NamedTuple):
    """Samples of a lowered axis and where in the input they are read: samples[place] = x[source].

    Attributes
    ----------
    place, source : slice
    repeated : bool
        One input sample stands for all of them.
    """

    place: slice
    source: slice
    repeated: bool


@dataclass(frozen=True)
class AxisLowering:
    """One axis: sizes, padding and boundary as in the spec, the lowered ones derived."""

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    outputs: int
    boundary: str = "zero"

    @property
    def phases(self) -> int:
        """Polyphase components that hold a tap."""
        return min(self.phase_step, self.kernel)

    @property
    def subgrids(self) -> int:
        """Interleaved subgrids that hold an output."""
        return min(self.grid_step, self.outputs)

    @property
    def lowered_kernel(self) -> int:
        """Taps of the longest component."""
        return -(-self.kernel // self.phase_step)

    @property
    def lowered_outputs(self) -> int:
        """Outputs of the longest subgrid."""
        return -(-self.outputs // self.grid_step)

    @property
    def length(self) -> int:
        """Samples under all positions of the lowered kernel."""
        return self.lowered_outputs + self.lowered_kernel - 1

    @cached_property
    def zeros(self) -> tuple[int, int]:
        """Samples before and after that are padding with zeros in every component and subgrid."""
        if self.boundary != "zero":
            return 0, 0
        parts = [self._inside(r, i) for r, i in product(range(self.phases), range(self.subgrids))]
        before = min(low for low, _ in parts)
        return before, min(self.length - max(high, before) for _, high in parts)

    @property
    def period(self) -> int:
        """Shortest circular convolution whose wanted outputs are those of the linear one.

        Zeros before may share their place with zeros after, as both are read as zero.
        """
        return max(self.length - min(self.zeros), self.lowered_kernel, self.lowered_outputs)

    @property
    def cycle(self) -> int | None:
        """With circular boundary the samples after which every component repeats, if they can replace ``period``.

        A circular convolution of just this length wraps where the boundary does: nothing is extended.
        """
        samples = self.size // gcd(self.size, self.stride * self.grid_step)
        fits = max(self.lowered_kernel, self.lowered_outputs) <= samples < self.length
        return samples if self.boundary == "circular" and fits else None

    def readings(self, phase: int, subgrid: int, period: int) -> list[Reading]:
        """Return what a component on a subgrid reads, in order of places, on a circle of ``period`` or ``cycle``.

        Places are counted from the first sample that is not a zero everywhere; what none holds is zero.
        """
        step, origin = self._line(phase, subgrid)
        extent = self.length if self.boundary == "zero" else min(self.length, period)
        found = []
        for run in extension_runs(origin, origin + (extent - 1) * step + 1, self.size, self.boundary):
            low, high = (-((origin - edge) // step) for edge in (run.start, run.stop))
            if low < high:
                first = run.first + run.step * (origin + low * step - run.start)
                source = Run(0, high - low, first, run.step * step).samples
                place = slice(low - self.zeros[0], high - self.zeros[0])
                found.append(Reading(place, source, run.step == 0))
        return found

    @property
    def most_copies(self) -> int:
        """Return how often the extension shows one input sample, at most."""
        end = (self.outputs - 1) * self.stride + (self.kernel - 1) * self.dilation + 1 - self.before
        runs = extension_runs(-self.before, end, self.size, self.boundary)
        return max(1, sum(run.stop - run.start if run.step == 0 else 1 for run in runs))

    def taps(self, phase: int) -> slice:
        """Return the kernel offsets of a component."""
        return slice(phase, None, self.phase_step)

    def tap_count(self, phase: int) -> int:
        """Number of taps of a component."""
        return -(-(self.kernel - phase) // self.phase_step)

    def wrapped(self, phase: int, period: int) -> list[tuple[slice, slice]]:
        """Return where a component's mirrored taps lie on a circle of ``period``: (place, part of the taps).

        Tap m stands at zeros[0] − m (mod period), so that output j of the circular convolution is output j wanted.
        """
        count = self.tap_count(phase)
        start = self.zeros[0] % period - (count - 1)
        before = min(max(0, -start), count)  # taps that lie before 0, that is at the end of the circle
        pieces = [(slice(period + start, period + start + before), slice(0, before))] if before else []
        if before < count:
            pieces.append((slice(start + before, start + count), slice(before, count)))
        return pieces

    def positions(self, subgrid: int) -> slice:
        """Return the outputs of a subgrid."""
        return slice(subgrid, None, self.grid_step)

    def position_count(self, subgrid: int) -> int:
        """Number of outputs of a subgrid."""
        return -(-(self.outputs - subgrid) // self.grid_step)

    @property
    def phase_step(self) -> int:
        """Distance of neighbouring taps of a component."""
        return reduced(self.stride, self.dilation)[0]

    @property
    def grid_step(self) -> int:
        """Distance of neighbouring outputs of a subgrid."""
        return reduced(self.stride, self.dilation)[1]

    def _line(self, phase: int, subgrid: int) -> tuple[int, int]:
        return self.stride * self.grid_step, self.stride * subgrid + phase * self.dilation - self.before

    def _inside(self, phase: int, subgrid: int) -> tuple[int, int]:
        """Return the range of samples of a component on a subgrid that lie inside the input."""
        step, origin = self._line(phase, subgrid)
        low = min(max(0, -(origin // step)), self.length)
        high = max(low, min(self.length, -((origin - self.size) // step)))
        return low, high


class Lowering:
    """All axes of a spec lowered together, for every operation of the family.

    Attributes
    ----------
    axes : tuple of AxisLowering
    """

    def __init__(self, spec: ConvSpec) -> None:
        self.axes = tuple(
            AxisLowering(size, kernel, stride, dilation, padding[0], outputs, spec.boundary)
            for size, kernel, stride, dilation, padding, outputs in zip(
                spec.input_size,
                spec.kernel_size,
                spec.stride,
                spec.dilation,
                spec.padding,
                spec.output_size,
                strict=True,
            )
        )

    @property
    def phases(self) -> int:
        """Factor on the channels."""
        return prod(axis.phases for axis in self.axes)

    @property
    def subgrids(self) -> int:
        """Factor on the batch."""
        return prod(axis.subgrids for axis in self.axes)

    @property
    def most_copies(self) -> int:
        """Return how often the boundary's extension shows one input sample, at most."""
        return prod(axis.most_copies for axis in self.axes)

    def each_phase(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Number the components."""
        return enumerate(product(*(range(axis.phases) for axis in self.axes)))

    def each_subgrid(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Number the subgrids."""
        return enumerate(product(*(range(axis.subgrids) for axis in self.axes)))
