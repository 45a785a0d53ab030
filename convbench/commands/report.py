"""``convbench report``: tables, plots and page of a run that was made before."""

from __future__ import annotations

from pathlib import Path

import click

from convbench.commands.parameters import BASELINE_HELP, EXIT_CODES, FOLDER, JSON_HELP, TRANSFERS_HELP
from convbench.commands.results import conclude, require_tables
from convbench.errors import SpecError
from convbench.report import matrix_specs
from convbench.report.screen import Screen

__all__ = ["report"]

_EXAMPLES = """\b
Examples:
  convbench report results/20261121T075917Z-kernel-size --baseline fft
  convbench report results/20261121T075917Z-kernel-size --json | jq .noise"""


@click.command(epilog=f"{_EXAMPLES}\n\n{EXIT_CODES}")
@click.argument("folder", metavar="RUN", type=FOLDER)
@click.option("--baseline", metavar="NAME", help=BASELINE_HELP)
@click.option("--transfers", is_flag=True, help=f"{TRANSFERS_HELP} Only printed: the files stay as measured.")
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def report(folder: Path, baseline: str | None, transfers: bool, as_json: bool) -> None:
    """Print and write a run's tables, plots and page.

    RUN is its folder under results/; everything is made from the records in it. Lines that cannot be read are named
    and left out. RUN may also be a file that 'pytest suites --benchmark-json=FILE.json' has written: tables, plots and
    page then go to FILE-report beside it.
    """
    from convbench.bench.pytest_json import convert
    from convbench.bench.record import RECORDS_FILE, read_some
    from convbench.report import crossover, winner_map

    if as_json:
        require_tables()
    screen = Screen(to_stderr=as_json)
    if folder.suffix == ".json" and folder.is_file():
        folder = convert(folder)
        screen.note("pytest-benchmark keeps nothing of skipped tests: pairs that were refused are missing")
    elif folder.is_file() and folder.name != RECORDS_FILE:
        rule = f"must be a run's folder, the {RECORDS_FILE} in it, or a FILE.json of pytest-benchmark"
        raise SpecError("RUN", str(folder), rule)
    records = read_some(folder)
    names = list(dict.fromkeys(record.backend for record in records))
    if baseline is not None and baseline not in names:
        raise SpecError("--baseline", baseline, f"must be one of the backends of this run: {', '.join(names)}")
    folder = folder if folder.is_dir() else folder.parent
    for search in (crossover, winner_map):
        search.redraw(folder, screen.note)
    conclude(screen, folder, baseline, matrix_specs(folder), as_json=as_json, transfers=transfers)
