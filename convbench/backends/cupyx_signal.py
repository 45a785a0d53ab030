"""``cupyx-signal``: the direct methods of ``cupyx.scipy.signal``, plane by plane as SciPy's."""

from __future__ import annotations

from dataclasses import replace

from convbench.backends._cuda import CudaFunctionBackend
from convbench.backends._cupyx import ON_DEVICE, signal, signal_problem
from convbench.backends._scipy_signal import LIMITS, conv_by_planes, correlate_by
from convbench.backends.scipy_direct import direct_workspace, why_not_direct
from convbench.bounds import ErrorBound, direct
from convbench.ops import front_doors
from convbench.refusals import FLOATS_AND_COMPLEX
from convbench.spec import ConvSpec


def _bound(spec: ConvSpec) -> ErrorBound:
    return replace(direct(spec), flushes_denormals=True)


BACKEND = CudaFunctionBackend(
    name="cupyx-signal",
    summary="cupyx.scipy.signal.correlate2d in 2-D, correlate(method='direct') else",
    kind="rival",
    function=conv_by_planes(correlate_by(signal), ON_DEVICE),
    workspace=direct_workspace,
    bound=_bound,
    device_problem=signal_problem,
    limits=replace(LIMITS, dtypes=FLOATS_AND_COMPLEX, boundaries=("zero", "circular"), also=why_not_direct),
)
__getattr__ = front_doors("cupyx-signal")
