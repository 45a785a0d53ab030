"""``backend="auto"``: what it prefers, and that it never picks what would take absurdly long."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from strategies import specs

import convbench as cb
from convbench import ConvSpec
from convbench.select import choose, preferred

FFT = ("fft-pocketfft", "fft")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("i8x8 k3", ()),
        ("i1024x1024 k3", ()),
        ("i1024x1024 k11", ()),
        ("c3 o64 i224x224 k7 s2 p3", ()),
        ("c64 o64 g64 i56x56 k3 p1", ()),
        ("c1024 o1024 g1024 i7x7 k13 p6", ()),  # outputs do not fill tiles
        ("i65536 k33", ()),
        ("i20x20 k10 pfull", ()),
        ("op=input_grad i8x8 k3", ()),
        ("i512x512 k31 tunshared", ()),  # whose kernels are as many as outputs
        ("n0 i512x512 k31", ()),
        ("c64 o64 i56x56 k3 p1", ("winograd",)),
        ("op=input_grad c64 o64 i56x56 k3 p1", ("winograd",)),
        ("c64 o64 i56x56 k11 p5", ("fft-tiled",)),
        ("i1024x1024 k31", ("fft-tiled",)),
        ("c64 o64 g64 i56x56 k31 p15", ("fft-tiled",)),
        ("i1048576 k4097", ("fft-tiled",)),
        ("op=input_grad i1024x1024 k31", ("fft-tiled",)),
        ("op=weight_grad i1024x1024 k31", FFT),  # of one output in 16 lanes
        ("i1024x1024 k101 d2", FFT),
        ("i1024x1024 k31 pfull boundary=reflect complex128", FFT),
    ],
)
def test_what_is_preferred(line: str, expected: tuple[str, ...]) -> None:
    assert preferred(ConvSpec.parse(line)) == expected


@pytest.mark.parametrize("line", ["i1024x1024 k31", "op=weight_grad i1024x1024 k31", "c64 o64 i56x56 k3 p1"])
def test_what_spreads_nan_is_passed_over_where_it_is_feared(line: str) -> None:
    spec = ConvSpec.parse(line)
    assert choose(spec).error_bound(spec).spreads_nonfinite
    assert choose(spec, finite=False).name == "direct"
    assert choose(spec.replace(dtype="int16")).name == "im2col"


@given(specs())
def test_every_spec_that_numpy_can_store_has_a_backend(spec: ConvSpec) -> None:
    if spec.dtype != "bfloat16":
        assert choose(spec).why_not(spec) is None
        assert not choose(spec, finite=False).error_bound(spec).spreads_nonfinite


def test_a_large_kernel_through_the_front_door() -> None:
    """By way of the transform, and right."""
    rng = np.random.default_rng(0)
    a, v = rng.standard_normal((300, 300)), rng.standard_normal((101, 101))
    assert cb.plan("i300x300 k101 flip pfull f64").backend == "fft-tiled"
    np.testing.assert_allclose(cb.convolve(a, v)[150, 150], (a[50:151, 50:151] * v[::-1, ::-1]).sum(), rtol=1e-9)
