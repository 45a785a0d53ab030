"""The definition against values worked out by hand, against SciPy and PyTorch; the oracle against the definition."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, signal
from strategies import NUMPY_DTYPES, gaussian, integers, specs

from convbench import ConvSpec, SpecError, bounds, oracle, reference
from convbench.oracle import Truth
from convbench.spec import OPS

FLOATING = ("float16", "float32", "float64", "complex64", "complex128")


def run(line: str, x: Any, w: Any, bias: Any = None) -> list[Any]:
    """Evaluate a line on nested lists in float64 and return nested lists, N dropped."""
    spec = ConvSpec.parse(line + " f64")
    x, w = (np.array(a, float).reshape(shape) for a, shape in ((x, spec.input_shape), (w, spec.weight_shape)))
    if bias is not None:
        bias = np.array(bias, float).reshape(spec.bias_shape or ())
    y = reference.conv(spec, x, w, bias)
    np.testing.assert_array_equal(oracle.conv(spec, x, w, bias), y)
    assert y.shape == spec.output_shape
    values: list[Any] = y[0].tolist()
    return values


# -- values worked out by hand ----------------------------------------------------------------

RAMP = [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("line", "w", "expected"),
    [
        ("i4 k2", [1, 10], [21, 32, 43]),  # eq. 9.6: cross-correlation
        ("i4 k2 flip", [1, 10], [12, 23, 34]),  # eq. 9.3: convolution
        ("i4 k3 psame", [1, 10, 100], [210, 321, 432, 43]),
        ("i4 k2 pfull", [1, 10], [10, 21, 32, 43, 4]),
        ("i4 k2 psame", [1, 10], [21, 32, 43, 4]),  # an even kernel pads after
        ("i4 k2 p2:-1", [1, 10], [0, 10, 21, 32]),  # a crop after
        ("i4 k2 p-1:0", [1, 10], [32, 43]),
        ("i4 k2 s2", [1, 10], [21, 43]),  # eq. 9.8: stride
        ("i4 k1 s3", [5], [5, 20]),  # stride > K: samples skipped
        ("i4 k2 d2", [1, 10], [31, 42]),
        ("i4 k2 d3 p1 s2", [1, 10], [30, 2]),
        ("i4 k5 p2", [1, 10, 100, 1000, 10000], [32100, 43210, 4321, 432]),  # kernel larger than the input
    ],
)
def test_one_axis(line: str, w: list[int], expected: list[int]) -> None:
    assert run(line, RAMP, w) == [expected]


def test_two_axes() -> None:
    image, kernel = range(1, 10), [1, 10, 100, 1000]
    assert run("i3x3 k2", list(image), kernel) == [[[5421, 6532], [8754, 9865]]]  # eq. 9.6
    assert run("i3x3 k2 flip", list(image), kernel) == [[[1245, 2356], [4578, 5689]]]  # eq. 9.4
    assert run("i3x3 k2 s2x1", list(image), kernel) == [[[5421, 6532]]]
    assert run("i3x3 k2 p0:0x0:-1", list(image), kernel) == [[[5421], [8754]]]


def test_three_axes() -> None:
    assert run("i2x2x2 k2", range(1, 9), [10**k for k in range(8)]) == [[[[87654321]]]]
    assert run("i2x2x2 k2 flip", range(1, 9), [10**k for k in range(8)]) == [[[[12345678]]]]


def test_channels_and_groups() -> None:
    x = [[1, 2], [3, 4]]
    assert run("c2 o2 i2 k1", x, [1, 10, 100, 1000]) == [[31, 42], [3100, 4200]]  # eq. 9.7
    grouped = run("c2 o4 g2 i2 k1", x, [1, 10, 100, 1000])  # outputs 0, 1 read channel 0 only
    assert grouped == [[1, 2], [10, 20], [300, 400], [3000, 4000]]
    assert run("c2 o2 g2 i2 k2", x, [1, 10, 100, 1000]) == [[21], [4300]]  # depthwise


def test_tiled_and_locally_connected() -> None:
    w = [[1, 10], [100, 1000]]
    assert run("i5 k2 t2", [1, 2, 3, 4, 5], w) == [[21, 3200, 43, 5400]]  # eq. 9.10
    assert run("i3 k2 tunshared", [1, 2, 3], w) == [[21, 3200]]  # eq. 9.9
    assert run("i5 k2 t2 flip", [1, 2, 3, 4, 5], w) == [[12, 2300, 34, 4500]]
    assert run("i2x3 k1 t1x2", range(1, 7), [1, 10]) == [[[1, 20, 3], [4, 50, 6]]]
    assert run("i3 k2 t7", [1, 2, 3], [*w[0], *w[1], *[0] * 10]) == [[21, 3200]]  # a period beyond the output


@pytest.mark.parametrize(
    ("line", "bias", "expected"),
    [
        ("o2 bias=channel", [100, 200], [[101, 102, 103], [201, 202, 203]]),
        ("o2 bias=location", [10, 20, 30, 40, 50, 60], [[11, 22, 33], [41, 52, 63]]),
        ("t2 bias=channel", [100], [[101, 102, 103]]),
        ("t2 bias=tile", [10, 20], [[11, 22, 13]]),
        ("t2 bias=location", [10, 20, 30], [[11, 22, 33]]),
    ],
)
def test_biases(line: str, bias: list[int], expected: list[list[int]]) -> None:
    assert run(f"i3 k1 {line}", [1, 2, 3], [1, 1], bias) == expected


@pytest.mark.parametrize(
    ("boundary", "expected"),
    [
        ("zero", [0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0]),
        ("circular", [4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1]),
        ("reflect", [2, 3, 4, 3, 2, 1, 2, 3, 4, 3, 2, 1, 2, 3]),
        ("replicate", [1, 1, 1, 1, 1, 1, 2, 3, 4, 4, 4, 4, 4, 4]),
    ],
)
def test_a_1x1_kernel_shows_the_extension(boundary: str, expected: list[int]) -> None:
    assert run(f"i4 k1 p5 boundary={boundary}", RAMP, [1]) == [expected]


def test_a_batch_is_its_examples_one_by_one() -> None:
    spec = ConvSpec.parse("n3 c2 o2 i5x4 k3x2 f64")
    x, w, _ = gaussian(spec)
    y = reference.conv(spec, x, w)
    for n in range(3):
        np.testing.assert_array_equal(y[n : n + 1], reference.conv(spec.replace(batch=1), x[n : n + 1], w))
    assert reference.conv(spec.replace(batch=0), x[:0], w).shape == (0, 2, 3, 3)


# -- numbers ----------------------------------------------------------------------------------


def test_integers_are_exact_where_float64_is_not() -> None:
    spec = ConvSpec(input_size=2, kernel_size=2, dtype="int64")
    big = 2**53 + 1
    for conv in (reference.conv, oracle.conv):
        y = conv(spec, np.array([[[big, 1]]]), np.array([[[1, 1]]]))
        assert (y.dtype, y.item()) == (np.int64, big + 1)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32"])
def test_narrow_integers_accumulate_in_int64(dtype: str) -> None:
    spec = ConvSpec(input_size=3, kernel_size=3, dtype=dtype)
    largest = np.iinfo(dtype).max
    x = np.full((1, 1, 3), largest, dtype)
    for conv in (reference.conv, oracle.conv):
        y = conv(spec, x, np.ones_like(x))
        assert (y.dtype, y.item()) == (np.int64, 3 * int(largest))


def test_uint64_stays_unsigned() -> None:
    spec = ConvSpec(input_size=1, kernel_size=1, dtype="uint64")
    top = np.full((1, 1, 1), 2**64 - 1, np.uint64)
    for conv in (reference.conv, oracle.conv):
        y = conv(spec, top, np.ones_like(top))
        assert (y.dtype, y.item()) == (np.uint64, 2**64 - 1)


def test_an_integer_result_beyond_64_bits_is_an_error() -> None:
    spec = ConvSpec(input_size=2, kernel_size=2, dtype="int64")
    top = np.full((1, 1, 2), 2**62)
    with pytest.raises(OverflowError):
        reference.conv(spec, top, np.full((1, 1, 2), 2))


def test_float32_is_rounded_once() -> None:
    """1 + 2⁻²⁴ + 2⁻²⁴ is 1 if every partial sum is rounded to float32, and 1 + 2⁻²³ if the total is."""
    spec = ConvSpec(input_size=3, kernel_size=3)
    x = np.array([[[1, 2**-24, 2**-24]]], np.float32)
    y = reference.conv(spec, x, np.ones((1, 1, 3), np.float32))
    assert y.dtype == np.float32
    assert y.item() == 1 + 2**-23


def test_complex_numbers_are_not_conjugated() -> None:
    spec = ConvSpec(input_size=1, kernel_size=1, dtype="complex64")
    y = reference.conv(spec, np.full((1, 1, 1), 1 + 2j, np.complex64), np.full((1, 1, 1), 3 + 4j, np.complex64))
    assert (y.dtype, y.item()) == (np.complex64, (1 + 2j) * (3 + 4j))


def test_nan_and_infinity_stay_where_the_kernel_meets_them() -> None:
    spec = ConvSpec.parse("i7 k3 psame f64")
    x = np.array([[[1, 1, np.nan, 1, 1, np.inf, 1]]])
    expected = np.array([[[2, np.nan, np.nan, np.nan, np.inf, np.inf, np.inf]]])
    for conv in (reference.conv, oracle.conv):
        np.testing.assert_array_equal(conv(spec, x, np.ones((1, 1, 3))), expected)


def test_half_precision_is_rounded_once() -> None:
    """2048 + 1 + 1 is 2048 if every partial sum is rounded to float16, and 2050 if the total is."""
    for op, shapes in (("forward", ((1, 1, 3), (1, 1, 3))), ("weight_grad", ((1, 1, 3), (1, 1, 3)))):
        spec = ConvSpec(input_size=3, kernel_size=3 if op == "forward" else 1, dtype="float16", op=op)
        first = np.array([2048, 1, 1], np.float16).reshape(shapes[0])
        result = reference.conv(spec, first, np.ones(shapes[1], np.float16))
        assert (result.dtype, result.item()) == (np.float16, 2050)


@pytest.mark.parametrize("op", ["input_grad", "weight_grad"])
@pytest.mark.parametrize("conv", [reference.conv, oracle.conv])
def test_gradients_have_no_bias(conv: Any, op: str) -> None:
    spec = ConvSpec(input_size=2, kernel_size=1, op=op, bias="channel")
    operands = [np.ones(shape, np.float32) for shape in spec.operand_shapes]
    with pytest.raises(SpecError, match=f"must be None: {op} does not depend on it"):
        conv(spec, *operands, np.ones(1, np.float32))


# -- the gradients by hand --------------------------------------------------------------------


def gradient(op: str, line: str, first: Any, second: Any) -> Any:
    """Evaluate a gradient on nested lists in float64 and return nested lists."""
    spec = ConvSpec.parse(f"op={op} {line} f64")
    a, b = (np.array(v, float).reshape(s) for v, s in zip((first, second), spec.operand_shapes, strict=True))
    result = reference.conv(spec, a, b)
    np.testing.assert_array_equal(oracle.conv(spec, a, b), result)
    assert result.shape == spec.result_shape
    return result.tolist()


@pytest.mark.parametrize(
    ("line", "g", "expected"),
    [
        ("i4 k2", [1, 2, 3], [1, 12, 23, 30]),  # eq. 9.13
        ("i4 k2 flip", [1, 2, 3], [10, 21, 32, 3]),
        ("i5 k2 s2", [1, 2], [1, 10, 2, 20, 0]),  # the fifth sample is never read
        ("i4 k2 d2", [1, 2], [1, 2, 10, 20]),
        ("i3 k2 p1", [1, 2, 3, 4], [12, 23, 34]),
        ("i4 k2 p-1:0", [1, 2], [0, 1, 12, 20]),
        ("i3 k2 p1 boundary=circular", [1, 2, 3, 4], [12 + 40, 23, 34 + 1]),  # wraps
        ("i3 k2 p1 boundary=reflect", [1, 2, 3, 4], [12, 23 + 1 + 40, 34]),  # folds back
        ("i3 k2 p1 boundary=replicate", [1, 2, 3, 4], [12 + 1, 23, 34 + 40]),  # accumulates at the edge
    ],
)
def test_input_gradient(line: str, g: list[int], expected: list[int]) -> None:
    assert gradient("input_grad", line, g, [1, 10]) == [[expected]]


@pytest.mark.parametrize(
    ("line", "g", "expected"),
    [
        ("i4 k2", [1, 10, 100], [321, 432]),  # eq. 9.11
        ("i4 k2 flip", [1, 10, 100], [432, 321]),
        ("i4 k2 s2", [1, 10], [31, 42]),
        ("i4 k2 d2", [1, 10], [21, 43]),
        ("i4 k1 p1", [1, 10, 100, 1000, 10000, 100000], [43210]),
        ("i4 k1 p1 boundary=circular", [1, 10, 100, 1000, 10000, 100000], [143214]),
        ("i4 k1 p1 boundary=reflect", [1, 10, 100, 1000, 10000, 100000], [343212]),
        ("i4 k1 p1 boundary=replicate", [1, 10, 100, 1000, 10000, 100000], [443211]),
    ],
)
def test_weight_gradient(line: str, g: list[int], expected: list[int]) -> None:
    assert gradient("weight_grad", line, RAMP, g) == [[expected]]


def test_gradients_of_tiles_groups_and_batches() -> None:
    w = [[1, 10], [100, 1000]]
    assert gradient("input_grad", "i5 k2 t2", [1, 2, 3, 4], w) == [[[1, 210, 2003, 430, 4000]]]
    assert gradient("weight_grad", "i5 k2 t2", [1, 2, 3, 4, 5], [1, 10, 100, 1000]) == [[[[301, 402]], [[4020, 5030]]]]
    assert gradient("weight_grad", "i3 k2 tunshared", [1, 2, 3], [1, 10]) == [[[[1, 2]], [[20, 30]]]]
    assert gradient("weight_grad", "i2 k1 t3", [1, 2], [1, 10]) == [[[[1]], [[20]], [[0]]]]  # the third is unused
    assert gradient("input_grad", "c2 o4 g2 i1 k1", [1, 2, 3, 4], [1, 10, 100, 1000]) == [[[21], [4300]]]
    assert gradient("weight_grad", "c2 o2 g2 i1 k1", [1, 2], [1, 10]) == [[[1]], [[20]]]
    assert gradient("weight_grad", "n2 i1 k1", [1, 2], [10, 100]) == [[[210]]]
    assert gradient("weight_grad", "n0 o2 i2 k2", [], []) == [[[0, 0]], [[0, 0]]]


def test_gradients_conjugate_their_second_factor() -> None:
    """⟨a, b⟩ = Σ conj(a)·b: g meets conj(w) and conj(x)."""
    one, other = (np.full((1, 1, 1), z) for z in (1 + 2j, 3 + 4j))
    spec = ConvSpec(input_size=1, kernel_size=1, dtype="complex128")
    for conv in (reference.conv, oracle.conv):
        assert conv(spec.replace(op="input_grad"), one, other).item() == (1 + 2j) * (3 - 4j)  # g, w
        assert conv(spec.replace(op="weight_grad"), one, other).item() == (1 - 2j) * (3 + 4j)  # x, g


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bias=channel", [[1 + 2 + 3 + 7 + 8 + 9], [4 + 5 + 6]]),
        ("t2 bias=tile", [[1 + 3 + 7 + 9, 2 + 8], [4 + 6, 5]]),
        ("t4 bias=tile", [[8, 10, 12, 0], [4, 5, 6, 0]]),
        ("bias=location", [[8, 10, 12], [4, 5, 6]]),
    ],
)
def test_bias_gradient(line: str, expected: Any) -> None:
    spec = ConvSpec.parse(f"n2 o2 i3 k1 {line} int32")
    g = np.array([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [0, 0, 0]]], np.int32)
    result = reference.bias_grad(spec, g)
    assert result.dtype == np.int64
    np.testing.assert_array_equal(result, np.reshape(expected, spec.bias_shape or ()))
    with pytest.raises(SpecError, match="adds none"):
        reference.bias_grad(spec.replace(bias="none"), g)


# -- adjoints and differences -----------------------------------------------------------------


def dot(a: Any, b: Any) -> Any:
    """Return Σ conj(a)·b in Python's numbers."""
    return sum(p.conjugate() * q for p, q in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))


@settings(max_examples=150)
@given(specs(ops=("forward",), dtypes=("float64", "complex128", "int64"), max_macs=1500), st.integers(0, 99))
def test_gradients_are_adjoint(spec: ConvSpec, seed: int) -> None:
    """⟨conv(x, w), g⟩ = ⟨x, input_grad(g, w)⟩ = ⟨w, weight_grad(x, g)⟩, and the bias adds ⟨bias, bias_grad(g)⟩."""
    x, w, bias = integers(spec, seed)
    _, g, _ = integers(spec.replace(op="weight_grad"), seed + 1)
    bare = spec.replace(bias="none")
    expected = dot(reference.conv(bare, x, w), g)
    assert dot(x, reference.conv(bare.replace(op="input_grad"), g, w)) == expected
    assert dot(w, reference.conv(bare.replace(op="weight_grad"), x, g)) == expected
    if bias is not None:
        assert dot(bias, reference.bias_grad(spec, g)) + expected == dot(reference.conv(spec, x, w, bias), g)


@settings(max_examples=60)
@given(specs(ops=("forward",), dtypes=("float64",), max_macs=200), st.integers(0, 99))
def test_gradients_are_finite_differences(spec: ConvSpec, seed: int) -> None:
    """J = Σ g·y is linear in each sample, weight and bias: a step of 1 gives its derivative exactly."""
    spec = spec.replace(batch=min(1, spec.batch))
    operands = integers(spec, seed)
    _, g, _ = integers(spec.replace(op="weight_grad"), seed + 1)
    names = ["x", "w"] if operands[2] is None else ["x", "w", "bias"]

    def loss(**changed: Any) -> float:
        x, w, bias = (changed.get(name, value) for name, value in zip(("x", "w", "bias"), operands, strict=True))
        return float((g * oracle.conv(spec, x, w, bias)).sum())

    start = loss()
    gradients = {
        "x": reference.conv(spec.replace(op="input_grad"), g, operands[1]),
        "w": reference.conv(spec.replace(op="weight_grad"), operands[0], g),
    }
    if operands[2] is not None:
        gradients["bias"] = reference.bias_grad(spec, g)
    rng = np.random.default_rng(seed)
    for name, value in zip(names, operands, strict=False):
        assert value is not None
        for i in rng.permutation(value.size)[:20]:
            step = np.zeros(value.size)
            step[i] = 1
            difference = loss(**{name: value + step.reshape(value.shape)}) - start
            assert difference == gradients[name].ravel()[i], f"{name}[{i}]"


# -- against libraries, where they mean the same ----------------------------------------------


@pytest.mark.parametrize("mode", ["full", "valid"])
@pytest.mark.parametrize(("size", "kernel"), [((9,), (4,)), ((7, 6), (2, 3)), ((4, 5, 4), (3, 2, 1))])
def test_scipy_signal(size: tuple[int, ...], kernel: tuple[int, ...], mode: str) -> None:
    for flip, scipy_one in ((False, signal.correlate), (True, signal.convolve)):
        spec = ConvSpec(input_size=size, kernel_size=kernel, padding=mode, flip=flip, dtype="int64")
        x, w, _ = integers(spec, largest=50)
        expected = scipy_one(x[0, 0], w[0, 0], mode=mode, method="direct")
        np.testing.assert_array_equal(reference.conv(spec, x, w)[0, 0], expected)


@pytest.mark.parametrize(
    ("boundary", "mode"), [("zero", "constant"), ("circular", "wrap"), ("reflect", "mirror"), ("replicate", "nearest")]
)
def test_scipy_ndimage_boundaries(boundary: str, mode: str) -> None:
    spec = ConvSpec(input_size=(5, 4), kernel_size=(5, 3), padding="same", boundary=boundary, dtype="int64")
    x, w, _ = integers(spec, largest=50)
    expected = ndimage.correlate(x[0, 0], w[0, 0], mode=mode)
    np.testing.assert_array_equal(reference.conv(spec, x, w)[0, 0], expected)


def test_scipys_wrapped_convolution() -> None:
    spec = ConvSpec(input_size=(6, 5), kernel_size=3, padding="same", boundary="circular", flip=True, dtype="int64")
    x, w, _ = integers(spec, largest=50)
    expected = signal.convolve2d(x[0, 0], w[0, 0], mode="same", boundary="wrap")
    np.testing.assert_array_equal(reference.conv(spec, x, w)[0, 0], expected)


@pytest.mark.parametrize(
    ("boundary", "mode"), [("zero", "constant"), ("circular", "wrap"), ("reflect", "mirror"), ("replicate", "nearest")]
)
def test_scipy_ndimage_boundaries_transposed(boundary: str, mode: str) -> None:
    """What correlate does to unit images is its matrix; the gradient is multiplication by the transpose."""
    spec = ConvSpec(input_size=(5, 4), kernel_size=(5, 3), padding="same", boundary=boundary, dtype="int64")
    spec = spec.replace(op="input_grad")
    g, w, _ = integers(spec, largest=50)
    units = np.eye(20, dtype=np.int64).reshape(20, 5, 4)
    matrix = np.stack([ndimage.correlate(unit, w[0, 0], mode=mode).ravel() for unit in units], axis=1)
    np.testing.assert_array_equal(reference.conv(spec, g, w).ravel(), matrix.T @ g.ravel())


def all_three(spec: ConvSpec, seed: int) -> tuple[list[Any], list[Any]]:
    """Return x, w, bias and g of whole numbers; y, ∂J/∂x, ∂J/∂w and ∂J/∂bias by the reference."""
    x, w, bias = integers(spec, seed)
    _, g, _ = integers(spec.replace(op="weight_grad"), seed + 1)
    results = [
        reference.conv(spec, x, w, bias),
        reference.conv(spec.replace(op="input_grad"), g, w),
        reference.conv(spec.replace(op="weight_grad"), x, g),
        None if bias is None else reference.bias_grad(spec, g),
    ]
    return [x, w, bias, g], results


PADDING_MODES = {"zero": "constant", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}


def require_pytorchs(spec: ConvSpec, seed: int) -> None:
    """Compare with PyTorch's convolution and what its autograd makes of it."""
    torch = pytest.importorskip("torch")
    (x, w, bias, g), expected = all_three(spec, seed)
    leaves = [torch.from_numpy(a).requires_grad_() for a in (x, w, bias)]
    pads = [amount for pair in reversed(spec.padding) for amount in pair]
    function = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[spec.ndim - 1]
    padded = torch.nn.functional.pad(leaves[0], pads, mode=PADDING_MODES[spec.boundary])
    weights = leaves[1].flip(tuple(range(2, 2 + spec.ndim))) if spec.flip else leaves[1]
    y = function(padded, weights, leaves[2], stride=spec.stride, dilation=spec.dilation, groups=spec.groups)
    y.backward(torch.from_numpy(g))
    for ours, theirs in zip(expected, (y.detach(), *(leaf.grad for leaf in leaves)), strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())


@settings(max_examples=60)
@given(specs(ops=("forward",), dtypes=("float64", "complex128"), max_macs=1500), st.integers(0, 99))
def test_pytorch(spec: ConvSpec, seed: int) -> None:
    require_pytorchs(spec.replace(tile=None, bias="channel", boundary="zero", batch=max(1, spec.batch)), seed)


@pytest.mark.parametrize("boundary", ["circular", "reflect", "replicate"])
@pytest.mark.parametrize(
    "line",
    [
        "n2 c2 o3 i7 k4 p3:2",
        "c4 o2 g2 i6x5 k3x2 s2x1 p1:2x3:0",
        "n2 c2 o2 i5x6 k2x3 d2x1 p4:1x2:3 flip",
        "i4x5x3 k2x3x2 p1x2x2:0 s1x2x1",
    ],
)
def test_pytorchs_padding_modes(line: str, boundary: str) -> None:
    require_pytorchs(ConvSpec.parse(f"{line} boundary={boundary} bias=channel f64"), 3)


@pytest.fixture
def jax() -> Any:
    """JAX with 64-bit numbers for one test."""
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        yield jax


def require_jaxs(jax: Any, spec: ConvSpec, function: Any) -> None:
    """Compare with a function of x and w, and what JAX's reverse mode makes of it."""
    (x, w, _, g), expected = all_three(spec, 5)
    y, pull_back = jax.vjp(function, x, w)
    results = (y, *pull_back(jax.numpy.asarray(g)))
    for ours, theirs in zip(expected, results, strict=False):
        np.testing.assert_array_equal(ours, np.asarray(theirs))


@pytest.mark.parametrize(
    "line",
    [
        "n2 c2 o3 i7 k4 p3:2 s2",
        "c4 o2 g2 i6x5 k3x2 s2x1 p1:2x3:-1",
        "n2 c2 o2 i5x6 k2x3 d2x1 p2x0:3 flip",
        "c2 o2 i4x5x3 k2x3x2 p1x2x2:0 s1x2x1",
    ],
)
def test_jax(jax: Any, line: str) -> None:
    spec = ConvSpec.parse(f"{line} f64")

    def function(x: Any, w: Any) -> Any:
        w = jax.numpy.flip(w, tuple(range(2, 2 + spec.ndim))) if spec.flip else w
        return jax.lax.conv_general_dilated(
            x, w, spec.stride, spec.padding, rhs_dilation=spec.dilation, feature_group_count=spec.groups
        )

    require_jaxs(jax, spec, function)


@pytest.mark.parametrize(
    "line", ["n2 c2 o3 i7 k4 p3:2 s2", "c3 o2 i6x5 k3x2 s2x1 p1:2x3:0", "n2 c2 o2 i5x6 k2x3 d2x1 p2x0:3"]
)
def test_jaxs_locally_connected(jax: Any, line: str) -> None:
    """Its weights are (O, C·∏K, *output_size)."""
    spec = ConvSpec.parse(f"{line} tunshared f64")

    def function(x: Any, w: Any) -> Any:
        w = jax.numpy.moveaxis(w, range(1, 1 + spec.ndim), range(-spec.ndim, 0))
        w = w.reshape(spec.out_channels, -1, *spec.output_size)
        return jax.lax.conv_general_dilated_local(
            x, w, spec.stride, spec.padding, spec.kernel_size, rhs_dilation=spec.dilation
        )

    require_jaxs(jax, spec, function)


# -- the oracle equals the reference ----------------------------------------------------------


@settings(max_examples=500)
@given(specs(dtypes=NUMPY_DTYPES, max_macs=2500), st.integers(0, 99))
def test_oracle_equals_reference_on_whole_numbers(spec: ConvSpec, seed: int) -> None:
    operands = integers(spec, seed)
    expected = reference.conv(spec, *operands)
    result = oracle.conv(spec, *operands)
    assert result.dtype == oracle.accumulator(spec)
    np.testing.assert_array_equal(result.astype(spec.result_dtype), expected)


@settings(max_examples=150)
@given(specs(dtypes=FLOATING, max_macs=2500))
def test_oracle_equals_reference_within_rounding(spec: ConvSpec) -> None:
    operands = gaussian(spec)
    verdict = Truth(spec, *operands).judge(reference.conv(spec, *operands), bounds.direct(spec))
    assert verdict.ok, verdict.message
    if spec.dtype in ("float16", "float32", "complex64"):  # both accumulate wider: one rounding at the end
        assert verdict.error_max_eps <= 0.71  # |re| + |im| of half a unit each


@pytest.mark.parametrize(
    "line",
    [
        "i40 k12",
        "i200 k31 psame",
        "n2 c4 o6 g2 i4x70 k3x13 p1x6",
        "c2 o2 i70x3 k3x17 p1x9 flip boundary=reflect bias=channel",
        "i5x64 k3x15 s2x1 d2x1 psame boundary=circular",  # stride and dilation along another axis only
        "c2 o2 g2 i3x4x40 k2x1x14 p0:1x0x3:-2 boundary=replicate",
        "i64 k64",
        "i30 k100 p99 boundary=reflect",
        "n0 c2 o3 i30 k12",
    ],
)
@pytest.mark.parametrize("dtype", ["f32", "complex128", "int16"])
@pytest.mark.parametrize("op", OPS)
def test_oracles_toeplitz_path_equals_reference(line: str, dtype: str, op: str) -> None:
    spec = ConvSpec.parse(f"{line} {dtype} op={op}")
    operands = integers(spec)
    with patch.object(oracle, "_by_bands", wraps=oracle._by_bands) as path:
        result = oracle.conv(spec, *operands)
    assert path.called
    np.testing.assert_array_equal(result, reference.conv(spec, *operands))


@settings(max_examples=100)
@given(specs(dtypes=("float64", "complex128"), max_macs=1000))
def test_oracles_toeplitz_path_equals_reference_for_any_kernel(spec: ConvSpec) -> None:
    """Blocks shorter than the kernel, as long as the output, cut by its end."""
    spec = spec.replace(tile=None, stride=1, dilation=1, padding=2, bias="none")
    operands = integers(spec)
    with patch.object(oracle, "_TOEPLITZ_MIN_KERNEL", 1), patch.object(oracle, "_TOEPLITZ_BLOCK", 3):
        np.testing.assert_array_equal(oracle.conv(spec, *operands), reference.conv(spec, *operands))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("largest", [2**10, 2**26, 2**30])
def test_oracle_is_exact_on_both_sides_of_2_to_53(op: str, largest: int) -> None:
    """Below, integers are summed in float64."""
    spec = ConvSpec.parse(f"n2 c2 o2 i5x6 k2x3 p1 boundary=reflect int64 op={op}")
    operands = integers(spec, largest=largest)
    np.testing.assert_array_equal(oracle.conv(spec, *operands), reference.conv(spec, *operands))


@settings(max_examples=200)
@given(specs(dtypes=("int64",), max_macs=1500))
def test_terms_count_what_is_summed_into_one_element(spec: ConvSpec) -> None:
    """Of ones the result is the number of products: never above ``spec.terms``, and with zeros outside it is met."""
    spec = spec.replace(bias="none")
    first, second = (np.ones(shape, np.int64) for shape in spec.operand_shapes)
    most = int(oracle.conv(spec, first, second).max(initial=0))
    assert most <= spec.terms
    if spec.op == "weight_grad" and spec.boundary != "zero" and spec.batch:
        assert most == spec.terms


@pytest.mark.parametrize("op", OPS)
def test_neither_changes_its_operands(op: str) -> None:
    spec = ConvSpec.parse(f"op={op} c2 o2 i9 k3 p2 bias=channel boundary=circular f64")
    operands = [a for a in gaussian(spec) if a is not None]
    copies = [a.copy() for a in operands]
    for array in operands:
        array.flags.writeable = False
    reference.conv(spec, *operands)
    oracle.conv(spec, *operands)
    for array, copy in zip(operands, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
