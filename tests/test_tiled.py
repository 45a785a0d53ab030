"""Tiled transform methods: Winograd's matrices are exact, tiles of any size give the same result, costs choose well."""

from __future__ import annotations

import os
import threading
import warnings
from fractions import Fraction
from itertools import product
from math import prod
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convbench import AlgorithmBackend, ConvSpec, get_backend, oracle
from convbench import transforms as transforms_module
from convbench.algorithms import fft_tiled, winograd
from convbench.algorithms import tiling as tiling_module
from convbench.algorithms.tiling import Tiling, cheapest_tiling, does_itself, lowered_taps, reach_of
from convbench.backend import second_operand
from convbench.checks import check_backend
from convbench.checks.specs import random_spec
from convbench.geometry import BOUNDARIES
from convbench.memory import measure_memory, slack_bytes
from convbench.refusals import WHOLE_FAMILY

#: Every F(m, r) that can be chosen.
FILTERS = [(t + 1 - r, r) for t in (4, 6, 8) for r in range(2, 8) if t + 1 - r >= 2] + [(1, r) for r in range(2, 8)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("outputs", "taps"), FILTERS)
def test_minimal_filtering_is_exact_in_fractions(outputs: int, taps: int, dtype: str) -> None:
    """y_i = Σ_k x_{i+k} w_k, without any error, for every unit sample and unit tap: the map is bilinear."""
    f = winograd.transforms(outputs, taps, dtype)
    samples = outputs + taps - 1
    for j, k in product(range(samples), range(taps)):
        values = [b[j] * g[k] for b, g in zip(f.b, f.g, strict=True)]
        y = [sum(a[i] * v for a, v in zip(f.a, values, strict=True)) / f.scale for i in range(outputs)]
        assert y == [Fraction(int(i + k == j)) for i in range(outputs)]
    assert all(value.denominator == 1 for matrix in (f.a, f.b, f.g) for row in matrix for value in row)


def forget() -> None:
    """Let matrices be worked out anew."""
    winograd.transforms.cache_clear()
    winograd.amplification.cache_clear()


def test_points_amplify_less_than_the_usual_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """F(4, 3): 0, ±⅔, ±³⁄₂ in float32 and 0, ±1, ½, −2 in float64 against 0, ±1, ±2."""
    chosen = {dtype: winograd.amplification(4, 3, dtype) for dtype in ("float32", "float64")}
    forget()
    usual = tuple(map(Fraction, (0, 1, -1, 2, -2)))
    monkeypatch.setattr(winograd, "_points", lambda samples, dtype: usual)
    worse = winograd.amplification(4, 3, "float32")
    forget()
    assert chosen == pytest.approx({"float32": 9.2, "float64": 11.0}, abs=0.05)
    assert worse == pytest.approx(19.5, abs=0.05)


@pytest.mark.parametrize("op", ["forward", "weight_grad"])
def test_two_axes_never_amplify_too_much(op: str) -> None:
    """So that the limit changes what is chosen along three axes only."""
    worst = max(winograd.amplification(m, r, "float32", op) for m, r in FILTERS)
    assert worst**2 < winograd.MOST_AMPLIFICATION < 1.02 * worst**2


@pytest.mark.parametrize("op", ["forward", "weight_grad"])
@pytest.mark.parametrize("kernel", ["2", "3", "4", "5", "2x5x6", "3x7x7"])
def test_tiles_along_three_axes_keep_enough_digits(kernel: str, op: str) -> None:
    spec = ConvSpec.parse(f"op={op} c4 o4 i32x32x32 k{kernel} p1 f32")
    outputs, taps = winograd.choose_tiling(spec).outputs, lowered_taps(spec)
    found = np.prod([winograd.amplification(m, r, "float32", op) for m, r in zip(outputs, taps, strict=True)])
    assert found <= winograd.MOST_AMPLIFICATION
    assert max(outputs) > 1
    assert set(winograd.choose_tiling(spec.replace(dtype="float64")).outputs) != {1}


def test_seven_taps_along_three_axes_are_refused_in_single_precision() -> None:
    backend, spec = get_backend("winograd-numpy"), ConvSpec.parse("i9x9x9 k7 f32")
    assert backend.why_not(spec) == (
        "kernel size: 7x7x7 given: tiles of several outputs lose too many digits in float32"
    )
    assert backend.why_not(spec.replace(dtype="float64")) is None
    assert backend.why_not(spec.replace(kernel_size=(1, 7, 7))) is None


@pytest.mark.parametrize(
    "line",
    [
        "op=input_grad n3 c1 o1 i5x3x8 k3x4x2 s3x4x3 p5:-1x5:-2x3:0 t2x2x3 boundary=replicate flip f32",
        "op=input_grad n3 c1 o1 i5x3x8 k3x4x2 s3x4x3 p5:-1x5:-2x3:0 t2x2x3 boundary=replicate flip bias=channel f32",
        "n1 c2 o3 i9x8x10 k5 p2 boundary=replicate f32",
        "op=weight_grad n2 c4 o2 i12x7x9 k3x7x7 p2 boundary=circular f32",
    ],
)
def test_bound_along_three_axes_tells_integers_apart(line: str) -> None:
    results = check_backend("winograd-numpy", specs=[ConvSpec.parse(line)])
    found = {result.check: result for result in results}["small-integers-are-exact"]
    assert found.status == "passed", found.message


@pytest.mark.parametrize(("outputs", "taps"), [(2, 3), (4, 3), (6, 3), (4, 5), (2, 7)])
def test_integers_come_out_bit_for_bit_in_float64(outputs: int, taps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 channels of bytes, as large as F(6, 3) in two axes allows: every intermediate stays below 2⁵³."""
    monkeypatch.setattr(winograd, "_choices", lambda r: (outputs,))
    spec = ConvSpec(input_size=(19, 23), kernel_size=taps, in_channels=64, out_channels=3, padding=1, dtype="float64")
    rng = np.random.default_rng(outputs * 10 + taps)
    x, w = (rng.integers(-127, 128, shape) for shape in (spec.input_shape, spec.weight_shape))
    plan = get_backend("winograd-numpy").plan(spec, threads=1)
    y = plan(x.astype("f8"), plan.prepare(w.astype("f8")))
    assert winograd.choose_tiling(spec).outputs == (outputs, outputs)
    np.testing.assert_array_equal(y, oracle.conv(spec.replace(dtype="int64"), x, w))


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32 - 1), st.data())
def test_tiles_of_any_size_give_the_definition(seed: int, data: st.DataObject) -> None:
    """Strides, dilations, groups, boundaries, last tiles that reach beyond the input: integers come out exact."""
    rng = np.random.default_rng(seed)
    spec = random_spec(rng, max_macs=20_000, common=True).replace(dtype="float64", bias="none")
    op = data.draw(st.sampled_from(("forward", "weight_grad")))
    spec = spec.replace(op=op, boundary=data.draw(st.sampled_from(BOUNDARIES)))
    taps = lowered_taps(spec)
    outputs = tuple(1 if r == 1 else data.draw(st.integers(1, 9)) for r in taps)
    tiling = Tiling(outputs, tuple(m + r - 1 for m, r in zip(outputs, taps, strict=True)))
    first, second = (rng.integers(-4, 5, shape) for shape in spec.operand_shapes)
    expected = oracle.conv(spec.replace(dtype="int64"), first, second)

    backend = AlgorithmBackend(name="tiles", algorithm=fft_tiled.TiledFFT, native=does_itself, limits=WHOLE_FAMILY)
    with patch.object(fft_tiled, "choose_tiling", lambda spec: tiling):
        plan = backend.plan(spec, threads=2)
    first, second = first.astype("f8"), second.astype("f8")
    out = np.full(spec.result_shape, np.nan)
    plan(first, second_operand(plan, second), out=out)
    np.testing.assert_array_equal(np.rint(out), expected)


@pytest.mark.parametrize(("outputs", "taps"), FILTERS)
def test_weight_gradient_of_minimal_filtering_is_exact_in_fractions(outputs: int, taps: int) -> None:
    """∂J/∂w_k = Σ_i x_{i+k} g_i by the same matrices, transposed."""
    f = winograd.transforms(outputs, taps, "float32")
    samples = outputs + taps - 1
    for j, i in product(range(samples), range(outputs)):
        values = [b[j] * a[i] for b, a in zip(f.b, f.a, strict=True)]
        dw = [sum(g[k] * v for g, v in zip(f.g, values, strict=True)) / f.scale for k in range(taps)]
        assert dw == [Fraction(int(i + k == j)) for k in range(taps)]


@pytest.mark.parametrize(
    "line", ["n3 c5 o4 i40x37 k3 p1 g1 f32", "c4 o2 i90 k5 s2 p2 g2 complex64", "n2 i70x50 k5 f32"]
)
@pytest.mark.parametrize("name", ["fft-tiled-numpy", "winograd-numpy"])
def test_threads_sum_a_weight_gradient_in_a_fixed_order(name: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with a sum of its own, or sharing the frequencies of one: right, and the same bits every time."""
    backend = get_backend(name)
    if backend.unavailable():
        pytest.skip(f"{name}: {backend.unavailable()}")
    spec = ConvSpec.parse(line).replace(op="weight_grad")
    rng = np.random.default_rng(0)
    x, g = (rng.integers(-3, 4, shape).astype(spec.dtype) for shape in spec.operand_shapes)
    truth = oracle.Truth(spec, x, g)
    monkeypatch.setattr(tiling_module, "_CACHE_BYTES", 2**12)  # several blocks
    monkeypatch.setattr(tiling_module.TileCost, "least_tiles", 1)
    for own in (tiling_module._OWN_SUMS_BYTES, 0):
        monkeypatch.setattr(tiling_module, "_OWN_SUMS_BYTES", own)
        for threads in (1, 2, 3):
            plan = backend.plan(spec, threads=threads)
            found = [plan(x, g) for _ in range(5)]
            assert all(np.array_equal(found[0], other) for other in found)
            assert truth.judge(found[0], backend.error_bound(spec)).ok


@pytest.mark.parametrize("name", ["fft", "fft-pocketfft", "fft-tiled", "fft-tiled-numpy", "winograd-numpy"])
@pytest.mark.parametrize("line", ["n4 c8 o8 i64x64 k5 psame f32", "n2 c6 o4 i40x60 k5 s2 p2 g2 complex64"])
@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
def test_gradients_take_the_memory_that_they_declare(name: str, line: str, op: str) -> None:
    """g may be as large as the input: it is never copied but into the transforms' buffers."""
    backend, spec = get_backend(name), ConvSpec.parse(line).replace(op=op)
    if backend.why_not(spec):
        pytest.skip(f"{name}: {backend.why_not(spec)}")
    first, second = (np.ones(shape, spec.dtype) for shape in spec.operand_shapes)
    for threads in (1, 2):
        used = measure_memory(backend, spec, first, second, threads=threads).workspace_bytes
        assert used <= backend.plan(spec, threads=threads).workspace_bytes + slack_bytes(spec, threads)


def test_tiled_weight_gradient_costs_what_the_forward_operation_does() -> None:
    """One transform back of the sum, not one a tile."""
    pytest.importorskip("pyfftw")
    for line in ("n8 c16 o16 i64x64 k9 psame f32", "i1000000 k1025 psame f32", "n4 c16 o32 i64x64 k5 s2 p2 f32"):
        spec = ConvSpec.parse(line)
        forward, gradient = (
            get_backend("fft-tiled-numpy").plan(spec.replace(op=op), threads=1) for op in ("forward", "weight_grad")
        )
        assert gradient.flops <= 1.1 * forward.flops


@pytest.mark.parametrize(
    "line",
    [
        "i1024x1024 k31 psame",
        "i600x512 k5x3 psame",
        "n1 c64 o64 i56x56 k5 p2",
        "n1 c512 o512 i7x7 k3 p1",
        "c16 o32 i40x40 k7 s2 d1x3 p3",
    ],
)
def test_coordinate_descent_finds_nearly_the_cheapest_tiles(line: str) -> None:
    """Within 2 % of the best of all pairs of sizes."""
    spec = ConvSpec.parse(line + " f32")
    taps = lowered_taps(spec)
    choices = fft_tiled._choices(spec)
    cost = fft_tiled._cost(spec)
    costs = [
        cost.of(spec, Tiling(pair, tuple(m + r - 1 for m, r in zip(pair, taps, strict=True))))
        for pair in product(*choices)
    ]
    assert cost.of(spec, cheapest_tiling(spec, choices, cost)) <= 1.02 * min(costs)


def test_small_problems_get_one_tile_and_large_ones_many() -> None:
    one = fft_tiled.choose_tiling(ConvSpec.parse("i4000 k900 f32"))
    assert one.outputs[0] >= 3101
    many = fft_tiled.choose_tiling(ConvSpec.parse("i1000000 k65 f32"))
    assert 2 * 65 < many.size[0] < 20_000
    # weights are read once a block: where there are many of them and few tiles, transforms are small
    deep, shallow = (fft_tiled.choose_tiling(ConvSpec.parse(f"c{c} o{c} i28x28 k3 p1 f32")) for c in (512, 4))
    assert prod(deep.size) < prod(shallow.size)


def test_an_error_stays_in_its_tile() -> None:
    """High dynamic range: quiet samples far from loud ones keep their digits, which one transform of all loses."""
    pytest.importorskip("pyfftw")
    spec = ConvSpec.parse("i65536 k65 f32")
    rng = np.random.default_rng(0)
    x = rng.standard_normal(spec.input_shape)
    x[..., 2000:] *= 1e-6
    x, w = x.astype("f4"), rng.standard_normal(spec.weight_shape).astype("f4")
    truth = oracle.Truth(spec, x, w)
    reach, *_ = reach_of(spec, fft_tiled.choose_tiling(spec)) or ()
    quiet = slice(2000 + reach, None)
    errors = {}
    for name in ("fft", "fft-tiled-numpy"):
        plan = get_backend(name).plan(spec, threads=1)
        y = plan(x, plan.prepare(w))
        errors[name] = float(np.abs(y - truth.y)[..., quiet].max() / np.abs(truth.y[..., quiet]).max())
    assert errors["fft-tiled-numpy"] < 1e-6
    assert errors["fft"] > 1e-3


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("i40 k9 f32", "kernel size: 9 given, at most 7 taps"),
        ("i40x40 k1 f32", "one tap along every axis"),
        ("i40x40 k3 int8", "dtype: "),
        ("op=input_grad i40x40 k9 f32", "kernel size: 9x9 given, at most 7 taps"),
        ("i9x9x9x9 k3 f32", "axes: "),
    ],
)
def test_winograd_refuses(line: str, part: str) -> None:
    assert part in str(get_backend("winograd-numpy").why_not(ConvSpec.parse(line)))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_lanes_without_a_tile_do_not_grow(threads: int) -> None:
    """Buffers are used again: what a call leaves in lanes that no tile fills must not be transformed once more."""
    plan = get_backend("winograd-numpy").plan(ConvSpec.parse("c3 o4 i67x61 k3 p1 f32"), threads=threads)
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype("f4") for shape in (plan.spec.input_shape, plan.spec.weight_shape))
    weights = plan.prepare(w)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = plan(x, weights)
        for _ in range(60):
            y = plan(x, weights)
    np.testing.assert_array_equal(y, first)


@pytest.mark.parametrize("line", ["c2 o2 i300000 k140000", "c2 o2 i150000 k131073 pfull", "i3000000 k2400000"])
def test_tiles_are_longer_than_any_kernel(line: str) -> None:
    spec = ConvSpec.parse(line + " f32")
    assert min(fft_tiled.choose_tiling(spec).outputs) > 0
    for name in ("fft-tiled", "fft-tiled-numpy"):
        assert get_backend(name).error_bound(spec).normwise > 0


def test_winograd_multiplies_less() -> None:
    """Executed FLOPs of 256 channels: transforms included, well below the nominal count, also at stride 2."""
    for line, most in (("c256 o256 i56x56 k3 p1", 0.4), ("c256 o256 i56x56 k3 p1 d2", 0.4), ("c64 o64 i48x48 k5", 0.3)):
        plan = get_backend("winograd-numpy").plan(ConvSpec.parse(line + " f32"), threads=1)
        assert plan.flops < most * plan.spec.flops


def test_measured_plans_are_kept_for_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFTW's wisdom; what is damaged is planned anew."""
    pyfftw = pytest.importorskip("pyfftw")
    monkeypatch.setenv("CONVBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(transforms_module, "_WORTH_KEEPING_S", 0.0)
    before = pyfftw.export_wisdom()
    try:
        pyfftw.forget_wisdom()
        transforms_module.fftw_transforms().pair((1,), (96, 80), "float32", 1)
        learnt = pyfftw.export_wisdom()
        pyfftw.forget_wisdom()
        transforms_module._recall_wisdom()
        assert sorted(pyfftw.export_wisdom()[1].split()) == sorted(learnt[1].split())
        for damaged in (b"", b"(nonsense", learnt[1][:100]):
            (tmp_path / "fftw" / "wisdom").write_bytes(damaged)
            transforms_module._recall_wisdom()
        transforms_module.fftw_transforms().pair((1,), (90, 80), "float32", 1)
        assert [file.name for file in (tmp_path / "fftw").iterdir()] == ["wisdom"]
        assert (tmp_path / "fftw" / "wisdom").stat().st_size > len(damaged)
    finally:
        pyfftw.forget_wisdom()
        pyfftw.import_wisdom(before)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="a folder's owner and mode")
def test_plans_are_not_taken_from_where_others_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor left there."""
    pyfftw = pytest.importorskip("pyfftw")
    monkeypatch.setenv("CONVBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(transforms_module, "_WORTH_KEEPING_S", 0.0)
    taken: list[object] = []
    monkeypatch.setattr(pyfftw, "import_wisdom", taken.append)
    wisdom = tmp_path / "fftw" / "wisdom"
    wisdom.parent.mkdir()
    for mode, kept in ((0o700, 1), (0o777, 0)):
        wisdom.parent.chmod(mode)
        wisdom.unlink(missing_ok=True)
        transforms_module.fftw_transforms().pair((1,), (10, 8), "float32", 1)
        assert wisdom.exists() == bool(kept)
        wisdom.write_bytes(b"\0".join(pyfftw.export_wisdom()))
        wisdom.chmod(0o600)
        taken.clear()
        transforms_module._recall_wisdom()
        assert len(taken) == kept


def test_nothing_is_left_of_plans_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyfftw")
    monkeypatch.setenv("CONVBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(transforms_module, "_WORTH_KEEPING_S", 0.0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    transforms_module.fftw_transforms().pair((1,), (10, 8), "float32", 1)
    assert not list((tmp_path / "fftw").iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_can_plan_while_its_parent_does() -> None:
    """No thread of the parent's has the lock when the child begins."""
    pytest.importorskip("pyfftw")
    transforms = transforms_module.fftw_transforms()
    over = threading.Event()

    def plan() -> None:
        while not over.is_set():
            transforms.pair((2,), (64, 48), "float32", 1)

    busy = threading.Thread(target=plan)
    busy.start()
    try:
        for _ in range(3):
            child = os.fork()
            if child == 0:
                free = transforms_module._fftw_lock.acquire(timeout=10)
                os._exit(0 if free else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        over.set()
        busy.join()
