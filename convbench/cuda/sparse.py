"""Multiplication by the convolution's matrix in compressed sparse rows, on the GPU by cuSPARSE.

Y = A·X with a column for each image: images that lie one behind the other in memory are such columns, in the order that
cuSPARSE takes (column-major), and so are results. Nothing is moved around the product.
"""

from __future__ import annotations

from math import prod
from typing import Any, Protocol

from convbench.algorithms.blocking import GroupedBias
from convbench.algorithms.matrix import host_weights, shape_of_matrix, sparse_arrays, sparse_bytes
from convbench.arrays import Array, Namespace
from convbench.spec import ConvSpec

__all__ = ["CudaSparseMatrix", "Cusparse", "SparseLibrary"]


class SparseLibrary(Protocol):
    """Sparse matrices of a namespace's arrays."""

    def rows(self, values: Array, columns: Array, starts: Array, shape: tuple[int, int], transposed: bool) -> Any:
        """Return the matrix, or its transpose, in compressed sparse rows with every entry once, in order."""
        ...

    def multiply(self, matrix: Any, columns: Array, out: Array) -> None:
        """Fill ``out`` with the product; both are column-major."""
        ...


class Cusparse:
    """Of CuPy's arrays."""

    def rows(self, values: Array, columns: Array, starts: Array, shape: tuple[int, int], transposed: bool) -> Any:
        """Return a ``cupyx.scipy.sparse.csr_matrix``: merged and sorted now, which no product has to look for."""
        from cupyx.scipy.sparse import csr_matrix

        matrix = csr_matrix((values, columns, starts), shape=shape)
        if transposed:
            matrix = matrix.T.tocsr()
        matrix.sum_duplicates()
        return matrix

    def multiply(self, matrix: Any, columns: Array, out: Array) -> None:
        """By ``spmm``, of one column ``spmv``; neither reads anything back."""
        from cupyx import cusparse

        if columns.shape[1] == 1:
            cusparse.spmv(matrix, columns[:, 0], out[:, 0])
        else:
            cusparse.spmm(matrix, columns, out)


class CudaSparseMatrix:
    """The matrix in compressed sparse rows, built on the host and sent to the device when weights are prepared.

    Forward and input gradient of any spec, all boundaries and tiles. O(N·O·C/g·∏P·∏K) work, memory for a value and a
    column index for each of as many products.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int, library: SparseLibrary | None = None) -> None:
        self._ns, self._spec, self._library = ns, spec, library or Cusparse()
        self._transposed = spec.op == "input_grad"
        sizes = prod(spec.operand_shapes[0]), prod(spec.result_shape)
        self.workspace_bytes = sum(sizes) * spec.itemsize  # where either has gaps in memory
        self.prepared_bytes = sparse_bytes(spec)
        self.flops = 2 * spec.in_bounds_macs

    def prepare(self, w: Array) -> tuple[Any, None]:
        """Return the matrix of all groups."""
        ns, spec = self._ns, self._spec
        values, columns, starts = map(ns.from_host, sparse_arrays(spec, host_weights(ns, spec, w)))
        height, width = shape_of_matrix(spec)
        shape = height * spec.groups, width * spec.groups
        return self._library.rows(values, columns, starts, shape, self._transposed), None

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Multiply and add the bias."""
        ns, batch = self._ns, self._spec.batch
        if 0 in out.shape:
            return
        samples = ns.reshape(first, (batch, -1))
        if not samples.flags.c_contiguous:
            samples = ns.xp.asarray(samples, order="C", copy=True)
        whole = bool(out.flags.c_contiguous)
        sums = out if whole else ns.empty(out.shape, self._spec.result_dtype)
        sums[...] = 0  # cuSPARSE adds to what is there times zero, and that may be NaN
        self._library.multiply(second, samples.T, ns.reshape(sums, (batch, -1)).T)
        if bias is not None:
            GroupedBias(ns, self._spec, bias).add(sums)
        if not whole:
            ns.assign(out, sums)
