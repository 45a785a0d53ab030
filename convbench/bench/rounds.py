"""Runs one after the other, each as the last one's results suggest, in one folder that reads as one run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from convbench.backend import Backend
from convbench.bench.cases import Case
from convbench.bench.record import ENVIRONMENT_FILE, RECORDS_FILE, STATUSES, TIME_SPENT, Record, read, with_transfers
from convbench.bench.run import Event, Options, run_cases
from convbench.errors import SpecError

__all__ = ["ROUNDS_FOLDER", "SHARE", "RoundDone", "RoundStarted", "Rounds", "Timing", "folder_for", "read_found"]

Found = TypeVar("Found")

#: In a search's folder: each round's own.
ROUNDS_FOLDER = "rounds"
#: Of the budget, what the first round may take. Later ones are of as many cases as there is time for.
SHARE = 0.5


@dataclass(frozen=True)
class RoundStarted(Event):
    """Round ``number`` (from 1) measures these cases, in at most so many seconds (None: no limit)."""

    number: int
    cases: tuple[str, ...]
    budget_s: float | None


@dataclass(frozen=True)
class RoundDone(Event):
    """``result``: everything that is known after the round, as the search will return it."""

    number: int
    result: Any


@dataclass(frozen=True)
class Timing:
    """What is known of one backend on one case.

    Attributes
    ----------
    passes_s : mapping of int to float
        Pass → median seconds of a call; passes are counted through all rounds.
    status, reason : str
        As in a record.
    predicted_s : float or None
        What a call should take, of a pair that was skipped for that.
    rounds : int
        In how many rounds it was measured.
    """

    passes_s: Mapping[int, float] = field(default_factory=dict)
    status: str = "ok"
    reason: str = ""
    predicted_s: float | None = None
    rounds: int = 1

    @property
    def time_s(self) -> float | None:
        """Median of the passes' medians."""
        return median(self.passes_s.values()) if self.status == "ok" and self.passes_s else None

    @property
    def row(self) -> dict[str, Any]:
        """What :func:`convbench.bench.ratios.row_ratio` compares: a row of a summary."""
        return {"pass_medians_s": self.passes_s, "passes": len(self.passes_s), "time_s": self.time_s}

    def joined(self, later: Timing) -> Timing:
        """Return this and a later measurement as one; trouble in either is the trouble of both."""
        told = self if self.status != "ok" else later
        return replace(told, passes_s={**self.passes_s, **later.passes_s}, rounds=self.rounds + later.rounds)

    @staticmethod
    def from_dict(given: Mapping[str, Any]) -> Timing:
        """Read what ``asdict`` and JSON made of one."""
        return Timing(**{**given, "passes_s": {int(number): seconds for number, seconds in given["passes_s"].items()}})

    @staticmethod
    def of_records(records: Sequence[Record]) -> Timing:
        """Sum up the records of one pair in one round."""
        troubled = next((record for record in records if record.status != "ok"), None)
        if troubled is not None:
            expected = troubled.call_s if troubled.status == "skipped" else None
            return Timing({}, troubled.status, troubled.reason, expected)
        return Timing({record.pass_: median(record.samples_s) for record in records if record.samples_s})


def read_found(path: Path, command: str, parse: Callable[[Mapping[str, Any]], Found]) -> Found:
    """Return the result that a search has left in a file.

    Raises
    ------
    SpecError
        If there is none, or it is not what the command writes.
    """
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise SpecError(command, str(path), f"cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(command, str(path), f"is not what 'convbench {command}' writes ({error!r})") from None


@contextmanager
def folder_for(rounds: str | Path | None) -> Iterator[Path]:
    """Hold the folder, or if there is none a temporary one."""
    if rounds is not None:
        yield Path(rounds)
        return
    with TemporaryDirectory(prefix="convbench-") as temporary:
        yield Path(temporary)


def _as_measured(record: Record) -> Record:
    return record


class Rounds:
    """A folder for rounds, each of which leaves its files in ``rounds/N``.

    The folder itself reads as one run, of which passes are counted through all rounds: those of the second one follow
    those of the first.

    Parameters
    ----------
    folder : Path
        Made if need be; must not hold a run already.
    options : Options
        The budget is that of all rounds together.
    on_event : callable
        Receives the rounds' own events too.
    transfers : bool
        Whether times on a device hold what sending operands and fetching the result takes; the records do not.
    """

    def __init__(
        self, folder: Path, options: Options, on_event: Callable[[Event], None], *, transfers: bool = False
    ) -> None:
        self.folder, self.options, self.tell = Path(folder), options, on_event
        self._seen_as = with_transfers if transfers else _as_measured
        if (self.folder / RECORDS_FILE).exists():
            raise SpecError("out", str(self.folder), "holds a run already; choose another folder")
        self.number = 0
        self._began = time.perf_counter()
        self._pair_s = 0.0  # that a pair took in the last round, all passes together
        self._known: set[tuple[str, str]] = set()
        self._trouble = False

    @property
    def trouble(self) -> bool:
        """Whether any pair went wrong in a way that makes a command fail."""
        return self._trouble

    def left_s(self) -> float | None:
        """Return the seconds that are left of the budget, None without one."""
        if self.options.budget_s is None:
            return None
        return self.options.budget_s - (time.perf_counter() - self._began)

    def affordable(self, backends: int) -> int | None:
        """Return for how many cases there is time, as the last round went; None: for any number."""
        left_s = self.left_s()
        if left_s is None or (not self._pair_s and left_s > 0):
            return None
        return max(0, int(left_s / (backends * self._pair_s))) if self._pair_s else 0

    def run(self, cases: Sequence[Case], backends: Sequence[Backend]) -> dict[tuple[str, str], Timing]:
        """Measure all pairs; return those that were reached, by (case, name of the backend)."""
        self.number += 1
        began, left_s = time.perf_counter(), self.left_s()
        budget_s = None if left_s is None else max(left_s * (SHARE if self.number == 1 else 1.0), 1e-3)
        folder = self.folder / ROUNDS_FOLDER / str(self.number)
        self.tell(RoundStarted(self.number, tuple(map(str, cases)), budget_s))
        try:
            run_cases(cases, list(backends), replace(self.options, budget_s=budget_s), folder, self.tell)
        finally:
            records = self._gather(folder, began - self._began)
        self._pair_s = (time.perf_counter() - began) / (len(cases) * len(backends))
        pairs: dict[tuple[str, str], list[Record]] = {}
        for record in records:
            if not record.twin and TIME_SPENT not in record.reason:
                pairs.setdefault((record.case, record.backend), []).append(self._seen_as(record))
        return {pair: Timing.of_records(found) for pair, found in pairs.items()}

    def _gather(self, folder: Path, before_s: float) -> list[Record]:
        """Add a round's records to those of the whole, which began so many seconds before; return them."""
        if not (folder / RECORDS_FILE).exists():  # interrupted before it began
            return []
        done = (self.number - 1) * self.options.passes
        records = [
            replace(
                record,
                pass_=record.pass_ and record.pass_ + done,
                elapsed_s=None if record.elapsed_s is None else record.elapsed_s + before_s,
            )
            for record in read(folder)
        ]
        new = [record for record in records if record.pass_ or (record.case, record.backend) not in self._known]
        self._known |= {(record.case, record.backend) for record in records}
        self._trouble = self._trouble or any(STATUSES.get(record.status, True) for record in records)
        with (self.folder / RECORDS_FILE).open("a", encoding="utf-8") as file:
            file.writelines(record.to_json() + "\n" for record in new)
        self._describe(folder)
        return records

    def _describe(self, folder: Path) -> None:
        """Write environment.json of the whole: that of the first round, with the cases and backends of all."""
        about = json.loads((folder / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
        path = self.folder / ENVIRONMENT_FILE
        if path.exists():
            whole = json.loads(path.read_text(encoding="utf-8"))
            for key in ("cases", "backends"):
                whole[key] = list(dict.fromkeys([*whole[key], *about[key]]))
            about = whole
        about |= {"rounds": self.number, "options": asdict(self.options)}
        path.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
