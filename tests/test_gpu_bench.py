"""Backends of a GPU in the harness, on a device that is simulated (fake_gpu): its arrays refuse to be NumPy's."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu, GpuArray, fake_backend, fake_namespace

from convbench import ConvSpec, FunctionBackend, oracle
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
    monkeypatch.setattr("convbench.bench.service.measure_limits", lambda threads: LIMITS)


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
    moved = 4 * (2 * 12 * 12 + 3 * 2 * 9 + 3 + 3 * 12 * 12)
    assert len(records) == 2
    for record in records:
        assert (record.status, record.reason, record.device, record.mode) == ("ok", "", "cuda", "hot")
        assert record.samples_s == pytest.approx([KERNEL_S] * len(record.samples_s), rel=0.02)
        assert record.transfer_s == pytest.approx(moved / gpu.bytes_per_s, rel=0.1)
        assert record.launch_s == pytest.approx(launch_s, rel=0.1)
        assert record.sm_clock_mhz == 1980
        assert record.caveats == [TRANSFERS_APART]
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
    assert shown == {"fake-gpu": ("cuda", "ok (!)"), "fake-cpu": ("cpu", "ok")}
    assert f"fake-gpu (!): {TRANSFERS_APART}" in overview(table).notes
    assert any("no limits of a GPU are known" in note for note in overview(table).notes)


def test_a_table_of_one_device_has_no_column_for_it(tmp_path: Path) -> None:
    from convbench.report.tables import comparison, figures

    run(tmp_path, host_backend())
    assert "device" not in [column.title for column in comparison(figures(load_results(tmp_path), None)).columns]


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
        assert TRANSFERS_INCLUDED in after["caveats"]
        assert TRANSFERS_APART not in after["caveats"]
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
            folder = Path(arguments[arguments.index("--out") + 1])
            (folder / f"20261122T00000{len(self.calls) % 10}Z-{arguments[1]}").mkdir(parents=True, exist_ok=True)
        return self.codes.get(arguments[0], 0), "printed\n" * kept


def own_and_rivals() -> dict[str, Any]:
    gpu = FakeGpu()
    kinds = {"direct-cupy": "own", "im2col-tf32-cupy": "own", "torch-cuda": "rival", "torch-cuda-tf32": "rival"}
    backends = {name: fake_backend(gpu, name, kind=kind) for name, kind in kinds.items()}
    return backends | {"direct": replace(host_backend(), name="direct")}


def test_steps_are_the_battery_then_suites_with_rivals_then_crossovers(tmp_path: Path) -> None:
    steps = [str(step) for step in steps_for(own_and_rivals(), tmp_path)]
    assert steps[0] == "convbench check --gpu --ledger"
    for suite in ("cnn-layers", "cnn-batch16", "cnn-batch128", "large-kernel", "audio-1d", "volume-3d"):
        (line,) = [step for step in steps if step.startswith(f"convbench run {suite} ") and "--mode hot" in step]
        assert "--backends direct-cupy,im2col-tf32-cupy,torch-cuda,torch-cuda-tf32 " in line
        assert "--baseline torch-cuda " in line
        following = steps[steps.index(line) + 1 :][:2]
        assert following == [
            f"convbench rivals --own {own} --against {rival} --format markdown {tmp_path}/hot/*Z-{suite}"
            for own, rival in (
                ("direct-cupy", "torch-cuda" if suite in CNN else "'torch-cuda,cupyx-*'"),
                ("im2col-tf32-cupy", "torch-cuda-tf32"),
            )
        ]
    crossovers = [step for step in steps if "crossover" in step]
    assert len(crossovers) == 2 * sum("--transfers" in step for step in crossovers) == 6
    assert all("crossover direct direct-cupy --spec" in step for step in crossovers)


CNN = ("cnn-layers", "cnn-batch16", "cnn-batch128", "large-kernel")


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
            assert any(kept(case) for case in load_suite(suite).cases)


def test_a_failure_does_not_keep_later_steps_and_what_is_done_is_not_repeated(tmp_path: Path) -> None:
    steps, told = steps_for(own_and_rivals(), tmp_path), list[str]()
    first = Executed({"check": 1, "crossover": 2})
    assert follow(steps, tmp_path, told.append, first) == 1
    assert len(first.calls) == len(steps)
    rivals = next(call for call in first.calls if call[0] == "rivals")
    assert Path(rivals[-1]).is_dir()
    assert (tmp_path / "rivals-cnn-layers-hot.md").read_text() == "printed\n"
    assert "exit code 1: convbench check --gpu --ledger" in told
    second = Executed({})
    assert follow(steps, tmp_path, told.append, second) == 1  # the battery has failed, and that stands
    assert {call[0] for call in second.calls} == {"crossover"}


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
