"""The times of a run alone, compactly, with its summaries and notes. Pure functions of its table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convbench.bench.frames import Row as Figure
from convbench.bench.frames import by_case, rows_of
from convbench.bench.limits import roof_name
from convbench.bench.record import TIME_SPENT, TRANSFERS_APART, TRANSFERS_INCLUDED
from convbench.report.comparison import CAVEAT
from convbench.report.figures import backend_order, layout_of_table
from convbench.report.layout import Layout, data_title
from convbench.report.summaries import Section, means_section, totals_section
from convbench.report.text import DASH, Column, Grid, Row, human_seconds, human_times, missing

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Overview", "caveat_notes", "overview"]

#: A matrix of times that is wider than this gives way to the fastest few of each case.
MATRIX_WIDTH = 100

#: One word a status, short enough for a cell of the overview.
_SHORT = {"unsupported": "refused", "unavailable": "absent", "out-of-memory": "memory"}


@dataclass(frozen=True)
class Overview:
    """The times alone, compactly, and what follows from them.

    Attributes
    ----------
    grids : mapping of str to Grid
        Title → times: one grid a panel of a sweep, else a single one without a title.
    notes : sequence of str
        What has no place in a table.
    further : sequence of Section
        Summaries, and the whole matrix of times where ``grids`` has the fastest alone.
    """

    grids: Mapping[str, Grid]
    notes: Sequence[str]
    further: Sequence[Section] = ()

    def markdown(self) -> str:
        """Return everything as Markdown."""
        parts = [f"### {title}\n\n" * bool(title) + grid.markdown() for title, grid in self.grids.items()]
        parts += [section.markdown() for section in self.further]
        notes = "\n".join(f"- {note}" for note in self.notes)
        heading = "## Notes\n\n" * bool(self.further)
        return "\n\n".join([*parts, *([heading + notes] if notes else [])])


def overview(table: pd.DataFrame) -> Overview:
    """Return the times compactly, and their summaries.

    The times are a matrix, backends against the varying number or cases against backends; where the latter is wider
    than :data:`MATRIX_WIDTH`, the fastest few of each case, and the matrix is left to files. Those of rank 1 are
    marked (see :data:`convbench.report.comparison.MARK`). A backend without any time is left
    to the notes; if none has one there is no table.
    """
    layout = layout_of_table(table)
    cells = {(row["case"], row["backend"]): row for row in rows_of(table)}
    best = {case: set[str]() for case in layout.labels}
    for row in cells.values():
        best[row["case"]] |= {row["backend"]} if row["tied"] else set()
    timed = {row["backend"] for row in cells.values() if row["status"] == "ok" and not missing(row["time_s"])}
    backends = [name for name in backend_order(table) if name in timed]
    grids: dict[str, Grid] = {}
    further: list[Section | None] = []
    if backends and layout.varies:
        grids = {
            _panel_title(layout, name): _sweep_grid(layout, panel, backends, cells, best, _attainable_s(table))
            for name, panel in layout.panels.items()
        }
    elif backends:
        matrix = _case_grid(layout, backends, cells, best, _attainable_s(table))
        fits = max(map(len, matrix.plain())) <= MATRIX_WIDTH
        grids = {"": matrix if fits else _leaders_grid(layout, table, best)}
        further = [] if fits else [Section("All times", matrix, wide=True)]
    further = [totals_section(table), means_section(table), *further]
    notes = [*_words(table, backends), *_absent(table, backends), *_attainable_note(table), *_remarks(table)]
    return Overview(grids, notes, [section for section in further if section])


def _panel_title(layout: Layout, name: str) -> str:
    data = data_title(name)
    return f"{data}: time against {layout.field_title}" if data else f"time against {layout.field_title}"


Cells = Mapping[tuple[str, str], Figure]
Best = Mapping[str, set[str]]
Least = Mapping[str, float]  # case → the time that the machine's limits leave; empty where they are not known


def _sweep_grid(
    layout: Layout, panel: Mapping[int, str], backends: Sequence[str], cells: Cells, best: Best, least: Least
) -> Grid:
    grid = Grid([Column(f"{layout.symbol} =", right=False), *(Column(str(value)) for value in panel)], gap=1)
    for backend in backends:
        texts = [_cell(cells.get((case, backend))) for case in panel.values()]
        marked = frozenset(i for i, case in enumerate(panel.values(), 1) if backend in best[case])
        grid.rows.append(Row((backend, *texts), marked=marked))
    if least:
        times = (human_seconds(least.get(case)) for case in panel.values())
        grid.rows.append(Row((_attainable_title(cells.values()), *times), style="dim"))
    return grid


def _case_grid(layout: Layout, backends: Sequence[str], cells: Cells, best: Best, least: Least) -> Grid:
    columns = [*backends, *[_attainable_title(cells.values())] * bool(least)]
    grid = Grid([Column("case", right=False), *map(Column, columns)])
    for case, label in layout.labels.items():
        texts = [_cell(cells.get((case, name))) for name in backends]
        marked = frozenset(i for i, name in enumerate(backends, 1) if name in best[case])
        texts += [human_seconds(least.get(case))] * bool(least)
        grid.rows.append(Row((label, *texts), marked=marked))
    return grid


def _leaders_grid(layout: Layout, table: pd.DataFrame, best: Best) -> Grid:
    """Return a row a case: its fastest backends, the others' times as multiples of the first one's."""
    counted, least = bool((table["weight"] > 1).any()), _attainable_s(table)
    grid = Grid(
        [
            Column("case", right=False),
            *[Column("count", drop=3)] * counted,
            Column("fastest", right=False),
            Column("time"),
            *[Column(_attainable_title(rows_of(table)), drop=5)] * bool(least),
            Column("second", right=False, drop=1),
            Column("third", right=False, drop=2),
            Column("timed", drop=4),
        ]
    )
    group = ""
    for case, rows in by_case(rows_of(table)).items():
        if rows[0]["group"] != group:
            group = rows[0]["group"]
            grid.rows.append(Row(title=group or "other cases"))
        count = (f"×{rows[0]['weight']}" if rows[0]["weight"] > 1 else "",) * counted
        attainable = (human_seconds(least.get(case)),) * bool(least)
        grid.rows.append(_leaders_row((layout.labels[case], *count), attainable, rows, best[case]))
    return grid


def _leaders_row(head: tuple[str, ...], attainable: tuple[str, ...], rows: Sequence[Figure], best: set[str]) -> Row:
    timed = [row for row in rows if row["status"] == "ok" and not missing(row["time_s"])]
    if not timed:
        return Row(head, sentence="no backend has a time")
    first, *others = timed  # the fastest first
    ratios = [f"{row['backend']} {human_times(row['ratio_to_best'])}" for row in others[:2]]
    ratios += [""] * (2 - len(ratios))
    fastest = first["backend"], human_seconds(first["time_s"])
    cells = (*head, *fastest, *attainable, *ratios, f"{len(timed)} of {len(rows)}")
    second = len(head) + 2 + len(attainable)
    places = (len(head), second, second + 1)
    marked = frozenset(place for place, row in zip(places, timed, strict=False) if row["backend"] in best)
    return Row(cells, marked=marked)


def _attainable_s(table: pd.DataFrame) -> Least:
    known = table[table["attainable_s"].notna()]
    return dict(zip(known["case"], known["attainable_s"], strict=True))


def _attainable_title(rows: Iterable[Figure]) -> str:
    """Say of what the limits are where backends of a GPU stand beside them."""
    return "attainable (CPU)" if any(row["device"] == "cuda" for row in rows) else "attainable"


def _attainable_note(table: pd.DataFrame) -> list[str]:
    """Say what "attainable" means, if it is there."""
    if not _attainable_s(table):
        return []
    roof = roof_name(table.attrs["environment"]["limits"])
    others = "; on the CPU: no limits of a GPU are known" * bool(table["device"].eq("cuda").any())
    return [
        f"attainable: the least operations that a backend of the case executes, at the rate of {roof}, or operands and "
        f"result at that of a copy, whichever takes longer; less is possible where operands stay in a cache{others}"
    ]


def _cell(row: Figure | None) -> str:
    if row is None:
        return DASH
    status = str(row["status"])
    return human_seconds(row["time_s"]) if status == "ok" else _SHORT.get(status, status)


def _words(table: pd.DataFrame, backends: Sequence[str]) -> list[str]:
    """Explain each status that appears in a cell, reasons that differ in their numbers alone taken together."""
    alike: dict[tuple[str, str, str], list[Figure]] = {}
    for row in rows_of(table):
        if row["backend"] in backends and row["status"] != "ok":
            kind = re.sub(r"[0-9.]+(e[+-]?[0-9]+)?", "0", str(row["reason"]))
            alike.setdefault((row["backend"], row["status"], kind), []).append(row)
    notes: dict[str, list[str]] = {}
    for (backend, status, _), rows in alike.items():
        notes.setdefault(f"{_SHORT.get(status, status)}{_places(rows, table)}{_reasons(rows)}", []).append(backend)
    return [f"{', '.join(names)} {text}" for text, names in notes.items()]


def _absent(table: pd.DataFrame, backends: Sequence[str]) -> list[str]:
    notes: dict[str, list[str]] = {}
    by_backend: dict[str, list[Figure]] = {}
    for row in rows_of(table):
        by_backend.setdefault(row["backend"], []).append(row)
    for backend, rows in by_backend.items():
        if backend not in backends:
            statuses = " or ".join(dict.fromkeys(row["status"] for row in rows))
            notes.setdefault(f"{statuses} in every case{_reasons(rows)}", []).append(backend)
    return [f"{', '.join(names)} {text}" for text, names in notes.items()]


def _remarks(table: pd.DataFrame) -> list[str]:
    notes = [*_transfers_note(table), *caveat_notes(table), *_trust(table)]
    if table["time_s"].isna().all():
        notes.append("nothing was timed")
    elif table["speedup"].isna().all():
        notes.append("no speed-ups: the baseline has no time in this run; choose another with --baseline")
    spent = table[table["reason"].astype(str).str.contains(TIME_SPENT, regex=False)]["case"].nunique()
    if spent:
        notes.append(
            f"the run's time was spent before all pairs had their turn: some are missing in {spent} of "
            f"{table['case'].nunique()} cases, the largest; give it more with --budget"
        )
    unreached = set(table.attrs.get("cases", [])) - set(table["case"])
    if unreached:
        lacking = ": totals may lack layers" if table["group"].any() else ""
        notes.append(f"{len(unreached)} case{'s' * (len(unreached) > 1)} not reached before the run ended{lacking}")
    return notes


def _transfers_note(table: pd.DataFrame) -> list[str]:
    """Say that times of a GPU are without transfers, unless a caveat says that they have them."""
    timed = table[table["device"].eq("cuda") & table["time_s"].notna()]
    apart = any(TRANSFERS_INCLUDED not in row["caveats"] for row in rows_of(timed))
    return [TRANSFERS_APART] * apart


def caveat_notes(table: pd.DataFrame) -> list[str]:
    """Name each caveat once, with the backends that have it."""
    notes: dict[str, list[str]] = {}
    for row in rows_of(table):
        for caveat in row["caveats"]:
            notes.setdefault(caveat, []).append(row["backend"])
    return [f"{', '.join(dict.fromkeys(names))}{CAVEAT}: {caveat}" for caveat, names in notes.items()]


def _trust(table: pd.DataFrame) -> list[str]:
    """Say what the comparisons rest on, and what comparing backends with themselves has found."""
    compared = table[table["ratio_method"].isin(["paired", "pooled", "samples"])]
    notes = []
    if within := int((compared["ratio_method"] == "samples").sum()):
        notes.append(
            f"{within} of {len(compared)} comparisons with the fastest are of fewer than four passes together; samples "
            "of single processes are blind to whatever differs between processes, so that who is faster cannot be "
            "told: give the run more passes, and more time for them (--passes, --budget)"
        )
    noise = table.attrs.get("noise")
    return [*notes, *([str(noise)] if noise and noise.comparisons else [])]


def _places(rows: Sequence[Figure], table: pd.DataFrame) -> str:
    layout = layout_of_table(table)
    places = [layout.short(row["case"]) for row in rows]
    return f" at {', '.join(places)}" if len(places) <= 3 else f" in {len(places)} cases"


def _reasons(rows: Sequence[Figure]) -> str:
    reasons = list(dict.fromkeys(str(row["reason"]) for row in rows if row["reason"] and not missing(row["reason"])))
    return (", for example: " if len(reasons) > 1 else ": ") + reasons[0] if reasons else ""
