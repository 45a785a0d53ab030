"""The table of all results: filters, a row for each case and backend, and what its columns mean."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convbench.bench.record import STATUSES
from convbench.report import accuracy, tables
from convbench.report.layout import axes_of
from convbench.report.page_markup import Html, classes, scroll, table_body, table_head, tag
from convbench.report.reproduce import reproduce
from convbench.report.text import DASH, Grid, Row

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["results_section"]

#: Column of the comparison → the raw figure behind it.
_RAW = {
    "rank": "rank",
    "time": "time_s",
    "95 % interval": "low_s",
    "over fastest": "ratio_to_best",
    "99 % interval": "ratio_low",
    "speed-up": "speedup",
    "with prepare": "speedup_with_prepare",
    "pays after": "break_even_calls",
    "GFLOP/s": "effective_gflop_per_s",
    "executed": "executed_gflop_per_s",
    "limit": "limit_share",
    "error": "error_max_eps",
    "bound": "error_bound_eps",
    "workspace": "workspace_declared_bytes",
    "measured": "workspace_measured_bytes",
}
_MORE_IS_BETTER = ("speed-up", "with prepare", "GFLOP/s", "executed", "limit")
#: Columns that can be held within a range, and an example of what to type.
_RANGES = {"time": "1 ms", "over fastest": "2×", "speed-up": "1×", "GFLOP/s": "10", "limit": "50 %", "error": "100",
           "workspace": "1 MiB"}  # fmt: skip
_STATUS_MEANS = {
    "ok": "verified, and timed unless the run is for accuracy alone",
    "unsupported": "the backend does not do this, with its reason",
    "unavailable": "a library or a device is missing",
    "skipped": "it would take longer, or need more memory, than the limit, or the run's time was spent",
    "wrong": "the result is not right: it has no time",
    "failed": "an error came instead of a result",
    "timeout": "it did not end in time",
    "out-of-memory": "it outgrew its memory",
    "crashed": "its process died",
}


def results_section(table: pd.DataFrame, baseline: str, timed: bool, options: Mapping[str, Any]) -> list[Html]:
    """Return filters, the table with a row for each case and backend, and its legend.

    Parameters
    ----------
    table : DataFrame
        From :func:`convbench.report.tables.figures`.
    baseline : str
        Of its speed-ups.
    timed : bool
        False for a run that looks at errors alone.
    options : mapping
        Of the run, for the commands that reproduce its rows.
    """
    statuses = [status for status in STATUSES if status in set(table["status"])]
    meanings = tables.legend(table, baseline) if timed else accuracy.LEGEND
    legend = [part for name, text in meanings.items() for part in (tag("dt", name), tag("dd", text))]
    legend += [part for name in statuses for part in (tag("dt", name), tag("dd", _STATUS_MEANS[name]))]
    grid = tables.comparison(table)
    kept = [i for i, column in enumerate(grid.columns) if i and _is_used(grid, i)][:-1]
    return [
        _filters(table, tables.backend_order(table), statuses, [grid.columns[i].title for i in kept]),
        scroll(_full_table(table, options, grid, kept), "all results"),
        tag("details", tag("summary", "What the columns and statuses mean"), tag("dl", *legend), open=True),
    ]


def _filters(table: pd.DataFrame, backends: Sequence[str], statuses: Sequence[str], titles: Sequence[str]) -> Html:
    search = tag("input", type="search", name="text", placeholder="k3 fft …", autocomplete="off")
    everything = (
        tag("button", "all", type="button", class_="plain", data_all="yes"),
        " ",
        tag("button", "none", type="button", class_="plain", data_all="no"),
    )
    numbers = [
        (axis.title, axis.varies, str(min(axis.values.values()))) for axis in axes_of(table["case"]) if axis.values
    ]
    numbers += [(title, _RAW[title], example) for title, example in _RANGES.items() if title in titles]
    ranges = tag("div", *(part for number in numbers for part in _range(*number)), class_="ranges")
    return tag(
        "form",
        tag("label", "Rows with all of these words (* for anything): ", search),
        tag("fieldset", tag("legend", "Status"), *_boxes("status", statuses)),
        tag("details", tag("summary", "Ranges"), ranges),
        tag(
            "details",
            tag("summary", "Backends"),
            *everything,
            tag("div", *_boxes("backend", backends), class_="choices"),
        ),
        tag("output", id="results-count", class_="dim"),
        id="filters",
        class_="filters",
        hidden=True,
    )


def _range(title: str, column: str, example: str) -> tuple[Html, ...]:
    """Return fields for the least and the greatest; the script reads units such as ms, × and MiB."""
    fields = [
        tag("input", type="text", name=f"{end}.{column}", data_column=column, placeholder=example, autocomplete="off",
             aria_label=f"{title}, {word}")
        for end, word in (("min", "at least"), ("max", "at most"))
    ]  # fmt: skip
    return tag("span", title), fields[0], tag("span", "to"), fields[1]


def _boxes(name: str, values: Sequence[str]) -> list[Html]:
    return [
        tag("label", tag("input", type="checkbox", name=name, value=value, checked=True), f" {value} ")
        for value in values
    ]


def _full_table(table: pd.DataFrame, options: Mapping[str, Any], grid: Grid, kept: Sequence[int]) -> Html:
    heads = [
        _heading("case", column="case"),
        _heading("backend"),
        _heading("status"),
        *(_heading(grid.columns[i].title, column=_RAW.get(grid.columns[i].title), side="n") for i in kept),
        tag("th", "again", scope="col", class_="again"),
    ]
    longest = max((len(row.title) for row in grid.rows), default=0)
    width = f"--case: {min(max(_LEAST_REM, _CHARACTER_REM * longest + _PADDING_REM), _MOST_REM):.1f}rem"
    rows = list(_full_rows(table, options, grid, kept))
    return tag("table", table_head(heads), table_body(rows), id="results", style=width)


#: Of the column of cases, whose width the style sheet must know, for the next column to stay where it ends.
_LEAST_REM, _MOST_REM, _CHARACTER_REM, _PADDING_REM = 4.5, 17.0, 0.48, 1.3


def _heading(title: str, column: str | None = None, side: str | None = None) -> Html:
    """Return a heading by which the script sorts: by raw figures, or by text where there are none."""
    order = "descending" if title in _MORE_IS_BETTER else "ascending"
    key = re.sub(r"\W+", "-", title.lower())
    return tag("th", title, scope="col", class_=side, data_key=key, data_order=order, data_column=column)


def _is_used(grid: Grid, column: int) -> bool:
    """Return whether a column says anything; the last one always does."""
    texts = (row.cells[column] for row in grid.rows if column < len(row.cells))
    return column == len(grid.columns) - 1 or any(text != DASH for text in texts)


def _full_rows(table: pd.DataFrame, options: Mapping[str, Any], grid: Grid, kept: Sequence[int]) -> Iterator[Html]:
    """Yield the rows of the comparison, each with its case, its row of the page's data and the command to repeat it."""
    rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    figures = {(row["case"], row["backend"]): (number, row) for number, row in enumerate(rows)}
    cases = iter(dict.fromkeys(table["case"]))
    case = head = ""
    for row in grid.rows:
        if row.title:
            case, head = next(cases), row.title
            continue
        number, figure = figures[case, row.cells[0]]
        yield tag(
            "tr",
            tag("th", head, scope="row", title=case),
            tag("td", row.cells[0]),
            *_figure_cells(row, figure, kept),
            tag("td", _again(figure, options), class_="again"),
            data_row=str(number),
            data_backend=row.cells[0],
            data_status=figure["status"],
        )


def _figure_cells(row: Row, figure: Mapping[str, Any], kept: Sequence[int]) -> list[Html]:
    """Return the status and the figures; a reason takes the room of both."""
    bad = "reason bad" if STATUSES.get(figure["status"], True) else "reason"
    if row.sentence:
        return [tag("td", tag("div", row.sentence), class_=bad, colspan=str(1 + len(kept)))]
    caveats = "; ".join(figure.get("caveats") or ()) or None
    figures = [tag("td", row.cells[i], class_=classes("n", i in row.marked)) for i in kept]
    return [tag("td", row.cells[-1], class_=bad, title=caveats), *figures]


def _again(figure: Mapping[str, Any], options: Mapping[str, Any]) -> Html:
    return tag("details", tag("summary", "command"), tag("code", reproduce(figure, options)))
