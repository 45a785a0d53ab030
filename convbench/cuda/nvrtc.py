"""Kernels compiled where there is no GPU: by NVRTC, with the options that CuPy gives it, for devices that are named.

CuPy's own way asks the device for its architecture first. Here the same compiler gets the same text and the same
options, so that what it says of registers and spills is said of the code that CuPy would run. Two names of CuPy's are
private, which is why the extra ``gpu-check`` pins its minor version, and a test holds the options to CuPy's own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from io import StringIO

from convbench.cuda.kernel import OPTIONS, Kernel, source_text
from convbench.errors import ConvbenchError, one_line
from convbench.jit.compile import cache_folder, read_own, write_own

__all__ = ["ARCHITECTURES", "Code", "CompilationError", "Program", "compiler", "nvrtc_problem", "options", "programs"]

#: Compute capabilities, major and minor digit: A100, and H100 and H200.
ARCHITECTURES = (80, 90)

#: What decides the code beside CuPy's version: the compiler, and the headers that sources include.
_DISTRIBUTIONS = ("nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cuda-crt")


#: Instances: each takes NVRTC a second, a source's headers a fraction of one.
_AT_A_TIME = 4


class CompilationError(ConvbenchError):
    """NVRTC refused a source; the message is its own, of several lines."""


@dataclass(frozen=True)
class Code:
    """What was made of one instance.

    Attributes
    ----------
    registers : int
        Of a thread.
    stack_bytes, spill_bytes : int
        Of a thread: local memory; and what is stored into it and loaded from it for want of registers.
    shared_bytes : int
        Static shared memory of a block.
    opcodes : frozenset of str
        Of its PTX: ``fma.rn.ftz.f32``, ``cp.async.cg.shared.global``, …
    """

    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    opcodes: frozenset[str]


@dataclass(frozen=True)
class Program:
    """Some instances of one source, for one architecture."""

    file: str
    source: str
    instances: tuple[str, ...]
    architecture: int

    def compile(self) -> Mapping[str, Code]:
        """Return the code of each instance, from disk or by NVRTC.

        Raises
        ------
        CompilationError
            With what NVRTC complains of.
        """
        path = cache_folder().parent / "nvrtc" / f"{self._key()}.json"
        try:
            kept = json.loads(read_own(path) or b"")
            return {name: Code(**code | {"opcodes": frozenset(code["opcodes"])}) for name, code in kept.items()}
        except (ValueError, TypeError, KeyError, AttributeError):  # nothing is kept, or something else
            made = self._compile()
        told = {name: asdict(code) | {"opcodes": sorted(code.opcodes)} for name, code in made.items()}
        write_own(path, json.dumps(told).encode())
        return made

    def _key(self) -> str:
        parts = (self.source, *self.instances, str(self.architecture), *OPTIONS, *_versions())
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _compile(self) -> dict[str, Code]:
        from cupy.cuda.compiler import CompileException, _NVRTCProgram
        from cupy_backends.cuda.libs import nvrtc

        program = _NVRTCProgram(self.source, self.file, name_expressions=self.instances or None, method="cubin")
        log = StringIO()
        try:
            _, names = program.compile((*options(self.architecture), "--ptxas-options=-v"), log)
        except CompileException as error:
            raise CompilationError(f"{self.file} for sm_{self.architecture}: {error.get_message()}") from None
        ptx = nvrtc.getPTX(program.ptr).decode()
        return read_code(names or {}, log.getvalue(), ptx)


def programs(kernels: Iterable[Kernel]) -> tuple[Program, ...]:
    """Return what is to be compiled for these kernels: every instance for each architecture, a few at a time."""
    instances: dict[str, dict[str, None]] = {}
    for kernel in kernels:
        instances.setdefault(kernel.file, {})[kernel.instance] = None
    return tuple(
        Program(file, source_text(file), tuple(names)[first : first + _AT_A_TIME], architecture)
        for file, names in instances.items()
        for first in range(0, len(names), _AT_A_TIME)
        for architecture in ARCHITECTURES
    )


def options(architecture: int) -> tuple[str, ...]:
    """Return all that NVRTC is told by CuPy for a kernel of this package on such a device."""
    from cupy._core.core import assemble_cupy_compiler_options

    ours = assemble_cupy_compiler_options(OPTIONS)
    return (*ours, "-ftz=true", f"-arch=sm_{architecture}", "--device-as-default-execution-space")


@cache
def nvrtc_problem() -> str | None:
    """Return what keeps kernels from being compiled here, or None."""
    try:
        Program("common.cuh", source_text("common.cuh"), (), ARCHITECTURES[0])._compile()
    except ModuleNotFoundError as error:
        return f'{error.name} is not installed: pip install "convbench[gpu-check]"'
    except Exception as error:  # a library or a header is missing, or one of CuPy's names has gone
        return f'NVRTC does not compile here ({one_line(error)}): pip install "convbench[gpu-check]"'
    return None


@cache
def compiler() -> str:
    """Name the compiler: ``"NVRTC 13.0.88"``."""
    try:
        return f"NVRTC {metadata.version(_DISTRIBUTIONS[0])}"
    except metadata.PackageNotFoundError:  # that of a CUDA toolkit
        from cupy_backends.cuda.libs import nvrtc

        return "NVRTC {}.{}".format(*nvrtc.getVersion())


@cache
def _versions() -> tuple[str, ...]:
    import cupy

    found = [cupy.__version__, compiler()]
    for name in _DISTRIBUTIONS:
        try:
            found.append(metadata.version(name))
        except metadata.PackageNotFoundError:
            found.append("")
    return tuple(found)


_ENTRY = re.compile(r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry function|\Z)", re.DOTALL)
_OPCODE = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z]\w*(?:[.:]+\w+)+)", re.MULTILINE)


def read_code(names: Mapping[str, str], log: str, ptx: str) -> dict[str, Code]:
    """Read what ptxas and NVRTC say of each instance.

    Parameters
    ----------
    names : mapping of str to str
        Instance → its mangled name.
    log, ptx : str
    """
    logs = {match[1]: match[2] for match in _ENTRY.finditer(log)}
    bodies = {body.partition("(")[0].strip(): body for body in ptx.split(".entry ")[1:]}
    return {
        instance: Code(
            registers=_figure(r"Used (\d+) registers", logs[name]),
            stack_bytes=_figure(r"(\d+) bytes stack frame", logs[name]),
            spill_bytes=_figure(r"(\d+) bytes spill stores", logs[name])
            + _figure(r"(\d+) bytes spill loads", logs[name]),
            shared_bytes=_figure(r"(\d+) bytes smem", logs[name], absent=0),
            opcodes=frozenset(_OPCODE.findall(bodies[name])),
        )
        for instance, name in names.items()
    }


def _figure(pattern: str, text: str, absent: int | None = None) -> int:
    match = re.search(pattern, text)
    if match:
        return int(match[1])
    if absent is None:
        raise ValueError(f"ptxas says nothing like {pattern!r} in {one_line(text)!r}")
    return absent
