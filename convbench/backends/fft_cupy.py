"""``fft-cupy``: one transform of the whole input by cuFFT, the kernel's spectrum prepared."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from convbench import bounds
from convbench.algorithms.lowering import Lowering
from convbench.arrays import Namespace
from convbench.backends._cuda import CudaBackend, needs
from convbench.bounds import ErrorBound
from convbench.cuda.fft import VARIANTS, CudaFFT, whole_tiles, why_not
from convbench.ops import front_doors
from convbench.refusals import FLOATS_AND_COMPLEX, WHOLE_FAMILY
from convbench.spec import ConvSpec


def _algorithm(ns: Namespace, spec: ConvSpec, threads: int) -> CudaFFT:
    return CudaFFT(ns, spec, threads, whole_tiles(spec))


def _bound(spec: ConvSpec) -> ErrorBound:
    points = prod(tile.size for tile in whole_tiles(spec))
    summed = spec.in_channels // spec.groups * Lowering(spec).phases
    return replace(bounds.fft(spec, points, summed=summed), flushes_denormals=True)


BACKEND = CudaBackend(
    name="fft-cupy",
    summary="whole-image FFT by cuFFT, products by cuBLAS or a kernel",
    algorithm=_algorithm,
    variants=VARIANTS,
    bound=_bound,
    device_problem=needs("cufft", "cublas"),
    limits=replace(
        WHOLE_FAMILY, dtypes=FLOATS_AND_COMPLEX, axes=(1, 2, 3), also=lambda spec: why_not(spec, whole_tiles(spec))
    ),
)
__getattr__ = front_doors("fft-cupy")
