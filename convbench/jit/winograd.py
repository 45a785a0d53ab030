"""Winograd's minimal filtering with its transforms and products in one kernel, block of tiles by block of tiles.

    for each job (image, group, block of tiles):
        for each vector of input channels, for each row of tiles:              lanes: input channels
            fill a strip [row][column] with samples, padded, turned by a quarter
            multiply its columns by Bᵀ in place, then its rows, tile by tile, into
                values[frequency][channels][tile]
        for each panel of output channels (2 vectors):
            for each frequency and 14 tiles:                                   lanes: output channels
                products[frequency][outputs][tile] = Σ weights[panel][frequency][channel] · values, in registers
            for each vector of outputs, for each row of tiles:
                multiply rows by Aᵀ, tile by tile, into the strip, then its columns in place
                add the bias, turn by a quarter, write rows of the result

Where there are too few blocks for the threads, or weights too large to be read for each, the two halves are calls of
their own: a job of the first makes the values of one vector of channels, one of the second multiplies one panel.

A tile is F(m, r) along each of three axes, sizes of 1 standing for those that an image has not. The transforms are
written out from the exact matrices, one axis at a time, so that a transform's vectors stay in registers. Values and
products of a block stay in the L2 cache; transformed weights are streamed once a block, and asked for ahead of time
(157 → 179 and 133 → 184 GFLOP/s for 256 channels on 56×56, in blocks of 14 and of all 196 tiles).

Transforms and products were fused over blocks like this by Gelashvili, Shavit and Zlateski (2019), "L3 Fusion: Fast
Transformed Convolutions on CPUs", arXiv 1912.02165.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from itertools import combinations
from math import prod

from convbench.algorithms.winograd import transforms
from convbench.jit.compile import Kernel, compiled
from convbench.jit.ir import Code, Value
from convbench.jit.memory import CACHE_LINE
from convbench.jit.panel import Panel, PanelShape
from convbench.jit.target import Target

__all__ = ["ARGUMENTS", "AxisTransforms", "Variant", "axis_transforms", "kernel", "multiplied"]

ARGUMENTS = (
    *("x", "y", "weights", "bias", "values", "scratch"),  # addresses
    *("x_image", "x_group", "x_channel", "x_depth", "x_row", "x_column"),  # strides in items
    *("y_image", "y_group", "y_channel", "y_depth", "y_row", "y_column"),
    *("depths", "rows", "columns"),  # tables of sources, as far as tiles reach
    *("first", "last"),  # columns that read neighbours, if x is read by vectors
    *("groups", "channels", "outputs"),
    *("output_depths", "output_rows", "output_columns"),
    *("tile_depths", "tile_rows", "tile_columns"),  # tiles along each axis,
    *("block_depth", "block_row", "block_column"),  # of a block,
    *("blocks_depth", "blocks_row", "blocks_column", "blocks"),  # and blocks; images and groups included in the last
    "first_block",  # of this call
    *("channel_part", "panel_part", "panels"),  # vectors of channels that a job transforms, panels that it multiplies
    *("slots", "pitch"),  # tiles that a block has room for, columns that a strip has
    *("values_block", "values_thread", "scratch_thread", "strip"),  # items from block to block, …; where a strip is
)

_AHEAD_BYTES = 4096  # 1 KiB to 8 KiB did equally well

Matrix = tuple[tuple[Fraction, ...], ...]


@dataclass(frozen=True)
class AxisTransforms:
    """F(m, r) scaled for few operations: y = Aᵀ [ (G w) ⊙ (Bᵀ x) ].

    Attributes
    ----------
    a : matrix (m, t), Aᵀ
    b : matrix (t, t), Bᵀ
    g : matrix (t, r)
    """

    a: Matrix
    b: Matrix
    g: Matrix


@cache
def axis_transforms(outputs: int, taps: int) -> AxisTransforms:
    """Return the matrices of F(outputs, taps) with every row of Bᵀ ending in 1, every column of Aᵀ beginning with it.

    What that costs is made up for in G, which is exact.
    """
    f = transforms(outputs, taps, "float32")
    b_factors = [next(value for value in reversed(row) if value) for row in f.b]
    a_factors = [next(value for value in row if value) for row in f.a]
    a = [[value / factor for value in row] for row, factor in zip(f.a, a_factors, strict=True)]
    b = [[value / factor for value in row] for row, factor in zip(f.b, b_factors, strict=True)]
    g = [
        [value * over * under / f.scale for value in row]
        for row, over, under in zip(f.g, a_factors, b_factors, strict=True)
    ]
    return AxisTransforms(tuple(zip(*a, strict=True)), tuple(map(tuple, b)), tuple(map(tuple, g)))


# -- products by small matrices -------------------------------------------------------------------------------


def multiplied(code: Code, matrix: Matrix, vectors: Sequence[Value]) -> list[Value]:
    """Return the product of a constant matrix and as many vectors as it has columns.

    Points ±p give rows of Bᵀ, and columns of Aᵀ, that differ in the sign of every other entry: what they have in common
    is computed once.
    """
    matrix, vectors = _columns_paired(code, matrix, list(vectors))
    results: list[Value] = [None] * len(matrix)
    for i, j in _pairs(matrix):
        even, odd = _halves(matrix[i], matrix[j])
        factor = next(value for value in reversed(odd) if value)
        base = _sum(code, even, vectors)
        step = _sum(code, tuple(value / factor for value in odd), vectors)
        results[i], results[j] = _plus(code, base, factor, step), _plus(code, base, -factor, step)
    return [_sum(code, row, vectors) if result is None else result for row, result in zip(matrix, results, strict=True)]


def _columns_paired(code: Code, matrix: Matrix, vectors: list[Value]) -> tuple[Matrix, list[Value]]:
    """Replace vectors f and g by f + g and f − g where every row needs but one of them."""
    columns = list(zip(*matrix, strict=True))
    for f, g in _pairs(tuple(columns)):
        columns[f], columns[g] = _halves(columns[f], columns[g])
        vectors[f], vectors[g] = code.fadd(vectors[f], vectors[g]), code.fsub(vectors[f], vectors[g])
    return tuple(zip(*columns, strict=True)), vectors


def _halves(a: Sequence[Fraction], b: Sequence[Fraction]) -> tuple[tuple[Fraction, ...], tuple[Fraction, ...]]:
    """Return what rows have in common, and in what they differ in sign."""
    pairs = list(zip(a, b, strict=True))
    return tuple((x + y) / 2 for x, y in pairs), tuple((x - y) / 2 for x, y in pairs)


def _pairs(rows: Matrix) -> list[tuple[int, int]]:
    """Return the pairs of rows whose entries differ in nothing but signs, and not in all."""
    found: list[tuple[int, int]] = []
    for i, j in combinations(range(len(rows)), 2):
        taken = {row for pair in found for row in pair}
        same = [abs(x) for x in rows[i]] == [abs(y) for y in rows[j]]
        if same and not {i, j} & taken and all(map(any, _halves(rows[i], rows[j]))):
            found.append((i, j))
    return found


def _sum(code: Code, row: Sequence[Fraction], vectors: Sequence[Value]) -> Value:
    terms = sorted(
        ((factor, vector) for factor, vector in zip(row, vectors, strict=True) if factor), key=lambda term: term[0] != 1
    )
    factor, total = terms[0]
    if factor != 1:
        total = code.fmul(code.constant(float(factor)), total)
    for factor, vector in terms[1:]:
        total = _plus(code, total, factor, vector)
    return total


def _plus(code: Code, total: Value, factor: Fraction, vector: Value) -> Value:
    if abs(factor) == 1:
        return code.fadd(total, vector) if factor == 1 else code.fsub(total, vector)
    return code.fma(code.constant(float(factor)), vector, total)


# -- the kernel -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """What is built into the machine code.

    Attributes
    ----------
    outputs, taps : tuple of 3 int
        F(m, r) along depth, rows and columns.
    shape : PanelShape
        Vectors of output channels, and tiles.
    x_order, y_order : str
        What lies side by side in memory: "columns", "channels", or "nothing".
    """

    dtype: str
    outputs: tuple[int, int, int]
    taps: tuple[int, int, int]
    shape: PanelShape
    x_order: str = "columns"
    y_order: str = "columns"

    @property
    def size(self) -> tuple[int, ...]:
        """Samples of a tile along each axis."""
        return tuple(m + r - 1 for m, r in zip(self.outputs, self.taps, strict=True))


@cache
def kernel(variant: Variant, target: Target) -> Kernel:
    """Return the compiled kernel."""
    return compiled(_Winograd(variant, target).text(), "winograd", target)


@dataclass(frozen=True)
class _Block:
    """Where a job's tiles are."""

    x: Value  # of its image and group
    y: Value
    weights: Value
    bias: Value
    values: Value
    origins: tuple[Value, ...]  # its first tile along each axis
    counts: tuple[Value, ...]  # tiles along each axis


class _Winograd:
    """Writes one variant."""

    def __init__(self, variant: Variant, target: Target) -> None:
        self.variant = variant
        self.code = code = Code("winograd", target, variant.dtype, ARGUMENTS)
        self.transforms = [axis_transforms(m, r) for m, r in zip(variant.outputs, variant.taps, strict=True)]
        self.frequencies = prod(variant.size)
        scratch = code.at(code.pointer("scratch"), code.mul(code.thread, code.integer("scratch_thread")))
        self.products, self.strip = scratch, code.at(scratch, code.integer("strip"))
        channels = code.add(code.integer("channels"), code.lanes - 1)
        self.channel_vectors = code.div(channels, code.lanes)
        self.slot_items = code.mul(code.integer("slots"), code.lanes)
        self.pitch = code.mul(code.integer("pitch"), code.lanes)
        self.width = variant.shape.vectors * code.lanes

    def text(self) -> str:
        code, arg = self.code, self.code.integer
        part, number = code.divmod(code.job, arg("blocks"))
        block = self._block(number)
        first = code.mul(part, arg("channel_part"))
        with code.loop(first, code.min(code.add(first, arg("channel_part")), self.channel_vectors)) as vector:
            self._transform(block, vector)
        first = code.mul(part, arg("panel_part"))
        with code.loop(first, code.min(code.add(first, arg("panel_part")), arg("panels"))) as panel:
            self._multiply(block, panel)
            self._invert(block, panel)
        return code.finish()

    def _block(self, number: Value) -> _Block:
        code, arg = self.code, self.code.integer
        rest, column = code.divmod(code.add(number, arg("first_block")), arg("blocks_column"))
        rest, row = code.divmod(rest, arg("blocks_row"))
        rest, depth = code.divmod(rest, arg("blocks_depth"))
        image, group = code.divmod(rest, arg("groups"))
        names = "depth", "row", "column"
        origins = tuple(
            code.mul(at, arg(f"block_{name}")) for at, name in zip((depth, row, column), names, strict=True)
        )
        counts = tuple(
            code.min(arg(f"block_{name}"), code.sub(arg(f"tile_{name}s"), origin))
            for origin, name in zip(origins, names, strict=True)
        )
        panel = code.mul(code.mul(arg("channels"), self.width), self.frequencies)
        values = code.add(code.mul(number, arg("values_block")), code.mul(code.thread, arg("values_thread")))
        padded = code.mul(arg("panels"), self.width)
        return _Block(
            self._moved(code.pointer("x"), (image, "x_image"), (group, "x_group")),
            self._moved(code.pointer("y"), (image, "y_image"), (group, "y_group")),
            code.at(code.pointer("weights"), code.mul(group, code.mul(arg("panels"), panel))),
            code.at(code.pointer("bias"), code.mul(group, padded)),
            code.at(code.pointer("values"), values),
            origins,
            counts,
        )

    def _moved(self, pointer: Value, *moves: tuple[Value, str]) -> Value:
        code = self.code
        for count, stride in moves:
            pointer = code.at(pointer, code.mul(count, code.integer(stride)))
        return pointer

    # -- samples --------------------------------------------------------------------------------------------

    def _transform(self, block: _Block, vector: Value) -> None:
        """Write the values of all tiles of a block for one vector of channels."""
        code, v = self.code, self.variant
        x = self._moved(block.x, (code.mul(vector, code.lanes), "x_channel"))
        left = code.sub(code.integer("channels"), code.mul(vector, code.lanes))
        values = code.at(block.values, code.mul(vector, self.slot_items))
        columns = code.add(code.mul(block.counts[2], v.outputs[2]), v.taps[2] - 1)
        with code.loop(0, block.counts[0]) as depth, code.loop(0, block.counts[1]) as row:
            at = code.add(block.origins[0], depth), code.add(block.origins[1], row)
            self._fill_strip(block, x, left, at, columns)
            self._along_columns([f.b for f in self.transforms[:2]], v.size, columns)
            first = code.mul(code.add(code.mul(depth, block.counts[1]), row), block.counts[2])
            self._samples_along_rows(code.at(values, code.mul(first, code.lanes)), block.counts[2])

    def _fill_strip(self, block: _Block, x: Value, left: Value, at: tuple[Value, Value], columns: Value) -> None:
        code, v = self.code, self.variant
        starts = [code.mul(place, m) for place, m in zip(at, v.outputs[:2], strict=True)]
        with code.loop(0, v.size[0]) as i, code.loop(0, v.size[1]) as j:
            depth = code.item(code.integers("depths"), code.add(starts[0], i))
            row = code.item(code.integers("rows"), code.add(starts[1], j))
            target = code.at(self.strip, code.mul(code.add(code.mul(i, v.size[1]), j), self.pitch))
            source = self._moved(x, (depth, "x_depth"), (row, "x_row"))

            def samples(source: Value = source, target: Value = target) -> None:
                self._fill_row(block, source, left, target, columns)

            def zeros(target: Value = target) -> None:
                with code.loop(0, columns) as column:
                    code.store(code.zeros(), target, code.mul(column, code.lanes))

            code.choose(code.less(-1, code.min(depth, row)), samples, zeros)

    def _fill_row(self, block: _Block, row: Value, left: Value, target: Value, columns: Value) -> None:
        """Neighbours by vectors, what the boundary makes of the rest one by one."""
        code, arg = self.code, self.code.integer
        start = code.mul(block.origins[2], self.variant.outputs[2])
        first, last = (code.max(0, code.min(code.sub(arg(name), start), columns)) for name in ("first", "last"))
        table = code.at(code.integers("columns"), start)
        if self.variant.x_order == "columns":
            self._fill_turned(row, left, target, table, first, last)
        elif self.variant.x_order == "channels":
            lanes = code.min(left, code.lanes)
            with code.loop(first, last) as column:
                source = self._moved(row, (code.item(table, column), "x_column"))
                code.store(code.load_some(source, 0, lanes), target, code.mul(column, code.lanes))
        inside = code.sub(last, first)
        with code.loop(0, code.sub(columns, inside)) as number:
            column = code.select(code.less(number, first), number, code.add(number, inside))
            index = code.item(table, column)
            place = code.at(target, code.mul(column, code.lanes))

            def sample(index: Value = index, place: Value = place) -> None:
                source = self._moved(row, (index, "x_column"))
                with code.loop(0, code.lanes) as lane:
                    channel = code.min(lane, code.sub(left, 1))
                    code.put(code.item(source, code.mul(channel, arg("x_channel"))), place, lane)

            def zeros(place: Value = place) -> None:
                code.store(code.zeros(), place)

            code.choose(code.less(index, 0), zeros, sample)

    def _fill_turned(self, row: Value, left: Value, target: Value, table: Value, first: Value, last: Value) -> None:
        """Read a square of channels by columns, write columns by channels; channels beyond the last repeat it."""
        code, lanes = self.code, self.code.lanes
        with code.when(code.less(first, last)):
            begin = code.sub(code.item(table, first), first)
            with code.loop(first, last, lanes) as column:
                count = code.min(lanes, code.sub(last, column))
                source = code.at(row, code.add(begin, column))
                rows = []
                for lane in range(lanes):
                    channel = code.min(lane, code.sub(left, 1))
                    rows.append(code.load_some(self._moved(source, (channel, "x_channel")), 0, count))
                place = code.at(target, code.mul(column, lanes))
                for offset, vector in enumerate(code.transpose(rows)):
                    code.store(vector, place, offset * lanes)

    def _along_columns(self, matrices: Sequence[Matrix], size: Sequence[int], columns: Value) -> None:
        """Multiply the depth and the columns of the strip, in place."""
        code = self.code
        steps = size[1], 1
        counts = [size[0], size[1]]
        for axis, matrix in enumerate(matrices):
            if _is_identity(matrix):
                continue
            inputs, other = len(matrix[0]), counts[1 - axis]
            with code.loop(0, other) as i, code.loop(0, columns) as column:
                start = code.at(self.strip, code.mul(i, code.mul(steps[1 - axis], self.pitch)))
                start = code.at(start, code.mul(column, code.lanes))
                places = [code.at(start, code.mul(k * steps[axis], self.pitch)) for k in range(inputs)]
                results = multiplied(code, matrix, [code.load(place) for place in places])
                for result, place in zip(results, places, strict=False):
                    code.store(result, place)
            counts[axis] = len(matrix)

    def _samples_along_rows(self, values: Value, tiles: Value) -> None:
        """Multiply the rows of the strip, tile by tile, into the values."""
        code, v = self.code, self.variant
        apart = code.mul(self.channel_vectors, self.slot_items)  # frequencies
        with code.loop(0, v.size[0] * v.size[1]) as row, code.loop(0, tiles) as tile:
            source = code.at(code.at(self.strip, code.mul(row, self.pitch)), code.mul(tile, v.outputs[2] * code.lanes))
            target = code.at(values, code.add(code.mul(code.mul(row, v.size[2]), apart), code.mul(tile, code.lanes)))
            samples = [code.load(source, k * code.lanes) for k in range(v.size[2])]
            for k, result in enumerate(multiplied(code, self.transforms[2].b, samples)):
                code.store(result, target, code.mul(k, apart))

    # -- products -------------------------------------------------------------------------------------------

    def _multiply(self, block: _Block, number: Value) -> None:
        """Multiply the values of a block by the weights of one panel of outputs."""
        code, shape, arg = self.code, self.variant.shape, self.code.integer
        panel_items = code.mul(arg("channels"), self.width)
        weights = code.at(block.weights, code.mul(number, code.mul(panel_items, self.frequencies)))
        tiles = code.mul(code.mul(*block.counts[:2]), block.counts[2])
        with code.loop(0, self.frequencies) as f, code.loop(0, tiles, shape.items) as tile:
            moved = code.mul(tile, code.lanes)
            values = code.at(block.values, code.mul(f, code.mul(self.channel_vectors, self.slot_items)))
            panel = self._sums(code.at(weights, code.mul(f, panel_items)), code.at(values, moved))
            products = code.at(self.products, code.mul(f, code.mul(self.slot_items, shape.vectors)))
            for v in range(shape.vectors):
                row = code.at(code.at(products, code.mul(v, self.slot_items)), moved)
                for i in range(shape.items):
                    code.store(panel.vector(v, i), row, i * code.lanes)

    def _sums(self, first: Value, values: Value) -> Panel:
        code, arg = self.code, self.code.integer
        panel, place = Panel(code, self.variant.shape), code.variable(first)
        with code.loop(0, arg("channels"), code.lanes) as channel:
            items = code.at(values, code.mul(channel, arg("slots")))
            with code.loop(0, code.min(code.lanes, code.sub(arg("channels"), channel))) as lane:
                at = place.get()
                for start in range(0, self.width, CACHE_LINE // code.itemsize):
                    code.prefetch(at, _AHEAD_BYTES // code.itemsize + start)
                weights = [code.load(at, v * code.lanes) for v in range(self.variant.shape.vectors)]
                panel.step(weights, partial(self._item, code.at(items, lane)))
                place.set(code.at(at, self.width))
        return panel

    def _item(self, first: Value, number: int) -> Value:
        """Return where an item of a panel is: tiles are a vector of channels apart."""
        return self.code.at(first, number * self.code.lanes)

    # -- outputs --------------------------------------------------------------------------------------------

    def _invert(self, block: _Block, number: Value) -> None:
        """Transform the products of a panel of outputs back and write them, bias added."""
        code, v, arg = self.code, self.variant, self.code.integer
        columns = code.mul(block.counts[2], v.outputs[2])
        first = code.mul(number, self.width)
        stop = code.min(arg("outputs"), code.add(first, self.width))
        apart = code.mul(self.slot_items, v.shape.vectors)  # frequencies
        with code.loop(first, stop, code.lanes) as output:
            products = code.at(self.products, code.mul(code.sub(output, first), arg("slots")))
            with code.loop(0, block.counts[0]) as depth, code.loop(0, block.counts[1]) as row:
                tile = code.mul(code.add(code.mul(depth, block.counts[1]), row), block.counts[2])
                self._products_along_rows(code.at(products, code.mul(tile, code.lanes)), apart, block.counts[2])
                self._along_columns([f.a for f in self.transforms[:2]], v.size, columns)
                self._write(block, output, (depth, row), columns)

    def _products_along_rows(self, products: Value, apart: Value, tiles: Value) -> None:
        code, v = self.code, self.variant
        with code.loop(0, v.size[0] * v.size[1]) as row, code.loop(0, tiles) as tile:
            source = code.at(products, code.add(code.mul(code.mul(row, v.size[2]), apart), code.mul(tile, code.lanes)))
            target = code.at(self.strip, code.mul(row, self.pitch))
            target = code.at(target, code.mul(tile, v.outputs[2] * code.lanes))
            values = [code.load(source, code.mul(k, apart)) for k in range(v.size[2])]
            for k, result in enumerate(multiplied(code, self.transforms[2].a, values)):
                code.store(result, target, k * code.lanes)

    def _write(self, block: _Block, output: Value, at: tuple[Value, Value], columns: Value) -> None:
        """Write what the strip holds: m × m rows of a row of tiles, as far as there are outputs."""
        code, v, arg = self.code, self.variant, self.code.integer
        starts = [code.mul(code.add(o, a), m) for o, a, m in zip(block.origins, (*at, 0), v.outputs, strict=True)]
        limits = (
            code.min(size, code.sub(arg(name), begin))
            for size, name, begin in zip(
                (*v.outputs[:2], columns), ("output_depths", "output_rows", "output_columns"), starts, strict=True
            )
        )
        depths, rows, columns = limits
        bias = code.load(block.bias, output)
        with code.loop(0, depths) as i, code.loop(0, rows) as j:
            y = self._moved(
                block.y, (output, "y_channel"), (code.add(starts[0], i), "y_depth"),
                (code.add(starts[1], j), "y_row"), (starts[2], "y_column"),
            )  # fmt: skip
            strip = code.at(self.strip, code.mul(code.add(code.mul(i, v.size[1]), j), self.pitch))
            self._write_row(strip, bias, y, columns, code.sub(arg("outputs"), output))

    def _write_row(self, strip: Value, bias: Value, y: Value, columns: Value, left: Value) -> None:
        """Write one row of a vector of outputs, of which there are ``left``; the last is written last."""
        code, lanes = self.code, self.code.lanes
        order = self.variant.y_order
        step = lanes if order == "columns" else 1
        with code.loop(0, columns, step) as column:
            source = code.at(strip, code.mul(column, lanes))
            target = self._moved(y, (column, "y_column"))
            vectors = [code.fadd(code.load(source, i * lanes), bias) for i in range(step)]
            places = [self._moved(target, (code.min(lane, code.sub(left, 1)), "y_channel")) for lane in range(lanes)]
            if order == "channels":
                code.store_some(vectors[0], target, 0, code.min(left, lanes))
            elif order == "columns":
                count = code.min(lanes, code.sub(columns, column))
                for place, vector in reversed(list(zip(places, code.transpose(vectors), strict=True))):
                    code.store_some(vector, place, 0, count)
            else:
                for lane in reversed(range(lanes)):
                    code.put(code.lane(vectors[0], lane), places[lane])


def _is_identity(matrix: Matrix) -> bool:
    return all(value == (i == j) for i, row in enumerate(matrix) for j, value in enumerate(row)) and len(matrix) == len(
        matrix[0]
    )
