"""What libraries that filter one plane at a time share: windows at every sample, of which strides keep some."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.errors import UnsupportedSpec
from convbench.pooling.backend import Algorithm, PoolFunction
from convbench.pooling.spec import PoolSpec
from convbench.refusals import refuse

__all__ = ["by_planes", "refuse_nan", "unlike"]

Array = NDArray[Any]

#: ``filtered(spec, plane)``: the window's result with its first sample at ``p − before``, for every p of the plane.
Filter = Callable[[PoolSpec, Array], Array]


def by_planes(
    name: str, filtered: Filter, pool: Callable[[int], AbstractContextManager[Any]] | None = None
) -> Callable[[PoolSpec, int], Algorithm]:
    """Return an algorithm that filters each plane and keeps the outputs that the stride asks for."""

    def run(spec: PoolSpec, x: Array) -> Array:
        refuse_nan(name, spec, x)
        y = np.empty(spec.output_shape, spec.dtype)
        # the filter's p is the window that begins at p − before: outputs are at 0, s, 2s, …
        kept = tuple(slice(0, (n - 1) * s + 1, s) for n, s in zip(spec.output_size, spec.stride, strict=True))
        for n, c in product(range(spec.batch), range(spec.channels)):
            y[n, c] = filtered(spec, x[n, c])[kept]
        return y

    def workspace(spec: PoolSpec) -> int:
        return 4 * spec.itemsize * prod(spec.input_size)  # a plane, its contiguous copy, and the filtered one twice

    return PoolFunction.algorithm(run, workspace=workspace, pool=pool)


def refuse_nan(name: str, spec: PoolSpec, x: Array) -> None:
    """Refuse data that the library's comparisons would lose."""
    if spec.kind == "max" and x.dtype.kind == "f" and np.isnan(np.max(x, initial=-np.inf)):
        raise UnsupportedSpec(f"{name}: {refuse('data', 'NaN among them, which its comparisons lose')}")


def unlike(spec: PoolSpec) -> str | None:
    """Refuse what a filter with one value for each sample cannot give."""
    for k, h, n, s, (before, after) in zip(
        spec.kernel_size, spec.input_size, spec.output_size, spec.stride, spec.padding, strict=True
    ):
        if (n - 1) * s >= h or before >= k or after >= k or k > h:
            return refuse("kernel size", "windows that begin beyond the input, or longer than it, are not done")
    if spec.kind == "mean" and spec.padded and not spec.count_include_pad:
        return refuse("boundary", "the filter's mean counts the padding")
    return None
