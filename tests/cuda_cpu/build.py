"""The sources of kernels as shared objects for this processor, kept on disk."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from convbench.cuda.kernel import SOURCES

__all__ = ["Module", "compiler_problem", "module", "origins"]

_HERE = Path(__file__).parent

#: fno-gnu-unique: or the static arrays of a template's instance would be one in all modules of the process.
#: fstack-clash-protection: no frame is so large that it gets past the guard below a fiber's stack.
_COMMON = (
    "-std=c++17",
    "-fPIC",
    "-fno-gnu-unique",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-fno-threadsafe-statics",
    "-fstack-clash-protection",
    "-fno-math-errno",
    "-w",
)
#: DWARF 4: of version 5 addr2line (binutils 2.40) reads the names of files wrongly where #line gives them.
_PLAIN = ("-O1", "-g1", "-gdwarf-4")
#: The calls that fsanitize plants are answered by check.cpp, not by libtsan.
_CHECK = (*_PLAIN, "-DCUDA_CPU_CHECK", "-fsanitize=thread,bounds,alignment", "-fsanitize-recover=all")

#: ``extern __shared__ T name[];``, in two parts: T and the name.
_DYNAMIC = re.compile(
    r"extern\s+__shared__\s+(?:(?:__align__|alignas)\s*\((?:[^()]|\([^()]*\))*\)\s*)?"
    r"([\w:<>, ]+?)\s+(\w+)\s*\[\s*\]\s*;"
)


@dataclass(frozen=True)
class Module:
    """A shared object.

    Attributes
    ----------
    path : Path
    shared : mapping of str to tuples
        Name of a symbol → (variable, offset in the file as loaded, bytes) of the static shared arrays of that function.
    """

    path: Path
    shared: dict[str, list[tuple[str, int, int]]]
    symbols: dict[int, str]


@cache
def compiler_problem() -> str | None:
    """Return why kernels cannot be compiled for this processor, or None."""
    if platform.system() != "Linux":
        return "kernels are run on the CPU on Linux only"
    if shutil.which(_compiler()) is None:
        return f"{_compiler()} is not installed (apt install g++)"
    return None


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


@cache
def _compiler_key() -> str:
    version = subprocess.run([_compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    return "\0".join((version, platform.machine(), *_target()))


@cache
def _target() -> tuple[str, ...]:
    """Fused multiply-add and half precision by instructions where there are any: much faster than by calls."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(re.findall(r"\w+", cpuinfo.read_text(encoding="utf-8"))) if cpuinfo.exists() else set()
    if platform.machine() != "x86_64" or not {"avx2", "fma", "f16c"} <= flags:
        return ()
    return ("-mavx2", "-mfma", "-mf16c")


@cache
def folder() -> Path:
    """Return where compiled kernels are kept: $CUDA_CPU_CACHE, or a folder of this user's among the temporary files."""
    named = os.environ.get("CUDA_CPU_CACHE")
    path = Path(named) if named else Path(tempfile.gettempdir()) / f"convbench-cuda-cpu-{os.getuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _digest(*parts: str) -> str:
    return blake2b("\0".join((Path(__file__).read_text(encoding="utf-8"), *parts)).encode(), digest_size=12).hexdigest()


@cache
def _shim_text() -> str:
    files = (*sorted(_HERE.glob("*.h")), *sorted(_HERE.glob("*.cpp")), *sorted((_HERE / "include").rglob("*")))
    return "\0".join(path.read_text(encoding="utf-8") for path in files if path.is_file())


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Let one process at a time make ``path``: the others wait, and then find it made."""
    with open(path.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(arguments: Sequence[str], what: str, target: Path) -> None:
    done = subprocess.run([_compiler(), *arguments], capture_output=True, text=True, cwd=target.parent, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} does not compile for the CPU:\n{done.stderr[:6000]}")


def _flags(check: bool) -> tuple[str, ...]:
    fibers = ("-DCUDA_CPU_UCONTEXT",) if os.environ.get("CUDA_CPU_FIBERS") == "ucontext" else ()
    return (*_COMMON, *_target(), *(_CHECK if check else _PLAIN), *fibers)


@cache
def _runtime(flags_of_kernels: tuple[str, ...]) -> list[str]:
    """Compile what all modules contain: the fibers and, for check mode, the checks. Return the object files."""
    flags = [flag for flag in flags_of_kernels if not flag.startswith("-fsanitize")]
    objects = []
    for name in ("runtime", "check"):
        path = folder() / f"{name}-{_digest(_shim_text(), _compiler_key(), *flags)}.o"
        if not path.exists():
            with _only_one(path):
                if not path.exists():
                    fresh = path.with_suffix(f".{os.getpid()}.o")
                    source = str(_HERE / f"{name}.cpp")
                    _compile([*flags, "-O2", "-I", str(_HERE), "-c", source, "-o", str(fresh)], source, path)
                    os.replace(fresh, path)
        objects.append(str(path))
    return objects


def origins(kernel_file: str, source: str) -> list[tuple[str, int]]:
    """Return the file and line that each line of a kernel's text comes from.

    A text that a test has changed is taken to have its lines where they were, if there are as many.
    """
    included: set[str] = set()

    def lines(file: str) -> Iterator[tuple[str, int, str]]:
        for number, line in enumerate((SOURCES / file).read_text(encoding="utf-8").splitlines(), 1):
            include = re.fullmatch(r'#include "([\w.]+)"', line)
            if include and include[1] not in included:
                included.add(include[1])
                yield from lines(include[1])
            elif not include and line != "#pragma once":
                yield file, number, line

    found = list(lines(kernel_file)) if (SOURCES / kernel_file).exists() else []
    if len(found) != len(source.splitlines()):
        return [(kernel_file, number) for number in range(1, len(source.splitlines()) + 1)]
    return [(file, number) for file, number, _ in found]


def translation_unit(file: str, source: str, instances: Sequence[str]) -> str:
    """Return what is compiled: the header, the kernel's text, and a table of its instances."""
    lines, expected = [], ("", 0)
    for (origin, number), line in zip(origins(file, source), source.splitlines(), strict=True):
        if (origin, number) != expected:
            lines.append(f'#line {number} "{origin}"')
        lines.append(line)
        expected = (origin, number + 1)
    text = _DYNAMIC.sub(r"\1* const \2 = reinterpret_cast<\1*>(cuda_cpu::dynamic_shared());", "\n".join(lines))
    entries = "\n".join(f"    cuda_cpu::entry({json.dumps(name)}, &{name})," for name in instances)
    return f"""#include "cuda_cpu.h"
{text}
#line 1 "instances of {file}"
extern "C" __attribute__((visibility("default"), no_sanitize("thread"))) const cuda_cpu::Entry* cuda_cpu_entries() {{
    static const cuda_cpu::Entry table[] = {{
{entries}
    {{nullptr, nullptr, nullptr, 0, nullptr, nullptr}}}};
    return table;
}}
"""


def module(file: str, source: str, instances: tuple[str, ...], check: bool) -> Module:
    """Return the shared object that holds the given instances, compiled now if it is not yet there."""
    flags = _flags(check)
    name = f"{Path(file).stem}-{_digest(source, *instances, _shim_text(), _compiler_key(), *flags)}"
    path = folder() / f"{name}.so"
    if not path.exists():
        with _only_one(path):
            if not path.exists():
                _build(path, file, source, instances, flags)
    facts: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return Module(path, facts["shared"], {int(at): symbol for at, symbol in facts["symbols"].items()})


def _build(path: Path, file: str, source: str, instances: Sequence[str], flags: tuple[str, ...]) -> None:
    objects = _runtime(flags)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        text, compiled, linked = (Path(scratch) / f"kernel.{end}" for end in ("cpp", "o", "so"))
        text.write_text(translation_unit(file, source, instances), encoding="utf-8")
        include = ["-I", str(_HERE), "-I", str(_HERE / "include")]
        _compile([*flags, *include, "-c", str(text), "-o", str(compiled)], file, text)
        _compile(["-shared", "-Wl,-Bsymbolic", str(compiled), *objects, "-o", str(linked)], file, text)
        facts = path.with_suffix(f".{os.getpid()}.json")
        facts.write_text(json.dumps(_facts(linked)), encoding="utf-8")
        os.replace(facts, path.with_suffix(".json"))
        os.replace(linked, path)


def _facts(path: Path) -> dict[str, Any]:
    """Return where functions lie, and the shared arrays that each declares: what the symbols' names say.

    The Itanium C++ ABI mangles a function f as _Z<f>, and a static variable v of it as _ZZ<f>E<v>.
    """
    listing = subprocess.run(["nm", "-S", str(path)], capture_output=True, text=True, check=True).stdout
    symbols, statics = {}, []
    for line in listing.splitlines():
        fields = line.split()
        if len(fields) != 4:
            continue
        at, size, kind, name = int(fields[0], 16), int(fields[1], 16), *fields[2:]
        if kind in "tTwWi":
            symbols[at] = name
        elif kind in "bBuVdD" and name.startswith("_ZZ") and "_ZZ16cuda_cpu_entries" not in name:
            statics.append((name, at, size))
    shared: dict[str, list[tuple[str, int, int]]] = {}
    functions = {("_ZZ" + name[2:] if name.startswith("_Z") else f"_ZZ{len(name)}{name}") + "E": name
                 for name in symbols.values()}  # fmt: skip
    for name, at, size in statics:
        owners = [function for prefix, function in functions.items() if name.startswith(prefix)]
        owner = max(owners, key=len, default="")  # "": of a function that was inlined
        shared.setdefault(owner, []).append((name, at, size))
    return {"symbols": {str(at): name for at, name in symbols.items()}, "shared": shared}
