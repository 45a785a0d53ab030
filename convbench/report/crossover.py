"""Where one backend overtakes another: in words, as a table, as a plot."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbench.bench.crossover import ALIKE, CROSSOVER_FILE, Crossing, Crossover, Point, load_crossover
from convbench.errors import MissingDependency
from convbench.report import drawing
from convbench.report.text import DASH, Column, Grid, Row, human_number, human_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "as_object",
    "crossover_plot",
    "notes",
    "passes_text",
    "point_row",
    "points_grid",
    "redraw",
    "sentences",
    "write_crossover",
]

_LISTED = 6  # values; of more only the first and the last
_SENTENCES, _CHARACTERS = 4, 125  # above a plot
_GREY = "#777777"


def sentences(found: Crossover) -> list[str]:
    """Say in words what was found, the crossings first.

    The field's name stands as it is typed, "kernel_size 17".
    """
    span = f"between {found.over} {found.values[0]} and {found.values[-1]}"
    known = [point for point in found.measured if point.verdict != "unknown"]
    if not known:
        return [f"nothing to compare {span}: at no value do both have a time"]
    crossings = found.crossings
    if not crossings:
        return [_no_crossing(found, known, span)]
    lines = [f"{len(crossings)} crossings {span}:"] * (len(crossings) > 1)
    lines += [_crossing_sentence(found, crossing) for crossing in crossings]
    return [*lines, *_ties_at_the_ends(found, known)]


def _crossing_sentence(found: Crossover, crossing: Crossing) -> str:
    text = (
        f"{crossing.above} overtakes {crossing.below} at {found.over} ≈ {human_number(crossing.value)}: "
        f"{crossing.below} is faster at {crossing.low}, {crossing.above} at {crossing.high}"
    )
    if crossing.ties:
        text += f", and between them is a tie ({_listing(crossing.ties)})"
    return text if crossing.settled else f"{text}; not narrowed further, the time was spent"


def _no_crossing(found: Crossover, known: Sequence[Point], span: str) -> str:
    wins = [point for point in known if point.decided]
    ties = [point.value for point in known if point.verdict == "tie"]
    if not wins:
        ratios = sorted(point.ratio for point in known)
        spread = "–".join(dict.fromkeys(human_number(ratio) for ratio in (ratios[0], ratios[-1])))
        at = f"at {_listing(ties)} ({len(ties)} value{'s' * (len(ties) > 1)})"
        return f"no crossing {span}: a tie {at}; {found.first} takes {spread}× as long as {found.second}"
    times = [max(point.ratio, 1 / point.ratio) for point in wins]
    by = human_number(min(times)) + (f"–{human_number(max(times))}" if len(times) > 1 else "")
    winner = getattr(found, wins[0].verdict)
    if not ties:
        return f"no crossing {span}: {winner} is faster throughout (by {by}×)"
    at = _listing([point.value for point in wins])
    return f"no crossing {span}: {winner} is faster at {at} (by {by}×), a tie at {_listing(ties)}"


def _ties_at_the_ends(found: Crossover, known: Sequence[Point]) -> list[str]:
    decided = [point.value for point in known if point.decided]
    below = [point.value for point in known if point.value < decided[0]]
    above = [point.value for point in known if point.value > decided[-1]]
    return [f"a tie at {found.over} {_listing(values)}" for values in (below, above) if values]


def _listing(values: Sequence[int]) -> str:
    if len(values) <= _LISTED:
        return ", ".join(map(str, values))
    return f"{values[0]}, {values[1]} … {values[-1]}"


def notes(found: Crossover) -> list[str]:
    """Say what is missing and why: refusals, pairs without a time, a search cut short."""
    lines = ["times on a GPU hold the sending of all operands and the fetching of the result"] * found.transfers
    for name, reasons in found.refused.items():
        topics = _grouped((reason.partition(":")[0], value) for value, reason in reasons.items())
        for values in topics.values():  # reasons name sizes, so that each is another one
            lines.append(f"{name} refuses {found.over} {_listing(values)}: {reasons[values[0]]}")
    troubles = [(f"{getattr(found, who)}", text, p) for p in found.measured for who, text in p.trouble]
    for name, text, point in troubles:
        counted = " (counted as slower)" if point.predicted else ""
        lines.append(f"{name} at {found.over} {point.value}: {text}{counted}")
    lines += _wide_ties(found)
    if not found.finished:
        lines.append("the time was spent before the search was done: a larger --budget may narrow it")
    return lines


def _wide_ties(found: Crossover) -> list[str]:
    """Say which ties rest on so little that the two may well differ, and how many passes these have."""
    wide = [point for point in found.measured if point.verdict == "tie" and not point.known_alike]
    if not wide:
        return []
    values, passes = _listing([point.value for point in wide]), passes_text([point.passes for point in wide])
    return [
        f"undecided at {found.over} {values}: with {passes} a difference "
        f"of more than {human_number(ALIKE)}× is left open; give more --budget"
    ]


def passes_text(counts: Sequence[int]) -> str:
    """Say how many there are: "2 passes", "2–3 passes".

    >>> passes_text([1, 1]), passes_text([3, 2])
    ('1 pass', '2–3 passes')
    """
    least, most = min(counts), max(counts)
    return f"{least} pass{'es' * (least != 1)}" if least == most else f"{least}–{most} passes"


def as_object(found: Crossover) -> dict[str, Any]:
    """Return the result as crossover.json and --json have it: with what it comes to, in words."""
    return {**found.to_dict(), "sentences": sentences(found), "notes": notes(found)}


def _grouped(pairs: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def points_grid(first: str, second: str, over: str, confidence: float) -> Grid:
    """Return the table of points, without rows."""
    return Grid(
        [
            Column(over),
            Column(first, least=8),
            Column(second, least=8),
            Column(f"{first} / {second}"),
            Column(f"{100 * confidence:g} % interval", least=13),
            Column("faster", right=False, least=max(len(first), len(second))),
            Column("passes", drop=1),
        ]
    )


def point_row(found: Crossover, point: Point) -> Row:
    """Return one row of that table."""
    first, second = (_time_cell(timing) for timing in (point.first, point.second))
    interval = DASH
    if not math.isnan(point.low):
        interval = f"{human_number(point.low)}–{human_number(point.high)}"
    ratio = human_number(point.ratio) if not point.predicted else f"≈ {human_number(point.ratio)}"
    faster = getattr(found, point.verdict) if point.decided else point.verdict
    if point.verdict == "tie" and not point.known_alike:
        faster = "undecided"
    faster += " (predicted)" * point.predicted
    cells = (str(point.value), first, second, ratio, interval, faster, str(point.passes))
    return Row(cells, style="" if point.decided else "dim")


def _time_cell(timing: Any) -> str:
    if timing.time_s is not None:
        return human_seconds(timing.time_s)
    return f"≈ {human_seconds(timing.predicted_s)}" if timing.predicted_s else str(timing.status)


def write_crossover(found: Crossover, folder: Path, note: Callable[[str], None]) -> list[Path]:
    """Write crossover.json, crossover.md, and the plot as SVG and PNG; return what was written.

    ``note`` receives one line for what a missing library costs.
    """
    data, page = folder / CROSSOVER_FILE, folder / "crossover.md"
    data.write_text(json.dumps(as_object(found), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    grid = points_grid(found.first, found.second, found.over, found.confidence)
    grid.rows += [point_row(found, point) for point in found.measured]
    parts = [
        f"# {found.first} and {found.second} over {found.over}",
        f"All else as in `{found.case}`. Times are of one call, weights prepared; ratios are paired within passes.",
        "\n".join(f"- {line}" for line in (*sentences(found), *notes(found))),
        grid.markdown(),
    ]
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    try:
        return [data, page, *drawing.save({"crossover": lambda: crossover_plot(found)}, folder)]
    except MissingDependency as missing:
        note(str(missing))
        return [data, page]


def redraw(folder: Path, note: Callable[[str], None]) -> list[Path]:
    """Write a search's files anew from its crossover.json; nothing where there is none."""
    return write_crossover(load_crossover(folder), folder, note) if (folder / CROSSOVER_FILE).exists() else []


# -- the plot ------------------------------------------------------------------------------------------


def crossover_plot(found: Crossover) -> Figure | None:
    """Draw the ratio of the times against the value, with intervals; what lies between two winners is shaded."""
    from matplotlib.figure import Figure

    shown = [point for point in found.measured if point.ratio > 0]
    if not shown:
        return None
    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    axis = figure.subplots()
    axis.set(xscale="log", yscale="log")
    axis.axhline(1, color="#444444", linewidth=1.2, zorder=1)
    _crossings(axis, found)
    axis.plot([p.value for p in shown], [p.ratio for p in shown], color="#bbbbbb", linewidth=1, zorder=1.5)
    for label, style, points in _kinds(found, shown):
        if not points:
            continue
        values = [point.value for point in points]
        bars = [point for point in points if not math.isnan(point.low)]
        axis.vlines([p.value for p in bars], [p.low for p in bars], [p.high for p in bars], color=style["color"],
                    linewidth=1.6, zorder=2)  # fmt: skip
        axis.plot(values, [p.ratio for p in points], linestyle="none", label=label, zorder=3, markersize=6, **style)
    _sides(axis, found, shown)
    drawing.value_ticks(axis, [point.value for point in found.measured], 6.0)
    axis.set(xlabel=found.over.replace("_", " "), ylabel=f"time of {found.first} / {found.second}")
    drawing.log_ticks(axis.yaxis, lambda value: f"{value:.3g}×")
    told = sentences(found)
    told = told if len(told) <= _SENTENCES else [f"{told[0].rstrip(':')}, see crossover.md"]
    lines = [line for text in (found.case, *told) for line in textwrap.wrap(text, _CHARACTERS)]
    drawing.head(figure, f"{found.first} against {found.second} over {found.over.replace('_', ' ')}", lines)
    figure.legend(loc="outside right center", fontsize=8.5)
    return figure


def _kinds(found: Crossover, shown: Sequence[Point]) -> list[tuple[str, dict[str, Any], list[Point]]]:
    def of(verdict: str, predicted: bool) -> list[Point]:
        return [point for point in shown if point.verdict == verdict and point.predicted == predicted]

    first, second, tie = drawing.coloured(0), drawing.coloured(1), {"color": _GREY, "marker": "D"}
    hollow = {"markerfacecolor": "white"}
    return [
        (f"{found.first} is faster", first, of("first", False)),
        (f"{found.second} is faster", second, of("second", False)),
        ("tie", tie | hollow, of("tie", False)),
        (f"{found.second} skipped:\npredicted too slow", first | hollow, of("first", True)),
        (f"{found.first} skipped:\npredicted too slow", second | hollow, of("second", True)),
    ]


def _crossings(axis: Axes, found: Crossover) -> None:
    """Shade what lies between two winners, and draw a line at each estimate."""
    for number, crossing in enumerate(found.crossings):
        shade = f"between the last win of one\nand the first of the other\n({100 * found.confidence:g} % intervals)"
        axis.axvspan(crossing.low, crossing.high, color="#56B4E9", alpha=0.25, linewidth=0, zorder=0.5,
                     label="" if number else shade)  # fmt: skip
        axis.axvline(crossing.value, color="#000000", linestyle=(0, (5, 3)), linewidth=1.2, zorder=1,
                     label="" if number else "crossover, estimated")  # fmt: skip
        axis.annotate(f" {human_number(crossing.value)}", (crossing.value, 1), xycoords=("data", "axes fraction"),
                      va="top", fontsize=9)  # fmt: skip


def _sides(axis: Axes, found: Crossover, shown: Sequence[Point]) -> None:
    """Leave room on both sides of 1, and say what it means to be there."""
    ends = [end for p in shown for end in (p.ratio, p.low, p.high) if end == end]
    low, high = min(*ends, 0.87), max(*ends, 1.15)
    axis.set_ylim(low * (low / high) ** 0.08, high * (high / low) ** 0.08)
    for height, name, place in ((0.02, found.first, "bottom"), (0.98, found.second, "top")):
        axis.text(0.008, height, f"{name} faster", transform=axis.transAxes, va=place, fontsize=9, color="#444444",
                  style="italic")  # fmt: skip
