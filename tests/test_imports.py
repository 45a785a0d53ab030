"""What importing costs, and what a missing library costs: itself, and nothing more. Each case in a fresh process."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

HEAVY = (
    "click",
    "cupy",
    "cv2",
    "hypothesis",
    "jax",
    "matplotlib",
    "numba",
    "pandas",
    "pyfftw",
    "pytest",
    "rich",
    "scipy",
    "threadpoolctl",
    "torch",
)

#: Makes ``import <name>`` fail as if the library were not installed.
BLOCKER = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""

PROGRAM_HEAD = """
import numpy as np
import convbench as cb
x, w = np.ones((1, 1, 8, 8), "f4"), np.ones((1, 1, 3, 3), "f4")

def refusal(call):
    try:
        call()
    except cb.ConvbenchError as error:
        text = str(error)
        assert "\\n" not in text
        return type(error).__name__ + ": " + text
    raise AssertionError("nothing was raised")
"""


def run(program: str, blocked: tuple[str, ...] = ()) -> str:
    """Run a program in a fresh interpreter in which some libraries are missing; return what it printed."""
    source = BLOCKER.format(blocked=set(blocked)) + PROGRAM_HEAD + textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_convbench_imports_nothing_heavy() -> None:
    program = f"import sys, convbench; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_convolving_with_numpy_imports_nothing_heavy_but_the_thread_control() -> None:
    program = f"""
    import sys
    cb.conv(x, w)
    cb.conv(x, w, backend="direct-numpy")
    cb.convolve([1.0, 2.0], [1.0])
    print(sorted(m for m in {HEAVY!r} if m in sys.modules))
    """
    assert run(program).strip() in ("[]", "['threadpoolctl']")


def test_listing_backends_does_not_import_rivals() -> None:
    program = """
    import sys
    cb.all_backends()
    print([m for m in ("torch", "cv2", "numba", "cupy", "scipy.signal", "pyfftw") if m in sys.modules])
    """
    assert run(program).strip() == "[]"


OPTIONAL = (
    *("click", "matplotlib", "pandas", "pyfftw", "rich", "scipy", "threadpoolctl"),
    *("torch", "cv2", "numba", "cupy"),
)


def test_the_core_works_with_every_optional_library_missing() -> None:
    program = """
    for backend in ("auto", "im2col", "direct-numpy", "reference", "separable"):
        np.testing.assert_allclose(cb.conv(x, w, backend=backend), np.full((1, 1, 6, 6), 9), rtol=1e-6)
    reasons = {name: b.unavailable() for name, b in cb.all_backends().items()}
    assert reasons["reference"] is reasons["im2col"] is reasons["direct-numpy"] is reasons["separable"] is None
    for name in ("fft", "scipy-direct", "scipy-fft", "scipy-oa"):
        assert reasons[name].startswith("not installed: needs "), reasons
        assert cb.get_backend(name).implementation
    """
    run(program, OPTIONAL)


@pytest.mark.parametrize(
    ("library", "backends"),
    [
        ("pyfftw", ("fft", "fft-tiled-numpy")),
        (
            "scipy",
            (
                "fft-pocketfft",
                "matrix-sparse",
                "scipy-direct",
                "scipy-fft",
                "scipy-ndimage",
                "scipy-ndimage-sep",
                "scipy-oa",
            ),
        ),
    ],
)
def test_a_missing_library_costs_its_backends_only(library: str, backends: tuple[str, ...]) -> None:
    program = f"""
    lost = {{name for name, b in cb.all_backends().items() if b.unavailable() and "{library}" in b.unavailable()}}
    assert lost == set({backends!r}), lost
    for name in lost:
        reason = "not installed: needs {library}: pip install {library}"
        assert refusal(lambda: cb.conv(x, w, backend=name)) == f"BackendUnavailable: {{name}}: {{reason}}"
        assert cb.get_backend(name).why_not(cb.ConvSpec.parse("i8 k3")) == reason
    assert cb.conv(x, w).shape == (1, 1, 6, 6)
    """
    run(program, (library,))


def test_without_any_own_backend_auto_says_why() -> None:
    program = """
    import convbench.select
    convbench.select.AUTO_ORDER = ("fft", "scipy-direct")
    print(refusal(lambda: cb.conv(x, w)))
    """
    text = run(program, ("pyfftw", "scipy"))
    assert "no backend takes" in text
    assert "fft: not installed: needs pyfftw: pip install pyfftw" in text
    assert "scipy-direct: not installed: needs scipy: pip install scipy" in text


def test_without_thread_control_pool_sizes_are_not_known() -> None:
    program = """
    from convbench.threads import pool_sizes
    assert pool_sizes() is None
    assert cb.conv(x, w, threads=1)[0, 0, 0, 0] == 9
    """
    run(program, ("threadpoolctl",))


def test_without_pandas_explain_names_the_command() -> None:
    text = run('print(refusal(lambda: cb.explain(cb.ConvSpec.parse("i8 k3"))))', ("pandas",))
    assert text.startswith("MissingDependency: ")
    assert "pip install pandas" in text


def test_without_pandas_benchmark_names_the_command() -> None:
    text = run('print(refusal(lambda: cb.benchmark("i8 k3")))', ("pandas",))
    assert text.startswith("MissingDependency: benchmark() needs pandas: pip install pandas")


@pytest.mark.parametrize("library", ["click", "rich"])
def test_without_its_libraries_the_command_line_names_the_command(library: str) -> None:
    program = """
    from convbench.cli import main
    import sys
    sys.exit(0 if main(["list", "backends"]) == 2 else "wrong exit code")
    """
    source = BLOCKER.format(blocked={library}) + textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"pip install {library}" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("library", ["matplotlib", "pandas", "scipy", "pyfftw", "threadpoolctl"])
def test_the_command_line_lives_without_the_other_libraries(library: str) -> None:
    program = """
    from convbench.cli import main
    import sys
    sys.exit(main(["list", "backends"]))
    """
    source = BLOCKER.format(blocked={library}) + textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "im2col" in done.stdout
