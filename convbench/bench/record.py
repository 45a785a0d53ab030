"""Results: one JSON object a line, appended as soon as it is known."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbench.errors import MissingDependency, SpecError

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["RECORDS_FILE", "STATUSES", "Record", "Records", "append", "load_results", "read", "to_frame"]

RECORDS_FILE = "records.jsonl"
ENVIRONMENT_FILE = "environment.json"

#: Why a pair was skipped that a run had no time for.
TIME_SPENT = "the run's time was spent before this pair's turn"

#: status → does it make a command exit non-zero?
STATUSES = {
    "ok": False,
    "unsupported": False,
    "unavailable": False,
    "skipped": False,
    "wrong": True,
    "failed": True,
    "timeout": True,
    "out-of-memory": True,
    "crashed": True,
}


@dataclass(kw_only=True)
class Record:
    """What one pass found out about one (case, backend) pair.

    Fields are those of a line; ``pass`` is ``pass_`` here. None means "not known" or "not measured".

    Attributes
    ----------
    run_id, case, spec, backend, implementation, kind, device : str
        ``case`` is the whole line, ``spec`` its part without the data tokens.
    pass_ : int
        1, 2, …; 0 for a pair that was settled before any pass (every status but "ok").
    threads : int
        Threads that the run was asked to use.
    status, reason : str
        One of :data:`STATUSES`, and one line that says why if it is not "ok".
    samples_s : list of float
        Seconds for each call, one entry a sample of ``batch`` calls, in the order taken; outliers included.
    accumulate_dtype : str
        What the plan sums in; None if there was no plan.
    plan_s, prepare_s, first_call_s, transfer_s : float
        Stages measured once, when the pair was verified. ``first_call_s`` is None for a slow pair, whose only verifying
        call also measured the workspace and so is not a fair time.
    stop_reason : str
        Why sampling ended: "spread", "plateau", "count", "budget" or "time-limit".
    error_max_eps, error_norm, error_bound_eps : float
        See :class:`convbench.oracle.Verdict`. None where not finite: an error or a bound over a sum of zeros.
    workspace_declared_bytes, workspace_measured_bytes, flops_nominal, flops_executed, bytes_min : int
    checksum : str
        Of the last timed output (BLAKE2b, 64 bits).
    weight : int
        How often the layer occurs in what its suite stands for.
    group : str
        What the layer belongs to, such as a network; "" for nothing.
    seed : int
    mode : str
        "hot": every call has the same buffers.
    time : str
        UTC, ISO 8601.
    extra : dict
        Fields of the line that this version does not know.
    """

    run_id: str
    case: str
    spec: str
    backend: str
    pass_: int = 0
    implementation: str = ""
    kind: str = ""
    device: str = ""
    threads: int = 1
    status: str = "ok"
    reason: str = ""
    samples_s: list[float] = field(default_factory=list)
    batch: int | None = None
    accumulate_dtype: str | None = None
    plan_s: float | None = None
    prepare_s: float | None = None
    transfer_s: float | None = None
    first_call_s: float | None = None
    stop_reason: str | None = None
    error_max_eps: float | None = None
    error_norm: float | None = None
    error_bound_eps: float | None = None
    workspace_declared_bytes: int | None = None
    workspace_measured_bytes: int | None = None
    flops_nominal: int | None = None
    flops_executed: int | None = None
    bytes_min: int | None = None
    checksum: str | None = None
    weight: int = 1
    group: str = ""
    mode: str = "hot"
    seed: int = 0
    time: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the line's fields as plain Python values, those of ``extra`` last."""
        known = {_JSON_NAMES.get(name, name): _plain(getattr(self, name)) for name in _FIELDS}
        return known | {key: _plain(value) for key, value in self.extra.items() if key not in known}

    def to_json(self) -> str:
        """Return one line of strict JSON: numbers that are not finite become null."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Read what :meth:`to_json` wrote, by this version or another.

        Raises
        ------
        SpecError
            If the line is not a JSON object or lacks what names a result.
        """
        try:
            given = json.loads(line)
        except ValueError as error:
            raise SpecError("record", line, f"is not JSON ({error})") from None
        if not isinstance(given, dict):
            raise SpecError("record", line, "must be a JSON object")
        given = {_PYTHON_NAMES.get(key, key): value for key, value in given.items()}
        identity = ("run_id", "case", "spec", "backend", "status")
        missing = [name for name in identity if not isinstance(given.get(name), str)]
        samples = given.get("samples_s", [])
        if not isinstance(samples, list) or not all(map(_is_time, samples)):
            missing.append("samples_s")
        if missing:
            raise SpecError("record", line, f"has no valid {', '.join(missing)}")
        extra = {key: value for key, value in given.items() if key not in _FIELDS}
        return cls(**{key: value for key, value in given.items() if key in _FIELDS}, extra=extra)


_FIELDS = tuple(f.name for f in fields(Record) if f.name != "extra")
_JSON_NAMES = {"pass_": "pass"}
_PYTHON_NAMES = {json_name: name for name, json_name in _JSON_NAMES.items()}


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _plain(value: Any) -> Any:
    """NumPy scalars and tuples as JSON has them; not finite → None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Records(list[Record]):
    """A list of records, and what kept others from being read (one line of text each)."""

    def __init__(self, records: Iterable[Record] = (), problems: Iterable[str] = ()) -> None:
        super().__init__(records)
        self.problems = list(problems)


def append(path: Path, record: Record) -> None:
    """Add one line, safe on disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(record.to_json() + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: str | Path) -> Records:
    """Return all records of a file that can be read; ``.problems`` names the lines that cannot.

    Raises
    ------
    SpecError
        If there is no such file, or it cannot be opened.
    """
    path = _records_file(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise SpecError("run", str(path), f"cannot be read ({error.strerror})") from None
    records = Records()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(Record.from_json(line.decode("utf-8")))
        except (SpecError, UnicodeDecodeError) as error:
            cut = " (the last line, cut short: was the run killed?)" if number == len(lines) else ""
            records.problems.append(f"{path}, line {number}: left out{cut}; {error}")
    return records


def _records_file(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        path = path / RECORDS_FILE
    if not path.is_file():
        raise SpecError("run", str(path), f"does not exist; give the folder of a run or its {RECORDS_FILE}")
    return path


def to_frame(records: Iterable[Record], environment: Mapping[str, Any] | None = None) -> DataFrame:
    """Return one row a record, columns named as in the file; ``attrs["environment"]`` as given."""
    try:
        from pandas import DataFrame
    except ImportError:
        raise MissingDependency("tables of results need pandas: pip install pandas") from None
    rows = [record.to_dict() for record in records]
    columns = [_JSON_NAMES.get(name, name) for name in _FIELDS]
    columns += list({key: None for row in rows for key in row if key not in columns})
    frame = DataFrame(rows, columns=columns)
    frame.attrs["environment"] = dict(environment or {})
    return frame


def load_results(path: str | Path) -> DataFrame:
    """Return the records of a run, one row each.

    Parameters
    ----------
    path : path
        A run's folder, or a file of records.

    Returns
    -------
    pandas.DataFrame
        Columns are the result fields. ``attrs["environment"]`` holds environment.json if it stands beside the records,
        ``attrs["problems"]`` the lines that could not be read (each one warned of, the rest returned).

    Raises
    ------
    SpecError
        If there are no records to read.
    MissingDependency
        Without pandas.
    """
    file = _records_file(path)
    records = read(file)
    for problem in records.problems:
        warnings.warn(problem, stacklevel=2)
    frame = to_frame(records, _environment(file.with_name(ENVIRONMENT_FILE), records.problems))
    frame.attrs["problems"] = records.problems
    return frame


def _environment(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        environment = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path}: left out; {error}")
        return {}
    return environment if isinstance(environment, dict) else {}
