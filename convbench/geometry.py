"""Sizes and edges of a convolution along one axis (standard library only).

Letters as in the book's chapter 9: ``H`` input size, ``K`` kernel size, ``s`` stride,
``d`` dilation, ``a`` padding before the axis, ``b`` padding after it.
"""

from __future__ import annotations

__all__ = ["BOUNDARIES", "PADDING_WORDS", "boundary_index", "in_bounds_taps", "output_size", "word_padding"]

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


def in_bounds_taps(size: int, kernel: int, stride: int, dilation: int, before: int, outputs: int) -> int:
    """Count the pairs (output p, tap k) with 0 ≤ p·s + k·d − a < H along one axis.

    >>> in_bounds_taps(4, 3, stride=1, dilation=1, before=1, outputs=4)
    10
    """
    count = 0
    for k in range(kernel):
        first = max(0, -(-(before - k * dilation) // stride))
        last = min(outputs - 1, (size - 1 + before - k * dilation) // stride)
        count += max(0, last - first + 1)
    return count
