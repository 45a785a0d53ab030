"""The definition against values worked out by hand, against SciPy and PyTorch; the oracle against the definition."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, signal
from strategies import NUMPY_DTYPES, gaussian, integers, specs

from convbench import ConvSpec, UnsupportedSpec, bounds, oracle, reference
from convbench.oracle import Truth

EXACT = ("float32", "float64", "complex64", "complex128", "int8", "int64", "uint8", "uint64")


def run(line: str, x: Any, w: Any, bias: Any = None) -> list[Any]:
    """Evaluate a line on nested lists in float64 and return nested lists, N dropped."""
    spec = ConvSpec.parse(line + " f64")
    x, w = (np.array(a, float).reshape(shape) for a, shape in ((x, spec.input_shape), (w, spec.weight_shape)))
    if bias is not None:
        bias = np.array(bias, float).reshape(spec.bias_shape or ())
    y = reference.conv(spec, x, w, bias)
    np.testing.assert_array_equal(oracle.conv(spec, x, w, bias), y)
    assert y.shape == spec.output_shape
    values: list[Any] = y[0].tolist()
    return values


# -- values worked out by hand ----------------------------------------------------------------

RAMP = [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("line", "w", "expected"),
    [
        ("i4 k2", [1, 10], [21, 32, 43]),  # eq. 9.6: cross-correlation
        ("i4 k2 flip", [1, 10], [12, 23, 34]),  # eq. 9.3: convolution
        ("i4 k3 psame", [1, 10, 100], [210, 321, 432, 43]),
        ("i4 k2 pfull", [1, 10], [10, 21, 32, 43, 4]),
        ("i4 k2 psame", [1, 10], [21, 32, 43, 4]),  # an even kernel pads after
        ("i4 k2 p2:-1", [1, 10], [0, 10, 21, 32]),  # a crop after
        ("i4 k2 p-1:0", [1, 10], [32, 43]),
        ("i4 k2 s2", [1, 10], [21, 43]),  # eq. 9.8: stride
        ("i4 k1 s3", [5], [5, 20]),  # stride > K: samples skipped
        ("i4 k2 d2", [1, 10], [31, 42]),
        ("i4 k2 d3 p1 s2", [1, 10], [30, 2]),
        ("i4 k5 p2", [1, 10, 100, 1000, 10000], [43210 // 10 * 10 - 40000 + 1000 - 10, 43210, 4321, 432][:0] or None),
    ],
)
def test_one_axis(line: str, w: list[int], expected: list[int]) -> None:
    assert run(line, RAMP, w) == [expected]
