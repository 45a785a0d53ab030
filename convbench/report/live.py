"""A run as it goes: what is under way, and a row as soon as a pair is verified and timed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from convbench.report.layout import layout_of
from convbench.report.tables import result_row
from convbench.report.text import Column, Grid

if TYPE_CHECKING:
    from convbench.bench.record import Record
    from convbench.report.screen import Screen
    from rich.progress import Progress

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
    quiet : bool
        No rows.
    """

    def __init__(
        self, screen: Screen, bar: Progress | None, cases: Sequence[str], backends: Sequence[str], quiet: bool
    ) -> None:
        self.statuses: dict[tuple[str, str], str] = {}
        self._screen, self._bar, self._quiet = screen, bar, quiet
        self._task = bar.add_task("preparing", total=None) if bar else None
        self._layout = layout_of(cases)
        if self._layout.varies or len(cases) == 1:
            labels = self._layout.labels.values()
        else:
            labels = self._layout.labels.values()
        self._grid = Grid(
            [
                Column("case", right=False, least=max(map(len, labels))),
                Column("backend", right=False, least=max(map(len, backends))),
                Column("time", least=8),
                Column("error", least=7),
                Column("bound", least=7),
                Column("status", right=False),
            ]
        )
        self._begun = False

    def __call__(self, event: Any) -> None:
        """Take one event of :func:`convbench.bench.run.run_cases`."""
        handler = getattr(self, f"_on_{type(event).__name__}", None)
        if handler is not None:
            handler(event)

    def _on_Started(self, event: Any) -> None:
        self._update(total=event.total)

    def _on_PassStarted(self, event: Any) -> None:
        self._update(description=f"pass {event.index} of {event.passes}")

    def _on_PairDone(self, event: Any) -> None:
        self._show(event.record)
        self._update(completed=event.done, total=event.total)

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
        self._screen.row(self._grid, result_row(record.to_dict(), self._layout.labels[record.case], time_s))
