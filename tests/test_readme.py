"""The README's Python blocks run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A reader who pastes the block gets no error, and its own assertions hold."""
    for library in ("pyfftw", "pandas"):
        pytest.importorskip(library)
    names: dict[str, Any] = {}
    exec(compile(BLOCKS[number], f"README.md, Python block {number + 1}", "exec"), names)
    if "plan" in names:
        assert names["y"].shape[:2] == (1, 8)
        assert "im2col" in capsys.readouterr().out
    if "frame" in names:
        assert set(names["frame"].status) == {"ok"}
        assert set(names["frame"].backend) == {"im2col", "einsum-pointwise"}


def test_the_table_names_every_built_in_backend() -> None:
    """Once each: a new one is added to the table, a name that is gone leaves it."""
    from convbench.registry import _built_in

    section = TEXT.partition("## Use a backend")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`([^`]+)`", " ".join(rows))) == sorted(_built_in())
