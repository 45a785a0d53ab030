"""A run as one page: a single HTML file that needs no network, and scripts only to sort, to filter and to explore.

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
from convbench.report.layout import axes_of
from convbench.report.page_data import as_json, page_data
from convbench.report.text import DASH, Grid, human_number, missing

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Page", "method_notes", "page"]

#: Column of the comparison → the raw figure behind it.
_RAW = {
    "rank": "rank",
    "time": "time_s",
    "95 % interval": "low_s",
    "over fastest": "ratio_to_best",
    "99 % interval": "ratio_low",
    "speed-up": "speedup",
    "with prepare": "speedup_with_prepare",
    "pays after": "break_even_calls",
    "GFLOP/s": "effective_gflop_per_s",
    "executed": "executed_gflop_per_s",
    "limit": "limit_share",
    "error": "error_max_eps",
    "bound": "error_bound_eps",
    "workspace": "workspace_declared_bytes",
    "measured": "workspace_measured_bytes",
}
_MORE_IS_BETTER = ("speed-up", "with prepare", "GFLOP/s", "executed", "limit")
#: Columns that can be held within a range, and an example of what to type.
_RANGES = {"time": "1 ms", "over fastest": "2×", "speed-up": "1×", "GFLOP/s": "10", "limit": "50 %", "error": "100",
           "workspace": "1 MiB"}  # fmt: skip
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
    "cold": "cold: each call has other operands, beyond the last-level cache together",
}


def page(content: Page) -> str:
    """Return the page as HTML."""
    folder = files("convbench.report")
    template = Template(folder.joinpath("page.html").read_text(encoding="utf-8"))
    summary = tables.overview(content.table) if content.timed else accuracy.overview(content.table)
    narrow, wide = ([entry for entry in summary.further if entry.wide is is_wide] for is_wide in (False, True))
    extras = [*wide, *(tables.Section(title, grid) for title, grid in content.extras.items())]
    sections = [
        ("What went wrong", _problems(content)),
        ("Plots", _plots(content)),
        *((entry.title, _entry(entry)) for entry in narrow),
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
        data=as_json(page_data(content.table, content.baseline)),
        script="\n\n".join(folder.joinpath(name).read_text(encoding="utf-8").rstrip() for name in _SCRIPTS),
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
    """Return what a reader must know before any figure: result, machine, method, and what speaks against it."""
    noise = content.table.attrs.get("noise")
    method = [*content.method, *([str(noise)] if noise and noise.comparisons else [])]
    parts = [_tag("h1", content.title), _tag("p", *_summary(content))]
    if content.environment:
        parts.append(_tag("p", machine(content.environment), class_="dim"))
    parts += _list(method, "dim method")
    doubts = [thread_note(content.environment), *tables.caveat_notes(content.table), *content.unread]
    if "pytest_benchmark" in content.environment:
        doubts.insert(0, _PYTEST)
    return [*parts, *_list([doubt for doubt in doubts if doubt], "warn")]


def _summary(content: Page) -> list[str]:
    """Say what was compared, and who is fastest: how often, and by how much over the baseline."""
    table = content.table
    common = tables.layout_of_table(table).common
    parts: list[str] = [f"{_count(table['backend'].nunique(), 'backend')} on {_count(table['case'].nunique(), 'case')}"]
    parts += [" (all of them ", _tag("code", common), ")"] if common else []
    if not content.timed:
        return [*parts, ", verified and not timed: errors and their bounds."]
    means = _rows(statistics.geometric_means(table, content.baseline))
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


def _problems(content: Page) -> list[_Html]:
    problems = tables.problems(content.table)
    return [_tag("pre", "\n".join(problems), class_="bad scroll")] if problems else []


def _entry(entry: tables.Section) -> list[_Html]:
    legend = [_tag("p", entry.legend, class_="dim")] if entry.legend else []
    return [_grid(entry.grid, entry.title), *legend]


# -- plots ------------------------------------------------------------------------------------------


def _plots(content: Page) -> list[_Html]:
    """Return the places that the script draws into, and the fixed plots for print and where there is no script."""
    controls, drawing = _tag("div", class_="controls"), _tag("div", class_="drawing")
    tip = _tag("div", class_="tip", role="status", hidden=True)
    legend = _tag("div", class_="legend", role="group", aria_label="backends")
    cells = _tag("div", class_="map scroll", tabindex="0", role="region", aria_label="who is fastest where")
    notes = [_tag("p", text, class_="note dim") for text in ("", _MAP_NOTE, _PARETO_NOTE)]
    interactive = (
        _interactive("lines", "Figures against a number", controls, legend, drawing, notes[0], tip),
        _interactive("map", "Who is fastest where", cells, notes[1]),
        _interactive("pareto", "Error against time", controls, drawing, notes[2], tip),
    )
    figures = [_figure(name, svg) for name, svg in content.plots.items()]
    fixed = _tag("details", _tag("summary", "Fixed plots, as in the files"), *figures, class_="fixed", open=True)
    return [*interactive, *([fixed] if figures else [])]


_MAP_NOTE = (
    "Of all backends in the run, hidden ones too. Hatched: a tie, nothing separates these from the fastest. next: the "
    "time of the fastest backend that is not among them, over the time shown."
)
_PARETO_NOTE = (
    "Lower left is better; large marks and the line: the front of the backends shown, beyond which none is both faster "
    "and more exact by its median. An exact result stands at the lower edge."
)


def _interactive(name: str, title: str, *children: _Html) -> _Html:
    return _tag("section", _tag("h3", title), *children, id=name, class_="interactive", hidden=True)


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
    grid = tables.comparison(table)
    kept = [i for i, column in enumerate(grid.columns) if i and _is_used(grid, i)][:-1]
    return [
        _filters(table, tables.backend_order(table), statuses, [grid.columns[i].title for i in kept]),
        _scroll(_full_table(content, grid, kept), "all results"),
        _tag("details", _tag("summary", "What the columns and statuses mean"), _tag("dl", *legend), open=True),
    ]


def _filters(table: pd.DataFrame, backends: Sequence[str], statuses: Sequence[str], titles: Sequence[str]) -> _Html:
    search = _tag("input", type="search", name="text", placeholder="k3 fft …", autocomplete="off")
    everything = (
        _tag("button", "all", type="button", class_="plain", data_all="yes"),
        " ",
        _tag("button", "none", type="button", class_="plain", data_all="no"),
    )
    numbers = [
        (axis.title, axis.varies, str(min(axis.values.values()))) for axis in axes_of(table["case"]) if axis.values
    ]
    numbers += [(title, _RAW[title], example) for title, example in _RANGES.items() if title in titles]
    ranges = _tag("div", *(part for number in numbers for part in _range(*number)), class_="ranges")
    return _tag(
        "form",
        _tag("label", "Rows with all of these words (* for anything): ", search),
        _tag("fieldset", _tag("legend", "Status"), *_boxes("status", statuses)),
        _tag("details", _tag("summary", "Ranges"), ranges),
        _tag(
            "details",
            _tag("summary", "Backends"),
            *everything,
            _tag("div", *_boxes("backend", backends), class_="choices"),
        ),
        _tag("output", id="results-count", class_="dim"),
        id="filters",
        class_="filters",
        hidden=True,
    )


def _range(title: str, column: str, example: str) -> tuple[_Html, ...]:
    """Return fields for the least and the greatest; the script reads units such as ms, × and MiB."""
    fields = [
        _tag("input", type="text", name=f"{end}.{column}", data_column=column, placeholder=example, autocomplete="off",
             aria_label=f"{title}, {word}")
        for end, word in (("min", "at least"), ("max", "at most"))
    ]  # fmt: skip
    return _tag("span", title), fields[0], _tag("span", "to"), fields[1]


def _boxes(name: str, values: Sequence[str]) -> list[_Html]:
    return [
        _tag("label", _tag("input", type="checkbox", name=name, value=value, checked=True), f" {value} ")
        for value in values
    ]


def _full_table(content: Page, grid: Grid, kept: Sequence[int]) -> _Html:
    heads = [
        _heading("case", column="case"),
        _heading("backend"),
        _heading("status"),
        *(_heading(grid.columns[i].title, column=_RAW.get(grid.columns[i].title), side="n") for i in kept),
        _tag("th", "again", scope="col", class_="again"),
    ]
    return _tag("table", _head(heads), _body(list(_full_rows(content, grid, kept))), id="results")


def _heading(title: str, column: str | None = None, side: str | None = None) -> _Html:
    """Return a heading by which the script sorts: by raw figures, or by text where there are none."""
    order = "descending" if title in _MORE_IS_BETTER else "ascending"
    key = re.sub(r"\W+", "-", title.lower())
    return _tag("th", title, scope="col", class_=side, data_key=key, data_order=order, data_column=column)


def _is_used(grid: Grid, column: int) -> bool:
    """Return whether a column says anything; the last one always does."""
    texts = (row.cells[column] for row in grid.rows if column < len(row.cells))
    return column == len(grid.columns) - 1 or any(text != DASH for text in texts)


def _full_rows(content: Page, grid: Grid, kept: Sequence[int]) -> Iterator[_Html]:
    """Yield the rows of the comparison, each with its case, its row of the page's data and the command to repeat it."""
    figures = {(row["case"], row["backend"]): (number, row) for number, row in enumerate(_rows(content.table))}
    cases = iter(dict.fromkeys(content.table["case"]))
    case = head = ""
    for row in grid.rows:
        if row.title:
            case, head = next(cases), row.title
            continue
        number, figure = figures[case, row.cells[0]]
        cells = [
            _tag("td", *(() if row.sentence else (row.cells[i],)), class_=_classes("n", i in row.marked)) for i in kept
        ]
        bad = STATUSES.get(figure["status"], True)
        caveats = "; ".join(figure.get("caveats") or ()) or None
        yield _tag(
            "tr",
            _tag("th", head, scope="row", title=case),
            _tag("td", row.cells[0]),
            _tag("td", row.sentence or row.cells[-1], class_="reason bad" if bad else "reason", title=caveats),
            *cells,
            _tag("td", _again(figure, content.timed), class_="again"),
            data_row=str(number),
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
