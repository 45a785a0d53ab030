"""``convbench explain``: a spec's figures, and who can do it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import convbench
from convbench.bench.cases import Case
from convbench.commands.parameters import Count
from convbench.commands.results import show_matrix
from convbench.errors import SpecError
from convbench.refusals import human_bytes
from convbench.report.screen import Screen
from convbench.report.text import Column, Grid, Row, human_number, human_seconds
from convbench.spec import ConvSpec

if TYPE_CHECKING:
    import pandas as pd


__all__ = ["explain"]


_EXAMPLES = """\b
Examples:
  convbench explain "n1 c64 o64 i56x56 k3 p1 f32"       a layer of a network
  convbench explain "i280x320 k1x2 f32"                 one channel
  convbench explain "c32 o32 i112x112 k3 s2 psame g32"  depthwise, stride 2

\b
Tokens, in any order (an 'x' between the sizes of axes that differ):
  n c o   batch, input channels, output channels; 1 if absent
  i k     input size, kernel size
  s d g   stride, dilation, groups; 1 if absent
  p       padding: p1, p1x2, p0:1 (before:after), psame, pfull; 0 if absent
  f32     the dtype; also f16, f64, complex64, int8, uint8, int64, …
  bias=channel  op=weight_grad  boundary=circular  layout=channels_last …"""


@click.command(epilog=_EXAMPLES)
@click.argument("line", metavar="SPEC LINE", nargs=-1, required=True)
@click.option("--threads", type=Count(), metavar="N", help="Default: every core.")
def explain(line: tuple[str, ...], threads: int | None) -> None:
    """Show a spec's figures, and who can do it."""
    text = " ".join(line)
    cases = Case.sweep(text)
    if len(cases) > 1:
        raise SpecError("line", text, f"stands for {len(cases)} cases; explain takes one, such as '{cases[0]}'")
    spec = cases[0].spec
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
