"""Direct convolution of many channels by generated kernels, and what all compiled backends do with unusual arrays."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest

import convbench as cb
from convbench import ConvSpec, oracle
from convbench.bench.cases import load_suite
from convbench.errors import SpecError

pytest.importorskip("llvmlite.binding")

from convbench.algorithms.direct_panels import DirectPanels
from convbench.arrays import numpy_namespace
from convbench.jit.target import VARIABLE, targets

COMPILED = ("direct", "winograd", "im2col", "fft-tiled", "separable", "box")
LINES = (
    "c3 o5 i9x10 k3 p1 f32",  # a block that is not full, narrow rows
    "c16 o64 i28x28 k3 p1 f32",
    "n2 c8 o48 i7x7 k3 p1 f32",  # tiles of several rows
    "c8 o40 i14x14 k1 f64",  # all pixels as one row, read in place
    "c8 o40 i15x13 k1 s2 f32",  # every other column packed
    "c6 o36 g2 i20x31 k5x3 s2 p2:1 d1x2 f64",
    "c2 o20 i6x7x8 k3 p1 f32",
    "c5 o33 i17x40 k3 d3 p3 boundary=reflect f32",
    "c3 o96 i57x57 k11 s4 f32",
    "c3 o15 i8x64 k3 p1 f32",  # lanes are columns, the last block reaches back
    "c5 o33 i1x1 k1 f32",
    "c32 o32 i2000 k2 p512:0 d512 f32",  # taps apart: segments of columns
    "c16 o16 i60x60 k3 d20 p20 f32",
    "c16 o20 i9x31x40 k2x3x2 d2x9x11 s2x3x1 p0x9x3 f32",
    "n0 c8 o20 i9x9 k3 f32",
    "c4 o20 i12x12 k3 p-2x1 f32",  # cropped
)


def integers(shape: tuple[int, ...], dtype: str, seed: int) -> Any:
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(dtype)


@pytest.mark.parametrize("target", ["avx512", "avx2", "neon", "generic"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("line", LINES)
def test_integers_are_exact(line: str, threads: int, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if target not in targets():
        pytest.skip("not of this CPU")
    monkeypatch.setenv(VARIABLE, target)
    spec = ConvSpec.parse(line)
    x, w = (integers(shape, spec.dtype, seed) for seed, shape in enumerate(spec.operand_shapes))
    algorithm = DirectPanels(numpy_namespace(), spec, threads)
    grouped = (spec.batch, spec.groups, -1) if spec.batch else (0, spec.groups, spec.in_channels // spec.groups)
    out = np.full((spec.batch, spec.groups, spec.out_channels // spec.groups, *spec.output_size), np.nan, spec.dtype)
    weights, _ = algorithm.prepare(w.reshape(spec.groups, -1, *w.shape[1:]))
    algorithm.run(x.reshape(*grouped, *spec.input_size), weights, None, out)
    np.testing.assert_array_equal(out.reshape(spec.output_shape), oracle.conv(spec, x, w))


def _forward_cases() -> list[ConvSpec]:
    suites = ("cnn-layers", "image-filter", "audio-1d", "large-kernel", "volume-3d", "depthwise", "kernel-size")
    specs = {case.spec: None for name in suites for case in load_suite(name).cases}
    return [spec for spec in specs if cb.get_backend("direct").why_not(spec) is None]


@pytest.mark.parametrize("threads", [1, 2])
def test_workspace_and_packed_weights_are_small(threads: int) -> None:
    """At most a fifth of input, output and weights together, and a tenth more than the weights."""
    for spec in _forward_cases():
        plan = cb.plan(spec, "direct", threads=threads)
        weights = prod(spec.weight_shape) * spec.itemsize
        operands = (prod(spec.input_shape) + prod(spec.output_shape)) * spec.itemsize + weights
        assert plan.workspace_bytes <= 0.2 * operands, str(spec)
        assert plan.prepared_bytes <= 1.1 * weights, str(spec)


def _field(values: Any) -> Any:
    """Return the values as a field of packed records of five or nine bytes."""
    records = np.zeros(values.shape, [("value", values.dtype), ("tag", "u1")])
    records["value"] = values
    return records


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", COMPILED)
def test_strides_need_not_be_whole_items(name: str, backward: bool) -> None:
    spec = ConvSpec.parse("c2 o2 i16x16 k3 f32")
    x, w = integers(spec.input_shape, "f4", 0), np.ones(spec.weight_shape, "f4")
    plan, records = cb.plan(spec, name, threads=1), _field(np.zeros(spec.output_shape, "f4"))
    given = _field(x)["value"]
    given, x = (given[..., ::-1], x[..., ::-1]) if backward else (given, x)
    plan(given, plan.prepare(_field(w)["value"]), out=records["value"])
    np.testing.assert_allclose(records["value"], oracle.conv(spec, x, w), atol=1e-3)
    assert not records["tag"].any()


def test_weights_packed_for_another_target_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if len(targets()) < 2:
        pytest.skip("this CPU has one target")
    line = "c3 o40 i9x9 k3 f32"
    weights = cb.plan(line, "direct", threads=1).prepare(np.ones((40, 3, 3, 3), "f4"))
    monkeypatch.setenv(VARIABLE, "generic")
    with pytest.raises(SpecError, match="prepared for another plan"):
        cb.plan(line, "direct", threads=1)(np.ones((1, 3, 9, 9), "f4"), weights)


def test_a_target_of_another_cpu_is_a_reason_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "mmx")
    backend = cb.get_backend("direct")
    assert (backend.unavailable() or "").startswith(f"no device: {VARIABLE}: got 'mmx'")
    assert backend.implementation
    assert cb.conv(np.ones((1, 1, 8, 8)), np.ones((1, 1, 3, 3))).shape == (1, 1, 6, 6)  # by another backend
