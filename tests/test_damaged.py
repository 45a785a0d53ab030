"""Results that are cut short, corrupted, or another program's: the good part is read, the rest is named."""

from __future__ import annotations

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convbench import load_results
from convbench.bench.record import RECORDS_FILE, Record, overhead, read
from convbench.cli import main
from convbench.errors import SpecError

CASES = [f"n1 c1 o1 i16x16 k{k} f32" for k in (3, 5)]
RECORDS = [
    Record(
        run_id="r",
        case=case,
        spec=case,
        backend=backend,
        pass_=number,
        kind="own",
        device="cpu",
        samples_s=[0.001 * (1 + number / 100 + sample / 1000) for sample in range(3)],
        batch=10,
        plan_s=1e-4,
        prepare_s=2e-5,
        error_max_eps=1.5,
        flops_nominal=3528,
        workspace_declared_bytes=100,
        measured_s=0.1,
        elapsed_s=1.0 + number,
        time="2026-11-21T00:00:00Z",
    )
    for number in (1, 2)
    for case in CASES
    for backend in ("fft", "im2col")
]
LINES = [record.to_json() for record in RECORDS]
WHOLE = "".join(f"{line}\n" for line in LINES).encode()


@pytest.fixture(autouse=True)
def _without_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take seconds, and say nothing of files that cannot be read."""
    if "plots" not in request.function.__name__:
        monkeypatch.setattr("convbench.report.plots.save_plots", lambda table, folder: [])


def _write(folder: Path, content: bytes, name: str = RECORDS_FILE) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def _changed(**fields: object) -> str:
    return json.dumps({**json.loads(LINES[1]), **fields})


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("pass", "two", 'has "two" as pass, which must be a whole number from 0'),
        ("pass", 1.5, "has 1.5 as pass"),
        ("pass", True, "has true as pass"),
        ("pass", -1, "has -1 as pass"),
        ("pass", None, "has null as pass"),
        ("plan_s", "fast", 'has "fast" as plan_s, which must be a number from 0 to 1e+09 or null'),
        ("plan_s", -1.0, "has -1.0 as plan_s"),
        ("error_norm", float("nan"), "has NaN as error_norm"),
        ("error_norm", float("inf"), "has Infinity as error_norm"),
        ("error_norm", 10**400, "as error_norm"),
        ("samples_s", [0.1, float("nan")], "has [0.1, NaN] as samples_s, which must be a list, each entry a number"),
        ("samples_s", [0.0], "has [0.0] as samples_s"),
        ("samples_s", 0.1, "has 0.1 as samples_s"),
        ("samples_s", [[0.1]], "as samples_s"),
        ("batch", 0, "has 0 as batch, which must be a whole number from 1"),
        ("batch", 10**30, "as batch"),
        ("batch", 10**4299, "as batch"),
        ("weight", 0, "has 0 as weight"),
        ("twin", "no", 'has "no" as twin, which must be true or false'),
        ("twin", 1, "has 1 as twin"),
        ("caveats", [1], "has [1] as caveats, which must be a list, each entry a text"),
        ("backend", 3, "has 3 as backend, which must be a text"),
        ("status", None, "has null as status"),
        ("spec", "k3 i-8", "has a spec that this version cannot read"),
        ("spec", "i8 k3 warp=9", "has a spec that this version cannot read"),
        ("case", "i8 k3 x='@a", "has a quote that is not closed"),
        ("reason", "\ud800", "has an escaped character that does not exist"),
    ],
)
def test_a_field_of_another_type_costs_its_line(tmp_path: Path, field: str, value: object, rule: str) -> None:
    file = _write(tmp_path / "run", "\n".join([LINES[0], _changed(**{field: value}), LINES[2], ""]).encode())
    records = read(file)
    assert [record.to_json() for record in records] == [LINES[0], LINES[2]]
    (problem,) = records.problems
    assert problem.startswith(f"{file}, line 2: left out; record: got ")
    assert rule in problem
    assert "\n" not in problem


def test_all_annotated_fields_are_checked() -> None:
    """A field that is added later is covered by its annotation."""
    for name in Record.__dataclass_fields__:
        key = {"pass_": "pass"}.get(name, name)
        if name != "extra":
            with pytest.raises(SpecError, match=f"has .* as {key}, which must be"):
                Record.from_json(_changed(**{key: {"an": "object"}}))


def test_a_later_versions_fields_and_statuses_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = _changed(status="melted", reason="too hot", joules=[1, {"a": None}], samples_s=[])
    file = _write(tmp_path / "run", "\n".join([*LINES, line, ""]).encode())
    records = read(file)
    assert not records.problems
    assert (records[-1].status, records[-1].extra) == ("melted", {"joules": [1, {"a": None}]})
    assert Record.from_json(records[-1].to_json()) == records[-1]
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "melted: too hot" in capsys.readouterr().out


@pytest.mark.parametrize("extreme", [False, True])
def test_tables_and_plots_of_records_that_lack_all_they_may_lack(
    extreme: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or have the least and the greatest that they may have."""
    lines = []
    for number, line in enumerate(LINES):
        fields = json.loads(line)
        for field in Record.__dataclass_fields__.values():
            if "None" in str(field.type):
                fields[field.name] = None
                if extreme and "str" not in str(field.type):
                    fields[field.name] = (1, 10**9, 1)[number % 3]
        if extreme:
            fields |= {"samples_s": [1e-300, 1e-9, 1e9][number % 3 :], "weight": 2**53, "error_max_eps": 1e300}
            fields |= {"flops_nominal": 10**200, "bytes_min": 10**200}
            fields |= dict.fromkeys(("plan_s", "prepare_s", "call_s"), 1000000000.0)
        lines.append(json.dumps(fields))
    file = _write(tmp_path / "run", "\n".join([*lines, ""]).encode())
    assert not read(file).problems
    assert main(["report", str(file)]) == 0
    assert "Means" in capsys.readouterr().out


FOREIGN = {
    "json": json.dumps({"name": "x", "rows": [1, 2]}, indent=1).encode(),
    "csv": b"case,backend,time\ni8 k3,fft,0.1\n",
    "binary": bytes(range(256)) * 20,
    "deep": b"[" * 200_000,
    "number": b"1" * 5000,
    "other records": b'{"case": "i8 k3", "time_s": 0.1}\n',
    "utf-16": LINES[0].encode("utf-16"),
    "cut": LINES[0][:50].encode(),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_one_clear_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _write(tmp_path / "run", FOREIGN[name])
    with pytest.raises(SpecError, match=r"holds no result of convbench: line 1: left out") as caught:
        load_results(file)
    assert str(file) in str(caught.value) or "…" in str(caught.value)
    for path in (file, file.parent):
        assert main(["report", str(path)]) == 2
        output, errors = capsys.readouterr()
        assert (output, errors.count("\n")) == ("", 1)
        assert "holds no result of convbench: line 1: left out" in errors
    assert [path.name for path in file.parent.iterdir()] == [RECORDS_FILE]


def test_compressed_records_are_to_be_unpacked(tmp_path: Path) -> None:
    file = _write(tmp_path / "run", gzip.compress(WHOLE))
    with pytest.raises(SpecError, match="compressed data: unpack it first"):
        load_results(file)


def test_nothing_to_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty file, a folder without records, a folder of runs, a name that is nothing."""
    file = _write(tmp_path / "run", b"")
    assert load_results(file).empty
    assert main(["report", str(file)]) == 0
    assert "no pair was finished" in capsys.readouterr().err
    for path, rule in (
        (tmp_path / "none", "does not exist; give the folder of a run"),
        (tmp_path, f"holds 1 runs; give one of them, such as {tmp_path / 'run'}"),
    ):
        with pytest.raises(SpecError) as caught:
            load_results(path)
        assert rule in str(caught.value)


def test_many_lines_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    file = _write(tmp_path / "run", WHOLE + b"garbage\n" * 500)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = load_results(file)
    assert len(frame) == len(LINES)
    assert len(frame.attrs["problems"]) == 500
    assert len(caught) == 11
    assert str(caught[-1].message) == "… and 490 lines more that cannot be read"


def test_editors_marks_and_line_ends_do_not_matter(tmp_path: Path) -> None:
    file = _write(tmp_path / "run", b"\xef\xbb\xbf" + WHOLE.replace(b"\n", b"\r\n\r\n"))
    records = read(file)
    assert (len(records), records.problems) == (len(LINES), [])


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ("[]", "must be a JSON object"),
        ("{", "left out"),
        ('{"host": 5, "libraries": "all"}', "host left out; must be an object"),
        ('{"host": {"cpu": []}}', "host.cpu left out; must be an object"),
        ('{"cases": [1]}', "cases left out; must be a list of texts"),
        ('{"cases": "i8 k3", "thread_pool_problems": 1}', "cases left out"),
    ],
)
def test_a_damaged_environment_costs_its_damaged_entries(
    tmp_path: Path, environment: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _write(tmp_path / "run", WHOLE)
    _write(tmp_path / "run", environment.encode(), "environment.json")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(load_results(file)) == len(LINES)
    assert problem in str(caught[0].message)
    assert main(["report", str(tmp_path / "run")]) == 0
    assert problem in capsys.readouterr().err


def test_reports_of_pytest_benchmark_are_read_as_results(tmp_path: Path) -> None:
    info = {name: json.loads(LINES[0])[name] for name in ("case", "spec", "backend", "status")}
    entry = {"name": "test", "extra_info": info, "stats": {"data": [0.1, 0.2], "iterations": 1}}
    content: dict[str, Any] = {"machine_info": {}, "datetime": "now", "benchmarks": [entry]}
    file = _write(tmp_path, json.dumps(content).encode(), "report.json")
    assert load_results(file)["samples_s"].tolist() == [[0.1, 0.2]]
    content["benchmarks"][0]["stats"]["data"] = "none"
    _write(tmp_path, json.dumps(content).encode(), "report.json")
    with pytest.raises(SpecError, match="as samples_s"):
        load_results(file)
    with pytest.raises(SpecError, match="is not a report of pytest-benchmark"):
        load_results(_write(tmp_path, b"{}", "other.json"))


_PLACES = st.integers(0, len(WHOLE) - 1)
_EDITS = st.lists(
    st.tuples(st.sampled_from(("flip", "cut", "insert")), _PLACES, st.binary(min_size=1, max_size=8)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=_EDITS)
def test_damage_costs_the_lines_that_it_touches(tmp_path: Path, edits: list[tuple[str, int, bytes]]) -> None:
    """Flipped, cut out or inserted bytes: nothing but SpecError, and every untouched line is there."""
    content, touched = bytearray(WHOLE), set[int]()
    ends = [WHOLE.index(b"\n", sum(len(line.encode()) + 1 for line in LINES[:n])) for n in range(len(LINES))]
    for kind, place, data in sorted(edits, key=lambda edit: -edit[1]):  # from the end: places stay
        size = len(data)
        if kind == "insert":
            content[place:place] = data
            size = 0
        elif kind == "cut":
            del content[place : place + size]
        else:
            size = min(size, len(content) - place)
            content[place : place + size] = bytes(255 - byte for byte in content[place : place + size])
        # with a line's end its successor is touched
        touched |= {n for n, end in enumerate(ends) if end >= place and (n == 0 or ends[n - 1] < place + max(size, 1))}
        touched |= {n + 1 for n, end in enumerate(ends) if place - 1 <= end < place + size}
    records = read(_write(tmp_path / "run", bytes(content)))
    kept = [record.to_json() for record in records]
    missing = [n for n, line in enumerate(LINES) if n not in touched and line not in kept]
    assert not missing
    assert all(Record.from_json(line).to_json() == line for line in kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if records:
            assert len(load_results(tmp_path / "run")) == len(records)


def test_overhead_is_the_time_outside_warm_up_and_samples() -> None:
    assert overhead([]) is None
    assert overhead([Record(run_id="r", case="i8 k3", spec="i8 k3", backend="fft")]) is None
    assert overhead(RECORDS) == pytest.approx(1 - 8 * 0.1 / 3.0)
