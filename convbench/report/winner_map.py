"""Who is fastest where: in words, as a table, as a map that can be read in grey."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbench.bench.crossover import ALIKE
from convbench.bench.winners import MAP_FILE, Cell, WinnerMap, load_map
from convbench.errors import MissingDependency
from convbench.report import drawing
from convbench.report.crossover import passes_text
from convbench.report.text import DASH, Column, Grid, Row, human_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["as_object", "map_caption", "map_grid", "map_lines", "redraw", "winner_plot", "write_map"]

_TINT = 0.5  # of white in a cell: black letters are legible on each of these, in grey print too
_LETTERS_SHOWN = 3  # of those that share a place
_NOBODY, _UNREACHED, _EDGE = "#e8e8e8", "#ffffff", "#ffffff"


def map_lines(found: WinnerMap) -> list[str]:
    """Say in words who is fastest where, and what is missing."""
    measured = [cell for cell in found.cells if cell.measured]
    if not measured:
        return ["nothing was measured"]
    inferred = len(found.cells) - len(measured)
    ties, undecided = sum(cell.tie for cell in measured), sum(cell.undecided for cell in measured)
    alone = [cell.winners[0] for cell in measured if len(cell.winners) == 1]
    counts = [f"{name} {alone.count(name)}" for name in found.winners if name in alone]
    classes = [f"fastest alone at {', '.join(counts) or 'no place'}", f"a tie at {ties}"]
    classes += [f"undecided at {undecided}"] * bool(undecided)
    lines = [f"{'; '.join(classes)}; of {len(measured)} place{'s' * (len(measured) > 1)} measured"]
    if undecided:
        passes = passes_text([cell.passes for cell in measured if cell.undecided])
        lines.append(
            f"undecided: with {passes} a place it is left open whether some take more than {human_number(ALIKE)}× as "
            "long as the fastest; give more --budget, or fewer --backends"
        )
    if inferred:
        lines.append(f"{inferred} more lie amid places that agree and were not measured")
    nobody = sum(not cell.winners for cell in measured)
    if nobody:
        lines.append(f"no backend has a time at {nobody}")
    left_out = [name for name in found.backends if name not in found.near]
    if left_out:
        lines.append(f"measured on the coarse grid alone, nowhere within 2× of the fastest: {', '.join(left_out)}")
    if not found.finished:
        lines.append("the time was spent before the borders were drawn as finely as planned; a larger --budget helps")
    return lines


def map_caption(found: WinnerMap) -> str:
    """Say what stands where in the table, and what the signs of a place mean."""
    return (
        f"across: {found.over[0]}, down: {found.over[1]}. Each place has the fastest backend, those tied with it (=), "
        "and how many times as long the next one takes; a?: undecided, one of these is the fastest; (a): not measured, "
        f"all around it agree; ?: not reached; {DASH}: no backend has a time."
    )


def as_object(found: WinnerMap) -> dict[str, Any]:
    """Return the map as map.json and --json have it: with what it comes to, in words."""
    return {**found.to_dict(), "notes": map_lines(found)}


def map_grid(found: WinnerMap) -> Grid:
    """Return a table: a row for each y, the greatest on top, a column for each x."""
    x, y = found.over
    places = found.places
    grid = Grid([Column(f"{y} \\ {x}"), *(Column(str(value), right=False) for value in found.columns)])
    for value in reversed(found.rows):
        grid.rows.append(Row((str(value), *(_in_words(places.get((column, value))) for column in found.columns))))
    return grid


def _in_words(cell: Cell | None) -> str:
    if cell is None:
        return "?"
    if not cell.measured:
        return f"({' = '.join(cell.winners) or DASH})"
    margin = f" {human_number(cell.margin)}×" if cell.margin == cell.margin else ""
    sign = " or " if cell.undecided else " = "
    return sign.join(cell.winners) + "?" * cell.undecided + margin if cell.winners else DASH


def write_map(found: WinnerMap, folder: Path, note: Callable[[str], None]) -> list[Path]:
    """Write map.json, map.md, and the map as SVG and PNG; return what was written.

    ``note`` receives one line for what a missing library costs.
    """
    data, page = folder / MAP_FILE, folder / "map.md"
    data.write_text(json.dumps(as_object(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    parts = [
        f"# The fastest over {found.over[0]} and {found.over[1]}",
        f"All else as in `{found.case}`; {100 * found.confidence:g} % intervals.",
        f"Backends: {', '.join(found.backends)}.",
        "\n".join(f"- {line}" for line in map_lines(found)),
        map_caption(found),
        map_grid(found).markdown(),
    ]
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    try:
        return [data, page, *drawing.save({"map": lambda: winner_plot(found)}, folder)]
    except MissingDependency as missing:
        note(str(missing))
        return [data, page]


def redraw(folder: Path, note: Callable[[str], None]) -> list[Path]:
    """Write a map's files anew from its map.json; nothing where there is none."""
    return write_map(load_map(folder), folder, note) if (folder / MAP_FILE).exists() else []


# -- the plot ------------------------------------------------------------------------------------------


def winner_plot(found: WinnerMap) -> Figure | None:
    """Draw a cell for each place: the winner's colour and letter, ties hatched, what was inferred without a letter."""
    from matplotlib.figure import Figure

    if not found.cells:
        return None
    looks = {name: (_letter(i), _tint(drawing.coloured(i)["color"])) for i, name in enumerate(found.winners)}
    columns, rows = found.columns, found.rows
    width_in, height_in = max(5.4, 0.62 * len(columns)), max(3.2, 0.4 * len(rows))
    figure = Figure(figsize=(width_in + 3.0, height_in + 1.6), layout="constrained")
    axis = figure.subplots()
    places = found.places
    for row, y in enumerate(rows):
        for column, x in enumerate(columns):
            _draw(axis, column, row, places.get((x, y)), looks)
    axis.set_xlim(0, len(columns))
    axis.set_ylim(0, len(rows))
    axis.set_xticks([place + 0.5 for place in range(len(columns))], [str(value) for value in columns], fontsize=8)
    axis.set_yticks([place + 0.5 for place in range(len(rows))], [str(value) for value in rows], fontsize=8)
    axis.set(xlabel=found.over[0].replace("_", " "), ylabel=found.over[1].replace("_", " "))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.grid(False)
    _legend(figure, found, looks)
    note = "number: how many times as long the next one takes"
    fields = " and ".join(field.replace("_", " ") for field in found.over)
    drawing.head(figure, f"The fastest over {fields}", [found.case, f"{note}; {100 * found.confidence:g} % intervals"])
    return figure


_HATCHED: dict[str, Any] = {"facecolor": "none", "edgecolor": "#555555", "hatch": "////", "linewidth": 0}
_DOTTED: dict[str, Any] = {**_HATCHED, "hatch": ".."}
Looks = dict[str, tuple[str, str]]  # backend → its letter and colour


def _letter(index: int) -> str:
    return string.ascii_uppercase[index] if index < 26 else f"A{string.ascii_uppercase[index - 26]}"


def _tint(colour: str) -> str:
    from matplotlib.colors import to_hex, to_rgb

    red, green, blue = (_TINT + (1 - _TINT) * part for part in to_rgb(colour))
    return to_hex((red, green, blue))


def _draw(axis: Axes, column: int, row: int, cell: Cell | None, looks: Looks) -> None:
    from matplotlib.patches import Rectangle

    winners = cell.winners if cell else ()
    colour = (
        _NOBODY
        if cell and cell.undecided
        else looks[winners[0]][1]
        if winners
        else _UNREACHED
        if cell is None
        else _NOBODY
    )
    style: dict[str, Any] = {"facecolor": colour, "edgecolor": _EDGE, "linewidth": 1.0}
    if cell is None:
        style["edgecolor"] = "#cccccc"
    axis.add_patch(Rectangle((column, row), 1, 1, **style))
    if cell is not None and len(cell.winners) > 1:
        axis.add_patch(Rectangle((column, row), 1, 1, **(_DOTTED if cell.undecided else _HATCHED)))
    if cell is None or not cell.measured:
        return
    sign = "/" if cell.undecided else "="
    letters = sign.join(looks[name][0] for name in winners[:_LETTERS_SHOWN]) + "+" * (len(winners) > _LETTERS_SHOWN)
    has_margin = cell.margin == cell.margin
    text = letters + "?" * cell.undecided or DASH
    box = {"facecolor": colour, "edgecolor": "none", "pad": 1.2} if len(winners) > 1 else None
    axis.text(column + 0.5, row + (0.66 if has_margin else 0.5), text, ha="center", va="center", fontweight="bold",
              fontsize=9 if len(text) < 4 else 7.5, bbox=box, in_layout=False)  # fmt: skip
    if has_margin:
        axis.text(column + 0.5, row + 0.26, f"{human_number(cell.margin)}×", ha="center", va="center", fontsize=6.5,
                  bbox=box, in_layout=False)  # fmt: skip


def _legend(figure: Figure, found: WinnerMap, looks: Looks) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=colour, label=f"{letter}  {name}") for name, (letter, colour) in looks.items()]
    places = found.places
    if any(cell.tie for cell in found.cells):
        handles.append(Patch(**_HATCHED, label="tie: A=B"))
    if any(cell.undecided for cell in found.cells):
        handles.append(Patch(**{**_DOTTED, "facecolor": _NOBODY}, label="undecided: A/B?"))
    if any(not cell.measured for cell in found.cells):
        handles.append(Patch(facecolor="#f4f4f4", label="no letter: not measured,\nall around it agree"))
    if any(not cell.winners for cell in found.cells):
        handles.append(Patch(facecolor=_NOBODY, label=f"{DASH}: no backend has a time"))
    if any((x, y) not in places for x in found.columns for y in found.rows):
        handles.append(Patch(facecolor=_UNREACHED, edgecolor="#cccccc", label="white: not reached"))
    figure.legend(handles=handles, loc="outside right upper", fontsize=8.5, handlelength=1.4, handleheight=1.2)
