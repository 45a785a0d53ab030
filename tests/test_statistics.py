"""From samples to who is faster: intervals, ratios, ranks, break-even, and what a pair timed against itself says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convbench.bench.ratios import mean_interval, pooled_ratio, row_ratio, samples_ratio, unpaired_ratio
from convbench.bench.record import Record, to_frame
from convbench.bench.statistics import (
    Noise,
    Ratio,
    fastest,
    geometric_means,
    median_interval,
    noise,
    paired_ratio,
    speedups,
    standings,
    summarise,
    totals,
    twin_comparisons,
)
from convbench.errors import SpecError

LINE = "n1 c1 o1 i12x12 k3 psame f32"
OTHER = "n1 c1 o1 i12x12 k5 psame f32"

#: Medians of 6 passes in whole nanoseconds, as a clock has them.
medians = st.dictionaries(st.integers(1, 8), st.integers(10**3, 10**9).map(float), min_size=3, max_size=8)


def record(**fields: Any) -> Record:
    return Record(**{"run_id": "r", "case": LINE, "spec": LINE, "backend": "fake", "pass_": 1, **fields})


def frame_of(*records: Record, cases: tuple[str, ...] = (), backends: tuple[str, ...] = ()) -> pd.DataFrame:
    return to_frame(records, {"cases": list(cases), "backends": list(backends)})


def visits(backend: str, *medians_s: float, **fields: Any) -> list[Record]:
    """One record a pass, each with three samples of that median."""
    return [
        record(backend=backend, pass_=number, samples_s=[0.9 * time_s, time_s, 1.1 * time_s], **fields)
        for number, time_s in enumerate(medians_s, 1)
    ]


def standing(*records: Record) -> pd.DataFrame:
    table = summarise(frame_of(*records))
    return table.join(standings(table)).set_index("backend")


# -- intervals of medians ---------------------------------------------------------------------------


def test_median_interval_by_hand() -> None:
    # n = 10: P(B < 2) = 11/1024 = 1.07 %, P(B < 3) = 5.5 %; so the second smallest to the second largest
    assert median_interval([float(i) for i in range(10)]) == (1.0, 8.0)
    assert median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0)
    assert all(math.isnan(bound) for bound in median_interval([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert all(math.isnan(bound) for bound in median_interval([]))
    assert all(math.isnan(bound) for bound in median_interval([1.0] * 7, 0.99))
    assert median_interval([1.0] * 8, 0.99) == (1.0, 1.0)


@pytest.mark.parametrize("confidence", [0.95, 0.99])
@pytest.mark.parametrize("n", [8, 9, 13, 20, 41, 60, 200, 1500])
def test_median_interval_agrees_with_scipy(n: int, confidence: float) -> None:
    from scipy.stats import quantile_test

    samples = np.random.default_rng(n).standard_normal(n)
    interval = quantile_test(samples, q=0, p=0.5).confidence_interval(confidence_level=confidence)
    low, high = median_interval(samples.tolist(), confidence)
    assert low == interval.low
    assert high == interval.high


# -- one row a pair ---------------------------------------------------------------------------------


def test_summarise_by_hand() -> None:
    other = "n1 c1 o1 i12x12 k5x3 psame f32 w=gaussian"
    rows = [
        record(backend="b", case=other, spec=other.replace(" w=gaussian", ""), pass_=1, samples_s=[4.0, 6.0]),
        record(backend="b", pass_=2, samples_s=[30.0, 10.0, 20.0], plan_s=0.5),
        record(backend="b", pass_=1, samples_s=[2.0, 1.0, 3.0], plan_s=0.5),
        record(backend="a", pass_=0, status="skipped", reason="work: too much"),
    ]
    table = summarise(frame_of(*rows, cases=(LINE, other), backends=("a", "b")))
    assert list(zip(table["case"], table["backend"], strict=True)) == [(LINE, "a"), (LINE, "b"), (other, "b")]
    skipped, timed, wide = table.to_dict("records")
    assert (skipped["status"], skipped["reason"], skipped["samples"]) == ("skipped", "work: too much", 0)
    assert math.isnan(skipped["time_s"])
    assert (timed["samples"], timed["passes"], timed["time_s"]) == (6, 2, 6.5)
    assert (timed["low_s"], timed["high_s"], timed["interval_of"], timed["min_s"]) == (1.0, 30.0, "samples", 1.0)
    assert timed["pass_medians_s"] == {1: 2.0, 2: 20.0}
    assert timed["plan_s"] == 0.5
    assert math.isnan(wide["low_s"])
    assert (wide["kernel_size"], wide["w"], wide["x"], wide["ndim"]) == (5, "gaussian", "noise", 2)


def test_from_six_passes_on_the_interval_is_that_of_the_passes() -> None:
    # many samples a pass would make a narrow interval, and a wrong one: pass 6 was slow as a whole
    rows = [record(pass_=n, samples_s=[float(n), n + 0.1, n - 0.1] * 20) for n in (1, 2, 3, 4, 5, 60)]
    (row,) = summarise(frame_of(*rows)).to_dict("records")
    assert (row["low_s"], row["high_s"], row["interval_of"]) == (1.0, 60.0, "passes")
    assert row["win_high_s"] < 60.0
    (row,) = summarise(frame_of(*rows[:5])).to_dict("records")
    assert row["interval_of"] == "samples"


def test_what_verifying_found_is_no_time() -> None:
    rows = [
        record(
            pass_=0, plan_s=9.0, prepare_s=8.0, first_call_s=7.0, workspace_measured_bytes=10, caveats=["slow disk"]
        ),
        record(pass_=1, samples_s=[1.0], plan_s=1.0, prepare_s=2.0, cores_used=1.0, caveats=["8 threads", "slow disk"]),
        record(pass_=2, samples_s=[2.0], plan_s=3.0, cores_used=2.0, caveats=["8 threads"], error_max_eps=1.5),
    ]
    (row,) = summarise(frame_of(*rows)).to_dict("records")
    assert (row["samples"], row["passes"], row["time_s"]) == (2, 2, 1.5)
    assert (row["plan_s"], row["prepare_s"], row["cores_used"]) == (2.0, 2.0, 1.5)
    assert (row["first_call_s"], row["workspace_measured_bytes"], row["error_max_eps"]) == (7.0, 10, 1.5)
    assert row["caveats"] == ["slow disk", "8 threads"]
    (row,) = summarise(frame_of(rows[0])).to_dict("records")
    assert (row["status"], row["samples"], row["plan_s"]) == ("ok", 0, 9.0)
    assert math.isnan(row["time_s"])


def test_twins_are_left_out_unless_they_went_wrong() -> None:
    rows = [*visits("a", 1.0, 1.0), *visits("a", 5.0, 5.0, twin=True)]
    (row,) = summarise(frame_of(*rows)).to_dict("records")
    assert (row["time_s"], row["samples"]) == (1.0, 6)
    wrong = record(backend="a", twin=True, pass_=2, status="wrong", reason="differs")
    (row,) = summarise(frame_of(*rows, wrong)).to_dict("records")
    assert (row["status"], row["reason"]) == ("wrong", "differs")


def test_a_pair_that_went_wrong_once_has_no_time() -> None:
    rows = [
        record(pass_=1, samples_s=[1.0] * 6),
        record(pass_=2, status="wrong", reason="3 of 9 outputs are wrong"),
    ]
    (row,) = summarise(frame_of(*rows)).to_dict("records")
    assert (row["status"], row["reason"], row["samples"]) == ("wrong", "3 of 9 outputs are wrong", 0)
    assert math.isnan(row["time_s"])


def test_an_empty_run_has_an_empty_summary() -> None:
    table = summarise(frame_of())
    assert len(table) == 0
    assert list(table.columns) == list(summarise(frame_of(record(samples_s=[1.0]))).columns)
    assert len(standings(table)) == 0


# -- ratios -----------------------------------------------------------------------------------------


def test_a_paired_ratio_by_hand() -> None:
    # logs of the ratios are ln 2 − 0.1, ln 2, ln 2 + 0.1: mean ln 2, s = 0.1, and t = 9.925 for 99 % and 2 degrees
    slower = {n: 2 * math.exp(0.1 * (n - 2)) * 10**n for n in (1, 2, 3)}
    ratio = paired_ratio(slower, {1: 10.0, 2: 100.0, 3: 1000.0, 4: 5.0})
    half = 9.92484 * 0.1 / math.sqrt(3)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 2 * math.exp(-half), 2 * math.exp(half)), rel=1e-5)
    assert (ratio.passes, ratio.method, ratio.verdict) == (3, "paired", "slower")
    assert ratio.half_width == pytest.approx(math.exp(half) - 1, rel=1e-5)


def test_one_pass_says_nothing_of_the_spread() -> None:
    ratio = paired_ratio({1: 5.0}, {1: 1.0})
    assert (round(ratio.value, 9), ratio.verdict, ratio.passes) == (5.0, "tie", 1)
    assert math.isnan(ratio.low)
    assert paired_ratio({1: 5.0}, {2: 1.0}).passes == 0


@given(medians, medians)
def test_ratios_are_antisymmetric(one: dict[int, float], other: dict[int, float]) -> None:
    """Asked the other way round, the answer is the other way round: for every method."""
    lists = [list(values.values()) for values in (one, other)]
    opposite = {"faster": "slower", "slower": "faster", "tie": "tie"}
    for there, back in (
        (paired_ratio(one, other), paired_ratio(other, one)),
        (pooled_ratio(*lists), pooled_ratio(*reversed(lists))),
        (unpaired_ratio(*lists), unpaired_ratio(*reversed(lists))),
        (samples_ratio(2.0, (1, 3), (0.5, 2)), samples_ratio(0.5, (0.5, 2), (1, 3))),
    ):
        assert (there.verdict, there.passes) == (opposite[back.verdict], back.passes)
        if there.passes:
            assert there.value == pytest.approx(1 / back.value)
        if not math.isnan(there.low) and math.isfinite(there.high):
            assert there.low * back.high == pytest.approx(1, abs=1e-6) or there.low < 1e-290


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.sampled_from([0.9, 0.95, 0.99]))
def test_intervals_of_means_are_scipys(values: list[float], confidence: float) -> None:
    from scipy.stats import ttest_1samp

    if len(set(values)) > 1:
        expected = ttest_1samp(values, 0).confidence_interval(confidence)
        assert mean_interval(values, confidence) == pytest.approx(tuple(expected), abs=1e-9)


def test_pooled_intervals_are_scipys() -> None:
    """Also where one side has a single pass."""
    from scipy.stats import ttest_ind

    one, others = np.exp([0.31, 0.12]), np.exp([0.1, 0.2, 0.4, 0.3, 0.25, 0.26])
    for numerator in (one, one[:1]):
        expected = ttest_ind(np.log(numerator), np.log(others)).confidence_interval(0.99)
        found = pooled_ratio(numerator.tolist(), others.tolist())
        assert (math.log(found.low), math.log(found.high)) == pytest.approx(tuple(expected))


def test_the_method_follows_from_the_numbers_of_passes() -> None:
    def row(*passes: int) -> dict[str, Any]:
        return {"time_s": 1.0, "pass_medians_s": dict.fromkeys(passes, 1.0), "win_low_s": 0.9, "win_high_s": 1.2}

    assert row_ratio(row(1, 2, 3), row(1, 2, 3)).method == "paired"
    assert row_ratio(row(1, 2, 3), row(1)).method == "pooled"  # slow, it ran into its time limit
    assert row_ratio(row(1, 2), row(1, 2)).method == "pooled"
    single = row_ratio(row(1), row(1))
    assert single.method == "samples"
    assert (single.low, single.high) == pytest.approx((0.9 / 1.2, 1.2 / 0.9))
    assert row_ratio({**row(1), "win_low_s": math.nan, "win_high_s": math.nan}, row(1)).verdict == "tie"


def test_speedups_are_paired_within_passes() -> None:
    # everything ran ten times slower in pass 2: the ratio stays 2, and pass 4 has no partner
    rows = [
        *(record(backend="base", pass_=n, samples_s=[2.0 * s]) for n, s in ((1, 1), (2, 10), (3, 1))),
        *(record(backend="fast", pass_=n, samples_s=[s]) for n, s in ((1, 1.0), (2, 10.0), (3, 1.0), (4, 99.0))),
        record(backend="none", pass_=0, status="unsupported"),
        record(backend="fast", case="other", pass_=1, samples_s=[1.0]),
    ]
    table = summarise(frame_of(*rows))
    ratios = dict(zip(zip(table["case"], table["backend"], strict=True), speedups(table, "base"), strict=True))
    assert ratios[LINE, "base"] == 1.0
    assert ratios[LINE, "fast"] == pytest.approx(2.0)
    assert math.isnan(ratios[LINE, "none"])
    assert math.isnan(ratios["other", "fast"])
    with pytest.raises(SpecError, match=r"^baseline: got 'nobody'; is not in this run; it has base, fast, none"):
        speedups(table, "nobody")


# -- ranks ------------------------------------------------------------------------------------------


def test_ties_share_a_rank() -> None:
    rows = standing(
        *visits("a", 1.0, 1.1, 1.0, 1.1, 1.0, 1.1),
        *visits("b", 1.1, 1.0, 1.1, 1.0, 1.1, 1.02),  # now ahead, now behind
        *visits("c", 2.0, 2.2, 2.0, 2.2, 2.0, 2.2),  # always twice a
        *visits("d", 2.01, 2.21, 1.99, 2.21, 2.0, 2.19),
        record(backend="e", pass_=0, status="skipped"),
    )
    assert rows["rank"].tolist()[:4] == [1, 1, 3, 3]
    assert rows["tied"].tolist() == [True, True, False, False, False]
    assert math.isnan(rows.loc["e", "rank"])
    assert rows.loc["c", ["ratio_to_best", "ratio_low", "ratio_high"]].tolist() == pytest.approx([2, 2, 2])
    assert rows.loc["a", "ratio_method"] == "itself"


def test_the_fastest_is_one_that_no_other_is_faster_than() -> None:
    # the median of all samples is a's least, for most of its samples are of a lucky pass; b is ahead in every pass
    rows = [record(backend="a", pass_=n, samples_s=[1.1 * n] * (40 if n == 1 else 3)) for n in range(1, 7)]
    rows += [record(backend="b", pass_=n, samples_s=[1.0 * n] * 3) for n in range(1, 7)]
    table = summarise(frame_of(*rows))
    assert table["time_s"].tolist() == pytest.approx([1.1, 3.5])
    assert fastest(table.to_dict("records")) == {"b"}
    assert standings(table)["rank"].tolist() == [2, 1]


def row_of(backend: str, passes_s: dict[int, float]) -> dict[str, Any]:
    return {
        "case": "c", "backend": backend, "status": "ok", "time_s": float(np.median(list(passes_s.values()))),
        "pass_medians_s": passes_s, "plan_s": 0.0, "prepare_s": 0.0,
    }  # fmt: skip


@given(st.lists(st.dictionaries(st.integers(1, 6), st.floats(1e-9, 1e3), min_size=1), min_size=1, max_size=5))
def test_to_be_fastest_is_to_have_rank_one(all_medians: list[dict[int, float]]) -> None:
    """Whatever passes they have: tied is rank 1, and that none is faster beyond doubt; the undecided have no rank."""
    rows = [row_of(str(number), passes_s) for number, passes_s in enumerate(all_medians)]
    table = pd.DataFrame(rows)
    found = standings(table)
    assert (found["tied"] == (found["rank"] == 1)).all()
    assert (found["undecided"] == found["rank"].isna()).all()
    assert set(table.loc[found["tied"], "backend"]) == fastest(rows)
    for row, standing_ in zip(rows, found.to_dict("records"), strict=True):
        faster = sum(row_ratio(other, row).verdict == "faster" for other in rows if other is not row)
        assert standing_["undecided"] or standing_["rank"] == 1 + faster


@given(st.lists(st.lists(st.floats(1e-9, 1e3), min_size=6, max_size=6), min_size=1, max_size=5))
def test_no_ratio_over_the_fastest_is_below_one(all_medians: list[list[float]]) -> None:
    table = pd.DataFrame([row_of(str(n), dict(enumerate(values))) for n, values in enumerate(all_medians)])
    found = standings(table)
    assert (found["ratio_to_best"] > 1 - 1e-9).all()
    assert found.loc[found["ratio_method"] == "itself", "rank"].tolist() == [1]


def test_the_second_is_not_faster_than_the_fastest() -> None:
    """By medians of all samples a is ahead, by the ratio that is shown b is: the ratio counts, for the order too."""
    rows = standing(*visits("a", 0.8, 0.8, 0.8, 0.8, 9.0, 9.0), *visits("b", 1.1, 1.1, 1.1, 1.1, 1.1, 5.0))
    assert rows.loc["a", "time_s"] < rows.loc["b", "time_s"]
    assert rows.loc["b", "ratio_method"] == "itself"
    assert rows.loc["a", "ratio_to_best"] > 1


def test_nothing_is_told_of_a_single_pass() -> None:
    """Neither a rank nor a false win, and no width of an interval: but one with passes of its own is known."""
    one = [*visits("a", 1.0), *visits("b", 2.0), *visits("a", 1.5, twin=True)]
    for rows in (one, [record(backend=each.backend, twin=each.twin, samples_s=each.samples_s * 9) for each in one]):
        table = summarise(frame_of(*rows))
        found = standings(table)
        assert found["undecided"].tolist() == [True, True]
        assert found["rank"].isna().all()
        assert fastest(table.to_dict("records")) == set()
        summed = noise(frame_of(*rows))
        assert (summed.comparisons, summed.false_wins) == (0, 0)
        assert math.isnan(summed.rival_half_width)
    mixed = standing(*visits("a", 1.0, 1.1, 1.0), *visits("b", 2.0), *visits("c", 1.2))
    assert not mixed["undecided"].any()
    alone = standing(*visits("a", 1.0))
    assert alone["rank"].tolist() == [1]


@given(st.lists(medians, min_size=1, max_size=5))
def test_ranks_are_consistent(all_medians: list[dict[int, float]]) -> None:
    """Somebody is first; the fastest is; whoever is not tied with it is not first; nobody beats a better rank."""
    rows = [
        {"case": "c", "backend": str(number), "status": "ok", "time_s": float(np.median(list(values.values()))),
         "pass_medians_s": {n: list(values.values())[n % len(values)] for n in range(6)}, "passes": 6,
         "plan_s": 0.0, "prepare_s": 0.0}
        for number, values in enumerate(all_medians)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    found = standings(table)
    assert found["rank"].min() == 1
    assert found.loc[found["ratio_method"] == "itself", "rank"].tolist() == [1]
    assert (found.loc[~found["tied"], "rank"] > 1).all()
    assert set(table.loc[found["tied"], "backend"]) == fastest(rows)
    for (one, first), (other, second) in itertools.combinations(zip(rows, found["rank"], strict=True), 2):
        if row_ratio(one, other).verdict == "faster":
            assert first < second


# -- after how many calls ---------------------------------------------------------------------------


def test_break_even_by_hand() -> None:
    rows = standing(
        *visits("direct", *[8.0] * 6, plan_s=0.0, prepare_s=1.0),  # 9 for one call: the rival
        *visits("fft", *[6.0] * 6, plan_s=2.0, prepare_s=4.0),  # 5 more, 2 less a call: 3 calls
        *visits("exact", *[4.0] * 6, plan_s=1.0, prepare_s=8.0),  # 8 more, 4 less: 2 calls exactly
        *visits("slow", *[9.0] * 6, plan_s=0.0, prepare_s=0.5),  # never
        *visits("tie", 7.0, 9.0, 7.0, 9.0, 7.0, 8.5, plan_s=3.0, prepare_s=0.0),  # not faster beyond doubt
        *visits("unknown", *[1.0] * 6),
    )
    calls = rows["break_even_calls"]
    assert calls[["direct", "fft", "exact"]].tolist() == [1, 3, 2]
    assert calls[["slow", "tie", "unknown"]].isna().all()
    assert set(rows["break_even_rival"]) == {"direct"}


@given(*[st.integers(1, 1000)] * 4)
def test_break_even_is_the_least_number_of_calls_that_pays(set_up: int, time: int, other_up: int, other: int) -> None:
    """Against plain search."""
    rows = standing(
        *visits("a", *[float(time)] * 3, plan_s=float(set_up), prepare_s=0.0),
        *visits("b", *[float(other)] * 3, plan_s=0.0, prepare_s=float(other_up)),
    )
    costs = {"a": (set_up, time), "b": (other_up, other)}
    rival = rows["break_even_rival"].iloc[0]
    assert sum(costs[rival]) == min(map(sum, costs.values()))
    for name, (fixed, each) in costs.items():
        pays = [n for n in range(1, 1002) if fixed + n * each <= costs[rival][0] + n * costs[rival][1]]
        if name == rival:
            assert rows.loc[name, "break_even_calls"] == 1
        elif each < costs[rival][1]:
            assert rows.loc[name, "break_even_calls"] == pays[0]
        else:
            assert math.isnan(rows.loc[name, "break_even_calls"])


# -- the same against itself ------------------------------------------------------------------------


def test_twins_are_compared_within_passes() -> None:
    rows = [
        *visits("a", 1.0, 10.0, 1.0),
        *visits("a", 1.1, 11.0, 1.1, twin=True),  # always 1.1 times: called different
        *visits("b", 1.0, 2.0, 3.0),
        *visits("b", 1.1, 1.9, 3.1, case=LINE, twin=True),
        *visits("c", 1.0, 2.0),  # has no twin
        record(backend="d", pass_=0, status="skipped"),
    ]
    found = twin_comparisons(frame_of(*rows)).set_index("backend")
    assert list(found.index) == ["a", "b"]
    assert found["verdict"].tolist() == ["slower", "tie"]
    assert found.loc["a", "ratio"] == pytest.approx(1.1)
    summed = noise(frame_of(*rows))
    assert (summed.comparisons, summed.false_wins, summed.rate) == (2, 1, 0.5)
    assert (summed.rate_low, summed.rate_high) == pytest.approx((1 - 0.9874, 0.9874), abs=1e-4)  # Clopper and Pearson
    wide = paired_ratio({1: 1.1, 2: 1.9, 3: 3.1}, {1: 1.0, 2: 2.0, 3: 3.0}).half_width
    assert summed.half_width == pytest.approx(wide / 2)  # the median of 0 and that
    assert summed.rival_half_width > 0


def test_noise_is_one_sentence() -> None:
    found = Noise(44, 0, 0.0, 0.0, 0.0804, 0.0612, 0.213, 0.09, 0.4)
    assert str(found) == (
        "A/A: 44 comparisons of a backend with itself, 0 called different (0 %, 95 % interval 0–8 %); the median 99 % "
        "interval is ±6.1 % wide, nine in ten are within ±21 %; of a backend with the fastest of its case ±9 % "
        "wide, nine in ten are within ±40 %"
    )
    nothing = noise(frame_of(*visits("a", 1.0)))
    assert nothing.comparisons == 0
    assert str(nothing) == "A/A: no backend was compared with itself"
    few = str(Noise(2, 0, 0.0, 0.0, 0.84, 20.0, 30.0, 0.5, 12.0))
    assert few == (
        "A/A: 2 comparisons of a backend with itself, 0 called different (0 %, 95 % interval 0–84 %, too few to "
        "judge); the median 99 % interval is wider than a factor of ten: give the run more passes and time; of a "
        "backend with the fastest of its case ±50 % wide, nine in ten are not even within a factor of ten"
    )


# -- many cases -------------------------------------------------------------------------------------


def network(spread: Mapping[str, float]) -> pd.DataFrame:
    """Two layers, the second occurring three times; ``spread`` is what pass 2 takes more, pass 3 less."""
    times = {"a": (1.0, 4.0), "b": (2.0, 2.0)}
    layers = ((LINE, 1), (OTHER, 3))
    rows = [
        visits(name, *(times[name][n] * f for f in (1, spread[name], 1 / spread[name])), case=case, spec=case,
               weight=weight, group="Net", flops_nominal=1)
        for name in times
        for n, (case, weight) in enumerate(layers)
    ]  # fmt: skip
    return summarise(frame_of(*itertools.chain(*rows)))


def test_geometric_means_have_intervals_over_passes() -> None:
    steady = geometric_means(network({"a": 1.3, "b": 1.3}), "b").set_index("backend")
    columns = ["behind_best", "behind_best_low", "behind_best_high"]
    # a is twice the best on the layer that occurs three times: (1 · 2³)^¼; what slows a whole pass down cancels
    assert steady.loc["a", columns].tolist() == pytest.approx([2**0.75] * 3)
    assert steady.loc["a", "speedup"] == pytest.approx((2 * 0.5**3) ** 0.25)
    loose = geometric_means(network({"a": 1.1, "b": 1.0}), "b").set_index("backend")
    # against b itself nothing differs; against a in layer 1 by ln 1.1 times 0, +1, −1, of weight 1 of 4
    half = 9.92484 * math.log(1.1) / 4 / math.sqrt(3)
    value = (2 * 1**3) ** 0.25
    found = loose.loc["b", columns].tolist()
    assert found == pytest.approx([value, value * math.exp(-half), value * math.exp(half)], rel=1e-5)
    assert geometric_means(network({"a": 1.1, "b": 1.0}), None)["speedup"].isna().all()


def test_a_mean_over_passes_that_lack_a_case_has_no_interval() -> None:
    rows = [*visits("a", 1.0, 1.1, 1.2), *visits("b", 2.0, 2.1, 2.2), *visits("a", 1.0, case=OTHER, spec=OTHER)]
    rows += visits("b", 3.0, case=OTHER, spec=OTHER)
    means = geometric_means(summarise(frame_of(*rows)), "a").set_index("backend")
    ratios = [math.log(2.0), math.log(2.1 / 1.1), math.log(2.2 / 1.2)]
    assert means.loc["b", "behind_best"] == pytest.approx(math.exp((sum(ratios) / 3 + math.log(3.0)) / 2))
    assert math.isnan(means.loc["b", "behind_best_low"])


def test_two_passes_make_no_interval_of_a_mean() -> None:
    """They may agree by chance."""
    rows = [
        *visits("a", 1.0, 1.0, group="Net", flops_nominal=1),
        *visits("b", 1.33, 1.33, group="Net", flops_nominal=1),
    ]
    other = {"case": OTHER, "spec": OTHER, "group": "Net", "flops_nominal": 1}
    rows += [each for name in "ab" for each in visits(name, 1.0, 1.0, **other)]
    table = summarise(frame_of(*rows))
    for made in (geometric_means(table, "a"), totals(table)):
        found = made.set_index("backend").loc["b", ["behind_best", "behind_best_low", "behind_best_high"]]
        assert found["behind_best"] > 1
        assert found.isna().tolist() == [False, True, True]


def test_calls_a_sample_and_the_specs_batch_are_two_things() -> None:
    (row,) = summarise(frame_of(record(batch=77, samples_s=[1.0]))).to_dict("records")
    assert (row["calls_per_sample"], row["batch"]) == (77, 1)


def test_totals_are_compared_within_passes() -> None:
    rows = totals(network({"a": 1.3, "b": 1.3})).set_index("backend")
    assert rows.loc["a", "time_s"] == pytest.approx(13)
    assert rows.loc["a", ["behind_best", "behind_best_low", "behind_best_high"]].tolist() == pytest.approx([13 / 7] * 3)
    assert rows.loc["a", ["low_s", "high_s"]].tolist() == pytest.approx([10, 16.9])


# -- does it hold? ----------------------------------------------------------------------------------


def alike(comparisons: int, passes: int, samples: int) -> np.ndarray:
    """Return samples of two backends that are the same, as machines make them: (comparison, backend, pass, sample).

    Logarithms: 2 % between passes (where memory lies), of which a half is common to both (what slows a pass down), and
    within a pass 1 % that wanders (first-order autoregression, 0.8) with one sample in twenty disturbed by up to 30 %.
    """
    rng = np.random.default_rng(2026)
    level = rng.normal(0, 0.014, (comparisons, 1, passes)) + rng.normal(0, 0.014, (comparisons, 2, passes))
    shape = (comparisons, 2, passes, samples)
    wander = rng.normal(0, 0.01, shape)
    for n in range(1, samples):
        wander[..., n] = 0.8 * wander[..., n - 1] + 0.6 * wander[..., n]
    disturbed = (rng.random(shape) < 0.05) * rng.uniform(0, 0.3, shape)
    return np.exp(level[..., None] + wander + disturbed)


def by_pass(medians_s: np.ndarray) -> dict[int, float]:
    return dict(enumerate(medians_s.tolist(), 1))


def false_wins(verdicts: Iterable[str]) -> tuple[int, float]:
    """Return how many are no ties, and the lower end of the 95 % interval of their rate (Clopper and Pearson)."""
    from scipy.stats import binomtest

    different = [verdict != "tie" for verdict in verdicts]
    return sum(different), binomtest(sum(different), len(different)).proportion_ci(0.95, method="exact").low


def test_the_same_is_seldom_called_different() -> None:
    """In 1 % of comparisons, as far as so many can tell: paired, and pooled with a single pass on one side."""
    medians_s = np.median(alike(20_000, passes=6, samples=10), axis=-1)
    pairs = [(by_pass(one), by_pass(other)) for one, other in medians_s]
    wins, lowest = false_wins(paired_ratio(one, other).verdict for one, other in pairs)
    assert lowest <= 0.01
    assert wins > 100  # so that it would call something else different
    wins, lowest = false_wins(pooled_ratio([one[1]], list(other.values())).verdict for one, other in pairs)
    assert lowest <= 0.01
    assert wins > 50


def test_samples_taken_as_independent_call_the_same_different() -> None:
    """What convbench did before, 95 % intervals of all samples together that do not overlap: far more than 1 %.

    That is why the pass is the unit: its samples share its luck.
    """

    def verdict(one: np.ndarray, other: np.ndarray) -> str:
        first, second = (median_interval(side.ravel().tolist()) for side in (one, other))
        return "tie" if first[0] <= second[1] and second[0] <= first[1] else "different"

    _, lowest = false_wins(verdict(one, other) for one, other in alike(2000, passes=6, samples=10))
    assert lowest > 0.1


def test_what_differs_is_seen() -> None:
    """A tenth slower, under the same noise."""
    medians_s = np.median(alike(500, passes=6, samples=10), axis=-1)
    verdicts = [paired_ratio(by_pass(1.1 * one), by_pass(other)).verdict for one, other in medians_s]
    assert verdicts.count("slower") > 450


def test_a_ratio_is_a_value() -> None:
    assert Ratio(1.0, 0.9, 1.1, 3, "paired") == Ratio(1.0, 0.9, 1.1, 3, "paired")
    assert Ratio(1.0, 0.0, math.inf, 2, "paired").half_width == math.inf
