"""How the fused Winograd kernel cuts its work: outputs of a tile, tiles of a block, and who does what.

Everything is decided by predicted time. The figures were measured on one Zen 5 core with AVX-512 and float32; only
their ratios matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import log10, prod

from convbench.algorithms.tiling import Tiling
from convbench.algorithms.winograd import MOST_AMPLIFICATION, MOST_TAPS, amplification
from convbench.refusals import refuse
from convbench.spec import ConvSpec

__all__ = ["Cut", "choose_tiling", "cut_of", "growth", "stacked", "stacks", "three", "why_not_fused"]

_MAC_NS = 0.0097  # a multiply–add of a product, in registers
_PANEL_STEPS = 3  # that starting and storing a panel takes
_SAMPLE_NS, _PRODUCT_NS = 0.18, 0.10  # a value transformed, a product transformed back
_L2_BYTES = 5 * 2**17  # of transformed weights, or of a block's values: more comes from the L3 cache
_AGAIN_NS = 0.004  # a byte of transformed weights, for each block
_L3_NS, _L3_BYTES = 0.02, 24 * 2**20  # the same, if the first panel of tiles takes less; more comes from memory
_MEMORY_NS = 0.03
_REREAD_NS = 0.01  # a byte of values, for each panel
_RUN_NS = 18  # to begin a row of samples or outputs of one channel
_CALL_NS = 10_000  # to begin and end work on threads
_VALUES_BYTES = 2**22  # of blocks whose values exist at once
_FINE_PARTS = 16  # of an axis: all numbers of parts up to that are tried
_DIGIT_WORTH = 1.2  # times the time, for errors a tenth as large


def three(values: Sequence[int], missing: int = 1) -> tuple[int, int, int]:
    """Return the values of depth, rows and columns, of which the first may be missing."""
    depth, row, column = (*(missing,) * (3 - len(values)), *values)
    return depth, row, column


def stacked(spec: ConvSpec, sizes: Sequence[int]) -> tuple[int, int, int]:
    """Return sizes along three axes: images that have but one or two lie one behind the other along the depth."""
    depth, row, column = three(sizes)
    return (depth if spec.ndim == 3 else spec.batch), row, column


def stacks(spec: ConvSpec) -> int:
    """Return how many such bodies there are: groups are apart."""
    return spec.groups * (spec.batch if spec.ndim == 3 else 1)


@dataclass(frozen=True)
class Cut:
    """How tiles are cut into blocks and jobs.

    Attributes
    ----------
    tiles, block : tuple of 3 int
        Tiles along each axis, and of a block.
    items : int
        Tiles that are multiplied at once.
    together : int
        0: a job does everything for its block. Else the values of so many blocks are made first, by all threads, and
        then multiplied, panel by panel of the outputs.
    """

    tiles: tuple[int, int, int]
    block: tuple[int, int, int]
    items: int
    together: int = 0

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Blocks along each axis."""
        return three([-(-n // b) for n, b in zip(self.tiles, self.block, strict=True)])

    @property
    def slots(self) -> int:
        """Tiles that a block has room for: whole panels."""
        return -(-prod(self.block) // self.items) * self.items


@dataclass(frozen=True)
class _Work:
    """What there is to do for the tiles of one image and group: sizes, and predicted times."""

    terms: int
    channels: int  # the same in whole vectors
    outputs: int  # in whole panels
    panels: int
    frequencies: int
    rows_read: int  # for a row of tiles
    rows_written: int
    itemsize: int

    @property
    def weight_bytes(self) -> int:
        return self.frequencies * self.terms * self.outputs * self.itemsize

    def value_bytes(self, slots: int) -> int:
        return self.frequencies * self.channels * slots * self.itemsize

    def transform_ns(self, tiles: int, runs: int) -> float:
        """Samples to values."""
        return self.channels * (tiles * self.frequencies * _SAMPLE_NS * self.itemsize / 4 + runs * _RUN_NS)

    def panels_ns(self, tiles: int, cut: Cut, runs: int) -> float:
        """All products of a block, and their transforms back."""
        slots = cut.slots
        wide, (weights, values) = self.itemsize / 4, (self.weight_bytes, self.value_bytes(slots))
        products = slots * self.frequencies * (self.terms + _PANEL_STEPS) * self.outputs * _MAC_NS * wide
        streaming = 0.0
        if weights > _L2_BYTES:
            first = products * cut.items / slots
            byte_ns = _L3_NS if weights <= _L3_BYTES else _MEMORY_NS
            streaming = weights * _AGAIN_NS + max(0.0, weights * byte_ns - first)
        reading = values * self.panels * _REREAD_NS if values > _L2_BYTES else 0.0
        back = self.outputs * (tiles * self.frequencies * _PRODUCT_NS * wide + runs * _RUN_NS)
        return products + streaming + reading + back

    def time_ns(self, cut: Cut, images: int, threads: int) -> float:
        """All blocks of all images."""
        tiles, blocks = prod(cut.block), images * prod(cut.blocks)
        rows = prod(cut.block[:2])
        transforms = self.transform_ns(tiles, rows * self.rows_read)
        panels = self.panels_ns(tiles, cut, rows * self.rows_written)
        if not cut.together:
            return -(-blocks // threads) * (transforms + panels)
        calls = 2 * -(-blocks // cut.together)
        jobs = -(-blocks * self.panels // threads)
        return calls * _CALL_NS + blocks * transforms / threads + jobs * panels / self.panels


@cache
def cut_of(
    spec: ConvSpec, outputs: tuple[int, ...], threads: int, lanes: int, vectors: int, items: int
) -> tuple[Cut, float]:
    """Return the blocks that should take the least time on so many threads, and that time in nanoseconds.

    Parameters
    ----------
    outputs : tuple of int
        Of a tile, along each of the spec's axes.
    lanes, vectors, items : int
        Numbers in a vector, and of the largest panel: vectors of outputs, and tiles.
    """
    sizes = [m + r - 1 for m, r in zip(outputs, spec.kernel_size, strict=True)]
    terms, results = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    width = lanes * min(vectors, -(-results // lanes))
    panels, channels = -(-results // width), -(-terms // lanes) * lanes
    rows = prod(sizes[:-1]), prod(outputs[:-1])
    work = _Work(terms, channels, panels * width, panels, prod(sizes), *rows, spec.itemsize)
    tiles = stacked(spec, [-(-p // m) for p, m in zip(spec.output_size, outputs, strict=True)])
    images = stacks(spec)
    cuts: list[Cut] = []
    for block in _block_shapes(tiles):
        cut = Cut(tiles, block, _items(prod(block), items))
        room = _VALUES_BYTES // max(1, work.value_bytes(cut.slots))
        if room or not cuts:  # the first block is the smallest
            cuts.append(cut)
            if threads > 1:
                cuts.append(replace(cut, together=max(1, min(images * prod(cut.blocks), room))))
    return min(((cut, work.time_ns(cut, images, threads)) for cut in cuts), key=lambda pair: pair[1])


def _items(tiles: int, most: int) -> int:
    """Return the size of panels that leaves little room unused; each costs about as much as two tiles more."""
    return min(range(most, most // 2, -1), key=lambda items: -(-tiles // items) * (items + 2))


def _equal_parts(size: int) -> list[int]:
    """Return how large 1, 2, 3, … equal parts are, rounded up: each size once, the smallest first.

    Beyond 16 parts each time a sixteenth more of them, so that long axes have few hundred sizes.

    >>> _equal_parts(10)
    [1, 2, 3, 4, 5, 10]
    """
    parts, sizes = 1, [max(1, size)]
    while sizes[-1] > 1:
        fewest = -(-size // (sizes[-1] - 1))  # that are smaller
        parts = max(fewest, parts + parts // _FINE_PARTS)
        sizes.append(-(-size // parts))
    return sizes[::-1]


def _block_shapes(tiles: tuple[int, int, int]) -> Iterator[tuple[int, int, int]]:
    """Parts of a row of tiles, then rows of a plane, then planes; the smallest first."""
    depths, rows, columns = map(_equal_parts, tiles)
    yield from ((1, 1, column) for column in columns)
    yield from ((1, row, columns[-1]) for row in rows[1:])
    yield from ((depth, rows[-1], columns[-1]) for depth in depths[1:])


# -- tiles ----------------------------------------------------------------------------------------------------


@cache
def choose_tiling(spec: ConvSpec) -> Tiling:
    """Return the tiles that should take the least time, unless a little more gains digits.

    In float32 rounding errors may not be magnified by more than ``MOST_AMPLIFICATION``. The choice is the same on every
    machine, as the error bound depends on it. Of an empty batch they are those of one image.
    """
    spec = spec.replace(batch=max(1, spec.batch))
    choices = product(*map(_choices, spec.kernel_size))
    tiles = [tile for tile in choices if spec.dtype != "float32" or growth(spec, tile) <= MOST_AMPLIFICATION]

    def cost(tile: tuple[int, ...]) -> float:
        _, time_ns = cut_of(spec, tile, 1, 16, 2, 14)
        return time_ns * float(_DIGIT_WORTH ** log10(growth(spec, tile)))

    outputs = min(tiles, key=cost)
    return Tiling(outputs, tuple(m + r - 1 for m, r in zip(outputs, spec.kernel_size, strict=True)))


def _choices(taps: int) -> tuple[int, ...]:
    """Outputs of a tile: one, or those of 4, 6 or 8 samples."""
    return (1, *(t + 1 - taps for t in (4, 6, 8) if t > taps > 1))


def growth(spec: ConvSpec, outputs: Sequence[int]) -> float:
    """Return by how much a tile may magnify rounding errors."""
    axes = zip(outputs, spec.kernel_size, strict=True)
    return prod(amplification(m, r, "float32") for m, r in axes)


def why_not_fused(spec: ConvSpec) -> str | None:
    """Refuse kernels without axes to gain on, and those whose tiles would be too large."""
    given = f"{'x'.join(map(str, spec.kernel_size))} given"
    if max(spec.kernel_size) > MOST_TAPS:
        return refuse("kernel size", f"{given}, at most {MOST_TAPS} taps: larger tiles lose digits")
    if max(spec.kernel_size) == 1:
        return refuse("kernel size", "one tap along every axis: there is nothing to save")
    if max(choose_tiling(spec).outputs) == 1:
        return refuse("kernel size", f"{given}: tiles of several outputs would take longer than single ones")
    return None
