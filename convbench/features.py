"""The support matrix: what each backend takes of the family, by asking ``why_not`` about one small spec a feature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any, cast

from convbench.algorithms.rewriting import MOST_PARTS
from convbench.arrays import Namespace, numpy_namespace
from convbench.backend import Backend
from convbench.errors import SpecError, UnsupportedWeights
from convbench.registry import refusal_of
from convbench.spec import ConvSpec

__all__ = ["FEATURES", "NOTES", "supported", "with_device"]

#: Group → feature → the lines that a backend must take, all of them. What a line leaves open is filled in by the first
#: of :data:`_SIZES` and :data:`_DTYPES` that the backend takes.
FEATURES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "Operations and weights": {
        "forward": ("n2 c2 o3",),
        "∂x, transposed": ("op=input_grad",),
        "∂w": ("op=weight_grad",),
        "groups": ("c4 o4 g2",),
        "stride": ("s2",),
        "dilation": ("d2",),
        "tiled": ("t2",),
        "unshared": ("tunshared",),
        "any weights": ("",),
    },
    "Edges and biases": {
        "circular": ("p1 boundary=circular",),
        "reflect": ("p1 boundary=reflect",),
        "replicate": ("p1 boundary=replicate",),
        "bias: channel": ("bias=channel",),
        "bias: tile": ("t2 bias=tile",),
        "bias: location": ("bias=location",),
    },
    "Axes, dtypes and layout": {
        "1-D": ("i9 k3",),
        "2-D": ("i9x9 k3",),
        "3-D": ("i9x9x9 k3",),
        "4-D": ("i9x9x9x9 k3",),
        "float16": ("float16",),
        "float32": ("f32",),
        "float64": ("f64",),
        "complex": ("complex64", "complex128"),
        "uint8": ("uint8",),
        "int8…16": ("int8", "int16"),
        "uint16": ("uint16",),
        "int32…64": ("int32", "int64"),
        "uint32…64": ("uint32", "uint64"),
        "channels_last": ("layout=channels_last",),
    },
}

#: What the marks do not say.
NOTES = (
    "∂x, ∂w, tiled, unshared: many backends rewrite these as convolutions that they do; unshared ✓ then holds up to "
    f"{MOST_PARTS} positions with weights of their own, and beyond them the backend says no.",
    "bfloat16: NumPy has no such dtype, so that no backend here takes it; specs and their lines know it (`bf16`) for "
    "array libraries that have it.",
    "`-cupy`, `-cuda` and `cupyx-` rows: what they take where there is a GPU that can be used.",
)

#: What libraries raise that want their device: CuPy's errors of CUDA are subclasses of RuntimeError, a library of CUDA
#: that is not there is an ImportError, and a PyTorch without CUDA fails an assertion.
_NO_DEVICE = (ImportError, RuntimeError, AssertionError)

_SIZES = ("", "i9x9 k3", "i9 k3", "i9x9x9 k3")
_DTYPES = ("", "f64", "f16")


def with_device(backend: Backend) -> Backend:
    """Return a GPU's backend as one that has its device, on which it launches nothing: what it takes is the same."""
    asked: Any = backend
    if not hasattr(asked, "device_problem"):
        return backend
    return cast(Backend, replace(asked, device_problem=lambda: None, ns=_idle_namespace))


def _idle_namespace() -> Namespace:
    return replace(numpy_namespace(), kernels=lambda kernel: lambda grid, arguments: None)


def supported(backend: Backend) -> dict[str, bool]:
    """Return feature → whether an available backend takes it.

    >>> from convbench import get_backend
    >>> answers = supported(get_backend("winograd-numpy"))
    >>> answers["stride"], answers["int8…16"]
    (True, False)
    """
    answers = {
        feature: all(_takes(backend, line) for line in lines)
        for features in FEATURES.values()
        for feature, lines in features.items()
    }
    answers["any weights"] &= _takes_any_weights(backend)
    return answers


def _takes(backend: Backend, line: str) -> bool:
    return next(_willing(backend, line), None) is not None


def _willing(backend: Backend, line: str) -> Iterator[ConvSpec]:
    for size, dtype in product(_SIZES, _DTYPES):
        with suppress(SpecError):  # neither complete, or the line says it already
            spec = ConvSpec.parse(f"{line} {size} {dtype}")
            if refusal_of(backend, spec) is None:
                yield spec


def _takes_any_weights(backend: Backend) -> bool:
    """Prepare weights without structure, which ``why_not`` does not see."""
    import numpy as np

    spec = next(_willing(backend, ""), None)
    if spec is None:
        return False
    plan = backend.plan(spec, threads=1)
    count = prod(spec.weight_shape)
    weights = np.arange(count)[::-1] ** 2 % (count + 4) - 3  # of full rank, unequal
    try:
        plan.prepare(weights.reshape(spec.weight_shape).astype(spec.dtype))
    except UnsupportedWeights:
        return False
    except _NO_DEVICE as error:  # who refuses weights does so before it goes to the device
        if backend.device != "cuda" or type(error) is RuntimeError:
            raise
    return True
