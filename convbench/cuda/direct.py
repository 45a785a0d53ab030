"""Direct convolution on the GPU: which of the kernels does which spec.

- many outputs a group: tiles of outputs × pixels in registers (:mod:`~convbench.cuda.direct_tiles`);
- few, of signals: strips of single lines (:mod:`~convbench.cuda.direct_lines`);
- few: strips of single planes (:mod:`~convbench.cuda.direct_planes`);
- what fits neither's shared memory, such as very wide dilations: one thread an output
  (:mod:`~convbench.cuda.direct_naive`);
- weight gradients: products of matrices or correlations of planes (:mod:`~convbench.cuda.direct_weights`).
"""

from __future__ import annotations

from convbench.arrays import Namespace
from convbench.backend import Algorithm, forward_and_shared
from convbench.cuda import direct_lines, direct_naive, direct_planes, direct_tiles, direct_weights
from convbench.cuda.direct_naive import DirectNaive, why_not
from convbench.spec import ConvSpec

__all__ = ["VARIANTS", "direct", "native", "why_not"]

#: Cases that launch each kernel of all of them.
VARIANTS = tuple(
    variant
    for module in (direct_tiles, direct_lines, direct_planes, direct_naive, direct_weights)
    for variant in module.VARIANTS
)


def native(spec: ConvSpec) -> bool:
    """Tell what has a kernel; input gradients are convolutions of g, and tiled weights several."""
    return forward_and_shared(spec) or (spec.op == "weight_grad" and spec.tile is None and direct_weights.suits(spec))


def direct(ns: Namespace, spec: ConvSpec, threads: int) -> Algorithm:
    """Return the algorithm for what is native."""
    if spec.op == "weight_grad":
        return direct_weights.WeightGradient(ns, spec, threads)
    if direct_tiles.suits(spec):
        return direct_tiles.DirectTiles(ns, spec, threads)
    if direct_lines.suits(spec):
        return direct_lines.DirectLines(ns, spec, threads)
    if direct_planes.suits(spec):
        return direct_planes.DirectPlanes(ns, spec, threads)
    return DirectNaive(ns, spec, threads)
