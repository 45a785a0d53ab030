"""``scipy-ndimage-sep``: ``scipy.ndimage.correlate1d`` along each axis, as ``ndimage``'s own Gaussian filter does it.

For kernels that are one outer product; others are refused with their rank.
"""

from __future__ import annotations

from dataclasses import replace

from convbench.arrays import Array
from convbench.backend import FunctionBackend
from convbench.backends._planes import Frame, conv_by_planes, planes_limits, planes_workspace, prepare_planes
from convbench.backends._rank_one import passes_bound, passes_work, prepared_bytes, rank_one_factors, why_not_passes
from convbench.backends._scipy_ndimage import MODES, check_taps, origin, pad
from convbench.ops import front_doors
from convbench.spec import ConvSpec


def _factors(spec: ConvSpec, kernel: Array) -> tuple[Array, ...]:
    """Return the factors in double, as SciPy has them; refuse what SciPy would change."""
    factors = rank_one_factors(kernel, spec.dtype)
    for factor in factors:
        check_taps(factor)
    return tuple(factors)


def _filter(plane: Array, factors: tuple[Array, ...], frame: Frame, out: Array) -> None:
    """Each pass sums in double and rounds into ``out``; from the second on it reads there too, line by line."""
    from scipy import ndimage

    mode = MODES[frame.boundary]
    for axis, (taps, anchor) in enumerate(zip(factors, frame.anchor, strict=True)):
        ndimage.correlate1d(plane, taps, axis, out, mode, origin=origin(anchor, taps.size))
        plane = out


BACKEND = FunctionBackend(
    name="scipy-ndimage-sep",
    summary="ndimage.correlate1d along each axis, sums in double",
    kind="rival",
    function=conv_by_planes(_filter, pad),
    prepare=prepare_planes(_factors),
    prepared=lambda spec: prepared_bytes(spec, 8),
    workspace=planes_workspace,
    work=passes_work,
    accumulates=lambda spec: "float64",
    bound=passes_bound,
    requires={"scipy": "scipy"},
    limits=replace(planes_limits(tuple(MODES), (2, 3)), also=why_not_passes),
)
__getattr__ = front_doors("scipy-ndimage-sep")
