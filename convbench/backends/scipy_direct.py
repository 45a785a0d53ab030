"""``scipy-direct``: SciPy's direct methods, in each number of axes the fastest it has.

In 2-D there is a circular boundary too, ``correlate2d``'s ``boundary="wrap"``. Its ``symm`` is none of convbench's.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from convbench.backend import FunctionBackend
from convbench.backends._planes import why_not_planes
from convbench.backends._scipy_signal import (
    DIRECT_DTYPES,
    LIMITS,
    REQUIRES,
    conv_by_planes,
    converted_elements,
    correlate_by,
    padded_elements,
    scipy_mode,
)
from convbench.ops import front_doors
from convbench.refusals import refuse
from convbench.spec import DTYPES, ConvSpec


def _signal() -> Any:
    from scipy import signal

    return signal


def direct_workspace(spec: ConvSpec) -> int:
    """A plane's result, and in 1-D and 3-D the full correlation that SciPy crops."""
    full = prod(h + k - 1 + max(0, a) + max(0, b) for h, k, (a, b) in _axes(spec))
    elements = prod(spec.output_size) + 2 * full + converted_elements(spec)
    return elements * DTYPES[spec.result_dtype] + padded_elements(spec) * spec.itemsize


def why_not_direct(spec: ConvSpec) -> str | None:
    """Refuse what SciPy has no boundary for, and what would spend its time in calls."""
    if spec.boundary == "circular":
        if spec.ndim != 2:
            return refuse("boundary", f"circular given along {spec.ndim} axes, SciPy has it along 2")
        if any(k > h for k, h in zip(spec.kernel_size, spec.input_size, strict=True)):
            return refuse("boundary", "circular given, SciPy wraps a kernel around once at most")
        if scipy_mode(spec) is None:
            return refuse("boundary", "circular given, SciPy has it with the padding of its modes same and full only")
    return why_not_planes(spec, in_double=False)


def _axes(spec: ConvSpec) -> list[tuple[int, int, tuple[int, int]]]:
    return list(zip(spec.input_size, spec.kernel_size, spec.padding, strict=True))


BACKEND = FunctionBackend(
    name="scipy-direct",
    summary="signal.correlate2d in 2-D, signal.correlate(method='direct') else",
    kind="rival",
    function=conv_by_planes(correlate_by(_signal)),
    workspace=direct_workspace,
    accumulates=lambda spec: spec.result_dtype,
    requires=REQUIRES,
    limits=replace(LIMITS, dtypes=DIRECT_DTYPES, boundaries=("zero", "circular"), also=why_not_direct),
)
__getattr__ = front_doors("scipy-direct")
