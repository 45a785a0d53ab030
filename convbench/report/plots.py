"""Plots of a run: time, speed-up, and error against time. Figures only, nothing global; matplotlib comes in late.

What is drawn depends on how much there is. Lines where one number varies; with many backends those that are ever the
fastest in colour, the others thin and grey. Dots for a few unlike cases; a heat map for more than a reader can tell
apart as dots.
"""

from __future__ import annotations

import math
import textwrap
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbench.report import drawing
from convbench.report.layout import Layout, data_title
from convbench.report.tables import backend_order, fastest, layout_of_table
from convbench.report.text import missing, shorten

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["error_plot", "save_plots", "speedup_plot", "time_plot"]

_WIDTH_IN, _HEIGHT_IN = 9.0, 4.4
_MANY_CASES, _MANY_PANELS = 16, 6  # more than these are drawn in another way
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


def _time_tick(value_s: float) -> str:
    units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
    scale, unit = next(((scale, unit) for scale, unit in units if value_s >= 0.999 * scale), (1e-9, "ns"))
    return f"{value_s / scale:.3g} {unit}"


#: ColorBrewer's palettes, told apart with any colour vision; a deep colour stands for what is good.
_TIME = _Measure(
    "time_s", "low_s", "high_s", "time of one call", _time_tick,
    (1, 1.2, 2, 5, 10, 30, 100), "YlGnBu_r", "Time over that of the fastest, case by case",
)  # fmt: skip
_SPEEDUP = _Measure(
    "speedup", "speedup_low", "speedup_high", "speed-up", lambda value: f"{value:.3g}×",
    (0, 0.1, 0.5, 0.9, 1.1, 2, 10), "PuOr", "",
)  # fmt: skip


def save_plots(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write time, speed-up and error plots as SVG and PNG.

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
    drawn = (("time", time_plot), ("speedup", speedup_plot), ("error", error_plot))
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
    layout, styles = layout_of_table(table), _styles(table)
    table = _drawable(table, _TIME)
    if table.empty:
        return None
    if table["backend"].nunique() > drawing.MANY_BACKENDS:
        return _error_rows(table, layout, list(styles))
    panels = {name: list(panel.values()) for name, panel in _panels(layout, table)} or {"": list(layout.labels)}
    figure, axes = _figure(len(panels))
    errors, floor = _errors(table)
    for axis, (name, cases) in zip(axes, panels.items(), strict=True):
        shown = table[table["case"].isin(cases)]
        for backend, rows in shown.groupby("backend", sort=False):
            style = styles[str(backend)]
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
        drawing.log_ticks(axis.xaxis, _time_tick)
        drawing.log_ticks(axis.yaxis, drawing.count_tick)
    _name_axes(axes, _TIME.title, drawing.ERROR_TITLE)
    exact = ", at the lower edge: exact" if (errors <= 0).any() else ""
    note = f"lower left is better; bar: a-priori bound{exact}"
    _finish(figure, axes, list(styles), "Error against time", layout, note)
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
    figure, (axis,) = _figure(1, height_in=1.8 + 0.2 * len(names))
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
    layout, styles = layout_of_table(table), _styles(table)
    panels = _panels(layout, shown)
    if not 0 < len(panels) <= _MANY_PANELS:
        if shown["backend"].nunique() > drawing.MANY_BACKENDS or shown["case"].nunique() > _MANY_CASES:
            return _heat_map(table, shown, measure, measure.heat_title or title, layout)
        return _dots(shown, measure, title, note, layout, styles)
    backends = shown["backend"].nunique()
    rows = math.ceil(len(panels) / _columns(len(panels)))
    legend_in = 1.6 + 0.18 * backends if backends > drawing.MANY_BACKENDS else 0.0
    figure, axes = _figure(len(panels), height_in=max(rows * _HEIGHT_IN - 1.2 * (rows - 1), legend_in))
    for axis, (name, panel) in zip(axes, panels, strict=True):
        _lines(axis, shown, panel, measure, styles)
        axis.set(xscale="log", yscale="log", title=data_title(name))
        drawing.log_ticks(axis.yaxis, measure.tick)
    values = sorted({value for _, panel in panels for value in panel})
    for axis in axes:  # they share the axis, and so its ticks
        drawing.value_ticks(axis, values, _WIDTH_IN * 0.8 / _columns(len(panels)))
    _name_axes(axes, layout.field_title, measure.title)
    if (table["status"] != "ok").any():
        note += "; a line ends where a pair was skipped or refused"
    names = list(styles)
    if backends > drawing.MANY_BACKENDS:
        note += "; in colour: what is ever the fastest or a tie, and the baseline"
        names = _as_lines_end(shown, layout, measure, styles)
    _finish(figure, axes, names, f"{title} against {layout.field_title}", layout, note)
    return figure


def _as_lines_end(table: pd.DataFrame, layout: Layout, measure: _Measure, styles: _Styles) -> list[str]:
    """Order a legend: coloured lines, then grey ones, each from top to bottom as they end in the last panel."""
    places = {case: (number, value) for number, (_, panel) in enumerate(_panels(layout, table))
              for value, case in panel.items()}  # fmt: skip
    last = table.assign(place=table["case"].map(places)).sort_values("place").groupby("backend")[measure.column].last()
    return sorted(last.index, key=lambda name: (styles[name]["color"] in drawing.GREYS, -float(last[name])))


def _lines(axis: Axes, table: pd.DataFrame, panel: Mapping[int, str], measure: _Measure, styles: _Styles) -> None:
    if measure is _SPEEDUP:
        axis.axhline(1, color="#888888", linewidth=1, zorder=1)
    values = {case: value for value, case in panel.items()}
    shown = table[table["case"].isin(values)]
    for backend, style in styles.items():
        rows = shown[shown["backend"] == backend]
        if rows.empty:
            continue
        rows = rows.assign(value=rows["case"].map(values)).set_index("value").sort_index()
        first, last = rows.index[0], rows.index[-1]
        rows = rows.reindex([value for value in panel if first <= value <= last]).reset_index()  # a gap breaks the line
        low, high = rows[measure.low].astype(float), rows[measure.high].astype(float)
        look = drawing.marker(style) | {"zorder": 1.5 if style["color"] in drawing.GREYS else 2}  # grey stays behind
        axis.vlines(rows["value"], low, high, color=style["color"], linewidth=look["linewidth"], zorder=look["zorder"])
        axis.plot(rows["value"], rows[measure.column], label=backend, linestyle=style["linestyle"], **look)


def _dots(table: pd.DataFrame, measure: _Measure, title: str, note: str, layout: Layout, styles: _Styles) -> Figure:
    cases = [case for case in layout.labels if case in set(table["case"])]
    figure, (axis,) = _figure(1, height_in=1.6 + max(1.2, 0.38 * len(cases)))
    places = {case: place for place, case in enumerate(reversed(cases))}
    if measure is _SPEEDUP:
        axis.axvline(1, color="#888888", linewidth=1, zorder=1)
    shown = {backend: style for backend, style in styles.items() if backend in set(table["backend"])}
    for index, (backend, style) in enumerate(shown.items()):
        rows = table[table["backend"] == backend]
        # backends of one case stand a little apart, so that equal times do not hide each other
        shift = 0.5 * (0.5 - (index + 0.5) / len(shown))
        heights = rows["case"].map(places) + shift
        axis.hlines(heights, rows[measure.low].astype(float), rows[measure.high].astype(float), color=style["color"])
        axis.plot(rows[measure.column], heights, label=backend, linestyle="none", **drawing.marker(style))
    axis.set(xscale="log", xlabel=measure.title, ylim=(-0.6, len(cases) - 0.4))
    axis.set_yticks(list(places.values()), [textwrap.fill(layout.labels[case], 34) for case in places], fontsize=8)
    drawing.log_ticks(axis.xaxis, measure.tick)
    _finish(figure, [axis], list(styles), title, layout, note)
    return figure


def _heat_map(table: pd.DataFrame, shown: pd.DataFrame, measure: _Measure, title: str, layout: Layout) -> Figure:
    """Draw a cell for each case and backend: its ratio as a colour and a number, hatched where there is none."""
    from matplotlib.figure import Figure

    cases = [case for case in layout.labels if case in set(shown["case"])]
    names = [name for name in backend_order(table) if name in set(shown["backend"])]
    labels = [shorten(layout.labels[case], _LABEL_CHARACTERS) for case in cases]
    cell_in = min(0.42, max(0.18, 10 / len(names)))
    width_in = max(_WIDTH_IN, 0.6 + 0.06 * max(map(len, labels)) + cell_in * len(names))
    heads_in = 0.3 + 0.075 * max(map(len, names))
    figure = Figure(figsize=(width_in, 1.5 + heads_in + 0.23 * len(cases)), layout="constrained")
    axis = figure.subplots()
    ratios = _ratios(shown, measure).pivot(index="case", columns="backend", values="ratio").reindex(cases)[names]
    colours = _colours(measure)
    _cells(axis, ratios, measure, colours)
    _hatch(axis, table, cases, names)
    if cell_in > 0.3:
        _numbers(axis, ratios, measure, colours, _leaders_by_case(table))
    axis.set_yticks([place + 0.5 for place in range(len(cases))], labels, fontsize=7.5)
    axis.set_xticks([place + 0.5 for place in range(len(names))], names, fontsize=8, rotation=90)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.grid(False)
    _heat_legend(figure, measure, colours)
    notes = ["1.0 is the fastest" if measure is _TIME else "more is better"]
    notes += ["bold: the fastest of its case, and what is not separated from it"] * (cell_in > 0.3)
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

_Styles = Mapping[str, Mapping[str, Any]]


def _styles(table: pd.DataFrame) -> _Styles:
    """Give each backend colour, marker and line, no two alike: own ones solid, rivals dashed.

    Of many backends those that are ever the fastest, or not separated from it, have colours, and the baseline; the
    others are thin and grey.
    """
    kinds = dict(zip(table["backend"], table["kind"], strict=True))
    names = backend_order(table)
    coloured = names
    if table[table["status"] == "ok"]["backend"].nunique() > drawing.MANY_BACKENDS:
        leaders = set[str]().union(*_leaders_by_case(table).values(), table["baseline"].dropna())
        coloured = [name for name in names if name in leaders]
    styles: dict[str, Mapping[str, Any]] = {}
    for name in names:
        index = (coloured if name in coloured else [n for n in names if n not in coloured]).index(name)
        look = drawing.coloured(index) if name in coloured else drawing.grey(index)
        styles[name] = look | {"linestyle": "-" if kinds[name] == "own" else (0, (4, 2))}
    return styles


def _leaders_by_case(table: pd.DataFrame) -> dict[str, set[str]]:
    """Return for each case the fastest backend and those that nothing separates from it."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_dict("records"):  # once: pandas copies the environment with every part of a frame
        rows.setdefault(str(row["case"]), []).append({str(key): value for key, value in row.items()})
    return {case: fastest(entries) for case, entries in rows.items()}


def _panels(layout: Layout, table: pd.DataFrame) -> list[tuple[str, Mapping[int, str]]]:
    """Return the panels in which there is something to draw."""
    cases = set(table["case"])
    return [(name, panel) for name, panel in layout.panels.items() if cases & set(panel.values())]


def _drawable(table: pd.DataFrame, measure: _Measure) -> pd.DataFrame:
    values = table[measure.column].astype(float)
    return table[(table["status"] == "ok") & (values > 0)]


def _columns(panels: int) -> int:
    return panels if panels <= 3 else math.ceil(panels / 2)


def _figure(panels: int, height_in: float = _HEIGHT_IN) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    columns = _columns(panels)
    rows = math.ceil(panels / columns)
    grid = figure.subplots(rows, columns, sharex=panels > 1, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for unused in axes[panels:]:
        unused.set_axis_off()
    for above in axes[panels - columns : (rows - 1) * columns]:  # nothing below: its numbers are the column's
        above.tick_params(labelbottom=True)
    return figure, axes[:panels]


def _name_axes(axes: Sequence[Axes], below: str, beside: str) -> None:
    """Name the outer axes of a grid of panels."""
    columns = _columns(len(axes))
    for index, axis in enumerate(axes):
        if index % columns == 0:
            axis.set_ylabel(beside)
        if index + columns >= len(axes):
            axis.set_xlabel(below)


def _finish(figure: Figure, axes: Sequence[Axes], names: Sequence[str], title: str, layout: Layout, note: str) -> None:
    """Put title, subtitle and one legend for all panels, in the order of the names."""
    drawing.head(figure, title, [line for line in (layout.common, note) if line])
    handles: dict[str, Any] = {}
    for axis in axes:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    order = [name for name in names if name in handles]
    size = None if len(order) <= drawing.MANY_BACKENDS else 8
    figure.legend([handles[name] for name in order], order, loc="outside right center", fontsize=size)
