"""``convbench rivals``: the best of convbench against the best of everybody else, case by case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from convbench.bench.cases import Case, case_filter
from convbench.bench.frames import Row
from convbench.commands.parameters import EXIT_CODES, FOLDER, TRANSFERS_HELP
from convbench.errors import SpecError
from convbench.report.screen import Screen

__all__ = ["rivals"]

_EXAMPLES = """\b
Examples:
  convbench rivals results/reference-cnn-layers --against 'torch*'
  convbench rivals results/reference-image-filter -k 'w=gaussian' --format markdown"""


@click.command(epilog=f"{_EXAMPLES}\n\n{EXIT_CODES}")
@click.argument("folder", metavar="RUN", type=FOLDER)
@click.option("--own", metavar="GLOBS", default="*", help="Which of convbench's backends may stand for it.")
@click.option("--against", metavar="GLOBS", default="*", help="Which rivals it is compared with.")
@click.option("-k", "pattern", metavar="FILTER", help="Only cases that have a token for each glob, as in 'run'.")
@click.option("--transfers", is_flag=True, help=TRANSFERS_HELP)
@click.option("--format", "form", type=click.Choice(["text", "markdown"]), default="text", show_default=True)
def rivals(folder: Path, own: str, against: str, pattern: str | None, transfers: bool, form: str) -> None:
    """Compare the fastest own backend of each case with the fastest rival.

    RUN is a run's folder under results/. The last line is the geometric mean over all cases, each as often as it
    occurs, and the worst case.
    """
    from convbench.bench.record import load_results
    from convbench.bench.rivals import duels, matching
    from convbench.report.figures import figures
    from convbench.report.rivals import LEGEND, conclusion, grid

    wanted = case_filter(pattern or "")

    def keep(row: Row) -> bool:
        return wanted(replace(Case.parse(str(row["case"])), group=row["group"], weight=row["weight"]))

    table = figures(load_results(folder, transfers=transfers), None)
    for option, globs, kind in (("--own", own, "own"), ("--against", against, "rival")):
        names = list(dict.fromkeys(table["backend"][table["kind"] == kind]))
        if not matching(names, globs):
            what = "own backend" if kind == "own" else "rival"
            raise SpecError(option, globs, f"matches no {what} of the run ({', '.join(names) or 'it has none'})")
    found = duels(table, own, against, keep)
    if found.empty:
        rule = "has no case with a time of both an own backend and a rival that were asked for"
        raise SpecError("RUN", str(folder), rule)
    if form == "markdown":
        print("\n\n".join((grid(found).markdown(), conclusion(found) + ".", LEGEND + ".")))
        return
    screen = Screen()
    screen.grid(grid(found))
    screen.say(LEGEND, "dim")
    screen.say(conclusion(found), "bold")
