"""Direct convolution of few channels by the kernels of :mod:`convbench.jit.rows`: images, depthwise layers, signals."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, isfinite, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convbench.algorithms.axes import in_items
from convbench.algorithms.blocking import GroupedBias, ScratchPool, flipped
from convbench.arrays import Namespace
from convbench.jit import pool, rows
from convbench.jit.compile import Kernel
from convbench.jit.memory import address_of, aligned
from convbench.jit.rows import Variant
from convbench.jit.strips import Sources, axis_sources
from convbench.jit.target import Target, host_target
from convbench.spec import ConvSpec

__all__ = ["DirectRows", "suits"]

Array = NDArray[Any]

_STRIP_BYTES = 2**15  # two thirds of an L1 cache
_WORKSPACE_SHARE = 0.15  # of the operands, for the strips of all threads
_JOBS_A_THREAD = 8  # at least, where there is so much to share out
_WORTH_A_JOB = 2**16  # multiply–adds below which nothing is split further
_WRITTEN_OUT = 11  # taps of a column: of 9 and 11, 10 % faster than by a loop; code grows with them
_MOST_ROWS = 8
_MOST_REACH = 8  # rows of input that some rows of a tile read and others do not
_CHAINS = 16  # sums that are added to in turn: a latency of four cycles, two adds a cycle, and some to spare
_SPAN_TILES = 8
_PAGE = 4096  # bytes
_ANYWHERE = 2**62
_STRIDES = ("image", "group", "channel", "depth", "row", "column")
_ADDRESSES = 5  # arguments that every call has anew, the first ones
_ADVANTAGE = 1.25  # of filled lanes, from which neighbouring outputs are better in them than output channels


def suits(spec: ConvSpec) -> bool:
    """Tell whether outputs of a row fill vectors better than output channels of a group do.

    >>> [suits(ConvSpec.parse(line)) for line in ("c64 o64 i56x56 k3 g64 f32", "c64 o64 i56x56 k3 f32")]
    [True, False]
    """
    lanes = host_target().lanes(spec.dtype)

    def filled(count: int) -> float:
        return count / (-(-count // lanes) * lanes)

    return filled(spec.output_size[-1]) > _ADVANTAGE * filled(spec.out_channels // spec.groups)


@dataclass(frozen=True, eq=False)
class _Axis:
    """One spatial axis: sizes, and what its padded positions read.

    Attributes
    ----------
    taps, skipped : int
        Taps that some output reads, and those before them that none does.
    before : int
        Padding, from the first such tap.
    """

    size: int
    outputs: int
    taps: int
    skipped: int
    stride: int
    dilation: int
    before: int
    sources: Sources

    @property
    def extent(self) -> int:
        """Positions that all outputs read."""
        return len(self.sources.table)

    @property
    def residues(self) -> int:
        """Sets of outputs that have no position in common: those of one set begin multiples of the dilation apart."""
        return min(self.outputs, self.dilation // gcd(self.stride, self.dilation))

    @property
    def step(self) -> int:
        """Positions from one output of a residue to the next, in units of the dilation."""
        return self.stride // gcd(self.stride, self.dilation)


def _axis(size: int, outputs: int, taps: int, stride: int, dilation: int, before: int, boundary: str) -> _Axis:
    """Leave out the taps that meet nothing but zeros, but for one."""
    stride, first = stride if outputs > 1 else 1, 0
    if boundary == "zero":
        first = min(taps - 1, max(0, -((before - (outputs - 1) * stride) // -dilation)))
        last = max(first, min(taps - 1, (before + size - 1) // dilation))
        taps, before = last + 1 - first, before - first * dilation
    dilation = dilation if taps > 1 else stride  # a single tap's is of no account: so rows between are not copied
    extent = (outputs - 1) * stride + (taps - 1) * dilation + 1
    sources = axis_sources(size, extent, before, boundary)
    return _Axis(size, outputs, taps, first, stride, dilation, before, sources)


def _axes(spec: ConvSpec) -> tuple[_Axis, _Axis, _Axis]:
    """Return depth, rows and columns; axes that the spec has not are of size 1."""
    axes = [_axis(1, 1, 1, 1, 1, 0, "zero")] * (3 - spec.ndim)
    for size, outputs, taps, stride, dilation, (before, _) in zip(
        spec.input_size, spec.output_size, spec.kernel_size, spec.stride, spec.dilation, spec.padding, strict=True
    ):
        axes.append(_axis(size, outputs, taps, stride, dilation, before, spec.boundary))
    depth, height, width = axes
    return depth, height, width


@dataclass(frozen=True)
class _Shape:
    """The tile, and the taps of a column and of a row that it sees (of a folded signal others than the spec's).

    Attributes
    ----------
    rows, vectors : int
    written_out : bool
        The taps of a column are part of the machine code.
    row_taps, column_taps : int
    longer : int
        Columns of taps that have one more, the first ones.
    folded : bool
    """

    rows: int
    vectors: int
    written_out: bool
    row_taps: int
    column_taps: int
    longer: int = 0
    folded: bool = False

    @property
    def most_taps(self) -> int:
        """Of a column."""
        return self.row_taps + (self.longer > 0)

    @property
    def taps(self) -> int:
        """Of all columns."""
        return self.row_taps * self.column_taps + self.longer


def _shape(axes: tuple[_Axis, _Axis, _Axis], lanes: int, target: Target) -> _Shape:
    """Fill the registers with as equal tiles as an image's size allows."""
    depth, height, width = axes
    many = target.registers >= 32
    one_row = all(axis.outputs == axis.taps == 1 for axis in (depth, height)) and height.sources.table[0] == 0
    if one_row and width.stride == width.dilation == 1:
        vectors = 2 if width.taps > 4 * lanes and many else 1  # as those of a row serve fewer taps, the shorter it is
        piece = vectors * lanes
        if width.taps > lanes and width.outputs >= 4 * piece:
            taps, longer = divmod(width.taps, piece)
            count = _rows(-(-width.outputs // piece), taps, 1, vectors, target)
            return _Shape(count, vectors, taps <= _WRITTEN_OUT, taps, piece, longer, folded=True)
    most = (8 if many else 6) if height.outputs == 1 else 4 if many else 2
    needed = -(-width.outputs // lanes)
    vectors = -(-needed // -(-needed // most))
    count = _rows(-(-height.outputs // height.residues), height.taps, height.step, vectors, target)
    return _Shape(count, vectors, height.taps <= _WRITTEN_OUT, height.taps, width.taps)


def _rows(outputs: int, taps: int, step: int, vectors: int, target: Target) -> int:
    """Return the rows of a tile: as many as registers allow, but fewer where much code would be written out."""
    if taps <= _WRITTEN_OUT:
        most = min(_MOST_ROWS, max(1, target.registers // 2 // vectors))
    else:
        most = min(_MOST_ROWS, max(1, (target.registers - 3 - vectors) // vectors), 1 + _MOST_REACH // step)
        most = min(most, max(taps // 2, _CHAINS // vectors))  # head and tail should be the lesser part
    return -(-outputs // -(-outputs // most))


@dataclass(frozen=True)
class _Strip:
    """A strip of a band of a residue and a span: rows and columns of outputs, and the input beneath them in items."""

    band: int
    span: int
    rows: int
    pitch: int
    phase: int
    items: int
    segments: int = 1

    @property
    def all_items(self) -> int:
        """Of all segments."""
        return self.segments * self.items


class _Weights(NamedTuple):
    """Packed weights, and the outputs that an infinity or a NaN among them makes NaN by a product with padding."""

    packed: Array
    spoilt: tuple[NDArray[np.bool_], ...]


class DirectRows:
    """Direct convolution, forward, of 1 to 3 axes: O(MACs) work; workspace: strips of input for each thread.

    Made for one or few channels a group. Taps of rows and columns change places in the prepared weights.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        self._ns, self._spec, self._threads = ns, spec, threads
        self._target = host_target()
        self._lanes = self._target.lanes(spec.dtype)
        self._axes = _axes(spec)
        self._shape = _shape(self._axes, self._lanes, self._target)
        self._width = self._shape.vectors * self._lanes
        self._channels, self._outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        self._strip = self._chosen_strip()
        sheets = self._channels * self._axes[0].taps
        self._scratch_items = _aligned_items(sheets * self._strip.all_items + 3 * self._width + self._lanes)
        self._no_bias = np.zeros(spec.out_channels, spec.dtype)
        self._scratch = ScratchPool(lambda: aligned(self._scratch_items * threads, spec.dtype))
        self._calls: dict[Any, tuple[Kernel, tuple[int, ...], int]] = {}
        self._alive: list[Any] = []  # tables that calls hold addresses of
        weights = spec.out_channels * sheets * self._shape.taps
        self.workspace_bytes = (self._scratch_items * threads + spec.out_channels) * spec.itemsize
        self.prepared_bytes = weights * spec.itemsize
        taps = prod(axis.taps for axis in self._axes)
        self.flops = 2 * spec.batch * spec.out_channels * self._channels * prod(spec.output_size) * taps

    def prepare(self, w: Array) -> tuple[_Weights, None]:
        """Pack the weights that are used: (output, channel, depth, tap of the row, tap of the column)."""
        spec, shape = self._spec, self._shape
        ndim, whole = spec.ndim, shape.row_taps * shape.column_taps
        given = flipped(self._ns, spec, w)
        used = tuple(slice(axis.skipped, axis.skipped + axis.taps) for axis in self._axes[3 - ndim :])
        taken = given[(..., *used)]
        taps = taken.reshape(spec.out_channels, self._channels, *(1,) * (3 - ndim), *taken.shape[3:])
        packed = aligned((*taps.shape[:3], shape.taps), spec.dtype)
        if shape.folded:
            packed[..., whole:] = taps[..., 0, whole:]
            taps = taps[..., 0, :whole].reshape(*taps.shape[:3], shape.row_taps, shape.column_taps)
        by_column = packed[..., :whole].reshape(*taps.shape[:3], shape.column_taps, shape.row_taps)
        by_column[...] = taps.swapaxes(-1, -2)
        return _Weights(packed, _spoilt(spec, given)), None

    def run(self, first: Array, second: _Weights, bias: Array | None, out: Array) -> None:
        """Fill ``out``."""
        fused = bias is not None and self._spec.bias == "channel"
        key = first.strides, out.strides
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = self._made_call(*key)
        kernel, table, jobs = call
        added = np.ascontiguousarray(bias) if fused else self._no_bias
        with self._scratch.borrow() as scratch:
            addresses = map(address_of, (first, out, second.packed, added, scratch))
            pool.run(kernel, (*addresses, *table), jobs, self._threads)
        if bias is not None and not fused:
            GroupedBias(self._ns, self._spec, bias).add(out)
        for places in second.spoilt:
            np.copyto(out, np.nan, where=places)

    # -- plan -------------------------------------------------------------------------------------------------

    def _strip_of(self, band: int, span: int) -> _Strip:
        """Return the layout beneath so many rows and columns of outputs."""
        _, height, width = self._axes
        if self._shape.folded:
            items = (band + self._shape.most_taps) * self._width
            return _Strip(band, span, 1, items, items, items)
        count = (band - 1) * height.step + height.taps
        columns, reach = (min(span, width.outputs) - 1) * width.stride + 1, (width.taps - 1) * width.dilation
        whole, parted = (
            self._laid_out(band, span, count, *layout) for layout in ((columns + reach, 1), (columns, width.taps))
        )
        return parted if parted.all_items < whole.all_items else whole

    def _laid_out(self, band: int, span: int, count: int, columns: int, segments: int) -> _Strip:
        """Return the layout of segments of so many rows and columns of input."""
        stride = self._axes[2].stride
        phase = _aligned_items(-(-columns // stride))
        pitch = stride * phase
        if pitch * self._spec.itemsize % _PAGE == 0:  # else all rows would share the same sets of a cache
            phase, pitch = phase + 16, pitch + 16 * stride
        return _Strip(band, span, count, pitch, phase, count * pitch, segments)

    def _chosen_strip(self) -> _Strip:
        """Make bands as high as their strip may be, and as low as there have to be jobs for all threads."""
        spec, shape, depth = self._spec, self._shape, self._axes[0]
        operands = prod(spec.input_shape) + prod(spec.output_shape) + prod(spec.weight_shape)
        most = min(_STRIP_BYTES // spec.itemsize, int(_WORKSPACE_SHARE * operands) // self._threads)
        most //= self._channels * depth.taps
        step, columns = shape.rows, self._output_columns
        outputs = -(-self._output_rows // self._residues)
        tiles = -(-columns // self._width)
        span, band = tiles * self._width, -(-outputs // step) * step
        if tiles > _SPAN_TILES:
            span = _SPAN_TILES * self._width
        while self._strip_of(step, span).all_items > most and span > self._width:
            span = -(-span // (2 * self._width)) * self._width
        planes = spec.batch * spec.groups * depth.outputs * self._residues
        wanted = self._wanted_jobs
        most //= self._residues  # each has a first and a last band, which are copied
        while band > step and (self._strip_of(band, span).all_items > most or planes * -(-outputs // band) < wanted):
            band = -(-band // (2 * step)) * step
        return self._strip_of(band, span)

    @property
    def _wanted_jobs(self) -> int:
        """As many as threads can share evenly, or as few as the work is worth."""
        worth = max(1, self._spec.macs // _WORTH_A_JOB)
        return min(_JOBS_A_THREAD * self._threads, worth) if self._threads > 1 else 1

    @property
    def _residues(self) -> int:
        return 1 if self._shape.folded else self._axes[1].residues

    @property
    def _output_rows(self) -> int:
        return -(-self._axes[2].outputs // self._width) if self._shape.folded else self._axes[1].outputs

    @property
    def _output_columns(self) -> int:
        return self._width if self._shape.folded else self._axes[2].outputs

    def _made_call(self, x_bytes: tuple[int, ...], y_bytes: tuple[int, ...]) -> tuple[Kernel, tuple[int, ...], int]:
        """Return the kernel for arrays of these strides, its arguments after the addresses, and its jobs."""
        spec, shape, strip = self._spec, self._shape, self._strip
        depth, height, width = self._axes
        x, y = (in_items(strides, spec) for strides in (x_bytes, y_bytes))
        unit_input, unit_output = x[5] == 1 or width.size == 1, y[5] == 1 or width.outputs == 1
        variant = Variant(
            dtype=spec.dtype,
            rows=shape.rows,
            vectors=shape.vectors,
            row_step=height.step,
            taps=shape.row_taps if shape.written_out else 0,
            phases=width.stride if width.stride <= 2 else 0,
            zeros=spec.boundary == "zero",
            ragged=shape.longer > 0,
            dilated=not shape.folded and height.dilation > 1,
            folded=shape.folded,
            unit_input=unit_input,
            unit_output=unit_output,
        )
        if shape.folded:
            x, y = (*x[:4], x[5], x[5]), (*y[:4], self._width * y[5], y[5])
        residues = self._residues
        bands = -(-self._output_rows // (residues * strip.band))
        units = spec.batch * spec.groups * depth.outputs * residues * bands
        units_a_job = max(1, -(-units // self._wanted_jobs))
        taps = np.arange(shape.column_taps, dtype=np.int64)
        offsets, parted = taps * width.dilation, taps * strip.items
        if strip.segments == 1:
            parted = offsets % width.stride * strip.phase + offsets // width.stride
        self._alive.append((offsets, parted))
        values = {
            **_named("x", x), **_named("y", y), "y_residue": y[4], "y_row": residues * y[4], "residues": residues,
            "units": units, "units_a_job": units_a_job, "bands": bands, "band": strip.band, "span": strip.span,
            "groups": spec.groups, "outputs": self._outputs, "channels": self._channels,
            "output_depths": depth.outputs, "output_rows": self._output_rows, "output_columns": self._output_columns,
            "depths": address_of(depth.sources.table), "depth_taps": depth.taps,
            "depth_stride": depth.stride, "depth_dilation": depth.dilation,
            "rows": address_of(height.sources.table), "row_taps": shape.row_taps,
            "columns": address_of(width.sources.table), "column_taps": shape.column_taps, "longer": shape.longer,
            "offsets": address_of(offsets), "strip_offsets": address_of(parted),
            "column_stride": width.stride, "column_dilation": width.dilation, "column_before": width.before,
            "column_reach": (width.taps - 1) * width.dilation + 1 if strip.segments == 1 else 1,
            "column_first": width.sources.first, "column_last": width.sources.last, "column_extent": width.extent,
            "strip_rows": strip.rows, "pitch": strip.pitch, "phase": strip.phase,
            "strip_items": strip.items, "segments": strip.segments, "scratch_items": self._scratch_items,
            "flat_outputs": width.outputs,
            **(self._folded_rows() if shape.folded else self._image_rows()),
        }  # fmt: skip
        if not unit_input:
            values |= {"in_place_first": 0, "in_place_last": 0}
        arguments = tuple(values[name] for name in rows.ARGUMENTS[_ADDRESSES:])
        return rows.kernel(variant, self._target), arguments, -(-units // units_a_job)

    def _image_rows(self) -> dict[str, int]:
        """Return the arguments about rows: what may be read in place, and where a tile's rows of input end."""
        height, strip = self._axes[1], self._strip
        sources, zeros = height.sources, self._spec.boundary == "zero"
        clips = zeros and not self._shape.written_out  # rows of zeros are not read
        columns = self._columns_in_place()
        return {
            "residue_stride": height.stride, "row_stride": self._residues * height.stride,
            "row_dilation": height.dilation, "row_before": height.before, "row_extent": height.extent,
            "beneath": (strip.rows - 1) * height.dilation + 1,
            "row_first": -_ANYWHERE if clips else sources.first, "row_last": _ANYWHERE if clips else sources.last,
            "clip_first": sources.first if zeros else 0, "clip_last": sources.last if zeros else height.extent,
            "in_place_first": columns[0], "in_place_last": columns[1], "strip_step": strip.pitch,
        }  # fmt: skip

    def _folded_rows(self) -> dict[str, int]:
        """Return the same for rows that are pieces of one signal, one sample apart in memory as in the strip."""
        sources = self._axes[2].sources
        return {
            "residue_stride": 0, "row_stride": self._width, "row_dilation": self._width,
            "row_before": 0, "row_extent": 1, "beneath": self._strip.items,
            "row_first": sources.first, "row_last": sources.last, "clip_first": 0, "clip_last": _ANYWHERE,
            "in_place_first": 0, "in_place_last": self._width, "strip_step": self._width,
        }  # fmt: skip

    def _columns_in_place(self) -> tuple[int, int]:
        """Return the range of output columns, whole tiles, that read neighbours only."""
        width = self._axes[2]
        if width.stride > 1:
            return 0, 0
        first = -(-width.sources.first // self._width) * self._width
        reach = width.sources.last - (width.taps - 1) * width.dilation
        last = first + max(0, reach - first) // self._width * self._width
        return (first, last) if last > first else (0, 0)


def _spoilt(spec: ConvSpec, w: Array) -> tuple[NDArray[np.bool_], ...]:
    """Return where a weight that is not finite meets zeros beyond the input, an axis at a time: these are not computed.

    An output channel's first such tap of an axis is the first to leave the input at the front, its last one at the end.
    """
    if spec.boundary != "zero" or w.size == 0:
        return ()
    if isfinite(w.min()) and isfinite(w.max()):  # the extremes of what holds a NaN are NaN
        return ()
    bad, spoilt = ~np.isfinite(w), []
    for axis, (size, outputs, taps, stride, dilation, (before, _)) in enumerate(
        zip(spec.input_size, spec.output_size, spec.kernel_size, spec.stride, spec.dilation, spec.padding, strict=True)
    ):
        others = tuple(i for i in range(2, w.ndim) if i != axis + 3)
        marked = np.asarray(bad.any(axis=others))  # (group, output channel, tap)
        some, first, last = marked.any(-1), marked.argmax(-1), taps - 1 - marked[..., ::-1].argmax(-1)
        begin = np.where(some, before - dilation * first, -_ANYWHERE)[..., None]
        end = np.where(some, before + size - dilation * last, _ANYWHERE)[..., None]
        places = stride * np.arange(outputs)
        beyond = (places < begin) | (places >= end)
        spoilt.append(beyond.reshape(*beyond.shape[:2], *(outputs if i == axis else 1 for i in range(spec.ndim))))
    return tuple(spoilt)


def _aligned_items(count: int) -> int:
    """Return a multiple of 16 items: whole cache lines."""
    return -(-count // 16) * 16


def _named(array: str, strides: tuple[int, ...]) -> dict[str, int]:
    return {f"{array}_{axis}": stride for axis, stride in zip(_STRIDES, strides, strict=True)}
