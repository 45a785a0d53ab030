"""Is the result right? Small integers find wrong indices, Gaussian data lost precision, the rest the rare numbers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import ceil, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convbench import oracle
from convbench.checks.specs import constant, gaussian, integers, largest_exact_integer, low_rank, wide
from convbench.checks.subject import CheckFunction, Failure, Operands, Subject, index_text, require_equal
from convbench.errors import UnsupportedWeights
from convbench.oracle import Truth
from convbench.spec import ConvSpec

__all__ = ["NUMERICS"]

_LEAST_OUTPUTS = 8  # that are not zero where samples are thinned out: wrong indices still show
#: Decades on either side of 1 whose products and sums stay clear of overflow.
_DECADES = {"float16": 1.0, "bfloat16": 15.0, "float32": 15.0, "complex64": 15.0, "float64": 30.0, "complex128": 30.0}


def small_integers_are_exact(subject: Subject) -> str:
    """Bit for bit the int64 result, or after rounding where the a-priori bound is below one half."""
    rounds = not subject.bound.exact_on_integers
    drawn = _integers_that_tell(subject, rounds)
    y = subject.run(drawn.operands)
    if y.dtype != np.dtype(subject.spec.result_dtype):
        raise Failure(f"expected dtype {subject.spec.result_dtype}, got {y.dtype}")
    told = drawn.told
    expected = _exact(subject.spec, drawn.operands, drawn.truth)
    require_equal(np.where(told, np.rint(y) if rounds else y, expected), expected, drawn.text)
    if not told.all():
        subject.judge(drawn.truth, y, f"{drawn.text}, where the bound is above one half")
    return drawn.text + f", {told.mean():.0%} of the outputs" * (not told.all()) + ", after rounding" * rounds


class _Drawn(NamedTuple):
    """Integers, and the outputs whose error must be below one half: there, rounding tells right from wrong."""

    operands: Operands
    truth: Truth
    told: NDArray[np.bool_]
    text: str

    @property
    def shows(self) -> int:
        """Outputs in which a wrong index would show."""
        return int(np.count_nonzero(self.told & (self.truth.y != 0)))


def _integers_that_tell(subject: Subject, rounds: bool) -> _Drawn:
    """Draw ever smaller and then ever fewer integers, until the bound of every output is below one half.

    Where samples run out before, those that show most are taken: a boundary may repeat a sample so often that its own
    output's bound stays above, and others' do not.
    """
    rng, largest, density = subject.rng("integers"), largest_exact_integer(subject.spec), 1.0
    best: _Drawn | None = None
    while True:
        operands = _integer_operands(subject, largest, density, rng)
        truth = subject.truth(operands)
        told = truth.allowed(subject.bound) < 0.5 if rounds else np.ones(truth.y.shape, bool)
        thinned = f", {density:.2%} of them not zero" * (density < 1)
        drawn = _Drawn(operands, truth, told, f"integers of up to ±{largest}{thinned}")
        enough = min(_LEAST_OUTPUTS, truth.y.size)
        if density < 1 and np.count_nonzero(truth.y) < enough:
            if best is None or best.shows < enough:
                raise Failure("its own error bound cannot tell apart sums of 0 and few ±1")
            return best
        if told.all():
            return drawn
        if best is None or drawn.shows > best.shows:
            best = drawn
        if largest > 1:
            largest //= 2
        else:
            density /= 2


def _integer_operands(subject: Subject, largest: int, density: float, rng: np.random.Generator) -> Operands:
    factors = subject.structure.factors(subject.spec.ndim)
    operands = subject.draw(integers(rng, largest), integers(rng, max(1, int(largest ** (1 / factors)))))
    if density < 1 and subject.spec.op == "weight_grad":  # x and g are thinned out to corners, where they still meet
        for operand, axis in product(operands[:2], range(2, 2 + subject.spec.ndim)):
            kept = ceil(operand.shape[axis] * density ** (1 / subject.spec.ndim))
            operand[(*(slice(None),) * axis, slice(kept, None))] = 0
    elif density < 1:
        operands.first[rng.random(operands.first.shape) >= density] = 0
    return operands


def _exact(spec: ConvSpec, operands: Operands, truth: Truth) -> NDArray[Any]:
    """The result in int64 (uint64) arithmetic; complex ones in complex128, exact at these sizes."""
    if "complex" in spec.dtype or "int" in spec.dtype:
        return truth.y
    return oracle.conv(spec.replace(dtype="int64"), *(None if a is None else a.astype(np.int64) for a in operands))  # type: ignore[arg-type]


def gaussian_errors_are_within_the_bound(subject: Subject) -> str:
    """Reduced precision shows here: it passes on small integers."""
    return subject.judge(subject.case().truth, subject.run_case(), "Gaussian data")


def weights_are_taken_or_refused_with_a_reason(subject: Subject) -> str:
    """Constant weights, those of rank 0 to 3 and a single tap, as far as they are taken; generic ones at last."""
    spec, rng = subject.spec, subject.rng("ranks")
    single = np.zeros(spec.weight_shape, spec.dtype)
    centre: tuple[Any, ...] = (..., *(size // 2 for size in spec.kernel_size))
    single[centre] = 1
    structured = {f"weights of rank {rank}": low_rank(gaussian(rng), spec, rank) for rank in (0, 1, 2, 3)}
    structured |= {"constant weights": constant(gaussian(rng), spec), "one tap": single}
    drawn = subject.draw(gaussian(rng))
    for name, w in structured.items():
        operands = drawn._replace(second=w)
        try:
            y = subject.run(operands)
        except UnsupportedWeights as error:
            if not subject.reason(error).startswith("weights: "):
                raise
        else:
            subject.judge(subject.truth(operands), y, name)
    if subject.refuses_any_weights is not None:
        raise UnsupportedWeights(subject.refuses_any_weights)
    return "any weights"


def zeros_in_bias_out(subject: Subject) -> None:
    """Zeros of either sign give the bias exactly, without one zeros: what is dropped or misplaced cannot hide."""
    spec, rng = subject.spec, subject.rng("zeros")
    first, second, bias = subject.draw(gaussian(rng))
    zeros = np.zeros_like(first)
    if "int" not in spec.dtype:
        zeros[rng.random(first.shape) < 0.5] = -0.0
    expected = oracle.conv(spec, zeros, second, bias).astype(spec.result_dtype)
    require_equal(subject.run(Operands(zeros, second, bias)), expected, f"{spec.operand_names[0]} of +0 and −0")


def magnitudes_may_differ_widely(subject: Subject) -> str:
    """Operands of 1e±15 (float32) or 1e±30 (float64)."""
    spec, rng = subject.spec, subject.rng("wide")
    decades = _DECADES[spec.dtype]
    operands = subject.draw(wide(rng, decades), wide(rng, decades / subject.structure.factors(spec.ndim)))
    return subject.judge(subject.truth(operands), subject.run(operands), f"magnitudes 1e±{decades:.0f}")


def denormals_do_no_harm(subject: Subject) -> None:
    """Denormal numbers among others, and each operand denormal as a whole."""
    spec, rng = subject.spec, subject.rng("denormals")
    drawn, (first, second) = subject.draw(gaussian(rng)), spec.operand_names
    info = np.finfo(spec.dtype)
    tiny, step = (np.asarray(value, spec.dtype) for value in (info.smallest_normal / 50, info.smallest_subnormal))
    denormal = subject.operand(second, integers(rng, 2)) * step  # whole multiples keep the rank of weights
    few = np.where(rng.random(drawn.first.shape) < 0.5, tiny, np.ones((), spec.dtype)) * drawn.first
    bias = None if drawn.bias is None else drawn.bias * tiny
    variants = {
        f"some of {first} denormal": drawn._replace(first=few),
        f"all of {first} denormal": drawn._replace(first=drawn.first * tiny, bias=bias),
        f"all of {second} denormal": drawn._replace(second=denormal, bias=bias),
    }
    for name, operands in variants.items():
        truth = subject.truth(operands)
        y = subject.run(operands)
        error = np.abs(y.astype(truth.y.dtype) - truth.y)
        lost = (error <= _underflow(spec, operands)) & bool(subject.bound.normwise)
        subject.judge(truth, np.where(lost, truth.y.astype(y.dtype), y), name)


def _underflow(spec: ConvSpec, operands: Operands) -> float:
    """What gradual underflow may add to a method with a normwise bound, which does not count it.

    Each step of a transform of T points rounds by half a denormal δ at most, so a spectrum is off by 2Tδ at most;
    times the other spectrum, at most ‖·‖₁, divided by T and summed over T frequencies: 2Tδ(‖a‖₁ + ‖b‖₁ + 2C) for the
    operands a and b and sums over C channels or examples. T is taken generously, as twice the padded size. Where
    the operation is done as several convolutions whose results are added up, they are no more than its products.
    """
    points = prod(
        2 * (size + abs(a) + abs(b) + k * d)
        for size, (a, b), k, d in zip(spec.input_size, spec.padding, spec.kernel_size, spec.dilation, strict=True)
    )
    sums = sum(float(np.abs(a).sum(dtype=np.float64)) for a in (operands.first, operands.second))
    summed = {"forward": spec.in_channels, "input_grad": spec.out_channels, "weight_grad": spec.batch}[spec.op]
    added = spec.terms if spec.op == "input_grad" else 1
    return 2 * points * added * (sums + 2 * summed) * float(np.finfo(spec.dtype).smallest_subnormal)


def nan_and_infinity_stay_in_their_windows(subject: Subject) -> str:
    """What depends on a NaN in the first operand is NaN, on an infinity not finite, and all the rest is right.

    A method that spreads them (and says so) may spoil more, but nothing may be finite that must not.
    """
    spec, rng = subject.spec, subject.rng("nonfinite")
    first, second, bias = subject.draw(gaussian(rng))
    spots = rng.choice(first.size, min(2, first.size), replace=False)
    clean, spoilt = first.copy(order="K"), first.copy(order="K")
    infinity = np.inf if rng.random() < 0.5 else -np.inf
    for spot, value in zip(spots, (infinity, np.nan), strict=False):
        spoilt[np.unravel_index(spot, first.shape)] = value
        clean[np.unravel_index(spot, first.shape)] = 0
    y = subject.run(Operands(spoilt, second, bias))
    everywhere = np.ones(second.shape, bool)
    nan, infinite = (_sightings(spec, mark(spoilt), everywhere) for mark in (np.isnan, np.isinf))
    _require_nonfinite(y, nan > 0, "sees a NaN", np.isnan if not subject.bound.spreads_nonfinite else None)
    _require_nonfinite(y, infinite > 0, "sees an infinity")
    if not subject.bound.spreads_nonfinite and "complex" not in spec.dtype:
        factor = oracle.conv(spec.replace(bias="none"), np.isinf(spoilt).astype(spec.dtype), second)
        alone = (infinite == 1) & (nan == 0) & (factor != 0)
        expected = (np.sign(factor) * infinity).astype(y.dtype)
        require_equal(y[alone], expected[alone], "elements that see one infinity")
    return _judge_elsewhere(subject, subject.truth(Operands(clean, second, bias)), y, (nan > 0) | (infinite > 0))


def nan_in_one_channel_stays_in_it(subject: Subject) -> str:
    """The second operand's output channel 0 is NaN: so is all that depends on it, and the rest is right.

    Forward and ∂J/∂w that is output channel 0, in ∂J/∂x the input channels of its group; or the weights are refused.
    """
    spec = subject.spec
    first, second, bias = subject.draw(gaussian(subject.rng("nan channel")))
    marked = np.zeros(second.shape, bool)
    channel: tuple[Any, ...] = (0,) if spec.operand_names[1] == "w" else (slice(None), 0)
    marked[channel] = True
    spoilt, clean = (np.where(marked, np.asarray(value, second.dtype), second) for value in (np.nan, 0))
    y = subject.run(Operands(first, subject.laid_out(spoilt) if spec.op == "weight_grad" else spoilt, bias))
    seen = _sightings(spec, np.ones(first.shape, bool), marked) > 0
    _require_nonfinite(y, seen, "sees a NaN")
    mixed = np.zeros(y.shape, bool)
    of_channel: dict[str, tuple[Any, ...]] = {
        "forward": (slice(None), 0),
        "input_grad": (slice(None), slice(spec.in_channels // spec.groups)),
        "weight_grad": (0,),
    }
    mixed[of_channel[spec.op]] = True
    return _judge_elsewhere(subject, subject.truth(Operands(first, clean, bias)), y, mixed)


def _sightings(spec: ConvSpec, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> NDArray[Any]:
    """Count the products of marked elements in each element of the result."""
    return oracle.conv(spec.replace(dtype="int64", bias="none"), first.astype(np.int64), second.astype(np.int64))


def _require_nonfinite(
    y: NDArray[Any],
    where: NDArray[np.bool_],
    why: str,
    test: Callable[[NDArray[Any]], NDArray[np.bool_]] | None = None,
) -> None:
    passes = np.isnan(y) | np.isinf(y) if test is None else test(y)
    silent = where & ~passes
    if silent.any():
        worst = np.unravel_index(int(np.argmax(silent)), silent.shape)
        raise Failure(
            f"{int(silent.sum())} elements hide it: {index_text(worst)} {why}, yet is {y[worst]}, "
            "an error without limit"
        )


def _judge_elsewhere(subject: Subject, truth: Truth, y: NDArray[Any], spoilt: NDArray[np.bool_]) -> str:
    """Judge what nothing has spoilt, nor, where the method spreads, may have spoilt."""
    excused = spoilt | ~np.isfinite(y) if subject.bound.spreads_nonfinite else spoilt
    return subject.judge(truth, np.where(excused, truth.y.astype(y.dtype), y), "elements that see none")


def _floating(spec: ConvSpec) -> bool:
    return "int" not in spec.dtype


def _floating_and_not_empty(spec: ConvSpec) -> bool:
    return _floating(spec) and spec.batch > 0


#: Each rule, and the specs it applies to.
NUMERICS: tuple[tuple[CheckFunction, Callable[[ConvSpec], bool]], ...] = (
    (small_integers_are_exact, lambda spec: True),
    (gaussian_errors_are_within_the_bound, lambda spec: True),
    (weights_are_taken_or_refused_with_a_reason, lambda spec: "w" in spec.operand_names),
    (zeros_in_bias_out, lambda spec: True),
    (magnitudes_may_differ_widely, _floating),
    (denormals_do_no_harm, _floating),
    (nan_and_infinity_stay_in_their_windows, _floating_and_not_empty),
    (nan_in_one_channel_stays_in_it, _floating_and_not_empty),
)
