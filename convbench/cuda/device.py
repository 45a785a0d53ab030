"""Whether a GPU can be used: one is usable if a kernel has run on it, not if it can be imported."""

from __future__ import annotations

import re
from functools import cache

from convbench.errors import one_line
from convbench.refusals import refuse

__all__ = ["INSTALL", "cuda_version", "gpu_problem", "library_problem", "tensor_core_problem"]

#: What to type where CuPy is missing; the compiler comes with it.
INSTALL = 'pip install "cupy-cuda13x[ctk]" (or "cupy-cuda12x[ctk]", by the version that nvidia-smi prints)'

#: What kernels on tensor cores need besides: a header that none of the above brings.
_TENSOR_HEADER = "pip install nvidia-cuda-crt (with CUDA 12 nvidia-cuda-nvcc-cu12)"

_LEAST_CUPY = 14, 2  # whose array-API names are used
_LEAST_CAPABILITY = 80  # Ampere: cp.async, 99 KiB of shared memory a block, bfloat16 and TF32

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
    version = tuple(int(part) for part in re.findall(r"\d+", cupy.__version__)[:2])
    if version < _LEAST_CUPY:
        wanted = ".".join(map(str, _LEAST_CUPY))
        return refuse("not installed", f"CuPy {cupy.__version__} is installed, {wanted} or newer is needed: {INSTALL}")
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:
        return refuse("no device", f"{_reason(error)}; {_ADVICE}")
    if count == 0:
        return refuse("no device", f"CUDA finds none; {_ADVICE}")
    try:
        capability = int(cupy.cuda.Device().compute_capability)
        if capability < _LEAST_CAPABILITY:
            least = _LEAST_CAPABILITY / 10
            return refuse(
                "no device", f"compute capability {capability / 10}: the kernels need {least} (Ampere) or more"
            )
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


@cache
def tensor_core_problem() -> str | None:
    """Return what keeps kernels on tensor cores from being compiled here, or None."""
    problem = gpu_problem()
    if problem is not None:
        return problem
    import cupy

    try:
        cupy.RawModule(code='#include <mma.h>\nextern "C" __global__ void nothing() {}').get_function("nothing")
    except Exception as error:
        return refuse("not installed", f"mma.h cannot be compiled ({one_line(error)}): {_TENSOR_HEADER}")
    return None


def cuda_version(number: int) -> str:
    """Read CUDA's way of writing a version.

    >>> cuda_version(13020)
    '13.2'
    """
    return f"{number // 1000}.{number % 1000 // 10}"


def _reason(error: Exception) -> str:
    """Return CUDA's own words, except where they mislead: without any driver it speaks of an old one."""
    text = one_line(error)
    if "cudaErrorInsufficientDriver" in text:
        return "there is no CUDA driver, or one older than this CuPy needs"
    return text
