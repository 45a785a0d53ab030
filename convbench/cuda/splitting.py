"""How a product of matrices is cut into the blocks of a grid, and added up again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from convbench.arrays import Array
from convbench.cuda.forward import C_TYPES, MOST_ALONG_Y
from convbench.cuda.geometry import blocks
from convbench.cuda.kernel import Kernel, Launch

__all__ = ["ADD_UP", "MULTIPROCESSORS", "Cut", "Product", "Tile", "add_up", "cheapest"]

#: Of an H100 or H200; an A100 has 108. What it decides is only how many blocks are worth making.
MULTIPROCESSORS = 132

_ADD_UP_THREADS = 256

#: Adds partial sums, by dtype.
ADD_UP = {dtype: Kernel("add_up.cu", f"add_up<{name}>", (_ADD_UP_THREADS, 1, 1)) for dtype, name in C_TYPES.items()}

_MOST_SPLITS = 256
_MOST_PARTIAL_BYTES = 2**28
_LAUNCH_CYCLES = 4000  # of a second kernel: some 2 µs
_BYTES_PER_CYCLE = 2500  # of memory, at 4.3 TB/s and 1.7 GHz
_BLOCK_ROWS = 48  # of k: what it costs to begin and end a block, as multiply–adds are counted


@dataclass(frozen=True)
class Tile:
    """What a block multiplies.

    Attributes
    ----------
    outputs, columns : int
        Of its tile.
    depth : int
        Rows k of a K-tile.
    speed : float
        Multiply–adds a cycle and multiprocessor when its blocks fill it, by the model of the kernel's own comment: what
        tiles are compared by, and nothing that was measured.
    """

    outputs: int
    columns: int
    depth: int
    speed: float


@dataclass(frozen=True)
class Product:
    """Matrices to multiply, a pair for each of ``groups``: (outputs × rows) · (rows × columns)."""

    groups: int
    outputs: int
    columns: int
    rows: int
    partial_bytes: int

    @property
    def items(self) -> int:
        """Sums in all."""
        return self.groups * self.outputs * self.columns


@dataclass(frozen=True)
class Cut:
    """A product cut into blocks.

    Attributes
    ----------
    per_outputs, per_columns : int
        Blocks that cover them.
    tiles, splits : int
        K-tiles in all, and among how many blocks they are shared.
    """

    per_outputs: int
    per_columns: int
    tiles: int
    splits: int

    @staticmethod
    def of(product: Product, tile: Tile, splits: int) -> Cut:
        """Cut a product by a tile."""
        return Cut(
            blocks(product.outputs, tile.outputs),
            blocks(product.columns, tile.columns),
            blocks(product.rows, tile.depth),
            splits,
        )

    def grid(self, groups: int) -> tuple[int, int, int]:
        """Return the grid; see ``struct Block`` in gather.cuh."""
        return self.per_outputs * self.per_columns * groups * self.splits, 1, 1

    def arguments(self, items: int) -> tuple[Any, ...]:
        """Return the last arguments of the kernels: the counts, and the sums of one split."""
        counts = (self.per_outputs, self.per_columns, self.tiles, self.splits)
        return (*map(np.int32, counts), np.int64(items))


def cycles(product: Product, tile: Tile, cut: Cut) -> float:
    """Return what a product takes by counting waves: the busiest multiprocessor's blocks, one after another."""
    waves = blocks(cut.per_outputs * cut.per_columns * product.groups * cut.splits, MULTIPROCESSORS)
    rows = blocks(cut.tiles, cut.splits) * tile.depth + _BLOCK_ROWS
    time = waves * tile.outputs * tile.columns * rows / tile.speed
    if cut.splits > 1:
        time += _LAUNCH_CYCLES + 2 * cut.splits * product.items * product.partial_bytes / _BYTES_PER_CYCLE
    return time


Choice = TypeVar("Choice")


def cheapest(product: Product, choices: Sequence[tuple[Tile, Choice]]) -> tuple[Tile, Choice, Cut]:
    """Return the tile and the number of splits that take the fewest cycles; padding counts as work."""
    best: tuple[float, Tile, Choice, Cut] | None = None
    for tile, choice in choices:
        splits = 1
        while splits <= min(_MOST_SPLITS, max(1, blocks(product.rows, tile.depth))):
            if splits > 1 and splits * product.items * product.partial_bytes > _MOST_PARTIAL_BYTES:
                break
            cut = Cut.of(product, tile, splits)
            time = cycles(product, tile, cut)
            if best is None or time < best[0]:
                best = time, tile, choice, cut
            splits *= 2
    assert best is not None
    return best[1:]


def add_up(launch: Launch, parts: Array, bias: Array | None, y: Array, conv: Any, splits: int) -> None:
    """Launch the kernel that adds partial sums into y (image, group, output, …); ``conv`` describes y."""
    one = conv[0]
    image_items = int(one["groups"]) * int(one["outputs"]) * int(np.prod(one["result"], dtype=np.int64))
    batch = int(one["batch"])
    grid = blocks(image_items, _ADD_UP_THREADS), min(batch, MOST_ALONG_Y), 1
    launch(grid, (parts, bias, y, conv, np.int32(splits), np.int64(batch * image_items)))
