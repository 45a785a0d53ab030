"""``convbench rivals``: the fastest own backend against the fastest rival, case by case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from convbench.bench.record import ENVIRONMENT_FILE, RECORDS_FILE, Record, to_frame
from convbench.bench.rivals import duels, geometric_mean
from convbench.commands import cli
from convbench.report.figures import figures

SMALL, LARGE = "n1 c1 o1 i12x12 k3 psame f32", "n1 c1 o1 i12x12 k5 psame f32"


def visits(backend: str, kind: str, case: str, *times_s: float, **fields: Any) -> list[Record]:
    shared: dict[str, Any] = {"run_id": "r", "case": case, "spec": case, "backend": backend, "kind": kind, "threads": 1}
    return [
        Record(
            **shared | fields, pass_=number, samples_s=[time_s] * 3, plan_s=0.0, prepare_s=fields.get("prepare_s", 0.0)
        )
        for number, time_s in enumerate(times_s, 1)
    ]


RECORDS = [
    *visits("direct", "own", SMALL, 1e-3, 1.1e-3, 0.9e-3),
    *visits("slow", "own", SMALL, 9e-3, 9e-3, 9e-3),
    *visits("torch", "rival", SMALL, 2e-3, 2.2e-3, 1.8e-3),
    *visits("opencv", "rival", SMALL, 4e-3, 4.4e-3, 3.6e-3),
    *visits("direct", "own", LARGE, 2e-3, 2e-3, 2e-3, weight=3),
    *visits("torch", "rival", LARGE, 1e-3, 1e-3, 1e-3, weight=3),
]


def table() -> Any:
    return figures(
        to_frame(RECORDS, {"cases": [SMALL, LARGE], "backends": ["direct", "slow", "torch", "opencv"]}), None
    )


def test_the_fastest_of_each_side_are_compared_within_passes() -> None:
    found = duels(table()).set_index("case")
    assert list(found["own"]) == ["direct", "direct"]
    assert list(found["rival"]) == ["torch", "torch"]
    assert found.loc[SMALL, "speed"] == pytest.approx(2.0)
    assert found.loc[LARGE, "speed"] == pytest.approx(0.5)


def test_means_count_each_case_as_often_as_it_occurs() -> None:
    assert geometric_mean(duels(table())) == pytest.approx((2.0 * 0.5**3) ** (1 / 4))


def test_globs_choose_who_stands_for_a_side() -> None:
    found = duels(table(), rivals="open*")
    assert list(found["case"]) == [SMALL]
    assert found["speed"].tolist() == pytest.approx([4.0])
    assert duels(table(), own="slow", rivals="torch")["speed"].tolist() == pytest.approx([2 / 9], rel=0.01)
    assert duels(table(), own="nobody").empty


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / RECORDS_FILE).write_text("".join(record.to_json() + "\n" for record in RECORDS), "utf-8")
    environment = {"cases": [SMALL, LARGE], "backends": ["direct", "slow", "torch", "opencv"]}
    (tmp_path / ENVIRONMENT_FILE).write_text(json.dumps(environment), "utf-8")
    return tmp_path


def test_the_command_names_the_mean_and_the_worst(folder: Path) -> None:
    result = CliRunner().invoke(cli, ["rivals", str(folder), "--format", "markdown"])
    assert result.exit_code == 0, result.output
    assert "at the least 0.5×: direct against torch in " + LARGE in result.output.replace("0.500×", "0.5×")
    assert "| 3 |" in result.output


def test_a_filter_keeps_cases(folder: Path) -> None:
    result = CliRunner().invoke(cli, ["rivals", str(folder), "-k", "k3"])
    assert result.exit_code == 0, result.output
    assert "1 cases" in result.output or "1 case" in result.output
    assert LARGE not in result.output


def test_nothing_to_compare_is_one_line(folder: Path) -> None:
    result = CliRunner().invoke(cli, ["rivals", str(folder), "--against", "jax"])
    assert result.exit_code != 0
    assert "matches no rival of the run (torch, opencv)" in str(result.exception)
    result = CliRunner().invoke(cli, ["rivals", str(folder), "--own", "zzz"])
    assert "matches no own backend of the run (direct, slow)" in str(result.exception)
    result = CliRunner().invoke(cli, ["rivals", str(folder), "--own", "slow", "-k", "k5"])
    assert "has no case with a time of both" in str(result.exception)
