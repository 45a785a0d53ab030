"""``convbench run``: verify, time, compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from convbench.bench.cases import Case, Suite, load_suite
from convbench.bench.families import Family, only_family
from convbench.bench.record import STATUSES
from convbench.commands.parameters import (
    BACKEND,
    BASELINE_HELP,
    EXIT_CODES,
    FOLDER,
    SUITE,
    Count,
    Seconds,
    Size,
    chosen_backends,
)
from convbench.commands.results import conclude
from convbench.errors import SpecError
from convbench.registry import what_is_missing
from convbench.report.screen import Screen

if TYPE_CHECKING:
    from convbench.bench.run import Options

__all__ = ["run"]


@click.command(epilog=EXIT_CODES)
@click.argument("suites", nargs=-1, type=SUITE, metavar="[SUITE]...")
@click.option("-k", "pattern", metavar="FILTER", help="Only cases that have each of these tokens: -k 'k3 w=*'.")
@click.option("--spec", "lines", multiple=True, metavar="LINE", help="A case instead of suites; repeatable.")
@click.option("--backends", type=BACKEND, metavar="GLOB,...", help="Only these backends; default: all.")
@click.option("--baseline", type=BACKEND, metavar="NAME", help=BASELINE_HELP)
@click.option("--threads", type=Count(), metavar="N", help="Default: every core.")
@click.option("--passes", type=Count(), default=3, show_default=True, metavar="N",
              help="Times that all pairs are gone through.")  # fmt: skip
@click.option("--budget", type=Seconds(), metavar="S",
              help="Seconds for the whole run; default: what its suites ask for, 120 each if they do not.")  # fmt: skip
@click.option("--time-limit", type=Seconds(), default=5, show_default=True, metavar="S",
              help="Seconds for one pair; skipped if preparing and calling it twice should take longer.")  # fmt: skip
@click.option("--memory-limit", type=Size(), default="2GiB", show_default=True, metavar="SIZE",
              help="Skip a pair if it needs more.")  # fmt: skip
@click.option("--out", type=FOLDER, default="results", show_default=True, metavar="DIR",
              help="A folder for this run is made in it.")  # fmt: skip
@click.option("--accuracy", is_flag=True,
              help="Errors and their bounds instead of times, on x=range too.")  # fmt: skip
@click.option("--quiet", is_flag=True, help="No progress and no rows as they come.")
def run(
    suites: tuple[str, ...],
    pattern: str | None,
    lines: tuple[str, ...],
    backends: str | None,
    baseline: str | None,
    threads: int | None,
    passes: int,
    budget: float | None,
    time_limit: float,
    memory_limit: int,
    out: Path,
    accuracy: bool,
    quiet: bool,
) -> int:
    """Verify and time backends, and compare them.

    Every backend runs every case of the SUITEs. SUITE is the name of a built-in suite ('convbench list suites') or a
    text file with one case a line. Without any, kernel-size is run: about five minutes on two cores. Tables and plots
    go to a new folder under --out.

    With --accuracy every pair is verified by one call and nothing is timed; each case on noise is repeated with
    x=range, data of high dynamic range. The suite is then accuracy unless others are named.
    """
    from convbench.bench.run import Options, new_run_folder

    if accuracy:
        _refuse_timing_options()
    chosen = _chosen_suites(suites, lines, default="accuracy" if accuracy else "kernel-size")
    if accuracy:
        chosen = [replace(suite, cases=_with_range(suite.cases), tables=()) for suite in chosen]
    cases = _chosen_cases(chosen, pattern)
    family = only_family(str(case) for case in cases)
    names = chosen_backends(backends, family)
    if baseline is not None and family.get_backend(baseline).name not in names:
        raise SpecError("--baseline", baseline, f"must be one of the backends of this run: {', '.join(names)}")
    options = Options(
        threads=threads,
        passes=passes,
        time_limit_s=time_limit,
        memory_limit_bytes=memory_limit,
        budget_s=budget or sum(suite.budget_s for suite in chosen),
        timed=not accuracy,
    )
    specs = [case.spec for suite in chosen if "matrix" in suite.tables for case in suite.cases if case in cases]
    label = "+".join(suite.name for suite in chosen)
    folder = new_run_folder(out, f"{label}-accuracy" if accuracy and "accuracy" not in label else label)
    screen = Screen()
    with _removed_if_empty(folder):
        if not quiet:
            _announce(screen, chosen, len(cases), names, family, options)
        # all: then the run itself leaves `reference` out where it refuses
        statuses, interrupted = _measure(screen, cases, names, bool(backends), options, folder, quiet)
    if interrupted:
        screen.note("interrupted: what was measured until now is kept")
    conclude(screen, folder, baseline, list(dict.fromkeys(specs)))
    if interrupted:
        return 130
    return int(any(STATUSES.get(status, True) for status in statuses))


def _refuse_timing_options() -> None:
    context = click.get_current_context()
    for name in ("passes", "baseline"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            rule = "says how to time, and --accuracy times nothing; leave out one of the two"
            raise SpecError(f"--{name}", context.params[name], rule)


def _with_range(cases: Sequence[Case]) -> tuple[Case, ...]:
    """Follow each case on noise by the same on data of high dynamic range, where the dtype has room for it."""
    both: dict[Case, None] = {}
    for case in cases:
        both[case] = None
        if case.x == "noise":
            with suppress(SpecError):  # integers have no such data
                both[replace(case, x="range")] = None
    return tuple(both)


def _chosen_suites(names: Sequence[str], lines: Sequence[str], default: str) -> list[Suite]:
    if names and lines:
        raise SpecError("--spec", lines[0], f"stands instead of suites; leave out {' '.join(names)}")
    if lines:
        return [Suite("spec", "given on the command line", tuple(Case.parse(line) for line in lines))]
    return [load_suite(name) for name in names or (default,)]


def _chosen_cases(suites: Sequence[Suite], pattern: str | None) -> list[Case]:
    cases: dict[Case, Case] = {}
    for suite in suites:
        for case in suite.cases:
            first = cases.setdefault(case, case)
            if (first.group, first.weight) != (case.group, case.weight):
                rule = f"has another group or count in an earlier suite ({first.group}, {first.weight}); run them apart"
                raise SpecError(f"suite {suite.name}", str(case), rule)
    wanted = (pattern or "").split()
    kept = [case for case in cases if all(_has_token(case, glob) for glob in wanted)]
    if not kept:
        rule = f"keeps none of the {len(cases)} cases; tokens are such as those of '{next(iter(cases))}'"
        raise SpecError("-k", pattern, rule)
    return kept


def _has_token(case: Case, glob: str) -> bool:
    tokens = [*str(case.spec).split(), f"x={case.x}", f"w={case.w}", f"seed={case.seed}"]
    tokens += [f"group={case.group}", f"count={case.weight}"]
    return any(fnmatchcase(token, glob) for token in tokens)


def _announce(
    screen: Screen, suites: Sequence[Suite], cases: int, names: Sequence[str], family: Family, options: Options
) -> None:
    missing = {name: what_is_missing(family.get_backend(name)) for name in names}
    usable = [name for name in names if missing[name] is None]
    title = "; ".join(dict.fromkeys(suite.title for suite in suites))
    screen.say(f"{title} ({cases} case{'s' * (cases > 1)})", "bold")
    passes = f"{options.passes} pass{'es' * (options.passes > 1)}" if options.timed else "verified, not timed"
    screen.say(f"backends: {', '.join(usable) or 'none'} · {passes} · {options.budget_s:g} s at most")
    for name, reason in missing.items():
        if reason is not None:
            screen.say(f"not here: {name}: {reason}", "yellow")


@contextmanager
def _removed_if_empty(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        if not any(folder.iterdir()):  # the run never began
            folder.rmdir()


def _measure(
    screen: Screen,
    cases: Sequence[Case],
    names: Sequence[str],
    named: bool,
    options: Options,
    folder: Path,
    quiet: bool,
) -> tuple[list[str], bool]:
    """Run everything; return the pairs' statuses and whether the run was interrupted."""
    from convbench.bench.run import run_cases
    from convbench.report.live import Live

    with screen.progress(options.budget_s or float("inf"), quiet) as bar:
        live = Live(screen, bar, [str(case) for case in cases], names, folder, quiet)
        try:
            run_cases(cases, names if named else None, options, folder, live)
        except KeyboardInterrupt:
            if not any(folder.iterdir()):
                raise
            return list(live.statuses.values()), True
    return list(live.statuses.values()), False
