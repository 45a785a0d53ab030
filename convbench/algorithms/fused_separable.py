"""Separable convolution by the kernels of :mod:`convbench.jit.separable`: all passes over a block that is in cache.

Images with few taps along both axes go through :mod:`convbench.jit.separable_lines`, if their samples are neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convbench.algorithms.blocking import GroupedBias, ScratchPool, flipped
from convbench.algorithms.lowrank import max_rank, pass_macs, tensor_train
from convbench.algorithms.separable import EPS, long_axes, rank_too_high
from convbench.arrays import Namespace
from convbench.errors import UnsupportedWeights
from convbench.jit import pool, separable_lines
from convbench.jit import separable as kernels
from convbench.jit.compile import Kernel
from convbench.jit.memory import address_of, aligned, keep, usual_strides
from convbench.jit.separable import GENERAL, ODD, SYMMETRIC, Form
from convbench.jit.separable_lines import FewTaps, few_taps_kernel
from convbench.jit.strips import Sources, axis_sources
from convbench.jit.target import Target, host_target
from convbench.refusals import refuse
from convbench.spec import ConvSpec

__all__ = ["Factors", "FusedSeparable", "has_few_taps", "kernel_axes", "line_arguments", "line_cut", "place_arguments"]

Array = NDArray[Any]
Core = NDArray[np.float64]

_STRIP_BYTES = 3 * 2**17  # of one thread, both strips: they and the block's part of y share an L2 cache
_MOST_STRIP_BYTES = 8 * _STRIP_BYTES  # beyond a cache if that saves work: long kernels along three axes
_OVERFLOW = 0.25  # how time grows with strips beyond a cache: 21³ taps on 64³ take 0.5 ms so, 1.8 ms within
_PANEL_BYTES = 3 * 2**13  # half a first-level cache
_WIDEST = 1024  # outputs along a row
_TURNED_FROM = 8  # taps along a row: below, turning rows by a quarter costs more than it saves
_FEW = 12  # taps: up to here lines are filtered along columns first, without a strip
_LINE_BYTES = 2**12  # of a line: as many as a tile of columns makes fit into a first-level cache
_JOBS_A_THREAD = 4
_WORTH_A_JOB = 2**16  # multiply–adds
_BOUNDARY = 16  # parts of scratch begin at multiples of so many items: on a cache line
_UNREAD = -2  # in tables of rows


class Axis(NamedTuple):
    """One axis as the kernel takes it."""

    place: int  # among the spec's axes; −1 for one that the spec has not
    outputs: int
    taps: int
    stride: int
    dilation: int
    sources: Sources

    def extent(self, outputs: int) -> int:
        """Return how many positions so many outputs read."""
        return (outputs - 1) * self.stride + (self.taps - 1) * self.dilation + 1

    @property
    def shared(self) -> bool:
        """Do neighbouring outputs read the same rows?"""
        return self.stride == self.dilation == 1


def kernel_axes(spec: ConvSpec) -> tuple[Axis, Axis, Axis]:
    """Return depth, rows and columns; of two axes of rows, axis 1 is one that the kernel has several taps along."""
    axes = []
    for place, (size, p, k, s, d, (before, _)) in enumerate(
        zip(spec.input_size, spec.output_size, spec.kernel_size, spec.stride, spec.dilation, spec.padding, strict=True)
    ):
        sources = axis_sources(size, max(0, (p - 1) * s + (k - 1) * d + 1), before, spec.boundary)
        if k == 1 and place < spec.ndim - 1:  # only what outputs read
            sources, s = Sources(np.ascontiguousarray(sources.table[::s]), 0, 0), 1
        axes.append(Axis(place, p, k, s if p > 1 else 1, d if k > 1 else 1, sources))
    *lead, columns = axes
    lead.sort(key=lambda axis: axis.taps > 1)
    absent = Axis(-1, 1, 1, 1, 1, axis_sources(1, 1, 0, "zero"))
    depth, rows = [absent, absent, *lead][-2:]
    return depth, rows, columns


def _read_rows(axis: Axis) -> NDArray[np.int64]:
    """Return the table of an axis of rows; rows that no output reads are marked."""
    table = np.full(len(axis.sources.table), _UNREAD, np.int64)
    for tap in range(axis.taps):
        read = slice(tap * axis.dilation, tap * axis.dilation + (axis.outputs - 1) * axis.stride + 1, axis.stride)
        table[read] = axis.sources.table[read]
    return table


@dataclass(frozen=True)
class Cut:
    """Blocks of outputs, and how scratch is laid out: the places of its parts in items."""

    block: tuple[int, int, int]
    blocks: tuple[int, int, int]
    line_pitch: int
    places: dict[str, int]
    strip_rows: int
    second_rows: int
    panel: int  # vectors whose columns are filtered together: their windows stay in the first cache
    items: int


def cut(spec: ConvSpec, axes: tuple[Axis, Axis, Axis], target: Target, turned: bool, threads: int) -> Cut:
    """Choose the blocks that filter the least beyond their outputs and have strips in cache, and jobs for all."""
    if 0 in spec.output_shape:
        return _laid_out(spec, axes, target, turned, (1, 1, 1))
    lanes, tile = target.lanes(spec.dtype), kernels.outputs_per_tile(target)
    depth, rows, columns = axes
    wanted = min(_JOBS_A_THREAD * threads, max(1, spec.macs // _WORTH_A_JOB)) if threads > 1 else 1
    images = spec.batch * spec.out_channels

    def halves(size: int, least: int) -> Iterator[int]:
        """Yield the size cut into 1, 2, … equal parts, rounded up to a multiple of ``least``."""
        parts, last = 1, 0
        while last != least:
            part = -(-size // (parts * least)) * least
            if part != last:
                yield part
            parts, last = max(parts + 1, parts * 5 // 4), part

    def cost(block: tuple[int, int, int]) -> tuple[int, bool, float]:
        made = _laid_out(spec, axes, target, turned, block)
        strips = (made.items - made.places["strip"]) * spec.itemsize
        filtered = prod(axis.extent(size) for axis, size in zip(axes[:2], block[:2], strict=True)) / prod(block[:2])
        fetched = columns.extent(block[2]) / block[2]
        rows_work = filtered * (columns.taps + 3 * fetched + 32 / block[2])
        work = rows_work + rows.taps * depth.extent(block[0]) / block[0]
        slower = max(1.0, strips / _STRIP_BYTES) ** _OVERFLOW
        return max(strips, _MOST_STRIP_BYTES), images * prod(made.blocks) < wanted, work * slower

    candidates = product(
        halves(depth.outputs, tile) if depth.taps > 1 else (1,),
        halves(rows.outputs, tile),
        (width for width in halves(columns.outputs, 4 * lanes) if width <= _WIDEST or width == 4 * lanes),
    )
    return _laid_out(spec, axes, target, turned, min(candidates, key=cost))


def _laid_out(
    spec: ConvSpec, axes: tuple[Axis, Axis, Axis], target: Target, turned: bool, block: tuple[int, int, int]
) -> Cut:
    lanes, tile = target.lanes(spec.dtype), kernels.outputs_per_tile(target)
    block = tuple(min(size, max(1, axis.outputs)) for size, axis in zip(block, axes, strict=True))  # type: ignore[assignment]
    depth, rows, columns = axes

    def rounded(size: int, unit: int) -> int:
        return -(-size // unit) * unit

    vectors = rounded(-(-block[2] // lanes), kernels.row_vectors(target))
    width = vectors * lanes
    line = rounded(columns.extent(width) + columns.stride + lanes, lanes)
    line_pitch = line + lanes
    strip_rows = rounded(depth.extent(block[0]) * rows.extent(block[1]), lanes) + tile * rows.stride
    second_rows = rounded(depth.extent(block[0]), tile) + tile * depth.stride if depth.taps > 1 else 0
    sizes = {
        "line": line_pitch * (lanes if turned else 1),  # all of it: phases of a strided row lie as far apart as fits
        "turned": lanes * (line + tile * columns.stride) if turned else 0,
        "results": lanes * (width + tile) if turned else 0,
        "strip": vectors * strip_rows * lanes + tile * rows.stride * lanes,
        "second": (vectors * rounded(block[1], tile) * second_rows + tile * depth.stride) * lanes * (depth.taps > 1),
        "patch": tile * lanes,
    }
    places, items = _one_after_another(sizes)
    blocks = tuple(-(-axis.outputs // size) for axis, size in zip(axes, block, strict=True))
    panel = max(4, _PANEL_BYTES // (rows.extent(tile) * lanes * spec.itemsize))
    return Cut(block, blocks, line_pitch, places, strip_rows, second_rows, panel, items)  # type: ignore[arg-type]


def _one_after_another(sizes: dict[str, int]) -> tuple[dict[str, int], int]:
    """Return where parts of scratch begin, each on a cache line, and the size of all."""
    places, items = {}, 0
    for name, size in sizes.items():
        places[name] = items
        items += -(-size // _BOUNDARY) * _BOUNDARY
    return places, items


def has_few_taps(axes: tuple[Axis, Axis, Axis]) -> bool:
    """Tell whether rows are summed along columns first, tap by tap, where samples are neighbours."""
    depth, rows, columns = axes
    return depth.taps == 1 and rows.shared and columns.shared and max(rows.taps, columns.taps) <= _FEW


@dataclass(frozen=True)
class LineCut:
    """Blocks of outputs for kernels that work in lines, and their scratch."""

    block: tuple[int, int]
    blocks: tuple[int, int, int]
    line_pitch: int
    places: dict[str, int]
    items: int


def line_cut(
    spec: ConvSpec,
    axes: tuple[Axis, Axis, Axis],
    target: Target,
    threads: int,
    *,
    images: int,
    lines: int,
    sums: int = 0,
    multiple: int = 1,
) -> LineCut:
    """Choose bands of rows for all threads, a multiple of so many high where possible, as wide as lines may be.

    ``images`` are filtered by themselves; ``sums`` are further lines that need not be in the first-level cache.
    """
    lanes, (depth, rows, columns) = target.lanes(spec.dtype), axes
    widest = max(_LINE_BYTES // 4, min(_LINE_BYTES, _STRIP_BYTES // max(1, sums)))
    tiles = max(1, -(-columns.outputs * spec.itemsize // widest))
    width = max(1, min(columns.outputs, -(-columns.outputs // (tiles * lanes)) * lanes))
    tiles = -(-columns.outputs // width)
    wanted = min(_JOBS_A_THREAD * threads, max(1, spec.macs // _WORTH_A_JOB)) if threads > 1 else 1
    bands = -(-wanted // max(1, images * depth.outputs * tiles))
    height = max(1, min(rows.outputs, -(-rows.outputs // (bands * multiple)) * multiple))
    pitch = -(-(width + 2 * columns.taps + 2 * lanes) // 16) * 16
    addresses = -(-(height + rows.taps + kernels.outputs_per_tile(target)) * 8 // spec.itemsize)
    sizes = {"zeros": pitch, "rows": addresses, "lines": lines * pitch, "patch": pitch, "sums": sums * pitch}
    places, items = _one_after_another(sizes)
    return LineCut((height, width), (depth.outputs, -(-rows.outputs // height), tiles), pitch, places, items)


def place_arguments(
    spec: ConvSpec, axes: tuple[Axis, Axis, Axis], x_bytes: tuple[int, ...], y_bytes: tuple[int, ...]
) -> dict[str, int]:
    """Return what all kernels want to know of arrays whose groups are split off: channels, and strides in items."""
    found = {
        "groups": spec.groups,
        "outs": spec.out_channels // spec.groups,
        "channels": spec.in_channels // spec.groups,
    }
    for array, channel, strides in (("x", "c", x_bytes), ("y", "o", y_bytes)):
        items = [stride // spec.itemsize for stride in strides]
        found |= {f"{array}{name}": size for name, size in zip(("n", "g", channel), items[:3], strict=True)}
        found |= {f"{array}{i}": items[3 + axis.place] if axis.place >= 0 else 0 for i, axis in enumerate(axes)}
    return found


def line_arguments(axes: tuple[Axis, Axis, Axis], cut: LineCut) -> dict[str, int]:
    """Return what kernels in lines want to know beside; the axes own the tables."""
    _, rows, columns = axes
    tables = (address_of(axis.sources.table) for axis in axes)
    found = {"p1": rows.outputs, "p2": columns.outputs, "k1": rows.taps, "k2": columns.taps}
    found |= zip(("block1", "block2"), cut.block, strict=True)
    found |= {f"blocks{i}": count for i, count in enumerate(cut.blocks)}
    found |= zip(("rows0", "rows1", "columns"), tables, strict=True)
    found |= {"first": columns.sources.first, "last": columns.sources.last}
    return found | {"scratch_size": cut.items, "line_pitch": cut.line_pitch} | cut.places


class Factors(NamedTuple):
    """Prepared weights: for each pair of channels the taps of all passes, and which kind each is."""

    taps: Array
    forms: NDArray[np.int64]
    sizes: tuple[int, ...]  # pair_taps, mid_taps, last_taps, pair_forms, rank


class FusedSeparable:
    """Passes along 2 or 3 axes, forward, fused in blocks; any stride, dilation, groups and boundary.

    Needs weights of low rank, for each pair of channels by itself. O(N·O·C/g·∏P·Σ r·r·K) work; workspace: strips of
    filtered rows for each thread, some 0.4 MB, up to 3 MB along three axes.

    Parameters
    ----------
    compile_now : bool
        The kernel for arrays that lie as the layout suggests, rather than in the first call.
    scratch_items : int
        Size of scratch at least, for whoever borrows it as well.
    """

    def __init__(
        self, ns: Namespace, spec: ConvSpec, threads: int, *, compile_now: bool = True, scratch_items: int = 0
    ) -> None:
        self._ns, self._spec, self._threads = ns, spec, threads
        self._target = host_target()
        self.axes = kernel_axes(spec)
        self._long = long_axes(spec)
        self._sizes = tuple(spec.kernel_size[axis] for axis in self._long)
        self._rank = max_rank(self._sizes)
        depth, rows, columns = self.axes
        turned = columns.taps >= _TURNED_FROM
        self._cut = cut(spec, self.axes, self._target, turned, threads)
        self._form = Form(spec.dtype, depth.taps > 1, turned, (depth.shared, rows.shared, columns.shared))
        self._lines: LineCut | None = None
        if has_few_taps(self.axes):
            tile, images = kernels.outputs_per_tile(self._target), spec.batch * spec.out_channels
            self._lines = line_cut(spec, self.axes, self._target, threads, images=images, lines=tile, multiple=tile)
        self._tables = (_read_rows(depth), _read_rows(rows), columns.sources.table, *self._along_rows(turned))
        self._no_bias = np.zeros(spec.out_channels, spec.dtype)
        self._jobs = spec.batch * spec.out_channels * prod(self._cut.blocks) if 0 not in spec.output_shape else 0
        items = max(scratch_items, max(self._cut.items, self._lines.items if self._lines else 0) * threads)
        self.scratch = ScratchPool(lambda: aligned(items, spec.dtype))
        self._made: dict[Any, tuple[Kernel, int, tuple[int, ...]]] = {}
        tables = *self._tables, *(axis.sources.table for axis in self.axes[:2])
        self.workspace_bytes = items * spec.itemsize + sum(table.nbytes for table in tables)
        pairs = spec.out_channels * (spec.in_channels // spec.groups)
        taps = sum(axis.taps for axis in self.axes)
        self.prepared_bytes = pairs * (taps * spec.itemsize + 8 * 5)
        usual = usual_strides(spec)
        self._usual_lines = self._lines if usual[0][-1] == spec.itemsize else None
        self.flops = self._count_flops((1,) * (len(self._sizes) - 1))
        if compile_now and self._jobs:
            keep(self._made, usual, self._make_call(*usual))

    def _along_rows(self, turned: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where a line has each position of a row, and where each tap reads: strided rows lie in phases."""
        columns = self.axes[2]
        positions = np.arange(max(columns.extent(self._cut.block[2]), (columns.taps - 1) * columns.dilation + 1))
        stride = 1 if turned else columns.stride
        places = positions % stride * (self._cut.line_pitch // stride) + positions // stride
        return places, np.ascontiguousarray(places[: (columns.taps - 1) * columns.dilation + 1 : columns.dilation])

    # -- weights ----------------------------------------------------------------------------------------------

    def prepare(self, w: Array) -> tuple[Factors, int]:
        """Factor every (o, c) kernel; raise UnsupportedWeights where the rank is too high to gain."""
        if not np.isfinite(w).all():
            raise UnsupportedWeights(refuse("weights", "NaN or infinity among them: they have no rank"))
        kernels_ = flipped(self._ns, self._spec, w).reshape(-1, *self._sizes)
        trains = [self._train(kernel) for kernel in kernels_]
        ranks = [tuple(core.shape[2] for core in train[:-1]) for train in trains]
        highest = max(ranks, key=lambda rank: pass_macs(self._sizes, rank))
        return self._packed([self._passes(train) for train in trains]), self._count_flops(highest)

    def _train(self, kernel: Array) -> list[Core]:
        cores = tensor_train(kernel, EPS[self._spec.dtype])
        ranks = tuple(core.shape[2] for core in cores[:-1])
        if max(ranks) > self._rank or pass_macs(self._sizes, ranks) >= prod(self._sizes):
            raise UnsupportedWeights(rank_too_high(self._sizes, ranks, self._rank))
        return cores

    def _passes(self, cores: list[Core]) -> tuple[Core, Core, Core]:
        """Return the taps (a, K₀), (a, b, K₁) and (b, K₂): cores of axes with one tap are 1."""
        *lead, columns = self.axes
        found = dict(zip(self._long, cores, strict=True))
        along = found.get(columns.place, np.ones((1, 1, 1)))
        rows = found[lead[1].place]
        depth = found.get(lead[0].place, np.ones((1, 1, 1)))
        return depth[0].T, rows.swapaxes(1, 2), along[:, :, 0]

    def _packed(self, pairs: Sequence[tuple[Core, Core, Core]]) -> Factors:
        a, b = (max(passes[1].shape[axis] for passes in pairs) for axis in (0, 1))
        deep = self.axes[0].taps > 1
        k0, k1, k2 = (axis.taps for axis in self.axes)
        mid, last = b * k2, b * k2 + a * b * k1 * deep
        size = last + (a * k0 if deep else b * k1)
        forms_size = 2 + b + (a * b + a if deep else b)
        taps = aligned((len(pairs), size), self._spec.dtype)
        taps[...] = 0
        forms = np.zeros((len(pairs), forms_size), np.int64)
        for row, kinds, (depth, rows, along) in zip(taps, forms, pairs, strict=True):
            ra, rb = rows.shape[:2]
            kinds[:2] = rb, ra
            row[: rb * k2] = along.ravel()
            kinds[2 : 2 + rb] = [_kind(line) for line in row[: rb * k2].reshape(rb, k2)]
            after = kinds[2 + b :]
            if deep:
                middle = row[mid:last].reshape(a, b, k1)
                middle[:ra, :rb] = rows
                after[: ra * b] = [_kind(line) for line in middle[:ra].reshape(ra * b, k1)]
                row[last : last + ra * k0] = depth.ravel()
                after[ra * b : ra * b + ra] = [_kind(line) for line in row[last : last + ra * k0].reshape(ra, k0)]
            else:
                row[last : last + rb * k1] = rows.ravel()
                after[:rb] = [_kind(line) for line in row[last : last + rb * k1].reshape(rb, k1)]
        return Factors(taps, forms, (size, mid, last, forms_size, b))

    def equal_taps(self, weights: Array) -> Factors:
        """Return prepared weights whose taps are all ``weights`` (G, O/g, C/g): factors of ones."""
        k0, k1, k2 = (axis.taps for axis in self.axes)
        deep = k0 > 1
        taps = aligned((weights.size, k2 + k1 + k0 * deep), self._spec.dtype)
        taps[...] = 1
        taps[:, :k2] = weights.reshape(-1, 1)
        forms = np.full((weights.size, 4 + deep), SYMMETRIC, np.int64)
        forms[:, :2] = 1
        return Factors(taps, forms, (taps.shape[1], k2, k2 + k1 * deep, forms.shape[1], 1))

    # -- running ----------------------------------------------------------------------------------------------

    def run(self, first: Array, second: Factors, bias: Array | None, out: Array) -> None:
        """Fill ``out``."""
        fused = bias is not None and self._spec.bias == "channel"
        if self._jobs:
            starts = np.ascontiguousarray(bias) if fused else self._no_bias
            strides = first.strides, out.strides
            kernel, jobs, arguments = self._made.get(strides) or keep(self._made, strides, self._make_call(*strides))
            with self.scratch.borrow() as scratch:
                addresses = map(address_of, (first, out, starts, second.taps, second.forms, scratch))
                pool.run(kernel, (*addresses, *second.sizes, *arguments), jobs, self._threads)
        if bias is not None and not fused:
            GroupedBias(self._ns, self._spec, bias).add(out)

    def _make_call(self, x_bytes: tuple[int, ...], y_bytes: tuple[int, ...]) -> tuple[Kernel, int, tuple[int, ...]]:
        """Return the kernel for arrays of these strides, its jobs, and the arguments that do not change."""
        spec = self._spec
        known = place_arguments(spec, self.axes, x_bytes, y_bytes)
        names: tuple[str, ...]
        if self._lines and known["x2"] == 1:
            form = FewTaps(spec.dtype, *(axis.taps for axis in self.axes[1:]))
            kernel, names, blocks = few_taps_kernel(self._target, form), separable_lines.ARGUMENTS, self._lines.blocks
            known |= line_arguments(self.axes, self._lines)
        else:
            kernel, names = kernels.separable_kernel(self._target, self._form), kernels.ARGUMENTS
            known, blocks = known | self._strip_arguments(known["x2"]), self._cut.blocks
        arguments = tuple(known[name] for name in names[len(kernels.WEIGHT_ARGUMENTS) :])
        return kernel, spec.batch * spec.out_channels * prod(blocks), arguments

    def _strip_arguments(self, step: int) -> dict[str, int]:
        cut, columns = self._cut, self.axes[2]
        found: dict[str, int] = {}
        for i, axis in enumerate(self.axes):
            found |= {f"p{i}": axis.outputs, f"k{i}": axis.taps, f"s{i}": axis.stride, f"d{i}": axis.dilation}
            found |= {f"block{i}": cut.block[i], f"blocks{i}": cut.blocks[i]}
        found |= zip(("rows0", "rows1", "columns", "places", "offsets"), map(address_of, self._tables), strict=True)
        neighbours = columns.stride == step == 1
        found |= {"first": columns.sources.first * neighbours, "last": columns.sources.last * neighbours}
        found |= {"scratch_size": cut.items, "line_pitch": cut.line_pitch, "panel": cut.panel}
        return found | {"strip_rows": cut.strip_rows, "second_rows": cut.second_rows} | cut.places

    def _count_flops(self, ranks: tuple[int, ...]) -> int:
        """Multiply and add in all passes, the halo of each block included; symmetric taps need fewer.

        In the form that arrays take which lie as the layout suggests.
        """
        if not self._jobs:
            return 0
        bonds = dict(zip(self._long, zip((1, *ranks), (*ranks, 1), strict=True), strict=True))
        pairs = self._spec.batch * self._spec.out_channels * (self._spec.in_channels // self._spec.groups)
        return pairs * sum(prod(bonds.get(axis.place, (1, 1))) * work for axis, work in self._work())

    def _work(self) -> Iterator[tuple[Axis, int]]:
        """Yield the FLOPs of a pass along each axis, over one image."""
        depth, rows, columns = self.axes
        if self._usual_lines:
            *_, tiles = self._usual_lines.blocks
            summed = columns.outputs + tiles * (columns.taps - 1)
            yield rows, 2 * rows.taps * depth.outputs * rows.outputs * summed
            yield columns, 2 * columns.taps * depth.outputs * rows.outputs * columns.outputs
            return
        halos = [
            sum(axis.extent(min(size, axis.outputs - i * size)) for i in range(count))
            for axis, size, count in zip(self.axes, self._cut.block, self._cut.blocks, strict=True)
        ]
        yield columns, 2 * columns.taps * halos[0] * halos[1] * columns.outputs
        yield rows, 2 * rows.taps * halos[0] * rows.outputs * columns.outputs
        if depth.taps > 1:
            yield depth, 2 * depth.taps * depth.outputs * rows.outputs * columns.outputs


def _kind(taps: Array) -> int:
    """Return which half of the taps tells the other one."""
    if np.array_equal(taps, taps[::-1]):
        return SYMMETRIC
    return ODD if np.array_equal(taps, -taps[::-1]) else GENERAL
