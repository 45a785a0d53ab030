"""What the three backends from PyTorch share: tensors over NumPy's memory, padding, threads, bounds.

Float32 goes to oneDNN, but for tiny inputs and some 1×1 kernels; float64 and complex to ATen's own im2col + GEMM. No
reduced precision: results must keep the bound of a float32 sum, which TF32 and bfloat16 do not; the run's environment
records PyTorch's setting.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

from convbench import bounds
from convbench.algorithms.blocking import spread_bias
from convbench.arrays import Array, numpy_namespace
from convbench.backend import FunctionBackend
from convbench.bounds import ErrorBound, gamma
from convbench.refusals import Limits
from convbench.spec import ConvSpec
from convbench.threads import Pool

__all__ = [
    "LIMITS",
    "columns_bytes",
    "flipped",
    "flipped_bytes",
    "padded_bytes",
    "pads_itself",
    "rival",
    "torch_conv",
]

LIMITS = Limits(dtypes=("float32", "float64", "complex64", "complex128"), biases=("none", "channel", "location"))

#: PyTorch sets the size for the calling thread, as OpenMP does.
POOL = Pool(lambda: (importlib.import_module("torch"),), each_thread=True)


class _Writeable:
    """Says that an array may be written: PyTorch has no read-only tensors, and warns. Nothing here writes to one."""

    def __init__(self, array: Array) -> None:
        interface = array.__array_interface__
        self._array = array  # keeps the memory alive
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def as_tensor(array: Array) -> Any:
    """Return a tensor over the array's memory; a copy only where strides are negative, which PyTorch has not."""
    import numpy as np
    import torch

    if any(step < 0 or step % array.itemsize for step in array.strides):
        array = array.copy()
    elif not array.flags.writeable:
        array = np.asarray(_Writeable(array))
    return torch.from_numpy(array)


def flipped(spec: ConvSpec, w: Array) -> Any:
    """Return the weights as a tensor, flipped if the spec says so."""
    tensor = as_tensor(w)
    return tensor.flip(tuple(range(2, 2 + spec.ndim))) if spec.flip else tensor


def flipped_bytes(spec: ConvSpec) -> int:
    """Bytes of flipped weights: PyTorch has no negative strides, so flipping copies."""
    return prod(spec.weight_shape) * spec.itemsize if spec.flip else 0


def pads_itself(spec: ConvSpec) -> bool:
    """PyTorch's convolutions pad both ends alike, and crop neither."""
    return all(before == after >= 0 for before, after in spec.padding)


def padded(spec: ConvSpec, x: Any) -> Any:
    """Pad with zeros by ``F.pad``, then crop where padding is negative (by a view)."""
    from torch.nn.functional import pad

    margins = [max(0, end) for pair in reversed(spec.padding) for end in pair]
    x = pad(x, margins) if any(margins) else x
    for axis, (before, after) in enumerate(spec.padding, start=2):
        if min(before, after) < 0:
            start = max(0, -before)
            x = x.narrow(axis, start, x.shape[axis] - start - max(0, -after))
    return x


def padded_bytes(spec: ConvSpec) -> int:
    """Bytes of the padded input."""
    sizes = (h + max(0, a) + max(0, b) for h, (a, b) in zip(spec.input_size, spec.padding, strict=True))
    return spec.batch * spec.in_channels * prod(sizes) * spec.itemsize


def torch_conv(
    spec: ConvSpec, x: Array, w: Any, bias: Array | None, *, pad_first: bool = False, memory_format: Any = None
) -> Array:
    """Call conv1d, conv2d or conv3d on tensors over the arrays' memory; return its result's memory as an array."""
    import torch

    with torch.inference_mode():
        samples = as_tensor(x)
        if pad_first:
            samples = padded(spec, samples)
        if memory_format is not None:
            samples = samples.to(memory_format=memory_format)
        padding = 0 if pad_first else [before for before, _ in spec.padding]
        fused = bias is not None and spec.bias == "channel" and "complex" not in spec.dtype
        offsets = as_tensor(bias) if fused else None
        function = getattr(torch.nn.functional, f"conv{spec.ndim}d")
        y: Array = function(samples, w, offsets, spec.stride, padding, spec.dilation, spec.groups).numpy()
    if bias is not None and not fused:  # complex ones too: PyTorch adds their parts up first, which rounds them
        y += spread_bias(numpy_namespace(), spec, bias)
    return y


def columns_bytes(spec: ConvSpec) -> int:
    """Bytes that ATen's own convolution takes where oneDNN is not asked: the columns of one group.

    A complex convolution is three real ones of the operands' parts. oneDNN's blocked copies and scratch memory are
    not counted: it does not tell, and Python does not see them.
    """
    if _by_onednn(spec) or set(spec.kernel_size) == {1}:
        return 0
    columns = spec.batch * spec.terms * prod(spec.output_size) * spec.itemsize
    if "complex" not in spec.dtype:
        return columns
    parts = prod(spec.input_shape) + prod(spec.weight_shape) + 2 * prod(spec.output_shape)
    return columns // 2 + 2 * parts * spec.itemsize


def _by_onednn(spec: ConvSpec) -> bool:
    """``ConvParams::use_mkldnn`` in ATen's Convolution.cpp: float32, unless the input is tiny."""
    wide = spec.ndim > 1 and min(spec.kernel_size[-2:]) > 3
    large = prod(spec.input_shape) > 20480
    return spec.dtype == "float32" and (spec.groups > 1 or spec.batch > 1 or wide or large)


def _bound(spec: ConvSpec) -> ErrorBound:
    """Direct summation; a complex product by three real ones, (a + ib)(c + id): ac − bd and (a + b)(c + d) − ac − bd.

    With |a| + |b| ≤ √2·|a + ib| the terms of the imaginary part are at most 2 + 1 times |w| ∗ |x|, each with γ of a
    real sum, two roundings of the sums and two of the subtractions; the real part's are smaller (Higham 2002,
    section 23.2.4).
    """
    plain = bounds.direct(spec)
    if "complex" not in spec.dtype:
        return plain
    real = {"complex64": "float32", "complex128": "float64"}[spec.dtype]
    return replace(plain, source="Higham 2002, section 23.2.4", componentwise=4 * gamma(spec.terms + 5, real))


#: A :class:`FunctionBackend` with what all three have in common filled in.
rival = partial(
    FunctionBackend,
    kind="rival",
    takes_bias=True,
    pool=POOL.held,
    bound=_bound,
    requires={"torch": "torch"},
    limits=LIMITS,
)
