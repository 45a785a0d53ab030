"""A stranger's distributions, installed by pip: the good one's backends join, the broken one's cost a line each.

tests/stranger holds two projects with nothing of this one in them but the import. pip builds and installs them into a
folder of the test's own; convbench then runs in processes that have it on their path, and is otherwise unchanged.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from convbench.bench.record import read

pytestmark = pytest.mark.skipif(
    find_spec("pip") is None, reason="pip is not installed, and it is what installs plug-ins"
)

STRANGER = Path(__file__).parent / "stranger"
ROOT = Path(__file__).parents[1]
ADVICE = "(pip install --upgrade stranger-broken, or ask its authors)"

#: Cannot be loaded: what the list says of each, its advice left out.
UNLOADABLE = {
    "import-error": "stranger_broken_import:BACKEND of stranger-broken 0.1: loading it raised ModuleNotFoundError: "
    "No module named 'a_library_that_nobody_has'",
    "exits-at-import": "stranger_broken_exit:BACKEND of stranger-broken 0.1: loading it raised SystemExit: "
    "this plug-in needs a licence",
    "no-such-object": "stranger_broken:NOWHERE of stranger-broken 0.1: loading it raised AttributeError: "
    "module 'stranger_broken' has no attribute 'NOWHERE'",
    "a-number": "stranger_broken:NUMBER of stranger-broken 0.1: it is not a backend: it has no name, kind, device, "
    "implementation, unavailable, why_not, plan, error_bound",
    "a-class": "stranger_broken:Careless of stranger-broken 0.1: it is not a backend: it is a class, and an instance "
    "is needed: Careless()",
    "another-name": "stranger_broken:MISNAMED of stranger-broken 0.1: it is not a backend: its name is 'a-third-name', "
    "not that of its entry point",
    "implementation-raises": "stranger_broken:UNSPEAKABLE of stranger-broken 0.1: it is not a backend: its "
    "implementation raised RuntimeError: two lines: no driver",
}
NAMESAKE = "fft@stranger-broken"
#: Loaded, and then found out: the rule that check names first, and what run says.
MISBEHAVING = {
    "wrong-results": ("many-calls-of-one-plan-are-all-right", "wrong: "),
    "unavailable-raises": ("availability-agrees-with-plan", "failed: OSError: two lines: no driver"),
    "why-not-raises": ("refusal-agrees-with-plan", "failed: ZeroDivisionError: stride // 0"),
    "bound-raises": ("many-calls-of-one-plan-are-all-right", "failed: NotImplementedError: to do"),
    "plan-raises": ("why-not-agrees-with-plan", "failed: Odd: (its text cannot be shown: TypeError)"),
    "plan-exits": ("why-not-agrees-with-plan", "failed: SystemExit: no licence"),
    "forgetful": ("why-not-agrees-with-plan", "failed: TypeError: "),
}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return ``python(*arguments, returncode=0)``, which runs a Python that has the strangers installed."""
    target = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--quiet")
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--target", str(target))
    installed = subprocess.run(
        [*pip, *offline, str(STRANGER / "good"), str(STRANGER / "broken")], capture_output=True, text=True
    )
    assert installed.returncode == 0, installed.stderr

    def run(*arguments: str, returncode: int = 0) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(target), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
        )
        assert done.returncode == returncode, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done

    return run


def row(name: str, lines: list[str]) -> str:
    """Return the one line that begins with a name, the columns' spaces made single."""
    found = [line for line in lines if line.split()[:1] == [name]]
    assert len(found) == 1, (name, found)
    return " ".join(found[0].split())


def test_list_has_a_line_for_each(python: Run) -> None:
    done = python("-m", "convbench", "list", "backends")
    lines = done.stdout.splitlines()
    assert row("kronecker", lines).startswith("kronecker own cpu Kronecker substitution")
    assert row("karatsuba", lines).startswith("karatsuba own cpu Karatsuba's method")
    for name, problem in UNLOADABLE.items():
        assert row(name, lines) == f"{name} rival cpu unavailable: not installed: {problem} {ADVICE}"
    taken = "stranger_broken:NAMESAKE of stranger-broken 0.1: the name 'fft' is taken already"
    assert taken in row(NAMESAKE, lines)
    assert row("fft", lines).startswith("fft own cpu whole-image")
    for name in MISBEHAVING:
        row(name, lines)
    names = ["kronecker", "karatsuba", *UNLOADABLE, NAMESAKE, *MISBEHAVING]
    built_in = [path.stem.replace("_", "-") for path in (ROOT / "convbench" / "backends").glob("[!_]*.py")]
    assert sorted(line.split()[0] for line in lines[1:]) == sorted([*built_in, *names])
    assert done.stderr == ""


def test_good_ones_pass_the_battery(python: Run) -> None:
    """One of them is a class that has none of convbench's adapters in it: the protocol is enough."""
    lines = python("-m", "convbench", "check", "kronecker", "karatsuba", "--specs", "10").stdout.splitlines()
    for name in ("kronecker", "karatsuba"):
        passed, failed, _ = row(name, lines).split()[1:4]
        assert int(passed) > 10
        assert failed == "0"


@pytest.mark.parametrize(
    ("dtype", "name", "baseline"), [("f32", "karatsuba", "im2col"), ("int32", "kronecker", "direct-numpy")]
)
def test_good_ones_are_timed(dtype: str, name: str, baseline: str, python: Run, tmp_path: Path) -> None:
    options = ("--passes", "1", "--budget", "5", "--out", str(tmp_path), "--quiet")
    line = f"i999 k31 psame {dtype}"
    python("-m", "convbench", "run", "--spec", line, "--backends", f"{name},{baseline}", *options)
    (folder,) = tmp_path.iterdir()
    records = read(folder)
    assert {(record.backend, record.status) for record in records} == {(name, "ok"), (baseline, "ok")}
    timed = {record.backend for record in records if record.samples_s}
    assert timed == {name, baseline}


def test_good_ones_are_used_like_any_other(python: Run) -> None:
    program = """
import numpy as np
import convbench as cb
from convbench import plan

x, w = np.arange(99.0).reshape(1, 1, 99), np.arange(15.0).reshape(1, 1, 15)
right = cb.conv(x, w, padding="same", backend="direct-numpy")
p = plan("i99 k15 psame f64", backend="karatsuba")
assert p.backend == cb.get_backend("karatsuba").name == "karatsuba"
np.testing.assert_allclose(p(x, p.prepare(w)), right)
np.testing.assert_allclose(cb.conv(x, w, padding="same", backend="karatsuba"), right)
a, v = np.array([3, -1, 2**31]), np.array([2**30, -7])  # exact where float64 is not
np.testing.assert_array_equal(cb.convolve(a, v, backend="kronecker"), np.convolve(a, v))
"""
    python("-c", program)


def test_check_names_the_rule_that_is_broken(python: Run) -> None:
    lines = python("-m", "convbench", "check", *MISBEHAVING, "--specs", "1", returncode=1).stdout.splitlines()
    for name, (rule, _) in MISBEHAVING.items():
        assert int(row(name, lines).split()[2].replace(",", "")) > 0
        at = next(number for number, line in enumerate(lines) if line.startswith(f"{name} "))
        assert lines[at + 1].startswith(f"  {rule}: {name}: ")


def test_check_passes_over_what_cannot_be_loaded(python: Run) -> None:
    lines = python("-m", "convbench", "check", *UNLOADABLE, NAMESAKE).stdout.splitlines()
    for name, problem in UNLOADABLE.items():
        assert row(name, lines) == f"{name} unavailable: not installed: {problem} {ADVICE}"
    assert len(lines) == 2 + len(UNLOADABLE) + 1


def test_run_gives_each_a_status_and_nobody_else_is_affected(python: Run, tmp_path: Path) -> None:
    """Exit code 1 for those that are wrong or fail; without them those that are missing leave it at 0."""
    options = ("--spec", "i64 k9 psame f32", "--passes", "1", "--budget", "5", "--out")
    absent = ",".join([*UNLOADABLE, NAMESAKE])
    python("-m", "convbench", "run", "--backends", f"{absent},im2col", *options, str(tmp_path / "absent"))
    broken = f"{absent},{','.join(MISBEHAVING)},karatsuba,im2col"
    done = python("-m", "convbench", "run", "--backends", broken, *options, str(tmp_path / "all"), returncode=1)
    (folder,) = (tmp_path / "all").iterdir()
    found = {record.backend: f"{record.status}: {record.reason}" for record in read(folder)}
    for name, (_, outcome) in MISBEHAVING.items():
        assert found[name].startswith(outcome)
        assert f"--backends {name}" in done.stdout  # how to see it again
    for name, problem in UNLOADABLE.items():
        assert found[name] == f"unavailable: not installed: {problem} {ADVICE}"
    assert found["karatsuba"].startswith("ok: ")
    assert found["im2col"].startswith("ok: ")


def test_explain_and_auto_live_with_broken_ones(python: Run) -> None:
    program = """
import numpy as np
import convbench as cb

table = cb.explain("i64 k9 psame f32").set_index("backend")
print(*(f"{name}|{row.willing}|{row.reason}" for name, row in table.iterrows()), sep="\\n")
assert cb.conv(np.ones((1, 1, 9), "f4"), np.ones((1, 1, 3), "f4"))[0, 0, 0] == 3
"""
    rows = dict(line.split("|", 1) for line in python("-c", program).stdout.splitlines())
    assert rows["why-not-raises"] == "False|why_not() raised ZeroDivisionError: stride // 0"
    assert rows["plan-raises"] == "False|planning failed: Odd: (its text cannot be shown: TypeError)"
    assert rows["plan-exits"] == "False|planning failed: SystemExit: no licence"
    assert rows["forgetful"].startswith("False|planning failed: TypeError: ")
    assert rows["a-number"] == f"False|not installed: {UNLOADABLE['a-number']} {ADVICE}"
    assert rows["kronecker"].startswith("False|dtype: float32 given, only int8")
    assert rows["karatsuba"] == rows["im2col"] == "True|"


def test_only_what_is_asked_for_is_imported(python: Run) -> None:
    """A slow or hanging plug-in is its own users' trouble."""
    program = """
import sys
import numpy as np
import convbench as cb
from convbench.cli import main

cb.conv(np.ones((1, 1, 9), "f4"), np.ones((1, 1, 3), "f4"))
assert main(["check", "im2col", "--specs", "1"]) == 0
assert "karatsuba" in cb.registry.backend_names()
try:
    cb.get_backend("karatsub")
except cb.UnknownBackend as error:
    assert "did you mean karatsuba" in str(error)
assert not [name for name in sys.modules if name.startswith("stranger")]
cb.get_backend("karatsuba")
assert [name for name in sys.modules if name.startswith("stranger")] == ["stranger_good"]
"""
    python("-c", program)
