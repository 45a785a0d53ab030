"""From records to one row a pair: medians with non-parametric intervals, and ratios paired within passes.

From these to summaries of many cases: totals of a network's layers, geometric means of ratios. Nothing is imputed: a
backend that lacks a layer has no total, and a mean says over how many cases it goes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from statistics import median
from typing import TYPE_CHECKING, Any

from convbench.bench.families import family_of
from convbench.errors import MissingDependency, SpecError

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = [
    "BEST_OF_ALL",
    "BEST_OF_OWN",
    "CONFIDENCE",
    "fastest",
    "geometric_means",
    "median_interval",
    "speedups",
    "summarise",
    "totals",
]

CONFIDENCE = 0.95

#: Rows of :func:`totals` that are no backends: for each layer the fastest one.
BEST_OF_OWN, BEST_OF_ALL = "best of own", "best of all"

_CARRIED = (
    "case", "spec", "backend", "implementation", "kind", "device", "threads", "status", "reason", "batch",
    "stop_reason", "plan_s", "prepare_s", "transfer_s", "first_call_s",
    "error_max_eps", "error_bound_eps", "error_norm", "workspace_declared_bytes", "workspace_measured_bytes",
    "flops_nominal", "flops_executed", "bytes_min", "weight", "group",
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
    most = int(Fraction(1 - confidence) / 2 * 2**n)  # in integers: exact for any n
    k, tail, ways = 0, 1, 1  # tail = 2ⁿ·P(B ≤ k), ways = C(n, k)
    while k < (n + 1) // 2 and tail <= most:
        ways = ways * (n - k) // (k + 1)
        tail += ways
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
        "weight": int(_given(told.get("weight"), 1)),
        "group": _given(told.get("group"), ""),
        "samples": len(samples),
        "passes": len(by_pass),
        "time_s": median(samples) if samples else math.nan,
        "low_s": low,
        "high_s": high,
        "min_s": min(samples, default=math.nan),
        "pass_medians_s": {number: median(values) for number, values in sorted(by_pass.items())},
        **_case_fields(told["case"], told["spec"]),
    }


def _given(value: Any, default: Any) -> Any:
    """Records of other programs may lack a field."""
    return default if value is None or value != value else value


def _case_fields(case: str, line: str) -> dict[str, Any]:
    """Fields worth plotting against. The case is not parsed as one: its files may be on another machine."""
    spec = family_of(line).parse_spec(line)
    values = {name: getattr(spec, name, None) for name in _SPEC_FIELDS}  # None: the family has no such thing
    firsts = {name: next(iter(value), None) if isinstance(value, tuple) else value for name, value in values.items()}
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


# -- who is fastest ---------------------------------------------------------------------------------


def fastest(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the fastest backend of one case, and those that nothing separates from it.

    Separated is what is slower with both its 95 % interval and, from two passes on, all its passes' medians apart from
    the fastest one's: samples of one pass are not independent, so that an interval from few passes is too narrow.
    Without an interval the time stands for it.
    """
    timed = [row for row in rows if _is_timed(row)]
    if not timed:
        return set()
    best = min(timed, key=lambda row: float(row["time_s"]))
    return {best["backend"]} | {row["backend"] for row in timed if not _separated(row, best)}


def _is_timed(row: Mapping[str, Any]) -> bool:
    return row["status"] == "ok" and not math.isnan(row["time_s"])


def _separated(row: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
    low, high = (
        entry["time_s"] if math.isnan(entry[end]) else entry[end] for entry, end in ((row, "low_s"), (best, "high_s"))
    )
    own, its = (list(entry["pass_medians_s"].values()) for entry in (row, best))
    return bool(low > high) and (min(len(own), len(its)) < 2 or min(own) > max(its))


# -- many cases -------------------------------------------------------------------------------------


def totals(summary: DataFrame) -> DataFrame:
    """Return the time of all layers of each group together, with one backend for all of them.

    Parameters
    ----------
    summary : pandas.DataFrame
        From :func:`summarise`. Groups are those of the suite; without any, all cases are one if a suite says how often
        they occur.

    Returns
    -------
    pandas.DataFrame
        One row a (group, backend), and two for the choice of the fastest backend for each layer, of convbench's own
        and of all (kind "choice"; :data:`BEST_OF_OWN` only where there are rivals).

        ``time_s`` is Σ weight · median time, NaN if a layer has none. ``low_s``, ``high_s``: the least and the greatest
        total of one pass, each pass summed by itself (NaN unless two passes have all layers); ``pass_medians_s`` has
        these totals. ``layers`` have a time, of ``of``; ``occurrences`` is Σ weight of all. ``behind_best``: its time
        over that of the best of all, both over the layers that it did. ``chosen``: the layers in which it is the best.
        ``effective_gflop_per_s``, ``flops_nominal``.
    """
    rows = [row for group, members in _by_group(_rows(summary)).items() for row in _group_totals(group, members)]
    columns = ("group", "backend", "kind", "status", "time_s", "low_s", "high_s", "pass_medians_s", "layers", "of",
               "occurrences", "behind_best", "chosen", "effective_gflop_per_s", "flops_nominal")  # fmt: skip
    frame: DataFrame = _pandas().DataFrame(rows, columns=list(columns))
    return frame


Rows = Sequence[Mapping[str, Any]]
Picked = Mapping[str, Mapping[str, Any]]  # case → the row that is taken for it


def _by_group(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    counted = {name for name, members in groups.items() if name or any(row["weight"] > 1 for row in members)}
    return {name: members for name, members in groups.items() if name in counted}


def _group_totals(group: str, members: Rows) -> list[dict[str, Any]]:
    layers = {row["case"]: row for row in members}
    kinds = {row["backend"]: row["kind"] for row in members}
    timed = [row for row in members if _is_timed(row)]
    best = _quickest(timed)
    picks: dict[str, Picked] = {name: {row["case"]: row for row in timed if row["backend"] == name} for name in kinds}
    if len({row["kind"] for row in timed}) > 1:
        picks[BEST_OF_OWN] = _quickest(row for row in timed if row["kind"] == "own")
    picks[BEST_OF_ALL] = best
    return [{"group": group, "kind": kinds.get(name, "choice"), **_total(name, pick, layers, best)}
            for name, pick in picks.items()]  # fmt: skip


def _quickest(timed: Iterable[Mapping[str, Any]]) -> Picked:
    picked: dict[str, Mapping[str, Any]] = {}
    for row in timed:
        if row["case"] not in picked or row["time_s"] < picked[row["case"]]["time_s"]:
            picked[row["case"]] = row
    return picked


def _total(name: str, pick: Picked, layers: Picked, best: Picked) -> dict[str, Any]:
    complete = len(pick) == len(layers)
    time_s, best_s = (
        sum(row["weight"] * source[case]["time_s"] for case, row in pick.items()) for source in (pick, best)
    )
    passes = set.intersection(*(set(row["pass_medians_s"]) for row in pick.values())) if pick and complete else set()
    by_pass = {
        number: sum(row["weight"] * row["pass_medians_s"][number] for row in pick.values()) for number in sorted(passes)
    }
    ends = [time_s, *by_pass.values()] if len(by_pass) > 1 else [math.nan]
    flops = sum(row["weight"] * row["flops_nominal"] for row in layers.values())
    return {
        "backend": name,
        "status": "ok" if complete else "incomplete",
        "time_s": time_s if complete else math.nan,
        "low_s": min(ends),
        "high_s": max(ends),
        "pass_medians_s": by_pass,
        "layers": len(pick),
        "of": len(layers),
        "occurrences": sum(row["weight"] for row in layers.values()),
        "behind_best": time_s / best_s if pick else math.nan,
        "chosen": sum(best[case] is row for case, row in pick.items()),
        "effective_gflop_per_s": flops / time_s / 1e9 if complete else math.nan,
        "flops_nominal": flops,
    }


def geometric_means(summary: DataFrame, speedup: Series[float]) -> DataFrame:
    """Return for each backend with a time the geometric means of its ratios, each case weighted by its occurrences.

    Parameters
    ----------
    summary : pandas.DataFrame
        From :func:`summarise`.
    speedup : pandas.Series
        Over a baseline, a value a row: :func:`speedups`.

    Returns
    -------
    pandas.DataFrame
        ``backend``, ``kind``; ``cases`` that have a time, ``of`` those of the run; ``fastest``, the number of cases in
        which it is the fastest or tied with it; ``behind_best``, mean of its time over the fastest one's;
        ``compared``, the number of cases that the baseline did as well, with ``speedup`` (mean), ``speedup_least`` and
        ``speedup_most`` over these; ``common``, the number of cases that all these backends did, and
        ``behind_best_common`` over those. Means over different cases do not compare with each other.
    """
    rows = [{**row, "speedup": value} for row, value in zip(_rows(summary), speedup, strict=True)]
    timed = [row for row in rows if _is_timed(row)]
    best = {case: row["time_s"] for case, row in _quickest(timed).items()}
    winners = {case: fastest(row for row in timed if row["case"] == case) for case in best}
    kinds = {row["backend"]: row["kind"] for row in timed}
    done = {name: {row["case"] for row in timed if row["backend"] == name} for name in kinds}
    common = set.intersection(*done.values()) if done else set()
    made = []
    for name, kind in kinds.items():
        own = [row for row in timed if row["backend"] == name]
        compared = [row for row in own if not math.isnan(row["speedup"])]
        ratios = [row["speedup"] for row in compared]
        made.append(
            {
                "backend": name,
                "kind": kind,
                "cases": len(own),
                "of": len({row["case"] for row in rows}),
                "fastest": sum(name in winners[row["case"]] for row in own),
                "behind_best": _geometric_mean([row["time_s"] / best[row["case"]] for row in own], own),
                "compared": len(compared),
                "speedup": _geometric_mean(ratios, compared),
                "speedup_least": min(ratios, default=math.nan),
                "speedup_most": max(ratios, default=math.nan),
                "common": len(common),
                "behind_best_common": _over(common, own, best),
            }
        )
    frame: DataFrame = _pandas().DataFrame(made)
    return frame


def _over(cases: Collection[str], rows: Rows, best: Mapping[str, float]) -> float:
    chosen = [row for row in rows if row["case"] in cases]
    return _geometric_mean([row["time_s"] / best[row["case"]] for row in chosen], chosen)


def _geometric_mean(ratios: Sequence[float], rows: Rows) -> float:
    weights = [row["weight"] for row in rows]
    if not weights:
        return math.nan
    return math.exp(sum(w * math.log(r) for w, r in zip(weights, ratios, strict=True)) / sum(weights))


# -- frames as plain rows ---------------------------------------------------------------------------


def _rows(frame: DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise MissingDependency("summaries need pandas: pip install pandas") from None
    return pandas
