"""What the backends of generated kernels share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from convbench.backend import AlgorithmBackend

__all__ = ["CompiledBackend"]


@dataclass(frozen=True, kw_only=True)
class CompiledBackend(AlgorithmBackend):
    """Needs LLVM, and says which instruction set its kernels are made for."""

    requires: Mapping[str, str] = field(default_factory=lambda: {"llvmlite": "llvmlite"})

    @property
    def implementation(self) -> str:
        """The method, the version of each library behind it, and the target."""
        if self.unavailable():
            return super().implementation
        from convbench.jit.target import host_target

        return f"{super().implementation}, {host_target().name}"
