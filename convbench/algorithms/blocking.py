"""Work in blocks that stay in cache: which outputs a block holds, and the padded input beneath it.

The one place that knows about padding and boundaries. A block reads its input in place where it lies inside, else
through a buffer that holds just this block's halo: no padded copy of the whole input is ever made. What is the adjoint
of reading is here too: adding a halo's gradient to the samples that it was read from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import Any, NamedTuple

from convbench.arrays import Array, Namespace
from convbench.geometry import Run, extension_runs
from convbench.spec import DTYPES, ConvSpec
from convbench.threads import parallel

__all__ = [
    "Block",
    "Blocked",
    "Blocking",
    "GroupedBias",
    "Piece",
    "ScratchPool",
    "flipped",
    "matmul_into",
    "pieces",
    "scratch_not_kept",
    "spread_bias",
]

_KEPT_BLOCKS = 64
_ONE_THREAD_FLOPS = 2 * 32**3
_WORTH_A_THREAD = 2**16  # bytes touched below which a block is not split further to occupy another thread


class Copy(NamedTuple):
    """Samples of a halo that are read from one part of the input, in order, in reverse, or one sample by all.

    Attributes
    ----------
    halo : index into the halo (n, g, C/g, *extent)
    source : index into x (N, G, C/g, *input_size)
    repeated : tuple of int
        Axes along which one sample is read again and again.
    """

    halo: tuple[slice, ...]
    source: tuple[slice, ...]
    repeated: tuple[int, ...]


@dataclass(frozen=True)
class Halo:
    """The padded input beneath a block.

    Attributes
    ----------
    copies : tuple of Copy
        What is read from the input, and where it goes.
    zeros : indices into the halo (n, g, C/g, *extent)
        What is zero.
    shape : tuple of int
    """

    copies: tuple[Copy, ...]
    zeros: tuple[tuple[Any, ...], ...]
    shape: tuple[int, ...]

    @property
    def padded(self) -> bool:
        """Does the block reach beyond the input?"""
        return bool(self.zeros) or len(self.copies) != 1 or bool(self.copies[0].repeated)


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
        self._copies = copy or spec.dtype != spec.accumulate_dtype

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        return prod(-(-extent // size) for extent, size in zip(self._extents, self.shape, strict=True))

    def __iter__(self) -> Iterator[Block]:
        """All blocks, in memory order; a few are kept, many made anew, as they would outweigh the buffers."""
        return iter(self._kept) if self._count <= _KEPT_BLOCKS else self._make()

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
        if not self._leaves_input() and not self._copies:
            return 0
        return self.largest_halo

    @property
    def largest_halo(self) -> int:
        """Elements of the largest block's halo."""
        spec = self.spec
        return prod(self.shape[:2]) * (spec.in_channels // spec.groups) * prod(self.halo_size)

    @property
    def folded_elements(self) -> int:
        """Elements of the sums that :meth:`unload` makes where one sample was read again and again."""
        single = self.spec.boundary == "reflect" and 1 in self.spec.input_size
        return self.largest_halo // 2 if self.spec.boundary == "replicate" or single else 0

    def load(self, ns: Namespace, x: Array, block: Block, buffer: Array) -> Array:
        """Return the input beneath ``block``, as the boundary continues it: shape (n, g, C/g, *halo).

        Parameters
        ----------
        x : array, shape (N, G, C/g, *input_size)
        buffer : array of ``halo_elements``, of the accumulation dtype
            Used if the block leaves the input or is to be copied or converted; else a view of ``x`` is returned.
        """
        halo = block.halo
        if not halo.padded and not self._copies:
            return x[halo.copies[0].source]
        padded = ns.reshape(buffer[: prod(halo.shape)], halo.shape)
        for zero in halo.zeros:
            padded[zero] = 0
        for copy in halo.copies:
            ns.assign(padded[copy.halo], x[copy.source])
        return padded

    def unload(self, ns: Namespace, x: Array, block: Block, halo: Array) -> None:
        """Add a halo to the samples that it was read from: the adjoint of :meth:`load`.

        Circular boundaries wrap, reflecting ones fold back, replicating ones add up at the edge.
        """
        for copy in block.halo.copies:
            part = halo[copy.halo]
            if copy.repeated:
                part = ns.xp.sum(part, axis=copy.repeated, keepdims=True)
            x[copy.source] += part

    def _leaves_input(self) -> bool:
        """May a block read beyond the input?"""
        return any(before > 0 or after > 0 for before, after in self.spec.padding)

    def _read_by(self, outputs: Sequence[int]) -> tuple[int, ...]:
        """Return the input positions that ``outputs`` consecutive outputs read, along each axis."""
        axes = zip(outputs, self.spec.stride, self.spec.kernel_size, self.spec.dilation, strict=True)
        return tuple((p - 1) * s + (k - 1) * d + 1 for p, s, k, d in axes)

    def _halo(self, images: slice, groups: slice, outputs: tuple[slice, ...]) -> Halo:
        spec, everything = self.spec, slice(None)
        extents = self._read_by([r.stop - r.start for r in outputs])
        firsts = [r.start * s - a for r, s, (a, _) in zip(outputs, spec.stride, spec.padding, strict=True)]
        axes = [
            self._runs(axis, first, extent) for axis, (first, extent) in enumerate(zip(firsts, extents, strict=True))
        ]
        lead = (images.stop - images.start, groups.stop - groups.start, spec.in_channels // spec.groups)
        copies = []
        for runs in product(*axes):
            places = (slice(r.start - first, r.stop - first) for r, first in zip(runs, firsts, strict=True))
            source = (images, groups, everything, *(run.samples for run in runs))
            repeated = tuple(3 + axis for axis, run in enumerate(runs) if run.step == 0 and run.stop - run.start > 1)
            copies.append(Copy((everything,) * 3 + tuple(places), source, repeated))
        margins: list[tuple[Any, ...]] = []
        if spec.boundary == "zero":
            for axis, ((inside, *_), first, extent) in enumerate(zip(axes, firsts, extents, strict=True)):
                for margin in (slice(0, inside.start - first), slice(inside.stop - first, extent)):
                    if margin.start < margin.stop:
                        margins.append((*(everything,) * (3 + axis), margin, ...))
        return Halo(tuple(copies), tuple(margins), (*lead, *extents))

    def _runs(self, axis: int, first: int, extent: int) -> list[Run]:
        """Return what a halo reads along an axis; for zeros exactly one run, empty if all of it is zero."""
        size, boundary = self.spec.input_size[axis], self.spec.boundary
        runs = list(extension_runs(first, first + extent, size, boundary))
        return runs or [Run(first, first, 0, 1)]


def flipped(ns: Namespace, spec: ConvSpec, w: Array) -> Array:
    """Return ``w`` as cross-correlation wants it: reversed along the spatial axes if the spec says flip."""
    return ns.xp.flip(w, axis=tuple(range(-spec.ndim, 0))) if spec.flip else w


class Piece(NamedTuple):
    """Outputs of a box that the same box of tile entries serves.

    Attributes
    ----------
    outputs : tuple of slice
        Within the box, along each spatial axis.
    entries : tuple of slice
        Along each axis of the tile; empty for shared weights.
    own : tuple of bool
        Along each axis: has every output an entry of its own, in order, or do all share one?
    """

    outputs: tuple[slice, ...]
    entries: tuple[slice, ...]
    own: tuple[bool, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Outputs along each axis."""
        return tuple(len(range(r.start, r.stop, r.step)) for r in self.outputs)

    @property
    def own_counts(self) -> tuple[int, ...]:
        """Entries along each axis: 1 where all outputs share one."""
        return tuple(count if own else 1 for count, own in zip(self.counts, self.own, strict=True))


def pieces(spec: ConvSpec, outputs: Sequence[slice]) -> Iterator[Piece]:
    """Cut a box of outputs by the tile entries that serve them: one piece for shared weights."""
    sizes = [r.stop - r.start for r in outputs]
    if spec.tile is None:
        yield Piece(tuple(slice(0, size, 1) for size in sizes), (), (False,) * spec.ndim)
        return
    axes = [list(_cut(r.start, size, period)) for r, size, period in zip(outputs, sizes, spec.tile, strict=True)]
    for corner in product(*axes):
        places, entries, own = zip(*corner, strict=True)
        yield Piece(places, entries, own)


def _cut(first: int, outputs: int, period: int) -> Iterator[tuple[slice, slice, bool]]:
    """Cut one axis into residues of the period, or into whole periods, whichever are fewer."""
    residues = min(period, outputs)
    if residues <= outputs // period + 1:
        for start in range(residues):
            entry = (first + start) % period
            yield slice(start, outputs, period), slice(entry, entry + 1), False
        return
    start = 0
    while start < outputs:
        entry = (first + start) % period
        length = min(period - entry, outputs - start)
        yield slice(start, start + length, 1), slice(entry, entry + length), True
        start += length


def spread_bias(ns: Namespace, spec: ConvSpec, bias: Array) -> Array:
    """Return a bias per channel or per location in a shape that broadcasts against (O, *output_size): a view."""
    return bias if spec.bias == "location" else ns.reshape(bias, (-1, *(1,) * spec.ndim))


class GroupedBias:
    """The bias, added to a box of outputs at a time: it is never spread over all of them in memory.

    Parameters
    ----------
    bias : array
        Of all output channels, or of some.
    groups : int, optional
        That they are split into; the spec's by default.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, bias: Array, groups: int | None = None) -> None:
        self._ns, self._spec = ns, spec
        shape, groups = bias.shape[1:] if spec.bias != "channel" else (1,) * spec.ndim, groups or spec.groups
        self._bias = ns.reshape(bias, (groups, bias.shape[0] // groups, *shape))

    def add(self, y: Array, groups: slice = slice(None), outputs: Sequence[slice] | None = None) -> None:
        """Add to ``y`` (n, g, O/g, *outputs) what belongs there."""
        box = outputs if outputs is not None else [slice(0, size) for size in self._spec.output_size]
        bias = self._bias[groups, ...]
        if self._spec.bias == "channel":
            self._ns.increase(y, bias)
        elif self._spec.bias == "location":
            self._ns.increase(y, bias[(..., *box)])
        else:
            for piece in pieces(self._spec, box):
                self._ns.increase(y[(..., *piece.outputs)], bias[(..., *piece.entries)])


class Blocked(ABC):
    """An algorithm that fills its output block by block, over all threads: the forward operation.

    Subclasses say how one block is filled; this class cuts, pads, converts, lends buffers and adds the bias.

    Parameters
    ----------
    buffers : sequence of int
        Elements of each buffer, of the accumulation dtype, that :meth:`_fill` gets besides the halo.
    """

    flops: int

    def __init__(
        self, ns: Namespace, spec: ConvSpec, threads: int, blocking: Blocking, buffers: Sequence[int] = ()
    ) -> None:
        self._ns, self._spec, self._threads, self._blocking = ns, spec, threads, blocking
        self._channels = spec.in_channels // spec.groups
        self._outputs = spec.out_channels // spec.groups
        self._lanes = min(threads, max(1, len(blocking)))
        self._converts = spec.result_dtype != spec.accumulate_dtype
        results = blocking.outputs_per_block * self._outputs if self._converts else 0
        self._buffers = (blocking.halo_elements, results, *buffers)
        self._scratch = ScratchPool(self._new_scratch, self._lanes)
        self.workspace_bytes = self._lanes * sum(self._buffers) * DTYPES[spec.accumulate_dtype]
        copied = spec.flip or spec.dtype != spec.accumulate_dtype  # else prepared weights are views of w
        self.prepared_bytes = prod(spec.weight_shape) * DTYPES[spec.accumulate_dtype] if copied else 0
        self.flops = spec.flops

    @cached_property
    def _tiny(self) -> bool:
        """Is it so small a product that BLAS does not thread it?"""
        return len(self._blocking) == 1 and self._spec.flops < _ONE_THREAD_FLOPS

    def _new_scratch(self) -> list[Any]:
        """Return what one thread works in: the buffers of the halo and of a result to be converted first."""
        return [self._ns.empty((size,), self._spec.accumulate_dtype) for size in self._buffers]

    @abstractmethod
    def prepare(self, w: Array) -> tuple[Any, int | None]:
        """See :class:`convbench.backend.Algorithm`."""

    @abstractmethod
    def _fill(self, halo: Array, weights: Any, y: Array, block: Block, buffers: Sequence[Any]) -> None:
        """Write the block's outputs, without bias, from its padded input (n, g, C/g, *halo) into y (n, g, O/g, …)."""

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Fill ``out`` block by block."""
        ns, spec = self._ns, self._spec
        offsets = None if bias is None else GroupedBias(ns, spec, bias)

        def fill(block: Block) -> None:
            part = out[block.index]
            with self._scratch.borrow() as (padded, converted, *buffers):
                y = ns.reshape(converted[: prod(part.shape)], part.shape) if self._converts else part
                self._fill(self._blocking.load(ns, first, block, padded), second, y, block, buffers)
                if offsets is not None:
                    offsets.add(y, block.groups, block.outputs)
                if self._converts:
                    ns.assign(part, y)

        if self._tiny:
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


_KEEPING = ContextVar("_KEEPING", default=True)


@contextmanager
def scratch_not_kept() -> Iterator[None]:
    """Let plans that are made within the block allocate their buffers anew in each call.

    For many plans that take turns: together they need as much as the largest.
    """
    token = _KEEPING.set(False)
    try:
        yield
    finally:
        _KEEPING.reset(token)


class ScratchPool:
    """Buffers that a plan keeps between calls, one set a thread that is inside a call.

    A plan may be called from several threads at once: each borrows a set of its own, and ``most`` sets are kept.
    """

    def __init__(self, factory: Callable[[], Any], most: int = 1) -> None:
        self._factory, self._most = factory, most if _KEEPING.get() else 0
        self._free: list[Any] = []

    def borrow(self) -> _Loan:
        """Lend one set of buffers for the block."""
        return _Loan(self)

    def take(self) -> Any:
        """Return a set that is free, or a new one."""
        try:
            return self._free.pop()  # atomic under the interpreter's lock, and list methods lock without it
        except IndexError:
            return self._factory()

    def give_back(self, scratch: Any) -> None:
        """Keep a set for the next call, if there are not enough."""
        if len(self._free) < self._most:
            self._free.append(scratch)


class _Loan:
    """A context manager as :func:`contextlib.contextmanager` makes them, in a third of the time."""

    __slots__ = ("_pool", "_scratch")

    def __init__(self, pool: ScratchPool) -> None:
        self._pool = pool

    def __enter__(self) -> Any:
        self._scratch = self._pool.take()
        return self._scratch

    def __exit__(self, *exception: object) -> None:
        self._pool.give_back(self._scratch)
