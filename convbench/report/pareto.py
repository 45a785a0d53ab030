"""Error against time: which backends of a case nothing else is both faster and more exact than."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from convbench.report import drawing
from convbench.report.plots import drawable_times, styles
from convbench.report.tables import layout_of_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Point", "front", "pareto_plot"]

_PANELS = 6  # cases in one picture
_MOST_LABELS = 8


class Point(NamedTuple):
    """A backend on one case; less is better of both figures."""

    backend: str
    time_s: float
    error: float


def front(points: Iterable[Point]) -> list[Point]:
    """Return the points that no other one dominates, the fastest first.

    A point is dominated by one that is at least as good in both figures and better in one. Points alike in both
    stay together.

    >>> [point.backend for point in front([Point("a", 1, 9), Point("b", 2, 3), Point("c", 3, 3), Point("d", 4, 1)])]
    ['a', 'b', 'd']
    """
    chosen: list[Point] = []
    for point in sorted(points, key=lambda point: (point.time_s, point.error)):
        if not chosen or point.error < chosen[-1].error or point[1:] == chosen[-1][1:]:
            chosen.append(point)
    return chosen


def pareto_plot(table: pd.DataFrame) -> Figure | None:
    """Draw error against time of up to six cases, spread evenly over the run's, with the front as a step line.

    None where no case has two backends with a time and an error.
    """
    shown = drawable_times(table)
    shown = shown[shown["error_max_eps"].notna()]
    counts = shown.groupby("case", sort=False)["backend"].nunique()
    cases = [case for case in dict.fromkeys(table["case"]) if counts.get(case, 0) > 1]
    if not cases:
        return None
    chosen = _spread(cases, _PANELS)
    layout, looks = layout_of_table(table), styles(table)
    panels = [[Point(row["backend"], row["time_s"], row["error_max_eps"]) for row in rows] for rows in
              (shown[shown["case"] == case].to_dict("records") for case in chosen)]  # fmt: skip
    floor = _floor(panels)
    figure, axes = drawing.panels(len(chosen), drawing.panels_height_in(len(chosen)))
    for axis, case, points in zip(axes, chosen, panels, strict=True):
        _panel(axis, points, looks, floor)
        axis.set_title(textwrap.fill(layout.labels[case], 34), fontsize=9)
    drawing.name_axes(axes, "time of one call", drawing.ERROR_TITLE)
    exact = any(point.error <= 0 for points in panels for point in points)
    note = "lower left is better; line: the front, beyond which no backend is both faster and more exact"
    notes = [layout.common, note + "; at the lower edge: exact" * exact, *_left_out(len(cases), len(chosen))]
    drawing.head(figure, "Error against time: the Pareto front", [line for line in notes if line])
    return figure


def _left_out(there: int, chosen: int) -> list[str]:
    return [f"{chosen} of {there} cases; index.html has each of them"] * (chosen < there)


def _spread(cases: Sequence[str], count: int) -> list[str]:
    """Return at most ``count`` of them, the first and the last among them.

    >>> _spread("abcdefghij", 4)
    ['a', 'd', 'g', 'j']
    """
    if len(cases) <= count:
        return list(cases)
    return [cases[round(place * (len(cases) - 1) / (count - 1))] for place in range(count)]


def _floor(panels: Sequence[Sequence[Point]]) -> float:
    """Return where a log axis shows zero."""
    positive = [point.error for points in panels for point in points if point.error > 0]
    return min(positive) / 2 if positive else 0.01


def _panel(axis: Axes, points: Sequence[Point], looks: Mapping[str, Mapping[str, Any]], floor: float) -> None:
    """Draw the front with its names; what is behind it stays faint and without one."""
    best = front(points)
    names = {point.backend for point in best}
    steps = [(point.time_s, max(point.error, floor)) for point in best]
    axis.plot(*zip(*steps, strict=True), drawstyle="steps-post", color="#444444", linewidth=1.2, zorder=1)
    for point in points:
        ahead = point.backend in names
        look = drawing.marker(looks[point.backend]) | {"markersize": 6.5 if ahead else 4}
        axis.plot(point.time_s, max(point.error, floor), linestyle="none", alpha=1 if ahead else 0.45, **look)
    axis.set(xscale="log", yscale="log")
    axis.margins(x=0.12, y=0.12)
    for number, (point, (time_s, error)) in enumerate(zip(best[:_MOST_LABELS], steps, strict=False)):
        below = number % 2  # neighbours on the front do not write over each other
        axis.annotate(
            point.backend, (time_s, error), (5, -9 if below else 5), textcoords="offset points", fontsize=7.5,
            va="center", clip_on=False,
        )  # fmt: skip
    drawing.log_ticks(axis.xaxis, drawing.time_tick)
    drawing.log_ticks(axis.yaxis, drawing.count_tick)
