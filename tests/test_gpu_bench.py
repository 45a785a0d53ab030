"""Backends of a GPU in the harness, on a device that is simulated (fake_gpu): its arrays refuse to be NumPy's."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_gpu import COPY_BYTES_PER_S, GEMM_FLOP_PER_S, FakeGpu, GpuArray, fake_backend, fake_namespace

from convbench import ConvSpec, FunctionBackend, Limits, oracle
from convbench.bench import Case, Options, load_results, run_cases
from convbench.bench.places import HOST, OnDevice, place_of
from convbench.bench.predict import expected_seconds
from convbench.bench.record import TRANSFERS_APART, TRANSFERS_INCLUDED, Record, read, with_transfers
from convbench.commands.gpu import Step, follow, steps_for
from convbench.memory import measure_memory
from convbench.registry import get_backend

pytestmark = pytest.mark.usefixtures("quick_runs")
QUICK = Options(threads=1, passes=2, budget_s=20.0, isolate=False, twins=0)
LINE = "n1 c2 o3 i12x12 k3 psame f32"
BIASED = "n1 c2 o3 i12x12 k3 psame bias=channel f32"
LIMITS = {"gemm_flop_per_s": {"float32": 1e11, "float64": 5e10}, "copy_bytes_per_s": 1e10, "threads": 1}
KERNEL_S = 30e-6
ROOT = Path(__file__).parents[1]


@pytest.fixture
def quick_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose times do not matter need not take their time."""
    monkeypatch.setattr("convbench.bench.timing.MIN_SAMPLE_S", 1e-3)
    monkeypatch.setattr("convbench.bench.run.MIN_SAMPLE_S", 1e-3)
    monkeypatch.setattr("convbench.bench.places._AHEAD_S", 1e-3)
    monkeypatch.setattr("convbench.bench.service.measure_limits", lambda threads: LIMITS)
    monkeypatch.setattr("convbench.bench.service.measure_gpu_limits", lambda place: {})


def run(folder: Path, *backends: Any, options: Options = QUICK, line: str = LINE) -> list[Record]:
    """Return the records of the passes, and those that say why there are none."""
    run_cases([Case.parse(line)], list(backends), options, folder)
    return [record for record in read(folder) if record.pass_ or record.status != "ok"]


def host_backend() -> FunctionBackend:
    def function(spec: ConvSpec, x: Any, w: Any) -> Any:
        return oracle.conv(spec, x, w).astype(spec.result_dtype)

    return FunctionBackend(name="fake-cpu", function=function)


# -- measuring ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launch_s", [2e-6, 50e-6])
def test_samples_are_the_devices_and_transfers_stand_apart(tmp_path: Path, launch_s: float) -> None:
    gpu = FakeGpu(launch_s=launch_s)
    records = run(tmp_path, fake_backend(gpu, kernel_s=KERNEL_S), line=BIASED)
    spec = ConvSpec.parse(BIASED)
    moved = 4 * (2 * 12 * 12 + 3 + 3 * 12 * 12)
    assert len(records) == 2
    for record in records:
        assert (record.status, record.reason, record.device, record.mode) == ("ok", "", "cuda", "hot")
        assert record.samples_s == pytest.approx([KERNEL_S] * len(record.samples_s), rel=0.02)
        assert record.transfer_s == pytest.approx(moved / gpu.bytes_per_s, rel=0.1)
        assert record.prepare_transfer_s == pytest.approx(4 * 3 * 2 * 9 / gpu.bytes_per_s, abs=3e-8)
        assert record.launch_s == pytest.approx(launch_s, rel=0.1)
        assert record.sm_clock_mhz == 1980
        assert record.caveats == []
        assert record.cores_used is None or math.isnan(record.cores_used)
        assert record.alignment_bytes is None
        assert record.error_max_eps <= record.error_bound_eps
        assert record.flops_nominal == spec.flops
        assert json.loads(record.to_json())["cores_used"] is None


def test_cold_calls_find_the_cache_flushed(tmp_path: Path) -> None:
    times = {}
    for mode in ("hot", "cold"):
        records = run(tmp_path / mode, fake_backend(FakeGpu(cold_factor=4.0)), options=replace(QUICK, mode=mode))
        times[mode] = np.median(records[0].samples_s)
        assert {record.mode for record in records} == {mode}
    assert times["cold"] == pytest.approx(4 * times["hot"], rel=0.05)


def test_what_a_stage_has_queued_is_waited_for(tmp_path: Path) -> None:
    """Planning and preparing only launch: without synchronising they would seem to take nothing."""
    gpu = FakeGpu()

    def prepare(spec: ConvSpec, w: GpuArray) -> GpuArray:
        gpu.kernel(5e-3)
        return w

    records = run(tmp_path, fake_backend(gpu, prepare=prepare))
    assert [record.prepare_s for record in records] == pytest.approx([5e-3] * 2, rel=0.1)
    assert all((record.plan_s or 0.0) < 1e-3 for record in records)


def test_clocks_that_are_held_back_are_a_caveat(tmp_path: Path) -> None:
    records = run(tmp_path, fake_backend(FakeGpu(held_back_by=("its power limit",))))
    assert all("clocks: the GPU was held back by its power limit" in record.caveats for record in records)


def test_the_memory_that_counts_is_the_devices() -> None:
    gpu = FakeGpu()

    def function(spec: ConvSpec, x: GpuArray, w: GpuArray) -> GpuArray:
        on_host = np.ones(10**6)  # is nobody's business here
        scratch = GpuArray(gpu, np.zeros(5000))
        y = oracle.conv(spec, x.values, w.values) + 0 * (scratch.values[0] + on_host[0])
        return GpuArray(gpu, y.astype(spec.result_dtype))

    def prepare(spec: ConvSpec, w: GpuArray) -> GpuArray:
        GpuArray(gpu, np.zeros(3000))
        return GpuArray(gpu, w.values.copy())

    backend = fake_backend(gpu, function=function, prepare=prepare)
    spec = ConvSpec.parse("c2 o3 i12x12 k3 f32")
    ns = fake_namespace(gpu)
    x, w = (ns.from_host(np.ones(shape, "f4")) for shape in spec.operand_shapes)
    memory = measure_memory(backend, spec, x, w)
    assert memory.workspace_bytes == 5000 * 8
    assert memory.prepared_bytes == 3 * 2 * 9 * 4
    assert memory.prepare_peak_bytes == 3000 * 8
    assert memory.rss_peak_bytes is None
    assert isinstance(memory.y, GpuArray)


def test_what_is_compiled_once_does_not_count_four_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first stage of each kind, 1.5 s: were they counted for every call, none would fit 3 s."""
    monkeypatch.setattr("convbench.bench.worker._Verifying._expect", lambda self, known: 0.0)  # which calls it as well
    compiled = set[str]()

    def once(name: str, gpu: FakeGpu) -> None:
        gpu.now_s += 1.5 * (name not in compiled)
        compiled.add(name)

    def function(spec: ConvSpec, x: GpuArray, w: GpuArray) -> GpuArray:
        once("call", x.gpu)
        x.gpu.kernel(KERNEL_S)
        return GpuArray(x.gpu, oracle.conv(spec, x.values, w.values).astype(spec.result_dtype))

    def prepare(spec: ConvSpec, w: GpuArray) -> GpuArray:
        once("prepare", w.gpu)
        return w

    backend = fake_backend(FakeGpu(), "compiled", function=function, prepare=prepare)
    records = run(tmp_path, backend, options=replace(QUICK, time_limit_s=3.0))
    assert compiled == {"call", "prepare"}
    assert [record.status for record in records] == ["ok", "ok"]
    assert records[0].samples_s == pytest.approx([KERNEL_S] * len(records[0].samples_s), rel=0.02)
    (verified,) = [record for record in read(tmp_path) if not record.pass_]
    assert verified.first_call_s > 1.5
    assert verified.prepare_s < 0.1


def test_a_call_that_is_slow_each_time_is_skipped_all_the_same(tmp_path: Path) -> None:
    records = run(tmp_path, fake_backend(FakeGpu(), kernel_s=1.5), options=replace(QUICK, time_limit_s=3.0))
    assert [record.status for record in records] == ["skipped"]
    assert "the limit is 3 s" in records[0].reason


def test_the_devices_memory_is_a_limit_and_is_given_back(tmp_path: Path) -> None:
    roomy, full = FakeGpu(), FakeGpu(memory_bytes=1000)
    backends = (fake_backend(roomy), fake_backend(full, "full"))
    records = {record.backend: record for record in run(tmp_path, *backends)}
    assert records["fake-gpu"].status == "ok"
    assert records["full"].status == "skipped"
    assert records["full"].reason == "memory: 3.0 KiB needed, the GPU has 1000 B free"
    assert roomy.released == 1 + QUICK.passes + QUICK.twins * QUICK.passes  # after each visit


# -- judging ------------------------------------------------------------------------------------------------------


def test_wrong_results_are_found_there_too(tmp_path: Path) -> None:
    gpu = FakeGpu()
    calls = 0

    def mirrored(spec: ConvSpec, x: GpuArray, w: GpuArray) -> GpuArray:
        y = oracle.conv(spec, x.values, w.values)
        return GpuArray(gpu, y[..., ::-1].astype(spec.result_dtype))

    def stale(spec: ConvSpec, x: GpuArray, w: GpuArray) -> GpuArray:
        nonlocal calls
        calls += 1
        gpu.kernel(KERNEL_S)
        y = oracle.conv(spec, x.values, w.values) * (calls < 9)
        return GpuArray(gpu, y.astype(spec.result_dtype))

    def meddling(spec: ConvSpec, x: GpuArray, w: GpuArray) -> GpuArray:
        y = oracle.conv(spec, x.values, w.values)
        x.values[0, 0, 0, 0] += 1
        return GpuArray(gpu, y.astype(spec.result_dtype))

    def at_home(spec: ConvSpec, x: GpuArray, w: GpuArray) -> Any:
        return np.asarray(x)

    functions = {"mirrored": mirrored, "stale": stale, "meddling": meddling, "at-home": at_home}
    backends = [fake_backend(gpu, name, function=function) for name, function in functions.items()]
    records = {record.backend: record for record in run(tmp_path, *backends)}
    assert records["mirrored"].status == records["stale"].status == records["meddling"].status == "wrong"
    assert records["stale"].pass_ == 1
    assert records["meddling"].reason == "changed its operand x"
    assert records["at-home"].status == "failed"
    assert "implicit conversion" in records["at-home"].reason
    assert not any(record.samples_s for record in records.values())


# -- where backends are -------------------------------------------------------------------------------------------


def test_a_place_is_told_by_the_namespace() -> None:
    gpu = FakeGpu()
    assert place_of(host_backend()) is HOST
    assert place_of(get_backend("im2col")) is HOST
    place = place_of(fake_backend(gpu))
    assert isinstance(place, OnDevice)
    assert place.device is gpu
    run_on_cpu = FunctionBackend(name="shim", function=lambda spec, x, w: x, device="cuda")
    assert place_of(run_on_cpu) is HOST  # arrays of NumPy, as where kernels run on the CPU


def test_a_call_is_predicted_from_smaller_ones_on_the_device() -> None:
    gpu = FakeGpu()

    def function(spec: ConvSpec, x: GpuArray, w: GpuArray) -> GpuArray:
        gpu.kernel(20e-6 + spec.flops * 1e-9)
        return GpuArray(gpu, np.zeros(spec.result_shape, "f4"))

    backend = fake_backend(gpu, "fake-gpu-that-takes-its-time", function=function)
    spec = ConvSpec.parse("n8 c8 o8 i512x512 k3 psame f32")
    assert expected_seconds(backend, spec, 1) == pytest.approx(spec.flops * 1e-9, rel=0.05)


# -- looking at results -------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A run of a CPU's backend and a GPU's."""
    run(tmp_path / "run", host_backend(), fake_backend(FakeGpu(), kernel_s=2e-6))
    return tmp_path / "run"


def test_a_row_of_the_gpu_is_marked_and_has_no_limit_of_the_cpu(mixed: Path) -> None:
    from convbench.report.tables import comparison, figures, overview

    records = load_results(mixed)
    table = figures(records, None).set_index("backend")
    assert math.isnan(table.loc["fake-gpu", "limit_share"])
    assert table.loc["fake-cpu", "limit_share"] > 0
    table = figures(records, None)
    grid = comparison(table)
    column = [each.title for each in grid.columns].index("device")
    shown = {row.cells[0]: (row.cells[column], row.cells[-1]) for row in grid.rows if row.cells}
    assert shown == {"fake-gpu": ("cuda", "ok"), "fake-cpu": ("cpu", "ok")}
    found = overview(table)
    assert TRANSFERS_APART in found.notes
    assert any("no limits of a GPU are known" in note for note in found.notes)
    (times,) = found.grids.values()
    assert "attainable (CPU)" in [column.title for column in times.columns]
    included = overview(figures(load_results(mixed, transfers=True), None)).notes
    assert TRANSFERS_APART not in included
    assert f"fake-gpu (!): {TRANSFERS_INCLUDED}" in included


GPU_LIMITS = {"gemm_flop_per_s": {"float32": 5e13, "float64": 2.5e13}, "copy_bytes_per_s": 4e12}


def test_the_limits_of_the_gpu_are_those_of_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from convbench.bench.rivals import duels
    from convbench.report.comparison import _limit_legend
    from convbench.report.tables import figures

    monkeypatch.setattr("convbench.bench.service.measure_gpu_limits", lambda place: GPU_LIMITS)
    run(tmp_path, host_backend(), fake_backend(FakeGpu()), fake_backend(FakeGpu(), "other", kind="rival"))
    records = load_results(tmp_path)
    assert records.attrs["environment"]["limits"] == LIMITS | {"cuda": GPU_LIMITS}
    table = figures(records, None)
    rows = table.set_index("backend")
    spec = ConvSpec.parse(LINE)
    attainable_s = max(spec.flops / 5e13, spec.bytes_min / 4e12)
    assert rows.loc["fake-gpu", "limit_share"] * KERNEL_S == pytest.approx(attainable_s, rel=0.02)
    assert set(table["attainable_s"]) == {max(spec.flops / 1e11, spec.bytes_min / 1e10)}  # the overview's: of the CPU
    assert "a GPU's are its own matrix product" in _limit_legend(table)
    found = duels(table, own="fake-gpu").iloc[0]
    assert found["attainable_s"] == pytest.approx(attainable_s)


def test_the_limits_of_a_gpu_are_measured_by_its_clock() -> None:
    from convbench.bench.limits import measure_gpu_limits

    place = place_of(fake_backend(FakeGpu()))
    assert isinstance(place, OnDevice)
    found = measure_gpu_limits(place, seconds=0.01)
    assert found["gemm_flop_per_s"]["float32"] == pytest.approx(GEMM_FLOP_PER_S, rel=0.02)
    for name in ("copy_bytes_per_s", "copy_median_bytes_per_s"):
        assert found[name] == pytest.approx(COPY_BYTES_PER_S, rel=0.02)
    assert set(found["gemm_by"]) == set(found["gemm_flop_per_s"]) == {"float32", "float64"}


def test_a_gpu_without_a_library_costs_its_limits_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(place: Any) -> Any:
        raise ImportError("no libcublas.so.13")

    monkeypatch.setattr("convbench.bench.service.measure_gpu_limits", fails)
    assert [record.status for record in run(tmp_path, fake_backend(FakeGpu()))] == ["ok", "ok"]
    limits = load_results(tmp_path).attrs["environment"]["limits"]
    assert limits["cuda"] == {"problem": "no libcublas.so.13"}
    assert math.isnan(figures_of(tmp_path)["limit_share"].iloc[0])


def figures_of(folder: Path) -> Any:
    from convbench.report.tables import figures

    return figures(load_results(folder), None)


def test_a_table_of_one_device_has_no_column_for_it(tmp_path: Path) -> None:
    from convbench.report.tables import comparison, figures, overview

    run(tmp_path, host_backend())
    table = figures(load_results(tmp_path), None)
    assert "device" not in [column.title for column in comparison(table).columns]
    (times,) = overview(table).grids.values()
    assert "attainable" in [column.title for column in times.columns]
    assert TRANSFERS_APART not in overview(table).notes


def test_all_files_of_a_mixed_run_are_written(mixed: Path) -> None:
    from convbench.report import write_report

    written = {path.name for path in write_report(mixed)}
    assert {"table.md", "table.csv", "overview.md", "index.html"} <= written
    assert "device" in (mixed / "table.md").read_text()


def test_transfers_are_added_by_whoever_compares(mixed: Path) -> None:
    plain, whole = load_results(mixed), load_results(mixed, transfers=True)
    for (_, before), (_, after) in zip(plain.iterrows(), whole.iterrows(), strict=True):
        if before["device"] == "cpu" or not before["samples_s"]:
            assert before["samples_s"] == after["samples_s"]
            continue
        added = np.subtract(after["samples_s"], before["samples_s"])
        assert added == pytest.approx([before["transfer_s"]] * len(added))
        assert after["prepare_s"] == pytest.approx(before["prepare_s"] + before["prepare_transfer_s"])
        assert TRANSFERS_INCLUDED in after["caveats"]
    assert (mixed / "records.jsonl").read_text().count(TRANSFERS_INCLUDED) == 0


def test_a_record_without_transfers_stays_as_it_is() -> None:
    record = Record(run_id="r", case=LINE, spec=LINE, backend="b", pass_=1, samples_s=[1.0])
    assert with_transfers(record) is record


# -- a process of its own -----------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="processes of their own need POSIX")
def test_workers_have_their_own_device(tmp_path: Path) -> None:
    records = run(tmp_path, fake_backend(FakeGpu()), options=replace(QUICK, isolate=True, passes=1))
    assert [record.status for record in records] == ["ok"]
    assert records[0].samples_s == pytest.approx([KERNEL_S] * len(records[0].samples_s), rel=0.02)


@pytest.mark.skipif(sys.platform == "win32", reason="processes of their own need POSIX")
def test_an_illegal_access_costs_its_own_pair_alone(tmp_path: Path) -> None:
    """From then on the device of that process refuses everything, whichever backend asks."""
    gpu = FakeGpu()

    def faulty(after: int) -> Any:
        calls = 0

        def function(spec: ConvSpec, x: GpuArray, w: GpuArray) -> GpuArray:
            nonlocal calls
            calls += 1
            if calls > after:  # the kernel runs later: the call itself is none the wiser
                x.gpu.fault = "cudaErrorIllegalAddress"
            x.gpu.kernel(KERNEL_S)
            return GpuArray(x.gpu, oracle.conv(spec, x.values, w.values).astype(spec.result_dtype))

        return function

    backends = [fake_backend(gpu, f"after-{after}", function=faulty(after)) for after in (0, 12)]
    records = run(tmp_path, *backends, fake_backend(gpu), options=replace(QUICK, isolate=True, passes=1))
    by_name = {name: [r for r in records if r.backend == name] for name in ("after-0", "after-12", "fake-gpu")}
    for name, pass_ in (("after-0", 0), ("after-12", 1)):
        (record,) = by_name[name]
        assert (record.status, record.pass_, record.samples_s) == ("crashed", pass_, [])
        assert record.reason.startswith("the GPU does nothing more for its process: ")
        assert record.reason.endswith("cudaErrorIllegalAddress")
    assert {record.status for record in by_name["fake-gpu"]} == {"ok"}


def fault_or_not(name: str, *arguments: Any) -> Any:
    """Stand in for the battery of one backend: tell the process, or end it."""
    if name == "dies":
        os._exit(3)
    return import_module("convbench.commands.check").Checked([os.getpid()], 0.0)


def test_the_battery_gives_each_backend_a_process_where_one_is_a_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from convbench.bench.families import Convolution

    check: Any = import_module("convbench.commands.check")  # whose name in the package is the command's
    monkeypatch.setattr(Convolution, "get_backend", lambda self, name: fake_backend(FakeGpu(), name))
    monkeypatch.setattr(check, "_check_one", fault_or_not)
    first, died, last = (list(each.results) for each in check._checked(["a", "dies", "b"], 1, 0, False, 1))
    assert len({os.getpid(), *first, *last}) == 3
    (died,) = died
    assert (died.check, died.status, died.message) == ("battery", "failed", "dies: its process died")
    (alone,) = check._checked(["a"], 1, 0, False, 1)
    assert alone.results == [os.getpid()]  # which has nobody to spare
    monkeypatch.setattr(Convolution, "get_backend", lambda self, name: replace(host_backend(), name=name))
    assert [each.results for each in check._checked(["a", "b"], 1, 0, False, 1)] == [[os.getpid()]] * 2


# -- crossovers ---------------------------------------------------------------------------------------------------


def test_a_crossover_counts_transfers_if_told_to(tmp_path: Path) -> None:
    """The same backends, measured alike: without transfers the GPU is ahead throughout, with them it never is."""
    from convbench.bench.crossover import find_crossover, load_crossover
    from convbench.report.crossover import notes, write_crossover

    found = {}
    for transfers in (False, True):
        pair = (host_backend(), fake_backend(FakeGpu(bytes_per_s=1e3), kernel_s=2e-6))
        found[transfers] = find_crossover(
            *pair, LINE, over="input_size", values="12,16", options=replace(QUICK, passes=3), transfers=transfers,
            folder=tmp_path / str(transfers),
        )  # fmt: skip
    assert {point.verdict for point in found[False].measured} == {"second"}
    assert {point.verdict for point in found[True].measured} == {"first"}
    assert notes(found[True])[0].startswith("times on a GPU hold the sending of all operands")
    assert not any("sending" in note for note in notes(found[False]))
    write_crossover(found[True], tmp_path / "True", lambda note: None)
    assert load_crossover(tmp_path / "True").transfers
    samples_s = [second for record in read(tmp_path / "True") for second in record.samples_s if record.device == "cuda"]
    assert max(samples_s) < 1e-5  # what was measured stays what it was


# -- pytest-benchmark ---------------------------------------------------------------------------------------------

OWN = """
import pytest
from fake_gpu import FakeGpu, GpuArray, fake_backend
from convbench import registry
from convbench.pytest_plugin import benchmark_pair, suite_pairs

gpu = FakeGpu(launch_s=80e-6)
calls = 0

def stale(spec, x, w):  # right until it has been verified
    global calls
    calls += 1
    gpu.kernel(30e-6)
    from convbench import oracle
    y = oracle.conv(spec, x.values, w.values) * (calls < 9)
    return GpuArray(gpu, y.astype(spec.result_dtype))

fakes = {b.name: b for b in (fake_backend(gpu), fake_backend(gpu, "stale", function=stale))}
registry._plug_ins = lambda: fakes

@pytest.mark.benchmark(disable_gc=True)
@pytest.mark.parametrize(("case", "backend"), [p for p in suite_pairs(SUITE) if p.values[1] in fakes])
def test_own(benchmark, case, backend):
    benchmark_pair(benchmark, case, backend)
"""


@pytest.mark.parametrize(("disabled", "most_s"), [(False, 0.25), (False, 3.0), (True, 3.0)])
def test_pytest_benchmarks_options_hold_for_a_gpu(disabled: bool, most_s: float) -> None:
    """The longest time that a benchmark may take; and none beyond a look at its results where timing is off."""
    from convbench.bench.worker import Evidence, Limits, verify
    from convbench.pytest_plugin import _replayed

    gpu = FakeGpu()
    backend, evidence, limits = fake_backend(gpu, kernel_s=0.04), Evidence(Case.parse(LINE)), Limits(10.0, 2**30)
    verified = verify(evidence, backend, "r", threads=1, limits=limits)
    benchmark = SimpleNamespace(
        disabled=disabled, _max_time=most_s, extra_info={}, pedantic=lambda step, rounds, iterations: step()
    )
    gpu.launches.clear()
    record = _replayed(benchmark, verified, evidence, backend, limits)
    assert record.status == "ok"
    sampled = {(False, 0.25): 5, (False, 3.0): 20, (True, 3.0): 1}[disabled, most_s]
    assert len(record.samples_s) == sampled


@pytest.mark.parametrize("option", ["--benchmark-only", "--benchmark-disable"])
def test_pytest_benchmark_is_shown_the_times_of_the_events(tmp_path: Path, option: str) -> None:
    pytest.importorskip("pytest_benchmark")
    suite, bench, results = tmp_path / "own.txt", tmp_path / "bench_own.py", tmp_path / "results.json"
    suite.write_text(f"{LINE}\n")
    bench.write_text(OWN.replace("SUITE", repr(str(suite))))
    command = [sys.executable, "-m", "pytest", "-p", "convbench.pytest_plugin", "-p", "no:cacheprovider", "-q", "-rf"]
    about = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    about["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    arguments = [option, f"--benchmark-json={results}", str(bench), "-c", str(ROOT / "pyproject.toml")]
    done = subprocess.run([*command, *arguments], cwd=ROOT, env=about, capture_output=True, text=True, timeout=300)
    assert "stale: n1 c2 o3 i12x12 k3 psame f32: a timed output is wrong" in done.stdout, done.stdout
    assert "1 failed, 1 passed" in done.stdout
    if option == "--benchmark-disable":
        return
    (found,) = json.loads(results.read_text())["benchmarks"]
    assert found["extra_info"]["backend"] == "fake-gpu"
    assert found["extra_info"]["device"] == "cuda"
    assert found["extra_info"]["transfer_s"] > 0
    assert found["stats"]["data"] == pytest.approx(found["extra_info"]["samples_s"])
    assert found["stats"]["median"] == pytest.approx(KERNEL_S, rel=0.02)


# -- the command --------------------------------------------------------------------------------------------------


class Executed:
    """Stands in for processes of convbench: each run leaves its folder."""

    def __init__(self, codes: dict[str, int]) -> None:
        self.codes, self.calls = codes, list[list[str]]()

    def __call__(self, arguments: Any, kept: bool) -> tuple[int, str]:
        self.calls.append(list(arguments))
        if arguments[0] == "run" and not self.codes.get("run"):
            if arguments[1] == "--resume":
                return 0, ""
            folder, label = Path(arguments[arguments.index("--out") + 1]), arguments[1]
            for option, shown in (("--batch", "-batch"), ("--dtype", "-")):
                if option in arguments:
                    label += shown + arguments[arguments.index(option) + 1]
            made = folder / f"20261122T0000{len(self.calls):02}Z-{label}"
            made.mkdir(parents=True, exist_ok=True)
            about = {"command_line": shlex.join(["convbench", *arguments])}
            (made / "environment.json").write_text(json.dumps(about))
        return self.codes.get(arguments[0], 0), "printed\n" * kept


def own_and_rivals() -> dict[str, Any]:
    gpu = FakeGpu()
    kinds = {"direct-cupy": "own", "im2col-tf32-cupy": "own", "torch-cuda": "rival", "torch-cuda-tf32": "rival"}
    backends = {name: fake_backend(gpu, name, kind=kind) for name, kind in kinds.items()}
    return backends | {"direct": replace(host_backend(), name="direct")}


def test_steps_are_the_battery_then_suites_with_rivals_then_crossovers(tmp_path: Path) -> None:
    steps = [str(step) for step in steps_for(own_and_rivals(), tmp_path)]
    assert steps[0] == "convbench check --gpu --ledger"
    for suite, how, label, cases in (
        ("cnn-layers", "", "cnn-layers", 154),
        ("cnn-layers", "--batch 16 ", "cnn-layers-batch16", 2 * 154),
        ("cnn-layers", "-k '!group=U-Net' --batch 128 ", "cnn-layers-batch128", 3 * 135),
        ("audio-1d", "", "audio-1d", 2 * 31),
        ("volume-3d", "", "volume-3d", 2 * 24),
    ):
        backends = "direct-cupy,im2col-tf32-cupy,torch-cuda,torch-cuda-tf32"
        (line,) = [
            step for step in steps if step.startswith(f"convbench run {suite} --backends {backends} {how}--mode hot")
        ]
        assert f" --budget {4 * cases} " in line
        assert "--baseline torch-cuda " in line
        following = steps[steps.index(line) + 1 :][:2]
        assert following == [
            f"convbench rivals --own {own} --against {rival} --format markdown {tmp_path}/hot/*Z-{label}"
            for own, rival in (
                ("direct-cupy", "torch-cuda" if suite == "cnn-layers" else "'torch-cuda,cupyx-*'"),
                ("im2col-tf32-cupy", "torch-cuda-tf32"),
            )
        ]
    crossovers = [step for step in steps if "crossover" in step]
    assert len(crossovers) == 2 * sum("--transfers" in step for step in crossovers) == 6
    assert all("crossover direct direct-cupy --spec" in step for step in crossovers)


def test_half_precision_has_those_that_take_it_and_large_kernels_a_table_of_depthwise(tmp_path: Path) -> None:
    """What multiplies on tensor cores is known from its kernels, whatever its name."""
    gpu, half = FakeGpu(), Limits(dtypes=("float16",))
    backends = own_and_rivals() | {
        name: fake_backend(gpu, name, **fields)
        for name, fields in (("im2col-f16-cupy", {"limits": half}), ("im2col-bf16-cupy", {}), ("tf32-plug-in", {}))
    }
    backends["torch-cuda"] = fake_backend(gpu, "torch-cuda", kind="rival", limits=Limits(dtypes=("float32", "float16")))
    steps = [str(step) for step in steps_for(backends, tmp_path)]
    (line,) = [step for step in steps if "--batch 16 --dtype float16 " in step]
    assert "im2col-f16-cupy" in line
    assert not any("im2col-f16-cupy" in step for step in steps if step.startswith("convbench run") and step != line)
    (duel,) = [step for step in steps if step.startswith("convbench rivals") and step.endswith("batch16-float16")]
    assert "im2col-f16-cupy" in duel
    assert " --against torch-cuda --format" in duel
    of_large = [step for step in steps if step.startswith("convbench rivals") and step.endswith("large-kernel")]
    plain = "convbench rivals --own direct-cupy,tf32-plug-in --against torch-cuda"
    assert [step.partition(" --format")[0] for step in of_large] == [
        plain,
        f"{plain} -k 'g[1-9]*'",
        "convbench rivals --own im2col-tf32-cupy --against torch-cuda-tf32",
        "convbench rivals --own im2col-bf16-cupy --against torch-cuda-tf32",
    ]
    outputs = [step.output for step in steps_for(backends, tmp_path) if step.output]
    assert len(set(outputs)) == len(outputs)


def test_every_step_is_a_command_that_convbench_has(tmp_path: Path) -> None:
    """Parsed by the real commands, without calling them."""
    import click

    from convbench.bench.cases import case_filter, load_suite
    from convbench.commands import cli

    for step in steps_for(own_and_rivals(), tmp_path):
        name, *arguments = step.arguments
        command = cli.commands[name]
        assert isinstance(command, click.Command)
        context = command.make_context(name, [*arguments, *[str(tmp_path)] * bool(step.run)], resilient_parsing=False)
        if name == "run":
            (suite,) = context.params["suites"]
            kept = case_filter(context.params["pattern"] or "")
            changed = load_suite(suite).at(batch=context.params["batch"], dtype=context.params["dtype"])
            assert any(kept(case) for case in changed.cases)


def test_a_failure_does_not_keep_later_steps_and_what_is_done_is_not_repeated(tmp_path: Path) -> None:
    steps, told = steps_for(own_and_rivals(), tmp_path), list[str]()
    first = Executed({"check": 1, "crossover": 2, "rivals": 1})
    assert follow(steps, tmp_path, told.append, first) == 1
    assert len(first.calls) == len(steps)
    rivals = next(call for call in first.calls if call[0] == "rivals")
    assert Path(rivals[-1]).is_dir()
    assert (tmp_path / "rivals-cnn-layers-hot.md").read_text() == "printed\n"
    assert "exit code 1: convbench check --gpu --ledger" in told
    second = Executed({})
    assert follow(steps, tmp_path, told.append, second) == 1  # a comparison has failed, and that stands
    assert {call[0] for call in second.calls} == {"check", "crossover"}
    third = Executed({})
    follow(steps, tmp_path, told.append, third)
    assert not third.calls


def test_an_interrupted_run_is_resumed(tmp_path: Path) -> None:
    """By the folder that this very command has made, whether it was stopped or killed."""
    steps = steps_for(own_and_rivals(), tmp_path)
    executed = Executed({})
    follow(steps, tmp_path, lambda text: None, executed)
    codes = json.loads((tmp_path / "steps.json").read_text())
    stopped, killed, failed = [str(step) for step in steps if step.arguments[0] == "run"][:3]
    codes |= {stopped: 130, failed: 2}
    del codes[killed]
    (tmp_path / "steps.json").write_text(json.dumps(codes))
    later = tmp_path / "hot" / "20261122T235959Z-cnn-layers"
    later.mkdir()
    (later / "environment.json").write_text('{"command_line": "convbench run cnn-layers --backends others"}')
    again, told = Executed({}), list[str]()
    assert follow(steps, tmp_path, told.append, again) == 0
    first, second, third = again.calls
    assert [call[:2] + call[3:] for call in (first, second)] == [["run", "--resume", "--quiet"]] * 2
    assert [Path(call[2]).parent.name for call in (first, second)] == ["hot", "cold"]
    assert first[2] != str(later)
    assert shlex.join(["convbench", *third]) == failed
    assert f"it goes on in {first[2]}" in told


def test_the_folder_and_the_ledger_are_checked_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from convbench.cli import main

    file = tmp_path / "README.md"
    file.write_text("")
    assert main(["gpu", "--out", str(file), "--dry-run"]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err
    ledger = str(tmp_path / "ledger.json")
    assert main(["gpu", "--out", str(tmp_path), "--dry-run", "--ledger-file", ledger]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"convbench check --gpu --ledger --ledger-file {ledger}"
    assert main(["gpu", "--out", str(tmp_path), "--dry-run", "--no-ledger", "--ledger-file", ledger]) == 2


def test_a_run_that_left_nothing_costs_its_table(tmp_path: Path) -> None:
    steps, told = steps_for(own_and_rivals(), tmp_path), list[str]()
    assert follow(steps, tmp_path, told.append, Executed({"run": 2})) == 1
    assert any("the step that makes it has failed" in line for line in told)


def test_an_interruption_ends_all(tmp_path: Path) -> None:
    executed = Executed({"check": 130})
    assert follow(steps_for(own_and_rivals(), tmp_path), tmp_path, lambda text: None, executed) == 130
    assert len(executed.calls) == 1


def test_without_a_gpu_the_command_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from convbench.cli import main

    monkeypatch.setattr(
        "convbench.cuda.device.gpu_problem", lambda: "no device: CUDA finds none; nvidia-smi must list it"
    )
    assert main(["gpu", "--out", str(tmp_path / "new")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("convbench: gpu: no device: CUDA finds none")
    assert not (tmp_path / "new").exists()
    assert main(["gpu", "--out", str(tmp_path / "new"), "--dry-run", "--no-ledger"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "convbench check --gpu"
    assert all(line.startswith("convbench ") for line in printed)


def test_processes_are_those_of_convbench(tmp_path: Path) -> None:
    step = Step(("gpu", "--out", str(tmp_path), "--dry-run"), output="steps.txt")
    assert follow([step], tmp_path, lambda text: None) == 0
    assert "convbench check --gpu --ledger" in (tmp_path / "steps.txt").read_text()


# -- the environment ----------------------------------------------------------------------------------------------


class FakeCuda:
    """As much of CuPy as the environment asks, and less: one name is missing, one raises."""

    __version__ = "14.2.0"

    class cuda:  # noqa: N801
        class runtime:  # noqa: N801
            driverGetVersion = staticmethod(lambda: 13020)  # noqa: N815
            runtimeGetVersion = staticmethod(lambda: 13000)  # noqa: N815
            getDeviceProperties = staticmethod(lambda number: {"name": b"NVIDIA H200"})  # noqa: N815

        class cufft:  # noqa: N801
            @staticmethod
            def getVersion() -> int:  # noqa: N802
                raise ImportError("no libcufft.so.12")

        class Device:
            id, pci_bus_id, compute_capability = 0, "0000:1A:00.0", "90"
            mem_info = (1, 2**37)
            attributes = {"MultiProcessorCount": 132, "L2CacheSize": 60 * 2**20}  # noqa: RUF012


def test_what_cuda_does_not_tell_costs_itself() -> None:
    from convbench.bench.environment import cuda_facts

    found = cuda_facts(FakeCuda)
    assert found["device"] == "NVIDIA H200"
    assert (found["compute_capability"], found["multiprocessors"], found["l2_bytes"]) == ("9.0", 132, 60 * 2**20)
    assert (found["driver_cuda"], found["runtime_cuda"], found["cupy"]) == ("13.2", "13.0", "14.2.0")
    assert found["nvrtc"] is found["cufft"] is found["shared_bytes_per_block"] is None


CARD = {
    "name": "NVIDIA H200", "bus_id": "00000000:1A:00.0", "driver": "570.86.15", "compute_capability": "9.0",
    "memory_bytes": 143771 * 2**20, "sm_clock_mhz": 345, "sm_clock_max_mhz": 1980, "sm_clock_application_mhz": None,
    "memory_clock_mhz": 3201, "memory_clock_max_mhz": 3201, "memory_clock_application_mhz": 3201, "power_limit_w": 700,
    "power_limit_default_w": 700, "temperature_c": 41, "persistence": "Disabled", "mig": "Disabled", "ecc": "Enabled",
    "held_back_by": ["its power limit"],
}  # fmt: skip
NONE: dict[str, Any] = {"gpus": [], "cuda": None, "gpu_problem": "no device: CUDA finds none; nvidia-smi must list it"}


def test_the_environment_has_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from convbench.bench.environment import describe

    without = describe(1, [])
    monkeypatch.setattr("convbench.bench.environment.describe_gpus", lambda: [CARD])
    found = describe(1, [])
    warmer = CARD | {"temperature_c": 80, "driver": "580.1", "sm_clock_mhz": 1980}
    monkeypatch.setattr("convbench.bench.environment.describe_gpus", lambda: [warmer])
    again = describe(1, [])
    assert found["gpus"] == [CARD]
    prints = [each["host"]["fingerprint"] for each in (without, found, again)]
    assert prints[0] != prints[1] == prints[2]


def test_the_doctor_describes_the_gpu_or_says_what_is_missing() -> None:
    from convbench.commands.doctor import _SECTIONS

    lines = dict(_SECTIONS["GPU"](NONE))
    assert lines["driver"] == "nvidia-smi lists no GPU"
    assert lines["backends"] == "cannot run: no device: CUDA finds none; nvidia-smi must list it"
    cuda = {"device": "NVIDIA H200", "compute_capability": "9.0", "multiprocessors": 132, "l2_bytes": 60 * 2**20}
    cuda |= {"driver_cuda": "13.2", "runtime_cuda": "13.0", "nvrtc": None, "cupy": "14.2.0"}
    lines = dict(_SECTIONS["GPU"]({"gpus": [CARD], "cuda": cuda, "gpu_problem": None}))
    assert lines["NVIDIA H200"] == (
        "driver 570.86.15, 140.4 GiB, SM clock 345 MHz (at most 1980), memory clock 3201 MHz (at most 3201, for "
        "applications 3201), power limit 700 W, 41 °C, persistence disabled, MIG disabled, held back by its power limit"
    )
    assert lines["used"] == "NVIDIA H200, compute capability 9.0, 132 multiprocessors, L2 60.0 MiB"
    assert lines["CUDA"] == "driver's 13.2, runtime 13.0, NVRTC not known, CuPy 14.2.0"
    assert lines["backends"] == "a kernel has run"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gpu_problem": "not installed: needs CuPy"}, "there is a GPU, and its backends cannot run: not installed"),
        ({}, None),
        ({"persistence": "Disabled"}, "persistence mode of NVIDIA H200 is off"),
        ({"held_back_by": ["its temperature (hardware)"]}, "held back by its temperature (hardware)"),
        ({"mig": "Enabled"}, "NVIDIA H200 is divided (MIG)"),
    ],
)
def test_advice_on_gpus(changes: dict[str, Any], told: str | None) -> None:
    from convbench.bench.advice import _on_gpus

    card = CARD | {"persistence": "Enabled", "held_back_by": []}
    found = {"gpus": [card | changes], "gpu_problem": changes.get("gpu_problem")}
    lines = list(_on_gpus(found))
    assert len(lines) == (told is not None)
    assert (told or "") in " ".join(lines)
    assert list(_on_gpus(NONE)) == []  # a machine without a GPU is none that lacks one
