"""Hypothesis strategies and seeded data for tests: any valid spec, small, and operands to go with it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from hypothesis import note
from hypothesis import strategies as st
from numpy.typing import NDArray

from convbench.geometry import BOUNDARIES
from convbench.spec import DTYPES, LAYOUTS, OPS, ConvSpec

#: What NumPy itself can store: everything but bfloat16.
NUMPY_DTYPES = tuple(name for name in DTYPES if name != "bfloat16")

Operands = tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]


@st.composite
def specs(
    draw: st.DrawFn,
    *,
    ops: tuple[str, ...] = OPS,
    dtypes: tuple[str, ...] = tuple(DTYPES),
    max_axes: int = 3,
    max_macs: int | None = None,
) -> ConvSpec:
    """Draw any valid spec. Shrinks towards one axis, one channel, K = 1, no padding, all defaults."""
    ndim = draw(st.integers(1, max_axes))
    kernel = [draw(st.integers(1, 4)) for _ in range(ndim)]
    stride = [draw(st.integers(1, 3)) for _ in range(ndim)]
    dilation = [draw(st.integers(1, 3)) for _ in range(ndim)]
    form = draw(st.sampled_from(("valid", "explicit", "same", "full")))
    extents = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    sizes = [draw(st.integers(e if form == "valid" else 1, (e if form == "valid" else 1) + 6)) for e in extents]
    pairs = [_pair(draw, size, extent) for size, extent in zip(sizes, extents, strict=True)]
    groups = draw(st.integers(1, 3))
    tile = draw(st.one_of(st.none(), st.just("unshared"), st.lists(st.integers(1, 4), min_size=ndim, max_size=ndim)))
    spec = ConvSpec(
        op=draw(st.sampled_from(ops)),
        batch=draw(st.sampled_from((1, 2, 0))),
        in_channels=groups * draw(st.integers(1, 3)),
        out_channels=groups * draw(st.integers(1, 3)),
        input_size=sizes,
        kernel_size=kernel,
        stride=stride,
        dilation=dilation,
        padding=pairs if form == "explicit" else form,
        groups=groups,
        tile=tile,
        boundary=draw(st.sampled_from(BOUNDARIES)),
        flip=draw(st.booleans()),
        bias=draw(st.sampled_from(("none", "channel", "location", *(("tile",) if tile else ())))),
        layout=draw(st.sampled_from(LAYOUTS)),
        dtype=draw(st.sampled_from(dtypes)),
    )
    spec = spec if max_macs is None else _shrunk_to(spec, max_macs)
    note(f"spec: {spec}")  # the one line that says it, beside the fields of the falsifying example
    return spec


def _pair(draw: st.DrawFn, size: int, extent: int) -> tuple[int, int]:
    """Draw (before, after), negative ones included, that leave room for one output at least."""
    before = draw(st.integers(-2, 5))
    least = extent - size - before
    after = draw(st.integers(max(-2, least), max(-2, least) + 5))
    return before, after


def _shrunk_to(spec: ConvSpec, max_macs: int) -> ConvSpec:
    """Drop batch, then channels, until the loops of the reference are quick."""
    for changes in ({"batch": 1}, {"in_channels": spec.groups}, {"out_channels": spec.groups}):
        if spec.macs > max_macs:
            spec = spec.replace(**changes)
    return spec


def integers(spec: ConvSpec, seed: int = 0, largest: int = 3) -> Operands:
    """Return the operands and a bias of whole numbers in [−largest, largest] ([0, largest] if unsigned)."""
    rng = np.random.default_rng(seed)
    lowest = 0 if spec.dtype.startswith("u") else -largest

    def draw(shape: tuple[int, ...]) -> NDArray[Any]:
        values: NDArray[Any] = rng.integers(lowest, largest + 1, shape)
        if "complex" in spec.dtype:
            values = values + 1j * rng.integers(lowest, largest + 1, shape)
        return values.astype(spec.dtype)

    first, second = map(draw, spec.operand_shapes)
    return first, second, None if spec.bias_shape is None else draw(spec.bias_shape)


def gaussian(spec: ConvSpec, seed: int = 0) -> Operands:
    """Return normally distributed operands and bias of a floating or complex dtype."""
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> NDArray[Any]:
        values: NDArray[Any] = rng.standard_normal(shape)
        if "complex" in spec.dtype:
            values = values + 1j * rng.standard_normal(shape)
        return values.astype(spec.dtype)

    first, second = map(draw, spec.operand_shapes)
    return first, second, None if spec.bias_shape is None else draw(spec.bias_shape)


def shuffled(line: str, seed: int) -> str:
    """Return the tokens of a line in another order."""
    tokens = line.split()
    random.Random(seed).shuffle(tokens)
    return " ".join(tokens)


__all__ = ["NUMPY_DTYPES", "Operands", "gaussian", "integers", "shuffled", "specs"]
