"""Tables and plots: what they say of hand-made records."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convbench import reference
from convbench.bench import statistics
from convbench.bench.record import ENVIRONMENT_FILE, RECORDS_FILE, Record, append, to_frame
from convbench.errors import SpecError, UnsupportedSpec
from convbench.report import drawing, machine, plots, tables, write_report
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
        (["i64 k2 p1:0", "i64 k2 p2:0 d2", "i64 k2 p4:0 d4"], "dilation"),  # padding follows the dilation
        (["i64x64 k3", "i64x64 k5", "i64x64 k5 flip"], None),  # a panel of a single size
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
    stored = matrix.size // spec.groups  # one matrix a group
    assert (dense.stored, dense.operations) == (stored, spec.batch * (2 * stored - len(matrix)) + biases)
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
    assert row[["speedup_low", "speedup_high"]].tolist() == pytest.approx([3.0, 3.0])  # both passes say the same
    assert row[["ratio_to_best", "ratio_low", "rank", "tied"]].tolist() == pytest.approx([4.0, 4.0, 2, False])
    assert row["effective_gflop_per_s"] == pytest.approx(ConvSpec.parse(SWEEP[0]).flops / 0.004 / 1e9)
    assert row["executed_gflop_per_s"] == pytest.approx(row["effective_gflop_per_s"] / 2)
    assert first.set_index("backend").loc["scipy-fft", "speedup"] == 1.0


def test_without_baseline_there_are_no_speedups() -> None:
    """An absent baseline costs the speed-ups, not the table, and is mentioned."""
    table = _table(SWEEP, "torch")
    assert table["speedup"].isna().all()
    assert any("no speed-ups" in note for note in tables.overview(table).notes)


def _timed_on(counts: dict[str, int], line: str) -> pd.DataFrame:
    """A run of three cases, of which each backend does so many."""
    lines = [line.format(size=size) for size in (8, 9, 10)]
    pairs = [(spec, name, number < count) for number, spec in enumerate(lines) for name, count in counts.items()]
    common = {"run_id": "r", "kind": "own"}
    return to_frame(
        Record(
            **common, case=spec, spec=spec, backend=name, status="ok" if done else "skipped", samples_s=[1e-3] * done
        )
        for spec, name, done in pairs
    )


@pytest.mark.parametrize(
    ("counts", "baseline", "remark"),
    [
        ({"im2col": 3, "scipy-fft": 3, "torch": 3}, "scipy-fft", ""),
        ({"im2col": 3, "scipy-fft": 2, "torch": 3}, "im2col", "has times on 2 of the 3 timed cases"),
        ({"im2col": 0, "direct-numpy": 1, "torch": 3}, "direct-numpy", "has times on 0 of the 3 timed cases"),
        ({"torch": 3}, "scipy-fft", ""),
    ],
)
def test_without_a_baseline_named_the_one_with_most_cases_is_taken(
    counts: dict[str, int], baseline: str, remark: str
) -> None:
    records = _timed_on(counts, "op=input_grad n1 c1 o1 i{size}x{size} k3 f32")
    assert tables.usual_baseline(records) == baseline
    legend = tables.legend(tables.figures(records, baseline), baseline)
    assert legend["speed-up"].startswith(f"the time of {baseline} over this one's")
    assert ("the usual baseline" in legend["speed-up"]) == bool(remark)
    assert remark in legend["speed-up"]


def test_the_legend_is_that_of_the_family() -> None:
    """Pooling has neither weights nor MACs."""
    records = _timed_on({"direct": 3, "torch": 3}, "pool=max n1 c1 i{size}x{size} k3 f32")
    assert tables.usual_baseline(records) == "direct"
    pooling = tables.legend(tables.figures(records, "direct"), "direct")
    convolution = tables.legend(_table(SWEEP), "scipy-fft")
    assert list(pooling) == list(convolution)
    texts = " ".join(pooling.values())
    assert not any(word in texts for word in ("MACs", "|w|", "weights cost"))
    assert "2·MACs" in convolution["GFLOP/s"]


def test_the_comparison_says_all_that_is_known() -> None:
    """Time with interval, speed-up, rates, error and bound, workspace; status with reason."""
    lines = tables.comparison(_table(SWEEP)).plain()
    at = lines.index("k3 w=random")
    assert lines[at + 2].split() == [
        "fft", "2", "4.00", "ms", "3.99–4.01", "4.00×", "4.00–4.00", "3.00×", "2.50×", "–", "0.295", "0.147", "–",
        "1.25", "73.0", "16.0", "MiB", "17.0", "MiB", "ok",
    ]  # fmt: skip
    assert lines[at + 1].split()[1:4] == ["1", "1.00", "ms*"]
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
    """Whatever nothing separates from the fastest is marked with it; what has no time never is."""

    def row(backend: str, *medians_s: float) -> dict[str, object]:
        entry = {"backend": backend, "status": "ok", "time_s": sorted(medians_s)[len(medians_s) // 2]}
        return {**entry, "pass_medians_s": dict(enumerate(medians_s, 1))}

    rows = [row("a", 0.9, 1.0, 1.1), row("crossing", 1.0, 0.95, 1.3), row("apart", 1.8, 2.0, 2.2), row("once", 1.5)]
    assert tables.fastest(rows) == {"a", "crossing", "once"}  # one pass beside three is not far enough off
    assert tables.fastest([*rows[:3], row("once", 9.0)]) == {"a", "crossing"}
    assert tables.fastest([{**rows[0], "status": "wrong"}]) == set()


def test_what_a_single_process_says_is_no_rank() -> None:
    """Its interval is shown in brackets, nobody is marked, and the legend says how many ratios are of which kind."""
    records = [record for record in _records(SWEEP[:1]) if record.pass_ == 1]
    table = tables.figures(to_frame(records, _environment(SWEEP[:1])), "scipy-fft")
    assert table["rank"].isna().all()
    assert table["undecided"].tolist() == [True, True, True, False]
    assert not table["tied"].any()
    lines = tables.comparison(table).plain()
    fft = next(line for line in lines if line.startswith("fft"))
    assert fft.split()[1:4] == ["?", "4.00", "ms"]
    assert re.search(r"4\.00× +\[3\.\d+–4\.\d+\]", fft)
    assert "*" not in "".join(lines)
    assert "2 within one process" in tables.legend(table, "scipy-fft")["over fastest"]
    assert "2 paired" not in tables.legend(table, "scipy-fft")["over fastest"]
    assert plots.time_plot(table) is not None
    for record in records:
        record.samples_s = record.samples_s[:4]
    table = tables.figures(to_frame(records, _environment(SWEEP[:1])), "scipy-fft")
    fft = next(line for line in tables.comparison(table).plain() if line.startswith("fft"))
    assert re.search(r"4\.00×  +\?", fft)  # unknown; the dash is for the fastest itself


def test_a_run_with_nothing_but_twins_has_tables(tmp_path: Path) -> None:
    """A run cut short has them, of nothing."""
    for record in _records(SWEEP[:1]):
        if record.status == "ok":
            record.twin = True
            append(tmp_path / RECORDS_FILE, record)
    write_report(tmp_path)
    assert "nothing was timed" in (tmp_path / "overview.md").read_text(encoding="utf-8")


def test_samples_of_no_time_are_no_time() -> None:
    """Below what a clock can see there is nothing to compare."""
    records = _records(SWEEP[:1])
    for record in records:
        if record.backend == "direct":
            record.samples_s = [0.0] * len(record.samples_s)
    table = tables.figures(to_frame(records, _environment(SWEEP[:1])), "direct").set_index("backend")
    assert table["rank"].tolist()[:2] == [1, 2]
    assert math.isnan(table.loc["direct", "rank"])
    assert table["speedup"].isna().all()
    assert tables.overview(tables.figures(to_frame(records, _environment(SWEEP[:1])), None)).grids


def _fields(table: pd.DataFrame, **fields: object) -> pd.DataFrame:
    return table.assign(**{name: [value] * len(table) for name, value in fields.items()})


def test_caveats_and_shares_and_break_even_are_shown() -> None:
    """A mark beside the status and the text among the notes; the machine's limit only where it was measured."""
    records = _records(SWEEP[:1])
    limits = {"gemm_flop_per_s": {"float32": 1e11, "float64": 5e10}, "copy_bytes_per_s": 1e10, "threads": 2}
    for record in records:
        record.plan_s = 1e-4
        record.caveats = ["openblas has 8 threads where 2 were asked for"] * (record.backend == "scipy-fft")
    table = tables.figures(to_frame(records, {**_environment(SWEEP[:1]), "limits": limits}), "scipy-fft")
    rows = {line.split()[0]: line for line in tables.comparison(table).plain() if line}
    assert rows["scipy-fft"].endswith("ok (!)")
    assert rows["fft"].endswith("ok")
    notes = tables.overview(table).notes
    assert "scipy-fft (!): openblas has 8 threads where 2 were asked for" in notes
    by_name = table.set_index("backend")
    assert by_name["limit_share"].notna().tolist() == [True, True, True, False]
    assert f"{100 * by_name.loc['fft', 'limit_share']:.0f} %" in rows["fft"]
    assert by_name.loc["direct", "break_even_calls"] == 1
    assert "(direct)" in tables.legend(table, "scipy-fft")["pays after"]
    (row, *_) = csv.DictReader(io.StringIO(tables.csv_text(_fields(table, caveats=["a", "b"]))))
    assert (row["rank"], row["break_even_calls"], row["caveats"]) == ("1", "1", "a; b")


def test_what_twins_say_is_among_the_notes() -> None:
    """And what comparisons rest on where passes are few."""
    records = _records(SWEEP[:1])
    twins = [_record(SWEEP[0], "fft", 0, pass_) for pass_ in (1, 2)]
    for twin in twins:
        twin.twin = True
    notes = tables.overview(tables.figures(to_frame([*records, *twins], _environment(SWEEP[:1])), None)).notes
    assert any(note.startswith("A/A: 1 comparison of a backend with itself, 0 called different") for note in notes)
    single = [record for record in records if record.pass_ == 1]
    notes = tables.overview(tables.figures(to_frame(single, _environment(SWEEP[:1])), None)).notes
    assert any("blind to whatever differs between processes" in note for note in notes)
    assert not any("A/A" in note for note in notes)
    for record in single:
        record.samples_s = record.samples_s[:4]
    notes = tables.overview(tables.figures(to_frame(single, _environment(SWEEP[:1])), None)).notes
    assert any(note.startswith("2 of 2 comparisons with the fastest are of fewer than four passes") for note in notes)


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


def test_the_overview_of_many_backends_names_the_fastest_few() -> None:
    """A matrix too wide for any screen is for files; a screen shows each case's fastest, ties marked."""
    names = [f"backend-with-a-name-{i}" for i in range(24)]
    times = {
        name: [[1e-3 * (1 + 0.1 * i)] * 3, [2e-3 * (1 + 0.1 * (23 - i))] * 3, None] for i, name in enumerate(names)
    }
    times[names[1]][0] = [0.9e-3, 1.1e-3, 1.2e-3]  # a tie: its passes say now this, now that
    overview = tables.overview(_network_table(times, NETWORK, names[0]))
    grid = overview.grids[""]
    first, second, third = (row for row in grid.rows if not row.title)
    assert first.cells[1:] == ("×2", names[0], "1.00 ms", f"{names[1]} 1.06×", f"{names[2]} 1.20×", "24 of 24")
    assert first.marked == {2, 4}
    assert second.cells[1:] == ("", names[23], "2.00 ms", f"{names[22]} 1.10×", f"{names[21]} 1.20×", "24 of 24")
    assert second.marked == {2}
    assert third.sentence == "no backend has a time"
    assert [row.title for row in grid.rows if row.title] == ["Net", "other cases"]
    for width in (80, 100):
        (part,) = grid.split(width)
        assert max(map(len, part.plain(width))) <= width
    matrix = overview.further[-1]
    assert (matrix.title, matrix.wide) == ("All times", True)
    assert [column.title for column in matrix.grid.columns] == ["case", *sorted(names)]
    assert "## All times" in overview.markdown()
    assert overview.markdown().count("### Net") == 2  # the fastest, and the totals


# -- totals and means -------------------------------------------------------------------------------

#: case → (group, occurrences)
NETWORK = {
    "n1 c8 o8 i20x20 k3 p1 f32": ("Net", 2),
    "n1 c8 o16 i20x20 k1 f32": ("Net", 1),
    "n1 c1 o1 i4096 k9 f32": ("", 1),
}
#: backend → for each case its passes' medians; None: refused
TIMES = {
    "direct": [[1.0, 2.0, 3.0], [10.0, 11.0, 12.0], [4.0, 4.0, 4.0]],
    "fft": [[2.0, 2.0, 2.0], [4.0, 4.0, 5.0], None],
    "torch": [[1.5, 1.5], [5.5, 5.5, 5.5], [1.0, 1.0, 1.0]],  # no third pass of the first layer
    "winograd": [[1.0, 1.4, 2.0], None, None],
    "box": [None, None, None],
}


def _network_table(
    times: dict[str, list[list[float] | None]], cases: dict[str, tuple[str, int]], baseline: str | None
) -> pd.DataFrame:
    records = []
    for case, (name, entries) in itertools.product(enumerate(cases.items()), times.items()):
        number, (line, (group, weight)) = case
        kind = "rival" if name in ("torch", "scipy-fft") else "own"
        common = {"run_id": "r", "case": line, "spec": line, "backend": name, "kind": kind}
        common |= {"group": group, "weight": weight, "flops_nominal": ConvSpec.parse(line).flops}
        medians = entries[number]
        if medians is None:
            records.append(Record(**common, status="unsupported", reason="stride: only 1"))
        for pass_, time_s in enumerate(medians or (), 1):
            records.append(Record(**common, pass_=pass_, samples_s=[time_s] * 3))
    return tables.figures(to_frame(records, {"cases": list(cases), "backends": list(times)}), baseline)


def test_totals_are_sums_of_all_layers_each_as_often_as_it_occurs() -> None:
    """Complete backends alone have one; its range is that of the passes which have all layers."""
    frame = statistics.totals(_network_table(TIMES, NETWORK, None))
    assert set(frame["group"]) == {"Net"}
    rows = frame.set_index("backend")
    assert list(rows["of"].unique()) == [2]
    assert list(rows["occurrences"].unique()) == [3]
    assert rows.loc["direct", "time_s"] == pytest.approx(2 * 2 + 11)
    assert rows.loc["direct", ["low_s", "high_s"]].tolist() == pytest.approx([2 * 1 + 10, 2 * 3 + 12])
    assert rows.loc["fft", ["time_s", "low_s", "high_s"]].tolist() == pytest.approx([8, 8, 9])
    assert rows.loc["torch", "time_s"] == pytest.approx(2 * 1.5 + 5.5)
    assert sorted(rows.loc["torch", "pass_medians_s"]) == [1, 2]
    assert rows.loc["winograd", ["status", "layers"]].tolist() == ["incomplete", 1]
    assert math.isnan(rows.loc["winograd", "time_s"])
    assert rows.loc["winograd", "behind_best"] == pytest.approx(1)  # on the one layer that it does
    assert rows.loc["box", "layers"] == 0
    assert rows.loc["direct", "behind_best"] == pytest.approx((12 / 6 * 15 / 6.8 * 18 / 9) ** (1 / 3))
    assert rows["chosen"].to_dict() == {
        "direct": 0, "fft": 1, "torch": 0, "winograd": 1, "box": 0, "best of own": 2, "best of all": 2,
    }  # fmt: skip
    flops = sum(weight * ConvSpec.parse(line).flops for line, (group, weight) in NETWORK.items() if group)
    assert rows.loc["fft", "effective_gflop_per_s"] == pytest.approx(flops / 8 / 1e9)


def test_the_best_of_all_takes_the_fastest_of_each_layer() -> None:
    """And the best of own among convbench's, where there are rivals."""
    faster = {**TIMES, "torch": [[0.5, 0.5, 0.5], [5.0, 5.0, 5.0], None]}
    rows = statistics.totals(_network_table(faster, NETWORK, None)).set_index("backend")
    assert rows.loc["best of own", "time_s"] == pytest.approx(2 * 1.4 + 4)
    assert rows.loc["best of all", "time_s"] == pytest.approx(2 * 0.5 + 4)
    assert rows.loc["best of all", ["low_s", "high_s"]].tolist() == pytest.approx([5, 6])
    alone = {name: TIMES[name] for name in ("direct", "fft")}
    assert "best of own" not in set(statistics.totals(_network_table(alone, NETWORK, None))["backend"])
    lacking = {"winograd": TIMES["winograd"], "box": TIMES["box"]}
    rows = statistics.totals(_network_table(lacking, NETWORK, None)).set_index("backend")
    assert rows.loc["best of all", ["status", "layers"]].tolist() == ["incomplete", 1]


def test_counts_without_groups_make_one_total_and_nothing_makes_none() -> None:
    """All cases are one where a suite counts them; a plain list of cases has no total."""
    counted = {line: ("", weight) for line, (_, weight) in NETWORK.items()}
    section = tables.totals_section(_network_table(TIMES, counted, None))
    assert section is not None
    assert section.grid.rows[0].title.startswith("all cases: 4 convolutions in 3 shapes")
    assert tables.totals_section(_table(SWEEP)) is None
    refused = _network_table({"box": TIMES["box"]}, NETWORK, None)
    assert tables.totals_section(refused) is None


def test_the_totals_as_a_table() -> None:
    """The fastest first, those that lack layers below, without a total, and last who has none of them."""
    section = tables.totals_section(_network_table(TIMES, NETWORK, "fft"))
    assert section is not None
    lines = section.grid.plain()
    assert re.split(r"\s\s+", lines[0]) == [
        "backend", "total", "passes", "over fastest", "99 % interval", "speed-up", "GFLOP/s", "chosen",
    ]  # fmt: skip
    assert lines[2] == "Net: 3 convolutions in 2 shapes, 0.000512 GMAC"
    assert [line.split()[0] for line in lines[3:]] == ["best", "best", "fft", "torch", "direct", "winograd", "no"]
    fft, torch, direct, winograd, none = lines[5:]
    assert fft.split()[1:8] == ["8.00", "s*", "8.00–9.00", "1.16×", "0.508–2.66", "1.00×", "0.000128"]
    assert torch.split()[1:7] == ["8.50", "s*", "8.50–8.50", "1.33×", "?", "0.979×"]  # two passes
    assert direct.split()[1:7] == ["15.0", "s*", "12.0–18.0", "2.07×", "1.49–2.86", "0.562×"]
    assert winograd.split(maxsplit=1)[1] == "1 of 2 layers, on them 1.00× over fastest, chosen in 1"
    assert none.split(maxsplit=2)[2] == "box"


def test_geometric_means_go_over_the_cases_that_both_did() -> None:
    """Weighted by occurrence; the number of cases stands beside each."""
    rows = statistics.geometric_means(_network_table(TIMES, NETWORK, "fft"), "fft").set_index("backend")
    assert "box" not in rows.index
    assert rows["cases"].to_dict() == {"direct": 3, "fft": 2, "torch": 3, "winograd": 1}
    assert list(rows["of"].unique()) == [3]
    assert rows["compared"].to_dict() == {"direct": 2, "fft": 2, "torch": 2, "winograd": 1}
    # geometric means over passes: of 2/1, 2/2, 2/3; of 4/10, 4/11, 5/12
    first, second = (2 / 1 * 2 / 2 * 2 / 3) ** (1 / 3), (4 / 10 * 4 / 11 * 5 / 12) ** (1 / 3)
    assert rows.loc["direct", "speedup"] == pytest.approx((first**2 * second) ** (1 / 3))
    assert rows.loc["direct", ["speedup_least", "speedup_most"]].tolist() == pytest.approx([second, first])
    behind = (1 / 1 * 2 / 1.4 * 3 / 2) ** (1 / 3)  # winograd in the first layer
    assert rows.loc["direct", "behind_best"] == pytest.approx((behind**2 / second * 4) ** (1 / 4))
    assert rows.loc["winograd", "behind_best"] == pytest.approx(1.0)
    assert list(rows["common"].unique()) == [1]  # winograd did the first case alone
    assert rows.loc["direct", "behind_best_common"] == pytest.approx(behind)
    # with ties; in the first layer torch is faster than fft, beyond doubt
    assert rows["fastest"].to_dict() == {"direct": 1, "fft": 1, "torch": 3, "winograd": 1}


@given(st.lists(st.tuples(st.floats(1e-6, 10), st.integers(1, 50)), min_size=1, max_size=8))
def test_a_backend_against_itself_is_as_fast(layers: list[tuple[float, int]]) -> None:
    """Two backends of equal times: all ratios and means are 1, the totals equal the best of all."""
    cases = {f"n1 c1 o1 i{64 + number} k3 f32": ("Net", weight) for number, (_, weight) in enumerate(layers)}
    times: list[list[float] | None] = [[time_s] * 3 for time_s, _ in layers]
    table = _network_table({"one": times, "torch": times}, cases, "torch")
    totals = statistics.totals(table)
    total_s = sum(time_s * weight for time_s, weight in layers)
    assert totals["time_s"].tolist() == pytest.approx([total_s] * 4)
    means = statistics.geometric_means(table, "torch")
    for column in ("behind_best", "behind_best_common", "speedup", "speedup_least", "speedup_most"):
        assert means[column].tolist() == pytest.approx([1, 1])


def test_the_means_as_a_table() -> None:
    """Those with most cases first; nothing for a single case or backend, no speed-ups without a baseline."""
    section = tables.means_section(_network_table(TIMES, NETWORK, "fft"))
    assert section is not None
    lines = section.grid.plain()
    assert lines[0].split("  ")[0] == "backend"
    assert "common" not in lines[0]  # over one case there is no mean
    assert [line.split()[:4] for line in lines[1:]] == [
        ["torch", "3", "of", "3"],
        ["direct", "3", "of", "3"],
        ["fft", "2", "of", "3"],
        ["winograd", "1", "of", "3"],
    ]
    assert "over fft" in section.legend
    without = tables.means_section(_network_table(TIMES, NETWORK, None))
    assert without is not None
    assert "speed-up" not in without.legend + without.grid.plain()[0]
    assert tables.means_section(_table(SWEEP[:1])) is None
    assert tables.means_section(_network_table({"fft": TIMES["fft"]}, NETWORK, "fft")) is None


def test_records_without_group_and_count_are_read() -> None:
    """Other programs' records, and older ones, may lack the fields."""
    frame = to_frame(_records(MIXED), _environment(MIXED))
    table = tables.figures(frame.drop(columns=["group", "weight"]), "scipy-fft")
    assert set(table["group"]) == {""}
    assert set(table["weight"]) == {1}
    assert tables.totals_section(table) is None


def test_problems_come_with_the_command_that_reproduces_them() -> None:
    """One line says what, the next how to see it again."""
    bad = _record(SWEEP[0], "fft", 0, 1)
    bad.status, bad.reason, bad.samples_s = "wrong", "error 1e5 eps at (0, 0, 3, 4)", []
    table = tables.figures(to_frame([bad]), None)
    (problem,) = tables.problems(table)
    what, again = problem.splitlines()
    assert what == f"fft wrong on {SWEEP[0]}: error 1e5 eps at (0, 0, 3, 4)"
    assert again == f"  again: convbench run --spec '{SWEEP[0]}' --backends fft --threads 2"


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
    assert [text.get_text() for text in legend.get_texts()] == ["direct", "fft", "scipy-fft", "tie for the fastest"]


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
        assert names == [f"{plot}{end}" for plot in ("time", "speedup", "error", "pareto") for end in (".svg", ".png")]
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


MANY = [f"backend-{number}" for number in range(24)]


def _many_table(cases: list[str], backends: Sequence[str] = MANY) -> pd.DataFrame:
    """Make a table of many backends: the first is the fastest at K = 3, the second elsewhere, and some refuse."""
    records = []
    for (place, case), (number, backend), pass_ in itertools.product(enumerate(cases), enumerate(backends), (1, 2)):
        record = _record(case, "fft", place, pass_)
        record.backend, record.kind = backend, "own" if number % 2 else "rival"
        ahead = number == 0 if " k3 " in case else number == 1
        record.samples_s = [(0.001 if ahead else 0.002 + 0.001 * number) * (1 + 0.001 * i) for i in range(-4, 5)]
        if number % 5 == 4 and place % 2:
            record.status, record.reason, record.samples_s = "unsupported", "stride: 2 given, only 1 is done", []
        records.append(record)
    return tables.figures(to_frame(records, {"cases": cases, "backends": list(backends)}), "backend-2")


def test_many_backends_are_lines_with_the_fastest_in_colour() -> None:
    """What is ever the fastest and the baseline; the others grey, and each one a look of its own."""
    figure = plots.time_plot(_many_table(SWEEP))
    assert figure is not None
    lines = {str(line.get_label()): line for line in figure.axes[0].get_lines()}
    assert set(lines) == set(MANY)
    coloured = {name for name, line in lines.items() if line.get_color() not in drawing.GREYS}
    assert coloured == {"backend-0", "backend-1", "backend-2"}
    looks = {(line.get_color(), line.get_marker(), line.get_fillstyle()) for line in lines.values()}
    assert len(looks) == len(MANY)
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[:3] == ["backend-2", "backend-0", "backend-1"]  # as they end, from top to bottom
    assert names[3:5] == ["backend-23", "backend-22"]
    assert sorted(names) == sorted(MANY)
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert (box.y0 >= 0, box.y1 <= figure.bbox.y1) == (True, True)


def test_a_line_is_broken_where_a_pair_has_no_time() -> None:
    """It does not run on to the next one that has."""
    figure = plots.time_plot(_many_table(SWEEP))
    assert figure is not None
    line = next(line for line in figure.axes[0].get_lines() if line.get_label() == "backend-4")
    assert list(line.get_xdata()) == [3, 5, 11]  # 101 refused at the end, 5 between
    assert [math.isnan(y) for y in line.get_ydata()] == [False, True, False]


LAYERS = [f"n1 c{c} o{o} i{i}x{i} k{k} p1 f32" for c, o in ((3, 64), (64, 96)) for i in (7, 14) for k in (1, 3, 5)]


@pytest.mark.parametrize("cases", [LAYERS, SWEEP[:1], [f"{line} w={w}" for line in SWEEP[:4] for w in "abcdefg"]])
def test_many_backends_on_unlike_cases_are_a_heat_map(cases: list[str]) -> None:
    """A row a case, a column a backend; the ratio to the fastest in each cell, hatched where there is no time."""
    table = _many_table(cases)
    figure = plots.time_plot(table)
    assert figure is not None
    (axis,) = figure.axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == tables.backend_order(table)
    assert [tick.get_text() for tick in axis.get_yticklabels()] == list(layout_of(cases).labels.values())
    (mesh,) = axis.collections
    ratios = np.ma.filled(mesh.get_array(), np.nan).reshape(len(cases), len(MANY))
    assert np.nanmin(ratios, axis=1) == pytest.approx(1)
    first = tables.backend_order(table).index("backend-3")
    assert ratios[0, first] == pytest.approx(5)
    refused = int((table["status"] != "ok").sum())
    assert (np.isnan(ratios).sum(), len(axis.patches), len(axis.texts)) == (refused, refused, ratios.size - refused)
    bold = [text.get_text() for text in axis.texts if text.get_fontweight() == "bold"]
    assert bold == ["1.0"] * len(cases)
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[0] == "1–1.2×"
    assert labels[-1].startswith("no time")
    assert len(labels) == 8


def test_many_cases_are_a_heat_map_too() -> None:
    """Whose speed-ups leave out what the baseline did not do; few of both remain dots."""
    cases = [case.replace("f32", f"{bias}f32") for case in LAYERS for bias in ("", "bias=channel ")]
    table = _many_table(cases, MANY[:6])
    table.loc[table["case"].eq(cases[0]), "speedup"] = math.nan
    figure = plots.speedup_plot(table)
    assert figure is not None
    assert len(figure.axes[0].get_yticklabels()) == len(cases) - 1
    assert "without 1 case (no baseline)" in " ".join(text.get_text() for text in figure.texts)
    few = plots.time_plot(_many_table(cases[:6], MANY[:6]))
    assert few is not None
    assert len(few.legends[0].get_texts()) == 6


def test_more_backends_than_room_have_colours_without_numbers() -> None:
    """Cells become narrow; the picture does not grow without end."""
    figure = plots.time_plot(_many_table(LAYERS, [f"b{number}" for number in range(60)] + ["backend-2"]))
    assert figure is not None
    assert not figure.axes[0].texts
    assert figure.get_figwidth() < 20


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(1.0, "1.0"), (9.94, "9.9"), (9.96, "10"), (0.96, "1.0"), (0.5, ".50"), (0.0312, ".031"), (9940, "9940"),
     (25300, "25k")],
)  # fmt: skip
def test_a_ratio_has_two_digits(ratio: float, text: str) -> None:
    """As few characters as will do."""
    assert plots._ratio_text(ratio) == text


def test_errors_of_many_backends_have_a_row_each() -> None:
    """With their names beside them."""
    figure = plots.error_plot(_many_table(SWEEP))
    assert figure is not None
    (axis,) = figure.axes
    assert sorted(tick.get_text() for tick in axis.get_yticklabels()) == sorted(MANY)


def test_panels_are_wrapped_into_rows() -> None:
    """More than three do not stand side by side; each has its ticks and its name."""
    cases = [f"{line} w={w}" for line in SWEEP[:4] for w in "abcde"]
    figure = plots.time_plot(_many_table(cases, MANY[:4]))
    assert figure is not None
    drawn = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title() for axis in drawn] == [f"{w} kernel" for w in "abcde"]
    assert [bool(axis.get_xlabel()) for axis in drawn] == [False, False, True, True, True]
    assert [bool(axis.get_ylabel()) for axis in drawn] == [True, False, False, True, False]


def test_a_dollar_in_a_name_is_not_mathematics(tmp_path: Path) -> None:
    """Matplotlib would read what stands between two of them."""
    records = [_record(MIXED[0], "fft", 0, 1), _record(MIXED[1], "fft", 1, 1)]
    for record in records:
        record.case += " x=@$\\frac$.npy"
    assert len(plots.save_plots(tables.figures(to_frame(records), "fft"), tmp_path)) == 6  # no front of one backend


def test_nothing_timed_means_no_plots(tmp_path: Path) -> None:
    """Refusals alone are no picture."""
    table = _table(SWEEP)
    assert plots.save_plots(table[table["backend"] == "reference"], tmp_path) == []


# -- the report -------------------------------------------------------------------------------------


def test_a_report_is_written_beside_the_records(run_folder: Path) -> None:
    """All files, in the suite's order whatever the order of the records."""
    spec = ConvSpec.parse("i280x320 k1x2 f32")
    written = write_report(run_folder, baseline="scipy-fft", matrices=[spec])
    plots_written = [f"{name}{end}" for name in ("time", "speedup", "error", "pareto") for end in (".svg", ".png")]
    tables_written = ["matrix.md", "table.md", "overview.md", "table.csv"]
    assert [path.name for path in written] == [*tables_written, *plots_written, "index.html"]
    page = (run_folder / "table.md").read_text(encoding="utf-8")
    assert "A CPU, 2 of its cores usable · threads: 2 · numpy 2.4" in page
    headings = [line for line in page.splitlines() if line.startswith("### ")]
    assert headings == [f"### k{k} w={w}" for w in ("random", "gaussian") for k in KERNELS]
    assert "| fft | 2 | 4.00 ms | 3.99–4.01 | 4.00× | 4.00–4.00 | 3.00× | 2.50× |" in page
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
