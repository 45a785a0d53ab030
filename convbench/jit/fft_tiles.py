"""Convolution of tiles by FFT, where the lanes of a vector are independent transforms (:mod:`~.fft`).

A tile of n₁ × n₂ real samples is transformed along its first axis in blocks of columns, turned by a quarter, and
transformed along its second:

    columns:    lanes are L neighbouring columns           turned:    lanes are L frequencies k₁
                n₁ points, n₁·L numbers: they stay in L1              n₂ points, times the kernel's spectrum, and back

    x ──► column blocks ─(turn)─► half a spectrum, in L2 ──► rows of frequencies, there ─(turn)─► column blocks ──► y

Real data cost half: column c is the real and column c + n₂/2 the imaginary part of one complex transform, which
symmetry takes apart when the block is turned. The first axis has odd frequencies, exp(−2πi·j·(k + ½)/n₁): each has a
partner other than itself, n₁ − 1 − k, so that exactly n₁/2 rows of frequencies remain and fill vectors. The convolution
is then skew-circular along that axis, what wraps round changes sign; overlap-save throws it away in any case.
(Bellanger and Bonnerot 1976 for odd frequencies.) Prepared spectra come from the same code, in the same order.

Along one axis a segment of n = n₁·n₂ samples is such a tile, too, sample r·n₂ + c in row r and column c, if what is
turned is multiplied by exp(−2πi·c·(k₁ + ½)/n) (four steps: Bailey 1990): so a transform of 65536 points reads and
writes the L2 cache twice each way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.jit.compile import Kernel, compiled
from convbench.jit.fft import Complex, Line, frequencies, multiplied, twiddles
from convbench.jit.ir import Code, Value
from convbench.jit.memory import CACHE_LINE
from convbench.jit.strips import copy
from convbench.jit.target import Target

__all__ = [
    "ARGUMENTS",
    "CHUNK",
    "PIECES",
    "PRODUCT_ARGUMENTS",
    "ProductShape",
    "TileShape",
    "chain",
    "constants",
    "piece",
    "product_kernel",
    "product_shape",
]

#: What every kernel of tiles is called with. Strides are in items.
ARGUMENTS = (
    *("x", "x_image", "x_group", "x_channel", "x_row", "x_step"),
    *("y", "y_image", "y_group", "y_channel", "y_row", "y_step"),
    *("spectra", "scratch", "first_group", "first_tile"),  # spectra: the kernels' (convolve), the tiles', or the sums
    *("run", "run_step"),  # what changes from call to call ends here
    *("rows", "before", "after", "first", "last"),  # what tiles read: see _Tile._find_inputs
    *("s_group", "s_channel", "s_tile", "s_frequency"),
    *("channels", "tiles"),  # jobs: groups × channels × tiles
    *("tiles1", "tiles2", "outputs1", "outputs2", "size1", "size2"),  # of an image; of a tile; of all tiles
    *("columns", "half", "pitch", "row_blocks", "column_blocks", "turned", "copy", "addresses"),  # see TileShape
    *("twiddles1", "twiddles2", "odd", "odd_back", "cross", "partners", "zeros", "re_factor", "im_factor"),
    *("scratch_bytes", "piece1", "piece2", "piece3"),
)
_INT_BYTES = 8


@dataclass(frozen=True)
class TileShape:
    """A tile of n₁ × n₂ samples, or where ``line`` a segment of n₁·n₂, for one width of vectors.

    Attributes
    ----------
    rows, columns : int
        Even; half the columns of a segment are a multiple of the lanes.
    line : bool
    lanes : int
    itemsize : int
    """

    rows: int
    columns: int
    line: bool
    lanes: int
    itemsize: int

    @property
    def row_blocks(self) -> int:
        """Vectors that hold all frequencies k₁."""
        return -(-self.rows // 2 // self.lanes)

    @property
    def column_blocks(self) -> int:
        """Vectors that hold half a row."""
        return -(-self.columns // 2 // self.lanes)

    @property
    def frequencies(self) -> int:
        """Pairs of vectors (re, im) of a spectrum, lanes beyond the last frequency included."""
        return self.row_blocks * self.columns

    @property
    def spectrum_items(self) -> int:
        """Numbers of a spectrum."""
        return self.frequencies * 2 * self.lanes

    @property
    def pitch(self) -> int:
        """Items between rows of a tile that was copied; of a segment, all of it."""
        return self.rows * self.columns if self.line else self.columns // 2 + self.column_blocks * self.lanes

    @property
    def weights_scale(self) -> float:
        """What spectra of kernels are multiplied by: half the inverse's 1/(4·n₁·n₂), so that nothing gets too small."""
        return float(2.0 ** -round(log2(4 * self.rows * self.columns) / 2))

    @property
    def parts_bytes(self) -> dict[str, int]:
        """Bytes of the parts of a thread's scratch memory."""
        items = {
            "buffer": (self.rows + 1) * 2 * self.lanes,  # one more, for lanes without a frequency
            "turned": self.spectrum_items + 2 * self.lanes**2,  # a block more, for columns that none needs
            "copy": self.pitch if self.line else self.rows * self.pitch,
        }
        found = {name: -(-count * self.itemsize // CACHE_LINE) * CACHE_LINE for name, count in items.items()}
        return found | {"addresses": self.rows * _INT_BYTES}

    @property
    def scratch_bytes(self) -> int:
        """Bytes of a thread's scratch memory: an odd number of cache lines."""
        lines = -(-sum(self.parts_bytes.values()) // CACHE_LINE)
        return (lines | 1) * CACHE_LINE

    @property
    def arguments(self) -> dict[str, int]:
        """What kernels are told of the shape, and where the parts of the scratch memory begin."""
        buffer, turned, copied, _ = self.parts_bytes.values()
        return {
            "columns": self.columns,
            "half": self.columns // 2,
            "pitch": self.pitch,
            "row_blocks": self.row_blocks,
            "column_blocks": self.column_blocks,
            "turned": buffer,
            "copy": buffer + turned,
            "addresses": buffer + turned + copied,
            "scratch_bytes": self.scratch_bytes,
        }


@dataclass(frozen=True)
class Constants:
    """What the kernels of a shape read beside their operands.

    Attributes
    ----------
    twiddles1, twiddles2, odd, odd_back, cross : array of float64, to be rounded
        Of the passes along both axes; exp(−πi·j/n₁), which makes frequencies odd; the same with what is left of the
        inverse's scale; and what the turned values of a line are multiplied by.
    partners : array of int64
        For each block of L frequencies the items where they are in the buffer, and then where their partners are.
    """

    twiddles1: NDArray[np.float64]
    twiddles2: NDArray[np.float64]
    odd: NDArray[np.float64]
    odd_back: NDArray[np.float64]
    cross: NDArray[np.float64]
    partners: NDArray[np.int64]


def constants(shape: TileShape, target: Target) -> Constants:
    """Return the tables of a shape."""
    rows, columns, registers = shape.rows, shape.columns, target.registers
    there = frequencies(rows, registers)
    place = np.argsort(there)
    kept = there[there < rows // 2]  # in the order of their places
    partners = np.full((2, shape.row_blocks * shape.lanes), rows)
    partners[:, : rows // 2] = place[kept], place[rows - 1 - kept]
    cross = np.zeros(0)
    if shape.line:
        k = np.zeros(shape.row_blocks * shape.lanes, np.int64)
        k[: rows // 2] = kept
        n = rows * columns
        halves = (2 * k.reshape(-1, 1, shape.lanes) + 1) * np.arange(columns)[None, :, None] % (2 * n)
        angles = -np.pi * halves / n
        cross = np.stack([np.cos(angles), np.sin(angles)], axis=2)  # (block, column, re and im, lane)
    angles = -np.pi * np.arange(rows) / rows
    odd = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return Constants(
        twiddles(rows, registers),
        twiddles(columns, registers),
        odd,
        odd / (4 * rows * columns * shape.weights_scale),
        cross,
        2 * shape.lanes * np.ascontiguousarray(partners.reshape(2, -1, shape.lanes).transpose(1, 0, 2)),
    )


#: What a job does, one piece after the other; each is compiled for the length of one axis, whatever the other's.
PIECES = {
    "convolve": ("columns_forward", "rows_through", "columns_back"),
    "forward": ("columns_forward", "rows_forward"),
    "back": ("rows_back", "columns_back"),
}


@cache
def piece(target: Target, dtype: str, name: str, n: int, line: bool) -> Kernel:
    """Return a piece: a kernel, one job of which is a tile of one channel.

    Parameters
    ----------
    name : str
        One of :data:`PIECES`: "columns_forward": x → turned columns. "columns_back": turned columns → y.
        "rows_through": rows of frequencies times the spectrum of the group's kernel. "rows_forward": → spectra, re and
        im times a factor each. "rows_back": spectra → rows.
    n : int
        The axis's length.
    line : bool
    """
    return compiled(piece_text(target, dtype, name, n, line), f"fft_{name}", target)


def piece_text(target: Target, dtype: str, name: str, n: int, line: bool) -> str:
    """Return the IR of a piece."""
    code = Code(f"fft_{name}", target, dtype, ARGUMENTS)
    tile = _Tile(code, n, line)
    getattr(tile, name)()
    return code.finish()


@cache
def chain(target: Target) -> Kernel:
    """Return the kernel that does the pieces at three addresses, or at two and none."""
    code = Code("fft_chain", target, "float32", ARGUMENTS)
    for name in ("piece1", "piece2", "piece3"):
        address = code.integer(name)
        with code.when(code.less(0, address)):
            code.call(address, code.function.args)
    return compiled(code.finish(), "fft_chain", target)


class _Tile:
    """The steps of one job; ``n`` is the length of the rows in what is done to rows, else of the columns."""

    def __init__(self, code: Code, n: int, line: bool) -> None:
        self.code, self._n, self._line = code, n, line
        base = code.add(code.integer("scratch"), code.mul(code.thread, code.integer("scratch_bytes")))
        self._buffer = code.numbers_at(base)
        self._turned, self._copy = (code.numbers_at(code.add(base, code.integer(name))) for name in ("turned", "copy"))
        self._addresses = code.integers_at(code.add(base, code.integer("addresses")))
        lane, self._tile = code.divmod(code.job, code.integer("tiles"))
        self._group, self._channel = code.divmod(lane, code.integer("channels"))

    def _channel_of(self, name: str, image: Value) -> Value:
        """Return the offset of this job's channel of an image in x or y."""
        code = self.code
        group = code.mul(code.add(self._group, code.integer("first_group")), code.integer(f"{name}_group"))
        channel = code.mul(self._channel, code.integer(f"{name}_channel"))
        return code.add(code.mul(image, code.integer(f"{name}_image")), code.add(group, channel))

    def _place(self) -> tuple[Value, Value, Value]:
        """Return the tile's image, and its place along both axes."""
        code, tiles2 = self.code, self.code.integer("tiles2")
        tile = code.add(self._tile, code.integer("first_tile"))
        image, tile = code.divmod(tile, code.mul(code.integer("tiles1"), tiles2))
        return image, *code.divmod(tile, tiles2)

    # -- what is read -----------------------------------------------------------------------------------------------

    def _find_inputs(self) -> None:
        """Write down the address of every row; copy those that cannot, or should not, be read in place.

        Which sample a position of the padded rows reads says a table, −1 being zero. Along the other axis positions
        ``first`` to ``last`` read every ``run_step``-th item from ``run`` on; tables say what those before and after
        do. Rows of an image may be as far apart as lines of the cache that share a place: copies are not.
        """
        code, addresses = self.code, self._addresses
        image, tile1, tile2 = self._place()
        plane, width = code.at(code.pointer("x"), self._channel_of("x", image)), code.integer("pitch")
        position = code.mul(tile2, code.integer("outputs2"))
        if self._line:
            segment, row_bytes = self._segment(plane, position), code.mul(code.integer("columns"), code.itemsize)
            with code.loop(0, self._n) as row:
                code.put(code.add(segment, code.mul(row, row_bytes)), addresses, row)
            return
        rows = code.at(code.integers("rows"), code.mul(tile1, code.integer("outputs1")))
        with code.loop(0, self._n) as row:
            index = code.item(rows, row)
            place = code.variable(code.integer("zeros"))
            with code.when(code.less(-1, index)):
                source = code.at(plane, code.mul(index, code.integer("x_row")))
                place.set(self._copied(source, position, code.at(self._copy, code.mul(row, width))))
            code.put(place.get(), addresses, row)

    def _segment(self, plane: Value, position: Value) -> Value:
        """Return where a segment can be read: in place, if all its samples are neighbours."""
        code = self.code
        first, last, start = self._run(position)
        place = code.variable(code.address(plane, start))
        neighbours = code.equal(code.integer("run_step"), 1)
        inside = code.both(neighbours, code.equal(code.sub(last, first), code.integer("pitch")))
        code.choose(inside, lambda: None, lambda: place.set(self._copied(plane, position, self._copy)))
        return place.get()

    def _run(self, position: Value) -> tuple[Value, Value, Value]:
        """Return which columns from a position on read samples at a fixed step, and the item that the first reads."""
        code, width = self.code, self.code.integer("pitch")
        first = code.max(0, code.min(code.sub(code.integer("first"), position), width))
        last = code.max(first, code.min(code.sub(code.integer("last"), position), width))
        behind = code.sub(code.add(position, first), code.integer("first"))
        return first, last, code.add(code.integer("run"), code.mul(behind, code.integer("run_step")))

    def _copied(self, source: Value, position: Value, strip: Value) -> Value:
        """Copy what the columns from a position on read of a row, and return the copy's address."""
        code = self.code
        first, last, start = self._run(position)

        def margin(table: str, low: Value, high: Value) -> None:
            with code.loop(low, high) as column:
                index = code.item(code.integers(table), code.add(position, column))
                there = code.at(source, code.mul(index, code.integer("x_step")))
                sample = code.select(code.less(-1, index), there, code.pointer("zeros"))
                code.put(code.item(sample), strip, column)

        run, target, count = code.at(source, start), code.at(strip, first), code.sub(last, first)
        step = code.integer("run_step")
        margin("before", 0, first)
        code.choose(
            code.equal(step, 1), lambda: copy(code, run, 1, target, count), lambda: copy(code, run, step, target, count)
        )
        margin("after", last, code.integer("pitch"))
        return code.address(strip)

    # -- transforms -------------------------------------------------------------------------------------------------

    def columns_forward(self) -> None:
        """Transform block after block of columns, and turn it.

        The last block first: what it writes beyond half a row is written over by the first.
        """
        self._find_inputs()
        code, lanes = self.code, self.code.lanes
        odd, half, blocks = code.pointer("odd"), code.integer("half"), code.integer("column_blocks")
        line = Line(code, self._n, self._buffer, code.pointer("twiddles1"))
        with code.loop(0, blocks) as done:
            column = code.mul(code.sub(code.sub(blocks, done), 1), lanes)

            def get(row: Value, column: Value = column) -> Complex:
                source = code.at(code.numbers_at(code.item(self._addresses, row)), column)
                value = code.load(source), code.load(source, half)
                place = code.mul(row, 2)
                return multiplied(code, value, (code.broadcast(odd, place), code.broadcast(odd, code.add(place, 1))))

            line.forward(get)
            self._turn(column, forward=True)

    def _turn(self, column: Value, *, forward: bool) -> None:
        """Exchange a block of columns between the buffer, lanes being columns, and the tile, lanes being frequencies.

        With Z the buffer's values and Z' those of the partners, the left column's are Z + Z'* and the right one's
        (Z − Z'*)/i, both times ½, which prepared spectra hold; back, Z = l + i·r and Z' = l* + i·r*.
        """
        code, lanes = self.code, self.code.lanes
        with code.loop(0, -(-self._n // 2 // lanes)) as block:
            table = code.at(code.integers("partners"), code.mul(block, 2 * lanes))
            row = code.mul(block, code.integer("columns"))
            left = code.at(self._turned, code.mul(code.add(row, column), 2 * lanes))
            right = code.at(left, code.mul(code.integer("half"), 2 * lanes))
            (self._apart if forward else self._together)(table, left, right)

    def _apart(self, table: Value, left: Value, right: Value) -> None:
        """Turn a square of the buffer's values, and of their partners', into those of two columns."""
        code, lanes = self.code, self.code.lanes
        steps = (left, 0, 0, code.fadd), (left, 1, 1, code.fsub), (right, 0, 1, code.fadd), (right, 1, 0, self._swapped)
        for target, part, read, combine in steps:
            rows = []
            for lane in range(lanes):
                place, partner = code.item(table, lane), code.item(table, lanes + lane)
                one, other = (code.load(self._buffer, code.add(start, read * lanes)) for start in (place, partner))
                rows.append(combine(one, other))
            for i, vector in enumerate(code.transpose(rows)):
                code.store(vector, target, 2 * lanes * i + part * lanes)

    def _together(self, table: Value, left: Value, right: Value) -> None:
        """Turn squares of two columns into the buffer's values and their partners'."""
        code, lanes = self.code, self.code.lanes
        for partner, part, combine in ((0, 0, code.fsub), (1, 0, code.fadd), (0, 1, code.fadd), (1, 1, self._swapped)):
            columns = []
            for i in range(lanes):
                one = code.load(left, 2 * lanes * i + part * lanes)
                columns.append(combine(one, code.load(right, 2 * lanes * i + (1 - part) * lanes)))
            for lane, vector in enumerate(code.transpose(columns)):
                place = code.item(table, partner * lanes + lane)
                code.store(vector, self._buffer, code.add(place, part * lanes))

    def _swapped(self, one: Value, other: Value) -> Value:
        return self.code.fsub(other, one)

    def _each_row(self) -> Iterator[tuple[Value, Line]]:
        """Loop over the rows of frequencies, a vector of them at a time."""
        code = self.code
        with code.loop(0, code.integer("row_blocks")) as block:
            points = code.at(self._turned, code.mul(block, self._n * 2 * code.lanes))
            yield block, Line(code, self._n, points, code.pointer("twiddles2"))

    def _cross(self, block: Value, column: Value) -> Complex:
        code = self.code
        start = code.mul(code.add(code.mul(block, self._n), column), 2 * code.lanes)
        factors = code.pointer("cross")
        return code.load(factors, start), code.load(factors, code.add(start, code.lanes))

    def _crossing(self, line: Line, block: Value) -> tuple[Any, Any]:
        """Return how the first pass of a row reads, and how its last one back writes."""
        if not self._line:
            return None, None

        def get(place: Value) -> Complex:
            return multiplied(self.code, line.get(place), self._cross(block, place))

        def put(place: Value, value: Complex) -> None:
            line.put(place, multiplied(self.code, value, self._cross(block, place), conjugate=True))

        return get, put

    def _spectrum(self) -> Value:
        """Return the address of this job's spectrum outside."""
        code = self.code
        start = code.add(
            code.mul(self._group, code.integer("s_group")), code.mul(self._channel, code.integer("s_channel"))
        )
        return code.at(code.pointer("spectra"), code.add(start, code.mul(self._tile, code.integer("s_tile"))))

    def rows_through(self) -> None:
        """Transform rows of frequencies, multiply by the kernel's spectrum, and transform back."""
        code, spectrum = self.code, self._spectrum()
        for block, line in self._each_row():
            part = code.at(spectrum, code.mul(block, self._n * 2 * code.lanes))

            def times(place: Value, value: Complex, part: Value = part) -> Complex:
                start = code.mul(place, 2 * code.lanes)
                factor = code.load(part, start), code.load(part, code.add(start, code.lanes))
                return multiplied(code, value, factor)

            line.through(times, *self._crossing(line, block))

    def rows_forward(self) -> None:
        """Transform rows of frequencies, and write them where the products read them."""
        code, spectrum = self.code, self._spectrum()
        factors = [code.broadcast(code.pointer(name)) for name in ("re_factor", "im_factor")]
        for block, line in self._each_row():
            line.forward(self._crossing(line, block)[0])
            with code.loop(0, self._n) as column:
                place = self._frequency(spectrum, block, column)
                for part, value in enumerate(line.get(column)):
                    code.store(code.fmul(value, factors[part]), place, part * code.lanes)

    def rows_back(self) -> None:
        """Read rows of products, and transform them back."""
        code, spectrum = self.code, self._spectrum()
        for block, line in self._each_row():
            with code.loop(0, self._n) as column:
                place = self._frequency(spectrum, block, column)
                line.put(column, (code.load(place), code.load(place, code.lanes)))
            line.back(self._crossing(line, block)[1])

    def _frequency(self, spectrum: Value, block: Value, column: Value) -> Value:
        """Return the address of a vector of frequencies of a spectrum outside."""
        code = self.code
        number = code.add(code.mul(block, self._n), column)
        return code.at(spectrum, code.mul(number, code.integer("s_frequency")))

    # -- what is written --------------------------------------------------------------------------------------------

    def columns_back(self) -> None:
        """Turn block after block of columns, transform it back, and write what is wanted of it."""
        code, lanes = self.code, self.code.lanes
        image, *places = self._place()
        starts, counts = [], []
        for axis, tile in zip("12", places, strict=True):
            start = code.mul(tile, code.integer(f"outputs{axis}"))
            starts.append(start)
            counts.append(code.min(code.integer(f"outputs{axis}"), code.sub(code.integer(f"size{axis}"), start)))
        step, half, width = code.integer("y_step"), code.integer("half"), code.integer("columns")
        odd = code.pointer("odd_back")
        corner = code.add(code.mul(starts[0], code.integer("y_row")), code.mul(starts[1], step))
        y = code.at(code.pointer("y"), code.add(self._channel_of("y", image), corner))
        line, blocks = Line(code, self._n, self._buffer, code.pointer("twiddles1")), code.integer("column_blocks")
        pitch = width if self._line else code.integer("pitch")
        rows = code.div(code.add(counts[1], code.sub(width, 1)), width) if self._line else counts[0]
        with code.loop(0, blocks) as done:  # the last block first, as when they are turned
            column = code.mul(code.sub(code.sub(blocks, done), 1), lanes)
            self._turn(column, forward=False)
            line.back()
            with code.loop(0, rows) as row:
                place = code.mul(row, 2)
                factor = code.broadcast(odd, place), code.broadcast(odd, code.add(place, 1))
                left, right = multiplied(code, line.get(row), factor, conjugate=True)
                start = code.add(code.mul(row, pitch), column)
                code.store(left, self._copy, start)
                code.store(right, self._copy, code.add(start, half))
        with code.loop(0, 1 if self._line else rows) as row:
            source, target = code.at(self._copy, code.mul(row, pitch)), code.at(y, code.mul(row, code.integer("y_row")))
            code.choose(
                code.equal(step, 1),
                lambda: copy(code, source, 1, target, counts[1]),
                lambda: _scatter(code, source, target, step, counts[1]),
            )


def _scatter(code: Code, source: Value, target: Value, step: Value, count: Value) -> None:
    with code.loop(0, count) as i:
        code.put(code.item(source, i), target, code.mul(i, step))


# -- products over channels -----------------------------------------------------------------------------------------

#: What the kernel of products is called with; one job is some frequencies of one group.
PRODUCT_ARGUMENTS = ("x", "weights", "y", "chunks", "frequencies", "channels", "output_blocks", "tile_blocks")
CHUNK = 8  # frequencies of a job


@dataclass(frozen=True)
class ProductShape:
    """Outputs and tiles whose sums are in registers together."""

    outputs: int
    tiles: int


def product_shape(target: Target) -> ProductShape:
    """Return the register tile of a target: 4 × 2 complex vectors are 16 sums, 32 multiply–adds for 12 reads."""
    return ProductShape(4, 2) if target.registers >= 32 else ProductShape(2, 2)


@cache
def product_kernel(target: Target, dtype: str) -> Kernel:
    """Return the kernel of Σ_c x[f, c, column]·w[f, o, c]: a complex matrix product for each frequency.

    Lanes are frequencies, columns tiles. Layouts, a value being a vector of re and one of im: x (group, frequency,
    channel, column), w (group, frequency, block of outputs, channel, output), y (group, frequency, output, column).
    """
    code = Code("fft_products", target, dtype, PRODUCT_ARGUMENTS)
    tile, value = product_shape(target), 2 * code.lanes
    channels, output_blocks, tile_blocks = (code.integer(name) for name in ("channels", "output_blocks", "tile_blocks"))
    columns = code.mul(tile_blocks, tile.tiles)
    frequencies = code.integer("frequencies")
    group, chunk = code.divmod(code.job, code.integer("chunks"))
    first = code.mul(chunk, CHUNK)
    with code.loop(first, code.min(code.add(first, CHUNK), frequencies)) as frequency:
        start = code.add(code.mul(group, frequencies), frequency)
        x = code.at(code.pointer("x"), code.mul(start, code.mul(code.mul(channels, columns), value)))
        outputs = code.mul(start, output_blocks)
        with code.loop(0, output_blocks) as block:
            weights = code.mul(code.mul(code.add(outputs, block), channels), tile.outputs * value)
            target_row = code.mul(code.mul(code.add(outputs, block), columns), tile.outputs * value)
            with code.loop(0, columns, tile.tiles) as column:
                sums = _sum_products(
                    code, tile, channels, code.at(code.pointer("weights"), weights),
                    code.at(x, code.mul(column, value)), code.mul(columns, value),
                )  # fmt: skip
                for (output, number), parts in sums.items():
                    place = code.add(target_row, code.mul(code.add(code.mul(columns, output), column), value))
                    for part, vector in enumerate(parts):
                        code.store(vector, code.pointer("y"), code.add(place, number * value + part * code.lanes))
    return compiled(code.finish(), "fft_products", target)


def _sum_products(
    code: Code, tile: ProductShape, channels: Value, weights: Value, x: Value, pitch: Value
) -> dict[tuple[int, int], Complex]:
    """Sum over the channels in registers."""
    lanes, value = code.lanes, 2 * code.lanes
    places = [(output, column) for output in range(tile.outputs) for column in range(tile.tiles)]
    sums = {place: (code.variable(code.zeros()), code.variable(code.zeros())) for place in places}
    with code.loop(0, channels) as channel:
        row = code.at(x, code.mul(channel, pitch))
        samples = [
            (code.load(row, column * value), code.load(row, column * value + lanes)) for column in range(tile.tiles)
        ]
        part = code.at(weights, code.mul(channel, tile.outputs * value))
        for output in range(tile.outputs):
            c, s = code.load(part, output * value), code.load(part, output * value + lanes)
            opposite = code.negated(s)
            for column, (a, b) in enumerate(samples):
                re, im = sums[output, column]
                re.set(code.fma(b, opposite, code.fma(a, c, re.get())))
                im.set(code.fma(b, c, code.fma(a, s, im.get())))
    return {place: (re.get(), im.get()) for place, (re, im) in sums.items()}
