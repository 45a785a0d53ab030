"""CUDA sources run on the CPU: for tests only, and never timed.

The unmodified ``.cu`` text is compiled by g++ together with ``cuda_cpu.h``, which defines what CUDA adds to C++.
Threads are fibers, one block at a time; shared memory is full of NaNs when a block begins. :class:`Mode` says in which
order the threads run, and whether every access to memory is checked: races between barriers, and accesses outside all
arguments. Launches are one at a time, and blocks one after another: what is wrong only when blocks run at once is seen
in check mode alone, and times mean nothing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from convbench.arrays import Namespace, numpy_namespace
from convbench.cuda.kernel import Kernel, Launch
from cuda_cpu.build import compiler_problem
from cuda_cpu.loader import COUNTS, ORDERS, KernelFault, Mode, kernels_in

__all__ = [
    "COUNTS",
    "ORDERS",
    "KernelFault",
    "Mode",
    "compiler_problem",
    "cpu_kernels",
    "cuda_cpu_namespace",
    "on_cpu",
]


def cpu_kernels(kernel: Kernel, mode: Mode | None = None) -> Launch:
    """Return what launches a kernel on NumPy arrays."""
    launch: Launch = _kernels(mode or Mode.from_environment())(kernel)
    return launch


@cache
def _kernels(mode: Mode) -> Any:
    return kernels_in(mode)


@cache
def cuda_cpu_namespace(mode: Mode | None = None) -> Namespace:
    """Return the NumPy namespace, with kernels."""
    chosen = mode or Mode.from_environment()
    return replace(numpy_namespace(), kernels=_kernels(chosen))


def on_cpu(backend: Any, mode: Mode | None = None) -> Any:
    """Return the same backend, bound to that namespace and not asking for a device."""
    chosen = mode or Mode.from_environment()
    return replace(
        backend,
        device="cpu",
        ns=lambda: cuda_cpu_namespace(chosen),
        requires={},
        device_problem=lambda: None,
    )
