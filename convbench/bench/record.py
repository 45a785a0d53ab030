"""Results: one JSON object a line, appended as soon as it is known."""

from __future__ import annotations

import codecs
import json
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from convbench.bench.families import family_of
from convbench.bench.sweeps import split_tokens
from convbench.errors import MissingDependency, SpecError

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "RECORDS_FILE",
    "STATUSES",
    "TRANSFERS_APART",
    "TRANSFERS_INCLUDED",
    "Record",
    "Records",
    "append",
    "held",
    "load_results",
    "read",
    "read_environment",
    "repair",
    "to_frame",
    "with_transfers",
    "write_environment",
]

RECORDS_FILE = "records.jsonl"
ENVIRONMENT_FILE = "environment.json"

#: Why a pair was skipped that a run had no time for.
TIME_SPENT = "the run's time was spent before this pair's turn"

#: What a table with times of a GPU says of them.
TRANSFERS_APART = "device: times are of the GPU alone; sending operands there and the result back is told apart"

#: A caveat of each where :func:`with_transfers` has added them.
TRANSFERS_INCLUDED = (
    "device: times are of the GPU, and of sending operands there and the result back for each call; weights that are "
    "prepared are sent once, which counts with preparing them"
)

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
        1, 2, …; 0 for what was found out before any pass: that a pair is right ("ok", without samples), or why it is
        not timed.
    threads : int
        Threads that the run was asked to use.
    status, reason : str
        One of :data:`STATUSES`, and one line that says why if it is not "ok".
    samples_s : list of float
        Seconds for each call, one entry a sample of ``batch`` calls, in the order taken; outliers included.
    accumulate_dtype : str
        What the plan sums in; None if there was no plan.
    plan_s, prepare_s : float
        Stages, measured in each pass anew.
    first_call_s, call_s : float
        From verification: its first call, and what a call is expected to take; the latter of a pair that was skipped
        for that, too.
    transfer_s : float
        What a call needs of operands to a device and the result back, not in ``samples_s``; see
        :func:`with_transfers`. Without the weights where the plan prepares them.
    prepare_transfer_s : float
        The weights to a device, where the plan prepares them: once, as ``prepare_s``, of which it is no part.
    launch_s : float
        What a call on a device takes the host, the least that was seen: work is queued, and goes on by itself.
    sm_clock_mhz : float
        Of the GPU, asked about the time of the samples.
    stop_reason : str
        Why sampling ended: "spread", "plateau", "count", "budget" or "time-limit".
    error_max_eps, error_norm, error_bound_eps : float
        See :class:`convbench.oracle.Verdict`. None where not finite: an error or a bound over a sum of zeros.
    workspace_declared_bytes, workspace_measured_bytes, flops_nominal, flops_executed, bytes_min : int
    prepared_declared_bytes, prepared_measured_bytes, prepare_peak_bytes : int
        Memory that preparing leaves behind, and the most that it holds at once; see :mod:`convbench.memory`.
    rss_peak_bytes : int
        By how much a run made the process grow, native libraries included: rough, and only where the system counts it.
    cores_used : float
        CPU time over wall time of the samples: how many threads really worked.
    caveats : list of str
        What makes the samples less comparable, such as a thread pool of another size; one line each.
    alignment_bytes : int
        The largest power of two that divides the addresses of all operands, up to a page.
    subnormal_share : float
        Of the operands' elements.
    measured_s, elapsed_s : float
        Seconds that this visit spent in warm-up and samples; seconds since the run began, without the pauses of one
        that was interrupted.
    checksum : str
        Of the last timed output (BLAKE2b, 64 bits).
    weight : int
        How often the layer occurs in what its suite stands for.
    group : str
        What the layer belongs to, such as a network; "" for nothing.
    seed : int
    mode : str
        "hot": every call has the same operands; "cold": each has others, beyond the last-level cache together; on a
        GPU its L2 cache is overwritten before each.
    twin : bool
        A second visit to the pair as if it were another backend: what differs between twins is noise.
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
    prepare_transfer_s: float | None = None
    launch_s: float | None = None
    sm_clock_mhz: float | None = None
    first_call_s: float | None = None
    call_s: float | None = None
    stop_reason: str | None = None
    error_max_eps: float | None = None
    error_norm: float | None = None
    error_bound_eps: float | None = None
    workspace_declared_bytes: int | None = None
    workspace_measured_bytes: int | None = None
    prepared_declared_bytes: int | None = None
    prepared_measured_bytes: int | None = None
    prepare_peak_bytes: int | None = None
    rss_peak_bytes: int | None = None
    flops_nominal: int | None = None
    flops_executed: int | None = None
    bytes_min: int | None = None
    checksum: str | None = None
    cores_used: float | None = None
    caveats: list[str] = field(default_factory=list)
    alignment_bytes: int | None = None
    subnormal_share: float | None = None
    measured_s: float | None = None
    elapsed_s: float | None = None
    weight: int = 1
    group: str = ""
    mode: str = "hot"
    twin: bool = False
    seed: int = 0
    time: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def without_times(self) -> None:
        """Drop all samples: what is not "ok" has no time."""
        self.samples_s, self.batch, self.stop_reason, self.first_call_s, self.measured_s = [], None, None, None, None

    def to_dict(self) -> dict[str, Any]:
        """Return the line's fields as plain Python values, those of ``extra`` last."""
        known = {_JSON_NAMES.get(name, name): plain(getattr(self, name)) for name in _FIELDS}
        return known | {key: plain(value) for key, value in self.extra.items() if key not in known}

    def to_json(self) -> str:
        """Return one line of strict JSON: numbers that are not finite become null."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Read what :meth:`to_json` wrote, by this version or another.

        Raises
        ------
        SpecError
            If the line is not a JSON object, lacks what names a result, has something else than a field's type allows,
            or a spec that this version cannot read.
        """
        try:
            given = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SpecError("record", line, f"is not JSON ({error})") from None
        if not isinstance(given, dict):
            raise SpecError("record", line, "must be a JSON object")
        given = {_PYTHON_NAMES.get(key, key): value for key, value in given.items()}
        lacking = [name for name in _IDENTITY if name not in given]
        if lacking:
            raise SpecError("record", line, f"has no {', '.join(lacking)}: not a result of convbench")
        _check_fields(given, line)
        extra = {key: value for key, value in given.items() if key not in _FIELDS}
        return cls(**{key: value for key, value in given.items() if key in _FIELDS}, extra=extra)


_FIELDS = tuple(f.name for f in fields(Record) if f.name != "extra")
_JSON_NAMES = {"pass_": "pass"}
_PYTHON_NAMES = {json_name: name for name, json_name in _JSON_NAMES.items()}


_IDENTITY = ("run_id", "case", "spec", "backend", "status")
_LEAST = {"batch": 1, "weight": 1, "threads": 1}
_MOST = 2**53  # what every reader of JSON takes exactly
_MOST_OPERATIONS = 10**200  # and bytes: known, and refused, of the enormous too
_MOST_S = 1e9  # thirty years


@cache
def _annotations() -> dict[str, Any]:
    return {name: kind for name, kind in get_type_hints(Record).items() if name != "extra"}


def _check_fields(given: Mapping[str, Any], line: str) -> None:
    """Raise SpecError for the first known field whose value is not of its annotated type, or out of any range."""
    for name, kind in _annotations().items():
        if name in given and not _fits(given[name], kind, name):
            text = json.dumps(given[name])
            text = text if len(text) <= 40 else text[:39] + "…"
            rule = f"has {text} as {_JSON_NAMES.get(name, name)}, which must be {_words(kind, name)}"
            raise SpecError("record", line, rule)
    try:
        line.encode() if "\\u" not in line else json.dumps(given, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON may say it, no file can hold it
        raise SpecError("record", line, "has an escaped character that does not exist") from None
    try:
        _check_spec(given["spec"])
        split_tokens(given["case"])
    except SpecError as error:
        raise SpecError("record", line, f"has a spec that this version cannot read: {error}") from None


@cache
def _check_spec(line: str) -> None:
    family_of(line).parse_spec(line)


def _fits(value: object, kind: Any, name: str) -> bool:
    """Return whether a value from JSON is of an annotated type; every number of a record is finite and ≥ 0."""
    if get_origin(kind) is list:
        (entry,) = get_args(kind)
        return isinstance(value, list) and all(_fits(each, entry, name) for each in value)
    if get_origin(kind) is UnionType:
        return any(_fits(value, each, name) for each in get_args(kind))
    if kind in (int, float):
        least, most = _bounds(kind, name)
        is_number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        return is_number and least <= value <= most  # type: ignore[operator]
    return type(value) is kind


def _bounds(kind: type, name: str) -> tuple[float, float]:
    """Return the least and the greatest number that a field may hold; NaN and infinity are beyond them."""
    if kind is float:
        return (math.ulp(0.0) if name == "samples_s" else 0.0, _MOST_S if name.endswith("_s") else sys.float_info.max)
    most = _MOST_OPERATIONS if name.startswith("flops") or "bytes" in name else _MOST
    return _LEAST.get(name, 0), most


def _words(kind: Any, name: str) -> str:
    """Say what a field may hold."""
    if get_origin(kind) is list:
        return f"a list, each entry {_words(get_args(kind)[0], name)}"
    if get_origin(kind) is UnionType:
        return " or ".join(_words(each, name) for each in get_args(kind))
    if kind in (int, float):
        least, most = _bounds(kind, name)
        number = "a whole number" if kind is int else "a number"
        return f"{number} from {least:.3g} to {most:.3g}"
    return {str: "a text", bool: "true or false"}.get(kind, "null")


def plain(value: Any) -> Any:
    """NumPy scalars and tuples as JSON has them; not finite → None."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_transfers(record: Record) -> Record:
    """Return the record as if every call sent its operands to the device and fetched its result.

    Prepared weights are sent when they are prepared: ``prepare_s`` grows by what that takes. That is how a caller sees
    it whose data are in main memory before and after each call. It is a matter of what is compared, not of how it was
    measured: on a backend of the CPU nothing changes.
    """
    if not record.transfer_s:
        return record
    whole_s = [sample + record.transfer_s for sample in record.samples_s]
    prepare_s = record.prepare_s
    if prepare_s is not None:
        prepare_s += record.prepare_transfer_s or 0.0
    return replace(record, samples_s=whole_s, prepare_s=prepare_s, caveats=[*record.caveats, TRANSFERS_INCLUDED])


class Records(list[Record]):
    """A list of records, and what kept others from being read (one line of text each)."""

    def __init__(self, records: Iterable[Record] = (), problems: Iterable[str] = ()) -> None:
        super().__init__(records)
        self.problems = list(problems)


def append(path: Path, record: Record) -> None:
    """Add one line, safe on disk when this returns.

    Raises
    ------
    SpecError
        If it cannot be written: the disk is full, the folder is gone.
    """
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(record.to_json() + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        rule = f"cannot be written to any more ({error.strerror}); what was measured until now can be resumed"
        raise SpecError("out", str(path.parent), rule) from None


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Have a file of records for oneself within the block, where the system has such locks.

    Raises
    ------
    SpecError
        If another process has it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            rule = "is being run by another process; wait for it, or make a new run"
            raise SpecError("run", str(path.parent), rule) from None
        yield


def write_environment(folder: Path, environment: Mapping[str, Any]) -> None:
    """Write a run's ``environment.json``, whole or not at all."""
    path = folder / ENVIRONMENT_FILE
    draft = path.with_suffix(".tmp")
    with draft.open("w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(plain(environment), file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def repair(path: Path) -> None:
    """Cut off a last line that was not written to its end, so that another can follow."""
    content = path.read_bytes() if path.is_file() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def read_environment(folder: Path) -> dict[str, Any]:
    """Return a run's ``environment.json``.

    Raises
    ------
    SpecError
        If there is none that can be read.
    """
    path, problems = Path(folder) / ENVIRONMENT_FILE, list[str]()
    environment = _environment(path, problems)
    if not environment:
        rule = problems[0] if problems else f"holds no {ENVIRONMENT_FILE}; give the folder of a run"
        raise SpecError("run", str(folder), rule)
    return environment


def read(path: str | Path) -> Records:
    """Return all records of a file that can be read; ``.problems`` names the lines that cannot.

    Raises
    ------
    SpecError
        If there is no such file, or it cannot be opened.
    """
    path = _records_file(path)
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise SpecError("run", str(path), f"cannot be read ({error.strerror})") from None
    records = Records()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(Record.from_json(line.decode("utf-8")))
        except UnicodeDecodeError as error:
            problem = f"is not text: byte 0x{line[error.start]:02x} in column {error.start + 1}"
        except SpecError as error:
            problem = str(error)
        else:
            continue
        cut = " (the last line, cut short: was the run killed?)" if number == len(lines) else ""
        records.problems.append(f"{path}, line {number}: left out{cut}; {problem}")
    return records


def read_some(path: str | Path) -> Records:
    """Return what :func:`read` does, of a file that holds at least one record.

    Raises
    ------
    SpecError
        As :func:`read`, and if there are lines but no record among them: the file is damaged or another program's.
    """
    records = read(path)
    if records.problems and not records:
        file = _records_file(path)
        others = f" (and {len(records.problems) - 1} lines more)" if len(records.problems) > 1 else ""
        rule = f"holds no result of convbench: {records.problems[0].removeprefix(f'{file}, ')}{others}"
        if _is_compressed(file):
            rule = "holds no result of convbench but compressed data: unpack it first"
        raise SpecError("run", str(file), f"{rule}; give the folder of a run or its {RECORDS_FILE}")
    return records


def _is_compressed(file: Path) -> bool:
    """Recognise gzip, zip, bzip2, xz and Zstandard by the numbers that they begin with."""
    magic = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
    with file.open("rb") as stream:
        return stream.read(6).startswith(magic)


def _records_file(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        runs = sorted(path.glob(f"*/{RECORDS_FILE}"))
        if runs and not (path / RECORDS_FILE).is_file():
            rule = f"holds {len(runs)} runs; give one of them, such as {runs[-1].parent}"
            raise SpecError("run", str(path), rule)
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


def load_results(path: str | Path, *, transfers: bool = False) -> DataFrame:
    """Return the records of a run, one row each.

    Parameters
    ----------
    path : path
        A run's folder, or a file of records.
    transfers : bool
        Whether times on a device hold what sending operands and fetching the result takes, see :func:`with_transfers`.

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
    if Path(path).suffix == ".json" and Path(path).is_file():
        from convbench.bench.pytest_json import read_report

        found, environment = read_report(Path(path))
        return to_frame(map(with_transfers, found) if transfers else found, environment)
    file = _records_file(path)
    records = read_some(file)
    environment = _environment(file.with_name(ENVIRONMENT_FILE), records.problems)
    for problem in few(records.problems):
        warnings.warn(problem, stacklevel=2)
    frame = to_frame(map(with_transfers, records) if transfers else records, environment)
    frame.attrs["problems"] = records.problems
    return frame


def few(problems: Sequence[str], most: int = 10) -> list[str]:
    """Return the first of many problems, and a line that counts the others."""
    left = len(problems) - most
    return list(problems) if left <= 0 else [*problems[:most], f"… and {left} lines more that cannot be read"]


def _environment(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return the object in the file, without the entries that are not of the type that readers rely on."""
    if not path.is_file():
        return {}
    try:
        environment = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path}: left out; {error}")
        return {}
    if not isinstance(environment, dict):
        problems.append(f"{path}: left out; must be a JSON object")
        return {}
    for keys, kind in _ENVIRONMENT_TYPES.items():
        holder = environment if len(keys) == 1 else environment.get(keys[0], {})
        if keys[-1] in holder and not _is_of(holder[keys[-1]], kind):
            del holder[keys[-1]]
            problems.append(f"{path}: {'.'.join(keys)} left out; must be {_words_of(kind)}")
    return environment


#: (section, key) → what readers take it for; a section comes before its keys.
_ENVIRONMENT_TYPES: dict[tuple[str, ...], type] = {
    ("host",): dict,
    ("host", "cpu"): dict,
    ("libraries",): dict,
    ("options",): dict,
    ("limits",): dict,
    ("cases",): list,
    ("backends",): list,
    ("thread_pool_problems",): list,
}


def _is_of(value: object, kind: type) -> bool:
    return isinstance(value, kind) and (kind is dict or all(isinstance(entry, str) for entry in value))  # type: ignore[attr-defined]


def _words_of(kind: type) -> str:
    return "an object" if kind is dict else "a list of texts"


def overhead(records: Iterable[Record]) -> float | None:
    """Return the share of a run's wall time that was not spent in warm-up or samples; None if that is not known.

    What remains is verification, starting processes, planning, preparing, making data and judging results.
    """
    seen = [record for record in records if record.elapsed_s]
    if not seen:
        return None
    elapsed_s = max(record.elapsed_s or 0.0 for record in seen)
    return max(0.0, 1 - sum(record.measured_s or 0.0 for record in seen) / elapsed_s)
