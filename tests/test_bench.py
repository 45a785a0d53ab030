from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convbench import ConvSpec, FunctionBackend, oracle
from convbench.bench import Options, load_results
from convbench.bench.predict import Known, expected_seconds, shrink
from convbench.bench.record import Record, append, read
from convbench.bench.timing import (
    INSPECTED,
    MIN_SAMPLE_S,
    fair_share,
    garbage_collector_off,
    measure,
    relative_spread,
)
from convbench.errors import SpecError, UnsupportedWeights
from convbench.stopwatch import HostStopwatch

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
        "flops_nominal flops_executed bytes_min checksum weight group mode seed time "
        # added since: the line of the design may grow, and readers keep what they do not know
        "call_s prepared_declared_bytes prepared_measured_bytes prepare_peak_bytes rss_peak_bytes cores_used caveats "
        "alignment_bytes subnormal_share measured_s elapsed_s twin launch_s sm_clock_mhz "
        "prepare_transfer_s"
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
    clock, seen = FakeClock(0.5e-3, 1e-4), []  # the first call is cold
    taken = measure(clock.call, 10.0, enough=4, most=20, inspect=seen.append, stopwatch=HostStopwatch(clock))
    assert taken.batch * 1e-4 >= MIN_SAMPLE_S
    assert taken.samples_s == pytest.approx([1e-4] * 4)
    assert taken.stop_reason == "spread"
    settled = INSPECTED + taken.batch
    ends = [settled + n * (1 + taken.batch) for n in range(1, 5)]  # one call off the clock before each sample
    looked_at = [*range(1, INSPECTED + 1), settled, *(call for end in ends for call in (end - taken.batch, end))]
    assert seen == looked_at
    assert clock.calls == ends[-1]
    assert taken.called_s == pytest.approx(clock.now)
    assert taken.elapsed_s == pytest.approx((5 * taken.batch + 4) * 1e-4)


def test_a_first_call_that_has_to_compile_does_not_size_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convbench.bench.timing.MIN_SAMPLE_S", MIN_SAMPLE_S)
    clocks = FakeClock(3.0, 1e-4), FakeClock(1e-4)
    compiling, plain = (measure(clock.call, 1.0, enough=4, most=20, stopwatch=HostStopwatch(clock)) for clock in clocks)
    assert compiling.batch == pytest.approx(plain.batch, abs=1)
    assert plain.batch >= 100
    assert compiling.samples_s == pytest.approx(plain.samples_s)


def test_one_call_that_is_long_enough_is_a_sample() -> None:
    clock = FakeClock(0.3, 0.02)
    taken = measure(clock.call, 10.0, enough=4, most=20, stopwatch=HostStopwatch(clock))
    assert taken.batch == 1
    assert taken.samples_s == pytest.approx([0.02] * 4)


def test_what_an_inspection_takes_is_no_time_and_what_it_raises_ends_all() -> None:
    clock = FakeClock(0.02)

    def inspect(result: int) -> None:
        clock.now += 5.0
        if result == 7:
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        measure(clock.call, 1e3, enough=4, most=20, inspect=inspect, stopwatch=HostStopwatch(clock))
    clock = FakeClock(0.02)
    taken = measure(clock.call, 1e3, enough=3, most=20, inspect=inspect, stopwatch=HostStopwatch(clock))
    assert taken.samples_s == pytest.approx([0.02] * 3)
    assert taken.called_s == pytest.approx(6 * 0.02)
    assert taken.elapsed_s == pytest.approx(4 * 5.02)


def test_sampling_stops_when_the_spread_gets_no_better() -> None:
    clock = FakeClock(0.02, 0.02, 0.02, *[0.02, 0.03] * 50)
    taken = measure(clock.call, 100.0, enough=4, most=40, stopwatch=HostStopwatch(clock))
    assert taken.stop_reason == "plateau"
    assert 8 <= len(taken.samples_s) < 40


def test_sampling_stops_at_the_most_samples() -> None:
    clock = FakeClock(*[0.02 * 1.5**i for i in range(30)])
    taken = measure(clock.call, 1e6 * 0.02, warm_up=False, enough=4, most=5, stopwatch=HostStopwatch(clock))
    assert (taken.stop_reason, len(taken.samples_s)) == ("count", 5)


def test_the_budget_ends_sampling_in_time() -> None:
    clock = FakeClock(*[0.02, 0.03] * 50)
    taken = measure(clock.call, 0.2, enough=4, most=40, stopwatch=HostStopwatch(clock))
    assert taken.stop_reason == "budget"
    assert clock.now <= 0.05 + 0.2 + 0.03  # the first two calls have their own time
    assert taken.elapsed_s == pytest.approx(clock.now - 0.05)


def test_the_least_samples_are_taken_whatever_the_budget() -> None:
    for warm_up, least, calls in ((False, 1, 1), (True, 1, 3), (True, 3, 5)):
        clock = FakeClock(2.0)
        taken = measure(
            clock.call, 0.1, least=least, enough=4, most=40, warm_up=warm_up, stopwatch=HostStopwatch(clock)
        )
        assert (taken.samples_s, taken.stop_reason, clock.calls) == ([2.0] * least, "budget", calls)


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


def test_what_is_known_of_small_kernels_tells_nothing_of_large_ones() -> None:
    """oneDNN takes 0.4 s for K = 51 on one channel and 40 s for K = 101."""
    small, large = (ConvSpec.parse(f"i512x512 k{size} psame f32") for size in (9, 15))
    known = [Known(small, small.flops, 1e6)]
    assert expected_seconds(backend(), large, 1, known=known) < 1e5


class Simulated:
    """A backend whose calls take the seconds it is told, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, overhead_s: float, flop_s: float) -> None:
        self.now, self.called = 0.0, list[ConvSpec]()

        def call(spec: ConvSpec, x: Any, w: Any) -> Any:
            self.called.append(spec)
            self.now += overhead_s + flop_s * spec.flops
            return np.zeros(spec.output_shape, spec.dtype)

        monkeypatch.setattr("convbench.bench.places.time.perf_counter", lambda: self.now)
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
