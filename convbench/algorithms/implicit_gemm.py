"""im2col without the matrix, by the kernels of :mod:`convbench.jit.panel_im2col`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.algorithms.axes import Axes, in_items, spec_axes
from convbench.algorithms.blocking import GroupedBias, ScratchPool, flipped
from convbench.arrays import Namespace
from convbench.jit import panel_im2col, pool
from convbench.jit.compile import Kernel
from convbench.jit.memory import CACHE_LINE, address_of, aligned
from convbench.jit.panel import PanelShape
from convbench.jit.panel_im2col import STRIDES, Variant
from convbench.jit.strips import axis_sources
from convbench.jit.target import Target, host_target
from convbench.spec import ConvSpec

__all__ = ["ImplicitGemm"]

Array = NDArray[Any]

_IN_L1 = 2**15  # bytes of packed tiles where lanes are pixels: all blocks of outputs read them at every step
_IN_L2 = 2**18  # where lanes are outputs: a block of weights, which is read at every step, wants as much
_STEPS = 512  # summed at once where lanes are outputs: turning the sums wants many
_JOBS_A_THREAD = 4
_WORTH_A_JOB = 2**17  # multiply–adds below which nothing is split further
_MOST_SEGMENTS = 8  # in narrower images tiles are packed number by number
_TURN_CYCLES = 280  # to turn 28 vectors of sums by a quarter and write them
_WRITE_CYCLES = 60  # to write them as they are
_LOAD_CYCLES = 1.5  # to pack a vector of one row
_MASK_CYCLES = 4  # to make its mask, which all channels share
_SCATTER_CYCLES = 2  # to write one number by itself


@dataclass(frozen=True)
class _Tile:
    """A register tile, and how many it takes.

    Attributes
    ----------
    lanes_are_pixels : bool
        Else they are outputs.
    shape : PanelShape
    pixels, block : int
        Of a tile; the outputs of a block.
    tiles, blocks : int
        Tiles of an image, and blocks of outputs.
    tail : int
        Vectors of the last block where lanes are outputs, or 0 if it is full.
    """

    lanes_are_pixels: bool
    shape: PanelShape
    pixels: int
    block: int
    tiles: int
    blocks: int
    tail: int = 0

    @staticmethod
    def all(pixels: int, outputs: int, lanes: int, registers: int) -> Iterator[_Tile]:
        """Yield the tiles that fit the registers, beside their vectors and one item."""
        for vectors in range(1, 7):
            most = min(14, (registers - 1 - vectors) // vectors)
            if most < 1:
                return
            blocks, tiles = -(-outputs // most), -(-pixels // (vectors * lanes))
            block = -(-outputs // blocks)
            yield _Tile(True, PanelShape(vectors, block), vectors * lanes, block, tiles, blocks)
            if vectors <= 2 and (vectors - 1) * lanes < outputs:
                tiles, block = -(-pixels // most), vectors * lanes
                across, tail = -(-pixels // tiles), -(-(outputs % block) // lanes)
                yield _Tile(False, PanelShape(vectors, across), across, block, tiles, -(-outputs // block), tail)

    def cycles(self, outputs: int, steps: int, lanes: int, *, channels_last: bool) -> float:
        """Return the time of an image's sums: two multiply–adds and two reads a cycle, and four from sum to sum."""

        def block(vectors: int, written: int) -> float:
            items = self.shape.items
            step = max(vectors * items / 2, (vectors + items) / 2, 4)
            if self.lanes_are_pixels and channels_last:
                return steps * step + _SCATTER_CYCLES * self.pixels * written
            write = _WRITE_CYCLES if self.lanes_are_pixels or channels_last else _TURN_CYCLES
            return steps * step + write * vectors * items / 28

        full, rest = divmod(outputs, self.block)
        time = full * block(self.shape.vectors, self.block)
        if rest:
            time += block(self.tail or self.shape.vectors, rest)
        return self.tiles * time

    def packed_outputs(self, lanes: int) -> int:
        """Return the outputs of packed weights: those of the last block are filled up with zeros."""
        if self.lanes_are_pixels or not self.tail:
            return self.blocks * self.block
        return (self.blocks - 1) * self.block + self.tail * lanes


def _tile(spec: ConvSpec, target: Target) -> _Tile:
    """Return the tile that takes the least time, packing included."""
    pixels, outputs, lanes = max(1, prod(spec.output_size)), spec.out_channels // spec.groups, target.lanes(spec.dtype)
    taps, last = prod(spec.kernel_size), spec.layout == "channels_last"
    steps = spec.in_channels // spec.groups * taps
    one_row = taps == 1 and spec.input_size == spec.output_size
    columns = pixels if one_row else max(1, spec.output_size[-1])

    def packing(tile: _Tile) -> float:
        segments = _segments(columns, tile.pixels, pixels)
        if spec.stride[-1] not in STRIDES or segments > _MOST_SEGMENTS:
            return _SCATTER_CYCLES * tile.tiles * tile.pixels * steps
        loads = segments * -(-tile.pixels // lanes) * spec.stride[-1]
        return tile.tiles * loads * (_LOAD_CYCLES * steps + _MASK_CYCLES * taps)

    tiles = _Tile.all(pixels, outputs, lanes, target.registers)
    return min(tiles, key=lambda tile: tile.cycles(outputs, steps, lanes, channels_last=last) + packing(tile))


@dataclass(frozen=True)
class _Cut:
    """How sums and jobs are cut.

    Attributes
    ----------
    channels, taps : int
        Summed at once: all taps of some channels, or some taps of one.
    chunk, chunks : int
        Tiles of a job, and how many times.
    packed : int
        Tiles that are packed before they are multiplied.
    part, parts : int
        Blocks of outputs of a job, and how many times.
    """

    channels: int
    taps: int
    chunk: int
    chunks: int
    packed: int
    part: int
    parts: int

    @staticmethod
    def of(spec: ConvSpec, tile: _Tile, pitch: int, threads: int) -> _Cut:
        """Pack as much as stays in cache; make jobs for all threads."""
        channels, taps = spec.in_channels // spec.groups, prod(spec.kernel_size)
        item_bytes = pitch * spec.itemsize
        most, room = (_IN_L1 // item_bytes, _IN_L1) if tile.lanes_are_pixels else (_STEPS, _IN_L2)
        tap_part = _even(taps, most)
        channel_part = _even(channels, max(1, most // taps)) if tap_part == taps else 1
        tiles = max(1, spec.batch * tile.tiles)
        packed = max(1, room // (channel_part * tap_part * item_bytes))
        wanted = min(threads, max(1, spec.macs // _WORTH_A_JOB))
        chunks = min(tiles, _JOBS_A_THREAD * wanted) if wanted > 1 else 1
        chunk = -(-tiles // chunks)
        chunks = -(-tiles // chunk)
        part = -(-tile.blocks // min(tile.blocks, -(-wanted // (spec.groups * chunks))))
        return _Cut(channel_part, tap_part, chunk, chunks, min(packed, chunk), part, -(-tile.blocks // part))


def _even(count: int, most: int) -> int:
    """Return the size of the parts that ``count`` falls into, as equal as can be and none above ``most``."""
    return -(-count // -(-count // most))


class ImplicitGemm:
    """im2col + GEMM in one, forward, of 1 to 3 axes: O(MACs) work; workspace: packed columns for each thread.

    Weights are packed by blocks of output channels: as many numbers as they are, but for the last block's zeros.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        self._ns, self._spec, self._threads = ns, spec, threads
        self._target = host_target()
        self._lanes = self._target.lanes(spec.dtype)
        self._outputs, self._terms = spec.out_channels // spec.groups, prod(spec.weight_shape[1:])
        self._axes = spec_axes(spec, sparse=False)
        self._tile = _tile(spec, self._target)
        self._pitch = -(-self._tile.pixels // self._lanes) * self._lanes
        self._cut = cut = _Cut.of(spec, self._tile, self._pitch, threads)
        self._jobs = spec.groups * cut.chunks * cut.parts if 0 not in spec.output_shape else 0
        self._places, self._scratch_items = self._laid_out()
        self._scratch = ScratchPool(lambda: aligned(self._scratch_items * threads, spec.dtype))
        self._taps = _positions(self._axes)
        self._no_bias = np.zeros(spec.out_channels, spec.dtype)
        self._calls: dict[Any, tuple[Kernel, tuple[int, ...]]] = {}
        self._packed = self._tile.packed_outputs(self._lanes) * self._terms  # items a group
        tables = (self._taps, self._no_bias, *(axis.sources.table for axis in self._axes))
        self.workspace_bytes = self._scratch_items * threads * spec.itemsize + sum(table.nbytes for table in tables)
        self.prepared_bytes = spec.groups * self._packed * spec.itemsize
        self.flops = spec.flops

    def _laid_out(self) -> tuple[tuple[int, ...], int]:
        """Return where zeros, places, patch and panels begin in a thread's scratch, how long a tile is, and all."""
        line, number = CACHE_LINE // self._spec.itemsize, 8 // self._spec.itemsize
        shape, cut = self._tile.shape, self._cut
        tile = cut.channels * cut.taps * self._pitch
        sizes = (
            self._tile.block,
            cut.packed * (1 + self._tile.pixels) * number,
            shape.vectors * shape.items * self._lanes,
            cut.packed * tile,
        )
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + -(-size // line) * line)
        return (*starts[:-1], tile), starts[-1]

    def prepare(self, w: Array) -> tuple[Array, None]:
        """Pack the weights: for each group and block of outputs (channel, tap, output)."""
        spec, block = self._spec, self._tile.block
        given = flipped(self._ns, spec, w).reshape(spec.groups, self._outputs, self._terms)
        packed = aligned((spec.groups, self._packed), spec.dtype)
        for first in range(0, self._outputs, block):
            outputs = given[:, first : first + block].swapaxes(1, 2)
            place = packed[:, first * self._terms : (first + block) * self._terms]
            place = place.reshape(spec.groups, self._terms, -1)
            place[..., : outputs.shape[2]] = outputs
            place[..., outputs.shape[2] :] = 0
        return packed, None

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Fill ``out``."""
        fused = bias is not None and self._spec.bias == "channel"
        if self._jobs:
            key = first.strides, out.strides
            call = self._calls.get(key)
            if call is None:
                call = self._calls[key] = self._made_call(first, out)
            kernel, table = call
            added = np.ascontiguousarray(bias) if fused else self._no_bias
            with self._scratch.borrow() as scratch:
                addresses = map(address_of, (first, out, second, added, scratch))
                pool.run(kernel, (*addresses, *table), self._jobs, self._threads)
        if bias is not None and not fused:
            GroupedBias(self._ns, self._spec, bias).add(out)

    def _made_call(self, first: Array, out: Array) -> tuple[Kernel, tuple[int, ...]]:
        """Return the kernel for arrays of these strides, and its arguments after the addresses."""
        spec, tile, cut = self._spec, self._tile, self._cut
        channels = spec.in_channels // spec.groups
        depth, rows, columns = self._axes
        x, y = (in_items(array.strides, spec) for array in (first, out))
        outputs, strides = [axis.outputs for axis in self._axes], [axis.stride for axis in self._axes]
        flat = _are_flat(y[3:], outputs)
        if flat and self._is_one_row(x):
            outputs, strides = [1, 1, prod(outputs)], [1, 1, 1]
            rows_of = _single, _single, axis_sources(outputs[2], outputs[2], 0, "zero")
        else:
            rows_of = depth.sources, rows.sources, columns.sources
        segments = _segments(outputs[2], tile.pixels, prod(outputs))
        by_vectors = x[5] == 1 and strides[2] in STRIDES and segments <= _MOST_SEGMENTS
        variant = Variant(
            dtype=spec.dtype,
            lanes_are_pixels=tile.lanes_are_pixels,
            shape=tile.shape,
            tail=tile.tail,
            stride=strides[2] if by_vectors else 0,
            segments=segments if by_vectors else 1,
            split=cut.channels < channels or cut.taps < len(self._taps),
            flat=flat,
            channels_last=y[2] == 1,
        )
        read = rows_of[2]
        arguments = (
            *x, *y, *(address_of(sources.table) for sources in rows_of),
            read.first, read.last, int(read.table[read.first]) - read.first if read.first < read.last else 0,
            int(spec.boundary != "zero"),
            address_of(self._taps), len(self._taps), channels, self._outputs,
            *strides, outputs[1], outputs[2], prod(outputs),
            spec.batch * tile.tiles, tile.tiles, cut.chunk, cut.chunks, cut.packed, tile.blocks, cut.part, cut.parts,
            self._packed, cut.channels, cut.taps, self._scratch_items, *self._places,
        )  # fmt: skip
        return panel_im2col.kernel(variant, self._target), arguments

    def _is_one_row(self, x: tuple[int, ...]) -> bool:
        """Tell whether all pixels of an image are neighbours, read by one tap: rows do not matter."""
        return (
            len(self._taps) == 1
            and all(axis.stride == 1 and axis.sources.in_place for axis in self._axes)
            and tuple(self._spec.input_size) == tuple(self._spec.output_size)
            and _are_flat(x[3:], [axis.outputs for axis in self._axes])
        )


_single = axis_sources(1, 1, 0, "zero")


def _positions(axes: Axes) -> NDArray[np.int64]:
    """Return the position of each tap along each axis."""
    grids = np.meshgrid(*(np.arange(axis.taps) * axis.dilation for axis in axes), indexing="ij")
    return np.stack(grids, -1).reshape(-1, 3).astype(np.int64)


def _segments(columns: int, tile: int, pixels: int) -> int:
    """Return in how many rows the pixels of a tile may lie; the tiles follow one another.

    >>> _segments(28, 28, 784), _segments(28, 32, 784), _segments(7, 14, 49), _segments(7, 13, 49)
    (1, 2, 2, 3)
    """
    if pixels <= columns:
        return 1
    latest = columns - gcd(columns, tile)  # where in a row a tile begins at the latest
    return (latest + min(tile, pixels) - 1) // columns + 1


def _are_flat(strides: tuple[int, ...], sizes: list[int]) -> bool:
    """Tell whether samples are neighbours, row after row."""
    distance = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size > 1 and stride != distance:
            return False
        distance *= size
    return True
