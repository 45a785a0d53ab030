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
    from convbench.ops import conv, convolve, correlate, plan
    from convbench.refusals import Limits
    from convbench.registry import all_backends, get_backend
    from convbench.select import explain

__version__ = "0.1.0"

_LAZY = {
    "AlgorithmBackend": "convbench.backend",
    "Backend": "convbench.backend",
    "FunctionBackend": "convbench.backend",
    "Plan": "convbench.backend",
    "ErrorBound": "convbench.bounds",
    "Limits": "convbench.refusals",
    "all_backends": "convbench.registry",
    "benchmark": "convbench.bench",
    "check_backend": "convbench.checks",
    "conv": "convbench.ops",
    "convolve": "convbench.ops",
    "correlate": "convbench.ops",
    "explain": "convbench.select",
    "get_backend": "convbench.registry",
    "load_results": "convbench.bench",
    "plan": "convbench.ops",
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
    "SpecError",
    "UnknownBackend",
    "UnsupportedSpec",
    "UnsupportedWeights",
    "all_backends",
    "benchmark",
    "check_backend",
    "conv",
    "convolve",
    "correlate",
    "explain",
    "get_backend",
    "load_results",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'convbench' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
