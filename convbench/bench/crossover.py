"""Where one backend overtakes another: adaptive sampling along one number of a spec.

Rounds of measurements, each a run of its own: first a coarse geometric grid, then values in every gap in which the
winner changes, until the last value at which one wins and the first at which the other does are neighbours or have
only ties between them. Wins are called from intervals of ratios, paired within passes from three passes on
(:mod:`convbench.bench.ratios`). Of many values in
a row some win by chance, and a search looks just where the winner changes: so both ends of what is found are measured
once more before they are believed, all their passes together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbench.backend import Backend
from convbench.bench.axes import Axis, axis_of, base_case, between, spread
from convbench.bench.cases import Case
from convbench.bench.ratios import WIN_CONFIDENCE, row_ratio
from convbench.bench.record import plain
from convbench.bench.rounds import RoundDone, Rounds, Timing, folder_for, read_found
from convbench.bench.run import Event, Options
from convbench.errors import MissingDependency, SpecError, UnsupportedSpec
from convbench.registry import get_backend, protocol_problem, refusal_of, what_is_missing
from convbench.spec import ConvSpec

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "CROSSOVER_FILE",
    "Crossing",
    "Crossover",
    "Point",
    "common_values",
    "find_crossover",
    "found_backend",
    "load_crossover",
    "next_values",
    "require_intervals",
    "search",
    "two_backends",
]

CROSSOVER_FILE = "crossover.json"
COARSE = 7  # values of the first round
ALIKE = 1.25  # times as long as the other: a tie whose interval goes beyond that is none that is known
A_GAP = 3  # values that a later round puts into a gap
_PREDICTED_LOG = math.log(2)  # half-width that a prediction is given where it takes part in the fit
_LEAST_LOG = 1e-6  # half-width of ratios that do not vary at all

Pair = tuple[Timing, Timing]
Measure = Callable[[Sequence[int]], Mapping[int, Pair]]


@dataclass(frozen=True)
class Point:
    """Two backends at one value.

    Attributes
    ----------
    value : int
    first, second : Timing
    ratio, low, high : float
        Time of the first over that of the second, with its interval; NaN where it is not known.
    verdict : str
        "first" or "second", whichever is faster; "tie"; "unknown" if one of them has no time.
    firm : bool
        It is faster at a tenth of the error rate too.
    predicted : bool
        One of them was skipped because its predicted time exceeds the limit: it counts as slower, ``ratio`` is that
        prediction over the other's time or the reverse, and there is no interval.
    """

    value: int
    first: Timing
    second: Timing
    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan
    verdict: str = "unknown"
    firm: bool = False
    predicted: bool = False

    @staticmethod
    def of(value: int, first: Timing, second: Timing, confidence: float = WIN_CONFIDENCE) -> Point:
        """Compare two timings."""
        own_s, other_s = first.time_s, second.time_s
        if own_s and other_s:
            ratio = row_ratio(first.row, second.row, confidence)
            verdict = {"faster": "first", "slower": "second"}.get(ratio.verdict, "tie")
            firm = row_ratio(first.row, second.row, 1 - (1 - confidence) / 10).verdict == ratio.verdict
            return Point(value, first, second, ratio.value, ratio.low, ratio.high, verdict, firm and verdict != "tie")
        if own_s and second.predicted_s and second.predicted_s > own_s:
            return Point(value, first, second, own_s / second.predicted_s, verdict="first", firm=True, predicted=True)
        if other_s and first.predicted_s and first.predicted_s > other_s:
            return Point(value, first, second, first.predicted_s / other_s, verdict="second", firm=True, predicted=True)
        return Point(value, first, second)

    @property
    def decided(self) -> bool:
        """Whether one of the two is faster."""
        return self.verdict in ("first", "second")

    @property
    def passes(self) -> int:
        """That both have."""
        return len(self.first.passes_s.keys() & self.second.passes_s.keys())

    @property
    def known_alike(self) -> bool:
        """Whether neither takes more than :data:`ALIKE` times as long as the other, beyond doubt."""
        return self.low >= 1 / ALIKE and self.high <= ALIKE

    @property
    def rounds(self) -> int:
        """In how many rounds both were measured."""
        return min(self.first.rounds, self.second.rounds)

    @property
    def trouble(self) -> tuple[tuple[str, str], ...]:
        """("first" or "second", its status and reason) for each that has no time."""
        both = (("first", self.first), ("second", self.second))
        return tuple((name, f"{timing.status}: {timing.reason}") for name, timing in both if timing.status != "ok")


@dataclass(frozen=True)
class Crossing:
    """A change of the winner.

    Attributes
    ----------
    below, above : str
        The backend that is faster before it, and the one after it.
    low, high : int
        The last value at which the one wins, and the first at which the other does: the crossing lies between them.
    value : float
        Estimate: isotonic regression of the logarithms of the ratios at ``low``, ``high`` and all ties between them,
        weighted by the inverse squares of their intervals' half-widths, and its zero, linear between logarithms of
        values. As the ratios at both ends are on either side of 1, so is the fit: the estimate is never outside.
    ties : tuple of int
        Values between them at which neither wins, or one by so little, ties on both sides, that it may be chance.
    settled : bool
        No value of the axis is left that could narrow it; False if the time was spent before.
    """

    below: str
    above: str
    low: int
    high: int
    value: float
    ties: tuple[int, ...] = ()
    settled: bool = True


@dataclass(frozen=True)
class Crossover:
    """What a search has found.

    Attributes
    ----------
    first, second : str
        Names of the backends.
    over : str
        The field that varies.
    case : str
        The line that gives all other fields.
    values : tuple of int
        All that could have been tried: what both backends accept.
    measured : tuple of Point
    refused : mapping of str to (mapping of int to str)
        Backend → value of the axis that it refuses → its reason.
    confidence : float
        Of each interval.
    finished : bool
        False if the time was spent before the search was done.
    transfers : bool
        Whether times on a GPU hold the sending of operands and the fetching of results.
    """

    first: str
    second: str
    over: str
    case: str
    values: tuple[int, ...]
    measured: tuple[Point, ...] = ()
    refused: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    confidence: float = WIN_CONFIDENCE
    finished: bool = True
    transfers: bool = False

    @property
    def crossings(self) -> tuple[Crossing, ...]:
        """All changes of the winner, in rising order."""
        return tuple(self._crossing(low, high) for low, high in _changes(self.measured))

    def _crossing(self, low: Point, high: Point) -> Crossing:
        inside = [point for point in self.measured if low.value <= point.value <= high.value]
        return Crossing(
            below=getattr(self, low.verdict),
            above=getattr(self, high.verdict),
            low=low.value,
            high=high.value,
            value=_estimate(inside),
            ties=tuple(point.value for point in _ties(self.measured) if low.value < point.value < high.value),
            settled=not _narrowing(self.measured, low, high, self.values),
        )

    @property
    def value(self) -> float | None:
        """Estimate of the only crossing; None if there is none, or several."""
        return self._only.value if self._only else None

    @property
    def low(self) -> int | None:
        """The last value before the only crossing at which one backend wins."""
        return self._only.low if self._only else None

    @property
    def high(self) -> int | None:
        """The first value after the only crossing at which the other backend wins."""
        return self._only.high if self._only else None

    @property
    def _only(self) -> Crossing | None:
        crossings = self.crossings
        return crossings[0] if len(crossings) == 1 else None

    @property
    def statuses(self) -> list[str]:
        """Of all timings."""
        return [timing.status for point in self.measured for timing in (point.first, point.second)]

    @property
    def points(self) -> DataFrame:
        """One row a value: ``value``, ``first_s``, ``second_s``, ``ratio``, ``low``, ``high``, ``faster``, ...

        ``passes`` are those that both have; ``faster`` is the name of the faster backend, "tie" or "unknown".
        """
        try:
            from pandas import DataFrame
        except ImportError:
            raise MissingDependency("points need pandas: pip install pandas") from None
        return DataFrame([self._row(point) for point in self.measured])

    def _row(self, point: Point) -> dict[str, Any]:
        return {
            "value": point.value,
            "case": str(self.axis.case_at(point.value)),
            "first_s": _nan(point.first.time_s),
            "second_s": _nan(point.second.time_s),
            "ratio": point.ratio,
            "low": point.low,
            "high": point.high,
            "faster": getattr(self, point.verdict) if point.decided else point.verdict,
            "predicted": point.predicted,
            "passes": point.passes,
            "note": "; ".join(f"{getattr(self, name)} {text}" for name, text in point.trouble),
        }

    @property
    def axis(self) -> Axis:
        """The axis along which was searched."""
        return Axis(self.over, Case.parse(self.case), self.values)

    def to_dict(self) -> dict[str, Any]:
        """Return what crossover.json holds; numbers that are not known are None."""
        points = [{**self._row(point), "first": asdict(point.first), "second": asdict(point.second)}
                  for point in self.measured]  # fmt: skip
        named = ("first", "second", "over", "case", "values", "refused", "confidence", "finished", "transfers")
        found = {
            **{name: getattr(self, name) for name in named},
            "crossings": [asdict(crossing) for crossing in self.crossings],
            "points": points,
        }
        return {name: plain(value) for name, value in found.items()}

    @staticmethod
    def from_dict(given: Mapping[str, Any]) -> Crossover:
        """Return what :meth:`to_dict` was made of."""
        points = (
            Point.of(row["value"], Timing.from_dict(row["first"]), Timing.from_dict(row["second"]), given["confidence"])
            for row in given["points"]
        )
        refused = {name: {int(v): why for v, why in reasons.items()} for name, reasons in given["refused"].items()}
        names = ("first", "second", "over", "case", "confidence", "finished")
        rest = {name: given[name] for name in names} | {"transfers": given.get("transfers", False)}
        return Crossover(values=tuple(given["values"]), measured=tuple(points), refused=refused, **rest)


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def load_crossover(folder: str | Path) -> Crossover:
    """Return the result that a search has left in its folder.

    Raises
    ------
    SpecError
        If there is none, or it cannot be read.
    """
    return read_found(Path(folder) / CROSSOVER_FILE, "crossover", Crossover.from_dict)


# -- the search ----------------------------------------------------------------------------------------


def search(
    measure: Measure,
    values: Sequence[int],
    *,
    coarse: int = COARSE,
    confidence: float = WIN_CONFIDENCE,
    on_points: Callable[[tuple[Point, ...]], None] = lambda points: None,
) -> tuple[tuple[Point, ...], bool]:
    """Find where the winner changes.

    Parameters
    ----------
    measure : callable
        Takes a round's values; returns for each that it had time for what is now known of both backends. A value is
        asked for once more at most; what is returned then is added to what was known.
    values : sequence of int
        All that may be tried, rising.
    coarse : int
        How many of them the first round has.
    confidence : float
    on_points : callable
        Called after each round with all points.

    Returns
    -------
    tuple of Point, bool
        In rising order; and whether the search came to its end, rather than to that of the time.
    """
    found: dict[int, Point] = {}
    wanted = spread(values, coarse)
    while wanted:
        measured = measure(wanted)
        for value, pair in measured.items():
            if value in found:
                pair = (found[value].first.joined(pair[0]), found[value].second.joined(pair[1]))
            found[value] = Point.of(value, *pair, confidence)
        points = tuple(found[value] for value in sorted(found))
        on_points(points)
        if len(measured) < len(wanted):
            return points, False
        wanted = next_values(points, values)
    return tuple(found[value] for value in sorted(found)), True


def next_values(points: Sequence[Point], values: Sequence[int]) -> list[int]:
    """Return what to measure next: within each change of the winner; then its ends and ties once more; then nothing."""
    changes = _changes(points)
    wanted = {value for low, high in changes for value in _narrowing(points, low, high, values)}
    ends, ties = {end.value for change in changes for end in change}, {tie.value for tie in _ties(points)}
    again = {point.value for point in points if point.value in ends | ties and point.rounds < 2 and not point.predicted}
    return sorted(wanted or again)


def _ties(points: Iterable[Point]) -> list[Point]:
    """Return the ties, and wins that are not firm amid ties: of many ties in a row some win by chance."""
    known = [point for point in points if point.verdict != "unknown"]
    lone = [
        point
        for before, point, after in zip(known, known[1:], known[2:], strict=False)
        if not point.firm and before.verdict == after.verdict == "tie"
    ]
    return [point for point in known if point.verdict == "tie" or point in lone]


def _changes(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    """Return each last point at which one wins with the first at which the other does; ties may lie between."""
    ties = _ties(points)
    decided = [point for point in points if point.decided and point not in ties]
    return [(low, high) for low, high in pairwise(decided) if low.verdict != high.verdict]


def _narrowing(points: Sequence[Point], low: Point, high: Point, values: Sequence[int]) -> list[int]:
    """Return values that may narrow a change: those between its ends and the nearest ties, if there are any."""
    measured = [point.value for point in points if low.value < point.value < high.value]
    ties = [point.value for point in _ties(points) if point.value in measured]
    gaps = [(low.value, ties[0]), (ties[-1], high.value)] if ties else [(low.value, high.value)]
    left = [value for value in values if value not in measured]
    return [value for gap in gaps for value in between(left, *gap, A_GAP)]


def _estimate(points: Sequence[Point]) -> float:
    """Return where the ratio is 1: see :class:`Crossing`. The first and the last point have different winners."""
    from scipy.optimize import isotonic_regression

    known = [point for point in points if point.ratio > 0]
    rising = known[0].ratio < 1
    logs = [math.log(point.ratio) for point in known]
    fit = isotonic_regression(logs, weights=[_half_width(p) ** -2 for p in known], increasing=rising).x.tolist()
    before = max(i for i, height in enumerate(fit) if (height < 0) == rising and height != 0)
    after = min(i for i, height in enumerate(fit) if (height > 0) == rising and height != 0)
    low, high = (math.log(max(known[i].value, 0.5)) for i in (before, after))
    return math.exp(low + (high - low) * fit[before] / (fit[before] - fit[after]))


def _half_width(point: Point) -> float:
    if math.isnan(point.low):
        return _PREDICTED_LOG
    return max(_LEAST_LOG, (math.log(point.high) - math.log(point.low)) / 2)


# -- with real measurements ----------------------------------------------------------------------------


def find_crossover(
    first: str | Backend,
    second: str | Backend,
    spec: str | ConvSpec | Case,
    *,
    over: str = "kernel_size",
    values: str | Iterable[int] | None = None,
    options: Options | None = None,
    confidence: float = WIN_CONFIDENCE,
    coarse: int = COARSE,
    transfers: bool = False,
    folder: str | Path | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Crossover:
    """Find where one backend overtakes another.

    Parameters
    ----------
    first, second : str or Backend
    spec : str, ConvSpec or Case
        All that does not vary.
    over : str
        What varies: see :data:`convbench.bench.axes.AXES`.
    values : str or iterable of int, optional
        Its range, ``"3:101"``, or a list; see :func:`convbench.bench.axes.axis_of`.
    options : Options, optional
        As of a run; ``budget_s`` is for the whole search. At least two passes, which an interval needs.
    confidence : float
        Of the interval from which a win is called, two-sided.
    coarse : int
        Values of the first round.
    transfers : bool
        Whether a time on a GPU holds the sending of the operands there and the fetching of the result: with it, where
        data that are in main memory before and after are better sent; without it, where the GPU itself is faster.
    folder : path, optional
        Where to leave the records of all rounds; None: nowhere.
    on_event : callable
        Receives the runs' events, and :class:`convbench.bench.rounds.RoundStarted` and ``RoundDone``, whose
        ``result`` is the Crossover as it is then known.

    Returns
    -------
    Crossover

    Raises
    ------
    SpecError, UnknownBackend, UnsupportedSpec
        Before any work; the last if there are fewer than two values that both backends accept.

    Examples
    --------
    >>> quick = Options(passes=2, budget_s=8, isolate=False)  # for results that hold: the defaults
    >>> found = find_crossover("fft", "direct-numpy", "i32x32 k3 psame f32", values="3:5", options=quick)
    >>> found.points["value"].tolist()  # and found.value, found.low, found.high
    [3, 5]
    """
    options = options or Options()
    require_intervals(options, confidence, coarse)
    axis = axis_of(base_case(spec), over, values)
    backends = two_backends(first, second)
    names = [backend.name for backend in backends]
    accepted, refused = common_values(axis, backends)

    def result(points: tuple[Point, ...], finished: bool) -> Crossover:
        return Crossover(
            first=names[0],
            second=names[1],
            over=over,
            case=str(axis.case),
            values=accepted,
            measured=points,
            refused=refused,
            confidence=confidence,
            finished=finished,
            transfers=transfers,
        )

    with folder_for(folder) as where:
        rounds = Rounds(where, options, on_event, transfers=transfers)
        points, finished = search(
            partial(_measure, rounds, axis, backends),
            accepted,
            coarse=coarse,
            confidence=confidence,
            on_points=lambda points: rounds.tell(RoundDone(rounds.number, result(points, False))),
        )
    return result(points, finished)


def _measure(rounds: Rounds, axis: Axis, backends: Sequence[Backend], wanted: Sequence[int]) -> dict[int, Pair]:
    """Run one round of as many values as there is time for."""
    most = rounds.affordable(len(backends))
    kept = wanted if most is None else spread(wanted, most) if most > 1 else wanted[:most]
    if not kept:
        return {}
    cases = {value: axis.case_at(value) for value in kept}
    found = rounds.run(list(cases.values()), backends)
    names = [backend.name for backend in backends]
    pairs = {value: [found.get((str(case), name)) for name in names] for value, case in cases.items()}
    return {value: (a, b) for value, (a, b) in pairs.items() if a is not None and b is not None}


def require_intervals(options: Options, confidence: float, coarse: int) -> None:
    """Raise SpecError if nothing could be told apart."""
    if not options.timed or options.passes < 2:
        raise SpecError("passes", options.passes_made, "must be at least 2: one pass says nothing of the spread")
    if not 0.5 <= confidence < 1:
        raise SpecError("confidence", confidence, "must be at least 0.5 and below 1, such as 0.99")
    if coarse < 2:
        raise SpecError("points", coarse, "must be at least 2, the ends of the axis")


def found_backend(backend: str | Backend) -> Backend:
    """Return the backend of that name, or the object itself if it is one; its libraries are imported."""
    if isinstance(backend, str):
        backend = get_backend(backend)
    problem = protocol_problem(backend)
    if problem:
        raise SpecError("backend", type(backend).__name__, f"must be a registered name or a backend: {problem}")
    what_is_missing(backend)
    return backend


def two_backends(first: str | Backend, second: str | Backend) -> tuple[Backend, Backend]:
    """Return both, see :func:`found_backend`; SpecError if they are the same."""
    backends = found_backend(first), found_backend(second)
    if backends[0].name == backends[1].name:
        raise SpecError("backends", backends[0].name, "is given twice; name two different ones")
    return backends


def common_values(axis: Axis, backends: Iterable[Backend]) -> tuple[tuple[int, ...], dict[str, dict[int, str]]]:
    """Return the values that all backends accept, and of each backend those that it refuses, with its reasons.

    Raises
    ------
    UnsupportedSpec
        If they accept fewer than two.
    """
    refused = {backend.name: _refusals(backend, axis) for backend in backends}
    accepted = tuple(value for value in axis.values if not any(value in reasons for reasons in refused.values()))
    if len(accepted) < 2:
        raise UnsupportedSpec(_nothing_in_common(axis, refused))
    return accepted, refused


def _refusals(backend: Backend, axis: Axis) -> dict[int, str]:
    answers = {value: refusal_of(backend, axis.case_at(value).spec) for value in axis.values}
    return {value: reason for value, reason in answers.items() if reason is not None}


def _nothing_in_common(axis: Axis, refused: Mapping[str, Mapping[int, str]]) -> str:
    for name, reasons in refused.items():
        if len(reasons) > len(axis.values) - 2:
            why = next(iter(reasons.values()))
            most = "every" if len(reasons) == len(axis.values) else "all but one"
            return f"{name} refuses {most} {axis.field} from {axis.values[0]} to {axis.values[-1]}: {why}"
    first, second = refused
    return f"{first} and {second} have fewer than two values of {axis.field} in common: what one does the other refuses"
