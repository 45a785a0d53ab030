"""Every pair of every suite; for a part of it: ``pytest --benchmark suites -k "smoke and fft"``."""

from __future__ import annotations

import pytest

from convbench.bench import Case
from convbench.pytest_plugin import benchmark_pair, suite_pairs


@pytest.mark.benchmark(disable_gc=True)
@pytest.mark.parametrize(("case", "backend"), suite_pairs())
def test_suite(benchmark, case: Case, backend: str) -> None:  # type: ignore[no-untyped-def]
    benchmark_pair(benchmark, case, backend)
