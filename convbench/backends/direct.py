"""``direct``: the definition's sums in registers, by generated kernels; nothing is transformed and nothing unfolded."""

from __future__ import annotations

from convbench.arrays import Namespace
from convbench.backend import Algorithm, forward_and_shared
from convbench.backends._compiled import CompiledBackend
from convbench.geometry import BOUNDARIES
from convbench.ops import front_doors
from convbench.refusals import FLOATS, Limits
from convbench.spec import LAYOUTS, OPS, ConvSpec


def _native(spec: ConvSpec) -> bool:
    """Tell what has a kernel; input gradients are convolutions of g, and tiled weights several."""
    return forward_and_shared(spec) or (spec.op == "weight_grad" and spec.tile is None)


def _algorithm(ns: Namespace, spec: ConvSpec, threads: int) -> Algorithm:
    """Lanes are outputs of a group where it has enough; of depthwise narrow images channels; else columns."""
    from convbench.algorithms import direct_channels
    from convbench.algorithms.direct_panels import DirectPanels
    from convbench.algorithms.direct_rows import DirectRows, suits
    from convbench.algorithms.weight_gradient import PanelWeightGradient

    if spec.op == "weight_grad":
        return PanelWeightGradient(ns, spec, threads)
    if direct_channels.suits(spec):
        return direct_channels.DirectChannels(ns, spec, threads)
    return (DirectRows if suits(spec) else DirectPanels)(ns, spec, threads)


BACKEND = CompiledBackend(
    name="direct",
    summary="sums in registers over channels and taps, generated kernels",
    algorithm=_algorithm,
    native=_native,
    limits=Limits(dtypes=FLOATS, ops=OPS, boundaries=BOUNDARIES, layouts=LAYOUTS, tile=True),
)
__getattr__ = front_doors("direct")
