"""``torch``: ``torch.nn.functional.conv1d``, ``conv2d`` and ``conv3d``, as PyTorch's users call them."""

from __future__ import annotations

from typing import Any

from convbench.arrays import Array
from convbench.backends._torch import (
    columns_bytes,
    flipped,
    flipped_bytes,
    padded_bytes,
    pads_itself,
    rival,
    torch_conv,
)
from convbench.ops import front_doors
from convbench.spec import ConvSpec


def _conv(spec: ConvSpec, x: Array, w: Any, bias: Array | None) -> Array:
    return torch_conv(spec, x, w, bias, pad_first=not pads_itself(spec))


def _workspace(spec: ConvSpec) -> int:
    return columns_bytes(spec) + (0 if pads_itself(spec) else padded_bytes(spec))


BACKEND = rival(
    name="torch",
    summary="torch.nn.functional.conv1d, conv2d, conv3d (float32: oneDNN)",
    function=_conv,
    prepare=flipped,
    prepared=flipped_bytes,
    workspace=_workspace,
)
conv, convolve, correlate, plan = front_doors("torch")
