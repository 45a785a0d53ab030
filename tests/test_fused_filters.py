"""Compiled separable and box filters: every form of their kernels against the plain sum."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import pytest

from convbench import ConvSpec, UnsupportedWeights, get_backend
from convbench.jit.target import VARIABLE, targets

pytest.importorskip("llvmlite")

Array = np.ndarray[Any, Any]


@pytest.fixture(params=["avx512", "avx2", "neon", "generic"])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set that this CPU has."""
    if request.param not in targets():
        pytest.skip("another CPU")
    monkeypatch.setenv(VARIABLE, request.param)
    return str(request.param)


def _low_rank(spec: ConvSpec, rank: int, parity: int, rng: np.random.Generator) -> Array:
    """Sums of outer products; lines are symmetric for parity 1, antisymmetric for −1 (along the first axis)."""
    total = np.zeros(spec.weight_shape)
    for _ in range(rank):
        lines = [rng.standard_normal((*spec.weight_shape[:2], size)) for size in spec.kernel_size]
        if parity:
            lines = [line + (parity if axis == 0 else 1) * line[..., ::-1] for axis, line in enumerate(lines)]
        shaped = (
            line.reshape(*line.shape[:2], *(1,) * axis, -1, *(1,) * (spec.ndim - axis - 1))
            for axis, line in enumerate(lines)
        )
        total += reduce(np.multiply, shaped)
    return total.astype(spec.dtype)


def _check(name: str, spec: ConvSpec, w: Array, threads: int = 2) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(spec.input_shape).astype(spec.dtype)
    bias = () if spec.bias_shape is None else (rng.standard_normal(spec.bias_shape).astype(spec.dtype),)
    truth, tried = (get_backend(backend).plan(spec, threads=threads) for backend in ("direct-numpy", name))
    expected = truth(x, truth.prepare(w), *bias)
    eps = np.finfo(spec.dtype).eps
    scale = np.abs(expected).max() * 40 * eps
    np.testing.assert_allclose(tried(x, tried.prepare(w), *bias), expected, rtol=0, atol=scale)


SEPARABLE = [
    ("i40x50 k3 f32", 1),  # in lines
    ("n2 c3 o2 i60x70 k7x9 p3 boundary=reflect bias=channel f32", 2),
    ("i9x2100 k5 psame boundary=circular f32", 1),  # more than one tile of columns
    ("i300x33 k12 psame boundary=replicate f64", 2),  # more than one band of rows
    ("i9x9 k5 p20 boundary=reflect f32", 1),  # padding longer than the image
    ("i7x3 k3x2 f64", 1),  # rows shorter than a vector
    ("i70x90 k25x31 psame boundary=circular f32", 1),  # turned
    ("i70x90 k25x31 psame f64", 3),
    ("i61x93 k5x24 s2x3 d2x1 p4x9 f32", 1),
    ("i61x93 k5x24 s2 d2 p4x29 f32", 1),
    ("i61x93 k5x4 s2x3 d2x1 p4 f32", 1),  # plain rows, in phases
    ("c4 o4 g2 i8x8 k3 psame layout=channels_last f32", 1),
    ("c2 o2 i12x13x34 k5x7x3 p2 s2x1x1 bias=location f32", 1),  # two column passes
    ("i12x13x14 k5x1x5 p2 s2 f32", 2),  # the axis in the middle has one tap
    ("i10x9x44 k3x4x21 p2 f64", 2),
]


@pytest.mark.parametrize("parity", [0, 1, -1])
@pytest.mark.parametrize(("line", "rank"), SEPARABLE)
def test_separable_in_all_its_forms(target: str, line: str, rank: int, parity: int) -> None:
    """Lines, plain and turned rows, one and two column passes; general, symmetric and odd taps; strides, edges."""
    spec = ConvSpec.parse(line)
    _check("separable", spec, _low_rank(spec, rank, parity, np.random.default_rng(1)))


BOX = [
    "i60x70 k7x9 p3 boundary=reflect bias=channel f32",  # few taps
    "n2 c3 o2 i60x70 k7x9 p3 boundary=reflect bias=channel f32",  # ends and beginnings, several outputs
    "i70x90 k25x31 psame boundary=circular f64",
    "i9x2100 k3x19 p1x40 boundary=reflect f32",
    "i300x30 k15x1 psame boundary=circular f32",
    "i30x300 k1x15 psame boundary=replicate f32",
    "i5000 k19 psame f32",
    "i500 k9 d3 bias=location f32",  # as separable passes from here on
    "i61x93 k5x4 s2x3 d2x1 p4 f32",
    "i12x13x14 k3 p1 f32",
    "c4 o4 g2 i20x20 k13 psame layout=channels_last f32",
]


@pytest.mark.parametrize("line", BOX)
def test_box_in_all_its_forms(target: str, line: str) -> None:
    """Groups of windows that are cut off, rows shorter and longer than a tile, and what goes through passes."""
    spec = ConvSpec.parse(line)
    weights = np.random.default_rng(2).standard_normal(spec.weight_shape[:2]).astype(spec.dtype)
    _check("box", spec, np.broadcast_to(weights.reshape(*weights.shape, *(1,) * spec.ndim), spec.weight_shape))


@pytest.mark.parametrize("line", ["i64x64 k21 psame f32", "i2000 k25 psame f32"])
def test_box_forgets_loud_samples(line: str) -> None:
    """A sample of 1e30 and a NaN leave with their windows: nothing is subtracted."""
    spec = ConvSpec.parse(line)
    x, plan = np.ones(spec.input_shape, "f4"), get_backend("box").plan(spec, threads=1)
    x[..., 1], x[..., 2] = 1e30, np.nan
    y = plan(x, plan.prepare(np.ones(spec.weight_shape, "f4")))
    inside = (..., *(slice(30, size - 20) for size in spec.output_size))
    assert (y[inside] == 21**spec.ndim if spec.ndim == 2 else y[inside] == 25).all()


@pytest.mark.parametrize(("name", "line"), [("separable", "i20x40 k{} psame f32"), ("box", "i20x40 k{} psame f32")])
@pytest.mark.parametrize("taps", [5, 15])
def test_arrays_lie_as_they_like(name: str, line: str, taps: int) -> None:
    """Views with any strides, also negative ones, are read and written where they are."""
    spec = ConvSpec.parse(line.format(taps))
    plan, rng = get_backend(name).plan(spec, threads=1), np.random.default_rng(5)
    x, weights = rng.standard_normal(spec.input_shape, "f4"), plan.prepare(np.ones(spec.weight_shape, "f4"))
    expected = plan(x, weights)
    views = (
        lambda a: np.asfortranarray(a),
        lambda a: np.repeat(np.repeat(a, 2, -1), 3, -2)[..., ::3, ::2],
        lambda a: a[..., ::-1, ::-1].copy()[..., ::-1, ::-1],
        lambda a: a.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    )
    for view in views:
        out = view(np.full(spec.output_shape, np.nan, "f4"))
        plan(view(x), weights, None, out)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_separable_counts_the_work_of_its_rank() -> None:
    """Rank 3 is three times the work of rank 1, which is far less than that of all taps."""
    spec = ConvSpec.parse("i256x256 k31 psame f32")
    plan = get_backend("separable").plan(spec, threads=1)
    one, three = (plan.prepare(_low_rank(spec, rank, 0, np.random.default_rng(7))) for rank in (1, 3))
    assert three.flops == 3 * one.flops
    assert one.flops < spec.flops / 10


def test_refusals_are_those_of_numpys_form() -> None:
    """Ranks too high and taps that differ are named in the same words."""
    rng = np.random.default_rng(0)
    for name in ("separable", "box"):
        reasons = []
        for backend in (name, f"{name}-numpy"):
            plan = get_backend(backend).plan(ConvSpec.parse("i32x32 k9 f64"))
            with pytest.raises(UnsupportedWeights, match="weights: ") as caught:
                plan.prepare(rng.standard_normal((1, 1, 9, 9)))
            reasons.append(str(caught.value))
        assert reasons[0] == reasons[1]
