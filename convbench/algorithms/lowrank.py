"""Kernels as sums of products of 1-D kernels: the tensor train of a weight array.

w[k₁,…,k_d] = G₁[k₁] · G₂[k₂] ⋯ G_d[k_d] with cores G_j of shape (r_{j−1}, K_j, r_j), r₀ = r_d = 1 (Oseledets
2011, algorithm 1: successive SVDs). With two axes that is the SVD itself, and rank 1 the outer product.
Weights are small, so this runs on the host, in float64.
"""

from __future__ import annotations

from math import gcd, prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TRUNCATION", "max_rank", "pass_macs", "tensor_train"]

Cores = list[NDArray[np.float64]]

#: The discarded part stays below this many eps(dtype)·‖w‖_F.
TRUNCATION = 4.0


def tensor_train(w: NDArray[Any], eps: float) -> Cores:
    """Return the cores of least rank with ‖w − train‖_F ≤ TRUNCATION·eps·‖w‖_F.

    An integer array of rank 1 gets integer cores, so that integer convolutions stay exact.

    >>> [core.ravel().tolist() for core in tensor_train(np.outer([1, 2, 1], [3, 0, -3]), 2.0**-23)]
    [[1.0, 2.0, 1.0], [3.0, 0.0, -3.0]]
    """
    kernel = np.asarray(w, np.float64)
    tolerance = TRUNCATION * eps * float(np.linalg.norm(kernel)) / sqrt(max(1, kernel.ndim - 1))
    integers = _integer_rank_one(kernel)
    if integers is not None:
        return integers
    cores: Cores = []
    rest, rank = kernel, 1
    for size in kernel.shape[:-1]:
        left, values, right = np.linalg.svd(rest.reshape(rank * size, -1), full_matrices=False)
        tails = np.sqrt(np.cumsum((values**2)[::-1])[::-1])  # tails[r] is what rank r leaves out
        kept = max(1, int(np.count_nonzero(tails > tolerance)))
        root = np.sqrt(values[:kept])  # halves of σ on either side keep the cores' magnitudes alike
        cores.append((left[:, :kept] * root).reshape(rank, size, kept))
        rest, rank = root[:, None] * right[:kept], kept
    cores.append(rest.reshape(rank, kernel.shape[-1], 1))
    return cores


def pass_macs(shape: tuple[int, ...], ranks: tuple[int, ...]) -> int:
    """Multiply–accumulates an output of the 1-D passes: Σ_j r_{j−1}·K_j·r_j."""
    bonds = (1, *ranks, 1)
    return sum(before * size * after for before, size, after in zip(bonds, shape, bonds[1:], strict=False))


def max_rank(shape: tuple[int, ...]) -> int:
    """Return the largest (uniform) rank at which the passes still cost less than ∏K."""
    rank = 0
    while pass_macs(shape, (rank + 1,) * (len(shape) - 1)) < prod(shape):
        rank += 1
    return rank


def _integer_rank_one(kernel: NDArray[np.float64]) -> Cores | None:
    """Return integer cores if the kernel is an integer outer product, else None."""
    if not np.all(np.abs(kernel) <= 2**20) or not np.array_equal(kernel, np.rint(kernel)) or not kernel.any():
        return None
    pivot = np.unravel_index(int(np.argmax(np.abs(kernel))), kernel.shape)
    factors, rest = [], kernel
    for axis in range(kernel.ndim - 1):
        column = rest[(slice(None), *pivot[axis + 1 :])]
        primitive = column / gcd(*(int(value) for value in column))
        rest = rest[pivot[axis]] / primitive[pivot[axis]]
        factors.append(primitive)
    factors.append(rest)
    outer = factors[0]
    for factor in factors[1:]:
        outer = np.multiply.outer(outer, factor)
    if not np.array_equal(outer, kernel) or any(not np.array_equal(f, np.rint(f)) for f in factors):
        return None
    return [factor.reshape(1, -1, 1) for factor in factors]
