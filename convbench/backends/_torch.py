"""What the backends from PyTorch share: tensors over an array's memory, padding and its adjoint, threads, bounds.

Float32 goes to oneDNN, but for tiny inputs and some 1×1 kernels; the other types to ATen's own im2col + GEMM. No
reduced precision: results must keep the bound of a float32 sum, which TF32 and bfloat16 do not; the run's environment
records PyTorch's setting. Gradients are training's, ``convolution_backward`` and what autograd has for ``F.pad``,
without a forward pass before them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

from convbench import bounds
from convbench.algorithms.blocking import spread_bias
from convbench.arrays import Array, Namespace, numpy_namespace
from convbench.backend import FunctionBackend
from convbench.backends._views import Writeable
from convbench.bounds import ErrorBound, gamma
from convbench.geometry import BOUNDARIES
from convbench.refusals import Limits, refuse
from convbench.spec import DTYPES, LAYOUTS, OPS, ConvSpec
from convbench.threads import Pool

__all__ = [
    "LIMITS",
    "ON_HOST",
    "POOL",
    "Exchange",
    "as_tensor",
    "as_weights",
    "memory_format",
    "padded",
    "padded_bytes",
    "pads_itself",
    "prepared_bytes",
    "rival",
    "torch_bound",
    "torch_conv",
    "why_not_reordered",
    "why_not_torch",
    "workspace_bytes",
]

#: PyTorch's names of the boundaries.
_MODES = {"zero": "constant", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}

#: Integers that PyTorch converts to int64, in which its convolutions are exact.
_INTEGERS = ("int8", "uint8", "int16", "int32", "int64")

#: PyTorch sets the size for the calling thread, as OpenMP does.
POOL = Pool(lambda: (importlib.import_module("torch"),), each_thread=True)


def why_not_torch(spec: ConvSpec) -> str | None:
    """Refuse what PyTorch's operators refuse."""
    if spec.dtype in _INTEGERS and spec.op != "forward":
        return refuse("dtype", f"{spec.dtype} given, PyTorch has gradients of floating-point and complex numbers only")
    if spec.dtype == "float16" and spec.op != "forward":
        return refuse("dtype", "float16 given, in which PyTorch adds up gradients on the CPU: their error has no bound")
    if spec.layout == "channels_last" and spec.ndim == 1:
        return refuse("layout", "channels_last given, PyTorch has it along 2 and 3 axes only")
    most = {"circular": 0, "reflect": -1}.get(spec.boundary)
    if most is not None:
        for size, pair in zip(spec.input_size, spec.padding, strict=True):
            if max(pair) > max(0, size + most):
                rule = f"F.pad takes up to {size + most} for an input of {size}"
                return refuse("boundary", f"{spec.boundary} padding of {max(pair)} given, {rule}")
    return None


def why_not_reordered(spec: ConvSpec) -> str | None:
    """Refuse what PyTorch 2.13 gets wrong with weights in another order: every such result that was tried."""
    if spec.in_channels == 1 and len(set(spec.stride)) > 1 and spec.output_size[-1] == 1:
        strides = "x".join(map(str, spec.stride))
        return refuse("stride", f"{strides} given, PyTorch's operator is wrong for it with one channel and one column")
    return why_not_torch(spec)


LIMITS = Limits(
    dtypes=("float32", "float64", "complex64", "complex128", "float16", *_INTEGERS),
    ops=OPS,
    boundaries=BOUNDARIES,
    biases=("none", "channel", "location"),
    layouts=LAYOUTS,
    also=why_not_torch,
)


def as_tensor(array: Array) -> Any:
    """Return a tensor over the array's memory; a copy only where strides are negative, which PyTorch has not.

    PyTorch has no read-only tensors, and warns of them; nothing here writes to one.
    """
    import torch

    if not array.flags.writeable:
        import numpy as np

        array = np.asarray(Writeable(array))
    try:
        return torch.from_numpy(array)
    except ValueError:  # of strides that are negative, or no multiple of the element's size
        return torch.from_numpy(array.copy())


@dataclass(frozen=True)
class Exchange:
    """How arrays of a library become tensors and back; both over the same memory.

    Attributes
    ----------
    ns : callable
        Returns the namespace of the arrays.
    as_tensor, as_array : callable
    """

    ns: Callable[[], Namespace]
    as_tensor: Callable[[Array], Any]
    as_array: Callable[[Any], Array]


#: NumPy's arrays and tensors of the CPU.
ON_HOST = Exchange(numpy_namespace, as_tensor, lambda tensor: tensor.numpy())


def as_weights(spec: ConvSpec, w: Array, exchange: Exchange = ON_HOST) -> Any:
    """Return the weights as a tensor, flipped if the spec says so, integers as int64."""
    tensor = _converted(spec, exchange.as_tensor(w))
    return tensor.flip(tuple(range(2, 2 + spec.ndim))) if spec.flip else tensor


def prepared_bytes(spec: ConvSpec) -> int:
    """Bytes of weights that are another array than ``w``: PyTorch has no negative strides, so flipping copies."""
    return prod(spec.weight_shape) * _itemsize(spec) if spec.flip or spec.dtype != spec.result_dtype else 0


def _converted(spec: ConvSpec, tensor: Any) -> Any:
    import torch

    return tensor.to(torch.int64) if "int" in spec.dtype else tensor


def _itemsize(spec: ConvSpec) -> int:
    """Bytes of an element as PyTorch computes with it."""
    return DTYPES[spec.result_dtype]


def memory_format(spec: ConvSpec, last: bool | None = None) -> Any:
    """Return PyTorch's name of an order in memory, by default the spec's."""
    import torch

    if not (spec.layout == "channels_last" if last is None else last):
        return torch.contiguous_format
    return torch.channels_last if spec.ndim == 2 else torch.channels_last_3d


# -- boundaries -----------------------------------------------------------------------------------


def pads_itself(spec: ConvSpec) -> bool:
    """PyTorch's convolutions pad with zeros, both ends alike, and crop neither."""
    same = all(before == after >= 0 for before, after in spec.padding)
    return same and (spec.boundary == "zero" or not any(map(any, spec.padding)))


def _ends(spec: ConvSpec, sign: int) -> list[int]:
    """Return what is added (1) or cropped (−1) at both ends of each axis, in ``F.pad``'s order: the last axis first."""
    return [max(0, sign * end) for pair in reversed(spec.padding) for end in pair]


def _padded_size(spec: ConvSpec) -> list[int]:
    return [size + before + after for size, (before, after) in zip(spec.input_size, spec.padding, strict=True)]


def padded(spec: ConvSpec, x: Any) -> Any:
    """Extend by ``F.pad``, then crop where padding is negative (by a view)."""
    from torch.nn.functional import pad

    margins = _ends(spec, 1)
    x = pad(x, margins, _MODES[spec.boundary]) if any(margins) else x
    for axis, (before, after) in enumerate(spec.padding, start=2):
        if min(before, after) < 0:
            start = max(0, -before)
            x = x.narrow(axis, start, x.shape[axis] - start - max(0, -after))
    return x


def _folded(spec: ConvSpec, g: Any) -> Any:
    """The adjoint of :func:`padded`, by the operators that autograd has for it; may overwrite ``g``."""
    import torch
    from torch.nn.functional import pad

    margins, crops = _ends(spec, 1), _ends(spec, -1)
    g = pad(g, crops) if any(crops) else g
    if not any(margins):
        return g
    if spec.boundary == "zero":
        return pad(g, [-margin for margin in margins])
    if spec.boundary == "circular":
        return _wrapped(spec, g)
    name = {"reflect": "reflection", "replicate": "replication"}[spec.boundary]
    backward = getattr(torch.ops.aten, f"{name}_pad{spec.ndim}d_backward")
    return backward(g, g.new_empty(spec.input_shape), margins)


def _wrapped(spec: ConvSpec, g: Any) -> Any:
    """``F.pad`` copies slices for a circular boundary, so its adjoint adds them."""
    for axis, (size, (before, after)) in enumerate(zip(spec.input_size, spec.padding, strict=True), start=2):
        before, after = max(0, before), max(0, after)
        inside = g.narrow(axis, before, size)
        inside.narrow(axis, size - before, before).add_(g.narrow(axis, 0, before))
        inside.narrow(axis, 0, after).add_(g.narrow(axis, before + size, after))
        g = inside
    return g


def padded_bytes(spec: ConvSpec) -> int:
    """Bytes of the padded input."""
    sizes = (h + max(0, a) + max(0, b) for h, (a, b) in zip(spec.input_size, spec.padding, strict=True))
    return spec.batch * spec.in_channels * prod(sizes) * _itemsize(spec)


# -- operations -----------------------------------------------------------------------------------


def torch_conv(
    spec: ConvSpec,
    first: Array,
    second: Any,
    bias: Array | None,
    *,
    pad_first: bool,
    last: bool | None = None,
    exchange: Exchange = ON_HOST,
) -> Array:
    """Call PyTorch on tensors over the arrays' memory; return its result's memory as an array.

    Parameters
    ----------
    first, second, bias
        As a function of :class:`FunctionBackend` gets them.
    pad_first : bool
        Pad by ``F.pad``; else let the convolution do it.
    last : bool, optional
        Whether tensors have their channels last in memory; those that come otherwise are converted. Default: as the
        spec's layout says.
    exchange : Exchange
    """
    import torch

    order = memory_format(spec, last)
    with torch.inference_mode():
        tensor = _converted(spec, exchange.as_tensor(first))
        if spec.op == "forward":
            offsets = None if bias is None else exchange.as_tensor(_offsets(spec, bias, exchange))
            result = _forward(spec, tensor, second, offsets, pad_first, order)
        elif spec.op == "input_grad":
            result = _input_grad(spec, tensor.to(memory_format=order), second, pad_first, order)
        else:
            g = exchange.as_tensor(second).to(memory_format=order)
            result = _weight_grad(spec, tensor, g, pad_first, order)
        if spec.layout == "channels_last" and spec.op != "weight_grad":
            result = result.contiguous(memory_format=order)  # most of PyTorch's operators have kept the order, not all
        y: Array = exchange.as_array(result)
    return y


def _adds_bias_itself(spec: ConvSpec) -> bool:
    """Of complex numbers PyTorch adds the parts up first, which rounds them."""
    return spec.bias == "channel" and spec.dtype in ("float32", "float64")


def _offsets(spec: ConvSpec, bias: Array, exchange: Exchange) -> Array:
    """Return a bias as the convolution takes it, or in a shape to be added afterwards."""
    return bias if _adds_bias_itself(spec) else spread_bias(exchange.ns(), spec, bias)


def _forward(spec: ConvSpec, x: Any, w: Any, offsets: Any, pad_first: bool, order: Any) -> Any:
    import torch

    if pad_first:
        x = padded(spec, x)
    x = x.to(memory_format=order)
    padding = 0 if pad_first else [before for before, _ in spec.padding]
    fused = _adds_bias_itself(spec)
    function = getattr(torch.nn.functional, f"conv{spec.ndim}d")
    y = function(x, w, offsets if fused else None, spec.stride, padding, spec.dilation, spec.groups)
    if offsets is not None and not fused:
        y += _converted(spec, offsets)
    return y


def _input_grad(spec: ConvSpec, g: Any, w: Any, pad_first: bool, order: Any) -> Any:
    import torch

    size = _padded_size(spec) if pad_first else spec.input_size
    x = torch.empty((spec.batch, spec.in_channels, *size), dtype=g.dtype, device=g.device, memory_format=order)
    gx = _backward(spec, g, x, w, pad_first, 0)
    return _folded(spec, gx) if pad_first else gx


def _weight_grad(spec: ConvSpec, x: Any, g: Any, pad_first: bool, order: Any) -> Any:
    import torch

    x = (padded(spec, x) if pad_first else x).to(memory_format=order)
    w = torch.empty(spec.weight_shape, dtype=g.dtype, device=g.device, memory_format=order)
    gw = _backward(spec, g, x, w, pad_first, 1)
    return gw.flip(tuple(range(2, 2 + spec.ndim))) if spec.flip else gw


def _backward(spec: ConvSpec, g: Any, x: Any, w: Any, pad_first: bool, wanted: int) -> Any:
    """Return the gradient of x (0) or w (1), of which ``convolution_backward`` reads shape and order alone."""
    import torch

    padding = [0 if pad_first else before for before, _ in spec.padding]

    def real(g: Any, x: Any, w: Any) -> Any:
        return torch.ops.aten.convolution_backward(
            g, x, w, None, spec.stride, padding, spec.dilation, False, [0] * spec.ndim, spec.groups,
            [wanted == 0, wanted == 1, False],
        )[wanted]  # fmt: skip

    if "complex" not in spec.dtype:
        return real(g, x, w)
    # y = (a − b) + i(c − a − b), with a = xᵣ∗wᵣ, b = xᵢ∗wᵢ and c = (xᵣ + xᵢ)∗(wᵣ + wᵢ): PyTorch's forward operation
    of_a, of_b, of_c = g.real - g.imag, -g.real - g.imag, g.imag
    (x_a, x_b, x_c), (w_a, w_b, w_c) = _parts(x, wanted == 1), _parts(w, wanted == 0)
    both = real(of_c, x_c, w_c)
    return torch.complex(real(of_a, x_a, w_a) + both, real(of_b, x_b, w_b) + both)


def _parts(z: Any, read: bool) -> tuple[Any, Any, Any]:
    """Return zᵣ, zᵢ and zᵣ + zᵢ; of what is not read three tensors of its shape and order."""
    import torch

    return (z.real, z.imag, z.real + z.imag) if read else (torch.empty_like(z.real),) * 3


# -- what it costs --------------------------------------------------------------------------------


def workspace_bytes(spec: ConvSpec, *, pad_first: bool, last: bool = False) -> int:
    """Bytes that are allocated beside operands and result.

    ATen's own convolution, where oneDNN is not asked, has the columns of one group; the padded input or its gradient,
    what is converted to int64 or to channels last, and the parts of complex numbers are there besides. oneDNN's blocked
    copies and scratch memory are not counted: it does not tell, and Python does not see them.
    """
    itemsize = _itemsize(spec)
    sizes = {"x": prod(spec.input_shape), "g": prod(spec.output_shape), "y": prod(spec.output_shape)}
    names = {"forward": "x", "input_grad": "g", "weight_grad": "xg"}[spec.op]
    total = _columns_bytes(spec)
    if pad_first and any(map(any, spec.padding)):
        total += padded_bytes(spec) * (2 if last or spec.op == "input_grad" else 1)
    if spec.dtype != spec.result_dtype:
        total += sizes["x"] * itemsize
    if last or spec.layout == "channels_last":
        total += sum(map(sizes.__getitem__, names)) * itemsize + prod(spec.result_shape) * itemsize
    if "complex" in spec.dtype:  # the parts and results of three real operations
        total += 3 * (sum(sizes.values()) + prod(spec.weight_shape)) * itemsize
    if spec.op == "weight_grad":
        total += 2 * prod(spec.weight_shape) * itemsize
    if spec.op == "input_grad":
        total += sizes["x"] * itemsize  # an x that is never touched
    return total


def _columns_bytes(spec: ConvSpec) -> int:
    if _by_onednn(spec) or set(spec.kernel_size) == {1}:
        return 0
    taps = spec.in_channels // spec.groups * prod(spec.kernel_size)
    return spec.batch * taps * prod(spec.output_size) * _itemsize(spec)


def _by_onednn(spec: ConvSpec) -> bool:
    """``ConvParams::use_mkldnn`` in ATen's Convolution.cpp: float32, unless the input is tiny."""
    wide = spec.ndim > 1 and min(spec.kernel_size[-2:]) > 3
    large = prod(spec.input_shape) > 20480
    return spec.dtype == "float32" and (spec.groups > 1 or spec.batch > 1 or wide or large)


def torch_bound(spec: ConvSpec) -> ErrorBound:
    """Direct summation; a complex product by three real ones, (a + ib)(c + id): ac − bd and (a + b)(c + d) − ac − bd.

    With |a| + |b| ≤ √2·|a + ib| the terms of the imaginary part are at most 2 + 1 times |w| ∗ |x|, each with γ of a
    real sum, two roundings of the sums and two of the subtractions; the real part's are smaller (Higham 2002,
    section 23.2.4). So are both of a gradient's, (a − b)c + b(c + d) and −(a + b)d + b(c + d): √2 + √2 times.
    """
    plain = bounds.direct(spec)
    if spec.dtype == "float16" and spec.bias != "none":  # added to sums that have been rounded already
        return replace(plain, componentwise=plain.componentwise + 0.5)
    if "complex" not in spec.dtype:
        return plain
    real = {"complex64": "float32", "complex128": "float64"}[spec.dtype]
    return replace(plain, source="Higham 2002, section 23.2.4", componentwise=4 * gamma(spec.terms + 5, real))


#: A :class:`FunctionBackend` with what all of them have in common filled in.
rival = partial(
    FunctionBackend,
    kind="rival",
    takes_bias=True,
    pool=POOL.held,
    bound=torch_bound,
    accumulates=lambda spec: "float32" if spec.dtype == "float16" else spec.result_dtype,
    requires={"torch": "torch"},
    limits=LIMITS,
)
