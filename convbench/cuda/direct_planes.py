"""Direct convolution with few outputs a group: strips of single planes (``kernels/direct_planes.cu``)."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from math import prod
from typing import Any, NamedTuple

from convbench.arrays import Array, Namespace
from convbench.cuda.forward import C_TYPES, Forward
from convbench.cuda.geometry import blocks, three
from convbench.cuda.kernel import Kernel
from convbench.cuda.tiles import (
    BYTES_PER_CYCLE,
    LANES,
    SHARED_BYTES,
    Halo,
    Tile,
    aligned,
    capacity,
    packed_weights,
    threads_along,
    windows,
)
from convbench.cuda.variants import Variant, with_shared_bytes
from convbench.spec import DTYPES, ConvSpec

__all__ = ["KERNELS", "VARIANTS", "DirectPlanes", "Strip", "strip_and_tile", "suits"]

_THREADS = 128
_MOST_BLOCKS = 2**31 - 1


class Strip(NamedTuple):
    """What one thread computes: rows × slices of outputs, by windows of so many kernel rows."""

    rows: int
    taps: int
    depths: int


_ANY = Strip(8, 1, 1)
_WINDOWS = {taps: Strip(8, taps, 1) for taps in (3, 5, 7)}
_LONG = (Strip(8, 8, 1), Strip(16, 8, 1))
_VOLUMES = {taps: Strip(8, taps, 4) for taps in (3, 5, 7)}
_STRIPS = (_ANY, *_WINDOWS.values(), _LONG[1], _VOLUMES[3])

#: Other dtypes go without what is rarely theirs: every instance takes a second to compile.
_BY_DTYPE = {
    "float32": (*_STRIPS, _LONG[0], _VOLUMES[5], _VOLUMES[7]),
    "float64": _STRIPS,
    "float16": _STRIPS,
}


def _kernel(dtype: str, strip: Strip, shared_bytes: int) -> Kernel:
    arguments = ", ".join(map(str, (C_TYPES[dtype], *strip)))
    return Kernel("direct_planes.cu", f"direct_planes<{arguments}>", (_THREADS, 1, 1), shared_bytes)


#: Every instance that may be launched.
KERNELS = tuple(
    _kernel(dtype, strip, shared_bytes)
    for dtype, strips in _BY_DTYPE.items()
    for strip in strips
    for shared_bytes in SHARED_BYTES
)


def suits(spec: ConvSpec) -> bool:
    """Tell whether the halo of some tile fits."""
    return strip_and_tile(spec) is not None


def _strips(spec: ConvSpec) -> list[Strip]:
    """Return the strips that go with a spec."""
    depth, rows, _ = three(spec.kernel_size, 1)
    if not windows(spec):
        return [_ANY]
    found = [_ANY, _WINDOWS[rows]] if rows in _WINDOWS else [_ANY, *_LONG]
    if depth > 1 and spec.stride[0] == spec.dilation[0] == 1 and rows in _VOLUMES:
        found.append(_VOLUMES[rows])
    return [strip for strip in found if strip in _BY_DTYPE[spec.dtype]]


@lru_cache(maxsize=256)
def strip_and_tile(spec: ConvSpec, only: Strip | None = None) -> tuple[Strip, Tile] | None:
    """Return the strip, by default any, and the tile that need the fewest cycles by count, or None if none fits."""
    best, fewest = None, float("inf")
    total = spec.batch * spec.out_channels
    for strip in [only] if only else _strips(spec):
        for columns, row_groups, planes, _ in threads_along((_THREADS,), (8, 16, 32, 64, 128), (1,)):
            if planes > 1 and planes >= 2 * total:
                continue
            if columns == 8 and row_groups > 1 and strip.rows == 16:  # strips would begin in the same banks
                continue
            tile = _tile(spec, strip, columns, row_groups, planes)
            if capacity(tile.shared_bytes) and _blocks(tile) <= _MOST_BLOCKS:
                cycles = _cycles(tile, strip)
                if cycles < fewest:
                    best, fewest = (strip, tile), cycles
    return best and (best[0], best[1].with_fewest_conflicts())


def _column_weights(spec: ConvSpec, strip: Strip) -> int:
    rows = three(spec.kernel_size, 1)[1]
    return rows if strip.taps == 1 else aligned(rows, 4)


def _slice_weights(spec: ConvSpec, strip: Strip) -> int:
    return aligned(spec.kernel_size[-1] * _column_weights(spec, strip), 4)


def _tile(spec: ConvSpec, strip: Strip, columns: int, row_groups: int, planes: int) -> Tile:
    depth = three(spec.kernel_size, 1)[0]
    staged = _slice_weights(spec, strip) * (1 if strip.depths == 1 else depth)
    if staged // 4 % 2 == 0 and columns < 32:
        staged += 4  # neighbouring filters begin in different banks
    halo = Halo.beneath(spec, row_groups * strip.rows, columns, columns if spec.ndim == 1 else 0)
    steps = spec.in_channels // spec.groups * (depth + strip.depths - 1)
    tile = Tile(
        spec, columns, row_groups, planes, 1, strip.rows, halo,
        depths=strip.depths, weights=staged, weight_items=planes * staged, buffers=min(2, steps),
    )  # fmt: skip
    return tile if capacity(tile.shared_bytes) else replace(tile, buffers=1)


def _blocks(tile: Tile) -> int:
    return tile.positions * blocks(tile.spec.batch * tile.spec.out_channels, tile.planes)


def _cycles(tile: Tile, strip: Strip) -> float:
    spec = tile.spec
    depth, rows, columns = three(spec.kernel_size, 1)
    steps = spec.in_channels // spec.groups * (depth + strip.depths - 1)
    used = strip.depths * depth / (depth + strip.depths - 1)  # slices of outputs that a staged slice serves
    parts = [strip.taps] * (rows // strip.taps) + [part for part in (4, 2, 1) if rows % strip.taps & part]
    loads = sum(strip.rows + part - 1 + used * (part if part < 4 else blocks(part, 4)) for part in parts)
    issued = loads + sum(used * part * strip.rows + 6 for part in parts)
    issue = (columns * issued * tile.threads + tile.staging) / LANES
    banks = columns * loads * tile.threads / 32
    read = tile.planes * tile.halo.rows * tile.halo.columns
    moved = (steps * read + tile.threads * strip.rows * strip.depths) * DTYPES[spec.dtype] / BYTES_PER_CYCLE
    return tile.busiest(_blocks(tile), max(steps * max(issue, banks), moved) + steps * issue / 8)


class DirectPlanes(Forward):
    """Any groups; weights are packed as [group][output][input][kernel depth][column][row], rows filled up to 4."""

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int, strip: Strip | None = None) -> None:
        super().__init__(ns, spec, threads)
        found = strip_and_tile(spec, strip)
        if found is None:
            raise ValueError(f"no tile fits shared memory: {spec}")
        self._strip, tile = found
        limit = capacity(tile.shared_bytes) or 0
        self._kernel = self._loaded(_kernel(spec.dtype, self._strip, limit))
        self._tile, self._grid = tile.struct(), (_blocks(tile), 1, 1)
        outputs, inputs = spec.out_channels // spec.groups, spec.in_channels // spec.groups
        slices = three(spec.kernel_size, 1)[0]
        self._packed = spec.groups, outputs, inputs, slices, _slice_weights(spec, self._strip)
        self.prepared_bytes = prod(self._packed) * DTYPES[spec.accumulate_dtype]

    def prepare(self, w: Array) -> tuple[Array, None]:
        """Return the weights packed, in the dtype that sums are formed in."""
        spec, ns = self._spec, self._ns
        _, rows, columns = three(spec.kernel_size, 1)
        high = _column_weights(spec, self._strip)
        packed = ns.empty(self._packed, spec.accumulate_dtype)
        if high * columns < self._packed[-1] or rows < high:
            packed[...] = 0
        apart = ns.reshape(packed[..., : columns * high], (*self._packed[:-1], columns, high))
        packed_weights(ns, spec, w, apart[..., :rows], (0, 1, 2, 3, 5, 4))
        return packed, None

    def _launch(self, x: Array, weights: Any, bias: Array | None, y: Array, conv: Any) -> None:
        self._kernel(self._grid, (x, weights, bias, y, conv, self._tile))


def _line(dtype: str, strip: Strip) -> str:
    rows = 15 if strip.taps == 8 else max(3, strip.taps)  # 8 + 4 + 2 + 1
    if strip.depths > 1:
        return f"i6x19x18 k3x{rows}x2 p2 bias=channel {dtype}"
    return f"n2 c2 o2 g2 i21x19 k{rows}x2 p2 bias=channel {dtype}"


#: Cases that launch each of them.
VARIANTS = tuple(
    Variant(
        (_kernel(dtype, strip, shared_bytes),),
        _line(dtype, strip),
        with_shared_bytes(partial(DirectPlanes, strip=strip), shared_bytes),
    )
    for dtype, strips in _BY_DTYPE.items()
    for strip in strips
    for shared_bytes in SHARED_BYTES
)
