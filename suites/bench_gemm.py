"""``direct`` beside a matrix product of the same FLOPs, for layers whose sums have 64 terms or more.

    pytest --benchmark suites/bench_gemm.py

Each layer of `cnn-layers` with C·R·S ≥ 64 and 14 or more outputs along a row, without groups, gives a group of two
rows: ``direct`` on prepared weights, and NumPy's product of a matrix (O, C·R·S) by one (C·R·S, P), whose columns are
there already: what im2col would cost if unfolding were free. One thread each.
"""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

import convbench as cb
from convbench.bench.cases import load_suite
from convbench.threads import blas_threads


def _qualifies(spec: cb.ConvSpec) -> bool:
    terms = spec.in_channels * prod(spec.kernel_size)
    return spec.groups == 1 and terms >= 64 and spec.output_size[-1] >= 14 and spec.macs < 2 * 10**9


LAYERS = [str(case.spec) for case in load_suite("cnn-layers").cases if _qualifies(case.spec)]


def _numbers(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("way", ["direct", "sgemm"])
@pytest.mark.parametrize("layer", LAYERS)
def test_layer(benchmark: BenchmarkFixture, layer: str, way: str) -> None:
    benchmark.group = layer
    spec = cb.ConvSpec.parse(layer)
    if way == "direct":
        plan = cb.plan(spec, "direct", threads=1)
        x, weights = _numbers(*spec.input_shape), plan.prepare(_numbers(*spec.weight_shape))
        out = np.empty(spec.output_shape, np.float32)
        benchmark(lambda: plan(x, weights, out=out))
        return
    w, columns = (
        _numbers(spec.out_channels, prod(spec.weight_shape[1:])),
        _numbers(prod(spec.weight_shape[1:]), prod(spec.output_size)),
    )
    out = np.empty((spec.out_channels, columns.shape[1]), np.float32)
    with blas_threads(1):
        benchmark(lambda: np.matmul(w, columns, out=out))
