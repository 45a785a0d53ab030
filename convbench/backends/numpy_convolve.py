"""``numpy-convolve``: ``numpy.correlate``, which is ``numpy.convolve`` with the kernel the other way round."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from convbench.arrays import Array
from convbench.backend import FunctionBackend
from convbench.backends._planes import why_not_planes
from convbench.backends._scipy_signal import (
    DIRECT_DTYPES,
    LIMITS,
    conv_by_planes,
    converted_elements,
    padded_elements,
)
from convbench.ops import front_doors
from convbench.spec import DTYPES, ConvSpec


def _correlate(line: Array, kernel: Array, mode: str, boundary: str) -> Array:
    """One dot product an output, or for up to 11 taps a loop of NumPy's own."""
    import numpy as np

    return np.correlate(line, kernel, mode)  # type: ignore[call-overload]  # a literal for the stubs


def _workspace(spec: ConvSpec) -> int:
    """A line's result, contiguous copies of both lines, and the padded input where no mode fits."""
    lines = prod(spec.output_size) + 2 * prod(spec.input_size) + prod(spec.kernel_size)
    return (lines + converted_elements(spec)) * DTYPES[spec.result_dtype] + padded_elements(spec) * spec.itemsize


def _why_not(spec: ConvSpec) -> str | None:
    return why_not_planes(spec, in_double=False)


BACKEND = FunctionBackend(
    name="numpy-convolve",
    summary="numpy.correlate, lines one by one",
    kind="rival",
    function=conv_by_planes(_correlate),
    workspace=_workspace,
    accumulates=lambda spec: spec.result_dtype,
    limits=replace(LIMITS, dtypes=DIRECT_DTYPES, axes=(1,), also=_why_not),
)
__getattr__ = front_doors("numpy-convolve")
