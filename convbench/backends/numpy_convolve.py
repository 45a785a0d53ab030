"""``numpy-convolve``: ``numpy.correlate``, which is ``numpy.convolve`` with the kernel the other way round."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from convbench.arrays import Array
from convbench.backend import FunctionBackend
from convbench.backends._planes import why_not_planes
from convbench.backends._scipy_signal import LIMITS, conv_by_planes, padded_elements
from convbench.ops import front_doors
from convbench.spec import ConvSpec


def _correlate(line: Array, kernel: Array, mode: str) -> Array:
    """One dot product an output, or for up to 11 taps a loop of NumPy's own."""
    import numpy as np

    return np.correlate(line, kernel, mode)  # type: ignore[call-overload]  # a literal for the stubs


def _workspace(spec: ConvSpec) -> int:
    """A line's result, contiguous copies of both lines, and the padded input where no mode fits."""
    lines = prod(spec.output_size) + 2 * prod(spec.input_size) + prod(spec.kernel_size)
    return (lines + padded_elements(spec)) * spec.itemsize


BACKEND = FunctionBackend(
    name="numpy-convolve",
    summary="numpy.correlate, lines one by one",
    kind="rival",
    function=conv_by_planes(_correlate),
    workspace=_workspace,
    limits=replace(LIMITS, axes=(1,), also=why_not_planes),
)
conv, convolve, correlate, plan = front_doors("numpy-convolve")
