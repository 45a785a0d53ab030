"""Whether a GPU can be used: one is usable if a kernel has run on it, not if it can be imported."""

from __future__ import annotations

from functools import cache

from convbench.errors import one_line
from convbench.refusals import refuse

__all__ = ["INSTALL", "gpu_problem", "library_problem"]

#: What to type where CuPy is missing; the compiler comes with it.
INSTALL = 'pip install "cupy-cuda13x[ctk]" (or "cupy-cuda12x[ctk]", by the version that nvidia-smi prints)'

_ADVICE = "a CUDA GPU and its driver are needed: nvidia-smi must list the card"


@cache
def gpu_problem() -> str | None:
    """Return what keeps kernels from running here, or None once one has run and its result was right."""
    try:
        import cupy
    except ModuleNotFoundError:
        return refuse("not installed", f"needs CuPy: {INSTALL}")
    except Exception as error:  # a broken installation may raise anything; it must cost these backends, not the run
        return refuse("not installed", f"CuPy cannot be imported ({one_line(error)}): {INSTALL}")
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:
        return refuse("no device", f"{_reason(error)}; {_ADVICE}")
    if count == 0:
        return refuse("no device", f"CUDA finds none; {_ADVICE}")
    try:
        numbers = cupy.arange(4, dtype=cupy.float32)
        right = float((numbers * numbers).sum()) == 14.0
    except Exception as error:
        return refuse("no device", f"no kernel could be run ({_reason(error)}); {INSTALL} brings the compiler")
    return None if right else refuse("no device", "the first kernel returned a wrong result: is the card sound?")


@cache
def library_problem(*names: str) -> str | None:
    """Return what keeps kernels from running here, or which of CUDA's libraries is missing: "cufft", "cublas", …"""
    problem = gpu_problem()
    if problem is not None:
        return problem
    import cupy

    for name in names:
        try:
            getattr(cupy.cuda, name)  # which CuPy imports when it is asked for
        except Exception as error:
            return refuse("not installed", f"{name} cannot be loaded ({one_line(error)}): {INSTALL} brings it")
    return None


def _reason(error: Exception) -> str:
    """Return CUDA's own words, except where they mislead: without any driver it speaks of an old one."""
    text = one_line(error)
    if "cudaErrorInsufficientDriver" in text:
        return "there is no CUDA driver, or one older than this CuPy needs"
    return text
