"""Direct convolution with many outputs a group: tiles of outputs × pixels (``kernels/direct_tiles.cu``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from math import prod
from typing import Any

import numpy as np

from convbench.arrays import Array, Namespace
from convbench.cuda.forward import C_TYPES, MOST_ALONG_Y, Forward
from convbench.cuda.geometry import blocks, three
from convbench.cuda.kernel import Kernel
from convbench.cuda.tiles import (
    BYTES_PER_CYCLE,
    LANES,
    SHARED_BYTES,
    SMS,
    Halo,
    Tile,
    aligned,
    capacity,
    packed_weights,
    powers_of_two,
    threads_along,
    windows,
)
from convbench.cuda.variants import Variant, with_shared_bytes
from convbench.spec import DTYPES, ConvSpec

__all__ = ["KERNELS", "VARIANTS", "DirectTiles", "suits", "tile_of"]

_ROWS = 7  # outputs of one thread along rows
_THREADS = (128, 256)
_TAPS = {"float32": (5, 3, 1), "float64": (1,), "float16": (5, 3, 1)}  # windows of doubles would not fit registers
_FEWEST_OUTPUTS = 5  # below which more than half of a thread's outputs would be idle
_MOST_BLOCKS = 2**31 - 1
_BLOCK_CYCLES, _LAUNCH_CYCLES = 1000, 4000  # of a block's first loads and stores, of one more kernel


def _kernel(dtype: str, taps: int, threads: int, shared_bytes: int) -> Kernel:
    return Kernel("direct_tiles.cu", f"direct_tiles<{C_TYPES[dtype]}, {taps}>", (threads, 1, 1), shared_bytes)


_SUMMED = {dtype: Kernel("direct_tiles.cu", f"direct_summed<{name}>", (256, 1, 1)) for dtype, name in C_TYPES.items()}

_TILES = tuple(
    _kernel(dtype, taps, threads, shared_bytes)
    for dtype in C_TYPES
    for taps in _TAPS[dtype]
    for threads in _THREADS
    for shared_bytes in SHARED_BYTES[1:]
)

#: Every instance that may be launched.
KERNELS = (*_TILES, *_SUMMED.values())


def _outputs(spec: ConvSpec) -> int:
    """Return the output channels of one thread: 32 bytes of weights."""
    return 32 // DTYPES[spec.accumulate_dtype]


def _taps(spec: ConvSpec) -> int:
    """Return how many kernel rows one window of samples serves."""
    rows = three(spec.kernel_size, 1)[1]
    return next(taps for taps in _TAPS[spec.dtype] if rows % taps == 0) if windows(spec) else 1


def suits(spec: ConvSpec) -> bool:
    """Tell whether a forward convolution has outputs enough for these tiles, and fits them."""
    return spec.out_channels // spec.groups >= _FEWEST_OUTPUTS and tile_of(spec) is not None


@lru_cache(maxsize=256)
def tile_of(spec: ConvSpec, sizes: tuple[int, ...] = _THREADS) -> Tile | None:
    """Return the tile, with blocks of these sizes, that needs the fewest cycles by count, or None if none fits."""
    outputs = spec.out_channels // spec.groups
    most = min(32, 2 ** (blocks(outputs, _outputs(spec)) - 1).bit_length())
    best, fewest = None, float("inf")
    for columns, row_groups, planes, along in threads_along(sizes, (8, 16, 32), powers_of_two(1, most)):
        if planes > 1 and planes >= 2 * spec.batch:
            continue
        tile = _staged(spec, columns, row_groups, planes, along)
        for split in _splits(tile) if tile else ():
            cycles = _cycles(split)
            if cycles < fewest:
                best, fewest = split, cycles
    return best and best.with_fewest_conflicts()


def _staged(spec: ConvSpec, columns: int, row_groups: int, planes: int, outputs: int) -> Tile | None:
    """Return the tile with as many input channels at a time as fit."""
    channels = spec.in_channels // spec.groups
    _, *kernel = three(spec.kernel_size, 1)
    taps, wide = kernel[0] * kernel[1], outputs * _outputs(spec)
    fold = columns if spec.ndim == 1 else 0
    halo = Halo.beneath(spec, row_groups * _ROWS, columns, fold)
    padded = aligned(spec.out_channels // spec.groups, _outputs(spec))
    for at_once in (16, 8, 4, 2, 1):
        if at_once > 1 and (at_once >= 2 * channels or at_once * taps > 72):
            continue
        tile = Tile(
            spec, columns, row_groups, planes, outputs, _ROWS, halo,
            channels=at_once, weights=padded, weight_items=at_once * taps * wide,
        )  # fmt: skip
        if capacity(tile.shared_bytes) and _blocks(tile) <= _MOST_BLOCKS:
            return tile
    return None


def _splits(tile: Tile) -> Iterator[Tile]:
    """Yield the tile with its input channels shared by 1, 2, 4… blocks, of two steps or more, while blocks are few."""
    steps = _steps(tile)
    for splits in powers_of_two(1, 16):
        if splits == 1 or (2 * splits <= steps and splits * _blocks(tile) <= 8 * SMS):
            yield replace(tile, splits=splits)


def _steps(tile: Tile) -> int:
    spec = tile.spec
    return blocks(spec.in_channels // spec.groups, tile.channels) * three(spec.kernel_size, 1)[0]


def _blocks(tile: Tile) -> int:
    """Return how many blocks there are, for each part of the input channels."""
    spec = tile.spec
    outputs = blocks(spec.out_channels // spec.groups, tile.outputs * _outputs(spec))
    return outputs * tile.positions * spec.groups * blocks(spec.batch, tile.planes)


def _cycles(tile: Tile) -> float:
    spec, outputs, taps = tile.spec, _outputs(tile.spec), _taps(tile.spec)
    depth, *kernel = three(spec.kernel_size, 1)
    channels = spec.in_channels // spec.groups
    products = _ROWS * outputs * taps
    issued = products + _ROWS + taps - 1 + 2 * taps + 6  # the FMAs of a window, loads, and the loop
    compute = issued / taps * kernel[0] * kernel[1] * tile.threads * channels * depth
    stages = _steps(tile) / tile.splits
    stage_bytes = (tile.sample_items + tile.weight_items) * DTYPES[spec.dtype]
    cycles = (compute / tile.splits + stages * tile.staging) / LANES
    block = max(cycles, stages * stage_bytes / BYTES_PER_CYCLE / 2) + _BLOCK_CYCLES
    together = tile.busiest(_blocks(tile) * tile.splits, block)
    if tile.splits == 1:
        return together
    parts = (2 * tile.splits + 1) * prod(spec.output_shape) * DTYPES[spec.accumulate_dtype]
    return together + _LAUNCH_CYCLES + parts / (BYTES_PER_CYCLE * SMS)


class DirectTiles(Forward):
    """Groups of several outputs; weights are packed as [group][kernel depth][input][column][row][output]."""

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int, sizes: tuple[int, ...] = _THREADS) -> None:
        super().__init__(ns, spec, threads)
        tile = tile_of(spec, sizes)
        if tile is None:
            raise ValueError(f"no tile fits shared memory: {spec}")
        limit = max(SHARED_BYTES[1], capacity(tile.shared_bytes) or 0)
        self._kernel = self._loaded(_kernel(spec.dtype, _taps(spec), tile.threads, limit))
        self._tile, self._grid = tile.struct(tile.outputs * _outputs(spec)), (_blocks(tile), tile.splits, 1)
        self._parts = 0
        if tile.splits > 1:
            self._parts = tile.splits * prod(spec.output_shape)
            self._sum, self._splits = self._loaded(_SUMMED[spec.dtype]), np.int32(tile.splits)
            self._sum_grid = blocks(prod(spec.output_shape[1:]), 256), min(spec.batch, MOST_ALONG_Y), 1
        self.workspace_bytes = self._parts * DTYPES[spec.accumulate_dtype]
        depth, rows, columns = three(spec.kernel_size, 1)
        inputs = spec.in_channels // spec.groups
        self._packed = spec.groups, depth, inputs, columns, rows, tile.weights
        self.prepared_bytes = (
            spec.groups * depth * inputs * columns * rows * tile.weights * DTYPES[spec.accumulate_dtype]
        )

    def prepare(self, w: Array) -> tuple[Array, None]:
        """Return the weights packed, the outputs filled up with zeros, in the dtype that sums are formed in."""
        spec, ns = self._spec, self._ns
        outputs = spec.out_channels // spec.groups
        packed = ns.empty(self._packed, spec.accumulate_dtype)
        if outputs < self._packed[-1]:
            packed[..., outputs:] = 0
        packed_weights(ns, spec, w, packed[..., :outputs], (0, 3, 2, 5, 4, 1))
        return packed, None

    def _launch(self, x: Array, weights: Any, bias: Array | None, y: Array, conv: Any) -> None:
        if not self._parts:
            self._kernel(self._grid, (x, weights, bias, y, None, conv, self._tile))
            return
        parts = self._ns.empty((self._parts,), self._spec.accumulate_dtype)
        self._kernel(self._grid, (x, weights, None, None, parts, conv, self._tile))
        self._sum(self._sum_grid, (parts, bias, y, conv, self._splits))


#: Cases that launch each of them; the last share channels among blocks.
VARIANTS = (
    *(
        Variant(
            (_kernel(dtype, taps, size, shared_bytes),),
            f"n2 c4 o9 i9x13 k{max(2, taps)} p1 bias=channel {dtype}",
            with_shared_bytes(partial(DirectTiles, sizes=(size,)), shared_bytes),
        )
        for dtype in C_TYPES
        for taps in _TAPS[dtype]
        for size in _THREADS
        for shared_bytes in SHARED_BYTES[1:]
    ),
    *(Variant((kernel,), f"c64 o8 i6x7 k3 p1 bias=channel {dtype}", DirectTiles) for dtype, kernel in _SUMMED.items()),
)
