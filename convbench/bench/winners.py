"""Who is fastest where: a map over two numbers of a spec, finer where the winner changes.

All backends are measured on a coarse geometric grid. Then every gap of the grid is halved: a new place whose
surroundings all have the same winner, or the same tie, is taken to have it too and is not measured; the others are, by
those backends that came near the fastest anywhere. What nothing separates from the fastest shares its place: a tie if
they are known to be about as fast. Where too few passes leave open by how much they differ, the place is undecided, and
nothing is inferred from it.
"""

from __future__ import annotations

import json
import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from convbench.backend import Backend
from convbench.bench.axes import AXES, Axis, axis_pair, base_case, between, case_with, spread
from convbench.bench.cases import Case
from convbench.bench.crossover import ALIKE, found_backend, require_intervals
from convbench.bench.ratios import WIN_CONFIDENCE
from convbench.bench.rounds import RoundDone, Rounds, Timing, folder_for, read_found
from convbench.bench.run import Event, Options
from convbench.bench.standings import standings_of
from convbench.errors import SpecError, UnsupportedSpec
from convbench.registry import all_backends, refusal_of, what_is_missing
from convbench.spec import ConvSpec

__all__ = ["MAP_FILE", "Cell", "WinnerMap", "load_map", "map_axes", "map_backends", "map_winners", "survey"]

MAP_FILE = "map.json"
COARSE = 5  # values of each axis in the first round
LEVELS = 2  # times that the gaps are halved
NEAR = 2.0  # times as slow as the fastest somewhere, a backend is measured in later rounds too

Place = tuple[int, int]
Measure = Callable[[Sequence[Place]], Mapping[Place, Mapping[str, Timing]]]


@dataclass(frozen=True)
class Cell:
    """One place of the map.

    Attributes
    ----------
    x, y : int
    winners : tuple of str
        The fastest backend, then those that nothing separates from it, see
        :func:`convbench.bench.standings.standings_of`; none if no backend has a time.
    undecided : bool
        For all that is known, one of them may take more than :data:`convbench.bench.crossover.ALIKE` times as long as
        the fastest.
    time_s : float
        Of the fastest; NaN where not measured.
    margin : float
        How many times as long the first of the others takes, paired within passes; NaN if there is no other.
    measured : bool
        False: taken from its surroundings, which all have these winners.
    timings : mapping of str to Timing
    """

    x: int
    y: int
    winners: tuple[str, ...]
    time_s: float = math.nan
    margin: float = math.nan
    measured: bool = True
    timings: Mapping[str, Timing] = field(default_factory=dict)
    undecided: bool = False

    @staticmethod
    def of(place: Place, timings: Mapping[str, Timing], confidence: float = WIN_CONFIDENCE) -> Cell:
        """Compare what was measured at a place."""
        rows = [{"backend": name, **timing.row} for name, timing in timings.items() if timing.time_s is not None]
        if not rows:
            return Cell(*place, (), timings=timings)
        known = sorted(standings_of(rows, confidence), key=lambda entry: (not entry.is_best, entry.ratio.value))
        ahead = [entry for entry in known if entry.is_best or not entry.beaten_by]
        ratios = [entry.ratio for entry in known if entry not in ahead]
        return Cell(
            *place,
            tuple(str(entry.row["backend"]) for entry in ahead),
            time_s=float(known[0].row["time_s"]),
            margin=min((ratio.value for ratio in ratios), default=math.nan),
            timings=timings,
            undecided=any(entry.undecided or entry.ratio.high > ALIKE for entry in ahead),
        )

    @property
    def tie(self) -> bool:
        """Whether several share the place, and are known to be about as fast."""
        return len(self.winners) > 1 and not self.undecided

    @property
    def passes(self) -> int:
        """Of the backend that has the fewest."""
        return min((len(timing.passes_s) for timing in self.timings.values() if timing.passes_s), default=0)


@dataclass(frozen=True)
class WinnerMap:
    """A map of winners.

    Attributes
    ----------
    over : (str, str)
        Fields of the two axes, x and y.
    case : str
        The line that gives all other fields.
    backends : tuple of str
        Those that were measured on the coarse grid; ``near``, in later rounds.
    columns, rows : tuple of int
        Values of x and y, rising. A place of these that has no cell was not reached before the time was spent.
    cells : tuple of Cell
    confidence : float
    finished : bool
    """

    over: tuple[str, str]
    case: str
    backends: tuple[str, ...]
    near: tuple[str, ...]
    columns: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    cells: tuple[Cell, ...] = ()
    confidence: float = WIN_CONFIDENCE
    finished: bool = True

    @property
    def places(self) -> dict[Place, Cell]:
        """(x, y) → cell."""
        return {(cell.x, cell.y): cell for cell in self.cells}

    @property
    def winners(self) -> tuple[str, ...]:
        """All that are fastest or tied with it somewhere, those with the most places of their own first."""
        alone = [cell.winners[0] for cell in self.cells if len(cell.winners) == 1]  # these are decided
        shared = [name for cell in self.cells for name in cell.winners]
        return tuple(sorted(dict.fromkeys(shared), key=lambda name: (-alone.count(name), -shared.count(name))))

    @property
    def statuses(self) -> list[str]:
        """Of all timings."""
        return [timing.status for cell in self.cells for timing in cell.timings.values()]

    def to_dict(self) -> dict[str, Any]:
        """Return what map.json holds; numbers that are not known are None."""
        given = asdict(self)
        for cell in given["cells"]:
            for name in ("time_s", "margin"):
                cell[name] = None if math.isnan(cell[name]) else cell[name]
        plain: dict[str, Any] = json.loads(json.dumps(given))
        return plain

    @staticmethod
    def from_dict(given: Mapping[str, Any]) -> WinnerMap:
        """Return what :meth:`to_dict` was made of."""
        cells = tuple(_cell(cell, given["confidence"]) for cell in given["cells"])
        lists = {name: tuple(given[name]) for name in ("over", "backends", "near", "columns", "rows")}
        rest = {name: given[name] for name in ("case", "confidence", "finished")}
        fields: dict[str, Any] = {**lists, **rest, "cells": cells}
        return WinnerMap(**fields)


def _cell(given: Mapping[str, Any], confidence: float) -> Cell:
    place = (given["x"], given["y"])
    if not given["measured"]:
        return Cell(*place, tuple(given["winners"]), measured=False)
    return Cell.of(place, {name: Timing.from_dict(timing) for name, timing in given["timings"].items()}, confidence)


def load_map(folder: str | Path) -> WinnerMap:
    """Return the map that was left in a folder.

    Raises
    ------
    SpecError
        If there is none, or it cannot be read.
    """
    return read_found(Path(folder) / MAP_FILE, "map", WinnerMap.from_dict)


# -- the survey ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Survey:
    """What a survey knows: values of both axes so far, and the cells."""

    columns: tuple[int, ...]
    rows: tuple[int, ...]
    cells: tuple[Cell, ...] = ()
    finished: bool = False


def survey(
    measure: Measure,
    xs: Sequence[int],
    ys: Sequence[int],
    *,
    coarse: int = COARSE,
    levels: int = LEVELS,
    confidence: float = WIN_CONFIDENCE,
    on_survey: Callable[[Survey], None] = lambda survey: None,
) -> Survey:
    """Map the winners.

    Parameters
    ----------
    measure : callable
        Takes a round's places; returns for each that it had time for the timings of the backends.
    xs, ys : sequence of int
        All values that may be tried, rising.
    coarse, levels : int
        Values of each axis in the first round; how often their gaps are halved.
    confidence : float
    on_survey : callable
        Called after each round with what is known.
    """
    columns, rows = spread(xs, coarse), spread(ys, coarse)
    cells: dict[Place, Cell] = {}
    inferred: list[Cell] = []
    wanted = [(x, y) for y in rows for x in columns]
    known = Survey((), ())
    for level in range(levels + 1):
        if level:
            finer = _halved(columns, xs), _halved(rows, ys)
            inferred, wanted = _to_be_known(cells, (columns, rows), finer)
            columns, rows = finer
        if not wanted:  # no border: the map is as fine as it needs to be
            break
        measured = measure(wanted)
        if not measured:
            return known
        cells |= {(cell.x, cell.y): cell for cell in inferred}
        cells |= {place: Cell.of(place, timings, confidence) for place, timings in measured.items()}
        known = Survey(tuple(columns), tuple(rows), tuple(cells[place] for place in sorted(cells)))
        on_survey(known)
        if len(measured) < len(wanted):
            return known
    return Survey(known.columns, known.rows, known.cells, finished=True)


def _halved(values: Sequence[int], candidates: Sequence[int]) -> list[int]:
    middles = [middle for low, high in pairwise(values) for middle in between(candidates, low, high, 1)]
    return sorted({*values, *middles})


Grid = tuple[Sequence[int], Sequence[int]]


def _to_be_known(cells: Mapping[Place, Cell], grid: Grid, finer: Grid) -> tuple[list[Cell], list[Place]]:
    """Divide a finer grid's new places: those whose surroundings agree on who wins, and those to be measured."""
    inferred, wanted = [], []
    for y in finer[1]:
        for x in finer[0]:
            if (x, y) in cells:
                continue
            corners = [cells.get((a, b)) for a in _around(x, grid[0]) for b in _around(y, grid[1])]
            classes = {frozenset(corner.winners) if corner and not corner.undecided else None for corner in corners}
            if len(classes) == 1 and None not in classes and corners[0] is not None:
                inferred.append(Cell(x, y, corners[0].winners, measured=False))
            else:
                wanted.append((x, y))
    return inferred, wanted


def _around(value: int, values: Sequence[int]) -> set[int]:
    """Return the value's neighbours in a list, or itself if it is in it."""
    return {values[bisect_right(values, value) - 1], values[bisect_left(values, value)]}


# -- with real measurements ----------------------------------------------------------------------------


def map_axes(spec: str | ConvSpec | Case, over: Mapping[str, str | Iterable[int] | None]) -> tuple[Axis, Axis]:
    """Return the two axes of a map.

    Raises
    ------
    SpecError
        For another number of them, and as :func:`convbench.bench.axes.axis_pair` does.
    """
    case = base_case(spec)
    if len(over) != 2:
        raise SpecError("over", list(over), "must be two different fields, such as kernel_size and input_size")
    fields = [name for field in over if field in AXES for name in AXES[field][0]]
    if len(set(fields)) < len(fields):
        raise SpecError("over", list(over), "sets the same numbers twice; take two fields that are independent")
    return axis_pair(case, over)


def map_backends(backends: Iterable[str | Backend] | None) -> list[Backend]:
    """Return the backends to compare; None: all that are available, without ``reference``."""
    if backends is None:
        known = (backend for name, backend in all_backends().items() if name != "reference")
        return [backend for backend in known if what_is_missing(backend) is None]
    found = [found_backend(backend) for backend in ([backends] if isinstance(backends, str) else backends)]
    names = [backend.name for backend in found]
    if len(set(names)) < max(2, len(names)):
        raise SpecError("backends", names, "must be two or more, each once")
    return found


def map_winners(
    spec: str | ConvSpec | Case,
    over: Mapping[str, str | Iterable[int] | None],
    backends: Iterable[str | Backend] | None = None,
    *,
    options: Options | None = None,
    confidence: float = WIN_CONFIDENCE,
    coarse: int = COARSE,
    folder: str | Path | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> WinnerMap:
    """Find who is fastest, over two numbers of a spec.

    Parameters
    ----------
    spec : str, ConvSpec or Case
        All that does not vary.
    over : mapping
        Two fields, x and y, each with its values: a range ``"3:101"``, a list, or None for the usual range; see
        :func:`convbench.bench.axes.axis_of`.
    backends : iterable of str or Backend, optional
        None: all that are available, without ``reference``.
    options, confidence, coarse, folder, on_event
        As of :func:`convbench.bench.crossover.find_crossover`; ``coarse`` is for each axis.

    Returns
    -------
    WinnerMap

    Raises
    ------
    SpecError, UnknownBackend, UnsupportedSpec
        Before any work; the last if no backend does any of the places.

    Examples
    --------
    >>> quick = Options(passes=2, budget_s=8, isolate=False)  # for results that hold: the defaults
    >>> over = {"kernel_size": [3, 5], "input_size": [16, 32]}
    >>> found = map_winners("i16x16 k3 psame f32", over, ["fft", "im2col"], options=quick)
    >>> found.columns, found.rows
    ((3, 5), (16, 32))
    """
    options = options or Options()
    require_intervals(options, confidence, coarse)
    x_axis, y_axis = map_axes(spec, over)
    chosen = map_backends(backends)
    willing = _willing(chosen, [x_axis, y_axis], coarse)
    with folder_for(folder) as where:
        tour = _Tour(Rounds(where, options, on_event), x_axis, y_axis, willing)

        def result(known: Survey) -> WinnerMap:
            return WinnerMap(
                over=(x_axis.field, y_axis.field),
                case=str(x_axis.case),
                backends=tuple(backend.name for backend in willing),
                near=tuple(backend.name for backend in tour.near),
                columns=known.columns,
                rows=known.rows,
                cells=known.cells,
                confidence=confidence,
                finished=known.finished,
            )

        known = survey(
            tour,
            x_axis.values,
            y_axis.values,
            coarse=coarse,
            confidence=confidence,
            on_survey=lambda known: tour.rounds.tell(RoundDone(tour.rounds.number, result(known))),
        )
        return result(known)


def _case_at(x_axis: Axis, y_axis: Axis, place: Place) -> Case | None:
    """Return the case, None where there is none: a kernel larger than this image, say."""
    try:
        return case_with(x_axis.case, {x_axis.field: place[0], y_axis.field: place[1]})
    except SpecError:
        return None


def _willing(backends: Sequence[Backend], axes: Sequence[Axis], coarse: int) -> list[Backend]:
    columns, rows = (spread(axis.values, coarse) for axis in axes)
    cases = [case for x in columns for y in rows if (case := _case_at(axes[0], axes[1], (x, y))) is not None]
    answers = {backend.name: [refusal_of(backend, case.spec) for case in cases] for backend in backends}
    willing = [backend for backend in backends if None in answers[backend.name]]
    if not willing:
        name, reasons = next(iter(answers.items()))
        rule = f"no backend does any of these cases; {name}: {reasons[0] if reasons else 'there is no case at all'}"
        raise UnsupportedSpec(rule)
    return willing


class _Tour:
    """Measures places, each round a run: all backends in the first, those near the fastest somewhere in later ones."""

    def __init__(self, rounds: Rounds, x_axis: Axis, y_axis: Axis, backends: Sequence[Backend]) -> None:
        self.rounds, self.near = rounds, list(backends)
        self._axes = x_axis, y_axis

    def __call__(self, wanted: Sequence[Place]) -> dict[Place, Mapping[str, Timing]]:
        """Measure as many places as there is time for, taken at random if not all."""
        cases = {place: _case_at(*self._axes, place) for place in wanted}
        done: dict[Place, Mapping[str, Timing]] = {place: {} for place, case in cases.items() if case is None}
        possible = {place: case for place, case in cases.items() if case is not None}
        most = self.rounds.affordable(len(self.near))
        if most is not None and most < len(possible):
            possible = {place: possible[place] for place in random.Random(0).sample(sorted(possible), most)}
        if not possible:
            return done
        found = self.rounds.run(list(possible.values()), self.near)
        names = [backend.name for backend in self.near]
        reached = {place: {name: found[str(case), name] for name in names if (str(case), name) in found}
                   for place, case in possible.items()}  # fmt: skip
        done |= {place: timings for place, timings in reached.items() if timings}
        if self.rounds.number == 1:
            self.near = _near(self.near, [Cell.of(place, timings) for place, timings in done.items()])
        return done


def _near(backends: Sequence[Backend], cells: Iterable[Cell]) -> list[Backend]:
    """Keep those that somewhere win, tie or take less than :data:`NEAR` times as long as the fastest."""
    kept: set[str] = set()
    for cell in cells:
        times = {name: timing.time_s for name, timing in cell.timings.items() if timing.time_s is not None}
        kept |= {name for name, time_s in times.items() if time_s < NEAR * cell.time_s} | set(cell.winners)
    return [backend for backend in backends if backend.name in kept]
