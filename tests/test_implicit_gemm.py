"""im2col as implicit GEMM: every way of packing and writing, on every instruction set, against shifted additions."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from convbench import ConvSpec, get_backend

pytest.importorskip("llvmlite")

from convbench.algorithms import implicit_gemm
from convbench.algorithms.implicit_gemm import ImplicitGemm
from convbench.arrays import numpy_namespace
from convbench.jit.target import VARIABLE, targets

Array = np.ndarray[Any, Any]


@pytest.fixture(params=["avx512", "avx2", "neon", "generic"])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set that this CPU has."""
    if request.param not in targets():
        pytest.skip("another CPU")
    monkeypatch.setenv(VARIABLE, request.param)
    return str(request.param)


def _operands(spec: ConvSpec) -> tuple[Array, Array, Array | None]:
    """Small integers: every order of summation gives the same."""
    rng = np.random.default_rng(5)
    x, w, *bias = (
        rng.integers(-4, 5, shape).astype(spec.dtype)
        for shape in (spec.input_shape, spec.weight_shape, spec.bias_shape)
        if shape is not None
    )
    return x, w, bias[0] if bias else None


def _truth(spec: ConvSpec, x: Array, w: Array, bias: Array | None) -> Array:
    plan = get_backend("direct-numpy").plan(spec, threads=1)
    return np.asarray(plan(x, plan.prepare(w), bias))


def _check(line: str, threads: int = 2) -> None:
    spec = ConvSpec.parse(line)
    x, w, bias = _operands(spec)
    plan = get_backend("im2col").plan(spec, threads=threads)
    np.testing.assert_array_equal(plan(x, plan.prepare(w), bias), _truth(spec, x, w, bias))


LINES = [
    "i1 k1 f32",
    "c3 o5 i9x10 k3 p1 f32",  # fewer outputs than lanes
    "c16 o64 i28x28 k3 p1 bias=channel f32",  # tiles of pixels in one row or two
    "n3 c20 o70 i7x7 k3 p1 f32",  # of several rows; a last block that is not full
    "c70 o40 i14x14 k1 f32",  # an image as one row
    "c8 o40 i15x13 k1 p1 bias=location f32",  # one tap, but padding
    "c6 o36 g2 i20x31 k5x3 s2 p2:1 d1x2 bias=channel f64",
    "c3 o20 i57x57 k11 s4 f32",  # every fourth sample
    "c3 o20 i25x34 k4 s3 p2 f32",  # strides that are not copied by vectors
    "c4 o4 i40x3 k3 p1 f32",  # an image too narrow for segments
    "c4 o34 i1x1 k1 f32",
    "c4 o34 i5x5 k5 f64",  # one pixel
    "c300 o33 i9x9 k3 p1 bias=channel f32",  # sums in parts, of some channels each
    "n2 c3 o17 i1500 k700 s3 p5 f64",  # of some taps each
    "c2 o20 i6x7x8 k3 p1 s1x2x1 f32",
    "c5 o19 i17x40 k3 d3 p3 boundary=reflect f32",
    "c5 o19 i17x41 k5 s2 p2 boundary=circular f64",
    "c5 o19 i6x7 k3 p9 boundary=replicate f32",  # rows of nothing but margins
    "c5 o19 i6x7 k3 p9 f32",
    "c40 o33 i17x15 k3 p1 layout=channels_last bias=channel f32",
    "c3 o5 i12x11 k3 p-1:2 flip f32",
]


@pytest.mark.parametrize("line", LINES)
def test_every_way_of_packing(target: str, line: str) -> None:
    _check(line)


@pytest.mark.parametrize("line", LINES[:9])
def test_sums_in_many_parts(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps at a time, few tiles packed at once, and more jobs than threads."""
    for name, value in {"_STEPS": 5, "_IN_L1": 600, "_IN_L2": 2000, "_WORTH_A_JOB": 1}.items():
        monkeypatch.setattr(implicit_gemm, name, value)
    _check(line, threads=3)


def _gapped(shape: tuple[int, ...], dtype: str) -> Array:
    """A view whose neighbours lie apart along every axis, backwards along the last."""
    whole = np.full(tuple(2 * size + 1 for size in shape), np.nan, dtype)
    return whole[(*(slice(1, 2 * size, 2) for size in shape[:-1]), slice(2 * shape[-1] - 1, None, -2))]


def _channels_last(shape: tuple[int, ...], dtype: str) -> Array:
    batch, channels, *sizes = shape
    return np.moveaxis(np.full((batch, *sizes, channels), np.nan, dtype), -1, 1)


def _cropped(shape: tuple[int, ...], dtype: str) -> Array:
    """Neighbours along rows, but rows apart."""
    return np.full((*shape[:-1], shape[-1] + 3), np.nan, dtype)[..., 1:-2]


@pytest.mark.parametrize("into", [_gapped, _channels_last, _cropped])
@pytest.mark.parametrize("of", [_gapped, _channels_last, _cropped])
@pytest.mark.parametrize("line", ["n2 c9 o38 g1 i9x20 k3 p1 f32", "c70 o16 i8x12 k1 f64", "c190 o40 i6x6 k3 s2 f32"])
def test_arrays_of_any_strides(line: str, of: Any, into: Any) -> None:
    spec = ConvSpec.parse(line)
    x, w, _ = _operands(spec)
    view, out = of(x.shape, spec.dtype), into(spec.output_shape, spec.dtype)
    view[...] = x
    view.setflags(write=False)
    plan = get_backend("im2col").plan(spec, threads=2)
    assert plan(view, plan.prepare(np.asfortranarray(w)), None, out) is out
    np.testing.assert_array_equal(out, _truth(spec, x, w, None))
    if out.base is not None and into is not _channels_last:  # nothing beside the view is written
        assert np.isnan(out.base).sum() == out.base.size - out.size


def test_padding_that_is_read_as_zero_is_not_read() -> None:
    """Samples that no output needs do not spoil any: NaN beneath a mask is left out."""
    spec = ConvSpec.parse("c2 o3 i20x20 k3 p-2 f32")
    x, w, _ = _operands(spec)
    x[..., :2], x[..., -2:] = np.nan, np.nan
    x[..., :2, :], x[..., -2:, :] = np.nan, np.nan
    plan = get_backend("im2col").plan(spec, threads=1)
    np.testing.assert_array_equal(plan(x, plan.prepare(w)), _truth(spec, x, w, None))


def test_what_is_declared_does_not_grow_with_the_image() -> None:
    """Packed columns stay in cache: never the whole matrix."""
    small, large = (
        ImplicitGemm(numpy_namespace(), ConvSpec.parse(f"c64 o64 i{size}x{size} k3 p1 f32"), 1).workspace_bytes
        for size in (64, 512)
    )
    assert large <= small + 8 * 1024 * 2  # but for the tables of sources
    assert large < 2**19


@pytest.mark.parametrize("outputs", [1, 5, 31, 33, 64, 100])
def test_packed_weights_are_as_large_as_declared(target: str, outputs: int) -> None:
    spec = ConvSpec.parse(f"c4 o{2 * outputs} g2 i12x12 k3 f32")
    algorithm = ImplicitGemm(numpy_namespace(), spec, 1)
    packed, flops = algorithm.prepare(np.ones((2, outputs, 2, 3, 3), "f4"))
    assert packed.nbytes == algorithm.prepared_bytes
    assert flops is None
    assert packed.sum() == 2 * outputs * 2 * 9


@pytest.mark.parametrize(
    ("line", "compiled"),
    [
        ("c3 o5 i9x9 k3 f32", True),
        ("c3 o5 i9x9 k3 int32", False),
        ("c3 o5 i9x9 k3 complex64", False),
        ("c3 o5 i9x9 k3 t2x2 f32", False),
        ("op=weight_grad c3 o5 i9x9 k3 f32", False),
        ("i3x3x3x3 k2 f32", False),
    ],
)
def test_the_rest_is_left_to_numpy(line: str, compiled: bool) -> None:
    plan = get_backend("im2col").plan(ConvSpec.parse(line), threads=1)
    assert isinstance(_behind(plan), ImplicitGemm) is compiled


def _behind(plan: Any) -> Any:
    """Return the algorithm itself, without what makes unusual strides good."""
    return getattr(plan._algorithm, "_algorithm", plan._algorithm)


def test_without_the_compiler_numpy_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("convbench.backends.im2col")
    assert module.BACKEND.implementation.startswith(
        "forward, and what is done as forward convolutions, in float32 and float64"
    )
    assert next(iter(targets())) in module.BACKEND.implementation
    monkeypatch.setattr(module, "import_problem", lambda name: "")
    assert module.BACKEND.implementation == get_backend("im2col-numpy").implementation
    plan = module.BACKEND.plan(ConvSpec.parse("c3 o5 i9x9 k3 f32"), threads=1)
    assert not isinstance(_behind(plan), ImplicitGemm)
