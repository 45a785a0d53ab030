"""Plots of a run: time, speed-up, and error against time. Figures only, nothing global; matplotlib comes in late.

What is drawn depends on how much there is. Lines where one number varies; with many backends those that are ever the
fastest in colour, the others thin and grey. Dots for a few unlike cases; a heat map for more than a reader can tell
apart as dots.
"""

from __future__ import annotations

import math
import textwrap
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbench.report import drawing
from convbench.report.layout import Layout, axes_of, data_title
from convbench.report.tables import backend_order, layout_of_table
from convbench.report.text import missing, shorten

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["drawable_times", "error_plot", "leaders_by_case", "save_plots", "speedup_plot", "styles", "time_plot"]

_MANY_CASES, _MANY_PANELS = 16, 6  # more than these are drawn in another way
_LINE = 3  # values that make a line
_LABEL_CHARACTERS = 64


@dataclass(frozen=True)
class _Measure:
    """What stands on an axis: a column of the table with its interval; and as colours, between these steps."""

    column: str
    low: str
    high: str
    title: str
    tick: Callable[[float], str]
    steps: tuple[float, ...]
    palette: str
    heat_title: str
    interval: str


#: ColorBrewer's palettes, told apart with any colour vision; a deep colour stands for what is good.
_TIME = _Measure(
    "time_s", "low_s", "high_s", "time of one call", drawing.time_tick,
    (1, 1.2, 2, 5, 10, 30, 100), "YlGnBu_r", "Time over that of the fastest, case by case", "95 % interval",
)  # fmt: skip
_SPEEDUP = _Measure(
    "speedup", "speedup_low", "speedup_high", "speed-up", lambda value: f"{value:.3g}×",
    (0, 0.1, 0.5, 0.9, 1.1, 2, 10), "PuOr", "", "99 % interval",
)  # fmt: skip


def save_plots(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write time, speed-up, error and Pareto plots as SVG and PNG.

    Parameters
    ----------
    table : DataFrame
        From :func:`convbench.report.tables.figures`.
    folder : Path

    Returns
    -------
    list of Path
        What was written; nothing where no pair has a time (or, for the speed-ups, no baseline).

    Raises
    ------
    MissingDependency
        Without matplotlib.
    """
    from convbench.report.pareto import pareto_plot

    drawn = (("time", time_plot), ("speedup", speedup_plot), ("error", error_plot), ("pareto", pareto_plot))
    return drawing.save({name: partial(draw, table) for name, draw in drawn}, folder)


def time_plot(table: pd.DataFrame) -> Figure | None:
    """Draw time against the varying number (log axes, 95 % intervals), or a dot or a cell for each case and backend."""
    return _comparison(table, _TIME, "Time of one call", "less is better")


def speedup_plot(table: pd.DataFrame) -> Figure | None:
    """Draw the speed-up over the baseline likewise, with a line at 1."""
    baselines = [name for name in table["baseline"].unique() if not missing(name)]
    return _comparison(table, _SPEEDUP, f"Speed-up over {baselines[0]}", "more is better") if baselines else None


def error_plot(table: pd.DataFrame) -> Figure | None:
    """Draw the error of each pair against its time, in units of the dtype's eps, a bar at each bound.

    Many backends have a row each, and no time.
    """
    layout, looks = layout_of_table(table), styles(table)
    table = drawable_times(table).dropna(subset="error_max_eps")
    if table.empty:
        return None
    if table["backend"].nunique() > drawing.MANY_BACKENDS:
        return _error_rows(table, layout, list(looks))
    panels = {name: list(panel.values()) for name, panel in _panels(layout, table)} or {"": list(layout.labels)}
    figure, axes = drawing.panels(len(panels))
    errors, floor = _errors(table)
    for axis, (name, cases) in zip(axes, panels.items(), strict=True):
        shown = table[table["case"].isin(cases)]
        for backend, rows in shown.groupby("backend", sort=False):
            style = looks[str(backend)]
            axis.plot(
                rows["time_s"],
                errors[rows.index].clip(lower=floor),
                label=backend,
                linestyle="none",
                alpha=0.85,
                **drawing.marker(style),
            )
            axis.plot(rows["time_s"], rows["error_bound_eps"], "_", color=style["color"], alpha=0.35, markersize=7)
        axis.set(xscale="log", yscale="log", title=data_title(name))
        drawing.log_ticks(axis.xaxis, drawing.time_tick)
        drawing.log_ticks(axis.yaxis, drawing.count_tick)
    drawing.name_axes(axes, _TIME.title, drawing.ERROR_TITLE)
    exact = ", at the lower edge: exact" if (errors <= 0).any() else ""
    note = f"lower left is better; bar: a-priori bound{exact}"
    _finish(figure, axes, list(looks), "Error against time", layout, note)
    return figure


def _errors(table: pd.DataFrame) -> tuple[pd.Series[float], float]:
    """Return the errors, and where a log axis shows zero."""
    errors = table["error_max_eps"].astype(float)
    positive = errors[errors > 0]
    return errors, float(positive.min()) / 2 if len(positive) else 0.01


def _error_rows(table: pd.DataFrame, layout: Layout, names: Sequence[str]) -> Figure:
    """Draw a row a backend, its cases as dots; the most exact backend on top."""
    errors, floor = _errors(table)
    medians = errors.groupby(table["backend"]).median()
    names = sorted((name for name in names if name in medians), key=lambda name: -medians[name])
    figure, (axis,) = drawing.panels(1, height_in=1.8 + 0.2 * len(names))
    heights = table["backend"].map({name: place for place, name in enumerate(names)})
    axis.plot(table["error_bound_eps"], heights, "|", color="#D55E00", alpha=0.6, markersize=8, label="a-priori bound")
    shown = errors.clip(lower=floor)
    axis.plot(shown, heights, "o", color="#0072B2", alpha=0.45, markersize=4, markeredgewidth=0, label="a case")
    middles = [max(medians[name], floor) for name in names]
    axis.plot(middles, range(len(names)), "d", color="#000000", markersize=5, label="median of its cases")
    axis.set(xscale="log", xlabel=drawing.ERROR_TITLE, ylim=(-0.7, len(names) - 0.3))
    axis.set_yticks(range(len(names)), names, fontsize=8.5)
    drawing.log_ticks(axis.xaxis, drawing.count_tick)
    exact = ", at the left edge: exact" if (errors <= 0).any() else ""
    keys = ["a case", "median of its cases", "a-priori bound"]
    _finish(figure, [axis], keys, "Error of each backend", layout, f"less is better{exact}")
    return figure


# -- one measure: lines over a sweep, dots, or a heat map --------------------------------------------


def _comparison(table: pd.DataFrame, measure: _Measure, title: str, note: str) -> Figure | None:
    shown = _drawable(table, measure)
    if shown.empty:
        return None
    layout, looks = _sweep(layout_of_table(table)), styles(table)
    panels = _panels(layout, shown)
    if not 0 < len(panels) <= _MANY_PANELS:
        if shown["backend"].nunique() > drawing.MANY_BACKENDS or shown["case"].nunique() > _MANY_CASES:
            return _heat_map(table, shown, measure, measure.heat_title or title, layout)
        return _dots(shown, measure, title, note, layout, looks)
    backends = shown["backend"].nunique()
    legend_in = 1.6 + 0.18 * backends if backends > drawing.MANY_BACKENDS else 0.0
    figure, axes = drawing.panels(len(panels), height_in=max(drawing.panels_height_in(len(panels)), legend_in))
    for axis, (name, panel) in zip(axes, panels, strict=True):
        _lines(axis, shown, panel, measure, looks)
        axis.set(xscale="log", yscale="log", title=data_title(name))
    # an interval from few passes may go on for decades: the picture ends not far beyond the figures themselves
    figures = shown[shown["case"].isin(case for _, panel in panels for case in panel.values())][measure.column]
    axes[0].set_ylim(_within(axes[0].get_ylim(), float(figures.min()), float(figures.max())))
    for axis in axes:
        drawing.log_ticks(axis.yaxis, measure.tick)
    values = sorted({value for _, panel in panels for value in panel})
    for axis in axes:  # they share the axis, and so its ticks
        drawing.value_ticks(axis, values, drawing.WIDTH_IN * 0.8 / drawing.panel_columns(len(panels)))
    drawing.name_axes(axes, layout.field_title, measure.title)
    note += f"; bar: {measure.interval}"
    if (table["status"] != "ok").any():
        note += "; a line ends where a pair was skipped or refused"
    names = list(looks)
    if backends > drawing.MANY_BACKENDS:
        note += "\nin colour: those that lead most often, and the baseline"
        names = _as_lines_end(shown, layout, measure, looks)
    _finish(figure, axes, [*names, _TIE], f"{title} against {layout.field_title}", layout, note)
    return figure


def _sweep(layout: Layout) -> Layout:
    """Where two things vary, arrange the cases along a number that shows them all, if there is one."""
    if layout.varies:
        return layout
    for axis in axes_of(layout.labels):
        shown = {case for panel in axis.panels.values() for case in panel.values()}
        is_grid = shown == set(layout.labels) and not any(" " in name for name in axis.panels)
        if is_grid and min(map(len, axis.panels.values())) >= _LINE:
            return replace(layout, varies=axis.varies, panels=axis.panels)
    return layout


def _within(limits: tuple[float, float], least: float, most: float) -> tuple[float, float]:
    """Cut the limits of a log axis to a factor of three beyond the figures on it.

    >>> _within((1e-9, 1e3), 6.0, 90.0), _within((3.0, 100.0), 6.0, 90.0)
    ((2.0, 270.0), (3.0, 100.0))
    """
    return max(limits[0], least / 3), min(limits[1], 3 * most)


def _as_lines_end(table: pd.DataFrame, layout: Layout, measure: _Measure, looks: _Looks) -> list[str]:
    """Order a legend: coloured lines, then grey ones, each from top to bottom as they end in the last panel."""
    places = {case: (number, value) for number, (_, panel) in enumerate(_panels(layout, table))
              for value, case in panel.items()}  # fmt: skip
    last = table.assign(place=table["case"].map(places)).sort_values("place").groupby("backend")[measure.column].last()
    return sorted(last.index, key=lambda name: (looks[name]["color"] in drawing.GREYS, -float(last[name])))


def _lines(axis: Axes, table: pd.DataFrame, panel: Mapping[int, str], measure: _Measure, looks: _Looks) -> None:
    if measure is _SPEEDUP:
        axis.axhline(1, color="#888888", linewidth=1, zorder=1)
    values = {case: value for value, case in panel.items()}
    shown = table[table["case"].isin(values)]
    for backend, style in looks.items():
        rows = shown[shown["backend"] == backend]
        if rows.empty:
            continue
        rows = rows.assign(value=rows["case"].map(values)).set_index("value").sort_index()
        first, last = rows.index[0], rows.index[-1]
        rows = rows.reindex([value for value in panel if first <= value <= last]).reset_index()  # a gap breaks the line
        low, high = rows[measure.low].astype(float), rows[measure.high].astype(float)
        look = drawing.marker(style) | {"zorder": 1.5 if style["color"] in drawing.GREYS else 2}  # grey stays behind
        axis.vlines(rows["value"], low, high, color=style["color"], linewidth=0.9, alpha=0.7, zorder=look["zorder"])
        axis.plot(rows["value"], rows[measure.column], label=backend, linestyle=style["linestyle"], **look)
    tied = _tied(shown)
    _rings(axis, tied["case"].map(values), tied[measure.column])


def _tied(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of cases in which several backends are not separated from the fastest: all of these."""
    leaders = leaders_by_case(table)
    chosen = [
        len(leaders[case]) > 1 and name in leaders[case]
        for case, name in zip(table["case"], table["backend"], strict=True)
    ]
    return table[chosen]


_TIE = "tie for the fastest"


def _rings(axis: Axes, across: pd.Series[float], up: pd.Series[float]) -> None:
    if len(across):
        axis.scatter(across, up, s=90, facecolors="none", edgecolors="#222222", linewidths=0.8, zorder=2.5, label=_TIE)


def _dots(table: pd.DataFrame, measure: _Measure, title: str, note: str, layout: Layout, looks: _Looks) -> Figure:
    cases = [case for case in layout.labels if case in set(table["case"])]
    figure, (axis,) = drawing.panels(1, height_in=1.6 + max(1.2, 0.38 * len(cases)))
    places = {case: place for place, case in enumerate(reversed(cases))}
    if measure is _SPEEDUP:
        axis.axvline(1, color="#888888", linewidth=1, zorder=1)
    shown = {backend: style for backend, style in looks.items() if backend in set(table["backend"])}
    for index, (backend, style) in enumerate(shown.items()):
        rows = table[table["backend"] == backend]
        # backends of one case stand a little apart, so that equal times do not hide each other
        shift = 0.5 * (0.5 - (index + 0.5) / len(shown))
        heights = rows["case"].map(places) + shift
        axis.hlines(heights, rows[measure.low].astype(float), rows[measure.high].astype(float), color=style["color"])
        axis.plot(rows[measure.column], heights, label=backend, linestyle="none", **drawing.marker(style))
        tied = _tied(table)
        tied = tied[tied["backend"] == backend]
        _rings(axis, tied[measure.column], tied["case"].map(places) + shift)
    axis.set(xscale="log", xlabel=measure.title, ylim=(-0.6, len(cases) - 0.4))
    axis.set_yticks(list(places.values()), [textwrap.fill(layout.labels[case], 34) for case in places], fontsize=8)
    drawing.log_ticks(axis.xaxis, measure.tick)
    _finish(figure, [axis], [*looks, _TIE], title, layout, note)
    return figure


def _heat_map(table: pd.DataFrame, shown: pd.DataFrame, measure: _Measure, title: str, layout: Layout) -> Figure:
    """Draw a cell for each case and backend: its ratio as a colour and a number, hatched where there is none."""
    from matplotlib.figure import Figure

    cases = [case for case in layout.labels if case in set(shown["case"])]
    names = [name for name in backend_order(table) if name in set(shown["backend"])]
    labels = [shorten(layout.labels[case], _LABEL_CHARACTERS) for case in cases]
    cell_in = min(0.42, max(0.18, 10 / len(names)))
    width_in = max(drawing.WIDTH_IN, 0.6 + 0.06 * max(map(len, labels)) + cell_in * len(names))
    heads_in = 0.3 + 0.075 * max(map(len, names))
    figure = Figure(figsize=(width_in, 1.5 + heads_in + 0.23 * len(cases)), layout="constrained")
    axis = figure.subplots()
    ratios = _ratios(shown, measure).pivot(index="case", columns="backend", values="ratio").reindex(cases)[names]
    colours = _colours(measure)
    _cells(axis, ratios, measure, colours)
    _hatch(axis, table, cases, names)
    leaders = leaders_by_case(table)
    ties = _frame_ties(axis, leaders, cases, names)
    if cell_in > 0.3:
        _numbers(axis, ratios, measure, colours, leaders)
    axis.set_yticks([place + 0.5 for place in range(len(cases))], labels, fontsize=7.5)
    axis.set_xticks([place + 0.5 for place in range(len(names))], names, fontsize=8, rotation=90)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.grid(False)
    _heat_legend(figure, measure, colours)
    notes = ["1.0 is the fastest" if measure is _TIME else "more is better"]
    notes += ["bold: the fastest of its case, and what is not separated from it"] * (cell_in > 0.3)
    notes += ["framed: a tie"] * ties
    notes += _left_out(table["backend"].nunique() - len(names), "backend", "no time in any case")
    notes += _left_out(table["case"].nunique() - len(cases), "case", "no time" if measure is _TIME else "no baseline")
    drawing.head(figure, title, [line for line in (layout.common, "; ".join(notes)) if line])
    return figure


def _left_out(count: int, what: str, why: str) -> list[str]:
    return [f"without {count} {what}{'s' * (count > 1)} ({why})"] * (count > 0)


def _ratios(table: pd.DataFrame, measure: _Measure) -> pd.DataFrame:
    """Return the measure as a ratio: a speed-up is one, a time becomes one to the least of its case."""
    values = table[measure.column].astype(float)
    if measure is _TIME:
        values = values / values.groupby(table["case"]).transform("min")
    return table.assign(ratio=values)


def _colours(measure: _Measure) -> list[str]:
    """Return a colour for each step, the palette's ends left out: they are too near to black and white."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    palette, last = colormaps[measure.palette], len(measure.steps) - 1
    return [to_hex(palette(0.08 + 0.84 * index / last)) for index in range(last + 1)]


def _cells(axis: Axes, ratios: pd.DataFrame, measure: _Measure, colours: Sequence[str]) -> None:
    from matplotlib.colors import BoundaryNorm, ListedColormap

    norm = BoundaryNorm([*measure.steps, math.inf], len(colours))
    axis.pcolormesh(ratios.to_numpy(float), cmap=ListedColormap(list(colours)), norm=norm, edgecolors="white")
    axis.invert_yaxis()


def _hatch(axis: Axes, table: pd.DataFrame, cases: Sequence[str], names: Sequence[str]) -> None:
    """Hatch the pairs that have a status and no time; what was not reached stays blank."""
    from matplotlib.patches import Rectangle

    for row in table[table["status"] != "ok"].to_dict("records"):
        if row["backend"] in names and row["case"] in cases:
            place = names.index(row["backend"]) + 0.06, cases.index(row["case"]) + 0.06
            axis.add_patch(Rectangle(place, 0.88, 0.88, **_HATCHED))


def _frame_ties(axis: Axes, leaders: Mapping[str, set[str]], cases: Sequence[str], names: Sequence[str]) -> bool:
    """Frame the cells of a case's fastest backends where nothing separates them; return whether there are any."""
    from matplotlib.patches import Rectangle

    pairs = [(case, name) for case in cases if len(leaders[case]) > 1 for name in leaders[case] & set(names)]
    for case, name in pairs:
        place = names.index(name) + 0.07, cases.index(case) + 0.07
        axis.add_artist(Rectangle(place, 0.86, 0.86, fill=False, edgecolor="#D55E00", linewidth=1.6))
    return bool(pairs)


_HATCHED: dict[str, Any] = {"facecolor": "#f4f4f4", "edgecolor": "#c8c8c8", "hatch": "/////", "linewidth": 0}


def _numbers(
    axis: Axes,
    ratios: pd.DataFrame,
    measure: _Measure,
    colours: Sequence[str],
    leaders: Mapping[str, set[str]],
) -> None:
    """Write each ratio into its cell, in what can be read on its colour; the best in bold."""
    from matplotlib.colors import to_rgb

    inks = [_ink(*to_rgb(colour)) for colour in colours]
    for row, (case, values) in enumerate(ratios.iterrows()):
        for column, (name, value) in enumerate(values.items()):
            if missing(value):
                continue
            weight = "bold" if name in leaders[str(case)] else "normal"
            colour = inks[bisect(measure.steps, float(value)) - 1]
            axis.text(column + 0.5, row + 0.53, _ratio_text(float(value)), ha="center", va="center", fontsize=6.5,
                      color=colour, fontweight=weight, in_layout=False)  # fmt: skip


def _ink(red: float, green: float, blue: float) -> str:
    """Return white or black, whichever contrasts more (luminance as in ITU-R BT.601)."""
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else "black"


def _ratio_text(value: float) -> str:
    """Write a ratio as shortly as two digits allow: 1.04 → "1.0", 0.03 → ".030", 25300 → "25k"."""
    if value < 0.95:
        return f"{value:#.2g}".lstrip("0")
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}" if value < 9950 else f"{value / 1000:,.0f}k"


def _heat_legend(figure: Figure, measure: _Measure, colours: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    ends = [f"{step:g}" for step in measure.steps]
    texts = [f"{low}–{high}×" for low, high in pairwise(ends)] + [f"≥ {ends[-1]}×"]
    if not measure.steps[0]:
        texts[0] = f"< {ends[1]}×"
    handles = [Patch(color=colour, label=text) for colour, text in zip(colours, texts, strict=True)]
    handles.append(Patch(label="no time: refused, skipped …", **_HATCHED))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, handlelength=1.4,
                  handleheight=1, columnspacing=1.2)  # fmt: skip


# -- parts ------------------------------------------------------------------------------------------

_Looks = Mapping[str, Mapping[str, Any]]


def styles(table: pd.DataFrame) -> _Looks:
    """Give each backend colour, marker and line, no two alike: own ones solid, rivals dashed.

    Of many backends those that lead have colours, as many as there are, and the baseline; the others are thin and grey.
    """
    kinds = dict(zip(table["backend"], table["kind"], strict=True))
    names = backend_order(table)
    coloured = names
    if table[table["status"] == "ok"]["backend"].nunique() > drawing.MANY_BACKENDS:
        leading = [*table["baseline"].dropna().unique(), *_leading(table)]
        chosen = list(dict.fromkeys(leading))[: len(drawing.COLOURS)]
        coloured = [name for name in names if name in chosen]
    looks: dict[str, Mapping[str, Any]] = {}
    for name in names:
        index = (coloured if name in coloured else [n for n in names if n not in coloured]).index(name)
        look = drawing.coloured(index) if name in coloured else drawing.grey(index)
        looks[name] = look | {"linestyle": "-" if kinds[name] == "own" else (0, (4, 2))}
    return looks


def _leading(table: pd.DataFrame) -> list[str]:
    """Return the backends that are ever the fastest or tied with it; first those over which most ratios are.

    Wide ties, as from few passes, may make that most of a run's backends.
    """
    least = Counter(table.loc[table["ratio_method"] == "itself", "backend"])
    tied = Counter(table.loc[table["tied"], "backend"])
    return sorted({*least, *tied}, key=lambda name: (-least[name], -tied[name], name))


def leaders_by_case(table: pd.DataFrame) -> dict[str, set[str]]:
    """Return for each case the backends of rank 1; none where that is unknown."""
    leaders: dict[str, set[str]] = {str(case): set() for case in table["case"]}
    for case, backend, tied in zip(table["case"], table["backend"], table["tied"], strict=True):
        leaders[str(case)] |= {str(backend)} if tied else set()
    return leaders


def _panels(layout: Layout, table: pd.DataFrame) -> list[tuple[str, Mapping[int, str]]]:
    """Return the panels in which there is something to draw."""
    cases = set(table["case"])
    return [(name, panel) for name, panel in layout.panels.items() if cases & set(panel.values())]


def drawable_times(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that have a time."""
    return _drawable(table, _TIME)


def _drawable(table: pd.DataFrame, measure: _Measure) -> pd.DataFrame:
    values = table[measure.column].astype(float)
    return table[(table["status"] == "ok") & (values > 0)]


def _finish(figure: Figure, axes: Sequence[Axes], names: Sequence[str], title: str, layout: Layout, note: str) -> None:
    """Put title, subtitle and one legend for all panels, in the order of the names."""
    drawing.head(figure, title, [line for line in (layout.common, *note.splitlines()) if line])
    handles: dict[str, Any] = {}
    for axis in axes:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    order = [name for name in names if name in handles]
    size = None if len(order) <= drawing.MANY_BACKENDS else 8
    figure.legend([handles[name] for name in order], order, loc="outside right center", fontsize=size)
