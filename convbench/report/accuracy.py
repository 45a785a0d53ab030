"""Accuracy of a run: each algorithm's error, measured and promised, against size and kernel. Tables, CSV and a plot."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbench.bench.frames import rows_of
from convbench.bench.sweeps import split_tokens
from convbench.errors import MissingDependency
from convbench.report import drawing
from convbench.report.layout import Layout, data_title, layout_of
from convbench.report.tables import Overview, backend_order
from convbench.report.text import DASH, Column, Grid, Row, missing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "LEGEND",
    "Sweep",
    "accuracy_plot",
    "csv_text",
    "is_untimed",
    "markdown",
    "overview",
    "sweeps_of",
    "write_accuracy",
]

LOST = "†"

#: What the tables and the plot mean, by the first word of each line.
LEGEND = {
    "cells": "largest componentwise error / its bound, both in units of eps, the spacing of the dtype's numbers at 1 "
    "(2⁻²³ in float32, 2⁻⁵² in float64)",
    "componentwise": "max |ŷ − y| / (|w| ∗ |x| + |bias|) over all outputs: each is measured against the terms of its "
    "own sum, so small outputs count as much as large ones. Direct sums of n terms stay near √n or below; the error of "
    "a transform is spread over all its outputs, and is large against the small ones",
    "normwise": "‖ŷ − y‖₂ / ‖y‖₂ (error_norm in accuracy.csv): all outputs together, where large ones hide what "
    "happens to small ones",
    "bound": "a priori: what the algorithm promises for these operands before it runs, proved and not fitted "
    "(convbench/bounds.py has the sources), at the output where it promises least. A larger error is a wrong result",
    LOST: "error · eps ≥ 1: against its own terms, at least one output has no digit right",
    "x=noise": "standard normal data",
    "x=range": "high dynamic range: normal numbers whose magnitude falls smoothly from 1 to 10⁻⁶ along the last axis",
    "float64": "the oracle computes in float64 too, so that its own rounding is part of the errors shown; 0 says that "
    "a backend sums in the same order",
}

_DATA = {"noise": "Gaussian data", "range": "high dynamic range"}
_LEAST_VALUES = 3  # of a number, to make a sweep
_SHORT = {"unsupported": "refused", "unavailable": "absent", "out-of-memory": "memory"}
_CSV = (
    "case", "spec", "backend", "kind", "implementation", "device", "threads", "dtype", "x", "w", "ndim", "batch",
    "in_channels", "out_channels", "input_size", "kernel_size", "status", "reason", "error_max_eps", "error_bound_eps",
    "error_norm",
)  # fmt: skip
_EPS = {"float16": 2.0**-10, "float32": 2.0**-23, "complex64": 2.0**-23, "float64": 2.0**-52, "complex128": 2.0**-52}


# -- sweeps -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """Cases in which one number varies, on each kind of data.

    Attributes
    ----------
    field_title, symbol : str
        Of the number, "kernel size K" and "K"; empty where no single one varies.
    common : str
        The tokens that the cases share, those of the input's data apart.
    columns : mapping of str to (int or str)
        Case line without its input's data → the number, or what to call the case.
    cases : mapping of str to (mapping of str to str)
        Input's data ("noise") → line without it → case line.
    """

    field_title: str
    symbol: str
    common: str
    columns: Mapping[str, int | str]
    cases: Mapping[str, Mapping[str, str]]

    @property
    def title(self) -> str:
        """What varies, and what does not."""
        return ": ".join(filter(None, [self.field_title or "cases", self.common]))


def sweeps_of(cases: Iterable[str]) -> list[Sweep]:
    """Arrange case lines into sweeps over kernel, size, channels or batch, whichever show most cases first.

    What belongs to no sweep of three values comes last, a column for each case.

    >>> shapes = ((64, 3), (64, 5), (64, 7), (64, 9), (32, 3), (16, 3))
    >>> cases = [f"n1 c1 o1 i{size} k{k} f32" for size, k in shapes]
    >>> cases += [f"{case} x=range" for case in cases]
    >>> for sweep in sweeps_of(cases):
    ...     print(sweep.title, list(sweep.columns.values()), list(sweep.cases))
    kernel size K: n1 c1 o1 i64 f32 w=random [3, 5, 7, 9] ['noise', 'range']
    input size H: n1 c1 o1 k3 f32 w=random [16, 32, 64] ['noise', 'range']
    """
    by_data: dict[str, dict[str, str]] = defaultdict(dict)
    for case in cases:
        line, data = _without_x(case)
        by_data[data][line] = case
    lines = list(dict.fromkeys(line for entry in by_data.values() for line in entry))
    return [sweep for layout in _arranged(lines) for sweep in _sweeps(layout, by_data)]


def _without_x(case: str) -> tuple[str, str]:
    tokens = split_tokens(case)
    data = next((token.removeprefix("x=") for token in tokens if token.startswith("x=")), "noise")
    return " ".join(token for token in tokens if not token.startswith("x=")), data


def _arranged(lines: Sequence[str]) -> list[Layout]:
    """Take the sweep that shows most lines not shown yet, again and again; then what is left, as it is."""
    candidates = _candidates(lines)
    left = dict.fromkeys(lines)
    chosen = []
    while candidates:
        best = max(candidates, key=lambda layout: len(left.keys() & layout.labels.keys()))
        news = left.keys() & best.labels.keys()
        if len(news) < 2:
            break
        candidates.remove(best)
        chosen.append(best)
        left = {line: None for line in left if line not in news}
    chosen.sort(key=lambda layout: min(map(lines.index, layout.labels)))
    return [*chosen, layout_of(left)] if left else chosen


def _candidates(lines: Sequence[str]) -> list[Layout]:
    """Find all groups of lines that differ in one number; padding in numbers may follow the kernel."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for line in lines:
        tokens = split_tokens(line)
        for token in (token for token in tokens if re.fullmatch("[ncoik][0-9x]+", token)):
            follows = "p[0-9].*" if token[0] == "k" else "$"
            rest = tuple(other for other in tokens if other != token and not re.fullmatch(follows, other))
            groups[token[0], rest].append(line)
    layouts = [layout_of(group) for group in groups.values() if len(group) >= _LEAST_VALUES]
    return [layout for layout in layouts if layout.varies]


def _sweeps(layout: Layout, by_data: Mapping[str, Mapping[str, str]]) -> list[Sweep]:
    columns: list[tuple[str, Mapping[str, int | str]]] = [("", layout.labels)]
    if layout.varies:
        columns = [(name, {line: value for value, line in panel.items()}) for name, panel in layout.panels.items()]
    common = layout.common if len(layout.labels) > 1 else ""
    sweeps = []
    for name, headings in columns:
        cases = {data: {line: entry[line] for line in headings if line in entry} for data, entry in by_data.items()}
        tokens = [token for token in split_tokens(f"{common} {name}") if not token.startswith("x=")]
        present = {data: lines for data, lines in cases.items() if lines}
        sweeps.append(Sweep(layout.field_title, layout.symbol, " ".join(tokens), headings, present))
    return sweeps


def _data_name(data: str) -> str:
    return f"{_DATA[data]} (x={data})" if data in _DATA else data_title(f"x={data}")


# -- tables -----------------------------------------------------------------------------------------


def is_untimed(records: pd.DataFrame) -> bool:
    """Return whether a run was for accuracy alone: its environment says so, or no right pair has a sample."""
    options = records.attrs.get("environment", {}).get("options", {})
    if "timed" in options:
        return not options["timed"]
    right = records[records["status"] == "ok"]
    return len(right) > 0 and not right["samples_s"].map(len).any()


def overview(table: pd.DataFrame) -> Overview:
    """Return a table of errors and bounds for each sweep and kind of data: backends against the number.

    Where no single number varies it is cases against backends. A backend without any result has no place in a table;
    the notes say why.

    Parameters
    ----------
    table : DataFrame
        From :func:`convbench.bench.statistics.summarise`, one row a (case, backend).
    """
    rows = {(row["case"], row["backend"]): row for row in rows_of(table)}
    grids = {}
    for sweep in _sweeps_of_table(table):
        for data, cases in sweep.cases.items():
            right = {row["backend"] for row in rows.values() if row["case"] in cases.values() and row["status"] == "ok"}
            backends = [name for name in backend_order(table) if name in right]
            if backends:
                grids[f"{sweep.title} · {_data_name(data)}"] = _grid(sweep, cases, backends, rows)
    unreached = len(set(_stated(table)) - set(table["case"]))
    notes = [f"{unreached} case{'s' * (unreached > 1)} not reached before the run ended"] * bool(unreached)
    return Overview(grids, ["nothing was timed", *_reasons(table), *notes])


def _sweeps_of_table(table: pd.DataFrame) -> list[Sweep]:
    """Arrange the cases of the whole run, of which an interrupted one may not have reached all."""
    return sweeps_of(dict.fromkeys([*_stated(table), *table["case"]]))


def _stated(table: pd.DataFrame) -> list[str]:
    return list(table.attrs.get("environment", {}).get("cases", []))


def _grid(sweep: Sweep, cases: Mapping[str, str], backends: Sequence[str], rows: Mapping[Any, Any]) -> Grid:
    cells = [[_cell(rows.get((case, backend))) for case in cases.values()] for backend in backends]
    headings = [str(sweep.columns[line]) for line in cases]
    if sweep.symbol:
        columns = [Column(f"{sweep.symbol} =", right=False), *map(Column, headings)]
        return Grid(columns, [Row((name, *texts)) for name, texts in zip(backends, cells, strict=True)])
    columns = [Column("case", right=False), *map(Column, backends)]
    return Grid(columns, [Row((name, *texts)) for name, *texts in zip(headings, *cells, strict=True)])


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return DASH
    status = str(row["status"])
    if status != "ok":
        return _SHORT.get(status, status)
    mark = LOST if _digits_lost(row) else ""
    return f"{_figure(row['error_max_eps'])}{mark} / {_figure(row['error_bound_eps'])}"


def _figure(value: float | None) -> str:
    """Two digits are all that an error deserves.

    >>> [_figure(value) for value in (0.0, 0.0321, 0.618, 14.4, 961.0, 12345.0, None)]
    ['0', '0.032', '0.62', '14', '960', '1.2e4', '–']
    """
    if value is None or missing(value):
        return DASH
    text = f"{value:.1e}"
    rounded = float(text)
    plain = rounded == 0 or 1e-3 <= rounded < 1e4
    return f"{rounded:g}" if plain else text.replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def _digits_lost(row: Mapping[str, Any]) -> bool:
    """Return whether some output has an error as large as the sum of its terms' magnitudes."""
    error, eps = row["error_max_eps"], _EPS.get(str(row["dtype"]), 0.0)
    return not missing(error) and float(error) * eps >= 1


def _reasons(table: pd.DataFrame) -> list[str]:
    """Say who has no result where, and why; reasons that differ in their numbers alone are taken together."""
    alike: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in rows_of(table[table["status"] != "ok"]):
        kind = re.sub(r"[0-9.]+(e[+-]?[0-9]+)?", "0", str(row["reason"]))
        alike[row["backend"], row["status"], kind].append(str(row["reason"]))
    shown: dict[tuple[str, int, str], list[str]] = defaultdict(list)
    for (backend, status, _), reasons in alike.items():
        example = f"{', for example' * (len(set(reasons)) > 1)}: {reasons[0]}" * bool(reasons[0])
        shown[_SHORT.get(status, status), len(reasons), example].append(backend)
    return [
        f"{', '.join(backends)} {status} in {count} case{'s' * (count > 1)}{example}"
        for (status, count, example), backends in shown.items()
    ]


def markdown(table: pd.DataFrame, head: Sequence[str] = ()) -> str:
    """Return the page accuracy.md: what the figures mean, then all of them."""
    legend = "\n".join(f"- {name}: {text}" for name, text in LEGEND.items())
    return "\n\n".join(["# Accuracy", *head, legend, overview(table).markdown()]) + "\n"


def csv_text(table: pd.DataFrame) -> str:
    """Return the figures as CSV, the normwise error among them; ``digits_lost`` is what the tables mark."""
    chosen = table[[name for name in _CSV if name in table]]
    lost = [_digits_lost(row) for row in rows_of(table)]
    return str(chosen.assign(digits_lost=lost).to_csv(index=False))


# -- plot -------------------------------------------------------------------------------------------

_ROW_IN, _PANEL_IN = 2.4, 3.2  # height of a sweep, width of a panel
_LABEL_GAP = 0.09  # of the height, between names at the ends of lines


def accuracy_plot(table: pd.DataFrame) -> Figure | None:
    """Draw errors against the number of each sweep, a column of panels for each kind of data.

    Log axes; markers are measured errors, a faint line of the same colour the bound. Of many backends those that are
    furthest from the others have colours and names at the ends of their lines. None where no number takes three values.
    """
    from matplotlib.figure import Figure

    shown = table[(table["status"] == "ok") & table["error_max_eps"].notna()]
    sweeps = [sweep for sweep in _sweeps_of_table(table) if _is_line(sweep, set(shown["case"]))]
    if not sweeps:
        return None
    shown = shown[
        shown["case"].isin(case for sweep in sweeps for cases in sweep.cases.values() for case in cases.values())
    ]
    kinds = list(dict.fromkeys(data for sweep in sweeps for data in sweep.cases))
    styles = _styles(shown)
    legend_in = 0.1 + 0.2 * math.ceil(len(styles) / _LEGEND_COLUMNS)
    size_in = (1.6 + _PANEL_IN * max(2, len(kinds)), 0.8 + legend_in + _ROW_IN * len(sweeps))
    figure = Figure(figsize=size_in, layout="constrained")
    axes = figure.subplots(len(sweeps), len(kinds), squeeze=False)
    for row, sweep in zip(axes, sweeps, strict=True):
        for axis, data in zip(row, kinds, strict=True):
            _panel(axis, shown, sweep, data, styles)
            axis.set_title(f"\n{_data_name(data)}", loc="left", fontsize=9)
        _end_labels(row[-1], styles)
        row[0].set_title(f"{sweep.common}\n{_data_name(kinds[0])}", loc="left", fontsize=9)
        row[0].set_ylabel(drawing.ERROR_TITLE, fontsize=9)
    notes = ["less is better; faint: the a-priori bound, at the output where it is largest"]
    notes += ["dotted: 1/eps, where some output has no digit right", *_colour_note(styles)]
    notes[0] += "; at the lower edge: no error" * bool((shown["error_max_eps"] == 0).any())
    drawing.head(figure, "Accuracy: largest componentwise error", notes)
    _legend(figure, axes.flat, styles, legend_in)
    return figure


_LEGEND_COLUMNS = 6


def _is_line(sweep: Sweep, cases: set[str]) -> bool:
    there = {line for lines in sweep.cases.values() for line, case in lines.items() if case in cases}
    return bool(sweep.symbol) and len(there) >= _LEAST_VALUES


def _styles(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Give each backend colour, marker and line; of many, grey ones to those that others are like."""
    names, kinds = backend_order(table), dict(zip(table["backend"], table["kind"], strict=True))
    coloured = names
    if len(names) > drawing.MANY_BACKENDS:
        errors = table["error_max_eps"].astype(float)
        logs = errors[errors > 0].map(math.log10)
        apart = (logs - logs.groupby(table["case"]).transform("median")).abs().groupby(table["backend"]).max()
        coloured = sorted(apart.nlargest(len(drawing.COLOURS)).index, key=names.index)
    grey = [name for name in names if name not in coloured]
    looks = {name: drawing.coloured(index) for index, name in enumerate(coloured)}
    looks |= {name: drawing.grey(index) for index, name in enumerate(grey)}
    return {name: looks[name] | {"linestyle": "-" if kinds[name] == "own" else (0, (4, 2))} for name in names}


def _colour_note(styles: Mapping[str, Mapping[str, Any]]) -> list[str]:

    grey = any(style["color"] in drawing.GREYS for style in styles.values())
    return ["in colour: the backends whose errors are furthest from the median of all"] * grey


def _panel(axis: Axes, table: pd.DataFrame, sweep: Sweep, data: str, styles: Mapping[str, Mapping[str, Any]]) -> None:

    values = {case: int(sweep.columns[line]) for line, case in sweep.cases.get(data, {}).items()}
    rows = table[table["case"].isin(values)]
    rows = rows.assign(value=rows["case"].map(values)).sort_values("value")
    errors = rows["error_max_eps"].astype(float)
    floor = errors[errors > 0].min() / 2  # where a log axis shows an exact result
    for backend, style in styles.items():
        own = rows[rows["backend"] == backend]
        look = drawing.marker(style) | {"linestyle": style["linestyle"]}
        look["zorder"] = 2 if style["color"] in drawing.GREYS else 3
        axis.plot(own["value"], own["error_bound_eps"], color=style["color"], alpha=0.35, linewidth=1, zorder=1)
        axis.plot(own["value"], own["error_max_eps"].clip(lower=floor), label=backend, **look)
    axis.set(xscale="log", yscale="log")
    axis.set_xlabel(sweep.field_title, fontsize=9)
    axis.tick_params(labelsize=8)
    if values:
        drawing.value_ticks(axis, sorted(set(values.values())), _PANEL_IN * 0.8)
        _decades(axis)
        axis.set_ylim(axis.get_ylim())  # what follows is not to widen it
        for eps in {_EPS[dtype] for dtype in rows["dtype"] if dtype in _EPS}:
            axis.axhline(1 / eps, color="#b00000", linestyle=":", linewidth=1, zorder=1)


def _decades(axis: Axes) -> None:
    """Label at most seven decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.yaxis.set_major_locator(LogLocator(numticks=7))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: drawing.count_tick(value)))


def _end_labels(axis: Axes, styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Name the coloured lines that reach the right edge, those that end side by side together."""
    low, high = map(math.log10, axis.get_ylim())
    coloured = [name for name, style in styles.items() if style["color"] not in drawing.GREYS]
    ends: list[tuple[float, float, str]] = []
    for line in axis.get_lines():
        points: Any = line.get_xydata()
        if line.get_label() in coloured and len(points):
            ends.append((points[-1][0], (math.log10(points[-1][1]) - low) / (high - low), str(line.get_label())))
    last = max((x for x, _, _ in ends), default=0.0)
    groups: list[list[tuple[float, str]]] = []
    for height, name in sorted((height, name) for x, height, name in ends if x == last):
        if groups and height - groups[-1][-1][0] < _LABEL_GAP:
            groups[-1].append((height, name))
        else:
            groups.append([(height, name)])
    for group in groups:
        names = [name for _, name in reversed(group)]
        text = ", ".join(names[:2]) + f" +{len(names) - 2}" * (len(names) > 2)
        middle = sum(height for height, _ in group) / len(group)
        colour = styles[names[0]]["color"] if len(names) == 1 else "#444444"
        axis.text(1.02, middle, text, transform=axis.transAxes, fontsize=7, va="center", color=colour)


def _legend(figure: Figure, axes: Iterable[Axes], styles: Mapping[str, Any], height_in: float) -> None:
    """Put the legend below the head: a figure of many rows has the names where a reader begins."""
    handles: dict[str, Any] = {}
    for axis in axes:
        handles |= {name: line for line, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    names = [name for name in styles if name in handles]
    engine: Any = figure.get_layout_engine()
    left, bottom, width, top = engine.get()["rect"]
    columns = min(_LEGEND_COLUMNS, len(names))
    place: Any = {
        "loc": "upper left",
        "bbox_to_anchor": (0, top),
        "borderaxespad": 0.0,
        "ncols": columns,
        "fontsize": 8,
    }
    figure.legend([handles[name] for name in names], names, **place)
    engine.set(rect=(left, bottom, width, top - height_in / figure.get_figheight()))


# -- files ------------------------------------------------------------------------------------------


def write_accuracy(records: pd.DataFrame, folder: Path, note: Callable[[str], None]) -> list[Path]:
    """Write accuracy.md, accuracy.csv and the plot (SVG and PNG; none where no number varies), and return their paths.

    Parameters
    ----------
    records : DataFrame
        As :func:`convbench.load_results` returns it.
    folder : Path
    note : callable
        Receives one line if a missing library costs the plot.
    """
    from convbench.bench.environment import thread_note
    from convbench.bench.statistics import summarise
    from convbench.report import machine

    table, environment = summarise(records), records.attrs.get("environment", {})
    head = [machine(environment), thread_note(environment)] if environment else []
    texts = {"accuracy.md": markdown(table, [line for line in head if line]), "accuracy.csv": csv_text(table)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    written = [folder / name for name in texts]
    try:
        return written + drawing.save({"accuracy": lambda: accuracy_plot(table)}, folder)
    except MissingDependency as missing_library:
        note(str(missing_library))
        return written
