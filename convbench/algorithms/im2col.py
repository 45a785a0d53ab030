"""im2col + GEMM: the samples under the kernel as columns, times the weights as a matrix.

For each block of outputs, columns[(c,k), p] = x[c, p·s + k·d − a] and y[o, p] = W[o, (c,k)] · columns
(Chellapilla et al. 2006). Only a block's columns exist at a time, sized to stay in the L2 cache, so the
∏K-fold copy of the input never reaches memory; a 1×1 kernel at stride 1 needs no columns at all.
"""

from __future__ import annotations

from math import prod
from typing import Any

from convbench.algorithms.blocking import Block, Blocking, GroupedBias, ScratchPool, flipped
from convbench.arrays import Array, Namespace
from convbench.spec import ConvSpec
from convbench.threads import parallel

__all__ = ["Im2col"]

_BLOCK_BYTES = 2**20  # columns, halo and result of a block
_LEAST_COLUMNS = 256  # with fewer, large kernels would spend their time between products
_ONE_THREAD_FLOPS = 2 * 32**3


class Im2col:
    """im2col in blocks, any stride, dilation, groups, zero padding and number of axes.

    O(MACs) work; workspace: a block's columns, halo and result for each thread.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        self._ns, self._spec, self._threads = ns, spec, threads
        self._channels = spec.in_channels // spec.groups
        self._outputs = spec.out_channels // spec.groups
        self._pointwise = prod(spec.kernel_size) == 1 and set(spec.stride) == {1}
        per_output = self._channels * (prod(spec.kernel_size) + prod(spec.stride)) + self._outputs
        budget = max(_BLOCK_BYTES, _LEAST_COLUMNS * per_output * spec.itemsize)
        self._blocking = Blocking(spec, per_output * spec.itemsize, budget, threads)
        outputs = self._blocking.outputs_per_block
        self._sizes = (self._blocking.halo_elements, outputs * spec.terms, outputs * self._outputs)
        self._scratch = ScratchPool(lambda: [ns.empty((size,), spec.dtype) for size in self._sizes])
        lanes = min(threads, max(1, len(self._blocking)))
        self.workspace_bytes = lanes * sum(self._sizes) * spec.itemsize
        self.flops = spec.flops

    def prepare(self, w: Array) -> tuple[Any, None]:
        """Return the weights as (G, O/g, C/g·∏K)."""
        matrix = flipped(self._ns, self._spec, w)
        return self._ns.reshape(matrix, (self._spec.groups, self._outputs, self._spec.terms)), None

    def run(self, x: Array, weights: Any, bias: Array | None, out: Array) -> None:
        """Fill ``out`` block by block."""
        ns, spec = self._ns, self._spec
        x = ns.reshape(x, (spec.batch, spec.groups, self._channels, *spec.input_size))
        y = ns.reshape(out, (spec.batch, spec.groups, self._outputs, *spec.output_size))
        offsets = None if bias is None else GroupedBias(ns, spec, bias)

        def fill(block: Block) -> None:
            with self._scratch.borrow() as (halo, columns, product):
                samples = self._columns(self._blocking.load(ns, x, block, halo), block, columns)
                self._multiply(weights[block.groups, ...], samples, y[block.index], product)
            if offsets is not None:
                part = y[block.index]
                part += offsets.of(block)

        blocks = self._blocking
        if len(blocks) == 1 and spec.flops < _ONE_THREAD_FLOPS:  # BLAS does not thread so small a product
            return fill(next(iter(blocks)))
        with ns.gemm_threads(1 if len(blocks) > 1 else self._threads):
            parallel(fill, blocks, self._threads)
        return None

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

    def _multiply(self, weights: Array, columns: Array, y: Array, buffer: Array) -> None:
        """Write weights · columns into ``y``, directly where its positions are contiguous."""
        ns = self._ns
        shape = (*y.shape[:3], columns.shape[-1])
        try:
            ns.matmul(weights, columns, ns.reshape(y, shape, copy=False))
        except ValueError:
            product = ns.reshape(buffer[: prod(shape)], shape)
            ns.matmul(weights, columns, product)
            y[...] = ns.reshape(product, y.shape)
