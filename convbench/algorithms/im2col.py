"""im2col + GEMM: the samples under the kernel as columns, times the weights as a matrix.

For each block of outputs, columns[(c,k), p] = x[c, p·s + k·d − a] and y[o, p] = W[o, (c,k)] · columns
(Chellapilla et al. 2006). Only a block's columns exist at a time, sized to stay in the L2 cache, so the
∏K-fold copy of the input never reaches memory; a 1×1 kernel at stride 1 needs no columns at all. The textbook's
form, all columns of an example at once, is the same with one block an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from convbench.algorithms.blocking import Block, Blocked, Blocking, flipped, matmul_into
from convbench.arrays import Array, Namespace
from convbench.spec import ConvSpec

__all__ = ["Im2col", "Im2colFull"]

_BLOCK_BYTES = 2**20  # columns, halo and result of a block
_LEAST_COLUMNS = 256  # with fewer, large kernels would spend their time between products


class Im2col(Blocked):
    """im2col in blocks, any stride, dilation, groups, zero padding and number of axes.

    O(MACs) work; workspace: a block's columns, halo and result for each thread.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        per_output = (channels * (prod(spec.kernel_size) + prod(spec.stride)) + outputs) * spec.itemsize
        blocking = self._cut(spec, per_output, threads)
        positions = blocking.outputs_per_block
        super().__init__(ns, spec, threads, blocking, (positions * spec.terms, positions * outputs))
        self._pointwise = prod(spec.kernel_size) == 1 and set(spec.stride) == {1}

    @staticmethod
    def _cut(spec: ConvSpec, per_output: int, threads: int) -> Blocking:
        return Blocking(spec, per_output, max(_BLOCK_BYTES, _LEAST_COLUMNS * per_output), threads)

    def prepare(self, w: Array) -> tuple[Any, None]:
        """Return the weights as (G, O/g, C/g·∏K)."""
        matrix = flipped(self._ns, self._spec, w)
        return self._ns.reshape(matrix, (self._spec.groups, self._outputs, self._spec.terms)), None

    def _fill(self, halo: Array, weights: Any, y: Array, block: Block, buffers: Sequence[Array]) -> None:
        columns, product = buffers
        matmul_into(self._ns, weights[block.groups, ...], self._columns(halo, block, columns), y, product)

    def _columns(self, halo: Array, block: Block, buffer: Array) -> Array:
        """Return the block's columns, shape (n, g, C/g·∏K, ∏outputs)."""
        ns, spec = self._ns, self._spec
        shape = (*block.lead, spec.terms, prod(block.output_size))
        if self._pointwise:
            try:
                return ns.reshape(halo, shape, copy=False)
            except ValueError:  # rows that do not join up: the copy below joins them
                pass
        windows = ns.windows(halo, spec.kernel_size, spec.stride, spec.dilation, block.output_size)
        columns = ns.reshape(buffer[: prod(shape)], windows.shape)
        columns[...] = windows
        return ns.reshape(columns, shape)


class Im2colFull(Im2col):
    """im2col as it is mostly written: all columns of one example in memory, then one GEMM a group.

    Examples take turns in one buffer, as in Caffe (Jia et al. 2014); several threads take an example each, and one
    example's GEMM is left to BLAS's threads. O(MACs) work; workspace: an example's columns, padded input and result
    for each of these threads.
    """

    @staticmethod
    def _cut(spec: ConvSpec, per_output: int, threads: int) -> Blocking:
        return Blocking(spec, per_output, per_output * spec.groups * prod(spec.output_size), threads=1)
