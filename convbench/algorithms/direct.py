"""Direct convolution over whole arrays: shift the input by each tap, scale it, add it up.

y[o, p] += w[o, c, k] · x[c, p·s + k·d − a], one pass of multiply and add for each (c, k), over blocks that stay
in the L2 cache. No transform and no columns: the arithmetic is the definition's, reordered. Its adjoints are the
gradients: ∂J/∂w[o, c, k] sums g[o, p] times the same shifted samples, ∂J/∂x adds w[o, c, k] · g[o, p] to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

from convbench.algorithms.blocking import Block, Blocking, Piece, flipped, pieces
from convbench.algorithms.family import MANY_PARTS, Family
from convbench.algorithms.rewriting import count_parts
from convbench.arrays import Array, Namespace
from convbench.spec import DTYPES, ConvSpec

__all__ = ["ShiftAndAdd"]

_BLOCK_BYTES = 2**19  # outputs, products and halo of a block


class ShiftAndAdd(Family):
    """Shift and add: every operation, weights, boundary, stride, dilation, groups, dtype and number of axes.

    O(MACs) work; workspace: a block's products, their sums and halo for each thread.
    """

    spreads_from = 1  # outputs of one group are summed before they are added to a sample

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        per_output = (2 * outputs + channels * prod(spec.stride)) * DTYPES[spec.accumulate_dtype]
        blocking = Blocking(spec, per_output, _BLOCK_BYTES, threads if spec.op == "forward" else 1)
        super().__init__(ns, spec, threads, blocking, (blocking.outputs_per_block * outputs,))
        summed = {"forward": 0, "input_grad": 1, "weight_grad": outputs if spec.tile else 0}[spec.op]
        self.workspace_bytes += blocking.outputs_per_block * summed * DTYPES[spec.accumulate_dtype]
        if spec.tile and spec.op != "weight_grad":  # ordered by taps
            self.prepared_bytes = prod(spec.weight_shape) * DTYPES[spec.accumulate_dtype]

    @classmethod
    def native(cls, spec: ConvSpec) -> bool:
        """Of one output a group there is nothing to sum: the convolution of g has fewer passes."""
        if spec.op == "input_grad" and spec.tile is None and spec.out_channels == spec.groups:
            return count_parts(spec) > MANY_PARTS
        return super().native(spec)

    def prepare(self, w: Array) -> tuple[Array, None]:
        """Return (C/g·∏K, G, O/g, *tile or 1…1): a slice for each (c, k), in the accumulation dtype."""
        ns, spec = self._ns, self._spec
        w = self._conjugated(ns.cast(flipped(ns, spec, w), spec.accumulate_dtype))
        tile = spec.tile or (1,) * spec.ndim
        grouped = ns.reshape(w, (spec.groups, self._outputs, *tile, -1))
        terms = ns.xp.moveaxis(grouped, -1, 0)
        return (ns.xp.asarray(terms, copy=True) if spec.tile else terms), None

    def _fill(self, halo: Array, weights: Any, y: Array, block: Block, buffers: Sequence[Array]) -> None:
        y[...] = 0
        for piece in pieces(self._spec, block.outputs):
            part = y[(..., *piece.outputs)]
            products = self._ns.reshape(buffers[0][: prod(part.shape)], part.shape)
            for term, index in enumerate(self._shifts(piece)):
                weight = weights[(term, block.groups, slice(None), *piece.entries, ...)]
                self._ns.multiply_add(part, halo[index], weight, products)

    def _weigh(self, halo: Array, g: Array, total: Array, block: Block, buffers: Sequence[Array]) -> None:
        ns, spec = self._ns, self._spec
        total = ns.xp.flip(total, axis=tuple(range(-spec.ndim, 0))) if spec.flip else total
        for piece in pieces(spec, block.outputs):
            part = g[(..., *piece.outputs)]
            products = ns.reshape(buffers[0][: prod(part.shape)], part.shape)
            shared = tuple(3 + axis for axis, own in enumerate(piece.own) if not own)
            for index, term in zip(self._shifts(piece), self._terms(), strict=True):
                ns.multiply(part, halo[index], products)
                sums = ns.xp.sum(products, axis=(0, *shared), dtype=products.dtype)
                target = total[(block.groups, slice(None), *piece.entries, *term)]
                target += ns.reshape(sums, target.shape)

    def _spread(self, g: Array, weights: Any, halo: Array, block: Block, buffers: Sequence[Array]) -> None:
        ns = self._ns
        for piece in pieces(self._spec, block.outputs):
            part = g[(..., *piece.outputs)]
            products = ns.reshape(buffers[0][: prod(part.shape)], part.shape)
            for term, index in enumerate(self._shifts(piece)):
                ns.multiply(part, weights[(term, block.groups, slice(None), *piece.entries, ...)], products)
                halo[index] += ns.xp.sum(products, axis=2, keepdims=True, dtype=products.dtype)

    def _terms(self) -> Iterator[tuple[int, ...]]:
        """Yield (c, k) in order."""
        yield from product(range(self._channels), *map(range, self._spec.kernel_size))

    def _shifts(self, piece: Piece) -> Iterator[tuple[slice, ...]]:
        """Yield, for each (c, k), the index of the samples that it meets: shape (n, g, 1, *outputs)."""
        spec, everything = self._spec, slice(None)
        axes = [
            [
                slice(k * d + r.start * s, k * d + (r.start + (count - 1) * r.step) * s + 1, r.step * s)
                for k in range(size)
            ]
            for size, d, s, r, count in zip(
                spec.kernel_size, spec.dilation, spec.stride, piece.outputs, piece.counts, strict=True
            )
        ]
        channels = [slice(c, c + 1) for c in range(self._channels)]
        for channel, *taps in product(channels, *axes):
            yield everything, everything, channel, *taps
