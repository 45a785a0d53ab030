"""``opencv-two-pass``: ``cv2.filter2D`` twice, with a row and with a column, for kernels that are one outer product.

What a user writes by hand where ``sepFilter2D`` is the slower of both.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from convbench.arrays import Array
from convbench.backends._opencv import BOUNDARIES, LIMITS, dft_taps, pad, rival
from convbench.backends._planes import Frame, conv_by_planes, planes_workspace, prepare_planes
from convbench.backends._rank_one import passes_bound, passes_work, prepared_bytes, rank_one_factors, why_not_passes
from convbench.ops import front_doors
from convbench.refusals import refuse
from convbench.spec import ConvSpec


def _factors(spec: ConvSpec, kernel: Array) -> tuple[Array, Array]:
    """Return the kernel's row and column as kernels of their own."""
    column, row = (factor.astype(spec.dtype) for factor in rank_one_factors(kernel, spec.dtype))
    return row[None], column[:, None]


def _why_not(spec: ConvSpec) -> str | None:
    longest, most = max(spec.kernel_size), dft_taps(spec) - 1
    if longest > most:
        return refuse("kernel size", f"{longest} given, filter2D runs lines of up to {most} taps directly")
    return why_not_passes(spec)


def _filter(plane: Array, factors: tuple[Array, ...], frame: Frame, out: Array) -> None:
    import cv2

    (row, column), border = factors, getattr(cv2, BOUNDARIES[frame.boundary])
    above, left = frame.anchor
    rows = cv2.filter2D(plane, -1, row, anchor=(left, 0), borderType=border)
    cv2.filter2D(rows, -1, column, dst=out, anchor=(0, above), borderType=border)


def _workspace(spec: ConvSpec) -> int:
    """And the image between both passes."""
    return planes_workspace(spec) + spec.itemsize * prod(Frame.of(spec).size)


BACKEND = rival(
    name="opencv-two-pass",
    summary="cv2.filter2D with a row, then with a column, planes one by one",
    function=conv_by_planes(_filter, pad),
    prepare=prepare_planes(_factors),
    prepared=lambda spec: prepared_bytes(spec, spec.itemsize),
    workspace=_workspace,
    work=passes_work,
    bound=passes_bound,
    limits=replace(LIMITS, axes=(2,), also=_why_not),
)
__getattr__ = front_doors("opencv-two-pass")
