"""pytest: the option ``--benchmark``, and suites as benchmarks of pytest-benchmark.

``pytest --benchmark suites`` is ``pytest --benchmark-only suites``. A benchmark is one (case, backend) pair; it passes
through the verification of ``convbench run`` before pytest-benchmark's clock sees it. Your own are as short as
``suites/bench_suites.py``: parametrise over :func:`suite_pairs` and call :func:`benchmark_pair`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from convbench.backend import Backend
    from convbench.bench.cases import Case
    from convbench.bench.predict import Known
    from convbench.bench.record import Record
    from convbench.bench.worker import Evidence, Limits

__all__ = ["benchmark_pair", "suite_pairs"]

#: pytest-benchmark makes 7 calls at least; one that takes longer is made up to 3 times, as the time limit allows.
_PEDANTIC_CALL_S = 0.2
_KNOWN: defaultdict[str, list[Known]] = defaultdict(list)
_GPU_ENOUGH, _GPU_MOST = 20, 100  # samples


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--benchmark``."""
    parser.getgroup("convbench").addoption(
        "--benchmark", action="store_true", dest="convbench_benchmark", help="the same as --benchmark-only"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Hand ``--benchmark`` on before pytest-benchmark reads its options."""
    if config.getoption("convbench_benchmark"):
        if not hasattr(config.option, "benchmark_only"):
            raise pytest.UsageError("--benchmark needs pytest-benchmark: pip install pytest-benchmark")
        config.option.benchmark_only = True


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Add what ``environment.json`` holds to saved results."""
    from convbench.bench.environment import describe, thread_pools
    from convbench.threads import resolve

    threads = resolve(None)
    with thread_pools(threads) as problems:
        machine_info["convbench"] = describe(threads, problems)


def suite_pairs(*suites: str) -> list[Any]:
    """Return parameters ``case, backend`` for all pairs of the suites, of all built-in ones without arguments.

    As in ``convbench run``, ``reference`` is left out where it refuses.
    """
    from convbench.bench.cases import list_suites, load_suite

    return [
        pytest.param(case, name, id=f"{suite}-{case}-{name}")
        for suite in suites or list_suites()
        for case in load_suite(suite).cases
        for name in case.family.backend_names()
        if name != "reference" or case.family.get_backend(name).why_not(case.spec) is None
    ]


def benchmark_pair(benchmark: Any, case: Case, backend: str) -> None:
    """Verify one pair, time it with pytest-benchmark's clock, and judge the last timed output.

    Refusals skip the test with their reason. A wrong result fails it before any timing; a wrong timed output fails it
    and keeps its times out of the report. The record's fields go to ``benchmark.extra_info``; benchmarks of one case
    form a group.

    On a GPU that clock would time launches: calls are timed by CUDA events first, as in ``convbench run``, and
    pytest-benchmark is shown a clock that goes on by what was measured. Rounds, warm-up and calibration are then not as
    its options say; sampling may take ``--benchmark-max-time``, and with ``--benchmark-disable`` takes one sample.

    Parameters
    ----------
    benchmark : fixture
        pytest-benchmark's.
    case : Case
    backend : str
        A registered name.
    """
    from convbench.backend import second_operand
    from convbench.bench.environment import thread_pools
    from convbench.bench.places import HOST, place_of
    from convbench.bench.record import STATUSES
    from convbench.bench.run import Options
    from convbench.bench.worker import Limits, judge_again, known_of, verify
    from convbench.threads import resolve

    options, chosen, evidence = Options(), case.family.get_backend(backend), _evidence(case)
    limits = Limits(options.time_limit_s, options.memory_limit_bytes)
    threads = resolve(options.threads)
    with thread_pools(threads):
        record = verify(evidence, chosen, "pytest", threads=threads, limits=limits, known=_KNOWN[backend])
        if known := known_of(record):
            _KNOWN[backend].append(known)
        if STATUSES[record.status]:
            pytest.fail(f"{backend}: {case}: {record.status}: {record.reason}", pytrace=False)
        if record.status != "ok":
            pytest.skip(f"{record.status}: {record.reason}")
        benchmark.group = record.case
        if place_of(chosen) is not HOST:
            record = _replayed(benchmark, record, evidence, chosen, limits)
            _fail_if_wrong(benchmark, record)
            return
        benchmark.extra_info.update(record.to_dict())
        data = evidence.data.copy()
        plan = chosen.plan(case.spec, threads=threads)
        operands = (data.first, second_operand(plan, data.second), data.bias)
        call_s = record.call_s or 0.0
        if call_s > _PEDANTIC_CALL_S:
            rounds = max(1, min(3, int(limits.time_s / call_s) - 1))
            y = benchmark.pedantic(plan, args=operands, rounds=rounds, iterations=1)
        else:
            plan(*operands)  # pytest-benchmark sizes the whole benchmark by the first call it sees
            y = benchmark(plan, *operands)
        judge_again(record, chosen, y, evidence)
    _fail_if_wrong(benchmark, record)


def _fail_if_wrong(benchmark: Any, record: Record) -> None:
    if record.status != "ok":
        benchmark.has_error = True
        told = f"{record.backend}: {record.case}: a timed output is {record.status}: {record.reason}"
        pytest.fail(told, pytrace=False)


def _replayed(benchmark: Any, verified: Record, evidence: Evidence, backend: Backend, limits: Limits) -> Record:
    """Time a pair by events, and let pytest-benchmark see the times."""
    from convbench.bench.worker import LEAST_SAMPLES, Effort, sample

    effort = Effort(benchmark._max_time, least=LEAST_SAMPLES, enough=_GPU_ENOUGH, most=_GPU_MOST)
    if benchmark.disabled:
        effort = Effort(0.0, least=1, enough=1, most=1)
    record = sample(verified, evidence, backend, number=1, effort=effort, limits=limits)
    benchmark.extra_info.update(record.to_dict())
    if record.samples_s:
        clock = ReplayClock()
        benchmark._timer = clock  # what @pytest.mark.benchmark(timer=clock) sets, of which only one mark counts
        benchmark.pedantic(clock.steps(record.samples_s), rounds=len(record.samples_s), iterations=1)
    return record


class ReplayClock:
    """Stands still but for what it is told to go on by."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def __call__(self) -> float:
        """Return seconds."""
        return self._now_s

    def steps(self, durations_s: Iterable[float]) -> Callable[[], None]:
        """Return a function that moves the clock on by the next duration whenever it is called."""
        left = iter(durations_s)

        def step() -> None:
            self._now_s += next(left, 0.0)

        return step


@lru_cache(maxsize=1)
def _evidence(case: Case) -> Evidence:
    """The last case's data and truth: the pairs of a case follow each other."""
    from convbench.bench.worker import Evidence

    return Evidence(case)
