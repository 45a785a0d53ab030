"""The page of a run, and runs made from reports of pytest-benchmark."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections import Counter
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from convbench.bench.pytest_json import convert, read_report
from convbench.bench.record import ENVIRONMENT_FILE, RECORDS_FILE, Record, append, load_results, to_frame
from convbench.cli import main
from convbench.errors import SpecError
from convbench.report import PAGE_FILE, run_title, tables, write_report
from convbench.report.page_data import as_json
from convbench.report.reproduce import reproduce

#: What a file may be called: everything that means something to HTML, to a shell or to Matplotlib.
NASTY = """n1 c1 o1 i64x64 k5 f32 x=@a<b>&"c"'d'$e$.npy"""
CASES = ["n1 c1 o1 i64x64 k3 f32", NASTY, "n2 c4 o8 i32x32 k3 s2 p1 f32"]
BACKENDS = {"direct": 0.001, "fft": 0.0101, "scipy-fft": 0.009, "<b>bold</b>": None}
VOID = {"meta", "input", "br", "path", "use", "line", "rect"}


def _record(case: str, backend: str, pass_: int) -> Record:
    spec = " ".join(token for token in case.split() if not token.startswith(("x=", "w=")))
    seconds = BACKENDS[backend]
    record = Record(run_id="r", case=case, spec=spec, backend=backend, kind="own", pass_=pass_, threads=2, device="cpu")
    record.flops_nominal = record.flops_executed = 10**6
    if seconds is None:
        record.status, record.reason = "unsupported", "data: a < b & c"
    elif backend == "fft" and case == CASES[0]:
        record.status, record.reason = "wrong", "error 1e5 eps at (0, 0, 3, 4)"
    else:
        record.samples_s = [seconds * (1 + CASES.index(case)) * (1 + 0.001 * i) for i in range(-4, 5)]
        record.prepare_s, record.error_max_eps, record.error_bound_eps = 0.002, 1.25, 73.0
        record.workspace_declared_bytes, record.workspace_measured_bytes = 2**24, 2**20
    return record


def _run_folder(parent: Path) -> Path:
    """Make the folder of a run with three cases, one of a file with an odd name, and what can become of a pair."""
    folder = parent / "20261121T075917Z-filters+my cases"
    folder.mkdir()
    host = {"cpu": {"model": "A <fast> CPU", "usable_cores": 2}}
    environment = {"cases": CASES, "backends": list(BACKENDS), "host": host, "threads": 2, "git_revision": "abc123",
                   "command_line": "convbench run filters", "thread_pool_problems": ["blas has 8 threads"]}  # fmt: skip
    (folder / ENVIRONMENT_FILE).write_text(json.dumps(environment), encoding="utf-8")
    for pass_, case, backend in itertools.product((1, 2), CASES, BACKENDS):
        record = _record(case, backend, pass_)
        if record.status == "ok" or pass_ == 1:
            append(folder / RECORDS_FILE, record)
    return folder


class Document(HTMLParser):
    """Elements in their order, each with its attributes and its text; nesting is checked on the way."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:  # <path></path> in SVG
            return
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for place in self._open:
            self.elements[place][2].append(data)

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        """Return attributes and text of each element of this kind."""
        return [(attributes, "".join(text)) for name, attributes, text in self.elements if name == tag]


def _page(folder: Path) -> tuple[str, Document]:
    assert write_report(folder)[-1] == folder / PAGE_FILE
    text = (folder / PAGE_FILE).read_text(encoding="utf-8")
    return text, Document(text)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Document]:
    """Write the page of such a run, once for all tests that only read it."""
    return _page(_run_folder(tmp_path_factory.mktemp("page")))


def test_the_page_stands_alone(page: tuple[str, Document]) -> None:
    """Nothing is loaded, from the network or from beside it; ids are unique, and all references within the page."""
    text, document = page
    assert text.startswith('<!doctype html>\n<html lang="en">')
    assert not [name for name, *_ in document.elements if name in {"img", "link", "iframe", "object", "embed"}]
    assert "default-src 'none'" in text
    assert len(document.all("style")) == 1  # a plot's own would hold for the whole page
    assert not re.search(r"@import|url\((?!#)|\bsrc=|xlink:href", text)
    ids = Counter(attributes["id"] for _, attributes, _ in document.elements if "id" in attributes)
    assert set(ids.values()) == {1}
    values = [value for _, attributes, _ in document.elements for value in attributes.values() if value]
    references = [value for value in values if value.startswith("#")]
    references += [found for value in values for found in re.findall(r"url\((#[^)]*)\)", value)]
    references = [value for value in references if not re.fullmatch("#[0-9a-f]{6}", value)]
    assert len(references) > 100
    assert {reference[1:] for reference in references} <= set(ids)
    assert len([1 for attributes, _ in document.all("svg") if attributes["role"] == "img"]) == 4


def test_the_page_says_what_was_compared(page: tuple[str, Document]) -> None:
    """Suites, who is fastest and by how much, the machine; what went wrong; the environment as a whole."""
    _, document = page
    assert document.all("h1")[0][1] == "filters + my cases"
    assert document.all("title")[0][1] == "convbench: filters + my cases"
    text = " ".join(text for tag in ("p", "li") for _, text in document.all(tag))
    assert "4 backends on 3 cases" in text
    assert "The fastest, or not separated from it: direct in 3." in text
    assert (
        "Speed-up over scipy-fft, geometric mean over the cases that both did (their number): direct 9.00× (3)" in text
    )
    assert "A <fast> CPU, 2 of its cores usable" in text
    assert "threads: blas has 8 threads" in text
    assert "hot: every call has the same operands, and finds in the caches what fits; 2 passes; 2 threads" in text
    assert "pytest-benchmark" not in text
    (problem,) = document.all("pre")
    assert problem[1].startswith(f"fft wrong on {CASES[0]}: error 1e5 eps")
    facts = " ".join(text for _, text in document.all("dd"))
    assert "convbench run filters" in facts
    assert "abc123" in facts
    assert "A <fast> CPU" in [text for _, text in document.all("td")]
    assert "the time of scipy-fft over this one's" in [text for _, text in document.all("dd")]


def test_each_pair_has_a_row_with_raw_figures_and_its_command(page: tuple[str, Document]) -> None:
    """What is sorted is the raw figure; a refusal has none; the command is one argument a word for any shell."""
    _, document = page
    rows = [(attributes, text) for attributes, text in document.all("tr") if "data-backend" in attributes]
    pairs = list(itertools.product(CASES, BACKENDS))
    assert Counter(attributes["data-backend"] for attributes, _ in rows) == dict.fromkeys(BACKENDS, len(CASES))
    commands = {tuple(shlex.split(text)) for _, text in document.all("code") if text.startswith("convbench run --spec")}
    head = ("convbench", "run", "--spec")
    assert commands == {(*head, case, "--backends", name, "--threads", "2") for case, name in pairs}
    titles = [attributes["title"] for attributes, _ in document.all("th") if "title" in attributes]
    assert sorted(titles) == sorted(CASES * len(BACKENDS))
    table, data = _table(), _data(document)
    order = [
        (data["cases"][case], data["backends"][name]) for case, name in zip(data["case"], data["backend"], strict=True)
    ]
    assert order == list(zip(table["case"], table["backend"], strict=True))
    assert [(attributes["data-row"], attributes["data-backend"]) for attributes, _ in rows] == [
        (str(number), name) for number, name in enumerate(table["backend"])
    ]
    for column in ("time_s", "speedup", "error_bound_eps", "workspace_measured_bytes", "effective_gflop_per_s"):
        known = table[column].notna()
        raw = [figure for figure in data["columns"][column] if figure is not None]
        assert raw == pytest.approx(table[column][known].tolist(), rel=1e-5)
        assert [figure is None for figure in data["columns"][column]] == (~known).tolist()
    reasons = [each for each in document.all("td") if "reason" in (each[0].get("class") or "")]
    assert {attributes.get("colspan") for attributes, text in reasons if text == "ok"} == {None}
    columns = len([1 for attributes, _ in document.all("th") if "data-key" in attributes])
    assert {attributes.get("colspan") for attributes, text in reasons if text != "ok"} == {str(columns - 2)}
    statuses = {text for _, text in reasons}
    assert statuses == {"ok", "unsupported: data: a < b & c", "wrong: error 1e5 eps at (0, 0, 3, 4)"}


HOW = {"mode": "cold", "passes": 10, "time_limit_s": 30.5, "memory_limit_bytes": 2**33, "budget_s": 400, "timed": True}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, []),
        ({"mode": "hot", "passes": 6, "time_limit_s": 10, "memory_limit_bytes": 2**31, "isolate": True}, []),
        (HOW, ["--mode", "cold", "--passes", "10", "--time-limit", "30.5", "--memory-limit", "8589934592"]),
        ({**HOW, "timed": False}, ["--time-limit", "30.5", "--memory-limit", "8589934592", "--accuracy"]),
        ({"time_limit_s": 300.0, "budget_s": None}, ["--time-limit", "300", "--budget", "300"]),
        ({"isolate": False}, ["--one-process"]),
    ],
)
def test_a_pair_is_measured_again_as_it_was(options: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    """What is not usual is in the command, and the command line takes it, for a case that a shell would take apart."""
    figure = {"case": NASTY, "backend": "fft", "threads": 2.0}
    command = shlex.split(reproduce(figure, options))
    assert command == ["convbench", "run", "--spec", NASTY, "--backends", "fft", "--threads", "2", *words]
    assert main([*command[1:3], "n1 c1", *command[4:], "--out", str(tmp_path)]) == 2  # gets as far as the spec


def test_all_commands_of_a_page_are_those_of_its_run(tmp_path: Path) -> None:
    """In the rows and beside what went wrong."""
    folder = _run_folder(tmp_path)
    path = folder / ENVIRONMENT_FILE
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"options": HOW}), encoding="utf-8")
    _, document = _page(folder)
    commands = [text for _, text in document.all("code") if text.startswith("convbench run --spec")]
    assert len(commands) == len(CASES) * len(BACKENDS)
    assert all("--threads 2 --mode cold --passes 10 --time-limit 30.5" in text for text in commands)
    (problem,) = document.all("pre")
    assert problem[1].partition("again: ")[2] in commands


@pytest.mark.parametrize(("median", "is_said"), [(80e9, False), (50e9, True), (None, False)])
def test_the_page_says_that_its_limits_were_disturbed(median: float | None, is_said: bool, tmp_path: Path) -> None:
    folder = _run_folder(tmp_path)
    path = folder / ENVIRONMENT_FILE
    limits = {"gemm_flop_per_s": {"float32": 100e9}, "copy_bytes_per_s": 1e10}
    limits |= {"gemm_median_flop_per_s": {"float32": median}} if median else {}
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"limits": limits}), encoding="utf-8")
    _, document = _page(folder)
    said = [text for _, text in document.all("li") if "disturbed while its limits were measured" in text]
    assert len(said) == is_said
    assert all("over the best: 50 % in float32" in text for text in said)


def _data(document: Document) -> dict[str, Any]:
    (text,) = (text for attributes, text in document.all("script") if attributes.get("id") == "run-data")
    data: dict[str, Any] = json.loads(text)
    return data


def test_columns_say_how_they_sort_and_rows_by_what_they_are_filtered(page: tuple[str, Document]) -> None:
    """The comparison's columns, all of them; a box for each backend and status; controls wait for the script."""
    _, document = page
    heads = {text: attributes for attributes, text in document.all("th") if "data-key" in attributes}
    comparison = [column.title for column in tables.comparison(_table()).columns]
    first, figures = list(heads)[:3], list(heads)[3:]
    assert first == ["case", "backend", "status"]
    assert figures == [title for title in comparison[1:-1] if title in heads]  # without those that say nothing
    assert {"time", "95 % interval", "speed-up", "error", "measured"} <= set(heads)
    orders = [heads[title]["data-order"] for title in ("time", "speed-up", "backend")]
    assert orders == ["ascending", "descending", "ascending"]
    columns = _data(document)["columns"]
    assert {attributes.get("data-column") for attributes in heads.values()} <= {None, "case", *columns}
    assert "data-column" not in heads["backend"]
    boxes = [
        (attributes["name"], attributes["value"]) for attributes, _ in document.all("input") if "value" in attributes
    ]
    assert sorted(value for name, value in boxes if name == "backend" if value) == sorted(BACKENDS)
    assert [value for name, value in boxes if name == "status"] == ["ok", "unsupported", "wrong"]
    (form,) = document.all("form")
    assert "hidden" in form[0]


def _table() -> Any:
    records = [_record(*key) for key in itertools.product(CASES, BACKENDS, (1, 2))]
    return tables.figures(to_frame(records, {"cases": CASES}), "scipy-fft")


def test_style_and_script_cannot_end_their_elements() -> None:
    """They are put into the page as they are."""
    parts = [path for path in files("convbench.report").iterdir() if path.name.endswith((".css", ".js"))]
    assert len(parts) == 6
    for path in parts:
        assert "</" not in path.read_text(encoding="utf-8")
    assert "<" not in as_json({"case": "</script>"})


def _contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2 between two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_have_the_contrast_that_wcag_asks_for() -> None:
    """Level AA, on the paper by day and by night: 4.5 for text, 3 for what is drawn."""
    style = files("convbench.report").joinpath("page.css").read_text(encoding="utf-8")
    for block in re.findall(r":root \{([^}]*--c7[^}]*)\}", style):
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        for name in ("ink", "dim", "accent", "bad", "warn"):
            assert _contrast(colours[name], colours["paper"]) >= 4.5, name
        for name in (f"c{number}" for number in range(8)):
            assert _contrast(colours[name], colours["paper"]) >= 3, name
        for name in ("g0", "g1", "g2"):
            assert _contrast(colours[name], colours["paper"]) >= 3, name


def test_the_same_run_makes_the_same_page(tmp_path: Path, page: tuple[str, Document]) -> None:
    """To the byte."""
    assert _page(_run_folder(tmp_path))[0] == page[0]


def test_a_run_without_times_has_a_page_of_errors(tmp_path: Path) -> None:
    """Columns that say nothing are left out, and the command asks for the same."""
    folder = _run_folder(tmp_path)
    path = folder / RECORDS_FILE
    lines = [json.loads(line) | {"samples_s": [], "pass": 0} for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    _, document = _page(folder)
    heads = [text for attributes, text in document.all("th") if "data-key" in attributes]
    assert heads == ["case", "backend", "status", "error", "bound", "workspace", "measured"]
    assert all(
        text.endswith(" --accuracy") for _, text in document.all("code") if text.startswith("convbench run --spec")
    )


def test_a_run_is_named_after_its_suites() -> None:
    assert run_title("x/20261121T075917Z-a+b") == "a + b"
    assert run_title("x/reference-kernel-size/") == "reference-kernel-size"


# -- reports of pytest-benchmark --------------------------------------------------------------------


def _report(**changes: object) -> dict[str, Any]:
    """Return what pytest-benchmark writes, as far as it is read."""

    def benchmark(case: str, backend: str) -> dict[str, Any]:
        record = _record(case, backend, 0)
        samples, record.samples_s = record.samples_s, []
        stats = {"iterations": 5, "median": samples[4], "data": samples}
        return {"name": f"test_suite[{case}-{backend}]", "extra_info": record.to_dict(), "stats": stats}

    pairs = [(CASES[1], "fft"), (CASES[1], "scipy-fft"), (CASES[2], "direct"), (CASES[1], "fft")]
    other = {"name": "test_other", "extra_info": {}, "stats": {"data": [1.0]}}
    machine = {"node": "a-host", "python_version": "3.11", "cpu": {"brand_raw": "Theirs"}}
    machine["convbench"] = {"host": {"cpu": {"model": "A CPU"}}, "threads": 2, "git_revision": "abc123"}
    report = {
        "machine_info": machine,
        "commit_info": {"id": "def456", "dirty": False},
        "benchmarks": [other, *itertools.starmap(benchmark, pairs)],
        "datetime": "2026-11-21T15:00:09+00:00",
        "version": "5.3.1",
    }  # fmt: skip
    return {**report, **changes}


def _written(path: Path, report: object) -> Path:
    path.write_text(json.dumps(report), encoding="utf-8")
    return path


def test_a_report_of_pytest_benchmark_becomes_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its samples, its machine, and all that is written of any run, in a folder beside the file; twice alike."""
    file = _written(tmp_path / "bench.json", _report())
    folder = tmp_path / "bench-report"
    assert convert(file) == folder
    assert main(["report", str(file)]) == 0
    output, errors = capsys.readouterr()
    assert "pairs that were refused are missing" in errors
    assert f"{folder}: " in output
    names = {path.name for path in folder.iterdir()}
    assert {ENVIRONMENT_FILE, RECORDS_FILE, PAGE_FILE, "table.md", "table.csv", "time.svg"} <= names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench-report", "bench.json"]
    records = load_results(folder)
    assert list(records["pass"]) == [1, 1, 1, 2]  # the same pair again is another pass
    assert list(records["batch"]) == [5, 5, 5, 5]
    assert list(records["samples_s"][0]) == _record(CASES[1], "fft", 0).samples_s
    environment = records.attrs["environment"]
    assert environment["host"]["cpu"]["model"] == "A CPU"
    assert environment["cases"] == CASES[1:]
    assert environment["pytest_benchmark"]["commit_info"]["id"] == "def456"
    assert "a-host" not in json.dumps(environment)
    page = (folder / PAGE_FILE).read_text(encoding="utf-8")
    for weakness in ("one process and one pass", "not interleaved", "fixed order", "too narrow", "leave no record"):
        assert weakness in page


def test_a_report_without_the_plug_in_s_environment_names_the_cpu(tmp_path: Path) -> None:
    """As pytest-benchmark does."""
    _, environment = read_report(_written(tmp_path / "a.json", _report(machine_info={"cpu": {"brand_raw": "Theirs"}})))
    assert environment["host"]["cpu"]["model"] == "Theirs"


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ({"cases": []}, "is not a report of pytest-benchmark"),
        ([], "is not a report of pytest-benchmark"),
        (_report(benchmarks=[{"name": "test_other", "extra_info": {}}]), "holds no benchmark of convbench (1 others)"),
        (_report(benchmarks=[]), "holds no benchmark of convbench (0 others)"),
        (
            _report(benchmarks=[{**_report()["benchmarks"][1], "stats": {"median": 1}}]),
            "has no samples of 'test_suite[",
        ),
    ],
)
def test_another_file_is_refused_with_what_is_wanted(tmp_path: Path, report: object, reason: str) -> None:
    """And nothing is written."""
    file = _written(tmp_path / "a.json", report)
    with pytest.raises(SpecError) as caught:
        convert(file)
    assert reason in str(caught.value)
    assert "--benchmark-json" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_is_not_json_is_refused(tmp_path: Path) -> None:
    """Also a text that is no UTF-8."""
    file = tmp_path / "a.json"
    file.write_bytes(b"\xff{")
    with pytest.raises(SpecError, match="is not JSON"):
        convert(file)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """Only what was made from the same file is written anew."""
    file = _written(tmp_path / "a.json", _report())
    folder = tmp_path / "a-report"
    folder.mkdir()
    assert convert(file) == folder  # empty: nothing is lost
    assert convert(file) == folder
    (folder / ENVIRONMENT_FILE).write_text("{}", encoding="utf-8")
    before = (folder / RECORDS_FILE).read_bytes()
    with pytest.raises(SpecError, match="holds something else"):
        convert(file)
    assert (folder / RECORDS_FILE).read_bytes() == before


def test_report_takes_no_other_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A suite, for example, is no run."""
    file = tmp_path / "cases.txt"
    file.write_text("i8 k3\n", encoding="utf-8")
    assert main(["report", str(file)]) == 2
    assert "must be a run's folder" in capsys.readouterr().err
