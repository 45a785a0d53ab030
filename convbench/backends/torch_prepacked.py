"""``torch-prepacked``: oneDNN's convolution by PyTorch with the weights in oneDNN's own order, as Inductor has them.

``torch`` orders them anew in each call; where there are many weights and few outputs that takes half of its time. The
operators are PyTorch's own, not public: a version without them is unavailable.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from convbench import bounds
from convbench.algorithms.blocking import spread_bias
from convbench.arrays import Array, numpy_namespace
from convbench.backend import FunctionBackend
from convbench.backends._torch import (
    LIMITS,
    POOL,
    as_tensor,
    as_weights,
    padded,
    padded_bytes,
    pads_itself,
    why_not_reordered,
)
from convbench.ops import front_doors
from convbench.refusals import refuse
from convbench.spec import ConvSpec


def _reorder(ndim: int) -> Any:
    import torch

    return getattr(torch._C._nn, f"mkldnn_reorder_conv{ndim}d_weight")


def _padding(spec: ConvSpec) -> list[int]:
    return [before for before, _ in spec.padding] if pads_itself(spec) else [0] * spec.ndim


def _prepare(spec: ConvSpec, w: Array) -> Any:
    import torch

    with torch.inference_mode():
        weights = as_weights(spec, w).contiguous().to_mkldnn()
        sizes = (h + a + b for h, (a, b) in zip(spec.input_size, spec.padding, strict=True))
        seen = spec.input_size if pads_itself(spec) else tuple(sizes)
        shape = [max(1, spec.batch), spec.in_channels, *seen]
        return _reorder(spec.ndim)(weights, _padding(spec), list(spec.stride), list(spec.dilation), spec.groups, shape)


def _conv(spec: ConvSpec, x: Array, w: Any, bias: Array | None) -> Array:
    import torch

    if spec.batch == 0:  # oneDNN's operator wants an example
        return numpy_namespace().empty(spec.output_shape, spec.dtype)
    with torch.inference_mode():
        samples = as_tensor(x) if pads_itself(spec) else padded(spec, as_tensor(x))
        offsets = as_tensor(bias).contiguous() if bias is not None and spec.bias == "channel" else None
        y: Array = torch.ops.mkldnn._convolution_pointwise(
            samples.contiguous(), w, offsets, _padding(spec), list(spec.stride), list(spec.dilation), spec.groups,
            "none", [], "",
        ).numpy()  # fmt: skip
    if bias is not None and offsets is None:
        y += spread_bias(numpy_namespace(), spec, bias)
    return y


class _Prepacked(FunctionBackend):
    """Unavailable where this PyTorch has not the operators."""

    def unavailable(self) -> str | None:
        """Return what is missing and how to install it, or None."""
        missing = super().unavailable()
        if missing is None:
            import torch

            here = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
            if not here or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
                return refuse("not installed", "needs a PyTorch with oneDNN's prepacked convolutions, such as 2.13")
        return missing


BACKEND = _Prepacked(
    name="torch-prepacked",
    summary="oneDNN by PyTorch, weights in oneDNN's order beforehand",
    kind="rival",
    function=_conv,
    takes_bias=True,
    prepare=_prepare,
    prepared=lambda spec: 2 * prod(spec.weight_shape) * spec.itemsize,
    workspace=lambda spec: 0 if pads_itself(spec) else padded_bytes(spec),
    pool=POOL.held,
    bound=bounds.direct,
    requires={"torch": "torch"},
    limits=replace(
        LIMITS, dtypes=("float32",), ops=("forward",), layouts=("channels_first",), axes=(2, 3), also=why_not_reordered
    ),
)
__getattr__ = front_doors("torch-prepacked")
