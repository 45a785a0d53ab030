"""A run: verify every pair, then several passes in random order, each result on disk as soon as it is known."""

from __future__ import annotations

import json
import math
import random
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from convbench.backend import Backend
from convbench.bench.cases import Case
from convbench.bench.environment import describe, thread_pools, utc_now
from convbench.bench.families import Family, only_family
from convbench.bench.predict import Known
from convbench.bench.record import ENVIRONMENT_FILE, RECORDS_FILE, Record, append
from convbench.bench.timing import MIN_SAMPLE_S, fair_share, heap_set_aside
from convbench.bench.worker import SLOW_CALL_S, Evidence, Limits, Verified, sample, verify
from convbench.errors import MissingDependency, SpecError
from convbench.registry import what_is_missing
from convbench.threads import resolve

__all__ = ["Event", "Options", "PairDone", "PairVerified", "PassStarted", "Started", "new_run_folder", "run_cases"]

SAMPLES_WANTED = 10  # a pair, all passes together
SAMPLES_MOST = 60
HELD_DATA_BYTES = 2**30  # of operands kept between visits
VERIFYING_SHARE = 0.6  # of the budget; the rest is for measuring
SHARED_ANEW = 50  # times a pass: sharing out what is left looks at every visit to come


@dataclass(frozen=True)
class Options:
    """How to run.

    Attributes
    ----------
    threads : int or None
        Of every pool; None: every core in the affinity mask.
    passes : int
    time_limit_s : float
        For one pair, its verifying call and the samples of all passes together. A pair is skipped if planning,
        preparing and calling it twice should take longer.
    memory_limit_bytes : int
        For one pair: operands, result and workspace.
    budget_s : float or None
        For the whole run. It wins over the number of samples: what is left is shared among the visits still to come.
    seed : int
        Of the orders.
    timed : bool
        False: every pair is verified by one call, its error recorded, and nothing is timed; there are no passes.
    """

    threads: int | None = None
    passes: int = 3
    time_limit_s: float = 5.0
    memory_limit_bytes: int = 2 * 2**30
    budget_s: float | None = 120.0
    seed: int = 0
    timed: bool = True

    def __post_init__(self) -> None:
        resolve(self.threads)
        _whole("passes", self.passes, 1)
        _whole("memory_limit_bytes", self.memory_limit_bytes, 1)
        _whole("seed", self.seed, 0)
        _positive("time_limit_s", self.time_limit_s)
        if self.budget_s is not None:
            _positive("budget_s", self.budget_s)
        if not isinstance(self.timed, bool):
            raise SpecError("timed", self.timed, "must be True or False")

    @property
    def passes_made(self) -> int:
        """Passes that the run will make: none if nothing is timed."""
        return self.passes if self.timed else 0


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
        several families of operations, or a case whose file is of another size.
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
    call_s: float = 0.0
    spent_s: float = 0.0
    visits: int = 0
    live: bool = True

    @property
    def least_s(self) -> float:
        """The shortest visit worth making: calls to warm up, then a sample; of a slow pair the sample alone."""
        return self.call_s if self.call_s >= SLOW_CALL_S else self.call_s + 2 * max(self.call_s, MIN_SAMPLE_S)


class _Run:
    def __init__(
        self,
        cases: Iterable[Case],
        backends: str | Sequence[str | Backend] | None,
        options: Options,
        folder: Path,
        on_event: Callable[[Event], None],
    ) -> None:
        self.options, self.folder, self.tell = options, Path(folder), on_event
        self.began = time.perf_counter()
        self.cases = list(cases)
        _refuse_repeats("cases", [str(case) for case in self.cases])
        self.backends = _find_backends(backends, only_family(str(case) for case in self.cases))
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
        self.done, self.total = 0, len(self.pairs) * (1 + options.passes_made)
        self.overheads_s: list[float] = []
        self.level_s = 0.0

    def run(self) -> None:
        self._check_files()
        for backend in self.backends:
            what_is_missing(backend)  # imports its libraries, whose thread pools are then held too
        with ExitStack() as stack:
            self._open_folder(stack.enter_context(thread_pools(self.threads)))
            self.tell(Started(self.total))
            self._verify_all()
            stack.enter_context(heap_set_aside())
            for number in range(1, self.options.passes_made + 1):
                self.tell(PassStarted(number, self.options.passes))
                self._pass(number)

    # -- files --------------------------------------------------------------------------------

    def _check_files(self) -> None:
        """Find out now what would go wrong in mid-run, such as a file of the wrong size.

        A library that is missing costs the cases that need it: their pairs become "unavailable" in their turn.
        """
        for case in self.cases:
            if case.x.startswith("@") or case.w.startswith("@"):
                with suppress(MissingDependency):
                    _ = self.data.evidence(case).data

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
        """Case by case, so that the truth is worked out once for all backends and then let go.

        Small cases come first, so that a short budget is at the expense of the largest.
        """
        pairs = sorted(self.pairs, key=lambda pair: pair.case.spec.flops)  # stable: a case's pairs stay together
        known: dict[str, list[Known]] = {backend.name: [] for backend in self.backends}
        calls = 2 if self.options.timed else 1
        kept_s = (self.options.budget_s or 0) * (1 - VERIFYING_SHARE) * self.options.timed
        late = False
        for position, pair in enumerate(pairs):
            evidence = self.data.evidence(pair.case)
            if position == 0 or pairs[position - 1].case is not pair.case:
                late = self._left_s() < kept_s  # for whole cases: half of one would have a false winner
            pair.verified = verify(
                evidence,
                pair.backend,
                self.run_id,
                threads=self.threads,
                limits=Limits(0.0 if late else self.options.time_limit_s, self.options.memory_limit_bytes, calls),
                known=known[pair.backend.name],
            )
            if position + 1 == len(pairs) or pairs[position + 1].case is not pair.case:
                evidence.let_go_of_truth()
            if pair.verified.known is not None:
                known[pair.backend.name].append(pair.verified.known)
            record = pair.verified.record
            if record.status != "ok" or not self.options.timed:
                self._settle(pair, record, 1 + self.options.passes_made)
                continue
            pair.call_s = pair.spent_s = pair.verified.call_s
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
        pair.visits += 1
        if record.samples_s:
            pair.spent_s += sum(record.samples_s) * (record.batch or 1)
            pair.call_s = median(record.samples_s)
        self.overheads_s.append(max(0.0, time.perf_counter() - began - budget_s))
        self._settle(pair, record, 1 if record.status == "ok" else 1 + passes - number)

    def _share_out(self, waiting: Sequence[_Pair], number: int) -> None:
        """Find the level up to which what is left of the budget fills all visits to come, later passes included.

        What visits have cost beyond their allowance so far (planning, copying, judging) is set aside for those to come.
        """
        visits = [*waiting, *[pair for pair in self.pairs if pair.live] * (self.options.passes - number)]
        overhead_s = sum(self.overheads_s) / max(1, len(self.overheads_s))
        left_s = self._left_s() - overhead_s * len(visits)
        self.level_s = fair_share(left_s, [pair.least_s for pair in visits], [self._demand_s(pair) for pair in visits])

    def _allowance(self, pair: _Pair, number: int) -> tuple[float, str]:
        """Return the seconds that a visit may take, 0 for none, and what limits them.

        A pair's first visit is never denied.
        """
        if pair.visits and pair.spent_s + pair.call_s > self.options.time_limit_s:
            return 0.0, "time-limit"
        if pair.visits and self._left_s() < pair.least_s:
            return 0.0, "budget"
        own_s = (self.options.time_limit_s - pair.spent_s) / (1 + self.options.passes - number)
        limit_s, limit = min((self.level_s, "budget"), (own_s, "time-limit"))
        return max(limit_s, pair.least_s), limit

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


class _HeldData:
    """Operands between visits: of all cases if they fit in :data:`HELD_DATA_BYTES`, else of the last one asked for."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.all_held = sum(case.spec.bytes_min for case in cases) <= HELD_DATA_BYTES
        self._held: dict[Case, Evidence] = {}

    def evidence(self, case: Case) -> Evidence:
        """Return the case's evidence, with its data if they are here."""
        if case not in self._held:
            if not self.all_held:
                self._held.clear()
            self._held[case] = Evidence(case)
        return self._held[case]
