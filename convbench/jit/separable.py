"""Separable convolution in strips: rows are filtered into a strip that stays in cache, columns are filtered from there.

A job makes one block of outputs. Its pictures in memory, all but the first and the last in scratch:

    x ──fetch──▶ line ──row pass──▶ strip ──[column pass ▶ second]──column pass──▶ y

The strip holds the block's filtered rows, halo included, *vector by vector*: ``strip[v][row][lane]``. So whatever
lies beneath one vector of outputs is one piece of memory, rows one vector apart, and a column pass is the same for
images of any width. Along three axes there are two column passes, with a second strip between them. A sum of several
products (rank r, several channels) adds them up in y, block by block.

Column passes have a register tile of one vector by some neighbouring outputs along the pass:

    sums[r] += Σ_k taps[k] · rows[r + k]        r < 8 (of 32 registers), 4 (of 16)

Four taps at a time read 8 + 3 vectors for 32 multiply–adds. Where the taps are symmetric or antisymmetric, rows that
share a tap are added first, so that half the multiplications are left; additions have units of their own.

The row pass has two forms. With few taps, neighbouring vectors of one row are multiplied by one tap at a time, read
from addresses that are not aligned. With many, as many rows as a vector has lanes are turned by a quarter, so that
neighbours along the row are neighbouring vectors; the row pass is then a column pass, and the result is turned back:
8 exchanges of lanes an output vector, for half to three quarters of the reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from convbench.jit.compile import Kernel, compiled
from convbench.jit.ir import Code, Value, Variable
from convbench.jit.lines import moved
from convbench.jit.strips import copy
from convbench.jit.target import Target

__all__ = [
    "ARGUMENTS",
    "GENERAL",
    "ODD",
    "SYMMETRIC",
    "WEIGHT_ARGUMENTS",
    "Form",
    "outputs_per_tile",
    "row_vectors",
    "separable_kernel",
]

#: Kinds of taps.
GENERAL, SYMMETRIC, ODD = 0, 1, 2

_UNROLLED = 4  # taps

#: What the tables of all separable kernels begin with: addresses, and the sizes of prepared weights.
WEIGHT_ARGUMENTS = (
    *("x", "y", "starts", "taps", "forms", "scratch"),
    *("pair_taps", "mid_taps", "last_taps", "pair_forms", "rank"),
)

#: The kernel's table. Axes 0 and 1 are those of rows, axis 2 is along rows; sizes and strides are in items.
ARGUMENTS = (
    *WEIGHT_ARGUMENTS,
    *("xn", "xg", "xc", "x0", "x1", "x2"),
    *("yn", "yg", "yo", "y0", "y1", "y2"),
    *("groups", "outs", "channels"),
    *("p0", "p1", "p2", "k0", "k1", "k2", "s0", "s1", "s2", "d0", "d1", "d2"),
    *("block0", "block1", "block2", "blocks0", "blocks1", "blocks2"),
    *("rows0", "rows1", "columns", "places", "offsets"),  # tables
    *("first", "last"),  # positions of a row that read neighbours
    *("scratch_size", "line_pitch", "strip_rows", "second_rows", "panel"),
    *("line", "turned", "results", "strip", "second", "patch"),  # places in scratch
)


@dataclass(frozen=True)
class Form:
    """What a kernel is compiled for.

    Attributes
    ----------
    dtype : str
    depth : bool
        There is a pass along axis 0 as well.
    turned : bool
        The row pass turns rows by a quarter.
    shared : tuple of bool
        Along each axis: stride and dilation are 1, so that neighbouring outputs share rows.
    """

    dtype: str
    depth: bool
    turned: bool
    shared: tuple[bool, bool, bool]


def outputs_per_tile(target: Target) -> int:
    """Return how many neighbouring outputs a column pass makes at once."""
    return 8 if target.registers >= 32 else 4


def row_vectors(target: Target) -> int:
    """Return how many vectors of a row the plain row pass makes at once."""
    return 8 if target.registers >= 32 else 4


@cache
def separable_kernel(target: Target, form: Form) -> Kernel:
    """Return a compiled kernel."""
    code = Code("separable", target, form.dtype, ARGUMENTS)
    _Block(code, form).run()
    return compiled(code.finish(), "separable", target)


class _Block:
    """The code of one job: a block of outputs of one output channel."""

    def __init__(self, code: Code, form: Form) -> None:
        self.code, self.form = code, form
        self.tile = outputs_per_tile(code.target)
        self.at = code.integer
        scratch = code.at(code.pointer("scratch"), code.mul(code.thread, self.at("scratch_size")))
        self.line, self.turned, self.results, self.strip, self.second, self.patch = (
            code.at(scratch, self.at(name)) for name in ("line", "turned", "results", "strip", "second", "patch")
        )

    def run(self) -> None:
        """Sum over channels and the products of each."""
        code, at = self.code, self.at
        self._find_place()
        with code.loop(0, at("channels")) as c:
            pair = code.add(code.mul(self.out, at("channels")), c)
            taps = code.at(code.pointer("taps"), code.mul(pair, at("pair_taps")))
            forms = code.at(code.integers("forms"), code.mul(pair, at("pair_forms")))
            x = code.at(self.x, code.mul(c, at("xc")))
            with code.loop(0, code.item(forms)) as b:
                self._row_pass(x, code.at(taps, code.mul(b, at("k2"))), code.item(forms, code.add(b, 2)))
                self._column_passes(taps, forms, b, code.equal(code.add(c, b), 0))

    def _column_passes(self, taps: Value, forms: Value, b: Value, is_first: Value) -> None:
        """Filter strip ``b`` of a pair of channels into y: one pass, or two for each product that it is part of."""
        code, at = self.code, self.at
        last_taps, kinds = code.at(taps, at("last_taps")), code.at(forms, code.add(at("rank"), 2))
        if not self.form.depth:
            self._last_pass(code.at(last_taps, code.mul(b, at("k1"))), code.item(kinds, b), is_first)
            return
        ranks = code.item(forms, 1)
        last_kinds = code.at(kinds, code.mul(at("rank"), ranks))
        with code.loop(0, ranks) as a:
            middle = code.add(code.mul(a, at("rank")), b)
            mid_taps = code.at(taps, code.add(at("mid_taps"), code.mul(middle, at("k1"))))
            self._middle_pass(mid_taps, code.item(kinds, middle))
            starts_here = code.both(is_first, code.equal(a, 0))
            self._last_pass(code.at(last_taps, code.mul(a, at("k0"))), code.item(last_kinds, a), starts_here)

    def _find_place(self) -> None:
        """Take the job's number apart: example, group, output channel, block."""
        code, at = self.code, self.at
        rest, tile = code.divmod(code.job, at("blocks2"))
        rest, block1 = code.divmod(rest, at("blocks1"))
        rest, block0 = code.divmod(rest, at("blocks0"))
        rest, o = code.divmod(rest, at("outs"))
        n, g = code.divmod(rest, at("groups"))
        self.out = code.add(code.mul(g, at("outs")), o)
        begins = [code.mul(block, at(f"block{axis}")) for axis, block in enumerate((block0, block1, tile))]
        rests = (code.sub(at(f"p{axis}"), begin) for axis, begin in enumerate(begins))
        self.counts = [code.min(at(f"block{axis}"), left) for axis, left in enumerate(rests)]
        self.origins = [code.mul(begin, at(f"s{axis}")) for axis, begin in enumerate(begins)]
        self.extents = [self._extent(axis) for axis in range(3)]
        self.vectors = code.div(code.add(self.counts[2], code.lanes - 1), code.lanes)
        self.x = moved(self.code, code.pointer("x"), (n, "xn"), (g, "xg"))
        self.y = moved(
            self.code,
            code.pointer("y"),
            (n, "yn"),
            (g, "yg"),
            (o, "yo"),
            *((begins[axis], f"y{axis}") for axis in range(3)),
        )
        self.start = code.item(code.pointer("starts"), self.out)

    def _extent(self, axis: int) -> Value:
        """Return how many positions of an axis the block reads."""
        code, at = self.code, self.at
        outputs = code.mul(code.sub(self.counts[axis], 1), at(f"s{axis}"))
        return code.add(code.add(outputs, code.mul(code.sub(at(f"k{axis}"), 1), at(f"d{axis}"))), 1)

    # -- rows -------------------------------------------------------------------------------------------------

    def _row_pass(self, x: Value, taps: Value, kind: Value) -> None:
        """Filter the block's rows into the strip."""
        code = self.code
        total = code.mul(self.extents[0], self.extents[1])
        if not self.form.turned:
            with code.loop(0, total) as row:
                self._with_row(x, row, self.line, partial(self._filter_line, taps, row), partial(self._clear, row))
            return
        with code.loop(0, total, code.lanes) as first:
            with code.loop(0, code.min(code.lanes, code.sub(total, first))) as lane:
                line = code.at(self.line, code.mul(lane, self.at("line_pitch")))
                self._with_row(x, code.add(first, lane), line, lambda: None, partial(self._zero, line))
            self._filter_turned(taps, kind, first)

    def _with_row(self, x: Value, row: Value, line: Value, use: Callable[[], None], zero: Callable[[], None]) -> None:
        """Fetch a row and use it, or do what is to be done for a row of zeros, or nothing for one that nobody reads."""
        code = self.code
        i0, i1 = code.divmod(row, self.extents[1])
        index0 = code.item(code.integers("rows0"), code.add(self.origins[0], i0))
        index1 = code.item(code.integers("rows1"), code.add(self.origins[1], i1))
        least = code.min(index0, index1)

        def fetch() -> None:
            self._fetch(moved(self.code, x, (index0, "x0"), (index1, "x1")), line)
            use()

        with code.when(code.less(-2, least)):
            code.choose(code.less(-1, least), fetch, zero)

    def _fetch(self, row: Value, line: Value) -> None:
        """Copy what the block reads of a row to a line, margins included; where the table of places says."""
        code, at = self.code, self.at
        extent, origin = self.extents[2], self.origins[2]
        columns, places = code.integers("columns"), code.integers("places")

        def margin(start: Value, stop: Value) -> None:
            with code.loop(start, stop) as position:
                index = code.item(columns, code.add(origin, position))
                sample = code.variable(code.number(0.0))
                with code.when(code.less(-1, index)):
                    sample.set(code.item(row, code.mul(index, at("x2"))))
                code.put(sample.get(), line, code.item(places, position))

        first = code.min(code.max(code.sub(at("first"), origin), 0), extent)
        last = code.min(code.max(code.sub(at("last"), origin), first), extent)
        margin(0, first)
        with code.when(code.less(first, last)):
            inside = code.item(columns, code.add(origin, first))
            copy(code, code.at(row, inside), 1, code.at(line, first), code.sub(last, first))
        margin(last, extent)

    def _in_strip(self, vector: Value, row: Value) -> Value:
        code = self.code
        return code.at(self.strip, code.mul(code.add(code.mul(vector, self.at("strip_rows")), row), code.lanes))

    def _zero(self, line: Value) -> None:
        with self.code.loop(0, self.extents[2], self.code.lanes) as i:
            self.code.store(self.code.zeros(), line, i)

    def _clear(self, row: Value) -> None:
        with self.code.loop(0, self.vectors) as vector:
            self.code.store(self.code.zeros(), self._in_strip(vector, row))

    def _filter_line(self, taps: Value, row: Value) -> None:
        """Plain form: vectors of the line by one tap at a time. The last tile overlaps the one before."""
        code, wide = self.code, row_vectors(self.code.target)
        last = code.max(code.sub(self.vectors, wide), 0)
        with code.loop(0, self.vectors, wide) as begin:
            vector = code.min(begin, last)
            samples = code.at(self.line, code.mul(vector, code.lanes))
            sums = [code.variable(code.zeros()) for _ in range(wide)]
            with code.loop(0, self.at("k2")) as k:
                tap = code.broadcast(taps, k)
                window = code.at(samples, code.item(code.integers("offsets"), k))
                for v, total in enumerate(sums):
                    total.set(code.fma(code.load(window, v * code.lanes), tap, total.get()))
            for v, total in enumerate(sums):
                code.store(total.get(), self._in_strip(code.add(vector, v), row))

    def _filter_turned(self, taps: Value, kind: Value, first: Value) -> None:
        """As many lines as lanes: turn, filter as columns, turn back."""
        code, lanes = self.code, self.code.lanes
        with code.loop(0, self.extents[2], lanes) as position:
            lines = [
                code.load(self.line, code.add(code.mul(lane, self.at("line_pitch")), position)) for lane in range(lanes)
            ]
            for i, column in enumerate(code.transpose(lines)):
                code.store(column, self.turned, code.mul(code.add(position, i), lanes))
        with code.loop(0, self.counts[2], self.tile) as p:
            window = code.at(self.turned, code.mul(code.mul(p, self.at("s2")), lanes))
            sums = [code.variable(code.zeros()) for _ in range(self.tile)]
            self._accumulate(sums, window, 2, taps, kind)
            for r, total in enumerate(sums):
                code.store(total.get(), self.results, code.mul(code.add(p, r), lanes))
        with code.loop(0, self.vectors) as vector:
            square = code.at(self.results, code.mul(vector, lanes * lanes))
            columns = [code.load(square, i * lanes) for i in range(lanes)]
            for lane, row in enumerate(code.transpose(columns)):
                code.store(row, self._in_strip(vector, code.add(first, lane)))

    # -- columns ----------------------------------------------------------------------------------------------

    def _accumulate(self, sums: list[Variable], window: Value, axis: int, taps: Value, kind: Value) -> None:
        """Add Σ_k taps[k] · window[r·s + k·d] to each sum r; rows are one vector apart."""
        code = self.code
        steps = _Steps(code, sums, window, taps, self.at(f"k{axis}"))
        if not self.form.shared[axis]:
            steps.output_step, steps.tap_step = self.at(f"s{axis}"), self.at(f"d{axis}")
        code.choose(
            code.equal(kind, GENERAL),
            steps.general,
            lambda: code.choose(code.equal(kind, SYMMETRIC), steps.symmetric, steps.odd),
        )

    def _middle_pass(self, taps: Value, kind: Value) -> None:
        """Filter along axis 1 from the strip into the second strip, ``second[v][output][row][lane]``."""
        code = self.code
        outputs = self._outputs_of_strip()
        loops = code.loop(0, self.extents[0]), code.loop(0, self.vectors), code.loop(0, self.counts[1], self.tile)
        with loops[0] as i0, loops[1] as v, loops[2] as j:
            row = code.add(code.mul(i0, self.extents[1]), code.mul(j, self.at("s1")))
            sums = [code.variable(code.zeros()) for _ in range(self.tile)]
            self._accumulate(sums, self._in_strip(v, row), 1, taps, kind)
            for r, total in enumerate(sums):
                place = code.add(code.mul(v, outputs), code.add(j, r))
                code.store(total.get(), self._in_second(place, i0))

    def _in_second(self, place: Value, row: Value) -> Value:
        code = self.code
        return code.at(self.second, code.mul(code.add(code.mul(place, self.at("second_rows")), row), code.lanes))

    def _last_pass(self, taps: Value, kind: Value, is_first: Value) -> None:
        """Filter along the last axis that is left, into y."""
        if self.form.depth:
            self._depth_pass(taps, kind, is_first)
            return
        code, at = self.code, self.at
        loops = (
            code.loop(0, self.counts[0]),
            code.loop(0, self.vectors, at("panel")),
            code.loop(0, self.counts[1], self.tile),
        )
        with loops[0] as i, loops[1] as panel, loops[2] as j:
            row = code.add(code.mul(i, self.extents[1]), code.mul(j, at("s1")))
            with code.loop(panel, code.min(self.vectors, code.add(panel, at("panel")))) as v:
                y = moved(code, self.y, (i, "y0"), (j, "y1"), (code.mul(v, code.lanes), "y2"))
                self._outputs(self._in_strip(v, row), 1, taps, kind, is_first, y, v, code.sub(self.counts[1], j))

    def _depth_pass(self, taps: Value, kind: Value, is_first: Value) -> None:
        """Filter along axis 0 from the second strip into y."""
        code = self.code
        loops = code.loop(0, self.counts[1]), code.loop(0, self.counts[0], self.tile), code.loop(0, self.vectors)
        with loops[0] as j, loops[1] as i, loops[2] as v:
            place = code.add(code.mul(v, self._outputs_of_strip()), j)
            window = self._in_second(place, code.mul(i, self.at("s0")))
            y = moved(code, self.y, (i, "y0"), (j, "y1"), (code.mul(v, code.lanes), "y2"))
            self._outputs(window, 0, taps, kind, is_first, y, v, code.sub(self.counts[0], i))

    def _outputs_of_strip(self) -> Value:
        """Return how many outputs of axis 1 the second strip has room for."""
        code = self.code
        return code.mul(code.div(code.add(self.at("block1"), self.tile - 1), self.tile), self.tile)

    def _outputs(
        self, window: Value, axis: int, taps: Value, kind: Value, is_first: Value, y: Value, vector: Value, rows: Value
    ) -> None:
        """Make one vector by some outputs of y. Cut or strided ones take the way through a patch of scratch."""
        code = self.code
        pitch, lanes = self.at(f"y{axis}"), code.min(code.lanes, code.sub(self.counts[2], code.mul(vector, code.lanes)))
        rows = code.min(rows, self.tile)
        whole = code.both(code.equal(rows, self.tile), code.equal(lanes, code.lanes))
        straight = code.both(whole, code.equal(self.at("y2"), 1))
        target, step = code.select(straight, y, self.patch), code.select(straight, pitch, code.const(code.lanes))
        begin = code.select(is_first, code.spread(self.start), code.zeros())
        sums = [code.variable(begin) for _ in range(self.tile)]
        self._accumulate(sums, window, axis, taps, kind)
        with code.when(code.builder.not_(is_first)):
            with code.when(code.builder.not_(straight)):
                self._copy_patch(y, pitch, rows, lanes, to_y=False)
            for r, total in enumerate(sums):
                total.set(code.fadd(total.get(), code.load(target, code.mul(r, step))))
        for r, total in enumerate(sums):
            code.store(total.get(), target, code.mul(r, step))
        with code.when(code.builder.not_(straight)):
            self._copy_patch(y, pitch, rows, lanes, to_y=True)

    def _copy_patch(self, y: Value, pitch: Value, rows: Value, lanes: Value, *, to_y: bool) -> None:
        code = self.code
        with code.loop(0, rows) as r:
            line, patch = code.at(y, code.mul(r, pitch)), code.at(self.patch, code.mul(r, code.lanes))
            with code.loop(0, lanes) as lane:
                place = code.mul(lane, self.at("y2"))
                if to_y:
                    code.put(code.item(patch, lane), line, place)
                else:
                    code.put(code.item(line, place), patch, lane)


class _Steps:
    """The taps of a column pass, some at a time: vectors that several outputs read are read once."""

    def __init__(self, code: Code, sums: list[Variable], window: Value, taps: Value, count: Value) -> None:
        self.code, self.sums, self.window, self.taps, self.count = code, sums, window, taps, count
        self.output_step: Value = 1
        self.tap_step: Value = 1

    def general(self) -> None:
        """Multiply tap by tap."""
        self._some(0, self.count, self._general_steps)

    def symmetric(self) -> None:
        """Add first and last rows, second and last but one, …, then multiply."""
        self._pairs(self.code.fadd)

    def odd(self) -> None:
        """Subtract them."""
        self._pairs(self.code.fsub)

    def _pairs(self, join: Callable[[Value, Value], Value]) -> None:
        code = self.code
        half = code.div(self.count, 2)
        self._some(0, half, lambda k, taps: self._pair_steps(k, taps, join))
        with code.loop(half, code.sub(self.count, half)) as middle:
            self._general_steps(middle, 1)

    def _some(self, start: Value, stop: Value, steps: Callable[[Value, int], None]) -> None:
        code = self.code
        if isinstance(self.tap_step, int):
            whole = code.sub(stop, code.rem(stop, _UNROLLED))
            with code.loop(start, whole, _UNROLLED) as k:
                steps(k, _UNROLLED)
            start = whole
        with code.loop(start, stop) as k:
            steps(k, 1)

    def _rows(self, tap: Value) -> Callable[[int], Value]:
        """Return a function of r that reads the row beneath output r at a tap, for the first time only."""
        code, lanes, read = self.code, self.code.lanes, dict[int, Value]()
        base = code.at(self.window, code.mul(code.mul(tap, self.tap_step), lanes))

        def row(r: int) -> Value:
            if r not in read:
                read[r] = code.load(base, code.mul(code.mul(r, self.output_step), lanes))
            return read[r]

        return row

    def _general_steps(self, k: Value, taps: int) -> None:
        code, row = self.code, self._rows(k)
        for i in range(taps):
            tap = code.broadcast(self.taps, code.add(k, i))
            for r, total in enumerate(self.sums):
                total.set(code.fma(row(r + i), tap, total.get()))

    def _pair_steps(self, k: Value, taps: int, join: Callable[[Value, Value], Value]) -> None:
        code, low, high = self.code, self._rows(k), self._rows(self.code.sub(self.code.sub(self.count, 1), k))
        for i in range(taps):
            tap = code.broadcast(self.taps, code.add(k, i))
            for r, total in enumerate(self.sums):
                total.set(code.fma(join(low(r + i), high(r - i)), tap, total.get()))
