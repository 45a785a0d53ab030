"""What a run came to, on the screen and in its files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from convbench.bench.environment import thread_note
from convbench.errors import MissingDependency, SpecError
from convbench.report import write_report
from convbench.report.screen import Screen
from convbench.spec import ConvSpec

if TYPE_CHECKING:
    import pandas as pd


__all__ = ["conclude", "show_matrix"]

_PROBLEMS_SHOWN = 10
_ROWS_SHOWN = 200  # of the full comparison, on a terminal


def conclude(screen: Screen, folder: Path, baseline: str | None, specs: Sequence[ConvSpec] = ()) -> None:
    """Print the tables of a run, write its report, and say what was written."""
    from convbench.bench.record import load_results

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lines that cannot be read: noted here, once
        with suppress(MissingDependency):  # the report says so
            records = load_results(folder)
            for problem in records.attrs["problems"]:
                screen.note(problem)
            if not records.empty:
                _show_results(screen, records, baseline, specs)
        try:
            write_report(folder, baseline=baseline, matrices=specs, note=screen.note)
        except OSError as error:
            raise SpecError("RUN", str(folder), f"cannot be written to ({error.strerror})") from None
    screen.title("Files")
    screen.say(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def _show_results(screen: Screen, records: pd.DataFrame, baseline: str | None, specs: Sequence[ConvSpec]) -> None:
    from convbench.report import accuracy, tables

    if accuracy.is_untimed(records):
        _show_accuracy(screen, records)
        return
    baseline = baseline or tables.usual_baseline(records)
    table = tables.figures(records, baseline)
    layout = tables.layout_of_table(table)
    screen.title("Results")
    comparison = tables.comparison(table)
    if screen.live and len(comparison.rows) > _ROWS_SHOWN:
        screen.say(f"{len(comparison.rows)} rows, too many for a terminal: see table.md; what they come to:", "dim")
    else:
        for name, text in tables.legend(table, baseline).items():
            screen.say(f"{name}: {text}", "dim")
        screen.grid(comparison)
    for spec in specs:
        show_matrix(screen, spec)
    summary = tables.overview(table)
    for title, grid in summary.grids.items():
        screen.title(title or "Times")
        for part in grid.split(screen.width):
            screen.grid(part)
    if summary.grids:
        screen.say(f"* {tables.MARK}" + (f" · all cases: {layout.common}" if layout.common else ""), "dim")
    for section in summary.further:
        if not section.wide:
            screen.title(section.title)
            screen.grid(section.grid)
            screen.say(section.legend, "dim")
    if note := thread_note(records.attrs.get("environment", {})):
        screen.say(note, "yellow")
    _show_notes(screen, summary.notes, tables.problems(table))


def _show_accuracy(screen: Screen, records: pd.DataFrame) -> None:
    from convbench.bench.statistics import summarise
    from convbench.report import accuracy, tables

    table = summarise(records)
    summary = accuracy.overview(table)
    screen.title("Accuracy")
    for name, text in accuracy.LEGEND.items():
        screen.say(f"{name}: {text}", "dim")
    for title, grid in summary.grids.items():
        screen.title(title)
        for part in grid.split(screen.width):
            screen.grid(part)
    screen.say()
    _show_notes(screen, summary.notes, tables.problems(table))


def _show_notes(screen: Screen, notes: Sequence[str], problems: Sequence[str]) -> None:
    for note in notes:
        screen.say(f"- {note}")
    for problem in problems[:_PROBLEMS_SHOWN]:
        screen.say(problem, "red")
    if len(problems) > _PROBLEMS_SHOWN:
        screen.say(f"… and {len(problems) - _PROBLEMS_SHOWN} more that went wrong", "red")


def show_matrix(screen: Screen, spec: ConvSpec) -> None:
    """Print the figures of a spec as a matrix."""
    from convbench.report.matrix import matrix_table

    screen.title(f"The same operation seen as a matrix: {spec}")
    screen.grid(matrix_table(spec))
