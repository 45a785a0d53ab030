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
        if not first["samples"] or not second["samples"]:
            continue
        ratio = row_ratio(second, first)
        made.append((case, backend, ratio.value, ratio.low, ratio.high, ratio.passes, ratio.method, ratio.verdict))
    columns = ("case", "backend", "ratio", "low", "high", "passes", "method", "verdict")
    frame: DataFrame = pandas().DataFrame(made, columns=list(columns))
    return frame


@dataclass(frozen=True)
class Noise:
    """What a run's comparisons of backends with themselves say of those with others.

    Attributes
    ----------
    comparisons : int
        A/A, those that have an interval; one without cannot call anything different.
    false_wins : int
        Of them, that are called different.
    rate, rate_low, rate_high : float
        Their share, and its 95 % interval (Clopper and Pearson); 0 to 1.
    half_width, half_width_p90 : float
        Median and 90th percentile of the 99 % intervals of A/A ratios, as fractions to each side.
    rival_half_width, rival_half_width_p90 : float
        The same of all ratios of a backend to the fastest of its case.
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
        text = (
            f"A/A: {self.comparisons} comparison{'s' * (self.comparisons != 1)} of a backend with itself, "
            f"{self.false_wins} called different ({percent(self.rate)} %, 95 % interval {percent(self.rate_low)}–"
            f"{percent(self.rate_high)} %); the median 99 % interval is ±{percent(self.half_width)} % wide, nine in "
            f"ten are within ±{percent(self.half_width_p90)} %"
        )
        if not math.isnan(self.rival_half_width):
            ends = f"±{percent(self.rival_half_width)} % and ±{percent(self.rival_half_width_p90)} %"
            text += f"; of a backend with the fastest of its case {ends}"
        return text


def percent(fraction: float) -> str:
    """Two digits, as far as they say something.

    >>> [percent(value) for value in (0.0, 0.0123, 0.0601, 0.999, 20.0)]
    ['0', '1.2', '6', '100', 'over 1,000']
    """
    value = 100 * fraction
    if value > 1000:
        return "over 1,000"
    return f"{value:,.0f}" if value >= 9.95 or value == round(value, 0) else f"{value:.1f}".removesuffix(".0")


def noise(records: DataFrame) -> Noise:
    """Sum up :func:`twin_comparisons`, and the widths of all comparisons with the fastest of a case.

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
    twins = twin_comparisons(records)
    twins = twins[twins["low"].notna()]
    found, false = len(twins), int((twins["verdict"] != "tie").sum())
    low, high = _proportion_interval(false, found)
    summary = summarise(records)
    others = []
    for rows in by_case(rows_of(summary)).values():
        timed = [row for row in rows if is_timed(row)]
        best = _best(timed) if timed else None
        others += [row_ratio(row, best) for row in timed if best is not None and row is not best]
    alike = [Ratio(row["ratio"], row["low"], row["high"], row["passes"], row["method"]) for row in rows_of(twins)]
    return Noise(found, false, false / found if found else math.nan, low, high, *_widths(alike), *_widths(others))


def _widths(ratios: Iterable[Ratio]) -> tuple[float, float]:
    import numpy as np

    widths = [ratio.half_width for ratio in ratios if not math.isnan(ratio.low)]
    return (float(np.median(widths)), float(np.quantile(widths, 0.9))) if widths else (math.nan, math.nan)


def _proportion_interval(hits: int, of: int) -> tuple[float, float]:
    if not of:
        return math.nan, math.nan
    from scipy.stats import binomtest

    low, high = binomtest(hits, of).proportion_ci(CONFIDENCE, method="exact")
    return float(low), float(high)
