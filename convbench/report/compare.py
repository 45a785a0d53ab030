"""A comparison of two runs as tables and sentences. Pure functions of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

from convbench.bench.frames import rows_of
from convbench.bench.noise import percent
from convbench.bench.ratios import Ratio
from convbench.report.text import (
    UNKNOWN,
    Column,
    Grid,
    Row,
    human_range,
    human_seconds,
    human_share,
    human_times,
    missing,
    ratio_range,
)

if TYPE_CHECKING:
    from convbench.bench.compare import Comparison

__all__ = ["LEGEND", "backends_grid", "conclusion", "legend", "markdown", "pairs_grid", "remarks"]

LEGEND = (
    "ratio: time after over time before. same: all of its interval is within ±{threshold}, even where it does not "
    "reach 1; else slower, faster: the interval does not reach 1; unclear: neither. Regression: slower, and by more "
    "than {threshold}. Intervals: {confidence}, {methods}; "
    f"{UNKNOWN}: unknown"
)

_METHODS = {
    "unpaired": "{} by Welch's t over passes",
    "pooled": "{} by Student's t over the passes of both, where one has fewer than three",
    "samples": "{} [in brackets] within single processes, from which nothing follows",
}

_QUIET = ("same", "unclear", "untimed", "reference")
_STYLES = {"lost": "red", "faster": "green", "gained": "green"}


def legend(found: Comparison) -> str:
    """Return what the words of the tables mean."""
    counts = found.pairs["method"].value_counts()
    methods = [text.format(counts[name]) for name, text in _METHODS.items() if counts.get(name, 0)]
    return LEGEND.format(
        threshold=human_share(found.threshold),
        confidence=human_share(found.confidence),
        methods=", ".join(methods) or "none",
    )


def pairs_grid(found: Comparison, everything: bool = False) -> Grid:
    """Return a row for each pair that changed, the worst first; or for each pair, in the run's order."""
    grid = Grid(
        [
            Column("backend", right=False),
            Column("before", drop=2),
            Column("after", drop=1),
            Column("ratio"),
            Column("interval", drop=3),
            Column("verdict", right=False),
            Column("case", right=False),
        ]
    )
    rows = rows_of(found.pairs)
    if not everything:
        rows = [row for row in rows if row["verdict"] not in _QUIET]
        rows.sort(key=lambda row: (row["verdict"] != "lost", not row["regression"], -_number(row["ratio"])))
    for row in rows:
        grid.rows.append(_pair_row(row))
    return grid


def _pair_row(row: Mapping[str, Any]) -> Row:
    verdict = "slower: regression" if row["regression"] else row["verdict"]
    if row["verdict"] in ("lost", "gained"):
        verdict += f": {row['status_before']} → {row['status_after']}" + f", {row['reason']}" * bool(row["reason"])
    cells = (
        row["backend"],
        human_seconds(row["time_before_s"]),
        human_seconds(row["time_after_s"]),
        human_times(row["ratio"]),
        ratio_range(row["low"], row["high"], row["method"] or None),
        verdict,
        row["case"],
    )
    return Row(cells, style="red" if row["regression"] else _STYLES.get(row["verdict"], ""))


def backends_grid(found: Comparison) -> Grid:
    """Return a row for each backend: the geometric mean of its ratios, and how many of its pairs are what."""
    counted = ("regressions", "slower", "lost", "unclear", "same", "faster", "gained")
    grid = Grid([Column("backend", right=False), *map(Column, ("pairs", "ratio", "interval", *counted))])
    for row in rows_of(found.backends):
        interval = ratio_range(row["low"], row["high"], None if missing(row["mean"]) else "unpaired")
        cells = (row["backend"], str(row["pairs"]), human_times(row["mean"]), interval)
        grid.rows.append(Row((*cells, *(str(row[name] or "") for name in counted))))
    return grid


def conclusion(found: Comparison) -> str:
    """Return in one sentence what it comes to: no regression is said only of what can be told."""
    counts = [(len(found.regressions), "regression"), (len(found.lost), "pair lost its result")]
    counts += [(len(found.missing), "pair missing"), (len(found.renamed), "case renamed")]
    said = [_counted(number, what) for number, what in counts if number]
    of = f"{len(found.pairs)} pair{'s' * (len(found.pairs) != 1)} of both runs"
    what = "time over that of the reference" if found.relative else "time"
    mean = f"; {what} after over before, geometric mean: {_ratio(found.mean)}" if found.mean.passes else ""
    if not found.compared:
        return f"{of}: {', '.join([*said, 'no pair has a time in both runs, so that nothing was compared'])}"
    said = [*said, *([] if len(found.regressions) else [_no_regression(found.told)]), *_unclear(found)]
    return f"{of}: {', '.join(said)}{mean}"


def _no_regression(told: int) -> str:
    return f"no regression among the {told} that can be told" if told else "none can be told"


def _unclear(found: Comparison) -> Iterator[str]:
    unclear = found.unclear
    if len(unclear):
        ratios = (Ratio(*(row[name] for name in _RATIO)) for row in rows_of(unclear))
        widths = [ratio.half_width for ratio in ratios if ratio.is_telling]
        width = f" (median interval ±{percent(median(widths))} %)" if widths else " (no interval is known)"
        yield f"{len(unclear)} unclear{width}"


_RATIO = ("ratio", "low", "high", "passes", "method")


_PLURALS = {
    "regression": "regressions",
    "pair lost its result": "pairs lost their results",
    "pair missing": "pairs missing",
    "case renamed": "cases renamed",
}


def _counted(number: int, what: str) -> str:
    return f"{number} {what if number == 1 else _PLURALS[what]}"


def remarks(found: Comparison) -> Iterator[str]:
    """Yield what is missing, new or renamed, what else differs between the runs, and how noisy each was."""
    yield from (f"renamed: {before} → {after}" for before, after in found.renamed)
    yield from (f"perhaps renamed? {before} → {after}" for before, after in found.alike)
    yield from _by_backend("missing", found.missing)
    yield from _by_backend("new", found.new)
    yield from found.notes
    both, one, neither, turned = found.orders
    if both + one + neither:
        yield (
            f"order: of {both + one + neither:,} comparisons of two backends on a case, both runs decide {both:,}, one "
            f"{one:,} and neither {neither:,}; {len(turned):,} are decided the other way round"
        )
    for case, first, second in turned:
        yield f"order: {first} is faster than {second} before, and slower after: {case}"
    if found.mean.verdict != "tie" and len(found.backends) > 2:
        yield (
            f"all pairs together are {found.mean.verdict}, {_ratio(found.mean)}: where backends that share no code "
            "change alike, it is the machine that was in another state; run both again, one after the other"
        )
    for name, noise in (("before", found.noise_before), ("after", found.noise_after)):
        if noise.comparisons:
            yield f"{name}: {noise}"


def _by_backend(word: str, pairs: tuple[tuple[str, str], ...]) -> Iterator[str]:
    cases: dict[str, list[str]] = {}
    for case, backend in pairs:
        cases.setdefault(backend, []).append(case)
    for backend, own in cases.items():
        yield f"{word}: {backend} on {own[0]}" + f" and {len(own) - 1} more" * (len(own) > 1)


def markdown(found: Comparison, names: tuple[str, str], everything: bool = False) -> str:
    """Return all of it as Markdown."""
    parts = [f"# {names[0]} → {names[1]}", f"{conclusion(found)}.", legend(found) + "."]
    for title, grid in (("Pairs", pairs_grid(found, everything)), ("Backends", backends_grid(found))):
        if grid.rows:
            parts += [f"## {title}", grid.markdown()]
    notes = [f"- {remark}" for remark in remarks(found)]
    parts += ["## Notes", "\n".join(notes)] if notes else []
    return "\n\n".join(parts)


def _ratio(ratio: Ratio) -> str:
    return human_times(ratio.value) + ("" if missing(ratio.low) else f" ({human_range(ratio.low, ratio.high)})")


def _number(value: float) -> float:
    return 0.0 if missing(value) else value
