"""The best of convbench against the best of its rivals, as a table and a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convbench.bench.frames import rows_of
from convbench.bench.rivals import geometric_mean
from convbench.report.text import Column, Grid, Row, human_seconds, human_times, missing, ratio_range

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LEGEND", "conclusion", "grid"]

LEGEND = (
    "speed: the time of the fastest rival over that of the fastest own backend, paired within passes, with its 99 % "
    "interval; + prepare: of the least sums of a preparation and a call; limit: what the machine attains at best for "
    "the case over the own time"
)


def grid(found: pd.DataFrame) -> Grid:
    """Return a row for each case, in the run's order."""
    table = Grid(
        [
            Column("case", right=False),
            Column("count", drop=3),
            Column("own", right=False),
            Column("time", drop=1),
            Column("rival", right=False),
            Column("its time", drop=1),
            Column("speed"),
            Column("interval", drop=4),
            Column("+ prepare", drop=2),
            Column("limit", drop=2),
        ]
    )
    for row in rows_of(found):
        share = row["limit_share"]
        cells = (
            row["case"],
            f"{row['weight']:g}",
            row["own"],
            human_seconds(row["own_s"]),
            row["rival"],
            human_seconds(row["rival_s"]),
            human_times(row["speed"]),
            ratio_range(row["low"], row["high"], row["method"]),
            human_times(row["speed_with_prepare"]),
            "" if missing(share) else f"{share:.0%}",
        )
        table.rows.append(Row(cells, style="red" if row["speed"] < 1 else ""))
    return table


def conclusion(found: pd.DataFrame) -> str:
    """Return the mean and the least of the speeds in a sentence."""
    rows = rows_of(found)
    least = min(rows, key=lambda row: row["speed"])
    threads = ", ".join(str(count) for count in sorted({int(row["threads"]) for row in rows}))
    duel = f"{least['own']} against {least['rival']} in {least['case']}"
    cases = f"{len(rows)} case{'s' * (len(rows) > 1)}, {threads} thread{'s' * (threads != '1')}"
    return (
        f"{cases}: the fastest own backend is {human_times(geometric_mean(found))} as fast as the fastest rival "
        f"(geometric mean, each case as often as it occurs), at the least {human_times(least['speed'])}: {duel}"
    )
