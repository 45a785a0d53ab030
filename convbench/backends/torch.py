"""``torch``: ``torch.nn.functional.conv1d``, ``conv2d`` and ``conv3d``, as PyTorch's users call them.

Boundaries other than zero, and padding that differs from end to end, are ``F.pad``'s; gradients are training's.
"""

from __future__ import annotations

from typing import Any

from convbench.arrays import Array
from convbench.backends._torch import as_weights, pads_itself, prepared_bytes, rival, torch_conv, workspace_bytes
from convbench.ops import front_doors
from convbench.spec import ConvSpec


def _conv(spec: ConvSpec, first: Array, second: Any, bias: Array | None) -> Array:
    return torch_conv(spec, first, second, bias, pad_first=not pads_itself(spec))


BACKEND = rival(
    name="torch",
    summary="torch.nn.functional.conv1d, conv2d, conv3d and their backward (float32: oneDNN)",
    function=_conv,
    prepare=as_weights,
    prepared=prepared_bytes,
    workspace=lambda spec: workspace_bytes(spec, pad_first=not pads_itself(spec)),
)
__getattr__ = front_doors("torch")
