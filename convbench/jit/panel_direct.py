"""Direct convolution of many channels: a tile of outputs by pixels, all channels and taps summed in registers.

    for each job (image, group, slice of depth, band of rows, span of columns, part of the output channels):
        copy the rows of input beneath them into a strip, padded            (unless they can be read in place)
        for each block of output channels:                                  weights of a block stay in the L2 cache
            for each tile of pixels:                                        2 × 14 sums in registers
                for each channel, for each tap:                             one step of the panel
                    sums += weights[block, channel, tap] · strip[channel, pixel · stride + offset[tap]]
                write the sums, turned by a quarter if pixels are neighbours in the output

    strip of one channel                    a tile of 14 pixels reads, for each tap, 14 numbers `stride` apart
    · · · · · · · · · · · · · · · ·
    · [0 1 2 3 4 5 6 7 8 9 … 13] · ·        offset of tap (r, s): r · dilation · pitch + s · dilation
    · · · · · · · · · · · · · · · ·

A strip holds what lies beneath the band, or, where dilation leaves more out than that, what each tap along the rows
reads, and in segments what each tap along the columns reads.

Nothing but the tile, the stride and the way of writing is built into the machine code: kernel sizes, dilations,
images and channels are arguments, and 1 or 2 axes are 3 with sizes of 1. Where an image is narrower than a tile, the
tile holds several of its rows; the last tile, span or band reaches back and computes some pixels twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from convbench.jit.compile import Kernel, compiled
from convbench.jit.ir import Code, Value
from convbench.jit.panel import Panel, PanelShape
from convbench.jit.strips import Columns, fill_row, fill_zeros
from convbench.jit.target import Target

_Operands = tuple[Sequence[Value], Callable[[int], Value]]  # of a step: vectors, and the addresses of items

__all__ = ["ARGUMENTS", "Variant", "kernel"]

ARGUMENTS = (
    *("x", "y", "weights", "bias", "strips"),  # addresses
    *("x_image", "x_group", "x_channel", "x_depth", "x_row", "x_column"),  # strides in items
    *("y_image", "y_group", "y_channel", "y_depth", "y_row", "y_column"),
    *("depths", "rows", "columns"),  # tables of sources
    *("first", "last", "extent"),  # of the columns: which read neighbours, and how many a segment of a span reads
    *("offsets", "taps", "channels", "outputs"),
    *("groups", "output_depths", "output_rows", "output_columns"),
    *("bands", "band", "spans", "span"),  # rows of a band, columns of a span of it
    *("blocks", "parts", "part", "group_weights"),  # of output channels; blocks in a part; items a group
    *("depth_taps", "depth_stride", "depth_dilation", "row_stride"),
    "row_pitch",  # items from one row of outputs to the next, where the input is read
    *("positions", "strip_rows"),  # of a strip: a table of the rows that it holds, from the first one on
    *("segments", "segment_step", "segment_pitch", "pitch", "strip_items"),  # of its rows
)


@dataclass(frozen=True)
class Variant:
    """What is built into the machine code.

    Attributes
    ----------
    shape : PanelShape
        Vectors of a full block of output channels, and pixels of a tile.
    tail : int
        Vectors of the last block, or 0 if it is full.
    columns : int
        Pixels of a tile along a row: all, or so few that the tile has several rows.
    stride : int
        Items between the pixels of a tile's row, as they are read.
    pitch : int
        Of rows beneath a tile of several rows, else 0.
    in_place : bool
        Read the input where it is; else from a strip.
    unit_input : bool
        Columns are neighbours in x.
    every : int
        Of how many columns of x one has a place in a strip.
    unit_output : bool
        The pixels of a tile are neighbours in y.
    channels_last : bool
        Channels are neighbours in y.
    lanes_are_columns : bool
        The panel's vectors are pixels and its items output channels, not the other way round.
    """

    dtype: str
    shape: PanelShape
    tail: int
    columns: int
    stride: int
    pitch: int = 0
    in_place: bool = False
    unit_input: bool = True
    every: int = 1
    unit_output: bool = True
    channels_last: bool = False
    lanes_are_columns: bool = False


@cache
def kernel(variant: Variant, target: Target) -> Kernel:
    """Return the compiled kernel."""
    writer = _LanesAreColumns if variant.lanes_are_columns else _LanesAreOutputs
    return compiled(writer(variant, target).text(), "panel_direct", target)


@dataclass(frozen=True)
class _Places:
    """Where a job finds its operands: addresses, and items from channel to channel of the input."""

    source: Value
    channel: Value
    weights: Value
    bias: Value
    y: Value


class _Direct(ABC):
    """Writes one variant; subclasses say what the lanes of the panel are."""

    def __init__(self, variant: Variant, target: Target) -> None:
        self.variant = variant
        self.code = Code("panel_direct", target, variant.dtype, ARGUMENTS)

    def text(self) -> str:
        code, v = self.code, self.variant
        arg = code.integer
        rest, part = code.divmod(code.job, arg("parts"))
        rest, span = code.divmod(rest, arg("spans"))
        rest, band = code.divmod(rest, arg("bands"))
        rest, depth = code.divmod(rest, arg("output_depths"))
        image, group = code.divmod(rest, arg("groups"))
        first_row = self._first_of(band, arg("band"), arg("output_rows"))
        first_column = self._first_of(span, arg("span"), arg("output_columns"))
        x = self._moved(code.pointer("x"), (image, "x_image"), (group, "x_group"))
        if v.in_place:
            depth_at = code.mul(depth, arg("depth_stride"))
            source = self._moved(x, (depth_at, "x_depth"), (first_row, "row_pitch"))
            source, channel = code.at(source, code.mul(first_column, v.stride)), arg("x_channel")
        else:
            source = code.at(code.pointer("strips"), code.mul(code.thread, arg("strip_items")))
            self._fill_strip(x, source, depth, first_row, first_column)
            channel = code.mul(code.mul(arg("depth_taps"), arg("strip_rows")), arg("pitch"))
        y = self._moved(code.pointer("y"), (image, "y_image"), (group, "y_group"), (depth, "y_depth"))
        y = self._moved(y, (first_row, "y_row"), (first_column, "y_column"))
        weights = code.at(code.pointer("weights"), code.mul(group, arg("group_weights")))
        bias = code.at(code.pointer("bias"), code.mul(group, arg("outputs")))
        first = code.mul(part, arg("part"))
        with code.loop(first, code.min(code.add(first, arg("part")), arg("blocks"))) as number:
            terms = code.mul(arg("channels"), arg("taps"))
            packed = code.at(weights, code.mul(number, code.mul(self.block, terms)))
            self._block(number, _Places(source, channel, packed, bias, y))
        return code.finish()

    def _first_of(self, number: Value, size: Value, extent: Value) -> Value:
        """Where a band or tile begins: the last one reaches back rather than beyond the end."""
        code = self.code
        return code.max(0, code.min(code.mul(number, size), code.sub(extent, size)))

    def _moved(self, pointer: Value, *moves: tuple[Value, str]) -> Value:
        code = self.code
        for count, stride in moves:
            pointer = code.at(pointer, code.mul(count, code.integer(stride)))
        return pointer

    def _fill_strip(self, x: Value, strip: Value, depth: Value, first_row: Value, first_column: Value) -> None:
        """Copy what lies beneath: (channel, tap along the depth, row, column)."""
        code, arg = self.code, self.code.integer
        place, start = code.variable(strip), code.mul(first_row, arg("row_stride"))
        begin = code.mul(first_column, self.variant.stride)
        with code.loop(0, arg("channels")) as channel, code.loop(0, arg("depth_taps")) as tap:
            at = code.add(code.mul(depth, arg("depth_stride")), code.mul(tap, arg("depth_dilation")))
            plane = code.item(code.integers("depths"), at)
            with code.loop(0, arg("strip_rows")) as number:
                position = code.add(start, code.item(code.integers("positions"), number))
                row, target = code.item(code.integers("rows"), position), place.get()
                source = self._moved(x, (channel, "x_channel"), (plane, "x_depth"), (row, "x_row"))
                code.choose(
                    code.less(-1, code.min(plane, row)),
                    partial(self._fill_segments, source, target, begin),
                    partial(fill_zeros, code, target, arg("pitch")),
                )
                place.set(code.at(target, arg("pitch")))

    def _fill_segments(self, source: Value, target: Value, begin: Value) -> None:
        """Copy a row; ``begin`` is the position of its first column."""
        code, v, arg = self.code, self.variant, self.code.integer
        step = 1 if v.unit_input else arg("x_column")
        with code.loop(0, arg("segments")) as number:
            at = code.add(begin, code.mul(number, arg("segment_step")))
            first, last = (code.max(0, code.min(code.sub(arg(end), at), arg("extent"))) for end in ("first", "last"))
            columns = Columns(code.at(code.integers("columns"), at), first, last, arg("extent"))
            fill_row(code, columns, source, step, self._moved(target, (number, "segment_pitch")), every=v.every)

    def _write_row(self, row: Value, place: Value, first: int, count: int) -> None:
        """Write items first … first + count − 1 of one channel."""
        code, v = self.code, self.variant
        if v.unit_output:
            code.store_some(row, place, first, count)
            return
        for lane in range(count):
            i = first + lane
            at = self._moved(place, (i // v.columns, "y_row"), (i % v.columns, "y_column"))
            code.put(code.lane(row, lane), at)

    @property
    @abstractmethod
    def block(self) -> int:
        """Output channels of a block."""

    @abstractmethod
    def _block(self, number: Value, places: _Places) -> None:
        """Compute a block of output channels for all tiles of the band and span."""

    def _sums(
        self, panel: Panel, corner: Value, places: _Places, step: Value, operands: Callable[[Value, Value], _Operands]
    ) -> Panel:
        """Do all steps of a tile; ``operands(here, at)`` are those at an address of weights and one of input."""
        code, arg = self.code, self.code.integer
        position = code.variable(places.weights)
        with code.loop(0, arg("channels")) as number:
            base = code.at(corner, code.mul(number, places.channel))
            with code.loop(0, arg("taps")) as tap:
                at, here = code.at(base, code.item(code.integers("offsets"), tap)), position.get()
                panel.step(*operands(here, at))
                position.set(code.at(here, step))
        return panel


class _LanesAreOutputs(_Direct):
    """Vectors of packed weights times single pixels."""

    @property
    def block(self) -> int:
        return self.variant.shape.vectors * self.code.lanes

    def _block(self, number: Value, places: _Places) -> None:
        code, v = self.code, self.variant
        output = code.mul(number, self.block)
        here = replace(places, bias=code.at(places.bias, output), y=self._moved(places.y, (output, "y_channel")))
        left = code.sub(code.integer("outputs"), output)
        if v.tail:
            some = partial(self._tiles, here, v.tail, left)
            code.choose(code.less(left, self.block), some, partial(self._tiles, here, v.shape.vectors, None))
        else:
            self._tiles(here, v.shape.vectors, None)

    def _tiles(self, places: _Places, vectors: int, left: Value | None) -> None:
        """Compute all tiles; ``left`` are the block's outputs if it is not full."""
        code, v, arg = self.code, self.variant, self.code.integer
        width = v.columns
        height = v.shape.items // width
        across = code.div(code.add(arg("span"), width - 1), width)
        with code.loop(0, arg("band"), height) as row, code.loop(0, across) as number:
            top = self._first_of(code.div(row, height), height, arg("band"))
            column = self._first_of(number, width, arg("span"))
            corner = code.at(places.source, code.add(code.mul(top, arg("row_pitch")), code.mul(column, v.stride)))
            panel = self._tile(corner, places, vectors, left)
            self._write(panel, self._moved(places.y, (top, "y_row"), (column, "y_column")), vectors, left)

    def _tile(self, corner: Value, places: _Places, vectors: int, left: Value | None) -> Panel:
        code, v = self.code, self.variant
        lanes = code.lanes if left is None else code.sub(left, (vectors - 1) * code.lanes)

        def outputs(pointer: Value) -> list[Value]:
            found = [code.load(pointer, number * code.lanes) for number in range(vectors - 1)]
            last = (vectors - 1) * code.lanes
            return [*found, code.load(pointer, last) if left is None else code.load_some(pointer, last, lanes)]

        def operands(here: Value, at: Value) -> _Operands:
            return outputs(here), lambda i: code.at(at, i // v.columns * v.pitch + i % v.columns * v.stride)

        bias = outputs(places.bias)
        panel = Panel(code, PanelShape(vectors, v.shape.items), lambda number, i: bias[number])
        return self._sums(panel, corner, places, self.block if left is None else left, operands)

    def _write(self, panel: Panel, target: Value, vectors: int, left: Value | None) -> None:
        code, v = self.code, self.variant
        items, width = v.shape.items, v.columns
        if v.channels_last:
            for i in range(items):
                place = self._moved(target, (i // width, "y_row"), (i % width, "y_column"))
                for number in range(vectors):
                    partly = left is not None and number == vectors - 1
                    count = code.sub(left, number * code.lanes) if partly else code.lanes
                    code.store_some(panel.vector(number, i), place, number * code.lanes, count)
            return
        for number in range(vectors):
            for channel, first, row in panel.rows(number):
                position = number * code.lanes + channel
                place = self._moved(target, (position, "y_channel"))
                count = min(items - first, code.lanes)
                if left is None:
                    self._write_row(row, place, first, count)
                else:
                    with code.when(code.less(position, left)):
                        self._write_row(row, place, first, count)


class _LanesAreColumns(_Direct):
    """Vectors of pixels times single weights: nothing has to be turned, which pays where the sums have few terms.

    The columns of the input beneath a tile must be neighbours.
    """

    @property
    def block(self) -> int:
        return self.variant.shape.items

    def _block(self, number: Value, places: _Places) -> None:
        code, v, arg = self.code, self.variant, self.code.integer
        output = self._first_of(number, self.block, arg("outputs"))
        bias, y = code.at(places.bias, output), self._moved(places.y, (output, "y_channel"))
        width = v.columns
        across = code.div(code.add(arg("span"), width - 1), width)
        with code.loop(0, arg("band")) as row, code.loop(0, across) as tile:
            column = self._first_of(tile, width, arg("span"))
            corner = code.at(places.source, code.add(code.mul(row, arg("row_pitch")), column))
            panel = Panel(code, v.shape, partial(self._bias, bias))
            self._sums(panel, corner, places, self.block, self._operands)
            self._write(panel, self._moved(y, (row, "y_row"), (column, "y_column")))

    def _bias(self, bias: Value, number: int, i: int) -> Value:
        return self.code.broadcast(bias, i)

    def _operands(self, here: Value, at: Value) -> _Operands:
        code, v = self.code, self.variant
        return [code.load(at, number * code.lanes) for number in range(v.shape.vectors)], lambda i: code.at(here, i)

    def _write(self, panel: Panel, target: Value) -> None:
        code, v = self.code, self.variant
        for i in range(self.block):
            place = self._moved(target, (i, "y_channel"))
            for number in range(v.shape.vectors):
                first = number * code.lanes
                self._write_row(panel.vector(number, i), place, first, min(v.columns - first, code.lanes))
