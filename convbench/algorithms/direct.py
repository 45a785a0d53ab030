"""Direct convolution over whole arrays: shift the input by each tap, scale it, add it up.

y[o, p] += w[o, c, k] · x[c, p·s + k·d − a], one pass of multiply and add for each (c, k), over blocks that stay
in the L2 cache. No transform and no columns: the arithmetic is the definition's, reordered.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any

from convbench.algorithms.blocking import Block, Blocking, GroupedBias, ScratchPool, flipped
from convbench.arrays import Array, Namespace
from convbench.spec import DTYPES, ConvSpec
from convbench.threads import parallel

__all__ = ["ShiftAndAdd"]

_BLOCK_BYTES = 2**19  # outputs, products and halo of a block


class ShiftAndAdd:
    """Shift and add, any stride, dilation, groups, zero padding, dtype and number of axes.

    O(MACs) work; workspace: a block's products and halo for each thread.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        self._ns, self._spec, self._threads = ns, spec, threads
        self._channels = spec.in_channels // spec.groups
        self._outputs = spec.out_channels // spec.groups
        itemsize = DTYPES[spec.result_dtype]
        per_output = 2 * self._outputs + self._channels * prod(spec.stride)
        self._blocking = Blocking(spec, per_output * itemsize, _BLOCK_BYTES, threads)
        sizes = (self._blocking.halo_elements, self._blocking.outputs_per_block * self._outputs)
        self._scratch = ScratchPool(lambda: [ns.empty((size,), spec.result_dtype) for size in sizes])
        lanes = min(threads, max(1, len(self._blocking)))
        self.workspace_bytes = lanes * sum(sizes) * itemsize
        self.flops = spec.flops

    def prepare(self, w: Array) -> tuple[Any, None]:
        """Return one (G, O/g, 1…1) array for each (c, k), in the accumulation dtype."""
        ns, spec = self._ns, self._spec
        grouped = ns.cast(flipped(ns, spec, w), spec.result_dtype)
        grouped = ns.reshape(grouped, (spec.groups, self._outputs, spec.terms, *(1,) * spec.ndim))
        return [grouped[:, :, term, ...] for term in range(spec.terms)], None

    def run(self, x: Array, weights: Any, bias: Array | None, out: Array) -> None:
        """Fill ``out`` block by block."""
        ns, spec = self._ns, self._spec
        x = ns.reshape(x, (spec.batch, spec.groups, self._channels, *spec.input_size))
        y = ns.reshape(out, (spec.batch, spec.groups, self._outputs, *spec.output_size))
        offsets = None if bias is None else GroupedBias(ns, spec, bias)

        def fill(block: Block) -> None:
            part = y[block.index]
            part[...] = 0 if offsets is None else offsets.of(block)
            with self._scratch.borrow() as (buffer, products):
                halo = self._blocking.load(ns, x, block, buffer)
                scratch = ns.reshape(products[: prod(part.shape)], part.shape)
                for index, weight in zip(self._shifts(block), weights, strict=True):
                    ns.multiply_add(part, halo[index], weight[block.groups, ...], scratch)

        parallel(fill, self._blocking, self._threads)

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
