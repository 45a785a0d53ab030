"""Planned real FFTs over the last axes of a batch, from FFTW or from any ``fft`` namespace.

A :class:`TransformPair` owns its buffers: fill ``real``, call ``forward``, work on ``spectrum``, call
``inverse``. The inverse is not normalised (the algorithm folds 1/T into its prepared spectrum) and may
destroy ``spectrum``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

__all__ = ["TransformPair", "Transforms", "fftw_transforms", "spectrum_shape", "standard_transforms"]

_THREADED_POINTS = 2**17  # below, FFTW's barriers between threads cost more than the second thread gains
_PLANNING_S_PER_POINT = 1e-6  # FFTW measures rival plans for at most so long: a megapixel needs 0.3 to 1 s,
_PLANNING_LIMITS_S = 0.005, 1.0  # small ones gain nothing worth more, and large ones would take minutes


@dataclass(frozen=True)
class TransformPair:
    """A forward and an inverse real transform between two buffers.

    Attributes
    ----------
    real : array, shape (*batch, *sizes)
    spectrum : array, shape (*batch, *sizes[:-1], sizes[-1]//2 + 1)
    forward, inverse : callable
        ``forward()``: real → spectrum. ``inverse()``: spectrum → real, multiplied by ∏ sizes.
    """

    real: Any
    spectrum: Any
    forward: Callable[[], None]
    inverse: Callable[[], None]


@dataclass(frozen=True)
class Transforms:
    """An FFT library.

    Attributes
    ----------
    name : str
    good_size : callable
        Smallest size ≥ n that the library transforms fast.
    pair : callable
        ``pair(batch, sizes, dtype, threads) -> TransformPair``.
    """

    name: str
    good_size: Callable[[int], int]
    pair: Callable[[Sequence[int], Sequence[int], str, int], TransformPair]


def spectrum_shape(batch: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
    """Shape of the half spectrum of real data of shape (*batch, *sizes)."""
    return (*batch, *sizes[:-1], sizes[-1] // 2 + 1)


def complex_of(dtype: str) -> str:
    """Return the complex dtype of the same precision."""
    return {"float32": "complex64", "float64": "complex128"}[dtype]


def _smooth_size(n: int, primes: Sequence[int]) -> int:
    size = max(1, n)
    while True:
        rest = size
        for prime in primes:
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


@cache
def fftw_transforms() -> Transforms:
    """Return FFTW through pyFFTW: measured plans (time-limited) on SIMD-aligned buffers."""
    import pyfftw

    def pair(batch: Sequence[int], sizes: Sequence[int], dtype: str, threads: int) -> TransformPair:
        real = pyfftw.zeros_aligned((*batch, *sizes), dtype=dtype)
        spectrum = pyfftw.zeros_aligned(spectrum_shape(batch, sizes), dtype=complex_of(dtype))
        if 0 in batch:
            return TransformPair(real, spectrum, lambda: None, lambda: None)
        axes = tuple(range(-len(sizes), 0))
        points = prod(batch) * prod(sizes)
        shortest, longest = _PLANNING_LIMITS_S
        options: dict[str, Any] = {
            "threads": threads if points >= _THREADED_POINTS else 1,
            "planning_timelimit": min(longest, max(shortest, points * _PLANNING_S_PER_POINT)),
        }
        forward = pyfftw.FFTW(real, spectrum, axes, "FFTW_FORWARD", ("FFTW_MEASURE", "FFTW_DESTROY_INPUT"), **options)
        inverse = pyfftw.FFTW(spectrum, real, axes, "FFTW_BACKWARD", ("FFTW_MEASURE", "FFTW_DESTROY_INPUT"), **options)
        return TransformPair(real, spectrum, forward.execute, inverse.execute)

    return Transforms("fftw", pyfftw.next_fast_len, pair)


@cache
def standard_transforms(xp: Any) -> Transforms:
    """Return the transforms of an array-API library's ``fft`` namespace."""

    def pair(batch: Sequence[int], sizes: Sequence[int], dtype: str, threads: int) -> TransformPair:
        real = xp.empty((*batch, *sizes), dtype=getattr(xp, dtype))
        spectrum = xp.empty(spectrum_shape(batch, sizes), dtype=getattr(xp, complex_of(dtype)))
        axes = tuple(range(-len(sizes), 0))

        def forward() -> None:
            spectrum[...] = xp.fft.rfftn(real, axes=axes)

        def inverse() -> None:
            real[...] = xp.fft.irfftn(spectrum, s=tuple(sizes), axes=axes) * prod(sizes)

        return TransformPair(real, spectrum, forward, inverse)

    return Transforms(xp.__name__, lambda n: _smooth_size(n, (2, 3, 5, 7)), pair)
