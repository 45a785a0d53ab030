"""``fft``: one FFTW transform of the whole input, planned, with the kernel's spectrum prepared."""

from __future__ import annotations

from math import prod

from convbench import bounds
from convbench.algorithms.fft import WholeFFT, transform_sizes
from convbench.arrays import Namespace, numpy_namespace
from convbench.backend import AlgorithmBackend
from convbench.bounds import ErrorBound
from convbench.ops import front_doors
from convbench.refusals import Limits
from convbench.spec import ConvSpec
from convbench.transforms import fftw_transforms


def _namespace() -> Namespace:
    return numpy_namespace(fftw_transforms())


def _bound(spec: ConvSpec) -> ErrorBound:
    return bounds.fft(spec, prod(transform_sizes(spec, fftw_transforms().good_size)))


BACKEND = AlgorithmBackend(
    name="fft",
    summary="whole-image real FFT by FFTW",
    algorithm=WholeFFT,
    bound=_bound,
    requires={"pyfftw": "pyfftw"},
    ns=_namespace,
    limits=Limits(axes=tuple(range(1, 9))),
)
conv, convolve, correlate, plan = front_doors("fft")
