"""What ``torch-cuda`` and ``torch-cuda-tf32`` share: CuPy's arrays as tensors, one stream for both, settings, bounds.

cuDNN chooses among its algorithms by timing them when it first meets a shape (``cudnn.benchmark``): plan and warm up
before timing, as everywhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from math import prod
from threading import RLock
from typing import Any

from convbench import bounds
from convbench.arrays import Array, cupy_namespace
from convbench.backends._cuda import CudaFunctionBackend
from convbench.backends._torch import (
    LIMITS,
    Exchange,
    as_weights,
    pads_itself,
    prepared_bytes,
    torch_bound,
    torch_conv,
    workspace_bytes,
)
from convbench.bounds import ErrorBound
from convbench.cuda.device import gpu_problem
from convbench.errors import one_line
from convbench.refusals import refuse
from convbench.spec import ConvSpec
from convbench.transforms import cufft_size

__all__ = ["by_dlpack", "cudnn_settings", "torch_cuda", "torch_problem"]

_DTYPES = ("float32", "float64", "complex64", "complex128", "float16")
_INSTALL = "pip install torch, in the build for CUDA that pytorch.org names for your system"

#: PyTorch's settings are the process's: calls that need different ones take turns to enqueue their work.
_SETTINGS = RLock()


@cache
def torch_problem() -> str | None:
    """Return what keeps PyTorch from the GPU, or None."""
    import torch

    if torch.version.cuda is None:
        return refuse("not installed", f"needs a CUDA build of PyTorch: {_INSTALL} ({torch.__version__} has none)")
    problem = gpu_problem()
    if problem is not None:
        return problem
    try:
        right = float((torch.arange(4, device="cuda", dtype=torch.float32) ** 2).sum()) == 14.0
    except Exception as error:
        return refuse("no device", f"PyTorch cannot use it ({one_line(error)}): {_INSTALL}")
    return None if right else refuse("no device", "PyTorch's first kernel returned a wrong result: is the card sound?")


def by_dlpack(xp: Any) -> Callable[[Array], Any]:
    """Return what makes tensors over the memory of a library's arrays: a copy only of strides that PyTorch has not.

    Tensors have no negative strides (of such an array ``torch.from_dlpack`` ends the process), nor any that are no
    multiple of the element's size.
    """

    def as_tensor(array: Array) -> Any:
        torch = importlib.import_module("torch")  # whose stubs do not have the function
        size = array.dtype.itemsize
        if any(stride < 0 or stride % size for stride in array.strides):
            array = xp().asarray(array, order="C", copy=True)
        return torch.from_dlpack(array)

    return as_tensor


def _cupy() -> Any:
    import cupy

    return cupy


CUPY_EXCHANGE = Exchange(
    cupy_namespace, by_dlpack(_cupy), lambda tensor: _cupy().from_dlpack(tensor.resolve_conj().detach())
)


def _cupy_stream() -> AbstractContextManager[Any]:
    """Let PyTorch work on CuPy's current device and stream, so that neither waits for the other."""
    import cupy

    torch = importlib.import_module("torch")
    pointer, device = cupy.cuda.get_current_stream().ptr, cupy.cuda.Device().id
    chosen = torch.cuda.ExternalStream(pointer, device=device) if pointer else torch.cuda.default_stream(device)
    context: AbstractContextManager[Any] = torch.cuda.stream(chosen)
    return context


@contextmanager
def cudnn_settings(tf32: bool, stream: Callable[[], AbstractContextManager[Any]] = _cupy_stream) -> Iterator[None]:
    """Set what the names of these backends promise; afterwards all is as it was before.

    Where memory does not suffice a :class:`MemoryError` is raised, as by other libraries.
    """
    import torch

    with ExitStack() as held:
        held.enter_context(_SETTINGS)
        held.enter_context(
            torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=tf32)
        )
        held.enter_context(stream())
        try:
            yield
        except torch.cuda.OutOfMemoryError as error:  # a RuntimeError
            raise MemoryError(one_line(error)) from None


#: Of Winograd's F(4, 3) along each of two axes, with the usual points 0, ±1, ±2 (see convbench.algorithms.winograd).
_WINOGRAD_GROWTH = 20.0**2
_TF32_BITS = 10  # of a factor's 11, as what is beyond them is cut off, not rounded


def cudnn_bound(spec: ConvSpec) -> ErrorBound:
    """Whatever cuDNN may choose: direct sums and implicit GEMM, one FFT, or Winograd's minimal filtering."""
    direct = torch_bound(spec).componentwise
    if spec.dtype == "float16":
        direct = max(direct, bounds.tensor_core(spec, 11).componentwise)
    points = prod(cufft_size(h + k) for h, k in zip(spec.input_size, spec.kernel_size, strict=True))
    found = bounds.fft(spec, points)
    normwise = found.normwise
    if spec.ndim == 2 and set(spec.kernel_size) <= {3, 5} and {*spec.stride, *spec.dilation} == {1}:
        in_tiles = bounds.winograd(spec, _WINOGRAD_GROWTH, (6, 6), None, exact=False)
        stored = 1.5 * _WINOGRAD_GROWTH if spec.dtype == "float16" else 0.0  # transforms in the dtype of the operands
        normwise = max(normwise, in_tiles.normwise + stored)
    if "complex" in spec.dtype:
        normwise *= 3  # real convolutions
    return replace(
        found,
        source="Higham 2002, eq. 3.5 and theorem 24.2: cuDNN does not tell its algorithm",
        componentwise=direct,
        normwise=normwise,
        energy=0.0,
        flushes_denormals=True,
    )


def tf32_bound(spec: ConvSpec) -> ErrorBound:
    """Factors of float32 are cut to TF32 and summed on tensor cores; of other types nothing changes."""
    found = cudnn_bound(spec)
    if spec.dtype not in ("float32", "complex64"):
        return found
    products = 4 if spec.dtype == "complex64" else 1  # as in torch_bound
    return replace(found, componentwise=products * bounds.tensor_core(spec, _TF32_BITS).componentwise)


def torch_cuda(name: str, summary: str, tf32: bool) -> CudaFunctionBackend:
    """Return one of the two backends."""

    def conv(spec: ConvSpec, first: Array, second: Any, bias: Array | None) -> Array:
        with cudnn_settings(tf32):
            return torch_conv(spec, first, second, bias, pad_first=not pads_itself(spec), exchange=CUPY_EXCHANGE)

    def prepare(spec: ConvSpec, w: Array) -> Any:
        with cudnn_settings(tf32):
            return as_weights(spec, w, CUPY_EXCHANGE)

    return CudaFunctionBackend(
        name=name,
        summary=summary,
        kind="rival",
        function=conv,
        takes_bias=True,
        prepare=prepare,
        prepared=prepared_bytes,
        workspace=lambda spec: workspace_bytes(spec, pad_first=not pads_itself(spec)),
        bound=tf32_bound if tf32 else cudnn_bound,
        accumulates=lambda spec: "float32" if spec.dtype == "float16" else spec.result_dtype,
        requires={"torch": "torch"},
        device_problem=torch_problem,
        limits=replace(LIMITS, dtypes=_DTYPES),
    )
