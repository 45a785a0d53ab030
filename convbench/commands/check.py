"""``convbench check``: backends against the battery."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from convbench.bench.families import Convolution, Family
from convbench.commands.parameters import (
    BACKEND,
    EXIT_CODES,
    FOLDER,
    Count,
    chosen_backends,
    pooling_family,
)
from convbench.cuda.kernel import Kernel
from convbench.cuda.launch import launched_kernels
from convbench.cuda.ledger import LEAST_SPECS, LEDGER, record, standing, writable
from convbench.cuda.variants import check_variants
from convbench.errors import BackendUnavailable, SpecError, UnknownBackend, one_line
from convbench.report.screen import Screen
from convbench.report.text import Column, Grid, Row, human_seconds

if TYPE_CHECKING:
    from convbench.backend import Backend

__all__ = ["check"]


class Checked(NamedTuple):
    """What came of one backend.

    Attributes
    ----------
    results : sequence of CheckResult
    elapsed_s : float
    launched : frozenset of Kernel
        Of its own kernels, those that ran.
    """

    results: Sequence[Any]
    elapsed_s: float
    launched: frozenset[Kernel] = frozenset()


@click.command(epilog=EXIT_CODES)
@click.argument("backends", nargs=-1, type=BACKEND, metavar="[BACKEND]...")
@click.option("--specs", type=Count(), default=60, show_default=True, metavar="N", help="Random specs.")
@click.option("--seed", type=Count(0), default=0, show_default=True, metavar="N", help="Of their choice.")
@click.option("-j", "--jobs", type=Count(), default=1, show_default=True, metavar="N", help="Backends at a time.")
@click.option("--pooling", is_flag=True, help="Backends of pooling, by their own battery.")
@click.option("--gpu", is_flag=True, help="Only those of the GPU.")
@click.option("--ledger", is_flag=True, help="With --gpu: enter those that pass into the ledger of what has run where.")
@click.option("--ledger-file", type=FOLDER, metavar="FILE", help="The ledger, where convbench's own cannot be written.")
def check(
    backends: tuple[str, ...],
    specs: int,
    seed: int,
    jobs: int,
    pooling: bool,
    gpu: bool,
    ledger: bool,
    ledger_file: Path | None,
) -> int:
    """Put backends through all correctness checks.

    BACKEND is a name or a glob; without any, all are checked. A refusal is a backend's right; a failure is not.
    """
    family = pooling_family() if pooling else Convolution()
    names = chosen_backends(",".join(backends) if backends else None, family)
    if gpu:
        names = _of_the_gpu(names, family)
    target = _ledger(ledger, ledger_file, gpu, pooling, specs)
    screen = Screen()
    grid = _grid(names)
    present = {name: _own_word(family.get_backend(name)) for name in names}
    if target is not None:
        _require_any(present)
    screen.say(f"(check, spec) pairs; {specs} random specs, seed {seed}", "dim")
    screen.header(grid)
    runs = _checked([name for name in names if present[name] is None], specs, seed, pooling, jobs)
    failed = 0
    for name in names:
        if present[name] is not None:
            screen.row(grid, Row((name,), sentence=f"unavailable: {present[name]}", style="dim"))
        else:
            with screen.busy(f"checking {name}"):
                checked = next(runs)
            failed += _show_checked(screen, grid, name, checked.results, checked.elapsed_s)
            if target is not None:
                _enter(screen, name, checked, specs, seed, target)
        stands = None if pooling else standing(family.get_backend(name), target or LEDGER)
        if stands is not None:
            screen.say(f"  {stands}", "dim")
    return int(failed > 0)


def _grid(names: Sequence[str]) -> Grid:
    return Grid(
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


def _of_the_gpu(names: Sequence[str], family: Family) -> list[str]:
    chosen = [name for name in names if family.get_backend(name).device == "cuda"]
    if not chosen:
        raise UnknownBackend(f"--gpu: no backend of the GPU among {', '.join(names)}")
    return chosen


def _ledger(asked: bool, file: Path | None, gpu: bool, pooling: bool, specs: int) -> Path | None:
    """Return the ledger that is to be written in the end, if any, or say at once why that will not do."""
    if not asked:
        if file is not None:
            raise click.UsageError("--ledger-file goes with --ledger.")
        return None
    if pooling or not gpu:
        raise click.UsageError("--ledger goes with --gpu, and not with --pooling.")
    if specs < LEAST_SPECS:
        raise SpecError("--specs", specs, f"must be ≥ {LEAST_SPECS} with --ledger, which needs the whole battery")
    path = LEDGER if file is None else file
    writable(path)
    return path


def _require_any(missing: Mapping[str, str | None]) -> None:
    """Refuse a ledger where not one backend can run."""
    if None not in missing.values():
        reason = next(iter(missing.values()))
        raise BackendUnavailable(f"--ledger: no backend of the GPU can run here, nothing was written: {reason}")


def _enter(screen: Screen, name: str, checked: Checked, specs: int, seed: int, path: Path) -> None:
    """Enter a backend into the ledger, or say why not; one at a time, so that an interruption loses none."""
    problem = record(name, checked.results, checked.launched, specs=specs, seed=seed, path=path)
    if problem is None:
        screen.say(f"  entered into {path}")
    else:
        screen.say(f"  not entered into the ledger: {problem}", "red")


def _checked(names: Sequence[str], specs: int, seed: int, pooling: bool, jobs: int) -> Iterator[Checked]:
    """Check backends, in processes of their own if there are several jobs; results and times come in order.

    Several of which one is a GPU's have a process each: an illegal access costs a process all further use of the GPU.
    """
    family = pooling_family() if pooling else Convolution()
    if len(names) > 1 and any(family.get_backend(name).device == "cuda" for name in names):
        yield from _each_apart(names, specs, seed, pooling, jobs)
        return
    if min(jobs, len(names)) <= 1:
        yield from (_check_one(name, specs, seed, pooling) for name in names)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(min(jobs, len(names)), get_context("spawn")) as pool:
        yield from (run.result() for run in [pool.submit(_check_alone, name, specs, seed, pooling) for name in names])


def _each_apart(names: Sequence[str], specs: int, seed: int, pooling: bool, jobs: int) -> Iterator[Checked]:
    from concurrent.futures import ThreadPoolExecutor

    check = _check_one if jobs == 1 else _check_alone
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda name: _apart(check, name, specs, seed, pooling), names)


def _apart(check: Callable[[str, int, int, bool], Checked], name: str, specs: int, seed: int, pooling: bool) -> Checked:
    """Check a backend in a process that does nothing else; if the process dies, that is a failure of this backend."""
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    from convbench.checks import CheckResult

    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        try:
            return process.submit(check, name, specs, seed, pooling).result()
        except BrokenProcessPool:
            return Checked([CheckResult("battery", None, "failed", f"{name}: its process died")], math.nan)


def _check_alone(name: str, specs: int, seed: int, pooling: bool) -> Checked:
    """Check a backend in one process of several, where the oracle's products do with one thread."""
    from convbench.threads import blas_threads

    with blas_threads(1):
        return _check_one(name, specs, seed, pooling)


def _check_one(name: str, specs: int, seed: int, pooling: bool) -> Checked:
    """Put a backend through the battery, and all its kernels if it has any."""
    from time import perf_counter

    family, began = pooling_family() if pooling else Convolution(), perf_counter()
    with launched_kernels() as launched:
        results = [*family.check(name, specs=specs, seed=seed), *check_variants(family.get_backend(name), seed)]
    return Checked(results, perf_counter() - began, frozenset(launched))


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
