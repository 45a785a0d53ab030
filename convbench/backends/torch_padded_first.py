"""``torch-padded-first``: ``F.pad``, then a convolution without padding.

The known remedy where oneDNN's kernels for padded input are slow, as for large depthwise ones. Gradients are those of
both steps.
"""

from __future__ import annotations

from typing import Any

from convbench.arrays import Array
from convbench.backends._torch import as_weights, prepared_bytes, rival, torch_conv, workspace_bytes
from convbench.ops import front_doors
from convbench.spec import ConvSpec


def _conv(spec: ConvSpec, first: Array, second: Any, bias: Array | None) -> Array:
    return torch_conv(spec, first, second, bias, pad_first=True)


BACKEND = rival(
    name="torch-padded-first",
    summary="torch.nn.functional.pad, then conv1d, conv2d, conv3d without padding, or backward (float32: oneDNN)",
    function=_conv,
    prepare=as_weights,
    prepared=prepared_bytes,
    workspace=lambda spec: workspace_bytes(spec, pad_first=True),
)
__getattr__ = front_doors("torch-padded-first")
