"""Tiled transform methods: Winograd's matrices are exact, tiles of any size give the same result, costs choose well."""

from __future__ import annotations

import warnings
from fractions import Fraction
from itertools import product
from math import prod
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convbench import ConvSpec, get_backend, oracle
from convbench.algorithms import fft_tiled, winograd
from convbench.algorithms.tiling import Tiling, cheapest_tiling, lowered_taps, reach_of
from convbench.arrays import numpy_namespace
from convbench.checks.specs import random_spec

#: Every F(m, r) that can be chosen.
FILTERS = [(t + 1 - r, r) for t in (4, 6, 8) for r in range(2, 8) if t + 1 - r >= 2]


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


def test_points_amplify_less_than_the_usual_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """F(4, 3): 0, ±⅔, ±³⁄₂ in float32 and 0, ±1, ½, −2 in float64 against 0, ±1, ±2."""
    chosen = {dtype: winograd.amplification(4, 3, dtype) for dtype in ("float32", "float64")}
    winograd.transforms.cache_clear()
    usual = tuple(map(Fraction, (0, 1, -1, 2, -2)))
    monkeypatch.setattr(winograd, "_points", lambda samples, dtype: usual)
    worse = winograd.amplification(4, 3, "float32")
    winograd.transforms.cache_clear()
    assert chosen == pytest.approx({"float32": 9.2, "float64": 11.0}, abs=0.05)
    assert worse == pytest.approx(19.5, abs=0.05)


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


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.data())
def test_tiles_of_any_size_give_the_definition(seed: int, data: st.DataObject) -> None:
    """Strides, dilations, groups, padding, last tiles that reach beyond the input: integers come out exact."""
    rng = np.random.default_rng(seed)
    spec = random_spec(rng, max_macs=20_000, common=True).replace(dtype="float64", bias="none")
    taps = lowered_taps(spec)
    outputs = tuple(1 if r == 1 else data.draw(st.integers(1, 9)) for r in taps)
    tiling = Tiling(outputs, tuple(m + r - 1 for m, r in zip(outputs, taps, strict=True)))
    x, w = (rng.integers(-4, 5, shape) for shape in (spec.input_shape, spec.weight_shape))
    expected = oracle.conv(spec.replace(dtype="int64"), x, w)

    with patch.object(fft_tiled, "choose_tiling", lambda spec: tiling):
        algorithm = fft_tiled.TiledFFT(numpy_namespace(), spec, 2)
    y = np.full(spec.output_shape, np.nan)
    algorithm.run(x.astype("f8"), algorithm.prepare(w.astype("f8"))[0], None, y)
    np.testing.assert_array_equal(np.rint(y), expected)


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
    reach = reach_of(spec, fft_tiled.choose_tiling(spec))[0]
    quiet = slice(2000 + reach, None)
    errors = {}
    for name in ("fft", "fft-tiled"):
        plan = get_backend(name).plan(spec, threads=1)
        y = plan(x, plan.prepare(w))
        errors[name] = float(np.abs(y - truth.y)[..., quiet].max() / np.abs(truth.y[..., quiet]).max())
    assert errors["fft-tiled"] < 1e-6
    assert errors["fft"] > 1e-3


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("i40 k9 f32", "kernel size: 9 given, at most 7 taps"),
        ("i40x40 k1 f32", "one tap along every axis"),
        ("i40x40 k3 complex64", "dtype: "),
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
    assert get_backend("fft-tiled").error_bound(spec).normwise > 0


def test_winograd_multiplies_less() -> None:
    """Executed FLOPs of 256 channels: transforms included, well below the nominal count, also at stride 2."""
    for line, most in (("c256 o256 i56x56 k3 p1", 0.4), ("c256 o256 i56x56 k3 p1 d2", 0.4), ("c64 o64 i48x48 k5", 0.3)):
        plan = get_backend("winograd-numpy").plan(ConvSpec.parse(line + " f32"), threads=1)
        assert plan.flops < most * plan.spec.flops
