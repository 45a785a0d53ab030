"""What the backends on the GPU share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from convbench.arrays import Namespace, cupy_namespace
from convbench.backend import AlgorithmBackend, FunctionBackend, Plan, version_of
from convbench.bounds import ErrorBound
from convbench.cuda.device import gpu_problem, library_problem
from convbench.cuda.variants import Variant
from convbench.spec import ConvSpec

__all__ = ["CudaBackend", "CudaFunctionBackend", "cupy_version", "needs"]


def needs(*libraries: str) -> Callable[[], str | None]:
    """Return a ``device_problem`` that looks for some of CUDA's libraries too, which CuPy loads when they are used."""
    return partial(library_problem, *libraries)


def cupy_version() -> str:
    """Return the name and version of the CuPy that is installed, which has a distribution for each version of CUDA."""
    for name in ("cupy-cuda13x", "cupy-cuda12x", "cupy"):
        version = version_of(name)
        if version != "not installed":
            return f"{name} {version}"
    return "cupy not installed"


@dataclass(frozen=True, kw_only=True)
class CudaBackend(AlgorithmBackend):
    """An algorithm whose arrays are CuPy's.

    Attributes
    ----------
    device_problem : callable
        Returns what keeps kernels from running, or None.
    variants : tuple of Variant
        Cases that launch every kernel that the algorithm may launch.
    """

    device: str = "cuda"
    ns: Callable[[], Namespace] = cupy_namespace
    device_problem: Callable[[], str | None] = gpu_problem
    variants: tuple[Variant, ...] = ()

    @property
    def implementation(self) -> str:
        """The method and CuPy's version."""
        return f"{self.summary} ({cupy_version()})"

    def unavailable(self) -> str | None:
        """Return what is missing and how to install it, or None."""
        return super().unavailable() or self.device_problem()

    def error_bound(self, spec: ConvSpec) -> ErrorBound:
        """Return the algorithm's bound; float32 may be flushed to zero, as CuPy compiles with -ftz=true."""
        found = super().error_bound(spec)
        return replace(found, flushes_denormals=found.flushes_denormals or spec.dtype == "float32")

    def _plan(self, spec: ConvSpec, threads: int) -> Plan:
        """Keep no buffers between calls: one that has returned may be at work still, and the next on another stream."""
        from convbench.algorithms.blocking import scratch_not_kept

        with scratch_not_kept():
            return super()._plan(spec, threads)


@dataclass(frozen=True, kw_only=True)
class CudaFunctionBackend(FunctionBackend):
    """A function of CuPy's arrays.

    Attributes
    ----------
    device_problem : callable
        Returns what keeps kernels from running, or None.
    """

    device: str = "cuda"
    ns: Callable[[], Namespace] = cupy_namespace
    device_problem: Callable[[], str | None] = gpu_problem

    @property
    def implementation(self) -> str:
        """The method, CuPy's version and that of each library behind it."""
        libraries = [cupy_version(), *(f"{name} {version_of(name)}" for name in self.requires.values())]
        return f"{self.summary} ({', '.join(libraries)})"

    def unavailable(self) -> str | None:
        """Return what is missing and how to install it, or None."""
        return super().unavailable() or self.device_problem()
