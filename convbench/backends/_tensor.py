"""What the backends on tensor cores share."""

from __future__ import annotations

from functools import partial

from convbench import bounds
from convbench.backends._cuda import CudaBackend
from convbench.cuda.device import tensor_core_problem
from convbench.cuda.implicit_gemm import why_not
from convbench.cuda.implicit_gemm_tc import Operands, planned_with, variants
from convbench.geometry import BOUNDARIES
from convbench.refusals import Limits
from convbench.spec import LAYOUTS, OPS

__all__ = ["tensor_backend"]


def tensor_backend(name: str, operands: Operands) -> CudaBackend:
    """Return the backend that multiplies with these operands; its error bound says what that costs."""
    return CudaBackend(
        name=name,
        summary=f"implicit GEMM on tensor cores, {operands.name} operands, float32 sums",
        algorithm=planned_with(operands),
        variants=variants(operands),
        device_problem=tensor_core_problem,
        bound=partial(bounds.tensor_core, significant_bits=operands.significant_bits),
        limits=Limits(
            dtypes=(operands.dtype,), ops=OPS, boundaries=BOUNDARIES, layouts=LAYOUTS, tile=True, also=why_not
        ),
    )
