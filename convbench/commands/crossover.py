"""``convbench crossover``: where one backend overtakes another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from convbench.commands.parameters import BACKEND, EXIT_CODES, TRANSFERS_HELP, Count
from convbench.commands.searching import chosen_values, measuring_options, options_of, searched
from convbench.report.screen import Screen

if TYPE_CHECKING:
    from convbench.bench.crossover import Crossover
    from convbench.bench.run import Options

__all__ = ["crossover"]

_BUDGET_S = 120.0
_EXAMPLES = """\b
Examples:
  convbench crossover fft direct-numpy --from 3 --to 101 \\
      --spec "n1 c1 o1 i512x512 k3 psame f32"
  convbench crossover im2col torch --spec "n1 c16 o16 i56x56 k3 psame f32" \\
      --over channels=16,32,64,128
  convbench crossover direct direct-cupy --spec "c64 o64 i8x8 k3 psame f32" \\
      --over input_size=8:512 --transfers"""


@click.command(epilog=f"{_EXAMPLES}\n\n{EXIT_CODES}")
@click.argument("first", type=BACKEND)
@click.argument("second", type=BACKEND)
@click.option("--over", default="kernel_size", show_default=True, metavar="FIELD",
              help="What varies: kernel_size, input_size, in_channels, out_channels, channels (both) or batch; "
              "with its values in one, kernel_size=3:101 or kernel_size=3,5,7.")  # fmt: skip
@click.option("--spec", "line", required=True, metavar="LINE", help="All that does not vary.")
@click.option("--from", "low", type=Count(), metavar="N", help="The least value.")
@click.option("--to", "high", type=Count(), metavar="N", help="The greatest value.")
@click.option("--points", type=Count(2), default=7, show_default=True, metavar="N", help="Values in the first round.")
@click.option("--transfers", is_flag=True, help=TRANSFERS_HELP)
@measuring_options(_BUDGET_S)
def crossover(
    first: str,
    second: str,
    over: str,
    line: str,
    low: int | None,
    high: int | None,
    points: int,
    transfers: bool,
    **given: Any,
) -> int:
    """Find where one backend overtakes another.

    FIRST and SECOND are timed at a few values of one field of the spec, then in rounds wherever the winner changes,
    until the last value at which one wins and the first at which the other does are neighbours, or only ties lie
    between them, or the budget is spent.

    Of kernel sizes every one is tried (odd ones with psame), of other fields round values, eight to an octave at most.
    Each round verifies and times as 'convbench run' does; the files are crossover.json, .md, .svg and .png, beside the
    records of all rounds.
    """
    from convbench.bench.axes import axis_of, base_case
    from convbench.bench.crossover import common_values, find_crossover, require_intervals, two_backends
    from convbench.bench.run import new_run_folder
    from convbench.report.crossover import as_object, notes, point_row, points_grid, sentences, write_crossover

    field, values = chosen_values(over, low, high)
    options, confidence, screen = options_of(given), given["confidence"], Screen()
    require_intervals(options, confidence, points)
    axis = axis_of(base_case(line), field, values)  # a mistake leaves no folder behind
    backends = two_backends(first, second)
    names = [backend.name for backend in backends]
    accepted, _ = common_values(axis, backends)
    folder = new_run_folder(given["out"], f"crossover-{names[0]}-{names[1]}")
    grid = points_grid(names[0], names[1], field, confidence)
    if not (given["quiet"] or given["as_json"]):
        _announce(screen, accepted, names, field, str(axis.case), options, points)
        screen.header(grid)
    shown: set[tuple[int, int]] = set()

    def show(found: Crossover) -> None:
        for point in found.measured:
            if (point.value, point.rounds) not in shown:
                screen.row(grid, point_row(found, point))
            shown.add((point.value, point.rounds))

    def tell(found: Crossover) -> None:
        screen.title("Crossover")
        for text in sentences(found):
            screen.say(text, "bold")
        for text in notes(found):
            screen.say(f"- {text}", "yellow")

    return searched(
        screen, folder, given, show=show, write=write_crossover, tell=tell, as_object=as_object,
        find=lambda on_event: find_crossover(
            *backends, axis.case, over=field, values=values, options=options, confidence=confidence, coarse=points,
            transfers=transfers, folder=folder, on_event=on_event,
        ),
    )  # fmt: skip


def _announce(
    screen: Screen, values: tuple[int, ...], names: list[str], field: str, case: str, options: Options, points: int
) -> None:
    from convbench.bench.axes import spread
    from convbench.bench.rounds import SHARE

    coarse = spread(values, points)
    screen.say(f"{names[0]} against {names[1]} over {field}: {case}", "bold")
    screen.say(f"first {field} {', '.join(map(str, coarse))}; then where the winner changes, of {len(values)} values")
    most_s = len(coarse) * len(names) * options.time_limit_s
    if options.budget_s is not None:
        most_s = min(most_s, options.budget_s * SHARE)
    limit = f"{options.budget_s:g} s at most" if options.budget_s else "no limit of time"
    screen.say(f"{options.passes} passes a round · {limit}, of which the first round {most_s:.0f} s at most")
