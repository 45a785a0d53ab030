"""What all figures of a report share: colours, markers, heads, ticks, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbench.errors import MissingDependency

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "ERROR_TITLE",
    "GREYS",
    "MANY_BACKENDS",
    "coloured",
    "count_tick",
    "grey",
    "head",
    "log_ticks",
    "marker",
    "name_axes",
    "panel_columns",
    "panels",
    "panels_height_in",
    "save",
    "time_tick",
    "value_ticks",
]

MANY_BACKENDS = 10  # more than these are not all drawn in colour
#: Okabe and Ito's palette with grey for its yellow, which is too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#888888")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
GREYS = ("#a6a6a6", "#7d7d7d", "#c4c4c4")
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar in the name of a file is a dollar
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "convbench",  # the same results give the same file
}
ERROR_TITLE = "largest error / eps"
WIDTH_IN, HEIGHT_IN = 9.0, 4.4
_DPI = 150


def save(figures: Mapping[str, Callable[[], Figure | None]], folder: Path) -> list[Path]:
    """Draw figures in the report's style and write each as SVG and PNG; return what was written.

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
    with matplotlib.rc_context(STYLE):
        for name, draw in figures.items():
            figure = draw()
            if figure is None:
                continue
            for suffix, options in ((".svg", {"metadata": {"Date": None}}), (".png", {"dpi": _DPI})):
                path = folder / f"{name}{suffix}"
                figure.savefig(path, **options)
                written.append(path)
    return written


def count_tick(value: float) -> str:
    """Format a number of any size: powers of ten from 10⁵ on."""
    exponent = round(math.log10(value))
    if exponent < 5:
        return f"{value:,g}"
    power = "10" + str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    factor = value / 10**exponent
    return power if abs(factor - 1) < 0.01 else f"{value:.3g}"


def coloured(index: int) -> dict[str, Any]:
    """Return colour and marker of one of few."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def grey(index: int) -> dict[str, Any]:
    """Markers filled, then hollow, then both again in other greys."""
    turn = index // len(MARKERS)
    fill = "none" if turn % 2 else "full"
    shade = GREYS[turn // 2 % len(GREYS)]
    return {"color": shade, "marker": MARKERS[index % len(MARKERS)], "fillstyle": fill}


def marker(style: Mapping[str, Any]) -> dict[str, Any]:
    """Return a style with sizes, smaller for grey ones; without its line."""
    look = {name: value for name, value in style.items() if name != "linestyle"}
    grey = style["color"] in GREYS
    return look | {"markersize": 3.5 if grey else 4.5, "linewidth": 0.8 if grey else 1.5}


def head(figure: Figure, title: str, lines: Sequence[str]) -> None:
    """Put a title and lines of text above the axes, which make room for them."""
    height_in = figure.get_figheight()
    band_in = 0.42 + 0.17 * len(lines)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, 0, 1, 1 - band_in / height_in))
    figure.text(0.008, 1 - 0.09 / height_in, title, va="top", fontsize=12, fontweight="bold")
    figure.text(0.008, 1 - 0.34 / height_in, "\n".join(lines), va="top", fontsize=8.5, color="#555555")


def value_ticks(axis: Axes, values: Sequence[int], width_in: float) -> None:
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


def log_ticks(axis: Any, tick: Callable[[float], str]) -> None:
    """Label whole decades, and 2 and 5 between them where the axis spans few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    steps: Iterable[float] = (1.0,) if math.log10(high / low) > 2.5 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=tuple(steps), numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axis.set_minor_formatter(NullFormatter())


def time_tick(value_s: float) -> str:
    """Format a time as shortly as an axis wants it.

    >>> [time_tick(value) for value in (2e-5, 0.001, 5)]
    ['20 µs', '1 ms', '5 s']
    """
    units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
    scale, unit = next(((scale, unit) for scale, unit in units if value_s >= 0.999 * scale), (1e-9, "ns"))
    return f"{value_s / scale:.3g} {unit}"


def panel_columns(count: int) -> int:
    """Return how many panels stand side by side: up to three in one row, more in two."""
    return count if count <= 3 else math.ceil(count / 2)


def panels_height_in(count: int) -> float:
    """Return a height for so many panels; the second row of them is a little lower."""
    rows = math.ceil(count / panel_columns(count))
    return rows * HEIGHT_IN - 1.2 * (rows - 1)


def panels(count: int, height_in: float = HEIGHT_IN) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels that share their axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    columns = panel_columns(count)
    rows = math.ceil(count / columns)
    grid = figure.subplots(rows, columns, sharex=count > 1, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.set_axis_off()
    for above in axes[count - columns : (rows - 1) * columns]:  # nothing below: its numbers are the column's
        above.tick_params(labelbottom=True)
    return figure, axes[:count]


def name_axes(axes: Sequence[Axes], below: str, beside: str) -> None:
    """Name the outer axes of a grid of panels."""
    columns = panel_columns(len(axes))
    for index, axis in enumerate(axes):
        if index % columns == 0:
            axis.set_ylabel(beside)
        if index + columns >= len(axes):
            axis.set_xlabel(below)
