"""What kernels are generated for: this CPU at its widest vectors, or a narrower target by name.

``CONVBENCH_JIT_TARGET`` forces one: "avx512", "avx2" or "generic" on x86-64, "neon" or "generic" on 64-bit Arm. A
target that this CPU has not is refused, since its code would end the process. "generic" is what every CPU of the
architecture has (SSE2, NEON); elsewhere it is LLVM's choice for the host, in 16-byte vectors.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

from convbench.errors import SpecError

__all__ = ["VARIABLE", "Target", "host_target", "targets"]

VARIABLE = "CONVBENCH_JIT_TARGET"

#: What LLVM may use for "haswell" beside AVX; a virtual machine may hide some of it.
_HASWELL = ("avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "movbe", "popcnt")


@dataclass(frozen=True)
class Target:
    """An instruction set, as LLVM names it, and what a register tile is sized by.

    Attributes
    ----------
    name : str
    triple, cpu, features : str
        LLVM's.
    vector_bytes : int
    registers : int
        Vector registers that code may use.
    """

    name: str
    triple: str
    cpu: str
    features: str
    vector_bytes: int
    registers: int

    def lanes(self, dtype: str) -> int:
        """Return how many numbers a vector holds.

        >>> Target("avx2", "x86_64-linux", "haswell", "", 32, 16).lanes("float64")
        4
        """
        return self.vector_bytes // (8 if dtype == "float64" else 4)


@cache
def targets() -> dict[str, Target]:
    """Return what this CPU can run, the best first."""
    from llvmlite import binding

    triple, cpu = binding.get_default_triple(), binding.get_host_cpu_name()
    found = binding.get_host_cpu_features()
    features, has = found.flatten(), found.get
    known: list[Target] = []
    if triple.startswith("x86_64"):
        if has("avx512f") and has("avx512vl") and has("avx512dq"):
            known.append(Target("avx512", triple, cpu, features, 64, 32))
        if all(map(has, _HASWELL)):
            known.append(Target("avx2", triple, "haswell", "", 32, 16))
        known.append(Target("generic", triple, "x86-64", "", 16, 16))
    elif triple.startswith(("aarch64", "arm64")):
        known += [Target("neon", triple, cpu, features, 16, 32), Target("generic", triple, "generic", "", 16, 32)]
    else:
        known.append(Target("generic", triple, cpu, "", 16, 16))
    return {target.name: target for target in known}


def host_target() -> Target:
    """Return the target that kernels are made for now.

    Raises
    ------
    SpecError
        If the environment forces one that this CPU has not.
    """
    known, forced = targets(), os.environ.get(VARIABLE, "")
    if not forced:
        return next(iter(known.values()))
    if forced not in known:
        raise SpecError(VARIABLE, forced, f"must be one of {', '.join(known)} on this CPU, or unset")
    return known[forced]
