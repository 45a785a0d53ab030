"""``fft-tiled-numpy``: overlap-save with FFTW and NumPy, one complex GEMM a frequency over the channels."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from convbench import bounds
from convbench.algorithms.fft_tiled import TiledFFT, choose_tiling
from convbench.algorithms.tiling import does_itself, overlap, reach_of, values_summed
from convbench.arrays import numpy_namespace
from convbench.backend import AlgorithmBackend
from convbench.bounds import ErrorBound
from convbench.ops import front_doors
from convbench.refusals import FLOATS_AND_COMPLEX, WHOLE_FAMILY
from convbench.spec import ConvSpec
from convbench.transforms import fftw_transforms


def _bound(spec: ConvSpec) -> ErrorBound:
    tiling = choose_tiling(spec)
    summed = values_summed(spec, tiling)
    return bounds.fft(spec, prod(tiling.size), reach_of(spec, tiling), overlap(tiling), summed)


BACKEND = AlgorithmBackend(
    name="fft-tiled-numpy",
    summary="overlap-save FFT by FFTW and NumPy",
    algorithm=TiledFFT,
    native=does_itself,
    bound=_bound,
    requires={"pyfftw": "pyfftw"},
    ns=lambda: numpy_namespace(fftw_transforms()),
    limits=replace(WHOLE_FAMILY, dtypes=FLOATS_AND_COMPLEX, axes=(1, 2, 3)),
)
__getattr__ = front_doors("fft-tiled-numpy")
