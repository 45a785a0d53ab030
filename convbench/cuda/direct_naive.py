"""Direct convolution with one thread an output: the version to learn from, and to measure the others against."""

from __future__ import annotations

from math import prod
from typing import Any

from convbench.arrays import Array, Namespace
from convbench.cuda.forward import C_TYPES, MOST_ALONG_Y, Forward
from convbench.cuda.geometry import blocks
from convbench.cuda.kernel import Kernel
from convbench.cuda.variants import Variant
from convbench.refusals import refuse
from convbench.spec import ConvSpec

__all__ = ["KERNELS", "VARIANTS", "DirectNaive", "why_not"]

_THREADS = 256
_MOST = 2**31 - 2**20  # outputs of an image, and positions along an axis: tiles reach beyond the last

_BY_DTYPE = {
    dtype: Kernel("direct_naive.cu", f"direct_naive<{name}>", (_THREADS, 1, 1)) for dtype, name in C_TYPES.items()
}

#: Every instance that may be launched.
KERNELS = tuple(_BY_DTYPE.values())


def why_not(spec: ConvSpec) -> str | None:
    """Return the reason why a convolution has places that 32-bit numbers cannot count, or None."""
    outputs = prod(spec.output_shape[1:])
    if outputs >= _MOST:
        return refuse("memory", f"{outputs:.3g} outputs an image, at most {_MOST:.3g} are done")
    axes = zip(
        spec.input_size, spec.kernel_size, spec.output_size, spec.stride, spec.dilation, spec.padding, strict=True
    )
    reach = max(
        max(size, stride, dilation, abs(before) + (output - 1) * stride + (kernel - 1) * dilation)
        for size, kernel, output, stride, dilation, (before, _) in axes
    )
    return None if reach < _MOST else refuse("dilation", f"positions up to {reach:.3g}, at most {_MOST:.3g} are done")


class DirectNaive(Forward):
    """Any geometry; w is read where it lies."""

    reads_weights = True

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        super().__init__(ns, spec, threads)
        self._kernel = self._loaded(_BY_DTYPE[spec.dtype])
        self._grid = blocks(prod(spec.output_shape[1:]), _THREADS), min(spec.batch, MOST_ALONG_Y), 1

    def _launch(self, x: Array, weights: Any, bias: Array | None, y: Array, conv: Any) -> None:
        self._kernel(self._grid, (x, weights, bias, y, conv))


#: Cases that launch each of them.
VARIANTS = tuple(
    Variant((kernel,), f"n2 c4 o6 i9x8 k3x2 p1 g2 bias=channel {dtype}", DirectNaive)
    for dtype, kernel in _BY_DTYPE.items()
)
