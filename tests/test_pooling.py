"""Pooling: the definition, every backend through the battery, and the properties that hold of any pooling."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import convbench as cb
from convbench.checks import Check, CheckResult
from convbench.errors import SpecError, UnknownBackend, UnsupportedSpec
from convbench.pooling import oracle, reference
from convbench.pooling.backend import PoolFunction, PoolLimits, PoolRegistrant
from convbench.pooling.checks import (
    EDGE_LINES,
    LARGE_LINES,
    pool_battery,
    random_pool_spec,
)
from convbench.pooling.ops import choose, distance_weighted_mean, pool_plan
from convbench.pooling.registry import all_pool_backends, get_pool_backend
from convbench.pooling.spec import KINDS, POOL_DTYPES, POOL_OPS, PoolSpec
from convbench.pooling.windows import Windows

SPECS = 4
Array = Any


# -- the battery ------------------------------------------------------------------------------------


def _parameters() -> Iterator[Any]:
    for backend in all_pool_backends().values():
        missing = backend.unavailable()
        marks = [pytest.mark.skip(reason=missing)] if missing else []
        for kind, checks in groupby(
            pool_battery(backend, specs=SPECS), lambda check: str(check.spec or "").partition(" k")[0]
        ):
            yield pytest.param(list(checks), id=f"{backend.name} {kind}", marks=marks)


@pytest.mark.parametrize("checks", list(_parameters()))
def test_backend(checks: list[Check]) -> None:
    results = [check.run() for check in checks]
    assert [result.message for result in results if result.status == "failed"] == []


def test_fixed_lines_reach_what_they_should() -> None:
    specs = [PoolSpec.parse(f"pool=max {line}") for line in EDGE_LINES + LARGE_LINES]
    assert len(set(specs)) == len(specs)
    assert {spec.ndim for spec in specs} == {1, 2, 3, 4}
    assert any(spec.adaptive for spec in specs)
    assert any(spec.batch == 0 for spec in specs)


def test_random_specs_reach_the_whole_family() -> None:
    rng = np.random.default_rng(1)
    drawn = [random_pool_spec(rng) for _ in range(1200)]
    reached = {"kind": KINDS, "op": POOL_OPS, "dtype": POOL_DTYPES, "ndim": (1, 2, 3, 4), "batch": (0, 1, 2, 3)}
    for field, values in reached.items():
        assert {getattr(spec, field) for spec in drawn} == set(values), field
    assert any(spec.count_include_pad and spec.padded for spec in drawn)
    assert any(before != after for spec in drawn for before, after in spec.padding)
    assert any(spec.adaptive and spec.adaptive[0] > spec.input_size[0] for spec in drawn)


# -- the definition ---------------------------------------------------------------------------------


def _operands(spec: PoolSpec, rng: np.random.Generator, largest: int = 3) -> list[Array]:
    return [rng.integers(0 if "u" in spec.dtype else -largest, largest + 1, s).astype(spec.dtype)
            for s in spec.operand_shapes]  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_the_oracle_is_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(20):
        spec = random_pool_spec(rng, max_samples=3000)
        operands = _operands(spec, rng)
        np.testing.assert_allclose(
            oracle.pool(spec, *operands), reference.pool(spec, *operands), rtol=1e-12, atol=1e-12, err_msg=str(spec)
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("line", ["n2 c2 i7x6 k3x2 s2x1 p1x0 f64", "c2 i7x8 adaptive=3x5 f64"])
def test_the_gradient_is_the_derivative(kind: str, line: str) -> None:
    """Central differences in random directions; away from ties the maximum is differentiable."""
    spec = PoolSpec.parse(f"pool={kind} op=grad {line}")
    rng, h = np.random.default_rng(0), 1e-6
    x, g = (rng.standard_normal(shape) for shape in spec.operand_shapes)
    gx, forward = reference.pool(spec, x, g), spec.replace(op="forward")
    for _ in range(5):
        v = rng.standard_normal(x.shape)
        slope = (g * (reference.pool(forward, x + h * v) - reference.pool(forward, x - h * v))).sum() / (2 * h)
        assert (gx * v).sum() == pytest.approx(slope, rel=1e-6)


def test_first_maximum_is_first_in_row_major_order() -> None:
    x = np.array([[[[1.0, 2.0, 0.0], [0.0, 0.0, 2.0], [2.0, 2.0, 1.0]]]])
    spec = PoolSpec.parse("pool=max op=grad i3x3 k3 f64")
    for name, backend in all_pool_backends().items():
        if backend.why_not(spec) is None:
            gx = backend.plan(spec)(x, np.ones((1, 1, 1, 1)))
            assert np.argwhere(gx[0, 0]).tolist() == [[0, 1]], name


def test_padding_counts_in_a_mean_only_if_asked() -> None:
    x = np.full((1, 1, 3), 6.0)
    assert cb.pool(x, 3, kind="mean", stride=1, padding=1).tolist() == [[[6.0, 6.0, 6.0]]]
    assert cb.pool(x, 3, kind="mean", stride=1, padding=1, count_include_pad=True).tolist() == [[[4.0, 6.0, 4.0]]]
    assert cb.pool(-x, 3, kind="max", stride=1, padding=1).tolist() == [[[-6.0, -6.0, -6.0]]]


@pytest.mark.parametrize("line", EDGE_LINES)
def test_windows_and_their_transposes_are_the_reference_s(line: str) -> None:
    spec = PoolSpec.parse(f"pool=max {line}")
    for axis, windows in enumerate(spec.windows):
        starts, stops = windows.bounds()
        corner = [0] * spec.ndim
        table = np.zeros((windows.outputs, windows.size), bool)
        for p in range(windows.outputs):
            corner[axis] = p
            along = {q[axis] for q in reference.window(spec, tuple(corner))}
            assert along == set(range(starts[p], stops[p]))
            table[p, sorted(along)] = True
        back = windows.transposed()
        assert back.transposed().bounds()[0].tolist() == starts.tolist()
        for q, (first, last) in enumerate(zip(*back.bounds(), strict=True)):
            assert np.flatnonzero(table[:, q]).tolist() == list(range(first, last))
        for one in (windows, back):
            seen = np.zeros((one.outputs, one.size), int)
            for outputs, samples in one.taps():
                seen[np.arange(one.outputs)[outputs], np.arange(one.size)[samples]] += 1
            assert (seen == (table if one is windows else table.T)).all()


# -- properties -------------------------------------------------------------------------------------

SIZES = st.integers(1, 14)
KIND = st.sampled_from(KINDS)


def _x(shape: tuple[int, ...], seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


@given(kind=KIND, bins=st.integers(1, 5), length=st.integers(1, 4), seed=st.integers(0, 99))
def test_bins_that_divide_the_input_are_windows_side_by_side(kind: str, bins: int, length: int, seed: int) -> None:
    x = _x((1, 2, bins * length, bins * length), seed)
    np.testing.assert_array_equal(cb.adaptive_pool(x, bins, kind=kind), cb.pool(x, length, kind=kind))


@given(size=SIZES, kernel=st.integers(1, 5), stride=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_mean_is_a_depthwise_convolution_with_a_box(size: int, kernel: int, stride: int, seed: int) -> None:
    x = _x((2, 3, size + kernel, size + kernel), seed)
    box = np.full((3, 1, kernel, kernel), kernel**-2.0)
    y = cb.conv(x, box, groups=3, stride=stride, padding=kernel // 2)
    mean = cb.pool(x, kernel, kind="mean", stride=stride, padding=kernel // 2, count_include_pad=True)
    np.testing.assert_allclose(mean, y, atol=1e-12)


@given(first=st.integers(1, 4), second=st.integers(1, 4), seed=st.integers(0, 99))
def test_maxima_of_maxima_are_maxima(first: int, second: int, seed: int) -> None:
    x = _x((1, 2, 12, 11), seed)
    twice = cb.pool(cb.pool(x, first, kind="max", stride=1), second, kind="max", stride=1)
    np.testing.assert_array_equal(twice, cb.pool(x, first + second - 1, kind="max", stride=1))


@given(kernel=st.integers(1, 4), stride=st.integers(1, 4), seed=st.integers(0, 99))
def test_gradients_of_maxima_and_counted_means_keep_the_sum(kernel: int, stride: int, seed: int) -> None:
    x = _x((2, 2, 9, 10), seed)
    g = _x(cb.pool(x, kernel, kind="max", stride=stride).shape, seed + 1)
    for kind in ("max", "mean"):
        gx = cb.pool_grad(x, g, kernel, kind=kind, stride=stride)
        np.testing.assert_allclose(gx.sum(axis=(2, 3)), g.sum(axis=(2, 3)), atol=1e-12)


@given(kind=KIND, kernel=st.integers(1, 4), stride=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_shifted_input_shifts_the_output(kind: str, kernel: int, stride: int, seed: int) -> None:
    x = _x((1, 1, 20), seed)
    here, there = (cb.pool(part, kernel, kind=kind, stride=stride) for part in (x, x[..., stride:]))
    np.testing.assert_array_equal(there, here[..., 1:])


@given(kind=KIND, scale=st.integers(-3, 3), seed=st.integers(0, 99))
def test_pooling_is_homogeneous(kind: str, scale: int, seed: int) -> None:
    """Max for scales that are not negative, the norm up to the sign, the mean for all."""
    x = _x((1, 2, 7, 7), seed)
    factor = float(2**scale)
    np.testing.assert_allclose(cb.pool(factor * x, 3, kind=kind, stride=2), factor * cb.pool(x, 3, kind=kind, stride=2))


@given(seed=st.integers(0, 10_000))
def test_lines_are_read_as_printed(seed: int) -> None:
    spec = random_pool_spec(np.random.default_rng(seed))
    assert PoolSpec.parse(str(spec)) == spec
    assert spec.replace() == spec
    assert PoolSpec.parse(" ".join(reversed(str(spec).split()))) == spec


def test_the_distance_weighted_mean_is_a_convolution() -> None:
    x = _x((2, 3, 9, 8), 0).astype("f4")
    y = distance_weighted_mean(x, 5, sigma=1.0, stride=2)
    r = np.arange(5) - 2
    w = np.exp(-(r[:, None] ** 2 + r**2) / 2)
    expected = np.einsum("ncijkl,kl->ncij", np.lib.stride_tricks.sliding_window_view(x, (5, 5), (2, 3)), w / w.sum())
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected[:, :, ::2, ::2], rtol=1e-5, atol=1e-6)
    flat = distance_weighted_mean(x, 3, sigma=1e6)
    np.testing.assert_allclose(flat, cb.pool(x, 3, kind="mean", stride=1), rtol=1e-5, atol=1e-6)


# -- front doors and errors -------------------------------------------------------------------------


def test_every_front_door_with_every_willing_backend() -> None:
    x = _x((2, 3, 11, 13), 0)
    for kind in KINDS:
        y = cb.pool(x, (3, 2), kind=kind, stride=2, padding=1)
        bins = cb.adaptive_pool(x, (4, 5), kind=kind)
        gx = cb.pool_grad(x, y, (3, 2), kind=kind, stride=2, padding=1)
        gbins = cb.adaptive_pool_grad(x, bins, (4, 5), kind=kind)
        for name in all_pool_backends():
            for call, expected in (
                (lambda b, k=kind: cb.pool(x, (3, 2), kind=k, stride=2, padding=1, backend=b), y),
                (lambda b, k=kind: cb.adaptive_pool(x, (4, 5), kind=k, backend=b), bins),
                (lambda b, k=kind, g=y: cb.pool_grad(x, g, (3, 2), kind=k, stride=2, padding=1, backend=b), gx),
                (lambda b, k=kind, g=bins: cb.adaptive_pool_grad(x, g, (4, 5), kind=k, backend=b), gbins),
            ):
                try:
                    given_back = call(name)
                except (UnsupportedSpec, cb.BackendUnavailable):
                    continue
                np.testing.assert_allclose(given_back, expected, atol=1e-12)


def test_out_and_threads() -> None:
    x, out = _x((1, 4, 64, 64), 0), np.empty((1, 4, 62, 62))
    assert cb.pool(x, 3, kind="mean", stride=1, threads=2, out=out) is out
    np.testing.assert_array_equal(out, cb.pool(x, 3, kind="mean", stride=1, threads=1))


def test_auto_takes_blocks_for_long_windows_and_keeps_nan_where_it_is() -> None:
    assert choose(PoolSpec.parse("pool=max i999 k199 s1")).name == "van-herk"
    assert choose(PoolSpec.parse("pool=max i999 k3 s1")).name == "separable"
    for kind in KINDS:
        spec = PoolSpec.parse(f"pool={kind} i999 k199 s1")
        assert not choose(spec).error_bound(spec).spreads_nonfinite


X: Any = np.ones((1, 2, 6, 6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cb.pool(X, 7, kind="max"), "kernel_size: got (7, 7); gives no output along axis 0"),
        (lambda: cb.pool(X, 3, kind="max", padding=3), "padding: got ((3, 3), (3, 3)); leaves a window along axis 0"),
        (lambda: cb.pool(X, 3, kind="median"), "kind: got 'median'; must be one of max, mean, l2"),
        (lambda: cb.pool(X, 3, kind="max", count_include_pad=True), "count_include_pad: got True; says what a mean"),
        (lambda: cb.pool(X, 3, kind="max", padding=-1), "padding: got -1; must be an integer ≥ 0"),
        (lambda: cb.pool(X, 3, kind="max", stride=(1, 2, 3)), "stride: got (1, 2, 3); must be an integer or one for"),
        (lambda: cb.pool(X, "3", kind="max"), "kernel_size: got '3'; must be an integer ≥ 1"),
        (lambda: cb.pool(X.astype(int), 3, kind="mean"), "dtype: got 'int64'; must be float32 or float64"),
        (lambda: cb.pool(X[0, 0], 3, kind="max"), "x: got (6, 6); must have shape (N, C, *spatial)"),
        (lambda: cb.pool({1}, 1, kind="max"), "x: got 'set'; must be a NumPy array"),
        (lambda: cb.pool(np.ma.masked_less(X, 2), 1, kind="max"), "x: got 'MaskedArray'; must be a NumPy array, with"),
        (lambda: cb.pool(X > 0, 1, kind="max"), "x: got 'bool'; must have a native dtype of"),
        (lambda: cb.pool(X.astype(">f8"), 1, kind="max"), "x: got '>f8'; must have a native dtype: give x.astype("),
        (lambda: cb.pool(X, np.array(2.5), kind="max"), "kernel_size: got array(2.5); must be an integer ≥ 1"),
        (lambda: cb.pool(X, np.ones((2, 2)), kind="max"), "kernel_size: got array([1., 1.]); must be an integer ≥ 1"),
        (lambda: cb.pool(X, 3, kind="max", padding=np.array(0.5)), "padding: got array(0.5); must be an integer ≥ 0"),
        (lambda: cb.pool(X, 3, kind="max", backend=np.ones((2, 2))), "backend: got array([[1., 1.], [1., 1.]]); must"),
        (lambda: pool_plan("pool=max i8 k2", backend=None), "backend: got None; must be a name"),  # type: ignore[arg-type]
        (lambda: cb.pool(X.astype("complex64"), 1, kind="max"), "x: got 'complex64'; must have a native dtype of"),
        (lambda: cb.pool_grad(X, X, 3, kind="max"), "g: got (1, 2, 6, 6); must have shape (1, 2, 2, 2)"),
        (lambda: cb.pool_grad(X, np.ones((1, 2, 2, 2), "f4"), 3, kind="max"), "g: got 'float32'; must have the dtype"),
        (lambda: cb.adaptive_pool(X, 0, kind="max"), "output_size: got 0; must be an integer ≥ 1"),
        (lambda: cb.adaptive_pool(X, None, kind="max"), "output_size: got None; must be an integer ≥ 1"),  # type: ignore[arg-type]
        (lambda: cb.pool(X, 3, kind="max", threads=0), "threads: got 0; must be an integer from 1"),
        (lambda: cb.pool(X, 3, kind="max", out=X), "out: got (1, 2, 6, 6); must have shape (1, 2, 2, 2)"),
        (lambda: distance_weighted_mean(X, 3, sigma=0), "sigma: got 0; must be a number of samples > 0"),
        (lambda: PoolSpec.parse("i8 k3"), "kind: got 'i8 k3'; is missing; add a token such as pool=max"),
        (lambda: PoolSpec.parse("pool=max i8 k3 g2"), "line: got 'g2'; is not a token of pooling's line format"),
        (lambda: PoolSpec.parse("pool=max i8 k3 k3"), "kernel_size: got 'k3'; is given twice in one line"),
        (lambda: PoolSpec.parse("pool=max i8 k3 adaptive=2"), "kernel_size: got 3; must be left out where adaptive"),
        (lambda: PoolSpec.parse("pool=max i8 adaptive=2 s1"), "stride: got 1; must be left out: bins follow"),
        (
            lambda: PoolSpec.parse("pool=max i8"),
            "kernel_size: got 'pool=max i8'; is missing; add a token such as k2 or",
        ),
        (lambda: PoolSpec(kind="max", input_size=8), "kernel_size: got None; must be given, or adaptive"),
        (lambda: PoolSpec.parse("pool=mean i8 k3 pad=yes"), "pad: got 'yes'; must be one of counted"),
    ],
)
def test_bad_input_gives_one_clear_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        call()
    text = str(caught.value)
    assert text.startswith(message), text
    assert "\n" not in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


def test_lists_and_arrays_without_axes_are_ordinary() -> None:
    two = np.array(2)
    assert cb.pool([[[1.0, 5.0, 2.0, 0.0]]], two, kind="max", stride=two, padding=np.array(0)).tolist() == [[[5, 2]]]
    assert cb.adaptive_pool(X, two, kind="mean").shape == (1, 2, 2, 2)


def test_unknown_and_unwilling_backends() -> None:
    with pytest.raises(UnknownBackend, match="did you mean van-herk"):
        cb.pool(X, 3, kind="max", backend="van-hark")
    with pytest.raises(UnsupportedSpec, match="van-herk: kind: mean given, only max is done"):
        cb.pool(X, 3, kind="mean", backend="van-herk")
    with pytest.raises(UnsupportedSpec, match="differences keep no digits"):
        cb.pool_grad(X, np.ones((1, 2, 2, 2)), 3, kind="l2", backend="integral-image")


def test_no_padded_copy_is_made() -> None:
    """Workspace stays that of bands, whatever the input's size and padding."""
    for name in ("direct", "separable", "van-herk"):
        for kind in KINDS[: 1 if name == "van-herk" else 3]:
            plan = pool_plan(f"pool={kind} n4 c8 i512x512 k9 s1 p4 f32", name, threads=1)
            assert plan.workspace_bytes < 4 * 2**20


def test_work_of_blocks_does_not_depend_on_the_window() -> None:
    short, long = (
        get_pool_backend("van-herk").plan(PoolSpec.parse(f"pool=max i512x512 k{k} s1 p{k // 2} f32")) for k in (5, 101)
    )
    assert short.flops == long.flops
    assert long.spec.flops > 100 * long.flops


# -- the battery bites ------------------------------------------------------------------------------


def _right(spec: PoolSpec, *operands: Array) -> Array:
    return oracle.pool(spec, *operands).astype(spec.dtype)


@dataclass
class _State:
    last: Array | None = None


def _faults() -> dict[str, Callable[..., Array]]:
    state = _State()

    def zero_padding(spec: PoolSpec, *operands: Array) -> Array:
        y = _right(spec, *operands)
        return np.maximum(y, 0) if spec.kind == "max" and spec.padded and spec.op == "forward" else y

    def least_number(spec: PoolSpec, *operands: Array) -> Array:
        """Maxima start from the least finite number."""
        y = _right(spec, *operands)
        return np.maximum(y, np.finfo(y.dtype).min) if spec.kind == "max" and y.dtype.kind == "f" else y

    def last_maximum(spec: PoolSpec, *operands: Array) -> Array:
        if (spec.kind, spec.op) != ("max", "grad"):
            return _right(spec, *operands)
        back = spec.replace(padding=[pair[::-1] for pair in spec.padding] or None)
        flip = tuple(range(2, 2 + spec.ndim))
        ends = all((h + a + b - k) % s == 0 for h, k, s, (a, b) in spec._axes()) if not spec.adaptive else True
        return np.flip(_right(back, *(np.flip(a, flip) for a in operands)), flip) if ends else _right(spec, *operands)

    def half_precision(spec: PoolSpec, *operands: Array) -> Array:
        y = _right(spec, *operands)
        return y.astype("f2").astype(spec.dtype) if spec.dtype == "float32" else y

    def counts_padding(spec: PoolSpec, *operands: Array) -> Array:
        wrong = spec.kind == "mean" and not spec.adaptive
        return _right(spec.replace(count_include_pad=True) if wrong else spec, *operands)

    def hides_nan(spec: PoolSpec, *operands: Array) -> Array:
        return _right(spec, *(np.nan_to_num(a, posinf=np.inf, neginf=-np.inf) for a in operands))

    def floor_bins(spec: PoolSpec, *operands: Array) -> Array:
        """Bins end at ⌊(i+1)H/n⌋."""
        y = _right(spec, *operands)
        if spec.adaptive and spec.op == "forward" and spec.ndim == 1 and spec.batch:
            h, n = spec.input_size[0], spec.adaptive[0]
            for i in range(n):
                stop = max((i + 1) * h // n, i * h // n + 1)
                y[..., i] = _right(spec.replace(adaptive=1, input_size=stop - i * h // n),
                                   operands[0][..., i * h // n : stop])[..., 0]  # fmt: skip
        return y

    def stale(spec: PoolSpec, *operands: Array) -> Array:
        old, state.last = state.last, _right(spec, *operands)
        return old if old is not None and old.shape == state.last.shape else state.last

    def writes_its_input(spec: PoolSpec, *operands: Array) -> Array:
        y = _right(spec, *operands)
        if operands[0].flags.writeable and operands[0].size:
            operands[0][(0,) * operands[0].ndim] = 1
        return y

    def wasteful(spec: PoolSpec, *operands: Array) -> Array:
        return _right(spec, *operands) + 0 * np.ones(10**6).sum().astype(spec.dtype)

    def norm_without_root(spec: PoolSpec, *operands: Array) -> Array:
        y = _right(spec, *operands)
        return y * y if spec.kind == "l2" and spec.op == "forward" else y

    def drops_a_stride(spec: PoolSpec, *operands: Array) -> Array:
        y = _right(spec, *operands)
        return np.roll(y, 1, axis=-1)

    def spreads_quietly(spec: PoolSpec, *operands: Array) -> Array:
        y = _right(spec, *operands)
        return (
            y
            if all(np.isfinite(a).all() for a in operands if a.dtype.kind == "f")
            else y + np.full((), np.nan, y.dtype)
        )

    faults = [value for value in locals().values() if inspect.isfunction(value)]
    return {fault.__name__: fault for fault in faults}


def _backend(name: str, function: Callable[..., Array], workspace: Callable[[PoolSpec], int]) -> PoolRegistrant:
    return PoolRegistrant(
        name=name,
        summary="the oracle",
        algorithm=PoolFunction.algorithm(function, workspace=workspace),
        limits=PoolLimits(axes=(1, 2)),
        threaded=False,
    )


def _generous(spec: PoolSpec) -> int:
    return 2**28


SMALL_SAMPLES = 20_000


def _results(backend: PoolRegistrant) -> Iterator[CheckResult]:
    checks = pool_battery(backend, specs=10)
    return (check.run() for check in checks if check.spec is None or check.spec.samples <= SMALL_SAMPLES)


def test_the_battery_passes_what_is_right() -> None:
    results = list(_results(_backend("right", _right, _generous)))
    assert len(results) > 500
    assert [result.message for result in results if result.status == "failed"] == []


@pytest.mark.parametrize("name", sorted(_faults()))
def test_the_battery_catches(name: str) -> None:
    workspace = (lambda spec: 0) if name == "wasteful" else _generous
    assert any(result.status == "failed" for result in _results(_backend(name, _faults()[name], workspace)))


def test_refusals_must_be_in_due_form() -> None:
    def vague(spec: PoolSpec) -> str:
        return "no"

    sloppy = PoolRegistrant(
        name="sloppy", summary="", algorithm=PoolFunction.algorithm(_right), limits=PoolLimits(also=vague)
    )
    assert any(result.status == "failed" for result in _results(sloppy))


# -- in the benchmark -------------------------------------------------------------------------------


def test_the_suite_is_sound() -> None:
    from convbench.bench.cases import load_suite

    suite = load_suite("pooling")
    assert {case.spec.kind for case in suite.cases} == set(KINDS)
    assert {case.spec.op for case in suite.cases} == set(POOL_OPS)
    for case in suite.cases:
        assert case.family.name == "pooling"
        takers = [name for name, backend in all_pool_backends().items() if backend.why_not(case.spec) is None]
        assert len(takers) >= 2


def test_a_benchmark_times_pooling_like_convolution() -> None:
    pytest.importorskip("pandas")
    lines = ["pool=max c2 i32x32 k3 s1 f32", "pool=mean op=grad c2 i32x32 k3 s1 f32", "pool=mean i40 adaptive=7 f64"]
    table = cb.benchmark(lines, ["direct", "separable", "van-herk"], passes=1, threads=1, budget_s=20)
    statuses = table.set_index(["case", "backend"]).status.to_dict()
    assert sum(status == "ok" for status in statuses.values()) == 7
    assert sum(status == "unsupported" for status in statuses.values()) == 2
    assert (table[table.status == "ok"].error_max_eps <= table[table.status == "ok"].error_bound_eps).all()
    with pytest.raises(SpecError, match="are compared apart"):
        cb.benchmark([*lines, "i8 k3 f32"], ["direct"])
    with pytest.raises(UnknownBackend):
        cb.benchmark(lines, ["im2col"])


def test_the_command_line(tmp_path: Any) -> None:
    runner = pytest.importorskip("click.testing").CliRunner()
    from convbench.commands import cli

    listed = runner.invoke(cli, ["list", "backends", "--pooling"])
    assert "integral-image" in listed.output
    checked = runner.invoke(cli, ["check", "--pooling", "reference", "--specs", "1"])
    assert checked.exit_code == 0, checked.output
    options = ["--backends", "direct,separable", "--budget", "3", "--passes", "1", "--out", str(tmp_path)]
    ran = runner.invoke(cli, ["run", "--spec", "pool=max i64x64 k3 s1 f32", "--threads", "1", *options])
    assert ran.exit_code == 0, ran.output
    assert "separable" in ran.output
    (folder,) = tmp_path.iterdir()
    assert {"records.jsonl", "table.md", "index.html"} <= {path.name for path in folder.iterdir()}
    again = runner.invoke(cli, ["report", str(folder)])
    assert again.exit_code == 0, again.output


def test_plain_windows_are_affine() -> None:
    windows = Windows.plain(10**9, 5, 3, 2, 333_333_333)
    assert windows.part(100, 200)[0] == slice(298, 600)
