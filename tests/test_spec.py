"""ConvSpec: what it derives is counted out by hand, and what it refuses it names."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections import Counter
from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from strategies import specs

from convbench import ConvSpec, SpecError
from convbench.geometry import output_size


def touched(spec: ConvSpec) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield (output position, position on the padded axes) of every tap of the definition, spatial axes only."""
    for p in product(*map(range, spec.output_size)):
        for k in product(*map(range, spec.kernel_size)):
            axes = zip(p, k, spec.stride, spec.dilation, spec.padding, strict=True)
            yield p, tuple(i * s + j * d - a for i, j, s, d, (a, _) in axes)


# -- derived quantities -----------------------------------------------------------------------


@given(specs())
def test_sizes_and_shapes(spec: ConvSpec) -> None:
    axes = zip(spec.input_size, spec.kernel_size, spec.stride, spec.dilation, spec.padding, strict=True)
    assert spec.output_size == tuple(output_size(h, k, s, d, a, b) for h, k, s, d, (a, b) in axes)
    assert min(spec.output_size) >= 1
    assert spec.ndim == len(spec.input_size) == len(spec.padding)
    tile = () if spec.tile is None else spec.tile
    per_group = spec.in_channels // spec.groups
    assert spec.input_shape == (spec.batch, spec.in_channels, *spec.input_size)
    assert spec.weight_shape == (spec.out_channels, *tile, per_group, *spec.kernel_size)
    assert spec.output_shape == (spec.batch, spec.out_channels, *spec.output_size)
    expected = {"forward": spec.output_shape, "input_grad": spec.input_shape, "weight_grad": spec.weight_shape}
    assert spec.result_shape == expected[spec.op]
    biases = {"none": None, "channel": (), "tile": tile, "location": spec.output_size}
    tail = biases[spec.bias]
    biased = spec.op == "forward" and tail is not None
    assert spec.bias_shape == ((spec.out_channels, *tail) if biased else None)
    assert spec.parameters == prod(spec.weight_shape) + (0 if spec.bias_shape is None else prod(spec.bias_shape))


@settings(max_examples=200)
@given(specs(max_axes=2))
@example(ConvSpec(op="weight_grad", batch=2, input_size=1, kernel_size=1, tile=2))  # one of the two kernels is not used
def test_operations_counted_out(spec: ConvSpec) -> None:
    taps = list(touched(spec))
    channel_pairs = spec.batch * spec.out_channels * (spec.in_channels // spec.groups)
    assert spec.macs == spec.multiplications == channel_pairs * len(taps)
    assert spec.flops == 2 * spec.macs
    inside = [q for _, q in taps if all(0 <= i < h for i, h in zip(q, spec.input_size, strict=True))]
    assert spec.in_bounds_macs == channel_pairs * len(inside if spec.boundary == "zero" else taps)
    # m products summed into one number cost m − 1 additions
    products_per_group = spec.out_channels // spec.groups
    if spec.op == "forward":
        expected = prod(spec.output_shape) * (spec.terms - 1 + (spec.bias != "none"))
    elif spec.op == "input_grad":
        sums = Counter(q for _, q in taps)
        expected = spec.batch * spec.in_channels * sum(products_per_group * m - 1 for m in sums.values())
    else:
        cycle = spec.tile or (1,) * spec.ndim
        per_entry = Counter(
            tuple(i % t for i, t in zip(p, cycle, strict=True)) for p in product(*map(range, spec.output_size))
        )
        entries = prod(spec.kernel_size) * spec.out_channels * (spec.in_channels // spec.groups)
        expected = entries * sum(max(0, spec.batch * m - 1) for m in per_entry.values())
    assert spec.additions == expected


def test_the_books_edge_detection() -> None:
    """Deep Learning, example 9.2: 319·280·3 operations against 8·10⁹ matrix entries."""
    spec = ConvSpec(input_size=(280, 320), kernel_size=(1, 2))
    assert spec.output_size == (280, 319)
    assert spec.parameters == 2
    assert spec.multiplications + spec.additions == 319 * 280 * 3 == 267_960
    assert spec.in_bounds_macs == 2 * 319 * 280 == 178_640  # entries of the sparse matrix


def test_resnet50_needs_4087_mmacs() -> None:
    """ResNet-50 v1.5 at 224: the 53 convolutions; the stride sits in the 3×3 layers."""

    def layer(channels: int, outputs: int, size: int, kernel: int, stride: int = 1) -> ConvSpec:
        return ConvSpec(
            in_channels=channels,
            out_channels=outputs,
            input_size=(size, size),
            kernel_size=kernel,
            stride=stride,
            padding=kernel // 2,
        )

    layers, channels, size = [layer(3, 64, 224, 7, 2)], 64, 56
    for width, blocks, first_stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            layers += [layer(channels, width, size, 1), layer(width, width, size, 3, stride)]
            if block == 0:
                layers.append(layer(channels, 4 * width, size, 1, stride))
            size //= stride
            layers.append(layer(width, 4 * width, size, 1))
            channels = 4 * width
    assert len(layers) == 53
    assert layers[-1].output_size == (7, 7)
    assert round(sum(spec.macs for spec in layers) / 1e6) == 4087


@given(specs())
def test_least_traffic(spec: ConvSpec) -> None:
    x, w, y = prod(spec.input_shape), prod(spec.weight_shape), prod(spec.output_shape)
    bias = 0 if spec.bias_shape is None else prod(spec.bias_shape)
    read = {"forward": x + w + bias, "input_grad": y + w, "weight_grad": x + y}[spec.op]
    assert spec.bytes_min == read * spec.itemsize + prod(spec.result_shape) * (
        8 if "int" in spec.dtype else spec.itemsize
    )
    if spec.bytes_min:
        assert spec.arithmetic_intensity == spec.flops / spec.bytes_min


@pytest.mark.parametrize(
    ("dtype", "result", "itemsize"),
    [
        ("float16", "float16", 2),
        ("bfloat16", "bfloat16", 2),
        ("float32", "float32", 4),
        ("complex64", "complex64", 8),
        ("complex128", "complex128", 16),
        ("int8", "int64", 1),
        ("uint32", "int64", 4),
        ("int64", "int64", 8),
        ("uint64", "uint64", 8),
    ],
)
def test_result_dtypes(dtype: str, result: str, itemsize: int) -> None:
    spec = ConvSpec(input_size=8, kernel_size=3, dtype=dtype)
    assert (spec.result_dtype, spec.itemsize) == (result, itemsize)


# -- a description: frozen, comparable, copied with changes -----------------------------------


@given(specs())
def test_a_spec_is_a_frozen_value(spec: ConvSpec) -> None:
    again = copy.deepcopy(spec)
    assert pickle.loads(pickle.dumps(spec)) == spec == again
    assert hash(spec) == hash(again)
    assert spec.replace() == spec
    assert str(spec.replace()) == str(spec)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.batch = 3  # type: ignore[misc]


def test_equal_geometry_is_equal_however_it_was_written() -> None:
    by_word = ConvSpec(input_size=(8, 8), kernel_size=3, padding="same", tile="unshared")
    by_number = ConvSpec(input_size=[8, 8], kernel_size=(3, 3), padding=((1, 1), [1, 1]), tile=8)
    assert by_word == by_number
    assert hash(by_word) == hash(by_number)
    assert by_word != by_number.replace(flip=True)


def test_numpy_integers_are_integers() -> None:
    spec = ConvSpec(input_size=np.array([8, 9]), kernel_size=np.int64(3), padding=np.array([[0, 1], [2, 0]]))
    assert spec == ConvSpec(input_size=(8, 9), kernel_size=3, padding=((0, 1), (2, 0)))
    assert all(type(size) is int for size in (*spec.input_size, *spec.kernel_size, *spec.padding[0]))


@pytest.mark.parametrize(
    ("padding", "stored"),
    [
        ("valid", ((0, 0), (0, 0))),
        ("same", ((1, 1), (2, 2))),
        ("full", ((2, 2), (4, 4))),
        (1, ((1, 1), (1, 1))),
        (-1, ((-1, -1), (-1, -1))),
        ((1, 2), ((1, 1), (2, 2))),
        (((0, 1), (2, 3)), ((0, 1), (2, 3))),
        ((1, (2, -1)), ((1, 1), (2, -1))),
    ],
)
def test_padding_is_stored_as_pairs(padding: Any, stored: tuple[tuple[int, int], ...]) -> None:
    assert ConvSpec(input_size=(9, 9), kernel_size=(3, 5), padding=padding).padding == stored


def test_replace_resolves_words_anew_and_keeps_numbers() -> None:
    spec = ConvSpec(input_size=9, kernel_size=3, padding="same", tile="unshared", bias="tile")
    larger = spec.replace(input_size=20, kernel_size=5, stride=2)
    assert (larger.padding, larger.tile, larger.bias_shape) == (((1, 2),), (10,), (1, 10))
    explicit = ConvSpec(input_size=9, kernel_size=3, padding=1, tile=2).replace(kernel_size=5)
    assert (explicit.padding, explicit.tile) == (((1, 1),), (2,))


# -- what is malformed ------------------------------------------------------------------------

BASE: dict[str, Any] = {"input_size": (8, 8), "kernel_size": 3}


@pytest.mark.parametrize(
    ("changes", "field", "part"),
    [
        ({"op": "backward"}, "op", "forward, input_grad, weight_grad"),
        ({"op": None}, "op", "must be one of"),
        ({"batch": -1}, "batch", "integer ≥ 0"),
        ({"batch": 1.0}, "batch", "integer ≥ 0"),
        ({"batch": True}, "batch", "integer ≥ 0"),
        ({"in_channels": 0}, "in_channels", "integer ≥ 1"),
        ({"out_channels": "3"}, "out_channels", "integer ≥ 1"),
        ({"input_size": ()}, "input_size", "at least one axis"),
        ({"input_size": (8, -8)}, "input_size", "integer ≥ 1"),
        ({"input_size": (8, 0)}, "input_size", "integer ≥ 1"),
        ({"input_size": "8x8"}, "input_size", "integer ≥ 1"),
        ({"input_size": None}, "input_size", "integer ≥ 1"),
        ({"kernel_size": 0}, "kernel_size", "integer ≥ 1"),
        ({"kernel_size": (3,)}, "kernel_size", "one for each of the 2 axes"),
        ({"kernel_size": 2.5}, "kernel_size", "integer ≥ 1"),
        ({"kernel_size": 9}, "input_size", "along axis 0: input 8 + padding 0 + 0"),
        ({"kernel_size": (3, 4), "dilation": (1, 3)}, "input_size", "along axis 1"),
        ({"padding": -3}, "input_size", "no output along axis 0"),
        ({"stride": 0}, "stride", "integer ≥ 1"),
        ({"stride": (1, 1, 1)}, "stride", "2 axes"),
        ({"dilation": -1}, "dilation", "integer ≥ 1"),
        ({"padding": "SAME"}, "padding", "valid, same, full"),
        ({"padding": 1.5}, "padding", "must be an integer"),
        ({"padding": (1,)}, "padding", "1 entries for 2 axes"),
        ({"padding": (1, 1, 1, 1)}, "padding", "4 entries for 2 axes"),
        ({"padding": ((1, 1, 1), (0, 0))}, "padding", "(before, after) pair"),
        ({"padding": ("1", "1")}, "padding", "must be an integer"),
        ({"input_size": 8, "padding": (1, 2)}, "padding", "((before, after),)"),
        ({"groups": 0}, "groups", "integer ≥ 1"),
        ({"groups": 2}, "groups", "must divide in_channels = 1"),
        ({"groups": 2, "in_channels": 4, "out_channels": 3}, "groups", "must divide out_channels = 3"),
        ({"tile": 0}, "tile", "integer ≥ 1"),
        ({"tile": "shared"}, "tile", "unshared"),
        ({"tile": (2, 2, 2)}, "tile", "2 axes"),
        ({"boundary": "zeros"}, "boundary", "'zeros' elsewhere means zero here"),
        ({"boundary": "wrap"}, "boundary", "means circular here"),
        ({"boundary": "mirror"}, "boundary", "means reflect here"),
        ({"boundary": "nearest"}, "boundary", "means replicate here"),
        ({"boundary": "symmetric"}, "boundary", "half-sample symmetry"),
        ({"flip": 1}, "flip", "True (convolution) or False"),
        ({"bias": True}, "bias", "none, channel, tile, location"),
        ({"bias": "tile"}, "bias", "needs tile"),
        ({"layout": "NHWC"}, "layout", "channels_first, channels_last"),
        ({"dtype": "f32"}, "dtype", "float32"),
        ({"dtype": np.float32}, "dtype", "float32"),
    ],
)
def test_malformed_specs_name_field_value_and_rule(changes: dict[str, Any], field: str, part: str) -> None:
    with pytest.raises(SpecError) as caught:
        ConvSpec(**{**BASE, **changes})
    error = caught.value
    assert error.field == field
    assert str(error).startswith(f"{field}: got ")
    assert part in error.rule
    assert "\n" not in str(error)
    assert isinstance(error, ValueError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # errors cross process borders


def test_unknown_and_missing_fields_are_type_errors() -> None:
    with pytest.raises(TypeError, match="kernel_size"):
        ConvSpec(input_size=8)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="strides"):
        ConvSpec(input_size=8, kernel_size=3, strides=2)  # type: ignore[call-arg]


def test_long_values_are_shortened_in_messages() -> None:
    with pytest.raises(SpecError) as caught:
        ConvSpec(input_size=8, kernel_size=list(range(1, 500)))
    assert len(str(caught.value)) < 250
