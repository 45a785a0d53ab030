"""What the backends of generated kernels share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convbench.arrays import Array, Namespace
from convbench.backend import Algorithm, AlgorithmBackend
from convbench.errors import SpecError
from convbench.refusals import refuse
from convbench.spec import ConvSpec

__all__ = ["CompiledBackend", "WholeItems", "target_problem"]


class WholeItems:
    """An algorithm whose kernels count strides in items, made good for arrays whose strides are no whole items.

    Such are the fields of packed records: an operand of that kind is copied, a result written to a temporary array.
    """

    def __init__(self, algorithm: Algorithm, spec: ConvSpec) -> None:
        from convbench.jit.target import host_target

        self._algorithm, self._second_is_array = algorithm, spec.op == "weight_grad"
        self.packing = host_target().name  # weights are packed for its vectors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._algorithm, name)

    def prepare(self, w: Array) -> tuple[Any, int | None]:
        """Return what the algorithm makes of the weights."""
        return self._algorithm.prepare(_in_whole_items(w))

    def run(self, first: Array, second: Any, bias: Array | None, out: Array) -> None:
        """Fill ``out``."""
        if self._second_is_array:
            second = _in_whole_items(second)
        if out.flags.aligned:
            self._algorithm.run(_in_whole_items(first), second, bias, out)
            return
        target = _in_whole_items(out)
        self._algorithm.run(_in_whole_items(first), second, bias, target)
        if target is not out:
            out[...] = target


def _in_whole_items(array: Array) -> Array:
    """Return the array itself if it can be, else a copy."""
    if array.flags.aligned or not any(stride % array.itemsize for stride in array.strides):
        return array
    return array.copy()


def target_problem() -> str | None:
    """Return what is wrong with the target that kernels should be made for, or None."""
    from convbench.jit.target import host_target

    try:
        host_target()
    except SpecError as error:
        return refuse("no device", str(error))
    return None


@dataclass(frozen=True, kw_only=True)
class CompiledBackend(AlgorithmBackend):
    """Needs LLVM, and says which instruction set its kernels are made for."""

    requires: Mapping[str, str] = field(default_factory=lambda: {"llvmlite.binding": "llvmlite"})

    @property
    def implementation(self) -> str:
        """The method, the version of each library behind it, and the target."""
        if self.unavailable():
            return super().implementation
        from convbench.jit.target import host_target

        return f"{super().implementation}, {host_target().name}"

    def unavailable(self) -> str | None:
        """Return what is missing and how to install it, or that the target asked for is not this CPU's."""
        return super().unavailable() or target_problem()

    def _realised(self, ns: Namespace, spec: ConvSpec, threads: int) -> Algorithm:
        made: Algorithm = WholeItems(super()._realised(ns, spec, threads), spec)
        return made
