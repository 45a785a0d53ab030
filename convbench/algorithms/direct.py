"""Direct convolution over whole arrays: shift the input by each tap, scale it, add it up.

y[o, p] += w[o, c, k] · x[c, p·s + k·d − a], one pass of multiply and add for each (c, k), over blocks that stay
in the L2 cache. No transform and no columns: the arithmetic is the definition's, reordered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

from convbench.algorithms.blocking import Block, Blocked, Blocking, flipped
from convbench.arrays import Array, Namespace
from convbench.spec import DTYPES, ConvSpec

__all__ = ["ShiftAndAdd"]

_BLOCK_BYTES = 2**19  # outputs, products and halo of a block


class ShiftAndAdd(Blocked):
    """Shift and add, any stride, dilation, groups, zero padding, dtype and number of axes.

    O(MACs) work; workspace: a block's products and halo for each thread.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        per_output = (2 * outputs + channels * prod(spec.stride)) * DTYPES[spec.result_dtype]
        blocking = Blocking(spec, per_output, _BLOCK_BYTES, threads)
        super().__init__(ns, spec, threads, blocking, (blocking.outputs_per_block * outputs,))

    def prepare(self, w: Array) -> tuple[Any, None]:
        """Return one (G, O/g, 1…1) array for each (c, k), in the accumulation dtype."""
        ns, spec = self._ns, self._spec
        grouped = ns.cast(flipped(ns, spec, w), spec.result_dtype)
        grouped = ns.reshape(grouped, (spec.groups, self._outputs, spec.terms, *(1,) * spec.ndim))
        return [grouped[:, :, term, ...] for term in range(spec.terms)], None

    def _fill(self, halo: Array, weights: Any, y: Array, block: Block, buffers: Sequence[Array]) -> None:
        y[...] = 0
        products = self._ns.reshape(buffers[0][: prod(y.shape)], y.shape)
        for index, weight in zip(self._shifts(block), weights, strict=True):
            self._ns.multiply_add(y, halo[index], weight[block.groups, ...], products)

    def _shifts(self, block: Block) -> Iterator[tuple[slice, ...]]:
        """Yield, for each (c, k), the index of the samples that it meets: shape (n, g, 1, *outputs)."""
        spec = self._spec
        axes = [
            [slice(i * d, i * d + (p - 1) * s + 1, s) for i in range(k)]
            for k, d, s, p in zip(spec.kernel_size, spec.dilation, spec.stride, block.output_size, strict=True)
        ]
        everything = slice(None)
        channels = [slice(c, c + 1) for c in range(self._channels)]
        for channel, *taps in product(channels, *axes):
            yield everything, everything, channel, *taps
