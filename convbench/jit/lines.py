"""Columns first: rows of x are read where they lie, summed along columns into lines, and finished along rows into y.

What separable filters of few taps and box filters have in common. Nothing but some lines of the width of a block is
written between x and y:

    x rows ──sums along columns──▶ lines ──margins──▶ lines ──row pass──▶ y

Rows beyond the image are rows of zeros, or other rows, as a table of addresses says that each job makes for itself.
Positions beyond the ends of a row are left to the line: as columns are summed each by itself, what a margin reads is a
position of the line that has been summed already, or is summed for it alone.

For images whose samples are neighbours along the row, of stride 1 and dilation 1 along both axes.
"""

from __future__ import annotations

from collections.abc import Callable

from convbench.jit.ir import Code, Value

__all__ = ["LINE_ARGUMENTS", "LineBlock", "moved"]

#: What every such kernel's table ends with, after ``x``, ``y``, ``starts`` and others. Sizes and strides are in items;
#: a third axis in front has one tap.
LINE_ARGUMENTS = (
    *("xn", "xg", "xc", "x0", "x1", "x2"),
    *("yn", "yg", "yo", "y0", "y1", "y2"),
    *("groups", "outs", "channels"),
    *("p1", "p2", "k1", "k2", "block1", "block2", "blocks0", "blocks1", "blocks2"),
    *("rows0", "rows1", "columns"),  # tables
    *("first", "last"),  # positions of a row that read neighbours
    *("scratch_size", "line_pitch"),
    *("zeros", "rows", "lines", "patch", "sums"),  # places in scratch
)


def moved(code: Code, pointer: Value, *steps: tuple[Value, str]) -> Value:
    """Return the address so many strides further on, which arguments hold."""
    for count, stride in steps:
        pointer = code.at(pointer, code.mul(count, code.integer(stride)))
    return pointer


class LineBlock:
    """The code of one job: a block of outputs, rows by columns, of one output channel or of all of a group."""

    def __init__(self, code: Code, *, each_output: bool) -> None:
        self.code, self.at = code, code.integer
        at = self.at
        scratch = code.at(code.pointer("scratch"), code.mul(code.thread, at("scratch_size")))
        self.zeros, self.lines, self.patch, self.sums = (
            code.at(scratch, at(name)) for name in ("zeros", "lines", "patch", "sums")
        )
        self.rows = code.builder.bitcast(code.at(scratch, at("rows")), code.integers("rows0").type)
        rest, tile = code.divmod(code.job, at("blocks2"))
        rest, band = code.divmod(rest, at("blocks1"))
        rest, depth = code.divmod(rest, at("blocks0"))
        o: Value = 0
        if each_output:
            rest, o = code.divmod(rest, at("outs"))
        n, g = code.divmod(rest, at("groups"))
        self.out = code.add(code.mul(g, at("outs")), o)
        self.depth, self.row, self.column = depth, code.mul(band, at("block1")), code.mul(tile, at("block2"))
        self.height = code.min(at("block1"), code.sub(at("p1"), self.row))
        self.width = code.min(at("block2"), code.sub(at("p2"), self.column))
        self.extent = code.sub(code.add(self.width, at("k2")), 1)
        first = code.min(code.max(code.sub(at("first"), self.column), 0), self.extent)
        last = code.min(code.max(code.sub(at("last"), self.column), first), self.extent)
        vector_fits = code.less(code.lanes - 1, code.sub(last, first))
        self.first, self.last = first, code.select(vector_fits, last, first)
        self.x = moved(code, code.pointer("x"), (n, "xn"), (g, "xg"))
        places = (n, "yn"), (g, "yg"), (o, "yo"), (depth, "y0"), (self.row, "y1"), (self.column, "y2")
        self.y = moved(code, code.pointer("y"), *places)
        with code.loop(0, self.extent, code.lanes) as i:
            code.store(code.zeros(), self.zeros, i)

    # -- rows of x --------------------------------------------------------------------------------------------

    def find_rows(self, channel: Value, more: int) -> None:
        """Make the table of the rows that the block reads of a channel: addresses of position 0 of the block.

        ``more`` rows of zeros follow.
        """
        code, at = self.code, self.at
        x = code.at(moved(code, self.x, (channel, "xc")), self._shift())
        index0 = code.item(code.integers("rows0"), self.depth)
        count = code.sub(code.add(self.height, at("k1")), 1)
        zeros = code.builder.ptrtoint(self.zeros, code.job.type)
        with code.loop(0, code.add(count, more)) as i:
            address = code.variable(zeros)
            with code.when(code.both(code.less(i, count), code.less(-1, index0))):
                index1 = code.item(code.integers("rows1"), code.add(self.row, i))
                with code.when(code.less(-1, index1)):
                    row = moved(code, x, (index0, "x0"), (index1, "x1"))
                    address.set(code.builder.ptrtoint(row, code.job.type))
            code.put(address.get(), self.rows, i)

    def _shift(self) -> Value:
        """Return the sample that position 0 of the block reads, or would read if the row went on."""
        code, at = self.code, self.at
        samples = code.variable(0)
        with code.when(code.less(at("first"), at("last"))):
            samples.set(code.sub(code.item(code.integers("columns"), at("first")), at("first")))
        return code.add(samples.get(), self.column)

    def sample_row(self, number: Value) -> Value:
        """Return the address of a row of the table."""
        code = self.code
        return code.builder.inttoptr(code.item(self.rows, number), self.zeros.type)

    def line(self, number: Value) -> Value:
        """Return the address of a line."""
        return self.code.at(self.lines, self.code.mul(number, self.at("line_pitch")))

    # -- along rows -------------------------------------------------------------------------------------------

    def along(self, do: Callable[[Value], None]) -> None:
        """Do something for vectors of positions that cover all inside: at the ends some twice, otherwise aligned."""
        code, lanes = self.code, self.code.lanes
        position = code.variable(self.first)
        with code.repeat(lambda: code.less(position.get(), self.last)):
            here = code.min(position.get(), code.sub(self.last, lanes))
            do(here)
            position.set(code.mul(code.add(code.div(position.get(), lanes), 1), lanes))

    def fill_margins(self, lines: Value, alone: Callable[[Value, Value], Value]) -> None:
        """Fill the margins of lines; ``alone(line, sample)`` sums a column that is not in the line.

        Samples are counted from that of position 0.
        """
        code = self.code
        shift = self._shift()

        def fill(start: Value, stop: Value) -> None:
            with code.loop(start, stop) as position:
                index = code.item(code.integers("columns"), code.add(self.column, position))
                source = code.sub(index, shift)
                inside = code.both(code.less(self.first, code.add(source, 1)), code.less(source, self.last))
                with code.loop(0, lines) as number:
                    line, value = self.line(number), code.variable(code.number(0.0))
                    with code.when(code.less(-1, index)):
                        code.choose(
                            inside,
                            lambda: value.set(code.item(line, source)),
                            lambda: value.set(alone(number, source)),
                        )
                    code.put(value.get(), line, position)

        fill(0, self.first)
        fill(self.last, self.extent)

    def write_row(
        self, y: Value, is_first: Value, start: Value, make: Callable[[Value, list[Value]], list[Value]]
    ) -> None:
        """Write a row of y, or add to it; ``make(position, begin)`` adds to vectors of ``start`` or of zeros."""
        code, lanes = self.code, self.code.lanes
        straight = code.equal(self.at("y2"), 1)
        target = code.select(straight, y, self.patch)
        begin, goes_on = code.select(is_first, code.spread(start), code.zeros()), code.builder.not_(is_first)
        with code.when(code.both(code.builder.not_(straight), goes_on)), code.loop(0, self.width) as i:
            code.put(code.item(y, code.mul(i, self.at("y2"))), self.patch, i)

        def write(first: Value, last: Value, vectors: int) -> None:
            with code.loop(first, last, vectors * lanes) as position:
                sums = [code.variable(total) for total in make(position, [begin] * vectors)]
                with code.when(goes_on):
                    for v, total in enumerate(sums):
                        total.set(code.fadd(total.get(), code.load(target, code.add(position, v * lanes))))
                for v, total in enumerate(sums):
                    code.store(total.get(), target, code.add(position, v * lanes))

        many = 4 if code.target.registers >= 32 else 2
        most = code.sub(self.width, code.rem(self.width, many * lanes))
        whole = code.sub(self.width, code.rem(self.width, lanes))
        write(0, most, many)
        write(most, whole, 1)
        rest = code.sub(self.width, whole)
        with code.when(code.less(0, rest)):
            total = code.variable(make(whole, [begin])[0])
            with code.when(goes_on):
                total.set(code.fadd(total.get(), code.load_some(target, whole, rest)))
            code.store_some(total.get(), target, whole, rest)
        with code.when(code.builder.not_(straight)), code.loop(0, self.width) as i:
            code.put(code.item(self.patch, i), y, code.mul(i, self.at("y2")))
