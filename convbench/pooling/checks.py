"""Pooling's battery: what every pooling backend must pass before its times are worth anything. Imports no pytest.

The sibling of :mod:`convbench.checks`, whose results, failures and refusals it uses. The rules stand in :data:`RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from math import prod
from typing import Any
from zlib import crc32

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from convbench.bounds import ErrorBound
from convbench.checks.running import Check, CheckResult, checks_of
from convbench.checks.subject import Failure, Refusal, require_equal
from convbench.errors import SpecError, UnsupportedSpec
from convbench.memory import Memory, measure_stages, slack_bytes
from convbench.pooling import oracle
from convbench.pooling.backend import PoolBackend, PoolPlan
from convbench.pooling.oracle import PoolTruth
from convbench.pooling.registry import get_pool_backend
from convbench.pooling.spec import FLOATS, KINDS, POOL_DTYPES, POOL_OPS, PoolSpec
from convbench.refusals import human_bytes

__all__ = [
    "EDGE_LINES",
    "LARGE_LINES",
    "RULES",
    "check_pool_backend",
    "measure_pool",
    "pool_battery",
    "random_pool_spec",
]

Array = NDArray[Any]

_DRAWS_PER_SPEC = 20
_EXAMPLE = PoolSpec(kind="max", input_size=8, kernel_size=2)
_MEMBERS = ("name", "kind", "device", "implementation", "unavailable", "why_not", "plan", "error_bound")

#: Where implementations go wrong; each is tried with every kind, and forward as well as backward.
EDGE_LINES = (
    "i1 k1 f32",
    "n2 c3 i5x7 k1 f64",
    "i9 k3 f32",
    "n2 c2 i8x6 k2 f32",
    "c2 i11x13 k3 s1 f64",
    "n2 c3 i10x9 k3x2 s2x1 p1:0x0:1 f32",  # padding unlike before and after
    "c2 i7x8 k4 s3 p3 f64",  # windows that are mostly padding
    "c2 i13x10 k2 s3x5 f32",  # samples that no window reads
    "i4x3 k9x7 s1 p6x5 f32",  # every window cut at both ends
    "n2 c2 i6x5x7 k2x3x4 s1x2x3 p1:0x1:2x0 f64",
    "i3x4x3x5 k2x1x2x3 s1 p1x0x0x2 f32",
    "n0 c2 i6x5 k3 s1 f32",  # nothing to do
    "c2 i40 k31 s1 p15 f32",
    "c2 i11 adaptive=4 f32",
    "n2 c2 i7x13 adaptive=3x5 f32",
    "c3 i6x8 adaptive=3x4 f64",
    "i2x5 adaptive=5x2 f32",  # more bins than samples
    "c2 i9x11x5 adaptive=1x4x5 f64",
    "n2 c2 i9x7 k3x2 s2 p1 int8",
    "c2 i12 k5 s1 uint64",
    "i6x5 adaptive=4x2 int32",
)

#: They cross the borders of bands and blocks.
LARGE_LINES = (
    "n2 c3 i113x131 k5x4 s1 p2x1 f32",
    "c5 i97x151 k3x2 s3x1 f64",
    "i70003 k33 s1 p16 f32",
    "n2 c2 i163x130 adaptive=7x60 f32",
    "c2 i31x35x37 k3 s2x1x2 p1 f32",
)


def check_pool_backend(backend: PoolBackend | str, *, specs: int = 60, seed: int = 0) -> list[CheckResult]:
    """Run the whole battery on a pooling backend.

    Parameters
    ----------
    backend : PoolBackend or str
        Any object that follows the protocol, or a registered name.
    specs : int
        Random specs that the backend takes, beyond the fixed ones.
    seed : int
        Of the random specs and of all data.

    Returns
    -------
    list of CheckResult
        One for each pair of a rule and a spec, failures included; it never raises for them.

    Examples
    --------
    >>> results = check_pool_backend("separable", specs=1)
    >>> [result.message for result in results if result.status == "failed"]
    []
    """
    return [check.run() for check in pool_battery(backend, specs=specs, seed=seed)]


def pool_battery(backend: PoolBackend | str, *, specs: int = 60, seed: int = 0) -> Iterator[Check]:
    """Return the checks that :func:`check_pool_backend` runs, in its order."""
    chosen = get_pool_backend(backend) if isinstance(backend, str) else backend
    missing = [member for member in _MEMBERS if not hasattr(chosen, member)]
    if missing:
        raise SpecError("backend", chosen, f"must follow convbench.pooling.PoolBackend: it has no {', '.join(missing)}")
    to_try = _specs_to_try(chosen, specs, seed)
    return checks_of(chosen, to_try, RULES, lambda spec: Subject(chosen, spec, seed), _EXAMPLE)


def _specs_to_try(backend: PoolBackend, wanted: int, seed: int) -> Iterator[PoolSpec]:
    for line in EDGE_LINES + LARGE_LINES:
        for kind in KINDS:
            for op in POOL_OPS:
                if "int" not in line or (kind, op) == ("max", "forward"):
                    yield PoolSpec.parse(f"pool={kind} op={op} {line}")
    rng, willing, seen = np.random.default_rng(seed), 0, set()
    for _ in range(_DRAWS_PER_SPEC * wanted):
        spec = random_pool_spec(rng)
        if spec in seen:
            continue
        seen.add(spec)
        yield spec
        willing += backend.why_not(spec) is None
        if willing == wanted:
            return


def random_pool_spec(rng: Generator, *, max_samples: int = 20_000) -> PoolSpec:
    """Draw one valid spec of the whole family.

    >>> random_pool_spec(np.random.default_rng(0)).samples <= 20_000
    True
    """
    while True:
        ndim = int(rng.choice((1, 2, 3, 4), p=(0.3, 0.45, 0.2, 0.05)))
        size, kernel = {1: (60, 17), 2: (20, 7), 3: (9, 4), 4: (5, 3)}[ndim]
        kind, op = str(rng.choice(KINDS)), str(rng.choice(POOL_OPS))
        integers = kind == "max" and op == "forward" and rng.random() < 0.3
        fields: dict[str, Any] = {
            "kind": kind,
            "op": op,
            "batch": int(rng.choice((0, 1, 2, 3), p=(0.03, 0.47, 0.3, 0.2))),
            "channels": int(rng.integers(1, 4)),
            "input_size": rng.integers(1, size + 1, ndim).tolist(),
            "dtype": str(rng.choice(POOL_DTYPES if integers else FLOATS)),
        }
        if rng.random() < 0.3:
            fields["adaptive"] = rng.integers(1, size + 1, ndim).tolist()
        else:
            fields["kernel_size"] = rng.integers(1, kernel + 1, ndim).tolist()
            fields["stride"] = None if rng.random() < 0.25 else rng.integers(1, 5, ndim).tolist()
            fields["padding"] = [0, rng.integers(0, kernel, (ndim, 2)).tolist()][int(rng.random() < 0.6)]
            fields["count_include_pad"] = bool(kind == "mean" and rng.random() < 0.4)
        try:
            spec = PoolSpec(**fields)
        except SpecError:  # a kernel beyond its input, a window of padding alone
            continue
        if spec.samples <= max_samples:
            return spec


# -- what a check works on ------------------------------------------------------------------------


class Subject:
    """One backend on one spec; all data follow from the seed, the spec's line and the purpose they serve."""

    def __init__(self, backend: PoolBackend, spec: PoolSpec, seed: int) -> None:
        self.backend, self.spec, self._seed = backend, spec, seed
        self._plans: dict[int, PoolPlan] = {}

    def rng(self, purpose: str) -> Generator:
        """Return a generator of its own for every purpose."""
        return np.random.default_rng((self._seed, crc32(f"{self.spec} {purpose}".encode())))

    @cached_property
    def bound(self) -> ErrorBound:
        """What the backend promises."""
        return self.backend.error_bound(self.spec)

    def plan(self, threads: int = 1) -> PoolPlan:
        """Return the one plan for that many threads, shared by all checks."""
        if threads not in self._plans:
            self._plans[threads] = self.backend.plan(self.spec, threads=threads)
        return self._plans[threads]

    def integers(self, purpose: str, largest: int = 4) -> tuple[Array, ...]:
        """Draw operands of small whole numbers, with many ties; g in multiples of what a mean divides by."""
        spec, rng = self.spec, self.rng(purpose)
        least = 0 if spec.dtype[0] == "u" else -largest
        drawn = [rng.integers(least, largest + 1, shape).astype(spec.dtype) for shape in spec.operand_shapes]
        if spec.kind == "mean" and spec.op == "grad":
            drawn[1] *= oracle.window_counts(spec).astype(spec.dtype)
        return tuple(drawn)

    def gaussian(self, purpose: str) -> tuple[Array, ...]:
        """Draw operands of N(0, 1)."""
        spec, rng = self.spec, self.rng(purpose)
        if "int" in spec.dtype:
            info = np.iinfo(spec.dtype)
            return (rng.integers(info.min, info.max, spec.input_shape, dtype=spec.dtype, endpoint=True),)
        return tuple(rng.standard_normal(shape).astype(spec.dtype) for shape in spec.operand_shapes)

    def run(self, operands: Sequence[Array], threads: int = 1) -> Array:
        """Call the plan on copies of the operands."""
        return self.plan(threads)(*(operand.copy() for operand in operands))

    def judge(self, operands: Sequence[Array], y: Array, what: str = "") -> str:
        """Return a remark on the error; raise Failure if it is beyond the bound."""
        verdict = PoolTruth(self.spec, *operands).judge(y, self.bound)
        if not verdict.ok:
            raise Failure(": ".join(filter(None, (what, verdict.message))))
        return f"{verdict.error_max_eps:.2g} eps of {verdict.bound_max_eps:.2g}"


# -- rules ------------------------------------------------------------------------------------------


def small_integers_are_exact(subject: Subject) -> str:
    """Whole numbers, full of ties: maxima, sums and their gradients are exact, quotients and roots once rounded."""
    spec, operands = subject.spec, subject.integers("integers")
    y = subject.run(operands)
    if not subject.bound.exact_on_integers or (spec.kind == "l2" and spec.op == "grad"):
        return subject.judge(operands, y)
    truth = PoolTruth(spec, *operands)
    if spec.op == "grad" or spec.kind == "max":
        require_equal(y, truth.y.astype(spec.dtype), "small integers")
        return "exact"
    verdict = truth.judge(y, ErrorBound(source="a division or a root", componentwise=0.0))
    error = np.abs(y - truth.y) > 1.01 * np.finfo(spec.dtype).eps * np.abs(truth.y)
    if y.shape != truth.y.shape or error.any():
        raise Failure(f"exact sums of small integers, then one rounding, are expected: {verdict.message}")
    return "exact but for one rounding"


def errors_are_within_the_bound(subject: Subject) -> str:
    """Gaussian data against float64; integers of the whole range of their type."""
    operands = subject.gaussian("gaussian")
    return subject.judge(operands, subject.run(operands))


def gradients_are_adjoints(subject: Subject) -> str:
    """⟨gx, v⟩ = ⟨g, Jv⟩, with Jv by the oracle: at x, pooling is linear in small v but for max's ties."""
    spec = subject.spec
    x, g = subject.gaussian("adjoint")
    v = subject.rng("direction").standard_normal(spec.input_shape)
    gx = subject.run((x, g)).astype(np.float64)
    wide, g = x.astype(np.float64), g.astype(np.float64)
    if spec.kind == "mean":
        moved = oracle.window_sums(spec, v) / oracle.window_counts(spec)
    elif spec.kind == "l2":
        y = np.sqrt(oracle.window_sums(spec, wide * wide))
        moved = np.where(y > 0, oracle.window_sums(spec, wide * v) / y, 0.0)
    else:
        planes = v.reshape(spec.batch * spec.channels, -1)
        places = oracle.first_maxima(spec, wide).reshape(len(planes), -1)
        moved = np.take_along_axis(planes, places, 1).reshape(spec.output_shape)
    there, back = float((gx * v).sum()), float((g * moved).sum())
    allowed = float((PoolTruth(spec, x, g.astype(spec.dtype)).allowed(subject.bound) * np.abs(v)).sum())
    allowed += 1e-12 * float(np.abs(gx * v).sum() + np.abs(g * moved).sum())
    if not abs(there - back) <= allowed:
        raise Failure(f"⟨gx, v⟩ = {there:.12g}, ⟨g, Jv⟩ = {back:.12g}; {allowed:.3g} apart is allowed")
    return ""


def ties_go_to_the_first_maximum(subject: Subject) -> str:
    """A constant input has nothing but ties; two values have many."""
    spec = subject.spec
    g = subject.integers("ties")[1]
    for name, x in {
        "constant input": np.full(spec.input_shape, -2, spec.dtype),
        "two values": subject.rng("two values").integers(0, 2, spec.input_shape).astype(spec.dtype),
        "−∞ everywhere": np.full(spec.input_shape, -np.inf, spec.dtype),
    }.items():
        require_equal(subject.run((x, g)), oracle.pool(spec, x, g).astype(spec.dtype), name)
    return ""


def padding_is_no_sample(subject: Subject) -> str:
    """All samples negative: a zero from the padding would win every maximum, and spoil no sum."""
    spec = subject.spec
    operands = subject.integers("negative")
    least = np.iinfo(spec.dtype).min + 9 if "int" in spec.dtype and spec.dtype[0] != "u" else -9
    x = (operands[0] if spec.dtype[0] == "u" else np.minimum(operands[0], -1) + operands[0].dtype.type(least + 8),)
    operands = (*x, *operands[1:])
    return subject.judge(operands, subject.run(operands))


def strides_of_memory_do_not_matter(subject: Subject) -> str:
    """Negative strides, channels last, every other element, read-only: the same result, and nothing written."""
    operands = subject.integers("layouts")
    expected = subject.run(operands)
    for name, lay in _LAYOUTS.items():
        laid = tuple(lay(operand) for operand in operands)
        require_equal(subject.plan()(*laid), expected, name)
        for before, after in zip(operands, laid, strict=True):
            require_equal(after, before, f"an operand was written to ({name})")
    return ""


def _every_other(array: Array) -> Array:
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def _reversed(array: Array) -> Array:
    backwards = (slice(None, None, -1),) * array.ndim
    return np.ascontiguousarray(array[backwards])[backwards]


def _channels_last(array: Array) -> Array:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


def _read_only(array: Array) -> Array:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


_LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "negative strides": _reversed,
    "channels last in memory": _channels_last,
    "every other element": _every_other,
    "read-only": _read_only,
}


def out_receives_the_result(subject: Subject) -> str:
    """Any strides, whatever was in it; returned itself. A wrong or shared one is refused."""
    spec, operands = subject.spec, subject.integers("out")
    expected = subject.run(operands)
    for lay in (np.copy, _reversed, _every_other):
        out = lay(np.full(spec.result_shape, 77, spec.dtype))
        if subject.plan()(*operands, out=out) is not out:
            raise Failure("out= must be returned itself")
        require_equal(out, expected, "out=")
    for wrong in (np.zeros((1, *spec.result_shape), spec.dtype), np.zeros(spec.result_shape, "complex64")):
        try:
            subject.plan()(*operands, out=wrong)
        except SpecError:
            continue
        raise Failure(f"out= of shape {wrong.shape} and dtype {wrong.dtype} must raise SpecError")
    return ""


def malformed_operands_are_refused(subject: Subject) -> str:
    """A wrong shape, dtype or number of operands raises SpecError."""
    operands = subject.integers("malformed")
    first, *rest = operands
    for wrong in (
        (first[..., :-1], *rest),
        (first.astype("complex64"), *rest),
        (*operands, first),
        (first.tolist(), *rest),
    ):
        try:
            subject.plan()(*wrong)
        except SpecError:
            continue
        raise Failure("an operand of another shape, dtype, number or kind must raise SpecError")
    return ""


def nan_stays_in_its_windows(subject: Subject) -> str:
    """One NaN: every window that reads it is NaN (of a gradient: what g reaches), the others right."""
    spec, operands = subject.spec, subject.gaussian("nan")
    spoilt = operands[0].copy()
    spoilt[np.unravel_index(int(subject.rng("spot").integers(spoilt.size)), spoilt.shape)] = np.nan
    try:
        y = subject.run((spoilt, *operands[1:]))
    except UnsupportedSpec as error:
        return _refused_data(subject, error)
    hidden = np.isnan(oracle.pool(spec, spoilt, *operands[1:])) & ~np.isnan(y)
    if hidden.any():
        raise Failure(f"{int(hidden.sum())} results that depend on a NaN are not NaN")
    return _judge_spoilt(subject, (spoilt, *operands[1:]), y, "with one NaN")


def infinities_stay_in_their_windows(subject: Subject) -> str:
    """±∞: their windows have the infinity that the definition has, the others are right."""
    spec, operands = subject.spec, subject.gaussian("infinity")
    for infinity in (np.inf, -np.inf):
        spoilt = operands[0].copy()
        spots = subject.rng("spots").choice(spoilt.size, min(3, spoilt.size), replace=False)
        spoilt[np.unravel_index(spots, spoilt.shape)] = infinity
        y = subject.run((spoilt,))
        silent = ~np.isfinite(oracle.pool(spec, spoilt)) & np.isfinite(y)
        if silent.any():
            raise Failure(f"{int(silent.sum())} results that an infinity reaches are finite")
        _judge_spoilt(subject, (spoilt,), y, f"with {infinity}")
    return ""


def nothing_is_below_minus_infinity(subject: Subject) -> str:
    """−∞ everywhere: the least finite number, where a maximum starts from it or finds it in the padding, would win."""
    x = np.full(subject.spec.input_shape, -np.inf, subject.spec.dtype)
    require_equal(subject.run((x,)), np.full(subject.spec.result_shape, -np.inf, x.dtype), "−∞ everywhere")
    return ""


def _judge_spoilt(subject: Subject, operands: tuple[Array, ...], y: Array, what: str) -> str:
    """Judge all results; of a method that spreads, only the finite ones, with zeros in place of what it spreads."""
    if not subject.bound.spreads_nonfinite:
        return subject.judge(operands, y, what)
    clean = (np.where(np.isfinite(operands[0]), operands[0], 0).astype(y.dtype), *operands[1:])
    expected = oracle.pool(subject.spec, *clean).astype(y.dtype)
    return subject.judge(clean, np.where(np.isfinite(y), y, expected), what)


def _refused_data(subject: Subject, error: UnsupportedSpec) -> str:
    reason = str(error).removeprefix(f"{subject.backend.name}: ")
    if reason.startswith("data: "):
        raise Refusal(reason)
    raise Failure(f'data may be refused with a reason "data: …", got {reason!r}')


def results_repeat(subject: Subject) -> str:
    """A plan gives the same bits again, after other data, also from several threads at once; old results stay."""
    first, second = subject.gaussian("first"), subject.gaussian("second")
    plan = subject.plan()
    y = plan(*first)
    kept = y.copy()
    other = plan(*second)
    require_equal(y, kept, "an earlier result changed")
    require_equal(plan(*first), kept, "the same data again")
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda operands: plan(*operands), (first, second, first, second)))
    for result, expected in zip(both, (kept, other, kept, other), strict=True):
        require_equal(result, expected, "called from two threads at once")
    return ""


def threads_do_not_change_results(subject: Subject) -> str:
    """Three threads give what one gives, within the bound."""
    operands = subject.gaussian("threads")
    plan = subject.plan(3)
    if plan.threads not in (1, 3):
        raise Failure(f"plan.threads is {plan.threads}, 3 were asked for")
    return subject.judge(operands, plan(*operands), "3 threads")


def declared_workspace_holds(subject: Subject) -> str:
    """What planning leaves behind and a run allocates beyond its result is at most what the plan declares."""
    operands = subject.gaussian("workspace")
    declared = subject.plan().workspace_bytes
    measured = measure_pool(subject.backend, subject.spec, operands).workspace_bytes
    slack = slack_of(subject.spec)
    if measured > declared + slack:
        raise Failure(
            f"{human_bytes(measured)} measured, {human_bytes(declared)} declared ({human_bytes(slack)} slack)"
        )
    return f"{human_bytes(measured)} of {human_bytes(declared)}"


def slack_of(spec: PoolSpec, threads: int = 1) -> int:
    """Return what a run may take beyond its declaration; see :func:`convbench.memory.slack_bytes`."""
    from convbench.spec import ConvSpec

    return slack_bytes(ConvSpec(input_size=1, kernel_size=1, dtype=spec.dtype), threads)


def measure_pool(backend: PoolBackend, spec: PoolSpec, operands: Sequence[Array], threads: int | None = 1) -> Memory:
    """Plan and run once; return what memory that took, and the result: :func:`convbench.memory.measure_memory`."""
    tiny = PoolSpec(kind=spec.kind, op=spec.op, input_size=(2,) * spec.ndim, kernel_size=1, dtype=spec.dtype)
    if backend.why_not(tiny) is None:  # loads libraries, which are no workspace
        backend.plan(tiny, threads=1)(*(np.ones(shape, spec.dtype) for shape in tiny.operand_shapes))
    return measure_stages(
        lambda: backend.plan(spec, threads=threads),
        lambda plan: None,
        lambda plan, nothing: plan(*operands),
        prod(spec.result_shape) * spec.itemsize,
    )


def _any(spec: PoolSpec) -> bool:
    return True


def _filled(spec: PoolSpec) -> bool:
    return spec.batch > 0


def _floating(spec: PoolSpec) -> bool:
    return spec.dtype in FLOATS and spec.batch > 0


#: Each rule, and the specs it applies to.
RULES: tuple[tuple[Callable[[Subject], str], Callable[[PoolSpec], bool]], ...] = (
    (small_integers_are_exact, _any),
    (errors_are_within_the_bound, _any),
    (gradients_are_adjoints, lambda spec: spec.op == "grad" and _filled(spec)),
    (ties_go_to_the_first_maximum, lambda spec: (spec.kind, spec.op) == ("max", "grad") and _filled(spec)),
    (padding_is_no_sample, lambda spec: spec.padded),
    (strides_of_memory_do_not_matter, _any),
    (out_receives_the_result, _any),
    (malformed_operands_are_refused, _filled),
    (nan_stays_in_its_windows, _floating),
    (infinities_stay_in_their_windows, lambda spec: _floating(spec) and spec.op == "forward"),
    (nothing_is_below_minus_infinity, lambda spec: (spec.kind, spec.op) == ("max", "forward") and _floating(spec)),
    (results_repeat, _any),
    (threads_do_not_change_results, _any),
    (declared_workspace_holds, _any),
)
