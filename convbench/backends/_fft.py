"""One algorithm, two FFT libraries: ``fft`` and ``fft-pocketfft``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod

from convbench import bounds
from convbench.algorithms.fft import WholeFFT, does_itself, transform_sizes
from convbench.algorithms.lowering import Lowering
from convbench.arrays import numpy_namespace
from convbench.backend import AlgorithmBackend
from convbench.bounds import ErrorBound
from convbench.refusals import FLOATS_AND_COMPLEX, WHOLE_FAMILY
from convbench.spec import ConvSpec
from convbench.transforms import Transforms


def whole_fft(
    name: str, summary: str, library: Callable[[], Transforms], requires: Mapping[str, str]
) -> AlgorithmBackend:
    """One transform of the whole input."""

    def bound(spec: ConvSpec) -> ErrorBound:
        lowering = Lowering(spec)
        summed = {
            "forward": spec.in_channels // spec.groups * lowering.phases,
            "input_grad": spec.out_channels // spec.groups + lowering.most_copies,
        }
        return bounds.fft(spec, prod(transform_sizes(spec, library().good_size)), summed=summed[spec.op])

    return AlgorithmBackend(
        name=name,
        summary=summary,
        algorithm=WholeFFT,
        native=does_itself,
        bound=bound,
        requires=requires,
        ns=lambda: numpy_namespace(library()),
        limits=replace(WHOLE_FAMILY, dtypes=FLOATS_AND_COMPLEX),
    )
