"""``im2col-…-cupy``: every tile, splits of the rows k, bands of columns, operands that are rounded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cuda_cpu import Mode, compiler_problem, cpu_kernels, on_cpu
from cupy_guard import guarded_namespace, unwrapped

from convbench import ConvSpec, bounds, check_backend, get_backend
from convbench.cuda import implicit_gemm, implicit_gemm_tc, unfold
from convbench.cuda.implicit_gemm import few_channels, tap_table, why_not
from convbench.cuda.implicit_gemm_tc import BFLOAT16, FLOAT16, TF32, Operands, TensorGemm
from convbench.cuda.kernel import Kernel
from convbench.cuda.splitting import Cut, Product, Tile, cheapest
from convbench.oracle import Truth

needs_compiler = pytest.mark.skipif(compiler_problem() is not None, reason=str(compiler_problem()))

ON_TENSOR_CORES = {"im2col-tf32-cupy": TF32, "im2col-bf16-cupy": BFLOAT16, "im2col-f16-cupy": FLOAT16}
NAMES = ("im2col-cupy", "im2col-full-cupy", *ON_TENSOR_CORES)

#: More outputs and columns than one tile has, by kind.
BEYOND_A_TILE = {
    "many": (
        "n2 c8 o131 i9x10 k3x2 p1 bias=channel",
        "c15 o5 i5x6x7 k3x2x2 p1 d1x2x1",
        "c14 o17 i11x13 k2x3 s2x1 p2:1 boundary=reflect flip layout=channels_last bias=location",
    ),
    "few": (
        "n2 c3 o66 i8x10 k3x4 s1x2 p2 d2x1 flip bias=channel",
        "n2 c6 o4 i5x6x7 k2x3x2 g2 p1 boundary=circular layout=channels_last",
    ),
    "weights": (
        "op=weight_grad n3 c8 o130 i7x5 k3 p1 flip",
        "op=weight_grad n2 c6 o4 i9x8 k3x2 s2x1 p2 d1x2 g2 boundary=replicate layout=channels_last",
        "op=weight_grad c2 o3 i4x3x1 k2x1x3 p1",
    ),
}

Choose = Callable[[Product, Sequence[tuple[Tile, Kernel]]], tuple[Tile, Kernel, Cut]]


def only(number: int, splits: int = 1) -> Choose:
    """Return what takes the place of ``cheapest``: always the tile of that number, and so many splits."""

    def choose(product: Product, choices: Sequence[tuple[Tile, Kernel]]) -> tuple[Tile, Kernel, Cut]:
        tile, kernel = choices[number]
        return tile, kernel, Cut.of(product, tile, splits)

    return choose


def verdict_of(name: str, line: str, mode: Mode | None = None) -> tuple[bool, str, Any]:
    """Run Gaussian data: is the result within the backend's bound? What is said of it, and the result."""
    spec = ConvSpec.parse(line)
    backend: Any = get_backend(name)
    rng = np.random.default_rng(5)
    shapes = (*spec.operand_shapes, spec.bias_shape)
    first, second, bias = (rng.standard_normal(s).astype(spec.dtype) if s is not None else None for s in shapes)
    assert first is not None
    assert second is not None
    if spec.layout == "channels_last":
        first = np.moveaxis(np.ascontiguousarray(np.moveaxis(first, 1, -1)), -1, 1)
    plan = on_cpu(backend, mode).plan(spec)
    y = plan(first, second if spec.op == "weight_grad" else plan.prepare(second), bias)
    verdict = Truth(spec, first, second, bias).judge(y, backend.error_bound(spec))
    return verdict.ok, verdict.message, y


def cases() -> Sequence[Any]:
    """Return each kind of product, dtype and number of a tile."""
    return [
        pytest.param(kind, dtype, number, id=f"{kind}-{dtype}-{number}")
        for kind, (single, double) in implicit_gemm._SHAPES.items()
        for dtype in ("float32", "float64", "float16")
        for number in range(len(double if dtype == "float64" else single))
    ]


@needs_compiler
@pytest.mark.parametrize(("kind", "dtype", "number"), cases())
def test_every_tile_of_every_kind(kind: str, dtype: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for splits in (1, 3):
        monkeypatch.setattr(implicit_gemm, "cheapest", only(number, splits))
        for line in BEYOND_A_TILE[kind]:
            ok, message, _ = verdict_of("im2col-cupy", f"{line} {dtype}")
            assert ok, f"{line}, {splits} splits: {message}"


@needs_compiler
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", list(ON_TENSOR_CORES))
def test_every_tile_on_tensor_cores(name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        "n2 c32 o131 i7x10 k2x3 p1 bias=channel",
        "n2 c60 o18 i6x7 k3x2 s2x1 p2:1 g2 boundary=reflect flip bias=location",
        "n2 c60 o20 i7x9 k2 p1 layout=channels_last bias=channel",
        "n2 c5 o66 i8x10 k3x4 s1x2 p2 d2x1 boundary=circular",
    )
    for splits in (1, 2):
        monkeypatch.setattr(implicit_gemm, "cheapest", only(number, splits))
        for line in lines:
            ok, message, _ = verdict_of(name, f"{line} {ON_TENSOR_CORES[name].dtype}")
            assert ok, f"{line}, {splits} splits: {message}"


@needs_compiler
@pytest.mark.parametrize("name", ["im2col-cupy", "im2col-tf32-cupy"])
def test_splits_race_with_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implicit_gemm, "cheapest", only(1, 2))
    for line in ("n2 c9 o5 i7x6 k3 p1 bias=channel f32", "n2 c32 o5 i5x6 k2 p1 layout=channels_last f32"):
        ok, message, y = verdict_of(name, line, Mode("shuffled", check=True))
        assert ok, message
        np.testing.assert_array_equal(y, verdict_of(name, line, Mode("backward"))[2])


@needs_compiler
@pytest.mark.parametrize("line", [
    "n3 c4 o7 i11x10 k3 p1 bias=channel f32",
    "n2 c6 o40 i9x8 k3x2 s2x1 p2 g2 boundary=reflect flip layout=channels_last bias=location f16",
    "c3 o5 i13 k4 f64",
    "op=weight_grad n3 c4 o34 i9x8 k3 p1 flip f32",
    "op=weight_grad n2 c4 o6 i9x8 k3 p1 g2 layout=channels_last f16",
])  # fmt: skip
@pytest.mark.parametrize("band_bytes", [1, 5000, 2**26])
def test_bands_of_columns(line: str, band_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfold, "BAND_BYTES", band_bytes)
    ok, message, _ = verdict_of("im2col-full-cupy", line)
    assert ok, message


@needs_compiler
@pytest.mark.parametrize("name", NAMES)
def test_battery_with_the_manners_of_cupy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    monkeypatch.setattr(cupy, "may_share_memory", lambda a, b: np.may_share_memory(unwrapped(a), unwrapped(b)))
    dtype = ON_TENSOR_CORES[name].dtype if name in ON_TENSOR_CORES else "float32"
    lines = (
        "n2 c3 o4 i9x8 k3 psame bias=channel",
        "c5 o2 i6x7 k3x2 s2x1 p1 layout=channels_last",
        "op=input_grad n2 c4 o2 i6x5 k3x2 s2x1 p2:1 g2 boundary=circular",
        "op=weight_grad n2 c2 o4 i8x7 k3x2 p1 g2",
    )
    backend: Any = replace(on_cpu(get_backend(name)), ns=lambda: guarded_namespace(cpu_kernels))
    results = check_backend(backend, specs=[ConvSpec.parse(f"{line} {dtype}") for line in lines], seed=3)
    assert [r.message for r in results if r.status == "failed"] == []
    assert sum(r.status == "passed" for r in results) > 40


# -- rounding -------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize(("name", "operands"), ON_TENSOR_CORES.items())
def test_operands_have_as_many_bits_as_they_say(name: str, operands: Operands) -> None:
    """1 + 2⁻ᵇ is kept as long as b bits behind the leading one are; 1 + 2⁻ᵇ⁻² never."""
    kept = operands.significant_bits - 1
    spec = ConvSpec.parse(f"c1 o1 i4 k1 {operands.dtype}")
    plan = on_cpu(get_backend(name)).plan(spec)
    x = np.array([[[1, 1 + 2.0**-kept, 1 + 2.0 ** -(kept + 2), -3]]], operands.dtype)
    y = plan(x, plan.prepare(np.ones((1, 1, 1), operands.dtype)))
    assert y[0, 0].tolist() == [1, 1 + 2.0**-kept, 1, -3]
    w = np.full((1, 1, 1), 1 + 2.0 ** -(kept + 2), operands.dtype)
    assert plan(x, plan.prepare(w))[0, 0, 0] == 1


@needs_compiler
@pytest.mark.parametrize("name", ["im2col-tf32-cupy", "im2col-bf16-cupy"])
def test_rounded_operands_break_the_bound_of_float32(name: str) -> None:
    line = "c32 o16 i12x12 k3 f32"
    spec = ConvSpec.parse(line)
    _, _, y = verdict_of(name, line)
    rng = np.random.default_rng(5)
    first, second = (rng.standard_normal(shape).astype("f4") for shape in spec.operand_shapes)
    assert not Truth(spec, first, second, None).judge(y, bounds.direct(spec)).ok


def test_bounds_on_tensor_cores() -> None:
    single, half = ConvSpec.parse("c64 o64 i9x9 k3 f32"), ConvSpec.parse("c64 o64 i9x9 k3 f16")
    tf32, bf16 = (bounds.tensor_core(single, bits).componentwise for bits in (11, 8))
    assert 2.0**13 < tf32 < 2.0**13 * 1.2  # 2·2⁻¹¹ in units of 2⁻²³, and the sums
    assert 2.0**16 < bf16 < 2.0**16 * 1.1
    f16 = bounds.tensor_core(half, 11).componentwise
    assert bounds.direct(half).componentwise < f16 < 2 * bounds.direct(half).componentwise
    assert bounds.tensor_core(single, 8).exact_on_integers


@needs_compiler
def test_weights_are_packed_as_operands() -> None:
    spec = ConvSpec.parse("c5 o3 i9 k2 flip f32")
    algorithm = TensorGemm(on_cpu(get_backend("im2col-bf16-cupy")).ns(), spec, 1, BFLOAT16)
    packed, _ = algorithm.prepare(np.arange(30, dtype="f4").reshape(1, 3, 5, 2))
    assert packed.dtype == np.uint16
    assert packed.nbytes == algorithm.prepared_bytes
    rows = (packed.reshape(64, 32).astype(np.uint32) << 16).view("f4")
    assert rows[1, :10].tolist() == [11, 13, 15, 17, 19, 10, 12, 14, 16, 18]  # (tap, channel), mirrored
    assert not rows[1, 10:].any()
    assert not rows[3:].any()


# -- choices --------------------------------------------------------------------------------------------------


def test_few_channels() -> None:
    assert [few_channels(ConvSpec.parse(f"c{c} i9 k3 f32"), 8) for c in (1, 3, 6, 7, 8, 9, 12, 13, 64)] == [
        True, True, True, False, False, True, True, False, False,
    ]  # fmt: skip


def test_tap_table_fills_up_whole_tiles() -> None:
    table = tap_table(ConvSpec.parse("c6 g2 o2 i9x9x9 k2x1x3 d3x1x2 f32"), 8)
    assert table.shape == (24, 4)
    assert table[:18, 0].tolist() == [0, 1, 2] * 6
    assert table[3].tolist() == [0, 0, 0, 2]
    assert table[17].tolist() == [2, 3, 0, 4]
    assert set(table[18:, 0].tolist()) == {-1}


def test_tiles_and_splits_follow_the_problem() -> None:
    tiles = [(shape, shape.outputs) for shape in implicit_gemm._SHAPES["many"][0]]
    large = cheapest(Product(1, 256, 16 * 56 * 56, 9 * 256, 4), tiles)
    assert (large[0].outputs, large[2].splits) == (128, 1)
    narrow = cheapest(Product(1, 8, 16 * 56 * 56, 9 * 64, 4), tiles)
    assert (narrow[0].outputs, narrow[2].splits) == (16, 1)
    deep = cheapest(Product(1, 512, 49, 9 * 512, 4), tiles)
    assert deep[2].splits > 1
    assert deep[2].per_outputs * deep[2].per_columns * deep[2].splits >= 64
    tiny = cheapest(Product(1, 1, 1, 1, 4), tiles)
    assert tiny[2] == Cut(1, 1, 1, 1)


@needs_compiler
@pytest.mark.parametrize("name", ["im2col-cupy", "im2col-tf32-cupy"])
def test_deep_products_are_split_and_say_so(name: str) -> None:
    spec = ConvSpec.parse("c512 o512 i7x7 k3 p1 f32")
    plan = on_cpu(get_backend(name)).plan(spec)
    assert plan.workspace_bytes >= 2 * 512 * 49 * 4
    assert plan.flops >= spec.flops


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "less than 2^31" in str(why_not(ConvSpec.parse("n40000 i256x256 k3 p1 f32")))
    assert why_not(ConvSpec.parse("n128 c64 o64 i224x224 k3 p1 f32")) is None
    spec = ConvSpec.parse("i9 k3 f32")
    monkeypatch.delenv("CUPY_TF32", raising=False)
    assert unfold.why_not(spec) is None
    monkeypatch.setenv("CUPY_TF32", "1")
    assert str(unfold.why_not(spec)).startswith("dtype: CUPY_TF32 is set")
    assert unfold.why_not(spec.replace(dtype="float64")) is None
    for name, operands in ON_TENSOR_CORES.items():
        other = {"float32": "float16", "float16": "float32"}[operands.dtype]
        backend: Any = get_backend(name)
        assert str(on_cpu(backend).why_not(spec.replace(dtype=other))).startswith("dtype: ")


def test_tensor_cores_are_never_used_by_other_names() -> None:
    assert {kernel.tensor_cores for kernel in implicit_gemm.KERNELS} == {False}
    multiplying = [k for k in implicit_gemm_tc.KERNELS if k.instance.startswith("implicit_gemm_tc")]
    assert len(multiplying) == 12
    assert all(kernel.tensor_cores for kernel in multiplying)
