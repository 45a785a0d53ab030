"""``separable-cupy``: strips, segments, ring and taps of the kernel, ranks, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_cpu import Mode, compiler_problem, cuda_cpu_namespace, on_cpu

from convbench import ConvSpec, get_backend, oracle
from convbench.cuda.separable import KERNELS, Separable
from convbench.errors import UnsupportedWeights

needs_compiler = pytest.mark.skipif(compiler_problem() is not None, reason=str(compiler_problem()))

Array = np.ndarray[Any, Any]

MOST_ERROR = {"float32": 5e-6, "float64": 1e-14}  # of the largest result

#: Plain kernels whose taps are unrolled (3, 5, 7) or not, then others.
LINES = (
    "i37x150 k3 p1",
    "n2 c3 o3 g3 i20x19 k5 p2 boundary=reflect bias=channel",
    "i33x40 k7x5 p3x2 boundary=circular flip",
    "i50x31 k9x16 psame boundary=replicate",
    "i40x45 k17x18 psame",
    "i41x30 k31 psame bias=location",
    "i20x30 k101x3 psame",
    "i19x150 k2x90 psame",
    "n2 c2 o4 i17x21 k5x4 p1 layout=channels_last",
    "i40x41 k3x5 s2x3 p1",
    "i37x90 k5 d3x11 psame",
    "i35x34 k4 s3x2 d2x5 p3:1x0:4 boundary=reflect",
    "i7x40x41 k1x3x5 s2x1x1 p1x1x2 bias=channel",
    "i7x20x21 k4x1x5 p2x0x1 boundary=circular",
    "i6x7x30 k3x4x1 s1x2x1 d2x1x1",
    "i3x2 k5x4 p4",
    "n2 c2 o4 g2 i7x8x9 k3x4x5 p1x2x2 s2x1x1 boundary=circular bias=channel",
    "c2 o2 i6x12x14 k5x3x3 s1x2x3 d1x2x1 psame bias=location",
    "i20x6x7 k17x3x2 psame boundary=reflect flip",
)


def operands_of(spec: ConvSpec, rank: int) -> tuple[Array, Array, Array | None]:
    """Return weights that are sums of so many products of 1-D kernels, along the axes that have several taps."""
    rng = np.random.default_rng(0)
    x, w, bias = (None if s is None else rng.standard_normal(s) for s in (*spec.operand_shapes, spec.bias_shape))
    assert x is not None
    assert w is not None
    w[...] = 0
    for _ in range(rank):
        product = np.ones_like(w)
        for axis in range(2, w.ndim):
            lines = rng.standard_normal((*w.shape[:2], w.shape[axis]))
            product *= lines.reshape(*w.shape[:2], *(-1 if a == axis else 1 for a in range(2, w.ndim)))
        w += product
    return x.astype(spec.dtype), w.astype(spec.dtype), None if bias is None else bias.astype(spec.dtype)


def error_of(spec: ConvSpec, rank: int = 1, mode: Mode | None = None) -> float:
    """Return the largest error, relative to the largest result."""
    x, w, bias = operands_of(spec, rank)
    plan = on_cpu(get_backend("separable-cupy"), mode).plan(spec)
    y = plan(x, plan.prepare(w), bias)
    exact = oracle.conv(spec, x, w, bias)
    return float(np.max(np.abs(y - exact)) / np.max(np.abs(exact)))


@needs_compiler
@pytest.mark.parametrize("dtype", list(MOST_ERROR))
@pytest.mark.parametrize("line", LINES)
def test_results(line: str, dtype: str) -> None:
    assert error_of(ConvSpec.parse(line).replace(dtype=dtype)) <= MOST_ERROR[dtype]


@needs_compiler
@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
@pytest.mark.parametrize("line", [LINES[0], LINES[4], LINES[11]])
def test_no_thread_reads_what_another_may_still_write(line: str, order: str) -> None:
    spec = ConvSpec.parse(line).replace(dtype="float32")
    assert error_of(spec, mode=Mode(order, check=True)) <= MOST_ERROR["float32"]


@needs_compiler
@pytest.mark.parametrize(
    "line", ["c2 o3 i40x20 k8x9 p3 bias=channel f32", "c2 o2 i20x25 k8 s2 p3 d1x2 f64", "c2 o3 i9x10x11 k5x6x5 p1 f64"]
)
def test_several_pairs_are_added_up(line: str) -> None:
    spec = ConvSpec.parse(line)
    for rank in 2, 3:
        assert error_of(spec, rank) <= MOST_ERROR[spec.dtype]


@needs_compiler
def test_a_block_goes_down_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring goes round several times, and segments meet without a seam."""
    import convbench.cuda.separable as module

    monkeypatch.setattr(module, "_PROCESSORS", 1)
    monkeypatch.setattr(module, "_PROCESSOR_THREADS", 256)
    for line in ("i150x20 k11x3 psame f32", "i300x9 k3 s2x1 p1 f32"):
        spec = ConvSpec.parse(line)
        algorithm = Separable(cuda_cpu_namespace(), spec, 1)
        assert algorithm._two._rows >= 5 * 16
        assert error_of(spec) <= MOST_ERROR["float32"]


@needs_compiler
def test_input_gradient() -> None:
    spec = ConvSpec.parse("op=input_grad n2 c2 o3 i20x21 k5x4 p2 boundary=circular f64")
    g, w, _ = operands_of(spec, 1)
    plan = on_cpu(get_backend("separable-cupy")).plan(spec)
    exact = oracle.conv(spec, g, w)
    assert np.max(np.abs(plan(g, plan.prepare(w)) - exact)) <= 1e-13 * np.max(np.abs(exact))


@needs_compiler
def test_small_integers_are_exact() -> None:
    spec = ConvSpec.parse("i30x31 k3 p1 f32")
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 10, spec.input_shape).astype("f4")
    w = np.outer([1, 2, 1], [1, 0, -1]).reshape(1, 1, 3, 3).astype("f4")
    plan = on_cpu(get_backend("separable-cupy")).plan(spec)
    np.testing.assert_array_equal(plan(x, plan.prepare(w)), oracle.conv(spec, x, w))


def test_weights_of_high_rank_are_refused_with_it() -> None:
    spec = ConvSpec.parse("i30x31 k5 p1 f32")
    _, w, _ = operands_of(spec, 4)
    plan = on_cpu(get_backend("separable-cupy")).plan(spec)
    with pytest.raises(UnsupportedWeights, match="numerical rank 4 of 5: 1-D passes gain up to rank 2"):
        plan.prepare(w)
    w[0, 0, 1, 1] = np.inf
    with pytest.raises(UnsupportedWeights, match="NaN or infinity"):
        plan.prepare(w)


@pytest.mark.parametrize(
    ("line", "topic"),
    [
        ("i9x9 k9x1 f32", "kernel size"),
        ("i9x9 k2 f32", "kernel size"),
        ("i300x300 k115 f32", "kernel size"),
        ("i300x300 k15 d9 f32", "kernel size"),
        ("i99 k9 f32", "axes"),
        ("i9x9 k3 f16", "dtype"),
        ("op=weight_grad i9x9 k3 f32", "op"),
        ("n1000 c64 o64 g64 i256x256 k3 f32", "memory"),
    ],
)
def test_refusals_name_the_topic(line: str, topic: str) -> None:
    reason = on_cpu(get_backend("separable-cupy")).why_not(ConvSpec.parse(line))
    assert reason is not None
    assert reason.startswith(f"{topic}: ")


def test_blocks_fit_every_card() -> None:
    """99 KiB is what a block may have on every card since 2020."""
    for kernel in KERNELS:
        assert kernel.shared_bytes <= 99 * 1024
