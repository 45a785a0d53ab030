"""From IR to machine code, kept on disk: a kernel is compiled once a machine, not once a process.

An entry's name is a digest of the IR, the target and LLVM's version; it begins with a digest of its own content, so
that what was cut off or altered is found out and built anew. Entries are written beside and moved into place:
processes that compile the same at once each write the same.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from convbench.jit.target import Target

__all__ = ["Kernel", "cache_folder", "compiled"]

_DIGEST = 32
_lock = Lock()
_kernels: dict[tuple[str, Target], Kernel] = {}


class Kernel:
    """Machine code in this process, at an address: ``void (const int64 *arguments, int64 job, int64 thread)``."""

    def __init__(self, address: int, engine: Any) -> None:
        self.address = address
        self._engine = engine  # owns the code


def cache_folder() -> Path:
    """Return where machine code is kept: $CONVBENCH_CACHE, or the user's cache folder.

    >>> cache_folder().name
    'jit'
    """
    given = os.environ.get("CONVBENCH_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(given) if given else Path(home) / "convbench") / "jit"


def compiled(text: str, name: str, target: Target) -> Kernel:
    """Return the kernel that IR stands for, from this process, from disk, or from LLVM."""
    with _lock:  # LLVM's engines are not made for several threads
        kernel = _kernels.get((text, target))
        if kernel is None:
            kernel = _kernels[text, target] = _load(_object_code(text, target), name, target)
        return kernel


def _object_code(text: str, target: Target) -> bytes:
    path = cache_folder() / f"{_key(text, target)}.o"
    found = _read(path)
    if found is not None:
        return found
    code = _compile(text, target)
    with suppress(OSError):  # a folder that cannot be written costs time, not the result
        _write(path, code)
    return code


def _key(text: str, target: Target) -> str:
    import llvmlite
    from llvmlite import binding

    versions = (llvmlite.__version__, *binding.llvm_version_info, target.triple, target.cpu, target.features)
    return hashlib.sha256("\0".join([*map(str, versions), text]).encode()).hexdigest()


def _read(path: Path) -> bytes | None:
    try:
        entry = path.read_bytes()
    except OSError:
        return None
    digest, code = entry[:_DIGEST], entry[_DIGEST:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(path: Path, code: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def _machine(target: Target, **options: Any) -> Any:
    from llvmlite import binding

    _start_llvm()
    return binding.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, **options
    )


@cache
def _start_llvm() -> None:
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    binding.initialize_native_asmparser()


def _compile(text: str, target: Target) -> bytes:
    """Optimise lightly: what is to be unrolled or made of vectors is so already."""
    from llvmlite import binding

    machine = _machine(target, reloc="pic", codemodel="default")
    module = binding.parse_assembly(text)
    module.verify()
    options = binding.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    code: bytes = machine.emit_object(module)
    return code


def _load(code: bytes, name: str, target: Target) -> Kernel:
    from llvmlite import binding

    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _machine(target, jit=True))
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return Kernel(engine.get_function_address(name), engine)
