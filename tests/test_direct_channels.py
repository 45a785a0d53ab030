"""Direct convolution with channels as lanes: every way through its kernels, on every target that this CPU has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convbench import ConvSpec, oracle
from convbench.backend import AlgorithmBackend
from convbench.geometry import BOUNDARIES
from convbench.refusals import FLOATS, Limits
from convbench.spec import LAYOUTS

pytest.importorskip("llvmlite")

from convbench.algorithms.direct_channels import DirectChannels, suits
from convbench.jit.target import VARIABLE, targets

Array = np.ndarray[Any, Any]

BACKEND = AlgorithmBackend(
    name="channels",
    summary="direct, channels are lanes",
    algorithm=DirectChannels,
    limits=Limits(dtypes=FLOATS, boundaries=BOUNDARIES, layouts=LAYOUTS),
)

SPECS = (
    # blocks of channels that are full, and a last one that reaches back
    "c32 o32 g32 i7x7 k3 p1 f32",
    "n2 c37 o37 g37 i7x7 k13 p6 bias=channel f32",
    "c19 o19 g19 i7x7 k7 p3 flip f64",
    # whole squares of samples only, and none
    "c16 o16 g16 i8x8 k3 p1 f32",
    "c16 o16 g16 i3x5 k2 f32",
    # rows of outputs in several pieces
    "c20 o20 g20 i6x29 k5 p2 bias=channel f32",
    # more taps than samples, taps and outputs that meet nothing but zeros
    "c17 o17 g17 i7x5 k27 p13 f32",
    "c16 o16 g16 i5x6 k4x3 p9x0:7 bias=channel f32",
    # strides, dilations, a single tap, negative padding
    "c18 o18 g18 i14x13 k5x3 s2x3 p2 f32",
    "c18 o18 g18 i14x13 k3 d2x3 s1x2 p4 f64",
    "c16 o16 g16 i9x9 k1 s2 p1 f32",
    "c16 o16 g16 i9x9 k3 p-1:2 f32",
    # bands of rows
    "c18 o18 g18 i60x9 k5 p2 d3 bias=channel f32",
    "c18 o18 g18 i90x9 k3 s2 p1 boundary=circular f32",
    "c18 o18 g18 i5x20x7 k3 p1 f64",
    # one axis and three
    "n3 c33 o33 g33 i12 k5 psame bias=channel f32",
    "c16 o16 g16 i4x5x6 k3x2x3 p1 s1x2x1 f32",
    # other boundaries
    "c16 o16 g16 i7x9 k5 p2 boundary=reflect f32",
    "c16 o16 g16 i7x9 k5x11 p9x5 boundary=circular f32",
    "c16 o16 g16 i7x9 k3 s2 p4 boundary=replicate f64",
    # bias of every place, order in memory, nothing to do
    "c16 o16 g16 i7x7 k3 p1 bias=location f32",
    "n2 c21 o21 g21 i7x9 k3 p1 layout=channels_last bias=channel f32",
    "n0 c16 o16 g16 i7x7 k3 f32",
)


def whole_numbers(spec: ConvSpec) -> tuple[Array, Array, Array | None]:
    """Return operands whose products and sums are exact, in whatever order they are formed."""
    rng = np.random.default_rng(0)

    def numbers(shape: tuple[int, ...]) -> Array:
        return rng.integers(-4, 5, shape).astype(spec.dtype)

    x, w = map(numbers, spec.operand_shapes)
    return x, w, None if spec.bias_shape is None else numbers(spec.bias_shape)


def run(spec: ConvSpec, x: Array, w: Array, bias: Array | None, out: Array | None = None, threads: int = 1) -> Array:
    plan = BACKEND.plan(spec, threads=threads)
    y: Array = plan(x, plan.prepare(w), bias, out)
    return y


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("line", SPECS)
def test_exact(line: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, target)
    spec = ConvSpec.parse(line)
    operands = whole_numbers(spec)
    exact = oracle.conv(spec, *operands)
    for threads in (1, 2):
        np.testing.assert_array_equal(run(spec, *operands, threads=threads), exact)


def test_many_jobs() -> None:
    spec = ConvSpec.parse("n3 c200 o200 g200 i14x14 k7 p3 f32")
    operands = whole_numbers(spec)
    np.testing.assert_array_equal(run(spec, *operands, threads=2), oracle.conv(spec, *operands))


@pytest.mark.parametrize("line", ["n2 c19 o19 g19 i7x6 k3 p1 f32", "c16 o16 g16 i4x5x6 k3 p1 f64"])
def test_any_strides(line: str) -> None:
    spec = ConvSpec.parse(line)
    x, w, bias = whole_numbers(spec)
    exact = oracle.conv(spec, x, w, bias)
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    turned = np.ascontiguousarray(np.flip(x))
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    for same in (wide[..., ::2], np.flip(turned), np.asfortranarray(x), last):
        np.testing.assert_array_equal(run(spec, same, w, bias), exact)
    for out in (
        np.full((*exact.shape[:-1], 3 * exact.shape[-1]), np.nan, x.dtype)[..., ::3],
        np.flip(np.full(exact.shape, np.nan, x.dtype)),
        np.full(exact.shape, np.nan, x.dtype, order="F"),
        np.moveaxis(np.full((*exact.shape[:1], *exact.shape[2:], exact.shape[1]), np.nan, x.dtype), -1, 1),
    ):
        np.testing.assert_array_equal(run(spec, x, w, bias, out), exact)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_written_beyond(layout: str) -> None:
    spec = ConvSpec.parse(f"n2 c19 o19 g19 i7x9 k3 p1 layout={layout} f32")
    operands = whole_numbers(spec)
    exact = oracle.conv(spec, *operands)
    around = np.full((exact.size + 64,), 77, spec.dtype)
    inner = around[32:-32].reshape(exact.shape)
    run(spec, *operands, out=inner)
    np.testing.assert_array_equal(inner, exact)
    inner[...] = 77
    assert (around == 77).all()


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_weights_that_are_not_finite_meet_the_padding(bad: float, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, target)
    spec = ConvSpec.parse("c19 o19 g19 i7x7 k5 p2 f32")
    x, w, _ = whole_numbers(spec)
    x[...], w[...] = 1, 1
    w[3, 0, 0, 2] = w[17, 0, 2, 4] = bad
    expected = oracle.conv(spec, x, w, None)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(run(spec, x, w, None), expected)
    assert np.isnan(expected[0, 3, :2]).all()
    assert np.isnan(expected[0, 17, :, 5:]).all()


def test_a_sample_reaches_only_the_outputs_that_read_it() -> None:
    spec = ConvSpec.parse("c32 o32 g32 i7x7 k3 p1 f32")
    x, w = (np.ones(shape, np.float32) for shape in spec.operand_shapes)
    x[0, 5, 3, 3] = np.inf
    reached = np.zeros(spec.output_shape, bool)
    reached[0, 5, 2:5, 2:5] = True
    np.testing.assert_array_equal(np.isinf(run(spec, x, w, None)), reached)


def test_products_with_padding_are_not_computed() -> None:
    plan = BACKEND.plan(ConvSpec.parse("c32 o32 g32 i7x7 k13 p6 f32"), threads=1)
    assert plan.flops == 2 * 32 * 49 * 49


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("c1024 o1024 g1024 i7x7 k13 p6 f32", True),
        ("c512 o512 g512 i14x14 k3 p1 f32", True),
        ("c512 o512 g512 i14x14 k27 p13 f32", True),
        ("c512 o512 g512 i14x14 k3 s2 p1 f64", True),
        ("c512 o512 g512 i56x56 k3 p1 f32", False),
        ("c512 o1024 g512 i7x7 k3 p1 f32", False),
        ("c512 o512 g256 i7x7 k3 p1 f32", False),
        ("c1 o1 i7x7 k3 p1 f32", False),
        ("c512 o512 g512 i56x56 k3 p1 layout=channels_last f32", True),
        ("c512 o512 g512 i56x56 k31 p15 layout=channels_last f32", False),
    ],
)
def test_suits(line: str, expected: bool) -> None:
    assert suits(ConvSpec.parse(line)) is expected


@pytest.mark.parametrize("line", ["c3 o3 g3 i7x7 k3 f32", "c32 o64 g32 i7x7 k3 f32"])
def test_what_would_leave_the_arrays_is_refused(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "generic")
    with pytest.raises(ValueError, match="a channel a group and 4 groups at least"):
        BACKEND.plan(ConvSpec.parse(line), threads=1)
