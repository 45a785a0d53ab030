"""``cupyx-ndimage``: ``cupyx.scipy.ndimage.correlate``, and ``correlate1d`` where there is one axis.

Unlike SciPy's, its sums are in the dtype of the input, and it changes no weights.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from convbench.arrays import Array
from convbench.backends._cuda import CudaFunctionBackend
from convbench.backends._cupyx import cupy_module, ndimage
from convbench.backends._planes import conv_by_planes, planes_limits, planes_workspace, prepare_planes
from convbench.backends._scipy_ndimage import MODES, filter_by, pad
from convbench.bounds import ErrorBound, direct
from convbench.ops import front_doors
from convbench.spec import ConvSpec


def _pack(spec: ConvSpec, kernel: Array) -> tuple[Array]:
    """Return the kernel conjugated, as SciPy's convention is."""
    return (kernel.conj() if "complex" in spec.dtype else kernel,)


def _pad(spec: ConvSpec, plane: Array, margins: tuple[tuple[int, int], ...]) -> Array:
    return pad(spec, plane, margins, cupy_module())


def _bound(spec: ConvSpec) -> ErrorBound:
    return replace(direct(spec), flushes_denormals=True)


BACKEND = CudaFunctionBackend(
    name="cupyx-ndimage",
    summary="cupyx.scipy.ndimage.correlate1d in 1-D, correlate else",
    kind="rival",
    function=conv_by_planes(filter_by(ndimage), _pad, xp=cupy_module),
    prepare=prepare_planes(_pack, cupy_module),
    prepared=lambda spec: prod(spec.weight_shape) * spec.itemsize,
    workspace=planes_workspace,
    bound=_bound,
    limits=planes_limits(tuple(MODES), (1, 2, 3), ("complex64", "complex128")),
)
__getattr__ = front_doors("cupyx-ndimage")
