"""Where one backend overtakes another: the search on made-up times, the sentences, and the command on real ones."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convbench import ConvSpec, FunctionBackend
from convbench.bench import Case, Options
from convbench.bench.axes import axis_of, between, spread
from convbench.bench.crossover import Crossover, Point, find_crossover, load_crossover, next_values, search
from convbench.bench.record import Record, load_results
from convbench.bench.rounds import RoundDone, RoundStarted, Timing
from convbench.bench.run import Event
from convbench.cli import main
from convbench.commands.results import removed_if_empty
from convbench.errors import SpecError, UnsupportedSpec
from convbench.refusals import Limits
from convbench.report.crossover import crossover_plot, notes, point_row, redraw, sentences, write_crossover

LINE = "n1 c1 o1 i64x64 k3 psame f32"
ODD = tuple(range(3, 102, 2))
PASSES = 6
Times = Callable[[int], float]


class Clock:
    """Times of two backends that follow two curves, with noise that differs from pass to pass and from pair to pair."""

    def __init__(self, first: Times, second: Times, noise: float = 0.02, seed: int = 0, rounds: int = 99) -> None:
        self.curves, self.noise, self.random = (first, second), noise, random.Random(seed)
        self.asked: list[list[int]] = []
        self.rounds = rounds

    def __call__(self, values: Sequence[int]) -> Mapping[int, tuple[Timing, Timing]]:
        if len(self.asked) == self.rounds:
            return {}
        self.asked.append(list(values))
        return {value: (self.timing(value, 0), self.timing(value, 1)) for value in values}

    def timing(self, value: int, which: int) -> Timing:
        start = PASSES * (len(self.asked) - 1)
        drift = [random.Random(start + number).gauss(0, 0.3) for number in range(PASSES)]  # of a pass: cancels
        return Timing({
            start + number + 1: self.curves[which](value) * math.exp(drift[number] + self.random.gauss(0, self.noise))
            for number in range(PASSES)
        })  # fmt: skip


def _flat(_: int) -> float:
    return 1e-3


def _rising(crossing: float, power: float = 2.0) -> Times:
    return lambda value: 1e-3 * (value / crossing) ** power


def _found(clock: Callable[..., Mapping[int, tuple[Timing, Timing]]], values: Sequence[int] = ODD) -> Crossover:
    points, finished = search(clock, values)
    return Crossover("fft", "direct", "kernel_size", LINE, tuple(values), points, finished=finished)


def _ok(seconds: float) -> Timing:
    return Timing({number: seconds * (1 + 0.001 * (number % 3)) for number in range(1, PASSES + 1)})


# -- the search -------------------------------------------------------------------------------------


def test_finds_a_known_crossing() -> None:
    clock = Clock(_flat, _rising(17.3), 0.005)
    found = _found(clock)
    assert found.finished
    (crossing,) = found.crossings
    assert (crossing.below, crossing.above) == ("direct", "fft")
    assert (crossing.low, crossing.high) == (17, 19)
    assert crossing.settled
    assert found.value == pytest.approx(17.3, rel=0.02)
    assert clock.asked[0] == [3, 5, 9, 17, 31, 57, 101]
    assert sum(map(len, clock.asked)) < 25  # of 50 values


def test_interval_covers_the_true_crossing_as_often_as_promised() -> None:
    found = [_found(Clock(_flat, _rising(17.3), 0.15, seed)) for seed in range(150)]
    covered = [any(crossing.low < 17.3 < crossing.high for crossing in each.crossings) for each in found]
    assert sum(covered) / len(covered) >= 0.97


def test_alike_backends_seldom_cross() -> None:
    """Of seven values of two alike some win by chance: looked at again, hardly any two of them in turn."""
    crossed = sum(bool(_found(Clock(_flat, _flat, 0.1, seed)).crossings) for seed in range(150))
    assert crossed <= 3


def test_no_crossing_is_said_with_factors() -> None:
    found = _found(Clock(_flat, lambda value: 1e-3 * value))
    assert found.crossings == ()
    assert (found.value, found.low, found.high) == (None, None, None)
    (text,) = sentences(found)
    assert text.startswith("no crossing between kernel_size 3 and 101: fft is faster throughout (by ")
    low, high = (float(part) for part in text.rpartition("by ")[2].rstrip(")×").split("–"))
    assert (low, high) == pytest.approx((3, 101), rel=0.05)


def test_finds_several_crossings_and_sums_none_of_them_up() -> None:
    """FFT sizes are like that: good ones and bad ones in turn."""
    found = _found(Clock(_flat, lambda value: 1e-3 * (2.0 if 10 < value < 40 else 0.5)))
    assert [(c.below, c.above, c.low, c.high) for c in found.crossings] == [
        ("direct", "fft", 9, 11),
        ("fft", "direct", 39, 41),
    ]
    assert found.value is None
    assert sentences(found)[0] == "2 crossings between kernel_size 3 and 101:"
    assert len(sentences(found)) == 3


def test_ties_everywhere_are_measured_once_more_and_said() -> None:
    clock = Clock(_flat, _flat, 0.05)
    found = _found(clock)
    assert [point.verdict for point in found.measured] == ["tie"] * 7
    assert [len(values) for values in clock.asked] == [7, 7]
    assert all(point.rounds == 2 and len(point.first.passes_s) == 2 * PASSES for point in found.measured)
    assert "a tie at 3, 5 … 101 (7 values)" in sentences(found)[0]


def _steps(value: int) -> float:
    return 1e-3 * (0.5 if value < 11 else 1.0 if value < 32 else 2.0)


def test_ties_between_are_the_interval() -> None:
    """Alike from 11 to 31: nothing narrows that, however often it is asked."""
    found = _found(Clock(_flat, _steps, 0.01))
    (crossing,) = found.crossings
    assert (crossing.low, crossing.high) == (9, 33)
    assert {11, 31} <= set(crossing.ties)
    assert crossing.low < crossing.value < crossing.high
    assert "between them is a tie" in sentences(found)[0]


def test_a_win_by_chance_amid_ties_seldom_narrows_the_interval() -> None:
    found = [_found(Clock(_flat, _steps, 0.01, seed)) for seed in range(100)]
    assert sum([(c.low, c.high) for c in each.crossings] == [(9, 33)] for each in found) >= 97


def test_a_clear_win_amid_ties_counts() -> None:
    """The only good size."""
    found = _found(Clock(_flat, lambda value: 1e-3 * (3.0 if value == 17 else 0.5 if value > 90 else 1.0), 0.01))
    assert [(c.below, c.above, c.low) for c in found.crossings] == [("fft", "direct", 17)]


def test_ends_of_a_crossing_are_measured_once_more() -> None:
    clock = Clock(_flat, _rising(17.3), 0.005)
    found = _found(clock)
    ends = {point.value: point.rounds for point in found.measured if point.value in (17, 19)}
    assert ends == {17: 2, 19: 2}
    assert clock.asked[-1] == [17, 19]


def test_spent_time_ends_the_search_and_is_said() -> None:
    found = _found(Clock(_flat, _rising(50), rounds=1))
    assert not found.finished
    (crossing,) = found.crossings
    assert (crossing.low, crossing.high, crossing.settled) == (31, 57, False)
    assert "the time was spent" in sentences(found)[0]
    assert any("--budget" in line for line in notes(found))
    assert _found(lambda values: {}).measured == ()


def test_partial_round_counts_and_ends_the_search() -> None:
    clock = Clock(_flat, _rising(17.3))
    points, finished = search(lambda values: clock(values[:3]), ODD)
    assert ([point.value for point in points], finished) == ([3, 5, 9], False)


@given(
    crossing=st.floats(3.5, 100.5),
    power=st.floats(0.3, 4),
    noise=st.sampled_from([0.0, 0.01, 0.2]),
    swapped=st.booleans(),
    values=st.lists(st.integers(1, 200), min_size=2, max_size=60, unique=True).map(sorted),
)
def test_search_ends_and_its_intervals_are_brackets(
    crossing: float, power: float, noise: float, swapped: bool, values: list[int]
) -> None:
    curves = (_rising(crossing, power), _flat) if swapped else (_flat, _rising(crossing, power))
    clock = Clock(*curves, noise, seed=1)
    found = _found(clock, values)
    assert found.finished
    assert next_values(found.measured, values) == []
    asked = [value for round_ in clock.asked for value in round_]
    assert max(asked.count(value) for value in asked) <= 2
    verdicts = {point.value: point.verdict for point in found.measured}
    for each in found.crossings:
        assert each.low < each.high
        assert {verdicts[each.low], verdicts[each.high]} == {"first", "second"}
        assert all(verdicts[value] == "tie" for value in each.ties)
        assert each.low <= each.value <= each.high
    if noise == 0 and not any(value == crossing for value in values):
        inside = [value for value in values if value < crossing], [value for value in values if value > crossing]
        expected = [(inside[0][-1], inside[1][0])] if all(inside) else []
        assert [(each.low, each.high) for each in found.crossings] == expected


def test_refused_and_unmeasured_values_are_passed_over() -> None:
    def measure(values: Sequence[int]) -> dict[int, tuple[Timing, Timing]]:
        failed = Timing({}, "wrong", "error 9e9 eps")
        return {value: (_ok(1e-3), _ok(1e-4 * value)) if value != 9 else (_ok(1e-3), failed) for value in values}

    found = _found(measure)
    (crossing,) = found.crossings
    assert (crossing.low, crossing.high) == (7, 11)
    assert found.measured[[p.value for p in found.measured].index(9)].verdict == "unknown"
    assert "direct at kernel_size 9: wrong: error 9e9 eps" in notes(found)


def test_predicted_too_slow_counts_as_slower_and_is_marked() -> None:
    def measure(values: Sequence[int]) -> dict[int, tuple[Timing, Timing]]:
        slow = Timing({}, "skipped", "work: one call should take 9 s, and two are needed; the limit is 5 s", 9.0)
        return {value: (_ok(1e-3), _ok(1e-4 * value) if value < 30 else slow) for value in values}

    found = _found(measure)
    last = found.measured[-1]
    assert (last.verdict, last.predicted, last.ratio) == ("first", True, pytest.approx(1 / 9000, rel=0.01))
    assert math.isnan(last.low)
    assert any(line.endswith("(counted as slower)") for line in notes(found))
    figure = crossover_plot(found)
    assert figure is not None
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert "direct skipped:\npredicted too slow" in labels


def test_prediction_below_the_others_time_says_nothing() -> None:
    assert Point.of(3, _ok(2.0), Timing({}, "skipped", "", 1.0)).verdict == "unknown"
    both = Timing({}, "skipped", "", 9.0)
    assert Point.of(3, both, both).verdict == "unknown"


def test_timing_of_records_tells_predictions_from_other_skips() -> None:
    pair = {"run_id": "r", "case": LINE, "spec": LINE, "backend": "fft"}

    def predicted_s(status: str, call_s: float | None) -> float | None:
        return Timing.of_records([Record(**pair, status=status, call_s=call_s)]).predicted_s

    assert predicted_s("skipped", 1500.0) == 1500
    assert predicted_s("skipped", None) is None  # for its memory, or for what preparing takes
    assert predicted_s("wrong", 1.0) is None
    verified, timed = Record(**pair), Record(**pair, pass_=1, samples_s=[1.0, 9.0, 2.0])
    assert Timing.of_records([verified, timed]) == Timing({1: 2.0})


# -- axes -------------------------------------------------------------------------------------------


def test_axes_take_round_values_and_follow_the_spec() -> None:
    case = Case.parse(LINE)
    assert axis_of(case, "kernel_size", "3:11").values == (3, 5, 7, 9, 11)
    assert axis_of(case, "kernel_size", "4,6").values == (4, 6)  # as stated
    assert axis_of(case, "input_size", "64:128").values == (64, 72, 80, 88, 96, 104, 112, 120, 128)
    assert axis_of(Case.parse("i8x8 k3 f32"), "kernel_size", "1:20").values == tuple(range(1, 9))  # nothing fits beyond
    assert str(axis_of(case, "channels").case_at(24)) == "n1 c24 o24 i64x64 k3 psame f32"
    depthwise = axis_of(Case.parse("c32 o32 g32 i8x8 k3 f32"), "channels", "8:16")
    assert str(depthwise.case_at(10)) == "n1 c10 o10 i8x8 k3 g10 f32"
    grouped = axis_of(Case.parse("c32 o32 g4 i8x8 k3 f32"), "in_channels", "1:32")
    assert all(value % 4 == 0 for value in grouped.values)


@given(st.lists(st.integers(1, 5000), min_size=2, unique=True).map(sorted), st.integers(2, 12))
def test_spread_keeps_both_ends_and_between_stays_inside(values: list[int], count: int) -> None:
    chosen = spread(values, count)
    assert chosen[0] == values[0]
    assert chosen[-1] == values[-1]
    assert len(chosen) <= count
    assert set(chosen) <= set(values)
    inner = between(values, values[0], values[-1], count)
    assert set(inner) <= set(values[1:-1])
    assert bool(inner) == (len(values) > 2)


@pytest.mark.parametrize(
    ("line", "over", "values", "wording"),
    [
        (LINE, "groups", None, "must be one of kernel_size, input_size"),
        ("i64x64 k3 p1 f32", "kernel_size", None, "write psame or pfull"),
        ("i64x32 k3 f32", "input_size", None, "differs between the axes"),
        ("i64x64 k1x3 f32", "kernel_size", None, "differs between the axes"),
        ("c3 o64 i64x64 k3 f32", "channels", None, "vary in_channels or out_channels"),
        (LINE, "kernel_size", "9:3", "must rise"),
        (LINE, "kernel_size", "3..9", "a range such as 3:101"),
        (LINE, "kernel_size", "3,3", "names a value twice"),
        (LINE, "kernel_size", "3,0", "kernel_size"),
        (LINE, "kernel_size", "5", "at least two"),
        ("i8x8 k3 f32", "kernel_size", "9:20", "leaves 0"),
        ("pool=max i8x8 k2 f32", "kernel_size", None, "pooling"),
    ],
)
def test_impossible_and_ambiguous_axes_are_refused(line: str, over: str, values: str | None, wording: str) -> None:
    with pytest.raises(SpecError, match=wording):
        find_crossover("fft-pocketfft", "direct-numpy", line, over=over, values=values)


def test_own_data_has_one_size(tmp_path: Path) -> None:
    image = tmp_path / "x.npy"
    np.save(image, np.zeros((1, 1, 16, 16), np.float32))
    case = Case.parse(f"i16x16 k3 f32 x=@{image}")
    assert axis_of(case, "kernel_size").values[0] == 3
    with pytest.raises(SpecError, match="has one size, and input_size would change it"):
        axis_of(case, "input_size")


# -- files and words --------------------------------------------------------------------------------


def test_files_say_the_same_and_can_be_made_again(tmp_path: Path) -> None:
    found = _found(Clock(_flat, _rising(17.3), 0.005))
    names = {path.name for path in write_crossover(found, tmp_path, pytest.fail)}
    assert names == {"crossover.json", "crossover.md", "crossover.svg", "crossover.png"}
    again = load_crossover(tmp_path)
    assert again == found
    page = (tmp_path / "crossover.md").read_text(encoding="utf-8")
    assert sentences(found)[0] in page
    assert page.count("\n| ") == 1 + len(found.measured)
    data = json.loads((tmp_path / "crossover.json").read_text(encoding="utf-8"))
    assert data["crossings"][0]["low"] == 17
    (tmp_path / "crossover.svg").unlink()
    assert len(redraw(tmp_path, pytest.fail)) == 4
    assert (tmp_path / "crossover.svg").exists()
    assert redraw(tmp_path / "elsewhere", pytest.fail) == []


def test_unreadable_file_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        load_crossover(tmp_path)
    for text in ("{", "[]", '{"points": []}'):
        (tmp_path / "crossover.json").write_text(text, encoding="utf-8")
        with pytest.raises(SpecError, match="is not what 'convbench crossover' writes"):
            load_crossover(tmp_path)


def test_points_are_a_frame() -> None:
    frame = _found(Clock(_flat, _rising(17.3), 0.005)).points
    assert frame["value"].is_monotonic_increasing
    assert set(frame["faster"]) <= {"fft", "direct", "tie"}
    row = frame[frame["value"] == 17].iloc[0]
    assert row["passes"] == 2 * PASSES
    assert row["case"] == "n1 c1 o1 i64x64 k17 psame f32"
    assert row["low"] < row["ratio"] < row["high"]


def test_a_tie_of_few_passes_is_no_finding() -> None:
    """Notes say how many there were."""

    def measure(values: Sequence[int]) -> dict[int, tuple[Timing, Timing]]:
        return {value: (Timing({1: 1.0, 2: 1.4}), Timing({1: 1.3, 2: 1.1})) for value in values}

    points, _ = search(measure, (3, 5))
    found = Crossover("fft", "direct", "kernel_size", LINE, (3, 5), points)
    assert notes(found) == [
        "undecided at kernel_size 3, 5: with 2 passes a difference of more than 1.25× is left open; give more --budget"
    ]
    assert {point_row(found, point).cells[5] for point in points} == {"undecided"}
    alike = _found(Clock(_flat, _flat, 0.01))
    assert notes(alike) == []
    assert "tie" in {point_row(alike, point).cells[5] for point in alike.measured}


def test_plot_is_not_drawn_of_nothing() -> None:
    nothing = Crossover("a", "b", "kernel_size", LINE, ODD)
    assert crossover_plot(nothing) is None
    assert sentences(nothing) == ["nothing to compare between kernel_size 3 and 101: at no value do both have a time"]


# -- real measurements --------------------------------------------------------------------------------


QUICK = Options(threads=1, passes=2, time_limit_s=1, budget_s=60, twins=0, isolate=False)


def test_rounds_leave_one_folder_that_reads_as_a_run(tmp_path: Path) -> None:
    events: list[Event] = []
    found = find_crossover(
        "im2col", "direct-numpy", "i32x32 k3 psame f32", values="3,5,15", options=QUICK, folder=tmp_path,
        on_event=events.append,
    )  # fmt: skip
    assert [point.value for point in found.measured] == [3, 5, 15]
    assert all(point.first.time_s and point.second.time_s for point in found.measured)
    started = [event for event in events if isinstance(event, RoundStarted)]
    done = [event for event in events if isinstance(event, RoundDone)]
    assert len(started) == len(done) == len(list((tmp_path / "rounds").iterdir()))
    assert done[-1].result.measured == found.measured
    records = load_results(tmp_path)
    timed = records[records["samples_s"].map(len) > 0]
    timed = timed[~timed["twin"].astype(bool)] if "twin" in timed else timed
    assert not timed.duplicated(["case", "backend", "pass"]).any()
    for point in found.measured:
        case = str(found.axis.case_at(point.value))
        own = timed[(timed["case"] == case) & (timed["backend"] == "im2col")]
        assert set(own["pass"]) == set(point.first.passes_s)
    assert records.attrs["environment"]["rounds"] == len(started)
    with pytest.raises(SpecError, match="holds a run already"):
        find_crossover("fft-pocketfft", "im2col", "i32x32 k3 psame f32", options=QUICK, folder=tmp_path)


def test_refusals_are_known_before_any_work(tmp_path: Path) -> None:
    def never(event: Event) -> None:
        pytest.fail("nothing should be measured")

    with pytest.raises(UnsupportedSpec, match="none refuses every kernel_size from 3 to 31: "):
        find_crossover(_only("none", 0, 0), "direct-numpy", LINE, on_event=never)
    with pytest.raises(UnsupportedSpec, match="fewer than two values of kernel_size in common"):
        find_crossover(_only("low", 3, 17), _only("high", 17, 31), LINE, on_event=never)
    with pytest.raises(SpecError, match="given twice"):
        find_crossover("im2col", "im2col", LINE, on_event=never)
    with pytest.raises(SpecError, match="at least 2"):
        find_crossover("im2col", "direct-numpy", LINE, options=Options(passes=1), on_event=never)


def _only(name: str, least: int, most: int) -> FunctionBackend:
    """Return a backend that does kernels of these sizes."""

    def size(spec: ConvSpec) -> str | None:
        kernel = spec.kernel_size[0]
        return None if least <= kernel <= most else f"kernel size: {kernel} given"

    return FunctionBackend(name=name, summary="", function=lambda spec, x, w: x, limits=Limits(also=size))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process: starting others takes longer than all else here."""
    module = import_module("convbench.commands.crossover")
    real = module.options_of
    monkeypatch.setattr(module, "options_of", lambda given: replace(real(given), twins=0, isolate=False))


def _command(out: Path, *arguments: str) -> int:
    limits = ("--threads", "1", "--passes", "2", "--time-limit", "1", "--budget", "60", "--out", str(out))
    return main(["crossover", *arguments, *limits])


@pytest.mark.usefixtures("at_once")
def test_command_prints_rows_and_writes_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "i32x32 k3 psame f32"
    assert _command(tmp_path, "im2col", "direct-numpy", "--over", "kernel_size=3,15", "--spec", line) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    lines = output.splitlines()
    assert lines[0] == "im2col against direct-numpy over kernel_size: n1 c1 o1 i32x32 k3 psame f32"
    assert lines[1] == "first kernel_size 3, 15; then where the winner changes, of 2 values"
    assert lines[3].split()[:3] == ["kernel_size", "im2col", "direct-numpy"]
    assert "\nCrossover\n" in output
    (folder,) = tmp_path.iterdir()
    assert folder.name.endswith("-crossover-im2col-direct-numpy")
    assert (folder / "crossover.png").stat().st_size > 10_000


@pytest.mark.usefixtures("at_once")
def test_command_as_json_prints_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("im2col", "direct-numpy", "--over", "batch=1,2", "--spec", "i16x16 k3 f32", "--json")
    assert _command(tmp_path, *arguments) == 0
    given = json.loads(capsys.readouterr().out)
    assert [point["value"] for point in given["points"]] == [1, 2]
    (folder,) = tmp_path.iterdir()
    found = load_crossover(folder)
    assert Crossover.from_dict(given) == found
    assert (given["sentences"], given["notes"]) == (sentences(found), notes(found))


@pytest.mark.parametrize(
    ("arguments", "wording"),
    [
        (("fft-pocketfft", "nothing", "--spec", LINE), "nothing"),
        (("im2col", "im2col", "--spec", LINE), "given twice"),
        (("fft-pocketfft", "im2col", "--spec", LINE, "--over", "kernel_size=3"), "needs at least two values"),
        (("fft-pocketfft", "im2col", "--spec", LINE, "--over", "groups", "--to", "9"), "over: got 'groups'"),
        (("fft-pocketfft", "im2col", "--spec", LINE, "--over", "batch=1,2", "--to", "9"), "leave out --from and --to"),
        (("fft-pocketfft", "im2col", "--spec", LINE, "--from", "40"), "must rise"),
        (("fft-pocketfft", "im2col", "--spec", LINE, "--confidence", "1"), "confidence"),
        (("fft-pocketfft", "im2col"), "--spec"),
    ],
)
def test_mistakes_cost_one_line_and_leave_no_folder(
    arguments: tuple[str, ...], wording: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _command(tmp_path, *arguments) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert wording in errors
    assert len(errors.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["crossover.json", "map.json", "rounds"])
def test_a_search_is_not_resumed_as_if_it_were_a_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).mkdir()
    assert main(["run", "--resume", str(tmp_path)]) == 2
    assert f"is the folder of a search (it has {name})" in capsys.readouterr().err


def test_help_has_no_stray_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("crossover", "map"):
        assert main([command, "--help"]) == 0
        assert [line for line in capsys.readouterr().out.splitlines() if line != line.rstrip()] == []


def test_an_empty_folder_goes_and_one_that_went_is_no_error(tmp_path: Path) -> None:
    for leave in ("empty", "full", "gone"):
        folder = tmp_path / leave
        folder.mkdir()
        with removed_if_empty(folder):
            if leave == "full":
                (folder / "a").touch()
            if leave == "gone":
                folder.rmdir()
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.usefixtures("at_once")
def test_interrupted_search_keeps_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from convbench.bench import rounds

    real, calls = rounds.run_cases, []

    def interrupted(*arguments: object, **options: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(rounds, "run_cases", interrupted)
    monkeypatch.setattr("convbench.bench.crossover.next_values", lambda points, values: [5])
    arguments = ("im2col", "direct-numpy", "--over", "kernel_size=3,5", "--spec", "i16x16 k3 psame f32")
    assert _command(tmp_path, *arguments) == 130
    assert "interrupted" in capsys.readouterr().err
    (folder,) = tmp_path.iterdir()
    kept = load_crossover(folder)
    assert [point.value for point in kept.measured] == [3, 5]
    assert not kept.finished
