"""Kernels made ready to launch by CuPy, which compiles them with NVRTC and keeps the code on disk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from convbench.cuda.kernel import OPTIONS, Kernel, Launch, all_kernels

__all__ = ["cupy_kernels"]

_STATIC_SHARED_BYTES = 48 * 1024  # beyond so much a kernel has to ask for it


@cache
def cupy_kernels(kernel: Kernel) -> Launch:
    """Return what launches a kernel on the current device and stream; it is compiled when it is first launched.

    All instances of a file are compiled together.
    """
    function = _module(kernel.file, kernel.tensor_cores).get_function(kernel.instance)
    if kernel.shared_bytes > _STATIC_SHARED_BYTES:
        function.max_dynamic_shared_size_bytes = kernel.shared_bytes
    block, shared_bytes = kernel.block, kernel.shared_bytes

    def launch(grid: tuple[int, int, int], arguments: Sequence[Any]) -> None:
        function(grid, block, arguments, shared_mem=shared_bytes)

    return launch


@cache
def _module(file: str, tensor_cores: bool) -> Any:
    import cupy

    kernels = [k for k in all_kernels() if k.file == file and k.tensor_cores == tensor_cores]
    names = tuple(dict.fromkeys(kernel.instance for kernel in kernels))
    return cupy.RawModule(code=kernels[0].source(), options=OPTIONS, name_expressions=names)
