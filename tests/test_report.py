"""Tables and plots: what they say of hand-made records."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convbench import reference
from convbench.bench.record import ENVIRONMENT_FILE, RECORDS_FILE, Record, append, to_frame
from convbench.errors import SpecError, UnsupportedSpec
from convbench.report import machine, plots, tables, write_report
from convbench.report.layout import layout_of
from convbench.report.matrix import matrix_figures, matrix_table
from convbench.report.text import Column, Grid, Row, human_interval, human_number, human_seconds
from convbench.spec import ConvSpec

KERNELS = (3, 5, 11, 101)
SWEEP = [f"n1 c1 o1 i256x256 k{k} psame f32{w}" for w in ("", " w=gaussian") for k in KERNELS]
MIXED = ["n1 c1 o1 i4096 k9 f32", "n2 c8 o16 i32x32 k3 s2 p1 g4 bias=channel f32", "n1 c1 o1 i64x64 k7 f64 w=gaussian"]
#: backend → (kind, seconds at the n-th case); None: refused everywhere
BACKENDS = {
    "direct": ("own", lambda n: 0.001 * 2**n),
    "fft": ("own", lambda n: 0.004),
    "scipy-fft": ("rival", lambda n: 0.012),
    "reference": ("own", None),
}


def _record(case: str, backend: str, number: int, pass_: int) -> Record:
    spec = " ".join(token for token in case.split() if not token.startswith(("x=", "w=")))
    kind, seconds = BACKENDS[backend]
    parsed = ConvSpec.parse(spec)
    record = Record(run_id="r", case=case, spec=spec, backend=backend, kind=kind, pass_=pass_, threads=2, device="cpu")
    record.flops_nominal, record.bytes_min, record.flops_executed = parsed.flops, parsed.bytes_min, parsed.flops // 2
    if seconds is None:
        record.status, record.reason = "unsupported", "work: 4.12e+07 MACs needed, the limit is 1e+06"
    elif backend == "direct" and "k101" in case:
        record.status, record.reason = "skipped", "memory: 40.0 GiB needed, the limit is 2.0 GiB"
    else:
        record.samples_s = [seconds(number) * (1 + 0.001 * i) for i in range(-4, 5)]
        record.prepare_s = 0.002 if backend == "fft" else 0.003
        record.error_max_eps, record.error_bound_eps = 0.0 if backend == "direct" else 1.25, 73.0
        record.workspace_declared_bytes, record.workspace_measured_bytes = 2**24, 2**24 + 2**20
    return record


def _records(cases: list[str]) -> list[Record]:
    pairs = itertools.product((1, 2), enumerate(cases), BACKENDS)
    made = [_record(case, backend, number, pass_) for pass_, (number, case), backend in pairs]
    return [record for record in made if record.status == "ok" or record.pass_ == 1]


def _environment(cases: list[str]) -> dict[str, object]:
    machine = {"host": {"cpu": {"model": "A CPU", "usable_cores": 2}}, "threads": 2, "libraries": {"numpy": "2.4"}}
    return {"cases": cases, "backends": list(BACKENDS), **machine}


def _table(cases: list[str], baseline: str | None = "scipy-fft") -> pd.DataFrame:
    return tables.figures(to_frame(_records(cases), _environment(cases)), baseline)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Make a run's folder as the bench does, the records in another order than the suite's."""
    (tmp_path / ENVIRONMENT_FILE).write_text(json.dumps(_environment(SWEEP)), encoding="utf-8")
    for record in reversed(_records(SWEEP)):
        append(tmp_path / RECORDS_FILE, record)
    return tmp_path


# -- numbers ----------------------------------------------------------------------------------------


@given(st.floats(1e-9, 1e6))
def test_seconds_keep_three_digits(value_s: float) -> None:
    """What is printed reads back to within half a unit of the third digit, and is short."""
    number, unit = human_seconds(value_s).split()
    scale = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}[unit]
    assert math.isclose(float(number.replace(",", "")) * scale, value_s, rel_tol=0.0051)
    assert len(number) <= 5 or unit == "s"


@given(st.floats(1e-30, 1e30) | st.just(0.0))
def test_numbers_keep_three_digits(value: float) -> None:
    """Likewise for plain numbers, over their whole range."""
    assert math.isclose(float(human_number(value).replace(",", "")), value, rel_tol=0.0051)


def test_an_interval_has_the_unit_of_its_time() -> None:
    """Both ends are in the unit of the median, even where an end would take another."""
    assert human_seconds(0.00101) == "1.01 ms"
    assert human_interval(0.00099, 0.0021, 0.00101) == "0.990–2.10"
    assert human_interval(math.nan, math.nan, 0.001) == "–"


# -- grids ------------------------------------------------------------------------------------------


def test_markdown_escapes_pipes_and_marks_in_bold() -> None:
    """A pipe inside a cell must not end it."""
    grid = Grid([Column("a"), Column("b")], [Row(("x|y", "2"), marked=frozenset([1]))])
    assert grid.markdown().splitlines()[-1] == "| x\\|y | **2** |"


def test_marked_columns_stay_aligned() -> None:
    """The mark stands beside the figures, which remain in line."""
    grid = Grid([Column("a"), Column("b")], [Row(("p", "10"), marked=frozenset([1])), Row(("q", "7"))])
    assert grid.plain() == ["a   b", "p  10*", "q   7"]


def test_a_split_grid_shows_every_cell_once() -> None:
    """On a narrow screen columns move below; none is lost and none is wider than the screen."""
    columns = [Column("name", right=False), *(Column(str(k)) for k in range(20))]
    grid = Grid(columns, [Row(("fft", *(f"{k}.25 ms" for k in range(20))), marked=frozenset([3, 17]))])
    parts = grid.split(40)
    lines = [line for part in parts for line in part.plain(40)]
    assert len(parts) > 1
    assert max(map(len, lines)) <= 40
    shown = [word for part in parts for word in part.rows[0].cells[1:]]
    assert shown == list(grid.rows[0].cells[1:])
    assert sum(line.count("*") for line in lines) == 2


# -- layout -----------------------------------------------------------------------------------------


def test_a_sweep_is_found_with_its_panels() -> None:
    """One number varies; whatever else varies makes the panels."""
    layout = layout_of(SWEEP)
    assert (layout.varies, layout.field_title) == ("kernel_size", "kernel size K")
    assert {name: list(panel) for name, panel in layout.panels.items()} == {
        "w=random": list(KERNELS),
        "w=gaussian": list(KERNELS),
    }
    assert layout.common == "n1 c1 o1 i256x256 psame f32 x=noise"


@pytest.mark.parametrize(
    ("cases", "field"),
    [
        (["i64x64 k3 p1", "i64x64 k5 p2"], "kernel_size"),  # padding follows the kernel
        (["i64x64 k3", "i128x128 k3"], "input_size"),
        (["i64x64 k3", "i128x128 k5"], None),
        (["i64x64 k3", "i64x64 k3x5"], None),  # not one number
        (["i64x64 k3 pfull", "i64x64 k3 psame"], None),
        (["c4 o4 i64x64 k3", "c4 o4 i64x64 k3 g2"], "groups"),  # g1 is not written
        (["c4 o4 i64x64 k3 complex64", "c4 o4 i64x64 k3 int8"], None),
    ],
)
def test_only_one_varying_number_makes_a_sweep(cases: list[str], field: str | None) -> None:
    """Everything else is a list of cases."""
    layout = layout_of(str(ConvSpec.parse(case)) for case in cases)
    assert layout.varies == field
    assert all(label.startswith("#") == (field is None) for label in layout.labels.values())


# -- the matrix -------------------------------------------------------------------------------------


def test_the_books_table_is_printed_exactly() -> None:
    """The edge-detection figures of section 9.2, the dense matrix refused with the memory it would need."""
    lines = matrix_table(ConvSpec.parse("i280x320 k1x2 f32")).plain()
    assert [line.split() for line in lines[1:3]] == [
        ["convolution", "2", "267,960"],
        ["sparse", "matrix", "178,640", "267,960"],
    ]
    assert "8,003,072,000 (> 8·10⁹)    16,006,054,680 (> 16·10⁹)  refused: memory: 29.8 GiB needed" in lines[3]
    assert "the limit is 2.0 GiB" in lines[3]


@pytest.mark.parametrize(
    "line",
    [
        "i5x6 k2x3 f64",
        "n2 c4 o6 i5x4 k3 p1 g2 f64",
        "c2 o3 i7x6 k3x2 s2x1 d1x2 p0:1x2:0 f64",
        "i4 k3 p4 f64",  # some outputs see nothing but padding
        "n2 c2 o2 i6 k3 bias=channel f64",
        "i5x5 k2 boundary=circular p0:1 f64",
    ],
)
def test_matrix_figures_are_those_of_the_matrix_itself(line: str) -> None:
    """Build the matrix column by column with the reference and count."""
    spec = ConvSpec.parse(line)
    one = spec.replace(batch=1, bias="none")
    size = math.prod(one.input_shape)
    weights = np.ones(one.weight_shape)
    columns = [reference.conv(one, np.eye(size)[i].reshape(one.input_shape), weights).ravel() for i in range(size)]
    matrix = np.stack(columns, axis=1)
    entries, rows = np.count_nonzero(matrix), np.count_nonzero(matrix.any(axis=1))
    biases = math.prod(spec.output_shape) * (spec.bias != "none")
    convolution, sparse, dense = matrix_figures(spec)
    assert (sparse.stored, sparse.operations) == (entries, spec.batch * (2 * entries - rows) + biases)
    assert (dense.stored, dense.operations) == (matrix.size, spec.batch * (2 * matrix.size - len(matrix)) + biases)
    assert convolution.operations == spec.multiplications + spec.additions
    assert not dense.note.startswith("refused")


def test_no_matrix_table_for_gradients() -> None:
    """A refusal in the vocabulary."""
    with pytest.raises(UnsupportedSpec, match="op: input_grad"):
        matrix_figures(ConvSpec.parse("op=input_grad i8 k3"))


# -- tables -----------------------------------------------------------------------------------------


def test_figures_hold_rates_and_paired_speedups() -> None:
    """GFLOP/s from both counts, speed-ups over the baseline, cases in the suite's order, the fastest first."""
    table = _table(SWEEP)
    assert list(dict.fromkeys(table["case"])) == SWEEP
    first = table[table["case"] == SWEEP[0]]
    assert list(first["backend"]) == ["direct", "fft", "scipy-fft", "reference"]
    row = first.set_index("backend").loc["fft"]
    assert row["speedup"] == pytest.approx(3.0)
    assert row["speedup_with_prepare"] == pytest.approx((0.012 + 0.003) / (0.004 + 0.002))
    assert row["speedup_low"] < 3.0 < row["speedup_high"]
    assert row["effective_gflop_per_s"] == pytest.approx(ConvSpec.parse(SWEEP[0]).flops / 0.004 / 1e9)
    assert row["executed_gflop_per_s"] == pytest.approx(row["effective_gflop_per_s"] / 2)
    assert first.set_index("backend").loc["scipy-fft", "speedup"] == 1.0


def test_without_baseline_there_are_no_speedups() -> None:
    """An absent baseline costs the speed-ups, not the table, and is mentioned."""
    table = _table(SWEEP, "torch")
    assert table["speedup"].isna().all()
    assert any("no speed-ups" in note for note in tables.overview(table).notes)


def test_the_comparison_says_all_that_is_known() -> None:
    """Time with interval, speed-up, rates, error and bound, workspace; status with reason."""
    lines = tables.comparison(_table(SWEEP)).plain()
    at = lines.index("k3 w=random")
    assert lines[at + 2].split() == [
        "fft", "4.00", "ms", "3.99–4.01", "3.00×", "2.50×", "0.295", "0.147", "1.25", "73.0",
        "16.0", "MiB", "17.0", "MiB", "ok",
    ]  # fmt: skip
    assert lines[at + 1].split()[1:3] == ["1.00", "ms*"]
    assert lines[at + 4] == "reference  unsupported: work: 4.12e+07 MACs needed, the limit is 1e+06"
    at = lines.index("k101 w=random")
    assert "direct     skipped: memory: 40.0 GiB needed, the limit is 2.0 GiB" in lines[at : at + 6]


@pytest.mark.parametrize("width", [60, 80, 100, 120])
@pytest.mark.parametrize("cases", [SWEEP, MIXED])
def test_the_comparison_fits_the_terminal(width: int, cases: list[str]) -> None:
    """Columns are left out before lines are broken; what matters most is always there."""
    grid = tables.comparison(_table(cases))
    table_lines = [line for line in grid.plain(width) if not line.startswith("#")]
    assert max(map(len, table_lines)) <= max(width, 76)
    assert {"backend", "time", "speed-up", "error", "status"} <= set(table_lines[0].split())


def test_ties_are_marked_as_such() -> None:
    """Whatever the best one's interval does not separate from it is marked too; without one, the time stands for it."""

    def row(backend: str, low: float, mid: float, high: float) -> dict[str, object]:
        entry = {"backend": backend, "status": "ok", "low_s": low, "time_s": mid, "high_s": high}
        return {**entry, "pass_medians_s": {1: mid}}

    rows = [row("a", 1, 2, 3), row("b", 2.9, 4, 5), row("c", 3.1, 4, 5), row("d", math.nan, 2.5, math.nan)]
    assert tables.fastest(rows) == {"a", "b", "d"}
    assert tables.fastest([{**rows[0], "status": "wrong"}]) == set()


def test_only_passes_that_lie_apart_separate() -> None:
    """Intervals of pooled samples are too narrow: a pass as quick as one of the best's makes a tie."""

    def row(backend: str, time_s: float, *medians_s: float) -> dict[str, object]:
        entry = {"backend": backend, "status": "ok", "low_s": time_s - 0.1, "time_s": time_s, "high_s": time_s + 0.1}
        return {**entry, "pass_medians_s": dict(enumerate(medians_s, 1))}

    rows = [row("a", 1, 0.9, 1, 1.6), row("crossing", 2, 1.5, 2, 2.1), row("apart", 2, 1.7, 2, 2.1), row("once", 2, 1)]
    assert tables.fastest(rows) == {"a", "crossing"}


def test_an_overview_without_times_has_no_table(tmp_path: Path) -> None:
    """Nothing was timed: it says so, and why, and prints no columns of nothing."""
    for cases in (SWEEP, MIXED):
        records = [record for record in _records(cases) if record.backend == "reference"]
        overview = tables.overview(tables.figures(to_frame(records, _environment(cases)), "scipy-fft"))
        assert not overview.grids
        assert overview.notes[-1] == "nothing was timed"
        assert overview.markdown().startswith("- reference unsupported in every case: work")
        for record in records:
            append(tmp_path / RECORDS_FILE, record)
    write_report(tmp_path)
    assert "|" not in (tmp_path / "overview.md").read_text(encoding="utf-8")
    assert "marked" not in (tmp_path / "overview.md").read_text(encoding="utf-8")


def test_csv_has_raw_numbers_with_units_in_the_names() -> None:
    """What a spreadsheet needs, readable back without loss."""
    table = _table(SWEEP)
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(table))))
    assert len(rows) == len(table)
    assert {
        "time_s",
        "low_s",
        "high_s",
        "speedup_with_prepare",
        "workspace_declared_bytes",
        "effective_gflop_per_s",
    } <= set(rows[0])
    for text, (_, row) in zip(rows, table.iterrows(), strict=True):
        assert float(text["time_s"] or "nan") == pytest.approx(row["time_s"], rel=0, abs=0, nan_ok=True)


def test_the_overview_of_a_sweep() -> None:
    """One block a panel, backends against kernel sizes, words where there is no time, the rest in the notes."""
    overview = tables.overview(_table(SWEEP))
    assert list(overview.grids) == [
        "random kernel: time against kernel size K",
        "gaussian kernel: time against kernel size K",
    ]
    lines = overview.grids["random kernel: time against kernel size K"].plain()
    assert lines[0].split() == ["K", "=", "3", "5", "11", "101"]
    assert lines[1].split() == ["direct", "1.00", "ms*", "2.00", "ms*", "4.00", "ms*", "skipped"]
    assert lines[2].split()[-2:] == ["4.00", "ms*"]
    assert [note.split()[0] for note in overview.notes] == ["direct", "reference"]
    assert "at k101 w=random, k101 w=gaussian: memory: 40.0 GiB needed" in overview.notes[0]


def test_the_overview_of_unlike_cases() -> None:
    """Cases against backends, each case with its number and what sets it apart."""
    overview = tables.overview(_table(MIXED))
    lines = overview.grids[""].plain()
    assert lines[0].split() == ["case", "direct", "fft", "scipy-fft"]
    assert lines[2].startswith("#2 n2 c8 o16 i32x32 k3 s2 p1 g4 bias=channel f32")


def test_problems_come_with_the_command_that_reproduces_them() -> None:
    """One line says what, the next how to see it again."""
    bad = _record(SWEEP[0], "fft", 0, 1)
    bad.status, bad.reason, bad.samples_s = "wrong", "error 1e5 eps at (0, 0, 3, 4)", []
    table = tables.figures(to_frame([bad]), None)
    (problem,) = tables.problems(table)
    what, again = problem.splitlines()
    assert what == f"fft wrong on {SWEEP[0]}: error 1e5 eps at (0, 0, 3, 4)"
    assert again == f'  again: convbench run --spec "{SWEEP[0]}" --backends fft'


# -- plots ------------------------------------------------------------------------------------------


def test_time_is_plotted_against_the_kernel_size() -> None:
    """Log axes with a readable tick at every K, a line a backend: own solid, rivals dashed."""
    figure = plots.time_plot(_table(SWEEP))
    assert figure is not None
    left, right = figure.axes
    assert [axis.get_title() for axis in (left, right)] == ["random kernel", "gaussian kernel"]
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")
    assert list(left.get_xticks()) == list(KERNELS)
    assert [tick.get_text() for tick in left.get_xticklabels()] == [str(k) for k in KERNELS]
    lines = {line.get_label(): line for line in left.get_lines()}
    assert set(lines) == {"direct", "fft", "scipy-fft"}
    assert list(lines["direct"].get_xdata()) == [3, 5, 11]  # skipped at 101
    assert lines["fft"].get_linestyle() == "-"
    assert lines["scipy-fft"].get_linestyle() == "--"
    assert len({line.get_color() for line in lines.values()} | {line.get_marker() for line in lines.values()}) == 6
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["direct", "fft", "scipy-fft"]


def test_speedups_have_a_line_at_one() -> None:
    """And nothing is drawn without a baseline."""
    figure = plots.speedup_plot(_table(SWEEP))
    assert figure is not None
    assert any(list(line.get_ydata()) == [1, 1] for line in figure.axes[0].get_lines())
    assert plots.speedup_plot(_table(SWEEP, None)) is None


def test_an_exact_result_is_not_lost_on_the_log_axis() -> None:
    """Zero error stands at the lower edge."""
    figure = plots.error_plot(_table(SWEEP))
    assert figure is not None
    marks = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert set(marks["direct"].get_ydata()) == {0.625}
    assert len(marks["direct"].get_xdata()) == 3


def test_unlike_cases_are_a_dot_plot() -> None:
    """One row a case, labelled in full."""
    figure = plots.time_plot(_table(MIXED))
    assert figure is not None
    (axis,) = figure.axes
    labels = [tick.get_text().replace("\n", " ") for tick in axis.get_yticklabels()]
    assert list(reversed(labels)) == list(layout_of(MIXED).labels.values())


@pytest.mark.parametrize("cases", [SWEEP, MIXED, SWEEP[:1]])
def test_plots_are_saved_twice_alike_and_nothing_overlaps_the_figure(tmp_path: Path, cases: list[str]) -> None:
    """The same results give the same file, and every text lies inside the picture."""
    import matplotlib

    before = dict(matplotlib.rcParams)
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        names = [path.name for path in plots.save_plots(_table(cases), folder)]
        assert names == [f"{plot}{end}" for plot in ("time", "speedup", "error") for end in (".svg", ".png")]
    assert (folders[0] / "time.svg").read_bytes() == (folders[1] / "time.svg").read_bytes()
    assert dict(matplotlib.rcParams) == before
    figure = plots.time_plot(_table(cases))
    assert figure is not None
    figure.draw_without_rendering()
    bounds = figure.bbox
    for text in [*figure.texts, *(label for axis in figure.axes for label in axis.get_yticklabels())]:
        box = text.get_window_extent()
        assert box.x0 >= bounds.x0 - 1
        assert box.x1 <= bounds.x1 + 1


def test_nothing_timed_means_no_plots(tmp_path: Path) -> None:
    """Refusals alone are no picture."""
    table = _table(SWEEP)
    assert plots.save_plots(table[table["backend"] == "reference"], tmp_path) == []


# -- the report -------------------------------------------------------------------------------------


def test_a_report_is_written_beside_the_records(run_folder: Path) -> None:
    """All files, in the suite's order whatever the order of the records."""
    spec = ConvSpec.parse("i280x320 k1x2 f32")
    written = write_report(run_folder, baseline="scipy-fft", matrices=[spec])
    plots_written = [f"{name}{end}" for name in ("time", "speedup", "error") for end in (".svg", ".png")]
    assert [path.name for path in written] == ["matrix.md", "table.md", "overview.md", "table.csv", *plots_written]
    page = (run_folder / "table.md").read_text(encoding="utf-8")
    assert "A CPU, 2 of its cores usable · threads: 2 · numpy 2.4" in page
    headings = [line for line in page.splitlines() if line.startswith("### ")]
    assert headings == [f"### k{k} w={w}" for w in ("random", "gaussian") for k in KERNELS]
    assert "| fft | 4.00 ms | 3.99–4.01 | 3.00× | 2.50× |" in page
    assert "8,003,072,000" in (run_folder / "matrix.md").read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    """Named, and before anything is written."""
    with pytest.raises(SpecError, match="does not exist"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_results_is_a_note(tmp_path: Path) -> None:
    """A run interrupted before its first result has no tables."""
    (tmp_path / RECORDS_FILE).touch()
    notes: list[str] = []
    assert write_report(tmp_path, note=notes.append) == []
    assert notes == ["no pair was finished, so there are no tables"]


def test_the_machine_is_named_even_if_little_is_known() -> None:
    """Records may come without an environment."""
    assert machine({}) == "unknown CPU, ? of its cores usable · threads: ?"


def test_an_interrupted_run_keeps_the_numbers_of_its_cases() -> None:
    """The rows seen live and the tables name a case alike, whatever was reached; the rest is counted."""
    records = [record for record in _records(MIXED) if record.case != MIXED[0]]
    table = tables.figures(to_frame(records, _environment(MIXED)), "scipy-fft")
    lines = tables.comparison(table).plain()
    assert [line for line in lines if line.startswith("#")] == [layout_of(MIXED).labels[case] for case in MIXED[1:]]
    overview = tables.overview(table)
    assert overview.grids[""].rows[0].cells[1:] == ("–", "–", "–")
    assert overview.notes[-1] == "1 case not reached before the run ended"
    assert plots.time_plot(table) is not None
