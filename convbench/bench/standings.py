"""Who is faster: ratios to one backend, and where each stands among those of its case.

Two backends are compared by :func:`convbench.bench.ratios.row_ratio`; whatever it cannot tell is a tie, and where it
cannot tell anything, for want of passes, the rank is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convbench.bench.frames import Row, Rows, by_case, is_timed, pandas, rows_of
from convbench.bench.ratios import WIN_CONFIDENCE, Ratio, paired_ratio, row_ratio
from convbench.errors import SpecError

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = ["Standing", "best_of", "fastest", "ranked", "ratios_over", "speedups", "standings", "standings_of"]


def ratios_over(summary: DataFrame, baseline: str) -> list[Ratio]:
    """Return for each row the time of ``baseline`` on its case over its own; NaN where either has none.

    Raises
    ------
    SpecError
        If no row is of that backend.
    """
    names = list(dict.fromkeys(summary["backend"]))
    if baseline not in names:
        raise SpecError("baseline", baseline, f"is not in this run; it has {', '.join(names)}")
    rows = rows_of(summary)
    base = {row["case"]: row for row in rows if row["backend"] == baseline and is_timed(row)}
    return [
        row_ratio(base[row["case"]], row) if is_timed(row) and row["case"] in base else paired_ratio({}, {})
        for row in rows
    ]


def speedups(summary: DataFrame, baseline: str) -> Series[float]:
    """Return how many times faster than ``baseline`` each row is on its case.

    The geometric mean over passes of (baseline's median / this one's median) within the same pass, so that what slows
    a whole pass down cancels. NaN where either has no time. With intervals: :func:`ratios_over`.

    Raises
    ------
    SpecError
        If no row is of that backend.
    """
    values = [ratio.value for ratio in ratios_over(summary, baseline)]
    series: Series[float] = pandas().Series(values, index=summary.index, name=f"speedup over {baseline}", dtype=float)
    return series


@dataclass(frozen=True)
class Standing:
    """Where a row stands among the timed rows of its case.

    Attributes
    ----------
    row : mapping
    ratio : Ratio
        Its time over the fastest one's; the method is "itself" for that one.
    beaten_by : int
        How many are faster beyond doubt.
    undecided : bool
        Whether it is slower than the fastest cannot be told, not even that it is a tie: there are too few passes. The
        fastest itself is, if that holds of all others.
    """

    row: Row
    ratio: Ratio
    beaten_by: int
    undecided: bool

    @property
    def rank(self) -> float:
        """1 + the number of those that are faster beyond doubt; NaN if undecided."""
        return math.nan if self.undecided else 1.0 + self.beaten_by

    @property
    def is_best(self) -> bool:
        """Whether ratios are over this one."""
        return self.ratio.method == "itself"


def standings_of(timed: Rows, confidence: float = WIN_CONFIDENCE) -> list[Standing]:
    """Return where each row stands among these, all of one case and with a time.

    The fastest is that which no other is faster than, beyond doubt and then by its ratio, the very ratio that is shown:
    so none over it is below 1. Where backends lack passes three may lead each other in a circle; then it is the one
    that is least behind any other.
    """
    beaten, behind = [0] * len(timed), [1.0] * len(timed)
    for i, row in enumerate(timed):
        for j in range(i):
            ratio = row_ratio(row, timed[j], confidence)
            beaten[i] += ratio.verdict == "slower"
            beaten[j] += ratio.verdict == "faster"
            behind[i], behind[j] = max(behind[i], ratio.value), max(behind[j], 1 / ratio.value)
    best = min(range(len(timed)), key=lambda i: (beaten[i], behind[i]), default=None)
    if best is None:
        return []
    ratios = [row_ratio(row, timed[best], confidence) for row in timed]
    ratios[best] = Ratio(1.0, 1.0, 1.0, len(timed[best]["pass_medians_s"]), "itself")
    undecided = [not ratio.is_telling for ratio in ratios]
    undecided[best] = len(timed) > 1 and sum(undecided) == len(timed) - 1
    return [Standing(*entry) for entry in zip(timed, ratios, beaten, undecided, strict=True)]


def best_of(rows: Iterable[Row]) -> dict[str, Row]:
    """Return for each case the row of the fastest backend."""
    cases = by_case(row for row in rows if is_timed(row))
    return {case: next(entry.row for entry in standings_of(own) if entry.is_best) for case, own in cases.items()}


def fastest(rows: Iterable[Row]) -> set[str]:
    """Return the backends of one case that have rank 1: nothing is faster than they are, beyond doubt.

    Beyond doubt is what the 99 % interval of a ratio says. Each backend is compared with all others of its case and the
    intervals are not widened for that, so that of many that are equal some do lose rank 1: with 6 passes of independent
    normal noise, of 5 one or more in 7 % of cases, of 20 in 70 % (1.3 of the 20 in the mean), though a single
    comparison goes wrong in 1 % only. Against the fastest alone, which is chosen by the same passes, it is 43 % of 20.
    """
    return {str(entry.row["backend"]) for entry in standings_of([row for row in rows if is_timed(row)])
            if entry.rank == 1}  # fmt: skip


def standings(summary: DataFrame) -> DataFrame:
    """Return where each row of a summary stands among those of its case.

    Returns
    -------
    pandas.DataFrame
        With the summary's index: ``rank`` (1 + the number of backends that are faster beyond doubt, so that ties share
        theirs), ``tied`` (rank 1, see :func:`fastest`), ``undecided`` (there are too few passes to tell it from the
        fastest, or even to call it a tie: no rank), ``ratio_to_best``, ``ratio_low`` and ``ratio_high`` (its time over
        the fastest one's, 99 %), ``ratio_method`` (see :class:`Ratio`), ``break_even_calls`` and ``break_even_rival``:
        after how many calls it has made up for what planning and preparing cost it more than that rival, the backend
        whose plan, prepare and a single call together take least; 1 for the rival itself, NaN for one that is not
        faster a call beyond doubt, or whose stages are not known. NaN and False for rows without a time.
    """
    rows = rows_of(summary)
    nothing: dict[str, Any] = {
        "rank": math.nan, "tied": False, "undecided": False, "ratio_to_best": math.nan, "ratio_low": math.nan,
        "ratio_high": math.nan, "ratio_method": None, "break_even_calls": math.nan, "break_even_rival": None,
    }  # fmt: skip
    found = {
        (row["case"], row["backend"]): columns
        for timed in by_case(row for row in rows if is_timed(row)).values()
        for row, columns in _columns(timed)
    }
    made = [found.get((row["case"], row["backend"]), nothing) for row in rows]
    frame: DataFrame = pandas().DataFrame(made, index=summary.index, columns=list(nothing))
    return frame.astype({"tied": bool, "undecided": bool})


def ranked(summary: DataFrame) -> DataFrame:
    """Return the summary with its :func:`standings`, which are not reckoned again if it has them."""
    return summary if "ratio_method" in summary else summary.join(standings(summary))


def _columns(timed: Rows) -> Iterable[tuple[Row, dict[str, Any]]]:
    known = [row for row in timed if not math.isnan(_set_up_s(row))]
    rival = min(known, key=lambda row: _set_up_s(row) + row["time_s"], default=None)
    for entry in standings_of(timed):
        yield (
            entry.row,
            {
                "rank": entry.rank,
                "tied": entry.rank == 1,
                "undecided": entry.undecided,
                "ratio_to_best": entry.ratio.value,
                "ratio_low": entry.ratio.low,
                "ratio_high": entry.ratio.high,
                "ratio_method": entry.ratio.method,
                "break_even_calls": _break_even_calls(entry.row, rival) if rival else math.nan,
                "break_even_rival": rival and rival["backend"],
            },
        )


def _set_up_s(row: Row) -> float:
    return float(row["plan_s"]) + float(row["prepare_s"])


def _break_even_calls(row: Row, rival: Row) -> float:
    """Return the least whole n ≥ 1 at which set-up + n calls are no more than the rival's; NaN if there is none."""
    if row is rival:
        return 1
    more_s, gain_s = _set_up_s(row) - _set_up_s(rival), float(rival["time_s"]) - float(row["time_s"])
    if math.isnan(more_s) or gain_s <= 0 or row_ratio(row, rival).verdict != "faster":
        return math.nan
    return max(1, math.ceil(more_s / gain_s))
