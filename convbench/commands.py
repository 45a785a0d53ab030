"""The commands of ``convbench``: they read arguments, call the library and show what it returns."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

import convbench
from convbench.bench.cases import Case, Suite, list_suites, load_suite
from convbench.bench.environment import thread_note
from convbench.bench.families import Convolution, Family, only_family
from convbench.bench.record import STATUSES
from convbench.errors import MissingDependency, SpecError, UnknownBackend, one_line
from convbench.features import NOTES
from convbench.refusals import human_bytes
from convbench.registry import backend_names, implementation_of, what_is_missing
from convbench.report import matrix_specs, write_report
from convbench.report.features import feature_grids
from convbench.report.screen import Screen
from convbench.report.text import Column, Grid, Row, human_number, human_seconds
from convbench.spec import ConvSpec

if TYPE_CHECKING:
    import pandas as pd

    from convbench.backend import Backend
    from convbench.bench.run import Options

__all__ = ["cli"]

_PROBLEMS_SHOWN = 10
_ROWS_SHOWN = 200  # of the full comparison, on a terminal

_EXIT_CODES = """\b
Exit codes:
  0    done
  1    a result is wrong, failed, timed out, outgrew its memory or crashed
       (run), or a check failed (check)
  2    bad input, or a library is missing
  130  interrupted; what was measured is kept
  141  the reader of the output went away"""


if TYPE_CHECKING:
    _Text = click.ParamType[str]
    _Float = click.ParamType[float]
    _Int = click.ParamType[int]
else:  # not generic before click 8.4
    _Text = _Float = _Int = click.ParamType


class _Names(_Text):
    """Any text; the shell completes it from a list."""

    def __init__(self, name: str, known: Callable[[], Sequence[str]]) -> None:
        self.name, self._known = name, known

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete the last of several names joined by commas."""
        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(before + comma + name) for name in self._known() if name.startswith(last)]


_SUITE = _Names("suite", lambda: list(list_suites()))
_BACKEND = _Names("backend", backend_names)
_FOLDER = click.Path(path_type=Path)
_BASELINE_HELP = f"Of speed-ups; default: of {', '.join(Convolution.baselines)} the one with times on the most cases."


class _Seconds(_Float):
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


class _Count(_Int):
    name = "count"

    def __init__(self, least: int = 1) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return a whole number in range."""
        text = str(value).strip()
        if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII) or int(text) < self._least:
            self.fail(f"{value!r} is not a whole number ≥ {self._least}.", param, ctx)
        return int(text)


class _Size(_Int):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes; KB is 1000 of them, K and KiB are 1024."""
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


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXIT_CODES)
@click.version_option(convbench.__version__, prog_name="convbench")
@click.pass_context
def cli(context: click.Context) -> None:
    """Compare convolution algorithms: each is proved right before it is timed."""
    if context.invoked_subcommand is None:
        print(context.get_help())


# -- run --------------------------------------------------------------------------------------------


@cli.command(epilog=_EXIT_CODES)
@click.argument("suites", nargs=-1, type=_SUITE, metavar="[SUITE]...")
@click.option("-k", "pattern", metavar="FILTER", help="Only cases that have each of these tokens: -k 'k3 w=*'.")
@click.option("--spec", "lines", multiple=True, metavar="LINE", help="A case instead of suites; repeatable.")
@click.option("--backends", type=_BACKEND, metavar="GLOB,...", help="Only these backends; default: all.")
@click.option("--baseline", type=_BACKEND, metavar="NAME", help=_BASELINE_HELP)
@click.option("--threads", type=_Count(), metavar="N", help="Default: every core.")
@click.option("--passes", type=_Count(), default=3, show_default=True, metavar="N",
              help="Times that all pairs are gone through.")  # fmt: skip
@click.option("--budget", type=_Seconds(), metavar="S",
              help="Seconds for the whole run; default: what its suites ask for, 120 each if they do not.")  # fmt: skip
@click.option("--time-limit", type=_Seconds(), default=5, show_default=True, metavar="S",
              help="Seconds for one pair; skipped if preparing and calling it twice should take longer.")  # fmt: skip
@click.option("--memory-limit", type=_Size(), default="2GiB", show_default=True, metavar="SIZE",
              help="Skip a pair if it needs more.")  # fmt: skip
@click.option("--out", type=_FOLDER, default="results", show_default=True, metavar="DIR",
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
    names = _chosen_backends(backends, family)
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
    _conclude(screen, folder, baseline, list(dict.fromkeys(specs)))
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


def _chosen_backends(patterns: str | None, family: Family) -> list[str]:
    """Names that match, in the registry's order; a name without wildcards must exist."""
    known = family.backend_names()
    if patterns is None:
        return known
    chosen: set[str] = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        matches = [name for name in known if fnmatchcase(name, pattern)]
        if not matches and any(sign in pattern for sign in "*?["):
            raise UnknownBackend(f"--backends: no backend matches {pattern!r}; there are {', '.join(known)}")
        chosen.update(matches or [family.get_backend(pattern).name])
    if not chosen:
        raise SpecError("--backends", patterns, "names no backend; write names or globs joined by commas")
    return [name for name in known if name in chosen]


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


def _conclude(screen: Screen, folder: Path, baseline: str | None, specs: Sequence[ConvSpec] = ()) -> None:
    """Print the tables of a run, write its report, and say what was written."""
    from convbench.bench.record import load_results

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lines that cannot be read: noted here, once
        with suppress(MissingDependency):  # the report says so
            records = load_results(folder)
            for problem in records.attrs["problems"]:
                screen.note(problem)
            if not records.empty:
                _show_results(screen, records, baseline, specs)
        try:
            write_report(folder, baseline=baseline, matrices=specs, note=screen.note)
        except OSError as error:
            raise SpecError("RUN", str(folder), f"cannot be written to ({error.strerror})") from None
    screen.title("Files")
    screen.say(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def _show_results(screen: Screen, records: pd.DataFrame, baseline: str | None, specs: Sequence[ConvSpec]) -> None:
    from convbench.report import accuracy, tables

    if accuracy.is_untimed(records):
        _show_accuracy(screen, records)
        return
    baseline = baseline or tables.usual_baseline(records)
    table = tables.figures(records, baseline)
    layout = tables.layout_of_table(table)
    screen.title("Results")
    comparison = tables.comparison(table)
    if screen.live and len(comparison.rows) > _ROWS_SHOWN:
        screen.say(f"{len(comparison.rows)} rows, too many for a terminal: see table.md; what they come to:", "dim")
    else:
        for name, text in tables.legend(table, baseline).items():
            screen.say(f"{name}: {text}", "dim")
        screen.grid(comparison)
    for spec in specs:
        _show_matrix(screen, spec)
    summary = tables.overview(table)
    for title, grid in summary.grids.items():
        screen.title(title or "Times")
        for part in grid.split(screen.width):
            screen.grid(part)
    if summary.grids:
        screen.say(f"* {tables.MARK}" + (f" · all cases: {layout.common}" if layout.common else ""), "dim")
    for section in summary.further:
        if not section.wide:
            screen.title(section.title)
            screen.grid(section.grid)
            screen.say(section.legend, "dim")
    if note := thread_note(records.attrs.get("environment", {})):
        screen.say(note, "yellow")
    _show_notes(screen, summary.notes, tables.problems(table))


def _show_accuracy(screen: Screen, records: pd.DataFrame) -> None:
    from convbench.bench.statistics import summarise
    from convbench.report import accuracy, tables

    table = summarise(records)
    summary = accuracy.overview(table)
    screen.title("Accuracy")
    for name, text in accuracy.LEGEND.items():
        screen.say(f"{name}: {text}", "dim")
    for title, grid in summary.grids.items():
        screen.title(title)
        for part in grid.split(screen.width):
            screen.grid(part)
    screen.say()
    _show_notes(screen, summary.notes, tables.problems(table))


def _show_notes(screen: Screen, notes: Sequence[str], problems: Sequence[str]) -> None:
    for note in notes:
        screen.say(f"- {note}")
    for problem in problems[:_PROBLEMS_SHOWN]:
        screen.say(problem, "red")
    if len(problems) > _PROBLEMS_SHOWN:
        screen.say(f"… and {len(problems) - _PROBLEMS_SHOWN} more that went wrong", "red")


def _show_matrix(screen: Screen, spec: ConvSpec) -> None:
    from convbench.report.matrix import matrix_table

    screen.title(f"The same operation seen as a matrix: {spec}")
    screen.grid(matrix_table(spec))


# -- report -----------------------------------------------------------------------------------------


@cli.command()
@click.argument("folder", metavar="RUN", type=_FOLDER)
@click.option("--baseline", metavar="NAME", help=_BASELINE_HELP)
def report(folder: Path, baseline: str | None) -> None:
    """Print and write a run's tables, plots and page.

    RUN is its folder under results/; everything is made from the records in it. It may also be a file that 'pytest
    suites --benchmark-json=FILE.json' has written: tables, plots and page then go to FILE-report beside it.
    """
    from convbench.bench.pytest_json import convert
    from convbench.bench.record import RECORDS_FILE, read

    screen = Screen()
    if folder.suffix == ".json" and folder.is_file():
        folder = convert(folder)
        screen.note("pytest-benchmark keeps nothing of skipped tests: pairs that were refused are missing")
    elif folder.is_file() and folder.name != RECORDS_FILE:
        rule = f"must be a run's folder, the {RECORDS_FILE} in it, or a FILE.json of pytest-benchmark"
        raise SpecError("RUN", str(folder), rule)
    records = read(folder)
    names = list(dict.fromkeys(record.backend for record in records))
    if baseline is not None and baseline not in names:
        raise SpecError("--baseline", baseline, f"must be one of the backends of this run: {', '.join(names)}")
    folder = folder if folder.is_dir() else folder.parent
    _conclude(screen, folder, baseline, matrix_specs(folder))


# -- check ------------------------------------------------------------------------------------------


@cli.command(epilog=_EXIT_CODES)
@click.argument("backends", nargs=-1, type=_BACKEND, metavar="[BACKEND]...")
@click.option("--specs", type=_Count(), default=60, show_default=True, metavar="N", help="Random specs.")
@click.option("--seed", type=_Count(0), default=0, show_default=True, metavar="N", help="Of their choice.")
@click.option("-j", "--jobs", type=_Count(), default=1, show_default=True, metavar="N", help="Backends at a time.")
@click.option("--pooling", is_flag=True, help="Backends of pooling, by their own battery.")
def check(backends: tuple[str, ...], specs: int, seed: int, jobs: int, pooling: bool) -> int:
    """Put backends through all correctness checks.

    BACKEND is a name or a glob; without any, all are checked. A refusal is a backend's right; a failure is not.
    """
    family = _pooling() if pooling else Convolution()
    names = _chosen_backends(",".join(backends) if backends else None, family)
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

    family, began = _pooling() if pooling else Convolution(), perf_counter()
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


def _pooling() -> Family:
    from convbench.pooling.family import POOLING

    return POOLING


def _own_word(backend: Backend) -> str | None:
    """What is missing. One that cannot say is put through the battery, which names the rule."""
    try:
        missing = backend.unavailable()
    except (Exception, SystemExit):
        return None
    return one_line(missing) if isinstance(missing, str) else None


# -- explain ----------------------------------------------------------------------------------------


@cli.command()
@click.argument("line", metavar="SPEC LINE", nargs=-1, required=True)
@click.option("--threads", type=_Count(), metavar="N", help="Default: every core.")
def explain(line: tuple[str, ...], threads: int | None) -> None:
    """Show a spec's figures, and who can do it.

    For example: convbench explain "n1 c64 o64 i56x56 k3 p1 f32"
    """
    spec = Case.parse(" ".join(line)).spec
    spec = ConvSpec.parse(str(spec))  # says of a line of pooling what there is for it instead
    backends = convbench.explain(spec, threads=threads)  # first: it may have something to complain of
    screen = Screen()
    screen.say(str(spec), "bold")
    screen.grid(_derived(spec))
    if spec.op == "forward":
        _show_matrix(screen, spec)
    screen.title("Backends")
    screen.grid(_willingness(backends))


_RESULTS = {"forward": "shape of y", "input_grad": "shape of ∂J/∂x", "weight_grad": "shape of ∂J/∂w"}


def _derived(spec: ConvSpec) -> Grid:
    padding = " ".join(f"{before}:{after}" for before, after in spec.padding)
    rows = (
        ("output size", "×".join(map(str, spec.output_size)), f"of {'×'.join(map(str, spec.input_size))}"),
        ("result", "×".join(map(str, spec.result_shape)), _RESULTS[spec.op]),
        ("padding", padding, "before:after, each axis"),
        ("MACs", f"{spec.macs:,}", "padded taps included"),
        ("FLOPs", f"{spec.flops:,}", "2·MACs"),
        ("multiplications + additions", f"{spec.multiplications + spec.additions:,}", "exact"),
        ("parameters", f"{spec.parameters:,}", "weights and bias"),
        ("least traffic", human_bytes(spec.bytes_min), f"{spec.bytes_min:,} bytes: every operand once"),
        ("arithmetic intensity", human_number(spec.arithmetic_intensity), "FLOPs a byte of it"),
    )
    grid = Grid([Column("", right=False), Column(""), Column("", right=False)])
    grid.rows += [Row(row) for row in rows]
    return grid


def _willingness(table: pd.DataFrame) -> Grid:
    grid = Grid(
        [
            Column("backend", right=False),
            Column("kind", right=False),
            Column("expected time"),
            Column("FLOPs"),
            Column("workspace"),
        ]
    )
    for row in table.to_dict("records"):
        head = (row["backend"], row["kind"])
        if not row["willing"]:
            grid.rows.append(Row(head, sentence=f"no: {row['reason']}", style="dim"))
            continue
        flops, workspace = int(row["flops"]), human_bytes(int(row["workspace_bytes"]))
        grid.rows.append(Row((*head, human_seconds(row["expected_s"]), human_number(flops), workspace)))
    return grid


# -- list -------------------------------------------------------------------------------------------


@cli.command("list")
@click.argument("what", type=click.Choice(["suites", "backends"]))
@click.option("--pooling", is_flag=True, help="Backends of pooling.")
@click.option("--features", is_flag=True, help="What each backend can do, by its own word: the support matrix.")
@click.option("--markdown", is_flag=True, help="As Markdown.")
def list_command(what: str, pooling: bool, features: bool, markdown: bool) -> None:
    """List the built-in suites, or all backends."""
    screen = Screen()
    if features:
        if what == "suites" or pooling:
            given = "suites" if what == "suites" else "--pooling"
            raise SpecError("--features", given, "is known of backends of convolution: list backends --features")
        grids = feature_grids()
    else:
        family = _pooling() if pooling else Convolution()
        grids = {"": _suites_grid() if what == "suites" else _backends_grid(family)}
    notes = NOTES if features else ()
    if markdown:
        parts = [f"**{title}**\n\n" * bool(title) + grid.markdown() for title, grid in grids.items()]
        screen.say("\n\n".join([*parts, *notes]))
        return
    for title, grid in grids.items():
        if title:
            screen.title(title)
        for part in grid.split(screen.width):
            screen.grid(part)
    for note in notes:
        screen.say(f"\n{note}", "dim")


def _suites_grid() -> Grid:
    grid = Grid([Column("suite", right=False), Column("cases"), Column("title", right=False)])
    for name in list_suites():
        suite = load_suite(name)
        grid.rows.append(Row((name, str(len(suite.cases))), sentence=suite.title))
    return grid


def _backends_grid(family: Family) -> Grid:
    columns = ("backend", "kind", "device", "behind it")
    grid = Grid([Column(title, right=False) for title in columns])
    for name in family.backend_names():
        backend = family.get_backend(name)
        missing = what_is_missing(backend)
        sentence = implementation_of(backend) if missing is None else f"unavailable: {missing}"
        grid.rows.append(Row((name, backend.kind, backend.device), sentence, style="dim" if missing else ""))
    return grid
