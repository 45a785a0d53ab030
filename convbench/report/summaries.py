"""Totals of networks and geometric means, as tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convbench.bench import statistics
from convbench.bench.frames import Row as Figure
from convbench.bench.frames import rows_of
from convbench.bench.ratios import LEAST_PASSES
from convbench.bench.statistics import BEST_OF_ALL, fastest
from convbench.report.text import (
    DASH,
    UNKNOWN,
    Column,
    Grid,
    Row,
    human_interval,
    human_number,
    human_seconds,
    human_times,
    ratio_range,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Section", "means_section", "totals_section"]

#: What the columns of the summaries mean; ``{baseline}`` is to be filled in.
TOTALS_LEGEND = (
    "total: the median times of all layers with this one backend, each as often as it occurs; a backend that lacks "
    "layers has none. passes: the least and the greatest total of a single pass, a spread and not a 95 % interval. "
    "over fastest: its time over that of the best of all, on the layers that it does, with its 99 % interval, paired "
    f"within passes ({UNKNOWN}: fewer than {LEAST_PASSES} passes have all of them). marked: no total is less beyond "
    "doubt. chosen: layers in which it is the fastest. best of all (of own): the fastest backend for each layer, as a "
    "perfect selector would choose; chosen and timed by the same samples, so slightly too good"
)
MEANS_LEGEND = (
    "geometric means, each case as often as it occurs. fastest: cases in which it has rank 1, ties included. "
    "over fastest: its time over the fastest one's, on the cases that it did; these differ, so compare backends only "
    "where they did the same ones (common: those that all did). speed-up: over {baseline}, on the cases that both did. "
    f"99 %: intervals of the means of single passes ({UNKNOWN}: fewer than {LEAST_PASSES} passes have all cases)"
)


@dataclass(frozen=True)
class Section:
    """A table with its title and a legend.

    Attributes
    ----------
    title : str
    grid : Grid
    legend : str
    wide : bool
        Too wide for a screen: for files only.
    """

    title: str
    grid: Grid
    legend: str = ""
    wide: bool = False

    def markdown(self) -> str:
        """Return title, legend and table."""
        return "\n\n".join(filter(None, [f"## {self.title}", self.legend, self.grid.markdown()]))


def totals_section(table: pd.DataFrame) -> Section | None:
    """Return the total time of each group's layers, with one backend for all and with the best for each.

    None for a run without groups and counts; the figures are those of :func:`convbench.bench.statistics.totals`.
    """
    totals = statistics.totals(table)
    if not totals["layers"].any():
        return None
    baseline = next((name for name in table["baseline"] if name), None)
    totals["speedup"] = float("nan")
    if baseline is not None:
        totals["speedup"] = statistics.speedups(totals.rename(columns={"group": "case"}), baseline)
    grid = Grid(
        [
            Column("backend", right=False),
            Column("total"),
            Column("passes"),
            Column("over fastest"),
            Column("99 % interval", drop=1),
            *[Column("speed-up")] * bool(totals["speedup"].notna().any()),
            Column("GFLOP/s"),
            Column("chosen"),
        ]
    )
    groups: dict[str, list[Figure]] = {}
    for row in rows_of(totals):
        groups.setdefault(row["group"], []).append(row)
    for group, rows in groups.items():
        grid.rows.append(Row(title=_group_title(group, rows[0])))
        grid.rows += _total_rows(rows, len(grid.columns))
    return Section("Totals", grid, TOTALS_LEGEND)


def _group_title(group: str, row: Figure) -> str:
    counts = f"{row['occurrences']} convolutions in {row['of']} shapes"
    return f"{group or 'all cases'}: {counts}, {human_number(row['flops_nominal'] / 2e9)} GMAC"


def _total_rows(rows: Sequence[Figure], columns: int) -> Iterator[Row]:
    """Yield the complete ones, the fastest first; those that lack layers; the names of those that have none."""
    best = fastest(row for row in rows if row["kind"] != "choice")
    for row in sorted((row for row in rows if row["layers"]), key=lambda row: (-row["layers"], row["behind_best"])):
        choice = row["kind"] == "choice"
        if row["status"] == "ok":
            cells = (
                row["backend"],
                human_seconds(row["time_s"]),
                human_interval(row["low_s"], row["high_s"], row["time_s"]),
                human_times(row["behind_best"]),
                _range_behind(row),
                *[human_times(row["speedup"])] * (columns > 7),
                human_number(row["effective_gflop_per_s"]),
                DASH if choice else str(row["chosen"]),
            )
            marked = frozenset([1]) if row["backend"] in best else frozenset[int]()
            yield Row(cells, marked=marked, style="bold" if choice else "")
        else:
            sentence = f"{row['layers']} of {row['of']} layers"
            if not choice:
                sentence += f", on them {human_times(row['behind_best'])} over fastest"
                sentence += f", chosen in {row['chosen']}" * bool(row["chosen"])
            yield Row((row["backend"],), sentence=sentence)
    if none := [row["backend"] for row in rows if not row["layers"] and row["kind"] != "choice"]:
        yield Row(("no layer",), sentence=", ".join(none), style="dim")


def means_section(table: pd.DataFrame) -> Section | None:
    """Return the geometric means of each backend's ratios: to the fastest of each case, and to the baseline.

    None for fewer than two cases or backends; see :func:`convbench.bench.statistics.geometric_means`.
    """
    baseline = next((name for name in table["baseline"] if name), None)
    means = rows_of(statistics.geometric_means(table, baseline))
    if len(means) < 2 or means[0]["of"] < 2:
        return None
    common = means[0]["common"] if means[0]["common"] > 1 else 0
    grid = Grid(
        [
            Column("backend", right=False),
            Column("cases"),
            Column("fastest"),
            Column("over fastest"),
            Column("over fastest, 99 %", drop=3),
            *[Column(f"on {common} common", drop=1)] * bool(common),
            *[
                Column("speed-up"),
                Column("speed-up, 99 %", drop=4),
                Column("on cases"),
                Column("least–most", drop=2),
            ]
            * bool(baseline),
        ]
    )
    for row in sorted(means, key=lambda row: (-row["cases"], row["behind_best"])):
        extremes = f"{human_number(row['speedup_least'])}–{human_number(row['speedup_most'])}"
        compared = (
            human_times(row["speedup"]),
            _speedup_range(row, baseline),
            str(row["compared"]),
            extremes if row["compared"] else DASH,
        )
        cells = (
            row["backend"],
            f"{row['cases']} of {row['of']}",
            str(row["fastest"] or ""),
            human_times(row["behind_best"]),
            ratio_range(row["behind_best_low"], row["behind_best_high"], "paired"),
            *[human_times(row["behind_best_common"])] * bool(common),
            *(compared if baseline else ()),
        )
        grid.rows.append(Row(cells))
    legend = MEANS_LEGEND.format(baseline=baseline) if baseline else re.sub(r" speed-up: .*? did\.", "", MEANS_LEGEND)
    return Section("Means", grid, legend)


def _speedup_range(row: Figure, baseline: str | None) -> str:
    if not row["compared"]:
        return DASH
    return ratio_range(row["speedup_low"], row["speedup_high"], "itself" if row["backend"] == baseline else "paired")


def _range_behind(row: Figure) -> str:
    method = "itself" if row["backend"] == BEST_OF_ALL else "paired"
    return ratio_range(row["behind_best_low"], row["behind_best_high"], method)
