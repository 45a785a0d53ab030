"""``cupyx-signal-fft``: ``cupyx.scipy.signal.fftconvolve``, all channels in a call."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from convbench.backends._cuda import CudaFunctionBackend
from convbench.backends._cupyx import ON_DEVICE, signal, signal_problem
from convbench.backends._scipy_signal import (
    LIMITS,
    conv_by_batches,
    convolve_by,
    fft_bound,
    fft_flops,
    fft_workspace,
)
from convbench.bounds import ErrorBound
from convbench.ops import front_doors
from convbench.refusals import FLOATS_AND_COMPLEX
from convbench.spec import ConvSpec


def _bound(spec: ConvSpec) -> ErrorBound:
    return replace(fft_bound(spec, ON_DEVICE), flushes_denormals=True)


BACKEND = CudaFunctionBackend(
    name="cupyx-signal-fft",
    summary="cupyx.scipy.signal.fftconvolve (cuFFT)",
    kind="rival",
    function=conv_by_batches(convolve_by(signal, "fftconvolve"), ON_DEVICE),
    workspace=partial(fft_workspace, library=ON_DEVICE),
    work=partial(fft_flops, library=ON_DEVICE),
    bound=_bound,
    device_problem=signal_problem,
    limits=replace(LIMITS, dtypes=FLOATS_AND_COMPLEX),
)
__getattr__ = front_doors("cupyx-signal-fft")
