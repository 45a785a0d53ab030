"""``backend="auto"``: what it prefers, and that it never picks what would take absurdly long."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from strategies import specs

import convbench as cb
from convbench import ConvSpec
from convbench.select import AUTO_ORDER, choose, preferred

FFT = ("fft-pocketfft", "fft")


@pytest.mark.parametrize(
    "line",
    [
        "i8x8 k3",
        "i1024x1024 k3",
        "i1024x1024 k7",
        "c64 o64 i56x56 k3 p1",
        "c64 o64 i56x56 k11 p5",  # as many transforms of kernels as products
        "c3 o64 i224x224 k7 s2 p3",
        "c64 o64 g64 i56x56 k3 p1",
        "i65536 k33",
        "i20x20 k10 pfull",  # a call of an FFT costs more
        "op=input_grad i8x8 k3",
        "i512x512 k31 tunshared",  # whose kernels are as many as outputs
        "n0 i512x512 k31",
    ],
)
def test_what_a_gemm_does_well_it_does(line: str) -> None:
    assert preferred(ConvSpec.parse(line)) == ()
    assert choose(ConvSpec.parse(line)).name == AUTO_ORDER[0]


@pytest.mark.parametrize(
    "line",
    [
        "i1024x1024 k101",  # 10¹⁰ products, or three transforms
        "i1024x1024 k31",
        "c64 o64 g64 i56x56 k31 p15",
        "c3 o3 g3 i512x512 k15",
        "i1048576 k4097",
        "i64x64x64 k9",
        "op=input_grad i1024x1024 k31",
        "op=weight_grad i1024x1024 k31",
        "i1024x1024 k31 pfull boundary=reflect complex128",
    ],
)
def test_large_kernels_of_few_channels_are_transformed(line: str) -> None:
    spec = ConvSpec.parse(line)
    assert preferred(spec) == FFT
    pytest.importorskip("scipy")
    assert choose(spec).name == FFT[0]
    # but never where they cannot, or would spread what the caller fears
    assert choose(spec, finite=False).name not in FFT
    assert choose(spec.replace(dtype="int16")).name == AUTO_ORDER[0]


def test_input_gradients_of_single_channels_are_added_up_directly() -> None:
    assert choose(ConvSpec.parse("op=input_grad i256x256 k3")).name == "direct-numpy"
    assert choose(ConvSpec.parse("op=input_grad c8 o8 g8 i56x56 k3 p1")).name == "direct-numpy"
    assert choose(ConvSpec.parse("op=input_grad c8 o8 i56x56 k3")).name == "im2col"


@given(specs())
def test_every_spec_that_numpy_can_store_has_a_backend(spec: ConvSpec) -> None:
    if spec.dtype != "bfloat16":
        assert choose(spec).why_not(spec) is None
        assert not choose(spec, finite=False).error_bound(spec).spreads_nonfinite


def test_a_large_kernel_through_the_front_door() -> None:
    """By way of the transform, and right."""
    rng = np.random.default_rng(0)
    a, v = rng.standard_normal((300, 300)), rng.standard_normal((101, 101))
    assert cb.plan("i300x300 k101 flip pfull f64").backend == FFT[0]
    np.testing.assert_allclose(cb.convolve(a, v)[150, 150], (a[50:151, 50:151] * v[::-1, ::-1]).sum(), rtol=1e-9)
