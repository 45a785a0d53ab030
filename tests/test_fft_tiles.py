"""Compiled overlap-save: transforms of every length, tiles of every size, on every instruction set of this CPU."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from convbench import ConvSpec, get_backend, oracle
from convbench.algorithms import overlap_save
from convbench.algorithms.overlap_save import choose_tiles
from convbench.algorithms.tiling import reach_of
from convbench.backend import second_operand
from convbench.jit import pool
from convbench.jit.compile import compiled
from convbench.jit.fft import Line, factors, frequencies, twiddles
from convbench.jit.ir import Code
from convbench.jit.memory import address_of, aligned
from convbench.jit.target import VARIABLE, Target, host_target, targets
from convbench.memory import measure_memory, slack_bytes

TARGETS = list(targets())


def line_kernel(target: Target, dtype: str, n: int, what: str) -> str:
    """Return the IR of one transform in place."""
    code = Code(f"line_{what}", target, dtype, ["points", "twiddles"])
    line = Line(code, n, code.pointer("points"), code.pointer("twiddles"))
    if what == "through":
        line.through(lambda place, value: value, None, None)
    else:
        getattr(line, what)()
    return code.finish()


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("n", [2, 3, 5, 7, 8, 9, 12, 14, 16, 30, 48, 60, 80, 128])
def test_lines_are_transformed_and_back(n: int, name: str) -> None:
    """Every radix, against NumPy; each lane by itself."""
    target, dtype = targets()[name], "float64"
    lanes, rng = target.lanes(dtype), np.random.default_rng(n)
    points = aligned((n, 2, lanes), dtype)
    points[...] = rng.standard_normal(points.shape)
    given, table = points.copy(), twiddles(n, target.registers).astype(dtype)
    spectrum = np.fft.fft(given[:, 0] + 1j * given[:, 1], axis=0)

    def run(what: str) -> None:
        kernel = compiled(line_kernel(target, dtype, n, what), f"line_{what}", target)
        pool.run(kernel, [address_of(points), address_of(table)], 1, 1)

    run("forward")
    order = frequencies(n, target.registers)
    np.testing.assert_allclose(points[:, 0] + 1j * points[:, 1], spectrum[order], atol=1e-12 * n)
    run("back")
    np.testing.assert_allclose(points, n * given, atol=1e-12 * n)
    run("through")
    np.testing.assert_allclose(points, n * n * given, atol=1e-11 * n * n)


def test_factors_multiply_up() -> None:
    for n in overlap_save._SIZES:
        for registers in (16, 32):
            assert np.prod(factors(n, registers)) == n
            assert sorted(frequencies(n, registers)) == list(range(n))
    with pytest.raises(ValueError, match="11"):
        factors(11)


LINES = [
    "n2 c2 o2 g2 i37x41 k9x7 p4 f32",
    "i70x66 k5 d2x3 s1x2 p3 f64 boundary=reflect",
    "c3 o5 i40x44 k9 p4 f32 bias=channel",
    "n3 c4 o6 g2 i50 k17 p8 f64 flip",
    "i3000 k129 psame f32 boundary=circular",
    "c2 o3 i700 k40 s3 p20 f32 boundary=replicate",
    "op=input_grad c2 o3 i40x30 k9 p4 f32",
    "op=weight_grad n2 c3 o2 i40x30 k9 p4 f64",
    "i9 k9 pfull f32",
]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("text", LINES)
def test_results_are_right(text: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strided operands and results too, on one thread and on several."""
    monkeypatch.setenv(VARIABLE, name)
    backend, spec = get_backend("fft-tiled"), ConvSpec.parse(text)
    assert name in backend.implementation
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(shape).astype(spec.dtype) for shape in spec.operand_shapes)
    bias = None if spec.bias_shape is None else rng.standard_normal(spec.bias_shape).astype(spec.dtype)
    truth = oracle.Truth(spec, first, second, bias)
    spread = np.empty((*first.shape[:-1], 2 * first.shape[-1]), spec.dtype)[..., ::-2]
    spread[...] = first
    out = np.empty(spec.result_shape[::-1], spec.dtype).T
    for threads, x in ((1, first), (3, spread)):
        plan = backend.plan(spec, threads=threads)
        found = plan(x, second_operand(plan, second), bias, out=out)
        assert truth.judge(found, backend.error_bound(spec)).ok


def test_one_tile_holds_an_image_whose_padding_overlaps() -> None:
    """56 samples under 31 taps are 86 positions, of which 15 zeros may lie on 15 others."""
    tiles = choose_tiles(ConvSpec.parse("c8 o8 g8 i56x56 k31 p15 f32"), host_target())
    assert tiles is not None
    assert tiles.outputs == (56, 56)
    assert max(tiles.size) < 86


def test_a_loud_tile_leaves_its_neighbours_alone() -> None:
    """Tiles share no transform: neither rounding errors nor a NaN go further than the bound says."""
    spec = ConvSpec.parse("n2 i40000 k129 f32")
    backend = get_backend("fft-tiled")
    reach, *_ = backend.error_bound(spec).reach or ()
    plan = backend.plan(spec, threads=1)
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype("f4") for shape in spec.operand_shapes)
    quiet = plan(x, plan.prepare(w)).copy()
    x[0, 0, :100] *= 1e20
    x[1, 0, -1] = np.nan
    loud = plan(x, plan.prepare(w))
    np.testing.assert_array_equal(loud[0, 0, 100 + reach :], quiet[0, 0, 100 + reach :])
    np.testing.assert_array_equal(loud[1, 0, : -reach - 1], quiet[1, 0, : -reach - 1])


@pytest.mark.parametrize("text", ["i200x180 k15 psame f32", "n2 c6 o10 i64x40 k9 p4 f32", "i20000 k200 f64"])
@pytest.mark.parametrize("threads", [1, 3])
def test_memory_is_as_declared(text: str, threads: int) -> None:
    spec, backend = ConvSpec.parse(text), get_backend("fft-tiled")
    x, w = (np.ones(shape, spec.dtype) for shape in spec.operand_shapes)
    used, plan = measure_memory(backend, spec, x, w, threads=threads), backend.plan(spec, threads=threads)
    assert used.workspace_bytes <= plan.workspace_bytes + slack_bytes(spec, threads)
    assert used.prepared_bytes <= plan.prepared_bytes + slack_bytes(spec, threads)


@pytest.mark.parametrize(
    "text",
    [
        "n0 i300000x4 k200000x1 f32",  # which no tile holds
        "n0 c2 o3 i30 k5 bias=channel f32",
        "op=input_grad n0 c2 o3 i30x20 k5 f32",
        "op=weight_grad n0 c2 o3 i30x20 k5 f32",
    ],
)
def test_an_empty_batch_has_a_result(text: str) -> None:
    spec, backend = ConvSpec.parse(text), get_backend("fft-tiled")
    first, second = (np.ones(shape, spec.dtype) for shape in spec.operand_shapes)
    bias = None if spec.bias_shape is None else np.ones(spec.bias_shape, spec.dtype)
    assert backend.why_not(spec) is None
    plan = backend.plan(spec, threads=2)
    found = plan(first, second_operand(plan, second), bias)
    assert found.shape == spec.result_shape
    assert not found.any()


def test_reach_is_that_of_the_tiles() -> None:
    spec = ConvSpec.parse("i1000x900 k31 psame f32")
    assert get_backend("fft-tiled").error_bound(spec).reach is not None
    assert reach_of(spec, overlap_save.choose_tiles(spec, host_target())) is not None  # type: ignore[arg-type]


def test_refusals() -> None:
    backend = get_backend("fft-tiled")
    for text, topic in (("i9 k3 complex64", "dtype"), ("i9x9x9 k3 f32", "axes")):
        assert str(backend.why_not(ConvSpec.parse(text))).startswith(topic)
