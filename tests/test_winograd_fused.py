"""The fused Winograd kernel: its small matrices, its choice of tiles and blocks, and its results on every target."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
import pytest

from convbench import ConvSpec, get_backend, oracle
from convbench.algorithms.winograd import MOST_AMPLIFICATION
from convbench.algorithms.winograd_tiles import Cut, _equal_parts, choose_tiling, cut_of, growth
from convbench.arrays import numpy_namespace
from convbench.memory import measure_memory, slack_bytes

pytest.importorskip("llvmlite")

from convbench.algorithms import winograd_fused
from convbench.jit.compile import compiled
from convbench.jit.ir import Code
from convbench.jit.memory import address_of
from convbench.jit.pool import run
from convbench.jit.target import VARIABLE, host_target, targets
from convbench.jit.winograd import axis_transforms, multiplied

Array = np.ndarray[Any, Any]

#: Every F(m, r) of two taps and more that can be chosen.
FILTERS = [(t + 1 - r, r) for t in (4, 6, 8) for r in range(2, 8) if t > r] + [(1, r) for r in range(2, 8)]

MOST_ERROR = {"float32": 2e-5, "float64": 1e-13}  # of the largest result


def operands_of(spec: ConvSpec) -> tuple[Array, Array, Array | None]:
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(shape).astype(spec.dtype) for shape in spec.operand_shapes)
    shape = spec.bias_shape
    return first, second, None if shape is None else rng.standard_normal(shape).astype(spec.dtype)


def assert_close(spec: ConvSpec, y: Array, *operands: Array | None) -> None:
    first, second, bias = operands
    assert first is not None
    assert second is not None
    exact = oracle.conv(spec, first, second, bias)
    assert np.max(np.abs(y - exact)) <= MOST_ERROR[spec.dtype] * np.max(np.abs(exact))


@pytest.mark.parametrize(("outputs", "taps"), FILTERS)
def test_scaled_transforms_are_exact(outputs: int, taps: int) -> None:
    f = axis_transforms(outputs, taps)
    x = [Fraction(3 * k * k - 7 * k + 2, 5) for k in range(outputs + taps - 1)]
    w = [Fraction(k * k - 3, 7) for k in range(taps)]

    def times(matrix: tuple[tuple[Fraction, ...], ...], vector: list[Fraction]) -> list[Fraction]:
        return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]

    values = [a * b for a, b in zip(times(f.g, w), times(f.b, x), strict=True)]
    assert times(f.a, values) == [sum(w[k] * x[p + k] for k in range(taps)) for p in range(outputs)]


@pytest.mark.parametrize(("outputs", "taps"), [(2, 3), (4, 3), (6, 3), (2, 5), (1, 3)])
def test_products_by_small_matrices(outputs: int, taps: int) -> None:
    target, f = host_target(), axis_transforms(outputs, taps)
    for matrix in (f.a, f.b):
        code = Code("product", target, "float64", ["x", "y"])
        vectors = [code.load(code.pointer("x"), k * code.lanes) for k in range(len(matrix[0]))]
        for k, vector in enumerate(multiplied(code, matrix, vectors)):
            code.store(vector, code.pointer("y"), k * code.lanes)
        x = np.random.default_rng(0).standard_normal((len(matrix[0]), code.lanes))
        y = np.zeros((len(matrix), code.lanes))
        run(compiled(code.finish(), "product", target), [address_of(x), address_of(y)], 1, 1)
        np.testing.assert_allclose(y, np.array(matrix, float) @ x, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", list(targets()))
@pytest.mark.parametrize(
    "line",
    [
        "n2 c20 o36 i23x21 k3 p1 g2 bias=channel f32",  # channels and outputs that fill no vector
        "c33 o17 i15x40 k5 p2:0x1:3 flip boundary=reflect f32",
        "c3 o5 i9x8x11 k3 p1 boundary=circular f64",
        "n3 c4 o40 i37 k4 p3 boundary=replicate bias=location f64",
        "c5 o4 i12x13 k1x3 p0x1 f32",
        "c4 o4 i10x12 k3 p-1:2x1:-2 f32",
        "op=input_grad n2 c9 o18 i11x14 k3 p1 f32",
    ],
)
def test_every_target(monkeypatch: pytest.MonkeyPatch, name: str, line: str) -> None:
    monkeypatch.setenv(VARIABLE, name)
    spec = ConvSpec.parse(line)
    first, second, bias = operands_of(spec)
    plan = get_backend("winograd").plan(spec, threads=2)
    assert_close(spec, plan(first, plan.prepare(second), bias), first, second, bias)


def in_memory(array: Array, order: str) -> Array:
    """Return the same numbers, laid out in another way."""
    if order == "channels last":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)
    if order == "every other column":
        room = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
        room[..., ::2] = array
        return room[..., ::2]
    if order == "reversed":
        return np.ascontiguousarray(array[:, ::-1, ::-1, ::-1])[:, ::-1, ::-1, ::-1]
    return array


@pytest.mark.parametrize("read", ["rows", "channels last", "every other column", "reversed"])
@pytest.mark.parametrize("written", ["rows", "channels last", "every other column", "reversed"])
def test_any_strides_give_the_same_bits(read: str, written: str) -> None:
    spec = ConvSpec.parse("n2 c19 o21 i13x35 k3 p1 bias=channel f32")
    x, w, bias = operands_of(spec)
    plan = get_backend("winograd").plan(spec, threads=2)
    weights = plan.prepare(w)
    wanted = plan(x, weights, bias)
    out = in_memory(np.full(spec.output_shape, np.nan, spec.dtype), written)
    view = in_memory(x, read)
    view.setflags(write=False)
    assert plan(view, weights, bias, out=out) is out
    np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("together", [0, 1, 2, 5])
@pytest.mark.parametrize(("block", "items"), [((1, 1, 1), 8), ((1, 1, 4), 13), ((1, 2, 7), 14), ((2, 7, 7), 9)])
def test_any_cut_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, block: tuple[int, int, int], items: int, together: int, threads: int
) -> None:
    spec = ConvSpec.parse("n2 c19 o50 i7x14x14 k3 p1 g1 f32")
    x, w, _ = operands_of(spec)
    shapes = (spec.batch, spec.groups, -1, *x.shape[2:]), (spec.groups, *w.shape)

    def result(change: Any) -> Array:
        monkeypatch.setattr(winograd_fused, "cut_of", lambda *asked: (change(cut_of(*asked)[0]), 0.0))
        algorithm = winograd_fused.FusedWinograd(numpy_namespace(), spec, threads)
        out = np.full((spec.batch, 1, *spec.output_shape[1:]), np.nan, spec.dtype)
        algorithm.run(x.reshape(shapes[0]), algorithm.prepare(w.reshape(shapes[1]))[0], None, out)
        return out

    def changed(cut: Cut) -> Cut:
        sizes = tuple(min(size, count) for size, count in zip(block, cut.tiles, strict=True))
        return replace(cut, block=sizes, items=min(items, cut.items), together=together)

    np.testing.assert_array_equal(result(changed), result(lambda cut: cut))


def test_tiles_keep_the_error_budget() -> None:
    for line in ("c64 o64 i224x224 k3 p1", "c8 o8 i30x30 k7 p3", "c16 o16 i20x20x20 k3 p1", "c4 o4 i9x9x9 k5 p2"):
        spec = ConvSpec.parse(f"{line} f32")
        assert growth(spec, choose_tiling(spec).outputs) <= MOST_AMPLIFICATION


def test_small_images_have_small_tiles() -> None:
    """F(4, 3) computes 16 × 16 outputs where 14 × 14 are wanted."""
    large, small = (ConvSpec.parse(f"c512 o512 {size} k3 p1 f32") for size in ("i56x56", "i14x14"))
    assert choose_tiling(large).outputs == (4, 4)
    assert prod(choose_tiling(small).outputs) < 16


def test_parts_of_an_axis_are_few() -> None:
    """All that there are of 256 tiles and fewer; never more than some hundreds."""
    for size in range(257):
        assert _equal_parts(size) == sorted({-(-size // parts) for parts in range(1, size + 1)} or {1})
    many = _equal_parts(10**9)
    assert many[0] == 1
    assert many[-1] == 10**9
    assert len(many) < 500


@pytest.mark.parametrize("line", ["i32x32 k3", "i32 k3 p1 bias=channel boundary=reflect", "i9x8x7 k3"])
def test_an_empty_batch_has_tiles_too(line: str) -> None:
    one, none = (ConvSpec.parse(f"{batch} c4 o4 {line} f32") for batch in ("n1", "n0"))
    assert choose_tiling(none) == choose_tiling(one)
    x, w, bias = operands_of(none)
    plan = get_backend("winograd").plan(none, threads=2)
    assert plan(x, plan.prepare(w), bias).shape == none.output_shape


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("line", ["i300000 k3 f32", "c16 o20 i60x70 k3 p1 f64"])
def test_memory_is_as_declared(line: str, threads: int) -> None:
    """Tables are longer than an image of one channel."""
    spec, backend = ConvSpec.parse(line), get_backend("winograd")
    x, w, _ = operands_of(spec)
    used, plan = measure_memory(backend, spec, x, w, threads=threads), backend.plan(spec, threads=threads)
    assert used.workspace_bytes <= plan.workspace_bytes + slack_bytes(spec, threads)
    assert used.prepared_bytes <= plan.prepared_bytes + slack_bytes(spec, threads)


def test_threads_share_the_outputs_of_a_single_block() -> None:
    spec = ConvSpec.parse("c512 o512 i14x14 k3 p1 f32")
    assert cut_of(spec, (4, 2), 1, 16, 2, 14)[0].together == 0
    assert cut_of(spec, (4, 2), 2, 16, 2, 14)[0].together > 0


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("c4 o4 i9x9 k1 f32", "kernel size: one tap along every axis"),
        ("c4 o4 i9x9 k9 p4 f32", "kernel size: 9x9 given, at most 7 taps"),
        ("c4 o4 i9x9 k3 s2 f32", "stride: 2x2 given"),
        ("c4 o4 i9x9 k3 d2 f32", "dilation: 2x2 given"),
        ("op=weight_grad c4 o4 i9x9 k3 f32", "op: weight_grad given"),
        ("c4 o4 i9x9 k3 complex64", "dtype: complex64 given"),
    ],
)
def test_refusals(line: str, reason: str) -> None:
    said = get_backend("winograd").why_not(ConvSpec.parse(line))
    assert said is not None
    assert said.startswith(reason)
