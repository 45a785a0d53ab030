"""What planning, preparing and running take is measured stage by stage, by two counters."""

from __future__ import annotations

import mmap
import tracemalloc
from typing import Any

import numpy as np
import pytest

from convbench import memory
from convbench.algorithms.matrix import SparseMatrix
from convbench.arrays import numpy_namespace
from convbench.backend import FunctionBackend
from convbench.bench.families import family_of
from convbench.errors import UnsupportedWeights
from convbench.memory import PYTHON_OBJECTS_BYTES, Memory, measure_memory
from convbench.registry import get_backend
from convbench.spec import ConvSpec

MIB = 2**20
SPEC = ConvSpec.parse("c2 o2 i64 k3 f64")


def measured(function: Any, prepare: Any = None, spec: ConvSpec = SPEC) -> Memory:
    backend = FunctionBackend(name="mine", function=function, prepare=prepare)
    first, second = (np.ones(shape, spec.dtype) for shape in spec.operand_shapes)
    return measure_memory(backend, spec, first, second)


def zeros(spec: ConvSpec, x: Any, w: Any) -> Any:
    return np.zeros(spec.result_shape)


def nearly(mib: float) -> Any:
    return pytest.approx(mib * MIB, abs=PYTHON_OBJECTS_BYTES)


def test_stages_are_told_apart() -> None:
    def prepare(spec: ConvSpec, w: Any) -> Any:
        if spec == SPEC:  # and not the tiny one that loads libraries
            np.ones(3 * MIB, "i1")
        return np.ones(MIB, "i1")

    def run(spec: ConvSpec, x: Any, w: Any) -> Any:
        np.ones(2 * MIB, "i1")
        return np.zeros(spec.result_shape)

    found = measured(run, prepare)
    assert (found.prepared_bytes, found.prepare_peak_bytes, found.workspace_bytes) == (nearly(1), nearly(3), nearly(2))
    assert found.y.shape == SPEC.result_shape


def test_peak_of_preparing_includes_what_stays() -> None:
    found = measured(zeros, lambda spec, w: [np.ones(MIB, "i1"), np.ones(2 * MIB, "i1")][:1])
    assert (found.prepared_bytes, found.prepare_peak_bytes, found.workspace_bytes) == (nearly(1), nearly(3), nearly(0))


def test_what_only_cycles_hold_is_not_left_behind() -> None:
    def prepare(spec: ConvSpec, w: Any) -> Any:
        cycle: list[Any] = [np.ones(4 * MIB, "i1")]
        cycle.append(cycle)
        return w

    found = measured(zeros, prepare)
    assert (found.prepared_bytes, found.prepare_peak_bytes) == (nearly(0), nearly(4))


def test_nothing_is_prepared_for_the_weight_gradient() -> None:
    spec = ConvSpec.parse("op=weight_grad n2 c3 o4 i20x20 k3 f32")
    first, second = (np.ones(shape, spec.dtype) for shape in spec.operand_shapes)
    found = measure_memory(get_backend("im2col"), spec, first, second)
    assert max(found.prepared_bytes, found.prepare_peak_bytes) <= PYTHON_OBJECTS_BYTES
    assert found.y.shape == spec.weight_shape


def native(spec: ConvSpec, x: Any, w: Any) -> Any:
    """Take 32 MiB that no allocator of Python's knows of."""
    with mmap.mmap(-1, 32 * MIB) as pages:
        for start in range(0, len(pages), mmap.PAGESIZE):
            pages[start] = 1
    return np.zeros(spec.result_shape)


def test_resident_memory_shows_what_the_tracer_cannot_see() -> None:
    found = measured(native)
    if found.rss_peak_bytes is None:
        pytest.skip("the system does not count resident memory")
    assert found.workspace_bytes == nearly(0)
    assert 31 * MIB < found.rss_peak_bytes < 40 * MIB


def test_no_resident_memory_where_the_system_does_not_count_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_resident_is_counted", lambda: False)
    assert measured(native).rss_peak_bytes is None


def test_trace_of_someone_else_goes_on() -> None:
    tracemalloc.start()
    try:
        assert measured(zeros).workspace_bytes == nearly(0)
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("line", ["n1 c2 o3 i20x20 k3 p1 f32", "pool=max c2 i30x31 k3 s2 f32", "pool=l2 op=grad i9 k2"])
def test_families_measure_their_own(line: str, threads: int) -> None:
    family = family_of(line)
    case = family.case_type().parse(line)
    for name in family.backend_names():
        backend = family.get_backend(name)
        if backend.unavailable() or backend.why_not(case.spec):
            continue
        data = case.data()
        try:
            found = family.measure_memory(backend, case.spec, data, threads)
        except UnsupportedWeights:
            continue
        assert found.y.shape == case.spec.result_shape
        assert case.truth(data).judge(np.asarray(found.y), backend.error_bound(case.spec)).ok
        assert found.prepared_bytes <= found.prepare_peak_bytes


@pytest.mark.parametrize(
    "line", ["i131x157 k9x11 pfull f32", "op=input_grad n2 c6 o4 i71x61 k5x4 s2x1 p2x3 f32", "i99 k1"]
)
def test_sparse_matrix_is_prepared_in_what_it_declares(line: str) -> None:
    """Its parts are sums of 64-bit places: those that are needed once are let go before the next is made."""
    spec = ConvSpec.parse(line)
    first, second = (np.ones(shape, spec.dtype) for shape in spec.operand_shapes)
    found = measure_memory(get_backend("matrix-sparse"), spec, first, second)
    algorithm = SparseMatrix(numpy_namespace(), spec, 1)
    assert found.prepare_peak_bytes <= min(algorithm.preparing_bytes, 2.2 * algorithm.prepared_bytes) + 2**16


@pytest.mark.parametrize(
    "name",
    ["scipy-ndimage", "scipy-ndimage-sep", "opencv", "opencv-sep", "opencv-two-pass", "separable", "direct-numpy"],
)
def test_thousands_of_small_kernels_take_what_is_declared(name: str) -> None:
    backend, spec = get_backend(name), ConvSpec.parse("c48 o64 i4x4 k3 p1 f32")
    if backend.unavailable():
        pytest.skip(f"{name}: {backend.unavailable()}")
    found = measure_memory(backend, spec, *(np.ones(shape, spec.dtype) for shape in spec.operand_shapes))
    assert found.prepared_bytes <= backend.plan(spec).prepared_bytes + 2**14
