"""Plots of a run: time, speed-up, and error against time. Figures only, nothing global; matplotlib comes in late."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbench.errors import MissingDependency
from convbench.report.layout import Layout, data_title
from convbench.report.tables import backend_order, layout_of_table
from convbench.report.text import missing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["error_plot", "save_plots", "speedup_plot", "time_plot"]

#: Okabe and Ito's palette with grey for its yellow, which is too faint on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#888888")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "svg.hashsalt": "convbench",  # the same results give the same file
}
_WIDTH_IN, _HEIGHT_IN, _DPI = 9.0, 4.4, 150


@dataclass(frozen=True)
class _Measure:
    """What stands on an axis: a column of the table with its interval."""

    column: str
    low: str
    high: str
    title: str
    tick: Callable[[float], str]


def _time_tick(value_s: float) -> str:
    units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
    scale, unit = next(((scale, unit) for scale, unit in units if value_s >= 0.999 * scale), (1e-9, "ns"))
    return f"{value_s / scale:.3g} {unit}"


def _count_tick(value: float) -> str:
    exponent = round(math.log10(value))
    if exponent < 5:
        return f"{value:,g}"
    power = "10" + str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    factor = value / 10**exponent
    return power if abs(factor - 1) < 0.01 else f"{value:.3g}"


_TIME = _Measure("time_s", "low_s", "high_s", "time of one call", _time_tick)
_SPEEDUP = _Measure("speedup", "speedup_low", "speedup_high", "speed-up", lambda value: f"{value:.3g}×")


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
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependency("plots need matplotlib: pip install matplotlib") from error
    written = []
    with matplotlib.rc_context(_STYLE):
        for name, draw in (("time", time_plot), ("speedup", speedup_plot), ("error", error_plot)):
            figure = draw(table)
            if figure is None:
                continue
            for suffix, options in ((".svg", {"metadata": {"Date": None}}), (".png", {"dpi": _DPI})):
                path = folder / f"{name}{suffix}"
                figure.savefig(path, **options)
                written.append(path)
    return written


def time_plot(table: pd.DataFrame) -> Figure | None:
    """Draw time against the varying number (log axes, 95 % intervals), or a dot for each case and backend."""
    return _comparison(table, _TIME, "Time of one call", "less is better")


def speedup_plot(table: pd.DataFrame) -> Figure | None:
    """Draw the speed-up over the baseline likewise, with a line at 1."""
    baselines = [name for name in table["baseline"].unique() if not missing(name)]
    return _comparison(table, _SPEEDUP, f"Speed-up over {baselines[0]}", "more is better") if baselines else None


def error_plot(table: pd.DataFrame) -> Figure | None:
    """Draw the error of each pair against its time, in units of the dtype's eps, a bar at each bound."""
    layout, styles = layout_of_table(table), _styles(table)
    table = _drawable(table, _TIME)
    if table.empty:
        return None
    panels = {name: list(panel.values()) for name, panel in _panels(layout, table)} or {"": list(layout.labels)}
    figure, axes = _figure(len(panels))
    errors = table["error_max_eps"].astype(float)
    positive = errors[errors > 0]
    floor = float(positive.min()) / 2 if len(positive) else 0.01
    for axis, (name, cases) in zip(axes, panels.items(), strict=True):
        shown = table[table["case"].isin(cases)]
        for backend, rows in shown.groupby("backend", sort=False):
            style = styles[str(backend)]
            height = rows["error_max_eps"].astype(float).clip(lower=floor)
            axis.plot(rows["time_s"], height, label=backend, linestyle="none", alpha=0.85, **_marker(style))
            axis.plot(rows["time_s"], rows["error_bound_eps"], "_", color=style["color"], alpha=0.35, markersize=7)
        axis.set(xscale="log", yscale="log", title=data_title(name), xlabel=_TIME.title)
        _log_ticks(axis.xaxis, _time_tick)
        _log_ticks(axis.yaxis, _count_tick)
    axes[0].set_ylabel("largest error / eps")
    exact = ", at the lower edge: exact" if (errors <= 0).any() else ""
    _finish(figure, axes, styles, "Error against time", layout, f"lower left is better; bar: a-priori bound{exact}")
    return figure


# -- one measure: lines over a sweep, or dots -------------------------------------------------------


def _comparison(table: pd.DataFrame, measure: _Measure, title: str, note: str) -> Figure | None:
    shown = _drawable(table, measure)
    if shown.empty:
        return None
    layout, styles = layout_of_table(table), _styles(table)
    if not layout.varies:
        return _dots(shown, measure, title, note, layout, styles)
    panels = _panels(layout, shown)
    figure, axes = _figure(len(panels))
    for axis, (name, panel) in zip(axes, panels, strict=True):
        _lines(axis, shown, panel, measure, styles)
        axis.set(xscale="log", yscale="log", title=data_title(name), xlabel=layout.field_title)
        _value_ticks(axis, list(panel), _WIDTH_IN * 0.8 / len(panels))
        _log_ticks(axis.yaxis, measure.tick)
    axes[0].set_ylabel(measure.title)
    if (table["status"] != "ok").any():
        note += "; a line ends where a pair was skipped or refused"
    _finish(figure, axes, styles, f"{title} against {layout.field_title}", layout, note)
    return figure


def _lines(axis: Axes, table: pd.DataFrame, panel: Mapping[int, str], measure: _Measure, styles: _Styles) -> None:
    if measure is _SPEEDUP:
        axis.axhline(1, color="#888888", linewidth=1, zorder=1)
    values = {case: value for value, case in panel.items()}
    shown = table[table["case"].isin(values)]
    for backend, style in styles.items():
        rows = shown[shown["backend"] == backend]
        if rows.empty:
            continue
        rows = rows.assign(value=rows["case"].map(values)).sort_values("value")
        low, high = rows[measure.low].astype(float), rows[measure.high].astype(float)
        axis.vlines(rows["value"], low, high, color=style["color"])
        axis.plot(rows["value"], rows[measure.column], label=backend, linestyle=style["linestyle"], **_marker(style))


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
        axis.plot(rows[measure.column], heights, label=backend, linestyle="none", **_marker(style))
    axis.set(xscale="log", xlabel=measure.title, ylim=(-0.6, len(cases) - 0.4))
    axis.set_yticks(list(places.values()), [textwrap.fill(layout.labels[case], 34) for case in places], fontsize=8)
    _log_ticks(axis.xaxis, measure.tick)
    _finish(figure, [axis], styles, title, layout, note)
    return figure


# -- parts ------------------------------------------------------------------------------------------

_Styles = Mapping[str, Mapping[str, Any]]


def _styles(table: pd.DataFrame) -> _Styles:
    """Give each backend colour, marker and line: own ones solid, rivals dashed."""
    kinds = dict(zip(table["backend"], table["kind"], strict=True))
    return {
        name: {
            "color": _COLOURS[index % len(_COLOURS)],
            "marker": _MARKERS[index % len(_MARKERS)],
            "linestyle": "-" if kinds[name] == "own" else (0, (4, 2)),
        }
        for index, name in enumerate(backend_order(table))
    }


def _marker(style: Mapping[str, Any]) -> dict[str, Any]:
    return {"color": style["color"], "marker": style["marker"], "markersize": 4.5, "linewidth": 1.5}


def _panels(layout: Layout, table: pd.DataFrame) -> list[tuple[str, Mapping[int, str]]]:
    """Return the panels in which there is something to draw."""
    cases = set(table["case"])
    return [(name, panel) for name, panel in layout.panels.items() if cases & set(panel.values())]


def _drawable(table: pd.DataFrame, measure: _Measure) -> pd.DataFrame:
    values = table[measure.column].astype(float)
    return table[(table["status"] == "ok") & (values > 0)]


def _figure(panels: int, height_in: float = _HEIGHT_IN) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    axes = figure.subplots(1, panels, sharex=panels > 1, sharey=True, squeeze=False)[0]
    return figure, list(axes)


def _finish(figure: Figure, axes: Sequence[Axes], styles: _Styles, title: str, layout: Layout, note: str) -> None:
    """Put title, subtitle and one legend for all panels."""
    lines = [line for line in (layout.common, note) if line]
    height_in = figure.get_figheight()
    band_in = 0.42 + 0.17 * len(lines)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, 0, 1, 1 - band_in / height_in))
    figure.text(0.008, 1 - 0.09 / height_in, title, va="top", fontsize=12, fontweight="bold")
    figure.text(0.008, 1 - 0.34 / height_in, "\n".join(lines), va="top", fontsize=8.5, color="#555555")
    handles: dict[str, Any] = {}
    for axis in axes:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    order = [name for name in styles if name in handles]
    figure.legend([handles[name] for name in order], order, loc="outside right center")


def _value_ticks(axis: Axes, values: Sequence[int], width_in: float) -> None:
    """Put a tick at every value, and its number wherever there is room for it."""
    span = max(math.log10(max(values) / min(values)), 1e-9)
    labels, last_in = [], -1.0
    for value in values:
        place_in = math.log10(value / min(values)) / span * width_in
        room = 0.075 * len(str(value)) + 0.05
        labels.append(str(value) if place_in - last_in >= room else "")
        last_in = place_in if labels[-1] else last_in
    axis.set_xticks(list(values), labels, fontsize=8)
    axis.set_xticks([], minor=True)


def _log_ticks(axis: Any, tick: Callable[[float], str]) -> None:
    """Label whole decades, and 2 and 5 between them where the axis spans few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    steps: Iterable[float] = (1.0,) if math.log10(high / low) > 2.5 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=tuple(steps), numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axis.set_minor_formatter(NullFormatter())
