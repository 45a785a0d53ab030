"""``scipy-ndimage``: ``scipy.ndimage.correlate``, and ``correlate1d`` where there is one axis."""

from __future__ import annotations

from math import prod
from typing import Any

from convbench.arrays import Array
from convbench.backend import FunctionBackend
from convbench.backends._planes import Frame, conv_by_planes, planes_limits, planes_workspace, prepare_planes
from convbench.backends._scipy_ndimage import MODES, check_taps, filter_by, pad
from convbench.ops import front_doors
from convbench.spec import ConvSpec


def _pack(spec: ConvSpec, kernel: Array) -> tuple[Array]:
    """Return the kernel in double, as SciPy has it, conjugated, as SciPy wants it; refuse what SciPy would change."""
    import numpy as np

    if np.iscomplexobj(kernel):  # a real kernel each
        for part in (kernel.real, kernel.imag):
            check_taps(part.astype(np.float64))
        return (kernel.astype(np.complex128).conj(),)
    taps = kernel.astype(np.float64)
    check_taps(taps)
    return (taps,)


def _ndimage() -> Any:
    from scipy import ndimage

    return ndimage


def _prepared(spec: ConvSpec) -> int:
    return prod(spec.weight_shape) * (16 if "complex" in spec.dtype else 8)


def _workspace(spec: ConvSpec) -> int:
    """Of complex numbers SciPy filters the parts by the parts, each into a plane of its own, and casts."""
    complex_planes = 4 * prod(Frame.of(spec).size) * spec.itemsize if "complex" in spec.dtype else 0
    return planes_workspace(spec) + complex_planes


BACKEND = FunctionBackend(
    name="scipy-ndimage",
    summary="ndimage.correlate1d in 1-D, ndimage.correlate else, sums in double",
    kind="rival",
    function=conv_by_planes(filter_by(_ndimage), pad),
    prepare=prepare_planes(_pack),
    prepared=_prepared,
    workspace=_workspace,
    accumulates=lambda spec: "complex128" if "complex" in spec.dtype else "float64",
    requires={"scipy": "scipy"},
    limits=planes_limits(
        tuple(MODES), (1, 2, 3), ("complex64", "complex128", "int8", "uint8", "int16", "uint16", "int32", "uint32")
    ),
)
__getattr__ = front_doors("scipy-ndimage")
