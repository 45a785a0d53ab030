"""``scipy-direct``: SciPy's direct methods, in each number of axes the fastest it has."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from convbench.arrays import Array
from convbench.backend import FunctionBackend
from convbench.backends._planes import why_not_planes
from convbench.backends._scipy_signal import LIMITS, REQUIRES, conv_by_planes, padded_elements
from convbench.ops import front_doors
from convbench.spec import ConvSpec


def _correlate(plane: Array, kernel: Array, mode: str) -> Array:
    """``correlate2d`` is eight times as fast as ``correlate(method="direct")`` on images, but 2-D only."""
    from scipy import signal

    if plane.ndim == 2:
        return signal.correlate2d(plane, kernel, mode)
    return signal.correlate(plane, kernel, mode, method="direct")


def _workspace(spec: ConvSpec) -> int:
    """A plane's result, and in 1-D and 3-D the full correlation that SciPy crops."""
    full = prod(h + k - 1 + max(0, a) + max(0, b) for h, k, (a, b) in _axes(spec))
    return (prod(spec.output_size) + 2 * full + padded_elements(spec)) * spec.itemsize


def _axes(spec: ConvSpec) -> list[tuple[int, int, tuple[int, int]]]:
    return list(zip(spec.input_size, spec.kernel_size, spec.padding, strict=True))


BACKEND = FunctionBackend(
    name="scipy-direct",
    summary="signal.correlate2d in 2-D, signal.correlate(method='direct') else",
    kind="rival",
    function=conv_by_planes(_correlate),
    workspace=_workspace,
    requires=REQUIRES,
    limits=replace(LIMITS, also=why_not_planes),
)
conv, convolve, correlate, plan = front_doors("scipy-direct")
