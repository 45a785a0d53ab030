"""The commands of ``convbench``: they read arguments, call the library and show what it returns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

import convbench
from convbench.bench import Case, Suite, list_suites, load_suite
from convbench.bench.record import STATUSES
from convbench.errors import MissingDependency, SpecError, UnknownBackend, UnsupportedSpec
from convbench.refusals import human_bytes
from convbench.registry import all_backends, get_backend
from convbench.report import DEFAULT_BASELINE, machine, write_report
from convbench.report.screen import Screen
from convbench.report.text import Column, Grid, Row, human_number, human_seconds
from convbench.spec import ConvSpec

if TYPE_CHECKING:
    import pandas as pd
    from convbench.backend import Backend
    from convbench.bench.run import Options

__all__ = ["cli"]

_EXIT_CODES = """\b
Exit codes:
  0    done
  1    a result is wrong, failed, timed out, outgrew its memory or crashed
       (run), or a check failed (check)
  2    bad input, or a library is missing
  130  interrupted; what was measured is kept
  141  the reader of the output went away"""


class _Names(click.ParamType[str]):
    """Any text; the shell completes it from a list."""

    def __init__(self, name: str, known: Callable[[], Sequence[str]]) -> None:
        self.name, self._known = name, known

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete the last of several names joined by commas."""
        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(before + comma + name) for name in self._known() if name.startswith(last)]


_SUITE = _Names("suite", lambda: list(list_suites()))
_BACKEND = _Names("backend", lambda: list(all_backends()))
_FOLDER = click.Path(path_type=Path)


class _Seconds(click.ParamType[float]):
    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return a positive, finite number."""
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            self.fail(f"{value!r} is not a positive number of seconds.", param, ctx)
        return seconds


class _Size(click.ParamType[int]):
    name = "size"
    _UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?B?)\s*", value.upper(), re.ASCII)
        size = 0
        if match:
            number, unit, suffix = match.groups()
            power = 1000 if suffix == "B" and unit else 1024
            size = int(float(number) * power ** ("", "K", "M", "G", "T").index(unit))
        if size < 1:
            self.fail(f"{value!r} is not a size such as 512MiB, 2GiB or 1.5GB.", param, ctx)
        return size


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXIT_CODES)
@click.version_option(convbench.__version__, prog_name="convbench")
def cli() -> None:
    """Compare convolution algorithms: each is proved right before it is timed."""


# -- run --------------------------------------------------------------------------------------------


@cli.command(epilog=_EXIT_CODES)
@click.argument("suites", nargs=-1, type=_SUITE, metavar="[SUITE]...")
@click.option("-k", "pattern", metavar="FILTER", help="Only cases that have each of these tokens: -k 'k3 w=*'.")
@click.option("--spec", "lines", multiple=True, metavar="LINE", help="A case instead of suites; repeatable.")
@click.option("--backends", type=_BACKEND, metavar="GLOB,...", help="Only these backends; default: all.")
@click.option("--baseline", type=_BACKEND, metavar="NAME", help=f"Speed-ups are over this; default: {DEFAULT_BASELINE}.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Default: every core.")
@click.option("--passes", type=click.IntRange(min=1), default=3, show_default=True, metavar="N",
              help="Times that all pairs are gone through.")  # fmt: skip
@click.option("--budget", type=_Seconds(), default=120, show_default=True, metavar="S", help="Seconds for the whole run.")
@click.option("--time-limit", type=_Seconds(), default=5, show_default=True, metavar="S",
              help="Skip a pair if one call takes longer.")  # fmt: skip
@click.option("--memory-limit", type=_Size(), default="2GiB", show_default=True, metavar="SIZE",
              help="Skip a pair if it needs more.")  # fmt: skip
@click.option("--out", type=_FOLDER, default="results", show_default=True, metavar="DIR",
              help="A folder for this run is made in it.")  # fmt: skip
@click.option("--quiet", is_flag=True, help="No progress and no rows as they come.")
def run(
    suites: tuple[str, ...],
    pattern: str | None,
    lines: tuple[str, ...],
    backends: str | None,
    baseline: str | None,
    threads: int | None,
    passes: int,
    budget: float,
    time_limit: float,
    memory_limit: int,
    out: Path,
    quiet: bool,
) -> int:
    """Verify and time every backend on every case of the SUITEs.

    SUITE is the name of a built-in suite ('convbench list suites') or a text file with one case a line. Without any,
    kernel-size is run: about two minutes on two cores. Tables and plots go to a new folder under --out.
    """
    from convbench.bench.run import Options

    chosen = _chosen_suites(suites, lines)
    cases = _chosen_cases(chosen, pattern)
    names = _chosen_backends(backends)
    if baseline is not None and get_backend(baseline).name not in names:
        raise SpecError("--baseline", baseline, f"must be one of the backends of this run: {', '.join(names)}")
    options = Options(
        threads=threads, passes=passes, time_limit_s=time_limit, memory_limit_bytes=memory_limit, budget_s=budget
    )
    specs = [case.spec for suite in chosen if "matrix" in suite.tables for case in suite.cases if case in cases]
    folder = _new_folder(out, "+".join(suite.name for suite in chosen))
    screen = Screen()
    statuses, interrupted = _measure(screen, cases, names, options, folder, quiet)
    if interrupted:
        screen.note("interrupted: what was measured until now is kept")
    _conclude(screen, folder, baseline or DEFAULT_BASELINE, specs)
    if interrupted:
        return 130
    return int(any(STATUSES.get(status, True) for status in statuses))
