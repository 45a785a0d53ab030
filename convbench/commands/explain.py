"""``convbench explain``: a spec's figures, and who can do it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import convbench
from convbench.bench.cases import Case
from convbench.commands.parameters import (
    Count,
)
from convbench.commands.results import show_matrix
from convbench.refusals import human_bytes
from convbench.report.screen import Screen
from convbench.report.text import Column, Grid, Row, human_number, human_seconds
from convbench.spec import ConvSpec

if TYPE_CHECKING:
    import pandas as pd


__all__ = ["explain"]


@click.command()
@click.argument("line", metavar="SPEC LINE", nargs=-1, required=True)
@click.option("--threads", type=Count(), metavar="N", help="Default: every core.")
def explain(line: tuple[str, ...], threads: int | None) -> None:
    """Show a spec's figures, and who can do it.

    For example: convbench explain "n1 c64 o64 i56x56 k3 p1 f32"
    """
    spec = Case.parse(" ".join(line)).spec
    spec = ConvSpec.parse(str(spec))  # says of a line of pooling what there is for it instead
    backends = convbench.explain(spec, threads=threads)  # first: it may have something to complain of
    screen = Screen()
    screen.say(str(spec), "bold")
    screen.grid(_derived(spec))
    if spec.op == "forward":
        show_matrix(screen, spec)
    screen.title("Backends")
    screen.grid(_willingness(backends))


_RESULTS = {"forward": "shape of y", "input_grad": "shape of ∂J/∂x", "weight_grad": "shape of ∂J/∂w"}


def _derived(spec: ConvSpec) -> Grid:
    padding = " ".join(f"{before}:{after}" for before, after in spec.padding)
    rows = (
        ("output size", "×".join(map(str, spec.output_size)), f"of {'×'.join(map(str, spec.input_size))}"),
        ("result", "×".join(map(str, spec.result_shape)), _RESULTS[spec.op]),
        ("padding", padding, "before:after, each axis"),
        ("MACs", f"{spec.macs:,}", "padded taps included"),
        ("FLOPs", f"{spec.flops:,}", "2·MACs"),
        ("multiplications + additions", f"{spec.multiplications + spec.additions:,}", "exact"),
        ("parameters", f"{spec.parameters:,}", "weights and bias"),
        ("least traffic", human_bytes(spec.bytes_min), f"{spec.bytes_min:,} bytes: every operand once"),
        ("arithmetic intensity", human_number(spec.arithmetic_intensity), "FLOPs a byte of it"),
    )
    grid = Grid([Column("", right=False), Column(""), Column("", right=False)])
    grid.rows += [Row(row) for row in rows]
    return grid


def _willingness(table: pd.DataFrame) -> Grid:
    grid = Grid(
        [
            Column("backend", right=False),
            Column("kind", right=False),
            Column("expected time"),
            Column("FLOPs"),
            Column("workspace"),
        ]
    )
    for row in table.to_dict("records"):
        head = (row["backend"], row["kind"])
        if not row["willing"]:
            grid.rows.append(Row(head, sentence=f"no: {row['reason']}", style="dim"))
            continue
        flops, workspace = int(row["flops"]), human_bytes(int(row["workspace_bytes"]))
        grid.rows.append(Row((*head, human_seconds(row["expected_s"]), human_number(flops), workspace)))
    return grid
