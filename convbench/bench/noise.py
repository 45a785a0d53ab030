"""What a run's comparisons of backends with themselves say of those with others."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convbench.bench.frames import Row, pandas, rows_of
from convbench.bench.ratios import CONFIDENCE, Ratio, row_ratio
from convbench.bench.standings import ranked
from convbench.bench.summaries import is_twin, summarise, times

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Noise", "noise", "percent", "twin_comparisons"]

_RATIO = ("ratio", "low", "high", "passes", "method")


def twin_comparisons(records: DataFrame) -> DataFrame:
    """Return a row for each pair that was visited twice a pass: the second visit's time over the first one's.

    Returns
    -------
    pandas.DataFrame
        ``case``, ``backend``, ``ratio`` with ``low`` and ``high`` (99 %), ``passes``, ``method``, ``verdict``: whatever
        is not a tie is a false win.
    """
    groups: dict[tuple[str, str], dict[bool, list[Row]]] = {}
    for row in rows_of(records):
        groups.setdefault((row["case"], row["backend"]), {}).setdefault(is_twin(row), []).append(row)
    made = []
    for (case, backend), visits in groups.items():
        if len(visits) < 2 or any(row["status"] != "ok" for rows in visits.values() for row in rows):
            continue
        first, second = times(visits[False]), times(visits[True])
        if not first["pass_medians_s"] or not second["pass_medians_s"]:
            continue
        ratio = row_ratio(second, first)
        made.append((case, backend, ratio.value, ratio.low, ratio.high, ratio.passes, ratio.method, ratio.verdict))
    frame: DataFrame = pandas().DataFrame(made, columns=["case", "backend", *_RATIO, "verdict"])
    return frame


@dataclass(frozen=True)
class Noise:
    """What a run's comparisons of backends with themselves say of those with others.

    Attributes
    ----------
    comparisons : int
        A/A, those of which something can be told; from a single pass nothing is called different.
    false_wins : int
        Of them, that are called different.
    rate, rate_low, rate_high : float
        Their share, and its 95 % interval (Clopper and Pearson); 0 to 1.
    half_width, half_width_p90 : float
        Median and 90th percentile of the 99 % intervals of A/A ratios, as fractions to each side.
    rival_half_width, rival_half_width_p90 : float
        The same of the ratios of a backend to the fastest of its case.
    """

    comparisons: int
    false_wins: int
    rate: float
    rate_low: float
    rate_high: float
    half_width: float
    half_width_p90: float
    rival_half_width: float
    rival_half_width_p90: float

    def __str__(self) -> str:
        if not self.comparisons:
            return "A/A: no backend was compared with itself"
        few = ", too few to judge" * (self.comparisons < _ENOUGH)
        found = f"{percent(self.rate)} %, 95 % interval {percent(self.rate_low)}–{percent(self.rate_high)} %{few}"
        text = (
            f"A/A: {self.comparisons} comparison{'s' * (self.comparisons != 1)} of a backend with itself, "
            f"{self.false_wins} called different ({found}); the median 99 % interval is "
            f"{_widths_in_words(self.half_width, self.half_width_p90)}"
        )
        if not math.isnan(self.rival_half_width):
            widths = _widths_in_words(self.rival_half_width, self.rival_half_width_p90)
            text += f"; of a backend with the fastest of its case {widths}"
        return text


#: Comparisons below which the rate of false wins is hardly known.
_ENOUGH = 10
_WIDE = 9.0  # ends a factor of ten from the value


def _widths_in_words(half: float, most: float) -> str:
    if half > _WIDE:
        return "wider than a factor of ten: give the run more passes and time"
    within = f"are within ±{percent(most)} %" if most <= _WIDE else "are not even within a factor of ten"
    return f"±{percent(half)} % wide, nine in ten {within}"


def percent(fraction: float) -> str:
    """Two digits, as far as they say something.

    >>> [percent(value) for value in (0.0, 0.0123, 0.0601, 0.999, 20.0)]
    ['0', '1.2', '6', '100', '2,000']
    """
    value = 100 * fraction
    return f"{value:,.0f}" if value >= 9.95 or value == round(value, 0) else f"{value:.1f}".removesuffix(".0")


def noise(records: DataFrame, summary: DataFrame | None = None) -> Noise:
    """Sum up :func:`twin_comparisons`, and the widths of all comparisons with the fastest of a case.

    Parameters
    ----------
    records : pandas.DataFrame
        Of one run.
    summary : pandas.DataFrame, optional
        What :func:`convbench.bench.summaries.summarise` makes of them, if that is at hand.

    Examples
    --------
    >>> from convbench.bench.record import Record, to_frame
    >>> common = {"run_id": "r", "case": "i8 k3", "spec": "i8 k3", "backend": "fft"}
    >>> visits = [(n, twin, [1.0 + (n + twin) % 3 / 100]) for n in range(1, 7) for twin in (False, True)]
    >>> records = [Record(**common, pass_=n, twin=twin, samples_s=samples) for n, twin, samples in visits]
    >>> found = noise(to_frame(records))
    >>> found.comparisons, found.false_wins, round(found.rate_high, 3), round(found.half_width, 3)
    (1, 0, 0.975, 0.026)
    """
    twins = [Ratio(*(row[name] for name in _RATIO)) for row in rows_of(twin_comparisons(records))]
    twins = [ratio for ratio in twins if ratio.is_telling]
    found, false = len(twins), sum(ratio.verdict != "tie" for ratio in twins)
    low, high = _proportion_interval(false, found)
    rows = rows_of(ranked(summarise(records) if summary is None else summary))
    rivals = [_to_best(row) for row in rows if row["ratio_method"] not in (None, "itself")]
    return Noise(found, false, false / found if found else math.nan, low, high, *_widths(twins), *_widths(rivals))


def _to_best(row: Row) -> Ratio:
    return Ratio(row["ratio_to_best"], row["ratio_low"], row["ratio_high"], row["passes"], row["ratio_method"])


def _widths(ratios: Iterable[Ratio]) -> tuple[float, float]:
    import numpy as np

    widths = [ratio.half_width for ratio in ratios if ratio.is_telling]
    return (float(np.median(widths)), float(np.quantile(widths, 0.9))) if widths else (math.nan, math.nan)


def _proportion_interval(hits: int, of: int) -> tuple[float, float]:
    if not of:
        return math.nan, math.nan
    from scipy.stats import binomtest

    low, high = binomtest(hits, of).proportion_ci(CONFIDENCE, method="exact")
    return float(low), float(high)
