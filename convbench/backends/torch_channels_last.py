"""``torch-channels-last``: ``conv2d`` and ``conv3d`` on tensors with the channels last in memory.

Weights are converted once. So is, in each call, an input that has its channels first; with ``layout=channels_last`` it
comes as it should be. The result is channels-last in memory in either case, in the shape (N, O, *output_size).
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from convbench.arrays import Array
from convbench.backends._torch import LIMITS, columns_bytes, flipped, padded_bytes, pads_itself, rival, torch_conv
from convbench.ops import front_doors
from convbench.spec import ConvSpec


def _memory_format(spec: ConvSpec) -> Any:
    import torch

    return torch.channels_last if spec.ndim == 2 else torch.channels_last_3d


def _prepare(spec: ConvSpec, w: Array) -> Any:
    return flipped(spec, w).contiguous(memory_format=_memory_format(spec))


def _conv(spec: ConvSpec, x: Array, w: Any, bias: Array | None) -> Array:
    return torch_conv(spec, x, w, bias, pad_first=not pads_itself(spec), memory_format=_memory_format(spec))


def _workspace(spec: ConvSpec) -> int:
    """The padded input where PyTorch does not pad itself, and the converted one where there is something to convert."""
    padded = 0 if pads_itself(spec) else padded_bytes(spec)
    converts = spec.layout == "channels_first" and spec.in_channels > 1
    return columns_bytes(spec) + padded + converts * max(padded, prod(spec.input_shape) * spec.itemsize)


BACKEND = rival(
    name="torch-channels-last",
    summary="torch.nn.functional.conv2d, conv3d in channels_last memory format, x converted in the call",
    function=_conv,
    prepare=_prepare,
    prepared=lambda spec: 2 * prod(spec.weight_shape) * spec.itemsize,
    workspace=_workspace,
    limits=replace(LIMITS, axes=(2, 3), layouts=("channels_first", "channels_last")),
)
conv, convolve, correlate, plan = front_doors("torch-channels-last")
