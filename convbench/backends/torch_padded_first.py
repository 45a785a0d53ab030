"""``torch-padded-first``: ``F.pad``, then a convolution without padding.

The known remedy where oneDNN's kernels for padded input are slow, as for large depthwise ones.
"""

from __future__ import annotations

from typing import Any

from convbench.arrays import Array
from convbench.backends._torch import columns_bytes, flipped, flipped_bytes, padded_bytes, rival, torch_conv
from convbench.ops import front_doors
from convbench.spec import ConvSpec


def _conv(spec: ConvSpec, x: Array, w: Any, bias: Array | None) -> Array:
    return torch_conv(spec, x, w, bias, pad_first=True)


def _workspace(spec: ConvSpec) -> int:
    padded = any(max(pair) > 0 for pair in spec.padding)
    return columns_bytes(spec) + (padded_bytes(spec) if padded else 0)


BACKEND = rival(
    name="torch-padded-first",
    summary="torch.nn.functional.pad, then conv1d, conv2d, conv3d without padding (float32: oneDNN)",
    function=_conv,
    prepare=flipped,
    prepared=flipped_bytes,
    workspace=_workspace,
)
conv, convolve, correlate, plan = front_doors("torch-padded-first")
