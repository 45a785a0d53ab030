"""The figures of a run as the page's script reads them: one JSON object, columns instead of rows to keep it small."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convbench.bench.ratios import WIN_CONFIDENCE
from convbench.report import drawing, tables
from convbench.report.layout import axes_of, data_title
from convbench.report.plots import leaders_by_case, styles
from convbench.report.text import missing

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["as_json", "page_data"]

#: Figures of a row; what a table lacks is left out.
_COLUMNS = (
    "time_s", "low_s", "high_s", "speedup", "speedup_low", "speedup_high", "speedup_with_prepare",
    "effective_gflop_per_s", "executed_gflop_per_s", "flops_nominal", "error_max_eps", "error_bound_eps",
    "workspace_declared_bytes", "workspace_measured_bytes", "rank", "ratio_to_best", "ratio_low", "break_even_calls",
    "limit_share",
)  # fmt: skip
_DIGITS = 6
_LEAST_PASSES = 3


def page_data(table: pd.DataFrame, baseline: str) -> dict[str, Any]:
    """Return what the page draws, sorts and filters.

    Parameters
    ----------
    table : DataFrame
        From :func:`convbench.report.tables.figures`; its rows are those of the page's table, in its order.
    baseline : str
        Of speed-ups, unless the reader chooses another.

    Returns
    -------
    dict
        ``cases``, ``labels``; ``backends``, with ``looks`` (see :func:`_look`); ``axes``: numbers that vary, each with
        a value a case, and panels of [value, case number] pairs; ``columns`` (None where there is no figure) and the
        rows' ``case``, ``backend``, ``status`` and ``medians`` (seconds, one a pass); ``leads``: 1 the fastest of its
        case, 2 one of several that are not separated, 0 neither; ``quantiles`` of Student's t by the number of passes,
        at ``confidence``.
    """
    rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    layout = tables.layout_of_table(table)
    cases = list(dict.fromkeys(table["case"]))
    backends, looks = tables.backend_order(table), styles(table)
    numbers = {case: number for number, case in enumerate(cases)}
    places = {name: place for place, name in enumerate(backends)}
    passes = sorted({number for row in rows for number in row["pass_medians_s"]})
    leaders = leaders_by_case(table)
    return {
        "baseline": baseline,
        "cases": cases,
        "labels": [layout.labels[case] for case in cases],
        "backends": backends,
        "looks": [_look(looks[name]) for name in backends],
        "axes": _axes(cases, numbers),
        "case": [numbers[row["case"]] for row in rows],
        "backend": [places[row["backend"]] for row in rows],
        "status": [row["status"] for row in rows],
        "columns": {name: [_figure(row[name]) for row in rows] for name in _COLUMNS if name in table},
        "medians": [[_figure(row["pass_medians_s"].get(number)) for number in passes] for row in rows],
        "leads": [_lead(row["backend"], leaders[row["case"]]) for row in rows],
        "confidence": WIN_CONFIDENCE,
        "quantiles": _quantiles(len(passes)),
    }


def as_json(data: Mapping[str, Any]) -> str:
    """Return JSON that cannot end the element in which it stands."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _figure(value: float | None) -> float | int | None:
    if value is None or missing(value):
        return None
    rounded = float(f"{float(value):.{_DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded


def _lead(backend: str, leaders: set[str]) -> int:
    return 0 if backend not in leaders else 1 if len(leaders) == 1 else 2


def _look(style: Mapping[str, Any]) -> list[int]:
    """Return as numbers: colour (greys are negative), marker, whether it is filled, whether the line is dashed.

    The same as in the fixed plots.
    """
    colour = style["color"]
    index = drawing.COLOURS.index(colour) if colour in drawing.COLOURS else -1 - drawing.GREYS.index(colour)
    filled, dashed = style.get("fillstyle", "full") == "full", style["linestyle"] != "-"
    return [index, drawing.MARKERS.index(style["marker"]), int(filled), int(dashed)]


def _axes(cases: Sequence[str], numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the numbers that vary, that which shows most cases first."""
    return [
        {
            "varies": axis.varies,
            "title": axis.title,
            "values": [axis.values.get(case) for case in cases],
            "panels": [
                {"title": data_title(name), "points": [[value, numbers[case]] for value, case in points.items()]}
                for name, points in axis.panels.items()
            ],
        }
        for axis in axes_of(cases)
    ]


def _quantiles(passes: int) -> list[float | None]:
    """Return the two-sided quantile of Student's t for the mean of n values, n from 0 up.

    None below the passes from which ratios are paired, see :func:`convbench.bench.ratios.row_ratio`.
    """
    from scipy.stats import t

    known = [_figure(t.ppf((1 + WIN_CONFIDENCE) / 2, n - 1)) for n in range(_LEAST_PASSES, passes + 1)]
    return [*[None] * _LEAST_PASSES, *known]
