"""Kernels made ready to launch by CuPy, which compiles them with NVRTC and keeps the code on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from convbench.cuda.kernel import OPTIONS, Kernel, Launch

__all__ = ["cupy_kernels", "launched_kernels"]

_STATIC_SHARED_BYTES = 48 * 1024  # beyond so much a kernel has to ask for it

#: How often each kernel has been launched by this process: one number each, cheap to count up.
_LAUNCHES: dict[Kernel, list[int]] = {}


def cupy_kernels(kernel: Kernel) -> Launch:
    """Return what launches a kernel on the device that is current now, on the stream that is current then.

    Each instance is compiled by itself: that takes a second, all of a file may take many, and CuPy keeps the code on
    disk.
    """
    import cupy

    return _loaded(kernel, int(cupy.cuda.runtime.getDevice()))


@cache
def _loaded(kernel: Kernel, device: int) -> Launch:
    """For each device anew: leave to take more shared memory is given to a function on one of them."""
    import cupy

    module = cupy.RawModule(code=kernel.source(), options=OPTIONS, name_expressions=(kernel.instance,))
    function = module.get_function(kernel.instance)
    if kernel.shared_bytes > _STATIC_SHARED_BYTES:
        function.max_dynamic_shared_size_bytes = kernel.shared_bytes
    block, shared_bytes = kernel.block, kernel.shared_bytes
    launches = _LAUNCHES.setdefault(kernel, [0])

    def launch(grid: tuple[int, int, int], arguments: Sequence[Any]) -> None:
        function(grid, block, arguments, shared_mem=shared_bytes)
        launches[0] += 1

    return launch


@contextmanager
def launched_kernels() -> Iterator[set[Kernel]]:
    """Give a set that holds, once the block has ended, the kernels that this process launched within it."""
    before = {kernel: count for kernel, (count,) in _LAUNCHES.items()}
    launched: set[Kernel] = set()
    try:
        yield launched
    finally:
        launched.update(kernel for kernel, (count,) in _LAUNCHES.items() if count > before.get(kernel, 0))
