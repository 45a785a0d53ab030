"""One algorithm, two FFT libraries: ``fft`` and ``fft-pocketfft``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from convbench import bounds
from convbench.algorithms.fft import WholeFFT, transform_sizes
from convbench.arrays import numpy_namespace
from convbench.backend import AlgorithmBackend
from convbench.bounds import ErrorBound
from convbench.refusals import Limits
from convbench.spec import ConvSpec
from convbench.transforms import Transforms


def whole_fft(
    name: str, summary: str, library: Callable[[], Transforms], requires: Mapping[str, str]
) -> AlgorithmBackend:
    """One transform of the whole input."""

    def bound(spec: ConvSpec) -> ErrorBound:
        return bounds.fft(spec, prod(transform_sizes(spec, library().good_size)))

    return AlgorithmBackend(
        name=name,
        summary=summary,
        algorithm=WholeFFT,
        bound=bound,
        requires=requires,
        ns=lambda: numpy_namespace(library()),
        limits=Limits(axes=tuple(range(1, 9))),
    )
