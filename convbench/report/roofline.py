"""The roofline plot: work that each pair really does, against what this machine could do at most.

After Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009. The height of a point over that of the roof above it is
the ``limit_share`` of the tables.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from convbench.bench.limits import ROOFS, peak_rate, roof_name
from convbench.report import drawing
from convbench.report.layout import Layout, data_title
from convbench.report.plots import drawable_times, styles
from convbench.report.tables import layout_of_table
from convbench.report.text import human_number, missing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["disturbance", "roofline_figure", "save_roofline"]

_MOST_PANELS = 4
_UNDISTURBED = 0.7  # of the best rate of a matrix product, what the median one has on a machine left alone
_NOTE_CHARACTERS = 125
_LABEL_PT = 7.5
_FAINT, _STRONG = 0.45, 1.0
_WAYS = [(1, 0), (0, 1), (-1, 0), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8)]
_REACHES_PT = (7, 15, 24, 34)


def save_roofline(table: pd.DataFrame, limits: Mapping[str, Any] | None, folder: Path) -> list[Path]:
    """Write roofline.svg and roofline.png.

    Parameters
    ----------
    table : DataFrame
        From :func:`convbench.report.tables.figures`.
    limits : mapping or None
        From :func:`convbench.bench.limits.measure_limits`, as environment.json has them.
    folder : Path

    Returns
    -------
    list of Path
        What was written; nothing without limits, or where they say nothing of any pair.

    Raises
    ------
    MissingDependency
        Without matplotlib.
    """
    return drawing.save({"roofline": partial(roofline_figure, table, limits)}, folder)


def roofline_figure(table: pd.DataFrame, limits: Mapping[str, Any] | None) -> Figure | None:
    """Draw executed GFLOP/s against arithmetic intensity below the roofs: a panel for each dtype that bounds.

    The fastest of each case stands out and has its case's name; all others are faint. None if there is nothing to draw.
    """
    if not limits or not limits.get("copy_bytes_per_s"):
        return None
    timed = drawable_times(table)
    points = _points(timed, limits)
    if points.empty:
        return None
    layout = layout_of_table(table)
    panels = _panels(points, layout)
    looks = {name: look for name, look in styles(table).items() if name in set(points["backend"])}
    height_in = max(5.4, 1.6 + 0.18 * len(looks), drawing.panels_height_in(len(panels)))
    figure, axes = drawing.panels(len(panels), height_in=height_in)
    for axis, panel in zip(axes, panels, strict=True):
        _draw_points(axis, panel.points, looks)
        axis.set(xscale="log", yscale="log")
    copy = float(limits["copy_bytes_per_s"])
    left, right = _frame(axes[0], points, copy)
    for axis, panel in zip(axes, panels, strict=True):
        peak = peak_rate(panel.roof, limits)
        xs = [left, peak / copy, right]
        ys = [min(peak, x * copy) / 1e9 for x in xs]
        product = _rate("gemm", panel.roof, limits)
        if product < peak:
            axis.plot([product / copy, right], [product / 1e9] * 2, color="#000000", linewidth=0.8, linestyle=":")
        axis.plot(xs, ys, color="#000000", linewidth=1.5, zorder=1.5, solid_capstyle="butt")
        axis.set_title(_panel_title(panel, limits), fontsize=9)
        drawing.log_ticks(axis.xaxis, drawing.count_tick)
        drawing.log_ticks(axis.yaxis, drawing.count_tick)
    drawing.name_axes(axes, "arithmetic intensity in FLOP/byte", "executed GFLOP/s")
    drawing.head(figure, "Roofline", _notes(layout, limits, len(timed) - len(points)))
    handles = [_handle(name, look) for name, look in looks.items()]
    size = None if len(handles) <= drawing.MANY_BACKENDS else 8
    figure.legend(handles=handles, loc="outside right center", fontsize=size)
    _label(figure, axes, panels)
    return figure


class _Panel(NamedTuple):
    """Points below one roof; ``names`` says for each of its cases what to call it there."""

    title: str
    roof: str
    points: pd.DataFrame
    names: Mapping[str, str]


def _panels(points: pd.DataFrame, layout: Layout) -> list[_Panel]:
    """Part the points by roof, and as the layout does it if that gives no more than a few panels."""
    roofs = [dtype for dtype in dict.fromkeys(ROOFS.values()) if dtype in set(points["roof"])]
    whole = [_Panel("", roof, points[points["roof"] == roof], {case: layout.short(case) for case in layout.labels})
             for roof in roofs]  # fmt: skip
    parted = []
    for panel in whole:
        for title, cases in layout.panels.items():
            names = {case: f"{layout.symbol}{value}" for value, case in cases.items()}
            rows = panel.points[panel.points["case"].isin(names)]
            if len(rows):
                parted.append(_Panel(title, panel.roof, rows, names))
    return parted if 0 < len(parted) <= _MOST_PANELS else whole


def _points(timed: pd.DataFrame, limits: Mapping[str, Any]) -> pd.DataFrame:
    """Return the pairs that a roof is known for, with their place in the plot; ``best`` is the fastest of a case."""
    own = list(timed["dtype"])
    summed = list(timed["accumulate_dtype"]) if "accumulate_dtype" in timed else own
    dtypes = [str(other if missing(dtype) else dtype) for dtype, other in zip(summed, own, strict=True)]
    roofs = [ROOFS.get(dtype, "") for dtype in dtypes]
    work, moved = timed["flops_executed"].astype(float), timed["bytes_min"].astype(float)
    points = timed.assign(
        roof=roofs,
        limit=[peak_rate(roof, limits) for roof in roofs],
        intensity=work / moved,
        rate=work / timed["time_s"] / 1e9,
        rate_low=work / timed["high_s"] / 1e9,
        rate_high=work / timed["low_s"] / 1e9,
        best=timed["time_s"] == timed.groupby("case")["time_s"].transform("min"),
    )
    return points[(points["limit"] > 0) & (work > 0) & (moved > 0) & timed["device"].isin(["cpu", ""])]


def _draw_points(axis: Axes, points: pd.DataFrame, looks: Mapping[str, Mapping[str, Any]]) -> None:
    for backend, look in looks.items():
        for best, rows in points[points["backend"] == backend].groupby("best"):
            alpha, order = (_STRONG, 3) if best else (_FAINT, 2)
            axis.vlines(
                rows["intensity"], rows["rate_low"], rows["rate_high"], color=look["color"], alpha=alpha, linewidth=1
            )
            mark = drawing.marker(look) | {"linestyle": "none", "alpha": alpha, "zorder": order}
            if best:
                mark |= {"markersize": 7, "markeredgecolor": "#000000", "markeredgewidth": 0.8}
            axis.plot(rows["intensity"], rows["rate"], **mark)


def _handle(name: str, look: Mapping[str, Any]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=name, linestyle="none", **drawing.marker(look))


def _frame(axis: Axes, points: pd.DataFrame, copy_bytes_per_s: float) -> tuple[float, float]:
    """Let the axes, which share their range, reach a little beyond all points and the ridges of all roofs."""
    ridges = points["limit"] / copy_bytes_per_s
    left = min(float(points["intensity"].min()) / 1.5, float(ridges.min()) / 3)
    right = max(float(points["intensity"].max()) * 1.5, float(ridges.max()) * 3)
    lowest, highest = float(points["rate"].min()), max(float(points["rate"].max()), float(points["limit"].max()) / 1e9)
    axis.set_xlim(left, right)
    axis.set_ylim(min(lowest / 1.6, left * copy_bytes_per_s / 1e9), highest * 1.8)
    return left, right


def _panel_title(panel: _Panel, limits: Mapping[str, Any]) -> str:
    peak, product = (_rate(kind, panel.roof, limits) for kind in ("fma", "gemm"))
    rates = {name: rate for name, rate in (("multiply–adds", peak), ("product", product)) if not missing(rate)}
    work = ", ".join(f"{name} {human_number(rate / 1e9)}" for name, rate in rates.items())
    copy = f"copy {human_number(limits['copy_bytes_per_s'] / 1e9)} GB/s"
    lines = [data_title(panel.title), f"sums in {panel.roof}", f"{work} GFLOP/s, {copy}"]
    return "\n".join([", ".join(filter(None, lines[:2])), lines[2]])


def _rate(kind: str, roof: str, limits: Mapping[str, Any]) -> float:
    return float((limits.get(f"{kind}_flop_per_s") or {}).get(roof) or math.nan)


def _notes(layout: Layout, limits: Mapping[str, Any], left_out: int) -> list[str]:
    threads = limits.get("threads")
    counted = f" with {threads} thread{'s' * (threads != 1)}" if threads else ""
    with_peak = bool(limits.get("fma_flop_per_s"))
    above = "operands stay in a cache" + ", or a kernel beats BLAS" * (not with_peak)
    notes = [
        layout.common,
        "intensity: operations executed / bytes moved at least; outlined and named: the fastest of each case; "
        "bar: 95 % interval",
        f"roofs: {roof_name(limits)} and copy, the best measured{counted}; above one: {above}"
        + "; dotted: the best matrix product" * with_peak,
    ]
    notes += textwrap.wrap(disturbance(limits), _NOTE_CHARACTERS)
    if left_out:
        pairs = f"{left_out} pair{'s' * (left_out > 1)}"
        notes.append(f"left out: {pairs} for which no limit is known (wide integers, complex numbers, other devices)")
    return [note for note in notes if note]


def disturbance(limits: Mapping[str, Any] | None) -> str:
    """Say that the machine was disturbed while its limits were measured; "" if it was not, or that is not known.

    The limit is the best of many, so that limits measured amid others' work are too low.

    >>> disturbance({"gemm_flop_per_s": {"float32": 100e9}, "gemm_median_flop_per_s": {"float32": 50e9}})[:51]
    'the machine was disturbed while its limits were mea'
    """
    best, usual = ((limits or {}).get(f"gemm{which}_flop_per_s") or {} for which in ("", "_median"))
    shares = {dtype: usual[dtype] / best[dtype] for dtype in best if usual.get(dtype) and best[dtype]}
    low = [f"{100 * share:.0f} % in {dtype}" for dtype, share in shares.items() if share < _UNDISTURBED]
    if not low:
        return ""
    return (
        "the machine was disturbed while its limits were measured: they may be too low, and shares of them too high "
        f"(median matrix product over the best: {', '.join(low)})"
    )


# -- labels that do not overlap ---------------------------------------------------------------------


class _Box(NamedTuple):
    """In points of the printer."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: _Box) -> float:
        """Return the area that both cover."""
        across = min(self.right, other.right) - max(self.left, other.left)
        return max(0.0, across) * max(0.0, min(self.top, other.top) - max(self.bottom, other.bottom))

    @property
    def area(self) -> float:
        """Its area."""
        return (self.right - self.left) * (self.top - self.bottom)


def _label(figure: Figure, axes: Sequence[Axes], panels: Sequence[_Panel]) -> None:
    """Name the case of each point that stands out, the name beside it and on nothing else if there is room."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2, foreground="#ffffff")]
    figure.draw_without_rendering()  # only now is it known where the axes are
    for axis, panel in zip(axes, panels, strict=True):
        points = panel.points
        scale = 72 / figure.dpi
        places = axis.transData.transform(points[["intensity", "rate"]].to_numpy(float)) * scale
        frame = _Box(*(float(value) * scale for value in axis.bbox.extents))
        taken = [_around(x, y, 4 if best else 2) for (x, y), best in zip(places, points["best"], strict=True)]
        for (x, y), (_, row) in zip(places, points.iterrows(), strict=True):
            if not row["best"]:
                continue
            text = panel.names[row["case"]]
            dx, dy = min(_offsets(), key=lambda offset: _cost(_text_box(text, x, y, offset), taken, frame, offset))
            taken.append(_text_box(text, x, y, (dx, dy)))
            line = {"arrowstyle": "-", "color": "#666666", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
            far = math.hypot(dx, dy) > _REACHES_PT[0] * 1.5
            axis.annotate(
                text, (row["intensity"], row["rate"]), xytext=(dx, dy), textcoords="offset points", fontsize=_LABEL_PT,
                ha="center", va="center", zorder=4, arrowprops=line if far else None, in_layout=False,
                path_effects=halo,
            )  # fmt: skip


def _offsets() -> Iterator[tuple[float, float]]:
    for reach in _REACHES_PT:
        for across, up in _WAYS:
            yield across * reach, up * reach


def _around(x: float, y: float, radius: float) -> _Box:
    return _Box(x - radius, y - radius, x + radius, y + radius)


def _text_box(text: str, x: float, y: float, offset: tuple[float, float]) -> _Box:
    half = 0.36 * _LABEL_PT * len(text)
    return _Box(x + offset[0] - half, y + offset[1] - 4.5, x + offset[0] + half, y + offset[1] + 4.5)


def _cost(box: _Box, taken: Sequence[_Box], frame: _Box, offset: tuple[float, float]) -> float:
    """Return what it covers and what of it is outside the axes; of equal places the nearer one is better."""
    outside = box.area - box.overlap(frame)
    return sum(box.overlap(other) for other in taken) + 10 * outside + 0.05 * math.hypot(*offset)
