"""``scipy-ndimage``: ``scipy.ndimage.correlate``, and ``correlate1d`` where there is one axis."""

from __future__ import annotations

from math import prod
from typing import Any

from convbench.arrays import Array
from convbench.backend import FunctionBackend
from convbench.backends._planes import Frame, conv_by_planes, planes_limits, planes_workspace, prepare_planes
from convbench.errors import UnsupportedWeights
from convbench.ops import front_doors
from convbench.refusals import refuse
from convbench.spec import ConvSpec

_MODES = {"zero": "constant", "circular": "wrap", "reflect": "mirror", "replicate": "nearest"}
_NUMPY_MODES = {"zero": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}
_DBL_EPSILON = 2.0**-52


def _pack(spec: ConvSpec, kernel: Array) -> tuple[Array]:
    """Return the kernel in double, as SciPy has it, conjugated, as SciPy wants it; refuse what SciPy quietly changes.

    Its C code (``ni_filters.c``) leaves out taps of at most DBL_EPSILON, whatever the kernel's scale. In one axis it
    takes a kernel for symmetric or antisymmetric, and reads one half of it, if it is so within DBL_EPSILON. A NaN fails
    all these comparisons.
    """
    import numpy as np

    if np.iscomplexobj(kernel):  # a real kernel each
        for part in (kernel.real, kernel.imag):
            _check(part.astype(np.float64))
        return (kernel.astype(np.complex128).conj(),)
    taps = kernel.astype(np.float64)
    _check(taps)
    return (taps,)


def _check(taps: Array) -> None:
    import numpy as np

    if np.isnan(taps).any():
        raise UnsupportedWeights(refuse("weights", "NaN among them, which ndimage takes for zero"))
    if taps.ndim > 1 and ((taps != 0) & (np.abs(taps) <= _DBL_EPSILON)).any():
        raise UnsupportedWeights(refuse("weights", "taps of at most 2⁻⁵² in size, which ndimage leaves out"))
    if taps.ndim == 1 and taps.size % 2:
        before, after = taps[: taps.size // 2], taps[: taps.size // 2 : -1]
        for difference in (before - after, before + after):
            if (np.abs(difference) <= _DBL_EPSILON).all():
                if difference.any():
                    raise UnsupportedWeights(refuse("weights", "symmetric within 2⁻⁵² only, which ndimage evens out"))
                break


def _filter(plane: Array, kernel: tuple[Array, ...], frame: Frame, out: Array) -> None:
    """Sums are in double, rounded once into ``out``; ``origin`` counts from the middle tap."""
    from scipy import ndimage

    (taps,), mode = kernel, _MODES[frame.boundary]
    origin = [a - k // 2 for a, k in zip(frame.anchor, taps.shape, strict=True)]
    if plane.ndim == 1:
        ndimage.correlate1d(plane, taps, output=out, mode=mode, origin=origin[0])
    else:
        ndimage.correlate(plane, taps, output=out, mode=mode, origin=origin)


def _pad(spec: ConvSpec, plane: Array, margins: tuple[tuple[int, int], ...]) -> Array:
    import numpy as np

    pad: Any = np.pad  # its stubs want the mode as a literal
    return pad(plane, margins, _NUMPY_MODES[spec.boundary])


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
    function=conv_by_planes(_filter, _pad),
    prepare=prepare_planes(_pack),
    prepared=_prepared,
    workspace=_workspace,
    accumulates=lambda spec: "complex128" if "complex" in spec.dtype else "float64",
    requires={"scipy": "scipy"},
    limits=planes_limits(
        tuple(_MODES), (1, 2, 3), ("complex64", "complex128", "int8", "uint8", "int16", "uint16", "int32", "uint32")
    ),
)
__getattr__ = front_doors("scipy-ndimage")
