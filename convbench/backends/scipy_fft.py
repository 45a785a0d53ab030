"""``scipy-fft``: ``scipy.signal.fftconvolve``."""

from __future__ import annotations

from convbench.arrays import Array
from convbench.backend import FunctionBackend
from convbench.backends._scipy_signal import (
    LIMITS,
    REQUIRES,
    conv_by_batches,
    fft_bound,
    fft_flops,
    fft_workers,
    fft_workspace,
)
from convbench.ops import front_doors


def _correlate(x: Array, kernels: Array, mode: str, axes: tuple[int, ...]) -> Array:
    from scipy.signal import fftconvolve

    return fftconvolve(x, kernels[(..., *(slice(None, None, -1),) * len(axes))], mode, axes=axes)


BACKEND = FunctionBackend(
    name="scipy-fft",
    summary="signal.fftconvolve (pocketfft)",
    kind="rival",
    function=conv_by_batches(_correlate),
    workspace=fft_workspace,
    work=fft_flops,
    pool=fft_workers,
    bound=fft_bound,
    requires=REQUIRES,
    limits=LIMITS,
)
conv, convolve, correlate, plan = front_doors("scipy-fft")
