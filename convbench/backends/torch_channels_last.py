"""``torch-channels-last``: ``conv2d`` and ``conv3d`` on tensors with the channels last in memory.

Weights are converted once. So is, in each call, an input that has its channels first; with ``layout=channels_last`` it
comes as it should be. Results are channels-last in memory in either case, in the shape (N, C, *size).
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from convbench.arrays import Array
from convbench.backends._torch import (
    LIMITS,
    as_weights,
    memory_format,
    pads_itself,
    prepared_bytes,
    rival,
    torch_conv,
    why_not_reordered,
    workspace_bytes,
)
from convbench.ops import front_doors
from convbench.spec import DTYPES, ConvSpec


def _prepare(spec: ConvSpec, w: Array) -> Any:
    return as_weights(spec, w).contiguous(memory_format=memory_format(spec, last=True))


def _prepared(spec: ConvSpec) -> int:
    return prepared_bytes(spec) + prod(spec.weight_shape) * DTYPES[spec.result_dtype]


def _conv(spec: ConvSpec, first: Array, second: Any, bias: Array | None) -> Array:
    return torch_conv(spec, first, second, bias, pad_first=not pads_itself(spec), last=True)


BACKEND = rival(
    name="torch-channels-last",
    summary="torch.nn.functional.conv2d, conv3d and their backward in channels_last format, converted in the call",
    function=_conv,
    prepare=_prepare,
    prepared=_prepared,
    workspace=lambda spec: workspace_bytes(spec, pad_first=not pads_itself(spec), last=True),
    limits=replace(LIMITS, also=why_not_reordered, axes=(2, 3)),
)
__getattr__ = front_doors("torch-channels-last")
