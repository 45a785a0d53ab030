"""Which sizes of input or kernel give a wanted output size: a range along each axis, by arithmetic.

Several input sizes give one output size as soon as the stride exceeds 1, several kernel sizes where it exceeds the
dilation. Gradients are told which is meant; these ranges say whether it can be, and if not, what could.
"""

from __future__ import annotations

from convbench.geometry import word_padding

__all__ = ["Padding", "input_sizes", "kernel_sizes"]

#: Along one axis: a word, or what stands (before, after).
Padding = str | tuple[int, int]

_ANY = 2**62  # sizes beyond are refused by the spec


def input_sizes(outputs: int, kernel: int, stride: int, dilation: int, padding: Padding) -> range:
    """Return the input sizes that give ``outputs``: as many as the stride, less those below 1.

    >>> input_sizes(4, 3, stride=2, dilation=1, padding=(1, 1))
    range(7, 9)
    >>> input_sizes(4, 3, stride=2, dilation=1, padding="same")
    range(7, 9)
    """
    least = (outputs - 1) * stride + 1
    if padding != "same":  # which gives ⌈H/s⌉ whatever the kernel
        if isinstance(padding, str):
            padding = word_padding(padding, least, kernel, stride, dilation)
        least += dilation * (kernel - 1) - sum(padding)
    return range(max(1, least), max(1, least + stride))


def kernel_sizes(outputs: int, size: int, stride: int, dilation: int, padding: Padding) -> range:
    """Return the kernel sizes that give ``outputs`` from an input of ``size``; with "same" any one or none.

    >>> kernel_sizes(3, 8, stride=2, dilation=1, padding="valid")
    range(3, 5)
    >>> kernel_sizes(10, 8, stride=1, dilation=1, padding="full")
    range(3, 4)
    """
    if padding == "same":
        return range(1, _ANY if outputs == -(-size // stride) else 1)
    # ⌊span / s⌋ + 1 outputs, where the span of the kernel's first tap is what K − 1 steps of d leave or, in full, add
    low, high = (outputs - 1) * stride, outputs * stride - 1
    span = size - 1 + (0 if isinstance(padding, str) else sum(padding))
    if padding == "full":
        low, high = low - span, high - span
    else:
        low, high = span - high, span - low
    return range(max(1, 1 - (-low // dilation)), max(1, high // dilation + 2))
