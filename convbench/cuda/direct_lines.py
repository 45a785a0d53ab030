"""Direct convolution of signals with few outputs a group: strips of one line (``kernels/direct_lines.cu``)."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

from convbench.arrays import Array, Namespace
from convbench.cuda.forward import C_TYPES, Forward
from convbench.cuda.geometry import blocks
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
)
from convbench.cuda.variants import Variant, with_shared_bytes
from convbench.spec import DTYPES, ConvSpec

__all__ = ["KERNELS", "VARIANTS", "DirectLines", "suits", "tile_of"]

_THREADS = 128
_MOST_TAPS = 1024  # staged at a time
_MOST_BLOCKS = 2**31 - 1


def _kernel(dtype: str, shared_bytes: int) -> Kernel:
    return Kernel("direct_lines.cu", f"direct_lines<{C_TYPES[dtype]}>", (_THREADS, 1, 1), shared_bytes)


#: Every instance that may be launched.
KERNELS = tuple(_kernel(dtype, shared_bytes) for dtype in C_TYPES for shared_bytes in SHARED_BYTES)


def suits(spec: ConvSpec) -> bool:
    """Tell whether it is one axis without stride and dilation."""
    return spec.ndim == 1 and spec.stride == spec.dilation == (1,) and tile_of(spec) is not None


def _strip(spec: ConvSpec) -> int:
    """Return the outputs of one thread."""
    return 64 // DTYPES[spec.accumulate_dtype]


@lru_cache(maxsize=256)
def tile_of(spec: ConvSpec) -> Tile | None:
    """Return the tile that needs the fewest cycles by count, or None if none fits."""
    best, fewest = None, float("inf")
    for columns, row_groups, planes, _ in threads_along((_THREADS,), (8, 16, 32, 64, 128), (1,)):
        if row_groups > 1 or (planes > 1 and planes >= 2 * spec.batch * spec.out_channels):
            continue
        tile = _tile(spec, columns, planes)
        if capacity(tile.shared_bytes) and _blocks(tile) <= _MOST_BLOCKS:
            cycles = _cycles(tile)
            if cycles < fewest:
                best, fewest = tile, cycles
    return best


def _tile(spec: ConvSpec, columns: int, planes: int) -> Tile:
    strip, (kernel,) = _strip(spec), spec.kernel_size
    taps = min(aligned(kernel, strip), _MOST_TAPS)
    width = columns * strip + taps - 1
    phase = blocks(width, strip)
    phase += (2 - phase) % 4  # neighbours, and the next 16, are written to different banks
    plane = strip * phase
    plane += (columns - plane) % 32 if columns < 32 else 0  # so are the planes that a warp reads
    halo = Halo(rows=1, columns=width, phase=phase, pitch=0, plane=plane, row_step=0, tap_step=taps)
    steps = spec.in_channels // spec.groups * blocks(kernel, taps)
    weights = taps + 4 if columns < 32 else taps
    return Tile(
        spec, columns, 1, planes, 1, strip, halo, weights=weights, weight_items=planes * weights, buffers=min(2, steps)
    )


def _blocks(tile: Tile) -> int:
    spec = tile.spec
    return blocks(spec.output_size[0], tile.columns * tile.strip) * blocks(spec.batch * spec.out_channels, tile.planes)


def _cycles(tile: Tile) -> float:
    spec, strip, (kernel,) = tile.spec, tile.strip, tile.spec.kernel_size
    whole, rest = divmod(kernel, strip)
    issued = whole * (strip * strip + 2 * strip + strip // 4 + 6) + rest * (4 * strip + 2)
    steps = spec.in_channels // spec.groups
    issue = (issued * tile.threads + tile.staging) / LANES
    moved = tile.planes * (steps * tile.halo.columns + tile.columns * strip) * DTYPES[spec.dtype] / BYTES_PER_CYCLE
    return tile.busiest(_blocks(tile), max(steps * issue, moved))


class DirectLines(Forward):
    """Any groups; weights are packed as [group][output][input][tap], filled up to whole windows."""

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        super().__init__(ns, spec, threads)
        tile = tile_of(spec)
        if tile is None:
            raise ValueError(f"no tile fits shared memory: {spec}")
        self._kernel = self._loaded(_kernel(spec.dtype, capacity(tile.shared_bytes) or 0))
        self._tile, self._grid = tile.struct(), (_blocks(tile), 1, 1)
        self._tile["blocks"][0, 1] = blocks(spec.output_size[0], tile.columns * tile.strip)
        outputs, inputs = spec.out_channels // spec.groups, spec.in_channels // spec.groups
        self._packed = spec.groups, outputs, inputs, aligned(spec.kernel_size[0], tile.strip)
        self.prepared_bytes = prod(self._packed) * DTYPES[spec.accumulate_dtype]

    def prepare(self, w: Array) -> tuple[Array, None]:
        """Return the weights packed, in the dtype that sums are formed in."""
        spec, ns = self._spec, self._ns
        packed, (kernel,) = ns.empty(self._packed, spec.accumulate_dtype), spec.kernel_size
        if kernel < self._packed[-1]:
            packed[..., kernel:] = 0
        target = ns.reshape(packed, (*self._packed[:-1], 1, 1, self._packed[-1]))[..., :kernel]
        packed_weights(ns, spec, w, target, (0, 1, 2, 3, 4, 5))
        return packed, None

    def _launch(self, x: Array, weights: Any, bias: Array | None, y: Array, conv: Any) -> None:
        self._kernel(self._grid, (x, weights, bias, y, conv, self._tile))


#: Cases that launch each of them.
VARIANTS = tuple(
    Variant(
        (_kernel(dtype, shared_bytes),),
        f"n70 c2 o2 g2 i60 k9 p4 bias=channel {dtype}",
        with_shared_bytes(DirectLines, shared_bytes),
    )
    for dtype in C_TYPES
    for shared_bytes in SHARED_BYTES
)
