"""``winograd-cupy``: its matrices, the choice of form and axes, refusals, and every form's results on the CPU."""

from __future__ import annotations

import re
from math import prod
from typing import Any

import numpy as np
import pytest
from cuda_cpu import Mode, compiler_problem, cuda_cpu_namespace, on_cpu

from convbench import ConvSpec, get_backend, oracle
from convbench.cuda import winograd
from convbench.cuda.winograd import KERNELS, Form, WinogradFused, WinogradInSteps, choose, forms, order_of, reach_of

needs_compiler = pytest.mark.skipif(compiler_problem() is not None, reason=str(compiler_problem()))

Array = np.ndarray[Any, Any]

#: Of the largest result, for F(4, 3), which magnifies errors some eighty times.
MOST_ERROR = {"float16": 4e-3, "float32": 2e-5, "float64": 5e-14}

LINES = (
    "n2 c5 o3 i9x10 k3 p1 bias=channel f32",
    "n3 c9 o34 i7x7 k3 p1 f32",  # two blocks of outputs, tiles of several images in one block
    "c2 o2 i13x11 k3x2 d2x3 p2 boundary=reflect bias=location f32",
    "n2 c4 o6 i8x9 k2x3 p1 g2 flip boundary=circular f32",
    "c2 o3 i5x6x7 k4x3x3 s2x1x1 p2 boundary=replicate f32",  # summed along depth
    "c3 o2 i30 k3 p1 bias=channel f32",
    "n2 c2 o3 i6x9 k5x3 s3x1 p2 f32",  # rows take depth's place
    "c2 o3 i9x8 k3x1 p1x0 f32",  # columns and rows change places
    "n2 c3 o4 i6x9 k3 p1 layout=channels_last f32",
)


def made(spec: ConvSpec, form: Form, mode: Mode | None = None) -> Any:
    return (WinogradFused if form.fused else WinogradInSteps)(cuda_cpu_namespace(mode), spec, 1, form)


def result_of(algorithm: Any, spec: ConvSpec, x: Array, w: Array, bias: Array | None) -> Array:
    groups = spec.groups
    y = np.full((spec.batch, groups, spec.out_channels // groups, *spec.output_size), np.nan, spec.dtype)
    grouped = x.reshape(spec.batch, groups, -1, *spec.input_size)
    weights, _ = algorithm.prepare(w.reshape(groups, spec.out_channels // groups, -1, *spec.kernel_size))
    algorithm.run(grouped, weights, bias, y)
    return y.reshape(spec.output_shape)


def operands_of(spec: ConvSpec) -> tuple[Array, Array, Array | None]:
    rng = np.random.default_rng(0)
    shapes = (*spec.operand_shapes, spec.bias_shape)
    x, w, bias = (None if s is None else rng.standard_normal(s).astype(spec.dtype) for s in shapes)
    assert x is not None
    assert w is not None
    return x, w, bias


def table(name: str, outputs: int) -> list[list[float]]:
    """Read a matrix of F(outputs, 3) from the kernel's source."""
    text = (winograd.Kernel("winograd.cu", "", (1, 1, 1))).source()
    body = text.split(f"struct Axis<{outputs}>")[1].split(f"double {name}(")[1].split(";")[0].split("=")[1]
    rows = re.findall(r"\{([^{}]+)\}", body)
    return [[float(eval(entry, {"__builtins__": {}})) for entry in row.split(",")] for row in rows]


@pytest.mark.parametrize("outputs", [2, 4])
def test_matrices_are_those_of_the_cpu(outputs: int) -> None:
    pytest.importorskip("llvmlite")
    from convbench.jit.winograd import axis_transforms

    f = axis_transforms(outputs, 3)
    for name in "abg":
        assert table(name, outputs) == [[float(value) for value in row] for row in getattr(f, name)]


@needs_compiler
@pytest.mark.parametrize("dtype", list(MOST_ERROR))
@pytest.mark.parametrize("line", LINES)
def test_every_form_is_right(line: str, dtype: str) -> None:
    spec = ConvSpec.parse(line).replace(dtype=dtype)
    x, w, bias = operands_of(spec)
    exact = oracle.conv(spec, x, w, bias)
    for form in forms(spec):
        y = result_of(made(spec, form), spec, x, w, bias)
        assert np.max(np.abs(y - exact)) <= MOST_ERROR[dtype] * np.max(np.abs(exact)), form


@needs_compiler
@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
def test_no_thread_reads_what_another_may_still_write(order: str) -> None:
    for line in LINES[1], LINES[4], LINES[5]:
        spec = ConvSpec.parse(line)
        x, w, bias = operands_of(spec)
        exact = oracle.conv(spec, x, w, bias)
        for form in forms(spec):
            y = result_of(made(spec, form, Mode(order, check=True)), spec, x, w, bias)
            assert np.max(np.abs(y - exact)) <= MOST_ERROR["float32"] * np.max(np.abs(exact))


@needs_compiler
def test_tiles_in_several_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ConvSpec.parse("n3 c4 o5 i33x34 k3 p1 f32")
    steps = next(form for form in forms(spec) if not form.fused)
    monkeypatch.setattr(winograd, "_SLAB_BYTES", 1)
    algorithm = made(spec, steps)
    assert algorithm.workspace_bytes == 16 * 128 * (4 + 5) * 4
    x, w, bias = operands_of(spec)
    y = result_of(algorithm, spec, x, w, bias)
    exact = oracle.conv(spec, x, w, bias)
    assert np.max(np.abs(y - exact)) <= MOST_ERROR["float32"] * np.max(np.abs(exact))


@needs_compiler
def test_arrays_of_any_strides() -> None:
    spec = ConvSpec.parse("n2 c3 o4 i9x10 k3 p1 f32")
    x, w, _ = operands_of(spec)
    wide = np.zeros((2, 3, 9, 20), "f4")
    wide[..., ::2] = x
    view, turned = wide[..., ::2], np.ascontiguousarray(w[..., ::-1, ::-1])[..., ::-1, ::-1]
    plan = on_cpu(get_backend("winograd-cupy")).plan(spec)
    out = np.zeros((4, 2, 10, 9), "f4").transpose(1, 0, 3, 2)
    plan(view, plan.prepare(turned), out=out)
    exact = oracle.conv(spec, x, w)
    assert np.max(np.abs(out - exact)) <= MOST_ERROR["float32"] * np.max(np.abs(exact))
    backwards = np.ascontiguousarray(x[:, :, ::-1, ::-1])[:, :, ::-1, ::-1]
    np.testing.assert_array_equal(plan(backwards, plan.prepare(w)), out)


@pytest.mark.parametrize(
    ("line", "order"),
    [
        ("i8x8 k3", (0, 1, 2)),
        ("i9 k3", (0, 1, 2)),
        ("i8x8 k3x1", (0, 2, 1)),
        ("i8x8 k5x3", (1, 0, 2)),
        ("i8x8 k3 s2x1", (1, 0, 2)),
        ("i5x6x7 k3", (0, 1, 2)),
        ("i5x6x7 k3x5x3", (1, 0, 2)),
        ("i8x8 k3x5", None),
        ("i8x8 k3 s2", None),
        ("i9 k4", None),
    ],
)
def test_axes_that_are_transformed(line: str, order: tuple[int, int, int] | None) -> None:
    spec = ConvSpec.parse(f"{line} f32")
    assert order_of(spec) == order
    assert (winograd.why_not(spec) is None) == (order is not None)


@pytest.mark.parametrize(
    ("line", "topic"),
    [
        ("i8x8 k1 f32", "kernel size"),
        ("i8x8 k3 s2 f32", "kernel size"),
        ("c2 o2 i8x8 k5 f32", "kernel size"),
        ("n1000 c512 o64 i128x128 k3 p1 f32", "memory"),
        ("c70000 o70000 g70000 i8x8 k3 f32", "groups"),
        ("i8x8 k3 int8", "dtype"),
        ("op=weight_grad i8x8 k3 f32", "op"),
    ],
)
def test_refusals_name_the_topic(line: str, topic: str) -> None:
    reason = on_cpu(get_backend("winograd-cupy")).why_not(ConvSpec.parse(line))
    assert reason is not None
    assert reason.startswith(f"{topic}: ")


def test_many_channels_are_multiplied_by_gemm() -> None:
    early = choose(ConvSpec.parse("n16 c64 o64 i56x56 k3 p1 f32"))
    late = choose(ConvSpec.parse("n16 c512 o512 i14x14 k3 p1 f32"))
    assert early.fused
    assert not late.fused
    assert choose(ConvSpec.parse("c512 o512 i2x2 k3 p1 f32")).rows == 2  # a tile of 4 × 4 would be wasted


def test_a_tile_reaches_as_far_as_the_bound_says() -> None:
    spec = ConvSpec.parse("c2 o2 i20x21 k2x3 d3x1 f32")
    for form in forms(spec):
        assert reach_of(spec, form) == (3 * form.rows, form.columns - 1)


def test_packed_weights_are_declared() -> None:
    spec = ConvSpec.parse("c3 o33 i9x9 k3 g3 f32")
    for form in forms(spec):
        if form.fused:
            algorithm = made(spec, form)
            weights, _ = algorithm.prepare(np.ones((3, 11, 1, 3, 3), "f4"))
            assert weights.nbytes == algorithm.prepared_bytes
            assert weights.size == 3 * form.outputs * form.chunk * prod(form.size)


def test_blocks_fit_every_card() -> None:
    """99 KiB is what a block may have on every card since 2020."""
    for kernel in KERNELS:
        assert kernel.shared_bytes <= 99 * 1024
        assert kernel.threads <= 1024
