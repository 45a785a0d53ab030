"""Is the result right? Small integers find wrong indices, Gaussian data lost precision, the rest the rare numbers."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

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
    spec, rng = subject.spec, subject.rng("integers")
    largest, density = largest_exact_integer(spec), 1.0
    while True:
        operands = _integer_operands(subject, largest, density, rng)
        truth = Truth(spec, *operands)
        if density < 1 and np.count_nonzero(truth.y) < min(_LEAST_OUTPUTS, truth.y.size):
            raise Failure("its own error bound cannot tell apart sums of 0 and few ±1")
        rounds = not subject.bound.exact_on_integers
        allowed = float(np.max(truth.allowed(subject.bound), initial=0.0)) if rounds else 0.0
        if allowed < 0.5:
            break
        if largest > 1:
            largest //= 2
        else:
            density /= 2
    y = subject.run(operands)
    if y.dtype != np.dtype(spec.result_dtype):
        raise Failure(f"expected dtype {spec.result_dtype}, got {y.dtype}")
    require_equal(np.rint(y) if rounds else y, _exact(spec, operands, truth), f"integers of up to ±{largest}")
    thinned = f", {density:.2%} of them not zero" * (density < 1)
    return f"integers of up to ±{largest}{thinned}{', after rounding' * rounds}"


def _integer_operands(subject: Subject, largest: int, density: float, rng: np.random.Generator) -> Operands:
    factors = subject.structure.factors(subject.spec.ndim)
    operands = subject.draw(integers(rng, largest))
    if density < 1:
        operands.x[rng.random(operands.x.shape) >= density] = 0
    return operands._replace(w=subject.weights(integers(rng, max(1, int(largest ** (1 / factors))))))


def _exact(spec: ConvSpec, operands: Operands, truth: Truth) -> NDArray[Any]:
    """The result in int64 (uint64) arithmetic; complex ones in complex128, exact at these sizes."""
    if "complex" in spec.dtype or "int" in spec.dtype:
        return truth.y
    x, w, bias = (None if a is None else a.astype(np.int64) for a in operands)
    assert x is not None
    assert w is not None
    return oracle.conv(spec.replace(dtype="int64"), x, w, bias)


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
        operands = drawn._replace(w=w)
        try:
            y = subject.run(operands)
        except UnsupportedWeights as error:
            if not subject.reason(error).startswith("weights: "):
                raise
        else:
            subject.judge(Truth(spec, *operands), y, name)
    if subject.refuses_any_weights is not None:
        raise UnsupportedWeights(subject.refuses_any_weights)
    return "any weights"


def zeros_in_bias_out(subject: Subject) -> None:
    """Zeros of either sign give the bias exactly: a bias that is dropped or misplaced cannot hide."""
    spec, rng = subject.spec, subject.rng("zeros")
    x, w, bias = subject.draw(gaussian(rng))
    zeros = np.zeros_like(x)
    if "int" not in spec.dtype:
        zeros[rng.random(x.shape) < 0.5] = -0.0
    expected = oracle.conv(spec, zeros, w, bias).astype(spec.result_dtype)
    require_equal(subject.run(Operands(zeros, w, bias)), expected, "x of +0 and −0")


def magnitudes_may_differ_widely(subject: Subject) -> str:
    """Samples and weights of 1e±15 (float32) or 1e±30 (float64)."""
    spec, rng = subject.spec, subject.rng("wide")
    decades = _DECADES[spec.dtype]
    factors = subject.structure.factors(spec.ndim)
    operands = subject.draw(wide(rng, decades))._replace(w=subject.weights(wide(rng, decades / factors)))
    return subject.judge(Truth(spec, *operands), subject.run(operands), f"magnitudes 1e±{decades:.0f}")


def denormals_do_no_harm(subject: Subject) -> None:
    """Denormal samples among others, denormal samples alone, denormal weights alone."""
    spec, rng = subject.spec, subject.rng("denormals")
    drawn = subject.draw(gaussian(rng))
    info = np.finfo(spec.dtype)
    tiny, step = (np.asarray(value, spec.dtype) for value in (info.smallest_normal / 50, info.smallest_subnormal))
    denormal_weights = subject.weights(integers(rng, 2)) * step  # whole multiples keep the rank
    few = np.where(rng.random(drawn.x.shape) < 0.5, tiny, np.ones((), spec.dtype)) * drawn.x
    bias = None if drawn.bias is None else drawn.bias * tiny
    variants = {
        "some samples denormal": drawn._replace(x=few),
        "all samples denormal": drawn._replace(x=drawn.x * tiny, bias=bias),
        "all weights denormal": drawn._replace(w=denormal_weights, bias=bias),
    }
    for name, operands in variants.items():
        truth = Truth(spec, *operands)
        y = subject.run(operands)
        error = np.abs(y.astype(truth.y.dtype) - truth.y)
        lost = (error <= _underflow(spec, operands)) & bool(subject.bound.normwise)
        subject.judge(truth, np.where(lost, truth.y.astype(y.dtype), y), name)


def _underflow(spec: ConvSpec, operands: Operands) -> float:
    """What gradual underflow may add to a method with a normwise bound, which does not count it.

    Each step of a transform of T points rounds by half a denormal δ at most, so a spectrum is off by 2Tδ at most;
    times the other spectrum, at most ‖·‖₁, divided by T and summed over T frequencies: 2Tδ(‖x‖₁ + ‖w‖₁ + 2C).
    T is taken generously, as twice the padded size.
    """
    points = prod(
        2 * (size + abs(a) + abs(b) + k * d)
        for size, (a, b), k, d in zip(spec.input_size, spec.padding, spec.kernel_size, spec.dilation, strict=True)
    )
    sums = float(np.abs(operands.x).sum(dtype=np.float64) + np.abs(operands.w).sum(dtype=np.float64))
    return 2 * points * (sums + 2 * spec.in_channels) * float(np.finfo(spec.dtype).smallest_subnormal)


def nan_and_infinity_stay_in_their_windows(subject: Subject) -> str:
    """Outputs that see a NaN are NaN, those that see an infinity not finite, and the others right.

    A method that spreads them (and says so) may spoil more, but no output may be finite that must not.
    """
    spec, rng = subject.spec, subject.rng("nonfinite")
    x, w, bias = subject.draw(gaussian(rng))
    spots = rng.choice(x.size, min(2, x.size), replace=False)
    clean, spoilt = x.copy(order="K"), x.copy(order="K")
    infinity = np.inf if rng.random() < 0.5 else -np.inf
    for spot, value in zip(spots, (infinity, np.nan), strict=False):
        spoilt[np.unravel_index(spot, x.shape)] = value
        clean[np.unravel_index(spot, x.shape)] = 0
    y = subject.run(Operands(spoilt, w, bias))
    nan, infinite = _sightings(spec, np.isnan(spoilt)), _sightings(spec, np.isinf(spoilt))
    _require_nonfinite(y, nan > 0, "sees a NaN", np.isnan if not subject.bound.spreads_nonfinite else None)
    _require_nonfinite(y, infinite > 0, "sees an infinity")
    if not subject.bound.spreads_nonfinite and "complex" not in spec.dtype:
        tap = oracle.conv(spec.replace(bias="none"), np.isinf(spoilt).astype(spec.dtype), w)
        alone = (infinite == 1) & (nan == 0) & (tap != 0)
        require_equal(y[alone], (np.sign(tap) * infinity).astype(y.dtype)[alone], "outputs that see one infinity")
    return _judge_elsewhere(subject, Truth(spec, clean, w, bias), y, (nan > 0) | (infinite > 0))


def nan_in_weights_stays_in_its_channel(subject: Subject) -> str:
    """Output channel 0 is NaN wherever a tap meets a sample, the others are right; or the weights are refused."""
    spec = subject.spec
    x, w, bias = subject.draw(gaussian(subject.rng("nan weights")))
    spoilt, clean = w.copy(), w.copy()
    spoilt[0], clean[0] = np.nan, 0
    y = subject.run(Operands(x, spoilt, bias))
    channel = np.zeros(y.shape, bool)
    channel[:, 0] = True
    seen = _sightings(spec, np.ones(x.shape, bool)) > 0
    _require_nonfinite(y, channel & seen, "sees a NaN weight")
    return _judge_elsewhere(subject, Truth(spec, x, clean, bias), y, channel)


def _sightings(spec: ConvSpec, marked: NDArray[np.bool_]) -> NDArray[Any]:
    """Count the marked samples under the kernel, for each output."""
    ones = np.ones(spec.weight_shape, np.int64)
    return oracle.conv(spec.replace(dtype="int64", bias="none"), marked.astype(np.int64), ones)


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
            f"{int(silent.sum())} outputs hide it: {index_text(worst)} {why}, yet is {y[worst]}, an error without limit"
        )


def _judge_elsewhere(subject: Subject, truth: Truth, y: NDArray[Any], spoilt: NDArray[np.bool_]) -> str:
    """Judge the outputs that nothing has spoilt, nor, where the method spreads, may have spoilt."""
    excused = spoilt | ~np.isfinite(y) if subject.bound.spreads_nonfinite else spoilt
    return subject.judge(truth, np.where(excused, truth.y.astype(y.dtype), y), "outputs that see none")


def _floating(spec: ConvSpec) -> bool:
    return "int" not in spec.dtype


def _floating_and_not_empty(spec: ConvSpec) -> bool:
    return _floating(spec) and spec.batch > 0


#: Each rule, and the specs it applies to.
NUMERICS: tuple[tuple[CheckFunction, Callable[[ConvSpec], bool]], ...] = (
    (small_integers_are_exact, lambda spec: True),
    (gaussian_errors_are_within_the_bound, lambda spec: True),
    (weights_are_taken_or_refused_with_a_reason, lambda spec: True),
    (zeros_in_bias_out, lambda spec: True),
    (magnitudes_may_differ_widely, _floating),
    (denormals_do_no_harm, _floating),
    (nan_and_infinity_stay_in_their_windows, _floating_and_not_empty),
    (nan_in_weights_stays_in_its_channel, _floating_and_not_empty),
)
