"""``scipy-fft``: ``scipy.signal.fftconvolve``."""

from __future__ import annotations

from convbench.arrays import Array
from convbench.backends._scipy_signal import conv_by_batches, fft_flops, fft_workspace, transform_rival
from convbench.ops import front_doors


def _correlate(x: Array, kernels: Array, mode: str, axes: tuple[int, ...]) -> Array:
    from scipy.signal import fftconvolve

    return fftconvolve(x, kernels[(..., *(slice(None, None, -1),) * len(axes))], mode, axes=axes)


BACKEND = transform_rival(
    name="scipy-fft",
    summary="signal.fftconvolve (pocketfft)",
    function=conv_by_batches(_correlate),
    workspace=fft_workspace,
    work=fft_flops,
)
__getattr__ = front_doors("scipy-fft")
