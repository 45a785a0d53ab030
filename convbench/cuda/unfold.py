"""im2col with columns stored band by band, and cuBLAS: forward and for the gradient of the weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from convbench.algorithms.blocking import flipped
from convbench.arrays import Array, Namespace
from convbench.cuda import implicit_gemm
from convbench.cuda.forward import C_TYPES, MOST_ALONG_Y, Forward
from convbench.cuda.geometry import blocks
from convbench.cuda.kernel import Kernel
from convbench.cuda.variants import Variant
from convbench.refusals import refuse
from convbench.spec import DTYPES, ConvSpec

__all__ = ["BAND_BYTES", "KERNELS", "VARIANTS", "Unfold", "UnfoldWeightGradient", "planned", "why_not"]

#: Of the columns that exist at a time: about the L2 cache of an H100 or H200 (50 MB), so that many of them are still
#: there when they are multiplied, and enough for a product to occupy all multiprocessors.
BAND_BYTES = 2**26

_THREADS = 256
_TURNED = 32  # outputs and columns of a tile that is turned


def _kernels(name: str) -> dict[str, Kernel]:
    return {dtype: Kernel("unfold.cu", f"{name}<{c}>", (_THREADS, 1, 1)) for dtype, c in C_TYPES.items()}


_UNFOLD, _SCATTER, _COLLECT = _kernels("unfold"), _kernels("scatter"), _kernels("collect")

#: Every instance that may be launched.
KERNELS = (*_UNFOLD.values(), *_SCATTER.values(), *_COLLECT.values())


def why_not(spec: ConvSpec) -> str | None:
    """Return the reason why a spec that is native cannot be done, or None."""
    if spec.dtype != "float64" and os.environ.get("CUPY_TF32", "0") != "0":
        return refuse("dtype", "CUPY_TF32 is set, with which cuBLAS may round float32 to TF32: unset it")
    return implicit_gemm.why_not(spec)


def planned(ns: Namespace, spec: ConvSpec, threads: int) -> Forward:
    """Return the algorithm for a native spec."""
    return (UnfoldWeightGradient if spec.op == "weight_grad" else Unfold)(ns, spec, threads)


class _Unfolding(Forward):
    """Columns in bands of equal size, in the dtype in which sums are formed: cuBLAS takes no other for float16 arrays.

    CuPy's matmul of three axes calls ``cublasGemmStridedBatchedEx`` on arrays without gaps and writes ``out`` in place.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        super().__init__(ns, spec, threads)
        self._unfold = self._loaded(_UNFOLD[spec.dtype])
        self._outputs, self._rows = spec.out_channels // spec.groups, prod(spec.weight_shape[1:])
        self._positions, self._sum_bytes = spec.batch * prod(spec.output_size), DTYPES[spec.accumulate_dtype]
        most = max(1, BAND_BYTES // (spec.groups * self._rows * self._sum_bytes))
        bands = max(1, blocks(self._positions, most))
        self._band = max(1, blocks(self._positions, bands))
        # a band's columns, and its outputs or gradients
        self.workspace_bytes = spec.groups * self._band * (self._rows + self._outputs) * self._sum_bytes

    def _bands(self, x: Array, conv: Any) -> Iterator[tuple[Array, tuple[np.int32, np.int32]]]:
        """Yield the columns (G, rows, L) of each band, and which positions they are: the first, and how many."""
        spec, ns = self._spec, self._ns
        items = ns.empty((spec.groups * self._rows * self._band,), spec.accumulate_dtype)
        for first in range(0, self._positions, self._band):
            count = min(self._band, self._positions - first)
            columns = ns.reshape(items[: spec.groups * self._rows * count], (spec.groups, self._rows, count))
            band = np.int32(first), np.int32(count)
            grid = blocks(count, _THREADS), min(spec.in_channels, MOST_ALONG_Y), 1
            self._unfold(grid, (x, columns, conv, *band))
            yield columns, band

    def _turning(self, count: int) -> tuple[int, int, int]:
        """Return the grid of the kernels that turn tiles."""
        return blocks(count, _TURNED), blocks(self._outputs, _TURNED), min(self._spec.groups, MOST_ALONG_Y)


class Unfold(_Unfolding):
    """Forward: the weights as a matrix, times the columns of each band.

    O(MACs) work; memory: a band's columns and outputs, and the weights in one piece.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        super().__init__(ns, spec, threads)
        self._scatter = self._loaded(_SCATTER[spec.dtype])
        self.prepared_bytes = spec.out_channels * self._rows * self._sum_bytes

    def prepare(self, w: Array) -> tuple[Array, int | None]:
        """Return the weights as (G, O/g, C/g·∏K)."""
        ns, spec = self._ns, self._spec
        matrix = ns.empty((spec.groups, self._outputs, *w.shape[2:]), spec.accumulate_dtype)
        ns.assign(matrix, flipped(ns, spec, w))
        return ns.reshape(matrix, (spec.groups, self._outputs, self._rows)), None

    def _launch(self, x: Array, weights: Any, bias: Array | None, y: Array, conv: Any) -> None:
        ns, spec = self._ns, self._spec
        items = None
        if not self._in_place(bias, y):
            items = ns.empty((spec.out_channels * self._band,), spec.accumulate_dtype)
        for columns, (first, count) in self._bands(x, conv):
            shape = spec.groups, self._outputs, int(count)
            if items is None:
                ns.matmul(weights, columns, ns.reshape(y, shape))
                return
            products = ns.reshape(items[: prod(shape)], shape)
            ns.matmul(weights, columns, products)
            self._scatter(self._turning(int(count)), (products, bias, y, conv, first, count))

    def _in_place(self, bias: Array | None, y: Array) -> bool:
        """Tell whether the products are the result: of one image in one band, no bias, its channels first."""
        whole = self._spec.batch == 1 and self._band == self._positions
        return bool(whole and bias is None and y.flags.c_contiguous and y.dtype.itemsize == self._sum_bytes)


class UnfoldWeightGradient(_Unfolding):
    """∂J/∂w: the columns of each band times those of g, added up band by band."""

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        super().__init__(ns, spec, threads)
        self._collect = self._loaded(_COLLECT[spec.dtype])
        self.workspace_bytes += 2 * spec.out_channels * self._rows * self._sum_bytes

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Write the whole gradient into ``out``, of the dtype of ``first`` or of that in which sums are formed."""
        self._launch(first, second, None, out, self._geometry(first, None, second, None))

    def _launch(self, x: Array, weights: Any, bias: Array | None, y: Array, conv: Any) -> None:
        ns, spec = self._ns, self._spec
        total, products = None, None
        items = ns.empty((spec.out_channels * self._band,), spec.accumulate_dtype)
        for columns, (first, count) in self._bands(x, conv):
            shape = spec.groups, int(count), self._outputs
            rows = ns.reshape(items[: prod(shape)], shape)
            self._collect(self._turning(int(count)), (weights, rows, conv, first, count))
            if total is None:
                total = ns.empty((spec.groups, self._rows, self._outputs), spec.accumulate_dtype)
                ns.matmul(columns, rows, total)
                continue
            if products is None:
                products = ns.empty(total.shape, spec.accumulate_dtype)
            ns.matmul(columns, rows, products)
            ns.add(total, products, total)
        if total is None:  # no images
            y[...] = 0
            return
        by_output = ns.xp.moveaxis(ns.reshape(total, (spec.groups, *y.shape[2:], self._outputs)), -1, 1)
        ns.assign(y, flipped(ns, spec, by_output))


#: Cases that launch each of them.
VARIANTS = (
    *(
        Variant((_UNFOLD[dtype], _SCATTER[dtype]), f"n2 c4 o6 i9x8 k3x2 p1 g2 bias=channel {dtype}", Unfold)
        for dtype in C_TYPES
    ),
    *(
        Variant((kernel,), f"op=weight_grad n2 c4 o6 i9x8 k3 p1 g2 {dtype}", UnfoldWeightGradient)
        for dtype, kernel in _COLLECT.items()
    ),
)
