"""The doctor: what it reads from hand-made files, what it makes of hand-made clocks, and what it prints."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from convbench.bench import doctor, host
from convbench.bench.advice import advise
from convbench.bench.host import Activity, activity, memory_limit_bytes, physical_cores, quota_cores, turbo
from convbench.cli import main

# -- what the system says ---------------------------------------------------------------------------


def _write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_the_tightest_quota_of_the_group_and_those_above_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/slice/job\n",
        "sys/fs/cgroup/slice/job/cpu.max": "max 100000\n",
        "sys/fs/cgroup/slice/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/cpu.max": "400000 100000\n",
    }
    assert quota_cores(_write(tmp_path, files)) == 1.5


def test_quotas_of_version_1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/job\n3:cpu,cpuacct:/job\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "250000\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{2**30}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    _write(tmp_path, files)
    assert quota_cores(tmp_path) == 2.5
    assert memory_limit_bytes(tmp_path) == 2**30


def test_memory_of_version_2(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/memory.max": "max\n"}
    assert memory_limit_bytes(_write(tmp_path, files)) is None
    _write(tmp_path, {"sys/fs/cgroup/job/memory.max": "4096\n"})
    assert memory_limit_bytes(tmp_path) == 4096


def test_no_control_groups_no_limits(tmp_path: Path) -> None:
    assert quota_cores(tmp_path) is memory_limit_bytes(tmp_path) is turbo(tmp_path) is None


def test_hyperthreads_share_a_core(tmp_path: Path) -> None:
    folder = "sys/devices/system/cpu"
    shared = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
    _write(tmp_path, {f"{folder}/cpu{cpu}/topology/thread_siblings_list": text for cpu, text in shared.items()})
    assert physical_cores([0, 1, 2, 3], tmp_path) == 2
    assert physical_cores([0, 1], tmp_path) == 2
    assert physical_cores([0, 2], tmp_path) == 1
    assert physical_cores([0, 9], tmp_path) is None


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("intel_pstate/no_turbo", "0", True),
        ("intel_pstate/no_turbo", "1", False),
        ("cpufreq/boost", "1", True),
        ("cpufreq/boost", "0", False),
    ],
)
def test_turbo(name: str, text: str, expected: bool, tmp_path: Path) -> None:
    assert turbo(_write(tmp_path, {f"sys/devices/system/cpu/{name}": text})) is expected


def test_what_others_do_is_what_is_busy_without_this_process() -> None:
    before = Activity(wall_s=10.0, cpus=2, busy_s=100.0, steal_s=5.0, own_s=7.0, switches=100)
    after = Activity(wall_s=12.0, cpus=2, busy_s=103.0, steal_s=5.4, own_s=9.0, switches=130)
    found = activity(before, after)
    assert found == pytest.approx({"others_cores": 0.5, "steal_share": 0.1, "involuntary_switches_per_s": 15.0})
    assert activity(None, after) is activity(before, None) is None


# -- clocks -----------------------------------------------------------------------------------------


class _Clock:
    """Goes on by the next of some durations at each piece of work."""

    def __init__(self, durations: Iterator[float]) -> None:
        self.now, self._durations = 0.0, durations

    def __call__(self) -> float:
        return self.now

    def work(self) -> None:
        self.now += next(self._durations)


def test_a_steady_clock() -> None:
    clock = _Clock(iter([1.0] * 101))
    found = doctor.clock_stability(99.5, clock.work, clock)
    assert found == {"samples": 100, "median_s": 1.0, "spread": 0.0, "drift": 0.0, "disturbed_share": 0.0}


def test_a_disturbed_clock_that_slows_down() -> None:
    durations = [1.0, *[1.0] * 60, *[1.05] * 30, *[2.0] * 10]
    clock = _Clock(iter(durations))
    found = doctor.clock_stability(sum(durations) - 1.5, clock.work, clock)
    assert found["samples"] == 100
    assert found["disturbed_share"] == pytest.approx(0.1)
    assert found["drift"] == pytest.approx(0.525)  # (1.05 + 2.0) / 2 over 1.0
    assert found["spread"] == pytest.approx(0.05)


def test_the_least_step_of_a_clock() -> None:
    ticks = iter([0.0, 0.0, 3e-7, 3e-7, 4e-7])
    assert doctor._timer(lambda: next(ticks), 5) == pytest.approx({"step_s": 1e-7, "call_s": 1e-7})


# -- what it measures -------------------------------------------------------------------------------


def test_no_peak_is_invented() -> None:
    assert doctor.peak_flop_per_s(["avx512f"], 2, None) is None
    assert doctor.peak_flop_per_s(["avx512f"], None, 3000.0) is None
    assert doctor.peak_flop_per_s(["sse4_2"], 2, 3000.0) is None
    peak = doctor.peak_flop_per_s(["avx2", "fma", "avx512f"], 2, 3000.0)
    assert peak is not None
    assert peak["float32"] == 2 * 3e9 * 16 * 2 * 2
    assert peak["float64"] == peak["float32"] / 2


def test_noise_compares_a_backend_with_itself() -> None:
    found = doctor.noise("n1 c2 o2 i8x8 k3 psame f32", 1, 0.001, rounds=4)
    assert found["backend"] == "im2col"
    assert found["low"] < found["ratio"] < found["high"]
    assert found["noise"] >= max(found["high"] - 1, 1 - found["low"]) - 1e-12
    assert found["verdict"] in ("tie", "faster", "slower")


def test_equal_medians_are_a_tie_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_median_s", lambda call, seconds: 0.001)
    found = doctor.noise("n1 c1 o1 i8x8 k3 f32", 1, 0.001)
    assert (found["ratio"], found["noise"], found["verdict"]) == (1.0, 0.0, "tie")


@pytest.mark.parametrize("threads", [1, 3])
def test_own_threads_come_together(threads: int) -> None:
    assert doctor._threads_at_once(threads) == threads


def test_a_pool_that_does_not_obey_is_found() -> None:
    class Stubborn:
        def get_num_threads(self) -> int:
            return 8

        def set_num_threads(self, threads: int) -> None: ...

    from convbench.threads import Pool, _pools

    pool = Pool(lambda: (Stubborn(),))
    _pools.remove(pool)
    assert doctor._obeys(doctor._sizes_of(pool, [1, 8])) == {"sizes": {"1": 8, "8": 8}, "obeys": False}


def test_settings_that_matter_are_listed() -> None:
    found = doctor._variables({"OMP_NUM_THREADS": "3", "HOME": "/", "ONEDNN_DEFAULT_FPMATH_MODE": "BF16"})
    assert [entry["name"] for entry in found] == ["OMP_NUM_THREADS", "ONEDNN_DEFAULT_FPMATH_MODE"]
    assert [entry["changes"] for entry in found] == ["the number of threads", "precision or subnormal numbers"]


# -- advice -----------------------------------------------------------------------------------------

HEALTHY: dict[str, Any] = {
    "threads": 4,
    "machine": {
        "usable_cores": 4,
        "usable_physical_cores": 4,
        "quota_cores": None,
        "memory_available_bytes": 2**34,
        "memory_limit_bytes": None,
        "swap_used_bytes": 0,
    },
    "clock": {
        "governor": "performance",
        "turbo": False,
        "stability": {"spread": 0.01, "drift": 0.0, "disturbed_share": 0.01},
        "meanwhile": {"others_cores": 0.02, "steal_share": 0.0, "involuntary_switches_per_s": 1.0},
    },
    "pools": [{"name": "blas", "obeys": True, "sizes": {"1": 1, "4": 4}}],
    "settings": {"flushes_subnormals": False, "environment": []},
    "limits": {
        "gemm_cores_used": {"float32": 3.9, "float64": 3.9},
        "gemm_flop_per_s": {"float32": 200e9, "float64": 100e9},
        "gemm_median_flop_per_s": {"float32": 190e9, "float64": 95e9},
    },
    "noise": [{"noise": 0.01}, {"noise": None}],
    "missing": [],
}


def _with(path: str, value: object) -> dict[str, Any]:
    found = deepcopy(HEALTHY)
    *folders, last = path.split(".")
    place = found
    for folder in folders:
        place = place[folder]
    place[last] = value
    return found


def test_a_machine_that_is_fit_gets_no_advice() -> None:
    assert advise(HEALTHY) == []


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("clock.meanwhile.others_cores", 0.9, "other processes keep 0.9 cores busy"),
        ("clock.meanwhile.steal_share", 0.03, "the hypervisor takes 3%"),
        ("machine.quota_cores", 1.5, "use --threads 1"),
        ("machine.usable_cores", 2, "4 threads share 2 usable cores"),
        ("machine.usable_physical_cores", 2, "hyperthreads"),
        ("clock.governor", "powersave", "governor is powersave"),
        ("clock.turbo", True, "turbo is on"),
        ("clock.stability.spread", 0.2, "spreads by 20%"),
        ("clock.stability.disturbed_share", 0.3, "30% of its samples"),
        ("clock.stability.drift", -0.1, "drifted by -10%"),
        ("pools", [{"name": "omp", "obeys": False, "sizes": {"1": 8}}], "omp does not obey (8 where 1 were asked for)"),
        ("limits.gemm_cores_used", {"float32": 1.0}, "BLAS kept 1.0 cores busy"),
        ("machine.memory_available_bytes", 2**30, "1.0 GiB of memory"),
        ("machine.memory_limit_bytes", 2**31, "2.0 GiB of memory"),
        ("machine.swap_used_bytes", 2**20, "1.0 MiB of swap"),
        ("settings.flushes_subnormals", True, "subnormal numbers are taken for zero"),
        (
            "settings.environment",
            [{"name": "OPENBLAS_CORETYPE", "changes": "the instructions that are used"}],
            "OPENBLAS_CORETYPE is set",
        ),
        ("limits.gemm_median_flop_per_s", {"float32": 20e9, "float64": 95e9}, "usually ran at 10%"),
        ("noise", [{"noise": 0.3}], "up to 30% apart"),
        ("missing", [{"library": "x", "costs": "all of it", "install": "pip install x"}], "pip install x"),
    ],
)
def test_advice_is_one_line_where_it_applies(path: str, value: object, told: str) -> None:
    (line,) = advise(_with(path, value))
    assert told in line
    assert "\n" not in line


def test_what_is_not_known_gives_no_advice() -> None:
    found = _with("clock.meanwhile", None)
    found["machine"] |= {"usable_physical_cores": None, "memory_available_bytes": None, "swap_used_bytes": None}
    found["clock"] |= {"governor": None, "turbo": None}
    assert advise(found) == []


# -- the command ------------------------------------------------------------------------------------


def _doctor(*arguments: str, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    program = (
        f"import sys\nfor name in {without!r}: sys.modules[name] = None\n"
        "from convbench.cli import main\n"
        "sys.exit(main(['doctor', '--threads', '1', '--seconds', '0.05', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_json_is_one_object_with_all_sections() -> None:
    done = _doctor("--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(doctor.SECTIONS) < found.keys()
    assert found["threads"] == 1
    assert "im2col" in found["backends"]["usable"]
    assert found["limits"]["gemm_flop_per_s"]["float32"] > 0
    assert found["limits"]["fma_flop_per_s"]["float32"] > 0
    assert found["kernels"]["target"] in found["kernels"]["targets"]
    assert all(pool["obeys"] for pool in found["pools"] if pool["name"] == "convbench")
    assert len(found["noise"]) == 2


def test_the_kernel_generator_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from convbench.commands.doctor import _SECTIONS

    monkeypatch.setenv("CONVBENCH_CACHE", str(tmp_path))
    monkeypatch.delenv("CONVBENCH_JIT_TARGET", raising=False)
    (tmp_path / "jit").mkdir(mode=0o700)
    (tmp_path / "jit" / "x.o").write_bytes(b"1234")
    lines = dict(_SECTIONS["Kernel generator"]({"kernels": doctor._kernels()}))
    assert lines["target"].startswith(("avx512 (", "avx2 (", "neon (", "generic ("))
    assert lines["cache"] == f"1 kernels, 4 B, in {tmp_path / 'jit'}"
    monkeypatch.setenv("CONVBENCH_JIT_TARGET", "generic")
    assert dict(_SECTIONS["Kernel generator"]({"kernels": doctor._kernels()}))["target"].startswith("generic (")


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_a_cache_that_is_not_used_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from convbench.commands.doctor import _SECTIONS

    monkeypatch.setenv("CONVBENCH_CACHE", str(tmp_path))
    (tmp_path / "jit").mkdir()
    (tmp_path / "jit").chmod(0o777)
    lines = dict(_SECTIONS["Kernel generator"]({"kernels": doctor._kernels()}))
    assert "NOT USED, it belongs to another user, or others may write it (chmod go-w)" in lines["cache"]


def test_libraries_that_are_missing_are_named() -> None:
    done = _doctor(without=("threadpoolctl", "scipy", "torch", "cv2", "numba", "jax", "llvmlite"))
    assert done.returncode == 0, done.stderr
    assert "pip install threadpoolctl" in done.stdout
    assert "pip install scipy" in done.stdout
    assert "pip install llvmlite" in done.stdout
    assert not any(line.startswith(("FMA", "target")) for line in done.stdout.splitlines())
    assert "not installed: needs torch" in done.stdout
    assert "its interval needs SciPy" in done.stdout
    titles = ("Machine", "Clock", "Libraries", "Thread pools", "Settings", "Backends", "Limits", "Noise", "Advice")
    lines = done.stdout.splitlines()
    assert all(any(line.startswith(title) for line in lines) for title in titles)
    assert done.stderr == ""


def test_without_psutil_the_rest_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in (host, doctor):
        monkeypatch.setattr(module, "library", lambda name: None if name == "psutil" else importlib.import_module(name))
    assert main(["doctor", "--threads", "1", "--seconds", "0.05"]) == 0
    printed = capsys.readouterr().out
    assert "pip install psutil" in printed
    assert "meanwhile  not known" in printed


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("--threads", "0"), "whole number"), (("--threads", "9999"), "256"), (("--seconds", "-1"), "positive")],
)
def test_bad_input_is_refused(arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    assert told in capsys.readouterr().err
