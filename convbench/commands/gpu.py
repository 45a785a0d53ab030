"""``convbench gpu``: everything there is to do on a machine with a GPU, by one command."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convbench.commands.parameters import EXIT_CODES, FOLDER
from convbench.errors import BackendUnavailable, SpecError
from convbench.report.screen import Screen

if TYPE_CHECKING:
    from convbench.backend import Backend

__all__ = ["Step", "gpu", "steps_for"]

#: In the folder of --out: each step that has been made, with its exit code.
STEPS_FILE = "steps.json"

_MEMORY_LIMIT = "16GiB"  # for one pair on the host: judging a result takes several times its size
#: Suite → its runs: filter of cases, mode, and which rivals the tables are against.
_RUNS: tuple[tuple[str, str, str, str], ...] = (
    ("cnn-layers", "", "hot", "torch-cuda"),
    ("cnn-layers", "", "cold", "torch-cuda"),
    ("cnn-batch16", "", "hot", "torch-cuda"),
    ("cnn-batch128", "", "hot", "torch-cuda"),
    ("large-kernel", "", "hot", "torch-cuda"),
    ("image-filter", "i2160x3840", "hot", "cupyx-*"),
    ("audio-1d", "", "hot", "torch-cuda,cupyx-*"),
    ("volume-3d", "", "hot", "torch-cuda,cupyx-*"),
)
#: What the CPU is compared with the GPU on: the line that does not vary, and the axis.
_CROSSOVERS = (
    ("n1 c64 o64 i8x8 k3 psame f32", "input_size=8:256"),
    ("n1 c64 o64 i28x28 k3 psame f32", "batch=1:64"),
    ("n1 c1 o1 i64x64 k15 psame f32", "input_size=64:2048"),
)
_OF_THE_CPU, _OF_THE_GPU = ("direct", "im2col"), ("direct-cupy", "im2col-cupy", "direct-naive-cupy")
_BASELINES = ("torch-cuda", "im2col-cupy", "direct-cupy", "direct-naive-cupy")
#: In the names of backends that multiply on tensor cores what has fewer bits than the operands.
_REDUCED = ("tf32", "bf16", "f16", "half", "tensor")
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


#: Makes one call of convbench; returns its exit code and, if that is kept, what it printed.
Execute = Callable[[Sequence[str], bool], tuple[int, str]]


@click.command(epilog=f"{_EXAMPLES}\n\n{EXIT_CODES}")
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="For everything that comes of it.")
@click.option("--ledger/--no-ledger", default=True, show_default=True,
              help="Enter the backends that pass into the ledger of what has run on which GPU.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the commands alone; needs no GPU.")
def gpu(out: Path, ledger: bool, dry_run: bool) -> int:
    """Verify and measure all backends of the GPU.

    First the battery, with the ledger; then the suites, with tables and a page each and the comparison with rivals
    (PyTorch, cupyx); then where the GPU overtakes the CPU, with and without transfers. Each step is a command of its
    own, printed before it begins. A step that fails does not keep the next from being made. Steps that were finished
    are not made again if the same folder is given once more.
    """
    from convbench.registry import all_backends

    screen, backends = Screen(), all_backends()
    if dry_run:
        for step in steps_for(backends, out, ledger=ledger):
            print(step)
        return 0
    present = _present(backends)
    missing = [f"{name}: {backend.unavailable()}" for name, backend in backends.items() if name not in present]
    for line in missing:
        screen.say(line, "dim")
    steps = steps_for(present, out, ledger=ledger)
    out.mkdir(parents=True, exist_ok=True)
    return follow(steps, out, lambda text: screen.say(text, "bold"))


def _present(backends: Mapping[str, Backend]) -> dict[str, Backend]:
    """Return the backends that can run here; raise if the GPU cannot be used."""
    from convbench.cuda.device import gpu_problem
    from convbench.registry import what_is_missing

    if problem := gpu_problem():
        raise BackendUnavailable(f"gpu: {problem}; --dry-run prints what would be done")
    return {name: backend for name, backend in backends.items() if what_is_missing(backend) is None}


def steps_for(backends: Mapping[str, Backend], out: Path, *, ledger: bool = True) -> list[Step]:
    """Return all steps for the backends that there are."""
    return list(_steps(backends, str(out), ledger))


def _steps(backends: Mapping[str, Backend], out: str, ledger: bool) -> Iterator[Step]:
    there = [name for name, backend in backends.items() if backend.device == "cuda"]
    yield Step(("check", "--gpu", *["--ledger"] * ledger), output="check.txt")
    baseline = [name for name in _BASELINES if name in there][:1]
    for suite, pattern, mode, against in _RUNS:
        chosen = ("-k", pattern) if pattern else ()
        how = ("--mode", mode, "--memory-limit", _MEMORY_LIMIT, *(("--baseline", *baseline) if baseline else ()))
        folder = f"{out}/{mode}"
        yield Step(("run", suite, *chosen, "--backends", ",".join(there), *how, "--quiet", "--out", folder))
        for own, rivals, which in _duels(backends, there, against):
            arguments = ("rivals", "--own", ",".join(own), "--against", rivals, "--format", "markdown")
            yield Step(arguments, run=f"{folder}/*Z-{suite}", output=f"rivals-{suite}-{mode}{which}.md")
    yield from _crossovers(backends, out)


def _duels(backends: Mapping[str, Backend], there: Sequence[str], against: str) -> Iterator[tuple[list[str], str, str]]:
    """Return which own backends are compared with which rivals: those that round operands to TF32 among themselves."""
    own = [name for name in there if backends[name].kind == "own"]
    reduced = [name for name in own if any(word in name for word in _REDUCED)]
    for names, rivals, which in (
        ([name for name in own if name not in reduced], against, ""),
        ([name for name in reduced if "tf32" in name], "torch-cuda-tf32", "-tf32"),
    ):
        if names and any(fnmatchcase(name, glob) for name in there for glob in rivals.split(",")):
            yield names, rivals, which


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
        if codes.get(name) in _FINISHED:
            tell(f"[{number} of {len(steps)}] {name}: done before")
            continue
        tell(f"[{number} of {len(steps)}] {name}")
        codes[name] = _make(step, out, tell, execute or _process)
        (out / STEPS_FILE).write_text(json.dumps(codes, indent=2) + "\n", encoding="utf-8")
        if codes[name] == _INTERRUPTED:
            return _INTERRUPTED
    failed = [str(step) for step in steps if codes[str(step)]]
    for name in failed:
        tell(f"exit code {codes[name]}: {name}")
    tell(f"{len(steps) - len(failed)} of {len(steps)} steps went well; everything is in {out}")
    return int(bool(failed))


_INTERRUPTED = 130
_FINISHED = (0, 1)  # 1: something in it is wrong or failed, which is a result


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
