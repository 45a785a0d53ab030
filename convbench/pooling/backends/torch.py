"""``torch``: PyTorch's pooling, and its gradients by the kernels behind autograd."""

from __future__ import annotations

from math import prod
from typing import Any

from numpy.typing import NDArray

from convbench.backends._torch import POOL, as_tensor
from convbench.pooling.backend import PoolFunction, PoolLimits, PoolRegistrant
from convbench.pooling.spec import FLOATS, PoolSpec
from convbench.refusals import refuse


def _pool(spec: PoolSpec, x: NDArray[Any], g: NDArray[Any] | None = None) -> NDArray[Any]:
    import torch

    leaf = as_tensor(x)
    if g is None:
        with torch.no_grad():
            result = _forward(spec, leaf)
    else:
        leaf.requires_grad_()
        (result,) = torch.autograd.grad(_forward(spec, leaf), leaf, as_tensor(g))
    array: NDArray[Any] = result.numpy()
    return array


def _forward(spec: PoolSpec, x: Any) -> Any:
    from torch.nn import functional

    axes = f"{spec.ndim}d"
    if spec.adaptive is not None:
        word = {"max": "max", "mean": "avg"}[spec.kind]
        return getattr(functional, f"adaptive_{word}_pool{axes}")(x, spec.adaptive)
    if spec.kind == "l2":
        kernel = spec.kernel_size if spec.ndim > 1 else spec.kernel_size[0]  # lp_pool1d takes no tuple
        return getattr(functional, f"lp_pool{axes}")(x, 2, kernel, spec.stride)
    before = tuple(pair[0] for pair in spec.padding)
    if spec.kind == "max":
        return getattr(functional, f"max_pool{axes}")(x, spec.kernel_size, spec.stride, before)
    counted = spec.count_include_pad
    return getattr(functional, f"avg_pool{axes}")(x, spec.kernel_size, spec.stride, before, False, counted)


def _not_its_own(spec: PoolSpec) -> str | None:
    if spec.kind == "l2":
        if spec.adaptive is not None or spec.padded:
            return refuse("kernel size", "lp_pool has neither bins nor padding")
        if spec.op == "grad":
            return refuse("op", "gradient of l2: that of lp_pool is NaN where the norm is 0")
    if any(before != after for before, after in spec.padding):
        return refuse("boundary", "PyTorch pads both ends of an axis alike")
    if any(2 * before > k for (before, _), k in zip(spec.padding, spec.kernel_size, strict=True)):
        return refuse("boundary", "PyTorch pads at most half of a kernel")
    if spec.batch == 0:
        return refuse("data", "a batch of 0")
    return None


def _workspace(spec: PoolSpec) -> int:
    """Its own tensors: windows' maxima and their places, squares, copies that make strides positive."""
    return 2 * spec.bytes_min + 16 * prod(spec.output_shape)


BACKEND = PoolRegistrant(
    name="torch",
    summary="max_pool, avg_pool, lp_pool and the adaptive ones",
    kind="rival",
    requires={"torch": "torch"},
    algorithm=PoolFunction.algorithm(_pool, workspace=_workspace, pool=POOL.held),
    limits=PoolLimits(dtypes=FLOATS, axes=(1, 2, 3), also=_not_its_own),
)
