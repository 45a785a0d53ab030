"""A run as it goes: what is under way, and a row as soon as a pair is verified and timed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from convbench.bench.record import ENVIRONMENT_FILE
from convbench.bench.run import Event, PairDone, PairVerified, PassStarted, Started
from convbench.report import machine
from convbench.report.layout import layout_of
from convbench.report.tables import result_row
from convbench.report.text import Column, Grid, shorten

if TYPE_CHECKING:
    from rich.progress import Progress

    from convbench.bench.record import Record
    from convbench.report.screen import Screen

__all__ = ["Live"]

#: Settled without a call, known before the run: left to the table at the end.
_UNSEEN = ("unsupported", "unavailable")


class Live:
    """Listens to a run's events and shows them.

    A pair's row appears in the first pass; later passes add samples to it, and the table at the end has them all. A
    row appears again only if its status changes.

    Parameters
    ----------
    screen : Screen
    bar : Progress or None
        Where the remaining time is shown; in a pipe each row is numbered instead.
    cases, backends : sequence of str
        What will run.
    folder : Path
        The run's; it names the machine.
    quiet : bool
        No rows.
    """

    def __init__(
        self,
        screen: Screen,
        bar: Progress | None,
        cases: Sequence[str],
        backends: Sequence[str],
        folder: Path,
        quiet: bool,
    ) -> None:
        self.statuses: dict[tuple[str, str], str] = {}
        self._screen, self._bar, self._folder, self._quiet = screen, bar, folder, quiet
        self._task = bar.add_task("preparing", total=None) if bar else None
        half = screen.width and screen.width // 2
        self._labels = {case: shorten(label, half) for case, label in layout_of(cases).labels.items()}
        self._grid = Grid(
            [
                Column("case", right=False, least=max(map(len, self._labels.values()))),
                Column("backend", right=False, least=max(map(len, backends))),
                Column("time", least=8),
                Column("error", least=7),
                Column("bound", least=7),
                Column("status", right=False),
            ]
        )
        self._begun = False

    def __call__(self, event: Event) -> None:
        """Take one event of :func:`convbench.bench.run.run_cases`."""
        match event:
            case Started():
                self._update(total=event.total)
                self._name_machine(event)
            case PairVerified():
                self._update(description="verifying", completed=event.done, total=event.total)
            case PassStarted():
                self._update(description=f"pass {event.number} of {event.passes}", steady=True)
            case PairDone():
                self._show(event.record)
                self._update(completed=event.done, total=event.total)  # twins add to it

    def _name_machine(self, event: Started) -> None:
        if not self._quiet:
            for name, reason in event.missing.items():
                self._screen.say(f"not here: {name}: {reason}", "yellow")
            environment = json.loads((self._folder / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
            self._screen.say(machine(environment))
            self._screen.say(f"records go to {self._folder}", "dim")

    def _update(self, **changes: Any) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, **changes)

    def _show(self, record: Record) -> None:
        pair = (record.case, record.backend)
        news = self.statuses.get(pair) != record.status
        self.statuses[pair] = record.status
        if not news or self._quiet or record.status in _UNSEEN:
            return
        if not self._begun:
            self._screen.header(self._grid)
            self._begun = True
        time_s = median(record.samples_s) if record.samples_s else None
        self._screen.row(self._grid, result_row(record.to_dict(), self._labels[record.case], time_s))
