"""The best of convbench against the best of its rivals, case by case: what its speed claims are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from convbench.bench.frames import Row, Rows, by_case, is_timed, pandas, rows_of
from convbench.bench.ratios import row_ratio
from convbench.bench.standings import best_of

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["duels", "geometric_mean", "matching"]


def duels(
    table: DataFrame, own: str = "*", rivals: str = "*", keep: Callable[[Row], bool] = lambda row: True
) -> DataFrame:
    """Return for each case the fastest own backend and the fastest rival, and how many times faster the former is.

    Parameters
    ----------
    table : pandas.DataFrame
        From :func:`convbench.report.figures`.
    own, rivals : str
        Globs of names, joined by commas: which backends of either kind may stand for it.
    keep : callable
        Which rows, and so which cases, are meant.

    Returns
    -------
    pandas.DataFrame
        One row a case that both sides have a time for: ``case``, ``group``, ``weight``, ``own``, ``rival``, ``own_s``,
        ``rival_s``, ``speed`` (the rival's time over the own, paired within passes) with ``low`` and ``high`` (99 %),
        ``speed_with_prepare`` (the least sums of a preparation and a call of each side), ``limit_share`` (what the
        machine could attain at best for this case, over the own time).
    """
    rows = [row for row in rows_of(table) if keep(row) and is_timed(row)]
    sides = {
        kind: [row for row in rows if row["kind"] == kind and matching([str(row["backend"])], globs)]
        for kind, globs in (("own", own), ("rival", rivals))
    }
    cases = by_case(rows)
    best = {kind: best_of(members) for kind, members in sides.items()}
    least = {
        kind: {case: _least_whole_s(of) for case, of in by_case(members).items()} for kind, members in sides.items()
    }
    found = [
        _duel(
            mine,
            best["rival"][case],
            least["rival"][case] / least["own"][case],
            _least_attainable_s(cases[case], mine["device"]),
        )
        for case, mine in best["own"].items()
        if case in best["rival"]
    ]
    frame: DataFrame = pandas().DataFrame(found)
    return frame


def geometric_mean(found: DataFrame) -> float:
    """Return the geometric mean of the speeds, each case as often as it occurs."""
    rows = rows_of(found)
    logs = sum(row["weight"] * math.log(row["speed"]) for row in rows)
    return math.exp(logs / sum(row["weight"] for row in rows))


def matching(names: Iterable[str], globs: str) -> list[str]:
    """Return the names that one of several globs matches, which are joined by commas."""
    return [name for name in names if any(fnmatchcase(name, glob.strip()) for glob in globs.split(","))]


def _least_whole_s(rows: Rows) -> float:
    """Return the least time of a preparation and a call together."""
    return min(float(row["prepare_s"]) + float(row["time_s"]) for row in rows)


def _least_attainable_s(rows: Rows, device: Any) -> float:
    """Return the least time that the limits of a device leave to the backends of a case that are there."""
    times = (float(row["limit_share"]) * float(row["time_s"]) for row in rows if row["device"] == device)
    return min((each for each in times if not math.isnan(each)), default=math.nan)


def _duel(mine: Row, theirs: Row, speed_with_prepare: float, attainable_s: float) -> Mapping[str, Any]:
    ratio = row_ratio(theirs, mine)
    return {
        **{name: mine[name] for name in ("case", "group", "weight", "threads")},
        "own": mine["backend"],
        "rival": theirs["backend"],
        "own_s": mine["time_s"],
        "rival_s": theirs["time_s"],
        "speed": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "method": ratio.method,
        "speed_with_prepare": speed_with_prepare,
        "attainable_s": attainable_s,
        "limit_share": attainable_s / mine["time_s"],
    }
