"""The comparison table of a run, its overview and summaries, and CSV. Pure functions of its records."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convbench.bench import statistics
from convbench.bench.families import family_of
from convbench.bench.record import STATUSES, TIME_SPENT
from convbench.bench.statistics import fastest
from convbench.refusals import human_bytes
from convbench.report.layout import Layout, data_title, layout_of
from convbench.report.text import (
    DASH,
    Column,
    Grid,
    Row,
    human_interval,
    human_number,
    human_range,
    human_seconds,
    missing,
)

if TYPE_CHECKING:
    import pandas as pd

    from convbench.bench.families import Family

__all__ = [
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


MARK = (
    "marked: the fastest of its case, and whatever is not separated from it: separated is what the 99 % interval of "
    "its time over the fastest one's, paired within passes, calls slower"
)

#: What the columns of the summaries mean; ``{baseline}`` is to be filled in.
TOTALS_LEGEND = (
    "total: the median times of all layers with this one backend, each as often as it occurs; a backend that lacks "
    "layers has none. passes: the least and the greatest total of a single pass, a spread and not a 95 % interval. "
    "over best: its time over that of the best of all, on the layers that it does, paired within passes, with its 99 % "
    "interval. chosen: layers in which it is the fastest. best of all (of own): the fastest backend for each layer, as "
    "a perfect selector would choose; chosen and timed by the same samples, so slightly too good"
)
MEANS_LEGEND = (
    "geometric means, each case as often as it occurs. fastest: cases in which nothing is faster, ties included. "
    "over best: its time over the fastest one's, on the cases that it did; these differ, so compare backends only "
    "where they did the same ones (common: those that all did). speed-up: over {baseline}, on the cases that both did. "
    "99 %: intervals of the means of single passes"
)

#: Beside the status of a row that has caveats; the notes say which.
CAVEAT = " (!)"

_TIME_COLUMN = 2  # of the comparison: where its marks stand

#: A matrix of times that is wider than this gives way to the fastest few of each case.
MATRIX_WIDTH = 100

#: One word a status, short enough for a cell of the overview.
_SHORT = {"unsupported": "refused", "unavailable": "absent", "out-of-memory": "memory"}

Figure = Mapping[str, Any]


def figures(records: pd.DataFrame, baseline: str | None) -> pd.DataFrame:
    """Return one row a (case, backend): the summary, rates, and speed-ups over ``baseline``.

    Parameters
    ----------
    records : DataFrame
        As :func:`convbench.load_results` returns it.
    baseline : str or None
        A backend's name; without results of it the speed-ups are NaN.

    Returns
    -------
    DataFrame
        The columns of :func:`convbench.bench.statistics.summarise` and of
        :func:`convbench.bench.statistics.standings`, effective_gflop_per_s, executed_gflop_per_s, limit_share (see
        :func:`convbench.bench.limits.limit_share`), baseline, speedup, speedup_low, speedup_high (paired, 99 %),
        speedup_with_prepare (of the sums of prepare_s and time_s); cases in the suite's order, the fastest backend
        first. ``attrs["noise"]`` is :func:`convbench.bench.statistics.noise`.
    """
    table = statistics.summarise(records)
    table = table.join(statistics.standings(table))
    present = baseline is not None and baseline in set(table["backend"])
    table["baseline"] = baseline if present else None
    ratios = statistics.ratios_over(table, str(baseline)) if present else []
    for column, values in (
        ("speedup", [ratio.value for ratio in ratios]),
        ("speedup_low", [ratio.low for ratio in ratios]),
        ("speedup_high", [ratio.high for ratio in ratios]),
    ):
        table[column] = values if present else float("nan")
    table.loc[table["backend"] == baseline, ["speedup_low", "speedup_high"]] = float("nan")
    whole = table["time_s"].astype(float) + table["prepare_s"].astype(float)
    own = table["backend"] == baseline
    table["speedup_with_prepare"] = table["case"].map(whole[own].set_axis(table[own]["case"])) / whole
    for rate, flops in (("effective", "flops_nominal"), ("executed", "flops_executed")):
        table[f"{rate}_gflop_per_s"] = table[flops].astype(float) / table["time_s"].astype(float) / 1e9
    limits = records.attrs.get("environment", {}).get("limits")
    table["limit_share"] = [_limit_share(row, limits) for row in _rows(table)]
    order = {case: position for position, case in enumerate(dict.fromkeys(table["case"]))}
    table["position"] = table["case"].map(order)
    table["after"] = table["ratio_method"] != "itself"
    table = table.sort_values(["position", "after", "time_s"], kind="stable", ignore_index=True)
    table = table.drop(columns=["position", "after"])
    table.attrs["cases"] = records.attrs.get("environment", {}).get("cases", [])
    table.attrs["noise"] = statistics.noise(records)
    return table


def _limit_share(row: Figure, limits: Mapping[str, Any] | None) -> float:
    from convbench.bench.limits import limit_share

    if not limits or row["status"] != "ok" or missing(row["time_s"]) or row["device"] not in ("cpu", "", None):
        return float("nan")
    dtype = row["dtype"] if missing(row["accumulate_dtype"]) else row["accumulate_dtype"]
    return limit_share(
        time_s=row["time_s"],
        flops_executed=row["flops_executed"],
        bytes_min=row["bytes_min"],
        dtype=str(dtype),
        limits=limits,
    )


def usual_baseline(records: pd.DataFrame) -> str:
    """Return over which backend speed-ups are reckoned unless one is named, see :class:`Family.baselines`."""
    cases = records[records["status"] == "ok"].groupby("backend")["case"].nunique()
    return max(_family(records).baselines, key=lambda name: int(cases.get(name, 0)))


def legend(table: pd.DataFrame, baseline: str) -> dict[str, str]:
    """Return what the columns of the comparison mean, in the words of the run's family."""
    timed = table[table["time_s"].notna()]
    count, usual = timed["case"].nunique(), _family(table).baselines[0]
    of_usual = timed[timed["backend"] == usual]["case"].nunique()
    instead = f"; {usual}, the usual baseline, has times on {of_usual} of the {count} timed cases"
    return {
        "time": "one call, median of all samples; its 95 % interval is that of the passes' medians where there are 6, "
        "else of all samples, pooled as if they were independent and so too narrow",
        "rank": "1 + the number of backends that are faster beyond doubt; ties share theirs",
        "over fastest": "its time over that of the fastest of its case, geometric mean over passes, with its 99 % "
        "interval (Student's t over passes, for samples of one pass are not independent); one that reaches 1 is a tie",
        "speed-up": f"the time of {baseline} over this one's{instead * (baseline != usual and of_usual < count)}",
        "pays after": _break_even_legend(table),
        **_family(table).legend,
        "limit": "share of what this machine can do: of the time that its measured matrix product or copy would need "
        "for the operations executed and the bytes moved at least, whichever is longer. It exceeds 100 % where "
        "operands stay in a cache or a kernel beats BLAS; complex numbers and wide integers have none",
        "workspace": "memory beside operands and result, declared; measured: its peak",
    }


def _break_even_legend(table: pd.DataFrame) -> str:
    counts = table.drop_duplicates("case")["break_even_rival"].value_counts()
    rival = "the backend whose plan, prepare and one call together take least"
    if len(counts):
        rival += f" ({counts.index[0]}" + f" on {counts.iloc[0]} of {counts.sum()} cases" * (len(counts) > 1) + ")"
    return f"calls after which its plan and prepare have paid for themselves against {rival}; {DASH}: not faster a call"


def _family(table: pd.DataFrame) -> Family:
    return family_of(next(iter(table["spec"]), ""))


def layout_of_table(table: pd.DataFrame) -> Layout:
    """Arrange the cases of the whole run, of which an interrupted one may not have reached all."""
    return layout_of([*table.attrs.get("cases", []), *table["case"]])


def backend_order(table: pd.DataFrame) -> list[str]:
    """Own backends first, then the rivals, each by name, and the reference last: the same in every table and plot."""
    kinds = dict(zip(table["backend"], table["kind"], strict=True))
    return sorted(kinds, key=lambda name: (name == "reference", kinds[name] != "own", name))


# -- the comparison ---------------------------------------------------------------------------------


def comparison(table: pd.DataFrame) -> Grid:
    """Return the full table: a titled part for each case, a row for each backend, the fastest first."""
    layout = layout_of_table(table)
    grid = Grid(
        [
            Column("backend", right=False),
            Column("rank", drop=6),
            Column("time"),
            Column("95 % interval", drop=5),
            Column("over fastest", drop=1),
            Column("99 % interval", drop=2),
            Column("speed-up"),
            Column("with prepare", drop=10),
            Column("pays after", drop=4),
            Column("GFLOP/s", drop=1),
            Column("executed", drop=8),
            Column("limit", drop=3),
            Column("error"),
            Column("bound", drop=7),
            Column("workspace", drop=1),
            Column("measured", drop=9),
            Column("status", right=False),
        ]
    )
    for case, rows in _by_case(table):
        grid.rows.append(Row(title=layout.labels[case]))
        best = fastest(rows)
        grid.rows += [_comparison_row(row, row["backend"] in best) for row in rows]
    return grid


def _comparison_row(row: Figure, best: bool) -> Row:
    if row["status"] != "ok":
        return _refusal(row["backend"], row["status"], row["reason"])
    cells = (
        row["backend"],
        _count(row["rank"]),
        human_seconds(row["time_s"]),
        human_interval(row["low_s"], row["high_s"], row["time_s"]),
        _times(row["ratio_to_best"]),
        DASH if row["ratio_method"] == "itself" else human_range(row["ratio_low"], row["ratio_high"]),
        _times(row["speedup"]),
        _times(row["speedup_with_prepare"]),
        _count(row["break_even_calls"]),
        human_number(row["effective_gflop_per_s"]),
        human_number(row["executed_gflop_per_s"]),
        DASH if missing(row["limit_share"]) else f"{row['limit_share']:.0%}".replace("%", " %"),
        human_number(row["error_max_eps"]),
        human_number(row["error_bound_eps"]),
        _bytes(row["workspace_declared_bytes"]),
        _bytes(row["workspace_measured_bytes"]),
        f"ok{CAVEAT}" if row["caveats"] else "ok",
    )
    return Row(cells, marked=frozenset([_TIME_COLUMN]) if best else frozenset())


def _refusal(backend: str, status: str, reason: object) -> Row:
    sentence = status if missing(reason) or not reason else f"{status}: {reason}"
    return Row((backend,), sentence=sentence, style="red" if STATUSES.get(status, True) else "dim")


def _times(ratio: float | None) -> str:
    return DASH if ratio is None or missing(ratio) else f"{human_number(ratio)}×"


def _count(number: float | None) -> str:
    if number is None or missing(number) or number >= 1e6:
        return human_number(number)
    return f"{number:,.0f}"


def _bytes(count: float | None) -> str:
    return DASH if count is None or missing(count) else human_bytes(count)


def csv_text(table: pd.DataFrame) -> str:
    """Return the table as CSV: raw numbers, units in the column names."""
    plain = table.drop(columns="pass_medians_s", errors="ignore")
    whole = {name: plain[name].astype("Int64") for name in ("rank", "break_even_calls")}
    plain = plain.assign(**whole, caveats=plain["caveats"].map("; ".join))
    return str(plain.to_csv(index=False))


# -- the overview -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """A table with its title and a legend.

    Attributes
    ----------
    title : str
    grid : Grid
    legend : str
    wide : bool
        Too wide for a screen: for files only.
    """

    title: str
    grid: Grid
    legend: str = ""
    wide: bool = False

    def markdown(self) -> str:
        """Return title, legend and table."""
        return "\n\n".join(filter(None, [f"## {self.title}", self.legend, self.grid.markdown()]))


@dataclass(frozen=True)
class Overview:
    """The times alone, compactly, and what follows from them.

    Attributes
    ----------
    grids : mapping of str to Grid
        Title → times: one grid a panel of a sweep, else a single one without a title.
    notes : sequence of str
        What has no place in a table.
    further : sequence of Section
        Summaries, and the whole matrix of times where ``grids`` has the fastest alone.
    """

    grids: Mapping[str, Grid]
    notes: Sequence[str]
    further: Sequence[Section] = ()

    def markdown(self) -> str:
        """Return everything as Markdown."""
        parts = [f"### {title}\n\n" * bool(title) + grid.markdown() for title, grid in self.grids.items()]
        parts += [section.markdown() for section in self.further]
        notes = "\n".join(f"- {note}" for note in self.notes)
        heading = "## Notes\n\n" * bool(self.further)
        return "\n\n".join([*parts, *([heading + notes] if notes else [])])


def overview(table: pd.DataFrame) -> Overview:
    """Return the times compactly, and their summaries.

    The times are a matrix, backends against the varying number or cases against backends; where the latter is wider
    than :data:`MATRIX_WIDTH`, the fastest few of each case, and the matrix is left to files. The best of each case is
    marked, together with those that nothing separates from it (see :data:`MARK`). A backend without any time is left
    to the notes; if none has one there is no table.
    """
    layout = layout_of_table(table)
    cells = {(row["case"], row["backend"]): row for row in _rows(table)}
    best = {case: set[str]() for case in layout.labels} | {case: fastest(rows) for case, rows in _by_case(table)}
    timed = {row["backend"] for row in cells.values() if row["status"] == "ok" and not missing(row["time_s"])}
    backends = [name for name in backend_order(table) if name in timed]
    grids: dict[str, Grid] = {}
    further: list[Section | None] = []
    if backends and layout.varies:
        grids = {
            _panel_title(layout, name): _sweep_grid(layout, panel, backends, cells, best)
            for name, panel in layout.panels.items()
        }
    elif backends:
        matrix = _case_grid(layout, backends, cells, best)
        fits = max(map(len, matrix.plain())) <= MATRIX_WIDTH
        grids = {"": matrix if fits else _leaders_grid(layout, table, best)}
        further = [] if fits else [Section("All times", matrix, wide=True)]
    further = [totals_section(table), means_section(table), *further]
    notes = [*_words(table, backends), *_absent(table, backends), *_remarks(table)]
    return Overview(grids, notes, [section for section in further if section])


def _panel_title(layout: Layout, name: str) -> str:
    data = data_title(name)
    return f"{data}: time against {layout.field_title}" if data else f"time against {layout.field_title}"


Cells = Mapping[tuple[str, str], Figure]
Best = Mapping[str, set[str]]


def _sweep_grid(layout: Layout, panel: Mapping[int, str], backends: Sequence[str], cells: Cells, best: Best) -> Grid:
    grid = Grid([Column(f"{layout.symbol} =", right=False), *(Column(str(value)) for value in panel)], gap=1)
    for backend in backends:
        texts = [_cell(cells.get((case, backend))) for case in panel.values()]
        marked = frozenset(i for i, case in enumerate(panel.values(), 1) if backend in best[case])
        grid.rows.append(Row((backend, *texts), marked=marked))
    return grid


def _case_grid(layout: Layout, backends: Sequence[str], cells: Cells, best: Best) -> Grid:
    grid = Grid([Column("case", right=False), *(Column(name) for name in backends)])
    for case, label in layout.labels.items():
        texts = [_cell(cells.get((case, name))) for name in backends]
        marked = frozenset(i for i, name in enumerate(backends, 1) if name in best[case])
        grid.rows.append(Row((label, *texts), marked=marked))
    return grid


def _leaders_grid(layout: Layout, table: pd.DataFrame, best: Best) -> Grid:
    """Return a row a case: its fastest backends, the others' times as multiples of the first one's."""
    counted = bool((table["weight"] > 1).any())
    grid = Grid(
        [
            Column("case", right=False),
            *[Column("count", drop=3)] * counted,
            Column("fastest", right=False),
            Column("time"),
            Column("second", right=False, drop=1),
            Column("third", right=False, drop=2),
            Column("timed", drop=4),
        ]
    )
    group = ""
    for case, rows in _by_case(table):
        if rows[0]["group"] != group:
            group = rows[0]["group"]
            grid.rows.append(Row(title=group or "other cases"))
        count = (f"×{rows[0]['weight']}" if rows[0]["weight"] > 1 else "",) * counted
        grid.rows.append(_leaders_row((layout.labels[case], *count), rows, best[case]))
    return grid


def _leaders_row(head: tuple[str, ...], rows: Sequence[Figure], best: set[str]) -> Row:
    timed = [row for row in rows if row["status"] == "ok" and not missing(row["time_s"])]
    if not timed:
        return Row(head, sentence="no backend has a time")
    first, *others = timed  # the fastest first
    ratios = [f"{row['backend']} {_times(row['ratio_to_best'])}" for row in others[:2]]
    ratios += [""] * (2 - len(ratios))
    cells = (*head, first["backend"], human_seconds(first["time_s"]), *ratios, f"{len(timed)} of {len(rows)}")
    places = (len(head), *range(len(head) + 2, len(head) + 4))
    marked = frozenset(place for place, row in zip(places, timed, strict=False) if row["backend"] in best)
    return Row(cells, marked=marked)


def _cell(row: Figure | None) -> str:
    if row is None:
        return DASH
    status = str(row["status"])
    return human_seconds(row["time_s"]) if status == "ok" else _SHORT.get(status, status)


def _words(table: pd.DataFrame, backends: Sequence[str]) -> list[str]:
    """Explain each status that appears in a cell, reasons that differ in their numbers alone taken together."""
    alike: dict[tuple[str, str, str], list[Figure]] = {}
    for row in _rows(table):
        if row["backend"] in backends and row["status"] != "ok":
            kind = re.sub(r"[0-9.]+(e[+-]?[0-9]+)?", "0", str(row["reason"]))
            alike.setdefault((row["backend"], row["status"], kind), []).append(row)
    notes: dict[str, list[str]] = {}
    for (backend, status, _), rows in alike.items():
        notes.setdefault(f"{_SHORT.get(status, status)}{_places(rows, table)}{_reasons(rows)}", []).append(backend)
    return [f"{', '.join(names)} {text}" for text, names in notes.items()]


def _absent(table: pd.DataFrame, backends: Sequence[str]) -> list[str]:
    notes: dict[str, list[str]] = {}
    for (backend,), rows in _grouped(table, ["backend"]):
        if backend not in backends:
            statuses = " or ".join(dict.fromkeys(row["status"] for row in rows))
            notes.setdefault(f"{statuses} in every case{_reasons(rows)}", []).append(backend)
    return [f"{', '.join(names)} {text}" for text, names in notes.items()]


def _remarks(table: pd.DataFrame) -> list[str]:
    notes = [*caveat_notes(table), *_trust(table)]
    if table["time_s"].isna().all():
        notes.append("nothing was timed")
    elif table["speedup"].isna().all():
        notes.append("no speed-ups: the baseline has no time in this run; choose another with --baseline")
    spent = table[table["reason"].astype(str).str.contains(TIME_SPENT, regex=False)]["case"].nunique()
    if spent:
        notes.append(
            f"the run's time was spent before all pairs had their turn: some are missing in {spent} of "
            f"{table['case'].nunique()} cases, the largest; give it more with --budget"
        )
    unreached = set(table.attrs.get("cases", [])) - set(table["case"])
    if unreached:
        lacking = ": totals may lack layers" if table["group"].any() else ""
        notes.append(f"{len(unreached)} case{'s' * (len(unreached) > 1)} not reached before the run ended{lacking}")
    return notes


def caveat_notes(table: pd.DataFrame) -> list[str]:
    """Name each caveat once, with the backends that have it."""
    notes: dict[str, list[str]] = {}
    for row in _rows(table):
        for caveat in row["caveats"]:
            notes.setdefault(caveat, []).append(row["backend"])
    return [f"{', '.join(dict.fromkeys(names))}{CAVEAT}: {caveat}" for caveat, names in notes.items()]


def _trust(table: pd.DataFrame) -> list[str]:
    """Say what the comparisons rest on, and what comparing backends with themselves has found."""
    compared = table[table["ratio_method"].isin(["paired", "pooled", "samples"])]
    notes = []
    if (compared["ratio_method"] == "samples").any():
        notes.append(
            "comparisons of backends with fewer than four passes together rest on samples of single processes and are "
            "blind to whatever differs between processes: give the run more passes"
        )
    if unknown := int(compared["ratio_low"].isna().sum()):
        notes.append(  # known in no other way, it is not called separated
            f"{unknown} of {len(compared)} comparisons with the fastest have no interval, for want of passes or of 8 "
            "samples, and are called ties"
        )
    noise = table.attrs.get("noise")
    return [*notes, *([str(noise)] if noise and noise.comparisons else [])]


def _places(rows: Sequence[Figure], table: pd.DataFrame) -> str:
    layout = layout_of_table(table)
    places = [layout.short(row["case"]) for row in rows]
    return f" at {', '.join(places)}" if len(places) <= 3 else f" in {len(places)} cases"


def _reasons(rows: Sequence[Figure]) -> str:
    reasons = list(dict.fromkeys(str(row["reason"]) for row in rows if row["reason"] and not missing(row["reason"])))
    return (", for example: " if len(reasons) > 1 else ": ") + reasons[0] if reasons else ""


# -- summaries --------------------------------------------------------------------------------------


def totals_section(table: pd.DataFrame) -> Section | None:
    """Return the total time of each group's layers, with one backend for all and with the best for each.

    None for a run without groups and counts; the figures are those of :func:`convbench.bench.statistics.totals`.
    """
    totals = statistics.totals(table)
    if not totals["layers"].any():
        return None
    baseline = next((name for name in table["baseline"] if name), None)
    totals["speedup"] = float("nan")
    if baseline is not None:
        totals["speedup"] = statistics.speedups(totals.rename(columns={"group": "case"}), baseline)
    grid = Grid(
        [
            Column("backend", right=False),
            Column("total"),
            Column("passes"),
            Column("over best"),
            Column("99 % interval", drop=1),
            *[Column("speed-up")] * bool(totals["speedup"].notna().any()),
            Column("GFLOP/s"),
            Column("chosen"),
        ]
    )
    for (group,), rows in _grouped(totals, ["group"]):
        grid.rows.append(Row(title=_group_title(group, rows[0])))
        grid.rows += _total_rows(rows, len(grid.columns))
    return Section("Totals", grid, TOTALS_LEGEND)


def _group_title(group: str, row: Figure) -> str:
    counts = f"{row['occurrences']} convolutions in {row['of']} shapes"
    return f"{group or 'all cases'}: {counts}, {human_number(row['flops_nominal'] / 2e9)} GMAC"


def _total_rows(rows: Sequence[Figure], columns: int) -> Iterator[Row]:
    """Yield the complete ones, the fastest first; those that lack layers; the names of those that have none."""
    best = fastest(row for row in rows if row["kind"] != "choice")
    for row in sorted((row for row in rows if row["layers"]), key=lambda row: (-row["layers"], row["behind_best"])):
        choice = row["kind"] == "choice"
        if row["status"] == "ok":
            cells = (
                row["backend"],
                human_seconds(row["time_s"]),
                human_interval(row["low_s"], row["high_s"], row["time_s"]),
                _times(row["behind_best"]),
                human_range(row["behind_best_low"], row["behind_best_high"]),
                *[_times(row["speedup"])] * (columns > 7),
                human_number(row["effective_gflop_per_s"]),
                DASH if choice else str(row["chosen"]),
            )
            marked = frozenset([1]) if row["backend"] in best else frozenset[int]()
            yield Row(cells, marked=marked, style="bold" if choice else "")
        else:
            sentence = f"{row['layers']} of {row['of']} layers"
            if not choice:
                sentence += f", on them {_times(row['behind_best'])} over best"
                sentence += f", chosen in {row['chosen']}" * bool(row["chosen"])
            yield Row((row["backend"],), sentence=sentence)
    if none := [row["backend"] for row in rows if not row["layers"] and row["kind"] != "choice"]:
        yield Row(("no layer",), sentence=", ".join(none), style="dim")


def means_section(table: pd.DataFrame) -> Section | None:
    """Return the geometric means of each backend's ratios: to the fastest of each case, and to the baseline.

    None for fewer than two cases or backends; see :func:`convbench.bench.statistics.geometric_means`.
    """
    baseline = next((name for name in table["baseline"] if name), None)
    means = _rows(statistics.geometric_means(table, baseline))
    if len(means) < 2 or means[0]["of"] < 2:
        return None
    common = means[0]["common"] if means[0]["common"] > 1 else 0
    grid = Grid(
        [
            Column("backend", right=False),
            Column("cases"),
            Column("fastest"),
            Column("over best"),
            Column("over best, 99 %", drop=3),
            *[Column(f"on {common} common", drop=1)] * bool(common),
            *[
                Column("speed-up"),
                Column("speed-up, 99 %", drop=4),
                Column("on cases"),
                Column("least–most", drop=2),
            ]
            * bool(baseline),
        ]
    )
    for row in sorted(means, key=lambda row: (-row["cases"], row["behind_best"])):
        extremes = f"{human_number(row['speedup_least'])}–{human_number(row['speedup_most'])}"
        compared = (
            _times(row["speedup"]),
            DASH if row["backend"] == baseline else human_range(row["speedup_low"], row["speedup_high"]),
            str(row["compared"]),
            extremes if row["compared"] else DASH,
        )
        cells = (
            row["backend"],
            f"{row['cases']} of {row['of']}",
            str(row["fastest"] or ""),
            _times(row["behind_best"]),
            human_range(row["behind_best_low"], row["behind_best_high"]),
            *[_times(row["behind_best_common"])] * bool(common),
            *(compared if baseline else ()),
        )
        grid.rows.append(Row(cells))
    legend = MEANS_LEGEND.format(baseline=baseline) if baseline else re.sub(r" speed-up: .*? did\.", "", MEANS_LEGEND)
    return Section("Means", grid, legend)


# -- while a run goes on ----------------------------------------------------------------------------


def result_row(record: Figure, label: str, time_s: float | None) -> Row:
    """Return one finished pair as a row of the live table: case, backend, time, error, bound, status."""
    if record["status"] != "ok":
        refusal = _refusal("", record["status"], record["reason"])
        return Row((label, record["backend"]), refusal.sentence, style=refusal.style)
    cells = (label, record["backend"], human_seconds(time_s))
    return Row((*cells, human_number(record["error_max_eps"]), human_number(record["error_bound_eps"]), "ok"))


def problems(table: pd.DataFrame) -> list[str]:
    """Return a line for each pair that went wrong, with the command that reproduces it."""
    return [
        f"{row['backend']} {row['status']} on {row['case']}: {row['reason']}\n"
        f'  again: convbench run --spec "{row["case"]}" --backends {row["backend"]}'
        for row in _rows(table)
        if STATUSES.get(row["status"], True)
    ]


# -- frames as plain rows ---------------------------------------------------------------------------


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _by_case(table: pd.DataFrame) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(key[0], rows) for key, rows in _grouped(table, ["case"])]


def _grouped(table: pd.DataFrame, keys: Sequence[str]) -> list[tuple[tuple[str, ...], list[dict[str, Any]]]]:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in _rows(table):
        groups.setdefault(tuple(str(row[key]) for key in keys), []).append(row)
    return list(groups.items())
