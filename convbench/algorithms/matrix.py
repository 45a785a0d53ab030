"""Convolution as multiplication by its matrix: y = A·x over whole examples, one matrix a group.

A[(o,p), (c,q)] = Σ_k w[o,c,k] over the taps k that meet sample q from output p: Toeplitz in one dimension, doubly
block Toeplitz in two, (doubly block) circulant with circular boundary (*Deep Learning*, section 9.2). Any member of
the family has one; with tiled or locally connected weights its diagonals are no longer constant.

The pattern is built on the host: for each tap the outputs and the samples that it joins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.algorithms.blocking import GroupedBias, ScratchPool, flipped, matmul_into
from convbench.arrays import Array, Namespace
from convbench.geometry import boundary_index
from convbench.refusals import memory
from convbench.spec import DTYPES, ConvSpec
from convbench.threads import parallel, shares

__all__ = [
    "LIMIT_BYTES",
    "DenseMatrix",
    "SparseMatrix",
    "dense_bytes",
    "dense_matrices",
    "entries",
    "has_matrix",
    "host_weights",
    "shape_of_matrix",
    "sparse_arrays",
    "sparse_bytes",
    "why_not_dense",
    "why_not_sparse",
]

Host = NDArray[Any]

LIMIT_BYTES = 2 * 2**30  # of the matrix


def has_matrix(spec: ConvSpec) -> bool:
    """Tell what is a product with the matrix of the weights or its transpose: all but the weight gradient."""
    return spec.op != "weight_grad"


def shape_of_matrix(spec: ConvSpec) -> tuple[int, int]:
    """Return rows and columns of one group's matrix."""
    rows = spec.out_channels // spec.groups * prod(spec.output_size)
    return rows, spec.in_channels // spec.groups * prod(spec.input_size)


def stored_entries(spec: ConvSpec) -> int:
    """Return the entries of the sparse matrices of all groups: the taps of one example that meet a sample."""
    return spec.replace(batch=1).in_bounds_macs


def dense_bytes(spec: ConvSpec) -> int:
    """Return the bytes of the dense matrices of all groups."""
    return spec.groups * prod(shape_of_matrix(spec)) * DTYPES[spec.accumulate_dtype]


def sparse_bytes(spec: ConvSpec) -> int:
    """Return the bytes of the sparse matrices of all groups: values, their columns, and where rows begin."""
    index, rows = np.dtype(_index_dtype(spec)).itemsize, prod(spec.result_shape[1:])
    return stored_entries(spec) * (DTYPES[spec.accumulate_dtype] + index) + (rows + 1) * index


def why_not_dense(spec: ConvSpec) -> str | None:
    """Refuse matrices above the limit."""
    return memory(max(dense_bytes(spec), _pattern_bytes(spec)), LIMIT_BYTES)


def why_not_sparse(spec: ConvSpec) -> str | None:
    """Refuse matrices above the limit."""
    return memory(max(sparse_bytes(spec), _pattern_bytes(spec)), LIMIT_BYTES)


def _pattern_bytes(spec: ConvSpec) -> int:
    """Return the most that :func:`_reads` takes: positions of an axis, what lies beyond, and its stand-ins."""
    return 4 * 8 * max(k * p for k, p in zip(spec.kernel_size, spec.output_size, strict=True))


def _index_dtype(spec: ConvSpec) -> str:
    largest = max(stored_entries(spec), spec.groups * shape_of_matrix(spec)[1])
    return "int32" if largest < 2**31 else "int64"


# -- the pattern ----------------------------------------------------------------------------------------------


def entries(spec: ConvSpec) -> Iterator[tuple[int, Host, Host]]:
    """Return for each tap, in order: its number, the outputs that meet a sample through it, and these samples.

    Positions are numbered over all spatial axes; the outputs rise and none comes twice.

    >>> [(k, p.tolist(), q.tolist()) for k, p, q in entries(ConvSpec.parse("i3 k2 p1"))]
    [(0, [1, 2, 3], [0, 1, 2]), (1, [0, 1, 2], [0, 1, 2])]
    """
    axes = [_reads(spec, axis) for axis in range(spec.ndim)]
    for number, tap in enumerate(product(*map(range, spec.kernel_size))):
        reads = [table[k] for table, k in zip(axes, tap, strict=True)]
        meets = [np.flatnonzero(line >= 0) for line in reads]
        outputs = np.ravel_multi_index(np.ix_(*meets), spec.output_size)
        samples = np.ix_(*(line[kept] for line, kept in zip(reads, meets, strict=True)))
        yield number, outputs.ravel(), np.ravel_multi_index(samples, spec.input_size).ravel()


def _reads(spec: ConvSpec, axis: int) -> Host:
    """Return the sample that tap k of output p meets along an axis, −1 for none: shape (K, P)."""
    size, before = spec.input_size[axis], spec.padding[axis][0]
    taps, outputs = np.arange(spec.kernel_size[axis]), np.arange(spec.output_size[axis])
    positions = taps[:, None] * spec.dilation[axis] + outputs * spec.stride[axis] - before
    beyond, where = np.unique(positions[(positions < 0) | (positions >= size)], return_inverse=True)
    found = [boundary_index(position, size, spec.boundary) for position in beyond.tolist()]
    stand_ins = np.array([-1 if inside is None else inside for inside in found], np.int64)
    positions[(positions < 0) | (positions >= size)] = stand_ins[where]
    return positions


def _tiles(spec: ConvSpec) -> Host:
    """Return for each output position the number of its tile entry."""
    tile = spec.tile or (1,) * spec.ndim
    cycles = np.ix_(*(np.arange(outputs) % period for outputs, period in zip(spec.output_size, tile, strict=True)))
    return np.ravel_multi_index(cycles, tile).ravel()


def _grouped(spec: ConvSpec, w: Host) -> Host:
    """Return host weights as (G, O/g, tile entries, C/g, ∏K), in the accumulation dtype."""
    shape = (spec.groups, spec.out_channels // spec.groups, prod(spec.tile or ()), spec.in_channels // spec.groups)
    return w.astype(spec.accumulate_dtype).reshape(*shape, prod(spec.kernel_size))


def dense_matrices(spec: ConvSpec, w: Host) -> Host:
    """Return (G, O/g·∏P, C/g·∏I) from weights of a cross-correlation; where taps meet in a sample they are added."""
    weights, tiles = _grouped(spec, w), _tiles(spec)
    groups, outputs, _, channels, _ = weights.shape
    shape = (groups, outputs, prod(spec.output_size), channels, prod(spec.input_size))
    matrices = np.zeros(shape, spec.accumulate_dtype)
    for tap, rows, columns in entries(spec):
        matrices[:, :, rows, :, columns] += weights[:, :, tiles[rows], :, tap]
    return matrices.reshape(groups, *shape_of_matrix(spec))


def sparse_arrays(spec: ConvSpec, w: Host) -> tuple[Host, Host, Host]:
    """Return values, columns and row starts (CSR) of the matrix of all groups, (O·∏P) × (C·∏I).

    An entry is a product of the definition, in its order, so that rounding and NaN are the definition's too: where
    two taps of one output meet in a sample (boundaries other than zero), there are two.
    """
    weights, index = _grouped(spec, w), _index_dtype(spec)
    groups, outputs, *_ = weights.shape
    columns, sources, starts = _one_channel(spec)
    values = weights.reshape(groups * outputs, -1).take(sources, axis=1)  # row after row, where an index gives columns
    del sources  # of 64 bits each, as NumPy takes them
    first = np.arange(groups).reshape(-1, 1, 1) * shape_of_matrix(spec)[1]
    every = np.empty((groups, outputs, len(columns)), index)
    np.add(columns, first.astype(index), out=every)
    rows = np.arange(groups * outputs)[:, None] * len(columns) + starts[:-1]
    return values.reshape(-1), every.reshape(-1), np.append(rows, values.size).astype(index)


def _one_channel(spec: ConvSpec) -> tuple[Host, Host, Host]:
    """Return the rows of one output channel: columns, the weights' places in (tile, C/g, ∏K), row starts."""
    channels, taps, index = spec.in_channels // spec.groups, prod(spec.kernel_size), _index_dtype(spec)
    each, tiles = np.arange(channels), _tiles(spec)
    counts = np.zeros(prod(spec.output_size), np.int64)
    for _, rows, _ in entries(spec):
        counts[rows] += 1
    starts = np.concatenate(([0], np.cumsum(counts * channels)))
    columns, sources = (np.empty(starts[-1], dtype) for dtype in (index, np.int64))
    filled = starts[:-1].copy()
    for tap, rows, samples in entries(spec):
        places = filled[rows, None] + each * counts[rows, None]
        columns[places] = samples[:, None] + each * prod(spec.input_size)
        sources[places] = (tiles[rows, None] * channels + each) * taps + tap
        filled[rows] += 1
    return columns, sources, starts


def host_weights(ns: Namespace, spec: ConvSpec, w: Array) -> Host:
    """Return weights on the host as the matrix has them: of a cross-correlation, for the transpose conjugated."""
    host: Host = ns.to_host(flipped(ns, spec, w))
    return host.conj() if spec.op == "input_grad" else host


# -- the algorithms -------------------------------------------------------------------------------------------


class _Matrix(ABC):
    """What both storages share: buffers, conversion, and the bias.

    The input gradient is the product with the transpose (the matrix's conjugate transpose for complex weights).
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int, sizes: tuple[int, ...]) -> None:
        self._ns, self._spec, self._threads = ns, spec, threads
        self._transposed = spec.op == "input_grad"
        self._scratch = ScratchPool(lambda: [ns.empty((size,), spec.accumulate_dtype) for size in sizes])
        self.workspace_bytes = sum(sizes) * DTYPES[spec.accumulate_dtype]

    @abstractmethod
    def prepare(self, w: Array) -> tuple[Any, None]:
        """Return the matrix."""

    @abstractmethod
    def _multiply(self, vectors: Array, matrix: Any, bias: Array | None, out: Array, buffers: list[Array]) -> None:
        """Fill ``out`` with A·x, to which the bias is added before it is rounded, or with Aᵀ·g."""

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Multiply and add the bias."""
        with self._scratch.borrow() as buffers:
            self._multiply(first, second, bias, out, buffers)

    def _host_weights(self, w: Array) -> Host:
        return host_weights(self._ns, self._spec, w)


class DenseMatrix(_Matrix):
    """The matrix in full: one GEMM a group, a matrix by vector product for a single example.

    Forward and input gradient of any spec, all boundaries, tiles and dtypes. O(N·O·C/g·∏P·∏I) work and
    O(O·C/g·∏P·∏I) memory, nearly all of it zeros; a NaN or infinity reaches every output of its example and group.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        rows, columns = shape_of_matrix(spec)
        read, written = (rows, columns) if spec.op == "input_grad" else (columns, rows)
        super().__init__(ns, spec, threads, (spec.batch * read, spec.batch * written))
        self.prepared_bytes = dense_bytes(spec)
        self.flops = 2 * spec.batch * spec.groups * rows * columns

    def prepare(self, w: Array) -> tuple[Any, None]:
        """Return (G, O/g·∏P, C/g·∏I)."""
        return self._ns.from_host(dense_matrices(self._spec, self._host_weights(w))), None

    def _multiply(self, vectors: Array, matrix: Any, bias: Array | None, out: Array, buffers: list[Array]) -> None:
        ns, spec = self._ns, self._spec
        copied, results = buffers
        offsets = None if bias is None else GroupedBias(ns, spec, bias)
        converts = spec.result_dtype != spec.accumulate_dtype
        with ns.gemm_threads(self._threads):
            for group in range(spec.groups):
                samples = vectors[:, group, ...]
                ns.assign(ns.reshape(copied, samples.shape), samples)
                flat = ns.reshape(copied, (spec.batch, prod(samples.shape[1:])))
                one = matrix[group, ...] if self._transposed else matrix[group, ...].T
                target = out[:, group, ...]
                sums = ns.reshape(results, target.shape) if converts else target
                matmul_into(ns, flat, one, sums, results)
                if offsets is not None:
                    offsets.add(sums[:, None, ...], slice(group, group + 1))
                if converts:
                    ns.assign(target, sums)


@dataclass(frozen=True)
class _Rows:
    """Rows of the result that one thread computes: of some channels, or of a part of the only one."""

    index: tuple[slice, ...]  # into y (N, G·O/g, *output_size), or x
    rows: slice


class SparseMatrix(_Matrix):
    """The matrix in compressed sparse rows, multiplied by SciPy; threads share its rows.

    Forward and input gradient of any spec, all boundaries, tiles and dtypes. O(N·O·C/g·∏P·∏K) work, memory for a value
    and a column index for each of as many products. On NumPy only.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        self._read, self._written = spec.operand_shapes[0], spec.result_shape
        self._parts = _cut(self._written, threads)
        super().__init__(ns, spec, threads, (prod(self._read),))
        self.workspace_bytes += prod(self._written) * DTYPES[spec.accumulate_dtype]
        self.prepared_bytes = sparse_bytes(spec)
        pattern = stored_entries(spec) // spec.out_channels * 16  # of one channel: columns and places of the weights
        transposed = self._transposed * self.prepared_bytes  # of another of its size
        self.preparing_bytes = self.prepared_bytes + max(2 * pattern, transposed)
        self.flops = 2 * spec.in_bounds_macs

    def prepare(self, w: Array) -> tuple[Any, None]:
        """Return one matrix a part."""
        from scipy.sparse import csr_array

        values, columns, starts = sparse_arrays(self._spec, self._host_weights(w))
        width = prod(self._read[1:])
        if self._transposed:
            forward = csr_array((values, columns, starts), shape=(width, prod(self._written[1:])))
            transposed = forward.T.tocsr()
            values, columns, starts = transposed.data, transposed.indices, transposed.indptr
        matrices = []
        for part in self._parts:
            begins = starts[part.rows.start : part.rows.stop + 1]
            stored = slice(begins[0], begins[-1])
            arrays = values[stored], columns[stored], begins - begins[0]
            matrices.append(csr_array(arrays, shape=(len(begins) - 1, width)))
        return matrices, None

    def _multiply(self, vectors: Array, matrix: Any, bias: Array | None, out: Array, buffers: list[Array]) -> None:
        ns, batch = self._ns, self._spec.batch
        if not batch:
            return
        columns = ns.reshape(buffers[0], (*vectors.shape[1:], batch))
        ns.assign(columns, ns.xp.moveaxis(vectors, 0, -1))
        columns = ns.reshape(buffers[0], (prod(vectors.shape[1:]), batch) if batch != 1 else (-1,))

        def fill(number: int) -> None:
            index = self._parts[number].index
            target = ns.reshape(out, self._written, copy=False)[index]
            result = ns.reshape(ns.reshape(matrix[number] @ columns, (-1, batch)).T, target.shape)
            if bias is not None:
                rows = index[2:] or (slice(0, self._written[2]),)
                box = (*rows, *(slice(0, size) for size in self._written[3:]))
                GroupedBias(ns, self._spec, bias[index[1], ...], groups=1).add(result[:, None, ...], outputs=box)
            target[...] = result

        parallel(fill, range(len(self._parts)), self._threads)


def _cut(shape: tuple[int, ...], threads: int) -> list[_Rows]:
    """Share out the channels of a result, or the first axis where there is one channel only."""
    axis = 0 if shape[1] > 1 else 1
    extent, below = shape[1 + axis], prod(shape[2 + axis :])
    count, everything = min(threads, extent), (slice(None),) * (1 + axis)
    return [_Rows((*everything, part), slice(part.start * below, part.stop * below)) for part in shares(extent, count)]
