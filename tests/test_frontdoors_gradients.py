"""cb.conv_input_grad, conv_weight_grad, conv_bias_grad and conv_transpose as a user meets them; layouts in memory."""

from __future__ import annotations

import tracemalloc
from collections import OrderedDict
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import integers, specs

import convbench as cb
from convbench import ConvSpec, SpecError, UnsupportedSpec, fitting, ops, planning, reference
from convbench.geometry import output_size, word_padding
from convbench.registry import backend_names, get_backend

DTYPES = ("float32", "float64", "complex128", "int8", "uint8", "float16")


def keywords(spec: ConvSpec) -> dict[str, Any]:
    return {
        "stride": spec.stride,
        "padding": spec.padding_word or spec.padding,
        "dilation": spec.dilation,
        "groups": spec.groups,
        "tile": spec.tile_word or spec.tile,
        "boundary": spec.boundary,
        "flip": spec.flip,
        "layout": spec.layout,
    }


def ones(*shape: int, dtype: str = "float32") -> Any:
    return np.ones(shape, dtype)


# -- gradients --------------------------------------------------------------------------------


@given(specs(ops=("input_grad", "weight_grad"), dtypes=DTYPES, max_macs=1000), st.integers(0, 99))
def test_gradients_are_the_references_whatever_the_keywords(spec: ConvSpec, seed: int) -> None:
    first, second, _ = integers(spec, seed, largest=2)
    if spec.op == "input_grad":
        result = cb.conv_input_grad(first, second, spec.input_size, **keywords(spec))
    else:
        result = cb.conv_weight_grad(first, second, spec.kernel_size, **keywords(spec))
    assert result.dtype == spec.result_dtype
    expected = reference.conv(spec, first, second)
    if spec.boundary == "zero" and spec.tile is None:
        np.testing.assert_array_equal(result, expected)
    else:  # so many terms that half precision rounds
        np.testing.assert_allclose(result, expected, rtol=2e-3 if spec.dtype == "float16" else 0)


@given(specs(ops=("forward",), dtypes=("float64", "int16"), max_macs=1000), st.integers(0, 99))
def test_the_doors_are_adjoint(spec: ConvSpec, seed: int) -> None:
    """⟨conv(x, w, b), g⟩ = ⟨x, ∂x⟩ + ⟨b, ∂b⟩ = ⟨w, ∂w⟩ + ⟨b, ∂b⟩, on whole numbers to the last bit."""
    x, w, bias = integers(spec, seed)
    g = np.random.default_rng(seed).integers(-3, 4, spec.output_shape).astype(spec.dtype)
    whole = (cb.conv(x, w, bias, **keywords(spec)) * g).sum()
    if bias is not None:
        whole -= (bias * cb.conv_bias_grad(g, bias=spec.bias, tile=spec.tile)).sum()
    assert (x * cb.conv_input_grad(g, w, spec.input_size, **keywords(spec))).sum() == whole
    assert (w * cb.conv_weight_grad(x, g, spec.kernel_size, **keywords(spec))).sum() == whole


@given(specs(ops=("forward",), dtypes=(*DTYPES, "uint64"), max_macs=1000), st.integers(0, 99))
def test_the_bias_gradient_is_the_references(spec: ConvSpec, seed: int) -> None:
    form = spec.bias if spec.bias != "none" else "channel"
    spec = spec.replace(bias=form)
    g, _, _ = integers(spec.replace(op="input_grad"), seed)
    result = cb.conv_bias_grad(g, bias=form, tile=spec.tile_word or spec.tile)
    expected = reference.bias_grad(spec, g)
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(result, expected)


def test_half_precision_biases_are_summed_in_float32() -> None:
    g = ones(1, 1, 5000, dtype="float16")  # 2048 + 1 = 2048 in float16
    assert cb.conv_bias_grad(g).tolist() == [5000]
    ml_dtypes = pytest.importorskip("ml_dtypes")
    summed = cb.conv_bias_grad(ones(1, 1, 1000, dtype=ml_dtypes.bfloat16))  # 256 + 1 = 256 in bfloat16
    assert (summed.tolist(), summed.dtype) == ([1000], ml_dtypes.bfloat16)


@pytest.mark.filterwarnings("error")
def test_a_bias_gradient_beyond_float16_is_infinite() -> None:
    assert cb.conv_bias_grad(np.full((1, 1, 2), 60000, np.float16)).tolist() == [np.inf]


def test_sums_of_integers_that_could_overflow_are_refused() -> None:
    big = np.full((2, 1, 3), 2**61)
    with pytest.raises(UnsupportedSpec, match=r"max\|g\|·terms = .* could overflow int64; convert to float64"):
        cb.conv_bias_grad(big)
    assert cb.conv_bias_grad(big, bias="location").tolist() == [[2**62] * 3]
    with pytest.raises(UnsupportedSpec, match=r"max\|y\| \+ max\|bias\| = .* could overflow int64"):
        cb.conv_transpose(big[:1], ones(1, 1, 1, dtype="int64"), np.full(1, 2**62 + 2**61))


# -- sizes are told, never guessed ------------------------------------------------------------

PADDINGS = ("valid", "same", "full", (0, 0), (1, 2), (-1, 0), (-2, -1), (4, 3))


def outputs(size: int, kernel: int, stride: int, dilation: int, padding: Any) -> int:
    pair = word_padding(padding, size, kernel, stride, dilation) if isinstance(padding, str) else padding
    return output_size(size, kernel, stride, dilation, *pair)


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_the_ranges_of_sizes_are_all_that_fit(padding: Any) -> None:
    for fixed, stride, dilation, wanted in product(range(1, 7), range(1, 5), range(1, 4), range(1, 7)):
        fits = [size for size in range(1, 60) if outputs(size, fixed, stride, dilation, padding) == wanted]
        assert list(fitting.input_sizes(wanted, fixed, stride, dilation, padding)) == fits
        kernels = fitting.kernel_sizes(wanted, fixed, stride, dilation, padding)
        for kernel in range(1, 40):
            assert (kernel in kernels) == (outputs(fixed, kernel, stride, dilation, padding) == wanted)


G, W, X = ones(1, 1, 4, 4), ones(1, 1, 3, 3), ones(1, 1, 8, 8)


@pytest.mark.parametrize(
    ("call", "field", "part"),
    [
        (
            lambda: cb.conv_input_grad(G, W, 9),
            "input_size",
            "gives outputs of 7×7, and g has 4×4; what fits: 6 along axis",
        ),
        (
            lambda: cb.conv_input_grad(G, W, 8, stride=(2, 3)),
            "input_size",
            "gives outputs of 3×2, and g has 4×4; what fits: 9 to 10 along axis 0, 12 to 14 along axis 1",
        ),
        (lambda: cb.conv_input_grad(G, W, 9, stride=2, padding="same"), "input_size", "what fits: 7 to 8 along axis 0"),
        (lambda: cb.conv_input_grad(G, W, 1), "input_size", "gives outputs of 0×0"),
        (lambda: cb.conv_input_grad(G, W, 3, padding=9), "input_size", "what fits: none along axis 0"),
        (lambda: cb.conv_input_grad(G, W, (6,)), "input_size", "an integer or one for each of the 2 spatial axes"),
        (lambda: cb.conv_input_grad(G, W, "same"), "input_size", "must be an integer ≥ 1"),
        (lambda: cb.conv_input_grad(G, W, True), "input_size", "must be an integer ≥ 1"),
        (lambda: cb.conv_input_grad(G, W, None), "input_size", "must be an integer ≥ 1"),
        (lambda: cb.conv_input_grad(G[0], W, 6), "w", "must have shape (O, C/groups, *kernel): 3 axes for g"),
        (lambda: cb.conv_input_grad(G[0, 0], W, 6), "g", "must have shape (N, O, *output_size)"),
        (lambda: cb.conv_input_grad(G, ones(2, 1, 3, 3), 6), "g", "must have shape (1, 2, 4, 4) for w of shape"),
        (lambda: cb.conv_input_grad(G, W, 6, groups=2), "groups", "must divide out_channels = 1"),
        (lambda: cb.conv_input_grad(G, W, 6, groups=0), "groups", "must be an integer ≥ 1"),
        (lambda: cb.conv_input_grad(G, W, 6, tile=2), "w", "(O, *tile, C/groups, *kernel)"),
        (lambda: cb.conv_input_grad(G, W, 6, boundary="wrap"), "boundary", "means circular here"),
        (lambda: cb.conv_input_grad(G, W, 6, layout="nhwc"), "layout", "channels_first, channels_last"),
        (lambda: cb.conv_input_grad(G, None, 6), "w", "must be a NumPy array"),
        (lambda: cb.conv_input_grad(G, W, 6, out=ones(1, 1, 6, 5)), "out", "must have shape (1, 1, 6, 6)"),
        (
            lambda: cb.conv_weight_grad(X, G, 3),
            "kernel_size",
            "gives outputs of 6×6, and g has 4×4; what fits: 5 along axis 0, 5 along axis 1",
        ),
        (lambda: cb.conv_weight_grad(X, G, 6, stride=2), "kernel_size", "what fits: 1 to 2 along axis 0"),
        (lambda: cb.conv_weight_grad(X, G, 3, padding="same"), "kernel_size", "what fits: none along axis 0"),
        (
            lambda: cb.conv_weight_grad(ones(1, 1, 4, 8), G, 3, padding="same"),
            "kernel_size",
            "what fits: any along axis 0, none along axis 1",
        ),
        (lambda: cb.conv_weight_grad(X, G, 2, padding="full"), "kernel_size", "what fits: none along axis 0"),
        (lambda: cb.conv_weight_grad(X, G, 3, padding="same"), "kernel_size", "g, the padding or the stride is at fa"),
        (lambda: cb.conv_input_grad(G, W, np.array(6.5)), "input_size", "must be an integer ≥ 1"),
        (lambda: cb.conv_weight_grad(X, G, (5, 5, 5)), "kernel_size", "one for each of the 2 spatial axes"),
        (lambda: cb.conv_weight_grad(X, ones(2, 1, 4, 4), 5), "g", "must have shape (1, 1, 4, 4) for x of shape"),
        (lambda: cb.conv_weight_grad(X, G[0], 5), "g", "must have shape (N, O, *output_size): 4 axes"),
        (lambda: cb.conv_weight_grad(X, G, 5, groups=2), "groups", "must divide in_channels = 1"),
        (lambda: cb.conv_bias_grad(G, bias="none"), "bias", "channel, tile, location"),
        (lambda: cb.conv_bias_grad(G, bias="tile"), "bias", "needs tile="),
        (lambda: cb.conv_bias_grad(G, bias="tile", tile=0), "tile", "must be an integer ≥ 1"),
        (lambda: cb.conv_bias_grad(G, bias="tile", tile="all"), "tile", "unshared"),
        (lambda: cb.conv_bias_grad(G[0, 0]), "g", "must have shape (N, O, *output_size)"),
        (lambda: cb.conv_bias_grad(G.astype(bool)), "g", "native dtype"),
        (lambda: cb.conv_bias_grad("g"), "g", "must be a NumPy array"),
        (
            lambda: cb.conv_transpose(X, W, output_padding=1),
            "output_padding",
            "the larger of stride and dilation, 1 along",
        ),
        (lambda: cb.conv_transpose(X, W, output_padding=-1), "output_padding", "must be an integer ≥ 0"),
        (lambda: cb.conv_transpose(X, W, output_padding=(0, 0, 0)), "output_padding", "each of the 2 spatial axes"),
        (lambda: cb.conv_transpose(X, W, output_padding="same"), "output_padding", "must be an integer ≥ 0"),
        (
            lambda: cb.conv_transpose(X, W, stride=2, output_padding=1, input_size=18),
            "output_padding",
            "and input_size=18 say the same; give one of the two",
        ),
        (
            lambda: cb.conv_transpose(X, W, stride=2, input_size=19),
            "input_size",
            "cannot come from x of size 8×8; what fits: 17 to 18 along axis 0, 17 to 18 along axis 1",
        ),
        (
            lambda: cb.conv_transpose(X, W, stride=2, padding="same", input_size=17),
            "input_size",
            "what fits: 15 to 16 along axis 0",
        ),
        (lambda: cb.conv_transpose(X, W, padding="same"), "padding", "depends on the size of the result"),
        (lambda: cb.conv_transpose(X, W, padding=(5, 0)), "padding", "crops the result along axis 0 to 0 samples"),
        (lambda: cb.conv_transpose(X, ones(2, 1, 3, 3)), "w", "must begin with the 1 input channels of x"),
        (lambda: cb.conv_transpose(X, W, groups=2), "groups", "must divide the 1 input channels of x"),
        (lambda: cb.conv_transpose(X, W, ones(2)), "bias", "must have shape (1,) for w of shape"),
        (lambda: cb.conv_transpose(X, W, tile=3), "w", "(C_in, *tile, C_out/groups, *kernel)"),
        (lambda: cb.conv_transpose(X, ones(1, 1, 3)), "w", "(C_in, C_out/groups, *kernel)"),
    ],
)
def test_malformed_calls_name_argument_value_and_rule(call: Any, field: str, part: str) -> None:
    for _ in range(2):  # a call that fails leaves no plan behind
        with pytest.raises(SpecError) as caught:
            call()
        assert caught.value.field == field
        assert part in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_unknown_keyword_is_a_type_error() -> None:
    for call in (lambda k: cb.conv_input_grad(G, W, 6, **k), lambda k: cb.conv_transpose(X, W, **k)):
        with pytest.raises(TypeError, match="unexpected keyword argument strides; there are stride, padding"):
            call({"strides": 2})


def test_the_keywords_are_those_of_conv() -> None:
    assert list(ops.ConvOptions.__annotations__) == list(cb.conv.__kwdefaults__ or ())


# -- transposed convolution -------------------------------------------------------------------


def scattered(x: Any, w: Any, stride: Any, dilation: Any, padding: Any, extra: Any, groups: int) -> Any:
    """y[p·s + k·d − a] += x[p]·w[k], as PyTorch and ONNX define it."""
    c_in, per_group = w.shape[:2]
    size = [
        (n - 1) * s - a - b + d * (k - 1) + 1 + more
        for n, k, s, d, (a, b), more in zip(x.shape[2:], w.shape[2:], stride, dilation, padding, extra, strict=True)
    ]
    y = np.zeros((x.shape[0], per_group * groups, *size), np.result_type(x, w))
    for c, p, k in product(range(c_in), np.ndindex(x.shape[2:]), np.ndindex(w.shape[2:])):
        at = tuple(i * s + j * d - a for i, s, j, d, (a, _) in zip(p, stride, k, dilation, padding, strict=True))
        if all(0 <= i < n for i, n in zip(at, size, strict=True)):
            first = c // (c_in // groups) * per_group
            for o in range(per_group):
                y[(slice(None), first + o, *at)] += x[(slice(None), c, *p)] * w[(c, o, *k)]
    return y


@pytest.mark.parametrize("seed", range(60))
def test_transposed_convolution_scatters(seed: int) -> None:
    """Also with output padding beyond the stride, crops, groups and complex weights, which are not conjugated."""
    rng = np.random.default_rng(seed)
    ndim, groups = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    stride, dilation, kernel = ([int(n) for n in rng.integers(1, 4, ndim)] for _ in range(3))
    padding = [(int(a), int(b)) for a, b in rng.integers(-1, 2, (ndim, 2))]
    extra = [int(rng.integers(0, max(pair))) for pair in zip(stride, dilation, strict=True)]
    x_shape, w_shape = (2, 2 * groups, *rng.integers(2, 5, ndim)), (2 * groups, int(rng.integers(1, 3)), *kernel)
    dtype = ("float64", "complex128", "int16")[seed % 3]

    def draw(shape: Any) -> Any:
        values = rng.integers(-3, 4, shape)
        return (values + 1j * rng.integers(-3, 4, shape) if dtype == "complex128" else values).astype(dtype)

    x, w = draw(x_shape), draw(w_shape)
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    try:
        y = cb.conv_transpose(x, w, output_padding=extra, **options)
    except SpecError as error:
        assert "crops the result" in str(error)  # noqa: PT017
        return
    np.testing.assert_array_equal(y, scattered(x, w, stride, dilation, padding, extra, groups))
    assert y.dtype == ("int64" if dtype == "int16" else dtype)
    np.testing.assert_array_equal(cb.conv_transpose(x, w, input_size=y.shape[2:], **options), y)
    bias = draw(y.shape[1])
    out = np.empty_like(y)
    assert cb.conv_transpose(x, w, bias, output_padding=extra, out=out, **options) is out
    np.testing.assert_array_equal(out, y + bias.reshape(-1, *[1] * ndim))


@pytest.mark.parametrize("seed", range(30))
def test_transposed_convolution_is_pytorchs(seed: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    stride, dilation, padding = (tuple(int(n) for n in rng.integers(low, 4, 2)) for low in (1, 1, 0))
    extra = tuple(int(rng.integers(0, max(pair))) for pair in zip(stride, dilation, strict=True))
    x, w, bias = rng.standard_normal((2, 4, 5, 6)), rng.standard_normal((4, 3, 3, 2)), rng.standard_normal(6)
    if seed % 2:
        x, w, bias = x + 1j * x[:, ::-1], w - 2j * w[::-1], bias + 1j
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": 2}
    tensors = (torch.from_numpy(np.ascontiguousarray(a)) for a in (x, w, bias))
    expected = torch.nn.functional.conv_transpose2d(*tensors, output_padding=extra, **options).numpy()
    y = cb.conv_transpose(x, w, bias, output_padding=extra, **options)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


def test_transposed_convolution_with_same_padding_undoes_the_size_of_a_layer() -> None:
    for size, stride in product(range(4, 12), (1, 2, 3)):
        x = ones(1, 2, size, dtype="float64")
        w = np.arange(30.0).reshape(5, 2, 3)  # of the layer: O, C, K
        y = cb.conv(x, w, stride=stride, padding="same")
        back = cb.conv_transpose(y, w, stride=stride, padding="same", input_size=size)
        np.testing.assert_array_equal(back, cb.conv_input_grad(y, w, size, stride=stride, padding="same"))


def test_transposed_convolution_of_tiled_weights_and_other_boundaries() -> None:
    spec = ConvSpec.parse("op=input_grad n2 c3 o4 i8x7 k3x2 s2 p1 t2x3 boundary=circular f64")
    g, w, _ = integers(spec)
    y = cb.conv_transpose(g, w, stride=2, padding=1, tile=(2, 3), boundary="circular", input_size=(8, 7))
    np.testing.assert_array_equal(y, reference.conv(spec, g, w))


def test_operands_of_several_dtypes_are_promoted() -> None:
    y = cb.conv_transpose(ones(1, 1, 3), ones(1, 1, 2), np.array([1e-12]))
    assert y.dtype == np.float64
    assert y.tolist() == [[[1 + 1e-12, 2 + 1e-12, 2 + 1e-12, 1 + 1e-12]]]
    assert cb.conv_input_grad(ones(1, 1, 3, dtype="int8"), ones(1, 1, 2, dtype="uint8"), 4).dtype == np.int64


def test_out_must_not_share_memory_with_an_operand() -> None:
    memory = ones(1, 1, 8, 8)
    for name, call in (
        ("x", lambda: cb.conv_transpose(memory, ones(1, 1, 1, 1), out=memory)),
        ("g", lambda: cb.conv_input_grad(memory, ones(1, 1, 1, 1), 8, out=memory)),
        ("w", lambda: cb.conv_transpose(ones(1, 1, 1, 1), memory, out=memory)),
    ):
        with pytest.raises(SpecError, match=f"out: got 'memory shared with {name}'"):
            call()


# -- plans are kept ---------------------------------------------------------------------------


def test_every_door_and_size_has_plans_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: OrderedDict[Any, Any] = OrderedDict()
    monkeypatch.setattr(planning, "_PLANS", plans)
    calls = (
        lambda: cb.conv(X, W),
        lambda: cb.conv_input_grad(G, W, 9, stride=2),
        lambda: cb.conv_input_grad(G, W, 10, stride=2),
        lambda: cb.conv_input_grad(G, W, (10, 9), stride=2),
        lambda: cb.conv_weight_grad(X, G, 1, stride=2),
        lambda: cb.conv_weight_grad(X, G, 2, stride=2),
        lambda: cb.conv_transpose(G, W, stride=2),
        lambda: cb.conv_transpose(G, W, stride=2, output_padding=1),
        lambda: cb.conv_transpose(G, W, stride=2, input_size=10),
        lambda: cb.conv_transpose(G, W, ones(1), stride=2),
    )
    first = [call() for call in calls]
    assert len(plans) == len(calls)
    kept = list(plans.values())
    for result, call in zip(first, calls, strict=True):
        np.testing.assert_array_equal(call(), result)
    assert list(plans.values()) == kept
    with pytest.raises(SpecError, match="kernel_size: got True"):  # which equals 1, but is not the same
        cb.conv_weight_grad(X, G, True, stride=2)
    with pytest.raises(SpecError, match=r"input_size: got 9\.0"):
        cb.conv_input_grad(G, W, 9.0, stride=2)


def test_every_backend_module_has_every_front_door() -> None:
    """``from convbench.backends import fft; fft.conv_input_grad(...)``."""
    for name in backend_names():
        module = __import__(f"convbench.backends.{name.replace('-', '_')}", fromlist=["BACKEND"])
        for door in ops.FrontDoors.NAMES:
            assert getattr(module, door).keywords == {"backend": name}
        with pytest.raises(AttributeError, match="has no 'conv_bias'; it has conv, conv_input_grad"):
            module.conv_bias  # noqa: B018
    from convbench.backends import im2col

    assert im2col.conv_transpose(G, W).tolist() == cb.conv_transpose(G, W, backend="im2col").tolist()


def test_a_backend_that_does_not_do_gradients_says_so() -> None:
    with pytest.raises(UnsupportedSpec, match="numpy-convolve: op: input_grad given, only forward is done"):
        cb.conv_input_grad(ones(1, 1, 3), ones(1, 1, 2), 4, backend="numpy-convolve")


# -- channels last in memory ------------------------------------------------------------------

LAST = ("direct-numpy", "im2col", "fft-pocketfft", "kn2row")


@pytest.mark.parametrize("backend", LAST)
def test_channels_last_arrays_go_in_and_come_out_as_views(backend: str) -> None:
    rng = np.random.default_rng(0)
    nhwc, w = rng.integers(-3, 4, (2, 9, 8, 4)).astype("f8"), rng.integers(-3, 4, (6, 2, 3, 3)).astype("f8")
    x = np.moveaxis(nhwc, -1, 1)
    assert np.shares_memory(x, nhwc)
    options: dict[str, Any] = {"groups": 2, "stride": 2, "padding": 1, "backend": backend}
    y = cb.conv(x, w, layout="channels_last", **options)
    plain = cb.conv(np.ascontiguousarray(x), w, **options)
    np.testing.assert_allclose(y, plain, atol=1e-12)
    assert plain.flags.c_contiguous
    gx = cb.conv_input_grad(y, w, x.shape[2:], layout="channels_last", **options)
    np.testing.assert_allclose(gx, cb.conv_input_grad(plain, w, x.shape[2:], **options), atol=1e-12)
    back = cb.conv_transpose(y, w, input_size=x.shape[2:], layout="channels_last", **options)
    for result in (y, gx, back):
        assert np.moveaxis(result, 1, -1).flags.c_contiguous
    gw = cb.conv_weight_grad(x, y, 3, layout="channels_last", **options)
    assert gw.flags.c_contiguous
    np.testing.assert_allclose(gw, cb.conv_weight_grad(np.ascontiguousarray(x), plain, 3, **options), atol=1e-11)


@pytest.mark.parametrize("backend", ["direct-numpy", "im2col"])
@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
def test_channels_last_arrays_are_not_copied(backend: str, op: str) -> None:
    """What a call allocates is the result and the workspace that the plan declares, which is less than its input."""
    rng = np.random.default_rng(0)
    nhwc, w = rng.standard_normal((1, 384, 384, 4)), rng.standard_normal((2, 4, 3, 3))
    g_last = rng.standard_normal((1, 384, 384, 2))
    x, g = np.moveaxis(nhwc, -1, 1), np.moveaxis(g_last, -1, 1)
    options: dict[str, Any] = {"padding": 1, "layout": "channels_last", "backend": backend, "threads": 1}

    def call() -> Any:
        if op == "forward":
            return cb.conv(x, w, **options)
        if op == "input_grad":
            return cb.conv_input_grad(g, w, 384, **options)
        return cb.conv_weight_grad(x, g, 3, **options)

    spec = ConvSpec.parse(f"op={op} c4 o2 i384x384 k3 p1 layout=channels_last f64")
    declared = cb.plan(spec, backend=backend, threads=1).workspace_bytes
    assert declared < nhwc.nbytes // 2
    result = call()  # planned
    tracemalloc.start()
    try:
        call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= result.nbytes + declared + 2**16
    assert get_backend(backend).why_not(spec) is None
