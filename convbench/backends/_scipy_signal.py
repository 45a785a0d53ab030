"""What the rivals from ``scipy.signal`` share: planes one by one, SciPy's modes where they fit the padding.

Those from ``cupyx.scipy.signal``, which has the same functions for CuPy's arrays, share it too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import log2, prod
from typing import Any

from convbench import bounds
from convbench.arrays import Array
from convbench.backend import FunctionBackend
from convbench.bounds import ErrorBound
from convbench.refusals import FLOATS, NUMPY_DTYPES, Limits
from convbench.spec import ConvSpec

#: ``filter_plane(plane, kernel, mode, boundary)`` cross-correlates two N-d arrays of equal rank, the kernel conjugated.
FilterPlane = Callable[[Array, Array, str, str], Array]

REQUIRES = {"scipy": "scipy"}
LIMITS = Limits(stride=False, dilation=False, axes=(1, 2, 3))

#: What direct methods are exact or accurate in; of half precision they have no convolution, or sums in it.
DIRECT_DTYPES = tuple(name for name in NUMPY_DTYPES if name != "float16")


@dataclass(frozen=True)
class Library:
    """Where arrays are, and how much of them one call should take.

    Attributes
    ----------
    xp : callable
        Returns the module of the arrays: NumPy or CuPy.
    fast_size : callable
        ``fast_size(n, real)``: the size from n on that the transforms take.
    chunk_bytes : int
        Of one call over many channels.
    examples_bytes : int
        Of one call over many examples: they share nothing but the kernels, so few stay in a CPU's cache.
    """

    xp: Callable[[], Any]
    fast_size: Callable[[int, bool], int]
    chunk_bytes: int
    examples_bytes: int


def _numpy() -> Any:
    import numpy

    return numpy


def _scipy_fast_size(n: int, real: bool) -> int:
    from scipy.fft import next_fast_len

    return int(next_fast_len(n, real=real))


SCIPY = Library(_numpy, _scipy_fast_size, chunk_bytes=64 * 2**20, examples_bytes=2**20)


def conv_by_planes(filter_plane: FilterPlane, library: Library = SCIPY) -> Callable[[ConvSpec, Array, Array], Array]:
    """Return a function of whole arrays: SciPy has no channels, so a user loops over them.

    Narrow integers would wrap around: a user converts them to int64.
    """

    def conv(spec: ConvSpec, x: Array, w: Array) -> Array:
        np = library.xp()
        wide, mode = spec.result_dtype, scipy_mode(spec)
        channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        kernels = np.flip(w, axis=tuple(range(2, 2 + spec.ndim))) if spec.flip else w
        kernels = kernels.conj() if "complex" in wide else kernels.astype(wide, copy=False)
        if mode is None:
            x, mode = _padded(np, spec, x), "valid"
        y = None if spec.batch == spec.in_channels == spec.out_channels == 1 else np.empty(spec.output_shape, wide)
        for n in range(spec.batch):
            for group in range(spec.groups):
                planes = [x[n, group * channels + c].astype(wide, copy=False) for c in range(channels)]
                for o in range(group * outputs, (group + 1) * outputs):
                    for c, plane in enumerate(planes):
                        part = filter_plane(plane, kernels[o, c], mode, spec.boundary)
                        if y is None:  # nothing to sum: SciPy's own result
                            return part[None, None]
                        if c == 0:
                            y[n, o] = part
                        else:
                            total = y[n, o]  # ``y[n, o] += part`` copies it once more on a GPU
                            total += part
        assert y is not None
        return y

    return conv


def correlate_by(signal: Callable[[], Any]) -> FilterPlane:
    """Return the direct method of a module like ``scipy.signal``.

    SciPy's ``correlate2d`` is eight times as fast as its ``correlate(method="direct")`` on images, but 2-D only.
    """

    def correlate(plane: Array, kernel: Array, mode: str, boundary: str) -> Array:
        library = signal()
        if plane.ndim == 2:
            return library.correlate2d(plane, kernel, mode, "wrap" if boundary == "circular" else "fill")
        return library.correlate(plane, kernel, mode, method="direct")

    return correlate


def convolve_by(signal: Callable[[], Any], name: str) -> Callable[[Array, Array, str, tuple[int, ...]], Array]:
    """Return a method that takes the channels at once: ``fftconvolve`` or ``oaconvolve`` of such a module."""

    def correlate(x: Array, kernels: Array, mode: str, axes: tuple[int, ...]) -> Array:
        mirrored = kernels[(..., *(slice(None, None, -1),) * len(axes))]
        return getattr(signal(), name)(x, mirrored, mode, axes=axes)

    return correlate


def conv_by_batches(
    filter_batch: Callable[[Array, Array, str, tuple[int, ...]], Array], library: Library = SCIPY
) -> Callable[..., Array]:
    """Return a function of whole arrays for SciPy's transforms, which take the channels at once by ``axes=``.

    ``filter_batch(x, kernels, mode, axes)`` broadcasts over the leading axes and cross-correlates over ``axes``,
    so that each channel is transformed once. Examples and outputs are cut into chunks of bounded memory.
    """

    def conv(spec: ConvSpec, x: Array, w: Array) -> Array:
        np, mode = library.xp(), scipy_mode(spec)
        axes = tuple(range(-spec.ndim, 0))
        channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        kernels = np.flip(w, axis=axes) if spec.flip else w
        if mode is None:
            x = _padded(np, spec, x)
        if spec.batch == spec.in_channels == spec.out_channels == 1:  # nothing to sum: SciPy's own result
            return filter_batch(x[0, 0], kernels[0, 0], mode or "valid", axes)[None, None]
        x = x.reshape(spec.batch, spec.groups, 1, channels, *x.shape[2:])
        kernels = kernels.reshape(1, spec.groups, outputs, channels, *spec.kernel_size)
        y = np.empty((spec.batch, spec.groups, outputs, *spec.output_size), x.dtype)
        wanted: tuple[Any, ...] = (...,)
        if mode == "same":  # which would crop the broadcast axes too: take its part of "full"
            mode = "full"
            wanted = (..., *(slice(k // 2, k // 2 + h) for k, h in zip(spec.kernel_size, spec.input_size, strict=True)))
        examples, groups, at_once = chunk(spec, library)
        for n in range(0, spec.batch, examples):
            for g in range(0, spec.groups, groups):
                for o in range(0, outputs, at_once):
                    part = kernels[:, g : g + groups, o : o + at_once]
                    products = filter_batch(x[n : n + examples, g : g + groups], part, mode or "valid", axes)[wanted]
                    y[n : n + examples, g : g + groups, o : o + at_once] = (
                        products[:, :, :, 0] if channels == 1 else products.sum(axis=3)
                    )
        return y.reshape(spec.output_shape)

    return conv


def chunk(spec: ConvSpec, library: Library = SCIPY) -> tuple[int, int, int]:
    """Return how many examples, how many groups, and how many outputs of each, one call takes."""
    channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    image = max(1, prod(transform_sizes(spec, library)) * spec.itemsize * channels)
    at_once = max(1, min(outputs, library.chunk_bytes // image))
    groups = max(1, min(spec.groups, library.chunk_bytes // (image * outputs))) if at_once == outputs else 1
    if at_once != outputs or groups != spec.groups:
        return 1, groups, at_once
    return max(1, min(spec.batch, library.examples_bytes // (image * outputs * groups))), groups, at_once


@lru_cache(maxsize=256)  # asked in every call
def scipy_mode(spec: ConvSpec) -> str | None:
    """Return the mode that equals the spec's padding, or None if the input must be padded first."""
    if all(pair == (0, 0) for pair in spec.padding):
        return "valid"
    if all(pair == (k - 1, k - 1) for pair, k in zip(spec.padding, spec.kernel_size, strict=True)):
        return "full"
    centred = all(k % 2 and pair == (k // 2, k // 2) for pair, k in zip(spec.padding, spec.kernel_size, strict=True))
    fits = all(k <= h for k, h in zip(spec.kernel_size, spec.input_size, strict=True))
    return "same" if centred and fits else None


def _padded(np: Any, spec: ConvSpec, x: Array) -> Array:
    """Pad the last axes with zeros, or crop them where the padding is negative."""
    inside = tuple(slice(max(0, -a), h - max(0, -b)) for (a, b), h in zip(spec.padding, spec.input_size, strict=True))
    lead = x.ndim - spec.ndim
    if any(part.start >= part.stop for part in inside):  # the crop takes everything: only zeros are left
        sizes = [h + a + b for h, (a, b) in zip(spec.input_size, spec.padding, strict=True)]
        return np.zeros((*x.shape[:lead], *sizes), x.dtype)
    margins = [(0, 0)] * lead + [(max(0, a), max(0, b)) for a, b in spec.padding]
    return np.pad(x[(..., *inside)], margins)


def padded_elements(spec: ConvSpec) -> int:
    """Elements of the padded input; 0 if a mode does the padding."""
    if scipy_mode(spec):
        return 0
    sizes = (h + max(0, a) + max(0, b) for h, (a, b) in zip(spec.input_size, spec.padding, strict=True))
    return prod(sizes) * spec.batch * spec.in_channels


def converted_elements(spec: ConvSpec) -> int:
    """Elements of the result's dtype that narrow integers and complex kernels are copied to."""
    kernels = prod(spec.weight_shape)
    if spec.dtype == spec.result_dtype:
        return kernels if "complex" in spec.dtype else 0
    sizes = (h + max(0, a) + max(0, b) for h, (a, b) in zip(spec.input_size, spec.padding, strict=True))
    return kernels + spec.in_channels // spec.groups * prod(sizes)


def transform_sizes(spec: ConvSpec, library: Library = SCIPY) -> tuple[int, ...]:
    """Return the sizes that ``fftconvolve`` transforms: those of the full convolution, rounded up."""
    whole = scipy_mode(spec) is not None
    return tuple(
        library.fast_size(h + k - 1 + (0 if whole else max(0, a) + max(0, b)), "complex" not in spec.dtype)
        for h, k, (a, b) in zip(spec.input_size, spec.kernel_size, spec.padding, strict=True)
    )


def fft_bound(spec: ConvSpec, library: Library = SCIPY) -> ErrorBound:
    """Bound of one transform of the whole plane."""
    return bounds.fft(spec, prod(transform_sizes(spec, library)))


def batch_flops(
    spec: ConvSpec,
    input_points: float,
    kernel_points: float,
    output_points: float,
    bins: float,
    library: Library = SCIPY,
) -> int:
    """Work of one call a chunk: 5/2·T·log₂T a real transform of T points, 6 + 2 FLOPs a product and sum.

    Inputs are transformed once a chunk of outputs, kernels once a chunk of examples.
    """
    channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    examples, _, at_once = chunk(spec, library)
    inputs = spec.batch * spec.in_channels * -(-outputs // at_once)
    kernels = spec.groups * outputs * channels
    transforms = inputs * input_points + kernels * -(-spec.batch // examples) * kernel_points
    return round(transforms + spec.batch * kernels * (output_points + 8 * bins))


def fft_flops(spec: ConvSpec, library: Library = SCIPY) -> int:
    """See :func:`batch_flops`: each transform is of the whole plane; of complex numbers it is twice the work."""
    points, parts = prod(transform_sizes(spec, library)), 2 if "complex" in spec.dtype else 1
    transform = 2.5 * parts * points * log2(points + 1)
    return batch_flops(spec, transform, transform, transform, parts * points / 2, library)


def fft_workspace(spec: ConvSpec, library: Library = SCIPY) -> int:
    """Spectra of inputs and kernels, their products, the inverse and the copies that the library's wrapper makes."""
    return batch_workspace(spec, prod(size + 2 for size in transform_sizes(spec, library)), library)


def batch_workspace(spec: ConvSpec, points: int, library: Library = SCIPY) -> int:
    """Bytes of a call over one chunk whose transforms have ``points`` points a plane."""
    examples, groups, outputs = chunk(spec, library)
    channels = spec.in_channels // spec.groups
    planes = groups * channels * (2 + 4 * outputs) + groups * outputs
    return (examples * planes * points + padded_elements(spec)) * spec.itemsize


def _fft_workers(threads: int) -> AbstractContextManager[Any]:
    """Let ``scipy.fft`` use so many threads."""
    from scipy.fft import set_workers

    context: AbstractContextManager[Any] = set_workers(threads)
    return context


#: A :class:`FunctionBackend` with what SciPy's two transform methods have in common filled in.
transform_rival = partial(
    FunctionBackend,
    kind="rival",
    pool=_fft_workers,
    bound=fft_bound,
    requires=REQUIRES,
    limits=replace(LIMITS, dtypes=(*FLOATS, "complex64", "complex128")),
)
