"""How the kernels of direct convolution divide their work: ``struct Tile`` of ``kernels/direct.cuh``, and its choice.

A candidate says how many threads stand along columns, strips of rows, planes and outputs. Candidates are compared by
the cycles that the busiest multiprocessor would need, from counted instructions and bytes: a model to choose by, whose
figures are nowhere reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import numpy as np

from convbench.arrays import Array, Namespace
from convbench.cuda.geometry import blocks, three
from convbench.spec import DTYPES, ConvSpec

__all__ = [
    "BYTES_PER_CYCLE",
    "LANES",
    "SHARED_BYTES",
    "SMS",
    "TILE",
    "WIDEST",
    "Halo",
    "Tile",
    "aligned",
    "capacity",
    "packed_weights",
    "powers_of_two",
    "threads_along",
    "windows",
]

#: Multiprocessors of an H200, and what each does in a cycle: instructions of one lane, bytes of global memory.
SMS, LANES, BYTES_PER_CYCLE = 132, 128, 20

#: Dynamic shared memory that instances are made for. Two blocks of the most find room on an SM of sm_80 and sm_90.
SHARED_BYTES = (24 * 1024, 48 * 1024, 80 * 1024)

_SM_BYTES = 227 * 1024  # shared memory of a multiprocessor, sm_90
_BUSY_WARPS = 16  # that hide each other's waits; what 128 registers a thread leave room for

#: Banks of shared memory that a warp reads at once, in bytes.
WIDEST = 128

#: ``struct Tile``, field by field.
TILE = np.dtype(
    [
        *((name, "i4") for name in ("columns", "row_groups", "planes", "outputs", "channels")),
        ("halo", "i4", 2),
        ("reciprocal", "u4"),
        *((name, "i4") for name in ("phase", "pitch", "plane", "row_step", "tap_step")),
        *((name, "i4") for name in ("fold", "team", "weights", "buffers")),
        ("blocks", "u4", 4),
    ],
    align=True,
)


def powers_of_two(low: int, high: int) -> tuple[int, ...]:
    """Return the powers of two from ``low`` to ``high``.

    >>> powers_of_two(8, 32)
    (8, 16, 32)
    """
    return tuple(2**i for i in range(low.bit_length() - 1, high.bit_length()))


def threads_along(sizes: Iterable[int], columns: Sequence[int], outputs: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the ways to put blocks of these sizes up: threads along columns, row groups, planes and outputs."""
    for threads, column, output in product(sizes, columns, outputs):
        if column * output <= threads:
            rest = threads // (column * output)
            yield from ((column, rows, rest // rows, output) for rows in powers_of_two(1, rest))


def windows(spec: ConvSpec) -> bool:
    """Tell whether samples slide down a kernel column: output rows and kernel rows are as far apart."""
    return spec.ndim > 1 and spec.stride[-2] == spec.dilation[-2]


def aligned(items: int, each: int) -> int:
    """Return the next multiple of ``each``.

    >>> aligned(9, 4)
    12
    """
    return -(-items // each) * each


def capacity(shared_bytes: int) -> int | None:
    """Return the least of :data:`SHARED_BYTES` that holds so much, or None."""
    return next((limit for limit in SHARED_BYTES if shared_bytes <= limit), None)


def packed_weights(ns: Namespace, spec: ConvSpec, w: Array, packed: Array, axes: tuple[int, ...]) -> None:
    """Write (G, O/g, C/g, depth, rows, columns), its axes in another order and flipped as the spec says, to a view."""
    if spec.flip:
        w = ns.xp.flip(w, axis=tuple(range(-spec.ndim, 0)))
    whole = ns.reshape(w, (*w.shape[:3], *three(spec.kernel_size, 1)))
    ns.assign(packed, ns.xp.permute_dims(whole, axes))


@dataclass(frozen=True)
class Halo:
    """The samples beneath a tile, as they lie in shared memory.

    Attributes
    ----------
    rows, columns : int
    phase, pitch, plane : int
        Items from one phase, row, plane to the next.
    row_step, tap_step : int
        Items between the samples of neighbouring output rows, of neighbouring kernel rows.
    """

    rows: int
    columns: int
    phase: int
    pitch: int
    plane: int
    row_step: int
    tap_step: int

    @classmethod
    def beneath(
        cls, spec: ConvSpec, rows: int, columns: int, fold: int, pad: int = 0, plane_pad: int = 0, taps: int = 0
    ) -> Halo:
        """Return the halo of a tile of so many rows and columns, rows being folded ones if ``fold``.

        ``taps``: rows of the kernel, if other than the spec's.
        """
        stride, dilation = three(spec.stride, 1), three(spec.dilation, 1)
        kernel = three(spec.kernel_size, 1)
        high, wide = (1, rows * columns) if fold else (rows, columns)
        height = (high - 1) * stride[1] + ((taps or kernel[1]) - 1) * dilation[1] + 1
        width = (wide - 1) * stride[2] + (kernel[2] - 1) * dilation[2] + 1
        phase = blocks(width, stride[2])
        pitch = phase * min(stride[2], width) + pad
        return cls(
            height,
            width,
            phase,
            pitch,
            height * pitch + plane_pad,
            fold or stride[1] * pitch,
            dilation[1] * pitch,
        )


@dataclass(frozen=True)
class Tile:
    """One way to divide the work among blocks, and a block's among threads.

    Attributes
    ----------
    columns, row_groups, planes, outputs : int
        Threads along each.
    strip : int
        Rows of one thread.
    depths : int
        Slices of one thread.
    channels : int
        Input channels staged at a time.
    weights : int
        See ``struct Tile``.
    weight_items : int
        Weights in shared memory, of one buffer.
    buffers : int
    splits : int
        Blocks that share the input channels of one tile.
    """

    spec: ConvSpec
    columns: int
    row_groups: int
    planes: int
    outputs: int
    strip: int
    halo: Halo
    depths: int = 1
    channels: int = 1
    weights: int = 0
    weight_items: int = 0
    buffers: int = 2
    splits: int = 1

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.columns * self.row_groups * self.planes * self.outputs

    @property
    def fold(self) -> int:
        """Columns of a row that one axis is folded into, so that each thread still has a strip of rows."""
        return self.columns if self.spec.ndim == 1 else 0

    @property
    def counts(self) -> tuple[int, int, int]:
        """Tiles along columns, rows and depth."""
        depth, rows, columns = three(self.spec.output_size, 1)
        if self.fold:
            rows, columns = blocks(columns, self.fold), 1
        return (
            blocks(columns, self.columns),
            blocks(rows, self.row_groups * self.strip),
            blocks(depth, self.depths),
        )

    @property
    def sample_items(self) -> int:
        """Samples in shared memory, of one buffer."""
        return self.planes * self.channels * self.halo.plane

    @property
    def shared_bytes(self) -> int:
        """Shared memory: the tables of rows, columns and taps, and the buffers."""
        halo, item = self.halo, DTYPES[self.spec.accumulate_dtype]
        pieces = (
            8 * halo.rows,
            8 * halo.columns,
            4 * halo.columns,
            4 * (self.channels * self.spec.kernel_size[-1] + 1),
        )
        buffer = sum(aligned(items * item, 16) for items in (self.sample_items, self.weight_items))
        return sum(aligned(piece, 16) for piece in pieces) + self.buffers * buffer

    def with_fewest_conflicts(self) -> Tile:
        """Return the tile with rows and planes set apart so that the lanes of a warp read different banks."""
        if self.columns >= 32:
            return self
        rows, limit = self.row_groups * self.strip, capacity(self.shared_bytes) or 0
        best, fewest = self, self._conflicts()
        for pad, plane_pad in product(range(1 if self.fold else 4), range(32)):
            if fewest == 1:
                break
            halo = Halo.beneath(self.spec, rows, self.columns, self.fold, pad, plane_pad)
            made = replace(self, halo=halo)
            conflicts = made._conflicts()
            if conflicts < fewest and made.shared_bytes <= limit:
                best, fewest = made, conflicts
        return best

    def _conflicts(self) -> int:
        """Return how many different items of one bank the first lanes of a block read at once."""
        banks = WIDEST // DTYPES[self.spec.accumulate_dtype]
        along = [self.columns, self.outputs, self.row_groups, self.planes]
        steps = [1, 0, self.strip * self.halo.row_step, self.channels * self.halo.plane]
        items = set()
        for lane in range(min(banks, self.threads)):
            place = 0
            for count, step in zip(along, steps, strict=True):
                lane, at = divmod(lane, count)
                place += at * step
            items.add(place)
        used = [item % banks for item in items]
        return max(map(used.count, used))

    def struct(self, tile_outputs: int = 1) -> Any:
        """Return ``struct Tile``, an array of size one. ``tile_outputs``: output channels of a block."""
        made = np.zeros(1, TILE)
        one, halo = made[0], self.halo
        for name in ("columns", "row_groups", "planes", "outputs", "channels", "fold", "weights", "buffers"):
            one[name] = getattr(self, name)
        for name in ("phase", "pitch", "plane", "row_step", "tap_step"):
            one[name] = getattr(halo, name)
        one["halo"] = halo.rows, halo.columns
        one["reciprocal"] = blocks(2**32, halo.columns) if halo.columns > 1 else 0
        staged = self.planes * min(self.channels, self.spec.in_channels // self.spec.groups)
        one["team"] = self.threads // min(self.threads // 32, 2 ** (staged.bit_length() - 1))
        one["blocks"] = blocks(self.spec.out_channels // self.spec.groups, tile_outputs), *self.counts
        return made

    def busiest(self, total: int, cycles: float) -> float:
        """Return the cycles of the multiprocessor with most of ``total`` blocks, few warps hiding less of each wait."""
        most, taken = max(1, blocks(total, SMS)), (capacity(self.shared_bytes) or _SM_BYTES) + 1024
        warps = min(min(most, max(1, _SM_BYTES // taken)) * self.threads / 32, _BUSY_WARPS)
        return most * cycles * (warps + 2) / warps

    @property
    def staging(self) -> float:
        """Instructions of single lanes that bring one buffer's samples and weights."""
        per_vector = 16 // DTYPES[self.spec.accumulate_dtype]
        samples = self.planes * self.channels * self.halo.rows * self.halo.columns
        return 10.0 * samples + 10.0 * self.weight_items / per_vector

    @property
    def positions(self) -> int:
        """Tiles of one plane."""
        return prod(self.counts)
