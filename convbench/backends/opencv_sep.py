"""``opencv-sep``: ``cv2.sepFilter2D`` for kernels that are one outer product; others are refused with their rank."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from convbench import bounds
from convbench.algorithms.lowrank import factor_error, tensor_train
from convbench.algorithms.separable import EPS
from convbench.arrays import Array
from convbench.backends._opencv import BOUNDARIES, LIMITS, anchor, as_image, pad, rival
from convbench.backends._planes import Frame, conv_by_planes, planes_workspace, prepare_planes, why_not_planes
from convbench.bounds import ErrorBound
from convbench.errors import UnsupportedWeights
from convbench.ops import front_doors
from convbench.refusals import refuse
from convbench.spec import ConvSpec


def _factors(spec: ConvSpec, kernel: Array) -> tuple[Array, Array]:
    """Return the kernel's row and column factors, each as an image of one row."""
    import numpy as np

    if not np.isfinite(kernel).all():
        raise UnsupportedWeights(refuse("weights", "NaN or infinity among them: they have no rank"))
    cores = tensor_train(as_image(kernel), EPS[spec.dtype])
    rank = cores[0].shape[2]
    if rank > 1:
        raise UnsupportedWeights(refuse("weights", f"numerical rank {rank} of {min(kernel.shape)}, only 1 is done"))
    column, row = (np.ascontiguousarray(core.reshape(1, -1), spec.dtype) for core in cores)
    return row, column


def _why_not(spec: ConvSpec) -> str | None:
    if prod(spec.kernel_size) == 1:
        return refuse("kernel size", "one tap: there is nothing to separate")
    return why_not_planes(spec)


def _filter(plane: Array, factors: tuple[Array, ...], frame: Frame, out: Array) -> None:
    import cv2

    (row, column), border = factors, getattr(cv2, BOUNDARIES[frame.boundary])
    cv2.sepFilter2D(as_image(plane), -1, row, column, dst=as_image(out), anchor=anchor(frame), borderType=border)


def _bound(spec: ConvSpec) -> ErrorBound:
    """Two direct passes: nothing beyond the window is touched, and integer factors keep integers exact."""
    truncation = factor_error(((1, *spec.kernel_size))[-2:], EPS[spec.dtype])
    return replace(bounds.separable(spec, 1, truncation), exact_on_integers=True, spreads_nonfinite=False)


def _work(spec: ConvSpec) -> int:
    """Both passes, each over the whole plane."""
    pairs = spec.batch * spec.out_channels * (spec.in_channels // spec.groups)
    return 2 * pairs * prod(Frame.of(spec).size) * sum(((1, *spec.kernel_size))[-2:])


BACKEND = rival(
    name="opencv-sep",
    summary="cv2.sepFilter2D, planes one by one",
    function=conv_by_planes(_filter, pad),
    prepare=prepare_planes(_factors),
    prepared=lambda spec: spec.out_channels * (spec.in_channels // spec.groups) * sum(spec.kernel_size) * spec.itemsize,
    workspace=planes_workspace,
    work=_work,
    bound=_bound,
    limits=replace(LIMITS, also=_why_not),
)
__getattr__ = front_doors("opencv-sep")
