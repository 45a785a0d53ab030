"""A run as one page: a single HTML file that needs no network, and no script but to sort and to filter.

The figures and their texts are those of :mod:`convbench.report.tables`. Markup is made by :func:`_tag`, which escapes
every text that is not markup already, so that nothing in a record can become any.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from convbench.bench import statistics
from convbench.bench.environment import thread_note
from convbench.bench.record import STATUSES
from convbench.report import accuracy, machine, tables
from convbench.report.text import DASH, Grid, human_number, missing

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Page", "page"]

#: Column of the comparison → the raw figure behind it.
_RAW = {
    "time": "time_s",
    "95 % interval": "low_s",
    "speed-up": "speedup",
    "with prepare": "speedup_with_prepare",
    "GFLOP/s": "effective_gflop_per_s",
    "executed": "executed_gflop_per_s",
    "error": "error_max_eps",
    "bound": "error_bound_eps",
    "workspace": "workspace_declared_bytes",
    "measured": "workspace_measured_bytes",
}
_MORE_IS_BETTER = ("speed-up", "with prepare", "GFLOP/s", "executed")
_PLOTS = {"time": "Time", "speedup": "Speed-up", "error": "Error", "accuracy": "Accuracy"}
_STATUS_MEANS = {
    "ok": "verified, and timed unless the run is for accuracy alone",
    "unsupported": "the backend does not do this, with its reason",
    "unavailable": "a library or a device is missing",
    "skipped": "it would take longer, or need more memory, than the limit, or the run's time was spent",
    "wrong": "the result is not right: it has no time",
    "failed": "an error came instead of a result",
    "timeout": "it did not end in time",
    "out-of-memory": "it outgrew its memory",
    "crashed": "its process died",
}


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
    """

    title: str
    table: pd.DataFrame
    baseline: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    plots: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, Grid] = field(default_factory=dict)
    unread: Sequence[str] = ()
    timed: bool = True


def page(content: Page) -> str:
    """Return the page as HTML."""
    folder = files("convbench.report")
    template = Template(folder.joinpath("page.html").read_text(encoding="utf-8"))
    summary = tables.overview(content.table) if content.timed else accuracy.overview(content.table)
    narrow, wide = ([entry for entry in summary.further if entry.wide is is_wide] for is_wide in (False, True))
    extras = [*wide, *(tables.Section(title, grid) for title, grid in content.extras.items())]
    sections = [
        ("What went wrong", _problems(content)),
        *((entry.title, _entry(entry)) for entry in narrow),
        ("Plots", [_figure(name, svg) for name, svg in content.plots.items()]),
        ("Overview", _overview(summary)),
        *((entry.title, _entry(entry)) for entry in extras),
        ("All results", _results(content)),
        ("Environment", _environment(content.environment)),
    ]
    shown = [(title, re.sub(r"\W+", "-", title.lower()), parts) for title, parts in sections if parts]
    body = [
        _tag("header", *_header(content), _tag("nav", *(_link(title, anchor) for title, anchor, _ in shown))),
        _tag("main", *(_section(title, anchor, parts) for title, anchor, parts in shown)),
    ]
    return template.substitute(
        title=escape(f"convbench: {content.title}"),
        style=folder.joinpath("page.css").read_text(encoding="utf-8").rstrip(),
        script=folder.joinpath("page.js").read_text(encoding="utf-8").rstrip(),
        body="\n".join(body),
    )


# -- markup -----------------------------------------------------------------------------------------


class _Html(str):
    """Text that is markup."""

    __slots__ = ()


def _tag(name: str, /, *children: str, **attributes: str | bool | None) -> _Html:
    """Return an element; children are escaped unless they are markup, attributes always.

    >>> _tag("td", "a < b", _tag("br"), title='"x"', class_="n", hidden=True, id=None)
    '<td title="&quot;x&quot;" class="n" hidden>a &lt; b<br></td>'
    """
    texts = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    head = "".join(
        f" {key}" if value is True else f' {key}="{escape(str(value))}"'
        for key, value in texts.items()
        if value not in (None, False)
    )
    if name in ("br", "input"):
        return _Html(f"<{name}{head}>")
    inside = "".join(child if isinstance(child, _Html) else escape(child) for child in children)
    return _Html(f"<{name}{head}>{inside}</{name}>")


def _link(title: str, anchor: str) -> _Html:
    return _tag("a", title, href=f"#{anchor}")


def _section(title: str, anchor: str, parts: Sequence[_Html]) -> _Html:
    return _tag("section", _tag("h2", title), *(_Html(f"\n{part}") for part in parts), id=anchor)


def _scroll(table: _Html, label: str) -> _Html:
    return _tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def _list(items: Sequence[str], class_: str | None = None) -> list[_Html]:
    return [_tag("ul", *(_tag("li", item) for item in items), class_=class_)] if items else []


def _grid(grid: Grid, label: str = "table") -> _Html:
    """Return a grid of :mod:`convbench.report.text`; the first cell of a row is its heading."""
    sides = ["n" if column.right else None for column in grid.columns]
    heads = [
        _tag("th", column.title, scope="col", class_=side) for column, side in zip(grid.columns, sides, strict=True)
    ]
    body = []
    for row in grid.rows:
        if row.title:
            body.append(_tag("tr", _tag("th", row.title, colspan=str(len(heads)), scope="colgroup")))
            continue
        cells = [
            _tag("td" if i else "th", cell, class_=_classes(sides[i], i in row.marked), scope=None if i else "row")
            for i, cell in enumerate(row.cells)
        ]
        if row.sentence:
            cells.append(_tag("td", row.sentence, colspan=str(len(heads) - len(cells)), class_="reason"))
        cells += [_tag("td")] * (0 if row.sentence else len(heads) - len(cells))
        body.append(_tag("tr", *cells))
    return _scroll(_tag("table", _head(heads), _body(body)), label)


def _head(cells: Sequence[_Html]) -> _Html:
    return _tag("thead", _tag("tr", *cells))


def _body(rows: Sequence[_Html]) -> _Html:
    return _tag("tbody", *(_Html(f"\n{row}") for row in rows))


def _classes(side: str | None, best: bool) -> str | None:
    return " ".join(filter(None, [side, "best" if best else None])) or None


# -- what was compared, and who is fastest ----------------------------------------------------------


def _header(content: Page) -> list[_Html]:
    parts = [_tag("h1", content.title), _tag("p", *_summary(content))]
    if content.environment:
        parts.append(_tag("p", machine(content.environment), class_="dim"))
    notes = [thread_note(content.environment), *content.unread]
    return [*parts, *(_tag("p", note, class_="warn") for note in notes if note)]


def _summary(content: Page) -> list[str]:
    """Say what was compared, and who is fastest: how often, and by how much over the baseline."""
    table = content.table
    common = tables.layout_of_table(table).common
    parts: list[str] = [f"{_count(table['backend'].nunique(), 'backend')} on {_count(table['case'].nunique(), 'case')}"]
    parts += [" (all of them ", _tag("code", common), ")"] if common else []
    if not content.timed:
        return [*parts, ", verified and not timed: errors and their bounds."]
    means = _rows(statistics.geometric_means(table, table["speedup"]))
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


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _problems(content: Page) -> list[_Html]:
    problems = tables.problems(content.table)
    return [_tag("pre", "\n".join(problems), class_="bad scroll")] if problems else []


def _entry(entry: tables.Section) -> list[_Html]:
    legend = [_tag("p", entry.legend, class_="dim")] if entry.legend else []
    return [_grid(entry.grid, entry.title), *legend]


def _sorting(title: str, kind: str) -> _Html:
    return _tag("th", title, scope="col", class_="n" if "number" in kind else None, data_sort=kind)


def _number(text: str, value: float | None, best: bool = False) -> _Html:
    raw = None if value is None or missing(value) else f"{value:.9g}"
    return _tag("td", text, class_=_classes("n", best), data_v=raw)


# -- plots ------------------------------------------------------------------------------------------


def _figure(name: str, svg: str) -> _Html:
    return _tag("figure", _inline(svg, name, _PLOTS.get(name, name)))


def _inline(svg: str, name: str, label: str) -> _Html:
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
    return _tag("svg", _Html(inside), viewBox=box, role="img", aria_label=label, style=f"max-width: {width}pt")


# -- tables -----------------------------------------------------------------------------------------


def _overview(summary: tables.Overview) -> list[_Html]:
    parts: list[_Html] = []
    for title, grid in summary.grids.items():
        parts += [_tag("h3", title)] if title else []
        parts.append(_grid(grid, title or "times"))
    marked = any(row.marked for grid in summary.grids.values() for row in grid.rows)
    parts += [_tag("p", tables.MARK, class_="dim")] if marked else []
    return [*parts, *_list(summary.notes)]


def _results(content: Page) -> list[_Html]:
    """Return filters, the table with a row for each case and backend, and its legend."""
    table = content.table
    statuses = [status for status in STATUSES if status in set(table["status"])]
    meanings = tables.legend(table, content.baseline) if content.timed else accuracy.LEGEND
    legend = [part for name, text in meanings.items() for part in (_tag("dt", name), _tag("dd", text))]
    legend += [part for name in statuses for part in (_tag("dt", name), _tag("dd", _STATUS_MEANS[name]))]
    return [
        _filters(tables.backend_order(table), statuses),
        _scroll(_full_table(content), "all results"),
        _tag("details", _tag("summary", "What the columns and statuses mean"), _tag("dl", *legend), open=True),
    ]


def _filters(backends: Sequence[str], statuses: Sequence[str]) -> _Html:
    search = _tag("input", type="search", name="text", placeholder="k3 fft …", autocomplete="off")
    everything = (
        _tag("button", "all", type="button", class_="plain", data_all="yes"),
        " ",
        _tag("button", "none", type="button", class_="plain", data_all="no"),
    )
    return _tag(
        "form",
        _tag("label", "Rows with all of these words (* for anything): ", search),
        _tag("fieldset", "Status: ", *_boxes("status", statuses)),
        _tag(
            "fieldset",
            _tag(
                "details",
                _tag("summary", "Backends"),
                *everything,
                _tag("div", *_boxes("backend", backends), class_="choices"),
            ),
        ),
        _tag("output", id="results-count", class_="dim"),
        id="filters",
        class_="filters",
        hidden=True,
    )


def _boxes(name: str, values: Sequence[str]) -> list[_Html]:
    return [
        _tag("label", _tag("input", type="checkbox", name=name, value=value, checked=True), f" {value} ")
        for value in values
    ]


def _full_table(content: Page) -> _Html:
    grid = tables.comparison(content.table)
    kept = [i for i, column in enumerate(grid.columns) if i and _is_used(grid, i)][:-1]
    titles = [grid.columns[i].title for i in kept]
    heads = [
        _tag("th", "case", scope="col", data_sort="number"),
        _sorting("backend", "text"),
        _sorting("status", "text"),
        *(_sorting(title, f"number {'descending' * (title in _MORE_IS_BETTER)}".strip()) for title in titles),
        _tag("th", "again", scope="col", class_="again"),
    ]
    return _tag("table", _head(heads), _body(list(_full_rows(content, grid, kept))), class_="sortable", id="results")


def _is_used(grid: Grid, column: int) -> bool:
    """Return whether a column says anything; the last one always does."""
    texts = (row.cells[column] for row in grid.rows if column < len(row.cells))
    return column == len(grid.columns) - 1 or any(text != DASH for text in texts)


def _full_rows(content: Page, grid: Grid, kept: Sequence[int]) -> Iterator[_Html]:
    """Yield the rows of the comparison, each with its case, its raw figures and the command that repeats it."""
    figures = {(row["case"], row["backend"]): row for row in _rows(content.table)}
    cases = iter(enumerate(dict.fromkeys(content.table["case"])))
    case = head = ""
    rank = 0
    for row in grid.rows:
        if row.title:
            (rank, case), head = next(cases), row.title
            continue
        figure = figures[case, row.cells[0]]
        ok = not row.sentence
        cells = [
            _number(row.cells[i], figure[_RAW[grid.columns[i].title]], i in row.marked) if ok else _tag("td")
            for i in kept
        ]
        bad = STATUSES.get(figure["status"], True)
        yield _tag(
            "tr",
            _tag("th", head, scope="row", title=case, data_v=str(rank)),
            _tag("td", row.cells[0]),
            _tag("td", row.sentence or row.cells[-1], class_="reason bad" if bad else "reason"),
            *cells,
            _tag("td", _again(figure, content.timed), class_="again"),
            data_backend=row.cells[0],
            data_status=figure["status"],
        )


def _again(figure: Mapping[str, Any], timed: bool) -> _Html:
    command = ["convbench", "run", "--spec", figure["case"], "--backends", figure["backend"]]
    command += [] if missing(figure["threads"]) else ["--threads", str(figure["threads"])]
    command += [] if timed else ["--accuracy"]
    return _tag("details", _tag("summary", "command"), _tag("code", shlex.join(command)))


# -- the environment --------------------------------------------------------------------------------


def _environment(environment: Mapping[str, Any]) -> list[_Html]:
    if not environment:
        return []
    facts = {
        "machine": machine(environment),
        "time": environment.get("time"),
        "command": environment.get("command_line"),
        "git revision": environment.get("git_revision"),
        "run": environment.get("run_id"),
    }
    short = [part for name, fact in facts.items() if fact for part in (_tag("dt", name), _tag("dd", str(fact)))]
    rows = [_tag("tr", _tag("th", name, scope="row"), _tag("td", text)) for name, text in _flat(environment)]
    everything = _tag("table", _body(rows), class_="facts")
    whole = _tag("details", _tag("summary", "All of environment.json"), _scroll(everything, "environment"))
    return [_tag("dl", *short), whole]


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


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
