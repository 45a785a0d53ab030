"""``reference``: the definition and both of its gradients as plain loops, refused above 10⁶ MACs."""

from __future__ import annotations

from math import prod

from convbench import reference
from convbench.arrays import Array, numpy_namespace
from convbench.backend import FunctionBackend
from convbench.geometry import BOUNDARIES
from convbench.ops import front_doors
from convbench.refusals import Limits, work
from convbench.spec import DTYPES, LAYOUTS, OPS, ConvSpec


def _conv(spec: ConvSpec, first: Array, second: Array, bias: Array | None) -> Array:
    result = numpy_namespace().empty_laid_out(spec)
    result[...] = reference.conv(spec, first, second, bias)
    return result


def _workspace(spec: ConvSpec) -> int:
    """Python numbers: a pointer and an object of up to 40 bytes for each element, results and operands."""
    elements = sum(map(prod, (spec.input_shape, spec.weight_shape, spec.output_shape)))
    return (48 + 8) * elements + 65536


BACKEND = FunctionBackend(
    name="reference",
    summary="the definition in plain Python loops",
    function=_conv,
    takes_bias=True,
    workspace=_workspace,
    limits=Limits(
        dtypes=tuple(name for name in DTYPES if name != "bfloat16"),  # NumPy has none
        ops=OPS,
        axes=tuple(range(1, 9)),
        boundaries=BOUNDARIES,
        layouts=LAYOUTS,
        tile=True,
        also=lambda spec: work(spec.macs, reference.MAX_MACS),
    ),
)
__getattr__ = front_doors("reference")
