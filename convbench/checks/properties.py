"""What must hold of any convolution, whatever its numbers: identities between runs of one backend, in exact integers.

The derived specs must be willing too; where one is not, the check is refused with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.checks.specs import Numbers, integers
from convbench.checks.subject import CheckFunction, Failure, Operands, Refusal, Subject, require_equal
from convbench.spec import ConvSpec

__all__ = ["PROPERTIES"]

Array = NDArray[Any]
Slices = tuple[Any, ...]

_RESULTS = {"forward": "y", "input_grad": "x", "weight_grad": "w"}  # what has the shape of the result; g that of y


def _small(subject: Subject, purpose: str, largest: int = 2) -> Numbers:
    return integers(subject.rng(purpose), largest)


def _bias(spec: ConvSpec, numbers: Numbers) -> Array | None:
    return None if spec.bias_shape is None else numbers(spec.bias_shape, spec.dtype)


def linear_in_each_operand(subject: Subject) -> None:
    """2·a₁ + 3·a₂ in place of the first operand gives 2·y₁ + 3·y₂, and 3·b in place of the second 3·y."""
    spec, numbers = subject.spec, _small(subject, "linear")
    first, second = spec.operand_names
    a1, a2 = (subject.operand(first, numbers) for _ in range(2))
    b, nothing = subject.operand(second, numbers), _bias(spec, lambda shape, dtype: np.zeros(shape, dtype))
    two, three = np.array((2, 3), spec.dtype)
    y1, y2 = (subject.run_integers(a, b, nothing) for a in (a1, a2))
    combined = subject.run_integers(two * a1 + three * a2, b, nothing)
    require_equal(combined, 2 * y1 + 3 * y2, f"2·{first}₁ + 3·{first}₂")
    require_equal(subject.run_integers(a1, three * b, nothing), 3 * y1, f"3·{second}")


# -- the gradients are the adjoint ------------------------------------------------------------


def gradients_are_the_adjoint(subject: Subject) -> str | None:
    """⟨conv(x, w), g⟩ = ⟨x, input_grad(g, w)⟩ = ⟨w, weight_grad(x, g)⟩, exactly (eqs. 9.11 and 9.13)."""
    forward = subject.on(subject.spec.replace(op="forward", bias="none"))
    numbers = _small(subject, "adjoint")
    x, w, _ = forward.draw(numbers)
    g = forward.laid_out(numbers(forward.spec.output_shape, forward.spec.dtype))
    expected = _inner_product(forward.run_integers(x, w, None), g)
    identities = {"input_grad": ("x", x, Operands(g, w, None)), "weight_grad": ("w", w, Operands(x, g, None))}
    refused = []
    for op, (name, factor, operands) in identities.items():
        try:
            result = subject.on(forward.spec.replace(op=op)).run_integers(*operands)
        except Refusal as refusal:
            refused.append(str(refusal))
            continue
        given = _inner_product(factor, result)
        if given != expected:
            raise Failure(
                f"⟨conv(x, w), g⟩ = {_complex_text(expected)}, but ⟨{name}, {op}⟩ = {_complex_text(given)}, "
                f"error {abs(complex(*given) - complex(*expected)):.3g}"
            )
    if len(refused) == len(identities):
        raise Refusal("; ".join(refused))
    return refused[0] if refused else None


def _inner_product(a: Array, b: Array) -> tuple[int, int]:
    """Σ conj(a)·b of whole numbers: real and imaginary part, exactly."""
    (a_real, a_imag), (b_real, b_imag) = (
        (np.real(v).astype(np.int64).ravel(), np.imag(v).astype(np.int64).ravel()) for v in (a, b)
    )
    return int(a_real @ b_real + a_imag @ b_imag), int(a_real @ b_imag - a_imag @ b_real)


def _complex_text(value: tuple[int, int]) -> str:
    return f"{value[0]}" if not value[1] else f"{value[0]}{value[1]:+}i"


# -- one member of the family against another -------------------------------------------------


def flipping_the_kernel_turns_one_operation_into_the_other(subject: Subject) -> None:
    """conv(x, w) = xcorr(x, flip w), and so for the gradients; that of w comes out flipped."""
    spec = subject.spec
    dual = subject.on(spec.replace(flip=not spec.flip))
    first, second, bias = subject.draw(_small(subject, "flip"))
    space = tuple(range(-spec.ndim, 0))
    expected = subject.run_integers(first, second, bias)
    if spec.op == "weight_grad":
        given = np.flip(dual.run_integers(first, second, bias), space)
    else:
        given = dual.run_integers(first, np.flip(second, space), bias)
    require_equal(given, expected, f"as {dual.spec} with w flipped")


def groups_are_separate_runs(subject: Subject) -> None:
    """Each group gives what its channels give alone."""
    spec, g = subject.spec, subject.spec.groups
    alone = subject.on(spec.replace(groups=1, in_channels=spec.in_channels // g, out_channels=spec.out_channels // g))
    operands = subject.draw(_small(subject, "groups"))
    channels = {"x": 1, "g": 1, "y": 1, "w": 0}
    first_axis, second_axis = (channels[name] for name in spec.operand_names)
    firsts, seconds = np.split(operands.first, g, axis=first_axis), np.split(operands.second, g, axis=second_axis)
    biases = [None] * g if operands.bias is None else np.split(operands.bias, g)
    parts = [alone.run_integers(*part) for part in zip(firsts, seconds, biases, strict=True)]
    expected = np.concatenate(parts, axis=channels[_RESULTS[spec.op]])
    require_equal(subject.run_integers(*operands), expected, f"against {g} runs of {alone.spec}")


def images_are_separate_runs(subject: Subject) -> None:
    """Each image gives what it gives alone; the gradient of the weights is the sum over the images (eq. 9.11)."""
    spec = subject.spec
    alone = subject.on(spec.replace(batch=1))
    first, second, bias = subject.draw(_small(subject, "images"))
    each = np.split(second, spec.batch) if spec.operand_names[1] == "g" else [second] * spec.batch
    parts = [alone.run_integers(a, b, bias) for a, b in zip(np.split(first, spec.batch), each, strict=True)]
    expected = np.sum(parts, axis=0) if spec.op == "weight_grad" else np.concatenate(parts)
    require_equal(subject.run_integers(first, second, bias), expected, f"against {spec.batch} runs of {alone.spec}")


def a_stride_keeps_every_sth_output(subject: Subject) -> None:
    """Stride s is stride 1 at the same padding, then every s-th sample; in a gradient all others of g are zero."""
    spec = subject.spec.replace(padding=subject.spec.padding, bias="none")
    strided, dense = subject.on(spec), subject.on(spec.replace(stride=1))
    first, second, _ = strided.draw(_small(subject, "stride"))
    every: Slices = (
        ...,
        *(slice(None, (p - 1) * s + 1, s) for p, s in zip(spec.output_size, spec.stride, strict=True)),
    )
    spread = np.zeros(dense.spec.output_shape, spec.dtype)
    given = strided.run_integers(first, second, None)
    if spec.op == "forward":
        expected = dense.run_integers(first, second, None)[every]
    elif spec.op == "input_grad":
        spread[every] = first
        expected = dense.run_integers(spread, second, None)
    else:
        spread[every] = second
        expected = dense.run_integers(first, spread, None)
    require_equal(given, expected, f"against every s-th output of {dense.spec}")


def full_convolution_commutes(subject: Subject) -> None:
    """Single channels: x ∗ w = w ∗ x; sizes are cut to 8 to keep it quick."""
    spec = subject.spec
    sizes = [tuple(min(8, n) for n in size) for size in (spec.input_size, spec.kernel_size)]
    there, back = (
        subject.on(ConvSpec(input_size=a, kernel_size=b, padding="full", flip=True, dtype=spec.dtype))
        for a, b in (sizes, sizes[::-1])
    )
    numbers = _small(subject, "commute", 1)
    x, w = back.operand("w", numbers), there.operand("w", numbers)
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
        field, w, bias = numbers(tuple(shape), spec.dtype), subject.operand("w", numbers), _bias(spec, numbers)
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
    """Circular boundary, same: rolling x by the stride rolls y by one, exactly (stride 1 where s does not divide H).

    So does rolling g by one roll ∂J/∂x by the stride, and rolling both leaves ∂J/∂w as it is.
    """
    stride = tuple(s if n % s == 0 else 1 for n, s in zip(subject.spec.input_size, subject.spec.stride, strict=True))
    around = subject.on(subject.spec.replace(stride=stride, padding="same", bias="none", tile=None))
    spec = around.spec
    one, none = (1,) * spec.ndim, (0,) * spec.ndim
    shifts = {"x": stride, "y": one, "g": one, "w": none}

    def rolled(name: str, array: Array) -> Array:
        return np.roll(array, shifts[name], tuple(range(-spec.ndim, 0)))

    first, second, _ = around.draw(_small(subject, "roll"))
    names = spec.operand_names
    given = around.run_integers(rolled(names[0], first), rolled(names[1], second), None)
    expected = rolled(_RESULTS[spec.op], around.run_integers(first, second, None))
    require_equal(given, expected, f"{spec}, input rolled by {stride}")


# -- tiled weights ----------------------------------------------------------------------------


def a_tile_of_one_is_shared(subject: Subject) -> None:
    """Tiled convolution of period 1 is convolution."""
    spec = subject.spec.replace(bias="channel" if subject.spec.bias == "tile" else subject.spec.bias)
    tiled, shared = subject.on(spec.replace(tile=1)), subject.on(spec.replace(tile=None))
    first, second, bias = shared.draw(_small(subject, "tile"))
    expected = shared.run_integers(first, second, bias)
    given = tiled.run_integers(first, second.reshape(tiled.spec.operand_shapes[1]), bias)
    require_equal(given.reshape(expected.shape), expected, f"t1 against {shared.spec}")


def equal_tiles_are_shared(subject: Subject) -> None:
    """Where all kernels are the same one, it is shared; the gradient of the shared one is the sum of theirs."""
    spec = subject.spec.replace(bias="none")
    tiled, shared = subject.on(spec), subject.on(spec.replace(tile=None))
    first, second, _ = shared.draw(_small(subject, "equal tiles"))
    expected = shared.run_integers(first, second, None)
    entries = tuple(range(1, 1 + spec.ndim))
    if spec.op == "weight_grad":
        given = tiled.run_integers(first, second, None).sum(axis=entries)
    else:
        same = np.broadcast_to(np.expand_dims(second, entries), spec.weight_shape)
        given = tiled.run_integers(first, same, None)
    require_equal(given, expected, f"all kernels equal, against {shared.spec}")


def a_period_of_the_output_size_is_unshared(subject: Subject) -> None:
    """Tiled with t = output size is locally connected; kernels beyond the output are not used (eq. 9.9)."""
    spec = subject.spec.replace(bias="none", padding=subject.spec.padding)
    unshared = subject.on(spec.replace(tile="unshared"))
    used = (slice(None), *map(slice, spec.output_size))
    first, second, _ = unshared.draw(_small(subject, "unshared"))
    expected = unshared.run_integers(first, second, None)
    for period in (spec.output_size, [size + 1 for size in spec.output_size]):
        tiled = subject.on(spec.replace(tile=period))
        w = tiled.operand("w", _small(subject, "unused kernels"))
        if spec.op == "weight_grad":
            whole = np.zeros(w.shape, expected.dtype)
            whole[used] = expected
            given = tiled.run_integers(first, second, None)
            require_equal(given, whole, f"{tiled.spec} against {unshared.spec}")
        else:
            w[used] = second
            given = tiled.run_integers(first, w, None)
            require_equal(given, expected, f"{tiled.spec} against {unshared.spec}")


# -- one axis after the other -----------------------------------------------------------------


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
    return spec.op == "forward" and spec.tile is None and "int" not in spec.dtype


def _moves(spec: ConvSpec) -> bool:
    return (
        spec.op == "forward"
        and spec.tile is None
        and spec.bias != "location"
        and spec.batch > 0
        and any(_interior(spec, axis) for axis in range(spec.ndim))
    )


#: Each property, and the specs that it says something about.
PROPERTIES: tuple[tuple[CheckFunction, Callable[[ConvSpec], bool]], ...] = (
    (linear_in_each_operand, lambda spec: spec.batch > 0),
    (gradients_are_the_adjoint, lambda spec: spec.batch > 0),
    (flipping_the_kernel_turns_one_operation_into_the_other, lambda spec: set(spec.kernel_size) != {1}),
    (groups_are_separate_runs, lambda spec: spec.groups > 1),
    (images_are_separate_runs, lambda spec: spec.batch > 1),
    (a_stride_keeps_every_sth_output, lambda spec: set(spec.stride) != {1} and spec.tile is None),
    (full_convolution_commutes, lambda spec: _shared_and_real(spec) and spec.boundary == "zero"),
    (a_shifted_input_shifts_the_output, _moves),
    (a_rolled_circular_input_rolls_the_output, lambda spec: spec.boundary == "circular"),
    (a_tile_of_one_is_shared, lambda spec: spec.tile is not None),
    (equal_tiles_are_shared, lambda spec: spec.tile is not None),
    (a_period_of_the_output_size_is_unshared, lambda spec: spec.tile is not None),
    (one_axis_after_the_other_is_the_outer_product, lambda spec: _shared_and_real(spec) and spec.ndim > 1),
)
