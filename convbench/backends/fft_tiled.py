"""``fft-tiled``: overlap-save with FFTW, tiles by a cost model, one complex GEMM a frequency over the channels."""

from __future__ import annotations

from math import prod

from convbench import bounds
from convbench.algorithms.fft_tiled import TiledFFT, choose_tiling, overlap
from convbench.algorithms.tiling import reach_of
from convbench.arrays import numpy_namespace
from convbench.backend import AlgorithmBackend
from convbench.bounds import ErrorBound
from convbench.ops import front_doors
from convbench.refusals import Limits
from convbench.spec import ConvSpec
from convbench.transforms import fftw_transforms


def _bound(spec: ConvSpec) -> ErrorBound:
    tiling = choose_tiling(spec)
    return bounds.fft(spec, prod(tiling.size), reach_of(spec, tiling), overlap(tiling))


BACKEND = AlgorithmBackend(
    name="fft-tiled",
    summary="overlap-save FFT by FFTW",
    algorithm=TiledFFT,
    bound=_bound,
    requires={"pyfftw": "pyfftw"},
    ns=lambda: numpy_namespace(fftw_transforms()),
    limits=Limits(axes=(1, 2, 3)),
)
conv, convolve, correlate, plan = front_doors("fft-tiled")
