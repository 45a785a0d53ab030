"""``fft``: one FFTW transform of the whole input, planned, with the kernel's spectrum prepared."""

from __future__ import annotations

from convbench.backends._fft import whole_fft
from convbench.ops import front_doors
from convbench.transforms import fftw_transforms

BACKEND = whole_fft("fft", "whole-image real FFT by FFTW", fftw_transforms, {"pyfftw": "pyfftw"})
__getattr__ = front_doors("fft")
