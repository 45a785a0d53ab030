"""Cases that launch every kernel, those included that the choice by cost leaves for large convolutions.

Each module that lists ``KERNELS`` has ``VARIANTS`` that launch all of them: with a form forced, if need be, on a
convolution that is small enough to be judged by the oracle. The tests run them on the CPU, and ``convbench check --gpu
--ledger`` on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from convbench.arrays import Namespace
from convbench.bounds import ErrorBound
from convbench.cuda.kernel import Kernel, Launch
from convbench.spec import ConvSpec

if TYPE_CHECKING:
    from convbench.backends._cuda import CudaBackend
    from convbench.checks import CheckResult

__all__ = ["Planner", "Variant", "check_variants", "kernels_of", "with_shared_bytes"]

#: ``algorithm(ns, spec, threads)``.
Planner = Callable[[Namespace, ConvSpec, int], Any]


@dataclass(frozen=True)
class Variant:
    """One case.

    Attributes
    ----------
    kernels : tuple of Kernel
        What it is there for: it may launch more.
    line : str
        The spec.
    algorithm : callable, optional
        With the form forced; by default the backend's own.
    bound : callable, optional
        Of that form's error, if it is not that of the backend.
    """

    kernels: tuple[Kernel, ...]
    line: str
    algorithm: Planner | None = None
    bound: Callable[[ConvSpec], ErrorBound] | None = None

    def forced(self, backend: CudaBackend) -> CudaBackend:
        """Return the backend with the form forced."""
        return replace(backend, algorithm=self.algorithm or backend.algorithm, bound=self.bound or backend.bound)

    def check(self, backend: CudaBackend, seed: int = 0) -> list[CheckResult]:
        """Judge it as the battery does: small integers exactly, Gaussian data by the bound."""
        from convbench.checks.numerics import gaussian_errors_are_within_the_bound, small_integers_are_exact
        from convbench.checks.running import checks_of
        from convbench.checks.subject import Subject

        forced, spec = self.forced(backend), ConvSpec.parse(self.line)
        rules = [(rule, lambda _: True) for rule in (small_integers_are_exact, gaussian_errors_are_within_the_bound)]
        return [check.run() for check in checks_of(forced, [spec], rules, lambda s: Subject(forced, s, seed), spec)]


def check_variants(backend: Any, seed: int = 0) -> Iterator[CheckResult]:
    """Yield what comes of all variants of a backend; none if it has no kernels of its own."""
    for variant in getattr(backend, "variants", ()):
        yield from variant.check(backend, seed)


def kernels_of(backend: Any) -> tuple[Kernel, ...]:
    """Return the kernels that a backend may launch, each once."""
    return tuple(dict.fromkeys(kernel for variant in getattr(backend, "variants", ()) for kernel in variant.kernels))


def with_shared_bytes(algorithm: Planner, shared_bytes: int) -> Planner:
    """Return an algorithm whose kernels are given that much dynamic shared memory, if they ask for less of it."""

    def planned(ns: Namespace, spec: ConvSpec, threads: int) -> Any:
        loaded = ns.kernels
        if loaded is None:
            return algorithm(ns, spec, threads)

        def roomier(kernel: Kernel) -> Launch:
            asked = kernel.shared_bytes
            return loaded(replace(kernel, shared_bytes=max(asked, shared_bytes)) if asked else kernel)

        return algorithm(replace(ns, kernels=roomier), spec, threads)

    return planned
