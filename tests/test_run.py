"""Runs: what is decided, in what order, and what becomes of whatever goes wrong. In one process, for its speed.

What only processes of their own can bear is in test_isolation.py.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convbench import ConvSpec, FunctionBackend, benchmark, get_backend, oracle
from convbench.backend import Backend
from convbench.bench import Case, Options, load_results, run_cases
from convbench.bench.data import photograph
from convbench.bench.environment import describe, thread_note, thread_pools
from convbench.bench.predict import shrink
from convbench.bench.record import Record, read
from convbench.bench.run import Event, PairDone, PairVerified, PassStarted, Started, _Run, new_run_folder
from convbench.bench.statistics import summarise
from convbench.errors import SpecError, UnknownBackend, UnsupportedWeights

pytestmark = pytest.mark.usefixtures("quick_runs")
QUICK = Options(threads=1, passes=2, budget_s=20.0, isolate=False, twins=0)
LINE = "n1 c1 o1 i12x12 k3 psame f32"
LIMITS = {"gemm_flop_per_s": {"float32": 1e11, "float64": 5e10}, "copy_bytes_per_s": 1e10, "threads": 1}


@pytest.fixture
def quick_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose times do not matter need not take their time."""
    monkeypatch.setattr("convbench.bench.timing.MIN_SAMPLE_S", 1e-4)
    monkeypatch.setattr("convbench.bench.run.MIN_SAMPLE_S", 1e-4)
    monkeypatch.setattr("convbench.bench.service.measure_limits", lambda threads: LIMITS)


def right(spec: ConvSpec, x: Any, w: Any) -> Any:
    return oracle.conv(spec.replace(bias="none"), x, w).astype(spec.result_dtype)


def backend(name: str = "fake", function: Any = right, **fields: Any) -> FunctionBackend:
    return FunctionBackend(name=name, function=function, **fields)


def run(
    folder: Path, backends: list[Any], lines: tuple[str, ...] = (LINE,), options: Options = QUICK, **more: Any
) -> list[Record]:
    """Return the records of the passes, and those that say why there are none."""
    run_cases([Case.parse(line) for line in lines], backends, options, folder, **more)
    return [record for record in read(folder) if record.pass_ or record.status != "ok"]


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
    monkeypatch.setattr("convbench.bench.service.HELD_DATA_BYTES", 100)
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
    assert calls.count(ConvSpec.parse(LINE)) == 1 + 6  # the call that was judged, and the probe of this small a case


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
    assert r.call_s == pytest.approx(21, rel=0.5)
    assert "the limit is 10 s" in r.reason
    assert set(called) == {shrink(big), shrink(big, 8 * 2e7)}


def test_a_slow_pair_is_neither_traced_nor_warmed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called_at, timing = [], False

    def listen(event: Event) -> None:
        nonlocal timing
        timing = timing or isinstance(event, PassStarted)

    def count(given: ConvSpec, x: Any, w: Any) -> Any:
        if str(given) == LINE:
            called_at.append("timed" if timing else "verified")
        return right(given, x, w)

    monkeypatch.setattr("convbench.bench.worker.SLOW_CALL_S", 0.0)
    monkeypatch.setattr("convbench.bench.worker._UNTRACED_CALL_S", 0.0)
    (r,) = run(tmp_path, [backend("count", count)], options=replace(QUICK, passes=1), on_event=listen)
    assert r.status == "ok"
    assert r.workspace_measured_bytes is None
    assert called_at.count("verified") == 1 + 6  # and the probe of this small a case
    assert called_at.count("timed") == len(r.samples_s)


def test_the_budget_wins_over_everything_but_the_smallest_case(tmp_path: Path) -> None:
    records = run(tmp_path, [backend()], (LINE, "i8 k3"), replace(QUICK, budget_s=1e-9))
    assert [(r.spec, r.status, r.pass_) for r in records[:2]] == [(LINE, "skipped", 0), ("n1 c1 o1 i8 k3 f32", "ok", 1)]
    assert sum(len(r.samples_s) for r in records) >= 3
    assert "time was spent" in records[0].reason


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
    options = Options(budget_s=None, passes=3, time_limit_s=5.0)
    cases, about = [Case.parse(LINE)], {"all_backends": False, "run_id": "r"}
    runner = _Run(cases, [backend()], options, tmp_path, lambda event: None, **about)  # type: ignore[arg-type]
    (pair,) = runner.pairs
    runner.level_s = math.inf
    pair.call_s = pair.spent_s = 1.0  # its verifying call
    assert runner._allowance(pair, 1) == (4 / 3, "time-limit")
    pair.passes, pair.samples, pair.spent_s = {1, 2, 3}, 3, 4.5
    assert runner._allowance(pair, 2) == (0.0, "time-limit")
    pair.spent_s, runner.level_s = 3.0, 0.1
    assert runner._allowance(pair, 3) == (1.0, "budget")
    pair.passes, pair.samples, pair.spent_s = {1, 2}, 2, 4.5
    assert runner._allowance(pair, 1)[0] == 1.0  # three samples are never denied


def test_what_was_measured_before_ctrl_c_is_kept(tmp_path: Path) -> None:
    seen: list[Record] = []

    def interrupt(event: Event) -> None:
        if isinstance(event, PairDone):
            seen.append(event.record)
            if len(seen) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [backend("a"), backend("b")], (LINE, "i8 k3"), on_event=interrupt)
    assert [record for record in read(tmp_path) if record.pass_] == seen
    assert sum(summarise(load_results(tmp_path))["samples"] > 0) == 3


def test_ctrl_c_inside_a_backend_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [backend("fine"), Reluctant(KeyboardInterrupt())])
    assert [(record.backend, record.pass_, record.status) for record in read(tmp_path)] == [("fine", 0, "ok")]


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


# -- how samples are taken ------------------------------------------------------------------------------------------


def test_a_verified_pair_is_on_disk_before_any_pass(tmp_path: Path) -> None:
    run(tmp_path, [backend("a"), backend("b")])
    records = read(tmp_path)
    assert [(r.backend, r.pass_, r.status, r.samples_s) for r in records[:2]] == [
        ("a", 0, "ok", []),
        ("b", 0, "ok", []),
    ]
    assert all(r.call_s is not None and r.call_s > 0 for r in records)
    elapsed = [r.elapsed_s for r in records]
    assert None not in elapsed
    assert elapsed == sorted(elapsed)


def test_the_quickest_of_each_case_have_twins(tmp_path: Path) -> None:
    def slow(spec: ConvSpec, x: Any, w: Any) -> Any:
        time.sleep(0.02)
        return right(spec, x, w)

    backends = [backend("slow", slow), backend("quick")]
    records = run(tmp_path, backends, (LINE, "i8 k3"), replace(QUICK, twins=1))
    twins = [(r.case, r.backend, r.pass_) for r in records if r.twin]
    assert sorted(twins) == [(str(Case.parse(line)), "quick", number) for line in (LINE, "i8 k3") for number in (1, 2)]
    assert sum(not r.twin for r in records) == 8
    assert len(summarise(load_results(tmp_path))) == 4


def test_what_is_far_behind_is_visited_in_three_passes(tmp_path: Path) -> None:
    def slow(spec: ConvSpec, x: Any, w: Any) -> Any:
        time.sleep(0.05)
        return right(spec, x, w)

    records = run(tmp_path, [backend("slow", slow), backend("quick")], options=replace(QUICK, passes=5))
    visits = [r.backend for r in records]
    assert (visits.count("slow"), visits.count("quick")) == (3, 5)


def test_a_twin_that_goes_wrong_is_its_backend_going_wrong(tmp_path: Path) -> None:
    visits: list[bool] = []

    def listen(event: Event) -> None:
        if isinstance(event, PairDone):
            visits.append(event.record.twin)

    def cheat(spec: ConvSpec, x: Any, w: Any) -> Any:
        return np.zeros(spec.output_shape, spec.dtype) if visits else right(spec, x, w)

    records = run(tmp_path, [backend("cheat", cheat)], options=replace(QUICK, twins=1), on_event=listen)
    assert [(r.pass_, r.status) for r in records] == [(1, "ok"), (1, "wrong")]
    assert not records[1].twin
    assert summarise(load_results(tmp_path))["status"].tolist() == ["wrong"]


def test_cold_calls_have_operands_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def look(spec: ConvSpec, x: Any, w: Any) -> Any:
        seen.append(x.__array_interface__["data"][0])
        return right(spec, x, w)

    spec = ConvSpec.parse("i32x32 k3 f64")
    monkeypatch.setattr("convbench.bench.service.last_level_bytes", lambda: 10 * spec.bytes_min)
    (r,) = run(tmp_path, [backend(function=look)], (str(spec),), replace(QUICK, passes=1, mode="cold"))
    assert (r.mode, r.caveats) == ("cold", [])
    turns = seen[-40:]
    assert len(set(turns)) >= 20
    assert turns[:20] == turns[20:] or len(set(turns)) > 20  # they take turns
    seen.clear()
    monkeypatch.setattr("convbench.bench.service.last_level_bytes", lambda: 2**40)
    (r,) = run(
        tmp_path / "2", [backend(function=look)], (str(spec),), replace(QUICK, passes=1, mode="cold", time_limit_s=1.0)
    )
    assert r.caveats[0].startswith("not cold: ")
    assert r.caveats[0].endswith(", the cache is 1.0 TiB")


def test_more_cores_than_were_asked_for_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from convbench.bench.timing import Measurement

    taken = Measurement([0.1, 0.1], 1, "count", 0.2, 0.2, 1.8)
    monkeypatch.setattr("convbench.bench.worker.measure", lambda *given, **named: taken)
    (first, *_) = run(tmp_path, [backend()])
    assert first.cores_used == 1.8
    assert first.caveats == ["threads: used 1.8 cores where 1 were asked for"]


def test_a_thread_pool_that_was_changed_is_told(tmp_path: Path) -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    timing = False

    def listen(event: Event) -> None:
        nonlocal timing
        timing = timing or isinstance(event, PassStarted)

    def unruly(spec: ConvSpec, x: Any, w: Any) -> Any:
        if timing:
            threadpoolctl.threadpool_limits(limits=2, user_api="blas")
        return right(spec, x, w)

    records = run(tmp_path, [backend("unruly", unruly)], options=replace(QUICK, passes=1), on_event=listen)
    assert any("blas" in caveat and "was left with 2" in caveat for caveat in records[0].caveats)


def test_how_operands_lie_and_what_they_hold_is_noted(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((16, 16), 1e-40, np.float32))
    line = f"i16x16 k3 f32 x=@{tmp_path}/x.npy"
    first, second = (run(tmp_path / str(n), [backend()], (each,))[0] for n, each in enumerate(("i16x16 k3 f32", line)))
    assert first.subnormal_share == 0
    assert second.subnormal_share == pytest.approx(256 / (256 + 9))
    assert first.alignment_bytes is not None
    assert first.alignment_bytes >= 8
    assert first.alignment_bytes & (first.alignment_bytes - 1) == 0


# -- the front door -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cases",
    ["i8 k3 w=box", [ConvSpec.parse("i8 k3")], ["i8 k3"], [Case.parse("i8 k3")], ConvSpec.parse("i8 k3")],
    ids=["line", "specs", "lines", "cases", "spec"],
)
def test_benchmark_takes_lines_specs_and_cases(cases: Any) -> None:
    table = benchmark(cases, [backend()], passes=1, threads=1, isolate=False)
    assert table["status"].tolist() == ["ok"] * 3
    assert table[["pass", "twin"]].values.tolist() in (
        [[0, False], *both] for both in permutations([[1, False], [1, True]])
    )
    assert set(table["spec"]) == {"n1 c1 o1 i8 k3 f32"}
    assert table.attrs["environment"]["backends"] == ["fake"]


def test_benchmark_takes_a_suite_and_keeps_the_files_if_asked(tmp_path: Path) -> None:
    options = {"passes": 1, "threads": 1, "twins": 0, "isolate": False}
    table = benchmark("edge-detection", [backend()], folder=tmp_path / "kept", **options)
    assert table["case"].tolist() == ["n1 c1 o1 i280x320 k1x2 f32 x=photo w=edge"] * 2
    assert len(read(tmp_path / "kept")) == 2


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
    table = benchmark("i8 k3", "fft", passes=1, threads=1, isolate=False)
    assert set(table["backend"]) == {"fft"}


def test_memory_of_prepared_weights_counts_before_they_are_made() -> None:
    """A kernel's spectrum for every pair of channels can be larger than all else."""
    pytest.importorskip("pyfftw")
    spec = ConvSpec.parse("c32 o32 i64x64 k3 p1 f32")
    plan = get_backend("fft").plan(spec, threads=1)
    assert plan.prepared_bytes > plan.workspace_bytes
    limit = plan.workspace_bytes + spec.bytes_min + plan.prepared_bytes // 2
    frame = benchmark([spec], ["fft"], threads=1, passes=1, isolate=False, memory_limit_bytes=limit)
    assert list(frame.status) == ["skipped"]
    assert frame.reason[0].startswith("memory: ")
