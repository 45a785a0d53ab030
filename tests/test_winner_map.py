"""Who is fastest where: the survey on made-up times, what is drawn, and the command on real ones."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import convbench.commands.map
from convbench.bench import Options
from convbench.bench.record import load_results
from convbench.bench.rounds import Timing
from convbench.bench.winners import Cell, Place, Survey, WinnerMap, load_map, map_axes, map_winners, survey
from convbench.cli import main
from convbench.errors import SpecError
from convbench.report.winner_map import map_grid, map_lines, redraw, winner_plot, write_map

LINE = "n1 c1 o1 i64x64 k3 psame f32"
KERNELS = tuple(range(3, 34, 2))
SIZES = (16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128)
PASSES = 6
Curves = Mapping[str, Callable[[int, int], float]]

#: FFT's time hardly depends on the kernel; direct's does; the third is never near.
CURVES: Curves = {
    "fft": lambda k, n: 1e-6 * n * n,
    "direct": lambda k, n: 1e-6 * n * n * (k / 12.0) ** 2,
    "slow": lambda k, n: 1e-3 * n * n,
}


def _timing(seconds: float, noise: float, seed: str) -> Timing:
    own = random.Random(seed)
    return Timing({number: seconds * math.exp(own.gauss(0, noise)) for number in range(1, PASSES + 1)})


class Clock:
    """Times that follow the curves, for as many places as there is time for."""

    def __init__(self, curves: Curves = CURVES, noise: float = 0.005, places: int = 10**6) -> None:
        self.curves, self.noise, self.left = curves, noise, places
        self.asked: list[Place] = []

    def __call__(self, wanted: Sequence[Place]) -> dict[Place, Mapping[str, Timing]]:
        granted = wanted[: self.left]
        self.left -= len(granted)
        self.asked += granted
        return {place: self.timings(place) for place in granted}

    def timings(self, place: Place) -> dict[str, Timing]:
        return {name: _timing(of(*place), self.noise, f"{name}{place}") for name, of in self.curves.items()}


def _map(known: Survey) -> WinnerMap:
    return WinnerMap(
        over=("kernel_size", "input_size"),
        case=LINE,
        backends=tuple(CURVES),
        near=("fft", "direct"),
        columns=known.columns,
        rows=known.rows,
        cells=known.cells,
        finished=known.finished,
    )


# -- the survey -------------------------------------------------------------------------------------


def test_border_is_refined_and_the_rest_is_not_measured() -> None:
    clock = Clock()
    known = survey(clock, KERNELS, SIZES)
    assert known.finished
    for cell in known.cells:
        assert cell.winners[0] == ("direct" if cell.x < 12 else "fft")
    measured = [cell for cell in known.cells if cell.measured]
    assert len(known.cells) == len(known.columns) * len(known.rows) > 2 * len(measured)
    assert sorted((cell.x, cell.y) for cell in measured) == sorted(clock.asked)
    assert {11, 13} <= {x for x, _ in clock.asked}  # the border, as narrow as there are values
    assert len(clock.asked) == len(set(clock.asked))


def test_one_winner_everywhere_takes_one_round() -> None:
    clock = Clock({"fft": lambda k, n: 1.0, "slow": lambda k, n: 2.0})
    known = survey(clock, KERNELS, SIZES)
    assert known.finished
    assert len(clock.asked) == 25
    assert {cell.winners for cell in known.cells} == {("fft",)}


def test_ties_are_a_class_of_their_own() -> None:
    known = survey(Clock({"a": lambda k, n: 1.0, "b": lambda k, n: 1.0, "c": lambda k, n: 3.0}, 0.05), KERNELS, SIZES)
    ties = [cell for cell in known.cells if cell.tie]
    assert len(ties) > 0.9 * len(known.cells)
    assert all(set(cell.winners) == {"a", "b"} for cell in ties)
    assert all(2.5 < cell.margin < 3.5 for cell in ties if cell.measured)


def test_too_few_passes_leave_a_place_undecided_and_nothing_is_inferred_from_it() -> None:
    """Two passes say who is fastest if the difference is plain; else not even that it is a tie."""
    noisy = {"a": Timing({1: 1.0, 2: 1.3}), "b": Timing({1: 1.2, 2: 1.0}), "slow": Timing({1: 90.0, 2: 91.0})}
    cell = Cell.of((3, 16), noisy)
    assert (cell.undecided, cell.tie, set(cell.winners), cell.passes) == (True, False, {"a", "b"}, 2)
    assert not Cell.of((3, 16), {name: noisy[name] for name in ("a", "slow")}).undecided
    single = Cell.of((3, 16), {"a": Timing({1: 1.0}), "b": Timing({1: 1.1})})
    assert single.undecided

    asked: list[Place] = []

    def measure(wanted: Sequence[Place]) -> dict[Place, Mapping[str, Timing]]:
        asked.extend(wanted)
        return dict.fromkeys(wanted, noisy)

    found = _map(survey(measure, KERNELS, SIZES, coarse=3, levels=1))
    assert all(cell.measured for cell in found.cells)
    assert len(asked) == len(found.cells) == 25
    lines = map_lines(found)
    assert lines[0] == "fastest alone at no place; a tie at 0; undecided at 25; of 25 places measured"
    assert "with 2 passes a place" in lines[1]
    assert "--budget" in lines[1]
    assert "a or b? 82" in map_grid(found).rows[0].cells[1] or "b or a? 82" in map_grid(found).rows[0].cells[1]
    figure = winner_plot(found)
    assert figure is not None
    assert "undecided: A/B?" in [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_the_margin_is_the_ratio_that_is_judged() -> None:
    """Paired within passes: what slows a whole pass down cancels, which a quotient of medians does not see."""
    drift = {1: 1.0, 2: 5.0, 3: 1.1, 4: 4.0, 5: 1.2, 6: 3.0}
    cell = Cell.of((3, 16), {"a": Timing(drift), "b": Timing({number: 2 * time_s for number, time_s in drift.items()})})
    assert cell.winners == ("a",)
    assert cell.margin == pytest.approx(2.0)


def test_a_place_without_times_has_no_winner() -> None:
    refused = Timing({}, "unsupported", "kernel size: too large")
    cell = Cell.of((3, 16), {"fft": refused})
    assert (cell.winners, cell.tie) == ((), False)
    assert math.isnan(cell.time_s)
    assert Cell.of((3, 16), {}).winners == ()
    alone = Cell.of((3, 16), {"fft": refused, "direct": _timing(1.0, 0, "")})
    assert alone.winners == ("direct",)
    assert math.isnan(alone.margin)


def test_spent_time_leaves_places_open() -> None:
    known = survey(Clock(places=30), KERNELS, SIZES)
    assert not known.finished
    assert sum(cell.measured for cell in known.cells) == 30
    assert len(known.cells) < len(known.columns) * len(known.rows)
    assert survey(Clock(places=25), KERNELS, SIZES).columns == tuple(sorted({x for x, _ in _coarse()}))
    assert survey(Clock(places=0), KERNELS, SIZES) == Survey((), ())


def _coarse() -> list[Place]:
    clock = Clock(places=25)
    survey(clock, KERNELS, SIZES)
    return clock.asked


@given(border=st.floats(1, 40), coarse=st.integers(2, 6), levels=st.integers(0, 3))
def test_what_is_inferred_of_one_straight_border_is_right(border: float, coarse: int, levels: int) -> None:
    curves: Curves = {"fft": lambda k, n: 1.0, "direct": lambda k, n: 0.5 if k < border else 2.0}
    known = survey(Clock(curves, 0.001), KERNELS, SIZES, coarse=coarse, levels=levels)
    assert known.finished
    assert len(known.cells) == len(known.columns) * len(known.rows)
    assert all(low < high for low, high in pairwise(known.columns))
    for cell in known.cells:
        assert cell.winners == (("direct",) if cell.x < border else ("fft",))


# -- words, tables, drawings --------------------------------------------------------------------------


def test_files_say_the_same_and_can_be_made_again(tmp_path: Path) -> None:
    found = _map(survey(Clock(), KERNELS, SIZES))
    names = {path.name for path in write_map(found, tmp_path, pytest.fail)}
    assert names == {"map.json", "map.md", "map.svg", "map.png"}
    again = load_map(tmp_path)
    assert again.to_dict() == found.to_dict()
    assert [cell.winners for cell in again.cells] == [cell.winners for cell in found.cells]
    page = (tmp_path / "map.md").read_text(encoding="utf-8")
    assert "| input_size \\\\ kernel_size |" in page.replace("\\ ", "\\\\ ")
    assert "(fft)" in page
    assert "within 2× of the fastest: slow" in page
    (tmp_path / "map.svg").unlink()
    assert len(redraw(tmp_path, pytest.fail)) == 4
    assert redraw(tmp_path / "elsewhere", pytest.fail) == []


def test_unreadable_file_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        load_map(tmp_path)
    (tmp_path / "map.json").write_text("[]", encoding="utf-8")
    with pytest.raises(SpecError, match="is not what 'convbench map' writes"):
        load_map(tmp_path)


def test_drawing_names_every_winner_and_what_is_missing() -> None:
    found = _map(survey(Clock(places=33), KERNELS, SIZES))
    figure = winner_plot(found)
    assert figure is not None
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert {"A  direct", "B  fft"} == {label for label in labels if label[1:3] == "  "}
    assert "white: not reached" in labels
    letters = {text.get_text() for axis in figure.axes for text in axis.texts}
    assert {"A", "B"} <= letters
    assert any("--budget" in line for line in map_lines(found))
    assert winner_plot(_map(Survey((), ()))) is None
    assert map_lines(_map(Survey((), ()))) == ["nothing was measured"]


def test_table_has_the_greatest_value_on_top() -> None:
    found = _map(survey(Clock(), KERNELS, SIZES))
    rows = [int(row.cells[0]) for row in map_grid(found).rows]
    assert rows == sorted(rows, reverse=True)
    assert len(map_grid(found).columns) == 1 + len(found.columns)


# -- real measurements --------------------------------------------------------------------------------

QUICK = Options(threads=1, passes=2, time_limit_s=1, budget_s=60, twins=0, isolate=False)


@pytest.mark.parametrize(
    ("over", "backends", "wording"),
    [
        ({"kernel_size": "3:9"}, None, "must be two different fields"),
        ({"channels": None, "in_channels": None}, None, "sets the same numbers twice"),
        ({"kernel_size": "3:9", "groups": None}, None, "must be one of kernel_size"),
        ({"kernel_size": "3:9", "batch": None}, ["im2col"], "two or more"),
        ({"kernel_size": "3:9", "batch": None}, ["im2col", "im2col"], "each once"),
    ],
)
def test_mistakes_are_told_before_any_work(
    over: dict[str, str | None], backends: list[str] | None, wording: str
) -> None:
    with pytest.raises(SpecError, match=wording):
        map_winners(LINE, over, backends, options=QUICK)


def test_each_axis_is_checked_with_the_other() -> None:
    """A kernel of 33 does not fit into the spec's own image, but into those of the other axis."""
    x, y = map_axes("n1 c1 o1 i32x32 k3 f32", {"kernel_size": "31,33", "input_size": "64,128"})
    assert (x.values, y.values) == ((31, 33), (64, 128))
    x, y = map_axes("n1 c1 o1 i32x32 k5 f32", {"input_size": "2:8", "kernel_size": "1:20"})
    assert x.values == tuple(range(2, 9))
    assert y.values == tuple(range(1, 9))
    with pytest.raises(SpecError, match="smaller than the kernel's extent"):
        map_axes("n1 c1 o1 i32x32 k3 f32", {"kernel_size": "31,333", "input_size": "64,128"})
    with pytest.raises(SpecError, match="needs at least two values"):
        map_axes("n1 c1 o1 i32x32 k3 f32", {"kernel_size": "31", "input_size": "64,128"})


def test_impossible_places_are_left_out(tmp_path: Path) -> None:
    """A kernel of 9 does not fit into an image of 8."""
    over = {"kernel_size": "3,9", "input_size": "8,16"}
    found = map_winners("i16x16 k3 f32", over, ["im2col", "direct-numpy"], options=QUICK, coarse=2, folder=tmp_path)
    places = found.places
    assert places[9, 8].winners == ()
    assert all(places[place].winners for place in ((3, 8), (3, 16), (9, 16)))
    cases = set(load_results(tmp_path)["case"])
    assert cases == {f"n1 c1 o1 i{n}x{n} k{k} f32" for k, n in ((3, 8), (3, 16), (9, 16))}


def test_command_prints_the_map_and_writes_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = convbench.commands.map.options_of
    monkeypatch.setattr(
        convbench.commands.map, "options_of", lambda given: replace(options(given), twins=0, isolate=False)
    )
    arguments = ["map", "--over", "kernel_size=3,5", "--over", "batch=1,2", "--spec", "i16x16 k3 psame f32"]
    arguments += ["--backends", "im2col,direct-numpy", "--threads", "1", "--passes", "2", "--time-limit", "1"]
    assert main([*arguments, "--budget", "60", "--out", str(tmp_path)]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert output.startswith("the fastest of 2 backends over kernel_size and batch")
    assert "4 places × 2 backends × 2 passes" in output
    assert "batch \\ kernel_size" in output
    assert "across: kernel_size, down: batch." in output
    (folder,) = tmp_path.iterdir()
    assert load_map(folder).places.keys() == {(3, 1), (3, 2), (5, 1), (5, 2)}


def test_command_needs_two_axes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", "--over", "batch=1,2", "--spec", LINE, "--out", str(tmp_path)]) == 2
    assert "must be given twice" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
