"""cb.convolve and cb.correlate mean what SciPy means: any mode of signal, convolve2d's wrap, ndimage's boundaries."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage, signal

import convbench as cb
from convbench import SpecError, UnsupportedSpec

PAIRS = ((cb.convolve, signal.convolve), (cb.correlate, signal.correlate))
NDIMAGE_MODES = {"reflect": "mirror", "replicate": "nearest", "circular": "wrap"}
BACKENDS = ("auto", "reference", "fft", "scipy-direct")
SIZES = [
    ((9,), (3,)),
    ((9,), (4,)),
    ((8,), (1,)),
    ((4,), (9,)),  # kernel larger than the input
    ((7, 6), (3, 5)),
    ((7, 6), (2, 4)),
    ((3, 4), (5, 6)),
    ((7, 3), (4, 5)),  # larger along one axis only
    ((5, 4, 6), (2, 3, 1)),
    ((2, 3, 2), (3, 3, 4)),
]


def ones(*shape: int) -> Any:
    return np.ones(shape, "float32")


# -- chosen shapes ----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize(("size", "kernel"), SIZES, ids=str)
def test_convolve_and_correlate_are_scipys(
    size: tuple[int, ...], kernel: tuple[int, ...], mode: str, backend: str
) -> None:
    rng = np.random.default_rng(3)
    a, v = rng.standard_normal(size), rng.standard_normal(kernel)
    mixed = any(k > h for h, k in zip(size, kernel, strict=True)) and any(
        k < h for h, k in zip(size, kernel, strict=True)
    )
    for ours, scipys in ((cb.convolve, signal.convolve), (cb.correlate, signal.correlate)):
        if mode == "valid" and mixed:
            with pytest.raises(SpecError, match="at least as large along every axis"):
                ours(a, v, mode, backend=backend)
            continue
        expected = scipys(a, v, mode=mode, method="direct")
        given_y = ours(a, v, mode, backend=backend)
        assert given_y.dtype == expected.dtype
        assert given_y.shape == expected.shape
        np.testing.assert_allclose(given_y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64", "float32", "float64", "complex64"])
@pytest.mark.parametrize("mode", ["full", "same", "valid"])
def test_result_dtypes_are_scipys(dtype: str, mode: str) -> None:
    rng = np.random.default_rng(4)
    a, v = rng.integers(0, 4, (6, 5)).astype(dtype), rng.integers(0, 4, (3, 2)).astype(dtype)
    if dtype == "complex64":
        a, v = a + 1j * a.T.reshape(6, 5), v - 2j * v
    for ours, scipys in ((cb.convolve, signal.convolve), (cb.correlate, signal.correlate)):
        expected = scipys(a, v, mode=mode, method="direct")
        given_y = ours(a, v, mode, backend="reference")
        assert given_y.dtype == expected.dtype
        np.testing.assert_array_equal(given_y, expected)


@pytest.mark.parametrize(("boundary", "mode"), [("circular", "wrap"), ("zero", "fill")])
def test_boundaries_are_scipys(boundary: str, mode: str) -> None:
    rng = np.random.default_rng(5)
    a, v = rng.integers(-9, 9, (7, 6)).astype(float), rng.integers(-9, 9, (3, 4)).astype(float)
    for ours, scipys in ((cb.convolve, signal.convolve2d), (cb.correlate, signal.correlate2d)):
        for size in ("same", "full", "valid"):
            # with an even kernel correlate2d centres "same" unlike SciPy's correlate, whose meaning is ours
            kernel = v[:, :3] if (scipys, size) == (signal.correlate2d, "same") else v
            given_y = ours(a, kernel, size, boundary=boundary, backend="reference")
            np.testing.assert_array_equal(given_y, scipys(a, kernel, mode=size, boundary=mode))


def test_complex_is_right_or_refused() -> None:
    rng = np.random.default_rng(6)
    a, v = (rng.standard_normal(size) + 1j * rng.standard_normal(size) for size in (9, 4))
    done = 0
    for name, backend in cb.all_backends().items():
        if backend.unavailable():
            continue
        for ours, scipys in ((cb.convolve, signal.convolve), (cb.correlate, signal.correlate)):
            try:
                y = ours(a, v, backend=name)
            except UnsupportedSpec as refusal:
                assert re.search("complex128|weights: |axes: ", str(refusal))  # noqa: PT017
                continue
            np.testing.assert_allclose(y, scipys(a, v, method="direct"), rtol=1e-12)
            done += 1
    assert done >= 2  # reference does it


def test_array_likes_are_taken() -> None:
    assert cb.convolve([1, 2, 3], (0, 1), backend="reference").tolist() == [0, 1, 2, 3]
    assert cb.correlate(np.arange(4.0)[::2], [1.0]).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("a", "v", "mode", "field", "part"),
    [
        (ones(3, 3), ones(3), "full", "v", "as many axes as a"),
        (1.0, 2.0, "full", "v", "at least one"),
        ([], [1.0], "full", "a", "must not be empty"),
        ([1.0], [], "full", "v", "must not be empty"),
        (ones(2, 5), ones(5, 2), "valid", "v", "at least as large along every axis"),
        ([1.0], [1.0], "SAME", "mode", "full, same, valid"),
        ([1.0], [1.0], None, "mode", "full, same, valid"),
        (ones(3).astype(">f4"), ones(2), "full", "a", "native dtype"),
        (ones(3), ones(2).astype(object), "full", "v", "native dtype"),
        (None, ones(2), "full", "a", "must be a NumPy array"),
    ],
)
def test_malformed_scipy_style_calls(a: Any, v: Any, mode: Any, field: str, part: str) -> None:
    for function in (cb.convolve, cb.correlate):
        with pytest.raises(SpecError) as caught:
            function(a, v, mode)
        assert caught.value.field == field
        assert part in str(caught.value)
        assert "\n" not in str(caught.value)


# -- any shapes -------------------------------------------------------------------------------

DTYPES = ("bool", "int8", "uint8", "int16", "int32", "int64", "uint64", "float32", "float64", "complex64", "complex128")


@st.composite
def pairs(
    draw: st.DrawFn, dtypes: tuple[str, ...] = ("float64",), axes: tuple[int, int] = (1, 3)
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw two arrays of whole numbers, either of which may be the larger along any axis."""
    ndim = draw(st.integers(*axes))
    rng = np.random.default_rng(draw(st.integers(0, 99)))

    def array(dtype: str) -> NDArray[Any]:
        shape = [draw(st.integers(1, 7)) for _ in range(ndim)]
        values = rng.integers(0 if dtype[0] in "ub" else -9, 10, shape)
        return (values + 1j * rng.integers(-9, 10, shape) if dtype[0] == "c" else values).astype(dtype)

    first = draw(st.sampled_from(dtypes))
    same_kind = tuple(dtype for dtype in dtypes if {first, dtype} != {"uint64", dtype} or dtype[0] != "i")
    second = draw(st.sampled_from(same_kind if first != "uint64" else ("uint64", "uint8", "bool", "float64")))
    if second == "uint64" and first[0] == "i":
        second = first
    return array(first), array(second)


def mixed(a: NDArray[Any], v: NDArray[Any]) -> bool:
    """Tell whether neither is at least as large along every axis."""
    return any(k > h for h, k in zip(a.shape, v.shape, strict=True)) and any(
        k < h for h, k in zip(a.shape, v.shape, strict=True)
    )


@given(pairs(DTYPES), st.sampled_from(["full", "same", "valid"]))
def test_any_two_arrays_give_scipys_result(operands: tuple[NDArray[Any], NDArray[Any]], mode: str) -> None:
    """To the last bit on whole numbers, dtype and shape included; integers wrap around, bool is "any"."""
    a, v = operands
    for ours, scipys in PAIRS:
        if mode == "valid" and mixed(a, v):
            with pytest.raises(SpecError, match="at least as large along every axis"):
                ours(a, v, mode, backend="direct-numpy")
            continue
        if a.dtype == v.dtype == bool and a.ndim > 1:  # which SciPy has along one axis only
            expected = scipys(a.astype(int), v.astype(int), mode=mode, method="direct").astype(bool)
        else:
            expected = scipys(a, v, mode=mode, method="direct")
        result = ours(a, v, mode, backend="direct-numpy")
        assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(result, expected)


@given(pairs(("float64", "complex128", "int64"), axes=(2, 2)), st.sampled_from(["full", "same", "valid"]))
def test_circular_boundaries_are_those_of_convolve2d(operands: tuple[NDArray[Any], NDArray[Any]], mode: str) -> None:
    """In every mode, also for kernels larger than the input."""
    a, v = operands
    if mode == "valid" and mixed(a, v):
        return
    result = cb.convolve(a, v, mode, boundary="circular", backend="direct-numpy")
    np.testing.assert_array_equal(result, signal.convolve2d(a, v, mode, boundary="wrap"))
    result = cb.correlate(a, v, mode, boundary="circular", backend="direct-numpy")
    if mode == "same":  # correlate2d centres even kernels unlike signal.correlate: one sample further on
        shift = tuple(-1 if k % 2 == 0 else 0 for k in v.shape)
        result = np.roll(result, shift, axis=(0, 1))
    if mode == "valid" and v.size > a.size:  # unlike signal.correlate it swaps them without conjugating
        np.testing.assert_array_equal(result, signal.correlate(a, v, mode, method="direct"))
        result = result.conj()
    np.testing.assert_array_equal(result, signal.correlate2d(a, v, mode, boundary="wrap"))


@given(pairs(axes=(1, 3)), st.sampled_from(sorted(NDIMAGE_MODES)))
def test_boundaries_are_those_of_ndimage(operands: tuple[NDArray[Any], NDArray[Any]], boundary: str) -> None:
    """correlate for any kernel; convolve for odd ones, and for even ones with origin −1."""
    a, v = operands
    mode = NDIMAGE_MODES[boundary]
    result = cb.correlate(a, v, "same", boundary=boundary, backend="direct-numpy")
    np.testing.assert_array_equal(result, ndimage.correlate(a, v, mode=mode))
    result = cb.convolve(a, v, "same", boundary=boundary, backend="direct-numpy")
    origin = [-1 if k % 2 == 0 else 0 for k in v.shape]
    np.testing.assert_array_equal(result, ndimage.convolve(a, v, mode=mode, origin=origin))


def test_ndimages_own_origin_stands_one_sample_further_on_for_even_kernels() -> None:
    a, v = np.arange(20.0) ** 2, np.array([1.0, 2.0, 4.0, 8.0])
    ours = cb.convolve(a, v, "same", boundary="circular")
    np.testing.assert_array_equal(np.roll(ours, -1), ndimage.convolve(a, v, mode="wrap"))


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
def test_integers_wrap_around_as_scipys_do(mode: str) -> None:
    rng = np.random.default_rng(7)
    for dtype in ("int8", "uint8", "int16", "uint16"):
        limits = np.iinfo(dtype)
        a, v = (rng.integers(limits.min, limits.max + 1, shape).astype(dtype) for shape in ((6, 7), (3, 4)))
        for ours, scipys in PAIRS:
            expected = scipys(a, v, mode=mode, method="direct")
            assert np.abs(expected.astype(int) - scipys(a.astype(int), v.astype(int), mode=mode)).max() > limits.max
            np.testing.assert_array_equal(ours(a, v, mode), expected)


@pytest.mark.parametrize(
    ("boundary", "meaning"),
    [
        ("wrap", "means circular here"),
        ("mirror", "means reflect here"),
        ("nearest", "means replicate here"),
        ("fill", "means zero here"),
        ("grid-wrap", "means circular here"),
        ("grid-mirror", "which convbench does not have"),
        ("symm", "which convbench does not have"),
    ],
)
def test_scipys_names_of_boundaries_are_translated(boundary: str, meaning: str) -> None:
    for function in (cb.convolve, cb.correlate):
        with pytest.raises(SpecError, match=meaning):
            function([1.0, 2.0], [1.0], boundary=boundary)
