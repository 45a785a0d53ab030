"""``reference``: the definition as plain loops, refused above 10⁶ MACs."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from convbench import reference
from convbench.arrays import Array
from convbench.backend import FunctionBackend
from convbench.ops import front_doors
from convbench.refusals import WHOLE_FORWARD_FAMILY, work
from convbench.spec import ConvSpec


def _conv(spec: ConvSpec, x: Array, w: Array) -> Array:
    return reference.conv(spec.replace(bias="none"), x, w)


def _workspace(spec: ConvSpec) -> int:
    """Python numbers: a pointer and an object of up to 40 bytes for each element, results and operands."""
    elements = sum(map(prod, (spec.input_shape, spec.weight_shape, spec.output_shape)))
    return 48 * elements + 65536


BACKEND = FunctionBackend(
    name="reference",
    summary="the definition in plain Python loops",
    function=_conv,
    workspace=_workspace,
    limits=replace(WHOLE_FORWARD_FAMILY, also=lambda spec: work(spec.macs, reference.MAX_MACS)),
)
conv, convolve, correlate, plan = front_doors("reference")
