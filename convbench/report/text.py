"""Numbers for people, and the one table type behind every screen and Markdown file (standard library only)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

__all__ = [
    "DASH",
    "UNKNOWN",
    "Column",
    "Grid",
    "Row",
    "human_interval",
    "human_number",
    "human_range",
    "human_seconds",
    "human_share",
    "human_times",
    "missing",
    "ratio_range",
    "shorten",
]

DASH = "–"

#: What a run with more passes would know, where a dash is for what there cannot be.
UNKNOWN = "?"
_TIME_UNITS = ((1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms"), (1.0, "s"))


def missing(value: object) -> bool:
    """Return whether this is None or NaN.

    >>> [missing(value) for value in (None, float("nan"), 0, "")]
    [True, True, False, False]
    """
    return value is None or value != value


def human_number(value: float | None) -> str:
    """Format with three significant digits, thousands separated, no exponent between 10⁻⁴ and 10⁶.

    >>> [human_number(value) for value in (0.0123456, 6.5, 153.4, 26796.0, 2.5e9, None)]
    ['0.0123', '6.50', '153', '26,800', '2.50e9', '–']
    """
    if value is None or missing(value):
        return DASH
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    exponent = _decade(value)
    if not -4 <= exponent < 6:
        return f"{value:.2e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    return f"{round(value, 2 - exponent):,.{max(0, 2 - exponent)}f}"


def human_seconds(value_s: float | None) -> str:
    """Format a time with three significant digits and its unit.

    >>> [human_seconds(value) for value in (4.5e-7, 0.0009996, 0.00651, 83.26)]
    ['450 ns', '1.00 ms', '6.51 ms', '83.3 s']
    """
    if value_s is None or missing(value_s):
        return DASH
    scale, unit = _time_unit(value_s)
    return f"{human_number(value_s / scale)} {unit}"


def human_interval(low_s: float | None, high_s: float | None, time_s: float) -> str:
    """Format the interval around ``time_s`` in the unit that :func:`human_seconds` gives it.

    >>> human_interval(0.00648, 0.0066, 0.00651)
    '6.48–6.60'
    """
    if low_s is None or high_s is None or missing(low_s) or missing(high_s):
        return DASH
    scale, _ = _time_unit(time_s)
    return f"{human_number(low_s / scale)}–{human_number(high_s / scale)}"


#: A ratio's interval whose ends differ by more says nothing but that the passes were too few or too different.
_TELLING = 1e4


def human_range(low: float | None, high: float | None) -> str:
    """Format the interval of a ratio; one of four decades and more is not worth its digits.

    >>> human_range(0.95, 1.0612), human_range(1e-9, 1e8), human_range(None, None)
    ('0.950–1.06', 'too wide', '–')
    """
    if low is None or high is None or missing(low) or missing(high):
        return DASH
    return f"{human_number(low)}–{human_number(high)}" if high <= _TELLING * low else "too wide"


def ratio_range(low: float | None, high: float | None, method: str | None) -> str:
    """Format the interval of a ratio found by that method, see :class:`convbench.bench.ratios.Ratio`.

    >>> ratio_range(0.95, 1.0612, "paired"), ratio_range(0.95, 1.0612, "samples")
    ('0.950–1.06', '[0.950–1.06]')
    >>> ratio_range(float("nan"), float("nan"), "pooled"), ratio_range(1.0, 1.0, "itself")
    ('?', '–')
    """
    if method is None or method != method or method == "itself":
        return DASH
    if missing(low) or missing(high):
        return UNKNOWN
    return f"[{human_range(low, high)}]" if method == "samples" else human_range(low, high)


def human_times(ratio: float | None) -> str:
    """Format a ratio.

    >>> human_times(1.2), human_times(None)
    ('1.20×', '–')
    """
    return DASH if ratio is None or missing(ratio) else f"{human_number(ratio)}×"


def human_share(fraction: float) -> str:
    """Format a share of one as it was given.

    >>> human_share(0.05), human_share(0.999)
    ('5 %', '99.9 %')
    """
    return f"{100 * fraction:g} %"


def shorten(text: str, width: int | None) -> str:
    """Cut a text to ``width`` characters.

    >>> shorten("n1 c64 o64 i56x56", 10), shorten("n1 c64", None)
    ('n1 c64 o6…', 'n1 c64')
    """
    return text if width is None or len(text) <= width else text[: width - 1] + "…"


def _decade(value: float) -> int:
    """Exponent of the first digit once rounded to three."""
    return int(f"{value:.2e}".partition("e")[2])


def _time_unit(value_s: float) -> tuple[float, str]:
    rounded = float(f"{value_s:.3g}")
    return next(((scale, unit) for scale, unit in reversed(_TIME_UNITS) if rounded >= scale), _TIME_UNITS[0])


@dataclass(frozen=True)
class Column:
    """A column of a :class:`Grid`.

    Attributes
    ----------
    title : str
    right : bool
        Align right, as figures are.
    drop : int
        On a screen that is too narrow the columns with the highest ``drop`` go first; 0 stays.
    least : int
        Least width, for tables that are printed before all rows are known.
    """

    title: str
    right: bool = True
    drop: int = 0
    least: int = 0


@dataclass(frozen=True)
class Row:
    """A row of a :class:`Grid`: cells; or a few cells and a sentence across the rest; or a title across all."""

    cells: tuple[str, ...] = ()
    sentence: str = ""
    title: str = ""
    style: str = ""
    marked: frozenset[int] = frozenset()  # indices of the cells that stand out: * on screen, bold in Markdown


class _Fit(NamedTuple):
    """How a grid stands on a screen: its width, the columns kept, all widths, the columns with marks."""

    width: int | None
    kept: list[int]
    widths: list[int]
    marked: frozenset[int]


@dataclass
class Grid:
    r"""A table that prints itself to any width, or as Markdown.

    >>> grid = Grid([Column("backend", right=False), Column("time"), Column("note", right=False, drop=1)])
    >>> grid.rows += [Row(("fft", "6.51 ms", "ok")), Row(("reference",), "unsupported: 4.12e7 MACs needed")]
    >>> print(grid.markdown())
    | backend | time | note |
    |:--|--:|:--|
    | fft | 6.51 ms | ok |
    | reference | unsupported: 4.12e7 MACs needed |  |
    >>> print("\n".join(grid.plain(23)))
    backend       time
    fft        6.51 ms
    reference  unsupported:
               4.12e7 MACs
               needed
    """

    columns: Sequence[Column]
    rows: list[Row] = field(default_factory=list)
    gap: int = 2

    def _widths(self) -> list[int]:
        """Width of each column; where one has marks, every cell keeps room for one, so that figures stay aligned."""
        rows = [row.cells for row in self.rows] + [tuple(column.title for column in self.columns)]
        marked = self._marked()
        return [
            max(column.least, *(len(row[i]) + (i in marked) for row in rows if i < len(row)))
            for i, column in enumerate(self.columns)
        ]

    def _marked(self) -> frozenset[int]:
        return frozenset[int]().union(*(row.marked for row in self.rows))

    def split(self, width: int | None) -> list[Grid]:
        """Return the table as several, one below the other, each with the first column and as many as fit.

        A table that may drop columns stays whole: it narrows itself that way. If all do not fit at once, the first
        column is cut to a quarter of the width, to two fifths where others may be dropped.
        """
        widths = self._widths()
        droppable = any(column.drop for column in self.columns)
        most = 2 * (width or 0) // 5 if droppable else (width or 0) // 4
        if width and widths[0] > most and sum(widths) + self.gap * (len(widths) - 1) > width:
            cut = {row.cells[0]: shorten(row.cells[0], most) for row in self.rows if row.cells}
            rows = [replace(row, cells=(cut[row.cells[0]], *row.cells[1:])) if row.cells else row for row in self.rows]
            return Grid(self.columns, rows, self.gap).split(width)
        if droppable:
            return [self]
        parts: list[list[int]] = [[0]]
        for i in range(1, len(self.columns)):
            if width and len(parts[-1]) > 1 and sum(widths[j] + self.gap for j in (*parts[-1], i)) - self.gap > width:
                parts.append([0])
            parts[-1].append(i)
        return [self._part(part) for part in parts]

    def _part(self, kept: list[int]) -> Grid:
        rows = [
            replace(
                row,
                cells=tuple(row.cells[i] for i in kept if i < len(row.cells)),
                marked=frozenset(new for new, i in enumerate(kept) if i in row.marked),
            )
            for row in self.rows
        ]
        return Grid([self.columns[i] for i in kept], rows, self.gap)

    def kept(self, width: int | None) -> list[int]:
        """Return the indices of the columns that fit into ``width`` characters."""
        return self._fit(width).kept

    def _fit(self, width: int | None) -> _Fit:
        widths = self._widths()
        kept = list(range(len(self.columns)))
        droppable = sorted((i for i in kept if self.columns[i].drop), key=lambda i: -self.columns[i].drop)
        while width and droppable and sum(widths[i] + self.gap for i in kept) - self.gap > width:
            kept.remove(droppable.pop(0))
        return _Fit(width, kept, widths, self._marked())

    def lines(self, width: int | None) -> Iterator[list[tuple[str, str]]]:
        """Yield each line as (text, style) pieces; ``width`` None is unlimited."""
        fit = self._fit(width)
        header = Row(tuple(column.title for column in self.columns), style="bold")
        if any(header.cells):
            yield self._line(header, fit)
        for row in self.rows:
            yield from self._row(row, fit)

    def row_lines(self, row: Row, width: int | None) -> Iterator[list[tuple[str, str]]]:
        """Yield the lines of one row, which need not be in the table yet."""
        return self._row(row, self._fit(width))

    def _row(self, row: Row, fit: _Fit) -> Iterator[list[tuple[str, str]]]:
        if row.title:
            yield from ([], [(row.title, "bold")])
        elif row.sentence:
            yield from self._sentence(row, fit)
        else:
            yield self._line(row, fit)

    def _line(self, row: Row, fit: _Fit) -> list[tuple[str, str]]:
        pieces: list[tuple[str, str]] = []
        for i in (i for i in fit.kept if i < len(row.cells)):
            text = row.cells[i] + ("*" if i in row.marked else " " * (i in fit.marked))
            text = text.rjust(fit.widths[i]) if self.columns[i].right else text.ljust(fit.widths[i])
            lead = " " * self.gap if pieces else ""
            pieces.append((lead + text, "bold green" if i in row.marked else row.style))
        pieces[-1] = (pieces[-1][0].rstrip(), pieces[-1][1])
        return pieces

    def _sentence(self, row: Row, fit: _Fit) -> Iterator[list[tuple[str, str]]]:
        head = "".join(cell.ljust(size + self.gap) for cell, size in zip(row.cells, fit.widths, strict=False))
        room = max(12, fit.width - len(head)) if fit.width else len(row.sentence)
        for part in textwrap.wrap(row.sentence, room, break_on_hyphens=False):
            yield [(head + part, row.style)]
            head = " " * len(head)

    def plain(self, width: int | None = None) -> list[str]:
        """Return the lines without styles."""
        return ["".join(text for text, _ in line) for line in self.lines(width)]

    def markdown(self) -> str:
        """Return one pipe table, or one under a heading for each titled part."""
        header = [
            "| " + " | ".join(column.title for column in self.columns) + " |",
            "|" + "|".join("--:" if column.right else ":--" for column in self.columns) + "|",
        ]
        lines = [] if self.rows and self.rows[0].title else list(header)
        for row in self.rows:
            if row.title:
                lines += ["", f"### {row.title}", "", *header] if lines else [f"### {row.title}", "", *header]
                continue
            cells = [f"**{cell}**" if i in row.marked else cell for i, cell in enumerate(row.cells)]
            cells += [row.sentence] * bool(row.sentence)
            cells += [""] * (len(self.columns) - len(cells))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        return "\n".join(lines)
