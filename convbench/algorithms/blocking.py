"""Work in blocks that stay in cache: which outputs a block holds, and the padded input beneath it.

The one place that knows about padding. A block reads its input in place where it lies inside, else through a
buffer that holds just this block's halo: no padded copy of the whole input is ever made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

from convbench.arrays import Array, Namespace
from convbench.spec import DTYPES, ConvSpec
from convbench.threads import parallel

__all__ = ["Block", "Blocked", "Blocking", "ScratchPool", "flipped", "matmul_into", "spread_bias"]

_KEPT_BLOCKS = 64
_ONE_THREAD_FLOPS = 2 * 32**3
_WORTH_A_THREAD = 2**16  # bytes touched below which a block is not split further to occupy another thread


@dataclass(frozen=True)
class Halo:
    """The padded input beneath a block.

    Attributes
    ----------
    region : index into x (N, G, C/g, *input_size)
        The part that lies inside the input.
    inside, margins : indices into the halo (n, g, C/g, *extent)
        Where that part goes, and what is zero.
    shape : tuple of int
    """

    region: tuple[slice, ...]
    inside: tuple[slice, ...]
    margins: tuple[tuple[Any, ...], ...]
    shape: tuple[int, ...]

    @property
    def padded(self) -> bool:
        """Does the block reach beyond the input?"""
        return bool(self.margins)


@dataclass(frozen=True)
class Block:
    """A range of examples, groups and output positions, and the input beneath it."""

    images: slice
    groups: slice
    outputs: tuple[slice, ...]
    halo: Halo

    @cached_property
    def index(self) -> tuple[slice, ...]:
        """The block's part of y seen as (N, G, O/g, *output_size)."""
        return (self.images, self.groups, slice(None), *self.outputs)

    @cached_property
    def output_size(self) -> tuple[int, ...]:
        """Outputs along each spatial axis."""
        return tuple(r.stop - r.start for r in self.outputs)

    @cached_property
    def lead(self) -> tuple[int, int]:
        """Examples and groups."""
        return self.images.stop - self.images.start, self.groups.stop - self.groups.start


class Blocking:
    """Cuts a spec into blocks of about ``budget_bytes``.

    Parameters
    ----------
    bytes_per_cell : int
        Memory that the algorithm touches for one cell of one group of one example.
    budget_bytes : int
        What should stay in cache. Axes are filled from the last to the first, then groups, then examples,
        so that a block is as contiguous as it can be.
    threads : int
        At least so many blocks are made where the work is worth it.
    cell : sequence of int, optional
        Outputs along each axis that are computed together: blocks are cut between cells. Default: single outputs.
    copy : bool
        Load every block into the buffer, for algorithms that need its samples one behind the other in memory.
    """

    def __init__(
        self,
        spec: ConvSpec,
        bytes_per_cell: int,
        budget_bytes: int,
        threads: int,
        cell: Sequence[int] | None = None,
        copy: bool = False,
    ) -> None:
        self.spec = spec
        self._extents = (spec.batch, spec.groups, *spec.output_size)
        cells = (1, 1, *(cell or (1,) * spec.ndim))
        counts = [-(-extent // size) for extent, size in zip(self._extents, cells, strict=True)]
        total = bytes_per_cell * prod(counts)
        if threads > 1:
            budget_bytes = min(budget_bytes, max(_WORTH_A_THREAD, -(-total // threads)))
        room = max(1, budget_bytes // max(1, bytes_per_cell))
        shape = []
        for count, size in zip(reversed(counts), reversed(cells), strict=True):
            part = max(1, min(count, room))
            part = -(-count // -(-count // part)) if count else 1  # equal parts rather than a small rest
            shape.append(part * size)
            room //= part
        self.shape = tuple(reversed(shape))
        self._copies = copy or spec.dtype != spec.result_dtype

    def __len__(self) -> int:
        return prod(-(-extent // size) for extent, size in zip(self._extents, self.shape, strict=True))

    def __iter__(self) -> Iterator[Block]:
        """All blocks, in memory order; a few are kept, many made anew, as they would outweigh the buffers."""
        return iter(self._kept) if len(self) <= _KEPT_BLOCKS else self._make()

    @cached_property
    def _kept(self) -> list[Block]:
        return list(self._make())

    def _make(self) -> Iterator[Block]:
        starts = [range(0, extent, size) for extent, size in zip(self._extents, self.shape, strict=True)]
        for corner in product(*starts):
            ends = (min(c + size, extent) for c, size, extent in zip(corner, self.shape, self._extents, strict=True))
            images, groups, *outputs = map(slice, corner, ends)
            yield Block(images, groups, tuple(outputs), self._halo(images, groups, tuple(outputs)))

    @cached_property
    def outputs_per_block(self) -> int:
        """Examples × groups × positions of the largest block."""
        return prod(self.shape)

    @cached_property
    def halo_size(self) -> tuple[int, ...]:
        """Input positions beneath the largest block, along each axis."""
        return self._read_by(self.shape[2:])

    @property
    def halo_elements(self) -> int:
        """Elements of the buffer that :meth:`load` needs; 0 if every block lies inside the input."""
        spec = self.spec
        if not self._leaves_input() and not self._copies:
            return 0
        return prod(self.shape[:2]) * (spec.in_channels // spec.groups) * prod(self.halo_size)

    def load(self, ns: Namespace, x: Array, block: Block, buffer: Array) -> Array:
        """Return the input beneath ``block``, zeros where it is padding: shape (n, g, C/g, *halo).

        Parameters
        ----------
        x : array, shape (N, G, C/g, *input_size)
        buffer : array of ``halo_elements``, of the result's dtype
            Used if the block leaves the input or is to be copied or converted; else a view of ``x`` is returned.
        """
        halo = block.halo
        region = x[halo.region]
        if not halo.padded and not self._copies:
            return region
        padded = ns.reshape(buffer[: prod(halo.shape)], halo.shape)
        for margin in halo.margins:
            padded[margin] = 0
        padded[halo.inside] = ns.cast(region, self.spec.result_dtype)
        return padded

    def _leaves_input(self) -> bool:
        """May a block read beyond the input?"""
        return any(before > 0 or after > 0 for before, after in self.spec.padding)

    def _read_by(self, outputs: Sequence[int]) -> tuple[int, ...]:
        """Return the input positions that ``outputs`` consecutive outputs read, along each axis."""
        axes = zip(outputs, self.spec.stride, self.spec.kernel_size, self.spec.dilation, strict=True)
        return tuple((p - 1) * s + (k - 1) * d + 1 for p, s, k, d in axes)

    def _halo(self, images: slice, groups: slice, outputs: tuple[slice, ...]) -> Halo:
        spec, everything = self.spec, slice(None)
        region, inside, extents = [], [], self._read_by([r.stop - r.start for r in outputs])
        for axis, (part, extent) in enumerate(zip(outputs, extents, strict=True)):
            first = part.start * spec.stride[axis] - spec.padding[axis][0]
            low = min(max(first, 0), spec.input_size[axis])
            high = max(min(first + extent, spec.input_size[axis]), low)
            start = min(max(low - first, 0), extent)
            region.append(slice(low, high))
            inside.append(slice(start, start + high - low))
        margins = [
            ((everything,) * (3 + axis) + (margin, ...))
            for axis, part in enumerate(inside)
            for margin in (slice(0, part.start), slice(part.stop, extents[axis]))
            if margin.start < margin.stop
        ]
        lead = (images.stop - images.start, groups.stop - groups.start, spec.in_channels // spec.groups)
        return Halo(
            region=(images, groups, everything, *region),
            inside=(everything, everything, everything, *inside),
            margins=tuple(margins),
            shape=(*lead, *extents),
        )


def flipped(ns: Namespace, spec: ConvSpec, w: Array) -> Array:
    """Return ``w`` as cross-correlation wants it: reversed along the spatial axes if the spec says flip."""
    return ns.xp.flip(w, axis=tuple(range(-spec.ndim, 0))) if spec.flip else w


def spread_bias(ns: Namespace, spec: ConvSpec, bias: Array) -> Array:
    """Return the bias in a shape that broadcasts against (O, *output_size)."""
    if spec.bias == "location":
        return bias
    if spec.bias == "channel":
        return ns.reshape(bias, (-1, *(1,) * spec.ndim))
    assert spec.tile is not None
    for axis, (outputs, tile) in enumerate(zip(spec.output_size, spec.tile, strict=True), start=1):
        cycle = ns.from_host([p % tile for p in range(outputs)])
        bias = ns.xp.take(bias, cycle, axis=axis)
    return bias


class GroupedBias:
    """The bias seen as (G, O/g, *space or 1s), from which a block takes its part."""

    def __init__(self, ns: Namespace, spec: ConvSpec, bias: Array) -> None:
        spread = spread_bias(ns, spec, bias)
        self.whole = ns.reshape(spread, (spec.groups, spec.out_channels // spec.groups, *spread.shape[1:]))
        self._same_everywhere = spec.bias == "channel"

    def of(self, block: Block) -> Array:
        """Return the part that is added to ``block``'s outputs (n, g, O/g, *outputs)."""
        return self.whole[block.groups, ...] if self._same_everywhere else self.whole[block.index[1:]]


class Blocked(ABC):
    """An algorithm that fills its output block by block, over all threads.

    Subclasses say how one block is filled; this class cuts, pads, lends buffers and adds the bias.

    Parameters
    ----------
    buffers : sequence of int
        Elements of each buffer, of the result's dtype, that :meth:`_fill` gets besides the halo.
    """

    flops: int

    def __init__(
        self, ns: Namespace, spec: ConvSpec, threads: int, blocking: Blocking, buffers: Sequence[int] = ()
    ) -> None:
        self._ns, self._spec, self._threads, self._blocking = ns, spec, threads, blocking
        self._channels = spec.in_channels // spec.groups
        self._outputs = spec.out_channels // spec.groups
        self._lanes = min(threads, max(1, len(blocking)))
        self._buffers = (blocking.halo_elements, *buffers)
        self._scratch = ScratchPool(self._new_scratch, self._lanes)
        self.workspace_bytes = self._lanes * sum(self._buffers) * DTYPES[spec.result_dtype]
        copied = spec.flip or spec.dtype != spec.result_dtype  # else prepared weights are views of w
        self.prepared_bytes = prod(spec.weight_shape) * DTYPES[spec.result_dtype] if copied else 0
        self.flops = spec.flops

    def _new_scratch(self) -> list[Any]:
        """Return what one thread works in: the halo's buffer first."""
        return [self._ns.empty((size,), self._spec.result_dtype) for size in self._buffers]

    @abstractmethod
    def prepare(self, w: Array) -> tuple[Any, int | None]:
        """See :class:`convbench.backend.Algorithm`."""

    @abstractmethod
    def _fill(self, halo: Array, weights: Any, y: Array, block: Block, buffers: Sequence[Any]) -> None:
        """Write the block's outputs, without bias, from its padded input (n, g, C/g, *halo) into y (n, g, O/g, …)."""

    def run(self, x: Array, weights: Any, bias: Array | None, out: Array) -> None:
        """Fill ``out`` block by block."""
        ns, spec = self._ns, self._spec
        x = ns.reshape(x, (spec.batch, spec.groups, self._channels, *spec.input_size))
        y = ns.reshape(out, (spec.batch, spec.groups, self._outputs, *spec.output_size))
        offsets = None if bias is None else GroupedBias(ns, spec, bias)

        def fill(block: Block) -> None:
            part = y[block.index]
            with self._scratch.borrow() as (padded, *buffers):
                self._fill(self._blocking.load(ns, x, block, padded), weights, part, block, buffers)
            if offsets is not None:
                part += offsets.of(block)

        if len(self._blocking) == 1 and spec.flops < _ONE_THREAD_FLOPS:  # BLAS does not thread so small a product
            return fill(next(iter(self._blocking)))
        with ns.gemm_threads(1 if len(self._blocking) > 1 else self._threads):
            parallel(fill, self._blocking, self._threads)
        return None


def matmul_into(ns: Namespace, a: Array, b: Array, y: Array, buffer: Array) -> None:
    """Write a · b, as many elements in the same order, into ``y``; through ``buffer`` where y's do not join up."""
    shape = (*y.shape[: b.ndim - 2], a.shape[-2], b.shape[-1])
    try:
        joined = ns.reshape(y, shape, copy=False)
    except ValueError:
        product = ns.reshape(buffer[: prod(shape)], shape)
        ns.matmul(a, b, product)
        y[...] = ns.reshape(product, y.shape)
    else:
        ns.matmul(a, b, joined)


class ScratchPool:
    """Buffers that a plan keeps between calls, one set a thread that is inside a call.

    A plan may be called from several threads at once: each borrows a set of its own, and ``most`` sets are kept.
    """

    def __init__(self, factory: Callable[[], Any], most: int = 1) -> None:
        self._factory, self._most = factory, most
        self._free: list[Any] = []

    @contextmanager
    def borrow(self) -> Iterator[Any]:
        """Lend one set of buffers for the block."""
        try:
            scratch = self._free.pop()  # atomic under the interpreter's lock, and list methods lock without it
        except IndexError:
            scratch = self._factory()
        try:
            yield scratch
        finally:
            if len(self._free) < self._most:
                self._free.append(scratch)
