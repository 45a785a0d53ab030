"""What the three rivals from ``scipy.signal`` share: planes one by one, SciPy's modes where they fit the padding."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
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


def conv_by_planes(filter_plane: FilterPlane) -> Callable[[ConvSpec, Array, Array], Array]:
    """Return a function of whole arrays: SciPy has no channels, so a user loops over them.

    Narrow integers would wrap around: a user converts them to int64.
    """

    def conv(spec: ConvSpec, x: Array, w: Array) -> Array:
        import numpy as np

        wide, mode = spec.result_dtype, scipy_mode(spec)
        channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        kernels = np.flip(w, axis=tuple(range(2, 2 + spec.ndim))) if spec.flip else w
        kernels = kernels.conj() if "complex" in wide else kernels.astype(wide, copy=False)
        if mode is None:
            x, mode = _padded(spec, x), "valid"
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
                            y[n, o] += part
        assert y is not None
        return y

    return conv


_CHUNK_BYTES = 64 * 2**20  # of one call over many channels
_EXAMPLES_BYTES = 2**20  # of one call over many examples: they share nothing but the kernels, so few stay in cache


def conv_by_batches(filter_batch: Callable[[Array, Array, str, tuple[int, ...]], Array]) -> Callable[..., Array]:
    """Return a function of whole arrays for SciPy's transforms, which take the channels at once by ``axes=``.

    ``filter_batch(x, kernels, mode, axes)`` broadcasts over the leading axes and cross-correlates over ``axes``,
    so that each channel is transformed once. Examples and outputs are cut into chunks of bounded memory.
    """

    def conv(spec: ConvSpec, x: Array, w: Array) -> Array:
        import numpy as np

        mode = scipy_mode(spec)
        axes = tuple(range(-spec.ndim, 0))
        channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        kernels = np.flip(w, axis=axes) if spec.flip else w
        if mode is None:
            x = _padded(spec, x)
        if spec.batch == spec.in_channels == spec.out_channels == 1:  # nothing to sum: SciPy's own result
            return filter_batch(x[0, 0], kernels[0, 0], mode or "valid", axes)[None, None]
        x = x.reshape(spec.batch, spec.groups, 1, channels, *x.shape[2:])
        kernels = kernels.reshape(1, spec.groups, outputs, channels, *spec.kernel_size)
        y = np.empty((spec.batch, spec.groups, outputs, *spec.output_size), x.dtype)
        wanted: tuple[Any, ...] = (...,)
        if mode == "same":  # which would crop the broadcast axes too: take its part of "full"
            mode = "full"
            wanted = (..., *(slice(k // 2, k // 2 + h) for k, h in zip(spec.kernel_size, spec.input_size, strict=True)))
        examples, groups, at_once = chunk(spec)
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


def chunk(spec: ConvSpec) -> tuple[int, int, int]:
    """Return how many examples, how many groups, and how many outputs of each, one call takes."""
    channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    image = max(1, prod(transform_sizes(spec)) * spec.itemsize * channels)
    at_once = max(1, min(outputs, _CHUNK_BYTES // image))
    groups = max(1, min(spec.groups, _CHUNK_BYTES // (image * outputs))) if at_once == outputs else 1
    whole = at_once == outputs and groups == spec.groups
    return (max(1, min(spec.batch, _EXAMPLES_BYTES // (image * outputs * groups))) if whole else 1), groups, at_once


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


def _padded(spec: ConvSpec, x: Array) -> Array:
    """Pad the last axes with zeros, or crop them where the padding is negative."""
    import numpy as np

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


def transform_sizes(spec: ConvSpec) -> tuple[int, ...]:
    """Return the sizes that ``fftconvolve`` transforms: those of the full convolution, rounded up."""
    from scipy.fft import next_fast_len

    whole = scipy_mode(spec) is not None
    return tuple(
        next_fast_len(h + k - 1 + (0 if whole else max(0, a) + max(0, b)), real="complex" not in spec.dtype)
        for h, k, (a, b) in zip(spec.input_size, spec.kernel_size, spec.padding, strict=True)
    )


def fft_bound(spec: ConvSpec) -> ErrorBound:
    """Bound of one transform of the whole plane."""
    return bounds.fft(spec, prod(transform_sizes(spec)))


def batch_flops(spec: ConvSpec, input_points: float, kernel_points: float, output_points: float, bins: float) -> int:
    """Work of one call a chunk: 5/2·T·log₂T a real transform of T points, 6 + 2 FLOPs a product and sum.

    Inputs are transformed once a chunk of outputs, kernels once a chunk of examples.
    """
    channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    examples, _, at_once = chunk(spec)
    inputs = spec.batch * spec.in_channels * -(-outputs // at_once)
    kernels = spec.groups * outputs * channels
    transforms = inputs * input_points + kernels * -(-spec.batch // examples) * kernel_points
    return round(transforms + spec.batch * kernels * (output_points + 8 * bins))


def fft_flops(spec: ConvSpec) -> int:
    """See :func:`batch_flops`: each transform is of the whole plane; of complex numbers it is twice the work."""
    points, parts = prod(transform_sizes(spec)), 2 if "complex" in spec.dtype else 1
    transform = 2.5 * parts * points * log2(points + 1)
    return batch_flops(spec, transform, transform, transform, parts * points / 2)


def fft_workspace(spec: ConvSpec) -> int:
    """Spectra of inputs and kernels, their products, the inverse and the copies that pocketfft's wrapper makes."""
    return batch_workspace(spec, prod(size + 2 for size in transform_sizes(spec)))


def batch_workspace(spec: ConvSpec, points: int) -> int:
    """Bytes of a call over one chunk whose transforms have ``points`` points a plane."""
    examples, groups, outputs = chunk(spec)
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
