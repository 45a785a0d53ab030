"""The comparison table of a run, what its columns mean, and CSV. Pure functions of its figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convbench.bench.frames import Row as Figure
from convbench.bench.frames import by_case, rows_of
from convbench.bench.limits import limits_of, roof_name
from convbench.bench.record import STATUSES
from convbench.refusals import human_bytes
from convbench.report.figures import family_of_table, layout_of_table
from convbench.report.reproduce import reproduce
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
    missing,
    ratio_range,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CAVEAT", "MARK", "comparison", "csv_text", "legend", "problems", "result_row"]

MARK = "marked: rank 1 in its case; nothing is faster beyond doubt, that is by the 99 % interval of a ratio of times"

#: Beside the status of a row that has caveats; the notes say which.
CAVEAT = " (!)"

_TIME_COLUMN = 2  # of the comparison: where its marks stand


def comparison(table: pd.DataFrame) -> Grid:
    """Return the full table: a titled part for each case, a row for each backend, the fastest first."""
    layout = layout_of_table(table)
    several = table[table["status"] == "ok"]["device"].nunique() > 1
    grid = Grid(
        [
            Column("backend", right=False),
            Column("rank", drop=6),
            Column("time"),
            Column("95 % interval", drop=5),
            Column("over fastest", drop=1),
            Column("99 % interval", drop=2),
            Column("speed-up"),
            Column("with prepare", drop=10),
            Column("pays after", drop=4),
            Column("GFLOP/s", drop=1),
            Column("executed", drop=8),
            Column("limit", drop=3),
            Column("error"),
            Column("bound", drop=7),
            Column("workspace", drop=1),
            Column("measured", drop=9),
            *[Column("device", right=False)] * several,
            Column("status", right=False),
        ]
    )
    for case, rows in by_case(rows_of(table)).items():
        grid.rows.append(Row(title=layout.labels[case]))
        grid.rows += [_comparison_row(row, several) for row in rows]
    return grid


def _comparison_row(row: Figure, several_devices: bool) -> Row:
    if row["status"] != "ok":
        return _refusal(row["backend"], row["status"], row["reason"])
    cells = (
        row["backend"],
        UNKNOWN if row["undecided"] else _count(row["rank"]),
        human_seconds(row["time_s"]),
        human_interval(row["low_s"], row["high_s"], row["time_s"]),
        human_times(row["ratio_to_best"]),
        ratio_range(row["ratio_low"], row["ratio_high"], row["ratio_method"]),
        human_times(row["speedup"]),
        human_times(row["speedup_with_prepare"]),
        _count(row["break_even_calls"]),
        human_number(row["effective_gflop_per_s"]),
        human_number(row["executed_gflop_per_s"]),
        DASH if missing(row["limit_share"]) else f"{row['limit_share']:.0%}".replace("%", " %"),
        human_number(row["error_max_eps"]),
        human_number(row["error_bound_eps"]),
        _bytes(row["workspace_declared_bytes"]),
        _bytes(row["workspace_measured_bytes"]),
        *[str(row["device"])] * several_devices,
        f"ok{CAVEAT}" if row["caveats"] else "ok",
    )
    return Row(cells, marked=frozenset([_TIME_COLUMN]) if row["tied"] else frozenset())


def _refusal(backend: str, status: str, reason: object) -> Row:
    sentence = status if missing(reason) or not reason else f"{status}: {reason}"
    return Row((backend,), sentence=sentence, style="red" if STATUSES.get(status, True) else "dim")


def _count(number: float | None) -> str:
    if number is None or missing(number) or number >= 1e6:
        return human_number(number)
    return f"{number:,.0f}"


def _bytes(count: float | None) -> str:
    return DASH if count is None or missing(count) else human_bytes(count)


def csv_text(table: pd.DataFrame) -> str:
    """Return the table as CSV: raw numbers, units in the column names."""
    plain = table.drop(columns="pass_medians_s", errors="ignore")
    whole = {name: plain[name].astype("Int64") for name in ("rank", "break_even_calls")}
    plain = plain.assign(**whole, caveats=plain["caveats"].map("; ".join))
    return str(plain.to_csv(index=False))


def legend(table: pd.DataFrame, baseline: str) -> dict[str, str]:
    """Return what the columns of the comparison mean, in the words of the run's family."""
    timed = table[table["time_s"].notna()]
    count, usual = timed["case"].nunique(), family_of_table(table).baselines[0]
    of_usual = timed[timed["backend"] == usual]["case"].nunique()
    instead = f"; {usual}, the usual baseline, has times on {of_usual} of the {count} timed cases"
    return {
        "time": "one call, median of all samples; its 95 % interval is that of the passes' medians where there are 6, "
        "else of all samples, pooled as if they were independent and so too narrow",
        "rank": "1 + the number of backends that are faster beyond doubt; ties share theirs; "
        f"{UNKNOWN}: too few passes to tell. Each two are compared at 99 %: of 20 backends alike one or more lose "
        "rank 1 by chance in most cases, of 5 in about 7 %",
        "over fastest": "its time over that of the fastest of its case, geometric means over passes, with its "
        f"99 % interval: {_methods(timed)}. One that reaches 1 does not separate the two; {UNKNOWN}: unknown; [in "
        "brackets]: within one process, blind to what differs between processes, so that nothing follows from it; "
        f"{DASH}: itself",
        "speed-up": f"the time of {baseline} over this one's{instead * (baseline != usual and of_usual < count)}",
        "pays after": _break_even_legend(table),
        **family_of_table(table).legend,
        "limit": _limit_legend(table),
        "workspace": "memory beside operands and result, declared; measured: its peak",
    }


def _limit_legend(table: pd.DataFrame) -> str:
    limits = table.attrs.get("environment", {}).get("limits") or {}
    others = ""
    if table["device"].eq("cuda").any():
        known = "; a GPU's are its own matrix product, which tensor cores exceed, and copy"
        unknown = "; those of this machine's CPU, which say nothing of a GPU"
        others = known if limits_of("cuda", limits).get("copy_bytes_per_s") else unknown
    beaten = " or a kernel beats BLAS" * (not limits.get("fma_flop_per_s"))
    return (
        f"share of what this machine can do: of the time that its measured {roof_name(limits)} or copy would need "
        "for the operations executed and the bytes moved at least, whichever is longer. It exceeds 100 % where "
        f"operands stay in a cache{beaten}; complex numbers and wide integers have none{others}"
    )


#: What ``ratio_method`` means; see :class:`convbench.bench.ratios.Ratio`.
_METHODS = {
    "paired": "paired within passes (Student's t)",
    "pooled": "for want of three common passes, from the passes of both (Student's t, pooled)",
    "samples": "within one process",
}


def _methods(timed: pd.DataFrame) -> str:
    """Count how the ratios to the fastest were found."""
    counts = timed["ratio_method"].value_counts()
    found = [f"{counts[name]} {meaning}" for name, meaning in _METHODS.items() if counts.get(name, 0)]
    return ", ".join(found) or "none in this run"


def _break_even_legend(table: pd.DataFrame) -> str:
    counts = table.drop_duplicates("case")["break_even_rival"].value_counts()
    rival = "the backend whose plan, prepare and one call together take least"
    if len(counts):
        rival += f" ({counts.index[0]}" + f" on {counts.iloc[0]} of {counts.sum()} cases" * (len(counts) > 1) + ")"
    return (
        f"calls after which its plan and prepare have paid for themselves against {rival}; {DASH}: not faster a call "
        "beyond doubt, or its stages were not timed"
    )


# -- while a run goes on ----------------------------------------------------------------------------


def result_row(record: Figure, label: str, time_s: float | None) -> Row:
    """Return one finished pair as a row of the live table: case, backend, time, error, bound, status."""
    if record["status"] != "ok":
        refusal = _refusal("", record["status"], record["reason"])
        return Row((label, record["backend"]), refusal.sentence, style=refusal.style)
    cells = (label, record["backend"], human_seconds(time_s))
    return Row((*cells, human_number(record["error_max_eps"]), human_number(record["error_bound_eps"]), "ok"))


def problems(table: pd.DataFrame) -> list[str]:
    """Return a line for each pair that went wrong, with the command that reproduces it."""
    options = table.attrs.get("environment", {}).get("options")
    return [
        f"{row['backend']} {row['status']} on {row['case']}: {row['reason']}\n  again: {reproduce(row, options)}"
        for row in rows_of(table)
        if STATUSES.get(row["status"], True)
    ]
