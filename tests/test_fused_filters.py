"""Compiled separable and box filters: every form of their kernels against the plain sum."""

from __future__ import annotations

from functools import reduce
from itertools import product
from typing import Any

import numpy as np
import pytest

from convbench import ConvSpec, UnsupportedWeights, get_backend
from convbench.arrays import numpy_namespace
from convbench.jit.target import VARIABLE, host_target, targets
from convbench.memory import measure_memory, slack_bytes

pytest.importorskip("llvmlite")

from convbench.algorithms.fused_separable import FusedSeparable
from convbench.jit import winograd
from convbench.jit.box import box_kernel
from convbench.jit.ir import Code
from convbench.jit.separable import row_vectors, separable_kernel
from convbench.jit.separable_lines import few_taps_kernel
from convbench.jit.strips import axis_sources

Array = np.ndarray[Any, Any]


@pytest.fixture(params=["avx512", "avx2", "neon", "generic"])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set that this CPU has."""
    if request.param not in targets():
        pytest.skip("another CPU")
    monkeypatch.setenv(VARIABLE, request.param)
    return str(request.param)


def _low_rank(spec: ConvSpec, rank: int, parity: int, rng: np.random.Generator) -> Array:
    """Sums of outer products; lines are symmetric for parity 1, antisymmetric for −1 (along the first axis)."""
    total = np.zeros(spec.weight_shape)
    for _ in range(rank):
        lines = [rng.standard_normal((*spec.weight_shape[:2], size)) for size in spec.kernel_size]
        if parity:
            lines = [line + (parity if axis == 0 else 1) * line[..., ::-1] for axis, line in enumerate(lines)]
        shaped = (
            line.reshape(*line.shape[:2], *(1,) * axis, -1, *(1,) * (spec.ndim - axis - 1))
            for axis, line in enumerate(lines)
        )
        total += reduce(np.multiply, shaped)
    return total.astype(spec.dtype)


def _check(name: str, spec: ConvSpec, w: Array, threads: int = 2) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(spec.input_shape).astype(spec.dtype)
    bias = () if spec.bias_shape is None else (rng.standard_normal(spec.bias_shape).astype(spec.dtype),)
    truth, tried = (get_backend(backend).plan(spec, threads=threads) for backend in ("direct-numpy", name))
    expected = truth(x, truth.prepare(w), *bias)
    eps = np.finfo(spec.dtype).eps
    scale = np.abs(expected).max() * 40 * eps
    np.testing.assert_allclose(tried(x, tried.prepare(w), *bias), expected, rtol=0, atol=scale)


SEPARABLE = [
    ("i40x50 k3 f32", 1),  # in lines
    ("n2 c3 o2 i60x70 k7x9 p3 boundary=reflect bias=channel f32", 2),
    ("i9x2100 k5 psame boundary=circular f32", 1),  # more than one tile of columns
    ("i300x33 k12 psame boundary=replicate f64", 2),  # more than one band of rows
    ("i9x9 k5 p20 boundary=reflect f32", 1),  # padding longer than the image
    ("i7x3 k3x2 f64", 1),  # rows shorter than a vector
    ("i70x90 k25x31 psame boundary=circular f32", 1),  # turned
    ("i70x90 k25x31 psame f64", 3),
    ("i61x93 k5x24 s2x3 d2x1 p4x9 f32", 1),
    ("i61x93 k5x24 s2 d2 p4x29 f32", 1),
    ("i61x93 k5x4 s2x3 d2x1 p4 f32", 1),  # plain rows, in phases
    ("c4 o4 g2 i8x8 k3 psame layout=channels_last f32", 1),
    ("c2 o2 i12x13x34 k5x7x3 p2 s2x1x1 bias=location f32", 1),  # two column passes
    ("i12x13x14 k5x1x5 p2 s2 f32", 2),  # the axis in the middle has one tap
    ("i10x9x44 k3x4x21 p2 f64", 2),
    ("i20x5000 k3 s1x3 f32", 1),  # blocks of strided rows that fill their lines
    ("i20x5000 k3x2 s1x4 f32", 1),
    ("i20x5000 k3x7 s1x3 f32", 1),
    ("i12x9x2500 k3x3x2 s1x1x4 f32", 1),
]


@pytest.mark.parametrize("parity", [0, 1, -1])
@pytest.mark.parametrize(("line", "rank"), SEPARABLE)
def test_separable_in_all_its_forms(target: str, line: str, rank: int, parity: int) -> None:
    """Lines, plain and turned rows, one and two column passes; general, symmetric and odd taps; strides, edges."""
    spec = ConvSpec.parse(line)
    _check("separable", spec, _low_rank(spec, rank, parity, np.random.default_rng(1)))


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5, 8, 16])
def test_strided_rows_stay_in_their_lines(target: str, stride: int, dtype: str) -> None:
    """Each position has a place of its own, and the row pass reads none of what lies behind the line."""
    for size, taps, dilation in product((40, 100, 196, 777, 5000), (2, 3, 7), (1, 2, 5)):
        spec = ConvSpec.parse(f"i6x{size} k3x{taps} s1x{stride} d1x{dilation} p0x{size} {dtype}")
        algorithm = FusedSeparable(numpy_namespace(), spec, 1, compile_now=False)
        places, offsets = algorithm._tables[3:]
        room = algorithm._cut.places["turned"] - algorithm._cut.places["line"]
        lanes = host_target().lanes(spec.dtype)
        tile = row_vectors(host_target()) * lanes
        assert len(set(places)) == len(places)
        assert max(places) < room
        assert max(offsets) + -(-algorithm._cut.block[2] // tile) * tile <= room


BOX = [
    "i60x70 k7x9 p3 boundary=reflect bias=channel f32",  # few taps
    "n2 c3 o2 i60x70 k7x9 p3 boundary=reflect bias=channel f32",  # ends and beginnings, several outputs
    "i70x90 k25x31 psame boundary=circular f64",
    "i9x2100 k3x19 p1x40 boundary=reflect f32",
    "i300x30 k15x1 psame boundary=circular f32",
    "i30x300 k1x15 psame boundary=replicate f32",
    "i5000 k19 psame f32",
    "i500 k9 d3 bias=location f32",  # as separable passes from here on
    "i61x93 k5x4 s2x3 d2x1 p4 f32",
    "i12x13x14 k3 p1 f32",
    "c4 o4 g2 i20x20 k13 psame layout=channels_last f32",
    "i20x5000 k3x7 s1x3 f32",
]


@pytest.mark.parametrize("line", BOX)
def test_box_in_all_its_forms(target: str, line: str) -> None:
    """Groups of windows that are cut off, rows shorter and longer than a tile, and what goes through passes."""
    spec = ConvSpec.parse(line)
    weights = np.random.default_rng(2).standard_normal(spec.weight_shape[:2]).astype(spec.dtype)
    _check("box", spec, np.broadcast_to(weights.reshape(*weights.shape, *(1,) * spec.ndim), spec.weight_shape))


@pytest.mark.parametrize("line", ["i64x64 k21 psame f32", "i2000 k25 psame f32"])
def test_box_forgets_loud_samples(line: str) -> None:
    """A sample of 1e30 and a NaN leave with their windows: nothing is subtracted."""
    spec = ConvSpec.parse(line)
    x, plan = np.ones(spec.input_shape, "f4"), get_backend("box").plan(spec, threads=1)
    x[..., 1], x[..., 2] = 1e30, np.nan
    y = plan(x, plan.prepare(np.ones(spec.weight_shape, "f4")))
    inside = (..., *(slice(30, size - 20) for size in spec.output_size))
    assert (y[inside] == 21**spec.ndim if spec.ndim == 2 else y[inside] == 25).all()


@pytest.mark.parametrize(("name", "line"), [("separable", "i20x40 k{} psame f32"), ("box", "i20x40 k{} psame f32")])
@pytest.mark.parametrize("taps", [5, 15])
def test_arrays_lie_as_they_like(name: str, line: str, taps: int) -> None:
    """Views with any strides, also negative ones, are read and written where they are."""
    spec = ConvSpec.parse(line.format(taps))
    plan, rng = get_backend(name).plan(spec, threads=1), np.random.default_rng(5)
    x, weights = rng.standard_normal(spec.input_shape, "f4"), plan.prepare(np.ones(spec.weight_shape, "f4"))
    expected = plan(x, weights)
    views = (
        lambda a: np.asfortranarray(a),
        lambda a: np.repeat(np.repeat(a, 2, -1), 3, -2)[..., ::3, ::2],
        lambda a: a[..., ::-1, ::-1].copy()[..., ::-1, ::-1],
        lambda a: a.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    )
    for view in views:
        out = view(np.full(spec.output_shape, np.nan, "f4"))
        plan(view(x), weights, None, out)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_separable_counts_the_work_of_its_rank() -> None:
    """Rank 3 is three times the work of rank 1, which is far less than that of all taps."""
    spec = ConvSpec.parse("i256x256 k31 psame f32")
    plan = get_backend("separable").plan(spec, threads=1)
    one, three = (plan.prepare(_low_rank(spec, rank, 0, np.random.default_rng(7))) for rank in (1, 3))
    assert three.flops == 3 * one.flops
    assert one.flops < spec.flops / 10


def test_separable_counts_the_form_that_runs() -> None:
    """In lines nothing is filtered twice but what neighbouring tiles of columns share."""
    spec = ConvSpec.parse("i300x200 k5 psame f32")
    plan = get_backend("separable").plan(spec, threads=1)
    outputs, wide = 300 * 200, 300 * (200 + 4)
    assert plan.flops == 2 * 5 * (outputs + wide)


def test_box_counts_what_it_does() -> None:
    """Sums where samples are neighbours; elsewhere taps are multiplied, as many as separable passes have."""
    box, separable = (get_backend(name) for name in ("box", "separable"))
    for line in ("c4 o4 i60x60 k21 psame layout=channels_last f32", "i60x70 k21 s2 f32", "i30x30x30 k5 f32"):
        spec = ConvSpec.parse(line)
        assert box.plan(spec, threads=1).flops == separable.plan(spec, threads=1).flops
    sums, taps = (box.plan(ConvSpec.parse(f"i60x60 k21 psame {d} f32"), threads=1).flops for d in ("", "d2"))
    assert sums < taps / 4


@pytest.mark.parametrize("name", ["separable", "box", "winograd"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("channels", ["", "c4 o6 g2"])
@pytest.mark.parametrize("taps", [3, 13])
def test_planning_makes_the_kernel(
    name: str, layout: str, channels: str, taps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call generates nothing if arrays lie as the layout suggests."""
    taps = min(taps, 5) if name == "winograd" else taps
    spec = ConvSpec.parse(f"n2 {channels} i20x33 k{taps} psame layout={layout} f32")
    x = numpy_namespace().empty_laid_out(spec.replace(out_channels=spec.in_channels))
    x[...] = 1
    ones = np.ones(spec.weight_shape, spec.dtype)
    plan = get_backend(name).plan(spec, threads=1)
    plan(x, plan.prepare(ones))  # the first call of a process generates what runs jobs
    for kernel in (separable_kernel, few_taps_kernel, box_kernel, winograd.kernel):
        kernel.cache_clear()
    plan = get_backend(name).plan(spec, threads=1)
    monkeypatch.setattr(Code, "finish", lambda code: pytest.fail("a kernel is generated in the call"))
    plan(x, plan.prepare(ones))


@pytest.mark.parametrize("name", ["separable", "box", "winograd"])
def test_calls_of_many_strides_are_forgotten(name: str) -> None:
    plan: Any = get_backend(name).plan(ConvSpec.parse("i20x20 k3 f32"), threads=1)
    weights = plan.prepare(np.ones((1, 1, 3, 3), "f4"))
    for width in range(20, 60):
        y = plan(np.ones((1, 1, 20, width), "f4")[..., :20], weights)
        np.testing.assert_allclose(y, 9, rtol=1e-5)
    assert len(plan._algorithm._calls if name == "winograd" else plan._algorithm._made) <= 16


@pytest.mark.parametrize("name", ["separable", "box"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "line", ["i300x40000 k3 f32", "i300x3000 k21 psame f32", "c2 o2 i300x300 k21 layout=channels_last f32"]
)
def test_memory_is_as_declared(name: str, line: str, threads: int) -> None:
    """Nothing is missing, and box does not count both of two forms of which one runs."""
    spec, backend = ConvSpec.parse(line), get_backend(name)
    x, w = np.ones(spec.input_shape, spec.dtype), np.ones(spec.weight_shape, spec.dtype)
    if spec.layout == "channels_last":
        x = np.moveaxis(np.ones((spec.batch, *spec.input_size, spec.in_channels), spec.dtype), -1, 1)
    axis_sources.cache_clear()  # whose tables are the plan's
    used, plan = measure_memory(backend, spec, x, w, threads=threads), backend.plan(spec, threads=threads)
    slack = slack_bytes(spec, threads)
    assert used.workspace_bytes <= plan.workspace_bytes + slack
    assert plan.workspace_bytes <= used.workspace_bytes + slack
    assert used.prepared_bytes <= plan.prepared_bytes + slack


def test_refusals_are_those_of_numpys_form() -> None:
    """Ranks too high and taps that differ are named in the same words."""
    rng = np.random.default_rng(0)
    for name in ("separable", "box"):
        reasons = []
        for backend in (name, f"{name}-numpy"):
            plan = get_backend(backend).plan(ConvSpec.parse("i32x32 k9 f64"))
            with pytest.raises(UnsupportedWeights, match="weights: ") as caught:
                plan.prepare(rng.standard_normal((1, 1, 9, 9)))
            reasons.append(str(caught.value))
        assert reasons[0] == reasons[1]
