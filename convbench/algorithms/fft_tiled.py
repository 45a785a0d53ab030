"""Overlap-save: the FFT on tiles, of a size chosen by cost.

A tile of t samples along each axis gives the t − r + 1 outputs that no wrapped sample reaches (Oppenheim and Schafer,
*Discrete-Time Signal Processing*, section 8.7.3). Against one transform of the whole input: tiles stay in cache,
log t is smaller, an error stays in its tile, and over several channels the products are one complex matrix product a
frequency (Mathieu, Henaff and LeCun 2013; Zlateski, Jia, Li and Durand 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod

from convbench.algorithms.blocking import ScratchPool
from convbench.algorithms.lowering import Lowering
from convbench.algorithms.tiling import (
    ForwardScratch,
    GradientScratch,
    TileCost,
    Tiled,
    Tiling,
    cheapest_tiling,
    lowered_taps,
)
from convbench.arrays import Array, Namespace
from convbench.spec import DTYPES, ConvSpec
from convbench.transforms import (
    TransformPair,
    complex_of,
    is_complex,
    pair_bytes,
    real_of,
    spectrum_shape,
    transform_flops,
)

__all__ = ["TiledFFT", "choose_tiling"]

#: Products of small primes in steps of about a tenth, from 40 on multiples of 8 (see fftw_transforms).
_SIZES: tuple[int, ...] = (4, 6, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 36)
_SIZES += tuple(
    step * 2**power for power in range(2, 18) for step in (10, 11, 12, 13, 14, 16, 18) if step % 2 == 0 or power > 2
)
#: With neighbouring tiles beside each other in memory: sizes that FFTW has straight-line code for, and their multiples;
#: others took two to four times as long a point (18, 24, 28, 36, 40, …).
_SIZES_BESIDE: tuple[int, ...] = (4, 6, 8, 10, 12, 14, 16, 20, *(2**power for power in range(5, 18)))
_CACHE_POINTS = 2**17  # of a tile; transforms of larger ones leave the L2 cache


def _choices(spec: ConvSpec) -> list[tuple[int, ...]]:
    """Return outputs of a tile along each axis: those of good sizes."""
    axes = Lowering(spec).axes
    single = spec.in_channels == spec.out_channels == spec.groups and prod(axis.phases for axis in axes) == 1
    sizes = _SIZES if single else _SIZES_BESIDE
    return [_outputs(sizes, axis.lowered_kernel, axis.lowered_outputs) for axis in axes]


def _outputs(good: Sequence[int], taps: int, outputs: int) -> tuple[int, ...]:
    """Return outputs of a tile, up to the size that holds all; a single tap needs no transform."""
    if taps == 1:
        return (1,)
    sizes = [t for t in good if t >= 2 * taps - 1 or t >= outputs + taps - 1] or [1 << (2 * taps).bit_length()]
    whole = next((i for i, t in enumerate(sizes) if t >= outputs + taps - 1), len(sizes) - 1)
    return tuple(t - taps + 1 for t in sizes[: whole + 1])


def _cost(spec: ConvSpec) -> TileCost:
    wide = DTYPES[real_of(spec.dtype)] / 4

    def transform_ns(tiling: Tiling) -> float:
        points = prod(tiling.size)
        slow = 1.0 if points <= _CACHE_POINTS else 1.4
        return wide * slow * 0.06 * transform_flops(points, spec.dtype)

    return TileCost(
        transform_ns=transform_ns,
        frequencies=lambda tiling: prod(spectrum_shape((), tiling.size, spec.dtype)),
        mac_ns=0.1 * wide,
        weight_bytes=DTYPES[complex_of(spec.dtype)],
        move_ns=0.125 * spec.itemsize,
        least_tiles=64,
    )


@lru_cache(maxsize=256)
def choose_tiling(spec: ConvSpec) -> Tiling:
    """Return the tiles that should take the least time."""
    return cheapest_tiling(spec, _choices(spec), _cost(spec))


class TiledFFT(Tiled):
    """Overlap-save in 1 to 3 axes.

    O(t log t · (C + O) + t · C · O) a tile of t points; a NaN or infinity spoils its tile.
    """

    def __init__(self, ns: Namespace, spec: ConvSpec, threads: int) -> None:
        super().__init__(ns, spec, threads, choose_tiling(spec), _cost(spec))
        with self._scratch.borrow():
            pass  # planned now, so that planning is timed as planning

    @property
    def _value_dtype(self) -> str:
        return complex_of(self._spec.dtype)

    def _scratch_bytes(self) -> int:
        lanes = self._lanes_in if self._single and self._spec.op == "forward" else self._lanes_in + self._lanes_out
        return lanes * pair_bytes(self._tiling.size, self._spec.dtype)

    def _pair(self, lanes: int) -> TransformPair:
        return self._ns.transforms.pair((lanes,), self._tiling.size, self._spec.dtype, 1, batch_last=not self._single)

    def _lanes_last(self, array: Array) -> Array:
        return self._ns.xp.permute_dims(array, (*range(1, array.ndim), 0)) if self._single else array

    def _forward(self, pair: TransformPair) -> Array:
        pair.forward()
        return self._lanes_last(pair.spectrum)

    def _make_scratch(self) -> ForwardScratch:
        there = self._pair(self._lanes_in)
        back = there if self._single else self._pair(self._lanes_out)

        def inverse() -> Array:
            back.inverse()
            return self._lanes_last(back.samples)

        return ForwardScratch(
            self._lanes_last(there.samples),
            lambda: self._forward(there),
            lambda: self._lanes_last(back.spectrum),
            inverse,
        )

    def _make_gradient_scratch(self) -> GradientScratch:
        """g lies reversed, so that the products are the spectrum of a correlation."""
        x, g = self._pair(self._lanes_in), self._pair(self._lanes_out)
        reverse = tuple(slice(m - 1, None, -1) for m in self._tiling.outputs)

        def gradients() -> Array:
            g.samples[...] = 0
            return self._lanes_last(g.samples)[(*reverse, ...)]

        return GradientScratch(
            self._lanes_last(x.samples), lambda: self._forward(x), gradients, lambda: self._forward(g)
        )

    def _transform_weights(self, taps: Array) -> Array:
        """The spectrum at opposite frequencies, for correlation, with the 1/t of the inverse transform."""
        ns, ndim, size = self._ns, self._spec.ndim, self._tiling.size
        pair = self._ns.transforms.pair((taps.shape[-1],), size, self._spec.dtype, 1, batch_last=True)
        pair.samples[...] = 0
        pair.samples[(*(slice(0, r) for r in taps.shape[:ndim]), ...)] = (
            ns.xp.conj(taps) if is_complex(self._spec.dtype) else taps
        )
        pair.forward()
        return ns.xp.conj(ns.reshape(pair.spectrum, (self._frequencies, -1))) * (1 / prod(size))

    def _weights_back(self, lanes: int) -> tuple[int, Callable[[Array], Array]]:
        """Of the convolution of x with g reversed, the part that no wrapped sample reaches is ∂J/∂w."""
        ns, size, dtype = self._ns, self._tiling.size, self._spec.dtype
        taps = tuple(slice(t - r, t) for t, r in zip(size, lowered_taps(self._spec), strict=True))
        pairs = ScratchPool(lambda: ns.transforms.pair((lanes,), size, dtype, 1, batch_last=True))

        def back(values: Array) -> Array:
            with pairs.borrow() as pair:
                spectrum = ns.reshape(pair.spectrum, (self._frequencies, lanes))
                used = prod(values.shape[1:])
                place = ns.reshape(spectrum[:, :used], values.shape)
                place[...] = values
                spectrum[:, used:] = 0
                pair.inverse()
                return pair.samples[(*taps, slice(0, used))] * (1 / prod(size))

        with pairs.borrow():
            pass
        return lanes * (pair_bytes(size, dtype) + 3 * prod(lowered_taps(self._spec)) * self._spec.itemsize), back

    def _transform_flops(self) -> float:
        return transform_flops(prod(self._tiling.size), self._spec.dtype)
