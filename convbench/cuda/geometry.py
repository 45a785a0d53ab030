"""The geometry of one forward convolution as the kernels take it: ``struct Conv`` of ``kernels/common.cuh``."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from convbench.arrays import Array
from convbench.errors import SpecError
from convbench.geometry import BOUNDARIES
from convbench.spec import ConvSpec

__all__ = ["CONV", "by_axes", "geometry", "permuted", "three"]

#: ``struct Conv``, field by field.
CONV = np.dtype(
    [
        *((name, "i4") for name in ("batch", "groups", "inputs", "outputs")),
        *((name, "i4", 3) for name in ("size", "kernel", "result", "stride", "dilation", "before")),
        ("boundary", "i4"),
        ("flip", "i4"),
        ("wide", "i4"),
        *((name, "i8", 6) for name in ("x", "y", "w")),
        ("bias", "i8", 5),
    ],
    align=True,
)


def three(values: Sequence[int], missing: int) -> tuple[int, int, int]:
    """Return one value for each of depth, rows and columns; axes that a spec has not come first."""
    depth, row, column = (*(missing,) * (3 - len(values)), *values)
    return depth, row, column


def by_axes(array: Array, lead: int) -> tuple[int, ...]:
    """Return an array's strides in items, of ``lead`` axes and then of depth, rows and columns.

    Raises
    ------
    SpecError
        If they are no whole items, as those of records' fields may be: a GPU reads no number across its alignment.
    """
    if any(stride % array.dtype.itemsize for stride in array.strides):
        raise SpecError(
            "strides",
            array.strides,
            f"must be multiples of {array.dtype.itemsize} bytes on a GPU: copy it before it goes",
        )
    items = [stride // array.dtype.itemsize for stride in array.strides]
    return (*items[:lead], *three(items[lead:], 0))


def geometry(spec: ConvSpec, x: Array, w: Array | None, y: Array, bias: Array | None = None) -> Any:
    r"""Return the struct, an array of size one, which is passed by value.

    Parameters
    ----------
    spec : ConvSpec
        Of any operation: for gradients x, w and y stand for what has their shape.
    x : array, shape (N, G, C/g, \*input_size)
    w : array, shape (G, O/g, C/g, \*kernel_size), or None
        None leaves its strides 0, for kernels that take packed weights.
    y : array, shape (N, G, O/g, \*output_size)
        Of the type of x, or of the type in which sums are formed, as where a rewriting adds up several parts.
    bias : array, shape ``spec.bias_shape``, optional
    """
    made = np.zeros(1, CONV)
    one = made[0]
    groups = spec.groups
    one["batch"], one["groups"] = spec.batch, groups
    one["inputs"], one["outputs"] = spec.in_channels // groups, spec.out_channels // groups
    one["size"], one["kernel"] = three(spec.input_size, 1), three(spec.kernel_size, 1)
    one["result"], one["stride"] = three(spec.output_size, 1), three(spec.stride, 1)
    one["dilation"] = three(spec.dilation, 1)
    one["before"] = three([before for before, _ in spec.padding], 0)
    one["boundary"], one["flip"] = BOUNDARIES.index(spec.boundary), spec.flip
    one["wide"] = y.dtype != x.dtype
    one["x"], one["y"] = by_axes(x, 3), by_axes(y, 3)
    if w is not None:
        one["w"] = by_axes(w, 3)
    if bias is not None:
        items = [stride // bias.dtype.itemsize for stride in bias.strides]
        place = three(items[1:], 0) if spec.bias == "location" else (0, 0, 0)
        one["bias"] = (items[0] * (spec.out_channels // groups), items[0], *place)
    return made


def permuted(conv: Any, order: Sequence[int]) -> Any:
    """Return the struct with other axes as depth, rows and columns: those of ``order`` among the spec's."""
    if list(order) == [0, 1, 2]:
        return conv
    made, axes = conv.copy(), list(order)
    for name in ("size", "kernel", "result", "stride", "dilation", "before"):
        made[name][0] = made[name][0][axes]
    for name, lead in (("x", 3), ("y", 3), ("w", 3), ("bias", 2)):
        made[name][0, lead:] = made[name][0, lead:][axes]
    return made


def blocks(total: int, each: int) -> int:
    """Return how many blocks of ``each`` cover ``total``.

    >>> blocks(65, 64)
    2
    """
    return -(-total // each)


def outputs_of(spec: ConvSpec) -> int:
    """Return the positions of one image's output."""
    return prod(spec.output_size)
