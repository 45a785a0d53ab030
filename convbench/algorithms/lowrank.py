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

__all__ = ["TRUNCATION", "factor_error", "max_rank", "pass_macs", "tensor_train"]

Cores = list[NDArray[np.float64]]

#: The discarded part stays below this many eps(dtype)·‖w‖_F.
TRUNCATION = 4.0


def tensor_train(w: NDArray[Any], eps: float) -> Cores:
    """Return the cores of least rank with ‖w − train‖_F ≤ TRUNCATION·eps·‖w‖_F, float64's own rounding aside.

    An integer array of rank 1 gets integer cores, so that integer convolutions stay exact.

    >>> [core.ravel().tolist() for core in tensor_train(np.outer([1, 2, 1], [3, 0, -3]), 2.0**-23)]
    [[1.0, 2.0, 1.0], [3.0, 0.0, -3.0]]
    """
    kernel = np.asarray(w, np.float64)
    norm = float(np.linalg.norm(kernel))
    tolerance = TRUNCATION * eps * norm
    outer = _rank_one(kernel, tolerance)
    if outer is not None:
        return outer
    tolerance /= sqrt(kernel.ndim - 1)
    cores: Cores = []
    rest, rank = kernel, 1
    for size in kernel.shape[:-1]:
        left, values, right = np.linalg.svd(rest.reshape(rank * size, -1), full_matrices=False)
        tails = np.sqrt(np.cumsum((values**2)[::-1])[::-1])  # tails[r] is what rank r leaves out
        noise = max(left.shape[0], right.shape[1]) * 2.0**-52 * norm  # of the SVD itself: matrix_rank's convention
        kept = max(1, int(np.count_nonzero(tails > max(tolerance, noise))))
        cores.append(left[:, :kept].reshape(rank, size, kept))  # orthonormal, so that later cuts keep their size
        rest, rank = values[:kept, None] * right[:kept], kept
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


def _rank_one(kernel: NDArray[np.float64], tolerance: float) -> Cores | None:
    """Return the kernel's lines through its largest entry if their outer product is the kernel, else None.

    More accurate than an SVD (each product is right to a few roundings) and exact on integers, whose common
    factors are moved from one line to the next.
    """
    if not kernel.any():
        return [np.zeros((1, size, 1)) for size in kernel.shape]
    integers = bool(np.all(np.abs(kernel) <= 2**20)) and np.array_equal(kernel, np.rint(kernel))
    pivot = np.unravel_index(int(np.argmax(np.abs(kernel))), kernel.shape)
    factors: list[Any] = []
    rest: Any = kernel
    for axis in range(kernel.ndim - 1):
        line = rest[(slice(None), *pivot[axis + 1 :])]
        line = line / (gcd(*(int(value) for value in line)) if integers else line[pivot[axis]])
        rest = rest[pivot[axis]] / line[pivot[axis]]
        factors.append(line)
    factors.append(rest)
    outer = factors[0]
    for factor in factors[1:]:
        outer = np.multiply.outer(outer, factor)
    if np.linalg.norm(outer - kernel) > tolerance:
        return None
    return [factor.reshape(1, -1, 1) for factor in factors]


def factor_error(shape: tuple[int, ...], eps: float) -> float:
    """Bound ‖w − train‖_F / (eps·‖w‖_F): what is left out, and twice the rounding of the SVDs.

    LAPACK's SVD is backward stable to a modest multiple of max(m, n) units in the last place of float64
    (LAPACK Users' Guide, section 4.9).
    """
    rounding = sum(max(prod(shape[:i]), prod(shape[i:])) for i in range(1, len(shape)))
    return TRUNCATION + 2 * rounding * 2.0**-52 / eps
