"""cb.conv and cb.plan as a user meets them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import integers, specs

import convbench as cb
from convbench import ConvSpec, SpecError, UnsupportedSpec, planning, reference


def ones(*shape: int, dtype: str = "float32") -> Any:
    return np.ones(shape, dtype)


X, W = ones(1, 1, 8, 8), ones(1, 1, 3, 3)


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> OrderedDict[Any, Any]:
    """Start without plans; leave those of other tests alone."""
    plans: OrderedDict[Any, Any] = OrderedDict()
    monkeypatch.setattr(planning, "_PLANS", plans)
    return plans


# -- conv -------------------------------------------------------------------------------------


@given(specs(ops=("forward",), dtypes=("float32", "float64", "int8"), max_macs=2000), st.integers(0, 99))
def test_conv_is_the_reference_whatever_the_keywords(spec: ConvSpec, seed: int) -> None:
    spec = spec.replace(layout="channels_first")
    x, w, bias = integers(spec, seed)
    y = cb.conv(
        x,
        w,
        bias,
        stride=spec.stride,
        padding=spec.padding_word or spec.padding,
        dilation=spec.dilation,
        groups=spec.groups,
        tile=spec.tile_word or spec.tile,
        boundary=spec.boundary,
        flip=spec.flip,
        layout=spec.layout,
        backend="reference",
    )
    np.testing.assert_array_equal(y, reference.conv(spec, x, w, bias))
    assert y.dtype == spec.result_dtype


@pytest.mark.parametrize("backend", ["auto", "im2col", "direct-numpy", "fft", "scipy-fft"])
def test_conv_with_each_backend(backend: str) -> None:
    spec = ConvSpec.parse("n2 c4 o6 g2 i9x8 k3x2 p1x0 bias=channel f64")
    x, w, bias = integers(spec)
    y = cb.conv(x, w, bias, padding=(1, 0), groups=2, backend=backend)
    np.testing.assert_allclose(y, reference.conv(spec, x, w, bias), atol=1e-11)


@pytest.mark.parametrize(
    ("x", "w", "result"),
    [
        ("float32", "float64", "float64"),
        ("float32", "float32", "float32"),
        ("int8", "float32", "float32"),
        ("int64", "float32", "float64"),
        ("float32", "complex64", "complex64"),
        ("int8", "uint8", "int64"),
        ("uint64", "uint8", "uint64"),
    ],
)
def test_the_result_has_the_promoted_dtype(x: str, w: str, result: str) -> None:
    y = cb.conv(ones(1, 1, 5, dtype=x), ones(1, 1, 3, dtype=w), backend="reference")
    assert y.dtype == result
    assert y.tolist() == [[[3, 3, 3]]]


def test_out_receives_the_result() -> None:
    whole = np.full((1, 1, 6, 12), np.nan, np.float32)
    out = whole[..., ::2]
    for _ in range(2):  # planned, then cached
        y = cb.conv(X, W, out=out)
        assert y is out
        assert (out == 9).all()
        assert np.isnan(whole[..., 1::2]).all()
        out[...] = 0


def test_lists_and_read_only_and_strided_arrays_are_ordinary() -> None:
    strided = np.ones((1, 1, 16, 8), np.float32)[:, :, ::-2]
    strided.flags.writeable = False
    np.testing.assert_array_equal(cb.conv(strided, W), np.full((1, 1, 6, 6), 9))
    assert cb.conv([[[1.0, 2.0, 3.0]]], [[[1.0, 1.0]]], stride=[1], padding=[0]).tolist() == [[[3, 5]]]


def test_sizes_may_be_arrays_without_axes() -> None:
    two = np.array(2)
    for options in ({"stride": two}, {"padding": two}, {"dilation": two}):
        plain = dict.fromkeys(options, 2)
        np.testing.assert_array_equal(cb.conv(X, W, **options), cb.conv(X, W, **plain))
    assert cb.conv(X, ones(1, 2, 2, 1, 3, 3), tile=two).shape == (1, 1, 6, 6)
    assert cb.conv(X, W, groups=np.array(1), finite=np.True_).shape == (1, 1, 6, 6)


def test_a_line_of_pooling_is_told_where_to_go() -> None:
    for door in (cb.plan, cb.explain, ConvSpec.parse):
        with pytest.raises(SpecError, match=r"is a line of pooling.*pool_plan\(line\)"):
            door("pool=max i8x8 k2")


def test_nan_stays_local_with_finite_false() -> None:
    """``auto`` must not pick a method that spreads one NaN over the image, whichever it prefers else."""
    x = ones(1, 1, 300)
    x[0, 0, 150] = np.nan
    w = ones(1, 1, 5)
    y = cb.conv(x, w, finite=False)
    assert np.flatnonzero(np.isnan(y[0, 0])).tolist() == [146, 147, 148, 149, 150]
    assert (y[~np.isnan(y)] == 5).all()


def test_finite_false_passes_over_methods_that_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convbench.select.AUTO_ORDER", ("fft", "reference"))
    assert cb.plan("i50 k5").backend == "fft"
    assert cb.plan("i50 k5", finite=False).backend == "reference"
    monkeypatch.setattr("convbench.select.AUTO_ORDER", ("fft",))
    with pytest.raises(UnsupportedSpec, match="fft: spreads NaN and infinity"):
        cb.plan("i50 k5", finite=False)


def test_integers_that_could_overflow_are_refused() -> None:
    big = np.full((1, 1, 4), 2**31)
    with pytest.raises(UnsupportedSpec, match=r"could overflow int64; convert to float64 or scale down"):
        cb.conv(big, big, backend="reference")
    with pytest.raises(UnsupportedSpec, match=r"max\|x\|·max\|w\|·terms \+ max\|bias\| = 1.15e\+19 could overflow"):
        cb.conv(big, big[..., :1], np.full(1, 2**62 + 2**61), backend="reference")
    assert cb.conv(big // 2, big[..., :1], backend="reference").dtype == np.int64
    narrow = np.full((1, 1, 4), -128, np.int8)
    assert cb.conv(narrow, narrow, backend="reference").item() == 4 * 128**2


# -- plans are kept ---------------------------------------------------------------------------


def test_a_repeated_call_uses_the_same_plan(empty_cache: OrderedDict[Any, Any]) -> None:
    cb.conv(X, W, padding="same")
    (kept,) = empty_cache.values()
    for scale in (1, 2):
        np.testing.assert_array_equal(cb.conv(X * scale, W, padding="same")[0, 0, 4, 4], 9 * scale)
        np.testing.assert_array_equal(cb.conv(X, W * scale, padding="same")[0, 0, 4, 4], 9 * scale)
    assert list(empty_cache.values()) == [kept]


def test_every_option_and_operand_is_part_of_the_key(empty_cache: OrderedDict[Any, Any]) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((X, W), {}),
        ((X, W), {"stride": 2}),
        ((X, W), {"padding": 1}),
        ((X, W), {"padding": "same"}),
        ((X, W), {"dilation": 2}),
        ((X, W), {"flip": True}),
        ((X, W), {"backend": "fft"}),
        ((X, W), {"threads": 1}),
        ((X, W), {"finite": False}),
        ((X, W, ones(1)), {}),
        ((X, W, ones(1, 6, 6)), {}),
        ((X, ones(1, 1, 3, 2)), {}),
        ((X.astype("f8"), W.astype("f8")), {}),
        ((ones(2, 1, 8, 8), W), {}),
        ((ones(1, 2, 8, 8), ones(2, 1, 3, 3)), {"groups": 2}),
    ]
    for round_ in range(2):
        for number, (operands, options) in enumerate(calls):
            cb.conv(*operands, **options)
            assert len(empty_cache) == (len(calls) if round_ else number + 1)


def test_unhashable_options_work_without_a_cache(empty_cache: OrderedDict[Any, Any]) -> None:
    y = cb.conv(X, W, padding=[[1, 0], [0, 1]], stride=[2, 1])
    np.testing.assert_array_equal(y, cb.conv(X, W, padding=((1, 0), (0, 1)), stride=(2, 1)))
    assert len(empty_cache) == 1


def test_a_kept_plan_does_not_let_a_masked_array_in() -> None:
    cb.conv(X, W)
    for operands in ((np.ma.masked_less(X, 0), W), (X, np.ma.masked_less(W, 0))):
        with pytest.raises(SpecError, match="must be a NumPy array"):
            cb.conv(*operands)


def test_the_number_of_plans_kept_is_bounded(empty_cache: OrderedDict[Any, Any]) -> None:
    for size in range(3, 3 + planning._PLANS_KEPT + 10):
        cb.conv(ones(1, 1, size), ones(1, 1, 3))
    assert len(empty_cache) == planning._PLANS_KEPT


def test_large_workspaces_are_not_hoarded(empty_cache: OrderedDict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_PLANS_KEPT_BYTES", 1)
    for size in (40, 50, 60):
        cb.conv(ones(1, 1, size, size), W, backend="fft")
    assert len(empty_cache) == 1


def test_several_threads_share_a_plan(empty_cache: OrderedDict[Any, Any]) -> None:
    for backend in ("auto", "direct-numpy", "fft"):
        barrier = threading.Barrier(4)

        def work(scale: int, backend: str = backend, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait(timeout=30)
            x = scale * ones(1, 2, 20, 20)
            ys = [cb.conv(x, ones(3, 2, 3, 3), threads=1, backend=backend) for _ in range(25)]
            return all(np.abs(y - 18 * scale).max() < 1e-3 for y in ys)

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(1, 5)))


def test_a_plan_by_hand() -> None:
    plan = cb.plan("c2 o4 i8x8 k3 psame bias=channel f64", backend="im2col", threads=1)
    x, w, bias = integers(plan.spec)
    weights = plan.prepare(w)
    expected = reference.conv(plan.spec, x, w, bias)
    np.testing.assert_array_equal(plan(x, weights, bias), expected)
    out = np.empty(plan.spec.output_shape)
    assert plan(x, weights, bias, out) is out
    np.testing.assert_array_equal(out, expected)
    assert (plan.backend, plan.threads, plan.accumulate_dtype) == ("im2col", 1, "float64")
    assert plan.flops > 0
    assert plan.workspace_bytes >= 0


# -- what goes wrong is said in one line ------------------------------------------------------


READ_ONLY = np.empty((1, 1, 6, 6), np.float32)
READ_ONLY.flags.writeable = False


class Tensor:
    """Another library's array."""

    def numpy(self) -> Any:
        return X


@pytest.mark.parametrize(
    ("operands", "options", "field", "part"),
    [
        ((None, W), {}, "x", "must be a NumPy array"),
        ((X, None), {}, "w", "must be a NumPy array"),
        ((X, "kernel"), {}, "w", "must be a NumPy array"),
        ((np.ma.ones((1, 1, 8, 8), "f4"), W), {}, "x", "must be a NumPy array"),
        (([[1.0, 2.0], [3.0]], W), {}, "x", "must be an array"),
        ((X.astype(bool), W), {}, "x", "give x.astype('uint8')"),
        ((X.astype(object), W), {}, "x", "native dtype"),
        ((X.astype(">f4"), W), {}, "x", "give x.astype(x.dtype.newbyteorder('='))"),
        ((np.ma.ones((1, 1, 8, 8), "f4"), W), {}, "x", "give .filled(…)"),
        ((Tensor(), W), {}, "x", "give .numpy()"),
        ((X, W.astype("U1")), {}, "w", "native dtype"),
        ((X.astype("u8"), W.astype("i8")), {}, "dtype", "no exact common type"),
        ((ones(8, 8), ones(3, 3)), {}, "x", "(N, C, *spatial)"),
        ((X, ones(3, 3)), {}, "w", "(O, C/groups, *kernel)"),
        ((X, W), {"tile": 2}, "w", "(O, *tile, C/groups, *kernel)"),
        ((ones(1, 2, 8, 8), W), {}, "w", "must have shape (1, 2, 3, 3)"),
        ((ones(1, 3, 8, 8), ones(2, 1, 3, 3)), {"groups": 2}, "groups", "must divide in_channels = 3"),
        ((X, ones(1, 1, 9, 9)), {}, "input_size", "no output along axis 0"),
        ((X, ones(1, 1, 0, 3)), {}, "kernel_size", "integer ≥ 1"),
        ((X, W, ones(2)), {}, "bias", "must have shape (1,) or (1, 6, 6)"),
        ((X, W, "b"), {}, "bias", "must be a NumPy array"),
        ((X, W), {"stride": 0}, "stride", "integer ≥ 1"),
        ((X, W), {"stride": (1, 2, 3)}, "stride", "2 axes"),
        ((X, W), {"padding": "SAME"}, "padding", "valid, same, full"),
        ((X, W), {"dilation": 1.5}, "dilation", "integer ≥ 1"),
        ((X, W), {"stride": np.array(1.5)}, "stride", "integer ≥ 1"),
        ((X, W), {"stride": np.ones((2, 2))}, "stride", "integer ≥ 1"),
        ((X, W), {"padding": np.array(0.5)}, "padding", "must be an integer"),
        ((X, W), {"padding": np.ones((3, 2), int)}, "padding", "got array([[1, 1], [1, 1], [1, 1]]); must be"),
        ((X, W.reshape(1, 1, 1, 1, 3, 3)), {"tile": ""}, "tile", "'unshared', an integer or one for each axis"),
        ((X, W), {"backend": np.array([3, 3])}, "backend", "or 'auto'"),
        ((X, W), {"backend": None}, "backend", "or 'auto'"),
        ((X, W), {"finite": np.array([1, 1])}, "finite", "must be True, or False if"),
        ((X, W), {"finite": "no"}, "finite", "must be True, or False if"),
        ((X, W), {"finite": 1}, "finite", "must be True, or False if"),
        ((X, W), {"finite": None}, "finite", "must be True, or False if"),
        ((X, W), {"boundary": "wrap"}, "boundary", "means circular here"),
        ((X, W), {"flip": "yes"}, "flip", "True (convolution) or False"),
        ((X, W), {"threads": 0}, "threads", "integer from 1 to 256, or None"),
        ((X, W), {"out": ones(1, 1, 6, 5)}, "out", "must have shape (1, 1, 6, 6)"),
        ((X, W), {"out": ones(1, 1, 6, 6, dtype="f8")}, "out", "must have dtype float32"),
        ((X, W), {"out": [0]}, "out", "must be an array of numpy"),
        ((X, W), {"out": READ_ONLY}, "out", "must be writeable"),
        ((X, W), {"out": X, "padding": "same"}, "out", "memory shared with x"),
    ],
)
def test_malformed_calls_name_argument_value_and_rule(
    operands: tuple[Any, ...], options: dict[str, Any], field: str, part: str
) -> None:
    with pytest.raises(SpecError) as caught:
        cb.conv(*operands, **options)
    assert caught.value.field == field
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "field", "part"),
    [
        (lambda p, w: p.prepare(W), "w", "must have shape (1, 1, 3)"),
        (lambda p, w: p.prepare(np.ones((1, 1, 3))), "w", "must have dtype float32"),
        (lambda p, w: p.prepare([[[1, 1, 1]]]), "w", "must be an array of numpy"),
        (lambda p, w: p(ones(1, 1, 9), w), "x", "must have shape (1, 1, 8)"),
        (lambda p, w: p(ones(1, 1, 8), ones(1, 1, 3)), "weights", "plan.prepare(w)"),
        (lambda p, w: p(ones(1, 1, 8), w, ones(1)), "bias", "bias='none'"),
        (
            lambda p, w: cb.plan("i8 k3 bias=channel", backend="reference")(ones(1, 1, 8), w),
            "weights",
            "prepared for another plan",
        ),
        (lambda p, w: cb.plan("i8 k3", backend="fft")(ones(1, 1, 8), w), "weights", "prepared for another plan"),
        (lambda p, w: cb.plan(3), "spec", "must be a ConvSpec or a line"),
        (lambda p, w: cb.plan("i8 k3 stride2"), "line", "is not a token"),
    ],
)
def test_a_plan_checks_what_it_is_given(call: Any, field: str, part: str) -> None:
    plan = cb.plan("i8 k3", backend="reference")
    with pytest.raises(SpecError) as caught:
        call(plan, plan.prepare(ones(1, 1, 3)))
    assert caught.value.field == field
    assert part in str(caught.value)


def test_a_missing_bias_is_named() -> None:
    plan = cb.plan("i8 k3 bias=channel", backend="reference")
    with pytest.raises(SpecError, match=r"bias: got None; must have shape \(1,\)"):
        plan(ones(1, 1, 8), plan.prepare(ones(1, 1, 3)))


def test_refusals_name_backend_and_reason() -> None:
    with pytest.raises(UnsupportedSpec, match="scipy-direct: stride: 2x2 given, only 1 is done"):
        cb.conv(X, W, stride=2, backend="scipy-direct")
    with pytest.raises(UnsupportedSpec, match=r"no backend takes .* \(direct: .*; im2col: dtype: bfloat16 given"):
        cb.plan("i8 k3 bfloat16")
    with pytest.raises(cb.UnknownBackend, match=r"backend 'ftf' is not registered; did you mean fft\?"):
        cb.conv(X, W, backend="ftf")


def test_every_public_name_resolves() -> None:
    for name in cb.__all__:
        assert getattr(cb, name) is not None
    assert set(cb.__all__) <= set(dir(cb))
    with pytest.raises(AttributeError, match="has no attribute 'convolute'"):
        cb.convolute  # noqa: B018
