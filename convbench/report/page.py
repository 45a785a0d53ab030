"""A run as one page: a single HTML file that needs no network, and scripts only to sort, to filter and to explore.

The figures and their texts are those of :mod:`convbench.report.tables`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from convbench.bench import statistics
from convbench.bench.environment import thread_note
from convbench.bench.frames import rows_of
from convbench.report import accuracy, machine, tables
from convbench.report.page_data import as_json, page_data
from convbench.report.page_markup import Html, grid_table, link, listed, scroll, section, table_body, tag
from convbench.report.page_results import results_section
from convbench.report.roofline import disturbance
from convbench.report.text import DASH, Grid, human_number

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Page", "method_notes", "page"]

_SCRIPTS = ("page_state.js", "page_table.js", "page_charts.js", "page_views.js", "page.js")  # one module, in this order
_PLOTS = {"time": "Time", "speedup": "Speed-up", "error": "Error", "accuracy": "Accuracy", "pareto": "Pareto front",
          "roofline": "Roofline"}  # fmt: skip
_PYTEST = (
    "These times were taken by pytest-benchmark, whose method is weaker than that of convbench run: all of them come "
    "from one process and one pass, each pair measured once, in a fixed order and not interleaved with its rivals. "
    "Drift, heat and the luck of one process therefore fall on some backends and not on others, and the intervals are "
    "blind to it: they are too narrow. No backend is compared with itself, so that the rate of false wins is not "
    "known, and refused pairs leave no record. For times that hold, run the same cases with convbench run."
)


@dataclass(frozen=True)
class Page:
    """What stands on the page of a run.

    Attributes
    ----------
    title : str
        The suites, or the run's name.
    table : DataFrame
        From :func:`convbench.report.tables.figures`.
    baseline : str
        Of its speed-ups.
    environment : mapping
        As in ``environment.json``.
    plots : mapping of str to str
        Name → SVG, as Matplotlib writes it.
    extras : mapping of str to Grid
        Further tables, by their titles.
    unread : sequence of str
        What kept records from being read.
    timed : bool
        False for a run that looks at errors alone.
    method : sequence of str
        How it was measured, and what that is worth; see :func:`method_notes`.
    """

    title: str
    table: pd.DataFrame
    baseline: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    plots: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, Grid] = field(default_factory=dict)
    unread: Sequence[str] = ()
    timed: bool = True
    method: Sequence[str] = ()


def method_notes(records: pd.DataFrame, overhead: float | None = None) -> list[str]:
    """Say how a run measured: mode, passes, threads, and the time that went elsewhere.

    Parameters
    ----------
    records : DataFrame
        As :func:`convbench.load_results` returns it.
    overhead : float, optional
        From :func:`convbench.bench.record.overhead`.
    """
    timed = records[records["samples_s"].map(len) > 0]
    if timed.empty:
        return []
    modes = [_MODES.get(mode, str(mode)) for mode in timed["mode"].dropna().unique()]
    passes, threads = timed["pass"].nunique(), timed["threads"].dropna().unique()
    notes = [
        "; ".join([*modes, _count(passes, "pass", "passes"), *(_count(int(count), "thread") for count in threads)])
    ]
    if overhead is not None:
        notes.append(
            f"overhead: {overhead:.0%} of the run's time was spent outside warm-up and samples".replace("%", " %")
        )
    return notes


_MODES = {
    "hot": "hot: every call has the same operands, and finds in the caches what fits",
    "cold": "cold: each call has other operands, beyond the last-level cache together; on a GPU the same ones, and its "
    "cache is flushed before each call",
}


def page(content: Page) -> str:
    """Return the page as HTML."""
    folder = files("convbench.report")
    template = Template(folder.joinpath("page.html").read_text(encoding="utf-8"))
    summary = tables.overview(content.table) if content.timed else accuracy.overview(content.table)
    narrow, wide = ([entry for entry in summary.further if entry.wide is is_wide] for is_wide in (False, True))
    extras = [*wide, *(tables.Section(title, grid) for title, grid in content.extras.items())]
    options = {"timed": content.timed, **(content.environment.get("options") or {})}
    sections = [
        ("What went wrong", _problems(content)),
        ("Plots", _plots(content)),
        *((entry.title, _entry(entry)) for entry in narrow),
        ("Overview", _overview(summary)),
        *((entry.title, _entry(entry)) for entry in extras),
        ("All results", results_section(content.table, content.baseline, content.timed, options)),
        ("Environment", _environment(content.environment)),
    ]
    shown = [(title, re.sub(r"\W+", "-", title.lower()), parts) for title, parts in sections if parts]
    body = [
        tag("header", *_header(content), tag("nav", *(link(title, anchor) for title, anchor, _ in shown))),
        tag("main", *(section(title, anchor, parts) for title, anchor, parts in shown)),
    ]
    return template.substitute(
        title=escape(f"convbench: {content.title}"),
        style=folder.joinpath("page.css").read_text(encoding="utf-8").rstrip(),
        data=as_json(page_data(content.table, content.baseline)),
        script="\n\n".join(folder.joinpath(name).read_text(encoding="utf-8").rstrip() for name in _SCRIPTS),
        body="\n".join(body),
    )


# -- what was compared, and who is fastest ----------------------------------------------------------


def _header(content: Page) -> list[Html]:
    """Return what a reader must know before any figure: result, machine, method, and what speaks against it."""
    noise = content.table.attrs.get("noise")
    method = [*content.method, *([str(noise)] if noise and noise.comparisons else [])]
    parts = [tag("h1", content.title), tag("p", *_summary(content))]
    if content.environment:
        parts.append(tag("p", machine(content.environment), class_="dim"))
    parts += listed(method, "dim method")
    disturbed = disturbance(content.environment.get("limits")) if content.timed else ""
    doubts = [thread_note(content.environment), disturbed, *tables.caveat_notes(content.table), *content.unread]
    if "pytest_benchmark" in content.environment:
        doubts.insert(0, _PYTEST)
    return [*parts, *listed([doubt for doubt in doubts if doubt], "warn")]


def _summary(content: Page) -> list[str]:
    """Say what was compared, and who is fastest: how often, and by how much over the baseline."""
    table = content.table
    common = tables.layout_of_table(table).common
    parts: list[str] = [f"{_count(table['backend'].nunique(), 'backend')} on {_count(table['case'].nunique(), 'case')}"]
    parts += [" (all of them ", tag("code", common), ")"] if common else []
    if not content.timed:
        return [*parts, ", verified and not timed: errors and their bounds."]
    means = rows_of(statistics.geometric_means(table, content.baseline))
    if not means:
        return [*parts, "; nothing was timed."]
    leaders = sorted((row for row in means if row["fastest"]), key=lambda row: -row["fastest"])
    won = [f"{row['backend']} in {row['fastest']}" for row in leaders[:_NAMED]]
    more = f"; {len(leaders) - _NAMED} more in fewer" if len(leaders) > _NAMED else ""
    parts.append(f". The fastest, or not separated from it: {', '.join(won)}{more}.")
    most = max(row["compared"] for row in means)  # means over few cases say little beside those over many
    compared = [row for row in means if 2 * row["compared"] >= most > 0 and row["backend"] != content.baseline]
    ahead = sorted(compared, key=lambda row: -row["speedup"])[:_NAMED]
    if ahead:
        over = [f"{row['backend']} {human_number(row['speedup'])}× ({row['compared']})" for row in ahead]
        parts.append(
            f" Speed-up over {content.baseline}, geometric mean over the cases that both did (their number): "
            f"{', '.join(over)}."
        )
    return parts


_NAMED = 4


def _count(number: int, what: str, many: str = "") -> str:
    return f"{number} {what if number == 1 else many or what + 's'}"


def _problems(content: Page) -> list[Html]:
    problems = tables.problems(content.table)
    return [tag("pre", "\n".join(problems), class_="bad scroll")] if problems else []


def _entry(entry: tables.Section) -> list[Html]:
    legend = [tag("p", entry.legend, class_="dim")] if entry.legend else []
    return [grid_table(entry.grid, entry.title), *legend]


# -- plots ------------------------------------------------------------------------------------------


def _plots(content: Page) -> list[Html]:
    """Return the places that the script draws into, and the fixed plots for print and where there is no script."""
    controls, drawing = tag("div", class_="controls"), tag("div", class_="drawing")
    tip = tag("div", class_="tip", role="status", hidden=True)
    legend = tag("div", class_="legend", role="group", aria_label="backends")
    cells = tag("div", class_="map scroll", tabindex="0", role="region", aria_label="who is fastest where")
    notes = [tag("p", text, class_="note dim") for text in ("", _MAP_NOTE, _PARETO_NOTE)]
    interactive = (
        _interactive("lines", "Figures against a number", controls, legend, drawing, notes[0], tip),
        _interactive("map", "Who is fastest where", cells, notes[1]),
        _interactive("pareto", "Error against time", controls, drawing, notes[2], tip),
    )
    figures = [_figure(name, svg) for name, svg in content.plots.items()]
    fixed = tag("details", tag("summary", "Fixed plots, as in the files"), *figures, class_="fixed", open=True)
    return [*interactive, *([fixed] if figures else [])]


_MAP_NOTE = (
    "Of all backends in the run, hidden ones too. Hatched: a tie, nothing separates these from the fastest. next: the "
    "time of the first backend that is not among them over the fastest one's, as 'over fastest' has it in the table."
)
_PARETO_NOTE = (
    "Lower left is better; large marks and the line: the front of the backends shown, beyond which none is both faster "
    "and more exact by its median. An exact result stands at the lower edge."
)


def _interactive(name: str, title: str, *children: Html) -> Html:
    return tag("section", tag("h3", title), *children, id=name, class_="interactive", hidden=True)


def _figure(name: str, svg: str) -> Html:
    return tag("figure", _inline(svg, name, _PLOTS.get(name, name)))


def _inline(svg: str, name: str, label: str) -> Html:
    """Return an SVG file of Matplotlib's as an element, its ids prefixed: several stand in one page.

    Its style sheet would hold for the whole page, so that page.css has those rules; ids that nothing refers to go.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r"(?:xlink:)?href=\"#", f'href="#{name}-', svg).replace("url(#", f"url(#{name}-")
    root, _, inside = svg.partition(">")
    view = re.search(r'viewBox="([^"]*)"', root)
    box = view[1] if view else "0 0 648 317"
    inside = re.sub(r"\n\s*", "\n", inside.strip().removesuffix("</svg>"))
    width = box.split()[2]
    return tag("svg", Html(inside), viewBox=box, role="img", aria_label=label, style=f"max-width: {width}pt")


# -- tables -----------------------------------------------------------------------------------------


def _overview(summary: tables.Overview) -> list[Html]:
    parts: list[Html] = []
    for title, grid in summary.grids.items():
        parts += [tag("h3", title)] if title else []
        parts.append(grid_table(grid, title or "times"))
    marked = any(row.marked for grid in summary.grids.values() for row in grid.rows)
    parts += [tag("p", tables.MARK, class_="dim")] if marked else []
    return [*parts, *listed(summary.notes)]


# -- the environment --------------------------------------------------------------------------------


def _environment(environment: Mapping[str, Any]) -> list[Html]:
    if not environment:
        return []
    facts = {
        "machine": machine(environment),
        "time": environment.get("time"),
        "command": environment.get("command_line"),
        "git revision": environment.get("git_revision"),
        "run": environment.get("run_id"),
    }
    short = [part for name, fact in facts.items() if fact for part in (tag("dt", name), tag("dd", str(fact)))]
    rows = [tag("tr", tag("th", name, scope="row"), tag("td", text)) for name, text in _flat(environment)]
    everything = tag("table", table_body(rows), class_="facts")
    whole = tag("details", tag("summary", "All of environment.json"), scroll(everything, "environment"))
    return [tag("dl", *short), whole]


def _flat(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested mappings with their paths; a list of plain values is one leaf."""
    if isinstance(value, Mapping) and value:
        entries = [(str(key), entry) for key, entry in value.items()]
    elif isinstance(value, list) and any(isinstance(entry, (Mapping, list)) for entry in value):
        entries = [(str(number), entry) for number, entry in enumerate(value, 1)]
    else:
        separator = "\n" if isinstance(value, list) and any(len(str(entry)) > 20 for entry in value) else ", "
        yield (
            name,
            separator.join(map(str, value)) if isinstance(value, list) else DASH if value is None else str(value),
        )
        return
    for key, entry in entries:
        yield from _flat(entry, f"{name}.{key}".lstrip("."))
