"""What searches have in common, ``convbench crossover`` and ``convbench map``: options, progress, files, the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from convbench.commands.parameters import FOLDER, Count, Seconds, Size
from convbench.commands.results import removed_if_empty
from convbench.errors import SpecError
from convbench.report.screen import Screen

if TYPE_CHECKING:
    from rich.progress import Progress

    from convbench.bench.run import Event, Options

__all__ = ["RoundBar", "chosen_values", "measuring_options", "options_of", "refuse_search", "searched"]

Command = Callable[..., Any]


def measuring_options(budget_s: float) -> Callable[[Command], Command]:
    """Return a decorator that adds the options of how to measure, which :func:`options_of` reads."""
    options = (
        click.option("--budget", type=Seconds(), default=budget_s, show_default=True, metavar="S",
                     help="Seconds for all rounds together."),
        click.option("--threads", type=Count(), metavar="N", help="Default: every core."),
        click.option("--passes", type=Count(2), default=6, show_default=True, metavar="N",
                     help="Of each round; a win needs an interval, and an interval two at least."),
        click.option("--time-limit", type=Seconds(), default=5, show_default=True, metavar="S",
                     help="Seconds for one pair in one round; what is predicted to need more is skipped."),
        click.option("--memory-limit", type=Size(), default="2GiB", show_default=True, metavar="SIZE",
                     help="Skip a pair if it needs more."),
        click.option("--out", type=FOLDER, default="results", show_default=True, metavar="DIR",
                     help="A folder for this search is made in it."),
        click.option("--confidence", type=float, default=0.99, show_default=True, metavar="P",
                     help="Of the intervals from which a win is called, two-sided."),
        click.option("--quiet", is_flag=True, help="No plan, no progress and no rows as they come."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON and nothing else."),
    )  # fmt: skip

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def options_of(given: dict[str, Any]) -> Options:
    """Return the options of a run from those of a command."""
    from convbench.bench.run import Options

    return Options(
        threads=given["threads"],
        passes=given["passes"],
        time_limit_s=given["time_limit"],
        memory_limit_bytes=given["memory_limit"],
        budget_s=given["budget"],
    )


def chosen_values(over: str, low: int | None = None, high: int | None = None) -> tuple[str, str | None]:
    """Return the field and its values as they are written.

    >>> chosen_values("kernel_size=3,5"), chosen_values("batch", 1, 8), chosen_values("batch")
    (('kernel_size', '3,5'), ('batch', '1:8'), ('batch', None))
    """
    from convbench.bench.axes import AXES

    field, equals, values = over.partition("=")
    field = field.strip().replace("-", "_")
    if equals and (low, high) != (None, None):
        raise SpecError("--over", over, "gives the values, so leave out --from and --to")
    if equals or (low, high) == (None, None) or field not in AXES:
        return field, values.strip() if equals else None
    _, usual, _ = AXES[field]
    return field, f"{usual[0] if low is None else low}:{usual[1] if high is None else high}"


class Result(Protocol):
    """What a search has found."""

    @property
    def statuses(self) -> Sequence[str]:
        """Of all timings."""


Found = TypeVar("Found", bound=Result)


def searched(
    screen: Screen,
    folder: Path,
    given: Mapping[str, Any],
    *,
    find: Callable[[Callable[[Event], None]], Found],
    show: Callable[[Found], None],
    write: Callable[[Found, Path, Callable[[str], None]], list[Path]],
    tell: Callable[[Found], None],
    as_object: Callable[[Found], Mapping[str, Any]],
) -> int:
    """Search, write the files, print the result, and return the command's exit code.

    Parameters
    ----------
    screen : Screen
    folder : Path
        Of the search; removed if nothing came of it.
    given : mapping
        The command's options, see :func:`measuring_options`.
    find : callable
        Does the search, and tells its events to what it is given.
    show, tell : callable
        Print what is known after a round, unless quiet, and the result at the end.
    write : callable
        Writes the files of a result to a folder and returns them; the last argument receives remarks.
    as_object : callable
        The result as JSON has it, for --json.
    """
    quiet = given["quiet"] or given["as_json"]
    bar = RoundBar(screen, given["budget"], quiet, show)
    interrupted = False
    with removed_if_empty(folder):
        try:
            found = find(bar)
        except KeyboardInterrupt:
            if bar.result is None:
                raise
            found, interrupted = bar.result, True
        finally:
            bar.close()
    written = write(found, folder, screen.note)
    if given["as_json"]:
        click.echo(json.dumps(as_object(found), ensure_ascii=False))
    else:
        tell(found)
        screen.say(f"{folder}: {', '.join(path.name for path in written)}", "dim")
    if interrupted:
        screen.note("interrupted: what was measured until now is kept")
        return 130
    return int(_trouble(found.statuses))


def _trouble(statuses: Iterable[str]) -> bool:
    """Return whether any of these makes a command fail."""
    from convbench.bench.record import STATUSES

    return any(STATUSES.get(status, True) for status in statuses)


def refuse_search(folder: Path) -> None:
    """Raise SpecError if this is the folder of a search: its rounds are runs, but the whole is none to go on with."""
    from convbench.bench.crossover import CROSSOVER_FILE
    from convbench.bench.rounds import ROUNDS_FOLDER
    from convbench.bench.winners import MAP_FILE

    for name, command in ((CROSSOVER_FILE, "crossover"), (MAP_FILE, "map"), (ROUNDS_FOLDER, "crossover")):
        if (folder / name).exists():
            rule = (
                f"is the folder of a search (it has {name}), and a search cannot be resumed; see its results with "
                f"'convbench report', or search anew with 'convbench {command}'"
            )
            raise SpecError("--resume", str(folder), rule)


class RoundBar:
    """Listens to a search: a bar with the remaining time for each round, then what the round found.

    Parameters
    ----------
    screen : Screen
    budget_s : float
    quiet : bool
        No bar, and nothing shown.
    show : callable
        Called with the result as it is after each round.
    """

    def __init__(self, screen: Screen, budget_s: float, quiet: bool, show: Callable[[Any], None]) -> None:
        self.result: Any = None
        self._screen, self._left_s, self._quiet, self._show = screen, budget_s, quiet, show
        self._context: AbstractContextManager[Progress | None] | None = None
        self._bar: Progress | None = None
        self._task: Any = None
        self._round = ""

    def __call__(self, event: Event) -> None:
        """Take one event of the search or of the run that is under way."""
        from convbench.bench.rounds import RoundDone, RoundStarted
        from convbench.bench.run import PassStarted

        match event:
            case RoundStarted():
                self._round = f"round {event.number}, {len(event.cases)} case{'s' * (len(event.cases) > 1)}"
                self._open(event.budget_s)
            case RoundDone():
                self.close()
                self.result = event.result
                if not self._quiet:
                    self._show(event.result)
            case PassStarted():
                self._update(description=f"{self._round}: pass {event.number} of {event.passes}")
            case _:
                given = {"completed": getattr(event, "done", None), "total": getattr(event, "total", None)}
                self._update(**{name: count for name, count in given.items() if count is not None})

    def _open(self, budget_s: float | None) -> None:
        self.close()
        self._context = self._screen.progress(self._left_s if budget_s is None else budget_s, self._quiet)
        self._bar = self._context.__enter__()
        self._task = self._bar.add_task(f"{self._round}: verifying", total=None) if self._bar else None

    def _update(self, **changes: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, **changes)

    def close(self) -> None:
        """Take the bar away."""
        if self._context is not None:
            self._context.__exit__(None, None, None)
        self._context = self._bar = None
