"""``fft-tiled-cupy``: overlap-save by cuFFT, in tiles of a size chosen by cost."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from convbench import bounds
from convbench.algorithms.lowering import Lowering
from convbench.arrays import Namespace
from convbench.backends._cuda import CudaBackend, needs
from convbench.bounds import ErrorBound
from convbench.cuda.fft import VARIANTS, CudaFFT, cheapest_tiles, overlap, reach, why_not
from convbench.ops import front_doors
from convbench.refusals import FLOATS_AND_COMPLEX, WHOLE_FAMILY
from convbench.spec import ConvSpec


def _algorithm(ns: Namespace, spec: ConvSpec, threads: int) -> CudaFFT:
    return CudaFFT(ns, spec, threads, cheapest_tiles(spec))


def _bound(spec: ConvSpec) -> ErrorBound:
    tiles = cheapest_tiles(spec)
    points = prod(tile.size for tile in tiles)
    summed = spec.in_channels // spec.groups * Lowering(spec).phases
    found = bounds.fft(spec, points, reach(spec, tiles), overlap(tiles), summed)
    return replace(found, flushes_denormals=True)


BACKEND = CudaBackend(
    name="fft-tiled-cupy",
    summary="overlap-save FFT by cuFFT, products by cuBLAS or a kernel",
    algorithm=_algorithm,
    variants=VARIANTS,
    bound=_bound,
    device_problem=needs("cufft", "cublas"),
    limits=replace(
        WHOLE_FAMILY, dtypes=FLOATS_AND_COMPLEX, axes=(1, 2, 3), also=lambda spec: why_not(spec, cheapest_tiles(spec))
    ),
)
__getattr__ = front_doors("fft-tiled-cupy")
