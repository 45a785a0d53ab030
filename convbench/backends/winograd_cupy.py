"""``winograd-cupy``: minimal filtering F(2, 3) and F(4, 3) on the GPU, in one kernel or with a GEMM a frequency."""

from __future__ import annotations

from convbench import bounds
from convbench.backends._cuda import CudaBackend
from convbench.bounds import ErrorBound
from convbench.cuda.forward import C_TYPES
from convbench.cuda.winograd import choose, growth, planned, reach_of, terms_of, why_not
from convbench.geometry import BOUNDARIES
from convbench.ops import front_doors
from convbench.refusals import Limits
from convbench.spec import LAYOUTS, ConvSpec


def _bound(spec: ConvSpec) -> ErrorBound:
    form = choose(spec)
    return bounds.winograd(spec, growth(form), form.size, reach_of(spec, form), exact=False, summed=terms_of(spec))


BACKEND = CudaBackend(
    name="winograd-cupy",
    summary="minimal filtering F(2, 3) and F(4, 3), fused, or with a GEMM a frequency where there are many channels",
    algorithm=planned,
    bound=_bound,
    limits=Limits(
        dtypes=tuple(C_TYPES),
        ops=("forward", "input_grad"),
        boundaries=BOUNDARIES,
        layouts=LAYOUTS,
        also=why_not,
    ),
)
__getattr__ = front_doors("winograd-cupy")
