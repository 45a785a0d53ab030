"""``direct-cupy``: each kernel and each way to divide its work, on the CPU, in whole numbers that leave no room."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cuda_cpu import ORDERS, Mode, compiler_problem, cuda_cpu_namespace, on_cpu

from convbench import ConvSpec, get_backend, oracle
from convbench.backend import second_operand
from convbench.checks import specs_to_try
from convbench.cuda import direct_lines, direct_planes, direct_tiles, direct_weights
from convbench.cuda.direct import direct, native, why_not
from convbench.cuda.direct_planes import Strip
from convbench.cuda.forward import C_TYPES
from convbench.cuda.kernel import Kernel, all_kernels
from convbench.cuda.tiles import SHARED_BYTES, Tile, threads_along

Array = np.ndarray[Any, Any]

needs_compiler = pytest.mark.skipif(compiler_problem() is not None, reason=str(compiler_problem()))

CHECKED = Mode("shuffled", check=True)

FORWARD = {
    "DirectTiles": (
        # windows of three and five rows, one at a time; more outputs than a block has, and not a multiple of a thread's
        "n2 c4 o9 i9x13 k3 p1 bias=channel f32",
        "c3 o70 i8x9 k5x2 p2 f16",
        "c3 o20 i17x17 k4x5 s2 p2 boundary=reflect f64",
        # rows six at a time: two windows of three; the same stride and dilation
        "c2 o6 i23x9 k6x3 s2x1 d2x1 p4 f32",
        "n3 c5 o16 i16x40 k3 s1x3 d2x2 p2 boundary=circular f32",
        # groups, flipped, slices, signals, kernels of one tap, channels beyond a chunk
        "n2 c6 o12 g2 i14x9 k7x3 p3x1 flip f16",
        "c3 o8 i5x6x7 k2x3x3 p1 s2x1x1 bias=channel f32",
        "n2 c17 o8 i230 k9 s2 p4 boundary=replicate f32",
        "n5 c33 o65 i7x7 k1 layout=channels_last bias=location f32",
    ),
    "DirectPlanes": (
        "n2 i40x70 k3 p1 bias=channel f32",
        "i50x70 k31x11 p15x5 boundary=circular flip f32",
        "n2 c6 o6 g6 i7x7 k7 p3 bias=channel f32",
        "n3 c5 o5 g5 i14x14 k9 p4 layout=channels_last f64",
        "c3 o3 g3 i20x20 k3 s2 d3 p1 f16",
        "c2 o4 i20x37 k5 s3 d3 p7 boundary=reflect f32",
        "c2 o2 i6x12x13 k3 p1 boundary=replicate f32",
        "o2 i7x12x13 k2x7x3 p2 s2x1x1 bias=location f32",
        "c2 o2 g2 i300 k33 s3 d2 p16 f32",
        "n0 i9x9 k3 f32",
    ),
    "DirectLines": (
        "i500 k65 p32 boundary=reflect f32",
        "n2 c3 o3 g3 i100 k16 bias=channel f64",
        "c2 i3000 k1100 p600 boundary=circular f32",
        "n3 c2 o3 i40 k5 p2 flip f16",
        "c4 o4 g4 i70 k33 p80 layout=channels_last bias=location f32",
    ),
    "DirectNaive": (
        "i3x30000 k3x2 d1x20000 p1x9999 boundary=circular f32",
        "n2 c2 o6 i20x20 k2 s1x9000 d1 p0:30x9000 bias=channel f64",
    ),
}

WEIGHTS = (
    # products of matrices: more than a tile of outputs, of columns; every boundary
    "op=weight_grad n2 c4 o9 i9x13 k3 p1 f32",
    "op=weight_grad n3 c8 o70 i7x9 k3 s2 p2 boundary=reflect f64",
    "op=weight_grad n2 c6 o18 g2 i14x9 k7x3 p3x1 flip boundary=circular f16",
    "op=weight_grad n2 c4 o8 i5x5x5 k2 d2 p1 boundary=replicate layout=channels_last f32",
    # planes: wide and narrow, windows of four and eight taps and a rest of them, one tap at a time
    "op=weight_grad n4 c6 o6 g6 i7x7 k7 p3 f32",
    "op=weight_grad i70x40 k11x3 p5 boundary=circular f64",
    "op=weight_grad c2 o2 i6x12x13 k3 p1 boundary=replicate flip f32",
    "op=weight_grad n2 c3 o3 g3 i20x21 k3 s2x3 d3x2 p1 f16",
    "op=weight_grad n2 c2 o2 g2 i300 k33 s3 d2 p16 f32",
    "op=weight_grad n5 c2 o4 g2 i33x9 k2x5 s2 d2 p3 layout=channels_last f32",
    "op=weight_grad n0 c3 o3 i9x9 k3 f32",
)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Forget tiles that were chosen under a test's hand."""
    yield
    for chosen in (direct_tiles.tile_of, direct_planes.strip_and_tile, direct_lines.tile_of, direct_weights.work_of):
        chosen.cache_clear()


def whole_numbers(spec: ConvSpec) -> tuple[Array, Array, Array | None]:
    """Return operands whose products and sums are exact, in whatever order they are formed, in float16 too."""
    rng = np.random.default_rng(0)
    high = 4 if spec.dtype != "float16" or spec.terms < 60 else 2

    def numbers(shape: tuple[int, ...]) -> Array:
        return rng.integers(-high, high, shape, endpoint=True).astype(spec.dtype)

    first, second = map(numbers, spec.operand_shapes)
    return first, second, None if spec.bias_shape is None else numbers(spec.bias_shape)


def exact(spec: ConvSpec) -> Array:
    """Return the oracle's result."""
    whole: Array = oracle.conv(spec, *whole_numbers(spec)).astype(spec.dtype)
    return whole


def result(spec: ConvSpec, mode: Mode = CHECKED) -> Array:
    """Return what the kernels make of the same operands."""
    plan = on_cpu(get_backend("direct-cupy"), mode).plan(spec)
    first, second, bias = whole_numbers(spec)
    y: Array = plan(first, second_operand(plan, second), bias)
    return y


@needs_compiler
@pytest.mark.parametrize(("name", "line"), [(name, line) for name, lines in FORWARD.items() for line in lines])
def test_forward(name: str, line: str) -> None:
    spec = ConvSpec.parse(line)
    assert type(direct(cuda_cpu_namespace(CHECKED), spec, 1)).__name__ == name
    np.testing.assert_array_equal(result(spec), exact(spec))


@needs_compiler
@pytest.mark.parametrize("line", WEIGHTS)
def test_weight_gradients(line: str) -> None:
    spec = ConvSpec.parse(line)
    assert native(spec)
    np.testing.assert_array_equal(result(spec), exact(spec))


@needs_compiler
@pytest.mark.parametrize("line", ["op=input_grad n2 c6 o20 i9x8 k3 s2 p1 f16", "c2 o8 i9x9 k3 t2 p1 bias=tile f16"])
def test_what_is_rewritten_is_added_up_in_wide_numbers(line: str) -> None:
    spec = ConvSpec.parse(line)
    assert not native(spec)
    np.testing.assert_array_equal(result(spec), exact(spec))


@needs_compiler
@pytest.mark.parametrize(("dtype", "strip"), [(d, s) for d, strips in direct_planes._BY_DTYPE.items() for s in strips])
def test_every_strip(strip: Strip, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_planes, "_strips", lambda spec: [strip])
    rows = 15 if strip.taps == 8 else max(3, strip.taps)  # 8 + 4 + 2 + 1
    for line in (f"n2 c2 o2 g2 i21x19 k{rows}x2 p2", f"i7x19x18 k{3 if strip.depths > 1 else 2}x{rows}x2 p2"):
        spec = ConvSpec.parse(line).replace(dtype=dtype)
        np.testing.assert_array_equal(result(spec), exact(spec))


@needs_compiler
@pytest.mark.parametrize("splits", [1, 2, 4])
def test_channels_shared_among_blocks(splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def only(tile: Tile) -> Iterator[Tile]:
        yield replace(tile, splits=splits)

    monkeypatch.setattr(direct_tiles, "_splits", only)
    for line in ("n2 c37 o12 i9x9 k3 p1 bias=channel f16", "c20 o8 i5x6x7 k3 p1 bias=location f32"):
        spec = ConvSpec.parse(line)
        assert (on_cpu(get_backend("direct-cupy")).plan(spec).workspace_bytes > 0) == (splits > 1)
        np.testing.assert_array_equal(result(spec), exact(spec))


def _every_way(threads: int, columns: tuple[int, ...], outputs: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(threads_along((threads,), columns, outputs))


@needs_compiler
@pytest.mark.parametrize(
    ("module", "name", "ways", "line"),
    [
        (direct_tiles, "tile_of", _every_way(128, (8, 16, 32), (1, 4, 16))[::3], "n3 c3 o40 i16x19 k3 p1 f32"),
        (direct_tiles, "tile_of", _every_way(256, (8, 32), (2, 8))[::3], "n3 c3 o20 i300 k3 s2 p1 f32"),
        (direct_planes, "strip_and_tile", _every_way(128, (8, 16, 32, 128), (1,))[::3], "n2 c4 o4 g4 i19x37 k3 p1 f32"),
        (direct_lines, "tile_of", _every_way(128, (8, 16, 32, 64, 128), (1,)), "n3 c3 o3 g3 i300 k20 p9 f32"),
    ],
)  # fmt: skip
def test_every_way_to_put_threads_up(
    module: Any, name: str, ways: list[tuple[int, ...]], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ConvSpec.parse(line)
    expected, tried = exact(spec), 0
    for way in ways:
        monkeypatch.setattr(module, "threads_along", lambda *_, way=way: iter([way]))
        getattr(module, name).cache_clear()
        if getattr(module, name)(spec) is not None:  # else more planes than there are
            np.testing.assert_array_equal(result(spec, Mode("backward")), expected)
            tried += 1
    assert tried >= 3


@needs_compiler
@pytest.mark.parametrize("line", [lines[2] for lines in list(FORWARD.values())[:3]] + [WEIGHTS[0], WEIGHTS[6]])
def test_order_of_threads_makes_no_difference(line: str) -> None:
    spec = ConvSpec.parse(line)
    rng, shapes, results = np.random.default_rng(1), (*spec.operand_shapes, spec.bias_shape), []
    first, second, bias = (None if s is None else rng.standard_normal(s).astype(spec.dtype) for s in shapes)
    for order in ORDERS:
        plan = on_cpu(get_backend("direct-cupy"), Mode(order)).plan(spec)
        results.append(plan(first, second_operand(plan, second), bias))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@needs_compiler
def test_samples_between_strides_are_never_multiplied() -> None:
    spec = ConvSpec.parse("op=weight_grad n2 c2 o2 g2 i11x13 k3 s2x3 f32")  # the last column meets no tap
    x, g, _ = whole_numbers(spec)
    finite = result(spec)
    x[..., -1] = np.nan
    plan = on_cpu(get_backend("direct-cupy")).plan(spec)
    np.testing.assert_array_equal(plan(x, g), finite)


def test_every_launch_is_of_a_listed_kernel() -> None:
    listed, asked = set(all_kernels()), set()

    def record(kernel: Kernel) -> Callable[..., None]:
        asked.add(kernel)
        return lambda grid, arguments: None

    ns = replace(cuda_cpu_namespace(), kernels=record)
    large = ("n16 c512 o512 i7x7 k3 p1", "n16 c64 o64 g64 i56x56 k31 p15", "i2160x3840 k7 psame", "i480000 k1025")
    specs = [ConvSpec.parse(line) for line in large] + specs_to_try(200, 7)
    for spec in specs:
        if spec.dtype in C_TYPES and spec.ndim <= 3 and native(spec) and 0 not in spec.result_shape:
            direct(ns, spec, 1)
    assert len(asked) > 30
    assert asked <= listed
    assert {kernel.shared_bytes for kernel in asked} <= {0, *SHARED_BYTES}


@pytest.mark.parametrize("line", ["c40 o8 i5x6x7 k3 p1 f64", "op=weight_grad n2 c8 o70 i20x20 k3 f32", "i900 k65 f32"])
def test_a_run_allocates_what_is_declared(line: str) -> None:
    """Launches do nothing here: those on the CPU copy all their arguments, which no device does."""
    ns, spec = replace(cuda_cpu_namespace(), kernels=lambda kernel: lambda grid, arguments: None), ConvSpec.parse(line)
    plan = replace(on_cpu(get_backend("direct-cupy")), ns=lambda: ns).plan(spec)
    first, second = (np.ones(shape, spec.dtype) for shape in spec.operand_shapes)
    out, weights = np.empty(spec.result_shape, spec.dtype), second_operand(plan, second)
    plan(first, weights, None, out)
    tracemalloc.start()
    plan(first, weights, None, out)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0 <= most - plan.workspace_bytes < 2048


def test_places_beyond_32_bits_are_refused() -> None:
    assert why_not(ConvSpec.parse("c3 o8 i64x64 k3 p1 f32")) is None
    assert "outputs an image" in str(why_not(ConvSpec.parse("o3 i40000x40000 k1 f32")))
    assert str(why_not(ConvSpec.parse("i4000000000 k2 d3999999990 f32"))).startswith("dilation: ")
