"""Weight gradients on the GPU, summed directly in two shapes (``kernels/direct_weights.cu``)."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from convbench.arrays import Array, Namespace
from convbench.cuda.forward import C_TYPES, Forward
from convbench.cuda.geometry import blocks, three
from convbench.cuda.kernel import Kernel
from convbench.cuda.tiles import SHARED_BYTES, SMS, Halo, Tile, aligned, capacity, windows
from convbench.cuda.variants import Variant, with_shared_bytes
from convbench.spec import DTYPES, ConvSpec

__all__ = ["KERNELS", "VARIANTS", "WeightGradient", "suits"]

_FILE = "direct_weights.cu"
_WIDE, _DEEP = 64, 16  # weights a side of a block's tile, positions at a time
_FEWEST = 8  # outputs, and twice as many columns, below which most of a tile would be idle
_STRIP, _WARPS = 8, 8
_TAPS = (1, 4, 8)
_MOST_BLOCKS = 2**31 - 1

_TILES = {dtype: Kernel(_FILE, f"weights_of_tiles<{name}>", (128, 1, 1)) for dtype, name in C_TYPES.items()}
_PLANES = {
    (dtype, taps, size): Kernel(_FILE, f"weights_of_planes<{name}, {taps}>", (32 * _WARPS, 1, 1), size)
    for dtype, name in C_TYPES.items()
    for taps in _TAPS
    for size in SHARED_BYTES
}
_SUMMED = {dtype: Kernel(_FILE, f"weights_summed<{name}>", (256, 1, 1)) for dtype, name in C_TYPES.items()}

#: Every instance that may be launched.
KERNELS = (*_TILES.values(), *_PLANES.values(), *_SUMMED.values())


class Work(NamedTuple):
    """How the sum over images and positions is divided.

    Attributes
    ----------
    kernel : Kernel
    blocks : int
    parts : int
        Partial sums of each weight.
    sizes : tuple of int
        The kernel's last arguments.
    tile : Tile, optional
        Of planes.
    """

    kernel: Kernel
    blocks: int
    parts: int
    sizes: tuple[int, ...]
    tile: Tile | None = None


def suits(spec: ConvSpec) -> bool:
    """Tell whether a weight gradient with shared weights is done here."""
    return work_of(spec) is not None


@lru_cache(maxsize=256)
def work_of(spec: ConvSpec) -> Work | None:
    """Return how a weight gradient is computed, or None if it is too large for 32-bit numbers or shared memory."""
    inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    columns = inputs * prod(spec.kernel_size)
    if spec.dtype not in C_TYPES or spec.ndim > 3 or spec.groups * outputs * columns > _MOST_BLOCKS:
        return None
    work = None
    if outputs >= _FEWEST and columns >= 2 * _FEWEST:
        work = _by_tiles(spec, spec.groups * blocks(outputs, _WIDE) * blocks(columns, _WIDE))
    work = work or _by_planes(spec)
    return work if work and work.blocks <= _MOST_BLOCKS else None


def _by_tiles(spec: ConvSpec, tiles: int) -> Work | None:
    """Positions are divided so that there are several blocks for each multiprocessor, of 512 positions or more."""
    positions = spec.batch * prod(spec.output_size)
    if positions > _MOST_BLOCKS:
        return None
    splits = max(1, min(blocks(8 * SMS, tiles), positions // 512))
    each = aligned(max(1, blocks(positions, splits)), _DEEP)
    splits = max(1, blocks(positions, each))
    return Work(_TILES[spec.dtype], tiles * splits, splits, (each,))


def _by_planes(spec: ConvSpec) -> Work | None:
    """Tiles of planes are divided so that there are several blocks for each multiprocessor."""
    depth, rows, columns = three(spec.kernel_size, 1)
    taps = 1 if rows == 1 or not windows(spec) else 4 if rows <= 4 else 8
    chunks = blocks(rows, taps)
    at_once = min(_WARPS, 2 ** ((chunks * columns - 1).bit_length()))
    tile = _tile(spec, at_once, chunks * taps)
    if tile is None:
        return None
    wide, high = tile.counts[:2]
    tiles = blocks(spec.batch, tile.planes) * three(spec.output_size, 1)[0] * high * wide
    filters = spec.out_channels * (spec.in_channels // spec.groups)
    whole = filters * depth * blocks(chunks * columns, at_once)
    splits = max(1, min(blocks(8 * SMS, whole), tiles))
    each = max(1, blocks(tiles, splits))
    splits = max(1, blocks(tiles, each))
    if tiles > _MOST_BLOCKS:
        return None
    kernel = _PLANES[spec.dtype, taps, capacity(tile.shared_bytes) or 0]
    return Work(kernel, whole * splits, splits * tile.row_groups, (tiles, each), tile)


def _tile(spec: ConvSpec, at_once: int, taps: int) -> Tile | None:
    """Return the highest tile that fits, of columns and images that fill a warp."""
    wide = spec.output_size[-1]
    columns = 8 if wide <= 8 else 16 if wide <= 16 else 32
    fold = columns if spec.ndim == 1 else 0
    high = blocks(wide, fold) if fold else three(spec.output_size, 1)[1]
    for rows in (64, 32, 16, 8):
        if rows > 8 and rows >= 2 * high:
            continue
        halo = Halo.beneath(spec, rows, columns, fold, taps=taps)
        tile = Tile(
            spec, columns, _WARPS // at_once, 32 // columns, at_once, rows // (_WARPS // at_once), halo,
            channels=1, buffers=1,
        )  # fmt: skip
        if capacity(tile.shared_bytes):
            return tile
    return None


class WeightGradient(Forward):
    """∂J/∂w of shared weights; ``run(x, g, None, out)``."""

    reads_weights = True

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        super().__init__(ns, spec, threads)
        work = work_of(spec)
        if work is None:
            raise ValueError(f"no tile fits: {spec}")
        self._work = work
        self._kernel, self._sum = self._loaded(work.kernel), self._loaded(_SUMMED[spec.dtype])
        self._weights = prod(spec.weight_shape)
        self._sizes: tuple[Any, ...] = tuple(map(np.int32, work.sizes))
        if work.tile is not None:
            struct = work.tile.struct()
            struct["channels"] = work.tile.row_groups * work.tile.strip  # rows of a tile
            struct["team"] = 32 * _WARPS // work.tile.planes
            self._sizes = (struct, *self._sizes)
        self.workspace_bytes = work.parts * self._weights * DTYPES[spec.accumulate_dtype]

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Write the gradient into ``out``, of shape (G, O/g, C/g, *kernel_size)."""
        if 0 in out.shape:
            return
        conv = self._geometry(first, out, second, None)
        parts = self._ns.empty((self._work.parts * self._weights,), self._spec.accumulate_dtype)
        self._kernel((self._work.blocks, 1, 1), (first, second, parts, conv, *self._sizes))
        self._sum((blocks(self._weights, 256), 1, 1), (parts, out, conv, np.int32(self._work.parts)))

    def _launch(self, x: Array, weights: Any, bias: Array | None, y: Array, conv: Any) -> None:
        raise NotImplementedError("a weight gradient has operands of its own: see run")


_LINES_OF_TAPS = {1: "i9x21 k1x3 p1", 4: "i20x9 k3 p1", 8: "i20x9 k7x2 p3"}

#: Cases that launch each of them.
VARIANTS = (
    *(
        Variant((kernel, _SUMMED[dtype]), f"op=weight_grad n2 c4 o9 i9x13 k3 p1 {dtype}", WeightGradient)
        for dtype, kernel in _TILES.items()
    ),
    *(
        Variant(
            (kernel, _SUMMED[dtype]),
            f"op=weight_grad n2 c2 o2 g2 {_LINES_OF_TAPS[taps]} {dtype}",
            with_shared_bytes(WeightGradient, size),
        )
        for (dtype, taps, size), kernel in _PLANES.items()
    ),
)
