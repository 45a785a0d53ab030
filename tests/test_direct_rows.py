"""Direct convolution of few channels: every way through its kernels, on every target that this CPU has."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest

from convbench import ConvSpec, oracle, plan
from convbench.backend import AlgorithmBackend
from convbench.geometry import BOUNDARIES
from convbench.refusals import FLOATS, Limits
from convbench.spec import LAYOUTS

pytest.importorskip("llvmlite")

from convbench.algorithms.direct_rows import DirectRows, suits
from convbench.jit.target import VARIABLE, targets

Array = np.ndarray[Any, Any]

BACKEND = AlgorithmBackend(
    name="rows",
    summary="direct, few channels",
    algorithm=DirectRows,
    limits=Limits(dtypes=FLOATS, boundaries=BOUNDARIES, layouts=LAYOUTS),
)

SPECS = (
    # columns of taps written out, or a loop; some of the image read in place, some from strips
    "i37x150 k3 p1 f32",
    "i37x300 k7x5 p3x2 bias=channel f32",
    "i45x300 k11x4 p5x1 f32",
    "i45x300 k13x4 p5x1 f32",
    "i40x70 k31 p15 f64",
    # bands and spans whose last is smaller; rows and columns of the last tile beyond the image
    "i131x1100 k3 f32",
    "n2 c3 o3 g3 i29x83 k13 p6 f32",
    # strides: one, two, more; along one axis or both
    "c4 o4 g4 i31x57 k3 s2 p1 f32",
    "c2 o2 g2 i31x57 k13x5 s2x3 p4x2 f32",
    "i61x40 k14x3 s3x1 p4x1 f64",
    "i50x90 k3 s5x4 f32",
    # dilations, alone and with strides of common divisors
    "i40x90 k3 d2 p2 f32",
    "i60x90 k3x4 s2x3 d4x2 p3 f32",
    "i90x70 k13x3 s2x1 d3x5 p4x2 f32",
    # residues of a row less than others, more of them than rows, one tap; taps of a row far apart, each its segment
    "i301x40 k3 d100 p100 f32",
    "i7x200 k3 d100 p100 s3 f32",
    "i150x40 k13x1 d9 p40x0 f64",
    "i40x50 k1 s4 d9 p2 f32",
    "i3000 k3 d1000 psame f32",
    "c2 o3 i9x20x700 k3x3x2 p1x6x0:9 d1x1x600 f32",
    "i20x3000 k3x4 s1x3 d7x501 p7x500 boundary=circular f32",
    # several inputs and outputs of a group, three axes
    "n2 c6 o4 g2 i20x33 k3x5 p1x2 bias=channel f32",
    "c2 o3 i9x14x35 k3 p1 s2x1x1 f32",
    "i7x12x20 k3x2x9 p1x0x4 d2x1x1 f64",
    # signals: short taps, folded ones, with a rest of taps and without
    "i1000 k5 psame f32",
    "n2 c3 o3 g3 i2000 k32 p31:0 f32",
    "i3001 k65 psame flip f32",
    "i2500 k131 pfull flip bias=channel f64",
    "i2500 k600 pfull f32",
    "i2000 k41 psame boundary=circular f32",
    "n2 c512 o512 g512 i100 k17 f32",
    # one row, which is not the input's first, or is not there
    "i5x200 k1x33 p-2x0 f32",
    "i1x1000 k1x33 p1:-1x0 f32",
    "i3x5x200 k1x1x33 p-1x-2x0 f32",
    "i5x1x200 k1x1x33 p-1x0x16 f32",
    "i1x1x200 k1x1x33 p1:-1x0x16 f32",
    # taps that meet nothing but zeros
    "c3 o3 g3 i7x7 k27 p13 f32",
    "i5x6 k4x3 p9x0:7 f32",
    "i9 k3 p-2:20 d4 f64",
    # other boundaries
    "i37x150 k5 p2 boundary=reflect f32",
    "i37x150 k13 p6 boundary=circular f32",
    "i37x90 k13x3 s2 p11x7 boundary=replicate f32",
    # bias of every place, order in memory, nothing to do
    "c2 o2 g2 i21x40 k3 p1 bias=location f32",
    "n2 c4 o4 g4 i21x40 k3 p1 layout=channels_last bias=channel f32",
    "n0 c2 o2 g2 i9x9 k3 f32",
    "i1x1 k1 f32",
)


def whole_numbers(spec: ConvSpec) -> tuple[Array, Array, Array | None]:
    """Return operands whose products and sums are exact, in whatever order they are formed."""
    rng = np.random.default_rng(0)

    def numbers(shape: tuple[int, ...]) -> Array:
        return rng.integers(-4, 5, shape).astype(spec.dtype)

    x, w = map(numbers, spec.operand_shapes)
    return x, w, None if spec.bias_shape is None else numbers(spec.bias_shape)


def run(spec: ConvSpec, x: Array, w: Array, bias: Array | None, out: Array | None = None, threads: int = 1) -> Array:
    ready = BACKEND.plan(spec, threads=threads)
    y: Array = ready(x, ready.prepare(w), bias, out)
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


@pytest.mark.parametrize(
    "line",
    [
        "n2 c3 o3 g3 i37x150 k3 p1 f32",
        "i45x200 k13 s1x2 p6 f32",
        "i900 k65 psame f32",
        "i37x90 k5 p2 f64",
        "i40x600 k3 s1x2 d7x200 p7x200 f32",
    ],
)
def test_any_strides(line: str) -> None:
    spec = ConvSpec.parse(line)
    x, w, bias = whole_numbers(spec)
    exact = oracle.conv(spec, x, w, bias)
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    turned = np.ascontiguousarray(np.flip(x))
    for same in (wide[..., ::2], np.flip(turned), np.asfortranarray(x)):
        np.testing.assert_array_equal(run(spec, same, w, bias), exact)
    for out in (
        np.full((*exact.shape[:-1], 3 * exact.shape[-1]), np.nan, x.dtype)[..., ::3],
        np.flip(np.full(exact.shape, np.nan, x.dtype)),
        np.full(exact.shape, np.nan, x.dtype, order="F"),
    ):
        np.testing.assert_array_equal(run(spec, x, w, bias, out), exact)


@pytest.mark.parametrize(
    "line",
    [
        "i37x150 k3 p1 f32",
        "i45x300 k13 p6 f32",
        "c2 o2 g2 i30x40 k3 s2 p1 f32",
        "i2000 k41 psame f32",
        "i31x40 k3 d5 p5 f32",
    ],
)
def test_nothing_is_written_beyond(line: str) -> None:
    spec = ConvSpec.parse(line)
    operands = whole_numbers(spec)
    shape = spec.output_shape
    around = np.full(tuple(size + 6 for size in shape), 77, spec.dtype)
    inner = tuple(slice(3, 3 + size) for size in shape)
    run(spec, *operands, out=around[inner])
    np.testing.assert_array_equal(around[inner], oracle.conv(spec, *operands))
    around[inner] = 77
    assert (around == 77).all()


@pytest.mark.parametrize("line", ["i2000 k41 f32", "i2000 k150 f32", "i60x300 k13 f32", "i60x300 k3 s2 f32"])
def test_a_sample_reaches_only_the_outputs_that_read_it(line: str) -> None:
    spec = ConvSpec.parse(line)
    x, w, _ = whole_numbers(spec)
    x[:], w[:] = 1, 1
    middle = tuple(size // 2 for size in x.shape)
    x[middle] = np.inf
    expected = np.full(spec.output_shape, np.float32(prod(spec.kernel_size)))
    reached = tuple(
        slice(max(0, -(-(at - size + 1) // stride)), at // stride + 1)
        for at, size, stride in zip(middle[2:], spec.kernel_size, spec.stride, strict=True)
    )
    place: tuple[Any, ...] = (..., *reached)
    expected[place] = np.inf
    np.testing.assert_array_equal(run(spec, x, w, None), expected)


@pytest.mark.parametrize("line", ["i5x200 k1x33 t5x1 f32", "op=input_grad i8x200 k3x33 psame boundary=circular f32"])
def test_one_row_of_several(line: str) -> None:
    """What tiled weights and input gradients are rewritten as reads some row of its input."""
    spec = ConvSpec.parse(line)
    operands = whole_numbers(spec)
    ready = plan(spec, backend="direct", threads=1)
    y = ready(operands[0], ready.prepare(operands[1]))
    np.testing.assert_array_equal(y, oracle.conv(spec, *operands))


@pytest.mark.parametrize("weight", [np.inf, np.nan])
@pytest.mark.parametrize(
    "line",
    [
        "i16x16 k13 p6 f32",
        "n2 c2 o2 g2 i37x40 k3 p1 f32",
        "c3 o3 g3 i7x7 k27 p13 f32",
        "c2 o3 i9x14x35 k3 p1 s2x1x1 f32",
        "i2000 k41 psame flip f32",
        "i30x40 k5x3 s2x3 d3x2 p4x9:2 f32",
        "i30x40 k5 p2 boundary=reflect f32",
        "i9 k3 p-2:20 d4 f64",
    ],
)
def test_zeros_beyond_the_input_meet_weights_that_are_not_finite(line: str, weight: float) -> None:
    """Though nothing is computed there: the product of an infinity and a zero of the padding is NaN."""
    spec = ConvSpec.parse(line)
    rng = np.random.default_rng(0)
    ready = plan(spec, backend="im2col-numpy", threads=1)
    for _ in range(4):
        x, w = (np.ones(shape, spec.dtype) for shape in spec.operand_shapes)
        w.flat[rng.choice(w.size, 2)] = weight
        with np.errstate(invalid="ignore"):
            expected = ready(x, ready.prepare(w))
        np.testing.assert_array_equal(run(spec, x, w, None), expected)


def test_taps_on_zeros_are_not_computed() -> None:
    spec = ConvSpec.parse("c8 o8 g8 i7x7 k27 p13 f32")
    assert BACKEND.plan(spec, threads=1).flops == 2 * 8 * 7**2 * 13**2


@pytest.mark.parametrize(
    "line",
    [
        "c128 o128 g128 i56x56 k31 p15 f32",
        "c1024 o1024 g1024 i7x7 k13 p6 f32",
        "i3840x2160 k101 psame f32",
        "i1000000 k257 psame f32",
        "i300x300 k3 d100 p100 f32",
        "i300x300 k31 d9 p135 f32",
        "i30000 k3 d10000 f32",
    ],
)
def test_workspace_is_a_fifth_of_the_operands_at_most(line: str) -> None:
    spec = ConvSpec.parse(line)
    operands = prod(spec.input_shape) + prod(spec.weight_shape) + prod(spec.output_shape)
    for threads in (1, 2):
        assert BACKEND.plan(spec, threads=threads).workspace_bytes <= 0.2 * spec.itemsize * operands


@pytest.mark.parametrize("line", ["c512 o512 g512 i100 k17 f32", "i1000000 k1025 psame f32", "i64x64 k5 f32"])
def test_prepared_weights_are_as_many_as_weights(line: str) -> None:
    spec = ConvSpec.parse(line)
    assert BACKEND.plan(spec, threads=1).prepared_bytes == spec.itemsize * prod(spec.weight_shape)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("i1024x1024 k5 f32", True),
        ("c512 o512 g512 i14x14 k3 p1 f32", True),
        ("c1024 o1024 g1024 i7x7 k3 p1 f32", True),
        ("c3 o64 i224x224 k7 s2 p3 f32", False),
        ("c64 o64 i56x56 k3 p1 f32", False),
        ("c64 o64 i7x7 k3 p1 f32", False),
    ],
)
def test_suits(line: str, expected: bool) -> None:
    assert suits(ConvSpec.parse(line)) is expected
