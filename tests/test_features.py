"""The support matrix: what backends say of themselves, on the screen, as Markdown and in the README."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import convbench as cb
from convbench import ConvSpec, FunctionBackend, Limits, UnsupportedWeights
from convbench.cli import main
from convbench.features import FEATURES, NOTES, supported
from convbench.registry import all_backends

ROOT = Path(__file__).parents[1]
ALL = [feature for features in FEATURES.values() for feature in features]


def never(spec: ConvSpec, w: object) -> object:
    raise UnsupportedWeights("weights: never")


def test_what_must_do_the_whole_family_does() -> None:
    for name in ("direct-numpy", "im2col", "reference"):
        assert supported(cb.get_backend(name)) == dict.fromkeys(ALL, True)


def test_every_limit_is_seen() -> None:
    """Each as the one feature that it costs, on a backend that does one number of axes and one dtype."""
    narrow = Limits(
        dtypes=("float64",), axes=(1,), groups=False, stride=False, dilation=False, boundaries=("zero", "reflect")
    )
    mine = FunctionBackend(name="mine", function=np.multiply, limits=narrow)
    yes = {"forward", "any weights", "reflect", "bias: channel", "bias: location", "1-D", "float64"}
    assert {feature for feature, answer in supported(mine).items() if answer} == yes
    choosy = FunctionBackend(name="choosy", function=np.multiply, prepare=never)
    assert not supported(choosy)["any weights"]
    assert supported(choosy)["forward"]


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ImportError("no libcusparse"), True),
        (type("CUDARuntimeError", (RuntimeError,), {})("cudaErrorInsufficientDriver"), True),
        (AssertionError("Torch not compiled with CUDA enabled"), True),
        (RuntimeError("of its own"), False),
        (ValueError("of its own"), False),
    ],
)
def test_only_what_wants_a_device_is_not_a_fault_of_the_backend(error: Exception, passes: bool) -> None:
    def prepare(spec: ConvSpec, w: object) -> object:
        raise error

    mine = FunctionBackend(name="mine", function=np.multiply, prepare=prepare, device="cuda")
    if passes:
        assert supported(mine)["any weights"]
    else:
        with pytest.raises(type(error), match="of its own"):
            supported(mine)
    with pytest.raises(type(error)):
        supported(replace(mine, device="cpu"))


def test_a_feature_is_taken_only_if_all_its_lines_are() -> None:
    for dtypes, answer in ((("complex64",), False), (("complex64", "complex128"), True)):
        limits = Limits(dtypes=("float32", *dtypes))
        assert supported(FunctionBackend(name="mine", function=np.multiply, limits=limits))["complex"] is answer


def test_the_command_shows_every_backend_in_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "backends", "--features"]) == 0
    *tables, unshared, bfloat16, devices = capsys.readouterr().out.strip().split("\n\n")
    assert "1024 positions" in unshared
    assert bfloat16.startswith("bfloat16: NumPy has no such dtype")
    assert "where there is a GPU" in devices
    assert [table.splitlines()[0] for table in tables] == list(FEATURES)
    for table, features in zip(tables, FEATURES.values(), strict=True):
        _, header, *rows = table.splitlines()
        assert header.split("  ")[0] == "backend"
        assert all(feature in header for feature in features)
        assert [row.split()[0] for row in rows] == list(all_backends())
        for row in rows:
            assert "unavailable: " in row or len(row.split()) == 1 + len(features)


def test_the_lists_are_printed_as_markdown_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "backends", "--features", "--markdown"]) == 0
    output = capsys.readouterr().out
    assert output.count("| backend |") == len(FEATURES)
    assert all(f"**{title}**" in output for title in FEATURES)
    assert all(note in output for note in NOTES)
    assert "| im2col | ✓ | ✓ | ✓ |" in output
    assert main(["list", "suites", "--markdown"]) == 0
    assert "| smoke |" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [("suites",), ("backends", "--pooling")])
def test_features_are_those_of_backends_of_convolution(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", *arguments, "--features"]) == 2
    assert "--features: got" in capsys.readouterr().err


def test_the_matrix_in_the_readme_is_what_the_backends_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """``python .ci/features.py`` writes it, and says what differs."""
    script = runpy.run_path(str(ROOT / ".ci" / "features.py"))
    monkeypatch.setattr(sys, "argv", ["features.py", "--check"])
    script["main"]()
    readme = script["README"].read_text(encoding="utf-8")
    written = readme.partition(script["BEGIN"])[2].partition(script["END"])[0]
    spoilt = written.replace("| im2col | ✓", "| im2col | –")
    assert spoilt != written
    assert script["matrix"](spoilt) == written
