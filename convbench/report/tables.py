"""The tables of a run, gathered: its figures, their comparison, the overview, the summaries."""

from __future__ import annotations

from convbench.bench.statistics import fastest
from convbench.report.comparison import CAVEAT, MARK, comparison, csv_text, legend, problems, result_row
from convbench.report.figures import backend_order, figures, layout_of_table, usual_baseline
from convbench.report.overview import Overview, caveat_notes, overview
from convbench.report.summaries import Section, means_section, totals_section

__all__ = [
    "CAVEAT",
    "MARK",
    "Overview",
    "Section",
    "backend_order",
    "caveat_notes",
    "comparison",
    "csv_text",
    "fastest",
    "figures",
    "layout_of_table",
    "legend",
    "means_section",
    "overview",
    "problems",
    "result_row",
    "totals_section",
    "usual_baseline",
]
