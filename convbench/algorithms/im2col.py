"""im2col + GEMM: the samples under the kernel as columns, times the weights as a matrix.

For each block of outputs, columns[(c,k), p] = x[c, p·s + k·d − a] and y[o, p] = W[o, (c,k)] · columns
(Chellapilla et al. 2006). Only a block's columns exist at a time, sized to stay in the L2 cache, so the
∏K-fold copy of the input never reaches memory; a 1×1 kernel at stride 1 needs no columns at all. The textbook's
form, all columns of an example at once, is the same with one block an example.

The gradients are products with the same matrices: ∂J/∂W = G · columnsᵀ, and ∂J/∂columns = Wᵀ · G, which col2im adds
to the samples. Unshared weights make it one product a position, a batch of GEMMs that reads every weight in place once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

from convbench.algorithms.blocking import Block, Blocking, Piece, flipped, matmul_into, pieces
from convbench.algorithms.family import Family
from convbench.arrays import Array, Namespace
from convbench.spec import DTYPES, ConvSpec

__all__ = ["Im2col", "Im2colFull"]

_BLOCK_BYTES = 2**20  # columns, halo and result of a block
_LEAST_COLUMNS = 256  # with fewer, large kernels would spend their time between products


class Im2col(Family):
    """im2col in blocks: every operation, weights, boundary, stride, dilation, groups and number of axes.

    O(MACs) work; workspace: a block's columns, halo and result for each thread.
    """

    spreads_from = 8  # 3 → 64 channels, 7×7: half the time of columns of g; 64 → 64, 3×3: twice

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        self._rows = channels * prod(spec.kernel_size)
        self._gradient_of_tiles = spec.op == "weight_grad" and spec.tile is not None
        elements = self._rows + channels * prod(spec.stride) + outputs + self._gradient_of_tiles * outputs * self._rows
        blocking = self._cut(spec, elements * DTYPES[spec.accumulate_dtype], threads if spec.op == "forward" else 1)
        positions = blocking.outputs_per_block
        buffers = [positions * self._rows, positions * outputs]
        if spec.op == "weight_grad":
            own = positions if spec.tile else blocking.shape[1]  # products that are held at once
            buffers.append(own * outputs * self._rows)
        super().__init__(ns, spec, threads, blocking, buffers)
        self._pointwise = prod(spec.kernel_size) == 1 and set(spec.stride) == {1}

    @staticmethod
    def _cut(spec: ConvSpec, per_output: int, threads: int) -> Blocking:
        return Blocking(spec, per_output, max(_BLOCK_BYTES, _LEAST_COLUMNS * per_output), threads)

    def prepare(self, w: Array) -> tuple[Any, None]:
        """Return the weights as (G, [*tile,] O/g, C/g·∏K)."""
        ns, spec = self._ns, self._spec
        w = self._conjugated(ns.cast(flipped(ns, spec, w), spec.accumulate_dtype))
        tile = spec.tile or ()
        matrix = ns.reshape(w, (spec.groups, self._outputs, *tile, self._rows))
        return ns.xp.moveaxis(matrix, 1, 1 + len(tile)) if tile else matrix, None

    def _fill(self, halo: Array, weights: Any, y: Array, block: Block, buffers: Sequence[Array]) -> None:
        columns, result = buffers
        if self._spec.tile is None:
            matmul_into(self._ns, weights[block.groups, ...], self._columns(halo, block, columns), y, result)
            return
        for piece in pieces(self._spec, block.outputs):
            samples = self._columns_of(halo, piece, columns)
            matrices = weights[(block.groups, *piece.entries, ...)]
            products = self._ns.reshape(
                result[: prod(samples.shape[:-2]) * self._outputs * samples.shape[-1]],
                (*samples.shape[:-2], self._outputs, samples.shape[-1]),
            )
            self._ns.matmul(matrices, samples, products)
            target = self._by_entry(y[(..., *piece.outputs)], piece)
            target[...] = self._ns.reshape(products, target.shape)

    def _weigh(self, halo: Array, g: Array, total: Array, block: Block, buffers: Sequence[Array]) -> None:
        ns, spec, (columns, copied, result) = self._ns, self._spec, buffers
        total = ns.xp.flip(total, axis=tuple(range(-spec.ndim, 0))) if spec.flip else total
        tile = len(spec.tile or ())
        for piece in pieces(spec, block.outputs):
            samples = self._columns_of(halo, piece, columns)
            gradients = self._outputs_of(g, piece, copied)
            shape = (*gradients.shape[:-1], self._rows)
            products = ns.reshape(result[: prod(shape)], shape)
            ns.matmul(gradients, ns.xp.matrix_transpose(samples), products)
            target = total[(block.groups, slice(None), *piece.entries, ...)]
            target = ns.xp.moveaxis(target, 1, 1 + tile)
            products = products if tile else ns.reshape(products, (shape[0], *shape[-2:]))
            target += ns.reshape(products, target.shape)

    def _spread(self, g: Array, weights: Any, halo: Array, block: Block, buffers: Sequence[Array]) -> None:
        ns, spec, (columns, copied) = self._ns, self._spec, buffers
        for piece in pieces(spec, block.outputs):
            gradients = self._outputs_of(g, piece, copied)
            matrices = weights[(block.groups, *piece.entries, ...)]
            if spec.tile is None:
                matrices = ns.reshape(matrices, (matrices.shape[0], *(1,) * spec.ndim, *matrices.shape[1:]))
            shape = (*gradients.shape[:-2], self._rows, gradients.shape[-1])
            spread = ns.reshape(columns[: prod(shape)], shape)
            ns.matmul(ns.xp.matrix_transpose(matrices), gradients, spread)
            self._add_columns(spread, piece, halo)

    def _add_columns(self, columns: Array, piece: Piece, halo: Array) -> None:
        """col2im: add the columns to the samples that they stand for, tap by tap."""
        ns, spec = self._ns, self._spec
        lead = halo.shape[0], halo.shape[1], self._channels
        shape = [halo.shape[1], *piece.own_counts, self._channels, *spec.kernel_size, halo.shape[0]]
        shape += [1 if own else count for count, own in zip(piece.counts, piece.own, strict=True)]
        columns = ns.reshape(columns, tuple(shape))
        n = spec.ndim
        for tap in product(*map(range, spec.kernel_size)):
            part = columns[(*(slice(None),) * (2 + n), *tap, ...)]  # (g, *own, c, n, *shared)
            order = (2 + n, 0, 1 + n, *(axis for i in range(n) for axis in (1 + i, 3 + n + i)))
            part = ns.reshape(ns.xp.permute_dims(part, order), (*lead, *piece.counts))
            places = (
                slice(k * d + r.start * s, k * d + (r.start + (count - 1) * r.step) * s + 1, r.step * s)
                for k, d, s, r, count in zip(tap, spec.dilation, spec.stride, piece.outputs, piece.counts, strict=True)
            )
            halo[(..., *places)] += part

    def _columns(self, halo: Array, block: Block, buffer: Array) -> Array:
        """Return the block's columns, shape (n, g, C/g·∏K, ∏outputs)."""
        ns, spec = self._ns, self._spec
        shape = (*block.lead, self._rows, prod(block.output_size))
        if self._pointwise:
            try:
                return ns.reshape(halo, shape, copy=False)
            except ValueError:  # rows that do not join up: the copy below joins them
                pass
        windows = ns.windows(halo, spec.kernel_size, spec.stride, spec.dilation, block.output_size)
        columns = ns.reshape(buffer[: prod(shape)], windows.shape)
        columns[...] = windows
        return ns.reshape(columns, shape)

    def _columns_of(self, halo: Array, piece: Piece, buffer: Array) -> Array:
        """Return a piece's columns, a matrix for each entry: (g, *entries, C/g·∏K, n·outputs that share it)."""
        ns, spec = self._ns, self._spec
        start = halo[(..., *(slice(r.start * s, None) for r, s in zip(piece.outputs, spec.stride, strict=True)))]
        steps = [r.step * s for r, s in zip(piece.outputs, spec.stride, strict=True)]
        windows = ns.windows(start, spec.kernel_size, steps, spec.dilation, piece.counts)
        return self._copied(windows, piece, self._rows, buffer)

    def _outputs_of(self, g: Array, piece: Piece, buffer: Array) -> Array:
        """Return a piece of g, a matrix for each entry: (g, *entries, O/g, n·outputs that share it)."""
        return self._copied(g[(..., *piece.outputs)], piece, self._outputs, buffer)

    def _copied(self, values: Array, piece: Piece, rows: int, buffer: Array) -> Array:
        """Copy (n, g, …, *outputs) to (g, *entries, rows, n·shared outputs)."""
        ns = self._ns
        shared = values.shape[0] * prod(count for count, own in zip(piece.counts, piece.own, strict=True) if not own)
        ordered = self._by_entry(values, piece)
        target = ns.reshape(buffer[: prod(ordered.shape)], ordered.shape)
        target[...] = ordered
        return ns.reshape(target, (values.shape[1], *piece.own_counts, rows, shared))

    def _by_entry(self, values: Array, piece: Piece) -> Array:
        """Permute (n, g, …, *outputs) to (g, *own outputs, …, n, *shared outputs)."""
        first = values.ndim - len(piece.own)
        own = [first + axis for axis, is_own in enumerate(piece.own) if is_own]
        shared = [first + axis for axis, is_own in enumerate(piece.own) if not is_own]
        return self._ns.xp.permute_dims(values, (1, *own, *range(2, first), 0, *shared))


class Im2colFull(Im2col):
    """im2col as it is mostly written: all columns of one example in memory, then one GEMM a group.

    Examples take turns in one buffer, as in Caffe (Jia et al. 2014); several threads take an example each, and one
    example's GEMM is left to BLAS's threads. O(MACs) work; workspace: an example's columns, padded input and result
    for each of these threads.
    """

    @staticmethod
    def _cut(spec: ConvSpec, per_output: int, threads: int) -> Blocking:
        return Blocking(spec, per_output, per_output * spec.groups * prod(spec.output_size), threads=1)
