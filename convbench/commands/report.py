"""``convbench report``: tables, plots and page of a run that was made before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from convbench.commands.parameters import (
    BASELINE_HELP,
    FOLDER,
)
from convbench.commands.results import conclude
from convbench.errors import SpecError
from convbench.report import matrix_specs
from convbench.report.screen import Screen

if TYPE_CHECKING:
    pass

__all__ = ["report"]


@click.command()
@click.argument("folder", metavar="RUN", type=FOLDER)
@click.option("--baseline", metavar="NAME", help=BASELINE_HELP)
def report(folder: Path, baseline: str | None) -> None:
    """Print and write a run's tables, plots and page.

    RUN is its folder under results/; everything is made from the records in it. It may also be a file that 'pytest
    suites --benchmark-json=FILE.json' has written: tables, plots and page then go to FILE-report beside it.
    """
    from convbench.bench.pytest_json import convert
    from convbench.bench.record import RECORDS_FILE, read

    screen = Screen()
    if folder.suffix == ".json" and folder.is_file():
        folder = convert(folder)
        screen.note("pytest-benchmark keeps nothing of skipped tests: pairs that were refused are missing")
    elif folder.is_file() and folder.name != RECORDS_FILE:
        rule = f"must be a run's folder, the {RECORDS_FILE} in it, or a FILE.json of pytest-benchmark"
        raise SpecError("RUN", str(folder), rule)
    records = read(folder)
    names = list(dict.fromkeys(record.backend for record in records))
    if baseline is not None and baseline not in names:
        raise SpecError("--baseline", baseline, f"must be one of the backends of this run: {', '.join(names)}")
    folder = folder if folder.is_dir() else folder.parent
    conclude(screen, folder, baseline, matrix_specs(folder))
