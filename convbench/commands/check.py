"""``convbench check``: backends against the battery."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from convbench.bench.families import Convolution
from convbench.commands.parameters import (
    BACKEND,
    EXIT_CODES,
    Count,
    chosen_backends,
    pooling_family,
)
from convbench.errors import one_line
from convbench.report.screen import Screen
from convbench.report.text import Column, Grid, Row, human_seconds

if TYPE_CHECKING:
    from convbench.backend import Backend

__all__ = ["check"]


@click.command(epilog=EXIT_CODES)
@click.argument("backends", nargs=-1, type=BACKEND, metavar="[BACKEND]...")
@click.option("--specs", type=Count(), default=60, show_default=True, metavar="N", help="Random specs.")
@click.option("--seed", type=Count(0), default=0, show_default=True, metavar="N", help="Of their choice.")
@click.option("-j", "--jobs", type=Count(), default=1, show_default=True, metavar="N", help="Backends at a time.")
@click.option("--pooling", is_flag=True, help="Backends of pooling, by their own battery.")
def check(backends: tuple[str, ...], specs: int, seed: int, jobs: int, pooling: bool) -> int:
    """Put backends through all correctness checks.

    BACKEND is a name or a glob; without any, all are checked. A refusal is a backend's right; a failure is not.
    """
    family = pooling_family() if pooling else Convolution()
    names = chosen_backends(",".join(backends) if backends else None, family)
    screen = Screen()
    grid = Grid(
        [
            Column("backend", right=False, least=max(map(len, names))),
            Column("passed", least=7),
            Column("failed", least=6),
            Column("refused", least=7),
            Column("time", least=8),
            Column("specs taken", least=len("2,086 of 2,086")),
            Column("specs refused, by reason", right=False, drop=1),
        ]
    )
    screen.say(f"(check, spec) pairs; {specs} random specs, seed {seed}", "dim")
    screen.header(grid)
    present = {name: _own_word(family.get_backend(name)) for name in names}
    runs = _checked([name for name in names if present[name] is None], specs, seed, pooling, jobs)
    failed = 0
    for name in names:
        if present[name] is not None:
            screen.row(grid, Row((name,), sentence=f"unavailable: {present[name]}", style="dim"))
            continue
        with screen.busy(f"checking {name}"):
            results, elapsed_s = next(runs)
        failed += _show_checked(screen, grid, name, results, elapsed_s)
    return int(failed > 0)


def _checked(
    names: Sequence[str], specs: int, seed: int, pooling: bool, jobs: int
) -> Iterator[tuple[Sequence[Any], float]]:
    """Check backends, in processes of their own if there are several jobs; results and times come in order."""
    if min(jobs, len(names)) <= 1:
        yield from (_check_one(name, specs, seed, pooling) for name in names)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(min(jobs, len(names)), get_context("spawn")) as pool:
        yield from (run.result() for run in [pool.submit(_check_alone, name, specs, seed, pooling) for name in names])


def _check_alone(name: str, specs: int, seed: int, pooling: bool) -> tuple[Sequence[Any], float]:
    """Check a backend in one process of several, where the oracle's products do with one thread."""
    from convbench.threads import blas_threads

    with blas_threads(1):
        return _check_one(name, specs, seed, pooling)


def _check_one(name: str, specs: int, seed: int, pooling: bool) -> tuple[Sequence[Any], float]:
    """Put a backend through the battery; return the results and how long it took."""
    from time import perf_counter

    family, began = pooling_family() if pooling else Convolution(), perf_counter()
    return family.check(name, specs=specs, seed=seed), perf_counter() - began


def _show_checked(
    screen: Screen, grid: Grid, name: str, results: Sequence[Any], elapsed_s: float, shown: int = 5
) -> bool:
    """Print a backend's row and its first failures; return whether there are any."""
    from collections import Counter

    counts = Counter(result.status for result in results)
    failures = [result for result in results if result.status == "failed"]
    figures = (f"{counts[status]:,}" for status in ("passed", "failed", "refused"))
    cells = (name, *figures, human_seconds(elapsed_s), *_specs_taken(results))
    screen.row(grid, Row(cells, style="red" if failures else ""))
    for failure in failures[:shown]:
        screen.say(f"  {failure.check}: {failure.message}", "red")
    if len(failures) > shown:
        screen.say(f"  … and {len(failures) - shown} more failures", "red")
    return bool(failures)


def _specs_taken(results: Sequence[Any]) -> tuple[str, str]:
    """Return how many specs a backend took, and how many it refused for which reason, the most frequent first."""
    from collections import Counter

    from convbench.checks import REFUSAL

    asked = {str(result.spec) for result in results if result.spec is not None}
    refusals = [result for result in results if result.check == REFUSAL]
    topics = Counter(result.message.partition(": ")[0] for result in refusals if result.status == "refused")
    reasons = ", ".join(f"{topic} {count:,}" for topic, count in topics.most_common())
    return f"{len(asked) - len(refusals):,} of {len(asked):,}", reasons


def _own_word(backend: Backend) -> str | None:
    """What is missing. One that cannot say is put through the battery, which names the rule."""
    try:
        missing = backend.unavailable()
    except (Exception, SystemExit):
        return None
    return one_line(missing) if isinstance(missing, str) else None
