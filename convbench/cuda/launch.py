"""Kernels made ready to launch by CuPy, which compiles them with NVRTC and keeps the code on disk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from convbench.cuda.kernel import OPTIONS, Kernel, Launch

__all__ = ["cupy_kernels"]

_STATIC_SHARED_BYTES = 48 * 1024  # beyond so much a kernel has to ask for it


@cache
def cupy_kernels(kernel: Kernel) -> Launch:
    """Return what launches a kernel on the current device and stream; it is compiled when it is first launched.

    Each instance by itself: that takes a second, all of a file may take many, and CuPy keeps the code on disk.
    """
    import cupy

    module = cupy.RawModule(code=kernel.source(), options=OPTIONS, name_expressions=(kernel.instance,))
    function = module.get_function(kernel.instance)
    if kernel.shared_bytes > _STATIC_SHARED_BYTES:
        function.max_dynamic_shared_size_bytes = kernel.shared_bytes
    block, shared_bytes = kernel.block, kernel.shared_bytes

    def launch(grid: tuple[int, int, int], arguments: Sequence[Any]) -> None:
        function(grid, block, arguments, shared_mem=shared_bytes)

    return launch
