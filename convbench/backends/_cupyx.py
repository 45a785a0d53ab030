"""What the rivals from ``cupyx.scipy`` share: its functions, imported late, and what they need."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from convbench.backends._scipy_signal import Library
from convbench.cuda.device import library_problem

__all__ = ["ON_DEVICE", "cupy_module", "ndimage", "signal", "signal_problem"]


def cupy_module() -> Any:
    """Return ``cupy``."""
    return importlib.import_module("cupy")


def signal() -> Any:
    """Return ``cupyx.scipy.signal``; CuPy loads cuBLAS when it is imported."""
    return importlib.import_module("cupyx.scipy.signal")


def ndimage() -> Any:
    """Return ``cupyx.scipy.ndimage``."""
    return importlib.import_module("cupyx.scipy.ndimage")


@cache
def signal_problem() -> str | None:
    """Return what keeps ``cupyx.scipy.signal`` from running, or None."""
    return library_problem("cublas", "cufft")


def _fast_size(n: int, real: bool) -> int:
    """As ``cupyx.scipy.fft.next_fast_len`` has it: of real numbers, too, any product of 2, 3, 5 and 7."""
    from convbench.transforms import smooth_size

    return smooth_size(n, (2, 3, 5, 7))


#: A GPU wants much work in a call; nothing is gained by few examples at a time.
ON_DEVICE = Library(cupy_module, _fast_size, chunk_bytes=2**30, examples_bytes=2**30)
