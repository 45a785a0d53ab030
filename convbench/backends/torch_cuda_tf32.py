"""``torch-cuda-tf32``: as ``torch-cuda``, with TF32 allowed, which is PyTorch's default: factors of 10 bits."""

from __future__ import annotations

from convbench.backends._torch_cuda import torch_cuda
from convbench.ops import front_doors

BACKEND = torch_cuda(
    "torch-cuda-tf32",
    "torch.nn.functional.conv1d, conv2d, conv3d and their backward (cuDNN, factors cut to TF32)",
    tf32=True,
)
__getattr__ = front_doors("torch-cuda-tf32")
