"""The command line from end to end: what a newcomer types, and every way in which it can go wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from convbench import Backend, ConvSpec, FunctionBackend, checks, explain, registry
from convbench.bench import Case, Options, list_suites
from convbench.bench.record import Record, append, load_results, read
from convbench.checks import CheckResult
from convbench.cli import main
from convbench.commands import cli
from convbench.errors import SpecError
from convbench.report.text import Column, Grid, Row

SUITE = """#: title = Two sizes
i32x32 k3 psame f32
i32x32 k5 psame f32
i32x32 k3 psame f32 w=gaussian
i32x32 k5 psame f32 w=gaussian
"""
PYTHON = (sys.executable, "-c")
#: Few seconds a pair, but a budget that a loaded machine does not exhaust: no pair of these tests may be skipped.
#: In one process, where what a test patches or hides is so for the run as well.
LIMITS = ("--passes", "1", "--twins", "0", "--time-limit", "1", "--budget", "90", "--one-process")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Write a suite of four tiny cases."""
    path = tmp_path / "tiny.txt"
    path.write_text(SUITE, encoding="utf-8")
    return path


def _run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def _quick(out: Path, *arguments: object) -> int:
    return _run("run", *arguments, "--out", out, *LIMITS)


def _only_folder(out: Path) -> Path:
    (folder,) = out.iterdir()
    return folder


def _process(*arguments: str, without: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``convbench`` in a process of its own, in which some libraries are not there."""
    program = (
        f"import sys\nfor name in {list(without)}: sys.modules[name] = None\n"
        "from convbench.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run(
        [*PYTHON, program, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )


# -- run --------------------------------------------------------------------------------------------


def test_run_prints_rows_tables_and_writes_files(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Header, a row for each pair as it goes, the table, the overview last, and the files."""
    assert _quick(tmp_path / "out", suite, "--backends", "im2col,sep*le", "--baseline", "im2col") == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    lines = output.splitlines()
    assert lines[0] == "Two sizes (4 cases)"
    assert lines[1] == "backends: im2col, separable · 1 pass, in one process · 90 s at most"
    parts = [output.index(title) for title in ("\ncase ", "\nResults\n", "gaussian kernel: time against", "\nFiles\n")]
    assert parts == sorted(parts)
    rows = [line.split() for line in output[parts[0] : parts[1]].splitlines() if line.endswith(" ok")]
    assert sorted((row[0], row[1], row[2]) for row in rows) == [
        ("k3", "w=gaussian", "im2col"),
        ("k3", "w=gaussian", "separable"),
        ("k3", "w=random", "im2col"),
        ("k5", "w=gaussian", "im2col"),
        ("k5", "w=gaussian", "separable"),
        ("k5", "w=random", "im2col"),
    ]
    assert "separable  unsupported: weights: numerical rank 3 of 3" in output
    assert "\x1b" not in output
    assert "…" not in output
    folder = _only_folder(tmp_path / "out")
    names = {path.name for path in folder.iterdir()}
    written = {"table.md", "table.csv", "overview.md", "time.svg", "time.png", "error.svg"}
    assert {"records.jsonl", "environment.json", *written} <= names
    records = load_results(folder)
    assert (records["pass"] == 0).sum() == 8  # each pair, verified or refused
    assert (records["pass"] == 1).sum() == 6
    assert "overhead: " in output


def test_run_takes_specs_instead_of_suites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line that a table prints is the line that reproduces it."""
    case = "n1 c2 o3 i16x18 k3 f64 w=box"
    assert _quick(tmp_path, "--spec", case, "--backends", "direct-numpy", "--quiet") == 0
    assert {record.case for record in read(_only_folder(tmp_path))} == {case}
    assert "\nResults\n" not in capsys.readouterr().out  # the full comparison is in the files


def test_run_filters_cases_by_token(suite: Path, tmp_path: Path) -> None:
    """A filter takes whole tokens: k3 is not k31; a default counts as written."""
    suite.write_text(SUITE + "i40x40 k31 f32\n", encoding="utf-8")
    assert _quick(tmp_path / "out", suite, "-k", "k3 w=rand*", "--backends", "im2col", "--quiet") == 0
    assert {record.case for record in read(_only_folder(tmp_path / "out"))} == {"n1 c1 o1 i32x32 k3 psame f32"}


def test_a_suite_with_the_matrix_table_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The book's figures come out of ``convbench run edge-detection``."""
    assert _quick(tmp_path, "edge-detection", "--backends", "direct-numpy") == 0
    output = capsys.readouterr().out
    assert "178,640                      267,960" in output
    assert "16,006,054,680 (> 16·10⁹)  refused: memory: 29.8 GiB needed, the limit is 2.0 GiB" in output
    page = (_only_folder(tmp_path) / "matrix.md").read_text(encoding="utf-8")
    assert "8,003,072,000" in page
    assert _run("report", _only_folder(tmp_path), "--baseline", "direct-numpy") == 0
    assert "178,640                      267,960" in capsys.readouterr().out
    assert (_only_folder(tmp_path) / "matrix.md").read_text(encoding="utf-8") == page


def test_report_prints_and_writes_the_same_again(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the records alone, over another baseline."""
    _quick(tmp_path / "out", suite, "-k", "w=random", "--backends", "im2col,direct-numpy", "--baseline", "im2col")
    folder = _only_folder(tmp_path / "out")
    before = (folder / "overview.md").read_text(encoding="utf-8")
    (folder / "overview.md").unlink()
    capsys.readouterr()
    assert _run("report", folder, "--baseline", "direct-numpy") == 0
    output = capsys.readouterr().out
    assert "the time of direct-numpy over this one's" in output
    assert (folder / "overview.md").read_text(encoding="utf-8") != before  # the means of speed-ups
    assert _run("report", folder, "--baseline", "im2col") == 0
    assert (folder / "overview.md").read_text(encoding="utf-8") == before


def test_a_record_cut_short_is_noted_and_left_out(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A killed run's last line may be half there: the rest is shown, with a note."""
    _quick(tmp_path / "out", suite, "-k", "k3", "--backends", "im2col")
    records = _only_folder(tmp_path / "out") / "records.jsonl"
    records.write_bytes(records.read_bytes()[:-40])
    capsys.readouterr()
    assert _run("report", records) == 0
    output, errors = capsys.readouterr()
    assert errors.count("\n") == 1
    assert errors.startswith(f"note: {records}, line 4: left out (the last line, cut short")
    assert len(read(records)) == 3
    assert len(re.findall("^im2col .*s[*].*  ok$", output, re.MULTILINE)) == 1  # the other was verified, no more


def test_a_wrong_result_fails_the_run(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, a status in place of a time, and the command that shows it again."""
    zeros = FunctionBackend(name="zeros", function=lambda spec, x, w: np.zeros(spec.output_shape, x.dtype))
    monkeypatch.setattr(registry, "_plug_ins", lambda: {"zeros": zeros})
    assert _quick(tmp_path / "out", suite, "--backends", "zeros,im2col", "-k", "k3 w=random") == 1
    output = capsys.readouterr().out
    assert "again: convbench run --spec 'n1 c1 o1 i32x32 k3 psame f32' --backends zeros" in output
    assert {record.status for record in read(_only_folder(tmp_path / "out")) if record.backend == "zeros"} == {"wrong"}


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    """SIGINT after the first row: the table is printed, the files are written, the exit code is 130."""
    command = [sys.executable, "-m", "convbench", "run", "--out", str(tmp_path), "--budget", "60", "--passes", "50"]
    command += ["--backends", "im2col", *(part for k in (3, 5, 7) for part in ("--spec", f"i64x64 k{k} f32"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith(" ok\n"):
                process.send_signal(signal.SIGINT)
                break
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    folder = _only_folder(tmp_path)
    again = f"convbench run --resume {folder}"
    assert errors == f"note: interrupted: what was measured until now is kept; to go on: {again}\n"
    assert "\nResults\n" in output
    assert read(folder)
    assert (folder / "table.md").exists()


def test_a_closed_pipe_ends_it_quietly(suite: Path, tmp_path: Path) -> None:
    """``convbench run … | head -1``: no traceback, and an exit code of its own."""
    command = [sys.executable, "-m", "convbench", "run", str(suite), "--out", str(tmp_path / "out"), *LIMITS]
    with subprocess.Popen(
        [*command, "--backends", "im2col"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(60) == 141
    assert errors == ""


def test_an_ascii_terminal_costs_the_signs_not_the_run() -> None:
    """× and µ become question marks."""
    done = _process("list", "suites", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1024?1024" in done.stdout


# -- what the command makes of a run (itself left out: it has tests of its own) -------------------------------


class _FakeRun:
    """Takes the place of :func:`convbench.bench.run.run_cases`: notes what it is asked for, and writes records."""

    def __init__(self, status: str = "ok", interrupted: bool = False) -> None:
        self.cases: list[str] = []
        self.backends: Sequence[str] | None = None
        self.options: Options | None = None
        self._status, self._interrupted = status, interrupted

    def __call__(
        self, cases: Sequence[Case], backends: Sequence[str] | None, options: Options, folder: Path, on_event: object
    ) -> None:
        self.cases, self.backends, self.options = [str(case) for case in cases], backends, options
        about = {"options": asdict(options), "cases": self.cases, "backends": ["im2col"], "threads": 1}
        (folder / "environment.json").write_text(json.dumps(about), encoding="utf-8")
        for case in cases:
            for number in (1, 2):
                common = {"run_id": "r", "case": str(case), "spec": str(case.spec), "backend": "im2col"}
                samples = [0.001 * number] * 3 if self._status == "ok" else []
                times = {"samples_s": samples, "measured_s": 0.6, "elapsed_s": float(number)}
                append(folder / "records.jsonl", Record(**common, **times, pass_=number, status=self._status))
        if self._interrupted:
            raise KeyboardInterrupt


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> _FakeRun:
    """Run nothing, and draw nothing."""
    fake = _FakeRun()
    monkeypatch.setattr("convbench.bench.run.run_cases", fake)
    monkeypatch.setattr("convbench.report.plots.save_plots", lambda table, folder: [])
    return fake


def test_options_reach_the_run(fake: _FakeRun, tmp_path: Path) -> None:
    line = "--threads 1 --mode cold --passes 4 --twins 2 --budget 7 --time-limit 3 --memory-limit 1MiB --one-process"
    arguments = ["run", "--spec", "i8x8 k3", "--out", tmp_path]
    assert _run(*arguments, *line.split()) == 0
    given = {"threads": 1, "mode": "cold", "passes": 4, "twins": 2, "budget_s": 7, "time_limit_s": 3}
    assert fake.options == Options(**given, memory_limit_bytes=2**20, isolate=False)  # type: ignore[arg-type]
    assert _run(*arguments) == 0
    assert fake.options == Options()
    assert fake.backends is None


def test_specs_may_be_sweeps(fake: _FakeRun, tmp_path: Path) -> None:
    assert _run("run", "--spec", "i8x8 k{3,5} f32", "--spec", "i{8,9}x9 k3 f32", "--out", tmp_path) == 0
    assert fake.cases == [f"n1 c1 o1 {tokens} f32" for tokens in ("i8x8 k3", "i8x8 k5", "i8x9 k3", "i9x9 k3")]


@pytest.mark.parametrize(
    ("pattern", "kernels"),
    [
        ("k3", [3]),
        ("!k3", [5, 7, 9]),
        ("group='Res Net'", [5, 7]),
        ('"group=Res*" !k7', [5]),
        ("group='' !w=box", [3]),
        ("k[3-7] !group=*Net", [3]),
        ("x=noise", [3, 5, 7, 9]),
    ],
)
def test_filters_take_globs_negations_and_quotes(
    pattern: str, kernels: list[int], fake: _FakeRun, tmp_path: Path
) -> None:
    text = "i16x16 k3\n#: group = Res Net\ni16x16 k{5,7}\n#: group =\ni16x16 k9 w=box\n"
    (tmp_path / "own.txt").write_text(text, encoding="utf-8")
    assert _run("run", tmp_path / "own.txt", "-k", pattern, "--out", tmp_path / "out") == 0
    assert [Case.parse(case).spec.kernel_size[0] for case in fake.cases] == kernels


def test_own_data_are_named_from_the_current_folder(
    fake: _FakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("my x.npy", np.ones((8, 8)))
    np.save("w.npy", np.ones((3, 3)))
    assert _run("run", "--spec", "i8x8 k3 f32 x='@my x.npy' w=@w.npy", "--out", "out") == 0
    assert fake.cases == ["n1 c1 o1 i8x8 k3 f32 x='@my x.npy' w=@w.npy"]
    folder = _only_folder(tmp_path / "out")
    monkeypatch.chdir(folder)  # the files are not where they were, and results are read all the same
    assert load_results(".")["case"].unique().tolist() == fake.cases
    assert _run("report", folder) == 0


def test_json_is_one_object_and_all_else_goes_to_standard_error(
    fake: _FakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("run", "--spec", "i8x8 k{3,5} f32", "--out", tmp_path, "--json") == 0
    output, errors = capsys.readouterr()
    content = json.loads(output)
    assert output.count("\n") == 1
    assert set(content) == {"environment", "summary", "noise", "overhead", "problems", "files"}
    assert [(row["case"], row["backend"], row["status"]) for row in content["summary"]] == [
        (case, "im2col", "ok") for case in fake.cases
    ]
    assert content["summary"][0]["pass_medians_s"] == {"1": 0.001, "2": 0.002}
    assert content["environment"]["options"]["passes"] == 6
    assert content["files"] == str(_only_folder(tmp_path))
    assert "\nResults\n" in errors
    assert _run("report", _only_folder(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out) == content


def test_quiet_leaves_the_summary_and_the_folder(
    fake: _FakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("run", "--spec", "i8x8 k{3,5} f32", "--out", tmp_path, "--quiet") == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert "\nResults\n" not in output
    assert "backends:" not in output
    assert f"\nFiles\n{_only_folder(tmp_path)}: " in output


def test_the_overhead_is_printed(fake: _FakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two visits of 0.6 s in 2 s."""
    assert _run("run", "--spec", "i8x8 k3 f32", "--out", tmp_path) == 0
    assert "\noverhead: 40% of 2 s were spent outside warm-up and samples" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("skipped", 0), ("wrong", 1), ("crashed", 1), ("melted", 1)])
def test_statuses_become_exit_codes(status: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convbench.bench.run.run_cases", _FakeRun(status))
    assert _run("run", "--spec", "i8x8 k3 f32", "--out", tmp_path, "--quiet") == code


def test_an_interrupted_run_says_how_to_go_on(
    fake: _FakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convbench.bench.run.run_cases", _FakeRun(interrupted=True))
    assert _run("run", "--spec", "i8x8 k3 f32", "--out", tmp_path / "my results", "--quiet") == 130
    folder = _only_folder(tmp_path / "my results")
    assert f"to go on: convbench run --resume '{folder}'" in capsys.readouterr().err

    def resume(folder: Path, on_event: object, *, budget_s: float | None) -> None:
        resumed.append((folder, budget_s))

    resumed: list[tuple[Path, float | None]] = []
    monkeypatch.setattr("convbench.bench.run.resume", resume)
    assert _run("run", "--resume", folder) == 0
    assert "2 of 120 s are spent" in capsys.readouterr().out
    assert _run("run", "--resume", folder, "--budget", 60, "--quiet", "--json") == 0
    assert resumed == [(folder, None), (folder, 60)]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("smoke", "SUITES: got ('smoke',)"),
        ("--spec k3", "--spec: got ('k3',)"),
        ("--passes 6", "--passes: got 6"),
        ("--threads 1", "--threads: got 1"),
        ("--one-process", "--one-process: got True"),
        ("-k k3", "-k: got 'k3'"),
        ("--out here", "--out: got"),
    ],
)
def test_a_resumed_run_keeps_its_options(
    arguments: str, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("run", "--resume", tmp_path, *arguments.split()) == 2
    errors = capsys.readouterr().err
    assert shown in errors
    assert "has been settled when the run began; leave out" in errors


# -- help and completion ----------------------------------------------------------------------------


def test_help_names_every_command_once_by_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    for name in cli.commands:
        assert output.count(f"\n  {name} ") == 1, name
    assert max(map(len, output.splitlines())) <= 80
    assert output.index("Measure:") < output.index("Look at results:") < output.index("Exit codes:")


@pytest.mark.parametrize("name", ["run", "report", "explain", "list", "completion"])
def test_help_has_examples_that_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is a command with options that there are."""
    assert main([name, "--help"]) == 0
    output = capsys.readouterr().out
    examples = re.findall(rf"^ +(convbench {name} .*?)(?:   .*)?$", output, re.MULTILINE)
    assert examples or name == "completion"
    for example in examples:
        arguments = shlex.split(example.partition("|")[0])[2:]
        if name != "completion":
            cli.commands[name].make_context(name, arguments, resilient_parsing=False)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("completion", shell) == 0
    output = capsys.readouterr().out
    assert f"_CONVBENCH_COMPLETE={shell}_complete" in output
    assert not [path for path in (sys.prefix, str(Path.cwd()), str(Path.home())) if len(path) > 1 and path in output]


@pytest.mark.parametrize(("words", "expected"), [("convbench re", "report"), ("convbench run kernel-s", "kernel-size")])
def test_completion_completes(words: str, expected: str) -> None:
    variables = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_CONVBENCH_COMPLETE": "bash_complete"}
    assert f"plain,{expected}" in _process(**variables).stdout.split()


# -- mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run smoke --backends ffft", "backend 'ffft' is not registered; did you mean fft"),
        ("run smoke --backends zz*", "--backends: no backend matches 'zz*'; there are box, box-numpy, "),
        ("run smoke --backends ,", "names no backend"),
        ("run smok", "suite: got 'smok'; is neither a built-in suite nor a file; did you mean smoke"),
        ("run {tmp}/none.txt", "is neither a built-in suite nor a file"),
        ("run {tmp}/bad.txt", "bad.txt, line 3: got 'i8x8 k-3'; kernel_size: got -3; must be an integer ≥ 1"),
        ("run {tmp}/empty.txt", "holds no case"),
        ("run --spec=i-8 --spec=k3", "kernel_size: got 'i-8'; is missing"),
        ("explain i-8x8 k3", "input_size: got -8; must be an integer ≥ 1"),
        ("run --spec k3", "input_size: got 'k3'; is missing"),
        ("run smoke --spec k3", "--spec: got 'k3'; stands instead of suites; leave out smoke"),
        ("run smoke -k k1000", "-k: got 'k1000'; keeps none of the"),
        ("run --spec=i8x8{{k3", "line: got 'i8x8{k3'; has a '{' without its '}'"),
        ("run --spec=k3 --spec=k3", "input_size: got 'k3'; is missing"),
        ("run --spec=i{{1..20000}}", "line: got 'i{1..20000}'; stands for 20,000 lines; at most 10,000 may be"),
        ("run smoke -k 'k3", '-k: got "\'k3"; has a quote that is not closed'),
        ("run smoke --mode warm", "'warm' is not one of 'hot', 'cold'"),
        ("run smoke --twins -1", "'-1' is not a whole number ≥ 0"),
        ("run --accuracy --twins 1", "--twins: got 1; says how to time, and --accuracy times nothing"),
        ("run --resume {tmp}", "holds no environment.json; give the folder of a run"),
        ("explain i8x8 k{{3,5}}", "stands for 2 cases; explain takes one, such as 'n1 c1 o1 i8x8 k3 f32'"),
        ("completion tcsh", "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
        ("run smoke --threads 0", "'0' is not a whole number ≥ 1"),
        ("run smoke --passes two", "'two' is not a whole number ≥ 1"),
        ("run smoke --time-limit -1", "'-1' is not a positive number of seconds"),
        ("run smoke --budget nan", "'nan' is not a positive number of seconds"),
        ("run smoke --memory-limit 2parsecs", "'2parsecs' is not a size such as 512MiB"),
        ("run smoke --memory-limit 0", "'0' is not a size such as 512MiB"),
        ("run smoke --baseline torchy", "backend 'torchy' is not registered"),
        ("run smoke --baseline fft --backends im2col", "--baseline: got 'fft'; must be one of the backends of"),
        ("run smoke --out {tmp}/bad.txt", "cannot be written"),
        ("run smoke --out {tmp}/bad.txt/below", "cannot be written"),
        ("run smoke --frobnicate", "--frobnicate"),
        ("frobnicate", "No such command 'frobnicate'"),
        ("report {tmp}", "give the folder of a run"),
        ("explain i8 k", "line: got 'k'; is not a token of the line format"),
        ("explain c6 o4 g4 i8x8 k3", "groups: got 4; must divide in_channels = 6"),
        ("explain i8x8 k9", "gives no output along axis 0"),
        ("explain pool=max i8x8 k2", "is a line of pooling, here is wanted one of convolution"),
        ("explain", "Missing argument"),
        ("check nope", "backend 'nope' is not registered"),
        ("check fft --specs 0", "'0' is not a whole number ≥ 1"),
        ("list everything", "'everything' is not one of 'suites', 'backends'"),
    ],
)
def test_a_mistake_is_one_clear_line(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one line on standard error that says what was given and what is allowed; nothing printed."""
    (tmp_path / "bad.txt").write_text("i8x8 k3\n\ni8x8 k-3\n", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("# nothing\n", encoding="utf-8")
    assert _run(*arguments.format(tmp=tmp_path).split()) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.count("\n") == 1
    assert errors.startswith("convbench: ")
    assert message in errors


def test_a_case_that_cannot_be_made_leaves_no_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of the wrong size is found before the run, and costs no folder."""
    np.save(tmp_path / "x.npy", np.zeros((3, 3), "f4"))
    assert _quick(tmp_path / "out", "--spec", f"i8x8 k3 x=@{tmp_path}/x.npy", "--backends", "im2col") == 2
    assert list((tmp_path / "out").iterdir()) == []
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Permissions are reported, not raised."""
    tmp_path.chmod(0o500)
    assert _quick(tmp_path / "out", "smoke") == 2
    assert "cannot be written" in capsys.readouterr().err


# -- missing libraries ------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["click", "rich", "numpy"])
def test_the_command_line_names_what_it_needs(library: str) -> None:
    """One line with the command that helps."""
    done = _process("list", "suites", without=[library])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"convbench: the command line needs {library}: pip install {library}\n"


def test_missing_pandas_costs_the_tables(suite: Path, tmp_path: Path) -> None:
    """Rows and records are there all the same."""
    arguments = ("run", str(suite), "-k", "k3", "--backends", "im2col", "--out", str(tmp_path / "out"), *LIMITS)
    done = _process(*arguments, without=["pandas"])
    assert done.returncode == 0
    assert done.stderr == "note: tables of results need pandas: pip install pandas\n"
    assert done.stdout.count(" ok\n") == 2
    assert read(_only_folder(tmp_path / "out"))


def test_missing_matplotlib_costs_the_plots(suite: Path, tmp_path: Path) -> None:
    """Tables are written; a photograph has nowhere to come from."""
    arguments = ("run", "-k", "k[13]*", "--backends", "im2col", "--out", str(tmp_path / "out"), *LIMITS)
    done = _process(*arguments, str(suite), without=["matplotlib"])
    assert done.returncode == 0
    assert done.stderr == "note: plots need matplotlib: pip install matplotlib\n"
    assert {path.suffix for path in _only_folder(tmp_path / "out").iterdir()} == {
        ".md",
        ".csv",
        ".html",
        ".json",
        ".jsonl",
    }
    done = _process(*arguments, "edge-detection", without=["matplotlib"])
    assert (done.returncode, done.stderr) == (0, "note: plots need matplotlib: pip install matplotlib\n")
    assert "im2col unavailable in every case: x=photo needs matplotlib" in done.stdout


def test_a_missing_backend_library_costs_its_backends(suite: Path, tmp_path: Path) -> None:
    """They are unavailable with the reason, in every command, and that is no failure."""
    arguments = ("--backends", "im2col,fft", "--out", str(tmp_path / "out"), *LIMITS, "-k", "k3")
    done = _process("run", str(suite), *arguments, without=["pyfftw"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "not here: fft: not installed: needs pyfftw: pip install pyfftw" in done.stdout
    done = _process("check", "fft", without=["pyfftw"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "unavailable: not installed: needs pyfftw: pip install pyfftw" in done.stdout


# -- check, explain, list ---------------------------------------------------------------------------


def test_check_counts_what_it_did(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Passed, failed and refused pairs for each backend; the options reach the battery."""
    asked = []

    def battery(backend: Backend, *, specs: int, seed: int) -> list[CheckResult]:
        asked.append((backend.name, specs, seed))
        return [CheckResult("rule", None, status, "") for status in ["passed"] * 1234 + ["refused"] * 5]

    monkeypatch.setattr(checks, "check_backend", battery)
    assert _run("check", "scipy-f*", "im2col", "--specs", 7, "--seed", 3) == 0
    assert asked == [("im2col", 7, 3), ("scipy-fft", 7, 3)]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[2:]] == [[name, "1,234", "0", "5"] for name, *_ in asked]


def test_check_shows_the_first_failures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that returns zeros fails, with a few of its failures and the number of the others."""
    zeros = FunctionBackend(name="zeros", function=lambda spec, x, w: np.zeros(spec.output_shape, x.dtype))
    monkeypatch.setattr(registry, "_plug_ins", lambda: {"zeros": zeros})
    assert _run("check", "zeros", "--specs", 1) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = int(lines[2].split()[2].replace(",", ""))
    assert len(lines) == 3 + 5 + 1
    assert lines[-1] == f"  … and {failed - 5} more failures"


def test_explain_shows_the_books_figures_and_every_backend(capsys: pytest.CaptureFixture[str]) -> None:
    """Derived figures, the matrix table, and who is willing."""
    assert _run("explain", "i280x320 k1x2 f32") == 0
    output = capsys.readouterr().out
    assert ["multiplications", "+", "additions", "267,960", "exact"] in [line.split() for line in output.splitlines()]
    assert "8,003,072,000 (> 8·10⁹)    16,006,054,680 (> 16·10⁹)  refused: memory: 29.8 GiB needed" in output
    for name in registry.all_backends():
        assert f"\n{name} " in output
    assert "separable own no: kernel size:" in " ".join(output.split())


def test_explain_shows_the_shape_of_a_gradient(capsys: pytest.CaptureFixture[str]) -> None:
    for op, result in (("input_grad", "1×2×8×9 shape of ∂J/∂x"), ("weight_grad", "3×2×3×3 shape of ∂J/∂w")):
        assert _run("explain", f"op={op} c2 o3 i8x9 k3 f32") == 0
        assert f"result {result}" in " ".join(capsys.readouterr().out.split())


def test_explain_as_a_frame() -> None:
    """One row a backend; what a refusal leaves unknown is missing."""
    table = explain(ConvSpec.parse("i1100x1100 k3 f32"), threads=1).set_index("backend")
    assert list(table.columns) == ["kind", "willing", "reason", "flops", "workspace_bytes", "expected_s"]
    assert set(table.index) == set(registry.all_backends())
    assert not table.loc["reference", "willing"]
    assert "work: 1.09e+07 MACs needed" in table.loc["reference", "reason"]
    assert table.loc["direct-numpy", "flops"] == ConvSpec.parse("i1100x1100 k3 f32").flops
    assert float(str(table.loc["direct-numpy", "expected_s"])) > 0


@pytest.mark.parametrize(
    "line", ["i999999999x999999999 k3", "i8 k3 p999999999999999999", "i100000x100000 k30001 pfull"]
)
def test_explain_of_the_enormous(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Counted in closed form, refused before anything is planned or allocated."""
    assert _run("explain", line) == 0
    rows = {words[0]: words for words in map(str.split, capsys.readouterr().out.splitlines()) if words}
    assert rows["im2col"][2:4] == ["no:", "memory:"]
    assert not explain(line)["willing"].any()


def test_explain_takes_a_spec_or_its_line() -> None:
    """Anything else is named."""
    with pytest.raises(SpecError, match=r"spec: got 5; must be a ConvSpec or its line"):
        explain(5)  # type: ignore[arg-type]


def test_explain_without_pandas_is_one_line() -> None:
    """No half of it first."""
    done = _process("explain", "i8x8 k3", without=["pandas"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "convbench: explain() needs pandas: pip install pandas\n"


def test_threads_that_were_not_held_are_mentioned(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the environment says of the pools stands below the tables, and in the files."""
    _quick(tmp_path / "out", suite, "-k", "k3 w=random", "--backends", "im2col", "--quiet")
    folder = _only_folder(tmp_path / "out")
    path = folder / "environment.json"
    environment = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**environment, "thread_pool_problems": ["blas has 8 threads"]}), encoding="utf-8")
    capsys.readouterr()
    assert _run("report", folder) == 0
    assert "\nthreads: blas has 8 threads\n" in capsys.readouterr().out
    assert "threads: blas has 8 threads" in (folder / "table.md").read_text(encoding="utf-8")


def test_lists_name_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """Suites with their number of cases, backends with what stands behind them."""
    assert _run("list", "suites") == 0
    output = capsys.readouterr().out
    assert [line.split()[0] for line in output.splitlines()[1:]] == list(list_suites())
    assert _run("list", "backends") == 0
    output = capsys.readouterr().out
    assert [line.split()[0] for line in output.splitlines()[1:]] == list(registry.all_backends())


def test_without_arguments_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    """And the exit codes are in it."""
    assert main([]) == 0
    output = capsys.readouterr().out
    assert "130  interrupted; what was measured is kept" in output


# -- the terminal -----------------------------------------------------------------------------------


def test_a_live_row_that_does_not_fit_is_wrapped_under_its_own_column() -> None:
    """Rows come before the table is known: widths are reserved, sentences wrap where they began."""
    grid = Grid([Column("case", right=False, least=6), Column("backend", right=False, least=8), Column("time")])
    row = Row(("k3", "im2col"), sentence="skipped: memory: 40.0 GiB needed, the limit is 2.0 GiB")
    lines = ["".join(text for text, _ in line) for line in grid.row_lines(row, 40)]
    assert lines[0] == "k3      im2col    skipped: memory: 40.0"
    assert all(line.startswith(" " * 18) and len(line) <= 40 for line in lines[1:])
