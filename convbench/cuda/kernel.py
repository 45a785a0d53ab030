"""What a kernel is: one instance of a template in one of the sources beside this module."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

__all__ = ["OPTIONS", "SOURCES", "Kernel", "Launch", "all_kernels", "source_text"]

#: Where the sources are.
SOURCES = Path(__file__).parent / "kernels"

#: What every kernel is compiled with, beside what CuPy adds.
OPTIONS = ("-std=c++17",)

#: ``launch(grid, arguments)``: arrays as pointers, None as the null pointer, NumPy scalars and structured NumPy arrays
#: of size one by value.
Launch = Callable[[tuple[int, int, int], Sequence[Any]], None]

_INCLUDE = re.compile(r'^#include "([\w.]+)"\n', re.MULTILINE)


@dataclass(frozen=True)
class Kernel:
    """One instance of a template.

    Attributes
    ----------
    file : str
        Of :data:`SOURCES`.
    instance : str
        The C++ expression that names it: ``"direct<float, 2>"``.
    block : tuple of int
        Threads along x, y and z.
    shared_bytes : int
        Dynamic shared memory.
    tensor_cores : bool
        Whether it multiplies on tensor cores.
    """

    file: str
    instance: str
    block: tuple[int, int, int]
    shared_bytes: int = 0
    tensor_cores: bool = False

    def source(self) -> str:
        """Return the text that is compiled, with the files beside it that it includes."""
        return source_text(self.file)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        x, y, z = self.block
        return x * y * z

    @property
    def fingerprint(self) -> str:
        """A digest of all that decides what is compiled and how it is launched."""
        parts = (self.source(), self.instance, *OPTIONS, repr(self.block), repr(self.shared_bytes))
        return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


@cache
def source_text(file: str) -> str:
    """Return a source with the text of every file of :data:`SOURCES` that it includes in its place, each once."""
    included: set[str] = set()

    def insert(match: re.Match[str]) -> str:
        name = match[1]
        if name in included:
            return ""
        included.add(name)
        return _INCLUDE.sub(insert, (SOURCES / name).read_text(encoding="utf-8"))

    text = _INCLUDE.sub(insert, (SOURCES / file).read_text(encoding="utf-8"))
    return text.replace("#pragma once\n", "")


@cache
def all_kernels() -> tuple[Kernel, ...]:
    """Return every instance that any algorithm of this package may launch: what its modules list as ``KERNELS``."""
    import convbench.cuda

    modules = (importlib.import_module(f"convbench.cuda.{m.name}") for m in iter_modules(convbench.cuda.__path__))
    return tuple(dict.fromkeys(kernel for module in modules for kernel in getattr(module, "KERNELS", ())))
