"""What all tests share: Hypothesis draws the same examples in every run and has no deadline."""

from __future__ import annotations

import os
import re
from typing import Any

from hypothesis import HealthCheck, settings

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=100)
settings.register_profile(
    "thorough", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("CONVBENCH_HYPOTHESIS", "repeatable"))


#: Tests of the GPU's code that need no GPU: kernels compiled and run on the CPU, array code, timing on a fake device.
_OF_THE_GPU = re.compile(r"tests/test_(cuda_\w+|gpu_bench)\.py::")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what the tests of the GPU's code came to, which need none, by all workers together."""
    _say_what_ran_on_the_cpu(terminalreporter)
    every = [report for reports in terminalreporter.stats.values() for report in reports]
    found = [each for each in every if _OF_THE_GPU.match(getattr(each, "nodeid", ""))]
    if found:
        calls = sum(getattr(each, "when", "") == "call" for each in found)
        spent_s = sum(getattr(each, "duration", 0.0) for each in found)
        terminalreporter.write_line(f"GPU's code without a GPU: {calls} tests, {spent_s:.0f} s of all workers together")


def _say_what_ran_on_the_cpu(terminalreporter: Any) -> None:
    """Say how many kernels were run on the CPU, in how many cases (test_cuda_battery.py)."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, ())]
    found = [value for r in reports for name, value in r.user_properties if name == "kernels run on the CPU"]
    if not found:
        return
    instances = {instance for _, _, ran in found for instance in ran}
    kernels = {instance.partition("<")[0] for instance in instances}
    cases, launches = (sum(entry[i] for entry in found) for i in (0, 1))
    terminalreporter.write_line(
        f"CUDA sources run on the CPU: {len(kernels)} kernels, {len(instances)} instances, {cases} cases passed, "
        f"{launches} launches"
    )
