"""From records to one row a pair: medians with non-parametric intervals, and ratios paired within passes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import comb
from statistics import median
from typing import TYPE_CHECKING, Any

from convbench.errors import MissingDependency, SpecError
from convbench.spec import ConvSpec

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = ["CONFIDENCE", "median_interval", "speedups", "summarise"]

CONFIDENCE = 0.95

_CARRIED = (
    "case", "spec", "backend", "implementation", "kind", "device", "threads", "status", "reason", "batch",
    "stop_reason", "plan_s", "prepare_s", "transfer_s", "first_call_s",
    "error_max_eps", "error_bound_eps", "error_norm", "workspace_declared_bytes", "workspace_measured_bytes",
    "flops_nominal", "flops_executed", "bytes_min", "weight",
)  # fmt: skip
_SPEC_FIELDS = (
    "op", "batch", "in_channels", "out_channels", "input_size", "kernel_size", "stride", "dilation", "groups", "dtype",
)  # fmt: skip


def median_interval(samples: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the shortest interval between symmetric order statistics that covers the median.

    The number of n independent samples below the median is binomial(n, ½), so [x₍ₖ₎, x₍ₙ₊₁₋ₖ₎] covers it with
    probability 1 − 2·P(B < k), whatever the distribution. Fewer than 6 samples cannot reach 95 %: NaN then.

    >>> median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 60.0])
    (1.0, 60.0)
    >>> median_interval([1.0, 2.0, 3.0])
    (nan, nan)
    """
    n = len(samples)
    tail, k = 0, 0  # tail = 2ⁿ·P(B < k), in integers: exact for any n
    while k < (n + 1) // 2 and 2 * (tail + comb(n, k)) / 2**n <= 1 - confidence:
        tail += comb(n, k)
        k += 1
    if k == 0:
        return math.nan, math.nan
    ordered = sorted(samples)
    return ordered[k - 1], ordered[n - k]


def summarise(records: DataFrame) -> DataFrame:
    """Return one row a (case, backend), cases in the suite's order, backends in the run's.

    Parameters
    ----------
    records : pandas.DataFrame
        From :func:`convbench.load_results` or :func:`convbench.benchmark`; one run.

    Returns
    -------
    pandas.DataFrame
        ``samples`` (their number), ``passes``, ``time_s`` (median of all samples), ``low_s`` and ``high_s`` (95 %
        interval of the median, all passes pooled; NaN below 6 samples), ``min_s``, ``pass_medians_s`` (a dict,
        pass → median), the record's own fields, ``x`` and ``w`` (data tokens), and the fields of the spec, of
        per-axis ones the first entry (``kernel_size``, ``input_size``, …).
        A pair with any record that is not ok has that status and no time.
    """
    environment = records.attrs.get("environment", {})
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in _rows(records):
        groups.setdefault((row["case"], row["backend"]), []).append(row)
    cases = _ranks(environment.get("cases", []), (case for case, _ in groups))
    backends = _ranks(environment.get("backends", []), (backend for _, backend in groups))
    ordered = sorted(groups, key=lambda pair: (cases[pair[0]], backends[pair[1]]))
    rows = [_summary_row(groups[pair]) for pair in ordered]
    frame: DataFrame = _pandas().DataFrame(rows, columns=None if rows else list(_CARRIED))
    frame.attrs["environment"] = environment
    return frame


def _ranks(stated: Sequence[str], seen: Any) -> dict[str, int]:
    """Position of each name: as stated, then in order of appearance."""
    return {name: position for position, name in enumerate(dict.fromkeys([*stated, *seen]))}


def _summary_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    troubled = next((row for row in rows if row["status"] != "ok"), None)
    told = troubled or rows[-1]
    timed = [] if troubled else [row for row in rows if len(row["samples_s"])]
    samples = [sample for row in timed for sample in row["samples_s"]]
    low, high = median_interval(samples)
    by_pass: dict[int, list[float]] = {}
    for row in timed:
        by_pass.setdefault(int(row["pass"]), []).extend(row["samples_s"])
    return {
        **{name: told.get(name) for name in _CARRIED},
        "samples": len(samples),
        "passes": len(by_pass),
        "time_s": median(samples) if samples else math.nan,
        "low_s": low,
        "high_s": high,
        "min_s": min(samples, default=math.nan),
        "pass_medians_s": {number: median(values) for number, values in sorted(by_pass.items())},
        **_case_fields(told["case"], told["spec"]),
    }


def _case_fields(case: str, line: str) -> dict[str, Any]:
    """Fields worth plotting against. The case is not parsed as one: its files may be on another machine."""
    spec = ConvSpec.parse(line)
    values = {name: getattr(spec, name) for name in _SPEC_FIELDS}
    firsts = {name: value[0] if isinstance(value, tuple) else value for name, value in values.items()}
    tokens = dict(token.split("=", 1) for token in case.split() if token.startswith(("x=", "w=")))
    return {**firsts, "ndim": spec.ndim, "x": tokens.get("x", "noise"), "w": tokens.get("w", "random")}


def speedups(summary: DataFrame, baseline: str) -> Series[float]:
    """Return how many times faster than ``baseline`` each row is on its case.

    The median over passes of (baseline's median / this one's median) within the same pass, so that what slows a whole
    pass down cancels. NaN where either has no time, or no pass in common.

    Raises
    ------
    SpecError
        If no row is of that backend.
    """
    names = list(dict.fromkeys(summary["backend"]))
    if baseline not in names:
        raise SpecError("baseline", baseline, f"is not in this run; it has {', '.join(names)}")
    rows = _rows(summary)
    base = {row["case"]: row["pass_medians_s"] for row in rows if row["backend"] == baseline}
    ratios = []
    for row in rows:
        theirs, own = base.get(row["case"], {}), row["pass_medians_s"]
        paired = [theirs[number] / own[number] for number in own if number in theirs]
        ratios.append(median(paired) if paired else math.nan)
    series: Series[float] = _pandas().Series(ratios, index=summary.index, name=f"speedup over {baseline}", dtype=float)
    return series


def _rows(frame: DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise MissingDependency("summaries need pandas: pip install pandas") from None
    return pandas
