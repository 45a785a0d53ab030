"""convbench: every convolution algorithm behind one spec, proved right before it is timed.

Nothing heavy is imported before it is used: names below resolve on first access.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from convbench.errors import (
    BackendUnavailable,
    ConvbenchError,
    MissingDependency,
    SpecError,
    UnknownBackend,
    UnsupportedSpec,
    UnsupportedWeights,
)
from convbench.spec import ConvSpec

if TYPE_CHECKING:
    from convbench.backend import AlgorithmBackend, Backend, FunctionBackend, Plan
    from convbench.bench import benchmark, load_results
    from convbench.bounds import ErrorBound
    from convbench.checks import check_backend
    from convbench.ops import conv, conv_bias_grad, conv_input_grad, conv_transpose, conv_weight_grad
    from convbench.planning import plan
    from convbench.pooling.ops import adaptive_pool, adaptive_pool_grad, pool, pool_grad
    from convbench.pooling.spec import PoolSpec
    from convbench.refusals import Limits
    from convbench.registry import all_backends, get_backend
    from convbench.scipy_style import convolve, correlate
    from convbench.select import explain

__version__ = "0.1.0"

_LAZY = {
    "AlgorithmBackend": "convbench.backend",
    "Backend": "convbench.backend",
    "FunctionBackend": "convbench.backend",
    "Plan": "convbench.backend",
    "PoolSpec": "convbench.pooling.spec",
    "ErrorBound": "convbench.bounds",
    "Limits": "convbench.refusals",
    "adaptive_pool": "convbench.pooling.ops",
    "adaptive_pool_grad": "convbench.pooling.ops",
    "all_backends": "convbench.registry",
    "benchmark": "convbench.bench",
    "check_backend": "convbench.checks",
    "conv": "convbench.ops",
    "conv_bias_grad": "convbench.ops",
    "conv_input_grad": "convbench.ops",
    "conv_transpose": "convbench.ops",
    "conv_weight_grad": "convbench.ops",
    "convolve": "convbench.scipy_style",
    "correlate": "convbench.scipy_style",
    "explain": "convbench.select",
    "get_backend": "convbench.registry",
    "load_results": "convbench.bench",
    "plan": "convbench.planning",
    "pool": "convbench.pooling.ops",
    "pool_grad": "convbench.pooling.ops",
}

__all__ = [
    "AlgorithmBackend",
    "Backend",
    "BackendUnavailable",
    "ConvSpec",
    "ConvbenchError",
    "ErrorBound",
    "FunctionBackend",
    "Limits",
    "MissingDependency",
    "Plan",
    "PoolSpec",
    "SpecError",
    "UnknownBackend",
    "UnsupportedSpec",
    "UnsupportedWeights",
    "adaptive_pool",
    "adaptive_pool_grad",
    "all_backends",
    "benchmark",
    "check_backend",
    "conv",
    "conv_bias_grad",
    "conv_input_grad",
    "conv_transpose",
    "conv_weight_grad",
    "convolve",
    "correlate",
    "explain",
    "get_backend",
    "load_results",
    "plan",
    "pool",
    "pool_grad",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'convbench' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
