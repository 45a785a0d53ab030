"""A comparison of two runs as tables and sentences. Pure functions of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from convbench.bench.ratios import Ratio
from convbench.report.text import DASH, Column, Grid, Row, human_number, human_range, human_seconds, missing

if TYPE_CHECKING:
    import pandas as pd

    from convbench.bench.compare import Comparison

__all__ = ["LEGEND", "backends_grid", "conclusion", "legend", "markdown", "pairs_grid", "remarks"]

LEGEND = (
    "ratio: time after over time before. Slower, faster: the interval does not reach 1; same: all of it is within "
    "±{threshold}; unclear: neither. Regression: slower, and by more than {threshold}. Intervals: {confidence}, "
    "Welch's t over passes"
)

_QUIET = ("same", "unclear", "untimed", "reference")
_STYLES = {"lost": "red", "faster": "green", "gained": "green"}


def legend(found: Comparison) -> str:
    """Return what the words of the tables mean."""
    return LEGEND.format(threshold=_percent(found.threshold), confidence=_percent(found.confidence))


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
    rows = _rows(found.pairs)
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
        _times(row["ratio"]),
        human_range(row["low"], row["high"]),
        verdict,
        row["case"],
    )
    return Row(cells, style="red" if row["regression"] else _STYLES.get(row["verdict"], ""))


def backends_grid(found: Comparison) -> Grid:
    """Return a row for each backend: the geometric mean of its ratios, and how many of its pairs are what."""
    counted = ("regressions", "slower", "lost", "unclear", "same", "faster", "gained")
    grid = Grid([Column("backend", right=False), *map(Column, ("pairs", "ratio", "interval", *counted))])
    for row in _rows(found.backends):
        cells = (row["backend"], str(row["pairs"]), _times(row["mean"]), human_range(row["low"], row["high"]))
        grid.rows.append(Row((*cells, *(str(row[name] or "") for name in counted))))
    return grid


def conclusion(found: Comparison) -> str:
    """Return in one sentence what it comes to."""
    counts = [(len(found.regressions), "regression"), (len(found.lost), "pair lost its result")]
    counts += [(len(found.missing), "pair missing"), (len(found.renamed), "case renamed")]
    said = [_counted(number, what) for number, what in counts if number]
    of = f"{len(found.pairs)} pair{'s' * (len(found.pairs) != 1)} of both runs"
    what = "time over that of the reference" if found.relative else "time"
    mean = f"; {what} after over before, geometric mean: {_ratio(found.mean)}" if found.mean.passes else ""
    return f"{of}: {', '.join(said) or 'no regression'}{mean}"


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
    for before, after, certain in found.renamed:
        yield f"renamed{'' if certain else '?'}: {before} → {after}"
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
    return _times(ratio.value) + ("" if missing(ratio.low) else f" ({human_range(ratio.low, ratio.high)})")


def _times(value: float) -> str:
    return DASH if missing(value) else f"{human_number(value)}×"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def _number(value: float) -> float:
    return 0.0 if missing(value) else value


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
