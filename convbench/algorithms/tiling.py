"""Tiled transform methods: overlapping tiles of the input, a linear transform, one small product a frequency, and back.

Winograd's minimal filtering and overlap-save by FFT are the same method with different transforms. Along an axis with
r taps a tile of t = m + r − 1 samples gives m outputs; with Bᵀ, G and Aᵀ the transforms of samples, weights and
products (for the FFT: F, conj F and the real part of F⁻¹),

    y[o, tile] = Aᵀ ( Σ_c (G w[o, c]) ⊙ (Bᵀ x[c, tile]) ),

and the sum over channels is, for each frequency by itself, a product of an (O × C) and a (C × tiles) matrix. The weight
gradient is the adjoint, in the same tiles: a sum over them, transformed back once,

    ∂J/∂w[o, c] = Gᵀ ( Σ_tile (A g[o, tile]) ⊙ (Bᵀ x[c, tile]) ),

for each frequency a product of an (O × tiles) and a (tiles × C) matrix. Strides and dilations are lowered first
(:mod:`~.lowering`): polyphase components are further channels, subgrids further tiles.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from math import prod
from typing import Any

from convbench.algorithms.blocking import Block, Blocked, Blocking, ScratchPool, flipped
from convbench.algorithms.lowering import Lowering
from convbench.arrays import Array, Namespace
from convbench.spec import DTYPES, ConvSpec
from convbench.threads import parallel, shares
from convbench.transforms import is_complex

__all__ = [
    "Scratch",
    "TileCost",
    "Tiled",
    "Tiling",
    "cheapest_tiling",
    "does_itself",
    "lowered_taps",
    "overlap",
    "reach_of",
    "values_summed",
]

_CACHE_BYTES = 2**20  # samples, spectra and products of the tiles of a block
_FEW_OUTPUTS = 64
_FEW_PRODUCTS = 4  # channels × outputs that BLAS gains nothing on: what counts is that tiles stay in cache
_WEIGHTS_CHUNK_BYTES = 2**23  # of weights transformed at a time
_PRODUCT_BYTES = 2**20  # of a weight gradient's spectrum, added to the sum at a time
_OWN_SUMS_BYTES = 2**24  # of a weight gradient's spectrum that each thread may have for itself


def does_itself(spec: ConvSpec) -> bool:
    """Tell what need not be rewritten: shared weights, forward or the weight gradient."""
    return spec.tile is None and spec.op != "input_grad"


@dataclass(frozen=True)
class Tiling:
    """Outputs m and samples t = m + r − 1 of a tile along each axis of the lowered spec."""

    outputs: tuple[int, ...]
    size: tuple[int, ...]


def lowered_taps(spec: ConvSpec) -> tuple[int, ...]:
    """Return r along each axis: the taps of the longest polyphase component."""
    return tuple(axis.lowered_kernel for axis in Lowering(spec).axes)


def _channels(spec: ConvSpec) -> tuple[int, int]:
    """Channels in, polyphase components counted, and out, of one group."""
    return spec.in_channels // spec.groups * Lowering(spec).phases, spec.out_channels // spec.groups


@dataclass(frozen=True)
class TileCost:
    """What tiles cost on one thread: measured on a Zen 4 core; only their ratios matter.

    Attributes
    ----------
    transform_ns : callable
        ``transform_ns(tiling)``: of one tile's samples or products, without moving them.
    frequencies : callable
        ``frequencies(tiling)``: values that are multiplied.
    mac_ns : float
        One multiply–add of a product.
    weight_bytes : int
        Of one transformed weight.
    """

    transform_ns: Callable[[Tiling], float]
    frequencies: Callable[[Tiling], int]
    mac_ns: float
    weight_bytes: int
    move_ns: float = 0.7  # a sample into its tile, or an output out of it
    narrow: float = 16  # tiles that a product by a narrower matrix seems to have beside its own
    stream_ns_per_byte: float = 0.15  # transformed weights, once a block
    block_ns: float = 50_000  # calls into the libraries for one block
    least_tiles: int = 128  # of a block of several channels: narrower matrices keep BLAS waiting for weights

    def of(self, spec: ConvSpec, tiling: Tiling) -> float:
        """Return the nanoseconds of a whole call on one thread."""
        tiles, around, products, block = self._parts(spec, tiling)
        blocks = max(1.0, tiles / tiles_of_a_block(spec, tiling, self))
        return spec.groups * (tiles * (around + products) + blocks * block)

    def best_cut_by_frequency(self, spec: ConvSpec, tiling: Tiling, threads: int) -> bool:
        """Tell how threads share one block: its products cut by frequency, or its tiles, each reading all weights."""
        tiles, around, products, block = self._parts(spec, tiling)
        by_frequency = tiles * around + (tiles * products + block) / threads
        return by_frequency < tiles * (around + products) / threads + block

    def _parts(self, spec: ConvSpec, tiling: Tiling) -> tuple[int, float, float, float]:
        """Return the tiles of a group, the nanoseconds around and in the products of each, and those of a block."""
        tiles, (channels, outputs) = tiles_summed(spec, tiling), _channels(spec)
        moved = channels * prod(tiling.size) + outputs * prod(tiling.outputs)
        macs = self.frequencies(tiling) * channels * outputs
        width = max(1, min(tiles, tiles_of_a_block(spec, tiling, self)))
        around = (channels + outputs) * self.transform_ns(tiling) + moved * self.move_ns
        products = macs * self.mac_ns * (1 + self.narrow / width)
        return tiles, around, products, macs * self.weight_bytes * self.stream_ns_per_byte + self.block_ns

    def bytes_of_tile(self, spec: ConvSpec, tiling: Tiling) -> int:
        """Return the bytes touched for one tile of a group: samples and products, before and after transforming."""
        channels, outputs = _channels(spec)
        lanes = 1 if channels == outputs == 1 else channels + outputs
        return lanes * (prod(tiling.size) * spec.itemsize + self.frequencies(tiling) * self.weight_bytes)


def tiles_of_a_block(spec: ConvSpec, tiling: Tiling, cost: TileCost) -> int:
    """Return how many tiles stay in cache, or make matrices wide enough for BLAS."""
    least = cost.least_tiles if prod(_channels(spec)) > _FEW_PRODUCTS else 1
    return max(least, _CACHE_BYTES // cost.bytes_of_tile(spec, tiling))


def cheapest_tiling(spec: ConvSpec, choices: Sequence[Sequence[int]], cost: TileCost) -> Tiling:
    """Return the tiling of least cost, by coordinate descent over the outputs of a tile along each axis.

    Parameters
    ----------
    choices : sequence of sequence of int
        For each axis the outputs m to choose from, ascending.
    """
    taps = lowered_taps(spec)

    def tiling(outputs: Sequence[int]) -> Tiling:
        return Tiling(tuple(outputs), tuple(m + r - 1 for m, r in zip(outputs, taps, strict=True)))

    def key(outputs: Sequence[int]) -> float:
        return cost.of(spec, tiling(outputs))

    starts = (tuple(c[len(c) * part // 8] for c in choices) for part in (0, 2, 4, 6, 7))
    best = min(starts, key=key)
    while True:
        before = best
        for axis, options in enumerate(choices):
            best = min((best, *((*best[:axis], m, *best[axis + 1 :]) for m in options)), key=key)
        if best == before:
            return tiling(best)


def values_summed(spec: ConvSpec, tiling: Tiling) -> int:
    """Return the length of the sum at each frequency: over channels, or for the weight gradient over tiles."""
    return _channels(spec)[0] if spec.op == "forward" else tiles_summed(spec, tiling)


def reach_of(spec: ConvSpec, tiling: Tiling) -> tuple[int, ...] | None:
    """Return how far beyond an output's window its tile may extend, along each axis, in samples.

    None for the weight gradient, which all samples go into.
    """
    if spec.op == "weight_grad":
        return None
    axes = zip(Lowering(spec).axes, tiling.outputs, strict=True)
    return tuple((m - (axis.phases == 1)) * axis.stride * axis.grid_step for axis, m in axes)


def overlap(tiling: Tiling) -> int:
    """Return the number of tiles that a sample lies in at most."""
    return prod(-(-t // m) for t, m in zip(tiling.size, tiling.outputs, strict=True))


def tiles_summed(spec: ConvSpec, tiling: Tiling) -> int:
    """Return the tiles of one channel in all examples: a weight gradient sums over them."""
    lowering = Lowering(spec)
    counts = (-(-axis.lowered_outputs // m) for axis, m in zip(lowering.axes, tiling.outputs, strict=True))
    return spec.batch * lowering.subgrids * prod(counts)


class _TileBlocking(Blocking):
    """Blocks of whole tiles, which may reach beyond the outputs: what they read there is zero or unused."""

    def __init__(self, spec: ConvSpec, tiling: Tiling, bytes_of_tile: int, budget_bytes: int, threads: int) -> None:
        self.tiling, self._lowering = tiling, Lowering(spec)
        steps = (axis.grid_step for axis in self._lowering.axes)
        cell = [m * step for m, step in zip(tiling.outputs, steps, strict=True)]
        super().__init__(spec, bytes_of_tile * self._lowering.subgrids, budget_bytes, threads, cell)

    def tiles(self, outputs: Sequence[int]) -> tuple[int, ...]:
        """Return the tiles along each axis that cover so many outputs, of every subgrid."""
        axes = zip(outputs, self.tiling.outputs, self._lowering.axes, strict=True)
        return tuple(-(-p // (m * axis.grid_step)) for p, m, axis in axes)

    def _leaves_input(self) -> bool:
        """Whole tiles do so unless they happen to fit."""
        return True

    def _read_by(self, outputs: Sequence[int]) -> tuple[int, ...]:
        axes = zip(self._lowering.axes, self.tiles(outputs), self.tiling.outputs, self.tiling.size, strict=True)
        return tuple(
            (axis.grid_step - 1) * axis.stride
            + (axis.phases - 1) * axis.dilation
            + ((tiles - 1) * m + size - 1) * axis.stride * axis.grid_step
            + 1
            for axis, tiles, m, size in axes
        )


@dataclass
class Scratch:
    """What one thread transforms tiles in, frequencies first: indices (*t, lane), a lane being (group, channel, tile).

    Attributes
    ----------
    samples : array, shape (*size, lanes in)
        To be filled.
    forward : callable
        Returns Bᵀ x: (frequencies, lanes in).
    """

    samples: Array
    forward: Callable[[], Array]


@dataclass
class ForwardScratch(Scratch):
    """With what becomes of the products.

    Attributes
    ----------
    products : callable
        Returns where the products go: (frequencies, lanes out); the same array as ``forward`` gave where one channel
        meets one.
    inverse : callable
        Returns Aᵀ of them, at least (*outputs, lanes out).
    """

    products: Callable[[], Array]
    inverse: Callable[[], Array]


@dataclass
class GradientScratch(Scratch):
    """With what the samples are multiplied by in the weight gradient.

    Attributes
    ----------
    gradients : callable
        Returns where g is to be laid, all zeros: (*outputs, lanes out).
    spread : callable
        Returns A g: (frequencies, lanes out).
    """

    gradients: Callable[[], Array]
    spread: Callable[[], Array]


class Tiled(Blocked):
    """A tiled transform method; subclasses bring the transforms. Any stride, dilation, groups, padding and boundary.

    Workspace: for each thread a block's halo, samples, spectra and products; for the weight gradient its spectrum too,
    once for each thread if it is small. If it is large, so that products outweigh transforms, threads share the
    frequencies of one block after another. Either way the order of summation is fixed.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int, tiling: Tiling, cost: TileCost) -> None:
        self._lowering, self._tiling = Lowering(spec), tiling
        tile_bytes, tiles = cost.bytes_of_tile(spec, tiling), tiles_of_a_block(spec, tiling, cost)
        blocking = _TileBlocking(spec, tiling, tile_bytes, tile_bytes * tiles, 1)
        if len(blocking) > 1 or not cost.best_cut_by_frequency(spec, tiling, threads):
            blocking = _TileBlocking(spec, tiling, tile_bytes, tile_bytes * tiles, threads)
        super().__init__(ns, spec, threads, blocking)
        self._tile_counts = blocking.tiles
        self._inputs = self._channels * self._lowering.phases
        self._single = self._inputs == self._outputs == 1
        lead = blocking.shape[0] * self._lowering.subgrids * prod(blocking.tiles(blocking.shape[2:]))
        self._lanes_in = self._padded(blocking.shape[1] * self._inputs * lead)
        self._lanes_out = self._padded(blocking.shape[1] * self._outputs * lead)
        self._frequencies = cost.frequencies(tiling)
        self.prepared_bytes = self._frequencies * spec.out_channels * self._inputs * cost.weight_bytes
        if spec.op == "weight_grad":
            self._plan_sums()
        self.workspace_bytes += self._lanes * self._scratch_bytes()
        self.flops = self._count_flops()

    @abstractmethod
    def _scratch_bytes(self) -> int:
        """Bytes of one :class:`Scratch`."""

    @abstractmethod
    def _make_scratch(self) -> ForwardScratch:
        """Return buffers for ``_lanes_in`` and ``_lanes_out`` lanes."""

    @abstractmethod
    def _make_gradient_scratch(self) -> GradientScratch:
        """Return buffers for ``_lanes_in`` and ``_lanes_out`` lanes."""

    @abstractmethod
    def _weights_back(self, lanes: int) -> tuple[int, Callable[[Array], Array]]:
        """Plan Gᵀ of up to so many lanes.

        Returns the bytes that it takes, and a function from values (frequencies, G, O/g, C') to taps (*r, lanes).
        """

    @abstractmethod
    def _transform_flops(self) -> float:
        """FLOPs of transforming one lane of samples, or one of products."""

    @abstractmethod
    def _transform_weights(self, taps: Array) -> Array:
        """Return G w, shape (frequencies, lanes), of taps (*r, lanes)."""

    def _padded(self, lanes: int) -> int:
        """An odd multiple of 16: rows a power of two apart would share few lines of the cache."""
        return lanes if self._single or lanes < 64 else -(-(lanes - 16) // 32) * 32 + 16

    def _new_scratch(self) -> list[Any]:
        forward = self._spec.op == "forward"
        return [*super()._new_scratch(), self._make_scratch() if forward else self._make_gradient_scratch()]

    def prepare(self, w: Array) -> tuple[Any, None]:
        """Return the transformed weights: (frequencies, G, O/g, C'), a chunk of output channels at a time."""
        ns, spec = self._ns, self._spec
        kept = self._new_spectra()
        for box in self._weight_boxes():
            lowered = self._lowered_weights(flipped(ns, spec, w[(*box, ...)]))
            shape = (self._frequencies, *(part.stop - part.start for part in box), self._inputs)
            kept[(slice(None), *box, ...)] = ns.reshape(self._transform_weights(lowered), shape)
        return kept, None

    def _new_spectra(self) -> Array:
        """Return memory for transformed weights: (frequencies, G, O/g, C')."""
        shape = (self._frequencies, self._spec.groups, self._outputs, self._inputs)
        if not self._single:
            return self._ns.empty(shape, self._value_dtype)
        # multiplied frequency by frequency, so those of a channel are neighbours
        memory = self._ns.empty((*shape[1:], shape[0]), self._value_dtype)
        return self._ns.xp.permute_dims(memory, (3, 0, 1, 2))

    def _weight_boxes(self) -> Iterator[tuple[slice, ...]]:
        """Return the groups and outputs whose weights are transformed together."""
        return boxes((self._spec.groups, self._outputs), self._weights_at_once)

    @property
    def _weights_at_once(self) -> tuple[int, ...]:
        room = _WEIGHTS_CHUNK_BYTES // (prod(self._tiling.size) * self._inputs * 16)
        return filled((self._spec.groups, self._outputs), room)

    def _lowered_weights(self, w: Array) -> Array:
        """Return the taps of every polyphase component, zeros behind the shorter: (*r, lanes (g, o, c, phase))."""
        ns, ndim, axes = self._ns, self._spec.ndim, self._lowering.axes
        shape = (*(axis.lowered_kernel for axis in axes), *w.shape[:3], self._lowering.phases)
        lowered = ns.xp.zeros(shape, dtype=w.dtype)
        for taps, place in self._taps():
            lowered[place] = ns.xp.permute_dims(w[taps], (*range(3, 3 + ndim), 0, 1, 2))
        return ns.reshape(lowered, (*shape[:ndim], -1))

    def _taps(self) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
        """Return, for every polyphase component, its taps in (g, o, c, *K) and in (*r, g, o, c, phase)."""
        for number, phase in self._lowering.each_phase():
            axes = list(zip(self._lowering.axes, phase, strict=True))
            place = (*(slice(0, axis.tap_count(r)) for axis, r in axes), ..., number)
            yield (..., *(axis.taps(r) for axis, r in axes)), place

    def _fill(self, halo: Array, weights: Any, y: Array, block: Block, buffers: Sequence[Any]) -> None:
        (scratch,) = buffers
        lead = self._tiles_of(block)
        samples = self._transformed(halo, block, scratch)
        self._multiply(samples, weights[:, block.groups, ...], scratch.products(), block, prod(lead))
        products = _lanes(self._ns, scratch.inverse(), self._spec.ndim, (block.lead[1], self._outputs, *lead))
        self._exchange(products, y, lambda product, output: self._ns.assign(output, product))

    def _tiles_of(self, block: Block) -> tuple[int, ...]:
        """Examples, subgrids and tiles along each axis."""
        return (block.lead[0], self._lowering.subgrids, *self._tile_counts(block.output_size))

    def _transformed(self, halo: Array, block: Block, scratch: Scratch) -> Array:
        """Return Bᵀ of a block's tiles."""
        shape = (block.lead[1], self._inputs, *self._tiles_of(block))
        self._clear(scratch.samples, prod(shape))
        self._gather(halo, _lanes(self._ns, scratch.samples, self._spec.ndim, shape))
        return scratch.forward()

    def _clear(self, lanes: Array, used: int) -> None:
        """Zero the lanes without a tile: they are transformed with the others, and what is left there would grow."""
        if used < lanes.shape[-1]:
            lanes[..., used:] = 0

    def _gather(self, halo: Array, samples: Array) -> None:
        """Copy overlapping tiles of the halo (n, g, C/g, *space) into samples (*t, g, C', n, subgrid, *tiles)."""
        ns, ndim, axes = self._ns, self._spec.ndim, self._lowering.axes
        steps = [axis.stride * axis.grid_step for axis in axes]
        moves = [m * step for m, step in zip(self._tiling.outputs, steps, strict=True)]
        order = (*range(3, 3 + ndim), 1, 2, 0, *range(3 + ndim, 3 + 2 * ndim))
        for number, phase in self._lowering.each_phase():
            for grid, subgrid in self._lowering.each_subgrid():
                starts = (a.stride * i + r * a.dilation for a, r, i in zip(axes, phase, subgrid, strict=True))
                source = halo[(..., *(slice(start, None) for start in starts))]
                windows = ns.windows(source, self._tiling.size, moves, steps, samples.shape[-ndim:])
                channels = slice(number, None, self._lowering.phases)
                target = samples[(*(slice(None),) * (1 + ndim), channels, slice(None), grid, ...)]
                target[...] = ns.xp.permute_dims(windows, order)

    def _exchange(self, products: Array, y: Array, assign: Callable[[Array, Array], None]) -> None:
        """Assign outputs (*m, g, O/g, n, subgrid, *tiles) to y (n, g, O/g, *space) or back, what lies beyond left out.

        ``assign(products, y)`` is called on parts of both.
        """
        outputs = self._tiling.outputs
        exchange = self._exchange_offsets if prod(outputs) <= _FEW_OUTPUTS else self._exchange_tiles
        for grid, subgrid in self._lowering.each_subgrid():
            part = y[(..., *(axis.positions(i) for axis, i in zip(self._lowering.axes, subgrid, strict=True)))]
            if 0 not in part.shape:
                exchange(products[(*(slice(None),) * (len(outputs) + 3), grid, ...)], part, assign)

    def _exchange_offsets(self, products: Array, y: Array, assign: Callable[[Array, Array], None]) -> None:
        """One of a tile's outputs in every tile at a time: rows of tiles are longer than rows of a tile."""
        ndim, outputs = self._spec.ndim, self._tiling.outputs
        for offset in product(*(range(min(m, p)) for m, p in zip(outputs, y.shape[3:], strict=True))):
            target = y[(..., *(slice(a, None, m) for a, m in zip(offset, outputs, strict=True)))]
            source = products[(*offset, ..., *map(slice, target.shape[3:]))]
            assign(self._ns.xp.permute_dims(source, (2, 0, 1, *range(3, 3 + ndim))), target)

    def _exchange_tiles(self, products: Array, y: Array, assign: Callable[[Array, Array], None]) -> None:
        """All whole tiles at once, then those that are cut along an axis."""
        ns, ndim, outputs = self._ns, self._spec.ndim, self._tiling.outputs
        pieces = []
        for p, m in zip(y.shape[3:], outputs, strict=True):
            whole = [(slice(0, p // m), slice(0, m))] if p >= m else []
            cut = [(slice(p // m, p // m + 1), slice(0, p % m))] if p % m else []
            pieces.append(whole + cut)
        order = (ndim + 2, ndim, ndim + 1, *(a for axis in range(ndim) for a in (ndim + 3 + axis, axis)))
        for corner in product(*pieces):
            tiles, inner = zip(*corner, strict=True)
            source = ns.xp.permute_dims(products[(*inner, ..., *tiles)], order)
            ranges = (
                slice(t.start * m, t.start * m + (t.stop - t.start) * i.stop)
                for t, i, m in zip(tiles, inner, outputs, strict=True)
            )
            target = ns.reshape(y[(..., *ranges)], source.shape, copy=False)
            assign(source, target)

    def _multiply(self, samples: Array, weights: Array, products: Array, block: Block, tiles: int) -> None:
        """Σ_c of the products, for each frequency and group: (f, g, O/g, C') · (f, g, C', tiles)."""
        ns, (_, groups) = self._ns, block.lead
        used_in, used_out = groups * self._inputs * tiles, groups * self._outputs * tiles
        if self._single:
            values = _lanes(ns, samples, samples.ndim - 1, (groups, tiles))
            values *= ns.reshape(weights, (*samples.shape[:-1], groups, 1))
            return None
        self._clear(products, used_out)
        left = ns.reshape(samples, (self._frequencies, -1))[:, :used_in]
        right = ns.reshape(products, (self._frequencies, -1))[:, :used_out]
        left = ns.reshape(left, (self._frequencies, groups, self._inputs, tiles))
        right = ns.reshape(right, (self._frequencies, groups, self._outputs, tiles))

        def multiply(f: slice) -> None:
            ns.matmul(weights[f, ...], left[f, ...], right[f, ...])

        if len(self._blocking) > 1:
            return multiply(slice(None))
        with ns.gemm_threads(1):
            parallel(multiply, shares(self._frequencies, self._threads), self._threads)
        return None

    # -- the weight gradient ----------------------------------------------------------------------------------

    def _plan_sums(self) -> None:
        """Decide how threads share the sum over the tiles, and make room for it."""
        spec = self._spec
        size = spec.groups * self._outputs * self._inputs * DTYPES[self._value_dtype]
        side_by_side = len(self._blocking) > 1 and self._frequencies * size <= _OWN_SUMS_BYTES
        self._lanes = min(self._threads, len(self._blocking)) if side_by_side else 1
        self._scratch = ScratchPool(self._new_scratch, self._lanes)
        self._sums = ScratchPool(lambda: [self._new_spectra() for _ in range(self._lanes)])
        step = min(self._frequencies, max(1, _PRODUCT_BYTES // max(1, size)))
        self._chunks = [slice(f, min(f + step, self._frequencies)) for f in range(0, self._frequencies, step)]
        back, self._back = self._weights_back(prod(self._weights_at_once) * self._inputs)
        multiplying = self._threads if self._lanes == 1 else self._lanes
        products = 2 * self._frequencies * self._lanes if self._single else step * multiplying
        conjugates = self._blocking.outputs_per_block * self._outputs * spec.itemsize * is_complex(spec.dtype)
        each_lane = sum(self._buffers) * spec.itemsize + self._frequencies * size + conjugates
        self.workspace_bytes = self._lanes * each_lane + products * size + back
        self.prepared_bytes = 0
        with self._sums.borrow():
            pass

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Fill ``out``: block by block, or for the weight gradient when all blocks are summed."""
        if self._spec.op == "forward":
            super().run(first, second, bias, out)
            return
        with self._sums.borrow() as sums:

            def add_up(part: int) -> None:
                sums[part][...] = 0
                for block in islice(self._blocking, part, None, len(sums)):
                    self._add_block(first, second, block, sums[part])

            with self._ns.gemm_threads(1):
                parallel(add_up, range(len(sums)), self._threads)
            for other in sums[1:]:
                self._ns.add(sums[0], other, sums[0])
            self._write_weights(sums[0], out)

    def _add_block(self, x: Array, g: Array, block: Block, total: Array) -> None:
        """Add (A g) ⊙ (Bᵀ x) of the block's tiles to ``total`` (frequencies, G, O/g, C')."""
        ns, ndim = self._ns, self._spec.ndim
        with self._scratch.borrow() as (padded, _, scratch):
            samples = self._transformed(self._blocking.load(ns, x, block, padded), block, scratch)
            tiles = self._tiles_of(block)
            part = g[block.index]
            part = ns.xp.conj(part) if is_complex(self._spec.dtype) else part
            shape = (block.lead[1], self._outputs, *tiles)
            self._exchange(_lanes(ns, scratch.gradients(), ndim, shape), part, ns.assign)
            self._add_products(samples, scratch.spread(), total[:, block.groups, ...], prod(tiles))

    def _add_products(self, samples: Array, gradients: Array, total: Array, tiles: int) -> None:
        """Sum over the tiles, for each frequency and group: (f, g, O/g, tiles) · (f, g, tiles, C')."""
        ns, groups = self._ns, total.shape[1]
        if self._single:
            values = _lanes(ns, samples, samples.ndim - 1, (groups, tiles))
            values *= _lanes(ns, gradients, gradients.ndim - 1, (groups, tiles))
            total += ns.reshape(ns.xp.sum(values, axis=-1), total.shape)
            return
        left = ns.reshape(gradients, (self._frequencies, -1))[:, : groups * self._outputs * tiles]
        right = ns.reshape(samples, (self._frequencies, -1))[:, : groups * self._inputs * tiles]
        left = ns.reshape(left, (self._frequencies, groups, self._outputs, tiles))
        right = ns.reshape(right, (self._frequencies, groups, self._inputs, tiles))

        def add(f: slice) -> None:
            total[f, ...] += ns.xp.matmul(left[f, ...], ns.xp.permute_dims(right[f, ...], (0, 1, 3, 2)))

        parallel(add, self._chunks, self._threads if self._lanes == 1 else 1)

    def _write_weights(self, total: Array, out: Array) -> None:
        """Write Gᵀ of the sums to ∂J/∂w (G, O/g, C/g, *K)."""
        ns, ndim, axes = self._ns, self._spec.ndim, self._lowering.axes
        out = out[(..., *(slice(None, None, -1),) * ndim)] if self._spec.flip else out
        for box in self._weight_boxes():
            lanes = (*(part.stop - part.start for part in box), self._channels, self._lowering.phases)
            taps = self._back(total[(slice(None), *box, ...)])
            taps = ns.xp.conj(taps) if is_complex(self._spec.dtype) else taps
            taps = ns.reshape(taps, (*(axis.lowered_kernel for axis in axes), *lanes))
            for stored, place in self._taps():
                part = out[(*box, *stored)]
                part[...] = ns.xp.permute_dims(taps[place], (ndim, ndim + 1, ndim + 2, *range(ndim)))

    def _count_flops(self) -> int:
        spec = self._spec
        tiles = prod(self._tile_counts(spec.output_size)) * spec.batch * self._lowering.subgrids * spec.groups
        transforms = self._transform_flops() * (self._inputs + self._outputs)  # Aᵀ of products, or A of gradients
        products = self._product_flops * self._frequencies * self._inputs * self._outputs
        weights = spec.out_channels * self._inputs if spec.op == "weight_grad" else 0  # transformed in the run
        return round(tiles * (transforms + products) + weights * self._transform_flops())

    @property
    def _value_dtype(self) -> str:
        """Of what is multiplied."""
        return self._spec.dtype

    @property
    def _product_flops(self) -> int:
        """Of one multiply–add."""
        return 8 if "complex" in self._value_dtype else 2


def boxes(extents: Sequence[int], shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Cut the box of ``extents`` into boxes of at most ``shape``."""
    axes = zip(extents, shape, strict=True)
    return product(*([slice(a, min(a + size, extent)) for a in range(0, extent, size)] for extent, size in axes))


def filled(extents: Sequence[int], room: int) -> tuple[int, ...]:
    """Return the shape of a box of at most ``room`` elements, filled from the last axis to the first."""
    shape = []
    for extent in reversed(extents):
        shape.append(max(1, min(extent, room)))
        room //= shape[-1]
    return tuple(reversed(shape))


def _lanes(ns: Namespace, array: Array, lead: int, shape: Sequence[int]) -> Array:
    """Return the first lanes of an array (*lead, lanes), split into ``shape``: a view."""
    return ns.reshape(array[(*(slice(None),) * lead, slice(0, prod(shape)))], (*array.shape[:lead], *shape))
