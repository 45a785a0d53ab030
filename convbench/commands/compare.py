"""``convbench compare``: two runs against each other, with an exit code for those who watch for regressions."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convbench.commands.parameters import FOLDER
from convbench.report.screen import Screen

if TYPE_CHECKING:
    import pandas as pd

    from convbench.bench.compare import Comparison

    _Float = click.ParamType[float]
else:  # not generic before click 8.4
    _Float = click.ParamType

__all__ = ["compare"]

EXIT_CODES = """\b
Exit codes:
  0  of what can be told nothing became slower by more than the threshold, and
     nothing is gone
  1  a regression; a pair that was ok and is not, or has no time any more; a
     pair that is missing or a case that was renamed (unless
     --no-fail-on-missing); no pair has a time in both runs
  2  bad input"""


class Fraction(_Float):
    """A share: ``5%`` or ``0.05``."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return a fraction above 0 and below 1."""
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = math.nan
        if not 0 < share < 1:
            self.fail(f"{value!r} is not a share above 0 and below 1, such as 5% or 0.05.", param, ctx)
        return share


@click.command(epilog=EXIT_CODES)
@click.argument("before", metavar="RUN", type=FOLDER)
@click.argument("after", metavar="RUN", type=FOLDER)
@click.option(
    "--threshold",
    metavar="SHARE",
    type=Fraction(),
    default="5%",
    show_default=True,
    help="A regression is slower by more.",
)
@click.option("--confidence", type=float, default=0.99, show_default=True, metavar="P", help="Of the intervals.")
@click.option("--format", "form", type=click.Choice(["text", "markdown", "json"]), default="text", show_default=True)
@click.option("--all", "everything", is_flag=True, help="Show all pairs, not only those that changed.")
@click.option(
    "--fail-on-missing/--no-fail-on-missing",
    default=True,
    show_default=True,
    help="Missing pairs and renamed cases make the exit code 1.",
)
def compare(
    before: Path,
    after: Path,
    threshold: float,
    confidence: float,
    form: str,
    everything: bool,
    fail_on_missing: bool,
) -> int:
    """Compare two runs: what became slower, what is gone.

    The first RUN is the earlier one. Each is a run's folder, the records.jsonl in it, or a report of pytest-benchmark.
    A pair is slower if the interval of its ratio says so (Welch's t over passes), and a regression if it is also
    slower by more than the threshold: the interval knows what differs between passes, but not what else the machine
    was doing on that day. Runs of different machines are compared by times over those of a backend that both have.
    """
    from convbench.bench.compare import compare as compare_runs
    from convbench.report.compare import conclusion, markdown

    screen = Screen()
    found = compare_runs(_load(before, screen), _load(after, screen), threshold=threshold, confidence=confidence)
    names, failed = (str(before), str(after)), found.failed(fail_on_missing)
    if form == "json":
        about = {"before": names[0], "after": names[1], **found.to_dict(), "failed": failed}
        print(json.dumps(about, ensure_ascii=False, indent=2))
    elif form == "markdown":
        print(markdown(found, names, everything))
    else:
        _show(screen, found, names, everything)
        screen.say(conclusion(found), "bold red" if failed else "bold green")
    return int(failed)


def _load(path: Path, screen: Screen) -> pd.DataFrame:
    from convbench.bench.pytest_json import read_report
    from convbench.bench.record import load_results, to_frame

    if path.suffix == ".json" and path.is_file():
        return to_frame(*read_report(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lines that cannot be read: noted here, once
        records = load_results(path)
    for problem in records.attrs["problems"]:
        screen.note(problem)
    return records


def _show(screen: Screen, found: Comparison, names: tuple[str, str], everything: bool) -> None:
    from convbench.report import compare as report

    screen.say(f"{names[0]} → {names[1]}", "bold")
    pairs = report.pairs_grid(found, everything)
    if pairs.rows:
        screen.title("Pairs" if everything else "Pairs that changed")
        screen.grid(pairs)
    backends = report.backends_grid(found)
    if backends.rows:
        screen.title("Backends")
        screen.grid(backends)
        screen.say(report.legend(found), "dim")
    screen.say()
    for remark in report.remarks(found):
        screen.say(f"- {remark}")
