"""Implicit GEMM: columns of the input are packed, a few tiles of pixels at a time, and multiplied while in cache.

    for each job (group, some tiles of pixels, part of the output channels):
        for each part of the sum (some channels × taps, or some taps of one channel):
            pack the columns of these tiles:                                    stay in the L2 cache
                for each tile, for each tap: find where its pixels read; for each channel: copy them
                for each block of output channels:
                    for each of these tiles:
                        for each step (channel, tap):  sums += weights[step, output] · columns[step, pixel]
                        write the sums, or add them to what earlier parts of the sum have left

    packed tile                  The pixels of an image count on from row to row, so a tile may lie in several rows:
    step 0  [p0 p1 … p31]                         ┌─────────────────┐
    step 1  [p0 p1 … p31]        segment 0        │        p0 … p11 │
      …                          segment 1        │p12 …    … p31   │

A segment reads neighbours, or every second or fourth sample; a mask leaves out what is beyond the input. Loaded into
the lanes of earlier segments, it makes a vector of the tile, which is stored in one piece. Everything else (other
strides, channels that are neighbours, narrow images) is copied number by number.

Lanes of the register tile are pixels, and its items outputs: then packed tiles are read at every step, and stay in the
L1 cache. Or they are the other way round, weights are read at every step, tiles stay in the L2 cache, and the sums are
turned by a quarter before they are written. Nothing but the tile, the stride, the number of segments and the way of
writing is built into the machine code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from convbench.jit.compile import Kernel, compiled
from convbench.jit.ir import Code, Value
from convbench.jit.memory import CACHE_LINE
from convbench.jit.panel import Panel, PanelShape
from convbench.jit.target import Target

__all__ = ["ARGUMENTS", "STRIDES", "Variant", "kernel"]

ARGUMENTS = (
    *("x", "y", "weights", "bias", "scratch"),  # addresses
    *("x_image", "x_group", "x_channel", "x_depth", "x_row", "x_column"),  # strides in items
    *("y_image", "y_group", "y_channel", "y_depth", "y_row", "y_column"),
    *("depths", "rows", "columns"),  # tables of sources
    *("first", "last", "shift"),  # positions of a row that read neighbours, and where they do so; else 0, 0
    "extends",  # whether others read samples, too
    *("taps", "tap_count", "channels", "outputs"),  # taps: a table of positions along each axis
    *("depth_stride", "row_stride", "column_stride"),
    *("output_rows", "output_columns", "pixels"),  # pixels of an image
    *("tiles", "image_tiles", "chunk", "chunks", "packed"),  # of all images, of one, of a job, at once
    *("blocks", "part", "parts"),  # blocks of output channels, of a job
    *("group_weights", "channel_part", "tap_part"),  # packed weights of a group; channels and taps summed at once
    *("scratch_items", "zeros", "places", "patch", "panels"),  # of one thread's scratch, and where what begins in it
    "tile_items",
)

#: Strides along rows whose samples are copied by vectors.
STRIDES = (1, 2, 4)


@dataclass(frozen=True)
class Variant:
    """What is built into the machine code.

    Attributes
    ----------
    lanes_are_pixels : bool
        Else they are outputs.
    shape : PanelShape
    tail : int
        Vectors of outputs of the last block, or 0 if it is full.
    stride : int
        Of the columns, one of ``STRIDES``, or 0: number by number.
    segments : int
        In how many rows the pixels of a tile may lie.
    split : bool
        Sums have several parts.
    flat : bool
        All pixels of an image are neighbours in y; else they are written one by one.
    channels_last : bool
        Channels are neighbours in y.
    """

    dtype: str
    lanes_are_pixels: bool
    shape: PanelShape
    tail: int
    stride: int
    segments: int
    split: bool
    flat: bool
    channels_last: bool

    def tile_pixels(self, lanes: int) -> int:
        """Return the pixels of a tile."""
        return self.shape.vectors * lanes if self.lanes_are_pixels else self.shape.items

    def pitch(self, lanes: int) -> int:
        """Return the items of a step of a packed tile: whole vectors."""
        return -(-self.tile_pixels(lanes) // lanes) * lanes


@cache
def kernel(variant: Variant, target: Target) -> Kernel:
    """Return the compiled kernel."""
    return compiled(_ImplicitGemm(variant, target).text(), "panel_im2col", target)


class _Segment(NamedTuple):
    """Pixels of a tile that lie in one row: the first one's lane, how many, and the position of each axis."""

    lane: Value
    length: Value
    depth: Value
    row: Value
    column: Value


class _Steps(NamedTuple):
    """The part of the sum that is packed: channels and taps, and how many steps these are."""

    first_channel: Value
    last_channel: Value
    first_tap: Value
    last_tap: Value
    count: Value


class _ImplicitGemm:
    """Writes one variant."""

    def __init__(self, variant: Variant, target: Target) -> None:
        self.variant = variant
        self.code = code = Code("panel_im2col", target, variant.dtype, ARGUMENTS)
        self.pixels, self.pitch = variant.tile_pixels(code.lanes), variant.pitch(code.lanes)
        self.block = variant.shape.items if variant.lanes_are_pixels else variant.shape.vectors * code.lanes
        scratch = code.at(code.pointer("scratch"), code.mul(code.thread, code.integer("scratch_items")))
        self.zeros, self.patch, self.panels = (
            code.at(scratch, code.integer(name)) for name in ("zeros", "patch", "panels")
        )
        self.places = code.integers_at(code.address(scratch, code.integer("places")))
        self.place_items = 2 if variant.flat else 1 + self.pixels

    def text(self) -> str:
        code, arg = self.code, self.code.integer
        rest, part = code.divmod(code.job, arg("parts"))
        group, chunk = code.divmod(rest, arg("chunks"))
        first = code.mul(chunk, arg("chunk"))
        last = code.min(code.add(first, arg("chunk")), arg("tiles"))
        x = code.at(code.pointer("x"), code.mul(group, arg("x_group")))
        y = code.at(code.pointer("y"), code.mul(group, arg("y_group")))
        weights = code.at(code.pointer("weights"), code.mul(group, arg("group_weights")))
        bias = code.at(code.pointer("bias"), code.mul(group, arg("outputs")))
        with code.loop(0, self.block) as i:
            code.put(code.number(0.0), self.zeros, i)
        with (
            code.loop(0, arg("channels"), arg("channel_part")) as channel,
            code.loop(0, arg("tap_count"), arg("tap_part")) as tap,
        ):
            last_channel = code.min(code.add(channel, arg("channel_part")), arg("channels"))
            last_tap = code.min(code.add(tap, arg("tap_part")), arg("tap_count"))
            count = code.mul(code.sub(last_channel, channel), code.sub(last_tap, tap))
            steps = _Steps(channel, last_channel, tap, last_tap, count)
            done = code.add(code.mul(channel, arg("tap_count")), tap)
            with code.loop(first, last, arg("packed")) as begin:
                tiles = code.min(arg("packed"), code.sub(last, begin))
                with code.loop(0, tiles) as number:
                    self._pack(x, code.add(begin, number), number, steps)
                self._multiply(weights, bias, y, tiles, code.mul(part, arg("part")), steps.count, done)
        return code.finish()

    # -- packing ----------------------------------------------------------------------------------------------

    def _pack(self, x: Value, tile: Value, number: Value, steps: _Steps) -> None:
        """Pack the columns of a tile, the job's ``number``-th, and note where its pixels are in y."""
        code, arg = self.code, self.code.integer
        image, in_image = code.divmod(tile, arg("image_tiles"))
        pixel = code.mul(in_image, self.pixels)
        count = code.min(self.pixels, code.sub(arg("pixels"), pixel))
        self._note_place(number, image, pixel, count)
        x = code.at(x, code.mul(image, arg("x_image")))
        panel = code.at(self.panels, code.mul(number, arg("tile_items")))
        if self.variant.stride:
            self._pack_vectors(x, panel, list(self._segments(pixel, count)), steps)
        else:
            self._pack_numbers(x, panel, pixel, count, steps)

    def _note_place(self, number: Value, image: Value, pixel: Value, count: Value) -> None:
        """Keep a tile's number of pixels, and the distance of the first of them, or of all, in y."""
        code, arg = self.code, self.code.integer
        place = code.at(self.places, code.mul(number, self.place_items))
        start = code.mul(image, arg("y_image"))
        code.put(count, place)
        if self.variant.flat:
            code.put(code.add(start, pixel), place, 1)
            return
        with code.loop(0, count) as i:
            position = start
            for at, stride in zip(self._position(code.add(pixel, i)), ("y_depth", "y_row", "y_column"), strict=True):
                position = code.add(position, code.mul(at, arg(stride)))
            code.put(position, place, code.add(1, i))

    def _position(self, pixel: Value) -> tuple[Value, Value, Value]:
        """Return a pixel's depth, row and column."""
        code, arg = self.code, self.code.integer
        rest, column = code.divmod(pixel, arg("output_columns"))
        depth, row = code.divmod(rest, arg("output_rows"))
        return depth, row, column

    def _segments(self, pixel: Value, count: Value) -> list[_Segment]:
        code, arg = self.code, self.code.integer
        depth, row, column = self._position(pixel)
        lane: Value = code.const(0)
        segments = []
        for _ in range(self.variant.segments):
            left = code.sub(count, lane)
            length = code.min(code.sub(arg("output_columns"), column), left)
            here = code.less(0, left)  # beyond the last pixel there may be no row
            places = (
                code.mul(code.select(here, index, 0), stride)
                for index, stride in zip((depth, row, column), self._strides(), strict=True)
            )
            segments.append(_Segment(lane, code.max(0, length), *places))
            lane, column = code.add(lane, length), code.const(0)
            over = code.equal(code.add(row, 1), arg("output_rows"))
            depth, row = code.select(over, code.add(depth, 1), depth), code.select(over, 0, code.add(row, 1))
        return segments

    def _strides(self) -> tuple[Value, Value, Value]:
        arg = self.code.integer
        return arg("depth_stride"), arg("row_stride"), self.variant.stride or arg("column_stride")

    def _tap(self, tap: Value) -> list[Value]:
        """Return a tap's position along each axis."""
        code = self.code
        table = code.at(code.integers("taps"), code.mul(tap, 3))
        return [code.item(table, axis) for axis in range(3)]

    def _source(self, x: Value, depth: Value, row: Value) -> tuple[Value, Value]:
        """Return where a row of the input is, and whether it is there."""
        code, arg = self.code, self.code.integer
        plane, row = code.item(code.integers("depths"), depth), code.item(code.integers("rows"), row)
        source = code.at(x, code.add(code.mul(plane, arg("x_depth")), code.mul(row, arg("x_row"))))
        return source, code.less(-1, code.min(plane, row))

    def _pack_vectors(self, x: Value, panel: Value, segments: list[_Segment], steps: _Steps) -> None:
        """Copy vectors; as they are where all of them lie within one row of the input."""
        code, arg, stride = self.code, self.code.integer, self.variant.stride
        with code.loop(steps.first_tap, steps.last_tap) as tap:
            depth_at, row_at, column_at = self._tap(tap)
            sources = [self._source(x, code.add(s.depth, depth_at), code.add(s.row, row_at)) for s in segments]
            starts = [code.add(s.column, column_at) for s in segments]
            target = code.at(panel, code.mul(code.sub(tap, steps.first_tap), self.pitch))
            step = code.mul(code.sub(steps.last_tap, steps.first_tap), self.pitch)
            row, there = sources[0]
            beyond = code.less(arg("last"), code.add(starts[0], self._loads() * code.lanes))
            whole = code.both(there, code.equal(segments[0].length, self.pixels))
            whole = code.both(whole, code.less(code.sub(arg("first"), 1), starts[0]))
            whole = code.both(whole, code.equal(code.select(beyond, 1, 0), 0))

            def plain() -> None:
                place = code.at(row, code.add(arg("shift"), starts[0]))
                with code.loop(steps.first_channel, steps.last_channel) as channel:
                    offset = code.mul(channel, arg("x_channel"))
                    loaded = [code.load(place, code.add(offset, n * code.lanes)) for n in range(self._loads())]
                    self._store(loaded, target, step, code.sub(channel, steps.first_channel))

            def masked() -> None:
                places, masks = [], []
                for segment, (row, there), start in zip(segments, sources, starts, strict=True):
                    extent, lane = code.mul(segment.length, stride), code.mul(segment.lane, stride)
                    ends = [code.max(0, code.min(code.sub(arg(name), start), extent)) for name in ("first", "last")]
                    low, high = (code.select(there, code.add(lane, end), 0) for end in ends)
                    masks.append([code.lanes_between(low, high, n * code.lanes) for n in range(self._loads())])
                    places.append(code.at(row, code.sub(code.add(arg("shift"), start), lane)))
                with code.loop(steps.first_channel, steps.last_channel) as channel:
                    offset = code.mul(channel, arg("x_channel"))
                    loaded = [self._merged(places, masks, offset, n) for n in range(self._loads())]
                    self._store(loaded, target, step, code.sub(channel, steps.first_channel))
                with code.when(code.less(0, arg("extends"))):
                    for segment in segments:
                        self._extend(x, target, step, segment, (depth_at, row_at, column_at), steps)

            code.choose(whole, plain, masked)

    def _store(self, loaded: list[Value], target: Value, step: Value, number: Value) -> None:
        """Write a tile's step, of what has been loaded for it."""
        code, stride = self.code, self.variant.stride
        place = code.at(target, code.mul(number, step))
        for n in range(self.pitch // code.lanes):
            code.store(code.every(loaded[n * stride : (n + 1) * stride]), place, n * code.lanes)

    def _loads(self) -> int:
        return self.pitch // self.code.lanes * self.variant.stride

    def _merged(self, sources: list[Value], masks: list[list[Value]], offset: Value, number: int) -> Value:
        """Load a vector, each segment into the lanes that it has."""
        code = self.code
        vector = code.zeros()
        for source, mask in zip(sources, masks, strict=True):
            vector = code.load_lanes(source, code.add(offset, number * code.lanes), mask[number], vector)
        return vector

    def _extend(
        self, x: Value, target: Value, step: Value, segment: _Segment, tap: tuple[Value, ...], steps: _Steps
    ) -> None:
        """Copy the samples that positions beyond the input stand for."""
        code, arg = self.code, self.code.integer
        depth_at, row_at, column_at = tap
        row, there = self._source(x, code.add(segment.depth, depth_at), code.add(segment.row, row_at))
        with code.when(there), code.loop(0, segment.length) as i:
            position = code.add(code.add(segment.column, column_at), code.mul(i, self.variant.stride))
            beyond = code.less(position, arg("first"))
            beyond = code.select(beyond, beyond, code.less(code.sub(arg("last"), 1), position))
            with code.when(beyond):
                self._copy(row, position, code.at(target, code.add(segment.lane, i)), step, steps)

    def _copy(self, row: Value, position: Value, target: Value, step: Value, steps: _Steps) -> None:
        """Copy what a position of a row stands for, of all channels."""
        code, arg = self.code, self.code.integer
        index = code.item(code.integers("columns"), position)
        source = code.at(row, code.mul(index, arg("x_column")))
        sample = code.variable(code.number(0.0))
        with code.loop(steps.first_channel, steps.last_channel) as channel:
            with code.when(code.less(-1, index)):
                sample.set(code.item(source, code.mul(channel, arg("x_channel"))))
            code.put(sample.get(), target, code.mul(code.sub(channel, steps.first_channel), step))

    def _pack_numbers(self, x: Value, panel: Value, pixel: Value, count: Value, steps: _Steps) -> None:
        """Copy number by number, channels in the inner loop: they may be neighbours."""
        code = self.code
        step = code.mul(code.sub(steps.last_tap, steps.first_tap), self.pitch)
        with code.loop(0, count) as i:
            places = [code.mul(*pair) for pair in zip(self._position(code.add(pixel, i)), self._strides(), strict=True)]
            with code.loop(steps.first_tap, steps.last_tap) as tap:
                depth, row, column = (code.add(*pair) for pair in zip(places, self._tap(tap), strict=True))
                source, there = self._source(x, depth, row)
                target = code.at(panel, code.add(code.mul(code.sub(tap, steps.first_tap), self.pitch), i))

                def copy(source: Value = source, column: Value = column, target: Value = target) -> None:
                    self._copy(source, column, target, step, steps)

                def clear(target: Value = target) -> None:
                    with code.loop(steps.first_channel, steps.last_channel) as channel:
                        place = code.mul(code.sub(channel, steps.first_channel), step)
                        code.put(code.number(0.0), target, place)

                code.choose(there, copy, clear)

    # -- multiplying ------------------------------------------------------------------------------------------

    def _multiply(
        self, weights: Value, bias: Value, y: Value, tiles: Value, first: Value, steps: Value, done: Value
    ) -> None:
        """Add ``steps`` steps of all tiles, after ``done`` ones, to the outputs of a part of the blocks."""
        code, arg, v = self.code, self.code.integer, self.variant
        terms = code.mul(arg("channels"), arg("tap_count"))
        last = code.min(code.add(first, arg("part")), arg("blocks"))
        with code.loop(first, last) as number:
            output = code.mul(number, self.block)
            left = code.sub(arg("outputs"), output)

            def block(vectors: int, output: Value = output, left: Value = left) -> None:
                width = self.block if v.lanes_are_pixels else vectors * code.lanes
                place = code.add(code.mul(output, terms), code.mul(done, width))
                start = code.at(bias, output)
                if v.split:  # later parts begin with zero
                    start = code.select(code.equal(done, 0), start, self.zeros)
                with code.loop(0, tiles) as tile:
                    packed = code.at(self.panels, code.mul(tile, arg("tile_items")))
                    note = code.at(self.places, code.mul(tile, self.place_items))
                    target = code.at(y, code.mul(output, arg("y_channel")))
                    self._announce(target, note, left)
                    panel = self._sums(packed, code.at(weights, place), start, steps, vectors, left)
                    self._write(panel, target, note, left, code.less(0, done))

            if v.tail:
                code.choose(code.less(left, self.block), lambda: block(v.tail), lambda: block(v.shape.vectors))
            else:
                block(v.shape.vectors)

    def _sums(self, packed: Value, weights: Value, bias: Value, steps: Value, vectors: int, left: Value) -> Panel:
        """Return all steps of a tile, from the bias on."""
        code, v = self.code, self.variant
        shape = PanelShape(vectors, v.shape.items)
        vector_step, item_step = vectors * code.lanes, self.pitch
        if v.lanes_are_pixels:
            last = code.sub(left, 1)  # items beyond are not written
            panel = Panel(code, shape, lambda v, i: code.broadcast(bias, code.min(i, last)))
            vectors_at, items_at, vector_step, item_step = packed, weights, self.pitch, self.block
        else:
            starts = [code.load_some(bias, n * code.lanes, code.sub(left, n * code.lanes)) for n in range(vectors)]
            panel = Panel(code, shape, lambda v, i: starts[v])
            vectors_at, items_at = weights, packed
        vector_place, item_place = code.variable(vectors_at), code.variable(items_at)
        with code.loop(0, steps):
            here, items = vector_place.get(), item_place.get()
            panel.step([code.load(here, n * code.lanes) for n in range(vectors)], lambda i: code.at(items, i))
            vector_place.set(code.at(here, vector_step))
            item_place.set(code.at(items, item_step))
        return panel

    def _announce(self, target: Value, note: Value, left: Value) -> None:
        """Ask for the cache lines of y while sums are formed: rows of many channels are more than the CPU foresees."""
        code, v, arg = self.code, self.variant, self.code.integer
        if not (v.flat and v.lanes_are_pixels):
            return
        target, last = code.at(target, code.item(note, 1)), code.sub(left, 1)
        line = CACHE_LINE // code.itemsize
        for output in range(v.shape.items):
            place = code.at(target, code.mul(code.min(output, last), arg("y_channel")))
            for pixel in (*range(0, self.pixels - 1, line), self.pixels - 1):
                code.prefetch(place, pixel, write=True)

    # -- writing ----------------------------------------------------------------------------------------------

    def _write(self, panel: Panel, target: Value, note: Value, left: Value, again: Value) -> None:
        """Write a tile: ``left`` outputs, of as many pixels as are noted; add if there is something, ``again``."""
        code, v, arg = self.code, self.variant, self.code.integer
        count, vectors = code.item(note), panel.shape.vectors
        if not v.flat:
            self._scatter(panel, target, note, left, again)
            return
        target = code.at(target, code.item(note, 1))
        if v.lanes_are_pixels:
            rows = [(i, n * code.lanes, panel.vector(n, i)) for i in range(v.shape.items) for n in range(vectors)]
            for output, first, row in rows:
                with code.when(code.less(output, left)):
                    place = code.at(target, code.mul(output, arg("y_channel")))
                    self._put(row, place, first, code.sub(count, first), again)
            return
        for n in range(vectors):
            for channel, first, row in panel.rows(n):
                output = n * code.lanes + channel
                with code.when(code.less(output, left)):
                    place = code.at(target, code.mul(output, arg("y_channel")))
                    self._put(row, place, first, code.sub(count, first), again)

    def _put(self, row: Value, place: Value, offset: Value, count: Value, again: Value) -> None:
        """Write the first ``count`` lanes."""
        code = self.code
        if self.variant.split:
            row = code.fadd(row, code.load_some(place, offset, code.select(again, count, 0)))
        code.store_some(row, place, offset, count)

    def _scatter(self, panel: Panel, target: Value, note: Value, left: Value, again: Value) -> None:
        """Leave the sums in a patch, an item after the other, and write them pixel by pixel."""
        code, v, arg = self.code, self.variant, self.code.integer
        width = panel.shape.vectors * code.lanes
        for i in range(v.shape.items):
            for n in range(panel.shape.vectors):
                code.store(panel.vector(n, i), self.patch, i * width + n * code.lanes)
        pixel_step, output_step = (1, width) if v.lanes_are_pixels else (width, 1)
        outputs = code.min(left, v.shape.items if v.lanes_are_pixels else width)
        with code.loop(0, code.item(note)) as pixel:
            place = code.at(target, code.item(note, code.add(1, pixel)))
            source = code.at(self.patch, code.mul(pixel, pixel_step))
            if v.channels_last and not v.lanes_are_pixels:
                with code.loop(0, outputs, code.lanes) as output:
                    self._put(code.load(source, output), place, output, code.sub(outputs, output), again)
                return
            with code.loop(0, outputs) as output:
                value = code.variable(code.item(source, code.mul(output, output_step)))
                at = code.mul(output, arg("y_channel"))
                if v.split:
                    with code.when(again):
                        value.set(code.fadd(value.get(), code.item(place, at)))
                code.put(value.get(), place, at)
