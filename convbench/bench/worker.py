"""What one (case, backend) pair needs: to be verified once, then to be sampled in each pass.

Nothing here knows of other pairs, of files or of budgets, so a process of its own can do it as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np

from convbench.backend import Backend, second_operand
from convbench.bench.cases import Case
from convbench.bench.data import Data
from convbench.bench.environment import utc_now
from convbench.bench.predict import PROBE_FLOPS, Known, expected_prepare_seconds
from convbench.bench.record import TIME_SPENT, Record
from convbench.bench.timing import garbage_collector_off, measure
from convbench.errors import BackendUnavailable, MissingDependency, UnsupportedSpec, one_line
from convbench.refusals import memory, refuse
from convbench.registry import implementation_of

__all__ = ["SLOW_CALL_S", "Evidence", "Limits", "Verified", "judge_again", "sample", "verify"]

T = TypeVar("T")
#: A call expected to take longer is made once to verify, which also measures memory and is not timed; and its
#: samples are not preceded by a warm-up.
SLOW_CALL_S = 0.5
#: A call that takes longer is not traced, which can make it ten times as long: its workspace is declared only.
_UNTRACED_CALL_S = 1.0


@dataclass(frozen=True)
class Limits:
    """What one pair may cost.

    Attributes
    ----------
    time_s : float
        Of ``calls`` calls together; 0 means that no time is left for the pair.
    memory_bytes : int
    calls : int
        2: one to verify the pair, and one by the clock. 1 for a pair that will not be timed; then its workspace is
        not measured either, which takes a further call.
    """

    time_s: float
    memory_bytes: int
    calls: int = 2


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
    def truth(self) -> Any:
        """The right answer, as :meth:`Case.truth` returns it."""
        return self.case.truth(self.data)

    def let_go_of_truth(self) -> None:
        """Free its memory, several times that of the data; it is worked out again if asked for."""
        self.__dict__.pop("truth", None)


@dataclass
class Verified:
    """What verification found.

    Attributes
    ----------
    record : Record
        Status "ok" without samples, or final.
    call_s : float
        Rough seconds of a call, for sharing out time: the first one, or what was expected of a slow one.
    known : Known or None
        The first call, for predicting larger cases; None if it was traced.
    checksums : set of str
        Of outputs that were judged right.
    """

    record: Record
    call_s: float = float("nan")
    known: Known | None = None
    checksums: set[str] = field(default_factory=set)


class _Settled(Exception):  # no error: this is how an answer comes back early
    """The pair's fate is known: (status, reason)."""


def verify(
    evidence: Evidence, backend: Backend, run_id: str, *, threads: int, limits: Limits, known: Sequence[Known] = ()
) -> Verified:
    """Find out whether a pair may be timed.

    In this order: is it refused; would it need too much memory or time (nothing has been called yet); then plan,
    prepare, first call, each by the clock; is the result right; how much workspace did a further, traced call take.
    A slow pair (:data:`SLOW_CALL_S`) gets the traced call only, a very slow one no traced call.

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

    Returns
    -------
    Verified
        Whatever the backend raises becomes a status.
    """
    case = evidence.case
    verified = Verified(_blank(case, backend, run_id, threads))
    with _outcome(verified.record):
        _refuse(case, backend, limits)
        _verify(verified, backend, evidence, threads, limits, known)
    return verified


def _blank(case: Case, backend: Backend, run_id: str, threads: int) -> Record:
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
        time=_now(),
    )


def _now() -> str:
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
    except (Exception, SystemExit) as error:  # a backend may raise anything; it must cost one row, not the run
        record.status, record.reason = "failed", f"{type(error).__name__}: {one_line(error)}"
    if record.status != "ok":
        record.samples_s, record.batch, record.stop_reason, record.first_call_s = [], None, None, None


def _refuse(case: Case, backend: Backend, limits: Limits) -> None:
    """Raise if the backend says no, if the operands alone are too large, or if there is no time."""
    missing = backend.unavailable()
    if missing is not None:
        raise _Settled("unavailable", one_line(missing))
    reason = backend.why_not(case.spec)
    if reason is not None:
        raise _Settled("unsupported", one_line(reason))
    _check_memory(case.spec.bytes_min, limits)
    if not limits.time_s:
        raise _Settled("skipped", refuse("work", TIME_SPENT))


def _check_memory(needed_bytes: int, limits: Limits) -> None:
    too_much = memory(needed_bytes, limits.memory_bytes)
    if too_much is not None:
        raise _Settled("skipped", too_much)


def _verify(
    verified: Verified, backend: Backend, evidence: Evidence, threads: int, limits: Limits, known: Sequence[Known]
) -> None:
    record, spec = verified.record, evidence.case.spec
    if not evidence.finite and backend.error_bound(spec).spreads_nonfinite:
        raise _Settled("unsupported", refuse("data", "hold NaN or infinity, which this method spreads"))
    data = evidence.data.copy()
    plan, record.plan_s = _timed(partial(backend.plan, spec, threads=threads))
    record.accumulate_dtype = str(plan.accumulate_dtype)
    record.workspace_declared_bytes = int(plan.workspace_bytes)
    prepared_bytes = int(plan.prepared_bytes)
    _check_memory(record.workspace_declared_bytes + prepared_bytes + spec.bytes_min, limits)
    _check_time(expected_prepare_seconds(prepared_bytes, known), "should take", 0.0, limits)
    weights, record.prepare_s = _timed(partial(second_operand, plan, data.second))
    setup_s = record.plan_s + record.prepare_s
    record.flops_executed = int(getattr(weights, "flops", None) or plan.flops)
    expected_s = 0.0
    if limits.calls > 1 or spec.flops > PROBE_FLOPS:  # else the one call is no longer than those that predict it
        expected_s = evidence.case.family.expected_seconds(
            backend, spec, threads, flops=record.flops_executed, known=known
        )
    _check_time(setup_s, "should take", expected_s, limits)
    traced = partial(evidence.case.family.measure_workspace, backend, spec, data, threads)
    if SLOW_CALL_S <= expected_s < _UNTRACED_CALL_S and limits.calls > 1:
        del plan, weights  # the traced call makes its own
        record.workspace_measured_bytes, y = traced()
        verified.call_s = expected_s
        _judge(verified, backend, y, evidence)
        return
    y, first_call_s = _timed(partial(plan, data.first, weights, data.bias))
    record.first_call_s = verified.call_s = first_call_s
    _judge(verified, backend, y, evidence)
    verified.known = Known(spec, record.flops_executed, first_call_s, prepared_bytes, record.prepare_s)
    if limits.calls == 1:
        return
    _check_time(setup_s, "took", first_call_s, limits)
    if first_call_s >= _UNTRACED_CALL_S:
        return
    del plan, weights
    record.workspace_measured_bytes, _ = traced()


def _check_time(setup_s: float, verb: str, call_s: float, limits: Limits) -> None:
    """The least that a pair costs: a prepared call to verify it and, if it will be timed, one by the clock."""
    if limits.calls * (setup_s + call_s) > limits.time_s:
        needed = ", and two are needed" * (limits.calls > 1)
        what = f"one call {verb} {call_s:.3g} s"
        if setup_s > call_s:
            what = f"preparing for a call {verb} {setup_s:.3g} s"
        text = f"{what}{needed}; the limit is {limits.time_s:g} s"
        raise _Settled("skipped", refuse("work", text))


def _timed(action: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    result = action()
    return result, time.perf_counter() - began


def _judge(verified: Verified, backend: Backend, y: Any, evidence: Evidence) -> None:
    """Record the error, of several outputs the largest; raise if it is beyond the backend's own bound."""
    record = verified.record
    verdict = evidence.truth.judge(y, backend.error_bound(evidence.case.spec))
    record.error_max_eps = max(verdict.error_max_eps, record.error_max_eps or 0.0)
    record.error_norm = max(verdict.error_norm, record.error_norm or 0.0)
    record.error_bound_eps = verdict.bound_max_eps
    if not verdict.ok:
        raise _Settled("wrong", verdict.message)
    record.checksum = _checksum(y)
    verified.checksums.add(record.checksum)


def _checksum(y: Any) -> str:
    return blake2b(np.asarray(y).tobytes(), digest_size=8).hexdigest()


def judge_again(verified: Verified, backend: Backend, y: Any, evidence: Evidence) -> None:
    """Judge the output of a timed call; ``verified.record`` becomes "wrong" if it is.

    The truth is worked out again only if the output differs from all those that were found right.
    """
    with _outcome(verified.record):
        verified.record.checksum = _checksum(y)
        if verified.record.checksum not in verified.checksums:
            _judge(verified, backend, y, evidence)
            evidence.let_go_of_truth()


def sample(
    verified: Verified, evidence: Evidence, backend: Backend, *, number: int, budget_s: float, enough: int, most: int
) -> Record:
    """Plan anew, take samples on fresh copies of the operands, and judge the last timed output.

    Parameters
    ----------
    verified : Verified
        Of the same pair, with status "ok"; stages keep the times measured then.
    evidence : Evidence
        Of the same case.
    backend : Backend
    number : int
        Of the pass.
    budget_s, enough, most
        As :func:`convbench.bench.timing.measure` takes them.

    Returns
    -------
    Record
        With samples, or with a status other than "ok" and none.
    """
    record = replace(verified.record, pass_=number, time=_now())
    with _outcome(record):
        data = evidence.data.copy()
        plan = backend.plan(evidence.case.spec, threads=record.threads)
        weights = second_operand(plan, data.second)
        with garbage_collector_off():
            call = partial(plan, data.first, weights, data.bias)
            taken = measure(call, budget_s, enough=enough, most=most, cold=verified.call_s >= SLOW_CALL_S)
        record.samples_s, record.batch, record.stop_reason = taken.samples_s, taken.batch, taken.stop_reason
        judge_again(replace(verified, record=record), backend, taken.result, evidence)
    return record
