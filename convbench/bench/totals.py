"""Summaries of many cases: totals of a network's layers, geometric means of ratios.

Nothing is imputed: a backend that lacks a layer has no total, and a mean says over how many cases it goes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convbench.bench.frames import Row, Rows, is_timed, pandas, rows_of
from convbench.bench.ratios import (
    LEAST_PASSES,
    WIN_CONFIDENCE,
    Ratio,
    from_logs,
    mean_interval,
    paired_ratio,
    row_ratio,
)
from convbench.bench.standings import best_of, ranked

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["BEST_OF_ALL", "BEST_OF_OWN", "geometric_means", "totals"]

#: Rows of :func:`totals` that are no backends: for each layer the fastest one.
BEST_OF_OWN, BEST_OF_ALL = "best of own", "best of all"

Picked = Mapping[str, Row]  # case → the row that is taken for it


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
        over that of the best of all, both over the layers that it did, paired within passes, with ``behind_best_low``
        and ``behind_best_high`` (99 %; NaN below three passes). ``chosen``: the layers in which it is the best.
        ``effective_gflop_per_s``, ``flops_nominal``.
    """
    groups = _by_group(rows_of(ranked(summary)))
    rows = [row for group, members in groups.items() for row in _group_totals(group, members)]
    columns = (
        "group", "backend", "kind", "status", "time_s", "low_s", "high_s", "pass_medians_s", "layers", "of",
        "occurrences", "behind_best", "behind_best_low", "behind_best_high", "chosen", "effective_gflop_per_s",
        "flops_nominal",
    )  # fmt: skip
    frame: DataFrame = pandas().DataFrame(rows, columns=list(columns))
    return frame


def _by_group(rows: Rows) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    counted = {name for name, members in groups.items() if name or any(row["weight"] > 1 for row in members)}
    return {name: members for name, members in groups.items() if name in counted}


def _group_totals(group: str, members: Rows) -> list[dict[str, Any]]:
    layers = {row["case"]: row for row in members}
    kinds = {row["backend"]: row["kind"] for row in members}
    timed = [row for row in members if is_timed(row)]
    best = _bests(timed)
    picks: dict[str, Picked] = {name: {row["case"]: row for row in timed if row["backend"] == name} for name in kinds}
    if len({row["kind"] for row in timed}) > 1:
        picks[BEST_OF_OWN] = best_of(row for row in timed if row["kind"] == "own")
    picks[BEST_OF_ALL] = best
    return [{"group": group, "kind": kinds.get(name, "choice"), **_total(name, pick, layers, best)}
            for name, pick in picks.items()]  # fmt: skip


def _bests(timed: Rows) -> Picked:
    return {row["case"]: row for row in timed if row["ratio_method"] == "itself"}


def _total(name: str, pick: Picked, layers: Picked, best: Picked) -> dict[str, Any]:
    complete = len(pick) == len(layers)
    time_s = _sum(pick)
    by_pass = _sums_by_pass(pick)
    ends = [time_s, *by_pass.values()] if len(by_pass) > 1 and complete else [math.nan]
    flops = sum(row["weight"] * row["flops_nominal"] for row in layers.values())
    behind = _behind(pick, {case: best[case] for case in pick})
    return {
        "backend": name,
        "status": "ok" if complete else "incomplete",
        "time_s": time_s if complete else math.nan,
        "low_s": min(ends),
        "high_s": max(ends),
        "pass_medians_s": by_pass if complete else {},
        "layers": len(pick),
        "of": len(layers),
        "occurrences": sum(row["weight"] for row in layers.values()),
        "behind_best": behind.value,
        "behind_best_low": behind.low,
        "behind_best_high": behind.high,
        "chosen": sum(best[case] is row for case, row in pick.items()),
        "effective_gflop_per_s": flops / time_s / 1e9 if complete else math.nan,
        "flops_nominal": flops,
    }


def _sum(pick: Picked) -> float:
    return float(sum(row["weight"] * row["time_s"] for row in pick.values()))


def _sums_by_pass(pick: Picked) -> dict[int, float]:
    """Return the total of each pass that has all of them."""
    passes = set.intersection(*(set(row["pass_medians_s"]) for row in pick.values())) if pick else set()
    return {
        number: sum(row["weight"] * row["pass_medians_s"][number] for row in pick.values()) for number in sorted(passes)
    }


def _behind(pick: Picked, best: Picked) -> Ratio:
    ratio = paired_ratio(_sums_by_pass(pick), _sums_by_pass(best))
    if ratio.passes >= LEAST_PASSES or not pick:
        return ratio
    if ratio.passes:
        return replace(ratio, low=math.nan, high=math.nan)
    return Ratio(_sum(pick) / _sum(best), math.nan, math.nan, 0, "paired")  # no pass has all of its layers


def geometric_means(summary: DataFrame, baseline: str | None) -> DataFrame:
    """Return for each backend with a time the geometric means of its ratios, each case weighted by its occurrences.

    Parameters
    ----------
    summary : pandas.DataFrame
        From :func:`summarise`.
    baseline : str or None
        Of speed-ups. None, or one that is not in the run: they are NaN.

    Returns
    -------
    pandas.DataFrame
        ``backend``, ``kind``; ``cases`` that have a time, ``of`` those of the run; ``fastest``, the number of cases in
        which it is the fastest or tied with it; ``behind_best``, mean of its time over the fastest one's;
        ``compared``, the number of cases that the baseline did as well, with ``speedup`` (mean), ``speedup_least`` and
        ``speedup_most`` over these; ``common``, the number of cases that all these backends did, and
        ``behind_best_common`` over those. Means over different cases do not compare with each other. Each mean has
        ``…_low`` and ``…_high``, its 99 % interval: Student's over the means of single passes, those that have all
        cases, three at least; else NaN.
    """
    rows = rows_of(ranked(summary))
    timed = [row for row in rows if is_timed(row)]
    best = _bests(timed)
    base = {row["case"]: row for row in timed if row["backend"] == baseline}
    kinds = {row["backend"]: row["kind"] for row in timed}
    done = {name: {row["case"] for row in timed if row["backend"] == name} for name in kinds}
    common = set.intersection(*done.values()) if done else set()
    made = []
    for name, kind in kinds.items():
        own = [row for row in timed if row["backend"] == name]
        ratios = [row_ratio(base[row["case"]], row).value for row in own if row["case"] in base]
        made.append(
            {
                "backend": name,
                "kind": kind,
                "cases": len(own),
                "of": len({row["case"] for row in rows}),
                "fastest": sum(row["tied"] for row in own),
                **_named("behind_best", _mean_ratio([(row, best[row["case"]]) for row in own])),
                "compared": len(ratios),
                **_named("speedup", _mean_ratio([(base[row["case"]], row) for row in own if row["case"] in base])),
                "speedup_least": min(ratios, default=math.nan),
                "speedup_most": max(ratios, default=math.nan),
                "common": len(common),
                **_named("behind_best_common", _mean_over(common, own, best)),
            }
        )
    frame: DataFrame = pandas().DataFrame(made)
    return frame


def _named(name: str, ratio: Ratio) -> dict[str, float]:
    return {name: ratio.value, f"{name}_low": ratio.low, f"{name}_high": ratio.high}


def _mean_over(cases: Collection[str], rows: Rows, best: Picked) -> Ratio:
    return _mean_ratio([(row, best[row["case"]]) for row in rows if row["case"] in cases])


def _mean_ratio(pairs: Sequence[tuple[Row, Row]]) -> Ratio:
    """Return the weighted geometric mean of the pairs' ratios.

    Each pair counts with all the passes it has. The interval has the width of that over the means of single passes, of
    those that all pairs have: what is common to a pass shows in it, which it would not if pairs were independent.
    """
    if not pairs:
        return paired_ratio({}, {})
    weights = [float(row["weight"]) for row, _ in pairs]
    mean = _weighted([math.log(row_ratio(row, other).value) for row, other in pairs], weights)
    common = set.intersection(*(row["pass_medians_s"].keys() & other["pass_medians_s"].keys() for row, other in pairs))
    by_pass = [
        _weighted([math.log(row["pass_medians_s"][n] / other["pass_medians_s"][n]) for row, other in pairs], weights)
        for n in sorted(common)
    ]
    low, high = mean_interval(by_pass, WIN_CONFIDENCE) if len(by_pass) >= LEAST_PASSES else (math.nan, math.nan)
    half = (high - low) / 2
    return from_logs(mean, (mean - half, mean + half), len(by_pass), "paired")


def _weighted(values: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)
