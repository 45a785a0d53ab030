"""The shared skeleton of the window algorithms: bands that stay in cache, threads, and kinds around one reduction.

An algorithm says how a stack of planes is reduced over its windows, by ``np.maximum`` or ``np.add``; how the mean, the
norm and the gradients come from that is said here, once. Windows are cut to the input: nothing is ever padded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.pooling.spec import PoolSpec
from convbench.pooling.windows import Windows
from convbench.threads import parallel

__all__ = ["Reduction", "better", "cells"]

Array = NDArray[Any]
AxisWindows = tuple[Windows, ...]

_BAND_ELEMENTS = 2**16  # of a band's input: 256 KiB of float32, so that passes over it stay in the second-level cache
_EDGE_ARRAYS = 8
_WORTH_A_THREAD = 2**14  # elements below which a band is not cut further to occupy another thread


@dataclass(frozen=True)
class Band:
    """A range of planes, and of rows of the result along the first spatial axis."""

    planes: slice
    first: int
    last: int


class Reduction(ABC):
    """A window algorithm: cuts the work into bands, and makes every kind and gradient of :meth:`_reduce`.

    Parameters
    ----------
    spec : PoolSpec
    threads : int
    """

    def __init__(self, spec: PoolSpec, threads: int) -> None:
        self.spec, self._threads = spec, threads
        self._windows = spec.windows
        self._back = tuple(windows.transposed() for windows in spec.windows)
        self._scatters = spec.kind == "max" and spec.op == "grad"
        self._planes = spec.batch * spec.channels
        self._gaps = any(not windows.lengths().all() for windows in self._back)
        self._cut()
        self.flops = spec.flops
        self.workspace_bytes = self._declared_bytes()

    # -- what an algorithm adds ---------------------------------------------------------------

    @abstractmethod
    def _reduce(self, ufunc: Any, x: Array, windows: AxisWindows, out: Array) -> None:
        """Write the reduction of x (planes, *space) over the windows into ``out`` (planes, *outputs); Σ∅ = 0."""

    def _first_maxima(self, x: Array, windows: AxisWindows) -> Array:
        """Return where the first maximum (or NaN) of each window lies in its flattened plane."""
        raise NotImplementedError

    @abstractmethod
    def _reduce_bytes(self, planes: int, windows: AxisWindows) -> int:
        """Bytes that ``_reduce``, or for the gradient of the maximum ``_first_maxima``, allocates."""

    # -- bands --------------------------------------------------------------------------------

    def _cut(self) -> None:
        """Choose bands: several planes each if they are small, parts of one if it is large.

        The gradient of the maximum is scattered over a plane, so it takes whole ones.
        """
        spec = self.spec
        source = self._windows if spec.op == "forward" else self._back
        rows = spec.result_shape[2]
        plane = max(1, prod(spec.input_size), prod(spec.output_size))
        share = -(-plane * self._planes // self._threads)
        target = max(min(_BAND_ELEMENTS, share), _WORTH_A_THREAD)
        self._at_once = max(1, target // plane)
        self._rows = rows
        if plane > target and not self._scatters:
            bands = -(-plane // target)
            halo = source[0].longest  # rows that neighbouring bands both read: at most half of what a band reads
            step = max(
                1, rows // max(1, spec.operand_shapes[-1][2]), -(-halo * source[0].start.per // source[0].start.step)
            )
            self._rows = min(rows, max(-(-rows // bands), step))

    def _bands(self, planes: int) -> list[Band]:
        return [
            Band(slice(p, min(p + self._at_once, planes)), r, min(r + self._rows, self.spec.result_shape[2]))
            for p in range(0, planes, self._at_once)
            for r in range(0, self.spec.result_shape[2], self._rows)
        ]

    def _declared_bytes(self) -> int:
        """What the largest band needs, for each thread."""
        spec = self.spec
        planes = min(self._at_once, max(1, self._planes))
        bands = self._bands(1) if spec.result_shape[2] else []
        lanes = min(self._threads, max(1, len(bands) * -(-self._planes // self._at_once)))
        probes = bands[:1] + bands[len(bands) // 2 : len(bands) // 2 + 1] + bands[-2:]
        return lanes * max((self._band_bytes(planes, band) for band in probes), default=0) + _edges_bytes(self._windows)

    def _band_bytes(self, planes: int, band: Band) -> int:
        spec, item = self.spec, self.spec.itemsize
        if self._scatters:
            places = 8 * planes * (prod(spec.input_size) + 2 * prod(spec.output_size))
            return max(places, self._reduce_bytes(planes, self._windows))
        if spec.op == "forward":
            return self._forward_bytes(planes, band.first, band.last)
        rows, head = self._back[0].part(band.first, band.last)
        below = (head, *self._back[1:])
        spread = _length(rows) * prod(spec.output_size[1:])
        own = planes * item * spread
        if spec.kind == "mean":
            return own + self._counts_bytes(_length(rows)) + self._reduce_bytes(planes, below)
        norms = self._forward_bytes(planes, rows.start, rows.stop) if _length(rows) else 0
        return own + max(norms, planes * spread, self._reduce_bytes(planes, below))

    def _forward_bytes(self, planes: int, first: int, last: int) -> int:
        windows = (self._windows[0].part(first, last)[1], *self._windows[1:])
        squares = planes * self.spec.itemsize * prod(axis.size for axis in windows)
        needed = self._reduce_bytes(planes, windows)
        if self.spec.kind == "mean":
            return max(needed, self._counts_bytes(last - first))
        return needed + squares * (self.spec.kind == "l2")

    def _counts_bytes(self, rows: int) -> int:
        spec = self.spec
        if spec.adaptive is None and (spec.count_include_pad or not spec.padded):
            return 0
        return 2 * spec.itemsize * rows * prod(spec.output_size[1:])

    # -- running ------------------------------------------------------------------------------

    def run(self, operands: tuple[Array, ...], out: Array | None) -> Array:
        """Fill ``out`` band by band."""
        spec = self.spec
        result = np.empty(spec.result_shape, spec.dtype) if out is None else out
        if 0 in result.shape:
            return result
        jobs = [(arrays, band) for arrays in _stacks((*operands, result)) for band in self._bands(arrays[0].shape[0])]
        parallel(lambda job: self._fill(*job), jobs, self._threads)
        return result

    def _fill(self, arrays: Sequence[Array], band: Band) -> None:
        *operands, result = (array[band.planes] for array in arrays)
        part = result[:, band.first : band.last]
        if self.spec.op == "forward":
            self._forward(operands[0], band.first, band.last, part)
        elif self.spec.kind == "max":
            self._maximum_gradient(operands[0], operands[1], part)
        else:
            self._sum_gradient(operands[0], operands[1], band, part)

    def _forward(self, x: Array, first: int, last: int, out: Array) -> None:
        spec = self.spec
        rows, head = self._windows[0].part(first, last)
        windows, samples = (head, *self._windows[1:]), x[:, rows]
        if spec.kind == "max":
            return self._reduce(np.maximum, samples, windows, out)
        if spec.kind == "l2":
            self._reduce(np.add, samples * samples, windows, out)
            np.sqrt(out, out=out)
            return None
        self._reduce(np.add, samples, windows, out)
        out /= self._counts(first, last)
        return None

    def _counts(self, first: int, last: int) -> Array:
        """What means divide by, for a range of rows; a number if it is the same everywhere."""
        spec = self.spec
        if spec.adaptive is None and (spec.count_include_pad or not spec.padded):
            return np.asarray(prod(spec.kernel_size), spec.dtype)
        axes = [self._windows[0].part(first, last)[1], *self._windows[1:]]
        counts = np.ones((), spec.dtype)
        for windows in axes:
            counts = counts[..., None] * windows.lengths().astype(spec.dtype)
        return counts

    def _sum_gradient(self, x: Array, g: Array, band: Band, out: Array) -> None:
        """Spread g/number or g/y back over the windows: a window sum over outputs (the adjoint)."""
        spec = self.spec
        rows, head = self._back[0].part(band.first, band.last)
        if not _length(rows):
            out[...] = 0
            return
        if spec.kind == "mean":
            spread = g[:, rows] / self._counts(rows.start, rows.stop)
        else:
            spread = np.empty_like(g[:, rows])
            self._forward(x, rows.start, rows.stop, spread)
            flat = spread == 0
            np.divide(g[:, rows], spread, out=spread)
            spread[flat] = 0
        self._reduce(np.add, spread, (head, *self._back[1:]), out)
        if spec.kind == "l2":
            samples = x[:, band.first : band.last]
            # what no window reads has no gradient, be it NaN
            np.multiply(out, samples, out=out, where=out != 0 if self._gaps else True)

    def _maximum_gradient(self, x: Array, g: Array, out: Array) -> None:
        """Add each g to its window's first maximum; in double, as :func:`numpy.bincount` does."""
        planes, size = x.shape[0], prod(self.spec.input_size)
        where = self._first_maxima(x, self._windows).reshape(planes, -1)
        where += size * np.arange(planes)[:, None]
        added = np.bincount(where.ravel(), g.ravel(), planes * size)
        out[...] = added.reshape(out.shape)


def _edges_bytes(windows: AxisWindows) -> int:
    """Starts and stops of the windows along the longest axis, and what they are worked out with."""
    return _EDGE_ARRAYS * 8 * max(max(axis.outputs, axis.size) for axis in windows)


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _stacks(arrays: Sequence[Array]) -> Iterator[list[Array]]:
    """Give examples and channels as one axis of planes, by views; where strides forbid, example by example."""
    try:
        yield [array.reshape(-1, *array.shape[2:], copy=False) for array in arrays]
    except ValueError:
        for entries in zip(*arrays, strict=True):
            yield list(entries)


def better(candidate: Array, held: Array) -> Array:
    """Tell where a later sample takes a maximum's place: if it is larger, or the first NaN."""
    if held.dtype.kind != "f":
        return np.asarray(candidate > held)
    worse = np.less_equal(candidate, held)  # False if either is NaN
    worse |= np.isnan(held)
    return np.logical_not(worse, out=worse)


def cells(size: Sequence[int]) -> Array:
    """Return the places of a flattened plane, in its shape."""
    return np.arange(prod(size)).reshape(size)
