"""The weight gradient: a tile of outputs by channels and taps, all positions of a block summed in registers.

    ∂J/∂w[o, c, tap] = Σ_p g[o, p] · x[c, p · stride + offset[tap]]

The tile is the panel's: lanes are output channels, items are *planes* of input (channels, as a rule) and neighbouring
taps, and a step is a position.

    for each job (part of the blocks, group, part of the output channels, part of the planes):
        for each block of positions (whole images, a band of rows, or a span of one row):
            copy the planes beneath it into strips, padded                  every plane as far from the next
            copy g beneath it by blocks of outputs, turned by a quarter     [position][output]
            for each block of outputs, for each tile of planes, for each tap:
                for each position:                                          one step: 2 × 14 sums in registers
                    sums += g[position, output] · strip[plane, place[position] + offset[tap]]
                add the sums to those of the blocks before
        write the sums, turned by a quarter: [output][channel, tap]

Where positions lie in a strip is a table, so that one loop without nests goes over columns, rows and images: an image
of 7 × 7 is as good as a row of 98. What is read for a tile and a tap again and again, g of one block of outputs (some
50 KiB) and the strips of 14 planes (some 30 KiB), lies in the L2 cache, of whose 32 bytes a cycle a step needs 9 or 13.

A first layer has few channels: its planes are (channel, row of taps), copies of input rows from which all taps of a row
take their items, and there are 2 × 7 of them in a tile of a 7 × 7 kernel. Depths, rows and columns of taps may become
planes each (``expand``); what does not is in the table of taps, or among the items.

If positions are shared out among jobs, each part has sums of its own, and a second kernel adds them up in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from convbench.jit.compile import Kernel, compiled
from convbench.jit.ir import Code, Value
from convbench.jit.memory import CACHE_LINE
from convbench.jit.panel import Panel, PanelShape
from convbench.jit.strips import Columns, fill_row, fill_zeros
from convbench.jit.target import Target

__all__ = ["ARGUMENTS", "Variant", "kernel"]

_AHEAD = 8  # vectors of g that are asked for before they are read

ARGUMENTS = (
    *("x", "g", "out", "scratch", "sums"),  # addresses
    *("x_image", "x_group", "x_channel", "x_depth", "x_row", "x_column"),  # strides in items
    *("g_image", "g_group", "g_output", "g_depth", "g_row", "g_column"),
    *("out_group", "out_output", "out_places"),  # the last: where each (channel, tap) is written
    *("depths", "rows", "columns", "first", "last"),  # tables of sources; columns first … last − 1 read neighbours
    *("positions", "offsets", "taps"),  # tables: where positions and taps lie in a strip
    *("groups", "outputs", "planes", "leads"),  # a lead is an image's slice of output depth
    *("output_depths", "output_rows", "output_columns"),
    *("block_parts", "part_blocks", "blocks"),  # of positions
    *("output_parts", "part_outputs", "plane_parts", "part_planes"),
    *("block_leads", "bands", "band", "spans", "span", "most_positions", "merged"),
    *("expand_depths", "expand_rows", "expand_columns"),  # taps that are planes, at least 1 of each axis
    *("depth_taps", "row_halo", "column_halo"),  # taps in a strip, and what they reach beyond the first
    *("depth_stride", "row_stride", "column_stride"),
    *("depth_dilation", "row_dilation", "column_dilation"),
    *("row_step", "strip_rows", "pitch"),  # of strips: positions between rows, rows, items from row to row
    *("column_taps", "chunks"),  # taps along a row, and the tiles that share them
    *("scratch_items", "g_items", "sums_items", "by_job", "slice_items"),
)


@dataclass(frozen=True)
class Variant:
    """What is built into the machine code.

    Attributes
    ----------
    vectors, tail : int
        Vectors of a full block of outputs, and of the last one, or 0 if it is full.
    height, width : int
        Planes and neighbouring taps of a tile.
    plane : int
        Items from plane to plane of a strip.
    step : int
        Items between neighbouring taps.
    every : int
        The step of the columns' sources.
    unit_input : bool
        Columns are neighbours in x.
    g_order : str
        What are neighbours in g: "columns", "channels", or "" for neither.
    unit_output : bool
        (channel, tap) of one output are neighbours in the result.
    """

    dtype: str
    vectors: int
    tail: int
    height: int
    width: int
    plane: int
    step: int
    every: int = 1
    unit_input: bool = True
    g_order: str = "columns"
    unit_output: bool = True


@cache
def kernel(variant: Variant, target: Target, *, adds: bool = False) -> Kernel:
    """Return the compiled kernel, or the one that adds up what parts of the positions have summed."""
    writer = _Weights(variant, target)
    return compiled(writer.adding_text() if adds else writer.text(), "panel_weights", target)


@dataclass(frozen=True)
class _Part:
    """What a job computes: outputs ``first`` … ``last`` − 1 of a group, and as many planes as a part has."""

    group: Value
    first: Value
    last: Value
    plane: Value


@dataclass(frozen=True)
class _Block:
    """A block of positions: where it begins and how many there are."""

    lead: Value
    row: Value
    column: Value
    leads: Value
    rows: Value
    columns: Value


@dataclass(frozen=True)
class _Tile:
    """Planes and neighbouring taps, from ``plane`` of the part and tap ``column`` on; for all other taps their sums."""

    plane: Value
    column: Value
    sums: Value


class _Weights:
    """Writes one variant."""

    def __init__(self, variant: Variant, target: Target) -> None:
        self.variant = variant
        self.code = Code("panel_weights", target, variant.dtype, ARGUMENTS)
        self.width = variant.vectors * self.code.lanes  # of a full block of outputs

    # -- jobs -------------------------------------------------------------------------------------------------

    def text(self) -> str:
        """Return the kernel that sums the blocks of one part."""
        code, arg = self.code, self.code.integer
        number, part = self._part(code.job)
        scratch = code.at(code.pointer("scratch"), code.mul(code.thread, arg("scratch_items")))
        packed = code.at(scratch, arg("g_items"))
        owner = code.select(code.equal(arg("by_job"), 1), code.job, code.thread)
        sums = code.at(code.pointer("sums"), code.mul(owner, arg("sums_items")))
        start = code.mul(number, arg("part_blocks"))
        stop = code.min(arg("blocks"), code.add(start, arg("part_blocks")))
        writes = code.equal(arg("by_job"), 0)
        with code.loop(start, stop) as index:
            block = self._block(index)
            self._fill_planes(part, block, scratch)
            is_first, is_last = code.equal(index, start), code.equal(code.add(index, 1), stop)

            def outputs(
                first: Value, vectors: int, block: _Block = block, is_first: Value = is_first, is_last: Value = is_last
            ) -> None:
                left = code.sub(arg("outputs"), first)
                g = code.at(packed, code.mul(code.sub(first, part.first), arg("most_positions")))
                self._pack(part, block, first, left, vectors, g)
                with self._tiles(part, first, sums) as tile:
                    self._sum(block, scratch, g, tile, vectors, is_first)
                    with code.when(code.both(writes, is_last)):
                        self._write(part, first, left, tile, vectors)

            self._for_outputs(part, outputs)
        return code.finish()

    def adding_text(self) -> str:
        """Return the kernel that adds up the sums of all parts of the blocks and writes them."""
        code, arg = self.code, self.code.integer
        _, part = self._part(code.job)
        sums = code.at(code.pointer("sums"), code.mul(code.job, arg("sums_items")))
        jobs = code.mul(code.mul(arg("groups"), arg("output_parts")), arg("plane_parts"))
        apart = code.mul(jobs, arg("sums_items"))

        def outputs(first: Value, vectors: int) -> None:
            with self._tiles(part, first, sums) as tile:
                with code.loop(0, arg("slice_items"), code.lanes) as item:
                    total = code.variable(code.load(tile.sums, item))
                    with code.loop(1, arg("block_parts")) as number:
                        other = code.at(tile.sums, code.mul(number, apart))
                        total.set(code.fadd(total.get(), code.load(other, item)))
                    code.store(total.get(), tile.sums, item)
                self._write(part, first, code.sub(arg("outputs"), first), tile, vectors)

        self._for_outputs(part, outputs)
        return code.finish()

    def _part(self, job: Value) -> tuple[Value, _Part]:
        """Return which part of the blocks a job sums, and for which weights."""
        code, arg = self.code, self.code.integer
        rest, planes = code.divmod(job, arg("plane_parts"))
        rest, outputs = code.divmod(rest, arg("output_parts"))
        number, group = code.divmod(rest, arg("groups"))
        first = code.mul(outputs, arg("part_outputs"))
        last = code.min(arg("outputs"), code.add(first, arg("part_outputs")))
        return number, _Part(group, first, last, self._first_of(planes, arg("part_planes"), arg("planes")))

    def _first_of(self, number: Value, size: Value, extent: Value) -> Value:
        """Where a part or tile begins: the last one reaches back rather than beyond the end."""
        code = self.code
        return code.min(code.mul(number, size), code.sub(extent, size))

    def _block(self, index: Value) -> _Block:
        code, arg = self.code, self.code.integer
        rest, span = code.divmod(index, arg("spans"))
        leads, band = code.divmod(rest, arg("bands"))
        lead, row, column = (
            code.mul(number, arg(size)) for number, size in ((leads, "block_leads"), (band, "band"), (span, "span"))
        )
        return _Block(
            lead,
            row,
            column,
            code.min(arg("block_leads"), code.sub(arg("leads"), lead)),
            code.min(arg("band"), code.sub(arg("output_rows"), row)),
            code.min(arg("span"), code.sub(arg("output_columns"), column)),
        )

    def _for_outputs(self, part: _Part, do: Callable[[Value, int], None]) -> None:
        """Call ``do(first, vectors)`` for the blocks of a part's outputs."""
        code, v = self.code, self.variant
        with code.loop(part.first, part.last, self.width) as first:
            if v.tail:
                tail = code.less(code.sub(code.integer("outputs"), first), self.width)
                code.choose(tail, lambda: do(first, v.tail), lambda: do(first, v.vectors))
            else:
                do(first, v.vectors)

    @contextmanager
    def _tiles(self, part: _Part, first: Value, sums: Value) -> Iterator[_Tile]:
        """Go over the tiles of a block of outputs."""
        code, v, arg = self.code, self.variant, self.code.integer
        across = code.div(code.add(arg("part_planes"), v.height - 1), v.height)
        block = code.mul(code.div(code.sub(first, part.first), self.width), code.mul(across, arg("chunks")))
        with code.loop(0, across) as number, code.loop(0, arg("chunks")) as chunk:
            index = code.add(block, code.add(code.mul(number, arg("chunks")), chunk))
            yield _Tile(
                self._first_of(number, v.height, arg("part_planes")),
                self._first_of(chunk, v.width, arg("column_taps")),
                code.at(sums, code.mul(index, arg("slice_items"))),
            )

    def _moved(self, pointer: Value, *moves: tuple[Value, str]) -> Value:
        code = self.code
        for count, stride in moves:
            pointer = code.at(pointer, code.mul(count, code.integer(stride)))
        return pointer

    # -- operands ---------------------------------------------------------------------------------------------

    def _fill_planes(self, part: _Part, block: _Block, planes: Value) -> None:
        """Copy what lies beneath a block: (plane, lead, tap along the depth, row, column)."""
        code, v, arg = self.code, self.variant, self.code.integer
        x = self._moved(code.pointer("x"), (part.group, "x_group"))
        rows = code.add(
            code.mul(code.sub(block.rows, 1), code.div(arg("row_stride"), arg("row_step"))), arg("row_halo")
        )
        extent = code.add(code.mul(code.sub(block.columns, 1), arg("column_stride")), arg("column_halo"))
        with code.loop(0, arg("part_planes")) as number:
            rest, tap_column = code.divmod(code.add(part.plane, number), arg("expand_columns"))
            rest, tap_row = code.divmod(rest, arg("expand_rows"))
            channel, tap_depth = code.divmod(rest, arg("expand_depths"))
            begin = code.add(code.mul(block.column, arg("column_stride")), code.mul(tap_column, arg("column_dilation")))
            top = code.add(code.mul(block.row, arg("row_stride")), code.mul(tap_row, arg("row_dilation")))
            first, last = (code.max(0, code.min(code.sub(arg(name), begin), extent)) for name in ("first", "last"))
            columns = Columns(code.at(code.integers("columns"), begin), first, last, extent)
            target = code.at(planes, code.mul(number, v.plane))
            with code.loop(0, block.leads) as count:
                image, depth = code.divmod(code.add(block.lead, count), arg("output_depths"))
                source = self._moved(x, (channel, "x_channel"), (image, "x_image"))
                with code.loop(0, arg("depth_taps")) as tap:
                    at = code.mul(code.add(tap_depth, tap), arg("depth_dilation"))
                    at = code.add(code.mul(depth, arg("depth_stride")), at)
                    strip = code.mul(code.add(code.mul(count, arg("depth_taps")), tap), arg("strip_rows"))
                    strip = code.at(target, code.mul(strip, arg("pitch")))
                    self._fill_rows(source, code.item(code.integers("depths"), at), top, rows, columns, strip)

    def _fill_rows(self, source: Value, plane: Value, top: Value, rows: Value, columns: Columns, strip: Value) -> None:
        code, arg, v = self.code, self.code.integer, self.variant
        step = 1 if v.unit_input else arg("x_column")
        here = code.item(columns.table, code.min(columns.first, code.sub(columns.extent, 1)))  # what ``first`` reads
        with code.loop(0, rows) as number:
            row = code.item(code.integers("rows"), code.add(top, code.mul(number, arg("row_step"))))
            target = code.at(strip, code.mul(number, arg("pitch")))

            def samples(row: Value = row, target: Value = target) -> None:
                place = self._moved(source, (plane, "x_depth"), (row, "x_row"))
                if step == v.every == 1:
                    self._ask_for_row(columns, code.at(self._moved(place, (1, "x_channel")), here))
                fill_row(code, columns, place, step, target, every=v.every)

            def zeros(target: Value = target) -> None:
                fill_zeros(code, target, columns.extent)

            code.choose(code.less(-1, code.min(plane, row)), samples, zeros)

    def _ask_for_row(self, columns: Columns, start: Value) -> None:
        """Ask for a row of the next channel: rows of a block are too few in a row for the CPU to foresee the next."""
        code = self.code
        with code.loop(0, code.sub(columns.last, columns.first), CACHE_LINE // code.itemsize) as item:
            code.prefetch(start, item)

    def _pack(self, part: _Part, block: _Block, first: Value, left: Value, vectors: int, target: Value) -> None:
        """Copy g of a block of outputs as (position, output); outputs beyond the last repeat it."""
        code, arg = self.code, self.code.integer
        g = self._moved(code.pointer("g"), (part.group, "g_group"), (first, "g_output"))
        joined = code.equal(arg("merged"), 1)
        runs = code.select(joined, code.const(1), block.rows)
        run = code.select(joined, code.mul(block.rows, block.columns), block.columns)
        with code.loop(0, vectors) as vector:
            here = code.sub(left, code.mul(vector, code.lanes))
            place = code.variable(code.at(target, code.mul(vector, code.lanes)))
            with code.loop(0, block.leads) as count:
                image, depth = code.divmod(code.add(block.lead, count), arg("output_depths"))
                source = self._moved(g, (code.mul(vector, code.lanes), "g_output"), (image, "g_image"))
                source = self._moved(source, (depth, "g_depth"), (block.row, "g_row"), (block.column, "g_column"))
                with code.loop(0, runs) as row:
                    self._pack_run(self._moved(source, (row, "g_row")), run, here, vectors, place.get())
                    place.set(code.at(place.get(), code.mul(run, vectors * code.lanes)))

    def _pack_run(self, source: Value, run: Value, left: Value, vectors: int, target: Value) -> None:
        """Copy neighbouring positions of one vector of outputs."""
        code, lanes, width = self.code, self.code.lanes, vectors * self.code.lanes
        order = self.variant.g_order
        channels = [self._moved(source, (code.min(lane, code.sub(left, 1)), "g_output")) for lane in range(lanes)]
        if order == "columns":
            with code.loop(0, run, lanes) as position:
                count = code.min(lanes, code.sub(run, position))
                for channel in channels:
                    code.prefetch(channel, code.add(position, _AHEAD * lanes))
                square = code.transpose([code.load_some(channel, position, count) for channel in channels])
                place = code.at(target, code.mul(position, width))
                for offset, vector in enumerate(square):  # what is too much is written over by the next run
                    code.store(vector, place, offset * width)
            return
        with code.loop(0, run) as position:
            place, moved = code.at(target, code.mul(position, width)), code.mul(position, code.integer("g_column"))
            if order == "channels":
                code.store(code.load_some(source, moved, code.min(lanes, left)), place)
            else:
                for lane, channel in enumerate(channels):
                    code.put(code.item(channel, moved), place, lane)

    # -- sums -------------------------------------------------------------------------------------------------

    def _sum(self, block: _Block, planes: Value, g: Value, tile: _Tile, vectors: int, is_first: Value) -> None:
        """Add the products of a block to a tile's sums, tap by tap."""
        code, v, arg = self.code, self.variant, self.code.integer
        count = code.mul(code.mul(block.leads, block.rows), block.columns)
        corner = code.at(planes, code.add(code.mul(tile.plane, v.plane), code.mul(tile.column, v.step)))
        with code.loop(0, arg("taps")) as tap:
            at = code.at(corner, code.item(code.integers("offsets"), tap))
            panel, place = Panel(code, PanelShape(vectors, v.height * v.width)), code.variable(g)
            with code.loop(0, count) as position:
                here, there = place.get(), code.at(at, code.item(code.integers("positions"), position))

                def item(i: int, there: Value = there) -> Value:
                    return code.at(there, i // v.width * v.plane + i % v.width * v.step)

                panel.step([code.load(here, number * code.lanes) for number in range(vectors)], item)
                place.set(code.at(here, vectors * code.lanes))
            self._keep(panel, tile, tap, vectors, is_first)

    def _keep(self, panel: Panel, tile: _Tile, tap: Value, vectors: int, is_first: Value) -> None:
        """Store what the first block has summed, add what others have: (plane, tap, neighbouring tap, output)."""
        code, v = self.code, self.variant
        width = vectors * code.lanes
        for plane in range(v.height):
            row = code.add(code.mul(plane, code.integer("taps")), tap)
            start = code.at(tile.sums, code.mul(row, v.width * width))
            for i in range(v.width):
                for number in range(vectors):
                    offset = i * width + number * code.lanes
                    before = code.load(start, offset)
                    before = code.select(is_first, code.zeros(), before)
                    code.store(code.fadd(panel.vector(number, plane * v.width + i), before), start, offset)

    # -- result -----------------------------------------------------------------------------------------------

    def _write(self, part: _Part, first: Value, left: Value, tile: _Tile, vectors: int) -> None:
        """Write a tile's sums for all its taps; taps of a row that is not whole lie in runs apart."""
        code, v, arg = self.code, self.variant, self.code.integer
        whole = code.equal(arg("column_taps"), v.width)
        rows = code.mul(arg("taps"), v.height)
        runs = code.select(whole, code.const(1), rows)
        run = code.select(whole, code.mul(rows, v.width), code.const(v.width))
        row = code.mul(code.add(part.plane, tile.plane), arg("taps"))
        start = code.add(code.mul(row, arg("column_taps")), tile.column)
        out = self._moved(code.pointer("out"), (part.group, "out_group"), (first, "out_output"))
        with code.loop(0, runs) as number:
            source = code.at(tile.sums, code.mul(number, code.mul(run, vectors * code.lanes)))
            place = code.add(start, code.mul(number, arg("column_taps")))
            with code.loop(0, vectors) as vector:
                lanes = code.mul(vector, code.lanes)
                target = self._moved(out, (lanes, "out_output"))
                self._write_run(code.at(source, lanes), run, code.sub(left, lanes), vectors, target, place)

    def _write_run(self, source: Value, run: Value, left: Value, vectors: int, target: Value, place: Value) -> None:
        """Write (channel, tap) ``place`` … of one vector of outputs, of which there are ``left``."""
        code, lanes, width = self.code, self.code.lanes, vectors * self.code.lanes
        if self.variant.unit_output:
            with code.loop(0, run, lanes) as item:
                rows = [code.load(source, code.mul(code.add(item, number), width)) for number in range(lanes)]
                count = code.min(lanes, code.sub(run, item))
                for lane, row in enumerate(code.transpose(rows)):
                    with code.when(code.less(lane, left)):
                        to = self._moved(target, (lane, "out_output"))
                        code.store_some(row, to, code.add(place, item), count)
            return
        table = code.at(code.integers("out_places"), place)
        with code.loop(0, run) as item, code.loop(0, code.min(lanes, left)) as lane:
            number = code.item(code.at(source, code.add(code.mul(item, width), lane)))
            code.put(number, self._moved(target, (lane, "out_output")), code.item(table, item))
