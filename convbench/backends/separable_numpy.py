"""``separable-numpy``: 1-D passes on NumPy for kernels of low rank; other weights are refused with their rank."""

from __future__ import annotations

from dataclasses import replace

from convbench import bounds
from convbench.algorithms.lowrank import factor_error, max_rank
from convbench.algorithms.separable import EPS, Separable, long_axes, why_not_separable
from convbench.backend import AlgorithmBackend
from convbench.bounds import ErrorBound
from convbench.ops import front_doors
from convbench.refusals import FLOATS, WHOLE_FAMILY
from convbench.spec import ConvSpec


def _bound(spec: ConvSpec) -> ErrorBound:
    sizes = tuple(spec.kernel_size[axis] for axis in long_axes(spec))
    return bounds.separable(spec, max(1, max_rank(sizes)), factor_error(sizes, EPS[spec.dtype]))


BACKEND = AlgorithmBackend(
    name="separable-numpy",
    summary="tensor-train factors, 1-D passes as Toeplitz GEMM",
    algorithm=Separable,
    bound=_bound,
    limits=replace(
        WHOLE_FAMILY, dtypes=FLOATS, ops=("forward", "input_grad"), axes=tuple(range(2, 9)), also=why_not_separable
    ),
)
__getattr__ = front_doors("separable-numpy")
