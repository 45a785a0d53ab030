"""The weight gradient by the kernels of :mod:`convbench.jit.panel_weights`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convbench.algorithms.axes import Axes, in_items, in_one_row, is_one_row, spec_axes
from convbench.algorithms.blocking import ScratchPool
from convbench.arrays import Namespace
from convbench.jit import panel_weights, pool
from convbench.jit.compile import Kernel
from convbench.jit.memory import CACHE_LINE, address_of, aligned
from convbench.jit.panel_weights import Variant
from convbench.jit.target import Target, host_target
from convbench.spec import ConvSpec

__all__ = ["PanelWeightGradient"]

Array = NDArray[Any]

_CACHE_BYTES = 3 * 2**18  # of one thread's buffers: three quarters of an L2 cache
_LEAST_BYTES = 2**17  # below which buffers are not counted
_WORKSPACE_SHARE = 0.18  # of the operands, for the buffers of all threads
_MOST_POSITIONS = 1024  # of a block

# What things cost, roughly, in cycles; only their ratios matter.
_STEP = 0.5  # beyond the multiply–adds
_TILE = 60  # to begin and end a loop over positions
_SUM = 0.15  # a number, added to the sums of the blocks before
_COPY = 0.2  # a number of a strip
_COPY_ROW = 15
_TURN = 0.3  # a number of g or of the result
_CALL = 3000  # the second kernel


@dataclass(frozen=True)
class _Way:
    """What planes, items and taps are.

    Attributes
    ----------
    expand, taps : tuple of int
        Of each axis: taps that are planes, and taps that are in a strip; one of both is 1.
    height, width : int
        Planes and neighbouring taps of a tile.
    """

    expand: tuple[int, ...]
    taps: tuple[int, ...]
    height: int
    width: int

    @property
    def chunks(self) -> int:
        """Tiles that share a row of taps: 1 if those of the table are all."""
        return -(-self.taps[2] // self.width) if self.width > 1 else 1

    @property
    def column_taps(self) -> int:
        """Taps of a row that are among the items."""
        return self.taps[2] if self.width > 1 else 1

    @property
    def table(self) -> tuple[int, ...]:
        """Taps of each axis that the sums go over one by one."""
        return (*self.taps[:2], 1 if self.width > 1 else self.taps[2])


def _ways(axes: Axes, channels: int, most: int) -> Iterator[_Way]:
    """Yield the ways to fill tiles of up to ``most`` items, as evenly as can be."""
    taps = axes[0].taps, axes[1].taps, axes[2].taps
    for expanded in range(4):  # none, those of the depth, of rows too, or all; an axis of one tap changes nothing
        if expanded == 0 or taps[expanded - 1] > 1:
            expand = (*taps[:expanded], *(1,) * (3 - expanded))
            inside = (*(1,) * expanded, *taps[expanded:])
            row = inside[2]
            for width in {1, _even(row, most)}:
                height = _even(channels * prod(expand), most // width)
                yield _Way(expand, inside, height, width)


def _even(count: int, most: int) -> int:
    """Return the size of parts, as few as can be of up to ``most``, and as small as so few can be."""
    return -(-count // -(-count // most))


@dataclass(frozen=True)
class _Cut:
    """How positions are cut into blocks, and weights and blocks into jobs.

    Attributes
    ----------
    plane, strip_rows, pitch, row_step : int
        Of a strip.
    leads, band, span : int
        Of a block: images' slices, rows and columns; several rows only if they are whole, several slices only if
        all rows are there, so that the last block has the first positions of a whole one.
    blocks : tuple of int
        Along leads, rows and columns.
    part_outputs, part_planes, part_blocks : int
        Of a job.
    parts : tuple of int
        Of outputs, planes and blocks.
    """

    way: _Way
    plane: int
    strip_rows: int
    pitch: int
    row_step: int
    leads: int
    band: int
    span: int
    blocks: tuple[int, int, int]
    part_outputs: int = 0
    part_planes: int = 0
    part_blocks: int = 0
    parts: tuple[int, int, int] = (1, 1, 1)

    @property
    def positions(self) -> int:
        """Of a block."""
        return self.leads * self.band * self.span


def _cuts(way: _Way, axes: Axes, leads: int) -> Iterator[_Cut]:
    """Yield blocks of positions whose strips fill planes of a few sizes."""
    _, rows, columns = axes
    row_halo, column_halo = ((k - 1) * a.dilation + 1 for k, a in zip(way.taps[1:], axes[1:], strict=True))
    row_step = rows.stride if way.taps[1] == 1 else 1

    def strip(band: int, span: int) -> tuple[int, int, int]:
        strip_rows = (band - 1) * (rows.stride // row_step) + row_halo
        pitch = (span - 1) * columns.stride + column_halo
        return strip_rows, pitch, way.taps[0] * strip_rows * pitch

    size, found = 64, 0
    while found < 4:
        plane, size = size + 16, 2 * size  # powers of 2 themselves would meet in few sets of the cache
        whole = rows.outputs, columns.outputs
        if strip(*whole)[2] <= plane:
            count = min(plane // strip(*whole)[2], leads, max(1, _MOST_POSITIONS // prod(whole)))
            lead, band, span = _even(leads, count), *whole
        elif strip(1, columns.outputs)[2] <= plane and columns.outputs <= _MOST_POSITIONS:
            room = plane // (way.taps[0] * strip(1, columns.outputs)[1]) - row_halo
            highest = 1 + room // (rows.stride // row_step)
            most = min(highest, rows.outputs, max(1, _MOST_POSITIONS // columns.outputs))
            lead, band, span = 1, _even(rows.outputs, most), columns.outputs
        else:
            room = plane // (way.taps[0] * row_halo) - column_halo
            if room < 0:
                continue
            most = min(_MOST_POSITIONS, room // columns.stride + 1, columns.outputs)
            lead, band, span = 1, 1, _even(columns.outputs, most)
        strip_rows, pitch, _ = strip(band, span)
        blocks = -(-leads // lead), -(-rows.outputs // band), -(-columns.outputs // span)
        yield _Cut(way, plane, strip_rows, pitch, row_step, lead, band, span, blocks)
        found += 1
        if blocks == (1, 1, 1):
            return


class _Planner:
    """Chooses by predicted cycles, among what the workspace allows."""

    def __init__(self, spec: ConvSpec, axes: Axes, lanes: int, registers: int, threads: int) -> None:
        self.axes, self.threads, self.groups, self.lanes = axes, threads, spec.groups, lanes
        self.channels, self.outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        self.leads = max(1, spec.batch) * axes[0].outputs
        self.vectors = min(2, -(-self.outputs // lanes))
        self.most_items = (registers - 4) // self.vectors
        self.block = self.vectors * lanes
        self.tail = -(-(self.outputs % self.block) // lanes)
        self.taps = prod(axis.taps for axis in axes)
        self.itemsize = spec.itemsize
        operands = prod(spec.input_shape) + prod(spec.output_shape) + prod(spec.weight_shape)
        room = int(_WORKSPACE_SHARE * operands * spec.itemsize) // threads
        self.most_bytes = max(_LEAST_BYTES, min(_CACHE_BYTES, room))

    def best(self) -> _Cut:
        """Return the cut of least cost, or of least memory if all need too much."""
        return min(self._all(), key=self._rank)

    def _all(self) -> Iterator[_Cut]:
        for way in _ways(self.axes, self.channels, self.most_items):
            for cut in _cuts(way, self.axes, self.leads):
                planes = self.channels * prod(way.expand)
                yield self._divided(self._with_parts(cut, -(-self.outputs // self.block) * self.block, planes, 1))

    def _divided(self, cut: _Cut) -> _Cut:
        """Halve parts of the one or the other kind as long as that makes it better."""
        while True:
            outputs, planes, shares = cut.part_outputs, cut.part_planes, cut.parts[2]
            half_outputs = -(-outputs // (2 * self.block)) * self.block
            half_planes = -(-planes // (2 * cut.way.height)) * cut.way.height
            options = [
                self._with_parts(cut, half_outputs, planes, shares),
                self._with_parts(cut, outputs, min(planes, half_planes), shares),
            ]
            if self.threads > 1:
                options.append(self._with_parts(cut, outputs, planes, 2 * shares))
            best = min(options, key=self._rank)
            if self._rank(best) >= self._rank(cut):
                return cut
            cut = best

    def _rank(self, cut: _Cut) -> tuple[int, float]:
        return max(0, self.thread_bytes(cut) - self.most_bytes), self.cost(cut)

    def _with_parts(self, cut: _Cut, outputs: int, planes: int, shares: int) -> _Cut:
        count, all_planes = prod(cut.blocks), self.channels * prod(cut.way.expand)
        blocks = -(-count // shares)
        parts = -(-self.outputs // outputs), -(-all_planes // planes), -(-count // blocks)
        return replace(cut, part_outputs=outputs, part_planes=planes, part_blocks=blocks, parts=parts)

    def jobs(self, cut: _Cut) -> int:
        """Return how many jobs there are."""
        return self.groups * prod(cut.parts)

    def slice_items(self, cut: _Cut) -> int:
        """Return the numbers that a tile sums."""
        return cut.way.height * cut.way.width * prod(cut.way.table) * self.block

    def sums_items(self, cut: _Cut) -> int:
        """Return the numbers that a job sums; written at once if there is but one block, they need no room."""
        if cut.part_blocks == 1 and cut.parts[2] == 1:
            return self.slice_items(cut)
        tiles = -(-cut.part_planes // cut.way.height) * cut.way.chunks * (-(-cut.part_outputs // self.block))
        return tiles * self.slice_items(cut)

    def g_items(self, cut: _Cut) -> int:
        """Return the numbers of g that a job packs, with room for a square that reaches beyond."""
        blocks = -(-min(cut.part_outputs, self.outputs) // self.block)
        return (blocks * cut.positions + self.lanes) * self.block

    def planes_items(self, cut: _Cut) -> int:
        """Return the numbers of a job's strips."""
        return cut.part_planes * cut.plane

    def sums_count(self, cut: _Cut) -> int:
        """Return how many jobs or threads have sums of their own."""
        return self.jobs(cut) if cut.parts[2] > 1 else min(self.threads, self.jobs(cut))

    def thread_bytes(self, cut: _Cut) -> int:
        """Return the memory that a thread needs, when there are jobs for all."""
        sums = self.sums_items(cut) * max(1, self.sums_count(cut) // self.threads)
        return self.itemsize * (self.planes_items(cut) + self.g_items(cut) + sums)

    def cost(self, cut: _Cut) -> float:
        """Return the cycles of a thread."""
        way, (output_parts, plane_parts, block_parts) = cut.way, cut.parts
        items, table, positions = way.height * way.width, prod(way.table), self.leads * self._area()
        tiles = plane_parts * -(-cut.part_planes // way.height) * way.chunks
        whole = self.outputs // self.block
        vectors = [self.vectors] * whole + [self.tail] * (self.tail > 0)
        steps = sum(max(items * v, items + v + 1, 8) / 2 + _STEP for v in set(vectors) for _ in range(vectors.count(v)))
        blocks, outputs = prod(cut.blocks), len(vectors) * self.block
        work = tiles * table * (positions * steps + blocks * len(vectors) * _TILE)
        work += blocks * tiles * len(vectors) * self.slice_items(cut) * _SUM
        rows = way.taps[0] * cut.strip_rows * cut.leads
        copied = plane_parts * cut.part_planes * rows * (cut.pitch * _COPY + _COPY_ROW)
        work += blocks * output_parts * copied
        work += positions * plane_parts * outputs * _TURN
        work += self.outputs * self.channels * self.taps * _TURN
        if block_parts > 1:
            work += _CALL + block_parts * self.outputs * self.channels * self.taps * _SUM
        jobs = self.jobs(cut)
        return work * self.groups / jobs * ceil(jobs / self.threads)

    def _area(self) -> int:
        return self.axes[1].outputs * self.axes[2].outputs


@dataclass(frozen=True)
class _Layout:
    """Axes, how what is to be done is cut along them, and the memory that needs, in numbers."""

    axes: Axes
    planner: _Planner
    cut: _Cut
    thread_items: int
    sums_items: int

    @staticmethod
    def of(spec: ConvSpec, axes: Axes, target: Target, threads: int) -> _Layout:
        """Return the layout of least predicted time."""
        planner = _Planner(spec, axes, target.lanes(spec.dtype), target.registers, threads)
        cut, line = planner.best(), CACHE_LINE // spec.itemsize
        operands = -(-(planner.planes_items(cut) + planner.g_items(cut)) // line) * line
        beyond = planner.lanes * planner.block  # that squares reach
        return _Layout(axes, planner, cut, operands, planner.sums_count(cut) * planner.sums_items(cut) + beyond)

    @property
    def jobs(self) -> int:
        """How many there are."""
        return self.planner.jobs(self.cut)

    @property
    def operands_items(self) -> int:
        """What all threads copy."""
        return min(self.planner.threads, self.jobs) * self.thread_items


class _Call(NamedTuple):
    """What is done for arrays of certain strides; ``adding`` is a second kernel, for fewer jobs."""

    kernel: Kernel
    jobs: int
    arguments: tuple[int, ...]
    sums: int  # their first byte in the buffer
    adding: Kernel | None
    adding_jobs: int


class PanelWeightGradient:
    """The gradient of shared weights, of 1 to 3 axes: O(MACs) work.

    Workspace, a thread: strips of input and g of a block of positions, and sums of some weights.
    """

    prepared_bytes = 0

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        self._spec, self._threads = spec, threads
        self._target = host_target()
        self._calls: dict[Any, _Call] = {}
        self._alive: list[Any] = []  # tables that calls hold addresses of
        self._layouts: list[_Layout] = []
        self.flops, self.workspace_bytes = spec.flops, 0
        if 0 in (*spec.input_shape, *spec.output_shape, *spec.weight_shape):
            return
        axes = spec_axes(spec)
        self._layouts = [
            _Layout.of(spec, either, self._target, threads) for either in (axes, in_one_row(axes)) if either
        ]
        size = max(layout.operands_items + layout.sums_items for layout in self._layouts)
        self._scratch = ScratchPool(lambda: aligned(size, spec.dtype))
        self.workspace_bytes = size * spec.itemsize + CACHE_LINE

    @property
    def cut(self) -> _Cut:
        """How arrays of any strides are cut."""
        return self._layouts[0].cut

    def prepare(self, w: Array) -> tuple[Any, int | None]:
        """Weights are the result: there is nothing to prepare."""
        raise TypeError("a weight gradient takes no weights")

    def run(self, first: Array, second: Array, bias: Array | None, out: Array) -> None:
        """Fill ``out``."""
        if not self._layouts:
            out[...] = 0
            return
        key = first.strides, second.strides, out.strides
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = self._made_call(*key)
        with self._scratch.borrow() as scratch:
            start = address_of(scratch)
            addresses = address_of(first), address_of(second), address_of(out), start, start + call.sums
            pool.run(call.kernel, (*addresses, *call.arguments), call.jobs, self._threads)
            if call.adding is not None:
                pool.run(call.adding, (*addresses, *call.arguments), call.adding_jobs, self._threads)

    def _made_call(self, *strides: tuple[int, ...]) -> _Call:
        x, g, out = (in_items(one, self._spec) for one in strides)
        places = self._places(out)
        layout = self._layouts[0]
        if len(self._layouts) > 1 and all(is_one_row(one, layout.axes) for one in (x, g)):
            layout = self._layouts[1]
            x, g = ((*one[:3], 0, 0, one[5]) for one in (x, g))
        cut, planner, by_job = layout.cut, layout.planner, layout.cut.parts[2] > 1
        variant = Variant(
            dtype=self._spec.dtype,
            vectors=planner.vectors,
            tail=planner.tail,
            height=cut.way.height,
            width=cut.way.width,
            plane=cut.plane,
            step=layout.axes[2].dilation if cut.way.width > 1 else 1,
            every=layout.axes[2].sources.step,
            unit_input=x[5] == 1,
            g_order="columns" if g[5] == 1 else "channels" if g[2] == 1 else "",
            unit_output=bool(np.array_equal(places, np.arange(len(places)))),
        )
        return _Call(
            panel_weights.kernel(variant, self._target),
            layout.jobs,
            (*x, *g, *out[:2], address_of(places), *self._table(layout, g)),
            layout.operands_items * self._spec.itemsize,
            panel_weights.kernel(variant, self._target, adds=True) if by_job else None,
            layout.jobs // cut.parts[2],
        )

    def _places(self, out: tuple[int, ...]) -> NDArray[np.int64]:
        """Return where each (channel, tap) of an output is written."""
        spec = self._spec
        taps = (1,) * (3 - spec.ndim) + spec.kernel_size
        places = _grid((spec.in_channels // spec.groups, out[2]), *zip(taps, out[3:], strict=True))
        if spec.flip:
            places = np.ascontiguousarray(places.reshape(-1, prod(taps))[:, ::-1].ravel())
        self._alive.append(places)
        return places

    def _table(self, layout: _Layout, g: tuple[int, ...]) -> tuple[int, ...]:
        """Return the kernels' arguments from the tables of sources on."""
        cut, planner, way = layout.cut, layout.planner, layout.cut.way
        depth, rows, columns = layout.axes
        plane = cut.strip_rows * cut.pitch
        positions = _grid(
            (cut.leads, way.taps[0] * plane),
            (cut.band, rows.stride // cut.row_step * cut.pitch),
            (cut.span, columns.stride),
        )
        steps = plane, rows.dilation * cut.pitch, columns.dilation
        offsets = _grid(*zip(way.table, steps, strict=True))
        tables = depth.sources.table, rows.sources.table, columns.sources.table, positions, offsets
        self._alive.append(tables)
        by_job = cut.parts[2] > 1
        halos = ((k - 1) * axis.dilation + 1 for k, axis in zip(way.taps[1:], (rows, columns), strict=True))
        return (
            *map(address_of, tables[:3]), columns.sources.first, columns.sources.last,
            *map(address_of, tables[3:]), len(offsets),
            self._spec.groups, planner.outputs, planner.channels * prod(way.expand), planner.leads,
            depth.outputs, rows.outputs, columns.outputs,
            cut.parts[2], cut.part_blocks, prod(cut.blocks),
            cut.parts[0], cut.part_outputs, cut.parts[1], cut.part_planes,
            cut.leads, cut.blocks[1], cut.band, cut.blocks[2], cut.span, cut.positions,
            int(rows.outputs == 1 or (cut.span == columns.outputs and g[4] == columns.outputs * g[5])),
            *way.expand, way.taps[0], *halos,
            depth.stride, rows.stride, columns.stride, depth.dilation, rows.dilation, columns.dilation,
            cut.row_step, cut.strip_rows, cut.pitch, way.column_taps, way.chunks,
            layout.thread_items, planner.planes_items(cut), planner.sums_items(cut), int(by_job),
            planner.slice_items(cut) if by_job or cut.part_blocks > 1 else 0,
        )  # fmt: skip


def _grid(*axes: tuple[int, int]) -> NDArray[np.int64]:
    """Return the sums of multiples: of each axis (count, stride), the last one fastest."""
    total = np.zeros(1, np.int64)
    for count, stride in axes:
        total = np.add.outer(total, np.arange(count, dtype=np.int64) * stride).ravel()
    return total
