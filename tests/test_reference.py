"""The definition against values worked out by hand, against SciPy and PyTorch; the oracle against the definition."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, signal
from strategies import gaussian, integers, specs

from convbench import ConvSpec, UnsupportedSpec, bounds, oracle, reference
from convbench.oracle import Truth

EXACT = ("float32", "float64", "complex64", "complex128", "int8", "int64", "uint8", "uint64")


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


@pytest.mark.parametrize("op", ["input_grad", "weight_grad"])
@pytest.mark.parametrize("conv", [reference.conv, oracle.conv])
def test_other_operations_are_refused_by_name(conv: Any, op: str) -> None:
    spec = ConvSpec(input_size=3, kernel_size=2, op=op)
    with pytest.raises(UnsupportedSpec, match=op):
        conv(spec, np.ones((1, 1, 3)), np.ones((1, 1, 2)))


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


@settings(max_examples=40)
@given(specs(ops=("forward",), dtypes=("float64",), max_macs=3000), st.integers(0, 99))
def test_pytorch(spec: ConvSpec, seed: int) -> None:
    torch = pytest.importorskip("torch")
    spec = spec.replace(tile=None, bias="channel", boundary="zero", flip=False)
    x, w, bias = (torch.from_numpy(a) for a in integers(spec, seed) if a is not None)
    pads = [amount for pair in reversed(spec.padding) for amount in pair]
    function = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[spec.ndim - 1]
    padded = torch.nn.functional.pad(x, pads)
    y = function(padded, w, bias, stride=spec.stride, dilation=spec.dilation, groups=spec.groups)
    np.testing.assert_array_equal(reference.conv(spec, x.numpy(), w.numpy(), bias.numpy()), y.numpy())


# -- the oracle equals the reference ----------------------------------------------------------


@settings(max_examples=300)
@given(specs(ops=("forward",), dtypes=EXACT, max_macs=4000), st.integers(0, 99))
def test_oracle_equals_reference_on_whole_numbers(spec: ConvSpec, seed: int) -> None:
    x, w, bias = integers(spec, seed)
    expected = reference.conv(spec, x, w, bias)
    given_y = oracle.conv(spec, x, w, bias)
    assert given_y.dtype == oracle.accumulator(spec)
    np.testing.assert_array_equal(given_y.astype(spec.result_dtype), expected)


@settings(max_examples=100)
@given(specs(ops=("forward",), dtypes=("float32", "float64", "complex64", "complex128"), max_macs=4000))
def test_oracle_equals_reference_within_rounding(spec: ConvSpec) -> None:
    data = gaussian(spec)
    verdict = Truth(spec, *data).judge(reference.conv(spec, *data), bounds.direct(spec))
    assert verdict.ok, verdict.message
    if spec.dtype in ("float32", "complex64"):  # both accumulate wider: one rounding at the end
        assert verdict.error_max_eps <= 0.71  # |re| + |im| of half a unit each


@pytest.mark.parametrize(
    "line",
    [
        "i40 k12",
        "i200 k31 psame",
        "n2 c4 o6 g2 i9x90 k3x13 p1x6",
        "c2 o2 i70x3 k3x17 p1x9 flip boundary=reflect bias=channel",
        "i5x64 k3x15 s2x1 d2x1 psame boundary=circular",  # stride and dilation along another axis only
        "c2 o2 g2 i3x4x40 k2x1x14 p0:1x0x3:-2 boundary=replicate",
        "i64 k64",
        "i30 k100 p99 boundary=reflect",
    ],
)
@pytest.mark.parametrize("dtype", ["f32", "f64", "complex128"])
def test_oracles_toeplitz_path_equals_reference(line: str, dtype: str) -> None:
    spec = ConvSpec.parse(f"{line} {dtype}")
    data = integers(spec)
    with patch.object(oracle, "_toeplitz", wraps=oracle._toeplitz) as path:
        y = oracle.conv(spec, *data)
    assert path.called
    np.testing.assert_array_equal(y, reference.conv(spec, *data))


def test_neither_changes_its_operands() -> None:
    spec = ConvSpec.parse("c2 o2 i9 k3 p2 bias=channel boundary=circular f64")
    data = gaussian(spec)
    copies = [a.copy() for a in data if a is not None]
    for array in data:
        assert array is not None
        array.flags.writeable = False
    reference.conv(spec, *data)
    oracle.conv(spec, *data)
    for array, copy in zip(data, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
