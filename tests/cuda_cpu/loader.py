"""Kernels as functions of NumPy arrays: modules loaded, arguments checked, faults raised."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

import numpy as np

from convbench.cuda.kernel import Kernel, Launch, all_kernels
from cuda_cpu.build import Module, compiler_problem, module, origins
from cuda_cpu.memory import DeviceMemory

__all__ = ["COUNTS", "ORDERS", "KernelFault", "Mode", "kernels_in"]

ORDERS = ("forward", "backward", "shuffled")

#: What no block may exceed on the devices that are compiled for (sm_80; sm_90 has more).
MOST_THREADS, MOST_STATIC_BYTES, MOST_SHARED_BYTES = 1024, 48 * 1024, 163 * 1024

_BATCH = 6  # instances compiled together, of files with no more than
_FEW = 16  # of them: of others, tests use but some
_MARGIN = 1024  # bytes on either side of dynamic shared memory, and its alignment


class KernelFault(RuntimeError):
    """A kernel did what it must not, or was launched with what it does not take."""


@dataclass(frozen=True)
class Mode:
    """How kernels are run.

    Attributes
    ----------
    order : str
        In which order the threads of a block run between two barriers: one of :data:`ORDERS`.
    check : bool
        Whether each access to memory is checked.
    """

    order: str = "forward"
    check: bool = False

    @classmethod
    def from_environment(cls) -> Mode:
        """Return what $CUDA_CPU_ORDER and $CUDA_CPU_CHECK say."""
        order = os.environ.get("CUDA_CPU_ORDER", "forward")
        if order not in ORDERS:
            raise ValueError(f"CUDA_CPU_ORDER is {order!r}; it may be one of {', '.join(ORDERS)}")
        return cls(order, os.environ.get("CUDA_CPU_CHECK", "0") not in ("", "0"))


class _Entry(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("call", ctypes.c_void_p),
        ("count", ctypes.c_int),
        ("sizes", ctypes.POINTER(ctypes.c_int)),
        ("pointers", ctypes.POINTER(ctypes.c_int)),
    )


class _Range(ctypes.Structure):
    _fields_ = (
        ("low", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("writable", ctypes.c_int32),
        ("argument", ctypes.c_int32),
    )


class _Fault(ctypes.Structure):
    _fields_ = (
        ("happened", ctypes.c_int32),
        ("line", ctypes.c_int32),
        ("code", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("thread", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("file", ctypes.c_char * 256),
        ("text", ctypes.c_char * 512),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("entry", ctypes.POINTER(_Entry)),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("stacks", ctypes.c_void_p),
        ("dynamic", ctypes.c_void_p),
        ("shared_bytes", ctypes.c_uint64),
        ("shared", ctypes.POINTER(_Range)),
        ("arrays", ctypes.POINTER(_Range)),
        ("image", ctypes.POINTER(_Range)),
        ("fault", ctypes.POINTER(_Fault)),
        ("unowned", _Range),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_count", ctypes.c_int32),
        ("array_count", ctypes.c_int32),
        ("image_count", ctypes.c_int32),
        ("order", ctypes.c_int32),
    )


#: Launches run one at a time: static arrays and fibers are those of the process.
_ONE_AT_A_TIME = Lock()

#: Of the fibers, one set for all modules of the process; made at the first launch.
_STACKS: list[int] = []

#: Instances that have run, and their launches.
COUNTS: dict[Kernel, int] = {}


@dataclass(frozen=True)
class _Loaded:
    """A module in memory."""

    module: Module
    library: ctypes.CDLL
    base: int
    end: int
    entries: dict[str, _Entry]


@cache
def _load(file: str, source: str, instances: tuple[str, ...], check: bool) -> _Loaded:
    made = module(file, source, instances, check)
    library = ctypes.CDLL(str(made.path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    library.cuda_cpu_entries.restype = ctypes.POINTER(_Entry)
    library.cuda_cpu_stacks.restype = ctypes.c_void_p
    library.cuda_cpu_launch.argtypes = (ctypes.POINTER(_Launch),)
    library.cuda_cpu_launch.restype = None
    low, end = _image(str(made.path))
    entries = {}
    table = library.cuda_cpu_entries()
    for i in range(len(instances)):
        entries[table[i].name.decode()] = table[i]
    return _Loaded(made, library, low, end, entries)


def _image(path: str) -> tuple[int, int]:
    """Return where a loaded library lies, with its zeroed data: pages of no file that follow those of the file."""
    low = end = 0
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            start, stop = (int(address, 16) for address in line.split()[0].split("-"))
            if path in line:
                low, end = low or start, stop
            elif start == end and len(line.split()) == 5:
                end = stop
    return low, end


def _batch(kernel: Kernel) -> tuple[str, ...]:
    """Return the instances to compile together: its neighbours among those registered, or itself alone."""
    try:
        registered = all_kernels()
    except Exception:  # a module being written must not keep the others from being tested
        registered = ()
    names = list(dict.fromkeys(k.instance for k in registered if k.file == kernel.file))
    if kernel.instance not in names or type(kernel) is not Kernel:
        return (kernel.instance,)
    together = _BATCH if len(names) <= _FEW else 1
    first = names.index(kernel.instance) // together * together
    return tuple(names[first : first + together])


def kernels_in(mode: Mode) -> Any:
    """Return the function that makes a kernel ready to launch, in this mode."""

    @cache
    def kernels(kernel: Kernel) -> Launch:
        problem = compiler_problem()
        if problem:
            raise RuntimeError(problem)
        return _Launcher(kernel, mode)

    return kernels


class _Launcher:
    """``launch(grid, arguments)`` of one kernel."""

    def __init__(self, kernel: Kernel, mode: Mode) -> None:
        self._kernel, self._mode = kernel, mode
        self._source = kernel.source()
        self._loaded = loaded = _load(kernel.file, self._source, _batch(kernel), mode.check)
        self._entry = entry = loaded.entries[kernel.instance]
        self._sizes, self._pointers = entry.sizes[: entry.count], entry.pointers[: entry.count]
        symbol = loaded.module.symbols[entry.function - loaded.base]
        shared = [*loaded.module.shared.get(symbol, ()), *loaded.module.shared.get("", ())]
        self._shared = (_Range * len(shared))(*(_Range(loaded.base + at, size, 1, -1) for _, at, size in shared))
        everywhere = [(loaded.base + at, size) for owned in loaded.module.shared.values() for _, at, size in owned]
        low, high = min((at for at, _ in everywhere), default=0), max((at + n for at, n in everywhere), default=0)
        self._unowned = _Range(low, high - low, 1, -1)
        self._check_block(sum(size for _, _, size in loaded.module.shared.get(symbol, ())))

    def _check_block(self, static_bytes: int) -> None:
        kernel = self._kernel
        if not 0 < kernel.threads <= MOST_THREADS or min(kernel.block) < 1:
            raise KernelFault(
                f"{kernel.instance}: a block of {kernel.block} threads; at most {MOST_THREADS} are allowed"
            )
        if static_bytes > MOST_STATIC_BYTES:
            raise KernelFault(f"{kernel.instance}: {static_bytes} bytes of static shared memory; at most 48 KiB")
        if static_bytes + kernel.shared_bytes > MOST_SHARED_BYTES:
            raise KernelFault(
                f"{kernel.instance}: {static_bytes} + {kernel.shared_bytes} bytes of shared memory; at most 163 KiB"
            )

    def __call__(self, grid: tuple[int, int, int], arguments: Sequence[Any]) -> None:
        kernel = self._kernel
        if len(grid) != 3 or not all(0 < n <= most for n, most in zip(grid, (2**31 - 1, 65535, 65535), strict=True)):
            raise KernelFault(f"{kernel.instance}: a grid of {grid} blocks; each count must be positive, y, z ≤ 65535")
        if len(arguments) != len(self._sizes):
            raise KernelFault(f"{kernel.instance}: takes {len(self._sizes)} arguments, {len(arguments)} were given")
        arrays = {i: a for i, a in enumerate(arguments) if self._pointers[i] and _is_array(a)}
        memory = DeviceMemory(arrays, {i for i in arrays if self._pointers[i] == 2})
        values = [self._packed(i, argument, memory) for i, argument in enumerate(arguments)]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        spans = [_Range(span.low, span.size, span.writable, span.argument) for span in memory.spans]
        fault = _Fault()
        dynamic = np.empty(kernel.shared_bytes + 4 * _MARGIN, np.uint8)
        start = (dynamic.ctypes.data + _MARGIN + _MARGIN - 1) // _MARGIN * _MARGIN
        loaded = self._loaded
        image = (_Range * 1)(_Range(loaded.base, loaded.end - loaded.base, 1, -1))
        with _ONE_AT_A_TIME:
            if not _STACKS:
                _STACKS.append(loaded.library.cuda_cpu_stacks())
            launch = _Launch(
                ctypes.pointer(self._entry), pointers, _STACKS[0], start, kernel.shared_bytes, self._shared,
                (_Range * len(spans))(*spans), image, ctypes.pointer(fault), self._unowned, tuple(map(int, grid)),
                kernel.block, len(self._shared), len(spans), 1, ORDERS.index(self._mode.order),
            )  # fmt: skip
            loaded.library.cuda_cpu_launch(ctypes.byref(launch))
            COUNTS[kernel] = COUNTS.get(kernel, 0) + 1
        if fault.happened:
            raise KernelFault(self._explain(fault, memory))
        problem = memory.collect()
        if problem:
            raise KernelFault(f"{kernel.instance}: {problem}")

    def _packed(self, i: int, argument: Any, memory: DeviceMemory) -> Any:
        """Return one argument as the bytes of a C value."""
        name, size, pointer = f"{self._kernel.instance}: argument {i}", self._sizes[i], self._pointers[i]
        if argument is None:
            if not pointer:
                raise KernelFault(f"{name} is None, and the kernel takes a value of {size} bytes")
            return ctypes.c_void_p(None)
        if _is_array(argument):
            if not pointer:
                raise KernelFault(f"{name} is an array, and the kernel takes a value of {size} bytes")
            return ctypes.c_void_p(memory.pointer(i))
        if isinstance(argument, np.generic | np.ndarray):
            if pointer:
                raise KernelFault(f"{name} is a value, {argument!r}, and the kernel takes a pointer")
            if argument.size != 1:
                raise KernelFault(f"{name} is an array of {argument.size} structs; exactly one is passed by value")
            raw = argument.tobytes()
            if len(raw) != size:
                raise KernelFault(f"{name} has {len(raw)} bytes ({argument.dtype}), and the kernel takes {size}")
            return ctypes.create_string_buffer(raw, len(raw))
        raise KernelFault(f"{name} is a {type(argument).__name__}, {argument!r}: pass NumPy arrays and NumPy scalars")

    def _explain(self, fault: _Fault, memory: DeviceMemory) -> str:
        text, line = fault.text.decode(errors="replace"), fault.line
        file = fault.file.decode(errors="replace")
        if fault.code:
            file, line = self._place(fault.code)
        quoted = dict(zip(origins(self._kernel.file, self._source), self._source.splitlines(), strict=True))
        code = f": `{quoted[file, line].strip()}`" if (file, line) in quoted else ""
        where = f"{file}:{line}{code}" if line else "in a place that is not known"
        if fault.address:
            text += f" ({memory.whereabouts(fault.address)})"
        return (
            f"{text}\n  at {where}\n  thread {tuple(fault.thread)} of block {tuple(fault.block)}, "
            f"{self._kernel.instance}, block of {self._kernel.block}, {self._mode.order} order"
        )

    def _place(self, code: int) -> tuple[str, int]:
        """Return the file and line of an address of code: that of the innermost inlined call in a kernel's own text."""
        at = code - self._loaded.base - 1  # of the call, not where it returns to
        if not 0 <= at < self._loaded.end - self._loaded.base:
            return "", 0
        done = subprocess.run(
            ["addr2line", "-i", "-e", str(self._loaded.module.path), hex(at)],
            capture_output=True,
            text=True,
            check=False,
        )
        places = re.findall(r"^(?:.*/)?([^/\n]+):(\d+)", done.stdout, re.MULTILINE)
        own = [(file, int(line)) for file, line in places if file.endswith((".cu", ".cuh"))]
        other = [(file, int(line)) for file, line in places]
        return (own or other or [("", 0)])[0]


def _is_array(argument: Any) -> bool:
    """Tell whether an argument is passed as a pointer: all arrays are, but for structs."""
    return isinstance(argument, np.ndarray) and argument.dtype.names is None
