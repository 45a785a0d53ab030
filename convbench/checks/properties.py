"""What must hold of any convolution, whatever its numbers: identities between runs of one backend, in exact integers.

The derived specs must be willing too; where one is not, the check is refused with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.checks.specs import Numbers, integers
from convbench.checks.subject import CheckFunction, Subject, require_equal
from convbench.spec import ConvSpec

__all__ = ["PROPERTIES"]

Array = NDArray[Any]


def _small(subject: Subject, purpose: str, largest: int = 2) -> Numbers:
    return integers(subject.rng(purpose), largest)


def _bias(spec: ConvSpec, numbers: Numbers) -> Array | None:
    return None if spec.bias_shape is None else numbers(spec.bias_shape, spec.dtype)


def linear_in_input_and_weights(subject: Subject) -> None:
    """2·x₁ + 3·x₂ gives 2·y₁ + 3·y₂, and 3·w gives 3·y."""
    spec, numbers = subject.spec, _small(subject, "linear")
    x1, x2 = (subject.laid_out(numbers(spec.input_shape, spec.dtype)) for _ in range(2))
    w, nothing = subject.weights(numbers), _bias(spec, lambda shape, dtype: np.zeros(shape, dtype))
    two, three = np.array((2, 3), spec.dtype)
    y1, y2 = (subject.run_integers(x, w, nothing) for x in (x1, x2))
    require_equal(subject.run_integers(two * x1 + three * x2, w, nothing), 2 * y1 + 3 * y2, "2·x₁ + 3·x₂")
    require_equal(subject.run_integers(x1, three * w, nothing), 3 * y1, "3·w")


def flipping_the_kernel_turns_one_operation_into_the_other(subject: Subject) -> None:
    """conv(x, w) = xcorr(x, flip w)."""
    spec = subject.spec
    dual = subject.on(spec.replace(flip=not spec.flip))
    x, w, bias = subject.draw(_small(subject, "flip"))
    flipped = np.flip(w, tuple(range(-spec.ndim, 0)))
    expected = subject.run_integers(x, w, bias)
    require_equal(dual.run_integers(x, flipped, bias), expected, f"as {dual.spec} with w flipped")


def groups_are_separate_runs(subject: Subject) -> None:
    """Each group gives what its channels give alone."""
    spec, g = subject.spec, subject.spec.groups
    alone = subject.on(spec.replace(groups=1, in_channels=spec.in_channels // g, out_channels=spec.out_channels // g))
    x, w, bias = subject.draw(_small(subject, "groups"))
    biases = [None] * g if bias is None else np.split(bias, g)
    parts = [
        alone.run_integers(*operands) for operands in zip(np.split(x, g, axis=1), np.split(w, g), biases, strict=True)
    ]
    require_equal(subject.run_integers(x, w, bias), np.concatenate(parts, axis=1), f"against {g} runs of {alone.spec}")


def a_stride_keeps_every_sth_output(subject: Subject) -> None:
    """Stride s is stride 1 at the same padding, then every s-th sample."""
    spec = subject.spec.replace(padding=subject.spec.padding, bias="none")
    strided, dense = subject.on(spec), subject.on(spec.replace(stride=1))
    x, w, _ = strided.draw(_small(subject, "stride"))
    every: tuple[Any, ...] = (..., *(slice(None, None, s) for s in spec.stride))
    expected = dense.run_integers(x, w, None)[every]
    require_equal(strided.run_integers(x, w, None), expected, f"against every s-th output of {dense.spec}")


def full_convolution_commutes(subject: Subject) -> None:
    """Single channels: x ∗ w = w ∗ x; sizes are cut to 8 to keep it quick."""
    spec = subject.spec
    sizes = [tuple(min(8, n) for n in size) for size in (spec.input_size, spec.kernel_size)]
    there, back = (
        subject.on(ConvSpec(input_size=a, kernel_size=b, padding="full", flip=True, dtype=spec.dtype))
        for a, b in (sizes, sizes[::-1])
    )
    numbers = _small(subject, "commute", 1)
    x, w = back.weights(numbers), there.weights(numbers)
    require_equal(back.run_integers(w, x, None), there.run_integers(x, w, None), f"{back.spec} against {there.spec}")


def a_shifted_input_shifts_the_output(subject: Subject) -> None:
    """Along each axis, moving the input by s moves the outputs whose windows lie inside by one."""
    spec = subject.spec
    for axis in range(spec.ndim):
        moved = _interior(spec, axis)
        if moved is None:
            continue
        shape = list(spec.input_shape)
        shape[2 + axis] += spec.stride[axis]
        numbers = _small(subject, f"shift {axis}")
        field, w, bias = numbers(tuple(shape), spec.dtype), subject.weights(numbers), _bias(spec, numbers)
        last = slice(None), slice(None), *(slice(None),) * axis
        here = subject.run_integers(field[(*last, slice(None, spec.input_size[axis]))], w, bias)
        there = subject.run_integers(field[(*last, slice(spec.stride[axis], None))], w, bias)
        first, stop = moved
        when = f"input moved by {spec.stride[axis]} along axis {axis}"
        require_equal(there[(*last, slice(first, stop))], here[(*last, slice(first + 1, stop + 1))], when)


def _interior(spec: ConvSpec, axis: int) -> tuple[int, int] | None:
    """Outputs p such that the windows of p and p + 1 lie inside the input: first and stop, or None."""
    stride, before = spec.stride[axis], spec.padding[axis][0]
    extent = spec.dilation[axis] * (spec.kernel_size[axis] - 1)
    first = max(0, -(-before // stride))
    stop = min(spec.output_size[axis], (spec.input_size[axis] - 1 - extent + before) // stride + 1) - 1
    return (first, stop) if first < stop else None


def a_rolled_circular_input_rolls_the_output(subject: Subject) -> None:
    """Circular boundary, same: exact everywhere, for shifts by the stride where that divides the size."""
    stride = [s if n % s == 0 else 1 for n, s in zip(subject.spec.input_size, subject.spec.stride, strict=True)]
    around = subject.on(subject.spec.replace(stride=stride, padding="same", bias="none", tile=None))
    spec = around.spec
    x, w, _ = around.draw(_small(subject, "roll"))
    axes = tuple(range(2, 2 + spec.ndim))
    expected = np.roll(around.run_integers(x, w, None), (1,) * spec.ndim, axes)
    require_equal(around.run_integers(np.roll(x, stride, axes), w, None), expected, f"{spec}, input rolled by {stride}")


def a_tile_of_one_is_shared(subject: Subject) -> None:
    """Tiled convolution of period 1 is convolution."""
    spec = subject.spec.replace(bias="channel" if subject.spec.bias == "tile" else subject.spec.bias)
    tiled, shared = subject.on(spec.replace(tile=1)), subject.on(spec.replace(tile=None))
    x, w, bias = shared.draw(_small(subject, "tile"))
    expected = shared.run_integers(x, w, bias)
    tiles = w.reshape(tiled.spec.weight_shape)
    require_equal(tiled.run_integers(x, tiles, bias), expected, f"t1 against {shared.spec}")


def one_axis_after_the_other_is_the_outer_product(subject: Subject) -> None:
    """Passes along single axes compose to their outer product."""
    spec = subject.spec.replace(
        batch=1, in_channels=1, out_channels=1, groups=1, bias="none", padding=subject.spec.padding
    )
    whole, numbers = subject.on(spec), _small(subject, "passes", 1)
    x = numbers(spec.input_shape, spec.dtype)
    y, kernel = x, np.ones((1,) * (2 + spec.ndim), spec.dtype)
    for axis in range(spec.ndim):
        one = subject.on(_single_axis(spec, axis, y.shape[2:]))
        factor = numbers(one.spec.weight_shape, spec.dtype)
        y, kernel = one.run_integers(y, factor, None), kernel * factor
    require_equal(whole.run_integers(x, kernel, None), y, f"{spec} against passes along each axis")


def _single_axis(spec: ConvSpec, axis: int, input_size: tuple[int, ...]) -> ConvSpec:
    """The part of ``spec`` that acts along ``axis``."""

    def there(values: tuple[Any, ...], elsewhere: Any) -> list[Any]:
        return [value if i == axis else elsewhere for i, value in enumerate(values)]

    return spec.replace(
        input_size=input_size,
        kernel_size=there(spec.kernel_size, 1),
        stride=there(spec.stride, 1),
        padding=there(spec.padding, (0, 0)),
        dilation=there(spec.dilation, 1),
    )


def _shared_and_real(spec: ConvSpec) -> bool:
    return spec.tile is None and "int" not in spec.dtype


#: Each property, and the specs that it says something about.
PROPERTIES: tuple[tuple[CheckFunction, Callable[[ConvSpec], bool]], ...] = (
    (linear_in_input_and_weights, lambda spec: spec.batch > 0),
    (flipping_the_kernel_turns_one_operation_into_the_other, lambda spec: set(spec.kernel_size) != {1}),
    (groups_are_separate_runs, lambda spec: spec.groups > 1),
    (a_stride_keeps_every_sth_output, lambda spec: set(spec.stride) != {1} and spec.tile is None),
    (full_convolution_commutes, lambda spec: _shared_and_real(spec) and spec.boundary == "zero"),
    (
        a_shifted_input_shifts_the_output,
        lambda spec: (
            spec.tile is None
            and spec.bias != "location"
            and spec.batch > 0
            and any(_interior(spec, axis) for axis in range(spec.ndim))
        ),
    ),
    (a_rolled_circular_input_rolls_the_output, lambda spec: spec.boundary == "circular"),
    (a_tile_of_one_is_shared, lambda spec: spec.tile is not None),
    (one_axis_after_the_other_is_the_outer_product, lambda spec: _shared_and_real(spec) and spec.ndim > 1),
)
