"""What the separable filters of image libraries share: kernels that are one outer product, a pass along each axis."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from convbench import bounds
from convbench.algorithms.lowrank import factor_error, tensor_train
from convbench.algorithms.separable import EPS
from convbench.arrays import Array
from convbench.backends._planes import Frame, why_not_planes
from convbench.bounds import ErrorBound
from convbench.errors import UnsupportedWeights
from convbench.refusals import refuse
from convbench.spec import ConvSpec

__all__ = ["passes_bound", "passes_work", "prepared_bytes", "rank_one_factors", "why_not_passes"]


def rank_one_factors(kernel: Array, dtype: str) -> list[Array]:
    """Return 1-D factors in float64, one an axis, whose outer product is the kernel; of integers they are integers.

    Raises
    ------
    UnsupportedWeights
        If the kernel has a higher rank.
    """
    import numpy as np

    if not np.isfinite(kernel).all():
        raise UnsupportedWeights(refuse("weights", "NaN or infinity among them: they have no rank"))
    cores = tensor_train(kernel, EPS[dtype])
    ranks = [core.shape[2] for core in cores[:-1]]
    if max(ranks) > 1:
        full = (min(prod(kernel.shape[:axis]), prod(kernel.shape[axis:])) for axis in range(1, kernel.ndim))
        found = " and ".join(f"{rank} of {most}" for rank, most in zip(ranks, full, strict=True))
        raise UnsupportedWeights(refuse("weights", f"numerical rank {found}, only 1 is done"))
    return [core.ravel() for core in cores]


def why_not_passes(spec: ConvSpec) -> str | None:
    """Refuse kernels of which a pass is the whole, and what :func:`why_not_planes` does."""
    if sum(size > 1 for size in spec.kernel_size) < 2:
        return refuse("kernel size", "at most one axis has several taps: there is nothing to separate")
    return why_not_planes(spec)


def passes_bound(spec: ConvSpec) -> ErrorBound:
    """Direct passes: nothing beyond the window is touched, and integer factors keep integers exact."""
    truncation = factor_error(_as_many_axes(spec), EPS[spec.dtype])
    return replace(bounds.separable(spec, 1, truncation), exact_on_integers=True, spreads_nonfinite=False)


def passes_work(spec: ConvSpec) -> int:
    """Count every pass over the whole plane."""
    pairs = spec.batch * spec.out_channels * (spec.in_channels // spec.groups)
    return 2 * pairs * prod(Frame.of(spec).size) * sum(_as_many_axes(spec))


def _as_many_axes(spec: ConvSpec) -> tuple[int, ...]:
    """Return the kernel's size along at least two axes: lines are images of one row."""
    return (1, *spec.kernel_size)[-max(2, spec.ndim) :]


def prepared_bytes(spec: ConvSpec, itemsize: int) -> int:
    """Bytes of all factors."""
    return spec.out_channels * (spec.in_channels // spec.groups) * sum(spec.kernel_size) * itemsize
