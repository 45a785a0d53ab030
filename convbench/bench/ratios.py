"""Ratios of times with intervals: who is faster, and whether that can be told.

The unit of independence is the **pass**. What makes a measurement differ from the next acts within a process (where its
memory lies, what its libraries found at start) and over seconds (clock, heat, neighbours). Samples of a pass share it,
so that an interval from n pooled samples of p passes may be too narrow by as much as √(n/p). Kalibera and Jones,
"Rigorous Benchmarking in Reasonable Time", ISMM 2013, hence average within the highest level that is repeated and take
the interval over that level.

No bootstrap: from 3 to 6 units a percentile bootstrap is far too narrow (Hesterberg, "What Teachers Should Know About
the Bootstrap", The American Statistician 69:371, 2015). It takes the standard error with divisor n and, in effect,
normal quantiles instead of Student's: with 4 passes at 99 % that is 2.6 · 0.87 standard errors where 5.8 are needed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

from convbench.errors import MissingDependency

__all__ = [
    "CONFIDENCE",
    "LEAST_PASSES",
    "WIN_CONFIDENCE",
    "Ratio",
    "from_logs",
    "mean_interval",
    "median_interval",
    "paired_ratio",
    "pooled_ratio",
    "row_ratio",
    "samples_ratio",
    "unpaired_ratio",
]

#: Of intervals of times.
CONFIDENCE = 0.95

#: Of intervals of ratios, two-sided: what lies outside is called faster or slower.
WIN_CONFIDENCE = 0.99

#: Passes from which the mean of several has an interval: two have Student's t with one degree of freedom, 64 at 99 %.
LEAST_PASSES = 3

Interval = tuple[float, float]
_UNKNOWN: Interval = (math.nan, math.nan)
_LARGEST_LOG = 700.0  # of a number that a float can hold; two passes far apart have an interval beyond it


@dataclass(frozen=True)
class Ratio:
    """A ratio of two times and its interval.

    Attributes
    ----------
    value, low, high : float
        The bounds are NaN where nothing is known of the spread.
    passes : int
        On which it rests; of two runs those of the one that has fewer.
    method : str
        "paired": Student's t over passes that both have; "pooled": for want of these, Student's t over the passes of
        both, taken to spread alike; "unpaired": Welch's t over the passes of two runs; "samples": from samples of a
        single process, blind to whatever differs between processes, so that it has no verdict; "itself": there is
        nothing to compare.
    """

    value: float
    low: float
    high: float
    passes: int
    method: str

    @property
    def verdict(self) -> str:
        """Return "faster" or "slower" (the numerator than the denominator) if the interval says so, else "tie".

        >>> Ratio(0.8, 0.7, 0.9, 6, "paired").verdict, Ratio(0.8, math.nan, math.nan, 1, "paired").verdict
        ('faster', 'tie')
        >>> Ratio(0.8, 0.7, 0.9, 1, "samples").verdict  # of a process, not of the backends
        'tie'
        """
        if not self.is_telling:
            return "tie"
        return "faster" if self.high < 1 else "slower" if self.low > 1 else "tie"

    @property
    def is_telling(self) -> bool:
        """Return whether there is an interval that knows of more than one process: without it a tie is no finding."""
        return self.method != "samples" and not math.isnan(self.low)

    @property
    def half_width(self) -> float:
        """Return by what fraction the interval goes beyond the value: 0.06 is ±6 %.

        >>> round(Ratio(2.0, 2.0 / 1.06, 2.0 * 1.06, 6, "paired").half_width, 9)
        0.06
        """
        return math.sqrt(self.high / self.low) - 1 if self.low else math.inf


def paired_ratio(
    numerator: Mapping[int, float], denominator: Mapping[int, float], confidence: float = WIN_CONFIDENCE
) -> Ratio:
    """Return the geometric mean of numerator/denominator over the passes that both have.

    The interval is Student's of the mean of the logarithms: they make the ratio and its inverse the same question, and
    what slows a whole pass down cancels. It assumes that the logarithms are about normal; Student's t is forgiving of
    that where their distribution is symmetric, as it is for two alike.

    Parameters
    ----------
    numerator, denominator : mapping of int to float
        Pass → median of its samples in seconds.
    confidence : float
        Two-sided.

    Examples
    --------
    >>> ratio = paired_ratio({1: 2.0, 2: 22.0, 3: 2.1}, {1: 1.0, 2: 10.0, 3: 1.0})
    >>> round(ratio.value, 3), round(ratio.low, 3), round(ratio.high, 3), ratio.passes, ratio.verdict
    (2.098, 1.597, 2.757, 3, 'slower')
    """
    logs = [math.log(numerator[n]) - math.log(denominator[n]) for n in sorted(numerator.keys() & denominator.keys())]
    if not logs:
        return Ratio(math.nan, *_UNKNOWN, 0, "paired")
    return from_logs(_mean(logs), mean_interval(logs, confidence), len(logs), "paired")


def unpaired_ratio(
    numerator: Sequence[float], denominator: Sequence[float], confidence: float = WIN_CONFIDENCE
) -> Ratio:
    """Return the ratio of the geometric means of two runs' passes, which have nothing to do with each other.

    The interval is Welch's: the two may spread differently. Where one has fewer than three passes it is that of
    :func:`pooled_ratio`: two passes that happen to agree would say that there is no spread at all.
    """
    if min(len(numerator), len(denominator)) < LEAST_PASSES:
        return pooled_ratio(numerator, denominator, confidence)
    logs, others = ([math.log(value) for value in values] for values in (numerator, denominator))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of equal values, whose interval is a point
        test = _scipy_stats().ttest_ind(logs, others, equal_var=False)
        interval = test.confidence_interval(confidence)
    return from_logs(_mean(logs) - _mean(others), interval, min(len(logs), len(others)), "unpaired")


def pooled_ratio(numerator: Sequence[float], denominator: Sequence[float], confidence: float = WIN_CONFIDENCE) -> Ratio:
    """Return the ratio of the geometric means of two sets of passes that are taken to have the same relative spread.

    Student's two-sample interval. One of the two may have a single pass, as a slow backend has that ran into its time
    limit: the other's passes then say how far one more of them may lie. NaN bounds from fewer than four passes.
    """
    logs, others = ([math.log(value) for value in values] for values in (numerator, denominator))
    passes, degrees = min(len(logs), len(others)), len(logs) + len(others) - 2
    if not passes:
        return Ratio(math.nan, *_UNKNOWN, 0, "pooled")
    difference = _mean(logs) - _mean(others)
    if degrees < 2:
        return from_logs(difference, _UNKNOWN, passes, "pooled")
    variance = (_squares(logs) + _squares(others)) / degrees
    half = _student_quantile(degrees, confidence) * math.sqrt(variance * (1 / len(logs) + 1 / len(others)))
    return from_logs(difference, (difference - half, difference + half), passes, "pooled")


def from_logs(mean: float, interval: Interval, passes: int, method: str) -> Ratio:
    """Return the ratio whose logarithm is known."""
    low, high = (math.exp(min(float(bound), _LARGEST_LOG)) for bound in interval)
    return Ratio(math.exp(mean), low, high, passes, method)


def samples_ratio(value: float, numerator: Interval, denominator: Interval) -> Ratio:
    """Return a ratio between the quotients of two intervals' ends, for want of passes.

    If each of two independent intervals has a confidence c, their quotient has more than 2c − 1 and in practice more
    than c: but only for the processes that the samples came from. Taken as a verdict on two backends alike, with a
    pass each, it would be wrong in most cases.
    """
    low, high = (
        one / other if other else math.inf for one, other in zip(numerator, reversed(denominator), strict=True)
    )
    return Ratio(value, low, high, 1, "samples")


def row_ratio(row: Mapping[str, Any], other: Mapping[str, Any], confidence: float = WIN_CONFIDENCE) -> Ratio:
    """Return the time of one row of a summary over that of another, by the best method that their passes allow.

    Which one is a matter of the numbers of passes, never of what they say: paired from 3 common ones; else pooled from
    4 of both together (two alone would have Student's t with one degree of freedom, 64 at 99 %); else from the samples,
    whose interval is one of 99 % in any case. The value is a quotient of geometric means of passes by any method.
    """
    own, its = row["pass_medians_s"], other["pass_medians_s"]
    if len(own.keys() & its.keys()) >= LEAST_PASSES:
        return paired_ratio(own, its, confidence)
    if own and its and len(own) + len(its) >= 4:
        return pooled_ratio(list(own.values()), list(its.values()), confidence)
    ends = [(float(each.get("win_low_s", math.nan)), float(each.get("win_high_s", math.nan))) for each in (row, other)]
    return samples_ratio(_centre(row) / _centre(other), *ends)


def _centre(row: Mapping[str, Any]) -> float:
    """Return the geometric mean of a row's passes; its time where no pass has all of it."""
    logs = [math.log(value) for value in row["pass_medians_s"].values()]
    return math.exp(_mean(logs)) if logs else float(row["time_s"])


def mean_interval(values: Sequence[float], confidence: float) -> Interval:
    """Return Student's interval of a mean; NaN from one value.

    As ``scipy.stats.ttest_1samp(values, 0).confidence_interval()`` has it, a hundred times as fast: a table of ranks
    needs tens of thousands of them.

    >>> [round(bound, 4) for bound in mean_interval([1.0, 2.0, 3.0], 0.95)]
    [-0.4841, 4.4841]
    """
    n = len(values)
    if n < 2:
        return _UNKNOWN
    mean = _mean(values)
    half = _student_quantile(n - 1, confidence) * math.sqrt(_squares(values) / (n - 1) / n)
    return mean - half, mean + half


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _squares(values: Sequence[float]) -> float:
    """Sum of squared deviations from the mean."""
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values)


@cache
def _student_quantile(degrees: int, confidence: float) -> float:
    return float(_scipy_stats().t.ppf((1 + confidence) / 2, degrees))


def median_interval(samples: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the shortest interval between symmetric order statistics that covers the median.

    The number of n independent samples below the median is binomial(n, ½), so [x₍ₖ₎, x₍ₙ₊₁₋ₖ₎] covers it with
    probability 1 − 2·P(B < k), whatever the distribution. Fewer than 6 samples cannot reach 95 %, fewer than 8 not
    99 %: NaN then.

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
        return _UNKNOWN
    ordered = sorted(samples)
    return ordered[k - 1], ordered[n - k]


def _scipy_stats() -> Any:
    try:
        import scipy.stats
    except ImportError:
        raise MissingDependency("intervals of ratios need SciPy: pip install scipy") from None
    return scipy.stats
