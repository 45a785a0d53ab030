"""Whether a GPU can be used: every way in which it cannot, told in one line that says what is missing."""

from __future__ import annotations

import importlib.abc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import convbench as cb
from convbench.cli import main
from convbench.cuda import device
from convbench.errors import BackendUnavailable
from convbench.refusals import TOPICS

ON_CUDA = [name for name, backend in cb.all_backends().items() if backend.device == "cuda"]


def _raises(error: BaseException) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> Any:
        raise error

    return call


def _cupy(
    count: Callable[[], int] = lambda: 1,
    arange: Callable[..., Any] = np.arange,
    version: str = "14.2.0",
    capability: str = "90",
    module: Callable[..., Any] = SimpleNamespace,
) -> Any:
    """Return as much of CuPy as is asked."""
    cuda = SimpleNamespace(
        runtime=SimpleNamespace(getDeviceCount=count), Device=lambda: SimpleNamespace(compute_capability=capability)
    )
    return SimpleNamespace(cuda=cuda, arange=arange, float32=np.float32, __version__=version, RawModule=module)


def _problem(monkeypatch: pytest.MonkeyPatch, cupy: Any) -> str | None:
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return device.gpu_problem.__wrapped__()


def test_a_kernel_that_ran_and_was_right_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _problem(monkeypatch, _cupy()) is None


_NO_DRIVER = "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"
_NO_COMPILER = "libnvrtc.so.13: cannot open shared object file:\n No such file or directory"
_SMI = "a CUDA GPU and its driver are needed: nvidia-smi must list the card"


@pytest.mark.parametrize(
    ("cupy", "text"),
    [
        (None, 'not installed: needs CuPy: pip install "cupy-cuda13x[ctk]"'),
        (_cupy(_raises(RuntimeError(_NO_DRIVER))), "no device: there is no CUDA driver, or one older than this CuPy"),
        (_cupy(_raises(RuntimeError(_NO_DRIVER))), _SMI),
        (_cupy(_raises(RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected"))), "is detected; a CUDA"),
        (_cupy(lambda: 0), f"no device: CUDA finds none; {_SMI}"),
        (_cupy(arange=_raises(OSError(_NO_COMPILER))), "no kernel could be run (libnvrtc.so.13: cannot open shared"),
        (_cupy(arange=_raises(OSError(_NO_COMPILER))), '"cupy-cuda13x[ctk]" (or "cupy-cuda12x[ctk]"'),
        (_cupy(arange=_raises(RuntimeError("out of memory"))), "no kernel could be run (out of memory)"),
        (_cupy(version="13.6.0"), "not installed: CuPy 13.6.0 is installed, 14.2 or newer is needed: pip install"),
        (_cupy(capability="75"), "no device: compute capability 7.5: the kernels need 8.0 (Ampere) or more"),
        (_cupy(arange=lambda n, dtype: np.ones(n, dtype)), "the first kernel returned a wrong result"),
    ],
)
def test_what_is_missing_is_told_on_one_line(cupy: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = _problem(monkeypatch, cupy)
    assert problem is not None
    assert text in problem
    assert "\n" not in problem
    assert problem.partition(": ")[0] in TOPICS


@pytest.mark.parametrize("error", [ImportError("libcudart.so.13: cannot\nopen"), OSError("bad"), RuntimeError("odd")])
def test_a_broken_installation_is_told_too(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "cupy":
                raise error

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    problem = device.gpu_problem.__wrapped__() or ""
    assert problem.startswith("not installed: CuPy cannot be imported (")
    assert " ".join(str(error).split()) in problem
    assert "pip install" in problem
    assert "\n" not in problem


def test_tensor_cores_need_a_header_more(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = _raises(RuntimeError('cannot open source file "crt/mma.h"'))
    monkeypatch.setattr(device, "gpu_problem", lambda: None)
    monkeypatch.setitem(sys.modules, "cupy", _cupy(module=missing))
    problem = device.tensor_core_problem.__wrapped__() or ""
    assert problem.startswith("not installed: mma.h cannot be compiled (")
    assert "pip install nvidia-cuda-crt" in problem
    found = SimpleNamespace(get_function=lambda name: name)
    monkeypatch.setitem(sys.modules, "cupy", _cupy(module=lambda **options: found))
    assert device.tensor_core_problem.__wrapped__() is None


def test_it_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that is not there costs each command one question, not one a backend."""
    asked: list[int] = []
    monkeypatch.setitem(sys.modules, "cupy", _cupy(lambda: asked.append(1) or 0))
    device.gpu_problem.cache_clear()
    try:
        problems = {cb.get_backend(name).unavailable() for name in ON_CUDA}
    finally:
        monkeypatch.undo()
        device.gpu_problem.cache_clear()
    assert len(asked) <= 1
    assert len([p for p in problems if p and p.startswith("no device: CUDA finds none")]) == 1


# -- nothing else changes ---------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have CuPy and a driver that finds no device, on machines that have one too."""
    monkeypatch.setitem(sys.modules, "cupy", _cupy(lambda: 0))
    device.gpu_problem.cache_clear()
    yield
    monkeypatch.undo()
    device.gpu_problem.cache_clear()


def _lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    output, errors = capsys.readouterr()
    assert "Traceback" not in output + errors
    return output.splitlines()


@pytest.mark.usefixtures("no_gpu")
def test_backends_say_so_and_their_plans_raise() -> None:
    for name in ON_CUDA:
        backend, spec = cb.get_backend(name), cb.ConvSpec.parse("i8 k3")
        reason = backend.unavailable()
        assert reason
        assert backend.why_not(spec) == reason
        assert backend.implementation
        with pytest.raises(BackendUnavailable, match=f"{name}: "):
            backend.plan(spec)


@pytest.mark.usefixtures("no_gpu")
def test_list_and_explain_have_a_row_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "backends"]) == 0
    listed = _lines(capsys)
    assert main(["explain", "i8 k3"]) == 0
    explained = _lines(capsys)
    for name in ON_CUDA:
        assert any(line.startswith(f"{name} ") and " unavailable: " in line for line in listed)
        assert any(line.startswith(f"{name} ") and " no: " in line for line in explained)


@pytest.mark.usefixtures("no_gpu")
def test_check_has_a_row_for_each_and_checks_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", ON_CUDA[0], "numpy-convolve", "--specs", "1"]) == 0
    lines = _lines(capsys)
    assert any(line.startswith(f"{ON_CUDA[0]} ") and " unavailable: " in line for line in lines)
    assert any(line.startswith("numpy-convolve ") and " 0 " in line for line in lines)


@pytest.mark.usefixtures("no_gpu")
def test_run_has_unavailable_rows_and_measures_the_others(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    arguments = ["--passes", "1", "--twins", "0", "--time-limit", "1", "--budget", "30", "--one-process"]
    backends = ",".join([*ON_CUDA[:2], "im2col"])
    assert main(["run", "--spec", "i16x16 k3", "--backends", backends, "--out", str(tmp_path), *arguments]) == 0
    output = "\n".join(_lines(capsys))
    assert "unavailable: no device: CUDA finds none" in output
    assert "im2col" in output


def test_the_command_line_never_needs_cupy() -> None:
    """In a process of its own in which nothing of CuPy's can be imported, and nobody asks why."""
    program = (
        "import sys\nfor name in ('cupy', 'cupyx', 'cupy_backends'): sys.modules[name] = None\n"
        "from convbench.cli import main\nsys.exit(main(['list', 'backends']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for name in (name for name in ON_CUDA if "cupy" in name):
        assert any(
            line.startswith(f"{name} ") and "needs CuPy: pip install" in line for line in done.stdout.split("\n")
        )
