"""What the three rivals from ``scipy.signal`` share: planes one by one, SciPy's modes where they fit the padding."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from math import log2, prod
from typing import Any

from convbench import bounds
from convbench.arrays import Array
from convbench.bounds import ErrorBound
from convbench.refusals import Limits
from convbench.spec import ConvSpec

#: ``filter_plane(plane, kernel, mode)`` cross-correlates two N-d arrays of equal rank.
FilterPlane = Callable[[Array, Array, str], Array]

REQUIRES = {"scipy": "scipy"}
LIMITS = Limits(stride=False, dilation=False, axes=(1, 2, 3))


def conv_by_planes(filter_plane: FilterPlane) -> Callable[[ConvSpec, Array, Array], Array]:
    """Return a function of whole arrays: SciPy has no channels, so a user loops over them."""

    def conv(spec: ConvSpec, x: Array, w: Array) -> Array:
        import numpy as np

        mode = scipy_mode(spec)
        y = np.empty(spec.output_shape, x.dtype)
        channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        kernels = np.flip(w, axis=tuple(range(2, 2 + spec.ndim))) if spec.flip else w
        for n in range(spec.batch):
            for group in range(spec.groups):
                planes = [x[n, group * channels + c] for c in range(channels)]
                if mode is None:
                    planes = [_padded(spec, plane) for plane in planes]
                for o in range(group * outputs, (group + 1) * outputs):
                    y[n, o] = filter_plane(planes[0], kernels[o, 0], mode or "valid")
                    for c in range(1, channels):
                        y[n, o] += filter_plane(planes[c], kernels[o, c], mode or "valid")
        return y

    return conv


def scipy_mode(spec: ConvSpec) -> str | None:
    """Return the mode that equals the spec's padding, or None if the input must be padded first."""
    if all(pair == (0, 0) for pair in spec.padding):
        return "valid"
    if all(pair == (k - 1, k - 1) for pair, k in zip(spec.padding, spec.kernel_size, strict=True)):
        return "full"
    centred = all(k % 2 and pair == (k // 2, k // 2) for pair, k in zip(spec.padding, spec.kernel_size, strict=True))
    fits = all(k <= h for k, h in zip(spec.kernel_size, spec.input_size, strict=True))
    return "same" if centred and fits else None


def _padded(spec: ConvSpec, plane: Array) -> Array:
    """Pad with zeros, or crop where the padding is negative."""
    import numpy as np

    inside = tuple(slice(max(0, -a), h - max(0, -b)) for (a, b), h in zip(spec.padding, spec.input_size, strict=True))
    if any(part.start >= part.stop for part in inside):  # the crop takes everything: only zeros are left
        sizes = [h + a + b for h, (a, b) in zip(spec.input_size, spec.padding, strict=True)]
        return np.zeros(sizes, plane.dtype)
    return np.pad(plane[inside], [(max(0, a), max(0, b)) for a, b in spec.padding])


def padded_elements(spec: ConvSpec) -> int:
    """Elements of the padded planes of a group; 0 if a mode does the padding."""
    if scipy_mode(spec):
        return 0
    sizes = (h + max(0, a) + max(0, b) for h, (a, b) in zip(spec.input_size, spec.padding, strict=True))
    return prod(sizes) * (spec.in_channels // spec.groups)


def transform_sizes(spec: ConvSpec) -> tuple[int, ...]:
    """Return the sizes that ``fftconvolve`` transforms: those of the full convolution, rounded up."""
    from scipy.fft import next_fast_len

    whole = scipy_mode(spec) is not None
    return tuple(
        next_fast_len(h + k - 1 + (0 if whole else max(0, a) + max(0, b)), real=True)
        for h, k, (a, b) in zip(spec.input_size, spec.kernel_size, spec.padding, strict=True)
    )


def fft_bound(spec: ConvSpec) -> ErrorBound:
    """Bound of one transform of the whole plane."""
    return bounds.fft(spec, prod(transform_sizes(spec)))


def fft_flops(spec: ConvSpec) -> int:
    """Three transforms a pair of channels (5/2·T·log₂T each) and 6 FLOPs a frequency."""
    points = prod(transform_sizes(spec))
    return round(
        spec.batch * spec.out_channels * (spec.in_channels // spec.groups) * points * (7.5 * log2(points + 1) + 3)
    )


def fft_workspace(spec: ConvSpec) -> int:
    """Spectra of both, their product, the inverse and the copies that pocketfft's wrapper makes."""
    transforms = 6 * prod(size + 2 for size in transform_sizes(spec))
    return (transforms + padded_elements(spec) + prod(spec.output_size)) * spec.itemsize


def fft_workers(threads: int) -> AbstractContextManager[Any]:
    """Let ``scipy.fft`` use so many threads."""
    from scipy.fft import set_workers

    context: AbstractContextManager[Any] = set_workers(threads)
    return context
