"""The weight gradient's kernels: every target, way of filling tiles, boundary, stride of memory and sharing of work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convbench import ConvSpec, plan
from convbench.backend import AlgorithmBackend
from convbench.geometry import BOUNDARIES
from convbench.refusals import FLOATS, Limits
from convbench.spec import LAYOUTS

pytest.importorskip("llvmlite")

from convbench.algorithms.weight_gradient import PanelWeightGradient
from convbench.jit.target import VARIABLE, targets

BACKEND = AlgorithmBackend(
    name="weights",
    algorithm=PanelWeightGradient,
    native=lambda spec: spec.op == "weight_grad" and spec.tile is None,
    limits=Limits(dtypes=FLOATS, ops=("weight_grad",), boundaries=BOUNDARIES, layouts=LAYOUTS, axes=(1, 2, 3)),
)

CASES = [
    "c3 o5 i9x10 k3 p1 f32",
    "n2 c15 o48 i7x7 k3 p1 f32",  # blocks of whole images, and a last block of outputs that is not full
    "n3 c8 o40 i14x14 k1 f32",  # one row
    "c8 o40 i15x13 k1 s2 f32",
    "n2 c6 o36 g2 i20x31 k5x3 s2 p2:1 d1x2 f64",
    "c4 o4 i300 k7 psame f32",  # a row in spans
    "c2 o20 i6x7x8 k3 p1 f32",
    "c5 o33 i17x40 k3 d3 p3 boundary=reflect f32",
    "c5 o33 i17x40 k3 p2:-1 boundary=circular flip f64",
    "c3 o64 i57x57 k7 s2 p3 flip f32",  # planes are rows of taps
    "n2 c3 o3 g3 i12x12 k5 p2 boundary=replicate f32",  # depthwise
    "c40 o7 i1x1 k1 f64",
    "c3 o5 i3000x4 k3x2 s2x1 p1 f32",  # many short rows
    "n2 c33 o70 i13x9 k3 s2 p1 layout=channels_last f32",
    "n0 c3 o5 i9x10 k3 f32",
]


def _operands(spec: ConvSpec) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(0)
    x, g = (rng.integers(-4, 5, shape).astype(spec.dtype) for shape in spec.operand_shapes)
    return x, g


def _expected(spec: ConvSpec, x: NDArray[Any], g: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(plan(spec, backend="direct-numpy", threads=1)(x, g))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_small_integers_are_exact(case: str, threads: int) -> None:
    spec = ConvSpec.parse(f"op=weight_grad {case}")
    x, g = _operands(spec)
    result = BACKEND.plan(spec, threads=threads)(x, g)
    np.testing.assert_array_equal(result, _expected(spec, x, g))


@pytest.mark.parametrize("name", list(targets())[1:])
@pytest.mark.parametrize("case", CASES[1::4])
def test_narrower_targets_are_exact(case: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, name)
    spec = ConvSpec.parse(f"op=weight_grad {case}")
    x, g = _operands(spec)
    np.testing.assert_array_equal(BACKEND.plan(spec, threads=2)(x, g), _expected(spec, x, g))


@pytest.mark.parametrize("case", ["n2 c5 o18 i9x10 k3 p1 f32", "n2 c5 o18 i6x5 k1 f64", "n2 c4 o6 g2 i40 k3 s2 f32"])
def test_any_strides_will_do(case: str) -> None:
    spec = ConvSpec.parse(f"op=weight_grad {case}")
    x, g = _operands(spec)
    ready, expected = BACKEND.plan(spec, threads=2), _expected(spec, x, g)
    for order in ("last first", "reversed", "apart"):
        first, second, out = (_laid_out(array, order) for array in (x, g, np.full_like(expected, np.nan)))
        np.testing.assert_array_equal(ready(first, second, out=out), expected, err_msg=order)


def _laid_out(array: NDArray[Any], order: str) -> NDArray[Any]:
    """Return an equal array that lies differently in memory."""
    if order == "last first":
        return np.asfortranarray(array)
    if order == "reversed":
        return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    room = np.full([2 * size for size in array.shape], np.nan, array.dtype)
    view = room[(slice(None, None, 2),) * array.ndim]
    view[...] = array
    return view


def test_sums_do_not_depend_on_when_threads_come() -> None:
    """Positions shared out among jobs are added up in their order."""
    spec = ConvSpec.parse("op=weight_grad n2 c3 o8 i60x60 k3 p1 f32")
    rng = np.random.default_rng(1)
    x, g = (rng.standard_normal(shape, np.float32) for shape in spec.operand_shapes)
    ready = BACKEND.plan(spec, threads=4)
    first = ready(x, g)
    assert all(np.array_equal(ready(x, g), first) for _ in range(20))
    np.testing.assert_allclose(first, _expected(spec, x, g), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "case", ["n2 c64 o64 i56x56 k3 p1 f32", "c512 o512 i7x7 k3 p1 f32", "n2 c16 o16 i24x24x24 k3 f32"]
)
def test_workspace_is_a_fifth_of_the_operands_at_most(case: str, threads: int) -> None:
    spec = ConvSpec.parse(f"op=weight_grad {case}")
    operands = sum(np.prod(shape) * spec.itemsize for shape in (*spec.operand_shapes, spec.result_shape))
    assert BACKEND.plan(spec, threads=threads).workspace_bytes <= 0.2 * operands


def test_a_narrow_cut_has_several_blocks_of_every_kind() -> None:
    """Blocks are prefixes of whole ones: several images, bands of rows, and spans of a row, the last ones smaller."""
    cuts = {}
    for case in ("n5 c8 o8 i5x5 k3 p1 f32", "n2 c40 o8 i50x30 k3 p1 f32", "c2 o8 i2500 k3 f32"):
        spec = ConvSpec.parse(f"op=weight_grad {case}")
        algorithm = PanelWeightGradient(BACKEND.ns(), spec, 1)
        cuts[case] = algorithm.cut
        x, g = _operands(spec)
        np.testing.assert_array_equal(BACKEND.plan(spec, threads=1)(x, g), _expected(spec, x, g))
    images, bands, spans = cuts.values()
    assert images.leads > 1
    assert bands.blocks[1] > 1
    assert spans.blocks[2] > 1
