"""``opencv-sep``: ``cv2.sepFilter2D`` for kernels that are one outer product; others are refused with their rank."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from convbench.arrays import Array
from convbench.backends._opencv import BOUNDARIES, LIMITS, anchor, as_image, pad, rival
from convbench.backends._planes import Frame, conv_by_planes, planes_workspace, prepare_planes, why_not_planes
from convbench.backends._rank_one import passes_bound, passes_work, prepared_bytes, rank_one_factors
from convbench.ops import front_doors
from convbench.refusals import refuse
from convbench.spec import ConvSpec


def _factors(spec: ConvSpec, kernel: Array) -> tuple[Array, Array]:
    """Return the kernel's row and column factors, each as an image of one row."""
    column, row = (factor[None].astype(spec.dtype) for factor in rank_one_factors(as_image(kernel), spec.dtype))
    return row, column


def _why_not(spec: ConvSpec) -> str | None:
    if prod(spec.kernel_size) == 1:
        return refuse("kernel size", "one tap: there is nothing to separate")
    return why_not_planes(spec)


def _filter(plane: Array, factors: tuple[Array, ...], frame: Frame, out: Array) -> None:
    import cv2

    (row, column), border = factors, getattr(cv2, BOUNDARIES[frame.boundary])
    cv2.sepFilter2D(as_image(plane), -1, row, column, dst=as_image(out), anchor=anchor(frame), borderType=border)


BACKEND = rival(
    name="opencv-sep",
    summary="cv2.sepFilter2D, planes one by one",
    function=conv_by_planes(_filter, pad),
    prepare=prepare_planes(_factors),
    prepared=lambda spec: prepared_bytes(spec, spec.itemsize),
    workspace=planes_workspace,
    work=passes_work,
    bound=passes_bound,
    limits=replace(LIMITS, also=_why_not),
)
__getattr__ = front_doors("opencv-sep")
