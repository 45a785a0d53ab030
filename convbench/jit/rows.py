"""Direct convolution of few channels: lanes are neighbouring outputs of a row, and rows of a tile share what they read.

    for each unit of the job (image, group, slice of depth, residue, band of rows):
        for each span of columns:
            copy the input beneath it into a strip, padded          (unless it can be read in place)
            for each output channel of the group, for each tile of it:     rows × vectors sums in registers
                for each input channel and tap of the depth:
                    for each row of input j, for each tap s of a row:
                        read ``vectors`` vectors of row j, shifted by s
                        sums[r] += weights[s, j − r] · vectors        for all rows r of the tile that row j is beneath

A tile of 4 rows and taps 0 … K − 1 of a column: row j of the input serves each output row whose taps reach it.

    input row   0    1    2    3   …  K−1   K   K+1  K+2
    output 0   w₀   w₁   w₂   w₃   …  w₋₁
    output 1        w₀   w₁   w₂   …  w₋₂  w₋₁
    output 2             w₀   w₁   …  w₋₃  w₋₂  w₋₁
    output 3                  w₀   …  w₋₄  w₋₃  w₋₂  w₋₁
               head ────────→ main ─────→ tail ───────→

A shifted vector straddles two cache lines as a rule and takes both reads of a cycle; it serves up to ``rows``
multiply–adds, as each weight, spread over a vector, serves ``vectors``: 4 × 4 sums take 12 reads' time for 16
multiply–adds, of which the CPU does as many as of reads. Weights are packed by (tap of the row, tap of the column), so
that those of a step are neighbours. Columns of few taps are written out; else the rows of input are a loop, where only
head and tail, which serve fewer output rows, are written out. Rows of zeros are then left out.

Along the last axis a stride parts a strip into its phases, so that lanes are neighbours again. A dilation d parts the
rows of input into d residues, which have no output in common: each is an image of its own whose taps are neighbours.
Where taps of a row are far apart, a strip is made of *segments*, what one tap reads, without what lies between. A long
signal is *folded*: rows are the pieces of ``vectors`` vectors that follow one another, overlapping where they are read,
and taps are folded alike; those that fill no piece come last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from convbench.jit.compile import Kernel, compiled
from convbench.jit.ir import Code, Value
from convbench.jit.target import Target

__all__ = ["ARGUMENTS", "Variant", "kernel"]

ARGUMENTS = (
    *("x", "y", "weights", "bias", "scratch"),  # addresses
    *("x_image", "x_group", "x_channel", "x_depth", "x_row", "x_column"),  # strides in items
    *("y_image", "y_group", "y_channel", "y_depth", "y_residue", "y_row", "y_column"),
    *("units", "units_a_job", "groups", "outputs", "channels", "output_depths", "residues", "bands"),
    *("output_rows", "output_columns", "band", "span"),
    *("depths", "depth_taps", "depth_stride", "depth_dilation"),  # a table of sources, …
    *("rows", "row_taps", "residue_stride", "row_stride", "row_dilation", "row_before", "row_extent"),  # … one more
    *("row_first", "row_last", "beneath"),  # positions read in place, and how many lie beneath a band
    *("clip_first", "clip_last"),  # positions beyond which rows are zero or not there
    *("columns", "column_taps", "longer", "column_stride", "column_dilation", "column_before"),
    *("column_first", "column_last", "column_extent", "column_reach"),
    *("offsets", "strip_offsets"),  # of the taps of a row, read in place and from a strip
    *("in_place_first", "in_place_last"),  # output columns that may be read in place
    *("strip_rows", "pitch", "phase", "strip_step", "strip_items", "segments", "scratch_items"),
    *("flat_outputs",),  # of a folded signal
)


@dataclass(frozen=True)
class Variant:
    """What is built into the machine code.

    Attributes
    ----------
    rows, vectors : int
        Of the tile.
    row_step : int
        Input rows from one output row of a tile to the next, in units of the dilation.
    taps : int
        Of a column, if they are written out, else 0.
    ragged : bool
        The first ``longer`` columns of taps have one more, of which the weights follow those of all columns.
    phases : int
        Of the last axis: its stride if that is 1 or 2, else 0 for any.
    zeros : bool
        Beyond the input lie zeros.
    dilated : bool
        There are several residues, or rows of input between those of one.
    folded : bool
        Rows are pieces of one signal.
    unit_input, unit_output : bool
        Columns are neighbours in x, in y.
    """

    dtype: str
    rows: int
    vectors: int
    row_step: int = 1
    taps: int = 0
    phases: int = 1
    zeros: bool = True
    ragged: bool = False
    dilated: bool = False
    folded: bool = False
    unit_input: bool = True
    unit_output: bool = True


@cache
def kernel(variant: Variant, target: Target) -> Kernel:
    """Return the compiled kernel."""
    return compiled(_Rows(variant, target).text(), "rows", target)


@dataclass(frozen=True)
class _Source:
    """Where tiles read: the address of the first output's first sample, and distances in items."""

    corner: Value
    channel: Value
    depth: Value
    row: Value
    offsets: Value
    in_place: Value


@dataclass(frozen=True)
class _Area:
    """Positions of the padded input: the first row and how many of its residue, the first column and how many."""

    row: Value
    rows: Value
    column: Value
    columns: Value


class _Rows:
    """Writes one variant."""

    def __init__(self, variant: Variant, target: Target) -> None:
        self.variant = variant
        self.code = Code("rows", target, variant.dtype, ARGUMENTS)
        self.width = variant.vectors * self.code.lanes
        self.residues, self.dilation = (  # constants spare divisions
            self.code.integer(name) if variant.dilated else 1 for name in ("residues", "row_dilation")
        )

    def text(self) -> str:
        code, arg = self.code, self.code.integer
        first = code.mul(code.job, arg("units_a_job"))
        last = code.min(code.add(first, arg("units_a_job")), arg("units"))
        with code.loop(first, last) as unit:
            rest, band = code.divmod(unit, arg("bands"))
            rest, residue = code.divmod(rest, self.residues)
            rest, depth = code.divmod(rest, arg("output_depths"))
            image, group = code.divmod(rest, arg("groups"))
            x = self._moved(code.pointer("x"), (image, "x_image"), (group, "x_group"))
            y = self._moved(code.pointer("y"), (image, "y_image"), (group, "y_group"), (depth, "y_depth"))
            first_row = code.mul(band, arg("band"))
            left = code.sub(self._divided_up(code.sub(arg("output_rows"), residue), self.residues), first_row)
            with code.when(code.less(0, left)):  # residues may differ by a row
                self._band(x, self._moved(y, (residue, "y_residue")), group, depth, residue, first_row, left)
        return code.finish()

    def _divided_up(self, a: Value, b: Value) -> Value:
        """Divide integers that are not negative, and round up."""
        return self.code.div(self.code.add(a, self.code.sub(b, 1)), b)

    def _moved(self, pointer: Value, *moves: tuple[Value, str]) -> Value:
        code = self.code
        for count, stride in moves:
            pointer = code.at(pointer, code.mul(count, code.integer(stride)))
        return pointer

    # -- input ------------------------------------------------------------------------------------------------

    def _band(
        self, x: Value, y: Value, group: Value, depth: Value, residue: Value, first_row: Value, left: Value
    ) -> None:
        """Cut a band into spans: those left and right of what is read in place, and that; ``left`` rows are left."""
        code, arg = self.code, self.code.integer
        begin = code.add(code.mul(residue, arg("residue_stride")), code.mul(first_row, arg("row_stride")))
        rows = code.min(arg("band"), left)
        inside = code.both(
            code.less(code.sub(arg("row_first"), 1), begin),
            code.less(code.add(begin, arg("beneath")), code.add(arg("row_last"), 1)),
        )
        left = code.select(inside, arg("in_place_first"), 0)
        right = code.select(inside, arg("in_place_last"), 0)
        column = code.variable(0)
        with code.repeat(lambda: code.less(column.get(), arg("output_columns"))):
            start = column.get()
            in_place = code.both(code.less(code.sub(left, 1), start), code.less(start, right))
            border = code.select(code.less(start, left), left, arg("output_columns"))
            stop = code.select(in_place, right, code.min(code.add(start, arg("span")), border))
            source = self._source(x, depth, begin, start, stop, in_place)
            with code.loop(0, arg("outputs")) as output:
                target = self._moved(y, (output, "y_channel"))
                self._tiles(source, target, group, output, depth, begin, first_row, rows, start, stop)
            column.set(stop)

    def _source(self, x: Value, depth: Value, begin: Value, start: Value, stop: Value, in_place: Value) -> _Source:
        """Return the input itself or a strip, which is filled."""
        code, arg = self.code, self.code.integer
        strip = code.at(code.pointer("scratch"), code.mul(code.thread, arg("scratch_items")))
        with code.when(code.builder.not_(in_place)):
            self._fill(x, strip, depth, begin, start, stop)
        sheet = code.mul(arg("segments"), arg("strip_items"))
        row = code.sub(begin, arg("row_before"))
        here = code.at(self._moved(x, (row, "x_row")), code.sub(start, arg("column_before")))

        def choice(yes: Value, no: Value) -> Value:
            return code.select(in_place, yes, no)

        return _Source(
            choice(here, strip),
            choice(arg("x_channel"), code.mul(arg("depth_taps"), sheet)),
            choice(arg("x_depth"), sheet),
            choice(code.mul(arg("x_row"), arg("row_dilation")), arg("strip_step")),
            choice(code.integers("offsets"), code.integers("strip_offsets")),
            in_place,
        )

    def _plane(self, depth: Value, tap: Value) -> Value:
        code, arg = self.code, self.code.integer
        position = code.add(code.mul(depth, arg("depth_stride")), code.mul(tap, arg("depth_dilation")))
        return code.item(code.integers("depths"), position)

    def _fill(self, x: Value, strip: Value, depth: Value, begin: Value, start: Value, stop: Value) -> None:
        """Copy what lies beneath a span: (channel, tap along the depth, segment, row, phase, column)."""
        code, arg, v = self.code, self.code.integer, self.variant
        if v.folded:
            beneath = code.min(arg("beneath"), code.sub(arg("column_extent"), begin))
            area = _Area(0, 1, begin, beneath)
        else:
            origin = code.mul(start, arg("column_stride"))
            columns = code.mul(code.sub(code.sub(stop, start), 1), arg("column_stride"))
            extent = code.add(columns, arg("column_reach"))
            rows = self._rows_before(arg("row_extent"), begin, arg("strip_rows"))
            area = _Area(begin, rows, origin, extent)
        place = code.variable(strip)
        with code.loop(0, arg("channels")) as channel, code.loop(0, arg("depth_taps")) as tap:
            plane = self._plane(depth, tap)
            source = self._moved(x, (channel, "x_channel"), (plane, "x_depth"))
            with code.loop(0, arg("segments")) as segment:
                target = place.get()
                place.set(code.at(target, arg("strip_items")))
                part = replace(area, column=code.add(area.column, code.mul(segment, arg("column_dilation"))))
                with code.when(code.less(-1, plane)):
                    if v.unit_input and v.phases:
                        self._copy_vectors(source, target, part)
                    else:
                        self._copy_numbers(source, target, part)

    def _copy_vectors(self, source: Value, strip: Value, area: _Area) -> None:
        """Copy by columns of vectors, each of which has one mask for all rows; then what a boundary repeats."""
        code, arg, v = self.code, self.code.integer, self.variant
        first, last = (
            code.max(0, code.min(code.sub(arg(name), area.column), area.columns))
            for name in ("column_first", "column_last")
        )
        top, bottom = 0, area.rows
        if v.zeros and not v.folded:
            top, bottom = (self._rows_before(arg(name), area.row, area.rows) for name in ("clip_first", "clip_last"))
            if v.taps:  # else rows of zeros are not read
                for start, stop in ((0, top), (bottom, area.rows)):
                    with code.loop(code.mul(start, arg("pitch")), code.mul(stop, arg("pitch")), code.lanes) as i:
                        code.store(code.zeros(), strip, i)
        here = code.at(source, code.sub(area.column, arg("column_before")))
        wide = v.phases * code.lanes
        with code.loop(0, area.columns, wide) as position:
            target = code.at(strip, code.div(position, v.phases))
            starts = [code.add(position, number * code.lanes) for number in range(v.phases)]
            masks = [code.lanes_between(code.sub(first, start), code.sub(last, start), 0) for start in starts]

            def column(masked: bool, starts: list[Value] = starts, target: Value = target) -> None:
                with code.loop(top, bottom) as row:
                    line = self._moved(here, (self._row_number(area, row), "x_row"))
                    vectors = [
                        code.load_lanes(line, start, mask, code.zeros()) if masked else code.load(line, start)
                        for start, mask in zip(starts, masks, strict=True)
                    ]
                    self._put(vectors, code.at(target, code.mul(row, arg("pitch"))))

            inside = code.both(code.less(code.sub(first, 1), position), code.less(code.add(position, wide - 1), last))
            code.choose(inside, lambda: column(False), lambda: column(True))
        if not v.zeros:
            with code.loop(0, area.rows) as row:
                line = self._moved(source, (self._row_number(area, row), "x_row"))
                for start, stop in ((0, first), (last, area.columns)):
                    self._copy_row(line, code.at(strip, code.mul(row, arg("pitch"))), area.column, start, stop)

    def _put(self, vectors: list[Value], target: Value) -> None:
        """Write neighbours, each phase to its place."""
        code, lanes = self.code, self.code.lanes
        if len(vectors) == 2:
            low, high = vectors
            vectors = [code.shuffle(low, high, list(range(phase, 2 * lanes, 2))) for phase in (0, 1)]
        for phase, vector in enumerate(vectors):
            code.store(vector, target, code.mul(code.integer("phase"), phase))

    def _row_number(self, area: _Area, row: Value) -> Value:
        """Return which row of the input a row of the strip is."""
        code, arg, v = self.code, self.code.integer, self.variant
        if v.folded:
            return 0
        position = self._position(area, row)
        return code.sub(position, arg("row_before")) if v.zeros else code.item(code.integers("rows"), position)

    def _position(self, area: _Area, row: Value) -> Value:
        return self.code.add(area.row, self.code.mul(row, self.dilation))

    def _rows_before(self, border: Value, position: Value, most: Value) -> Value:
        """Count the rows of a residue from a position on, up to a border."""
        distance = self.code.max(0, self.code.sub(border, position))
        return self.code.min(self._divided_up(distance, self.dilation), most)

    def _copy_numbers(self, source: Value, strip: Value, area: _Area) -> None:
        """Copy one by one, from any strides and to any phases."""
        code, arg, v = self.code, self.code.integer, self.variant
        with code.loop(0, area.rows) as row:
            target = code.at(strip, code.mul(row, arg("pitch")))
            number = 0 if v.folded else code.item(code.integers("rows"), self._position(area, row))

            def samples(number: Value = number, target: Value = target) -> None:
                self._copy_row(self._moved(source, (number, "x_row")), target, area.column, 0, area.columns)

            def zeros(target: Value = target) -> None:
                with code.loop(0, arg("pitch"), code.lanes) as i:
                    code.store(code.zeros(), target, i)

            code.choose(code.less(-1, number), samples, zeros)

    def _copy_row(self, line: Value, target: Value, origin: Value, start: Value, stop: Value) -> None:
        """Copy positions start … stop − 1 of a row as the table says."""
        code, arg = self.code, self.code.integer
        with code.loop(start, stop) as position:
            index = code.item(code.integers("columns"), code.add(origin, position))
            value = code.variable(code.number(0.0))
            with code.when(code.less(-1, index)):
                value.set(code.item(line, code.mul(index, arg("x_column"))))
            code.put(value.get(), target, self._place(position))

    def _place(self, position: Value) -> Value:
        """Return where a position lies in a row of the strip."""
        code, arg = self.code, self.code.integer
        if self.variant.phases == 1:
            return position
        index, phase = code.divmod(position, self.variant.phases or arg("column_stride"))
        return code.add(code.mul(phase, arg("phase")), index)

    # -- tiles ------------------------------------------------------------------------------------------------

    def _tiles(
        self, source: _Source, y: Value, group: Value, output: Value, depth: Value,
        begin: Value, first_row: Value, rows: Value, start: Value, stop: Value,
    ) -> None:  # fmt: skip
        """Compute one output channel of a span of a band."""
        code, arg, v = self.code, self.code.integer, self.variant
        channel = code.add(code.mul(group, arg("outputs")), output)
        number = code.mul(code.mul(arg("channels"), arg("depth_taps")), self._weights_of_sheet())
        weights = code.at(code.pointer("weights"), code.mul(channel, number))
        bias = code.broadcast(code.pointer("bias"), channel)
        with code.loop(0, rows, v.rows) as row:
            down = code.at(source.corner, code.mul(code.mul(row, v.row_step), source.row))
            clip = self._clipped(code.add(begin, code.mul(row, arg("row_stride")))) if not v.taps else (0, 0)
            left = code.sub(rows, row)  # rows of the tile that exist
            target = self._moved(y, (code.add(first_row, row), "y_row"))
            with code.loop(start, stop, self.width) as column:
                corner = code.at(down, code.sub(column, start))
                sums = [[code.variable(bias) for _ in range(v.vectors)] for _ in range(v.rows)]
                self._sum(sums, source, corner, weights, depth, clip)
                place = self._moved(target, (column, "y_column"))
                if v.folded:
                    flat = code.sub(arg("flat_outputs"), code.mul(code.add(first_row, row), self.width))
                    counts = [code.min(code.sub(flat, r * self.width), self.width) for r in range(v.rows)]
                else:
                    counts = [code.sub(stop, column)] * v.rows
                self._write(sums, place, left, counts)

    def _weights_of_sheet(self) -> Value:
        code, arg = self.code, self.code.integer
        return code.add(code.mul(arg("column_taps"), arg("row_taps")), arg("longer"))

    def _clipped(self, position: Value) -> tuple[Value, Value]:
        """Return the first and the last row of input + 1 that a tile at a position reads."""
        code, arg, v = self.code, self.code.integer, self.variant
        most = code.add(arg("row_taps"), (v.rows - 1) * v.row_step)
        first, last = (self._rows_before(arg(name), position, most) for name in ("clip_first", "clip_last"))
        return first, last

    def _sum(
        self, sums: list[list[Value]], source: _Source, corner: Value, weights: Value, depth: Value,
        clip: tuple[Value, Value],
    ) -> None:  # fmt: skip
        """Add up all channels and taps of a tile."""
        code, arg, v = self.code, self.code.integer, self.variant
        size = self._weights_of_sheet()
        position = code.variable(weights)
        with code.loop(0, arg("channels")) as channel, code.loop(0, arg("depth_taps")) as tap:
            plane, here = self._plane(depth, tap), position.get()
            position.set(code.at(here, size))
            with code.when(code.less(-1, plane)):
                sheet = code.select(source.in_place, plane, tap)
                base = code.at(corner, code.add(code.mul(channel, source.channel), code.mul(sheet, source.depth)))
                if v.taps:
                    self._written_out(sums, source, base, here)
                else:
                    self._by_rows(sums, source, base, here, clip)

    def _written_out(self, sums: list[list[Value]], source: _Source, base: Value, weights: Value) -> None:
        """For each tap of a row all rows of input, one by one."""
        code, arg, v = self.code, self.code.integer, self.variant

        def columns(start: Value, stop: Value, taps: int) -> None:
            with code.loop(start, stop) as tap:
                at = code.at(base, code.item(source.offsets, tap))
                here = code.at(weights, code.mul(tap, v.taps))
                more = code.at(self._more(weights), tap)
                for j in range(taps + (v.rows - 1) * v.row_step):
                    number = {r: j - r * v.row_step for r in range(v.rows) if 0 <= j - r * v.row_step < taps}
                    if number:
                        self._row(sums, at, {r: code.at(here, i) if i < v.taps else more for r, i in number.items()})
                    at = code.at(at, source.row)

        longer = arg("longer") if v.ragged else 0
        if v.ragged:
            columns(0, longer, v.taps + 1)
        columns(longer, arg("column_taps"), v.taps)

    def _more(self, weights: Value) -> Value:
        """Return where the weights are that some columns of taps have more."""
        return self.code.at(weights, self.code.mul(self.code.integer("column_taps"), self.code.integer("row_taps")))

    def _by_rows(
        self, sums: list[list[Value]], source: _Source, base: Value, weights: Value, clip: tuple[Value, Value]
    ) -> None:
        """For each row of input all taps of a row: head, main and tail; then what some columns of taps have more."""
        code, arg, v = self.code, self.code.integer, self.variant
        reach, taps, (first, last) = (v.rows - 1) * v.row_step, arg("row_taps"), clip

        def row(j: Value, served: list[int]) -> None:
            line, column = code.at(base, code.mul(source.row, j)), code.at(weights, j)
            with code.loop(0, arg("column_taps")) as tap:
                at = code.at(line, code.item(source.offsets, tap))
                here = code.at(column, code.mul(tap, taps))
                self._row(sums, at, {r: code.at(here, -r * v.row_step) for r in served})

        def single(j: Value, served: list[int]) -> None:
            with code.when(code.both(code.less(code.sub(first, 1), j), code.less(j, last))):
                row(j, served)

        for j in range(reach):
            single(j, [r for r in range(v.rows) if r * v.row_step <= j])
        with code.loop(code.max(first, reach), code.min(last, taps)) as j:
            row(j, list(range(v.rows)))
        for j in range(reach):
            single(code.add(taps, j), [r for r in range(v.rows) if r * v.row_step > j])
        if v.ragged:
            for r in range(v.rows):
                line = code.at(base, code.mul(source.row, code.add(taps, r * v.row_step)))
                with code.loop(0, arg("longer")) as tap:
                    at = code.at(line, code.item(source.offsets, tap))
                    self._row(sums, at, {r: code.at(self._more(weights), tap)})

    def _row(self, sums: list[list[Value]], at: Value, weights: dict[int, Value]) -> None:
        """One row of input, one tap of a row: multiply–adds for the output rows that it serves, by their weights."""
        code = self.code
        vectors = [code.load(at, number * code.lanes) for number in range(self.variant.vectors)]
        for r, place in weights.items():
            weight = code.broadcast(place)
            for number, vector in enumerate(vectors):
                sums[r][number].set(code.fma(weight, vector, sums[r][number].get()))

    # -- output -----------------------------------------------------------------------------------------------

    def _write(self, sums: list[list[Value]], place: Value, left: Value, counts: list[Value]) -> None:
        """Write what exists of a tile: its first rows, and of each the first columns."""
        code, arg, v = self.code, self.code.integer, self.variant
        lines = [code.at(place, code.mul(arg("y_row"), r)) for r in range(v.rows)]
        if not v.unit_output:
            for r in range(v.rows):
                with code.when(code.less(r, left)):
                    self._scatter(sums[r], lines[r], counts[r])
            return

        def row(r: int, masks: list[Value] | None) -> None:
            for number in range(v.vectors):
                if masks is None:
                    code.store(sums[r][number].get(), lines[r], number * code.lanes)
                else:
                    code.store_lanes(sums[r][number].get(), lines[r], number * code.lanes, masks[number])

        def masks_of(count: Value) -> list[Value]:
            return [code.lanes_between(0, count, number * code.lanes) for number in range(v.vectors)]

        def whole() -> None:
            for r in range(v.rows):
                row(r, None)

        def partial() -> None:
            common = masks_of(counts[0])
            for r in range(v.rows):
                with code.when(code.less(r, left)):
                    row(r, masks_of(counts[r]) if v.folded else common)

        def narrow() -> None:
            common = masks_of(counts[0])
            for r in range(v.rows):
                row(r, common)

        full = code.both(code.less(v.rows - 1, left), code.less(self.width - 1, counts[-1]))
        if v.folded:
            code.choose(full, whole, partial)
        else:
            code.choose(full, whole, lambda: code.choose(code.less(v.rows - 1, left), narrow, partial))

    def _scatter(self, vectors: list[Value], place: Value, count: Value) -> None:
        """Write columns that are not neighbours."""
        code, arg = self.code, self.code.integer
        end = code.mul(code.add(code.thread, 1), arg("scratch_items"))
        buffer = code.at(code.pointer("scratch"), code.sub(end, self.width))
        for number, vector in enumerate(vectors):
            code.store(vector.get(), buffer, number * code.lanes)
        with code.loop(0, code.min(count, self.width)) as i:
            code.put(code.item(buffer, i), place, code.mul(i, arg("y_column")))
