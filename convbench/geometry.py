"""Sizes and edges of a convolution along one axis (standard library only).

Letters as in the book's chapter 9: ``H`` input size, ``K`` kernel size, ``s`` stride,
``d`` dilation, ``a`` padding before the axis, ``b`` padding after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from typing import NamedTuple

__all__ = [
    "BOUNDARIES",
    "PADDING_WORDS",
    "Run",
    "boundary_index",
    "extension_runs",
    "in_bounds_taps",
    "most_reads",
    "output_size",
    "outputs_in_bounds",
    "positions_reached",
    "reduced",
    "word_padding",
]

BOUNDARIES = ("zero", "circular", "reflect", "replicate")
PADDING_WORDS = ("valid", "same", "full")


def output_size(size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> int:
    """Return ⌊(H + a + b − d·(K−1) − 1) / s⌋ + 1, which is not positive if nothing fits.

    >>> output_size(224, 7, stride=2, dilation=1, before=3, after=3)
    112
    """
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


def word_padding(word: str, size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Resolve "valid", "same" or "full" to (before, after) along one axis.

    ``same`` gives ⌈H/s⌉ outputs and puts the odd sample after (TensorFlow's rule at every
    stride, PyTorch's at stride 1); ``full`` pads d·(K−1) on either side.

    >>> word_padding("same", 5, 3, stride=2, dilation=1)
    (1, 1)
    """
    extent = dilation * (kernel - 1)
    if word == "valid":
        return 0, 0
    if word == "full":
        return extent, extent
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + extent + 1 - size, 0)
    return total // 2, total - total // 2


def boundary_index(position: int, size: int, boundary: str) -> int | None:
    """Return the input index that stands at ``position``, or None where zeros lie.

    The extension is periodic and unlimited, so padding may exceed the input.

    >>> [boundary_index(q, 4, "reflect") for q in range(-4, 8)]
    [2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]
    """
    if 0 <= position < size:
        return position
    if boundary == "zero":
        return None
    if boundary == "circular":
        return position % size
    if boundary == "replicate":
        return min(max(position, 0), size - 1)
    if size == 1:
        return 0
    period = 2 * (size - 1)
    folded = position % period
    return min(folded, period - folded)


class Run(NamedTuple):
    """Positions ``start`` … ``stop − 1`` of an extended axis that meet input samples ``first``, ``first + step``, …"""

    start: int
    stop: int
    first: int
    step: int  # 1 or −1 (or a multiple, where only some positions are meant), or 0: the same sample again and again

    @property
    def samples(self) -> slice:
        """The input samples; one where it stands for all positions."""
        if self.step == 0:
            return slice(self.first, self.first + 1)
        beyond = 1 if self.step > 0 else -1
        stop = self.first + self.step * (self.stop - self.start - 1) + beyond
        return slice(self.first, stop if stop >= 0 else None, self.step)


def extension_runs(start: int, stop: int, size: int, boundary: str) -> Iterator[Run]:
    """Cut positions ``start`` … ``stop − 1`` into runs that meet the input; zeros are left out.

    >>> [tuple(run) for run in extension_runs(-2, 6, 4, "reflect")]
    [(-2, 0, 2, -1), (0, 4, 0, 1), (4, 6, 2, -1)]
    """
    while start < stop:
        inside, length, step = 0, stop - start, 0
        if 0 <= start < size:
            inside, length, step = start, size - start, 1
        elif boundary == "zero":
            if start >= size:
                return
            start = min(0, stop)
            continue
        elif boundary == "circular":
            inside = start % size
            length, step = size - inside, 1
        elif boundary == "replicate":
            inside = 0 if start < 0 else size - 1
            length = -start if start < 0 else length
        elif size > 1:
            folded, period = start % (2 * (size - 1)), 2 * (size - 1)
            if folded < size - 1:
                inside, length, step = folded, size - 1 - folded, 1
            else:
                inside, length, step = period - folded, period - folded, -1
        length = min(length, stop - start)
        yield Run(start, start + length, inside, step)
        start += length


def most_reads(size: int, kernel: int, stride: int, dilation: int, before: int, outputs: int, boundary: str) -> int:
    """Return an upper bound of how many pairs (output p, tap k) meet one input sample along an axis.

    >>> most_reads(9, 3, stride=1, dilation=1, before=1, outputs=9, boundary="zero")
    3
    """
    tap_step, output_step = reduced(stride, dilation)
    one_position = min(-(-kernel // tap_step), -(-outputs // output_step))
    outside = max(0, before), max(0, (outputs - 1) * stride + (kernel - 1) * dilation + 1 - before - size)
    period = {"circular": size, "reflect": size - 1}.get(boundary, 0)
    if boundary == "zero":
        copies = 1
    elif period:
        copies = 1 + sum(-(-part // period) for part in outside)
    else:  # the samples at the edges
        copies = 1 + (sum(outside) if size == 1 else max(outside))
    return min(outputs * kernel, one_position * copies)


def in_bounds_taps(size: int, kernel: int, stride: int, dilation: int, before: int, outputs: int) -> int:
    """Count the pairs (output p, tap k) with 0 ≤ p·s + k·d − a < H along one axis.

    >>> in_bounds_taps(4, 3, stride=1, dilation=1, before=1, outputs=4)
    10
    """

    def up_to(position: int) -> int:
        """Count the pairs with p·s + k·d ≤ position: per k it is first all outputs, then fewer, then none."""
        whole = min(kernel, max(0, (position - (outputs - 1) * stride) // dilation + 1))
        some = min(kernel, max(0, position // dilation + 1)) - whole
        rest = position - (whole + some - 1) * dilation  # what the last k that counts leaves
        return whole * outputs + some + (_floor_sum(some, stride, dilation, rest) if some else 0)

    return up_to(size - 1 + before) - up_to(before - 1)


def outputs_in_bounds(size: int, kernel: int, stride: int, dilation: int, before: int, outputs: int) -> int:
    """Count the outputs p with at least one tap k such that 0 ≤ p·s + k·d − a < H along one axis.

    >>> outputs_in_bounds(4, 3, stride=1, dilation=1, before=4, outputs=10)
    6
    """
    if dilation > size:  # no two taps of one output fit
        return in_bounds_taps(size, kernel, stride, dilation, before, outputs)
    # the taps leave no gap that the input could fall into: wherever their extent meets it, one of them does
    first = max(0, -(-(before - dilation * (kernel - 1)) // stride))
    last = min(outputs - 1, (size - 1 + before) // stride)
    return max(0, last - first + 1)


def reduced(stride: int, dilation: int) -> tuple[int, int]:
    """Return s' = s/g and d' = d/g with g = gcd(s, d): steps between polyphase components' taps and subgrids' outputs.

    >>> reduced(6, 4)
    (3, 2)
    """
    common = gcd(stride, dilation)
    return stride // common, dilation // common


def positions_reached(kernel: int, stride: int, dilation: int, outputs: int) -> int:
    """Count the distinct values of p·s + k·d along one axis.

    >>> positions_reached(3, stride=2, dilation=1, outputs=4)
    9
    """
    # equal values form chains of steps (+d, −s) / gcd(s, d): as many chains as pairs less steps inside the box
    tap_step, output_step = reduced(stride, dilation)
    steps = max(0, outputs - output_step) * max(0, kernel - tap_step)
    return outputs * kernel - steps


def _floor_sum(n: int, m: int, a: int, b: int) -> int:
    """Return Σ ⌊(a·i + b) / m⌋ over 0 ≤ i < n, for a, b ≥ 0, in as many steps as Euclid's algorithm."""
    total = 0
    while n:
        total += n * (n - 1) // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        top = a * n + b
        n, b = divmod(top, m)
        m, a = a, m
    return total
