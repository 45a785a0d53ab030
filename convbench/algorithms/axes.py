"""A spec's axes as kernels take them, always three: depth, rows and columns; what a spec has not is of size 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from convbench.jit.strips import Sources, axis_sources
from convbench.spec import ConvSpec

__all__ = ["Axes", "Axis", "in_items", "in_one_row", "is_one_row", "spec_axes"]


@dataclass(frozen=True, eq=False)
class Axis:
    """One spatial axis: sizes, and what its padded positions read.

    The stride is between positions of ``sources``; that of a single tap is among these already.
    """

    size: int
    outputs: int
    taps: int
    stride: int
    dilation: int
    sources: Sources


Axes = tuple[Axis, Axis, Axis]

_ALONE = Axis(1, 1, 1, 1, 1, axis_sources(1, 1, 0, "zero"))


def spec_axes(spec: ConvSpec, *, sparse: bool = True) -> Axes:
    """Return depth, rows and columns; ``sparse`` leaves out of the tables what a single tap does not read."""
    axes = [_ALONE] * (3 - spec.ndim)
    for size, p, k, s, d, (before, _) in zip(
        spec.input_size, spec.output_size, spec.kernel_size, spec.stride, spec.dilation, spec.padding, strict=True
    ):
        step = s if k == 1 and sparse else 1
        sources = axis_sources(size, max(0, (p - 1) * s + (k - 1) * d + 1), before, spec.boundary, step)
        axes.append(Axis(size, p, k, s // step if p > 1 else 1, d, sources))
    depth, rows, columns = axes
    return depth, rows, columns


def in_one_row(axes: Sequence[Axis]) -> Axes | None:
    """Return all positions as one row, for kernels of one tap that read every sample as it lies."""
    if any(a.taps > 1 or a.stride > 1 or a.size != a.outputs or not a.sources.in_place for a in axes):
        return None
    size = prod(axis.size for axis in axes)
    return _ALONE, _ALONE, Axis(size, size, 1, 1, 1, axis_sources(size, size, 0, "zero"))


def in_items(strides: tuple[int, ...], spec: ConvSpec) -> tuple[int, ...]:
    """Return (image, group, channel, depth, row, column) of (N, G, C, *axes) in bytes."""
    items = [stride // spec.itemsize for stride in strides]
    return (*items[:3], *(0,) * (3 - spec.ndim), *items[3:])


def is_one_row(strides: tuple[int, ...], axes: Sequence[Axis]) -> bool:
    """Tell whether all positions lie one after the other, at equal distances."""
    distance = strides[5]
    for axis, stride in zip(reversed(axes), reversed(strides[3:]), strict=True):
        if axis.size > 1 and stride != distance:
            return False
        distance *= axis.size
    return True
