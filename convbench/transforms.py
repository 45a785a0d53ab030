"""Planned FFTs over the last axes of a batch, from FFTW or from any ``fft`` namespace.

A :class:`TransformPair` owns its buffers: fill ``samples``, call ``forward``, work on ``spectrum``, call
``inverse``. The inverse is not normalised (the algorithm folds 1/T into its prepared spectrum) and may
destroy ``spectrum``. Real data have half a spectrum, of which the rest is the conjugate; complex data have a whole one,
in the place of the samples.

On a device memory is lent by a pool, in the order of a stream, so there transforms own no buffers:
:class:`LaneTransform` takes arrays, which lie as :class:`Lanes` says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import log2, prod
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any, Protocol

from convbench.spec import DTYPES
from convbench.threads import parallel, shares

__all__ = [
    "LaneTransform",
    "Lanes",
    "TransformPair",
    "Transforms",
    "complex_of",
    "cufft_size",
    "cufft_transforms",
    "fftw_transforms",
    "is_complex",
    "pair_bytes",
    "pocketfft_transforms",
    "real_of",
    "smooth_size",
    "spectrum_shape",
    "standard_transforms",
    "transform_flops",
    "transforms_of_cufft",
]

_THREADED_POINTS = 2**15  # below, handing work to a second thread costs more than it gains
_PARTS_PER_THREAD = 2  # so that a thread whose core is shared with others holds nobody up
_PLANNING_S_PER_POINT = 1e-6  # FFTW measures rival plans for at most so long: a megapixel needs 0.3 to 1 s,
_PLANNING_LIMITS_S = 0.005, 1.0  # small ones gain nothing worth more, and large ones would take minutes
_WORTH_KEEPING_S = 0.02  # planning for longer than that is not done again by the next process

_fftw_lock = Lock()  # FFTW's planner and its wisdom are for one thread at a time
if hasattr(os, "register_at_fork"):  # a child of a process in mid-planning would find them half changed, and locked
    os.register_at_fork(
        before=_fftw_lock.acquire, after_in_parent=_fftw_lock.release, after_in_child=_fftw_lock.release
    )


@dataclass
class TransformPair:
    """A forward and an inverse transform between two buffers, or for complex data within one.

    Attributes
    ----------
    samples : array, shape (*batch, *sizes), or (*sizes, *batch) with the batch last in memory
    spectrum : array of that shape, but for the last size n of real data: n//2 + 1
        A library that cannot write into buffers replaces them: read both anew after each transform.
    forward, inverse : callable
        ``forward()``: samples → spectrum. ``inverse()``: spectrum → samples, multiplied by ∏ sizes.
    """

    samples: Any
    spectrum: Any
    forward: Callable[[], None]
    inverse: Callable[[], None]


class MakePair(Protocol):
    """``pair(batch, sizes, dtype, threads, batch_last=False) -> TransformPair``."""

    def __call__(
        self, batch: Sequence[int], sizes: Sequence[int], dtype: str, threads: int, *, batch_last: bool = False
    ) -> TransformPair: ...


@dataclass(frozen=True)
class Lanes:
    """Transforms of one size, side by side, and how they lie in memory.

    Attributes
    ----------
    count : int
    sizes : tuple of int
    dtype : str
        Of the samples, an array (count, *sizes) without gaps.
    row : int
        0: spectra are an array (count, frequencies) without gaps. Else they are columns of an array (frequencies, row),
        (frequencies, count) in shape: a matrix for each frequency, as a product over channels wants it.
    """

    count: int
    sizes: tuple[int, ...]
    dtype: str
    row: int = 0

    @property
    def kept(self) -> tuple[int, ...]:
        """Frequencies along each axis."""
        return spectrum_shape((), self.sizes, self.dtype)


@dataclass(frozen=True)
class LaneTransform:
    """A planned transform of arrays that each call is given. Calls may come from several threads, on several streams.

    Attributes
    ----------
    run : callable
        ``run(samples, spectra)``; of an inverse transform ``run(spectra, samples)``: the samples are multiplied by
        ∏ sizes, and the spectra may be overwritten.
    workspace_bytes : int
        Of one call, whether kept from call to call or not.
    """

    run: Callable[[Any, Any], None]
    workspace_bytes: int


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
    lanes : callable, optional
        ``lanes(layout, inverse) -> LaneTransform``: for arrays that the caller brings.
    """

    name: str
    good_size: Callable[[int], int]
    pair: MakePair
    lanes: Callable[[Lanes, bool], LaneTransform] | None = None


def _shapes(
    batch: Sequence[int], sizes: Sequence[int], dtype: str, batch_last: bool
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of samples and spectrum, and the axes of the transform."""
    kept = spectrum_shape((), sizes, dtype)
    if batch_last:
        return (*sizes, *batch), (*kept, *batch), tuple(range(len(sizes)))
    return (*batch, *sizes), (*batch, *kept), tuple(range(-len(sizes), 0))


def spectrum_shape(batch: Sequence[int], sizes: Sequence[int], dtype: str) -> tuple[int, ...]:
    """Shape of the spectrum of data of shape (*batch, *sizes): a half one for a real dtype."""
    return (*batch, *sizes[:-1], sizes[-1] if is_complex(dtype) else sizes[-1] // 2 + 1)


def pair_bytes(sizes: Sequence[int], dtype: str) -> int:
    """Bytes of the buffers of a :class:`TransformPair`, for each transform of the batch."""
    if is_complex(dtype):
        return prod(sizes) * DTYPES[dtype]
    return (prod(sizes) + 2 * prod(spectrum_shape((), sizes, dtype))) * DTYPES[dtype]


def transform_flops(points: int, dtype: str) -> float:
    """5·T·log₂T for T complex points, and half as much for real ones (FFTW's convention)."""
    return (5.0 if is_complex(dtype) else 2.5) * points * log2(max(2, points))


def is_complex(dtype: str) -> bool:
    """Tell complex dtypes from real ones."""
    return dtype.startswith("complex")


def complex_of(dtype: str) -> str:
    """Return the complex dtype of the same precision."""
    return {"float32": "complex64", "float64": "complex128"}.get(dtype, dtype)


def real_of(dtype: str) -> str:
    """Return the real dtype of the same precision."""
    return {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)


def smooth_size(n: int, primes: Sequence[int]) -> int:
    """Return the smallest product of these primes from n on."""
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
    """Return FFTW through pyFFTW: measured plans (time-limited, and kept on disk) on SIMD-aligned buffers."""
    import pyfftw

    with _fftw_lock:
        _recall_wisdom()

    def pair(
        batch: Sequence[int], sizes: Sequence[int], dtype: str, threads: int, *, batch_last: bool = False
    ) -> TransformPair:
        shape, kept, axes = _shapes(batch, sizes, dtype, batch_last)
        samples = pyfftw.zeros_aligned(shape, dtype=dtype)
        spectrum = samples if is_complex(dtype) else pyfftw.zeros_aligned(kept, dtype=complex_of(dtype))
        if 0 in batch:
            return TransformPair(samples, spectrum, lambda: None, lambda: None)
        if batch_last:
            with _planning():
                there, back = _fftw_plans(samples.reshape(*sizes, -1), spectrum.reshape(*kept[: len(sizes)], -1), axes)
            return TransformPair(samples, spectrum, there.execute, back.execute)
        flat = samples.reshape(-1, *sizes), spectrum.reshape(-1, *spectrum.shape[len(batch) :])
        if samples.size < _THREADED_POINTS:
            threads = 1
        with _planning():
            stages = [list(stage) for stage in _fftw_stages(*flat, threads)]

        def run(direction: int) -> None:
            for stage in stages if direction == 0 else reversed(stages):
                parallel(lambda plans: plans[direction].execute(), stage, threads)

        return TransformPair(samples, spectrum, lambda: run(0), lambda: run(1))

    def good_size(n: int) -> int:
        """Multiples of 8: FFTW's SIMD codelets take columns by vectors; 1029 = 3·7³ takes twice the time of 1040."""
        step = 8 if n > 128 else 4 if n > 32 else 1
        return int(step * pyfftw.next_fast_len(-(-n // step)))

    return Transforms("fftw", good_size, pair)


def _fftw_stages(samples: Any, spectrum: Any, threads: int) -> Iterator[Iterator[tuple[Any, Any]]]:
    """Yield stages of (forward, inverse) plans; the plans of a stage touch different memory.

    FFTW's own threads wait for each other by spinning, which costs a time slice wherever a core is shared (a
    hundredfold on a busy machine), so every plan is for one thread and the work is cut here: by images, or, for
    one image, into rows (the transform of the last axis, real or not) and then columns (the other axes).
    """
    axes = tuple(range(1, samples.ndim))
    if threads == 1 or (samples.ndim == 2 and samples.shape[0] == 1):
        yield iter([_fftw_plans(samples, spectrum, axes)])
    elif samples.shape[0] >= threads:
        yield (_fftw_plans(samples[part], spectrum[part], axes) for part in _parts(samples.shape[0], threads))
    else:
        rows = [(slice(None), part) for part in _parts(samples.shape[1], threads)]
        yield (_fftw_plans(samples[part], spectrum[part], axes[-1:]) for part in rows)
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


def _wisdom_file() -> Path:
    from convbench.jit.compile import cache_folder

    return cache_folder().parent / "fftw" / "wisdom"  # a folder of its own, that nobody else may write


def _recall_wisdom() -> None:
    """Take what this user's other processes have measured; FFTW refuses what is damaged or of another version."""
    import pyfftw

    from convbench.jit.compile import read_own

    wisdom = (read_own(_wisdom_file()) or b"").split(b"\0")
    if len(wisdom) == len(pyfftw.export_wisdom()):
        pyfftw.import_wisdom(tuple(wisdom))


@contextmanager
def _planning() -> Iterator[None]:
    """Plan one at a time; write down what the block has found, if it took long, as other processes may meanwhile."""
    import pyfftw

    from convbench.jit.compile import write_own

    with _fftw_lock:
        start = perf_counter()
        yield
        if perf_counter() - start >= _WORTH_KEEPING_S:
            _recall_wisdom()
            write_own(_wisdom_file(), b"\0".join(pyfftw.export_wisdom()))


def _parts(extent: int, threads: int) -> list[slice]:
    count = min(extent, threads * _PARTS_PER_THREAD)
    return shares(extent, count)


@cache
def pocketfft_transforms() -> Transforms:
    """Return SciPy's pocketfft; its threads are its own (``workers``)."""
    from scipy import fft

    def pair(
        batch: Sequence[int], sizes: Sequence[int], dtype: str, threads: int, *, batch_last: bool = False
    ) -> TransformPair:
        import numpy as np

        shape, kept, axes = _shapes(batch, sizes, dtype, batch_last)
        samples = np.zeros(shape, dtype)
        spectrum = samples if is_complex(dtype) else np.zeros(kept, complex_of(dtype))
        made = TransformPair(samples, spectrum, lambda: None, lambda: None)
        how = {"axes": axes, "workers": threads, "overwrite_x": True}

        def forward() -> None:
            made.spectrum = None  # so that the old one and the new do not exist at once
            made.spectrum = fft.rfftn(made.samples, **how)

        def inverse() -> None:
            made.samples = None
            made.samples = fft.irfftn(made.spectrum, tuple(sizes), norm="forward", **how)

        def forward_complex() -> None:
            made.samples = made.spectrum = fft.fftn(made.samples, **how)

        def inverse_complex() -> None:
            made.samples = made.spectrum = fft.ifftn(made.spectrum, norm="forward", **how)

        if 0 not in batch and is_complex(dtype):
            made.forward, made.inverse = forward_complex, inverse_complex
        elif 0 not in batch:
            made.forward, made.inverse = forward, inverse
        return made

    return Transforms("pocketfft", lambda n: int(fft.next_fast_len(n, real=True)), pair)


@cache
def standard_transforms(xp: Any) -> Transforms:
    """Return the transforms of an array-API library's ``fft`` namespace."""

    def pair(
        batch: Sequence[int], sizes: Sequence[int], dtype: str, threads: int, *, batch_last: bool = False
    ) -> TransformPair:
        shape, kept, axes = _shapes(batch, sizes, dtype, batch_last)
        samples = xp.empty(shape, dtype=getattr(xp, dtype))
        spectrum = samples if is_complex(dtype) else xp.empty(kept, dtype=getattr(xp, complex_of(dtype)))
        there, back = (xp.fft.fftn, xp.fft.ifftn) if is_complex(dtype) else (xp.fft.rfftn, xp.fft.irfftn)

        def forward() -> None:
            spectrum[...] = there(samples, axes=axes)

        def inverse() -> None:
            samples[...] = back(spectrum, s=tuple(sizes), axes=axes) * prod(sizes)

        return TransformPair(samples, spectrum, forward, inverse)

    def lanes(layout: Lanes, inverse: bool) -> LaneTransform:
        axes = tuple(range(1, 1 + len(layout.sizes)))
        real = not is_complex(layout.dtype)
        there, back = (xp.fft.rfftn, xp.fft.irfftn) if real else (xp.fft.fftn, xp.fft.ifftn)
        spectrum_bytes = layout.count * prod(layout.kept) * DTYPES[complex_of(layout.dtype)]

        def transform(samples: Any, spectra: Any) -> None:
            found = xp.reshape(there(samples, axes=axes), (layout.count, -1))
            spectra[...] = found.T if layout.row else found

        def transform_back(spectra: Any, samples: Any) -> None:
            lanes_first = xp.reshape(spectra.T if layout.row else spectra, (layout.count, *layout.kept))
            samples[...] = back(lanes_first, s=layout.sizes, axes=axes, norm="forward")

        return LaneTransform(transform_back if inverse else transform, 3 * spectrum_bytes)  # they go axis by axis

    return Transforms(xp.__name__, lambda n: smooth_size(n, (2, 3, 5, 7)), pair, lanes)


def cufft_size(n: int) -> int:
    """Return the size from n on that cuFFT should transform fastest: a product of 2, 3, 5 and 7, the odd ones dear.

    It has kernels for these radices, and is best at powers of two (cuFFT API reference, "Accuracy and Performance").
    That an odd factor costs 4 % is an assumption.

    >>> [cufft_size(n) for n in (17, 61, 125, 230, 257)]
    [18, 64, 128, 256, 280]
    """
    largest = 1 << max(0, n - 1).bit_length()
    found, size = [], n
    while size < largest:
        size = smooth_size(size, (2, 3, 5, 7))
        found.append(size)
        size += 1
    return min((*found, largest), key=lambda size: (size * (1 + 0.04 * _odd_factors(size)), size))


def _odd_factors(size: int) -> int:
    """Count the prime factors 3, 5 and 7."""
    count = 0
    for prime in (3, 5, 7):
        while size % prime == 0:
            size //= prime
            count += 1
    return count


@cache
def cufft_transforms() -> Transforms:
    """Return cuFFT through CuPy: plans for just the layout in hand, so that nothing is transposed apart."""
    import cupy

    def current() -> tuple[int, int]:
        return cupy.cuda.Device().id, cupy.cuda.get_current_stream().ptr

    return transforms_of_cufft(cupy, lambda: cupy.cuda.cufft, current)  # whose library may be missing: asked when used


def transforms_of_cufft(xp: Any, library: Callable[[], Any], current: Callable[[], Hashable]) -> Transforms:
    """Return transforms by a module like ``cupy.cuda.cufft``.

    Parameters
    ----------
    xp : module
    library : callable
    current : callable
        Names the device and the stream that work is given to.
    """

    def lanes(layout: Lanes, inverse: bool) -> LaneTransform:
        plans = _CufftPlans(library(), layout, inverse, current)
        return LaneTransform(plans, plans.workspace_bytes)

    return Transforms("cufft", cufft_size, standard_transforms(xp).pair, lanes)


class _CufftPlans:
    """One transform, planned once for each stream and for each thread that is inside a call.

    A plan keeps a work area, which must not serve two streams at once, and cuFFT's handles are for one thread at a time
    (cuFFT API reference, "Thread Safety"). On one stream calls follow each other, whatever thread they come from.
    """

    def __init__(self, cufft: Any, layout: Lanes, inverse: bool, current: Callable[[], Hashable]) -> None:
        self._cufft, self._layout, self._inverse, self._current = cufft, layout, inverse, current
        self._direction = cufft.CUFFT_INVERSE if inverse else cufft.CUFFT_FORWARD
        first = self._make()  # now, so that planning is timed as planning
        self.workspace_bytes = int(first.work_area.mem.size)
        self._free: dict[Hashable, list[Any]] = {current(): [first]}

    def __call__(self, source: Any, target: Any) -> None:
        free = self._free.setdefault(self._current(), [])
        try:
            plan = free.pop()  # atomic, as ``setdefault`` is, under the interpreter's lock
        except IndexError:
            plan = self._make()
        plan.fft(source, target, self._direction)
        free.append(plan)

    def _make(self) -> Any:
        """Plan by cuFFT's advanced layout: item (k₁, …) of lane b stands at b·dist + (k₁·embed₂ + …)·stride."""
        layout = self._layout
        samples = layout.sizes, 1, prod(layout.sizes)
        spectra = (layout.kept, layout.row, 1) if layout.row else (layout.kept, 1, prod(layout.kept))
        source, target = (spectra, samples) if self._inverse else (samples, spectra)
        names = {"float32": ("R2C", "C2R"), "float64": ("D2Z", "Z2D"), "complex64": ("C2C",) * 2}
        name = names.get(layout.dtype, ("Z2Z",) * 2)[self._inverse]
        kind = getattr(self._cufft, f"CUFFT_{name}")
        last = target[0][-1]
        return self._cufft.PlanNd(layout.sizes, *source, *target, kind, layout.count, "C", len(layout.sizes) - 1, last)
