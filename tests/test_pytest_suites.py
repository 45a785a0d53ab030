"""Suites under pytest-benchmark, each in a pytest of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pytest_benchmark")

ROOT = Path(__file__).parents[1]
SHORT = ("--benchmark-max-time=0.001", "--benchmark-min-rounds=2", "--benchmark-calibration-precision=1")

#: A bench file of a user's own: what suites/bench_suites.py does, with other backends registered.
OWN = """
import time
import numpy as np
import pytest
from convbench import FunctionBackend, oracle, registry
from convbench.pytest_plugin import benchmark_pair, suite_pairs

calls = 0

def right(spec, x, w):
    return oracle.conv(spec, x, w).astype(spec.result_dtype)

def wrong(spec, x, w):
    return right(spec, x, w)[..., ::-1].copy()

def stale(spec, x, w):  # right until it has been verified
    global calls
    calls += 1
    return right(spec, x, w) * (calls < 9)

def broken(spec, x, w):
    raise ValueError("boom")

fakes = {f.__name__: FunctionBackend(name=f.__name__, function=f) for f in (right, wrong, stale, broken)}
registry._plug_ins = lambda: fakes

@pytest.mark.parametrize(("case", "backend"), [p for p in suite_pairs(SUITE) if p.values[1] in fakes])
def test_own(benchmark, case, backend):
    benchmark_pair(benchmark, case, backend)
"""


def run_pytest(*arguments: str) -> tuple[int, str]:
    """Return the exit code and the output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    command = [sys.executable, "-m", "pytest", "-p", "convbench.pytest_plugin", "-p", "no:cacheprovider", "-rfs", "-q"]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, done.stdout + done.stderr


def run_benchmarks(folder: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    """Return the exit code, the output, and pytest-benchmark's report."""
    results = folder / "results.json"
    code, output = run_pytest(f"--benchmark-json={results}", *SHORT, *arguments)
    return code, output, json.loads(results.read_text() or '{"benchmarks": []}')


@pytest.mark.parametrize("option", ["--benchmark", "--benchmark-only"])
def test_a_suite_is_verified_timed_and_grouped(tmp_path: Path, option: str) -> None:
    pattern = "smoke and (i20x20 or rank1) and (im2col or separable) and not (full or numpy)"
    code, output, report = run_benchmarks(tmp_path, option, "suites", "-k", pattern)
    assert code == 0, output
    benchmarks = report["benchmarks"]
    groups = {b["group"] for b in benchmarks}
    assert groups == {"n1 c3 o8 i20x20 k3 s2 p1 bias=channel f32", "n1 c1 o1 i8x8x16 k3 p1 flip f32 w=rank1"}
    assert len(benchmarks) == 3
    assert "SKIPPED [1]" in output  # full-rank weights are not separable
    assert "unsupported: weights: numerical rank" in output
    for b in benchmarks:
        info = b["extra_info"]
        assert (info["status"], info["case"], info["backend"] in b["name"]) == ("ok", b["group"], True)
        assert info["error_max_eps"] <= info["error_bound_eps"]
        assert info["flops_executed"] > 0
        assert info["workspace_measured_bytes"] >= 0
        assert "UNSERIALIZABLE" not in json.dumps(info)


def test_saved_results_say_what_they_ran_on(tmp_path: Path) -> None:
    code, output, report = run_benchmarks(tmp_path, "suites", "-k", "smoke and i10x10 and direct-numpy")
    assert code == 0, output
    about = report["machine_info"]["convbench"]
    assert about["libraries"]["numpy"]
    assert about["host"]["fingerprint"]


def test_wrong_results_fail_and_leave_no_time(tmp_path: Path) -> None:
    suite = tmp_path / "own.txt"
    suite.write_text("i12x12 k3 psame f32\n")
    bench = tmp_path / "bench_own.py"
    bench.write_text(OWN.replace("SUITE", repr(str(suite))))
    code, output, report = run_benchmarks(tmp_path, "--benchmark", str(bench), "-c", str(ROOT / "pyproject.toml"))
    assert code == 1, output
    assert [b["extra_info"]["backend"] for b in report["benchmarks"]] == ["right"]
    assert "wrong: n1 c1 o1 i12x12 k3 psame f32: wrong:" in output
    assert "stale: n1 c1 o1 i12x12 k3 psame f32: a timed output is wrong:" in output
    assert "broken: n1 c1 o1 i12x12 k3 psame f32: failed: ValueError: boom" in output
    assert "Traceback" not in output


def test_without_pytest_benchmark_the_option_says_what_to_install() -> None:
    code, output = run_pytest("-p", "no:benchmark", "-W", "ignore", "--benchmark", "suites")
    assert code == 4
    assert "--benchmark needs pytest-benchmark: pip install pytest-benchmark" in output
    assert "Traceback" not in output
