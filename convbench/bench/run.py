"""A run: verify every pair, then several passes in random order, each result on disk as soon as it is known."""

from __future__ import annotations

import json
import math
import random
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from convbench.backend import Backend
from convbench.bench.cases import Case
from convbench.bench.data import Data
from convbench.bench.environment import describe, thread_pools, utc_now
from convbench.bench.predict import Known
from convbench.bench.record import ENVIRONMENT_FILE, RECORDS_FILE, Record, append
from convbench.bench.timing import MIN_SAMPLE_S, fair_share
from convbench.bench.worker import Evidence, Limits, Verified, sample, verify
from convbench.errors import SpecError
from convbench.registry import all_backends, get_backend, protocol_problem
from convbench.threads import resolve

__all__ = ["Event", "Options", "PairDone", "PairVerified", "PassStarted", "Started", "new_run_folder", "run_cases"]

SAMPLES_WANTED = 10  # a pair, all passes together
SAMPLES_MOST = 60
HELD_DATA_BYTES = 2**30  # of operands kept between visits
VERIFYING_SHARE = 0.6  # of the budget; the rest is for measuring


@dataclass(frozen=True)
class Options:
    """How to run.

    Attributes
    ----------
    threads : int or None
        Of every pool; None: every core in the affinity mask.
    passes : int
    time_limit_s : float
        For one pair: no call may be expected to take longer, and all samples of all passes together take no longer
        (but one sample is always taken).
    memory_limit_bytes : int
        For one pair: operands, result and workspace.
    budget_s : float or None
        For the whole run. It wins over the number of samples: what is left is shared among the visits still to come.
    seed : int
        Of the orders.
    """

    threads: int | None = None
    passes: int = 3
    time_limit_s: float = 5.0
    memory_limit_bytes: int = 2 * 2**30
    budget_s: float | None = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        resolve(self.threads)
        _whole("passes", self.passes, 1)
        _whole("memory_limit_bytes", self.memory_limit_bytes, 1)
        _whole("seed", self.seed, 0)
        _positive("time_limit_s", self.time_limit_s)
        if self.budget_s is not None:
            _positive("budget_s", self.budget_s)


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SpecError(name, value, f"must be an integer ≥ {least}")


def _positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise SpecError(name, value, "must be a number of seconds > 0")


class Event:
    """Something that a progress display may want to know."""


@dataclass(frozen=True)
class Started(Event):
    """The number of steps: for each pair, one to verify it and one a pass."""

    total: int


@dataclass(frozen=True)
class PairVerified(Event):
    """A pair is right and will be timed."""

    case: str
    backend: str
    done: int
    total: int


@dataclass(frozen=True)
class PassStarted(Event):
    """Pass ``number`` (from 1) of ``passes`` begins."""

    number: int
    passes: int


@dataclass(frozen=True)
class PairDone(Event):
    """A record is on disk."""

    record: Record
    done: int
    total: int


def run_cases(
    cases: Iterable[Case],
    backends: Sequence[str | Backend] | None,
    options: Options,
    folder: Path,
    on_event: Callable[[Event], None] = lambda event: None,
) -> None:
    """Measure all pairs; write ``environment.json``, then a line of ``records.jsonl`` whenever one is known.

    Parameters
    ----------
    cases : iterable of Case
    backends : sequence of str or Backend, or None
        None: all that are registered, without ``reference`` on the cases that it refuses.
    options : Options
    folder : Path
        Made if need be; must not hold a run already.
    on_event : callable
        Called with each :class:`Event` as it happens.

    Raises
    ------
    UnknownBackend
        Before any work.
    SpecError
        Before any work, for a folder that cannot be written or holds a run, repeated cases or backends, or a
        case whose file is of another size.
    MissingDependency
        If a case's data need a library that is not installed.
    KeyboardInterrupt
        Passes through; what was measured is in the file.
    """
    _Run(cases, backends, options, folder, on_event).run()


def new_run_folder(out: Path, label: str) -> Path:
    """Make and return ``out/<UTC time>-<label>``, a folder of its own.

    Raises
    ------
    SpecError
        If it cannot be made.
    """
    name = f"{utc_now():%Y%m%dT%H%M%SZ}-{label}"
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        folder = Path(out) / (name + suffix)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not Path(out).is_dir():
                raise _unwritable(Path(out), "a file of that name exists") from None
            continue
        except OSError as error:
            raise _unwritable(Path(out), error.strerror) from None
        return folder
    raise _unwritable(Path(out), "too many runs in one second")


def _unwritable(folder: Path, why: str | None) -> SpecError:
    return SpecError("out", str(folder), f"cannot be written ({why}); choose another folder")


@dataclass
class _Pair:
    """One (case, backend) and what is known of it."""

    case: Case
    backend: Backend
    verified: Verified | None = None
    spent_s: float = 0.0
    visits: int = 0
    live: bool = True


class _Run:
    def __init__(
        self,
        cases: Iterable[Case],
        backends: Sequence[str | Backend] | None,
        options: Options,
        folder: Path,
        on_event: Callable[[Event], None],
    ) -> None:
        self.options, self.folder, self.tell = options, Path(folder), on_event
        self.began = time.perf_counter()
        self.cases = list(cases)
        _refuse_repeats("cases", [str(case) for case in self.cases])
        self.backends = _find_backends(backends)
        _refuse_repeats("backends", [backend.name for backend in self.backends])
        drop = "reference" if backends is None else None
        self.pairs = [
            _Pair(case, backend)
            for case in self.cases
            for backend in self.backends
            if backend.name != drop or backend.why_not(case.spec) is None
        ]
        self.threads = resolve(options.threads)
        self.run_id = f"{utc_now():%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        self.data = _HeldData(self.cases)
        self.done, self.total = 0, len(self.pairs) * (1 + options.passes)
        self.overheads_s: list[float] = []

    def run(self) -> None:
        for case in self.cases:
            if case.x not in ("noise", "integers") or case.w.startswith("@"):
                case.data()  # a file of the wrong size is better found now than in mid-run
        for backend in self.backends:
            backend.unavailable()  # imports its libraries, whose thread pools are then held too
        with ExitStack() as stack:
            self._open_folder(stack.enter_context(thread_pools(self.threads)))
            self.tell(Started(self.total))
            self._verify_all()
            for number in range(1, self.options.passes + 1):
                self.tell(PassStarted(number, self.options.passes))
                self._pass(number)

    # -- files --------------------------------------------------------------------------------

    def _open_folder(self, pool_problems: list[str]) -> None:
        records, environment = self.folder / RECORDS_FILE, self.folder / ENVIRONMENT_FILE
        if records.exists() or environment.exists():
            raise SpecError("out", str(self.folder), "holds a run already; choose another folder")
        about = {
            "run_id": self.run_id,
            **describe(self.threads, pool_problems),
            "options": asdict(self.options),
            "cases": [str(case) for case in self.cases],
            "backends": [backend.name for backend in self.backends],
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            environment.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            records.touch()
        except OSError as error:
            raise _unwritable(self.folder, error.strerror) from None

    def _settle(self, pair: _Pair, record: Record, steps: int) -> None:
        """Write a record; ``steps`` of the pair's work are done with it."""
        append(self.folder / RECORDS_FILE, record)
        self.done += steps
        if record.status != "ok":
            pair.live = False
        self.tell(PairDone(record, self.done, self.total))

    # -- verification -------------------------------------------------------------------------

    def _verify_all(self) -> None:
        """Case by case, so that the truth is worked out once for all backends and then let go."""
        known: dict[str, list[Known]] = {backend.name: [] for backend in self.backends}
        limits = Limits(self.options.time_limit_s, self.options.memory_limit_bytes)
        evidence: Evidence | None = None
        for pair in self.pairs:
            if evidence is None or evidence.case is not pair.case:
                evidence = self.data.evidence(pair.case)
            late = self._left_s() < (self.options.budget_s or 0) * (1 - VERIFYING_SHARE)
            pair.verified = verify(
                evidence,
                pair.backend,
                self.run_id,
                threads=self.threads,
                limits=Limits(0.0, limits.memory_bytes) if late else limits,
                known=known[pair.backend.name],
            )
            if pair.verified.known is not None:
                known[pair.backend.name].append(pair.verified.known)
            record = pair.verified.record
            if record.status != "ok":
                self._settle(pair, record, 1 + self.options.passes)
                continue
            self.done += 1
            self.tell(PairVerified(record.case, record.backend, self.done, self.total))

    def _left_s(self) -> float:
        if self.options.budget_s is None:
            return math.inf
        return self.options.budget_s - (time.perf_counter() - self.began)

    # -- passes -------------------------------------------------------------------------------

    def _pass(self, number: int) -> None:
        visits = [pair for pair in self._order(number) if pair.live]
        for position, pair in enumerate(visits):
            budget_s, reason = self._allowance(pair, visits[position:], number)
            if pair.live and budget_s > 0:
                self._visit(pair, number, budget_s, reason)
            else:
                self.done += 1

    def _order(self, number: int) -> list[_Pair]:
        """All pairs in this pass's own random order; case by case if the data of all cannot be held at once."""
        rng = random.Random(f"{self.options.seed}/{number}")
        pairs = rng.sample(self.pairs, len(self.pairs))
        if not self.data.all_held:
            ranks = {id(case): rank for rank, case in enumerate(rng.sample(self.cases, len(self.cases)))}
            pairs.sort(key=lambda pair: ranks[id(pair.case)])
        return pairs

    def _visit(self, pair: _Pair, number: int, budget_s: float, limit: str) -> None:
        assert pair.verified is not None
        began = time.perf_counter()
        passes = self.options.passes
        record = sample(
            pair.verified,
            self.data.evidence(pair.case),
            pair.backend,
            number=number,
            budget_s=budget_s,
            enough=math.ceil(SAMPLES_WANTED / passes),
            most=math.ceil(SAMPLES_MOST / passes),
        )
        if record.stop_reason == "budget":
            record.stop_reason = limit
        sampling_s = sum(record.samples_s) * (record.batch or 0)
        pair.spent_s += sampling_s
        pair.visits += 1
        self.overheads_s.append(max(0.0, time.perf_counter() - began - max(sampling_s, budget_s)))
        self._settle(pair, record, 1 if record.status == "ok" else 1 + passes - number)

    def _allowance(self, pair: _Pair, waiting: Sequence[_Pair], number: int) -> tuple[float, str]:
        """Return the seconds that a visit may take, 0 for none, and what limits them.

        What the budget has left is shared among all visits still to come, in this pass and the later ones.
        """
        later = self.options.passes - number
        own_s = max(0.0, self.options.time_limit_s - pair.spent_s) / (later + 1)
        call_s = _call_s(pair)
        if pair.visits and pair.spent_s + call_s > self.options.time_limit_s:
            return 0.0, "time-limit"
        own_s = max(own_s, call_s)
        visits = [other for other in waiting if other.live] + [other for other in self.pairs if other.live] * later
        overhead_s = sum(self.overheads_s) / max(1, len(self.overheads_s))
        left_s = self._left_s() - overhead_s * len(visits)
        level_s = fair_share(left_s, [_call_s(v) for v in visits], [self._demand_s(v) for v in visits])
        if pair.visits and level_s == 0 and self._left_s() < call_s:
            return 0.0, "budget"
        share_s = max(level_s, call_s)
        return (share_s, "budget") if share_s < own_s else (own_s, "time-limit")

    def _demand_s(self, pair: _Pair) -> float:
        """Seconds that a visit could use: all samples and their warm-up, within the pair's time limit."""
        most = SAMPLES_MOST / self.options.passes * 1.4 * max(_call_s(pair), MIN_SAMPLE_S)
        return min(most, self.options.time_limit_s / self.options.passes)


def _call_s(pair: _Pair) -> float:
    assert pair.verified is not None
    return pair.verified.call_s


def _refuse_repeats(name: str, lines: Sequence[str]) -> None:
    if not lines:
        raise SpecError(name, [], "must not be empty")
    repeated = next((line for line in lines if lines.count(line) > 1), None)
    if repeated is not None:
        raise SpecError(name, repeated, "is given twice")


def _find_backends(backends: Sequence[str | Backend] | None) -> list[Backend]:
    if backends is None:
        return list(all_backends().values())
    found = []
    for backend in backends:
        if isinstance(backend, str):
            found.append(get_backend(backend))
            continue
        problem = protocol_problem(backend)
        if problem:
            raise SpecError("backends", type(backend).__name__, f"must be registered names or backends: {problem}")
        found.append(backend)
    return found


class _HeldData:
    """Operands between visits: all of them if they fit in :data:`HELD_DATA_BYTES`, else the last case's."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.all_held = sum(case.spec.bytes_min for case in cases) <= HELD_DATA_BYTES
        self._held: dict[Case, Data] = {}

    def evidence(self, case: Case) -> Evidence:
        """Return the case with its data, if they are here; they are kept when made."""
        if case not in self._held:
            evidence = Evidence(case)
            if not self.all_held:
                self._held.clear()
            self._held[case] = evidence.data
            return evidence
        return Evidence(case, self._held[case])
