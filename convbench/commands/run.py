"""``convbench run``: verify, time, compare."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from convbench.bench.cases import Case, Suite, case_filter, load_suite
from convbench.bench.families import only_family
from convbench.commands.parameters import (
    BACKEND,
    BASELINE_HELP,
    EXIT_CODES,
    FOLDER,
    JSON_HELP,
    SUITE,
    Count,
    Seconds,
    Size,
    chosen_backends,
)
from convbench.commands.results import conclude, exit_code, removed_if_empty, require_tables
from convbench.errors import SpecError
from convbench.line import SHORT_DTYPES
from convbench.report.screen import Screen
from convbench.spec import DTYPES

if TYPE_CHECKING:
    from convbench.bench.run import Options
    from convbench.report.live import Live

__all__ = ["run"]

_EXAMPLES = """\b
Examples:
  convbench run                                   kernel sizes 3 to 101
  convbench run cnn-layers --threads 1            another suite, one thread
  convbench run cnn-layers --batch 16 --dtype f16 the same layers on 16 images
  convbench run --spec "n1 c64 o64 i56x56 k3 p1 f32"          a layer of yours
  convbench run --spec "n1 c64 o64 i56x56 k{3,5,7} psame f32" a sweep
  convbench run --spec "c3 i600x800 k9 psame f32 x=@photo.png"
                                                  a photo of yours
  convbench run --backends "fft*,torch" -k "k3 !f16"
                                                  some backends, some cases
  convbench run --resume results/20261121T075917Z-kernel-size
                                                  go on after a crash

\b
Cases: a line is a spec ('convbench explain --help') and its data.
  k{3,5,7} k{3..15..2}   several values; each brace is an axis of its own
  {k3 p1,k5 p2}          alternatives of several tokens
  x=@photo.png           an image or a .npy array of the spec's size; relative
                         names start from the current folder, in a suite from
                         the folder of its file
  x='@my photo.png'      a name with blanks stands in quotes"""


@click.command(epilog=f"{_EXAMPLES}\n\n{EXIT_CODES}")
@click.argument("suites", nargs=-1, type=SUITE, metavar="[SUITE]...")
@click.option("--spec", "lines", multiple=True, metavar="LINE",
              help="A case instead of suites, with braces several; repeatable.")  # fmt: skip
@click.option("-k", "pattern", metavar="FILTER",
              help="Only cases that have a token for each glob, and none for those after a '!': -k 'k3 w=* !f16'. A "
              "default counts as written; quotes hold blanks: -k \"group='ResNet 50'\".")  # fmt: skip
@click.option("--batch", type=Count(), metavar="N", help="All cases at this batch size.")
@click.option("--dtype", type=click.Choice([*SHORT_DTYPES, *DTYPES]), metavar="DTYPE",
              help="All cases in this dtype, as a line writes it: f16.")  # fmt: skip
@click.option("--backends", type=BACKEND, metavar="GLOB,...", help="Only these backends; default: all.")
@click.option("--threads", type=Count(), metavar="N", help="Default: every core.")
@click.option("--mode", type=click.Choice(["hot", "cold"]), default="hot", show_default=True,
              help="hot: every call has the same operands; cold: each has others, not in a cache; on a GPU its L2 is "
              "overwritten first.")  # fmt: skip
@click.option("--passes", type=Count(), default=6, show_default=True, metavar="N",
              help="Fresh processes, each of which goes once through all pairs.")  # fmt: skip
@click.option("--twins", type=Count(0), default=1, show_default=True, metavar="N",
              help="Of each case, time so many backends twice, as if they were two: how often they are told apart is "
              "how often this machine names a false winner.")  # fmt: skip
@click.option("--budget", type=Seconds(), metavar="S",
              help="Seconds for the whole run; default: what its suites ask for, 120 each if they do not.")  # fmt: skip
@click.option("--time-limit", type=Seconds(), metavar="S",
              help="Seconds for one pair; it is skipped if it should take longer, stopped if it does; default: the "
              "longest that its suites ask for, 10 if they do not.")  # fmt: skip
@click.option("--memory-limit", type=Size(), default="2GiB", show_default=True, metavar="SIZE",
              help="For one pair; it is skipped if it should need more, stopped if it does.")  # fmt: skip
@click.option("--accuracy", is_flag=True,
              help="Errors and their bounds instead of times, on x=range too.")  # fmt: skip
@click.option("--baseline", type=BACKEND, metavar="NAME", help=BASELINE_HELP)
@click.option("--out", type=FOLDER, default="results", show_default=True, metavar="DIR",
              help="A folder for this run is made in it.")  # fmt: skip
@click.option("--resume", "resumed", type=FOLDER, metavar="RUN",
              help="Go on with a run that was killed, as it was begun; only --budget, --quiet and --json may stand "
              "beside it.")  # fmt: skip
@click.option("--one-process", is_flag=True,
              help="No processes of their own, for debuggers: a crash ends the run.")  # fmt: skip
@click.option("--quiet", is_flag=True, help="Print the summary alone: no progress, no rows.")
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def run(
    suites: tuple[str, ...],
    lines: tuple[str, ...],
    pattern: str | None,
    batch: int | None,
    dtype: str | None,
    backends: str | None,
    threads: int | None,
    mode: str,
    passes: int,
    twins: int,
    budget: float | None,
    time_limit: float | None,
    memory_limit: int,
    accuracy: bool,
    baseline: str | None,
    out: Path,
    resumed: Path | None,
    one_process: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Verify and time backends, and compare them.

    Every backend runs every case of the SUITEs, verified before it is timed. SUITE is the name of a built-in suite
    ('convbench list suites') or a text file with one case a line. Without any, kernel-size is run: about ten minutes
    on two cores. Tables, plots and a page go to a new folder under --out.

    With --accuracy every pair is verified by one call and nothing is timed; each case on noise is repeated with
    x=range, data of high dynamic range. The suite is then accuracy unless others are named.
    """
    from convbench.bench.run import Options, new_run_folder

    if as_json:
        require_tables()
    screen = Screen(to_stderr=as_json)
    if resumed is not None:
        return _resume(screen, resumed, budget, quiet, as_json)
    if accuracy:
        _refuse("accuracy", ("passes", "baseline", "mode", "twins"), "says how to time, and --accuracy times nothing")
    chosen = _chosen_suites(suites, lines, default="accuracy" if accuracy else "kernel-size")
    chosen = [suite.at(batch=batch, dtype=dtype and SHORT_DTYPES.get(dtype, dtype)) for suite in chosen]
    if accuracy:
        chosen = [replace(suite, cases=_with_range(suite.cases), tables=()) for suite in chosen]
    cases = _chosen_cases(chosen, pattern)
    family = only_family(str(case) for case in cases)
    names = chosen_backends(backends, family)
    if baseline is not None and family.get_backend(baseline).name not in names:
        raise SpecError("--baseline", baseline, f"must be one of the backends of this run: {', '.join(names)}")
    budget_s = budget or sum(suite.budget_s for suite in chosen)
    isolated = {"isolate": False} if one_process else {}  # else as the system allows
    options = Options(
        threads=threads,
        passes=passes,
        time_limit_s=time_limit or max((suite.time_limit_s or Options.time_limit_s) for suite in chosen),
        memory_limit_bytes=memory_limit,
        budget_s=budget_s,
        timed=not accuracy,
        mode=mode,
        twins=twins,
        **isolated,
    )
    specs = [case.spec for suite in chosen if "matrix" in suite.tables for case in suite.cases if case in cases]
    label = "+".join(suite.name for suite in chosen)
    folder = new_run_folder(out, f"{label}-accuracy" if accuracy and "accuracy" not in label else label)
    with removed_if_empty(folder):
        if not quiet:
            _announce(screen, chosen, len(cases), names, options)

        def go(live: Live) -> None:
            from convbench.bench.run import run_cases

            # None is all: then the run itself leaves `reference` out where it refuses
            run_cases(cases, names if backends else None, options, folder, live)

        interrupted = _measure(screen, [str(case) for case in cases], names, budget_s, folder, quiet, go)
    conclude(screen, folder, baseline, list(dict.fromkeys(specs)), brief=quiet, as_json=as_json)
    return 130 if interrupted else exit_code(folder)


def _resume(screen: Screen, folder: Path, budget: float | None, quiet: bool, as_json: bool) -> int:
    from convbench.bench.record import read, read_environment
    from convbench.bench.run import resume
    from convbench.commands.searching import refuse_search
    from convbench.report import matrix_specs

    names = [parameter.name or "" for parameter in click.get_current_context().command.params]
    beside = {"resumed", "budget", "quiet", "as_json"}
    _refuse("resume", [name for name in names if name not in beside], "has been settled when the run began")
    refuse_search(folder)
    about = read_environment(folder)
    cases, backends = about.get("cases") or [""], about.get("backends") or [""]
    whole_s = budget or about.get("options", {}).get("budget_s") or float("inf")
    spent_s = max((record.elapsed_s or 0.0 for record in read(folder)), default=0.0)
    if not quiet:
        screen.say(f"going on with {folder}", "bold")
        screen.say(f"{spent_s:.0f} of {whole_s:.0f} s are spent")

    def go(live: Live) -> None:
        resume(folder, live, budget_s=budget)

    interrupted = _measure(screen, cases, backends, max(0.0, whole_s - spent_s), folder, quiet, go)
    conclude(screen, folder, None, matrix_specs(folder), brief=quiet, as_json=as_json)
    return 130 if interrupted else exit_code(folder)


def _refuse(option: str, names: Sequence[str], why: str) -> None:
    """Raise SpecError if any of these parameters was given beside an option that leaves them no meaning."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE and context.params[name] != ()
        if given and name in names:
            shown = parameter.opts[0] if isinstance(parameter, click.Option) else name.upper()
            raise SpecError(shown, context.params[name], f"{why}; leave out {shown} or --{option}")


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
    if not lines:
        return [load_suite(name) for name in names or (default,)]
    cases: dict[Case, str] = {}
    for line in lines:
        for case in Case.sweep(line):
            if case in cases:
                raise SpecError("--spec", line, f"stands for '{case}', as '{cases[case]}' does; leave out one")
            cases[case] = line
    return [Suite("spec", "given on the command line", tuple(cases))]


def _chosen_cases(suites: Sequence[Suite], pattern: str | None) -> list[Case]:
    cases: dict[Case, Case] = {}
    for suite in suites:
        for case in suite.cases:
            first = cases.setdefault(case, case)
            if (first.group, first.weight) != (case.group, case.weight):
                rule = f"has another group or count in an earlier suite ({first.group}, {first.weight}); run them apart"
                raise SpecError(f"suite {suite.name}", str(case), rule)
    kept = list(filter(case_filter(pattern or ""), cases))
    if not kept:
        none = f"keeps none of the {len(cases)} cases" if len(cases) > 1 else "does not keep the only case"
        rule = f"{none}; tokens are such as those of '{next(iter(cases))}'"
        raise SpecError("-k", pattern, rule)
    return kept


def _announce(screen: Screen, suites: Sequence[Suite], cases: int, names: Sequence[str], options: Options) -> None:
    title = "; ".join(dict.fromkeys(suite.title for suite in suites))
    screen.say(f"{title} ({cases} case{'s' * (cases > 1)})", "bold")
    how = f"{options.passes} pass{'es' * (options.passes > 1)}" if options.timed else "verified, not timed"
    how += ", cold" * (options.mode == "cold") + ", in one process" * (not options.isolate)
    screen.say(f"backends: {', '.join(names)} · {how} · {options.budget_s:g} s at most")


def _measure(
    screen: Screen,
    cases: Sequence[str],
    names: Sequence[str],
    budget_s: float,
    folder: Path,
    quiet: bool,
    go: Callable[[Live], None],
) -> bool:
    """Run everything; return whether it was interrupted."""
    from convbench.report.live import Live

    with screen.progress(budget_s, quiet) as bar:
        try:
            go(Live(screen, bar, cases, names, folder, quiet))
        except KeyboardInterrupt:
            if not any(folder.iterdir()):
                raise
            screen.note(f"interrupted: what was measured until now is kept; {_how_to_resume(folder)}")
            return True
    return False


def _how_to_resume(folder: Path) -> str:
    return f"to go on: convbench run --resume {shlex.quote(str(folder))}"
