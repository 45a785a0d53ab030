"""``convbench gpu``: everything there is to do on a machine with a GPU, by one command."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convbench.bench.cases import Suite, case_filter, load_suite
from convbench.bench.environment import memory_bytes
from convbench.bench.record import read_environment
from convbench.bench.rivals import matching
from convbench.commands.parameters import EXIT_CODES, FOLDER
from convbench.cuda.ledger import code_of
from convbench.errors import BackendUnavailable, SpecError
from convbench.features import with_device
from convbench.registry import refusal_of
from convbench.report.screen import Screen

if TYPE_CHECKING:
    from convbench.backend import Backend

__all__ = ["Step", "gpu", "steps_for"]

_INTERRUPTED = 130  # exit code

#: In the folder of --out: each step that has been made, with its exit code.
STEPS_FILE = "steps.json"


@dataclass(frozen=True)
class Measurement:
    """One run of a suite, and what its tables compare.

    Attributes
    ----------
    suite : str
    rivals : str
        Globs of those that convbench's backends are compared with.
    mode : str
        "hot" or "cold".
    pattern : str
        Filter of its cases, "" for all.
    batch : int or None
    dtype : str or None
        At which batch size and in which dtype, if not as the suite has them.
    pair_s : float
        Seconds of the budget for each pair of a case and a backend; judging larger results takes the host longer.
    parts : tuple of (str, str)
        Cases that have a table of their own: its name, their filter.
    """

    suite: str
    rivals: str = "torch-cuda"
    mode: str = "hot"
    pattern: str = ""
    batch: int | None = None
    dtype: str | None = None
    pair_s: float = 2.0
    parts: tuple[tuple[str, str], ...] = ()

    @cached_property
    def chosen(self) -> Suite:
        """The suite as it is run, with its name and the cases that remain."""
        suite = load_suite(self.suite).at(batch=self.batch, dtype=self.dtype)
        return replace(suite, cases=tuple(filter(case_filter(self.pattern), suite.cases)))

    def takers(self, backends: Mapping[str, Backend]) -> dict[str, Backend]:
        """Return the backends of the GPU that take a case of it."""
        return {
            name: backend
            for name, backend in backends.items()
            if backend.device == "cuda"
            and any(refusal_of(with_device(backend), case.spec) is None for case in self.chosen.cases)
        }

    def options(self) -> Iterator[str]:
        """Return what is typed after "run", but for backends."""
        given = {"-k": self.pattern, "--batch": self.batch, "--dtype": self.dtype, "--mode": self.mode}
        for option, value in given.items():
            if value:
                yield from (option, str(value))


#: Layers on one image, on 16 and on 128, as servers and training have them; at 128 results of U-Net's have 10 GB.
_MEASUREMENTS = (
    Measurement("cnn-layers", pair_s=1.0),
    Measurement("cnn-layers", mode="cold", pair_s=1.0),
    Measurement("cnn-layers", batch=16),
    Measurement("cnn-layers", batch=16, dtype="float16"),
    Measurement("cnn-layers", batch=128, pattern="!group=U-Net", pair_s=3.0),
    Measurement("large-kernel", parts=(("depthwise", "g[1-9]*"),)),
    Measurement("image-filter", rivals="cupyx-*", pattern="i2160x3840", pair_s=3.0),
    Measurement("audio-1d", rivals="torch-cuda,cupyx-*"),
    Measurement("volume-3d", rivals="torch-cuda,cupyx-*"),
)
#: What the CPU is compared with the GPU on: the line that does not vary, and the axis.
_CROSSOVERS = (
    ("n1 c64 o64 i8x8 k3 psame f32", "input_size=8:256"),
    ("n1 c64 o64 i28x28 k3 psame f32", "batch=1:64"),
    ("n1 c1 o1 i64x64 k15 psame f32", "input_size=64:2048"),
)
_OF_THE_CPU, _OF_THE_GPU = ("direct", "im2col"), ("direct-cupy", "im2col-cupy", "direct-naive-cupy")
_BASELINES = ("torch-cuda", "im2col-cupy", "direct-cupy", "direct-naive-cupy")
_EXAMPLES = """\b
Examples:
  convbench gpu --out results/gpu-h200             some hours
  convbench gpu --out results/gpu-h200             once more: go on after a stop
  convbench gpu --out results/gpu-h200 --dry-run   the commands, to choose from"""


@dataclass(frozen=True)
class Step:
    """One command of convbench.

    Attributes
    ----------
    arguments : tuple of str
        As they are typed after "convbench".
    run : str
        A run's folder that follows them, with a * for the time in its name; "" for none.
    output : str
        Name of a file under ``--out`` for what it prints; "" for none.
    """

    arguments: tuple[str, ...]
    run: str = ""
    output: str = ""

    def __str__(self) -> str:
        return shlex.join(["convbench", *self.arguments]) + f" {self.run}" * bool(self.run)

    def complete(self) -> list[str]:
        """Return all arguments; of several runs the last one is meant."""
        if not self.run:
            return list(self.arguments)
        folder = Path(self.run)
        found = sorted(folder.parent.glob(folder.name))
        if not found:
            raise SpecError("--out", self.run, "is not there: the step that makes it has failed")
        return [*self.arguments, str(found[-1])]

    def finished(self, code: int | None) -> bool:
        """Tell whether it need not be made again: a pair that failed is a run's result, but a battery has to pass."""
        return code == 0 or (code == 1 and self.arguments[0] != "check")

    def begun(self) -> Path | None:
        """Return the newest folder of this very run, if it has been begun before."""
        if self.arguments[0] != "run":
            return None
        out = Path(self.arguments[self.arguments.index("--out") + 1])
        return next((each for each in sorted(out.glob("*Z-*"), reverse=True) if _command_of(each) == str(self)), None)


def _command_of(folder: Path) -> str | None:
    try:
        return str(read_environment(folder).get("command_line"))
    except SpecError:  # it was stopped before there was anything to go on with
        return None


#: Makes one call of convbench; returns its exit code and, if that is kept, what it printed.
Execute = Callable[[Sequence[str], bool], tuple[int, str]]


@click.command(epilog=f"{_EXAMPLES}\n\n{EXIT_CODES}")
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="For everything that comes of it.")
@click.option("--ledger/--no-ledger", default=True, show_default=True,
              help="Enter the backends that pass into the ledger of what has run on which GPU.")  # fmt: skip
@click.option("--ledger-file", type=FOLDER, metavar="FILE", help="The ledger, where convbench's own cannot be written.")
@click.option("--dry-run", is_flag=True, help="Print the commands alone; needs no GPU.")
def gpu(out: Path, ledger: bool, ledger_file: Path | None, dry_run: bool) -> int:
    """Verify and measure all backends of the GPU.

    First the battery, with the ledger; then the suites, with tables and a page each and the comparison with rivals
    (PyTorch, cupyx); then where the GPU overtakes the CPU, with and without transfers. Each step is a command of its
    own, printed before it begins. A step that fails does not keep the next from being made. If the same folder is
    given once more, steps that were finished are not made again, but for a battery that failed, and a run that was
    interrupted goes on.
    """
    from convbench.registry import all_backends

    if ledger_file is not None and not ledger:
        raise click.UsageError("--ledger-file goes with --ledger.")
    if out.exists() and not out.is_dir():
        raise SpecError("--out", str(out), "is a file; name a folder, which is made if it is not there")
    screen, backends = Screen(), all_backends()
    if dry_run:
        for step in steps_for(backends, out, ledger=ledger, ledger_file=ledger_file):
            print(step)
        return 0
    present = _present(backends)
    missing = [f"{name}: {backend.unavailable()}" for name, backend in backends.items() if name not in present]
    for line in missing:
        screen.say(line, "dim")
    steps = steps_for(present, out, ledger=ledger, ledger_file=ledger_file)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError("--out", str(out), f"cannot be made ({error.strerror})") from None
    return follow(steps, out, lambda text: screen.say(text, "bold"))


def _present(backends: Mapping[str, Backend]) -> dict[str, Backend]:
    """Return the backends that can run here; raise if the GPU cannot be used."""
    from convbench.cuda.device import gpu_problem
    from convbench.registry import what_is_missing

    if problem := gpu_problem():
        raise BackendUnavailable(f"gpu: {problem}; --dry-run prints what would be done")
    return {name: backend for name, backend in backends.items() if what_is_missing(backend) is None}


def steps_for(
    backends: Mapping[str, Backend], out: Path, *, ledger: bool = True, ledger_file: Path | None = None
) -> list[Step]:
    """Return all steps for the backends that there are."""
    file = () if ledger_file is None else ("--ledger-file", str(ledger_file))
    return list(_steps(backends, str(out), ("--ledger", *file) if ledger else ()))


def _steps(backends: Mapping[str, Backend], out: str, ledger: tuple[str, ...]) -> Iterator[Step]:
    yield Step(("check", "--gpu", *ledger), output="check.txt")
    memory = f"{max(1, (memory_bytes() or 2**34) // 2**31)}GiB"  # half of it, for one pair on the host
    for each in _MEASUREMENTS:
        there, suite = each.takers(backends), each.chosen
        if not there:
            continue
        baseline = [name for name in _BASELINES if name in there][:1]
        budget_s = math.ceil(len(there) * len(suite.cases) * each.pair_s)
        limits = ("--budget", str(budget_s), "--memory-limit", memory)
        how = (*each.options(), *limits, *(("--baseline", *baseline) if baseline else ()))
        folder = f"{out}/{each.mode}"
        yield Step(("run", each.suite, "--backends", ",".join(there), *how, "--quiet", "--out", folder))
        for own, rivals, which, pattern in _duels(each, there):
            chosen = ("-k", pattern) if pattern else ()
            arguments = ("rivals", "--own", ",".join(own), "--against", rivals, *chosen, "--format", "markdown")
            name = f"rivals-{suite.name}-{each.mode}{which}.md"
            yield Step(arguments, run=f"{folder}/*Z-{suite.name}", output=name)
    yield from _crossovers(backends, out)


def _duels(each: Measurement, there: Mapping[str, Backend]) -> Iterator[tuple[list[str], str, str, str]]:
    """Return which own backends are compared with which rivals, and the name and the filter of the table.

    In half precision all are equal. In float32, what multiplies on tensor cores cuts its operands: each such backend
    has a table of its own, against PyTorch with TF32.
    """
    own = [name for name, backend in there.items() if backend.kind == "own"]
    cut = [name for name in own if each.dtype is None and _on_tensor_cores(name)]
    whole = [name for name in own if name not in cut]
    tables = [("", ""), *((f"-{part}", pattern) for part, pattern in each.parts)]
    duels = [(whole, each.rivals, *table) for table in tables]
    duels += [([name], "torch-cuda-tf32", f"-{name}", "") for name in cut]
    rivals = [name for name, backend in there.items() if backend.kind == "rival"]
    yield from (duel for duel in duels if duel[0] and matching(rivals, duel[1]))


def _on_tensor_cores(backend: str) -> bool:
    """Ask the kernels themselves."""
    code = code_of(backend)
    return code is not None and code.tensor_cores


def _crossovers(backends: Mapping[str, Backend], out: str) -> Iterator[Step]:
    pair = [next((name for name in names if name in backends), None) for names in (_OF_THE_CPU, _OF_THE_GPU)]
    if None in pair:
        return
    for line, over in _CROSSOVERS:
        for transfers in (False, True):
            more = ("--transfers",) if transfers else ()
            folder = f"{out}/crossovers{'-with-transfers' * transfers}"
            yield Step(("crossover", *map(str, pair), "--spec", line, "--over", over, *more, "--out", folder))


# -- following them --------------------------------------------------------------------------------


def follow(steps: Sequence[Step], out: Path, tell: Callable[[str], None], execute: Execute | None = None) -> int:
    """Make all steps that have not been finished yet, and return the exit code of all.

    Parameters
    ----------
    steps : sequence of Step
    out : Path
        Has :data:`STEPS_FILE`, which says how each one ended.
    tell : callable
        Is told each command, and in the end what has gone wrong.
    execute : callable, optional
        Stands in for processes of convbench.
    """
    codes = _codes(out)
    for number, step in enumerate(steps, 1):
        name = str(step)
        if step.finished(codes.get(name)):
            tell(f"[{number} of {len(steps)}] {name}: done before")
            continue
        tell(f"[{number} of {len(steps)}] {name}")
        begun = step.begun() if codes.get(name, _INTERRUPTED) == _INTERRUPTED else None
        if begun is not None:
            tell(f"it goes on in {begun}")
            step = Step(("run", "--resume", str(begun), "--quiet"))
        codes[name] = _make(step, out, tell, execute or _process)
        (out / STEPS_FILE).write_text(json.dumps(codes, indent=2) + "\n", encoding="utf-8")
        if codes[name] == _INTERRUPTED:
            return _INTERRUPTED
    failed = [str(step) for step in steps if codes[str(step)]]
    for name in failed:
        tell(f"exit code {codes[name]}: {name}")
    tell(f"{len(steps) - len(failed)} of {len(steps)} steps went well; everything is in {out}")
    return int(bool(failed))


def _make(step: Step, out: Path, tell: Callable[[str], None], execute: Execute) -> int:
    try:
        code, text = execute(step.complete(), bool(step.output))
    except SpecError as error:
        tell(str(error))
        return 2
    if step.output and text:
        (out / step.output).write_text(text, encoding="utf-8")
    return code


def _process(arguments: Sequence[str], kept: bool) -> tuple[int, str]:
    """Run convbench in a process of its own: a kernel that goes wrong ends its process's use of the device."""
    command = [sys.executable, "-m", "convbench", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE if kept else None, text=True, encoding="utf-8") as process:
        lines = []
        try:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                lines.append(line)
            return process.wait(), "".join(lines)
        except KeyboardInterrupt:  # it has had the signal too
            process.wait()
            return _INTERRUPTED, "".join(lines)


def _codes(out: Path) -> dict[str, int]:
    """Return how steps ended that were made before."""
    path = out / STEPS_FILE
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): int(code) for name, code in given.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise SpecError(
            "--out", str(path), f"cannot be read ({error}); take it away, or choose another folder"
        ) from None
