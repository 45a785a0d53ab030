"""What the image libraries share: no channels, no stride, and as many outputs as inputs, so planes one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, Protocol

from convbench.arrays import Array
from convbench.refusals import FLOATS, Limits, refuse
from convbench.spec import DTYPES, ConvSpec

__all__ = [
    "FilterPlane",
    "Frame",
    "Planes",
    "conv_by_planes",
    "planes_limits",
    "planes_workspace",
    "prepare_planes",
    "why_not_planes",
]


MOST_PAIRS = 2**16  # of channels in and out, all examples together


class FilterPlane(Protocol):
    """Called as ``filter_plane(plane, kernel, frame, out)``: writes Σ_k plane[p + k − anchor]·w[k] into ``out``.

    The kernel is what the library wants: one or several arrays.
    """

    def __call__(self, plane: Array, kernel: tuple[Array, ...], frame: Frame, out: Array, /) -> None: ...


@dataclass(frozen=True)
class Frame:
    """How such a filter computes a spec.

    Attributes
    ----------
    boundary : str
        What the filter is told to see beyond the plane.
    margins : tuple of pairs, or None
        What is added to the plane before, where the padding reaches further than the filter's kernel does.
    anchor : tuple of int
        The kernel offset that lies over the output's own position.
    size : tuple of int
        Of the plane that is filtered, and of its result.
    wanted : tuple of slice
        The spec's outputs within that result.
    """

    boundary: str
    margins: tuple[tuple[int, int], ...] | None
    anchor: tuple[int, ...]
    size: tuple[int, ...]
    wanted: tuple[slice, ...]

    @classmethod
    def of(cls, spec: ConvSpec) -> Frame:
        """Use the filter's own border if the kernel reaches as far as the padding, else pad first."""
        padding = tuple((max(0, a), max(0, b)) for a, b in spec.padding)
        starts = [max(0, -a) for a, _ in spec.padding]
        reaches = all(a + b < k for (a, b), k in zip(padding, spec.kernel_size, strict=True))
        margins = tuple((0, 0) if reaches else pair for pair in padding)
        return cls(
            boundary=spec.boundary if reaches else "zero",
            margins=None if reaches else margins,
            anchor=tuple(a if reaches else 0 for a, _ in padding),
            size=tuple(h + sum(pair) for h, pair in zip(spec.input_size, margins, strict=True)),
            wanted=tuple(slice(first, first + p) for first, p in zip(starts, spec.output_size, strict=True)),
        )


@dataclass(frozen=True)
class Planes:
    """Prepared weights: all kernels in the library's own form, in arrays (O, C/g, …).

    As arrays of their own, thousands of small kernels would take several times their bytes.
    """

    frame: Frame
    kernels: tuple[Array, ...]

    def of(self, output: int) -> Iterator[tuple[Array, ...]]:
        """Return the kernels of an output channel."""
        return zip(*(part[output] for part in self.kernels), strict=True)


def _numpy() -> Any:
    import numpy

    return numpy


def prepare_planes(
    pack: Callable[[ConvSpec, Array], tuple[Array, ...]], xp: Callable[[], Any] = _numpy
) -> Callable[[ConvSpec, Array], Planes]:
    """Return a backend's ``prepare``: ``pack(spec, kernel)`` of each kernel, flipped if the spec says so."""

    def prepare(spec: ConvSpec, w: Array) -> Planes:
        np = xp()
        kernels = np.flip(w, axis=tuple(range(-spec.ndim, 0))) if spec.flip else w
        parts: tuple[Any, ...] = ()
        for pair in product(*map(range, w.shape[:2])):
            packed = pack(spec, kernels[pair])
            parts = parts or tuple(np.empty((*w.shape[:2], *array.shape), array.dtype) for array in packed)
            for part, array in zip(parts, packed, strict=True):
                part[pair] = array
        return Planes(Frame.of(spec), parts)

    return prepare


def conv_by_planes(
    filter_plane: FilterPlane,
    pad: Callable[[ConvSpec, Array, tuple[tuple[int, int], ...]], Array],
    plane_dtype: Callable[[ConvSpec], str] = lambda spec: spec.result_dtype,
    xp: Callable[[], Any] = _numpy,
) -> Callable[[ConvSpec, Array, Planes], Array]:
    """Return a function of whole arrays: a user of these libraries loops over planes and adds them up.

    Parameters
    ----------
    filter_plane : FilterPlane
    pad : callable
        ``pad(spec, plane, margins)`` with the library's own means.
    plane_dtype : callable
        ``plane_dtype(spec)``: what the library filters a plane into; where that is another type than the result's, it
        is rounded into it.
    xp : callable
        Returns the module of the arrays.
    """

    def conv(spec: ConvSpec, x: Array, planes: Planes) -> Array:
        np, frame = xp(), planes.frame
        channels, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        whole = frame.size == spec.output_size and plane_dtype(spec) == spec.result_dtype
        y = np.empty(spec.output_shape, spec.result_dtype)
        if whole and channels == 1 and frame.margins is None:  # nothing to pad, crop or sum
            for n in range(spec.batch):
                for o in range(spec.out_channels):
                    filter_plane(x[n, o // outputs], tuple([part[o, 0] for part in planes.kernels]), frame, y[n, o])
            return y
        scratch = None if whole and channels == 1 else np.empty(frame.size, plane_dtype(spec))
        for n in range(spec.batch):
            for group in range(spec.groups):
                part = x[n, group * channels : (group + 1) * channels]
                images = [plane if frame.margins is None else pad(spec, plane, frame.margins) for plane in part]
                for o in range(group * outputs, (group + 1) * outputs):
                    for c, (image, kernel) in enumerate(zip(images, planes.of(o), strict=True)):
                        if whole and c == 0:
                            filter_plane(image, kernel, frame, y[n, o])
                            continue
                        assert scratch is not None
                        filter_plane(image, kernel, frame, scratch)
                        wanted = scratch[frame.wanted]
                        if wanted.dtype != y.dtype:
                            np.rint(wanted, wanted)
                        if c == 0:
                            y[n, o] = wanted
                        else:
                            np.add(y[n, o], wanted, out=y[n, o], casting="unsafe")
        return y

    return conv


def planes_limits(boundaries: tuple[str, ...], axes: tuple[int, ...], more_dtypes: tuple[str, ...] = ()) -> Limits:
    """Return what such a library takes."""
    dtypes = (*FLOATS, *more_dtypes)
    return Limits(dtypes=dtypes, stride=False, dilation=False, boundaries=boundaries, axes=axes, also=why_not_planes)


def why_not_planes(spec: ConvSpec, in_double: bool = True) -> str | None:
    """Refuse what would spend its time in calls, as such libraries are not made for layers of many channels.

    And integers whose sums might not be exact in double, for those libraries that add them up ``in_double``.
    """
    if in_double and "int" in spec.dtype and "int" in spec.accumulate_dtype:
        return refuse(
            "dtype", f"{spec.dtype} given, whose sums may leave the 53 bits of double in which they are formed"
        )
    pairs = spec.batch * spec.out_channels * (spec.in_channels // spec.groups)
    if pairs <= MOST_PAIRS:
        return None
    return refuse("work", f"{pairs} calls needed, one for each pair of channels; the limit is {MOST_PAIRS}")


def planes_workspace(spec: ConvSpec) -> int:
    """Bytes of one plane's result, where it cannot go straight into y, and of one group's padded planes."""
    frame, channels = Frame.of(spec), spec.in_channels // spec.groups
    scratch = frame.size != spec.output_size or channels > 1 or "int" in spec.dtype
    padded = 0 if frame.margins is None else channels
    return (scratch * DTYPES[spec.result_dtype] + padded * spec.itemsize) * prod(frame.size)
