"""What one (case, backend) pair needs: to be verified once, then to be sampled in each pass.

Nothing here knows of other pairs, of files or of budgets: :mod:`convbench.bench.service` does it for a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from hashlib import blake2b
from itertools import cycle
from math import ceil, inf
from statistics import median
from typing import Any, TypeVar

import numpy as np

from convbench.backend import Backend, second_operand
from convbench.bench.cases import Case
from convbench.bench.data import Data
from convbench.bench.places import HOST, OnDevice, Place, place_of
from convbench.bench.predict import PROBE_FLOPS, Known, expected_prepare_seconds
from convbench.bench.record import TIME_SPENT, Record
from convbench.bench.timing import garbage_collector_off, measure
from convbench.bounds import ErrorBound
from convbench.errors import BackendUnavailable, MissingDependency, UnsupportedSpec, one_line
from convbench.refusals import human_bytes, memory, refuse
from convbench.registry import implementation_of
from convbench.revision import utc_now
from convbench.stopwatch import Stopwatch

__all__ = [
    "LEAST_SAMPLES", "SLOW_CALL_S", "Effort", "Evidence", "Limits", "Watch", "blank", "judge_again", "known_of", "now",
    "patience_s", "sample", "unwatched", "verify",
]  # fmt: skip

T = TypeVar("T")
#: Told which stage begins, and how many seconds it may last: infinitely many for what is not the backend's.
Watch = Callable[[str, float], None]
#: Of a pair, all passes together; a pair that has no time for as many is not timed.
LEAST_SAMPLES = 3
#: Samples of a call that takes longer are not preceded by a warm-up.
SLOW_CALL_S = 0.5
#: A call that takes longer is not traced, which can make it ten times as long: its memory is declared only.
_UNTRACED_CALL_S = 0.3
_TRACED_TIMES = 10
#: A call that is shorter than this in the worst case needs no prediction.
_SHORT_CALL_S = 0.25
_CACHE_TIMES = 2  # that sets of operands that take turns exceed the cache, so that each call finds its own outside
_AS_EXPECTED = 1.5  # times the expectation; a first call that took longer says little of the next
_TRIED = 2  # calls that should fit the limit for one to be tried
_MOST_COUNT = 2**100
_PIECE = 2**14  # elements that are compared at a time
#: Times the threads asked for that are put down to the clocks' rounding; samples shorter than the latter do not tell.
_CORES_ROUNDING = 1.25
_CORES_TELL_S = 0.05


def unwatched(stage: str, patience_s: float) -> None:
    """Let every stage take as long as it likes."""


def patience_s(time_limit_s: float) -> float:
    """Return how long one stage of a backend may last before it counts as hung; the pair's limit is on predictions.

    >>> patience_s(10)
    21
    """
    return 2 * time_limit_s + 1


@dataclass(frozen=True)
class Limits:
    """What one pair may cost.

    Attributes
    ----------
    time_s : float
        Of ``calls`` calls together; 0 means that no time is left for the pair.
    memory_bytes : int
    calls : int
        One to verify the pair, and those by the clock. 1 for a pair that will not be timed; then its memory is not
        measured either, which takes a further call.
    """

    time_s: float
    memory_bytes: int
    calls: int = 1 + LEAST_SAMPLES


@dataclass(frozen=True)
class Effort:
    """What one visit may take: seconds, and samples as :func:`convbench.bench.timing.measure` takes them."""

    budget_s: float
    least: int
    enough: int
    most: int


class Evidence:
    """A case's data and the truth about it, each worked out when first asked for."""

    def __init__(self, case: Case) -> None:
        self.case = case

    @cached_property
    def data(self) -> Data:
        """The operands. Backends get copies."""
        return self.case.data()

    @cached_property
    def finite(self) -> bool:
        """Whether the operands are free of NaN and infinity."""
        return all(bool(np.isfinite(a).all()) for a in self.data if a is not None)

    @cached_property
    def subnormal_share(self) -> float:
        """Share of the operands' elements that are subnormal: slow on some units, flushed to zero by others."""
        floats = [np.abs(a) for a in self.data if a is not None and a.dtype.kind in "fc"]
        found = sum(int(np.count_nonzero((a > 0) & (a < np.finfo(a.dtype).tiny))) for a in floats)
        return float(found / max(1, sum(a.size for a in floats)))

    @cached_property
    def truth(self) -> Any:
        """The right answer, as :meth:`Case.truth` returns it."""
        return self.case.truth(self.data)

    def let_go_of_truth(self) -> None:
        """Free its memory, several times that of the data; it is worked out again if asked for."""
        self.__dict__.pop("truth", None)

    def require_unchanged(self, given: Data, place: Place = HOST) -> None:
        """Raise if a backend has written to the copies of the operands that it was given."""
        names = (*self.case.spec.operand_names, "bias")
        for name, mine, theirs in zip(names, self.data, given, strict=False):
            if mine is not None and not _same(mine, place.fetch(theirs)):
                raise _Settled("wrong", f"changed its operand {name}")


def _same(a: Any, b: Any) -> bool:
    """Return whether two arrays are the same bit for bit."""
    if type(a) is not type(b) or a.shape != b.shape or a.dtype != b.dtype:
        return False
    mine, theirs = _bits(a), _bits(b)  # piece by piece: what a comparison allocates at once costs more than comparing
    return all(np.array_equal(mine[i : i + _PIECE], theirs[i : i + _PIECE]) for i in range(0, mine.size, _PIECE))


def _bits(array: Any) -> Any:
    """The array's bits as whole numbers, as wide as they come, so that NaN equals itself and −0 differs from 0."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return flat if flat.size % 8 else flat.view(np.uint64)


class _Settled(Exception):  # no error: this is how an answer comes back early
    """The pair's fate is known: (status, reason)."""


def known_of(record: Record) -> Known | None:
    """Return a call of a verified pair for predicting larger cases; None if it has none."""
    if record.status != "ok" or record.call_s is None:
        return None
    spec = Case.parse(record.spec).spec
    prepared_bytes = record.prepared_declared_bytes or 0
    return Known(spec, record.flops_executed or 0, record.call_s, prepared_bytes, record.prepare_s or 0.0)


def verify(
    evidence: Evidence,
    backend: Backend,
    run_id: str,
    *,
    threads: int,
    limits: Limits,
    known: Sequence[Known] = (),
    watch: Watch = unwatched,
) -> Record:
    """Find out whether a pair may be timed.

    In this order: is it refused; would it need too much memory or time (nothing has been called yet); then plan,
    prepare, first call, each by the clock; is the result right, and are the operands as they were; how much memory
    does a further, traced call take, unless the pair is slow.

    Parameters
    ----------
    evidence : Evidence
        Shared by all backends of a case.
    backend : Backend
    run_id : str
    threads : int
    limits : Limits
    known : sequence of Known
        Timed calls of this backend; see :func:`convbench.bench.predict.expected_seconds`.
    watch : callable
        See :data:`Watch`.

    Returns
    -------
    Record
        Of pass 0; without samples. Whatever the backend raises becomes a status.
    """
    case = evidence.case
    record = blank(case, backend, run_id, threads)
    with _outcome(record):
        watch("asking it", patience_s(limits.time_s))
        place = _admit(case, backend, limits)
        bound = backend.error_bound(case.spec)
        _Verifying(record, backend, place, bound, evidence, threads, limits, watch).run(known)
    return record


def blank(case: Case, backend: Backend, run_id: str, threads: int) -> Record:
    """Return the record of a pair of which nothing is known yet."""
    return Record(
        run_id=run_id,
        case=str(case),
        spec=str(case.spec),
        backend=backend.name,
        implementation=implementation_of(backend),
        kind=backend.kind,
        device=backend.device,
        threads=threads,
        flops_nominal=case.spec.flops,
        bytes_min=case.spec.bytes_min,
        weight=case.weight,
        group=case.group,
        seed=case.seed,
        time=now(),
    )


def now() -> str:
    """Return the time as records have it."""
    return utc_now().isoformat(timespec="milliseconds")


@contextmanager
def _outcome(record: Record) -> Iterator[None]:
    """Turn whatever a backend raises into a status and one line; Ctrl-C passes through."""
    try:
        yield
    except _Settled as settled:
        record.status, record.reason = settled.args
    except (BackendUnavailable, MissingDependency) as error:  # the latter while the case's data are made
        record.status, record.reason = "unavailable", one_line(error)
    except UnsupportedSpec as error:  # UnsupportedWeights is one
        record.status, record.reason = "unsupported", one_line(error).removeprefix(f"{record.backend}: ")
    except MemoryError as error:
        record.status, record.reason = "out-of-memory", one_line(error) or "allocation failed"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a backend may raise anything; it must cost one row, not the run
        record.status, record.reason = "failed", f"{type(error).__name__}: {one_line(error)}"
    if record.status != "ok":
        record.without_times()


def _admit(case: Case, backend: Backend, limits: Limits) -> Place:
    """Return where the backend computes; raise if it says no, the operands alone are too large, or there is no time."""
    missing = backend.unavailable()
    if missing is not None:
        raise _Settled("unavailable", one_line(missing))
    reason = backend.why_not(case.spec)
    if reason is not None:
        raise _Settled("unsupported", one_line(reason))
    place = place_of(backend)
    _check_memory(case.spec.bytes_min, limits, place)
    if not limits.time_s:
        raise _Settled("skipped", refuse("work", TIME_SPENT))
    return place


def _check_memory(needed_bytes: int, limits: Limits, place: Place) -> None:
    too_much = memory(needed_bytes, limits.memory_bytes) or place.lacks(needed_bytes)
    if too_much is not None:
        raise _Settled("skipped", too_much)


@dataclass
class _Verifying:
    """Fills in a record."""

    record: Record
    backend: Backend
    place: Place
    bound: ErrorBound
    evidence: Evidence
    threads: int
    limits: Limits
    watch: Watch

    def run(self, known: Sequence[Known]) -> None:
        """Plan, prepare, call and judge, as far as limits allow."""
        record = self.record
        self.watch("making its data", inf)
        if not self.evidence.finite and self.bound.spreads_nonfinite:
            raise _Settled("unsupported", refuse("data", "hold NaN or infinity, which this method spreads"))
        data = self.place.send(self.evidence.data.copy())
        plan = self._plan(known)
        record.prepare_s, weights = self._compiled("preparing", partial(second_operand, plan, data.second))
        record.flops_executed = _count("flops", getattr(weights, "flops", None) or plan.flops)
        expected_s = self._expect(known)
        call = partial(plan, data.first, weights, data.bias)
        record.first_call_s, y = self._staged("its first call", call)
        record.call_s = record.first_call_s
        self._judge(y, data)
        del y
        if self.limits.calls == 1:
            return
        if record.first_call_s > _AS_EXPECTED * expected_s:  # it may have had to compile or to import something
            record.call_s, y = self._staged("its second call", call)
            self._judge(y, data)
            del y
        del plan, weights, call
        further_s = max(0.0, record.first_call_s - record.call_s)
        self._check_time("took", record.call_s, further_s if further_s > self.place.compiling_s else 0.0)
        if record.call_s < _UNTRACED_CALL_S:
            self._traced(data, record.call_s)

    def _plan(self, known: Sequence[Known]) -> Any:
        record, spec = self.record, self.evidence.case.spec
        record.plan_s, plan = self._compiled("planning", partial(self.backend.plan, spec, threads=self.threads))
        record.accumulate_dtype = str(plan.accumulate_dtype)
        record.workspace_declared_bytes = _count("workspace_bytes", plan.workspace_bytes)
        record.prepared_declared_bytes = _count("prepared_bytes", plan.prepared_bytes)
        needed_bytes = record.workspace_declared_bytes + record.prepared_declared_bytes + spec.bytes_min
        _check_memory(needed_bytes, self.limits, self.place)
        self._check_time("should take", 0.0, expected_prepare_seconds(record.prepared_declared_bytes, known))
        return plan

    def _expect(self, known: Sequence[Known]) -> float:
        """Return how long a call should take, 0 if that is not known; raise if that is far too long.

        Where it is a little too long, the first call tells: on a disturbed machine predictions err upwards.

        Not asked where the one call is no longer than those that predict it, and where even at the slowest rate that
        the backend has shown so far it would be short.
        """
        family, spec, flops = self.evidence.case.family, self.evidence.case.spec, self.record.flops_executed or 0
        slowest_s = flops * max((k.seconds / k.flops for k in known if k.flops), default=inf)
        one_call = self.limits.calls == 1 and spec.flops <= PROBE_FLOPS
        if one_call or slowest_s < min(_SHORT_CALL_S, self.limits.time_s / self.limits.calls):
            return 0.0
        ask = partial(family.expected_seconds, self.backend, spec, self.threads, flops=flops, known=known)
        _, expected_s = self._staged("calls on smaller specs", ask)
        if self.limits.calls == 1 or _TRIED * expected_s > self.limits.time_s:
            self._check_time("should take", expected_s)
        return expected_s

    def _traced(self, data: Data, call_s: float) -> None:
        """Measure memory in a further call, traced and so slower."""
        family, spec, record = self.evidence.case.family, self.evidence.case.spec, self.record
        self.watch("a traced call", patience_s(self.limits.time_s) + _TRACED_TIMES * call_s)
        memory_used = family.measure_memory(self.backend, spec, data, self.threads)
        record.workspace_measured_bytes = memory_used.workspace_bytes
        record.prepared_measured_bytes = memory_used.prepared_bytes
        record.prepare_peak_bytes = memory_used.prepare_peak_bytes
        record.rss_peak_bytes = memory_used.rss_peak_bytes

    def _staged(self, stage: str, action: Callable[[], T]) -> tuple[float, T]:
        self.watch(stage, patience_s(self.limits.time_s) + self.place.compiling_s)
        return self.place.timed(action)

    def _compiled(self, stage: str, action: Callable[[], T]) -> tuple[float, T]:
        """Time a stage; again if it took long where kernels may have had to be compiled, which is done but once."""
        seconds, result = self._staged(stage, action)
        if self.place.compiling_s and seconds > _SHORT_CALL_S:
            del result
            seconds, result = self._staged(stage, action)
        return seconds, result

    def _check_time(self, verb: str, call_s: float, further_s: float = 0.0) -> None:
        """The least that a pair costs: a prepared call to verify it and, if it will be timed, those by the clock.

        ``further_s``: what each of them costs beside planning and preparing, as far as these have been done.
        """
        calls, limit_s = self.limits.calls, self.limits.time_s
        setup_s = (self.record.plan_s or 0.0) + (self.record.prepare_s or 0.0) + further_s
        if calls * (setup_s + call_s) > limit_s:
            what = f"one call {verb} {call_s:.3g} s"
            if setup_s > call_s:
                what = f"preparing for a call {verb} {setup_s:.3g} s"
            else:
                self.record.call_s = call_s
            needed = f", and {calls} are needed" * (calls > 1)
            raise _Settled("skipped", refuse("work", f"{what}{needed}; the limit is {limit_s:g} s"))

    def _judge(self, y: Any, data: Data) -> None:
        self.watch("judging its result", inf)
        self.evidence.require_unchanged(data, self.place)
        y = self.place.fetch(y)
        if self.record.checksum is None or _checksum(y) != self.record.checksum:
            _judge(self.record, self.bound, y, self.evidence)


def _count(name: str, value: Any) -> int:
    """Take a number of operations or bytes from a plan; what is none would make the run's own file unreadable."""
    count = int(value)
    if not 0 <= count < _MOST_COUNT:
        raise ValueError(f"its plan's {name} is {count}: no such number")
    return count


def _judge(record: Record, bound: ErrorBound, y: Any, evidence: Evidence) -> None:
    """Record the error, of several outputs the largest; raise if it is beyond the backend's own bound."""
    if not isinstance(y, np.ndarray):
        raise _Settled("wrong", f"returned a {type(y).__name__}, not an array: nobody knows when it is worked out")
    verdict = evidence.truth.judge(y, bound)
    record.error_max_eps = max(verdict.error_max_eps, record.error_max_eps or 0.0)
    record.error_norm = max(verdict.error_norm, record.error_norm or 0.0)
    record.error_bound_eps = verdict.bound_max_eps
    if not verdict.ok:
        raise _Settled("wrong", verdict.message)
    record.checksum = _checksum(y)


def _checksum(y: Any) -> str:
    return blake2b(_bits(y).data, digest_size=8).hexdigest()


def judge_again(record: Record, backend: Backend, y: Any, evidence: Evidence) -> None:
    """Judge the output of a timed call; ``record`` becomes "wrong" if it is.

    The truth is worked out again only if the output differs from the one that was found right.
    """
    with _outcome(record):
        if _checksum(y) != record.checksum:
            _judge(record, backend.error_bound(evidence.case.spec), y, evidence)
            evidence.let_go_of_truth()


class _Witness:
    """Looks at the results of timed calls: bit for bit the one that was found right before, or judged anew."""

    def __init__(
        self, record: Record, place: Place, bound: ErrorBound, evidence: Evidence, watch: Watch, stage_s: float
    ) -> None:
        self._record, self._place, self._bound, self._evidence = record, place, bound, evidence
        self._watch, self._stage_s = watch, stage_s
        self._right: Any = None

    def begin(self) -> None:
        """Have the calls watched."""
        self._watch("its timed calls", self._stage_s)

    def __call__(self, y: Any) -> None:
        """Raise if it is wrong."""
        y = self._place.fetch(y)
        if self._right is not None and _same(y, self._right):
            return
        self._watch("judging its result", inf)
        if self._right is not None or type(y) is not np.ndarray or _checksum(y) != self._record.checksum:
            _judge(self._record, self._bound, y, self._evidence)
        if self._right is None:
            self._right = y.copy()
        self.begin()


def sample(
    verified: Record,
    evidence: Evidence,
    backend: Backend,
    *,
    number: int,
    effort: Effort,
    limits: Limits,
    mode: str = "hot",
    cache_bytes: int = 0,
    watch: Watch = unwatched,
) -> Record:
    """Plan and prepare anew, and take samples on fresh copies of the operands.

    Of the timed calls, the first ones and the last one of each sample are looked at: a result that differs from the
    one that was found right is judged. In the end the operands must be as they were.

    Parameters
    ----------
    verified : Record
        Of the same pair, with status "ok".
    evidence : Evidence
        Of the same case.
    backend : Backend
    number : int
        Of the pass.
    effort : Effort
    limits : Limits
    mode : str
        "hot": the same operands in every call. "cold": so many sets of them in turn that together they exceed
        ``cache_bytes`` twice; on a GPU the same ones, and its cache is flushed before each call.
    watch : callable
        See :data:`Watch`.

    Returns
    -------
    Record
        With samples, or with a status other than "ok" and none.
    """
    record = replace(verified, pass_=number, time=now(), mode=mode, caveats=[])
    with _outcome(record):
        watch("making its data", inf)
        place, spec = place_of(backend), evidence.case.spec
        sets = [place.send(evidence.data.copy())]
        record.subnormal_share = evidence.subnormal_share
        watch("planning and preparing", patience_s(limits.time_s) + place.compiling_s)
        bound = backend.error_bound(spec)
        record.plan_s, plan = place.timed(partial(backend.plan, spec, threads=record.threads))
        record.prepare_s, weights = place.timed(partial(second_operand, plan, sets[0].second))
        calls: list[Callable[[], Any]] = [partial(plan, sets[0].first, weights, sets[0].bias)]
        if place is HOST:
            if mode == "cold":
                _add_cold(record, calls, sets, plan, evidence, limits, cache_bytes, watch)
            record.alignment_bytes = _alignment_bytes(sets)
        turns, stopwatch = cycle(calls), place.stopwatch(mode)
        stage_s = effort.budget_s + patience_s(limits.time_s) + place.compiling_s
        witness = _Witness(record, place, bound, evidence, watch, stage_s)
        witness.begin()
        with garbage_collector_off():
            taken = measure(
                calls[0] if len(calls) == 1 else lambda: next(turns)(),
                effort.budget_s,
                least=effort.least,
                enough=effort.enough,
                most=effort.most,
                warm_up=(verified.call_s or 0.0) < SLOW_CALL_S,
                inspect=witness,
                stopwatch=stopwatch,
            )
        record.samples_s, record.batch, record.stop_reason = taken.samples_s, taken.batch, taken.stop_reason
        record.measured_s, record.cores_used = taken.called_s, taken.cores_used
        record.caveats += _caveats(record)
        if isinstance(place, OnDevice):
            watch("a call and transfers", stage_s)
            prepared = weights is not sets[0].second
            _add_device(record, place, stopwatch, calls[0], evidence.data, prepared=prepared)
        watch("looking at its operands", inf)
        for given in sets:
            evidence.require_unchanged(given, place)
    return record


def _add_device(
    record: Record, place: OnDevice, stopwatch: Stopwatch, call: Callable[[], Any], data: Data, *, prepared: bool
) -> None:
    """Add what is told apart from a call on a GPU: the clocks, while they are those of the samples; launch, transfers.

    Weights that a plan prepares once are sent once, and so apart from what every call has to send.
    """
    clocks = place.clocks(call, median(record.samples_s))
    record.sm_clock_mhz = clocks.get("sm_clock_mhz")
    record.launch_s = stopwatch.launch_s
    record.transfer_s = place.sending_s(data.first, data.bias) + place.fetching_s(call())
    second_s = place.sending_s(data.second)
    if prepared:
        record.prepare_transfer_s = second_s
    else:
        record.transfer_s += second_s
    record.caveats += filter(None, [stopwatch.caveat])
    record.caveats += [f"clocks: the GPU was held back by {reason}" for reason in clocks.get("held_back_by") or ()]


def _add_cold(
    record: Record,
    calls: list[Callable[[], Any]],
    sets: list[Data],
    plan: Any,
    evidence: Evidence,
    limits: Limits,
    cache_bytes: int,
    watch: Watch,
) -> None:
    """Add sets of operands until all together exceed the cache, as far as memory and the pair's time allow."""
    each = sum(a.nbytes for a in sets[0] if a is not None) + (record.prepared_declared_bytes or 0)
    room = (limits.memory_bytes - (record.workspace_declared_bytes or 0)) // max(1, each)
    wanted = ceil(_CACHE_TIMES * cache_bytes / max(1, each)) + 1
    until = time.perf_counter() + limits.time_s / LEAST_SAMPLES
    for _ in range(min(wanted, room) - 1):
        if time.perf_counter() > until:
            break
        watch("preparing", patience_s(limits.time_s))
        data = evidence.data.copy()
        sets.append(data)
        calls.append(partial(plan, data.first, second_operand(plan, data.second), data.bias))
    if len(sets) < wanted:
        text = f"not cold: {len(sets)} sets of operands make {human_bytes(len(sets) * each)}, the cache is"
        record.caveats.append(f"{text} {human_bytes(cache_bytes)}")


def _alignment_bytes(sets: Sequence[Data]) -> int:
    """The largest power of two that divides all addresses, up to a page."""
    merged = 4096
    for array in (a for data in sets for a in data if a is not None):
        merged |= int(array.__array_interface__["data"][0])
    return merged & -merged


def _caveats(record: Record) -> list[str]:
    """What the samples show of how they were taken."""
    found = []
    sampled_s = sum(record.samples_s) * (record.batch or 1)
    if (record.cores_used or 0.0) > record.threads * _CORES_ROUNDING and sampled_s >= _CORES_TELL_S:
        found.append(f"threads: used {record.cores_used:.2g} cores where {record.threads} were asked for")
    return found
