"""``torch-cuda``: ``torch.nn.functional.conv1d``, ``conv2d`` and ``conv3d`` on the GPU (cuDNN), float32 as it is."""

from __future__ import annotations

from convbench.backends._torch_cuda import torch_cuda
from convbench.ops import front_doors

BACKEND = torch_cuda("torch-cuda", "torch.nn.functional.conv1d, conv2d, conv3d and their backward (cuDNN)", tf32=False)
__getattr__ = front_doors("torch-cuda")
