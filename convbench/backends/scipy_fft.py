"""``scipy-fft``: ``scipy.signal.fftconvolve``."""

from __future__ import annotations

from typing import Any

from convbench.backends._scipy_signal import conv_by_batches, convolve_by, fft_flops, fft_workspace, transform_rival
from convbench.ops import front_doors


def _signal() -> Any:
    from scipy import signal

    return signal


BACKEND = transform_rival(
    name="scipy-fft",
    summary="signal.fftconvolve (pocketfft)",
    function=conv_by_batches(convolve_by(_signal, "fftconvolve")),
    workspace=fft_workspace,
    work=fft_flops,
)
__getattr__ = front_doors("scipy-fft")
