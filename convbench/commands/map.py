"""``convbench map``: who is fastest where, over two numbers of a spec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from convbench.commands.parameters import BACKEND, EXIT_CODES, Count, chosen_backends
from convbench.commands.searching import chosen_values, measuring_options, options_of, searched
from convbench.errors import SpecError
from convbench.report.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from convbench.bench.axes import Axis
    from convbench.bench.run import Options
    from convbench.bench.winners import WinnerMap

__all__ = ["map_command"]

_BUDGET_S = 300.0
_EXAMPLES = """\b
Example:
  convbench map --over kernel_size=3:31 --over input_size=64:512 \\
      --spec "n1 c1 o1 i64x64 k3 psame f32" --backends fft,im2col,direct-numpy"""


@click.command("map", epilog=f"{_EXAMPLES}\n\n{EXIT_CODES}")
@click.option("--over", "over", multiple=True, required=True, metavar="FIELD[=VALUES]",
              help="What varies, given twice, x then y: kernel_size, input_size, in_channels, out_channels, channels "
              "(both) or batch; with its values, 3:101 or 3,5,7.")  # fmt: skip
@click.option("--spec", "line", required=True, metavar="LINE", help="All that does not vary.")
@click.option("--backends", type=BACKEND, metavar="GLOB,...", help="Only these; default: all but reference.")
@click.option("--points", type=Count(2), default=5, show_default=True, metavar="N",
              help="Values of each axis in the first round.")  # fmt: skip
@measuring_options(_BUDGET_S)
def map_command(over: tuple[str, ...], line: str, backends: str | None, points: int, **given: Any) -> int:
    """Map the fastest backend over two fields of a spec.

    All backends are timed on a coarse grid; then, while the budget lasts, the gaps are halved where the winner
    changes, for those backends that came within 2x of the fastest anywhere. What nothing separates from the fastest
    shares its place: a tie.

    Few backends make a sharper map in the same time. The files are map.json, .md, .svg and .png, beside the records of
    all rounds.
    """
    from convbench.bench.crossover import require_intervals
    from convbench.bench.families import family_of
    from convbench.bench.run import new_run_folder
    from convbench.bench.winners import map_axes, map_backends, map_winners
    from convbench.report.winner_map import as_object, map_caption, map_grid, map_lines, write_map

    ranges = dict(chosen_values(each) for each in over)
    if len(over) != 2 or len(ranges) != 2:
        raise SpecError("--over", " ".join(over), "must be given twice, with two different fields, x and y")
    options, confidence, screen = options_of(given), given["confidence"], Screen()
    require_intervals(options, confidence, points)
    axes = map_axes(line, ranges)
    names = None if backends is None else chosen_backends(backends, family_of(line))
    chosen = map_backends(names)
    folder = new_run_folder(given["out"], "map-" + "-".join(axis.field for axis in axes))
    if not (given["quiet"] or given["as_json"]):
        _announce(screen, axes, len(chosen), line, options, points)

    def show(found: WinnerMap) -> None:
        screen.say(f"{sum(cell.measured for cell in found.cells)} places measured: {map_lines(found)[0]}", "dim")

    def tell(found: WinnerMap) -> None:
        screen.title("The fastest")
        screen.say(map_caption(found), "dim")
        for part in map_grid(found).split(screen.width):
            screen.grid(part)
        for text in map_lines(found):
            screen.say(f"- {text}")

    return searched(
        screen, folder, given, show=show, write=write_map, tell=tell, as_object=as_object,
        find=lambda on_event: map_winners(
            axes[0].case, ranges, chosen, options=options, confidence=confidence, coarse=points, folder=folder,
            on_event=on_event,
        ),
    )  # fmt: skip


def _announce(screen: Screen, axes: Sequence[Axis], backends: int, line: str, options: Options, points: int) -> None:
    from convbench.bench.axes import spread

    coarse = [spread(axis.values, points) for axis in axes]
    screen.say(f"the fastest of {backends} backends over {axes[0].field} and {axes[1].field}: {line}", "bold")
    for axis, values in zip(axes, coarse, strict=True):
        screen.say(f"first {axis.field} {', '.join(map(str, values))}; finer where the winner changes")
    places = len(coarse[0]) * len(coarse[1])
    screen.say(f"{places} places × {backends} backends × {options.passes} passes, then finer · "
               f"{options.budget_s:g} s at most")  # fmt: skip
