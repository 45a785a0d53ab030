"""Truth.judge: rounding passes, faults do not, and the message says where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import fft
from strategies import gaussian, integers, specs

from convbench import ConvSpec, bounds, reference
from convbench.geometry import boundary_index
from convbench.oracle import Truth, Verdict
from convbench.spec import OPS

SPEC = ConvSpec.parse("n2 c3 o4 i9x8 k3x2 p1:0x0:1 bias=channel f32")


def judge(spec: ConvSpec, data: Any, y: NDArray[Any]) -> Verdict:
    return Truth(spec, *data).judge(y, bounds.direct(spec))


def right_answer(spec: ConvSpec = SPEC) -> tuple[Any, NDArray[Any]]:
    data = gaussian(spec)
    return data, reference.conv(spec, *data)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128"])
def test_the_definition_passes(dtype: str, op: str) -> None:
    spec = SPEC.replace(dtype=dtype, op=op)
    data, y = right_answer(spec)
    verdict = judge(spec, data, y)
    assert verdict.ok
    assert verdict.message == ""
    rounded_once = dtype not in ("float64", "complex128")  # there the oracle's own rounding shows as well
    assert verdict.error_max_eps <= (1 if rounded_once else 4)
    assert verdict.error_norm <= (1 if rounded_once else 4) * float(np.finfo(dtype).eps)
    assert verdict.bound_max_eps >= verdict.error_max_eps


def test_another_order_of_summation_passes() -> None:
    """float32 sums taken backwards differ from the truth by rounding only."""
    data, _ = right_answer()
    x, w, bias = data
    y = np.zeros(SPEC.output_shape, np.float32)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 0), (0, 1)))
    for c in reversed(range(3)):
        for i in reversed(range(3)):
            for j in reversed(range(2)):
                y += w[None, :, c, i, j, None, None] * padded[:, None, c, i : i + 8, j : j + 8]
    y += bias[:, None, None]
    verdict = judge(SPEC, data, y)
    assert verdict.ok, verdict.message
    assert 0 < verdict.error_max_eps < verdict.bound_max_eps


@settings(max_examples=200)
@given(specs(dtypes=("float16", "float32", "float64", "complex64", "int8", "uint8"), max_macs=2000), st.data())
def test_one_wrong_element_anywhere_fails(spec: ConvSpec, draw: st.DataObject) -> None:
    data = integers(spec)
    y = reference.conv(spec, *data)
    if y.size == 0:
        assert judge(spec, data, y).ok
        return
    where = np.unravel_index(draw.draw(st.integers(0, y.size - 1)), y.shape)
    y[where] += 1
    verdict = judge(spec, data, y)
    assert not verdict.ok
    names = {"forward": "outputs", "input_grad": "elements of ∂J/∂x", "weight_grad": "elements of ∂J/∂w"}
    assert f"1 of {y.size} {names[spec.op]} are wrong" in verdict.message
    assert f"[{', '.join(map(str, where))}]" in verdict.message
    assert "\n" not in verdict.message


def flipped(y: NDArray[Any]) -> NDArray[Any]:
    return y[..., ::-1].copy()


@pytest.mark.parametrize(
    "fault",
    [
        np.zeros_like,
        lambda y: y * np.float32(1.0001),
        lambda y: np.roll(y, 1, axis=-1),
        lambda y: np.roll(y, 1, axis=1),  # channels in another order
        flipped,
        lambda y: -y,
        lambda y: np.where(np.arange(y.shape[2])[:, None] == y.shape[2] - 1, 0, y).astype(y.dtype),  # last row
        lambda y: y.astype(np.float16).astype(np.float32),  # computed in too narrow a type
    ],
)
def test_faults_fail(fault: Any) -> None:
    data, y = right_answer()
    verdict = judge(SPEC, data, fault(y))
    assert not verdict.ok
    assert verdict.error_max_eps > verdict.bound_max_eps
    assert "outputs are wrong; the worst is [" in verdict.message


@pytest.mark.parametrize(
    "other",
    [{"flip": True}, {"padding": ((0, 1), (1, 0))}],
    ids=str,
)
def test_the_answer_to_another_question_fails(other: dict[str, Any]) -> None:
    data, _ = right_answer()
    assert not judge(SPEC, data, reference.conv(SPEC.replace(**other), *data)).ok


def test_a_dropped_bias_fails() -> None:
    data, _ = right_answer()
    assert not judge(SPEC, data, reference.conv(SPEC.replace(bias="none"), *data[:2])).ok


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda y: y.astype(np.float64), "expected float32 (2, 4, 8, 8), got float64"),
        (lambda y: y[:, :, :-1], "got float32 (2, 4, 7, 8)"),
        (lambda y: y[0], "got float32 (4, 8, 8)"),
        (lambda y: y.tolist(), "got float64"),
    ],
)
def test_shape_and_dtype_are_part_of_the_answer(change: Any, part: str) -> None:
    data, y = right_answer()
    verdict = judge(SPEC, data, change(y))
    assert not verdict.ok
    assert part in verdict.message


@pytest.mark.parametrize("op", OPS)
def test_integers_must_be_exact(op: str) -> None:
    spec = ConvSpec.parse(f"op={op} i9 k3 int64")
    data = integers(spec, largest=2**29)
    y = reference.conv(spec, *data)
    assert judge(spec, data, y).ok
    y[0, 0, 1] += 1  # one part in 10¹⁷
    verdict = judge(spec, data, y)
    assert not verdict.ok
    assert "error 1 where 0 is allowed" in verdict.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_truth_must_be_met_and_nowhere_else(value: float) -> None:
    spec = ConvSpec.parse("i9 k3 psame f64")
    x, w, _ = gaussian(spec)
    w = np.abs(w)
    x[0, 0, 4] = value
    y = reference.conv(spec, x, w)
    assert np.isfinite(y).sum() == 6
    assert judge(spec, (x, w), y).ok
    hidden, spread, other = y.copy(), y.copy(), y.copy()
    hidden[0, 0, 4] = 0.0
    spread[0, 0, 7] = value
    other[0, 0, 4] = np.inf if np.isnan(value) else -value
    for wrong in (hidden, spread, other):
        assert not judge(spec, (x, w), wrong).ok


def test_an_output_without_terms_must_be_zero() -> None:
    """Where the kernel meets zeros alone, the bound is zero too: no relative error can be forgiven."""
    spec = ConvSpec.parse("i2 k1 p1 f64")
    data = gaussian(spec)
    y = reference.conv(spec, *data)
    assert judge(spec, data, y).ok
    y[0, 0, 0] = 1e-300
    verdict = judge(spec, data, y)
    assert not verdict.ok
    assert verdict.error_max_eps == np.inf


def test_the_inputs_are_copied() -> None:
    data, y = right_answer()
    truth = Truth(SPEC, *data)
    for array in data:
        array[...] = 0  # as a faulty backend might
    assert truth.judge(y, bounds.direct(SPEC)).ok
    assert not truth.judge(np.zeros_like(y), bounds.direct(SPEC)).ok


def test_gradual_underflow_is_forgiven() -> None:
    spec = ConvSpec.parse("i4 k3 f32")
    x, w = np.full((1, 1, 4), 1e-30, np.float32), np.full((1, 1, 3), 3e-15, np.float32)  # products are denormal
    y = np.zeros((1, 1, 2), np.float32)
    for k in range(3):
        y += x[..., k : k + 2] * w[..., k : k + 1]
    assert 0 < y[0, 0, 0] < np.finfo(np.float32).tiny
    assert judge(spec, (x, w), y).ok


def test_half_precision_allows_one_rounding_of_the_sum() -> None:
    """A sum of 2048 in float16 may be off by half of 2, not by 2: that would be sums in float16."""
    for op in OPS:
        spec = ConvSpec.parse(f"op={op} i1 k1 f16")
        data = [np.full((1, 1, 1), value, np.float16) for value in (1024, 2)]
        right = reference.conv(spec, *data)
        assert right.item() == 2048
        assert judge(spec, data, right).ok
        assert not judge(spec, data, right + np.float16(4)).ok
    long = ConvSpec.parse("op=weight_grad i4096 k1 f16")
    x, g = np.full((1, 1, 4096), 1, np.float16), np.full((1, 1, 4096), 1, np.float16)
    narrow = np.add.accumulate(x[0, 0], dtype=np.float16)[-1].reshape(1, 1, 1)
    assert narrow.item() == 2048  # where 1 is no longer added
    assert not judge(long, (x, g), narrow).ok
    assert judge(long, (x, g), np.full((1, 1, 1), 4096, np.float16)).ok


def test_bfloat16_is_judged_by_its_own_spacing() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    spec = SPEC.replace(dtype="bfloat16")
    x, w, bias = (a.astype(ml_dtypes.bfloat16) for a in gaussian(SPEC) if a is not None)
    y = reference.conv(spec, x, w, bias)
    assert str(y.dtype) == "bfloat16"
    assert judge(spec, (x, w, bias), y).ok
    wrong = y.copy()
    wrong[1, 2, 3, 4] *= 1 + 2**-4
    assert not judge(spec, (x, w, bias), wrong).ok


def extended(spec: ConvSpec, x: NDArray[Any]) -> NDArray[Any]:
    """Return x between its first and last position under the kernel, and a zero for each sample that is not there."""
    for axis in range(spec.ndim):
        stop = (spec.output_size[axis] - 1) * spec.stride[axis] + (spec.kernel_size[axis] - 1) * spec.dilation[axis] + 1
        size, before = spec.input_size[axis], spec.padding[axis][0]
        sources = [boundary_index(l - before, size, spec.boundary) for l in range(stop)]
        inside = [i for i in sources if i is not None]
        unseen = sorted(set(range(size)) - set(inside))  # a transform may take them in all the same
        x = x.take([*inside, *unseen], axis=2 + axis)
    return x


@settings(max_examples=100)
@given(specs(ops=("forward",), dtypes=("float64", "complex128"), max_macs=2000))
def test_normwise_scale_is_what_its_name_says(spec: ConvSpec) -> None:
    """‖w‖₂ of the output channel times ‖x‖₂ of the example's group, or of the samples under the kernel."""
    spec = spec.replace(bias="none", batch=max(1, spec.batch))
    x, w, _ = gaussian(spec)
    truth = Truth(spec, x, w)
    w_norm = np.array([np.linalg.norm(channel) for channel in w]).reshape(-1, *(1,) * spec.ndim)
    groups = np.abs(extended(spec, x).reshape(spec.batch, spec.groups, -1)) ** 2
    whole = np.repeat(np.sqrt(groups.sum(axis=-1)), spec.out_channels // spec.groups, axis=1)
    example = np.broadcast_to(truth.norms(None), spec.output_shape)
    np.testing.assert_allclose(
        example, whole.reshape(*whole.shape, *(1,) * spec.ndim) * w_norm * np.ones(spec.output_shape)
    )
    shared = spec.replace(tile=None)
    energy = reference.conv(shared, np.abs(x) ** 2, np.ones(shared.weight_shape, spec.dtype)).real
    np.testing.assert_allclose(truth.norms((0,) * spec.ndim), np.sqrt(energy) * w_norm)
    reach = tuple(range(1, 1 + spec.ndim))
    extents = [(k - 1) * d + 1 + 2 * r for k, d, r in zip(spec.kernel_size, spec.dilation, reach, strict=True)]
    padding = [(a + r, b + r) for (a, b), r in zip(spec.padding, reach, strict=True)]
    wider = shared.replace(kernel_size=extents, dilation=1, padding=padding)
    energy = reference.conv(wider, np.abs(x) ** 2, np.ones(wider.weight_shape, spec.dtype)).real
    np.testing.assert_allclose(truth.norms(reach), np.sqrt(energy) * w_norm)


@settings(max_examples=100)
@given(specs(ops=("input_grad", "weight_grad"), dtypes=("float64", "complex128"), max_macs=1500))
def test_normwise_scale_of_gradients(spec: ConvSpec) -> None:
    """Channel by channel, whatever the reach; each sample counts as often as its boundary shows it."""
    spec = spec.replace(bias="none")
    first, second, _ = gaussian(spec)
    truth = Truth(spec, first, second)
    np.testing.assert_array_equal(truth.norms(None), truth.norms((1,) * spec.ndim))
    norms = np.broadcast_to(truth.norms(None), spec.result_shape)
    inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    if spec.op == "weight_grad":
        x, g = extended(spec, first), second
        for o in range(spec.out_channels):
            for c in range(inputs):
                expected = np.linalg.norm(x[:, o // outputs * inputs + c]) * np.linalg.norm(g[:, o])
                weights = norms[o][(..., c, *(slice(None),) * spec.ndim)]
                np.testing.assert_allclose(weights, np.full_like(weights, expected))
        return
    numbers = np.arange(np.prod(spec.input_size)).reshape(1, 1, *spec.input_size)
    times = np.bincount(extended(spec, numbers).ravel()).reshape(spec.input_size)
    for n, c in np.ndindex(spec.batch, spec.in_channels):
        group = slice(c // inputs * outputs, (c // inputs + 1) * outputs)
        weights = second[group][(..., c % inputs, *(slice(None),) * spec.ndim)]
        expected = np.linalg.norm(first[n, group]) * np.linalg.norm(weights)
        np.testing.assert_allclose(norms[n, c], expected * times)


@pytest.mark.parametrize("boundary", ["zero", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("op", ["input_grad", "weight_grad"])
def test_gradients_by_transform_are_within_the_bound_of_transforms(op: str, boundary: str) -> None:
    """In float32, over the extension, with padding beyond the input."""
    spec = ConvSpec.parse(f"op={op} n2 c2 o3 i200 k21 p210:230 boundary={boundary} f32")
    first, second, _ = gaussian(spec)
    points, size = 640, spec.input_size[0]
    sources = [boundary_index(l - 210, size, boundary) for l in range(size + 440)]
    inside = [l for l, i in enumerate(sources) if i is not None]
    if op == "input_grad":
        spectra = np.einsum("nof,ocf->ncf", fft.rfft(first, points), fft.rfft(second, points))
        everywhere = fft.irfft(spectra, points)
        result = np.zeros(spec.result_shape, np.float32)
        for l in inside:
            result[..., sources[l]] += everywhere[..., l]
    else:
        x = np.zeros((2, 2, points), np.float32)
        x[..., inside] = first[..., [sources[l] for l in inside]]
        spectra = np.einsum("ncf,nof->ocf", fft.rfft(x), fft.rfft(second, points).conj())
        result = fft.irfft(spectra, points)[..., :21]
    verdict = Truth(spec, first, second).judge(result, bounds.fft(spec, points))
    assert verdict.ok, verdict.message
    result[0, 0, 7] += np.float32(0.01) * np.abs(result).max()
    assert not Truth(spec, first, second).judge(result, bounds.fft(spec, points)).ok


def test_gradients_have_no_energy_bound() -> None:
    """It is about outputs; a promise of it must not fail a right gradient."""
    bound = bounds.ErrorBound(source="none", componentwise=1, energy=1e-9)
    for op in ("input_grad", "weight_grad"):
        spec = ConvSpec.parse(f"op={op} n2 c2 o3 i9x8 k3 p1 f32")
        data = gaussian(spec)
        assert Truth(spec, *data).judge(reference.conv(spec, *data), bound).ok


@pytest.mark.parametrize("line", ["i256x256 k5 psame f32", "c4 o2 i40x40 k7 s2 psame f32", "i65536 k63 psame f32"])
def test_reduced_precision_breaks_the_energy_bound_of_a_large_transform(line: str) -> None:
    """operands rounded to TF32's 10 bits stay within the bound at each output, but not all together."""
    spec = ConvSpec.parse(line)
    points = 2 * int(np.prod(spec.input_size))
    x, w, _ = gaussian(spec, 3)
    truth = Truth(spec, x, w)
    bound = bounds.fft(spec, points)
    assert truth.judge(truth.y.astype("f4"), bound).ok
    rounded = [(a.view("u4") + np.uint32(0x1000) & np.uint32(0xFFFFE000)).view("f4") for a in (x, w)]
    verdict = truth.judge(Truth(spec, *rounded).y.astype("f4"), bound)
    assert not verdict.ok
    assert "wrong together" in verdict.message or "outputs are wrong" in verdict.message
