"""The ideas that algorithms share: lowering, blocks, tensor trains; and that they run on any array namespace."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from convbench import ConvSpec, UnsupportedWeights, get_backend, oracle
from convbench.algorithms.blocking import Blocking
from convbench.algorithms.fft import transform_sizes
from convbench.algorithms.lowering import AxisLowering, Lowering
from convbench.algorithms.lowrank import factor_error, max_rank, pass_macs, tensor_train
from convbench.arrays import numpy_namespace
from convbench.geometry import BOUNDARIES, boundary_index, output_size


@st.composite
def axes(draw: st.DrawFn) -> AxisLowering:
    size, kernel = draw(st.integers(1, 20)), draw(st.integers(1, 7))
    stride, dilation = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    before, after = draw(st.integers(-3, 9)), draw(st.integers(-3, 9))
    outputs = output_size(size, kernel, stride, dilation, before, after)
    if outputs < 1:
        before, outputs = before + dilation * kernel + 3, 0
        outputs = output_size(size, kernel, stride, dilation, before, after)
    boundary = draw(st.sampled_from(BOUNDARIES))
    return AxisLowering(size, kernel, stride, dilation, before, max(1, outputs), boundary)


@settings(max_examples=600)
@given(axes(), st.booleans(), st.integers(0, 3))
@example(AxisLowering(12, 5, 1, 1, 2, 12, "circular"), True, 0)
@example(AxisLowering(12, 5, 3, 2, 4, 4, "circular"), True, 0)
def test_lowered_axis_computes_every_output_from_unit_stride_circular_correlations(
    axis: AxisLowering, free: bool, spare: int
) -> None:
    """Polyphase components, subgrids, shared zeros and free circles together give the definition back, and no more."""
    rng = np.random.default_rng(axis.size * 1000 + axis.kernel)
    x, w = rng.integers(-9, 9, axis.size), rng.integers(-9, 9, axis.kernel)
    expected, shown = np.zeros(axis.outputs, int), np.zeros(axis.size, int)
    for p, k in product(range(axis.outputs), range(axis.kernel)):
        q = boundary_index(p * axis.stride + k * axis.dilation - axis.before, axis.size, axis.boundary)
        expected[p] += 0 if q is None else w[k] * x[q]
    end = (axis.outputs - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1 - axis.before
    for position in range(-axis.before, end):
        q = boundary_index(position, axis.size, axis.boundary)
        shown[[] if q is None else q] += 1
    assert shown.max() <= axis.most_copies <= 2 * shown.max() + 2

    period = axis.cycle if free and axis.cycle else axis.period + spare
    y = np.zeros(axis.outputs, int)
    for subgrid in range(axis.subgrids):
        total = np.zeros(period, int)
        for phase in range(axis.phases):
            circle = np.zeros(period, int)
            for reading in axis.readings(phase, subgrid, period):
                circle[reading.place] = x[reading.source]
                assert reading.repeated or len(x[reading.source]) == len(circle[reading.place])
            mirrored = w[axis.taps(phase)][::-1]
            for place, part in axis.wrapped(phase, period):
                assert len(range(period)[place]) == len(mirrored[part])
                for position, tap in zip(range(period)[place], mirrored[part], strict=True):
                    total += tap * np.roll(circle, position)
        y[axis.positions(subgrid)] = total[: axis.position_count(subgrid)]
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    ("line", "sizes"),
    [
        ("i96x80 k9 psame boundary=circular", (96, 80)),  # wraps by itself
        ("i97x80 k9 psame boundary=circular", (108, 80)),  # 97 is prime
        ("i96x81 k9 psame boundary=circular", (96, 90)),  # odd: no good half
        ("i96x80 k9x7 s2 p4x3 boundary=circular", (48, 40)),
        ("i96x80 k9x7 d3x4 psame boundary=circular", (32, 20)),
        ("i96x80 k9 boundary=circular", (96, 80)),  # valid: no boundary
        ("i96x80 k9 psame boundary=reflect", (108, 90)),
        ("i96x81 k9 psame boundary=circular complex64", (96, 81)),
    ],
)
def test_circular_boundaries_cost_no_transform_length(line: str, sizes: tuple[int, ...]) -> None:
    """Where the input is a whole period of a length that transforms well; elsewhere it is extended."""

    def good_size(n: int) -> int:
        return next(m for m in range(n, 2 * n + 1) if max(_prime_factors(m), default=1) <= 5)

    assert transform_sizes(ConvSpec.parse(line), good_size) == sizes


def _prime_factors(number: int) -> set[int]:
    return {p for p in range(2, number + 1) if number % p == 0 and all(p % q for q in range(2, p))}


@pytest.mark.parametrize("name", ["fft", "fft-pocketfft"])
def test_fft_input_gradient_costs_what_the_forward_operation_does(name: str) -> None:
    """The adjoint takes the same transforms and products, whatever the stride and boundary."""
    backend = get_backend(name)
    if backend.unavailable():
        pytest.skip(f"{name}: {backend.unavailable()}")
    for line in ("n2 c3 o4 i40x36 k5 s2 p2", "c2 o5 i30x31 k3 d2 psame boundary=reflect", "i99 k9 s3 pfull complex64"):
        spec = ConvSpec.parse(line)
        forward, gradient = (backend.plan(spec.replace(op=op), threads=1) for op in ("forward", "input_grad"))
        assert gradient.flops == forward.flops
        assert gradient.prepared_bytes == forward.prepared_bytes
    real, complex_ = (backend.plan(ConvSpec.parse(f"i64x64 k9 psame {t}"), threads=1) for t in ("f32", "complex64"))
    assert 1.8 * real.flops < complex_.flops < 2.1 * real.flops
    assert complex_.workspace_bytes < 1.1 * real.workspace_bytes  # in place


def test_strides_cost_the_transform_less_and_dilation_nothing() -> None:
    """Polyphase halves an axis' work at stride 2; subgrids keep the length that dilation 1 has."""
    fft = pytest.importorskip("pyfftw") and get_backend("fft")
    plain = fft.plan(ConvSpec.parse("i512x512 k9 psame"), threads=1).flops
    strided = fft.plan(ConvSpec.parse("i512x512 k9 s2 psame"), threads=1).flops
    dilated = fft.plan(ConvSpec.parse("i512x512 k9 d4 psame"), threads=1).flops
    assert strided < 0.75 * plain
    assert dilated < 1.2 * plain
    assert Lowering(ConvSpec.parse("i64 k9 s6 d4 p9")).phases == 3
    assert Lowering(ConvSpec.parse("i64 k9 s6 d4 p9")).subgrids == 2


@pytest.mark.parametrize(
    "line",
    [
        "n3 c4 o2 g2 i17x9 k3x2 s2x1 d1x2 p3:1x0:2",
        "n2 c2 o4 i40 k5 p-2:7",
        "c1 o1 i5x6x7 k3 p4:0x1x2 s1x2x3",
        "i4 k2 p-9:12",
    ],
)
@pytest.mark.parametrize(("budget", "threads"), [(1, 1), (600, 1), (10**9, 3)])
def test_blocks_cover_every_output_once_and_load_its_padded_input(line: str, budget: int, threads: int) -> None:
    """Each block's halo is what np.pad would have put there, whatever the budget."""
    spec, ns = ConvSpec.parse(line + " f64"), numpy_namespace()
    blocking = Blocking(spec, 8, budget, threads)
    channels = spec.in_channels // spec.groups
    x = np.random.default_rng(0).standard_normal((spec.batch, spec.groups, channels, *spec.input_size))
    padded = oracle._extend(spec, x.reshape(spec.input_shape)).reshape(*x.shape[:3], *[-1] * 0, *_reach(spec))
    covered = np.zeros((spec.batch, spec.groups, *spec.output_size), int)
    for block in blocking:
        covered[(block.images, block.groups, *block.outputs)] += 1
        halo = blocking.load(ns, x, block, np.full(blocking.halo_elements, np.nan))
        where = tuple(
            slice(r.start * s, r.start * s + extent)
            for r, s, extent in zip(block.outputs, spec.stride, halo.shape[3:], strict=True)
        )
        np.testing.assert_array_equal(halo, padded[(block.images, block.groups, slice(None), *where)])
    assert (covered == 1).all()
    assert len(blocking) >= (threads if prod(spec.output_size) * 8 > threads * 2**16 else 1)


def _reach(spec: ConvSpec) -> list[int]:
    return [
        (p - 1) * s + (k - 1) * d + 1
        for p, s, k, d in zip(spec.output_size, spec.stride, spec.kernel_size, spec.dilation, strict=True)
    ]


def _contract(cores: list[Any]) -> Any:
    result = cores[0]
    for core in cores[1:]:
        result = np.tensordot(result, core, axes=1)
    return result[0, ..., 0]


@pytest.mark.parametrize(
    ("shape", "rank"), [((7, 9), 1), ((9, 9), 3), ((5, 6, 7), 1), ((5, 5, 5), 2), ((3, 4, 5, 3), 2)]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tensor_train_finds_the_rank_and_keeps_its_promise(shape: tuple[int, ...], rank: int, dtype: str) -> None:
    """Rounding to the dtype does not raise the rank, and what is left out is below the bound."""
    rng = np.random.default_rng(3)
    terms = []
    for _ in range(rank):
        term = rng.standard_normal(shape[0])
        for size in shape[1:]:
            term = np.multiply.outer(term, rng.standard_normal(size))
        terms.append(term)
    w = sum(terms).astype(dtype)
    eps = float(np.finfo(dtype).eps)
    cores = tensor_train(w, eps)
    assert {core.shape[2] for core in cores[:-1]} == {rank}
    assert np.linalg.norm(_contract(cores) - w) <= factor_error(shape, eps) * eps * np.linalg.norm(w)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_what_a_tensor_train_leaves_out_does_not_depend_on_the_scale(scale: float) -> None:
    """a term of 10⁻⁴ of the kernel is kept, rounding is not, however large or small the kernel is."""
    rng = np.random.default_rng(9)
    first, second = (
        np.multiply.outer(np.multiply.outer(*rng.standard_normal((2, 7))), rng.standard_normal(7)) for _ in range(2)
    )
    w = ((first + 1e-4 * second) * scale).astype("float32")
    cores = tensor_train(w, 2.0**-23)
    assert [core.shape[2] for core in cores] == [2, 2, 1]
    assert np.linalg.norm(_contract(cores) - w) <= factor_error(w.shape, 2.0**-23) * 2.0**-23 * np.linalg.norm(w)


def test_separable_is_exact_on_integer_outer_products() -> None:
    """integer factors make integer sums: equal to the int64 truth bit for bit."""
    spec = ConvSpec.parse("n2 c2 o3 i19x23 k5x3 s2x1 d1x3 psame f32")
    rng = np.random.default_rng(4)
    x = rng.integers(-8, 9, spec.input_shape)
    w = rng.integers(-4, 5, (3, 2, 5, 1)) * rng.integers(-4, 5, (3, 2, 1, 3))
    plan = get_backend("separable").plan(spec)
    y = plan(x.astype("f4"), plan.prepare(w.astype("f4")))
    assert np.array_equal(y, oracle.conv(spec.replace(dtype="int64"), x, w))


def test_integer_outer_products_keep_integer_factors() -> None:
    """Sobel, binomial and 3-D integer kernels stay exact."""
    for factors in ([[1, 2, 1], [-1, 0, 1]], [[6, 10, 15], [35, 21]], [[1, 3, 3, 1], [2, 4], [0, -5, 5]]):
        kernel = np.array(factors[0])
        for factor in factors[1:]:
            kernel = np.multiply.outer(kernel, factor)
        cores = tensor_train(kernel, 2.0**-23)
        assert all(np.array_equal(core, np.rint(core)) for core in cores)
        assert np.array_equal(_contract(cores), kernel)


def test_rank_limit_is_where_passes_stop_paying() -> None:
    """A 9×9 kernel gains up to rank 4 (4·18 < 81), a 2×2 one never."""
    assert max_rank((9, 9)) == 4
    assert max_rank((2, 2)) == 0
    assert pass_macs((3, 5, 7), (2, 4)) == 3 * 2 + 2 * 5 * 4 + 4 * 7


def test_separable_refuses_full_rank_with_the_rank() -> None:
    """The reason names the numerical rank, its maximum and the limit."""
    plan = get_backend("separable").plan(ConvSpec.parse("i32x32 k9 f64"))
    with pytest.raises(UnsupportedWeights, match=r"weights: numerical rank 9 of 9: 1-D passes gain up to rank 4"):
        plan.prepare(np.random.default_rng(0).standard_normal((1, 1, 9, 9)))
