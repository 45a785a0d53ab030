"""The ledger: nothing gets into it without a GPU, and what it says of a backend stops being true with its code."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convbench import ConvSpec, all_backends, check_backend, get_backend
from convbench.cli import main
from convbench.cuda import device, launch, ledger
from convbench.cuda.direct_naive import KERNELS
from convbench.cuda.kernel import Kernel
from convbench.cuda.launch import launched_kernels
from convbench.cuda.ledger import LEDGER, Code, Entry, changes, code_of, read_ledger, record, standing, writable
from convbench.errors import BackendUnavailable, SpecError

ROOT = Path(__file__).parents[1]
NAME = "direct-naive-cupy"
ON_CUDA = [backend for backend in all_backends().values() if backend.device == "cuda"]
SPEC = ConvSpec(input_size=8, kernel_size=3)
PASSED = check_backend("direct-numpy", specs=[SPEC])
SURROUNDINGS: dict[str, Any] = {
    "gpu": "NVIDIA Imaginary",
    "compute_capability": "9.0",
    "driver": "1.2.3",
    "cuda": "13.0",
    "cupy": "14.2.0",
    "nvrtc": "13.0",
    "date": "2026-01-02T03:04:05+00:00",
    "convbench": "0",
    "git_revision": None,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.json"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend, for what comes after the device has been asked."""
    monkeypatch.setattr(ledger, "_surroundings", lambda: SURROUNDINGS)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have no usable device, on machines that have one too."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    device.gpu_problem.cache_clear()
    yield
    monkeypatch.undo()
    device.gpu_problem.cache_clear()


def _enter(path: Path, **changed: Any) -> str | None:
    given = {"backend": NAME, "results": PASSED, "launched": KERNELS, "specs": 60, "seed": 0, "path": path}
    return record(**given | changed)


# -- nothing without a device -----------------------------------------------------------------------


@pytest.mark.usefixtures("no_gpu")
def test_without_a_device_nothing_is_written(path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="the ledger is written where a kernel has run: not installed: needs"):
        _enter(path)
    assert not path.exists()


def test_believing_in_a_device_is_not_enough(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is entered of the device comes from the device."""
    if device.gpu_problem() is None:
        pytest.skip("there is a GPU")
    monkeypatch.setattr(device, "gpu_problem", lambda: None)
    with pytest.raises((RuntimeError, ImportError)):
        _enter(path)
    assert not path.exists()


@pytest.mark.usefixtures("no_gpu")
def test_the_command_refuses_before_any_check(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--gpu", "--ledger", "--ledger-file", str(path)]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("convbench: --ledger: no backend of the GPU can run here, nothing was written: not insta")
    assert len(errors.splitlines()) == 1
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--ledger"], "--ledger goes with --gpu"),
        (["--gpu", "--ledger", "--pooling"], "no backend of the GPU among"),
        (["--ledger", "--pooling"], "--ledger goes with --gpu, and not with --pooling"),
        (["--gpu", "--ledger", "--specs", "59"], "--specs: got 59; must be ≥ 60 with --ledger"),
        (["--gpu", "--ledger-file", "x.json"], "--ledger-file goes with --ledger"),
        (["--gpu", "im2col"], "--gpu: no backend of the GPU among im2col"),
        (["--gpu", "--ledger", "--ledger-file", "no/such/folder/x.json"], "its folder cannot be written"),
        (["--gpu", "--ledger", "--ledger-file", "."], "--ledger-file: got '.'; is a folder; a file in it may be named"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *arguments]) == 2
    assert text in capsys.readouterr().err


# -- entries ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("gpu")
def test_an_entry_says_what_ran_where(path: Path) -> None:
    assert _enter(path) is None
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["format"] == 1
    (entry,) = content["backends"][NAME]
    assert {name: entry[name] for name in SURROUNDINGS} == SURROUNDINGS
    assert entry["checks_passed"] == sum(result.status == "passed" for result in PASSED) > 10
    assert 0 < entry["error_max_eps"] < 100
    assert (entry["specs"], entry["seed"]) == (60, 0)
    code = code_of(NAME)
    assert code is not None
    assert (entry["launch_code"], entry["kernels"]) == (code.launch, code.kernels)
    assert read_ledger(path)[NAME] == [Entry(**entry)]


@pytest.mark.usefixtures("gpu")
def test_each_kind_of_gpu_has_one_entry(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _enter(path)
    monkeypatch.setattr(ledger, "_surroundings", lambda: SURROUNDINGS | {"gpu": "Another", "date": "2026-02-02T00:00"})
    _enter(path)
    _enter(path)
    assert [entry.gpu for entry in read_ledger(path)[NAME]] == ["NVIDIA Imaginary", "Another"]
    assert standing(get_backend(NAME), path) == "verified on Another, 2026-02-02"


@pytest.mark.usefixtures("gpu")
def test_only_what_passed_as_a_whole_is_entered(path: Path) -> None:
    failed = [*PASSED, replace(PASSED[0], status="failed")]
    assert _enter(path, results=failed) == "1 checks failed"
    refused = [replace(result, status="refused") for result in PASSED]
    assert _enter(path, results=refused) == "no check was passed"
    assert _enter(path, results=[]) == "no check was passed"
    assert _enter(path, backend="somebody-elses") == "it is a plug-in's, and the ledger is of convbench's own files"
    with pytest.raises(SpecError, match="must be ≥ 60"):
        _enter(path, specs=59)
    assert not path.exists()


@pytest.mark.usefixtures("gpu")
def test_it_is_written_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _enter(path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(SpecError, match="cannot be written \\(No space left on device\\); --ledger-file PATH"):
        _enter(path, seed=1)
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2, "backends": {}}', '{"format": 1, "backends": [1]}'])
def test_a_damaged_file_is_told_and_left_alone(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SpecError, match="ledger"):
        _enter(path)
    with pytest.raises(SpecError, match="ledger"):
        writable(path)
    assert path.read_text(encoding="utf-8") == content
    assert "ledger: got" in (standing(get_backend(NAME), path) or "")  # one line, in the list


def test_the_largest_error_is_read_from_what_the_battery_says() -> None:
    messages = [result.message for result in PASSED if "eps" in result.message]
    assert messages
    assert ledger._largest_error(PASSED) == max(float(m.split("error ")[1].split(" eps")[0]) for m in messages)
    assert ledger._largest_error([]) is None


# -- what is said -----------------------------------------------------------------------------------


def _entry(code: Code, **changed: Any) -> Entry:
    more = {"specs": 60, "seed": 0, "checks_passed": 9, "error_max_eps": 1.5}
    return Entry(**SURROUNDINGS | more | {"launch_code": code.launch, "kernels": code.kernels} | changed)


def _told(path: Path, *entries: Entry) -> str | None:
    ledger._write({NAME: list(entries)}, path)
    return standing(get_backend(NAME), path)


def test_what_is_said_follows_from_the_code(path: Path) -> None:
    backend, code = get_backend(NAME), code_of(NAME)
    assert code is not None
    assert standing(backend, path) == "compiled and CPU-executed, never run on a GPU"
    assert _told(path, _entry(code)) == "verified on NVIDIA Imaginary, 2026-01-02"
    assert changes([backend], path) == {}
    kernel = next(iter(code.kernels))
    for changed, text in (
        ({"kernels": code.kernels | {kernel: "another"}}, kernel),
        ({"kernels": code.kernels | {"old.cu: old<1>": "x"}}, "old.cu: old<1> (gone)"),
        ({"launch_code": "another"}, "what launches or judges them"),
    ):
        assert _told(path, _entry(code, **changed)) == "changed since it was verified on NVIDIA Imaginary, 2026-01-02"
        assert changes([backend], path) == {NAME: [text]}
    old = _entry(code, gpu="Old", launch_code="another")
    assert _told(path, old, _entry(code)) == "verified on NVIDIA Imaginary, 2026-01-02"
    assert _told(path, _entry(code), old) == "verified on NVIDIA Imaginary, 2026-01-02"


def test_kernels_that_were_not_launched_are_not_verified(path: Path) -> None:
    code = code_of(NAME)
    assert code is not None
    first, *_ = code.kernels
    part = {name: digest for name, digest in code.kernels.items() if name != first}
    assert (
        _told(path, _entry(code, kernels=part)) == "verified in part (2 of 3 kernels) on NVIDIA Imaginary, 2026-01-02"
    )
    assert changes([get_backend(NAME)], path) == {}
    less = _entry(code, kernels=part, gpu="Another")
    assert _told(path, _entry(code), less) == "verified on NVIDIA Imaginary, 2026-01-02"
    assert _told(path, less, _entry(code)) == "verified on NVIDIA Imaginary, 2026-01-02"
    both = _entry(code, kernels=part), _entry(code, kernels=part, gpu="Another")
    assert _told(path, *both) == "verified in part (2 of 3 kernels) on Another, 2026-01-02"


@pytest.mark.usefixtures("gpu")
def test_an_entry_names_the_kernels_that_were_launched(path: Path) -> None:
    other = Kernel("direct_naive.cu", "direct_naive<char>", (256, 1, 1))
    assert _enter(path, launched=()) == "none of its kernels was launched"
    assert _enter(path, launched=(*KERNELS, other)) == (
        "it launched what none of its variants names: direct_naive.cu: direct_naive<char>, block 256x1x1"
    )
    assert not path.exists()
    assert _enter(path, launched=KERNELS[1:]) is None
    (entry,) = read_ledger(path)[NAME]
    assert list(entry.kernels) == [ledger._name(kernel) for kernel in KERNELS[1:]]
    assert str(standing(get_backend(NAME), path)).startswith("verified in part (2 of 3 kernels) on ")


def test_launches_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a CuPy that compiles nothing."""

    class RawModule:
        def __init__(self, **_: object) -> None:
            pass

        def get_function(self, name: str) -> Any:
            def function(grid: object, block: object, arguments: Any, shared_mem: int) -> None:
                if arguments:
                    raise RuntimeError(name)

            return function

    monkeypatch.setitem(sys.modules, "cupy", type("cupy", (), {"RawModule": RawModule}))
    monkeypatch.setattr(launch, "_LAUNCHES", {})
    first, second, third = (launch._loaded.__wrapped__(kernel, 0) for kernel in KERNELS)
    first((1, 1, 1), ())
    with launched_kernels() as launched:
        second((1, 1, 1), ())
        with pytest.raises(RuntimeError):
            third((1, 1, 1), (1,))
    assert launched == {KERNELS[1]}
    with launched_kernels() as launched:
        first((1, 1, 1), ())
    assert launched == {KERNELS[0]}


def test_nothing_is_said_of_the_cpu_and_of_plug_ins() -> None:
    assert standing(get_backend("im2col")) is None
    assert standing(replace(get_backend(NAME), name="somebody-elses")) is None  # type: ignore[type-var]


def test_a_kernels_digest_follows_its_source_options_and_block(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel("direct_naive.cu", "direct_naive<float>", (256, 1, 1))
    digests = {kernel.fingerprint}
    digests.add(replace(kernel, block=(128, 1, 1)).fingerprint)
    digests.add(replace(kernel, instance="direct_naive<double>").fingerprint)
    digests.add(replace(kernel, shared_bytes=16).fingerprint)
    monkeypatch.setattr("convbench.cuda.kernel.OPTIONS", ("-std=c++20",))
    digests.add(kernel.fingerprint)
    monkeypatch.setattr("convbench.cuda.kernel.source_text", lambda file: "another")
    digests.add(kernel.fingerprint)
    assert len(digests) == 6


def test_launch_code_is_every_module_that_decides_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "convbench.backends.direct_naive_cupy"
    reached = ledger._reached(module)
    for name in ("direct_naive", "forward", "geometry", "launch", "variants"):
        assert f"convbench.cuda.{name}" in reached
    for name in ("algorithms.rewriting", "arrays", "bounds"):
        assert f"convbench.{name}" in reached
    for name in ("cuda.device", "cuda.ledger", "cuda.resources", "cuda.timing", "backend", "spec", "cuda.fft"):
        assert f"convbench.{name}" not in reached
    before = ledger._code_of.__wrapped__(NAME, module)
    for name in ("convbench.cuda.direct_naive", "convbench.cuda.launch", "convbench.bounds"):
        with monkeypatch.context() as patch:
            text = ledger._text(name)
            patch.setattr(ledger, "_text", lambda m, name=name, text=text: text + "#" * (m == name))
            patch.setattr(ledger, "_reached", lambda _: reached)
            assert ledger._code_of.__wrapped__(NAME, module).launch != before.launch


@pytest.mark.parametrize("backend", ON_CUDA, ids=lambda backend: backend.name)
def test_every_backend_of_the_gpu_has_a_standing(backend: Any) -> None:
    said = standing(backend) or ""
    assert said.startswith(("verified on ", "changed since it")) or said.endswith("never run on a GPU")
    code = code_of(backend.name)
    assert code is not None
    assert ("compiled" in said) == (bool(code.kernels) and backend.kind == "own") or "verified" in said


def test_the_committed_ledger_knows_only_real_devices() -> None:
    known = {backend.name for backend in ON_CUDA}
    for name, entries in read_ledger().items():
        assert name in known
        assert entries
        for entry in entries:
            assert entry.checks_passed >= 100
            assert entry.gpu
            assert entry.specs >= ledger.LEAST_SPECS
    assert json.loads(LEDGER.read_text(encoding="utf-8"))["format"] == 1


@pytest.mark.usefixtures("no_gpu")
def test_the_list_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "backends"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for backend in ON_CUDA:
        assert lines[backend.name].endswith(f" · {standing(backend)}")
    assert "never run" not in lines["im2col"]


@pytest.mark.usefixtures("no_gpu")
def test_the_checks_say_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--gpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for backend in ON_CUDA:
        row = next(i for i, line in enumerate(lines) if line.startswith(f"{backend.name} "))
        assert re.search("unavailable: (not installed|no device): ", lines[row])
        assert lines[row + 1] == f"  {standing(backend)}"


def test_the_command_enters_what_passed(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything but the device is real: a backend of NumPy's plays the part of one on the GPU."""
    from convbench.bench.families import Convolution

    stand_in = replace(get_backend("direct-numpy"), name=NAME, device="cuda")  # type: ignore[type-var]
    monkeypatch.setattr(Convolution, "get_backend", lambda self, name: stand_in)

    def checked(self: Convolution, name: str, **_: object) -> Any:
        launch._LAUNCHES.update({kernel: [1] for kernel in KERNELS})
        return check_backend(stand_in, specs=[SPEC])

    monkeypatch.setattr(Convolution, "check", checked)
    monkeypatch.setattr(launch, "_LAUNCHES", {})
    monkeypatch.setattr(ledger, "_surroundings", lambda: SURROUNDINGS)
    assert main(["check", NAME, "--gpu", "--ledger", "--ledger-file", str(path)]) == 0
    output = capsys.readouterr().out
    assert f"  entered into {path}\n  verified on NVIDIA Imaginary, 2026-01-02" in output
    assert list(read_ledger(path)) == [NAME]


def _gate(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    script = runpy.run_path(str(ROOT / ".ci" / "ledger.py"))
    monkeypatch.setattr(sys, "argv", ["ledger.py", *arguments])
    script["main"]()


def test_the_readme_says_what_follows_from_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """``python .ci/ledger.py`` writes it."""
    _gate(monkeypatch, "--check")


def test_the_gate_prints_what_changed(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = code_of(NAME)
    assert code is not None
    ledger._write({NAME: [_entry(code, launch_code="another")]}, path)
    for function in (ledger.changes, ledger.standing):
        monkeypatch.setattr(function, "__defaults__", (path,))
    with pytest.raises(SystemExit, match=r"README\.md's word on GPUs is not what follows from the ledger"):
        _gate(monkeypatch, "--check")
    output = capsys.readouterr().out
    assert f"changed since it was verified on NVIDIA Imaginary, 2026-01-02: `{NAME}`" in output
    assert f"{NAME}: changed since it was verified:\n    what launches or judges them" in output


def test_imports_are_read_as_python_reads_them() -> None:
    modules = {name for backend in ON_CUDA for name in ledger._reached(_module(backend.name))}
    for module in modules:
        names: set[str] = set()
        for node in ast.walk(ast.parse(ledger._text(module))):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
        assert {name for name in names & modules if name != module} <= set(ledger._imported(module))


def _module(backend: str) -> str:
    return f"convbench.backends.{backend.replace('-', '_')}"


def test_the_gate_breaks_lines_between_words() -> None:
    script = runpy.run_path(str(ROOT / ".ci" / "ledger.py"))
    names = [f"`im2col-tf{number}-cupy`" for number in range(40)]
    lines = script["_wrapped"](f"- said: {', '.join(names)}.").splitlines()
    assert max(map(len, lines)) <= 120
    assert [name for line in lines for name in line.replace(",", "").rstrip(".").split() if "`" in name] == names
