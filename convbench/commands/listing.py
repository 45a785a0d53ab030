"""``convbench list``: suites and backends."""

from __future__ import annotations

import click

from convbench.bench.cases import list_suites, load_suite
from convbench.bench.families import Convolution, Family
from convbench.commands.parameters import pooling_family
from convbench.cuda.ledger import standing
from convbench.errors import SpecError
from convbench.features import NOTES
from convbench.registry import implementation_of, what_is_missing
from convbench.report.features import feature_grids
from convbench.report.screen import Screen
from convbench.report.text import Column, Grid, Row

__all__ = ["list_command"]


_EXAMPLES = """\b
Examples:
  convbench list suites
  convbench list backends --features"""


@click.command("list", epilog=_EXAMPLES)
@click.argument("what", type=click.Choice(["suites", "backends"]))
@click.option("--pooling", is_flag=True, help="Backends of pooling.")
@click.option("--features", is_flag=True, help="What each backend can do, by its own word: the support matrix.")
@click.option("--markdown", is_flag=True, help="As Markdown.")
def list_command(what: str, pooling: bool, features: bool, markdown: bool) -> None:
    """List the built-in suites, or all backends."""
    screen = Screen()
    if features:
        if what == "suites" or pooling:
            given = "suites" if what == "suites" else "--pooling"
            raise SpecError("--features", given, "is known of backends of convolution: list backends --features")
        grids = feature_grids()
    else:
        family = pooling_family() if pooling else Convolution()
        grids = {"": _suites_grid() if what == "suites" else _backends_grid(family)}
    notes = NOTES if features else ()
    if markdown:
        parts = [f"**{title}**\n\n" * bool(title) + grid.markdown() for title, grid in grids.items()]
        screen.say("\n\n".join([*parts, *notes]))
        return
    for title, grid in grids.items():
        if title:
            screen.title(title)
        for part in grid.split(screen.width):
            screen.grid(part)
    for note in notes:
        screen.say(f"\n{note}", "dim")


def _suites_grid() -> Grid:
    grid = Grid([Column("suite", right=False), Column("cases"), Column("title", right=False)])
    for name in list_suites():
        suite = load_suite(name)
        grid.rows.append(Row((name, str(len(suite.cases))), sentence=suite.title))
    return grid


def _backends_grid(family: Family) -> Grid:
    columns = ("backend", "kind", "device", "behind it")
    grid = Grid([Column(title, right=False) for title in columns])
    for name in family.backend_names():
        backend = family.get_backend(name)
        missing = what_is_missing(backend)
        sentence = implementation_of(backend) if missing is None else f"unavailable: {missing}"
        stands = standing(backend) if family.name == "convolution" else None
        sentence += f" · {stands}" if stands else ""
        grid.rows.append(Row((name, backend.kind, backend.device), sentence, style="dim" if missing else ""))
    return grid
