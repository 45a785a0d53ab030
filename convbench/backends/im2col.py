"""``im2col``: implicit GEMM, compiled, of what it does forward in float32 and float64; the rest on NumPy."""

from __future__ import annotations

from convbench.algorithms.family import planned
from convbench.algorithms.im2col import Im2col
from convbench.arrays import Namespace
from convbench.backend import Algorithm, AlgorithmBackend, forward_and_shared, import_problem, version_of
from convbench.backends._compiled import WholeItems, target_problem
from convbench.ops import front_doors
from convbench.refusals import FLOATS, WHOLE_FAMILY
from convbench.spec import ConvSpec


class _Im2col(AlgorithmBackend):
    """Says which part is done by what."""

    @property
    def implementation(self) -> str:
        """Both methods and what they are for, where machine code can be made."""
        if not _machine_code():
            return super().implementation
        from convbench.jit.target import host_target

        libraries = f"{host_target().name}, llvmlite {version_of('llvmlite')}"
        return (
            f"forward, and what is done as forward convolutions, in {' and '.join(FLOATS)}, shared weights, "
            f"1 to 3 axes: implicit GEMM, compiled ({libraries}); else {super().implementation}"
        )

    def _realised(self, ns: Namespace, spec: ConvSpec, threads: int) -> Algorithm:
        made = super()._realised(ns, spec, threads)
        whole: Algorithm = WholeItems(made, spec) if spec.dtype in FLOATS and _machine_code() else made
        return whole


def _compiles(spec: ConvSpec) -> bool:
    """Tell whether a spec is for the implicit GEMM."""
    return forward_and_shared(spec) and spec.dtype in FLOATS and spec.ndim <= 3 and _machine_code()


def _machine_code() -> bool:
    """Tell whether kernels can be made here."""
    return import_problem("llvmlite.binding") is None and target_problem() is None


def _planned(ns: Namespace, spec: ConvSpec, threads: int) -> Algorithm:
    if _compiles(spec):
        from convbench.algorithms.implicit_gemm import ImplicitGemm

        return ImplicitGemm(ns, spec, threads)
    made: Algorithm = planned(Im2col)(ns, spec, threads)
    return made


BACKEND = _Im2col(
    name="im2col",
    summary="blocks of columns + GEMM",
    algorithm=_planned,
    native=Im2col.native,
    limits=WHOLE_FAMILY,
)
__getattr__ = front_doors("im2col")
