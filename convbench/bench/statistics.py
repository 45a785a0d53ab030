"""From records to one row a pair, to who is faster, to what the noise is, and to summaries of many cases.

This gathers what the modules beside it do: :mod:`convbench.bench.summaries` makes a row a pair,
:mod:`convbench.bench.standings` ranks them with ties, :mod:`convbench.bench.noise` says what a pair timed against
itself comes to, :mod:`convbench.bench.totals` sums up networks and takes geometric means, and
:mod:`convbench.bench.ratios` has the ratios and intervals that all of these rest on.
"""

from __future__ import annotations

from convbench.bench.noise import Noise, noise, twin_comparisons
from convbench.bench.ratios import CONFIDENCE, WIN_CONFIDENCE, Ratio, median_interval, paired_ratio
from convbench.bench.standings import fastest, ranked, ratios_over, speedups, standings
from convbench.bench.summaries import summarise
from convbench.bench.totals import BEST_OF_ALL, BEST_OF_OWN, geometric_means, totals

__all__ = [
    "BEST_OF_ALL",
    "BEST_OF_OWN",
    "CONFIDENCE",
    "WIN_CONFIDENCE",
    "Noise",
    "Ratio",
    "fastest",
    "geometric_means",
    "median_interval",
    "noise",
    "paired_ratio",
    "ranked",
    "ratios_over",
    "speedups",
    "standings",
    "summarise",
    "totals",
    "twin_comparisons",
]
