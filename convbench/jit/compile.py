"""From IR to machine code, kept on disk: a kernel is compiled once a machine, not once a process.

An entry's name is a digest of the IR, the target and LLVM's version, its key; it begins with a digest of key and code,
so that what was cut off, altered or put under another name is found out and built anew. Entries are written beside and
moved into place: processes that compile the same at once each write the same.

Who can write an entry can have any code run, and a digest does not hinder them. So entries are believed only where the
folder and the file are this user's and nobody else may write them; elsewhere every process compiles for itself.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from convbench.jit.target import Target

__all__ = ["Kernel", "cache_folder", "cache_trouble", "compiled", "read_own", "write_own"]

_DIGEST = 32
_lock = Lock()
_kernels: dict[str, Kernel] = {}

if hasattr(os, "register_at_fork"):  # a child in mid-compilation would find locks that nobody opens, LLVM's among them
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


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
    given, home = os.environ.get("CONVBENCH_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given) / "jit"
    try:
        return Path(home or Path.home() / ".cache") / "convbench" / "jit"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f"convbench-{os.getuid()}" / "jit"


def cache_trouble() -> str | None:
    """Say why nothing is kept in the cache's folder, None if it serves: a folder that is not there yet is made."""
    folder = cache_folder()
    try:
        if not _is_own(folder.stat()):
            return "it belongs to another user, or others may write it (chmod go-w)"
    except FileNotFoundError:
        folder = next((parent for parent in folder.parents if parent.exists()), folder)
    except OSError as error:
        return error.strerror
    return None if os.access(folder, os.W_OK | os.X_OK) else "it cannot be written"


def compiled(text: str, name: str, target: Target) -> Kernel:
    """Return the kernel that IR stands for, from this process, from disk, or from LLVM."""
    with _lock:  # LLVM's engines are not made for several threads
        key = _key(text, target)  # not the text, which may be longer than the code
        kernel = _kernels.get(key)
        if kernel is None:
            kernel = _kernels[key] = _load(_object_code(text, key, target), name, target)
        return kernel


def _object_code(text: str, key: str, target: Target) -> bytes:
    path = cache_folder() / f"{key}.o"
    entry = read_own(path) or b""
    digest, code = entry[:_DIGEST], entry[_DIGEST:]
    if digest != _digest(key, code):
        code = _compile(text, target)
        write_own(path, _digest(key, code) + code)
    return code


def _key(text: str, target: Target) -> str:
    import llvmlite
    from llvmlite import binding

    versions = (llvmlite.__version__, *binding.llvm_version_info, target.triple, target.cpu, target.features)
    return hashlib.sha256("\0".join([*map(str, versions), text]).encode()).hexdigest()


def read_own(path: Path) -> bytes | None:
    """Return what a file holds that nobody else can have written, None if there is none."""
    with suppress(OSError):
        if _is_own(path.parent.stat()):
            with path.open("rb") as file:
                return file.read() if _is_own(os.fstat(file.fileno())) else None
    return None


def write_own(path: Path, content: bytes) -> None:
    """Write a file as a whole for :func:`read_own`; a folder that cannot be written costs time, not the result."""
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_own(path.parent.stat()):
            return
        handle, temporary = tempfile.mkstemp(dir=path.parent)  # for this user alone
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
        except BaseException:  # Ctrl-C too
            os.unlink(temporary)
            raise


def _digest(key: str, code: bytes) -> bytes:
    return hashlib.sha256(key.encode() + code).digest()


def _is_own(status: os.stat_result) -> bool:
    """Does it belong to this user, and may nobody else write it? On Windows the user's folders are their own."""
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


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
