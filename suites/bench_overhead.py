"""What a call costs besides its kernel: ``pytest --benchmark suites/bench_overhead.py``.

Plans of an algorithm that does nothing show the overhead alone. ``convbench.conv`` of an 8×8 image, whose plan is
cached, has a row with that algorithm, and one with each backend that a user might take, kernel included. One thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import convbench as cb
from convbench import registry
from convbench.backend import AlgorithmBackend, second_operand
from convbench.refusals import WHOLE_FAMILY

LAYER = "c8 o8 i8x8 k3 f32"
PLANS = {"forward": LAYER, "bias": f"{LAYER} bias=channel"} | {
    op: f"op={op} {LAYER}" for op in ("input_grad", "weight_grad")
}
BACKENDS = [name for name in ("direct", "im2col", "numba", "torch") if name in registry.backend_names()]


class Nothing:
    """An algorithm that leaves its output as it is."""

    workspace_bytes = prepared_bytes = flops = 0

    def __init__(self, ns: Any, spec: cb.ConvSpec, threads: int) -> None: ...

    def prepare(self, w: Any) -> tuple[Any, None]:
        return w, None

    def run(self, first: Any, second: Any, bias: Any, out: Any) -> None: ...


NOTHING = AlgorithmBackend(name="nothing", algorithm=Nothing, native=lambda spec: True, limits=WHOLE_FAMILY)


def planned(line: str) -> tuple[cb.Plan, tuple[Any, Any, Any]]:
    """Return a plan that does nothing, and what it is called with."""
    plan = NOTHING.plan(cb.ConvSpec.parse(line), threads=1)
    spec = plan.spec
    first, second = (np.ones(shape, spec.dtype) for shape in spec.operand_shapes)
    bias = None if spec.bias_shape is None else np.ones(spec.bias_shape, spec.dtype)
    return plan, (first, second_operand(plan, second), bias)


def image(channels: int) -> tuple[Any, Any]:
    """Return an 8×8 image and 3×3 weights, with as many output channels."""
    return np.ones((1, channels, 8, 8), "f4"), np.ones((channels, channels, 3, 3), "f4")


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_plug_ins", lambda: {"nothing": NOTHING})


@pytest.mark.benchmark(disable_gc=True, group="plan(x, weights)")
@pytest.mark.parametrize("given", ["out", "no out"])
@pytest.mark.parametrize("kind", PLANS)
def test_plan(benchmark: Any, kind: str, given: str) -> None:
    plan, operands = planned(PLANS[kind])
    out = np.empty(plan.spec.result_shape, plan.spec.result_dtype) if given == "out" else None
    assert benchmark(plan, *operands, out).shape == plan.spec.result_shape


@pytest.mark.benchmark(disable_gc=True, group="conv(x, w)")
@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("backend", ["nothing", "auto", *BACKENDS])
def test_conv(benchmark: Any, backend: str, channels: int) -> None:
    x, w = image(channels)
    missing = None if backend == "auto" else cb.get_backend(backend).unavailable()
    if missing:
        pytest.skip(missing)
    cb.conv(x, w, backend=backend, threads=1)  # makes the plan
    y = benchmark(cb.conv, x, w, backend=backend, threads=1)
    if backend != "nothing":
        np.testing.assert_array_equal(y, np.full((1, channels, 6, 6), 9 * channels))
