"""``fft-pocketfft``: as ``fft``, but by SciPy's pocketfft, which plans nothing and has threads of its own."""

from __future__ import annotations

from convbench.backends._fft import whole_fft
from convbench.ops import front_doors
from convbench.transforms import pocketfft_transforms

BACKEND = whole_fft("fft-pocketfft", "whole-image real FFT by scipy.fft", pocketfft_transforms, {"scipy": "scipy"})
__getattr__ = front_doors("fft-pocketfft")
