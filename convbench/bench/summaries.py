"""From records to one row a pair: medians with non-parametric intervals, stages, memory, and the fields of the spec."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from convbench.bench.families import family_of
from convbench.bench.frames import Row, Rows, pandas, rows_of
from convbench.bench.ratios import WIN_CONFIDENCE, median_interval
from convbench.bench.sweeps import split_tokens, unquoted

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["is_twin", "summarise", "times"]

_CARRIED = (
    "case", "spec", "backend", "implementation", "kind", "device", "threads", "mode", "accumulate_dtype", "status",
    "reason", "stop_reason", "first_call_s", "error_max_eps", "error_bound_eps", "error_norm",
    "workspace_declared_bytes", "workspace_measured_bytes", "prepared_declared_bytes", "prepared_measured_bytes",
    "prepare_peak_bytes", "flops_nominal", "flops_executed", "bytes_min", "weight", "group",
)  # fmt: skip
_MEDIANS = ("plan_s", "prepare_s", "transfer_s", "prepare_transfer_s", "launch_s", "sm_clock_mhz", "cores_used")
_SPEC_FIELDS = (
    "op", "batch", "in_channels", "out_channels", "input_size", "kernel_size", "stride", "dilation", "groups", "dtype",
)  # fmt: skip


def summarise(records: DataFrame) -> DataFrame:
    """Return one row a (case, backend), cases in the suite's order, backends in the run's.

    Parameters
    ----------
    records : pandas.DataFrame
        From :func:`convbench.load_results` or :func:`convbench.benchmark`; one run.

    Returns
    -------
    pandas.DataFrame
        ``samples`` (their number), ``passes``, ``time_s`` (median of all samples), ``low_s`` and ``high_s`` (its 95 %
        interval from order statistics, ``interval_of`` "passes" where there are enough of them, that is 6, else
        "samples", pooled as if they were independent; NaN below 6 of these too), ``win_low_s`` and ``win_high_s``
        (at 99 % and from the samples, for comparisons within a single pass), ``min_s``, ``pass_medians_s`` (a dict,
        pass → median, where that is not 0), ``plan_s``, ``prepare_s`` and ``cores_used`` (medians over the passes that
        have them), ``caveats`` (a list, each once), the record's own fields, the last that is known, its ``batch`` as
        ``calls_per_sample``, ``x`` and ``w`` (data tokens), and the fields of the spec, of per-axis ones the first
        entry (``kernel_size``, ``input_size``, ``batch``, …).
        A pair with any record that is not ok has that status and no time. Twins are left out unless they went wrong:
        they are the same backend.
    """
    environment = records.attrs.get("environment", {})
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows_of(records):
        if row["status"] != "ok" or not is_twin(row):
            groups.setdefault((row["case"], row["backend"]), []).append(row)
    cases = _positions(environment.get("cases", []), (case for case, _ in groups))
    backends = _positions(environment.get("backends", []), (backend for _, backend in groups))
    ordered = sorted(groups, key=lambda pair: (cases[pair[0]], backends[pair[1]]))
    rows = [_summary_row(groups[pair]) for pair in ordered]
    frame: DataFrame = pandas().DataFrame(rows, columns=_COLUMNS)
    frame.attrs["environment"] = environment
    return frame


def is_twin(row: Row) -> bool:
    """Return whether this is of a second visit, to be compared with the first."""
    return row.get("twin") is True  # missing in older records


def _positions(stated: Sequence[str], seen: Any) -> dict[str, int]:
    """Position of each name: as stated, then in order of appearance."""
    return {name: position for position, name in enumerate(dict.fromkeys([*stated, *seen]))}


def _summary_row(rows: Rows) -> dict[str, Any]:
    troubled = next((row for row in rows if row["status"] != "ok"), None)
    told = troubled or rows[-1]
    caveats = dict.fromkeys(caveat for row in rows for caveat in _given(row.get("caveats"), []))
    return {
        **{name: _last(rows, name) for name in _CARRIED},
        "status": told["status"],
        "reason": told.get("reason"),
        "weight": int(_given(told.get("weight"), 1)),
        "group": _given(told.get("group"), ""),
        "calls_per_sample": _last(rows, "batch"),
        **{name: _over_passes(rows, name) for name in _MEDIANS},
        "caveats": list(caveats),
        **times([] if troubled else rows),
        **_case_fields(told["case"], told["spec"]),
    }


def _last(rows: Rows, name: str) -> Any:
    return next((row[name] for row in reversed(rows) if _given(row.get(name), None) is not None), None)


def _over_passes(rows: Rows, name: str) -> float:
    """Return the median over passes that have it; before any pass a stage is timed with everything still cold."""
    known = [(int(row["pass"]), float(row[name])) for row in rows if _given(row.get(name), None) is not None]
    values = [value for number, value in known if number] or [value for _, value in known]
    return median(values) if values else math.nan


def times(rows: Iterable[Row]) -> dict[str, Any]:
    """Return what the samples of these records say; below what the clock can see there is no time to compare."""
    by_pass: dict[int, list[float]] = {}
    for row in rows:
        if len(row["samples_s"]):
            by_pass.setdefault(int(row["pass"]), []).extend(row["samples_s"])
    samples = [sample for values in by_pass.values() for sample in values]
    medians = {number: median(values) for number, values in sorted(by_pass.items()) if median(values) > 0}
    low, high = median_interval(list(medians.values()))
    of_passes = not math.isnan(low)
    if not of_passes:
        low, high = median_interval(samples)
    win_low, win_high = median_interval(samples, WIN_CONFIDENCE)
    return {
        "samples": len(samples),
        "passes": len(by_pass),
        "time_s": median(samples) if samples else math.nan,
        "low_s": low,
        "high_s": high,
        "interval_of": "passes" if of_passes else "samples",
        "win_low_s": win_low,
        "win_high_s": win_high,
        "min_s": min(samples, default=math.nan),
        "pass_medians_s": medians,
    }


def _given(value: Any, default: Any) -> Any:
    """Records of other programs may lack a field."""
    return default if value is None or value != value else value


def _case_fields(case: str, line: str) -> dict[str, Any]:
    """Fields worth plotting against. The case is not parsed as one: its files may be on another machine."""
    spec = family_of(line).parse_spec(line)
    values = {name: getattr(spec, name, None) for name in _SPEC_FIELDS}  # None: the family has no such thing
    firsts = {name: next(iter(value), None) if isinstance(value, tuple) else value for name, value in values.items()}
    tokens = dict(unquoted(token).split("=", 1) for token in split_tokens(case) if token.startswith(("x=", "w=")))
    return {**firsts, "ndim": spec.ndim, "x": tokens.get("x", "noise"), "w": tokens.get("w", "random")}


#: Of a summary, also of an empty one.
_COLUMNS = [
    *dict.fromkeys((*_CARRIED, "calls_per_sample", *_MEDIANS, "caveats", *times(()), *_SPEC_FIELDS, "ndim", "x", "w"))
]
