"""Pooling's definition in plain loops: slow, and simple enough to be seen to be right."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import isnan, prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.pooling.spec import PoolSpec

__all__ = ["MAX_SAMPLES", "pool", "window"]

MAX_SAMPLES = 10**5

Position = tuple[int, ...]


def pool(spec: PoolSpec, x: NDArray[Any], g: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return y, or ∂J/∂x where the spec says so, in float64 (integers: in their own dtype).

    >>> pool(PoolSpec.parse("pool=max i4 k2 s1"), np.array([[[1.0, 3.0, 2.0, 0.0]]]))
    array([[[3., 3., 2.]]])
    """
    forward = spec.op == "forward"
    result = np.zeros(spec.result_shape, spec.dtype if "int" in spec.dtype else "float64")
    for n, c in product(range(spec.batch), range(spec.channels)):
        for p in product(*map(range, spec.output_size)):
            samples = {q: x[(n, c, *q)].item() for q in window(spec, p)}
            if forward:
                result[(n, c, *p)] = _reduce(spec, samples)
                continue
            assert g is not None
            for q, share in _shares(spec, samples, g[(n, c, *p)].item()).items():
                result[(n, c, *q)] += share
    return result


def window(spec: PoolSpec, p: Position) -> Iterator[Position]:
    """Go through the positions that output ``p`` reads, in row-major order; padding is left out."""
    if spec.adaptive is not None:
        ranges = [
            range(i * size // bins, -(-(i + 1) * size // bins))
            for i, size, bins in zip(p, spec.input_size, spec.adaptive, strict=True)
        ]
    else:
        ranges = [
            range(max(0, i * s - before), min(size, i * s - before + k))
            for i, size, k, s, (before, _) in zip(
                p, spec.input_size, spec.kernel_size, spec.stride, spec.padding, strict=True
            )
        ]
    return product(*ranges)


def _reduce(spec: PoolSpec, samples: dict[Position, Any]) -> Any:
    if spec.kind == "max":
        return samples[_first_maximum(samples)]
    if spec.kind == "l2":
        return sqrt(sum(value * value for value in samples.values()))
    return sum(samples.values()) / _count(spec, samples)


def _shares(spec: PoolSpec, samples: dict[Position, Any], g: float) -> dict[Position, float]:
    """Return g · ∂y[p]/∂x at each sample of the window, where it is not 0."""
    if spec.kind == "max":
        return {_first_maximum(samples): g}
    if spec.kind == "mean":
        return dict.fromkeys(samples, g / _count(spec, samples))
    y = _reduce(spec, samples)
    return {q: value / y * g for q, value in samples.items()} if y else {}


def _first_maximum(samples: dict[Position, Any]) -> Position:
    """The first NaN if there is one: it is the maximum, as in NumPy and PyTorch."""
    best = None
    for q, value in samples.items():
        if isnan(value):
            return q
        if best is None or value > samples[best]:
            best = q
    assert best is not None
    return best


def _count(spec: PoolSpec, samples: dict[Position, Any]) -> int:
    return prod(spec.kernel_size) if spec.count_include_pad else len(samples)
