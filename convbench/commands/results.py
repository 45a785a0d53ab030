"""What a run came to, on the screen and in its files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convbench.bench.environment import thread_note
from convbench.errors import MissingDependency, SpecError
from convbench.report import write_report
from convbench.report.screen import Screen
from convbench.spec import ConvSpec

if TYPE_CHECKING:
    import pandas as pd


__all__ = ["conclude", "exit_code", "removed_if_empty", "require_tables", "show_matrix"]

_PROBLEMS_SHOWN = 10
_ROWS_SHOWN = 200  # of the full comparison, on a terminal


def conclude(
    screen: Screen,
    folder: Path,
    baseline: str | None,
    specs: Sequence[ConvSpec] = (),
    *,
    brief: bool = False,
    as_json: bool = False,
    transfers: bool = False,
) -> None:
    """Print the tables of a run, write its report, and say what was written.

    ``brief`` leaves the full comparison to the files; ``as_json`` prints one object on standard output besides. With
    ``transfers``, see :func:`convbench.load_results`, tables are printed and nothing is written.
    """
    from convbench.bench.record import few, load_results

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lines that cannot be read: noted here, once
        with suppress(MissingDependency):  # the report says so
            records = load_results(folder, transfers=transfers)
            for problem in few(records.attrs["problems"]):
                screen.note(problem)
            if not records.empty:
                _show_results(screen, records, baseline, specs, brief)
        try:
            if not transfers:
                write_report(folder, baseline=baseline, matrices=specs, note=screen.note)
        except OSError as error:
            raise SpecError("RUN", str(folder), f"cannot be written to ({error.strerror})") from None
    _show_overhead(screen, folder)
    if not transfers:
        screen.title("Files")
        screen.say(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if as_json:
        click.echo(json.dumps(_as_object(records, baseline, folder), ensure_ascii=False, allow_nan=False))


@contextmanager
def removed_if_empty(folder: Path) -> Iterator[None]:
    """Leave no empty folder behind where the work never began; somebody else may have taken it away."""
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            if not any(folder.iterdir()):
                folder.rmdir()


def exit_code(folder: Path) -> int:
    """Return 1 if a pair of the run came to grief, else 0."""
    from convbench.bench.record import STATUSES, read

    return int(any(STATUSES.get(record.status, True) for record in read(folder)))


def require_tables() -> None:
    """Raise MissingDependency if there can be no tables, before any work."""
    try:
        import pandas  # noqa: F401
    except ImportError:
        raise MissingDependency("--json needs pandas: pip install pandas") from None


def _as_object(records: pd.DataFrame, baseline: str | None, folder: Path) -> dict[str, Any]:
    """Return what a script may want to know of a run, as JSON has it."""
    from convbench.bench.record import overhead, plain, read
    from convbench.bench.statistics import noise, summarise
    from convbench.report import accuracy, tables

    if records.empty or accuracy.is_untimed(records):
        summary, about_noise = summarise(records), None
    else:
        summary = tables.figures(records, baseline or tables.usual_baseline(records))
        about_noise = asdict(noise(records))
    content = {
        "environment": records.attrs["environment"],
        "summary": summary.to_dict("records"),
        "noise": about_noise,
        "overhead": overhead(read(folder)),
        "problems": records.attrs["problems"],
        "files": str(folder),
    }
    return {key: plain(value) for key, value in content.items()}


def _show_overhead(screen: Screen, folder: Path) -> None:
    from convbench.bench.record import overhead, read

    records = read(folder)
    share = overhead(records)
    if share is not None and any(record.samples_s for record in records):
        elapsed_s = max(record.elapsed_s or 0.0 for record in records)
        where = "in verifying, starting processes, planning, preparing and judging"
        screen.say(f"overhead: {share:.0%} of {elapsed_s:.0f} s were spent outside warm-up and samples, {where}", "dim")


def _show_results(
    screen: Screen, records: pd.DataFrame, baseline: str | None, specs: Sequence[ConvSpec], brief: bool
) -> None:
    from convbench.report import accuracy, tables

    if accuracy.is_untimed(records):
        _show_accuracy(screen, records)
        return
    baseline = baseline or tables.usual_baseline(records)
    table = tables.figures(records, baseline)
    layout = tables.layout_of_table(table)
    if not brief:
        _show_comparison(screen, table, baseline)
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
    environment = records.attrs.get("environment", {})
    if note := thread_note(environment):
        screen.say(note, "yellow")
    if environment.get("options", {}).get("isolate") is False:
        screen.say("all in one process: passes share its luck, and memory was not held to its limit", "yellow")
    _show_notes(screen, summary.notes, tables.problems(table))


def _show_comparison(screen: Screen, table: pd.DataFrame, baseline: str) -> None:
    from convbench.report import tables

    screen.title("Results")
    comparison = tables.comparison(table)
    if screen.live and len(comparison.rows) > _ROWS_SHOWN:
        screen.say(f"{len(comparison.rows)} rows, too many for a terminal: see table.md; what they come to:", "dim")
        return
    for name, text in tables.legend(table, baseline).items():
        screen.say(f"{name}: {text}", "dim")
    screen.grid(comparison)


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
