"""A run: verify every pair, then several passes in random order, each result on disk as soon as it is known.

Passes are processes of their own (:mod:`convbench.bench.process`); this one holds no data and calls no backend. It
decides who is next and how long, watches, and writes. What it decides follows from the options and the records alone,
so that a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import math
import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from convbench.backend import Backend
from convbench.bench.cases import Case
from convbench.bench.crew import Crew
from convbench.bench.environment import command_line
from convbench.bench.families import Family, only_family
from convbench.bench.options import Options
from convbench.bench.predict import Known
from convbench.bench.process import Lost
from convbench.bench.record import (
    ENVIRONMENT_FILE,
    RECORDS_FILE,
    Record,
    append,
    held,
    read,
    read_environment,
    repair,
    write_environment,
)  # fmt: skip
from convbench.bench.service import Setup, fit_in_memory
from convbench.bench.timing import MIN_SAMPLE_S, fair_share
from convbench.bench.worker import LEAST_SAMPLES, SLOW_CALL_S, Effort, Limits, blank, known_of, now
from convbench.errors import SpecError
from convbench.revision import utc_now
from convbench.threads import resolve

__all__ = [
    "Event", "Options", "PairDone", "PairVerified", "PassStarted", "Started", "new_run_folder", "resume", "run_cases",
]  # fmt: skip

SAMPLES_WANTED = 30  # a pair, all passes together
SAMPLES_MOST = 120
FAR_BEHIND, FAR_BEHIND_PASSES = 10, 3  # times the quickest of its case: visited in so many passes only
SPREAD_TELLS = 3  # samples of a visit, at least, that say whether they agree
VERIFYING_SHARE = 0.6  # of the budget; the rest is for measuring
SHARED_ANEW = 50  # times a pass: sharing out what is left looks at every visit to come


class Event:
    """Something that a progress display may want to know."""


@dataclass(frozen=True)
class Started(Event):
    """The number of steps, and the backends that are not here with the reason."""

    total: int
    missing: Mapping[str, str] = field(default_factory=dict)


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
    backends: str | Sequence[str | Backend] | None,
    options: Options,
    folder: Path,
    on_event: Callable[[Event], None] = lambda event: None,
) -> None:
    """Measure all pairs; write ``environment.json``, then a line of ``records.jsonl`` whenever one is known.

    Parameters
    ----------
    cases : iterable of Case
    backends : str, sequence of str or Backend, or None
        One name, or several. None: all that are registered, without ``reference`` on the cases that it refuses.
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
        Before any work, for a folder that cannot be written or holds a run, repeated cases or backends, cases of
        several families of operations, a case whose file is of another size, or a backend that cannot be sent to a
        process of its own.
    KeyboardInterrupt
        Passes through; what was measured is in the file.
    """
    cases = list(cases)
    _refuse_repeats("cases", [str(case) for case in cases])
    found = _find_backends(backends, only_family(str(case) for case in cases))
    _refuse_repeats("backends", [backend.name for backend in found])
    run_id = f"{utc_now():%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    _Run(cases, found, options, folder, on_event, all_backends=backends is None, run_id=run_id).run()


def resume(
    folder: Path, on_event: Callable[[Event], None] = lambda event: None, *, budget_s: float | None = None
) -> None:
    """Go on with a run that was killed or interrupted; what it has measured is not measured again.

    A last line that was cut short is dropped, and its pair measured anew.

    Parameters
    ----------
    folder : Path
        The run's.
    on_event : callable
        Is told of what there is already, too.
    budget_s : float, optional
        For the whole run, what it spent before included; None: as it was.

    Raises
    ------
    SpecError
        If there is no run, not all of it is registered here, or it was made on another machine.
    UnknownBackend
        If a backend of it is not registered.
    """
    folder = Path(folder)
    about = read_environment(folder)
    try:
        options = Options(**about["options"] | {"threads": about["threads"]})
        occurrences = zip(about["cases"], about["occurrences"], strict=True)
        cases = [replace(Case.parse(line), weight=weight, group=group) for line, (weight, group) in occurrences]
        family = only_family(about["cases"])
        backends = [family.get_backend(name) for name in about["backends"]]
        run_id, everything = about["run_id"], about["all_backends"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        rule = f"cannot be resumed: {ENVIRONMENT_FILE} does not say how it was run ({error}); make a new run"
        raise SpecError("run", str(folder), rule) from None
    if budget_s is not None:
        options = replace(options, budget_s=budget_s)
    run = _Run(cases, backends, options, folder, on_event, all_backends=everything, run_id=run_id)
    records = folder / RECORDS_FILE
    records.touch()
    with held(records):
        repair(records)
        run.run(read(folder), about)


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
    """One (case, backend), by their positions, and what is known of it; a twin is visited as if it were another."""

    case: int
    backend: int
    twin: bool = False
    verified: Record | None = None
    call_s: float = 0.0
    spent_s: float = 0.0
    samples: int = 0
    passes: set[int] = field(default_factory=set)
    live: bool = True

    @property
    def visits(self) -> int:
        """How often it was sampled: once a pass at most."""
        return len(self.passes)

    @property
    def least_s(self) -> float:
        """The shortest visit worth making: something to warm up, then samples; of a slow pair one sample alone."""
        if self.call_s >= SLOW_CALL_S:
            return self.call_s
        return (1 + LEAST_SAMPLES) * MIN_SAMPLE_S if self.call_s < MIN_SAMPLE_S else 2 * self.call_s

    def learn(self, record: Record) -> None:
        """Take in a record of it: of its verification, or of a visit."""
        self.live = self.live and record.status == "ok"
        if not record.pass_:
            self.verified = record
            self.call_s = record.call_s or 0.0
            self.spent_s = self.call_s + (record.plan_s or 0.0) + (record.prepare_s or 0.0)
            return
        self.samples += len(record.samples_s)
        self.passes.add(record.pass_)
        if record.samples_s:
            sampled_s = sum(record.samples_s) * (record.batch or 1)
            self.spent_s += sampled_s + (record.plan_s or 0.0) + (record.prepare_s or 0.0)
            self.call_s = median(record.samples_s)


class _Run:
    def __init__(
        self,
        cases: Sequence[Case],
        backends: Sequence[Backend],
        options: Options,
        folder: Path,
        on_event: Callable[[Event], None],
        *,
        all_backends: bool,
        run_id: str,
    ) -> None:
        self.cases, self.backends, self.options = list(cases), list(backends), options
        self.folder, self.tell, self.all_backends, self.run_id = Path(folder), on_event, all_backends, run_id
        self.family = only_family(str(case) for case in self.cases)
        self.threads = resolve(options.threads)
        self.pairs = [
            _Pair(case, backend)
            for case in range(len(self.cases))
            for backend in range(len(self.backends))
            if not (all_backends and self._is_refused_reference(case, backend))
        ]
        self.twins: list[_Pair] = []
        limit_bytes = options.memory_limit_bytes
        self.crew = Crew(self._setup(), isolate=options.isolate, memory_limit_bytes=limit_bytes)
        self.done, self.total = 0, len(self.pairs) * (1 + options.passes_made)
        self.overheads_s: list[float] = []
        self.level_s = 0.0
        self.began = time.perf_counter()

    def _is_refused_reference(self, case: int, backend: int) -> bool:
        """Nobody who asks for everything waits for the reference where it takes long."""
        chosen = self.backends[backend]
        return chosen.name == "reference" and chosen.why_not(self.cases[case].spec) is not None

    def run(self, earlier: Sequence[Record] = (), about: Mapping[str, Any] | None = None) -> None:
        """Do what is not done yet: verify all pairs, then visit those that are right in each pass.

        Parameters
        ----------
        earlier : sequence of Record
            Of a run that is resumed.
        about : mapping, optional
            Its environment.
        """
        if about is not None:
            self.began -= max((record.elapsed_s or 0.0 for record in earlier), default=0.0)
        try:
            self._remember(record for record in earlier if not record.pass_)
            self._begin(about)
            with held(self.folder / RECORDS_FILE) if about is None else nullcontext():  # else `resume` holds it
                self._verify_all()
                self._choose_twins()
                self._remember(record for record in earlier if record.pass_)
                for number in range(1, self.options.passes_made + 1):
                    self._pass(number)
        finally:
            self.crew.let_go()

    # -- the worker ---------------------------------------------------------------------------

    def _setup(self) -> Setup:
        registered = self.family.backend_names()
        backends = (
            each.name if each.name in registered and self.family.get_backend(each.name) is each else each
            for each in self.backends
        )
        return Setup(self.run_id, tuple(self.cases), tuple(backends), self.threads, self.options.mode)

    def _ask(self, pair: _Pair, request: str, *arguments: Any) -> Record:
        """Have a pair verified or sampled; the worker's death becomes the pair's status."""
        try:
            record: Record = self.crew.ask_of(pair.case, pair.backend, request, *arguments)
        except Lost as lost:
            case, backend = self.cases[pair.case], self.backends[pair.backend]
            record = replace(pair.verified or blank(case, backend, self.run_id, self.threads), mode=self.options.mode)
            record.status, record.reason, record.time = lost.status, lost.reason, now()
            record.without_times()
        return record

    # -- files --------------------------------------------------------------------------------

    def _begin(self, about: Mapping[str, Any] | None) -> None:
        """Write the environment of a new run; see that a resumed one is where it was."""
        if about is None:
            self._refuse_used_folder()
        self.crew.renew(pair.backend for pair in self.pairs)
        environment = self.crew.ask("environment") | {"command_line": command_line()}
        if about is not None:
            self._refuse_elsewhere(about, environment)
        for number, case in enumerate(self.cases):
            if case.x.startswith("@") or case.w.startswith("@"):
                self.crew.ask("check_data", number)
        if about is None:
            self._open_folder(environment, self.crew.ask("limits") if self.options.timed else {})
        missing = {self.backends[number].name: reason for number, reason in self.crew.missing.items()}
        self.tell(Started(self.total, missing))

    def _refuse_used_folder(self) -> None:
        if any((self.folder / name).exists() for name in (RECORDS_FILE, ENVIRONMENT_FILE)):
            raise SpecError("out", str(self.folder), "holds a run already; choose another folder")

    def _refuse_elsewhere(self, about: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        then, here = (each.get("host", {}).get("fingerprint") for each in (about, now))
        if then != here:
            rule = f"was made on another machine ({then}; this is {here}): times would not compare; make a new run"
            raise SpecError("run", str(self.folder), rule)
        changed = [
            f"{name} {version} (now {now['libraries'].get(name)})"
            for name, version in about.get("libraries", {}).items()
            if now["libraries"].get(name) != version
        ]
        cores = [each["host"]["cpu"].get("usable_cores") for each in (about, now)]
        if cores[0] != cores[1]:
            changed.append(f"{cores[0]} usable cores (now {cores[1]})")
        if changed:
            rule = f"was made with {', '.join(changed)}: times would not compare; make a new run"
            raise SpecError("run", str(self.folder), rule)

    def _open_folder(self, environment: Mapping[str, Any], limits: Mapping[str, Any]) -> None:
        about = {
            "run_id": self.run_id,
            **environment,
            "limits": limits,
            "options": asdict(self.options),
            "cases": [str(case) for case in self.cases],
            "occurrences": [(case.weight, case.group) for case in self.cases],
            "backends": [backend.name for backend in self.backends],
            "all_backends": self.all_backends,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / RECORDS_FILE).touch()
            write_environment(self.folder, about)
        except OSError as error:
            raise _unwritable(self.folder, error.strerror) from None

    def _remember(self, earlier: Iterable[Record]) -> None:
        """Take in the records of a run that is resumed."""
        pairs = {
            (str(self.cases[pair.case]), self.backends[pair.backend].name, pair.twin): pair
            for pair in self.pairs + self.twins
        }
        for record in earlier:
            pair = pairs.get((record.case, record.backend, record.twin))
            if pair is not None:
                pair.learn(record)
                self._bury(pair)
                self.done += 1
                self.tell(PairDone(record, self.done, self.total))

    def _settle(self, pair: _Pair, record: Record, steps: int) -> None:
        """Write a record; ``steps`` of the pair's work are done with it."""
        record.elapsed_s = time.perf_counter() - self.began
        append(self.folder / RECORDS_FILE, record)
        pair.learn(record)
        self._bury(pair)
        self.done += steps
        if record.status == "ok" and not record.pass_ and self.options.timed:
            self.tell(PairVerified(record.case, record.backend, self.done, self.total))
        else:
            self.tell(PairDone(record, self.done, self.total))

    def _bury(self, pair: _Pair) -> None:
        """What is the end of a pair is the end of its twin."""
        for other in self.pairs + self.twins:
            if not pair.live and (other.case, other.backend) == (pair.case, pair.backend):
                other.live = False

    # -- verification -------------------------------------------------------------------------

    def _verify_all(self) -> None:
        """Case by case, so that the truth is worked out once for all backends and then let go.

        Small cases come first, so that a short budget is at the expense of the largest.
        """
        pairs = sorted(self.pairs, key=lambda pair: self.cases[pair.case].spec.flops)  # stable: a case's stay together
        calls = 1 + LEAST_SAMPLES if self.options.timed else 1
        kept_s = (self.options.budget_s or 0) * (1 - VERIFYING_SHARE) * self.options.timed
        late, previous = False, -1
        for position, pair in enumerate(pairs):
            if pair.case != previous:
                late = position > 0 and self._left_s() < kept_s  # whole cases: half of one would have a false winner
            previous = pair.case
            if pair.verified or not pair.live:
                continue
            last = position + 1 == len(pairs) or pairs[position + 1].case != pair.case
            limits = Limits(0.0 if late else self.options.time_limit_s, self.options.memory_limit_bytes, calls)
            record = self._ask(pair, "verify", limits, self._known(pair.backend), last)
            ended = record.status != "ok" or not self.options.timed
            self._settle(pair, record, 1 + self.options.passes_made * ended)

    def _known(self, backend: int) -> list[Known]:
        records = (pair.verified for pair in self.pairs if pair.backend == backend)
        return [known for record in records if record is not None and (known := known_of(record))]

    def _choose_twins(self) -> None:
        """Of each case the quickest as they were verified: between these a false winner is most likely."""
        for case in range(len(self.cases) if self.options.timed else 0):
            right = [
                pair for pair in self.pairs if pair.case == case and pair.verified and pair.verified.status == "ok"
            ]
            quickest = sorted(right, key=lambda pair: (pair.verified and pair.verified.call_s) or math.inf)
            self.twins += [
                _Pair(case, pair.backend, True, pair.verified, call_s=(pair.verified and pair.verified.call_s) or 0.0)
                for pair in quickest[: self.options.twins]
            ]
        self.total += len(self.twins) * self.options.passes_made

    def _left_s(self) -> float:
        if self.options.budget_s is None:
            return math.inf
        return self.options.budget_s - (time.perf_counter() - self.began)

    # -- passes -------------------------------------------------------------------------------

    def _pass(self, number: int) -> None:
        visits = [pair for pair in self._order(number) if pair.live and number not in pair.passes]
        if not visits:
            return
        self.crew.renew(pair.backend for pair in visits)
        self.tell(PassStarted(number, self.options.passes))
        for position, pair in enumerate(visits):
            if not pair.live:
                continue
            if position % max(1, len(visits) // SHARED_ANEW) == 0:
                self._share_out(visits[position:], number)
            budget_s, limit = self._allowance(pair, number)
            if budget_s > 0:
                self._visit(pair, number, budget_s, limit)
            else:
                self.done += 1

    def _order(self, number: int) -> list[_Pair]:
        """All pairs in this pass's own random order; case by case if the data of all cannot be held at once."""
        rng = random.Random(f"{self.options.seed}/{number}")
        everybody = self.pairs + self.twins
        pairs = rng.sample(everybody, len(everybody))
        if not fit_in_memory(self.cases):
            ranks = rng.sample(range(len(self.cases)), len(self.cases))
            pairs.sort(key=lambda pair: ranks[pair.case])
        return pairs

    def _visit(self, pair: _Pair, number: int, budget_s: float, limit: str) -> None:
        began, passes = time.perf_counter(), self.options.passes
        effort = Effort(
            budget_s,
            least=LEAST_SAMPLES if pair.call_s < MIN_SAMPLE_S else math.ceil(LEAST_SAMPLES / passes),
            enough=max(SPREAD_TELLS, math.ceil(SAMPLES_WANTED / passes)),
            most=math.ceil(SAMPLES_MOST / passes),
        )
        limits = Limits(self.options.time_limit_s, self.options.memory_limit_bytes)
        record = self._ask(pair, "sample", pair.verified, number, effort, limits)
        record.pass_, record.twin = number, pair.twin
        if record.stop_reason == "budget":
            record.stop_reason = limit
        self.overheads_s.append(max(0.0, time.perf_counter() - began - budget_s))
        if record.status != "ok":  # of a twin too: it is the backend's doing
            record.twin = False
        self._settle(pair, record, 1 if record.status == "ok" else 1 + passes - number)

    def _share_out(self, waiting: Sequence[_Pair], number: int) -> None:
        """Find the level up to which what is left of the budget fills all visits to come, later passes included.

        What visits have cost beyond their allowance so far (planning, copying, judging) is set aside for those to
        come, and so is the start of each process.
        """
        passes_left = self.options.passes - number
        visits = [*waiting, *[pair for pair in self.pairs + self.twins if pair.live] * passes_left]
        overhead_s = sum(self.overheads_s) / max(1, len(self.overheads_s))
        left_s = self._left_s() - overhead_s * len(visits) - self.crew.start_s * passes_left
        self.level_s = fair_share(left_s, [pair.least_s for pair in visits], [self._demand_s(pair) for pair in visits])

    def _allowance(self, pair: _Pair, number: int) -> tuple[float, str]:
        """Return the seconds that a visit may take, 0 for none, and what limits them.

        Fewer than three samples are none: until then no visit is denied. Its time limit, what its plans and prepared
        weights take included, lets a pair have three visits whenever it lets it be timed at all. What is far behind the
        quickest of its case is known to be after few passes; the time is better spent on those who are close.
        """
        if pair.visits >= LEAST_SAMPLES and pair.spent_s + pair.call_s > self.options.time_limit_s:
            return 0.0, "time-limit"
        if pair.visits >= FAR_BEHIND_PASSES and pair.call_s > FAR_BEHIND * self._quickest_s(pair.case):
            return 0.0, "far behind"
        if pair.samples >= LEAST_SAMPLES and self._left_s() < pair.least_s:
            return 0.0, "budget"
        own_s = (self.options.time_limit_s - pair.spent_s) / (1 + self.options.passes - number)
        limit_s, limit = min((self.level_s, "budget"), (own_s, "time-limit"))
        return max(limit_s, pair.least_s), limit

    def _quickest_s(self, case: int) -> float:
        """Seconds of the quickest call of a case."""
        return min((pair.call_s for pair in self.pairs if pair.case == case and pair.visits), default=0.0)

    def _demand_s(self, pair: _Pair) -> float:
        """Seconds that a visit could use: all samples and their warm-up, within the pair's time limit."""
        most = SAMPLES_MOST / self.options.passes * 1.4 * max(pair.call_s, MIN_SAMPLE_S)
        return min(most, self.options.time_limit_s / self.options.passes)


def _refuse_repeats(name: str, lines: Sequence[str]) -> None:
    if not lines:
        raise SpecError(name, [], "must not be empty")
    repeated = next((line for line in lines if lines.count(line) > 1), None)
    if repeated is not None:
        raise SpecError(name, repeated, "is given twice")


def _find_backends(backends: str | Sequence[str | Backend] | None, family: Family) -> list[Backend]:
    if backends is None:
        return list(family.all_backends().values())
    if isinstance(backends, str):
        backends = [backends]
    if not isinstance(backends, Iterable):
        raise SpecError("backends", backends, "must be registered names or backends, in a list")
    return [family.get_backend(each) if isinstance(each, str) else family.adopt(each) for each in backends]
