"""Three models of one operation agree exactly: the definition's loops, a matrix and products of spectra.

They share no code: loops index samples, the matrix holds the place of every product, a transform knows no index at all.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from strategies import integers, specs

from convbench.backend import second_operand
from convbench.registry import get_backend
from convbench.spec import ConvSpec

MODELS = ("matrix-dense", "matrix-sparse", "fft", "fft-tiled", "fft-tiled-numpy")


@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("model", MODELS)
def test_loops_matrix_and_transforms_agree(model: str, op: str) -> None:
    backend, loops = get_backend(model), get_backend("reference")
    missing = backend.unavailable()
    if missing:
        pytest.skip(missing)

    @settings(max_examples=25, suppress_health_check=[HealthCheck.filter_too_much])
    @given(specs(ops=(op,), dtypes=("float32", "float64", "complex128"), max_macs=1000))
    def agree(spec: ConvSpec) -> None:
        assume(backend.why_not(spec) is None and loops.why_not(spec) is None)
        first, second, bias = integers(spec)
        by_loops, by_model = (
            plan(first, second_operand(plan, second), bias) for plan in (loops.plan(spec), backend.plan(spec))
        )
        np.testing.assert_array_equal(np.rint(by_model), by_loops)

    agree()


def test_the_matrix_of_the_input_gradient_is_the_transpose() -> None:
    """The book's remark on eq. 9.13: multiply by the transpose of the matrix that convolution is."""
    spec = ConvSpec.parse("c2 o3 i5x4 k3x2 s2x1 p1x0 boundary=reflect f64")
    backward = spec.replace(op="input_grad")
    matrix = get_backend("matrix-dense")
    _, w, _ = integers(spec)
    columns = np.eye(np.prod(spec.input_shape, dtype=int)).reshape(-1, *spec.input_shape[1:])
    rows = np.eye(np.prod(spec.output_shape, dtype=int)).reshape(-1, *spec.output_shape[1:])
    forward = matrix.plan(spec.replace(batch=len(columns)))
    gradient = matrix.plan(backward.replace(batch=len(rows)))
    a = forward(columns, forward.prepare(w)).reshape(len(columns), -1).T
    a_transposed = gradient(rows, gradient.prepare(w)).reshape(len(rows), -1).T
    assert a.any()
    np.testing.assert_array_equal(a_transposed, a.T)
