"""The roofline plot: what it shows of hand-made results."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from convbench.bench.limits import attainable_s
from convbench.bench.record import ENVIRONMENT_FILE, RECORDS_FILE, Record, append, to_frame
from convbench.report import write_report
from convbench.report.roofline import _Box, _text_box, roofline_figure, save_roofline
from convbench.report.tables import figures
from convbench.report.text import human_seconds
from convbench.spec import ConvSpec

LIMITS = {"gemm_flop_per_s": {"float32": 200e9, "float64": 100e9}, "copy_bytes_per_s": 20e9, "threads": 2}
SWEEP = [f"n1 c8 o8 i64x64 k{k} psame f32" for k in (3, 5, 7)]
MIXED = ["n1 c1 o1 i4096 k9 f32", "n2 c8 o16 i32x32 k3 p1 f64", "n1 c4 o4 i64x64 k7 complex64"]
BACKENDS = ("direct", "im2col", "fft", "scipy-fft")


def _records(cases: Sequence[str], backends: Sequence[str] = BACKENDS, device: str = "cpu") -> list[Record]:
    records = []
    for case, (place, backend), pass_ in itertools.product(cases, enumerate(backends, 1), (1, 2)):
        spec = ConvSpec.parse(case)
        time_s = place * spec.flops / 100e9
        record = Record(run_id="r", case=case, spec=case, backend=backend, kind="own", device=device, pass_=pass_)
        record.flops_nominal = record.flops_executed = spec.flops
        record.bytes_min, record.accumulate_dtype = spec.bytes_min, spec.accumulate_dtype
        record.samples_s = [time_s * (1 + 0.002 * i) for i in range(-4, 5)]
        record.error_max_eps, record.error_bound_eps = 1.5, 80.0
        record.plan_s = record.prepare_s = 1e-4
        records.append(record)
    return records


def _table(records: Sequence[Record]) -> pd.DataFrame:
    return figures(to_frame(records), "im2col")


def _named(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_the_fastest_of_each_case_is_named_and_all_backends_are_in_the_legend() -> None:
    figure = roofline_figure(_table(_records(SWEEP)), LIMITS)
    assert figure is not None
    (axis,) = figure.axes
    assert sorted(_named(axis)) == ["K3", "K5", "K7"]
    assert sorted(text.get_text() for text in figure.legends[0].get_texts()) == sorted(BACKENDS)


PEAK = LIMITS | {"fma_flop_per_s": {"float32": 400e9, "float64": 150e9}, "fma_by": "avx512"}


@pytest.mark.parametrize("limits", [LIMITS, PEAK])
def test_the_height_below_the_roof_is_the_share_of_the_limit(limits: dict[str, Any]) -> None:
    figure = roofline_figure(_table(_records(SWEEP[:1], ["im2col"])), limits)
    assert figure is not None
    (axis,) = figure.axes
    point, *_, roof = axis.lines
    intensity, rate = float(point.get_xdata()[0]), float(point.get_ydata()[0])
    xs, ys = roof.get_xdata(), roof.get_ydata()
    above = min(ys[-1], ys[0] / xs[0] * intensity)
    spec = ConvSpec.parse(SWEEP[0])
    least_s = attainable_s(flops=spec.flops, bytes_min=spec.bytes_min, dtype="float32", limits=limits)
    assert rate / above == pytest.approx(least_s / (spec.flops / 100e9))


def test_the_roof_is_the_peak_and_the_product_is_dotted_below_it() -> None:
    figure = roofline_figure(_table(_records(MIXED)), PEAK)
    assert figure is not None
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == [
        "sums in float32\nmultiply–adds 400, product 200 GFLOP/s, copy 20.0 GB/s",
        "sums in float64\nmultiply–adds 150, product 100 GFLOP/s, copy 20.0 GB/s",
    ]
    for axis, peak, product in zip(figure.axes, (400, 150), (200, 100), strict=True):
        dotted, roof = axis.lines[-2:]
        assert max(roof.get_ydata()) == peak
        assert set(dotted.get_ydata()) == {product}
        assert dotted.get_linestyle() == ":"
    text = " ".join(text.get_text() for text in figure.texts)
    assert "multiply–adds (avx512) and copy" in text
    assert "beats BLAS" not in text


def test_the_least_time_of_a_case_is_in_the_overview(tmp_path: Path) -> None:
    spec = ConvSpec.parse(SWEEP[0])
    for record in _records(SWEEP[:1]):
        if record.backend == "fft":
            record.flops_executed = spec.flops // 4
        append(tmp_path / RECORDS_FILE, record)
    (tmp_path / ENVIRONMENT_FILE).write_text(json.dumps({"limits": PEAK}))
    write_report(tmp_path)
    least_s = max(spec.flops / 4 / 400e9, spec.bytes_min / 20e9)
    table = pd.read_csv(tmp_path / "table.csv")
    assert table["attainable_s"].to_numpy() == pytest.approx(least_s)
    assert list(table["limit_share"] * table["time_s"]) == pytest.approx(
        [least_s if row == "fft" else max(spec.flops / 400e9, spec.bytes_min / 20e9) for row in table["backend"]]
    )
    page = (tmp_path / "overview.md").read_text()
    assert human_seconds(least_s) in page
    assert "at the rate of multiply–adds (avx512)" in page
    assert "measured multiply–adds (avx512) or copy" in (tmp_path / "table.md").read_text()


def test_each_dtype_has_its_panel_and_what_has_no_limit_is_left_out_and_counted() -> None:
    figure = roofline_figure(_table(_records(MIXED)), LIMITS)
    assert figure is not None
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == [
        "sums in float32\nproduct 200 GFLOP/s, copy 20.0 GB/s",
        "sums in float64\nproduct 100 GFLOP/s, copy 20.0 GB/s",
    ]
    for axis, flat in zip(figure.axes, (200, 100), strict=True):  # all of each roof is in sight
        roof = axis.lines[-1]
        assert max(roof.get_ydata()) == flat
        for values, (low, high) in ((roof.get_xdata(), axis.get_xlim()), (roof.get_ydata(), axis.get_ylim())):
            assert low <= min(values) < max(values) <= high
    assert "left out: 4 pairs" in "".join(text.get_text() for text in figure.texts)


@pytest.mark.parametrize(("median", "is_said"), [(150e9, False), (100e9, True)])
def test_limits_measured_amid_disturbance_are_said_to_be(median: float, is_said: bool) -> None:
    limits = LIMITS | {"gemm_median_flop_per_s": {"float32": median, "float64": 90e9}}
    figure = roofline_figure(_table(_records(SWEEP)), limits)
    assert figure is not None
    text = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    assert ("disturbed while its limits were measured" in text) == is_said
    assert ("over the best: 50 % in float32)" in text) == is_said


@pytest.mark.parametrize("limits", [None, {}, {"gemm_flop_per_s": {}, "copy_bytes_per_s": 20e9}])
def test_without_limits_there_is_no_plot(limits: dict[str, Any] | None, tmp_path: Path) -> None:
    assert save_roofline(_table(_records(SWEEP)), limits, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_limits_of_the_cpu_say_nothing_of_a_gpu() -> None:
    assert roofline_figure(_table(_records(SWEEP, device="cuda")), LIMITS) is None


@pytest.mark.parametrize("limits", [LIMITS, None])
def test_a_report_has_the_plot_if_its_run_has_limits(limits: dict[str, Any] | None, tmp_path: Path) -> None:
    for record in _records(SWEEP):
        append(tmp_path / RECORDS_FILE, record)
    (tmp_path / ENVIRONMENT_FILE).write_text(json.dumps({"limits": limits} if limits else {}))
    written = {path.name for path in write_report(tmp_path)}
    assert ("roofline.svg" in written) == ("roofline.png" in written) == (limits is not None)


def test_names_do_not_cover_each_other() -> None:
    cases = [f"n1 c{c} o8 i{i}x{i} k3 psame f32" for c in (4, 5, 6, 7) for i in (30, 32, 34, 36, 38)]
    figure = roofline_figure(_table(_records(cases)), LIMITS)
    assert figure is not None
    (axis,) = figure.axes
    boxes: list[_Box] = []
    for text in axis.texts:
        x, y = (float(value) * 72 / figure.dpi for value in axis.transData.transform(text.xy))
        boxes.append(_text_box(text.get_text(), x, y, text.xyann))
    assert len(boxes) == len(cases)
    covered = sum(one.overlap(other) > 0 for one, other in itertools.combinations(boxes, 2))
    assert covered == 0


def test_boxes_overlap_where_they_do() -> None:
    assert _Box(0, 0, 2, 2).overlap(_Box(1, 1, 3, 3)) == 1
    assert _Box(0, 0, 2, 2).overlap(_Box(2, 0, 3, 3)) == 0
