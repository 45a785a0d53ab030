"""Planned real FFTs over the last axes of a batch, from FFTW or from any ``fft`` namespace.

A :class:`TransformPair` owns its buffers: fill ``real``, call ``forward``, work on ``spectrum``, call
``inverse``. The inverse is not normalised (the algorithm folds 1/T into its prepared spectrum) and may
destroy ``spectrum``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, Protocol

from convbench.threads import parallel

__all__ = [
    "TransformPair",
    "Transforms",
    "fftw_transforms",
    "pocketfft_transforms",
    "spectrum_shape",
    "standard_transforms",
]

_THREADED_POINTS = 2**15  # below, handing work to a second thread costs more than it gains
_PARTS_PER_THREAD = 2  # so that a thread whose core is shared with others holds nobody up
_PLANNING_S_PER_POINT = 1e-6  # FFTW measures rival plans for at most so long: a megapixel needs 0.3 to 1 s,
_PLANNING_LIMITS_S = 0.005, 1.0  # small ones gain nothing worth more, and large ones would take minutes


@dataclass
class TransformPair:
    """A forward and an inverse real transform between two buffers.

    Attributes
    ----------
    real : array, shape (*batch, *sizes), or (*sizes, *batch) with the batch last in memory
    spectrum : array of that shape, but for its last size n: n//2 + 1
        A library that cannot write into buffers replaces them: read both anew after each transform.
    forward, inverse : callable
        ``forward()``: real → spectrum. ``inverse()``: spectrum → real, multiplied by ∏ sizes.
    """

    real: Any
    spectrum: Any
    forward: Callable[[], None]
    inverse: Callable[[], None]


class MakePair(Protocol):
    """``pair(batch, sizes, dtype, threads, batch_last=False) -> TransformPair``."""

    def __call__(
        self, batch: Sequence[int], sizes: Sequence[int], dtype: str, threads: int, *, batch_last: bool = False
    ) -> TransformPair: ...


@dataclass(frozen=True)
class Transforms:
    """An FFT library.

    Attributes
    ----------
    name : str
    good_size : callable
        Smallest size ≥ n that the library transforms fast.
    pair : MakePair
        With ``batch_last`` neighbouring transforms are neighbours in memory, as products over a batch want them.
    """

    name: str
    good_size: Callable[[int], int]
    pair: MakePair


def _shapes(
    batch: Sequence[int], sizes: Sequence[int], batch_last: bool
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of real data and spectrum, and the axes of the transform."""
    half = spectrum_shape((), sizes)
    if batch_last:
        return (*sizes, *batch), (*half, *batch), tuple(range(len(sizes)))
    return (*batch, *sizes), (*batch, *half), tuple(range(-len(sizes), 0))


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

    def pair(
        batch: Sequence[int], sizes: Sequence[int], dtype: str, threads: int, *, batch_last: bool = False
    ) -> TransformPair:
        shape, half, axes = _shapes(batch, sizes, batch_last)
        real = pyfftw.zeros_aligned(shape, dtype=dtype)
        spectrum = pyfftw.zeros_aligned(half, dtype=complex_of(dtype))
        if 0 in batch:
            return TransformPair(real, spectrum, lambda: None, lambda: None)
        if batch_last:
            there, back = _fftw_plans(real.reshape(*sizes, -1), spectrum.reshape(*half[: len(sizes)], -1), axes)
            return TransformPair(real, spectrum, there.execute, back.execute)
        flat = real.reshape(-1, *sizes), spectrum.reshape(-1, *spectrum.shape[len(batch) :])
        if real.size < _THREADED_POINTS:
            threads = 1
        stages = [list(stage) for stage in _fftw_stages(*flat, threads)]

        def run(direction: int) -> None:
            for stage in stages if direction == 0 else reversed(stages):
                parallel(lambda plans: plans[direction].execute(), stage, threads)

        return TransformPair(real, spectrum, lambda: run(0), lambda: run(1))

    def good_size(n: int) -> int:
        """Multiples of 8: FFTW's SIMD codelets take columns by vectors; 1029 = 3·7³ takes twice the time of 1040."""
        step = 8 if n > 128 else 4 if n > 32 else 1
        return int(step * pyfftw.next_fast_len(-(-n // step)))

    return Transforms("fftw", good_size, pair)


def _fftw_stages(real: Any, spectrum: Any, threads: int) -> Iterator[Iterator[tuple[Any, Any]]]:
    """Yield stages of (forward, inverse) plans; the plans of a stage touch different memory.

    FFTW's own threads wait for each other by spinning, which costs a time slice wherever a core is shared (a
    hundredfold on a busy machine), so every plan is for one thread and the work is cut here: by images, or, for
    one image, into rows (the real transform of the last axis) and then columns (the other axes).
    """
    axes = tuple(range(1, real.ndim))
    if threads == 1 or (real.ndim == 2 and real.shape[0] == 1):
        yield iter([_fftw_plans(real, spectrum, axes)])
    elif real.shape[0] >= threads:
        yield (_fftw_plans(real[part], spectrum[part], axes) for part in _parts(real.shape[0], threads))
    else:
        rows = [(slice(None), part) for part in _parts(real.shape[1], threads)]
        yield (_fftw_plans(real[part], spectrum[part], axes[-1:]) for part in rows)
        columns = [(..., part) for part in _parts(spectrum.shape[-1], threads)]
        yield (_fftw_plans(spectrum[part], spectrum[part], axes[:-1]) for part in columns)


def _fftw_plans(source: Any, target: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
    """Plan both directions between two arrays, or within one."""
    from pyfftw import FFTW

    shortest, longest = _PLANNING_LIMITS_S
    limit = min(longest, max(shortest, source.size * _PLANNING_S_PER_POINT))
    flags = ("FFTW_MEASURE", "FFTW_DESTROY_INPUT")
    forward = FFTW(source, target, axes, "FFTW_FORWARD", flags, 1, limit)
    return forward, FFTW(target, source, axes, "FFTW_BACKWARD", flags, 1, limit, normalise_idft=False)


def _parts(extent: int, threads: int) -> list[slice]:
    count = min(extent, threads * _PARTS_PER_THREAD)
    return [slice(extent * i // count, extent * (i + 1) // count) for i in range(count)]


@cache
def pocketfft_transforms() -> Transforms:
    """Return SciPy's pocketfft; its threads are its own (``workers``)."""
    from scipy import fft

    def pair(
        batch: Sequence[int], sizes: Sequence[int], dtype: str, threads: int, *, batch_last: bool = False
    ) -> TransformPair:
        import numpy as np

        shape, half, axes = _shapes(batch, sizes, batch_last)
        made = TransformPair(np.zeros(shape, dtype), np.zeros(half, complex_of(dtype)), lambda: None, lambda: None)

        def forward() -> None:
            made.spectrum = None  # so that the old one and the new do not exist at once
            made.spectrum = fft.rfftn(made.real, axes=axes, workers=threads)

        def inverse() -> None:
            made.real = None
            made.real = fft.irfftn(made.spectrum, tuple(sizes), axes, norm="forward", overwrite_x=True, workers=threads)

        if 0 not in batch:
            made.forward, made.inverse = forward, inverse
        return made

    return Transforms("pocketfft", lambda n: int(fft.next_fast_len(n, real=True)), pair)


@cache
def standard_transforms(xp: Any) -> Transforms:
    """Return the transforms of an array-API library's ``fft`` namespace."""

    def pair(
        batch: Sequence[int], sizes: Sequence[int], dtype: str, threads: int, *, batch_last: bool = False
    ) -> TransformPair:
        shape, half, axes = _shapes(batch, sizes, batch_last)
        real = xp.empty(shape, dtype=getattr(xp, dtype))
        spectrum = xp.empty(half, dtype=getattr(xp, complex_of(dtype)))

        def forward() -> None:
            spectrum[...] = xp.fft.rfftn(real, axes=axes)

        def inverse() -> None:
            real[...] = xp.fft.irfftn(spectrum, s=tuple(sizes), axes=axes) * prod(sizes)

        return TransformPair(real, spectrum, forward, inverse)

    return Transforms(xp.__name__, lambda n: _smooth_size(n, (2, 3, 5, 7)), pair)
