from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convbench import ConvSpec, FunctionBackend, benchmark, get_backend, oracle
from convbench.backend import Backend
from convbench.bench import Case, Options, load_results, run_cases
from convbench.bench.data import photograph
from convbench.bench.environment import describe, thread_note, thread_pools
from convbench.bench.predict import Known, expected_seconds, shrink
from convbench.bench.record import Record, append, read, to_frame
from convbench.bench.run import Event, PairDone, PairVerified, PassStarted, Started, _Run, new_run_folder
from convbench.bench.statistics import median_interval, speedups, summarise
from convbench.bench.timing import MIN_SAMPLE_S, fair_share, garbage_collector_off, measure, relative_spread
from convbench.errors import SpecError, UnknownBackend, UnsupportedWeights

pytestmark = pytest.mark.usefixtures("short_samples")
QUICK = Options(threads=1, passes=2, budget_s=20.0)
LINE = "n1 c1 o1 i12x12 k3 psame f32"


@pytest.fixture
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose times do not matter need not take their time."""
    monkeypatch.setattr("convbench.bench.timing.MIN_SAMPLE_S", 1e-4)
    monkeypatch.setattr("convbench.bench.run.MIN_SAMPLE_S", 1e-4)


def right(spec: ConvSpec, x: Any, w: Any) -> Any:
    return oracle.conv(spec.replace(bias="none"), x, w).astype(spec.result_dtype)


def backend(name: str = "fake", function: Any = right, **fields: Any) -> FunctionBackend:
    return FunctionBackend(name=name, function=function, **fields)


def run(
    folder: Path, backends: list[Any], lines: tuple[str, ...] = (LINE,), options: Options = QUICK, **more: Any
) -> list[Record]:
    run_cases([Case.parse(line) for line in lines], backends, options, folder, **more)
    return read(folder)


# -- records ------------------------------------------------------------------------------------------------------


def record(**fields: Any) -> Record:
    return Record(**{"run_id": "r", "case": LINE, "spec": LINE, "backend": "fake", "pass_": 1, **fields})


def test_records_come_back_as_they_were() -> None:
    one = record(samples_s=[1e-3, 2.5e-3], batch=7, reason="“quoted”\nline", extra={"clock_mhz": [1, 2]})
    line = one.to_json()
    assert "\n" not in line
    assert json.loads(line)["pass"] == 1
    assert json.loads(line)["clock_mhz"] == [1, 2]
    assert "pass_" not in json.loads(line)
    assert Record.from_json(line) == one


def test_the_fields_are_those_of_the_design() -> None:
    stated = (
        "run_id pass case spec backend implementation kind device threads status reason samples_s batch plan_s "
        "accumulate_dtype prepare_s transfer_s first_call_s stop_reason error_max_eps error_norm error_bound_eps "
        "workspace_declared_bytes workspace_measured_bytes "
        "flops_nominal flops_executed bytes_min checksum weight group mode seed time"
    )
    assert set(json.loads(record().to_json())) == set(stated.split())


def test_numbers_are_strict_json() -> None:
    line = record(error_max_eps=math.inf, error_norm=math.nan, samples_s=[np.float32(0.5)], seed=np.int64(3)).to_json()
    given_back = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert given_back["error_max_eps"] is given_back["error_norm"] is None
    assert given_back["samples_s"] == [0.5]
    assert type(given_back["seed"]) is int


@pytest.mark.parametrize("bad", ["NaN", "-1.0", "0", "Infinity", "true", '"1"', "null"])
def test_samples_that_are_no_times_are_a_problem_of_their_line(tmp_path: Path, bad: str) -> None:
    append(tmp_path / "records.jsonl", record(samples_s=[1.0]))
    line = record(samples_s=[2.0]).to_json().replace("[2.0]", f"[2.0, {bad}]")
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write(line + "\n")
    records = read(tmp_path)
    assert [r.samples_s for r in records] == [[1.0]]
    (problem,) = records.problems
    assert "line 2: left out" in problem
    assert "samples_s" in problem


@pytest.mark.parametrize("line", ["", "{", "[]", '"text"', '{"case": "i8 k3"}', '{"samples_s": 3}'])
def test_lines_that_are_no_records_are_told(line: str) -> None:
    with pytest.raises(SpecError, match="record"):
        Record.from_json(line)


def test_the_good_part_of_a_damaged_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append(path, record(pass_=1))
    with path.open("ab") as file:
        file.write(b'{"not": "a record"}\n\xff\xfe\n')
    append(path, record(pass_=2))
    with path.open("a") as file:
        file.write(record(pass_=3).to_json()[:-40])
    records = read(path)
    assert [r.pass_ for r in records] == [1, 2]
    assert [("line 2" in p, "line 3" in p, "line 5" in p) for p in records.problems] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    assert "cut short" in records.problems[2]
    with pytest.warns(UserWarning, match="left out"):
        frame = load_results(tmp_path)
    assert len(frame) == 2
    assert len(frame.attrs["problems"]) == 3


def test_a_missing_run_is_one_clear_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(SpecError, match=r"^run: .*does not exist; give the folder of a run"):
            load_results(path)


# -- statistics ---------------------------------------------------------------------------------------------------


def test_median_interval_by_hand() -> None:
    # n = 10: P(B < 2) = 11/1024 = 1.07 %, P(B < 3) = 5.5 %; so the second smallest to the second largest
    assert median_interval([float(i) for i in range(10)]) == (1.0, 8.0)
    assert median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0)
    assert all(math.isnan(bound) for bound in median_interval([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert all(math.isnan(bound) for bound in median_interval([]))


@pytest.mark.parametrize("n", [6, 7, 8, 9, 13, 20, 41, 60, 200, 1500])
def test_median_interval_agrees_with_scipy(n: int) -> None:
    from scipy.stats import quantile_test

    samples = np.random.default_rng(n).standard_normal(n)
    interval = quantile_test(samples, q=0, p=0.5).confidence_interval(confidence_level=0.95)
    low, high = median_interval(samples.tolist())
    assert low == interval.low
    assert high == interval.high


def frame_of(*records: Record, cases: tuple[str, ...] = (), backends: tuple[str, ...] = ()) -> Any:
    return to_frame(records, {"cases": list(cases), "backends": list(backends)})


def test_summarise_by_hand() -> None:
    other = "n1 c1 o1 i12x12 k5x3 psame f32 w=gaussian"
    rows = [
        record(backend="b", case=other, spec=other.replace(" w=gaussian", ""), pass_=1, samples_s=[4.0, 6.0]),
        record(backend="b", pass_=2, samples_s=[30.0, 10.0, 20.0], plan_s=0.5),
        record(backend="b", pass_=1, samples_s=[2.0, 1.0, 3.0], plan_s=0.5),
        record(backend="a", pass_=0, status="skipped", reason="work: too much"),
    ]
    table = summarise(frame_of(*rows, cases=(LINE, other), backends=("a", "b")))
    assert list(zip(table["case"], table["backend"], strict=True)) == [(LINE, "a"), (LINE, "b"), (other, "b")]
    skipped, timed, wide = table.to_dict("records")
    assert (skipped["status"], skipped["reason"], skipped["samples"]) == ("skipped", "work: too much", 0)
    assert math.isnan(skipped["time_s"])
    assert (timed["samples"], timed["passes"], timed["time_s"]) == (6, 2, 6.5)
    assert (timed["low_s"], timed["high_s"], timed["min_s"]) == (1.0, 30.0, 1.0)
    assert timed["pass_medians_s"] == {1: 2.0, 2: 20.0}
    assert timed["plan_s"] == 0.5
    assert math.isnan(wide["low_s"])
    assert (wide["kernel_size"], wide["w"], wide["x"], wide["ndim"]) == (5, "gaussian", "noise", 2)


def test_a_pair_that_went_wrong_once_has_no_time() -> None:
    rows = [
        record(pass_=1, samples_s=[1.0] * 6),
        record(pass_=2, status="wrong", reason="3 of 9 outputs are wrong"),
    ]
    (row,) = summarise(frame_of(*rows)).to_dict("records")
    assert (row["status"], row["reason"], row["samples"]) == ("wrong", "3 of 9 outputs are wrong", 0)
    assert math.isnan(row["time_s"])


def test_an_empty_run_has_an_empty_summary() -> None:
    table = summarise(frame_of())
    assert len(table) == 0
    assert {"case", "backend", "status"} <= set(table.columns)


def test_speedups_are_paired_within_passes() -> None:
    # everything ran ten times slower in pass 2: the ratio stays 2, and pass 3 has no partner
    rows = [
        record(backend="base", pass_=1, samples_s=[2.0]),
        record(backend="base", pass_=2, samples_s=[20.0]),
        record(backend="fast", pass_=1, samples_s=[1.0]),
        record(backend="fast", pass_=2, samples_s=[10.0]),
        record(backend="fast", pass_=3, samples_s=[99.0]),
        record(backend="none", pass_=0, status="unsupported"),
        record(backend="fast", case="other", pass_=1, samples_s=[1.0]),
    ]
    table = summarise(frame_of(*rows))
    ratios = dict(zip(zip(table["case"], table["backend"], strict=True), speedups(table, "base"), strict=True))
    assert ratios[LINE, "base"] == 1.0
    assert ratios[LINE, "fast"] == 2.0
    assert math.isnan(ratios[LINE, "none"])
    assert math.isnan(ratios["other", "fast"])
    with pytest.raises(SpecError, match=r"^baseline: got 'nobody'; is not in this run; it has base, fast, none"):
        speedups(table, "nobody")


# -- timing -------------------------------------------------------------------------------------------------------


class FakeClock:
    """Time passes only in calls, each of which takes the next of the given seconds (the last one for ever)."""

    def __init__(self, *seconds: float) -> None:
        self.now, self.calls, self.seconds = 0.0, 0, list(seconds)

    def __call__(self) -> float:
        return self.now

    def call(self) -> int:
        self.now += self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1
        return self.calls


def test_short_calls_are_timed_in_batches_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convbench.bench.timing.MIN_SAMPLE_S", MIN_SAMPLE_S)
    clock = FakeClock(0.5e-3, 1e-4)  # the first call is cold
    taken = measure(clock.call, 10.0, enough=4, most=20, clock=clock)
    assert taken.batch * 1e-4 >= MIN_SAMPLE_S
    assert taken.samples_s == pytest.approx([1e-4] * 4)
    assert taken.stop_reason == "spread"
    assert taken.result == clock.calls
    assert clock.calls > 5 * taken.batch  # a batch to settle, four to time


def test_one_call_that_is_long_enough_is_a_sample() -> None:
    clock = FakeClock(0.3, 0.02)
    taken = measure(clock.call, 10.0, enough=4, most=20, clock=clock)
    assert taken.batch == 1
    assert taken.samples_s == pytest.approx([0.02] * 4)


def test_sampling_stops_when_the_spread_gets_no_better() -> None:
    clock = FakeClock(0.02, *[0.02, 0.03] * 50)
    taken = measure(clock.call, 100.0, enough=4, most=40, clock=clock)
    assert taken.stop_reason == "plateau"
    assert 8 <= len(taken.samples_s) < 40


def test_sampling_stops_at_the_most_samples() -> None:
    clock = FakeClock(*[0.02 * 1.5**i for i in range(30)])
    taken = measure(clock.call, 1e6 * 0.02, cold=True, enough=4, most=5, clock=clock)
    assert (taken.stop_reason, len(taken.samples_s)) == ("count", 5)


def test_the_budget_ends_sampling_in_time() -> None:
    clock = FakeClock(*[0.02, 0.03] * 50)
    taken = measure(clock.call, 0.2, enough=4, most=40, clock=clock)
    assert taken.stop_reason == "budget"
    assert clock.now <= 0.2 + 0.03
    assert taken.elapsed_s == pytest.approx(clock.now)


def test_one_sample_is_taken_whatever_the_budget() -> None:
    for cold, calls in ((True, 1), (False, 2)):
        clock = FakeClock(2.0)
        taken = measure(clock.call, 0.1, enough=4, most=40, cold=cold, clock=clock)
        assert (taken.samples_s, taken.stop_reason, clock.calls) == ([2.0], "budget", calls)


def test_relative_spread_is_numpys() -> None:
    samples = np.random.default_rng(0).uniform(1, 2, 11)
    low, middle, high = np.percentile(samples, [25, 50, 75])
    assert relative_spread(samples.tolist()) == pytest.approx((high - low) / middle)


def test_the_garbage_collector_is_put_back() -> None:
    import gc

    with garbage_collector_off():
        assert not gc.isenabled()
        with garbage_collector_off():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


@given(
    st.floats(0, 100),
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=20),
)
def test_fair_share_spends_the_budget_and_no_more(budget: float, bounds: list[tuple[float, float]]) -> None:
    least, most = [min(pair) for pair in bounds], [max(pair) for pair in bounds]
    level = fair_share(budget, least, most)
    spent = sum(min(max(level, low), high) for low, high in zip(least, most, strict=True))
    if math.isinf(level):
        assert sum(most) <= budget + 1e-9
    elif level == 0:
        assert budget <= sum(least) + 1e-9
    else:
        assert spent == pytest.approx(budget, abs=1e-6)


# -- prediction ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "n8 c64 o64 i224x224 k3 psame f32",
        "n2 i1000000 k4097 f32",
        "i1024x1024 k101 psame f32",
        "c128 o128 i40x40x40 k3 s2 d2 p1 bias=location f32",
        "n0 i8 k3",
    ],
)
def test_a_shrunk_spec_keeps_everything_but_its_size(line: str) -> None:
    spec = ConvSpec.parse(line)
    small = shrink(spec)
    names = (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "dilation",
        "groups",
        "bias",
        "dtype",
        "padding_word",
    )
    assert [getattr(small, name) for name in names] == [getattr(spec, name) for name in names]
    assert small.batch == min(spec.batch, 1)
    assert all(a <= b for a, b in zip(small.input_size, spec.input_size, strict=True))
    if small.flops > 2e7:  # then nothing more can be halved
        assert all(size < 2 * k for size, k in zip(small.output_size, spec.kernel_size, strict=True))


@pytest.mark.parametrize(
    "line",
    [
        "i4096x4096 k1001 psame d2 f32",
        "i4096x4096 k1001 p500 d2 f32",
        "i4096x4096 k1001 f32",
        "i4000000 k1000001 f32",
        "i1 k1000001 p500000:500000 f32",
        "i9 k100003 p-2:100000 f32",
        "c2048 o2048 i14x14 k7 p3 f32",
        "c65536 o65536 i9x9 k3 psame g65536 f32",
        "c4096 o8192 i7 k1 g2 f32",
    ],
)
def test_an_absurd_kernel_is_probed_with_a_smaller_one(line: str) -> None:
    """Some backends make a call for each term, some factorise each kernel: a probe must not take their seconds."""
    spec = ConvSpec.parse(line)
    small = shrink(spec)
    assert small.terms <= 2**15
    assert small.out_channels * small.in_channels // small.groups <= 2**14
    assert small.out_channels * small.terms <= 2**22
    assert 0 < small.flops <= 4e7
    assert all(1 <= a <= b for a, b in zip(small.kernel_size, spec.kernel_size, strict=True))
    for name in ("stride", "dilation", "bias", "dtype", "padding_word"):
        assert getattr(small, name) == getattr(spec, name)


@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
def test_where_weights_outweigh_all_else_the_probe_has_fewer_of_them(op: str) -> None:
    """Else it spends its time on weights, and scaling by FLOPs makes minutes of milliseconds."""

    def weights_to_samples(spec: ConvSpec) -> float:
        return math.prod(spec.weight_shape) / (math.prod(spec.input_shape) + math.prod(spec.output_shape))

    for line in (
        "n8 c256 o512 i8x8 k4 s2 p1",
        "n2 c512 o512 i7x7 k3 p1",
        "n16 c512 o4096 i1 k1",
        "n4 c64 o64 g2 i1 k9 p4",
    ):
        spec = ConvSpec.parse(f"op={op} {line}")
        small = shrink(spec)
        assert weights_to_samples(small) <= weights_to_samples(spec)
        assert (small.batch, small.input_size, small.groups) == (spec.batch, spec.input_size, spec.groups)
        assert small.flops <= 2e7


def test_known_calls_are_scaled_by_the_work_really_done() -> None:
    small, middle, large = (ConvSpec.parse(f"i{size}x{size} k9 psame f32") for size in (128, 256, 512))
    known = [Known(small, small.flops, 1.0), Known(middle, middle.flops, 3.0)]
    assert expected_seconds(backend(), large, 1, flops=large.flops, known=known) == pytest.approx(12.0)
    assert expected_seconds(backend(), large, 1, flops=7 * middle.flops, known=known) == pytest.approx(21.0)
    assert expected_seconds(backend(), middle, 1, known=known) == pytest.approx(3.0)


def test_what_is_known_of_another_kind_of_case_is_not_used() -> None:
    spec = ConvSpec.parse("i512x512 k9 psame f32")
    for line in ("c2 i512x512 k9 psame f32", "i512x512 k9 psame f64", "i16x16 k9 psame f32", "i9999 k9 psame f32"):
        alien = ConvSpec.parse(line)
        known = [Known(alien, min(alien.flops, 10**5) if alien.ndim == 2 and alien.flops < 10**6 else 10**7, 1e6)]
        assert expected_seconds(backend("probed"), spec, 1, known=known) < 1e5


class Simulated:
    """A backend whose calls take the seconds it is told, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, overhead_s: float, flop_s: float) -> None:
        self.now, self.called = 0.0, list[ConvSpec]()

        def call(spec: ConvSpec, x: Any, w: Any) -> Any:
            self.called.append(spec)
            self.now += overhead_s + flop_s * spec.flops
            return np.zeros(spec.output_shape, spec.dtype)

        monkeypatch.setattr("convbench.bench.predict.time.perf_counter", lambda: self.now)
        monkeypatch.setattr("convbench.bench.predict._RATES", {})
        self.backend = backend("simulated", call)


def test_what_a_call_costs_apart_from_its_work_is_not_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ConvSpec.parse("c64 o64 i448x448 k3 psame f32")
    for overhead_s, flop_s in ((0.05, 1e-11), (0.0, 1e-9), (2.0**-7, 0.0)):
        told = Simulated(monkeypatch, overhead_s, flop_s)
        expected = expected_seconds(told.backend, spec, 1)
        assert set(told.called) == {shrink(spec), shrink(spec, 8 * 2e7)}
        if flop_s:
            assert expected == pytest.approx(overhead_s + flop_s * spec.flops)
        else:  # no line: in proportion to the larger probe
            assert expected == pytest.approx(overhead_s * spec.flops / shrink(spec, 8 * 2e7).flops)


def test_a_slow_probe_is_not_enlarged(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ConvSpec.parse("c64 o64 i448x448 k3 psame f32")
    told = Simulated(monkeypatch, 0.51, 0.0)
    assert expected_seconds(told.backend, spec, 1) == pytest.approx(0.51 * spec.flops / shrink(spec).flops)
    assert set(told.called) == {shrink(spec)}


@pytest.mark.parametrize(("overhead_s", "times"), [(0.12, 8), (0.2, 4), (0.4, 2)])
def test_the_slower_a_probe_the_less_it_is_enlarged(
    overhead_s: float, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ConvSpec.parse("c64 o64 i448x448 k3 psame f32")
    told = Simulated(monkeypatch, overhead_s, 1e-11)
    assert expected_seconds(told.backend, spec, 1) == pytest.approx(overhead_s + 1e-11 * spec.flops)
    assert set(told.called) == {shrink(spec), shrink(spec, times * 2e7)}


@pytest.mark.parametrize("flop_s", [1e-12, 1e-9, 3e-9, 1e-8, 3e-8])
def test_probes_take_a_second_or_two(flop_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ConvSpec.parse("c64 o64 i448x448 k3 psame f32")
    told = Simulated(monkeypatch, 0.0, flop_s)
    assert expected_seconds(told.backend, spec, 1) == pytest.approx(flop_s * spec.flops)
    assert told.now < 2.0


def test_what_a_probe_would_do_too_much_of_is_not_known() -> None:
    """Work that does not shrink with the spec is not begun; nor is anything known where weights of ones are refused."""

    def never(*operands: Any) -> Any:
        raise AssertionError("was called")

    def refuse_all(spec: ConvSpec, w: Any) -> Any:
        raise UnsupportedWeights("weights: none will do")

    spec = ConvSpec.parse("i64x64 k3 f32")
    endless = replace(backend("endless", never), work=lambda spec: 10**12)
    assert math.isnan(expected_seconds(endless, spec, 1))
    picky = replace(backend("particular", never), prepare=refuse_all)
    assert math.isnan(expected_seconds(picky, spec, 1, flops=10**6))


def test_a_dense_matrix_is_probed_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its work grows with the square of the image's: a probe of the nominal work would fill the memory."""
    spec = ConvSpec.parse("i128x128 k3 psame f32")
    told = Simulated(monkeypatch, 0.0, 1e-9)
    dense = replace(told.backend, work=lambda spec: 2 * math.prod(spec.input_size) ** 2)
    expected_seconds(dense, spec, 1)
    assert told.called
    assert all(dense.work(called) <= 8 * 2e7 for called in told.called)


def test_timed_calls_tell_nothing_of_much_larger_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ConvSpec.parse("i1024x1024 k9 psame f32")
    told = Simulated(monkeypatch, 1e-3, 1e-10)
    small = ConvSpec.parse("i128x128 k9 psame f32")
    known = [Known(small, small.flops, 1e-3)]  # all of it the cost of the call
    assert expected_seconds(told.backend, spec, 1, known=known) == pytest.approx(1e-3 + 1e-10 * spec.flops)


def test_weights_of_a_higher_rank_cost_in_proportion() -> None:
    from convbench.registry import get_backend

    spec = ConvSpec.parse("i256x256 k9 psame f64")
    separable = get_backend("separable")
    ones = separable.plan(spec, threads=1).prepare(np.ones(spec.weight_shape))
    one, three = (expected_seconds(separable, spec, 1, flops=rank * ones.flops) for rank in (1, 3))
    assert three == pytest.approx(3 * one)


def test_nothing_smaller_to_run_means_nothing_is_known() -> None:
    picky = backend(
        "picky", limits=replace(backend().limits, also=lambda s: None if s.input_size == (4096,) else "axes: no")
    )
    assert math.isnan(expected_seconds(picky, ConvSpec.parse("c99 o99 i4096 k9 psame f32"), 1, flops=10**12))


# -- runs ---------------------------------------------------------------------------------------------------------


def test_a_run_verifies_then_measures_every_pair_in_every_pass(tmp_path: Path) -> None:
    events: list[Event] = []
    records = run(tmp_path, [backend("a"), backend("b")], (LINE, LINE + " w=box seed=3"), on_event=events.append)
    assert len(records) == 2 * 2 * 2
    pairs = {(r.case, r.backend, r.pass_) for r in records}
    assert len(pairs) == 8
    for r in records:
        assert (r.status, r.reason, r.threads, r.mode) == ("ok", "", 1, "hot")
        assert len(r.samples_s) >= 1
        assert min(r.samples_s) > 0
        assert r.batch is not None
        assert r.batch >= 1
        assert r.stop_reason in ("spread", "plateau", "count", "budget", "time-limit")
        assert r.error_max_eps is not None
        assert r.error_bound_eps is not None
        assert r.error_max_eps <= r.error_bound_eps
        assert r.workspace_declared_bytes == 0
        assert r.workspace_measured_bytes is not None
        assert r.flops_nominal == r.flops_executed == ConvSpec.parse(LINE).flops
        assert None not in (r.plan_s, r.prepare_s, r.first_call_s, r.checksum)
    assert {r.seed for r in records} == {0, 3}
    assert len({r.run_id for r in records}) == 1
    kinds = [type(event) for event in events]
    assert kinds[0] is Started
    assert kinds.count(PairVerified) == 4
    assert kinds.count(PassStarted) == 2
    assert kinds.index(PassStarted) == 5
    done = [event for event in events if isinstance(event, PairDone)]
    assert [event.record for event in done] == records
    assert done[-1].done == done[-1].total == 12


def test_orders_are_random_repeatable_and_differ_between_passes(tmp_path: Path) -> None:
    lines = tuple(f"i{size} k3" for size in range(8, 14))
    backends = [backend("a"), backend("b")]
    first, second = (run(tmp_path / name, backends, lines) for name in "12")
    other = run(tmp_path / "3", backends, lines, replace(QUICK, seed=1))
    orders = [[(r.case, r.backend) for r in records] for records in (first, second, other)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][:12] != orders[0][12:]
    assert sorted(orders[0][:12]) == sorted(orders[0][12:])


def test_cases_stay_together_if_their_data_cannot_be_held_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convbench.bench.run.HELD_DATA_BYTES", 100)
    lines = tuple(f"i{size} k3" for size in range(8, 14))
    records = run(tmp_path, [backend("a"), backend("b"), backend("c")], lines, replace(QUICK, passes=1))
    cases = [r.case for r in records]
    assert [cases[i : i + 3] for i in range(0, 18, 3)] == [[case] * 3 for case in cases[::3]]
    assert cases[::3] != sorted(cases[::3])


def test_the_environment_is_written_first(tmp_path: Path) -> None:
    def look(event: Event) -> None:
        assert (tmp_path / "new" / "environment.json").exists()

    run(tmp_path / "new", [backend()], on_event=look)
    about = json.loads((tmp_path / "new" / "environment.json").read_text())
    assert about["cases"] == [LINE]
    assert about["backends"] == ["fake"]
    assert about["options"]["passes"] == 2
    assert about["threads"] == 1
    assert about["libraries"]["numpy"] == np.__version__
    assert about["host"]["cpu"]["cores"] >= 1
    assert about["thread_pool_problems"] == []
    assert all(pool["num_threads"] == 1 for pool in about["thread_pools"])
    assert thread_note(about) is None
    assert load_results(tmp_path / "new").attrs["environment"] == about


def test_the_environment_names_no_folder_of_this_machine() -> None:
    with thread_pools(1) as problems:
        text = json.dumps(describe(1, problems)["thread_pools"])
    assert "/" not in text


def test_without_threadpoolctl_a_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    run(tmp_path, [backend()])
    note = thread_note(json.loads((tmp_path / "environment.json").read_text()))
    assert note == "threads: thread pools are neither set nor verified: pip install threadpoolctl"
    assert thread_note({}) is None


def test_wrong_results_get_a_status_and_no_time(tmp_path: Path) -> None:
    calls = []

    def off_by_one(spec: ConvSpec, x: Any, w: Any) -> Any:
        calls.append(spec)
        return np.roll(right(spec, x, w), 1, axis=-1)

    (r,) = run(tmp_path, [backend("liar", off_by_one)])
    assert (r.status, r.pass_, r.samples_s, r.first_call_s, r.checksum) == ("wrong", 0, [], None, None)
    assert "outputs are wrong; the worst is" in r.reason
    assert r.error_max_eps is not None
    assert r.error_bound_eps is not None
    assert r.error_max_eps > r.error_bound_eps
    assert calls.count(ConvSpec.parse(LINE)) == 1 + 3  # the call that was judged, and the probe of this small a case


def test_outputs_that_go_wrong_once_the_clock_runs_are_caught(tmp_path: Path) -> None:
    timing = False

    def listen(event: Event) -> None:
        nonlocal timing
        timing = timing or isinstance(event, PassStarted)

    def cheat(spec: ConvSpec, x: Any, w: Any) -> Any:
        return np.zeros(spec.output_shape, spec.dtype) if timing else right(spec, x, w)

    records = run(tmp_path, [backend("cheat", cheat), backend("honest")], on_event=listen)
    (cheated,) = (r for r in records if r.backend == "cheat")
    assert (cheated.status, cheated.pass_, cheated.samples_s) == ("wrong", 1, [])
    assert [r.status for r in records if r.backend == "honest"] == ["ok", "ok"]
    assert math.isnan(summarise(load_results(tmp_path)).set_index("backend").loc["cheat", "time_s"])


def test_other_right_outputs_than_the_verified_one_are_judged_again(tmp_path: Path) -> None:
    calls = 0

    def jitter(spec: ConvSpec, x: Any, w: Any) -> Any:
        nonlocal calls
        calls += 1
        return np.nextafter(right(spec, x, w), np.float32(calls % 2 * 2 - 1))

    records = run(tmp_path, [backend("jitter", jitter)])
    assert [r.status for r in records] == ["ok", "ok"]


def test_inputs_overwritten_by_one_backend_do_not_reach_the_next(tmp_path: Path) -> None:
    def vandal(spec: ConvSpec, x: Any, w: Any) -> Any:
        y = right(spec, x, w)
        x[...] = 0
        return y

    statuses = {(r.backend, r.status) for r in run(tmp_path, [backend("vandal", vandal), backend("victim")])}
    assert ("victim", "ok") in statuses
    assert ("vandal", "wrong") in statuses


class Reluctant:
    """Stands before a backend and raises what it is given when asked to prepare."""

    def __init__(self, error: BaseException) -> None:
        self._inner, self._error = backend("reluctant"), error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def plan(self, spec: ConvSpec, *, threads: int | None = None) -> Any:
        if str(spec) == LINE:
            raise self._error
        return self._inner.plan(spec, threads=threads)


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("boom\n  second line"), "failed", "ValueError: boom second line"),
        (MemoryError(), "out-of-memory", "allocation failed"),
        (
            UnsupportedWeights("reluctant: weights: numerical rank 7 of 9"),
            "unsupported",
            "weights: numerical rank 7 of 9",
        ),
    ],
)
def test_what_a_backend_raises_becomes_a_status(tmp_path: Path, error: Exception, status: str, reason: str) -> None:
    records = run(tmp_path, [Reluctant(error), backend("fine")])
    (r,) = (r for r in records if r.backend == "reluctant")
    assert (r.status, r.reason, r.pass_, r.samples_s) == (status, reason, 0, [])
    assert [r.status for r in records if r.backend == "fine"] == ["ok", "ok"]


def test_refusals_carry_their_reason(tmp_path: Path) -> None:
    absent = backend("absent", requires={"no_such_module": "no-such-package"})
    records = run(tmp_path, [backend(limits=replace(backend().limits, axes=(1,))), absent])
    by_name = {r.backend: r for r in records}
    assert (by_name["fake"].status, by_name["fake"].reason) == ("unsupported", "axes: 2 given, only 1 is done")
    assert by_name["absent"].status == "unavailable"
    assert by_name["fake"].accumulate_dtype is by_name["absent"].accumulate_dtype is None  # there was no plan
    assert "pip install no-such-package" in by_name["absent"].reason


def test_too_much_memory_is_known_before_the_first_call(tmp_path: Path) -> None:
    hungry = backend("hungry", lambda *_: pytest.fail("was called"), workspace=lambda spec: 40 * 2**30)
    (r,) = run(tmp_path, [hungry])
    assert (r.status, r.workspace_declared_bytes) == ("skipped", 40 * 2**30)
    assert "40.0 GiB needed, the limit is 2.0 GiB" in r.reason


def test_operands_beyond_the_limit_are_never_made(tmp_path: Path) -> None:
    records = run(tmp_path, [backend(function=lambda *_: pytest.fail("was called"))], ("i60000x60000 k1 f64",))
    assert [(r.status, r.workspace_declared_bytes) for r in records] == [("skipped", None)]


def test_too_much_time_is_known_before_the_first_call(tmp_path: Path) -> None:
    big = ConvSpec.parse("n1 c1 o1 i2048x2048 k51 psame f32")  # 2·10¹⁰ FLOPs at 10⁹ a second: 20 s
    called = []

    def slow(spec: ConvSpec, x: Any, w: Any) -> Any:
        called.append(spec)
        time.sleep(spec.flops / 1e9)
        return np.zeros(spec.output_shape, spec.dtype)

    (r,) = run(tmp_path, [backend("slow", slow)], (str(big),))
    assert r.status == "skipped"
    assert "one call should take" in r.reason
    assert "the limit is 5 s" in r.reason
    assert set(called) == {shrink(big), shrink(big, 8 * 2e7)}


def test_a_slow_pair_is_called_once_to_verify_and_its_memory_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ConvSpec.parse("i1280x1024 k9 psame f32")  # larger than its probes
    called_at, timing = [], False

    def listen(event: Event) -> None:
        nonlocal timing
        timing = timing or isinstance(event, PassStarted)

    def wasteful(given: ConvSpec, x: Any, w: Any) -> Any:
        if given == spec:
            called_at.append("timed" if timing else "verified")
        waste = np.ones(10**6)
        return right(given, x, w) + np.float32(0 * waste[0])

    monkeypatch.setattr("convbench.bench.worker.SLOW_CALL_S", 0.0)
    options = Options(threads=1, passes=1, time_limit_s=1e3, budget_s=1e-3 + 60)
    (r,) = run(tmp_path, [backend("wasteful", wasteful)], (str(spec),), options, on_event=listen)
    assert r.status == "ok"
    assert r.first_call_s is None
    assert r.workspace_measured_bytes is not None
    assert r.workspace_measured_bytes >= 8 * 10**6
    assert called_at.count("verified") == 1
    assert called_at.count("timed") == len(r.samples_s)  # no warm-up either


def test_the_budget_wins_over_everything(tmp_path: Path) -> None:
    records = run(tmp_path, [backend()], (LINE, "i8 k3"), replace(QUICK, budget_s=1e-9))
    assert [(r.status, r.pass_) for r in records] == [("skipped", 0)] * 2
    assert all("time was spent" in r.reason for r in records)


def test_a_short_budget_starves_the_largest_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ("i40 k3", "i30 k3 w=box", "i8 k3", "i30 k3")
    turns: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, PairVerified):
            turns.append(f"{event.case.split(' ', 3)[3]} {event.backend}".replace(" f32", ""))

    run(tmp_path / "all", [backend("a"), backend("b")], lines, replace(QUICK, passes=1), on_event=listen)
    order = ("i8 k3", "i30 k3 w=box", "i30 k3", "i40 k3")  # equal work: as in the suite
    assert turns == [f"{line} {name}" for line in order for name in "ab"]
    table = summarise(load_results(tmp_path / "all"))
    assert table["case"].tolist() == [str(Case.parse(line)) for line in lines for _ in "ab"]
    monkeypatch.setattr(_Run, "_left_s", lambda self: 20.0 - 5.0 * self.done)
    records = run(tmp_path / "short", [backend()], lines, replace(QUICK, passes=1, budget_s=20.0))
    skipped = [r.case for r in records if r.status == "skipped"]
    assert skipped == [str(Case.parse("i40 k3"))]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_data_that_are_not_finite_are_refused_by_methods_that_spread_them(tmp_path: Path, value: float) -> None:
    x = np.random.default_rng(0).standard_normal((24, 24))
    x[5, 7] = value
    np.save(tmp_path / "x.npy", x)
    names = ["im2col", "direct-numpy", "fft", "separable"]
    line = f"i24x24 k3 psame f32 x=@{tmp_path}/x.npy w=gaussian"
    records = run(tmp_path / "run", names, (line,), replace(QUICK, passes=1))
    statuses = {r.backend: (r.status, r.reason) for r in records}
    refused = ("unsupported", "data: hold NaN or infinity, which this method spreads")
    assert statuses == {"im2col": ("ok", ""), "direct-numpy": ("ok", ""), "fft": refused, "separable": refused}


@pytest.mark.parametrize(
    ("missing", "line", "advice"),
    [
        ("matplotlib.cbook", "i20x20 k3 f32 x=photo", "pip install matplotlib"),
        ("PIL", "i20x20 k3 f32 x=photo", "pip install pillow"),
        ("PIL", "i20x20 k3 f32 x=@{}/x.png", "pip install pillow"),
    ],
)
def test_a_library_that_data_need_costs_only_the_cases_that_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, line: str, advice: str
) -> None:
    (tmp_path / "x.png").touch()
    photograph.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    lines = (line.format(tmp_path), "i8 k3")
    records = run(tmp_path / "run", [backend("a"), backend("b")], lines, replace(QUICK, passes=1))
    unavailable = [r for r in records if r.case == str(Case.parse(lines[0]))]
    assert [(r.backend, r.status, r.pass_) for r in unavailable] == [("a", "unavailable", 0), ("b", "unavailable", 0)]
    assert all(r.reason.endswith(advice) for r in unavailable)
    assert {(r.backend, r.status) for r in records if r not in unavailable} == {("a", "ok"), ("b", "ok")}


def test_allowances_keep_to_the_pairs_time_limit(tmp_path: Path) -> None:
    runner = _Run([Case.parse(LINE)], [backend()], Options(budget_s=None, passes=3), tmp_path, lambda event: None)
    (pair,) = runner.pairs
    runner.level_s = math.inf
    pair.call_s = pair.spent_s = 1.0  # its verifying call
    assert runner._allowance(pair, 1) == (4 / 3, "time-limit")
    pair.visits, pair.spent_s = 1, 4.5
    assert runner._allowance(pair, 2) == (0.0, "time-limit")
    pair.spent_s, runner.level_s = 3.0, 0.1
    assert runner._allowance(pair, 3) == (1.0, "budget")
    pair.visits, pair.spent_s = 0, 4.5
    assert runner._allowance(pair, 1)[0] == 1.0  # the first visit is never denied


def test_what_was_measured_before_ctrl_c_is_kept(tmp_path: Path) -> None:
    seen: list[Record] = []

    def interrupt(event: Event) -> None:
        if isinstance(event, PairDone):
            seen.append(event.record)
            if len(seen) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [backend("a"), backend("b")], (LINE, "i8 k3"), on_event=interrupt)
    assert read(tmp_path) == seen
    assert len(summarise(load_results(tmp_path))) == 3


def test_ctrl_c_inside_a_backend_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [backend("fine"), Reluctant(KeyboardInterrupt())])
    assert read(tmp_path) == []


def test_what_cannot_work_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match=r"^out: .*cannot be written"):
        run(tmp_path / "file" / "run", [backend()])
    with pytest.raises(SpecError, match=r"^out: .*cannot be written"):
        new_run_folder(tmp_path / "file", "x")
    with pytest.raises(UnknownBackend, match="im2col"):
        run(tmp_path / "r", ["im2cl"])
    with pytest.raises(SpecError, match=r"^backends: got 'a'; is given twice"):
        run(tmp_path / "r", [backend("a"), backend("a")])
    with pytest.raises(SpecError, match=r"^cases: .*is given twice"):
        run(tmp_path / "r", [backend()], (LINE, LINE))
    with pytest.raises(SpecError, match=r"^backends: got 'object'.*has no name"):
        run(tmp_path / "r", [object()])
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(SpecError, match="holds an array of shape"):
        run(tmp_path / "r", [backend()], (f"i8 k3 x=@{tmp_path}/x.npy",))
    assert not (tmp_path / "r").exists()
    run(tmp_path / "r", [backend()])
    with pytest.raises(SpecError, match="holds a run already"):
        run(tmp_path / "r", [backend()])


@pytest.mark.parametrize(
    "options",
    [{"passes": 0}, {"threads": 0}, {"time_limit_s": 0}, {"memory_limit_bytes": 1.5}, {"budget_s": -1}, {"seed": "x"}],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=next(iter(options))):
        Options(**options)


def test_run_folders_are_new_each_time(tmp_path: Path) -> None:
    folders = [new_run_folder(tmp_path / "deep" / "results", "smoke") for _ in range(3)]
    assert len(set(folders)) == 3
    assert all(folder.is_dir() and "-smoke" in folder.name for folder in folders)


def test_all_backends_are_run_by_default_but_the_reference_only_where_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convbench.registry import get_backend

    registered: dict[str, Backend] = {"fake": backend(), "reference": get_backend("reference")}
    monkeypatch.setattr("convbench.registry.all_backends", lambda: registered)
    cases = [Case.parse("i8 k3"), Case.parse("i1200x1200 k1")]
    run_cases(cases, None, replace(QUICK, passes=1), tmp_path)
    assert {(r.spec.split()[3], r.backend) for r in read(tmp_path)} == {
        ("i8", "fake"),
        ("i8", "reference"),
        ("i1200x1200", "fake"),
    }


# -- the front door -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cases",
    ["i8 k3 w=box", [ConvSpec.parse("i8 k3")], ["i8 k3"], [Case.parse("i8 k3")], ConvSpec.parse("i8 k3")],
    ids=["line", "specs", "lines", "cases", "spec"],
)
def test_benchmark_takes_lines_specs_and_cases(cases: Any) -> None:
    table = benchmark(cases, [backend()], passes=1, threads=1)
    assert table["status"].tolist() == ["ok"]
    assert table["spec"].tolist() == ["n1 c1 o1 i8 k3 f32"]
    assert table.attrs["environment"]["backends"] == ["fake"]


def test_benchmark_takes_a_suite_and_keeps_the_files_if_asked(tmp_path: Path) -> None:
    table = benchmark("edge-detection", [backend()], folder=tmp_path / "kept", passes=1, threads=1)
    assert table["case"].tolist() == ["n1 c1 o1 i280x320 k1x2 f32 x=photo w=edge"]
    assert len(read(tmp_path / "kept")) == 1


def test_benchmark_says_what_it_does_not_take() -> None:
    with pytest.raises(SpecError, match=r"^options: got 'pases'; must be one of threads, passes"):
        benchmark("i8 k3", [backend()], pases=3)
    with pytest.raises(SpecError, match="did you mean smoke"):
        benchmark("smokee")
    with pytest.raises(SpecError, match=r"^cases: got 'int'"):
        benchmark([3])  # type: ignore[list-item]
    with pytest.raises(SpecError, match=r"^cases: got \[\]; must not be empty"):
        benchmark([])
    with pytest.raises(SpecError, match=r"^cases: got 'int'"):
        benchmark(3)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"^backends: got 3; must be registered names or backends, in a list"):
        benchmark("i8 k3", 3)  # type: ignore[arg-type]


def test_benchmark_takes_one_name() -> None:
    table = benchmark("i8 k3", "fft", passes=1, threads=1)
    assert table["backend"].tolist() == ["fft"]


def test_memory_of_prepared_weights_counts_before_they_are_made() -> None:
    """A kernel's spectrum for every pair of channels can be larger than all else."""
    pytest.importorskip("pyfftw")
    spec = ConvSpec.parse("c32 o32 i64x64 k3 p1 f32")
    plan = get_backend("fft").plan(spec, threads=1)
    assert plan.prepared_bytes > plan.workspace_bytes
    limit = plan.workspace_bytes + spec.bytes_min + plan.prepared_bytes // 2
    frame = benchmark([spec], ["fft"], threads=1, passes=1, budget_s=5, memory_limit_bytes=limit)
    assert list(frame.status) == ["skipped"]
    assert frame.reason[0].startswith("memory: ")
