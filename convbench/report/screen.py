"""The terminal: coloured tables, live progress on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.text import Text

from convbench.report.text import Grid, Row

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

__all__ = ["Screen"]


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Leave what a closed pipe means to the command line, as Python does."""
        raise BrokenPipeError


class Screen:
    """Writes to standard output, to the terminal's width or, in a pipe, to any width and without colours.

    Parameters
    ----------
    to_stderr : bool
        Write everything to standard error, where standard output is for something else.

    Attributes
    ----------
    width : int or None
        Characters a line; None where nothing limits them.
    live : bool
        Is a person looking at a terminal?
    """

    def __init__(self, to_stderr: bool = False) -> None:
        self._console = _Console(highlight=False, markup=False, emoji=False, stderr=to_stderr)
        self._errors = _Console(highlight=False, markup=False, emoji=False, stderr=True)
        self.live = self._console.is_terminal and (sys.stderr if to_stderr else sys.stdout).isatty()
        self.width = self._console.width if self.live else None

    def say(self, text: str = "", style: str = "") -> None:
        """Print a line of prose, wrapped on a terminal."""
        self._console.print(Text(text, style=style), soft_wrap=not self.live)

    def note(self, text: str) -> None:
        """Print a remark on standard error."""
        self._errors.print(Text(f"note: {text}", style="yellow"), soft_wrap=True)

    def title(self, text: str) -> None:
        """Print a heading with a blank line before it."""
        self.say()
        self.say(text, "bold")

    def grid(self, grid: Grid) -> None:
        """Print a table."""
        self._pieces(grid.lines(self.width))
        left_out = [grid.columns[i].title for i in range(len(grid.columns)) if i not in grid.kept(self.width)]
        if left_out:
            self.say(f"(no room for {', '.join(left_out)}: widen the terminal, or see the files)", "dim")

    def header(self, grid: Grid) -> None:
        """Print the header of a table whose rows come one by one."""
        self._pieces([next(grid.lines(self.width))])

    def row(self, grid: Grid, row: Row) -> None:
        """Print one row of such a table."""
        self._pieces(grid.row_lines(row, self.width))

    def _pieces(self, lines: Iterable[list[tuple[str, str]]]) -> None:
        for line in lines:
            self._console.print(Text.assemble(*line), soft_wrap=True)

    @contextmanager
    def progress(self, budget_s: float, quiet: bool = False) -> Iterator[Progress | None]:
        """Show a bar with the remaining time below what is printed; None if quiet or not on a terminal.

        While a task is "steady" (a field of it), each of its steps as long as another, the remaining time is reckoned
        from those done; else all that is known is what ``budget_s`` leaves, and that is the most at any time.
        """
        if quiet or not self.live:
            yield None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _remaining(budget_s))
        with Progress(*columns, console=self._console, transient=True) as bar:
            yield bar

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Show on a terminal that something is under way."""
        if not self.live:
            yield
            return
        with self._console.status(text):
            yield


def _remaining(budget_s: float) -> ProgressColumn:
    from rich.progress import ProgressColumn, Task

    class Remaining(ProgressColumn):
        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            left_s = budget_s - (task.elapsed or 0.0)
            if left_s < 0:
                return Text(f"{-left_s:.0f} s over the budget")
            if task.fields.get("steady") and task.time_remaining is not None:
                return Text(f"about {min(left_s, task.time_remaining):.0f} s left")
            return Text(f"at most {left_s:.0f} s left" if left_s < float("inf") else "")

    return Remaining()
