"""Direct convolution of many channels by the kernels of :mod:`convbench.jit.panel_direct`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.algorithms.axes import Axes, Axis, in_items, in_one_row, is_one_row, spec_axes
from convbench.algorithms.blocking import GroupedBias, ScratchPool, flipped
from convbench.arrays import Namespace
from convbench.jit import panel_direct, pool
from convbench.jit.compile import Kernel
from convbench.jit.memory import address_of, aligned
from convbench.jit.panel import PanelShape, panel_shape
from convbench.jit.panel_direct import Variant
from convbench.jit.target import Target, host_target
from convbench.spec import ConvSpec

__all__ = ["DirectPanels"]

Array = NDArray[Any]

_STRIP_BYTES = 2**18  # a quarter of an L2 cache: the weights of a block want the rest
_WORKSPACE_SHARE = 0.15  # of the operands, for the strips of all threads
_JOBS_A_THREAD = 4  # at least, where there is so much to share out
_STRIDES = ("image", "group", "channel", "depth", "row", "column")
_ADDRESSES = 5  # arguments that change from call to call: the first ones
_TERMS_OF_A_TURN = 20  # summed up in the time that a tile of sums takes to be turned by a quarter and written
_WORTH_A_JOB = 2**17  # multiply–adds below which nothing is split further


@dataclass(frozen=True)
class _Tile:
    """What the sums in registers are of, and so the blocks in which weights are packed.

    Attributes
    ----------
    lanes_are_columns : bool
    shape : PanelShape
    width, height : int
        Pixels along a row, and rows.
    block, blocks : int
        Output channels, and how many blocks of them; the last has fewer, or where lanes are columns it reaches back.
    """

    lanes_are_columns: bool
    shape: PanelShape
    width: int
    height: int
    block: int
    blocks: int

    @staticmethod
    def of(spec: ConvSpec, axes: Axes, target: Target, *, lanes_are_columns: bool) -> _Tile:
        """Return as many sums as there are registers for, cut to the image, with tiles as equal as they can be."""
        outputs, lanes, full = spec.out_channels // spec.groups, target.lanes(spec.dtype), panel_shape(target)
        _, rows, columns = axes
        if lanes_are_columns:
            vectors, blocks = min(full.vectors, -(-columns.outputs // lanes)), -(-outputs // full.items)
            block, width = -(-outputs // blocks), min(columns.outputs, vectors * lanes)
            return _Tile(True, PanelShape(vectors, block), width, 1, block, blocks)
        vectors = min(full.vectors, -(-outputs // lanes))
        width = -(-columns.outputs // -(-columns.outputs // full.items))
        height, block = min(rows.outputs, full.items // width), vectors * lanes
        return _Tile(False, PanelShape(vectors, width * height), width, height, block, -(-outputs // block))

    def overread(self, lanes: int) -> int:
        """Return how many items vectors read beyond the end of a row."""
        return self.shape.vectors * lanes - self.width if self.lanes_are_columns else 0

    def first_outputs(self, outputs: int) -> list[int]:
        """Return where blocks begin; where lanes are columns the last one reaches back."""
        most = outputs - self.block if self.lanes_are_columns else outputs
        return [min(number * self.block, most) for number in range(self.blocks)]

    def packed_outputs(self, outputs: int) -> int:
        """Return how many outputs have packed weights."""
        return self.blocks * self.block if self.lanes_are_columns else outputs

    def tail(self, outputs: int, lanes: int) -> int:
        """Return the vectors of a last block that is not full."""
        return 0 if self.lanes_are_columns else -(-(outputs % self.block) // lanes)


def _lanes_are_columns(spec: ConvSpec, axes: Axes, target: Target) -> bool:
    """Tell whether turning the sums would cost more than the columns and outputs that are computed twice."""
    columns = axes[2]
    if columns.stride > 1 or columns.outputs < target.lanes(spec.dtype) or spec.layout == "channels_last":
        return False
    work = []
    for turned in (True, False):
        tile = _Tile.of(spec, axes, target, lanes_are_columns=turned)
        tiles = -(-columns.outputs // tile.width) * -(-axes[1].outputs // tile.height)
        work.append(tiles * tile.blocks * tile.shape.vectors * tile.shape.items)
    terms = spec.in_channels // spec.groups * prod(spec.kernel_size)
    return terms * (work[0] / work[1] - 1) < _TERMS_OF_A_TURN


@dataclass(frozen=True)
class _Layout:
    """Axes, and how they are cut."""

    axes: Axes
    tile: _Tile
    cut: _Cut

    @property
    def strip_items(self) -> int:
        """One thread's strip, whatever the strides of the input: none where it is always read in place."""
        in_place = _reads_in_place(self.axes) and not self.tile.lanes_are_columns
        return 0 if in_place else self.cut.strip.items

    @staticmethod
    def of(spec: ConvSpec, axes: Axes, target: Target, threads: int, *, lanes_are_columns: bool) -> _Layout:
        """Choose a tile, then bands and spans."""
        tile = _Tile.of(spec, axes, target, lanes_are_columns=lanes_are_columns)
        return _Layout(axes, tile, _cut(spec, axes, tile, tile.overread(target.lanes(spec.dtype)), threads))


def _layouts(spec: ConvSpec, axes: Axes, target: Target, threads: int) -> list[_Layout]:
    """Return the layout of the axes as they are, and that of all positions in one row where that is possible.

    Lanes are not columns where strips, which only unusual arrays need then, would take too much memory.
    """
    row = in_one_row(axes)
    for turned in dict.fromkeys((_lanes_are_columns(spec, row or axes, target), False)):
        layouts = [
            _Layout.of(spec, each, target, threads, lanes_are_columns=turned)
            for each in (axes, row)
            if each is not None
        ]
        most = max(layout.strip_items for layout in layouts)
        if not (turned and row) or most * threads <= _WORKSPACE_SHARE * _operand_items(spec):
            break
    return layouts


def _operand_items(spec: ConvSpec) -> int:
    return prod(spec.input_shape) + prod(spec.output_shape) + prod(spec.weight_shape)


@dataclass(frozen=True)
class _Cut:
    """How the outputs are cut into tiles and jobs.

    Attributes
    ----------
    band, span : int
        Rows and columns of a job.
    bands, spans, parts, part : int
        How many of each; output channels are split into ``parts`` of ``part`` blocks.
    strip : _Strip
    """

    band: int
    span: int
    bands: int
    spans: int
    parts: int
    part: int
    strip: _Strip


@dataclass(frozen=True)
class _Strip:
    """What a job reads, in scratch: all positions beneath it, or where that is less those of each tap, one by one.

    Attributes
    ----------
    positions : sequence of int
        The rows that it holds, from the first one on.
    row_step, tap_rows : int
        Its rows between two rows of outputs, and between two taps.
    segments, segment_step, extent : int
        Of a row: how many, positions between them, and positions in each.
    tap_columns : int
        Items between two taps along the columns.
    planes : int
    overread : int
        Items beyond the last row that vectors read.
    """

    positions: Sequence[int]
    row_step: int
    tap_rows: int
    segments: int
    segment_step: int
    extent: int
    tap_columns: int
    planes: int
    overread: int

    @staticmethod
    def of(axes: Axes, channels: int, overread: int, band: int, span: int) -> _Strip:
        """Return the smallest strip beneath a band and a span."""
        depth, rows, columns = axes
        beneath = (band - 1) * rows.stride + (rows.taps - 1) * rows.dilation + 1
        read: tuple[Sequence[int], int, int] = range(beneath), rows.stride, rows.dilation
        if band * rows.taps < beneath:
            read = [k * rows.dilation + i * rows.stride for k in range(rows.taps) for i in range(band)], 1, band
        extent, reach = (span - 1) * columns.stride + 1, (columns.taps - 1) * columns.dilation
        row = 1, 0, extent + reach, columns.dilation
        if columns.taps * extent < extent + reach:
            row = columns.taps, columns.dilation, extent, extent
        return _Strip(*read, *row, planes=channels * depth.taps, overread=overread)

    @property
    def pitch(self) -> int:
        """Items of a row."""
        return self.segments * self.extent

    @property
    def items(self) -> int:
        """Items of one thread's strip."""
        return self.planes * len(self.positions) * self.pitch + self.overread


def _cut(spec: ConvSpec, axes: Axes, tile: _Tile, overread: int, threads: int) -> _Cut:
    """Choose bands as high as their strip may be, and as low as there have to be jobs for all threads."""
    depth, rows, columns = axes
    channels, width, height = spec.in_channels // spec.groups, tile.width, tile.height
    most = min(_STRIP_BYTES // spec.itemsize, int(_WORKSPACE_SHARE * _operand_items(spec)) // threads)

    def strip(band: int, span: int) -> _Strip:
        return _Strip.of(axes, channels, overread, band, span)

    leads, blocks = max(1, spec.batch) * spec.groups * depth.outputs, tile.blocks
    wanted = min(_JOBS_A_THREAD * threads, max(1, spec.macs // _WORTH_A_JOB)) if threads > 1 else 1
    span = columns.outputs
    while strip(height, span).items > most and span > width:
        span = max(width, -(-span // (2 * width)) * width)
    spans = -(-columns.outputs // span)
    band = rows.outputs
    while band > height and (strip(band, span).items > most or leads * spans * -(-rows.outputs // band) < wanted):
        band = max(height, min(band - 1, -(-band // (2 * height)) * height))
    bands = -(-rows.outputs // band)
    parts = min(blocks, max(1, -(-wanted // (leads * bands * spans))))
    part = -(-blocks // parts)
    return _Cut(band, span, bands, spans, -(-blocks // part), part, strip(band, span))


class DirectPanels:
    """Direct convolution, forward, of 1 to 3 axes: O(MACs) work; workspace: a strip of input for each thread.

    Weights are packed by blocks of output channels: as many numbers as they are.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        self._ns, self._spec, self._threads = ns, spec, threads
        self._target = host_target()
        self._outputs = spec.out_channels // spec.groups
        axes = spec_axes(spec)
        layouts = _layouts(spec, axes, self._target, threads)
        self._split, self._row = layouts[0], layouts[1] if len(layouts) > 1 else None
        self._tile = self._split.tile
        self._no_bias = np.zeros(spec.out_channels, spec.dtype)
        self._strip_items = max(layout.strip_items for layout in layouts)
        self._scratch = ScratchPool(lambda: aligned(self._strip_items * threads, spec.dtype))
        self._calls: dict[Any, tuple[Kernel, tuple[int, ...], int]] = {}
        self._alive: list[Any] = []  # tables that calls hold addresses of
        tables = sum(axis.sources.table.nbytes for layout in layouts for axis in layout.axes)
        self.workspace_bytes = (self._strip_items * threads + spec.out_channels) * spec.itemsize + tables
        self._terms = prod(spec.weight_shape[1:])
        self._packed = self._tile.packed_outputs(self._outputs) * self._terms  # items a group
        self.prepared_bytes = spec.groups * self._packed * spec.itemsize
        self.flops = spec.flops

    def prepare(self, w: Array) -> tuple[Array, None]:
        """Pack the weights: for each group and block of outputs (channel, tap, output)."""
        spec = self._spec
        given = flipped(self._ns, spec, w).reshape(spec.groups, self._outputs, self._terms)
        block, packed = self._tile.block, aligned((spec.groups, self._packed), spec.dtype)
        for number, first in enumerate(self._tile.first_outputs(self._outputs)):
            outputs = given[:, first : first + block]
            place = packed[:, number * block * self._terms :][:, : outputs.shape[1] * self._terms]
            place.reshape(spec.groups, self._terms, -1)[...] = outputs.swapaxes(1, 2)
        return packed, None

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Fill ``out``."""
        fused = bias is not None and self._spec.bias == "channel"
        key = first.strides, out.strides
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = self._made_call(*key)
        kernel, table, jobs = call
        added = np.ascontiguousarray(bias) if fused else self._no_bias
        with self._scratch.borrow() as strips:
            addresses = map(address_of, (first, out, second, added, strips))
            pool.run(kernel, (*addresses, *table), jobs, self._threads)
        if bias is not None and not fused:
            GroupedBias(self._ns, self._spec, bias).add(out)

    def _made_call(self, x_bytes: tuple[int, ...], y_bytes: tuple[int, ...]) -> tuple[Kernel, tuple[int, ...], int]:
        """Return the kernel for arrays of these strides, its arguments after the addresses, and its jobs."""
        spec = self._spec
        x, y = (in_items(strides, spec) for strides in (x_bytes, y_bytes))
        layout = self._split
        if self._row and all(is_one_row(strides, layout.axes) for strides in (x, y)):
            layout = self._row
            x, y = ((*strides[:3], 0, 0, strides[5]) for strides in (x, y))
        axes, tile, cut = layout.axes, layout.tile, layout.cut
        depth, rows, columns = axes
        in_place = _reads_in_place(axes) and not (
            tile.lanes_are_columns and (x[5] != 1 or tile.overread(self._target.lanes(spec.dtype)))
        )
        strip = cut.strip
        if in_place:  # padding may be negative: the first position is not always the first sample
            stride, row_pitch = columns.stride * x[5], rows.stride * x[4]
            first = sum(int(axis.sources.table[0]) * step for axis, step in zip(axes, x[3:], strict=True))
            offsets = np.array([first], np.int64)
        else:
            stride, row_pitch = columns.stride, strip.row_step * strip.pitch
            offsets = _tap_offsets(axes, strip)
        variant = Variant(
            dtype=spec.dtype,
            shape=tile.shape,
            tail=tile.tail(self._outputs, self._target.lanes(spec.dtype)),
            columns=tile.width,
            stride=stride,
            pitch=row_pitch if tile.height > 1 else 0,
            in_place=in_place,
            unit_input=x[5] == 1,
            every=columns.sources.step,
            unit_output=y[5] == 1 and (tile.height == 1 or y[4] == tile.width),
            channels_last=y[2] == 1,
            lanes_are_columns=tile.lanes_are_columns,
        )
        tables = {
            "depths": depth.sources.table, "rows": rows.sources.table, "columns": columns.sources.table,
            "offsets": offsets, "positions": np.array(strip.positions, np.int64),
        }  # fmt: skip
        self._alive.append(tables)
        named = {
            **{f"x_{name}": step for name, step in zip(_STRIDES, x, strict=True)},
            **{f"y_{name}": step for name, step in zip(_STRIDES, y, strict=True)},
            **{name: address_of(table) for name, table in tables.items()},
            "first": columns.sources.first, "last": columns.sources.last, "extent": strip.extent,
            "taps": len(offsets), "channels": spec.in_channels // spec.groups, "outputs": self._outputs,
            "groups": spec.groups, "output_depths": depth.outputs, "output_rows": rows.outputs,
            "output_columns": columns.outputs, "bands": cut.bands, "band": cut.band, "spans": cut.spans,
            "span": cut.span, "blocks": tile.blocks, "parts": cut.parts, "part": cut.part,
            "group_weights": self._packed, "depth_taps": depth.taps, "depth_stride": depth.stride,
            "depth_dilation": depth.dilation, "row_stride": rows.stride, "row_pitch": row_pitch,
            "strip_rows": len(strip.positions), "segments": strip.segments, "segment_step": strip.segment_step,
            "segment_pitch": strip.extent, "pitch": strip.pitch, "strip_items": strip.items,
        }  # fmt: skip
        jobs = spec.batch * spec.groups * depth.outputs * cut.bands * cut.spans * cut.parts
        kernel = panel_direct.kernel(variant, self._target)
        return kernel, tuple(named[name] for name in panel_direct.ARGUMENTS[_ADDRESSES:]), jobs


def _reads_in_place(axes: Sequence[Axis]) -> bool:
    """Samples of several taps, or apart, are better read from a strip, whose channels do not lie pages apart."""
    return all(axis.taps == axis.sources.step == 1 and axis.sources.in_place for axis in axes)


def _tap_offsets(axes: Axes, strip: _Strip) -> NDArray[np.int64]:
    """Return where each tap reads in a strip, from where the first one does."""
    steps = len(strip.positions) * strip.pitch, strip.tap_rows * strip.pitch, strip.tap_columns
    depth, rows, columns = (np.arange(axis.taps) * step for axis, step in zip(axes, steps, strict=True))
    return np.add.outer(np.add.outer(depth, rows), columns).ravel().astype(np.int64)
