"""Pooling, beside convolution: window reductions over the same geometry, with algorithms of their own.

A convolutional layer has three stages: convolution, detector and pooling. The third is here, complete with its own
spec (:class:`PoolSpec`), definition (``reference``), oracle, backends, battery (``checks``) and cases for the
benchmark; of convolution it shares geometry, errors, refusals, threads and the clock.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from convbench.pooling.spec import PoolSpec

if TYPE_CHECKING:
    from convbench.pooling.backend import PoolBackend, PoolFunction, PoolLimits, PoolPlan, PoolRegistrant
    from convbench.pooling.checks import check_pool_backend
    from convbench.pooling.ops import (
        adaptive_pool,
        adaptive_pool_grad,
        distance_weighted_mean,
        pool,
        pool_grad,
        pool_plan,
    )
    from convbench.pooling.registry import all_pool_backends, get_pool_backend

_LAZY = {
    **dict.fromkeys(("PoolBackend", "PoolFunction", "PoolLimits", "PoolPlan", "PoolRegistrant"), "backend"),
    **dict.fromkeys(("all_pool_backends", "get_pool_backend"), "registry"),
    **dict.fromkeys(
        ("adaptive_pool", "adaptive_pool_grad", "distance_weighted_mean", "pool", "pool_grad", "pool_plan"), "ops"
    ),
    "check_pool_backend": "checks",
}

__all__ = [
    "PoolBackend",
    "PoolFunction",
    "PoolLimits",
    "PoolPlan",
    "PoolRegistrant",
    "PoolSpec",
    "adaptive_pool",
    "adaptive_pool_grad",
    "all_pool_backends",
    "check_pool_backend",
    "distance_weighted_mean",
    "get_pool_backend",
    "pool",
    "pool_grad",
    "pool_plan",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'convbench.pooling' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"convbench.pooling.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
