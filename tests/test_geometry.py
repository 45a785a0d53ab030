"""Sizes and edges against counting them out, and against NumPy's pad."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convbench.geometry import (
    BOUNDARIES,
    boundary_index,
    in_bounds_taps,
    output_size,
    outputs_in_bounds,
    positions_reached,
    word_padding,
)

NUMPY_MODES = {"circular": "wrap", "reflect": "reflect", "replicate": "edge"}
sizes, kernels, steps = st.integers(1, 12), st.integers(1, 6), st.integers(1, 4)


def counted_outputs(size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> int:
    """Count the positions at which the whole kernel lies on the padded axis."""
    padded = size + before + after
    return sum(1 for start in range(0, max(padded, 0), stride) if start + dilation * (kernel - 1) < padded)


@given(sizes, kernels, steps, steps, st.integers(-3, 8), st.integers(-3, 8))
def test_output_size_counts_the_positions_of_the_kernel(
    size: int, kernel: int, stride: int, dilation: int, before: int, after: int
) -> None:
    formula = output_size(size, kernel, stride, dilation, before, after)
    assert max(formula, 0) == counted_outputs(size, kernel, stride, dilation, before, after)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "before", "after", "outputs"),
    [
        (224, 7, 2, 1, 3, 3, 112),  # ResNet's first layer
        (227, 11, 4, 1, 0, 0, 55),  # AlexNet's
        (5, 3, 1, 2, 0, 0, 1),
        (5, 3, 1, 3, 0, 0, -1),
        (1, 1, 5, 5, 0, 0, 1),
        (10, 3, 7, 1, 0, 0, 2),  # samples skipped between windows
    ],
)
def test_output_size_known_values(
    size: int, kernel: int, stride: int, dilation: int, before: int, after: int, outputs: int
) -> None:
    assert output_size(size, kernel, stride, dilation, before, after) == outputs


@given(sizes, kernels, steps, steps)
def test_words_give_the_sizes_they_promise(size: int, kernel: int, stride: int, dilation: int) -> None:
    extent = dilation * (kernel - 1)
    assert word_padding("valid", size, kernel, stride, dilation) == (0, 0)
    assert word_padding("full", size, kernel, stride, dilation) == (extent, extent)
    before, after = word_padding("same", size, kernel, stride, dilation)
    assert 0 <= before <= after <= before + 1  # the odd sample lies after
    assert output_size(size, kernel, stride, dilation, before, after) == -(-size // stride)
    if before + after:  # and no smaller padding would do
        assert output_size(size, kernel, stride, dilation, before, after - 1) < -(-size // stride)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "expected"),
    [
        (5, 4, 1, 1, (1, 2)),  # even kernel
        (224, 7, 2, 1, (2, 3)),  # TensorFlow's rule; PyTorch users write 3
        (6, 3, 2, 1, (0, 1)),
        (7, 3, 2, 1, (1, 1)),
        (9, 1, 4, 1, (0, 0)),  # stride > kernel: the total would be negative
        (5, 3, 1, 4, (4, 4)),  # dilation, beyond the input's size
    ],
)
def test_same_padding_known_values(
    size: int, kernel: int, stride: int, dilation: int, expected: tuple[int, int]
) -> None:
    assert word_padding("same", size, kernel, stride, dilation) == expected


@pytest.mark.parametrize("boundary", ["circular", "reflect", "replicate"])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("reach", [0, 1, 3, 25])
def test_extension_is_numpys_pad_however_far(boundary: str, size: int, reach: int) -> None:
    padded = np.pad(np.arange(size), reach, mode=NUMPY_MODES[boundary])  # type: ignore[call-overload]
    assert [boundary_index(q, size, boundary) for q in range(-reach, size + reach)] == padded.tolist()


@given(st.integers(-40, 40), sizes)
def test_zero_boundary_has_samples_inside_only(position: int, size: int) -> None:
    assert boundary_index(position, size, "zero") == (position if 0 <= position < size else None)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_every_boundary_is_the_identity_inside(boundary: str) -> None:
    assert [boundary_index(q, 5, boundary) for q in range(5)] == list(range(5))


@given(sizes, kernels, steps, steps, st.integers(-4, 8), st.integers(0, 8))
def test_in_bounds_taps_counts_pairs(
    size: int, kernel: int, stride: int, dilation: int, before: int, outputs: int
) -> None:
    pairs = sum(0 <= p * stride + k * dilation - before < size for p in range(outputs) for k in range(kernel))
    assert in_bounds_taps(size, kernel, stride, dilation, before, outputs) == pairs


def test_closed_forms_count_what_a_loop_counts() -> None:
    """Taps and outputs inside, and positions reached, over a seeded lot of small axes."""
    chosen, counted = random.Random(0), 0
    while counted < 2000:
        size, kernel, stride, dilation = (chosen.randint(1, 9) for _ in range(4))
        before, after = (chosen.randint(-4, 14) for _ in range(2))
        outputs = output_size(size, kernel, stride, dilation, before, after)
        if outputs < 1:
            continue
        counted += 1
        positions = [(p, p * stride + k * dilation) for p in range(outputs) for k in range(kernel)]
        inside = [p for p, position in positions if 0 <= position - before < size]
        axis = (size, kernel, stride, dilation, before, outputs)
        assert in_bounds_taps(*axis) == len(inside), axis
        assert outputs_in_bounds(*axis) == len(set(inside)), axis
        assert positions_reached(kernel, stride, dilation, outputs) == len({at for _, at in positions}), axis
