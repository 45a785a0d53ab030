"""The fault drill: whatever a backend does, and whoever is killed, costs its own pair and nothing else."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import troublemakers as trouble

from convbench import FunctionBackend
from convbench.bench import Case, Options, load_results, run_cases
from convbench.bench.record import STATUSES, Record, append, held, read, write_environment
from convbench.bench.run import PairDone, resume
from convbench.errors import SpecError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="worker processes need a POSIX system")
LINE = trouble.LINE
DRILL = Options(threads=1, passes=2, budget_s=60.0, time_limit_s=3.0, memory_limit_bytes=2**24, twins=0)


def drill(
    folder: Path, backends: list[Any], lines: tuple[str, ...] = (LINE,), options: Options = DRILL
) -> list[Record]:
    run_cases([Case.parse(line) for line in lines], backends, options, folder)
    return read(folder)


def statuses(records: list[Record], backend: str) -> list[tuple[int, str]]:
    return [(record.pass_, record.status) for record in records if record.backend == backend]


MEASURED = [(0, "ok"), (1, "ok"), (2, "ok")]
FATES = {
    trouble.panics: ("failed", "Panic: at the core"),
    trouble.speaks_no_unicode: ("failed", "ValueError: file \\udcff missing"),
    trouble.forks_and_aborts: ("crashed", "calls on smaller specs: its process died (SIGABRT)"),
    trouble.hangs: ("timeout", "calls on smaller specs took longer than 7 s; stopped"),
    trouble.segfaults: (
        "crashed",
        "calls on smaller specs: its process died (SIGSEGV); its last words: these are my last words",
    ),
    trouble.aborts: ("crashed", "calls on smaller specs: its process died (SIGABRT)"),
    trouble.exits: ("crashed", "calls on smaller specs: its process died (exit code 3)"),
    trouble.kills_itself: ("crashed", "calls on smaller specs: its process died (SIGKILL)"),
    trouble.allocates: ("out-of-memory", "calls on smaller specs: its process grew by more than 16.0 MiB; stopped"),
    trouble.raises: ("failed", "ValueError: boom second line"),
    trouble.overwrites: ("wrong", "changed its operand x"),
}


def test_each_trouble_gets_its_status_and_everything_else_is_measured(tmp_path: Path) -> None:
    """Specs of so few FLOPs are their own probes: what goes wrong in a probe is unknown, and shows in the call."""
    troubled = [trouble.make(function.__name__, function) for function in FATES]
    fifth = trouble.Planned("fifth", 5)
    changes = trouble.make("changes", trouble.changes_the_process)
    records = drill(
        tmp_path, [trouble.make("honest"), *troubled, fifth, changes, trouble.make("prints", trouble.prints)]
    )
    for function, (status, reason) in FATES.items():
        (record,) = (record for record in records if record.backend == function.__name__)
        assert (record.status, record.pass_, record.samples_s) == (status, 0, []), record.reason
        assert record.reason.startswith(reason)
        assert STATUSES[record.status]
    assert statuses(records, "honest") == statuses(records, "prints") == MEASURED
    assert statuses(records, "changes") == MEASURED
    (caveats, *_) = [record.caveats for record in records if record.backend == "changes"]
    assert [caveat.partition("it changed ")[2] for caveat in caveats] == [
        "NumPy's treatment of floating-point errors",
        "the working folder",
        "warnings into errors",
    ]
    assert statuses(records, "fifth") == [(0, "ok"), (1, "wrong")]
    assert load_results(tmp_path).attrs["problems"] == []


def test_a_crash_in_a_pass_costs_the_pair_its_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVBENCH_TEST_FOLDER", str(tmp_path / "pids"))
    (tmp_path / "pids").mkdir()
    late = trouble.make("late", trouble.in_worker_only)
    records = drill(tmp_path / "run", [trouble.make("a"), late, trouble.make("b")])
    assert statuses(records, "late") == [(0, "ok"), (1, "ok"), (2, "crashed")]
    assert statuses(records, "a") == statuses(records, "b") == MEASURED


def test_passes_are_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVBENCH_TEST_FOLDER", str(tmp_path / "pids"))
    (tmp_path / "pids").mkdir()
    options = Options(threads=1, passes=1, budget_s=60.0, twins=0)
    drill(tmp_path / "run", [trouble.make("late", trouble.in_worker_only)], options=options)
    pids = {path.name for path in (tmp_path / "pids").iterdir()}
    assert len(pids) == 2
    assert str(os.getpid()) not in pids


def test_functions_of_a_notebook_can_be_measured(tmp_path: Path) -> None:
    local = FunctionBackend(name="local", function=lambda spec, x, w: trouble.right(spec, x, w))
    assert statuses(drill(tmp_path, [local]), "local") == MEASURED


def test_what_cannot_be_sent_to_a_process_is_said_before_any_work(tmp_path: Path) -> None:
    lock = threading.Lock()
    bound = FunctionBackend(name="bound", function=lambda spec, x, w: (lock, trouble.right(spec, x, w))[1])
    with pytest.raises(SpecError, match=r"^backends: got 'bound'; cannot be sent .*isolate=False"):
        drill(tmp_path / "run", [bound])
    assert not (tmp_path / "run").exists()


def test_a_script_needs_no_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import convbench as cb\n"
        "print(cb.benchmark('i8x8 k3 f32', ['direct-numpy'], passes=1, threads=1, twins=0).status.tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=Path(__file__).parents[1], env=path()
    )
    assert (done.returncode, done.stdout) == (0, "['ok', 'ok']\n"), done.stderr


# -- killing ------------------------------------------------------------------------------------------------------

LINES = tuple(f"i{size}x{size} k3 psame f32" for size in (8, 12, 16))
NAMES = ("direct-numpy", "im2col", "reference")
KILLS = Options(threads=1, passes=3, budget_s=600.0, twins=1)
EXPECTED = {
    *((line, name, False, number) for line in LINES for name in NAMES for number in range(4)),
    *((line, "twin", True, number) for line in LINES for number in range(1, 4)),
}
_DRIVER = """
import sys
from pathlib import Path
from convbench.bench import Case, run_cases
from convbench.bench.record import ENVIRONMENT_FILE
from convbench.bench.run import resume
from test_isolation import KILLS, LINES, NAMES
folder = Path(sys.argv[1])
if (folder / ENVIRONMENT_FILE).exists() and (folder / ENVIRONMENT_FILE).stat().st_size:
    resume(folder)
else:
    run_cases([Case.parse(line) for line in LINES], list(NAMES), KILLS, folder)
"""


def path() -> dict[str, str]:
    here = Path(__file__).parent
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}


def found(folder: Path) -> Counter[tuple[str, str, bool, int]]:
    """How often each visit is in the records; twins without the names that their speed has chosen."""
    short = {str(Case.parse(line)): line for line in LINES}
    return Counter(
        (short[record.case], "twin" if record.twin else record.backend, record.twin, record.pass_)
        for record in read(folder)
    )


def test_killed_at_random_moments_a_run_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    """Twenty kills: of the run, which is then resumed, and of its worker, which it replaces."""
    rng = random.Random(5)
    folder, kept, kills = tmp_path / "run", b"", 0
    records = folder / "records.jsonl"
    while True:
        driver = subprocess.Popen([sys.executable, "-c", _DRIVER, folder], env=path(), stderr=subprocess.PIPE)
        while kills < 20 and works(driver, records):
            kills += 1
            ends_within(driver, rng.uniform(0, 0.3))
            if rng.random() < 0.5:
                driver.kill()
                break
            for worker in psutil.Process(driver.pid).children():
                worker.kill()
        _, complaints = driver.communicate()
        assert driver.returncode in (0, -signal.SIGKILL), complaints.decode()
        content = records.read_bytes() if records.exists() else b""
        assert content.startswith(kept)  # what was on disk stays
        kept = content[: content.rfind(b"\n") + 1]
        if driver.returncode == 0:
            break
    counts = found(folder)
    assert kills == 20
    assert set(counts) == EXPECTED
    assert max(counts.values()) == 1
    assert {record.status for record in read(folder)} == {"ok"}
    elapsed = [record.elapsed_s for record in read(folder)]
    assert elapsed == sorted(elapsed)


def works(driver: subprocess.Popen[bytes], file: Path) -> bool:
    """Wait until the file grows, or the process ends; return whether it has not."""
    size = file.stat().st_size if file.exists() else -1
    while driver.poll() is None:
        if file.exists() and file.stat().st_size > size:
            return True
        time.sleep(0.01)
    return False


def ends_within(driver: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        driver.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def test_a_worker_does_not_outlive_the_run(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import troublemakers as t\n"
        "from convbench.bench import Case, Options, run_cases\n"
        "options = Options(threads=1, time_limit_s=300)\n"
        "run_cases([Case.parse(t.LINE)], [t.make('hangs', t.hangs)], options, Path(sys.argv[1]))"
    )
    driver = subprocess.Popen([sys.executable, "-c", code, tmp_path / "run"], env=path())
    assert works(driver, tmp_path / "run" / "environment.json")
    (worker,) = psutil.Process(driver.pid).children()
    driver.kill()
    driver.wait()
    worker.wait(timeout=20)  # raises if it is still there


# -- resuming -----------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    run_cases(
        [Case.parse("i8x8 k3 f32")], ["direct-numpy"], Options(threads=1, passes=2, twins=0, isolate=False), folder
    )
    return folder


def test_a_finished_run_has_nothing_left_to_do(finished: Path) -> None:
    before, told = (finished / "records.jsonl").read_bytes(), []
    resume(finished, told.append)
    assert (finished / "records.jsonl").read_bytes() == before
    assert [event.record for event in told if isinstance(event, PairDone)] == read(finished)


def test_a_line_cut_short_is_measured_again(finished: Path) -> None:
    path = finished / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-100])
    resume(finished)
    assert [(record.pass_, record.status) for record in read(finished)] == MEASURED
    assert read(finished).problems == []


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"host": {"fingerprint": "elsewhere"}}, r"was made on another machine \(elsewhere; this is"),
        ({"libraries": {"numpy": "1.0"}}, r"was made with numpy 1\.0 \(now " + np.__version__),
        ({"options": {"passes": 0}}, "cannot be resumed: environment.json does not say how it was run"),
        ({"cases": 3}, "cannot be resumed: environment.json does not say how it was run"),
        ({"backends": ["direct-nump"]}, "direct-numpy"),
    ],
)
def test_what_cannot_be_resumed_is_said(finished: Path, change: dict[str, Any], words: str, kept: int) -> None:
    lines = (finished / "records.jsonl").read_text().splitlines(keepends=True)
    (finished / "records.jsonl").write_text("".join(lines[:kept]))
    about = json.loads((finished / "environment.json").read_text())
    (finished / "environment.json").write_text(json.dumps(about | change))
    with pytest.raises((SpecError, LookupError), match=words):
        resume(finished)


def test_a_run_that_is_under_way_is_not_resumed(finished: Path) -> None:
    with held(finished / "records.jsonl"), pytest.raises(SpecError, match="is being run by another process"):
        resume(finished)


def test_a_pair_that_went_wrong_stays_so_with_its_twin(tmp_path: Path) -> None:
    options = Options(threads=1, passes=2, twins=1, isolate=False)
    run_cases([Case.parse("i8x8 k3 f32")], ["direct-numpy"], options, tmp_path)
    records = read(tmp_path)
    (tmp_path / "records.jsonl").unlink()
    wrong = replace(records[1], status="wrong", reason="so it is", samples_s=[], twin=False)
    for record in (records[0], wrong):
        append(tmp_path / "records.jsonl", record)
    resume(tmp_path)
    assert [record.status for record in read(tmp_path)] == ["ok", "wrong"]


def test_a_full_disk_is_said(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    (record, *_) = read(finished)
    monkeypatch.setattr("convbench.bench.record.os.fsync", full)
    with pytest.raises(SpecError, match=r"^out: .*cannot be written to any more \(No space left on device\)"):
        append(finished / "records.jsonl", record)


def test_the_environment_is_whole_or_not_there(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    before = (finished / "environment.json").read_bytes()
    monkeypatch.setattr("convbench.bench.record.os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_environment(finished, {"other": 1})
    assert (finished / "environment.json").read_bytes() == before


def test_the_environment_has_the_command_and_no_folder_of_this_machine(tmp_path: Path) -> None:
    drill(tmp_path, [trouble.make("honest")])
    about = json.loads((tmp_path / "environment.json").read_text())
    assert about["command_line"].startswith(Path(sys.argv[0]).name)
    assert str(Path(sys.prefix)) not in json.dumps(about)


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"^run: .*holds no environment.json; give the folder of a run"):
        resume(tmp_path)
