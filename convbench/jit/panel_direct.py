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

Nothing but the tile, the stride and the way of writing is built into the machine code: kernel sizes, dilations, images
and channels are arguments, and 1 or 2 axes are 3 with sizes of 1. Where an image is narrower than a tile, the tile holds
several of its rows; the last tile, span or band reaches back and computes some pixels twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from convbench.jit.compile import Kernel, compiled
from convbench.jit.ir import Code, Value
from convbench.jit.panel import Panel, PanelShape
from convbench.jit.strips import Columns, fill_row, fill_zeros
from convbench.jit.target import Target

__all__ = ["ARGUMENTS", "Variant", "kernel"]

ARGUMENTS = (
    *("x", "y", "weights", "bias", "strips"),  # addresses
    *("x_image", "x_group", "x_channel", "x_depth", "x_row", "x_column"),  # strides in items
    *("y_image", "y_group", "y_channel", "y_depth", "y_row", "y_column"),
    *("depths", "rows", "columns"),  # tables of sources
    *("first", "last", "extent"),  # of the columns: which read neighbours, and how many a span reads
    *("offsets", "taps", "channels", "outputs"),
    *("groups", "output_depths", "output_rows", "output_columns"),
    *("bands", "band", "spans", "span"),  # rows of a band, columns of a span of it
    *("parts", "part"),  # blocks of output channels in a part
    *("depth_taps", "depth_stride", "depth_dilation", "row_stride", "row_step"),
    *("strip_rows", "pitch", "strip_items"),  # of one thread's strip
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
    unit_output : bool
        The pixels of a tile are neighbours in y.
    channels_last : bool
        Channels are neighbours in y.
    """

    dtype: str
    shape: PanelShape
    tail: int
    columns: int
    stride: int
    pitch: int = 0
    in_place: bool = False
    unit_input: bool = True
    unit_output: bool = True
    channels_last: bool = False


@cache
def kernel(variant: Variant, target: Target) -> Kernel:
    """Return the compiled kernel."""
    return compiled(_Direct(variant, target).text(), "panel_direct", target)


class _Direct:
    """Writes one variant."""

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
            depth_at, row_at = code.mul(depth, arg("depth_stride")), code.mul(first_row, arg("row_stride"))
            source = code.at(self._moved(x, (depth_at, "x_depth"), (row_at, "x_row")), code.mul(first_column, v.stride))
            channel, row_pitch = arg("x_channel"), code.mul(arg("row_stride"), arg("x_row"))
        else:
            source = code.at(code.pointer("strips"), code.mul(code.thread, arg("strip_items")))
            self._fill_strip(x, source, depth, first_row, first_column)
            channel = code.mul(code.mul(arg("depth_taps"), arg("strip_rows")), arg("pitch"))
            row_pitch = code.mul(code.div(arg("row_stride"), arg("row_step")), arg("pitch"))
        y = self._moved(code.pointer("y"), (image, "y_image"), (group, "y_group"), (depth, "y_depth"))
        y = self._moved(y, (first_row, "y_row"), (first_column, "y_column"))
        weights = code.at(code.pointer("weights"), code.mul(group, code.mul(arg("outputs"), code.mul(arg("channels"), arg("taps")))))
        bias = code.at(code.pointer("bias"), code.mul(group, arg("outputs")))
        block = v.shape.vectors * code.lanes
        first = code.mul(code.mul(part, arg("part")), block)
        last = code.min(code.add(first, code.mul(arg("part"), block)), arg("outputs"))
        with code.loop(first, last, block) as output:
            places = (
                source,
                code.at(weights, code.mul(output, code.mul(arg("channels"), arg("taps")))),
                code.at(bias, output),
                self._moved(y, (output, "y_channel")),
            )
            left = code.sub(arg("outputs"), output)
            tail = code.less(left, block)

            def full(places: tuple[Value, ...] = places) -> None:
                self._tiles(places, channel, row_pitch, v.shape.vectors, None)

            def partial(places: tuple[Value, ...] = places, left: Value = left) -> None:
                self._tiles(places, channel, row_pitch, v.tail, left)

            if v.tail:
                code.choose(tail, partial, full)
            else:
                full()
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
        begin = code.mul(first_column, self.variant.stride)
        first, last = (
            code.max(0, code.min(code.sub(arg(name), begin), arg("extent"))) for name in ("first", "last")
        )
        columns = Columns(code.at(code.integers("columns"), begin), first, last, arg("extent"))
        step = 1 if self.variant.unit_input else arg("x_column")
        place = code.variable(strip)
        start = code.mul(first_row, arg("row_stride"))
        with code.loop(0, arg("channels")) as channel, code.loop(0, arg("depth_taps")) as tap:
            at = code.add(code.mul(depth, arg("depth_stride")), code.mul(tap, arg("depth_dilation")))
            plane = code.item(code.integers("depths"), at)
            with code.loop(0, arg("strip_rows")) as number:
                row = code.item(code.integers("rows"), code.add(start, code.mul(number, arg("row_step"))))
                target = place.get()
                source = self._moved(x, (channel, "x_channel"), (plane, "x_depth"), (row, "x_row"))

                def samples(source: Value = source, target: Value = target) -> None:
                    fill_row(code, columns, source, step, target)

                def zeros(target: Value = target) -> None:
                    fill_zeros(code, target, arg("extent"))

                code.choose(code.less(-1, code.min(plane, row)), samples, zeros)
                place.set(code.at(target, arg("pitch")))

    def _tiles(
        self, places: tuple[Value, ...], channel: Value, row_pitch: Value, vectors: int, left: Value | None
    ) -> None:
        """Compute a block of output channels for all tiles of the band; ``left`` are its outputs if it is not full."""
        code, v, arg = self.code, self.variant, self.code.integer
        source, weights, bias, y = places
        items, width = v.shape.items, v.columns
        height = items // width
        columns = arg("span")
        across = code.div(code.add(columns, width - 1), width)
        with code.loop(0, arg("band"), height) as row, code.loop(0, across) as number:
            top = self._first_of(code.div(row, height), height, arg("band"))
            column = self._first_of(number, width, columns)
            corner = code.at(source, code.add(code.mul(top, row_pitch), code.mul(column, v.stride)))
            panel = self._sums(corner, weights, bias, channel, vectors, left)
            target = self._moved(y, (top, "y_row"), (column, "y_column"))
            self._write(panel, target, vectors, left)

    def _sums(
        self, corner: Value, weights: Value, bias: Value, channel: Value, vectors: int, left: Value | None
    ) -> Panel:
        """All steps of a tile."""
        code, v, arg = self.code, self.variant, self.code.integer
        lanes = code.lanes if left is None else code.sub(left, (vectors - 1) * code.lanes)

        def vector(pointer: Value, number: int) -> Value:
            if left is None or number < vectors - 1:
                return code.load(pointer, number * code.lanes)
            return code.load_some(pointer, number * code.lanes, lanes)

        panel = Panel(code, PanelShape(vectors, v.shape.items), [vector(bias, number) for number in range(vectors)])
        step = v.shape.vectors * code.lanes if left is None else left
        position = code.variable(weights)
        with code.loop(0, arg("channels")) as number:
            base = code.at(corner, code.mul(number, channel))
            with code.loop(0, arg("taps")) as tap:
                at, here = code.at(base, code.item(code.integers("offsets"), tap)), position.get()

                def item(i: int, at: Value = at) -> Value:
                    return code.at(at, i // v.columns * v.pitch + i % v.columns * v.stride)

                panel.step([vector(here, number) for number in range(vectors)], item)
                position.set(code.at(here, step))
        return panel

    def _write(self, panel: Panel, target: Value, vectors: int, left: Value | None) -> None:
        code, v, arg = self.code, self.variant, self.code.integer
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
