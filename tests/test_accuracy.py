"""Accuracy: runs that verify and time nothing, how cases become sweeps, and what tables and plot say of errors."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from convbench import ConvSpec, FunctionBackend, benchmark, oracle
from convbench.bench import Case, Options, load_suite, run_cases
from convbench.bench.record import Record, read, to_frame
from convbench.bench.run import PairDone, Started, _Run
from convbench.bench.statistics import summarise
from convbench.cli import main
from convbench.errors import SpecError
from convbench.report import accuracy, drawing
from convbench.report.accuracy import accuracy_plot, csv_text, is_untimed, markdown, overview, sweeps_of

LINE = "n1 c1 o1 i12x12 k3 psame f32"
UNTIMED = Options(threads=1, timed=False, budget_s=60.0, isolate=False)


def right(spec: ConvSpec, x: Any, w: Any) -> Any:
    return oracle.conv(spec.replace(bias="none"), x, w).astype(spec.result_dtype)


def wrong(spec: ConvSpec, x: Any, w: Any) -> Any:
    return np.flip(right(spec, x, w), -1).copy()


def backend(name: str = "fake", function: Any = right) -> FunctionBackend:
    return FunctionBackend(name=name, function=function)


def record(case: str, backend: str = "fake", *, error: float | None = 1.5, bound: float = 14.0, **more: Any) -> Record:
    spec = " ".join(token for token in case.split() if not token.startswith(("x=", "w=")))
    fields = {"kind": "own", "error_max_eps": error, "error_bound_eps": bound, "error_norm": 1e-8}
    return Record(**{"run_id": "r", "case": case, "spec": spec, "backend": backend, **fields, **more})


def table(records: list[Record], cases: list[str] | None = None) -> pd.DataFrame:
    environment = {"cases": cases or [], "options": {"timed": False}}
    return summarise(to_frame(records, environment))


# -- a run that times nothing -----------------------------------------------------------------------


def test_a_pair_costs_one_call_and_has_its_errors(tmp_path: Path) -> None:
    """Neither samples nor a call that measures the workspace; the record stands in no pass."""
    calls = []

    def counted(spec: ConvSpec, x: Any, w: Any) -> Any:
        calls.append(spec)
        return right(spec, x, w)

    events: list[Any] = []
    cases = [Case.parse(LINE), Case.parse(f"{LINE} x=range")]
    run_cases(cases, [backend(function=counted)], UNTIMED, tmp_path / "run", events.append)
    records = read(tmp_path / "run")
    assert len(calls) == len(records) == 2
    for one in records:
        assert (one.status, one.pass_, one.samples_s, one.workspace_measured_bytes) == ("ok", 0, [], None)
        assert one.error_max_eps is not None
        assert 0 < one.error_max_eps <= 0.5 < one.error_bound_eps  # type: ignore[operator]
        assert one.error_norm is not None
    assert [event.total for event in events if isinstance(event, Started)] == [2]
    assert [event.done for event in events if isinstance(event, PairDone)] == [1, 2]


def test_a_wrong_result_is_wrong_without_times_too(tmp_path: Path) -> None:
    run_cases([Case.parse(LINE)], [backend(function=wrong)], UNTIMED, tmp_path / "run")
    (one,) = read(tmp_path / "run")
    assert (one.status, one.reason[-10:]) == ("wrong", "is allowed")


@pytest.mark.parametrize(("timed", "status"), [(True, "skipped"), (False, "ok")])
def test_one_call_must_fit_the_limit_not_four(
    timed: bool, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convbench.bench.worker.PROBE_FLOPS", 0)
    monkeypatch.setattr("convbench.bench.predict.expected_seconds", lambda *_, **__: 6.0)
    options = Options(threads=1, passes=1, timed=timed, isolate=False)
    run_cases([Case.parse(LINE)], [backend()], options, tmp_path / "run")
    (one,) = read(tmp_path / "run")
    assert one.status == status
    assert ("4 are needed" in one.reason) is timed


@pytest.mark.parametrize(("timed", "status"), [(True, "skipped"), (False, "ok")])
def test_the_whole_budget_is_for_verifying(
    timed: bool, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept back for passes that are not made."""
    monkeypatch.setattr(_Run, "_left_s", lambda self: 10.0)
    options = Options(threads=1, passes=1, timed=timed, budget_s=100.0, isolate=False)
    small, large = Case.parse("i8 k3"), Case.parse(LINE)
    run_cases([small, large], [backend()], options, tmp_path / "run")
    assert {one.status for one in read(tmp_path / "run") if one.case == str(large)} == {status}


def test_timed_is_a_truth_value() -> None:
    with pytest.raises(SpecError, match="timed: got 1; must be True or False"):
        Options(timed=1)  # type: ignore[arg-type]


def test_fft_loses_small_outputs_where_direct_sums_do_not() -> None:
    """What the suite is for: an error spread over all outputs is large against the small ones."""
    lines = [f"n1 c1 o1 i64x64 k{k} psame f32{x}" for k in (3, 7, 15) for x in ("", " x=range")]
    found = summarise(benchmark(lines, ["direct-numpy", "im2col", "fft"], threads=1, timed=False, budget_s=60))
    assert (found["status"] == "ok").all()
    error = found.set_index(["backend", "kernel_size", "x"])["error_max_eps"]
    for kernel in (3, 7, 15):
        assert error["fft", kernel, "range"] > 1000 * error["fft", kernel, "noise"]
        for name in ("direct-numpy", "im2col"):
            assert max(error[name, kernel, "range"], error[name, kernel, "noise"]) < 2 * kernel  # about √n
    assert found[found["backend"] == "fft"]["error_norm"].max() < 1e-5  # the norm does not show it


# -- sweeps -----------------------------------------------------------------------------------------


def test_the_suite_is_its_sweeps() -> None:
    """Every case stands somewhere, and each sweep says what varies."""
    cases = [str(case) for case in load_suite("accuracy").cases]
    sweeps = sweeps_of(cases)
    assert {case for sweep in sweeps for case in sweep.cases["noise"].values()} == set(cases)
    assert [(sweep.symbol, list(sweep.columns.values())) for sweep in sweeps] == [
        ("K", [3, 5, 7, 11, 15, 31]),
        ("H", [64, 128, 256, 512, 1024]),
        ("C", [1, 16, 64, 256]),
        ("H", [1000, 10000, 100000, 1000000]),
        ("K", [3, 7, 15, 31]),
        ("K", [3, 7, 15, 31]),
        ("K", [3, 7, 15, 31]),
        ("K", [3, 5]),
    ]


def test_padding_may_follow_the_kernel() -> None:
    (sweep,) = sweeps_of(["n1 c1 o1 i9 k3 p1 f32", "n1 c1 o1 i9 k5 p2 f32", "n1 c1 o1 i9 k7 p3 f32"])
    assert list(sweep.columns.values()) == [3, 5, 7]


def test_a_grid_of_cases_is_shown_once() -> None:
    """Sizes times kernels are sweeps over the one or the other, not both."""
    cases = [f"n1 c1 o1 i{size} k{kernel} f32" for size in (64, 128, 256) for kernel in (3, 5, 7, 9)]
    sweeps = sweeps_of(cases)
    assert [list(sweep.columns.values()) for sweep in sweeps] == [[3, 5, 7, 9]] * 3
    assert sweeps[0].title == "kernel size K: n1 c1 o1 i64 f32 w=random"


def test_unlike_cases_are_rows() -> None:
    """Nothing to draw, but a table with every case and its data."""
    cases = ["n1 c1 o1 i64 k3 f32", "n1 c2 o4 i9x11 k3x5 f64"]
    made = table([record(case + x) for case in cases for x in ("", " x=range")])
    assert accuracy_plot(made) is None
    grids = overview(made).grids
    assert list(grids) == [
        "cases: n1 w=random · Gaussian data (x=noise)",
        "cases: n1 w=random · high dynamic range (x=range)",
    ]
    assert [row.cells for row in grids["cases: n1 w=random · Gaussian data (x=noise)"].rows] == [
        ("#1 c1 o1 i64 k3 f32", "1.5 / 14"),
        ("#2 c2 o4 i9x11 k3x5 f64", "1.5 / 14"),
    ]


def test_one_case_is_a_table_too() -> None:
    grids = overview(table([record(LINE)])).grids
    assert [row.cells for grid in grids.values() for row in grid.rows] == [(LINE, "1.5 / 14")]


# -- tables -----------------------------------------------------------------------------------------

SWEEP = [f"n1 c1 o1 i64 k{k} f32{x}" for x in ("", " x=range") for k in (3, 5, 7)]


def sweep_table() -> pd.DataFrame:
    records = [record(case, "direct") for case in SWEEP]
    records += [record(case, "fft", error=5e4) for case in SWEEP]
    records[-1].error_max_eps = 2.0**23  # exactly one: no digit
    refusal = {"status": "unsupported", "error": None, "bound": None}
    records += [record(case, "box", reason=f"weights: rank {k} of 9", **refusal) for k, case in enumerate(SWEEP)]
    records += [record(case, "late", status="skipped", error=None, bound=None) for case in SWEEP[:1]]
    records += [record(case, "late") for case in SWEEP[1:2]]
    return table(records)


def test_cells_hold_error_and_bound() -> None:
    """Lost digits are marked; a status stands where there is no error; who has none at all is in the notes."""
    summary = overview(sweep_table())
    noise, wide = summary.grids.values()
    assert list(summary.grids) == [
        "kernel size K: n1 c1 o1 i64 f32 w=random · Gaussian data (x=noise)",
        "kernel size K: n1 c1 o1 i64 f32 w=random · high dynamic range (x=range)",
    ]
    assert [column.title for column in noise.columns] == ["K =", "3", "5", "7"]
    assert [row.cells for row in noise.rows] == [
        ("direct", "1.5 / 14", "1.5 / 14", "1.5 / 14"),
        ("fft", "5.0e4 / 14", "5.0e4 / 14", "5.0e4 / 14"),
        ("late", "skipped", "1.5 / 14", "–"),
    ]
    assert wide.rows[1].cells == ("fft", "5.0e4 / 14", "5.0e4 / 14", "8.4e6† / 14")
    assert summary.notes == [
        "nothing was timed",
        "box refused in 6 cases, for example: weights: rank 0 of 9",
        "late skipped in 1 case",
    ]


def test_a_run_cut_short_says_so() -> None:
    made = table([record(SWEEP[0])], cases=SWEEP)
    assert overview(made).notes == ["nothing was timed", "5 cases not reached before the run ended"]


def test_the_page_explains_its_figures() -> None:
    text = markdown(sweep_table(), ["A machine"])
    for word in ("componentwise", "normwise", "a priori", "x=range", "nothing was timed", "A machine"):
        assert word in text
    assert "| fft | 5.0e4 / 14 | 5.0e4 / 14 | 8.4e6† / 14 |" in text


def test_the_csv_has_the_normwise_error() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(sweep_table()))))
    assert len(rows) == 20
    lost = [row for row in rows if row["digits_lost"] == "True"]
    assert [(row["backend"], row["case"]) for row in lost] == [("fft", SWEEP[-1])]
    assert float(lost[0]["error_norm"]) == 1e-8
    assert float(lost[0]["error_max_eps"]) == 2.0**23


def test_half_of_eps_in_float64_is_another_limit() -> None:
    """What float32 has lost float64 still has."""
    (grid,) = overview(table([record("n1 c1 o1 i64 k3 f64", error=2.0**23)])).grids.values()
    assert grid.rows[0].cells[1] == "8.4e6 / 14"


@pytest.mark.parametrize(
    ("options", "samples", "untimed"),
    [({"timed": False}, [], True), ({"timed": True}, [], False), ({}, [], True), ({}, [0.1], False)],
)
def test_a_run_for_accuracy_is_known_by_its_environment_or_its_records(
    options: dict[str, bool], samples: list[float], untimed: bool
) -> None:
    records = to_frame([record(LINE, samples_s=samples)], {"options": options} if options else {})
    assert is_untimed(records) is untimed


def test_a_run_without_a_right_result_counts_as_timed() -> None:
    """The tables of times have the reasons."""
    assert not is_untimed(to_frame([record(LINE, status="skipped")]))


# -- plot -------------------------------------------------------------------------------------------


def test_the_plot_has_a_row_a_sweep_and_a_column_a_kind_of_data() -> None:
    made = table([record(case, name) for case in [*SWEEP, "n1 c1 o1 i9x9 k3 f32"] for name in ("direct", "fft")])
    figure = accuracy_plot(made)
    assert figure is not None
    assert [axis.get_title(loc="left").splitlines()[-1] for axis in figure.axes] == [
        "Gaussian data (x=noise)",
        "high dynamic range (x=range)",
    ]
    errors = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].get_lines()}
    assert errors["direct"] == errors["fft"] == [1.5] * 3
    assert [1.0 / 2**-23] * 2 in [list(line.get_ydata()) for line in figure.axes[0].get_lines()]
    assert [list(line.get_ydata()) for line in figure.axes[0].get_lines()].count([14.0] * 3) == 2
    assert [text.get_text() for text in figure.axes[1].texts] == ["fft, direct"]


def test_a_line_that_ends_early_has_no_name_at_the_edge() -> None:
    """Its name would stand beside another line."""
    records = [record(case, "direct") for case in SWEEP]
    records += [record(case, "winograd", error=1e5) for case in SWEEP if "k7" not in case]
    figure = accuracy_plot(table(records))
    assert figure is not None
    assert [text.get_text() for text in figure.axes[1].texts] == ["direct"]


def test_an_exact_result_is_at_the_lower_edge() -> None:
    """Zero has no place on a log axis."""
    made = table([record(case, name, error=e) for case in SWEEP for name, e in (("direct", 0.0), ("fft", 4.0))])
    figure = accuracy_plot(made)
    assert figure is not None
    errors = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].get_lines()}
    assert errors["direct"] == [2.0] * 3
    assert any("at the lower edge: no error" in text.get_text() for text in figure.texts)


def test_of_many_backends_the_odd_ones_have_colours() -> None:
    errors = {f"b{number:02}": 1.0 + 0.01 * number for number in range(23)} | {"fft": 1e6}
    made = table([record(case, name, error=error) for case in SWEEP for name, error in errors.items()])
    styles = accuracy._styles(made)
    coloured = [name for name, style in styles.items() if style["color"] not in drawing.GREYS]
    assert "fft" in coloured
    assert len(coloured) == len(drawing.COLOURS)
    figure = accuracy_plot(made)
    assert figure is not None
    assert "fft" in {text.get_text() for text in figure.axes[1].texts}


# -- the command ------------------------------------------------------------------------------------


def _run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def _only_folder(out: Path) -> Path:
    (folder,) = out.iterdir()
    return folder


def test_accuracy_writes_its_own_report_and_nothing_of_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [part for k in (3, 5, 7) for part in ("--spec", f"i24x24 k{k} psame f32")]
    assert _run("run", "--accuracy", *lines, "--backends", "direct-numpy,fft", "--out", tmp_path, "--quiet") == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert "kernel size K: n1 c1 o1 i24x24 psame f32 w=random · high dynamic range (x=range)" in output
    assert "- nothing was timed" in output
    folder = _only_folder(tmp_path)
    assert folder.name.endswith("-spec-accuracy")
    names = {path.name for path in folder.iterdir()}
    assert {"accuracy.md", "accuracy.csv", "accuracy.png", "accuracy.svg", "records.jsonl"} <= names
    assert not names & {"table.md", "overview.md", "time.png", "speedup.png", "error.png"}
    assert len(read(folder)) == 12
    page = (folder / "accuracy.md").read_text(encoding="utf-8")
    (folder / "accuracy.md").unlink()
    assert _run("report", folder) == 0
    assert "- nothing was timed" in capsys.readouterr().out
    assert (folder / "accuracy.md").read_text(encoding="utf-8") == page


def test_without_a_suite_accuracy_runs_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A filter sees the repeated cases too."""
    chosen = ("-k", "i64x64 o1 x=range", "--backends", "direct-numpy")
    assert _run("run", "--accuracy", *chosen, "--out", tmp_path) == 0
    assert "backends: direct-numpy · verified, not timed" in capsys.readouterr().out
    folder = _only_folder(tmp_path)
    assert folder.name.endswith("Z-accuracy")
    assert [one.case for one in read(folder)] == ["n1 c1 o1 i64x64 k5 psame f32 x=range"]


def test_only_noise_is_repeated(tmp_path: Path) -> None:
    """Integers have no high dynamic range; other data are what the suite asked for."""
    suite = tmp_path / "own.txt"
    suite.write_text("i8 k3 int32\ni8 k3 f64 x=integers\ni8 k3 f32\ni8 k3 f32 x=range\n", encoding="utf-8")
    assert _run("run", suite, "--accuracy", "--backends", "direct-numpy", "--quiet", "--out", tmp_path / "out") == 0
    assert sorted(one.case for one in read(_only_folder(tmp_path / "out"))) == [
        "n1 c1 o1 i8 k3 f32",
        "n1 c1 o1 i8 k3 f32 x=range",
        "n1 c1 o1 i8 k3 f64 x=integers",
        "n1 c1 o1 i8 k3 int32",
    ]


@pytest.mark.parametrize(("option", "value"), [("--passes", "3"), ("--baseline", "fft")])
def test_options_of_timing_are_refused(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("run", "smoke", "--accuracy", option, value, "--out", tmp_path / "out") == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors == (
        f"convbench: {option}: got {value if option == '--passes' else repr(value)}; says how to time, and --accuracy "
        f"times nothing; leave out {option} or --accuracy\n"
    )
    assert not (tmp_path / "out").exists()
