"""Overlap-save by kernels compiled for the CPU at hand (:mod:`convbench.jit.fft_tiles`).

A tile of t samples along each axis gives the t − r + 1 outputs that no wrapped sample reaches (Oppenheim and Schafer,
*Discrete-Time Signal Processing*, section 8.7.3). Strides and dilations are lowered first
(:mod:`~.lowering`): polyphase components are further channels, subgrids further calls. What a sample of a tile reads
is looked up, so every boundary and every step costs the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.algorithms.blocking import GroupedBias, ScratchPool, flipped
from convbench.algorithms.lowering import AxisLowering, Lowering
from convbench.arrays import Array, Namespace
from convbench.jit import pool
from convbench.jit.compile import Kernel
from convbench.jit.fft import line_cost
from convbench.jit.fft_tiles import (
    ARGUMENTS,
    CHUNK,
    PIECES,
    TileShape,
    chain,
    constants,
    piece,
    product_kernel,
    product_shape,
)
from convbench.jit.memory import CACHE_LINE, address_of, aligned
from convbench.jit.target import Target, host_target
from convbench.spec import DTYPES, ConvSpec
from convbench.transforms import transform_flops

__all__ = ["NothingToDo", "OverlapSave", "Tiles", "choose_tiles"]

_INT_BYTES = 8

#: Lengths of a transform along one of two axes: products of small primes, even.
_SIZES = (4, 6, 8, 10, 12, 16, 18, 20, 24, 28, 30, 32, 36, 40, 42, 48, 54, 56, 60, 64, 72, 80, 84, 90, 96)
_SIZES += tuple(step * 2**power for power in range(4, 15) for step in (7, 8, 10, 12) if step * 2**power > 96)
_LINE_ROWS = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_SPECTRA_BYTES = 2**21  # of several channels' tiles and sums, worked on at a time

# What a tile costs: nanoseconds on a Zen 5 core, of which only ratios matter.
_TURN = 2.0  # a point of a vector exchanged
_MOVE, _MOVE_LINE = 4.0, 2.0  # a point of a vector read from x or written to y
_MAC, _STREAM = 0.6, 4.0  # a complex multiply–add of a vector, and its weights if they come from memory
_TILE = 100.0  # finding out what a tile reads and where it goes, and starting its loops
_L1_BYTES, _L2_BYTES = 3 * 2**14, 3 * 2**18  # of a spectrum and what it is multiplied by
_SLOWER = 1.1, 1.3  # passes over what leaves these
_LINE_BYTES, _LONGER = 2**15, (1.15, 1.2)  # columns are always in the same buffer, rows are not


@dataclass(frozen=True)
class Tiles:
    """Tiles along each axis, and the transforms that they take.

    Attributes
    ----------
    outputs, size : tuple of int
        Outputs and samples of a tile along each axis of the lowered spec.
    shape : TileShape
    """

    outputs: tuple[int, ...]
    size: tuple[int, ...]
    shape: TileShape


def _fits(axis: AxisLowering, size: int) -> int:
    """Return the outputs of a tile of ``size`` samples; all of them where only padding wraps round onto padding."""
    if size >= axis.period:
        return axis.lowered_outputs
    return size - axis.lowered_kernel + 1


def _sizes(axis: AxisLowering) -> list[int]:
    """Return the lengths to choose from, up to the first that holds everything."""
    enough = next((size for size in _SIZES if size >= axis.period), _SIZES[-1])
    return [size for size in _SIZES if size <= enough and _fits(axis, size) > 0]


@lru_cache(maxsize=256)
def choose_tiles(spec: ConvSpec, target: Target) -> Tiles | None:
    """Return the tiles that should take the least time, or None if a kernel is longer than any."""
    axes, lanes = Lowering(spec).axes, target.lanes(spec.dtype)
    itemsize = DTYPES[spec.dtype]
    found: list[Tiles] = []
    if len(axes) == 1:
        for rows in _LINE_ROWS:
            for columns in (n for n in _LINE_ROWS if 2 * lanes <= n <= 8 * rows):
                size = rows * columns
                outputs = _fits(axes[0], size)
                if outputs > 0:
                    found.append(Tiles((outputs,), (size,), TileShape(rows, columns, True, lanes, itemsize)))
    else:
        for rows in _sizes(axes[0]):
            for columns in _sizes(axes[1]):
                both = _fits(axes[0], rows), _fits(axes[1], columns)
                found.append(Tiles(both, (rows, columns), TileShape(rows, columns, False, lanes, itemsize)))
    return min(found, key=lambda tiles: _cost(spec, tiles, target), default=None)


def _cost(spec: ConvSpec, tiles: Tiles, target: Target) -> float:
    """Return what all tiles cost on one thread."""
    lowering, shape, registers = Lowering(spec), tiles.shape, target.registers
    counts = [-(-axis.lowered_outputs // m) for axis, m in zip(lowering.axes, tiles.outputs, strict=True)]
    inputs, outputs = spec.in_channels // spec.groups * lowering.phases, spec.out_channels // spec.groups
    number = spec.batch * lowering.subgrids * prod(counts)
    points = shape.column_blocks * shape.rows
    touched = (2 + shape.line) * shape.spectrum_items * shape.itemsize
    slow = 1.0 if touched <= _L1_BYTES else _SLOWER[touched > _L2_BYTES]
    columns, rows = (
        line_cost(n, registers) * (1.0 if 2 * n * shape.lanes * shape.itemsize <= most else longer)
        for n, most, longer in ((shape.rows, 2 * _LINE_BYTES, _LONGER[0]), (shape.columns, _LINE_BYTES, _LONGER[1]))
    )
    passes = points * (columns + _TURN) + shape.frequencies * rows
    transform = slow * passes + (_MOVE_LINE if shape.line else _MOVE) * points + _TILE
    macs = shape.frequencies * inputs * outputs
    if inputs == outputs == 1:
        return number * (2 * transform + _MAC * macs) * spec.groups
    streamed = _STREAM * macs / _tiles_at_once(spec, tiles)
    return number * ((inputs + outputs) * (transform + shape.frequencies) + _MAC * macs + streamed) * spec.groups


def _tiles_at_once(spec: ConvSpec, tiles: Tiles) -> int:
    """Return how many tiles' spectra and sums are in memory together, where sums go over channels."""
    lowering = Lowering(spec)
    counts = [-(-axis.lowered_outputs // m) for axis, m in zip(lowering.axes, tiles.outputs, strict=True)]
    lanes = spec.in_channels // spec.groups * lowering.phases + spec.out_channels // spec.groups
    room = _SPECTRA_BYTES // (lanes * tiles.shape.spectrum_items * tiles.shape.itemsize)
    return max(1, min(spec.batch * prod(counts), room))


def _groups_at_once(spec: ConvSpec, tiles: Tiles) -> int:
    """Return the groups that are worked on together where there is room for all their tiles: a divisor of all."""
    lowering = Lowering(spec)
    lanes = spec.in_channels // spec.groups * lowering.phases + spec.out_channels // spec.groups
    one = lanes * tiles.shape.spectrum_items * tiles.shape.itemsize * _tiles_at_once(spec, tiles)
    return next(n for n in range(max(1, min(spec.groups, _SPECTRA_BYTES // one)), 0, -1) if spec.groups % n == 0)


@dataclass(frozen=True, eq=False)
class _Reading:
    """What the positions along an axis read, for one polyphase component on one subgrid.

    Attributes
    ----------
    before, after : array of int64
        Samples that positions below ``first``, and from ``last`` on, read; −1 is zero.
    first, last, run, step : int
        Positions between read sample ``run`` and every ``step``-th after it.
    """

    before: NDArray[np.int64]
    after: NDArray[np.int64]
    first: int
    last: int
    run: int
    step: int

    @classmethod
    def of(cls, axis: AxisLowering, phase: int, subgrid: int, extent: int) -> _Reading:
        """Look up ``extent`` positions; those that no output needs are zero."""
        step, origin = axis.stride * axis.grid_step, axis.stride * subgrid + phase * axis.dilation - axis.before
        first = min(extent, max(0, -(origin // step)))
        last = max(first, min(extent, axis.length, -((origin - axis.size) // step)))

        def look_up(start: int, stop: int) -> NDArray[np.int64]:
            places = np.arange(start, stop)
            found = _boundary_indices(origin + places * step, axis.size, axis.boundary)
            return np.where(places < axis.length, found, -1)

        return cls(look_up(0, first), look_up(last, extent), first, last, origin + first * step, step)

    @property
    def table(self) -> NDArray[np.int64]:
        """All positions' samples."""
        return np.concatenate([self.before, self.run + self.step * np.arange(self.last - self.first), self.after])


def _boundary_indices(positions: NDArray[np.int64], size: int, boundary: str) -> NDArray[np.int64]:
    """Return :func:`convbench.geometry.boundary_index` of every position, −1 for zero."""
    if boundary == "circular":
        return positions % size
    if boundary == "replicate":
        return positions.clip(0, size - 1)
    if boundary == "reflect":
        period = max(1, 2 * (size - 1))
        folded = positions % period
        return np.minimum(folded, period - folded) if size > 1 else np.zeros_like(positions)
    return np.where((positions >= 0) & (positions < size), positions, -1)


def _kernels_reading(axis: AxisLowering, phase: int, extent: int) -> _Reading:
    """Return how the taps of a polyphase component are read, zeros behind them."""
    taps, count = axis.taps(phase), axis.tap_count(phase)
    return _Reading(np.zeros(0, np.int64), np.full(extent - count, -1), 0, count, phase, taps.step)


def _described(readings: Sequence[_Reading]) -> dict[str, Any]:
    """Return what kernels are told of one or two axes; ``run`` and ``run_step`` in samples."""
    *rows, columns = readings
    table = rows[0].table if rows else np.zeros(0, np.int64)
    return {
        "rows": table,
        "before": columns.before,
        "after": columns.after,
        "first": columns.first,
        "last": columns.last,
        "run": columns.run,
        "run_step": columns.step,
    }


#: Address and strides, in items, of an array of images: image, group, channel, row (0 of one axis) and step.
_Place = tuple[int, ...]
_NOWHERE = (0,) * 6


class _Call:
    """Arguments of a kernel, worked out but for what changes from call to call, which comes first in its table."""

    def __init__(self, kernel: Kernel, jobs: int, known: Mapping[str, Any], pieces: Sequence[Kernel]) -> None:
        self.kernel, self.jobs, self._pieces = kernel, jobs, pieces
        self.tables = [value for value in known.values() if isinstance(value, np.ndarray)]
        values = {name: known.get(name, 0) for name in ARGUMENTS} | {"channels": known.get("channels", 1)}
        numbers = {name: address_of(v) if isinstance(v, np.ndarray) else int(v) for name, v in values.items()}
        numbers["after"] -= _INT_BYTES * numbers["last"]
        self._spectra, self._run, self._run_step = (numbers[name] for name in ("spectra", "run", "run_step"))
        self._fixed = list(numbers.values())[ARGUMENTS.index("run_step") + 1 :]

    def run(
        self, threads: int, x: _Place, y: _Place, spectra: int, scratch: int, group: int = 0, tile: int = 0
    ) -> None:
        """Do all jobs."""
        step = x[-1]
        run = self._run * step, self._run_step * step
        table = (*x, *y, self._spectra + spectra, scratch, group, tile, *run, *self._fixed)
        pool.run(self.kernel, table, self.jobs, threads)


def _place(array: Array, itemsize: int) -> _Place:
    image, group, channel, *rows, step = (stride // itemsize for stride in array.strides)
    return address_of(array), image, group, channel, rows[0] if rows else 0, step


@dataclass(frozen=True, eq=False)
class _Round:
    """What is done for the outputs of a subgrid, some tiles and groups at a time.

    Attributes
    ----------
    subgrid : tuple of int
    tiles, groups : range
        Where each time begins, and how many at a time (the step).
    calls : sequence of _Call
        All of it, or the transforms of each polyphase component.
    sizes : tuple of int
        What the kernel of products is told beside addresses.
    back : _Call, optional
    """

    subgrid: tuple[int, ...]
    tiles: range
    groups: range
    calls: Sequence[_Call]
    sizes: tuple[int, ...] = ()
    back: _Call | None = None


class NothingToDo:
    """For a result without elements, whether any tile holds its kernel or not."""

    workspace_bytes = prepared_bytes = flops = 0

    def prepare(self, w: Array) -> tuple[Any, None]:
        """Return the weights as they are."""
        return w, None

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Leave ``out`` as it is."""


class OverlapSave:
    """Overlap-save along one or two axes: any stride, dilation, groups, padding and boundary, float32 and float64.

    One channel that meets one: a tile is read, transformed, multiplied, transformed back and written in one go, in a
    thread's cache. Several channels: spectra of some tiles at a time, a complex matrix product at each frequency, and
    back. A NaN or infinity spoils its tile.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        target, lowering = host_target(), Lowering(spec)
        tiles = choose_tiles(spec, target)
        assert tiles is not None, "refused by the backend"
        self._spec, self._threads, self._ns, self._lowering, self._tiles = spec, threads, ns, lowering, tiles
        self._shape, self._target = tiles.shape, target
        self._phases, self._groups, self._one_grid = lowering.phases, spec.groups, lowering.subgrids == 1
        self._channels, self._outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        self._inputs = self._channels * lowering.phases
        self._single = self._inputs == self._outputs == 1
        self._fixed = self._tables()
        self._width = 2 * self._shape.lanes  # numbers of a vector of frequencies
        self._product = product_shape(target)
        self._output_blocks = -(-self._outputs // self._product.outputs)
        self._tiles_at_once = _tiles_at_once(spec, tiles)
        self._groups_at_once = 1
        if not self._single:
            self._groups_at_once = _groups_at_once(spec, tiles)
            self._products = product_kernel(target, spec.dtype)
        self._calls = self._plan_calls()
        self._weight_calls = self._plan_weights()
        self._scratch = ScratchPool(self._new_scratch)
        with self._scratch.borrow():
            pass
        self.prepared_bytes = self._weight_items * spec.itemsize + CACHE_LINE
        self.workspace_bytes = self._count_workspace()
        self.flops = self._count_flops()

    # -- planning ---------------------------------------------------------------------------------------------

    def _call(self, stage: str, jobs: int, values: Mapping[str, Any], scale: tuple[float, float] = (1, 1)) -> _Call:
        """Plan the pieces of a stage."""
        shape, target, dtype = self._shape, self._target, self._spec.dtype
        kernels = []
        for name in PIECES[stage]:
            n = shape.columns if name.startswith("rows") else shape.rows
            kernels.append(piece(target, dtype, name, n, shape.line))
        pieces = {f"piece{number}": kernel.address for number, kernel in enumerate(kernels, start=1)}
        factors = {
            name: np.full(1, value, dtype) for name, value in zip(("re_factor", "im_factor"), scale, strict=True)
        }
        known = {**self._fixed, **shape.arguments, **factors, **pieces, **values}
        return _Call(chain(target), jobs, known, kernels)

    def _tables(self) -> dict[str, NDArray[Any]]:
        """Return the constants of the transforms, and what rows of zeros read."""
        found = constants(self._shape, self._target)
        names = ("twiddles1", "twiddles2", "odd", "odd_back", "cross")
        rounded = {name: getattr(found, name).astype(self._spec.dtype) for name in names}
        zeros = np.zeros(1 if self._shape.line else self._shape.pitch, self._spec.dtype)  # a line reads but one
        return {**rounded, "partners": found.partners, "zeros": zeros}

    def _geometry(self, phase: tuple[int, ...], subgrid: tuple[int, ...]) -> dict[str, Any]:
        """Return what kernels are told about what tiles read, but for the strides of x, and about the tiles."""
        counts, readings = self._counts, []
        axes = zip(self._lowering.axes, phase, subgrid, self._tiles.outputs, self._extents, counts, strict=True)
        for axis, r, i, outputs, extent, count in axes:
            readings.append(_Reading.of(axis, r, i, (count - 1) * outputs + extent))
        found = _described(readings)
        sizes = [axis.position_count(i) for axis, i in zip(self._lowering.axes, subgrid, strict=True)]
        lines = [1] * (2 - len(sizes))
        for name, values in (("tiles", counts), ("outputs", self._tiles.outputs), ("size", sizes)):
            found |= {f"{name}{number}": value for number, value in enumerate((*lines, *values), start=1)}
        return found

    @property
    def _counts(self) -> list[int]:
        """Tiles of an image along each axis."""
        return [-(-axis.lowered_outputs // m) for axis, m in zip(self._lowering.axes, self._tiles.outputs, strict=True)]

    @property
    def _extents(self) -> tuple[int, ...]:
        """Positions that a tile may read along each axis."""
        return (self._shape.pitch,) if self._shape.line else (self._shape.rows, self._shape.pitch)

    # -- weights ----------------------------------------------------------------------------------------------

    @property
    def _weight_items(self) -> int:
        """Numbers of the prepared weights."""
        if self._single:
            return self._groups * self._shape.spectrum_items
        outputs = self._output_blocks * self._product.outputs
        return self._groups * self._shape.spectrum_items * outputs * self._inputs

    def _plan_weights(self) -> list[tuple[int, int, _Call]]:
        """Return for every output and phase of a group where its spectra go, its number, and the call."""
        block, scale = self._product.outputs, self._shape.weights_scale
        found = []
        for number, phase in self._lowering.each_phase():
            axes = zip(self._lowering.axes, phase, self._extents, strict=True)
            values = _described([_kernels_reading(axis, r, extent) for axis, r, extent in axes])
            values |= {"tiles": 1, "tiles1": 1, "tiles2": 1, "channels": self._channels}
            if self._single:
                values |= {"s_group": self._shape.spectrum_items, "s_frequency": self._width}
            else:
                row = self._output_blocks * self._inputs * block * self._width
                values |= {"s_group": self._shape.frequencies * row, "s_frequency": row}
                values["s_channel"] = self._phases * block * self._width
            call = self._call("forward", self._groups * self._channels, values, (scale, -scale))
            for output in range(self._outputs):
                place = ((output // block * self._inputs + number) * block + output % block) * self._width
                found.append((place, output, call))
        return found

    def prepare(self, w: Array) -> tuple[Any, None]:
        """Return the spectra of the kernels' components, conjugated for correlation."""
        spec = self._spec
        w = flipped(self._ns, spec, w)
        spectra = aligned(self._weight_items, spec.dtype)
        if self._outputs % self._product.outputs and not self._single:
            spectra[:] = 0
        start, group, step, channel, *taps = _place(w, spec.itemsize)
        first = address_of(spectra)
        with self._scratch.borrow() as (_, (scratch, *_)):
            for place, output, call in self._weight_calls:
                kernels = start + output * step * spec.itemsize, 0, group, channel, *taps
                call.run(self._threads, kernels, _NOWHERE, first + place * spec.itemsize, scratch)
        return spectra, None

    # -- calls ------------------------------------------------------------------------------------------------

    def _plan_calls(self) -> list[_Round]:
        """Return what is done for every subgrid: of several channels, for as many tiles and groups as there is room."""
        zero = (0,) * self._spec.ndim
        tiles = self._spec.batch * prod(self._counts)
        found = []
        for _, subgrid in self._lowering.each_subgrid():
            if self._single:
                values = {"tiles": tiles, "s_group": self._shape.spectrum_items, "s_frequency": self._width}
                call = self._call("convolve", self._groups * tiles, self._geometry(zero, subgrid) | values)
                found.append(_Round(subgrid, range(1), range(1), [call]))
                continue
            forward = [self._geometry(phase, subgrid) for _, phase in self._lowering.each_phase()]
            whole = tiles // self._tiles_at_once * self._tiles_at_once
            for starts in (range(0, whole, self._tiles_at_once), range(whole, tiles, max(1, tiles - whole))):
                if starts:
                    found.append(self._round(subgrid, starts, forward))
        return found

    def _round(self, subgrid: tuple[int, ...], starts: range, readings: list[dict[str, Any]]) -> _Round:
        """Plan spectra, products and sums of ``starts.step`` tiles at a time."""
        tiles, groups, width, block = starts.step, self._groups_at_once, self._width, self._product
        columns = -(-tiles // block.tiles) * block.tiles
        shape, lanes = self._shape, {"tiles": tiles, "s_tile": width}
        calls = []
        for number, values in enumerate(readings):
            row = self._inputs * columns * width
            values = values | lanes | {"channels": self._channels, "s_frequency": row}
            values |= {"s_group": shape.frequencies * row, "s_channel": self._phases * columns * width}
            values["spectra"] = number * columns * width * self._spec.itemsize
            calls.append(self._call("forward", groups * self._channels * tiles, values))
        row = self._output_blocks * block.outputs * columns * width
        values = readings[0] | lanes | {"channels": self._outputs, "s_frequency": row}
        values |= {"s_group": shape.frequencies * row, "s_channel": columns * width}
        back = self._call("back", groups * self._outputs * tiles, values)
        chunks = -(-shape.frequencies // CHUNK)
        sizes = chunks, shape.frequencies, self._inputs, self._output_blocks, columns // block.tiles
        return _Round(subgrid, starts, range(0, self._groups, groups), calls, sizes, back)

    def _new_scratch(self) -> tuple[list[NDArray[Any]], list[int]]:
        """Return memory of all threads, and for several channels of spectra and sums; and where it lies.

        All is zero, as unused lanes are to be.
        """
        found = [aligned(size, self._spec.dtype) for size in self._scratch_items]
        for array in found:
            array[...] = 0
        return found, [address_of(array) for array in found]

    @property
    def _scratch_items(self) -> list[int]:
        threads = self._threads * self._shape.scratch_bytes // self._spec.itemsize
        if self._single:
            return [threads]
        columns = -(-self._tiles_at_once // self._product.tiles) * self._product.tiles
        one = self._groups_at_once * columns * self._shape.spectrum_items
        return [threads, one * self._inputs, one * self._output_blocks * self._product.outputs]

    def _count_workspace(self) -> int:
        calls = [call for _, _, call in self._weight_calls]
        calls += [call for one in self._calls for call in (*one.calls, *([one.back] if one.back else []))]
        tables = {id(table): table.nbytes for call in calls for table in call.tables}
        buffers = self._scratch_items
        return sum(tables.values()) + sum(buffers) * self._spec.itemsize + CACHE_LINE * len(buffers)

    def _count_flops(self) -> int:
        """8 a complex multiply–add at each of t/2 frequencies."""
        points = prod(self._tiles.size)
        transforms = transform_flops(points, self._spec.dtype) * (self._inputs + self._outputs)
        tiles = self._spec.batch * self._lowering.subgrids * prod(self._counts) * self._groups
        return round(tiles * (transforms + 4 * points * self._inputs * self._outputs))

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Fill ``out``."""
        itemsize, weights = self._spec.itemsize, address_of(second)
        x = _place(first, itemsize)
        with self._scratch.borrow() as (_, (scratch, *spectra)):
            for one in self._calls:
                y = self._where(out, one.subgrid)
                if self._single:
                    one.calls[0].run(self._threads, x, y, weights, scratch)
                else:
                    self._run_round(one, x, weights, y, scratch, *spectra)
        if bias is not None:
            GroupedBias(self._ns, self._spec, bias).add(out)

    def _run_round(
        self, one: _Round, x: _Place, weights: int, y: _Place, scratch: int, spectra: int, sums: int
    ) -> None:
        """Transform, multiply and transform back, a few groups' tiles at a time."""
        assert one.back is not None
        threads, jobs = self._threads, self._groups_at_once * one.sizes[0]
        weights_of_group = self._weight_items // self._groups * self._spec.itemsize
        for group, tile in product(one.groups, one.tiles):
            for call in one.calls:
                call.run(threads, x, _NOWHERE, spectra, scratch, group, tile)
            pool.run(self._products, (spectra, weights + group * weights_of_group, sums, *one.sizes), jobs, threads)
            one.back.run(threads, _NOWHERE, y, sums, scratch, group, tile)

    def _where(self, out: Array, subgrid: tuple[int, ...]) -> _Place:
        """Return where a subgrid's outputs go."""
        found = _place(out, self._spec.itemsize)
        if self._one_grid:
            return found
        start, image, group, channel, *strides = found
        steps, places = [axis.grid_step for axis in self._lowering.axes], [0, *subgrid][-2:]
        start += sum(stride * place for stride, place in zip(strides, places, strict=True)) * self._spec.itemsize
        return start, image, group, channel, *(s * n for s, n in zip(strides, [1, *steps][-2:], strict=True))
