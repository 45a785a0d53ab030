"""``opencv``: ``cv2.filter2D``, which filters directly or, for large kernels, by DFT in blocks.

Images of 8 or 16 bits are filtered into float32, or into float64 where sums may be larger than 2²⁴, and then are exact.
By DFT they are filtered into float64, as OpenCV transforms bytes in float32 otherwise; what it leaves is rounded away.
"""

from __future__ import annotations

from dataclasses import replace
from math import log2, prod

from convbench import bounds
from convbench.arrays import Array
from convbench.backends._opencv import BOUNDARIES, LIMITS, anchor, as_image, dft_taps, pad, rival
from convbench.backends._planes import Frame, conv_by_planes, planes_workspace, prepare_planes
from convbench.bounds import ErrorBound, gamma
from convbench.ops import front_doors
from convbench.spec import DTYPES, ConvSpec

#: Integer images that ``filter2D`` takes.
_INTEGERS = ("uint8", "uint16", "int16")


def _plane_dtype(spec: ConvSpec) -> str:
    """Return what a plane is filtered into."""
    return "float64" if "int" in spec.dtype and _transforms(spec) else spec.accumulate_dtype


def _pack(spec: ConvSpec, kernel: Array) -> tuple[Array]:
    import numpy as np

    return (np.ascontiguousarray(as_image(kernel), _plane_dtype(spec)),)


def _filter(plane: Array, kernel: tuple[Array, ...], frame: Frame, out: Array) -> None:
    import cv2

    (taps,), border = kernel, getattr(cv2, BOUNDARIES[frame.boundary])
    depth = cv2.CV_32F if out.dtype.itemsize == 4 else cv2.CV_64F
    cv2.filter2D(as_image(plane), depth, taps, dst=as_image(out), anchor=anchor(frame), borderType=border)


def _transforms(spec: ConvSpec) -> bool:
    return prod(spec.kernel_size) >= dft_taps(spec)


def _blocks(spec: ConvSpec) -> list[tuple[int, int, int]]:
    """Return (kernel, outputs a block, blocks) along each axis: ``crossCorr`` in OpenCV's templmatch.cpp.

    A block has 4.5 times as many outputs as the kernel has taps, at least so many that both make 256, rounded up to
    what its DFT does quickly.
    """
    import cv2

    found = []
    for k, size in zip(spec.kernel_size, Frame.of(spec).size, strict=True):
        points = cv2.getOptimalDFTSize(min(max(round(4.5 * k), 257 - k), size) + k - 1)
        block = min(points - k + 1, size)
        found.append((k, block, -(-size // block)))
    return found


def _points(spec: ConvSpec) -> int:
    """Points of a block's transform."""
    import cv2

    return prod(cv2.getOptimalDFTSize(block + k - 1) for k, block, _ in _blocks(spec))


def _bound(spec: ConvSpec) -> ErrorBound:
    """Direct summation, or transforms of blocks in double whatever the image's type, rounded once a plane.

    A block's error depends on its own samples. Without IPP the DFT is OpenCV's, which multiplies each of its n/2
    twiddle factors from the one before (dxt.cpp): they err by up to 2 eps·n/2 (Higham 2002, lemma 3.5), which adds to
    theorem 24.2's η.
    """
    if not _transforms(spec) or "int" in spec.dtype:
        return bounds.direct(spec)
    import cv2

    double = bounds.fft(spec.replace(dtype="float64"), _points(spec))
    if not cv2.ipp.useIPP():
        longest = 2 * max(block + k for k, block, _ in _blocks(spec))
        double = replace(double, normwise=double.normwise + 3 * longest * log2(_points(spec)))
    channels = spec.in_channels // spec.groups
    return replace(
        double,
        source=f"{double.source}, in double",
        componentwise=gamma(channels + 2, spec.dtype),
        normwise=double.normwise * (1.0 if spec.dtype == "float64" else 2.0**-29),
        energy=0.0,
        reach=tuple(block + k for k, block, _ in _blocks(spec)),
    )


def _work(spec: ConvSpec) -> int:
    """Kernel, block and result are transformed in each call: 5/2·T·log₂T FLOPs a real transform, 3 a product."""
    if not _transforms(spec):
        return spec.flops
    points, blocks = _points(spec), prod(count for *_, count in _blocks(spec))
    calls = spec.batch * spec.out_channels * (spec.in_channels // spec.groups)
    return round(calls * ((1 + 2 * blocks) * 2.5 * points * log2(points) + 3 * blocks * points))


def _workspace(spec: ConvSpec) -> int:
    """And, where it transforms, the kernel's and one block's spectrum in double, which OpenCV allocates itself."""
    return planes_workspace(spec) + (2 * 8 * _points(spec) if _transforms(spec) else 0)


BACKEND = rival(
    name="opencv",
    summary="cv2.filter2D, planes one by one; DFT in double from 130 taps (float64: 50)",
    function=conv_by_planes(_filter, pad, _plane_dtype),
    prepare=prepare_planes(_pack),
    prepared=lambda spec: prod(spec.weight_shape) * DTYPES[_plane_dtype(spec)],
    accumulates=lambda spec: "float64" if _transforms(spec) else spec.accumulate_dtype,
    workspace=_workspace,
    work=_work,
    bound=_bound,
    limits=replace(LIMITS, dtypes=(*LIMITS.dtypes, *_INTEGERS)),
)
__getattr__ = front_doors("opencv")
