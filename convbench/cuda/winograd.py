"""Winograd's minimal filtering F(2, 3) and F(4, 3) on the GPU: in one kernel, or with a GEMM a frequency.

Two axes at most are transformed, of two or three taps and stride 1; along the third the kernel is summed directly, with
any number of taps and any stride. See ``kernels/winograd.cu`` for how, :mod:`convbench.algorithms.winograd` for why.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from itertools import permutations
from math import log10, prod
from typing import Any

import numpy as np

from convbench import bounds
from convbench.algorithms.winograd import amplification
from convbench.arrays import Array, Namespace
from convbench.bounds import ErrorBound
from convbench.cuda.forward import C_TYPES, MOST_ALONG_Y, Forward
from convbench.cuda.geometry import blocks, geometry, permuted, three
from convbench.cuda.kernel import Kernel
from convbench.cuda.variants import Variant
from convbench.refusals import refuse
from convbench.spec import ConvSpec

__all__ = [
    "KERNELS",
    "VARIANTS",
    "Form",
    "WinogradFused",
    "WinogradInSteps",
    "choose",
    "error_bound",
    "forms",
    "growth",
    "planned",
    "reach_of",
    "terms_of",
    "why_not",
]

_TAPS = 3
_PACK_THREADS, _TILE_THREADS = 256, 128
_SLAB_BYTES = 2**26  # of transforms and products in steps: about a second-level cache

#: ``struct Tiles`` of the kernels.
_TILES = np.dtype([(name, "i4") for name in ("rows", "columns", "total", "steps")])

# What decides between the forms, in multiply-adds of one multiprocessor, of a card with as many as an H200. All are
# assumptions, not measurements: the parts of peak that kernels reach, memory at 4.8 TB/s, 10 µs for two more launches.
_PROCESSORS = 128
_FUSED_PART, _GEMM_PART = 0.55, 0.85
_MACS_A_BYTE = 6.4
_LAUNCHES = 2.2e6
_GEMM_TILES = 32  # multiplied at once, whether they are there or not
_DIGIT_WORTH = 1.2  # times the time, for errors a tenth as large


@dataclass(frozen=True)
class Form:
    """Tiles of so many outputs along rows and columns, and what a block of the fused kernel makes of them.

    Attributes
    ----------
    rows, columns : int
        Outputs of a tile; 1 where there is one tap.
    each_outputs, each_tiles : int
        Output channels and tiles of a thread; a block has four times as many.
    chunk : int
        Channels between barriers.
    fused : bool
        One kernel; otherwise a GEMM a frequency between two kernels.
    """

    rows: int
    columns: int
    each_outputs: int
    each_tiles: int
    chunk: int
    fused: bool = True

    @property
    def size(self) -> tuple[int, int]:
        """Samples of a tile along rows and columns."""
        rows, columns = (m if m == 1 else m + _TAPS - 1 for m in (self.rows, self.columns))
        return rows, columns

    @property
    def frequencies(self) -> int:
        """Products of a tile for each pair of channels."""
        return prod(self.size)

    @property
    def outputs(self) -> int:
        """Output channels of a block."""
        return 4 * self.each_outputs

    @property
    def tiles(self) -> int:
        """Tiles of a block."""
        return 4 * self.each_tiles

    def kernel(self, dtype: str) -> Kernel:
        """Return the fused kernel."""
        f, item = self.frequencies, _item(dtype)
        shared = f * self.chunk * (4 * self.tiles + 2 * self.outputs) * item + 16 * self.tiles
        if f == 36:
            shared += f * self.tiles * 8
        numbers = self.rows, self.columns, self.each_outputs, self.each_tiles, self.chunk
        return _instance("winograd_fused", dtype, numbers, 16 * f, shared)

    def packing(self, dtype: str) -> Kernel:
        """Return what transforms weights for the fused kernel."""
        return _instance("winograd_pack", dtype, (self.rows, self.columns, self.outputs, self.chunk), _PACK_THREADS)

    def steps(self, dtype: str) -> tuple[Kernel, Kernel, Kernel]:
        """Return what transforms weights, samples and products where a GEMM multiplies."""
        names = (
            ("winograd_matrices", _PACK_THREADS),
            ("winograd_input", _TILE_THREADS),
            ("winograd_output", _TILE_THREADS),
        )
        weights, samples, products = (_instance(name, dtype, (self.rows, self.columns), n) for name, n in names)
        return weights, samples, products


def _item(dtype: str) -> int:
    return 8 if dtype == "float64" else 4


def _instance(name: str, dtype: str, numbers: tuple[int, ...], threads: int, shared_bytes: int = 0) -> Kernel:
    arguments = ", ".join((C_TYPES[dtype], *map(str, numbers)))
    return Kernel("winograd.cu", f"{name}<{arguments}>", (threads, 1, 1), shared_bytes)


def _forms_of(dtype: str) -> tuple[Form, ...]:
    """Return every form, the more accurate first; double sums take twice the registers, so a thread has fewer."""
    if dtype == "float64":
        fused = Form(2, 2, 4, 8, 4), Form(4, 4, 4, 4, 2), Form(1, 4, 4, 8, 8)
    else:
        fused = Form(2, 2, 8, 8, 4), Form(4, 4, 8, 8, 2), Form(1, 4, 8, 8, 8)
    return (*fused, Form(2, 2, 8, 8, 4, fused=False), Form(4, 4, 8, 8, 2, fused=False))


#: Every instance that may be launched.
KERNELS = tuple(
    kernel
    for dtype in C_TYPES
    for form in _forms_of(dtype)
    for kernel in ((form.kernel(dtype), form.packing(dtype)) if form.fused else form.steps(dtype))
)


def order_of(spec: ConvSpec) -> tuple[int, int, int] | None:
    """Return which of the spec's depth, rows and columns the kernel takes for its own; None if none will do.

    Its columns have two or three taps, its rows at most three, both of stride 1. Columns with several taps stay
    columns: neighbouring threads read neighbouring samples.
    """
    kernel, stride = three(spec.kernel_size, 1), three(spec.stride, 1)

    def fits(order: tuple[int, ...]) -> bool:
        _, row, column = order
        plain = stride[row] == stride[column] == 1 and kernel[column] > 1
        return plain and max(kernel[row], kernel[column]) <= _TAPS and (kernel[2] == 1 or column == 2)

    found = [order for order in permutations(range(3)) if fits(order)]
    if not found:
        return None
    depth, row, column = max(found, key=lambda order: kernel[order[1]] * kernel[order[2]])
    return depth, row, column


def why_not(spec: ConvSpec) -> str | None:
    """Return the reason why a forward convolution cannot be done by these kernels, or None."""
    given = "x".join(map(str, spec.kernel_size))
    if max(spec.kernel_size) == 1:
        return refuse("kernel size", "one tap along every axis: there is nothing to save")
    if order_of(spec) is None:
        stride = "x".join(map(str, spec.stride))
        taps = (
            f"{given} at stride {stride} given; two or three taps at stride 1 are needed along the last axis that has"
        )
        return refuse("kernel size", f"{taps} several, and no axis but one may have more taps or a stride")
    if spec.groups > MOST_ALONG_Y:
        return refuse("groups", f"{spec.groups} given, at most {MOST_ALONG_Y} are done")
    samples, outputs = (prod(shape) for shape in (spec.input_shape, spec.output_shape))
    if max(samples, outputs) >= 2**31:
        return refuse("memory", f"{samples:.3g} samples, {outputs:.3g} outputs: less than 2^31 are done")
    weights = spec.out_channels * terms_of(spec)  # in whole blocks and chunks at most 256 times as many
    if weights >= 2**31 or 256 * spec.groups * max(spec.kernel_size) >= 2**30:
        return refuse("memory", f"{weights:.3g} pairs of channels: less than 2^31 are done")
    return None


def forms(spec: ConvSpec) -> tuple[Form, ...]:
    """Return the forms that do a spec."""
    order = order_of(spec)
    assert order is not None
    single = three(spec.kernel_size, 1)[order[1]] == 1
    return tuple(form for form in _forms_of(spec.dtype) if (form.rows == 1) == single)


@cache
def choose(spec: ConvSpec) -> Form:
    """Return the form that should take the least time, errors considered."""
    return min(forms(spec), key=lambda form: _cost(spec, form))


def _cost(spec: ConvSpec, form: Form) -> float:
    """Return the predicted time in multiply-adds of one multiprocessor."""
    groups, f = spec.groups, form.frequencies
    outputs, terms, tiles = spec.out_channels // groups, terms_of(spec), _tiling(spec, form)[2]
    moved = f * groups * terms * outputs  # the weights, at least once
    if form.fused:
        count = groups * blocks(tiles, form.tiles) * blocks(outputs, form.outputs)
        macs = blocks(count, _PROCESSORS) * form.tiles * form.outputs * f * terms / _FUSED_PART
    else:
        moved += 2 * f * groups * tiles * (terms + outputs)
        padded = blocks(tiles, _GEMM_TILES) * _GEMM_TILES
        macs = f * groups * padded * terms * outputs / _GEMM_PART / _PROCESSORS + _LAUNCHES
    macs += moved * _item(spec.dtype) * _MACS_A_BYTE / _PROCESSORS
    return float(macs * _DIGIT_WORTH ** log10(growth(form)))


def growth(form: Form) -> float:
    """Return by how much a tile may magnify rounding errors: the matrices are those of float32 in every dtype."""
    return prod(amplification(m, _TAPS, "float32") for m in (form.rows, form.columns) if m > 1)


def error_bound(spec: ConvSpec, form: Form | None = None) -> ErrorBound:
    """Return the bound of a form's error, by default of the one that is chosen."""
    form = form or choose(spec)
    return bounds.winograd(spec, growth(form), form.size, reach_of(spec, form), exact=False, summed=terms_of(spec))


def reach_of(spec: ConvSpec, form: Form) -> tuple[int, ...]:
    """Return how far beyond an output's window its tile may extend, along each axis, in samples."""
    order = order_of(spec)
    assert order is not None
    found = [0, 0, 0]
    for axis, m in zip(order[1:], (form.rows, form.columns), strict=True):
        if m > 1:
            taps, dilation = three(spec.kernel_size, 1)[axis], three(spec.dilation, 1)[axis]
            found[axis] = (m + _TAPS - 1 - taps) * dilation
    return tuple(found[3 - spec.ndim :])


def terms_of(spec: ConvSpec) -> int:
    """Return how many products are added up at a frequency: channels times taps along the axis left as it is."""
    order = order_of(spec)
    assert order is not None
    return spec.in_channels // spec.groups * three(spec.kernel_size, 1)[order[0]]


def _tiling(spec: ConvSpec, form: Form) -> tuple[int, int, int]:
    """Return the tiles along rows and columns, and those of all images."""
    order = order_of(spec)
    assert order is not None
    sizes, dilations = three(spec.output_size, 1), three(spec.dilation, 1)
    along = []
    for axis, m in zip(order[1:], (form.rows, form.columns), strict=True):
        grids = min(dilations[axis], sizes[axis])
        along.append(grids * blocks(blocks(sizes[axis], dilations[axis]), m))
    return along[0], along[1], spec.batch * sizes[order[0]] * along[0] * along[1]


class _Tiled(Forward):
    """What both forms share: tiles, the order of the axes, and what is done to a weight."""

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int, form: Form) -> None:
        super().__init__(ns, spec, threads)
        order = order_of(spec)
        assert order is not None
        self._form, self._order = form, order
        self._groups = spec.groups
        self._inputs, self._outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        self._offsets = three(spec.kernel_size, 1)[order[0]]
        self._item, self._sum_dtype = _item(spec.dtype), spec.accumulate_dtype
        self._rows, self._columns, self._tiles = _tiling(spec, form)
        products = 2 * form.frequencies * self._groups * self._outputs * self._inputs * self._offsets
        self.flops = self._tiles * (products + self._transform_flops())

    def _transform_flops(self) -> int:
        """Of one tile's samples and products, counted as dense products along each axis."""
        rows, columns = self._form.size
        there = 2 * rows * columns * (rows * (rows > 1) + columns)
        back = 2 * self._form.columns * rows * (columns + self._form.rows * (rows > 1))
        return self._groups * (self._inputs * self._offsets * there + self._outputs * back)

    def _struct(self, steps: int) -> Any:
        return np.array([(self._rows, self._columns, self._tiles, steps)], _TILES)


class WinogradFused(_Tiled):
    """Everything in one kernel; weights are packed for its blocks, ∏(m + 2)/∏r times as many as given."""

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int, form: Form) -> None:
        super().__init__(ns, spec, threads, form)
        self._pack, self._fused = self._loaded(form.packing(spec.dtype)), self._loaded(form.kernel(spec.dtype))
        self._steps = blocks(self._inputs, form.chunk) * form.chunk * self._offsets
        self._padded = blocks(self._outputs, form.outputs) * form.outputs
        self._packed_items = self._groups * self._padded * self._steps * form.frequencies
        self.prepared_bytes = self._packed_items * self._item
        self._grid = blocks(self._padded, form.outputs) * blocks(self._tiles, form.tiles), self._groups, 1
        self._tiles_struct = self._struct(self._steps)

    def prepare(self, w: Array) -> tuple[Any, int | None]:
        """Transform the weights on the device."""
        packed = self._ns.empty((self._packed_items,), self._sum_dtype)
        grid = blocks(self._groups * self._padded * self._steps, _PACK_THREADS), 1, 1
        self._pack(grid, (w, packed, permuted(geometry(self._spec, w, w, w), self._order), np.int32(self._steps)))
        return packed, None

    def _launch(self, x: Array, weights: Any, bias: Array | None, y: Array, conv: Any) -> None:
        self._fused(self._grid, (x, weights, bias, y, permuted(conv, self._order), self._tiles_struct))


class WinogradInSteps(_Tiled):
    """Samples are transformed, multiplied by the weights in one GEMM a frequency and group, and transformed back.

    For some tiles at a time, so that what lies between the steps stays in the second-level cache.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int, form: Form) -> None:
        super().__init__(ns, spec, threads, form)
        weights, samples, products = form.steps(spec.dtype)
        self._matrices, self._input, self._output = map(self._loaded, (weights, samples, products))
        self._steps, self._batches = self._inputs * self._offsets, form.frequencies * self._groups
        self.prepared_bytes = self._batches * self._outputs * self._steps * self._item
        a_tile = self._batches * (self._steps + self._outputs) * self._item
        most = max(1, blocks(_SLAB_BYTES // a_tile, _TILE_THREADS)) * _TILE_THREADS
        self._slab = min(most, blocks(self._tiles, 8) * 8)  # whole vectors
        self.workspace_bytes = self._slab * a_tile
        self._tiles_struct = self._struct(self._steps)

    def prepare(self, w: Array) -> tuple[Any, int | None]:
        """Transform the weights on the device."""
        matrices = self._ns.empty((self._batches, self._outputs, self._steps), self._sum_dtype)
        grid = blocks(self._groups * self._outputs * self._steps, _PACK_THREADS), 1, 1
        self._matrices(grid, (w, matrices, permuted(geometry(self._spec, w, w, w), self._order)))
        return matrices, None

    def _launch(self, x: Array, weights: Any, bias: Array | None, y: Array, conv: Any) -> None:
        ns, pitch = self._ns, self._slab
        values = ns.empty((self._batches, self._steps, pitch), self._sum_dtype)
        products = ns.empty((self._batches, self._outputs, pitch), self._sum_dtype)
        conv, tiles = permuted(conv, self._order), self._tiles_struct
        for first in range(0, self._tiles, pitch):
            count = min(pitch, self._tiles - first)
            place = np.int32(first), np.int32(count), np.int32(pitch)
            down = min(self._groups * self._steps, MOST_ALONG_Y)
            self._input((blocks(pitch, _TILE_THREADS), down, 1), (x, values, conv, tiles, *place))
            ns.matmul(weights, values, products)
            down = min(self._groups * self._outputs, MOST_ALONG_Y)
            self._output((blocks(count, _TILE_THREADS), down, 1), (products, bias, y, conv, tiles, *place))


def planned(ns: Namespace, spec: ConvSpec, threads: int, form: Form | None = None) -> WinogradFused | WinogradInSteps:
    """Plan a form, by default the one that should take the least time."""
    form = form or choose(spec)
    return (WinogradFused if form.fused else WinogradInSteps)(ns, spec, threads, form)


#: Cases that launch each of them.
VARIANTS = tuple(
    Variant(
        (form.kernel(dtype), form.packing(dtype)) if form.fused else form.steps(dtype),
        f"n2 c5 o6 {'i30' if form.rows == 1 else 'i9x10'} k3 p1 bias=channel {dtype}",
        partial(planned, form=form),
        partial(error_bound, form=form),
    )
    for dtype in C_TYPES
    for form in _forms_of(dtype)
)
