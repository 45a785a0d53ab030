"""Two runs against each other: what is slower, lost, missing or renamed, and what the command says of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convbench.bench.compare import Comparison, compare
from convbench.bench.record import ENVIRONMENT_FILE, RECORDS_FILE, Record, append, to_frame
from convbench.cli import main
from convbench.errors import SpecError
from convbench.report.compare import conclusion, markdown, pairs_grid, remarks

CASE, OTHER = "n1 c1 o1 i64x64 k3 psame f32", "n1 c1 o1 i64x64 k5 psame f32"
HOST = {"host": {"fingerprint": "abc", "cpu": {"model": "A CPU"}}, "libraries": {"numpy": "2.4.5", "scipy": "1.17"}}


def records(backend: str, medians_s: Sequence[float], case: str = CASE, **fields: Any) -> list[Record]:
    made = {"run_id": "r", "case": case, "spec": case.partition(" x=")[0], "backend": backend, **fields}
    if not medians_s:
        return [Record(**made)]
    return [Record(**made, pass_=n, samples_s=[s] * 3) for n, s in enumerate(medians_s, 1)]


def run(*parts: list[Record], environment: dict[str, Any] | None = None) -> pd.DataFrame:
    return to_frame([record for part in parts for record in part], HOST if environment is None else environment)


def verdicts(found: Comparison) -> dict[str, str]:
    return dict(zip(found.pairs["backend"], found.pairs["verdict"], strict=True))


STEADY = [1.0, 1.01, 0.99, 1.0, 1.01, 0.99]


def times(factor: float, of: Sequence[float] = STEADY) -> list[float]:
    return [factor * time_s for time_s in of]


# -- verdicts ---------------------------------------------------------------------------------------


def test_a_ratio_between_runs_is_welchs_by_hand() -> None:
    # logs: 0, ±0.1 (variance 0.01, n 3) and ln 2 + (0, ±0.2) (variance 0.04, n 3): SE² = 0.05/3,
    # degrees of freedom (0.05/3)² / ((0.01/3)²/2 + (0.04/3)²/2) = 2.941, t at 99 % = 5.958
    before = [math.exp(d) for d in (0, 0.1, -0.1)]
    after = [2 * math.exp(d) for d in (0, 0.2, -0.2)]
    (row,) = compare(run(records("a", before)), run(records("a", after))).pairs.to_dict("records")
    half = 5.9582 * math.sqrt(0.05 / 3)
    assert row["ratio"] == pytest.approx(2)
    assert (row["low"], row["high"]) == pytest.approx((2 * math.exp(-half), 2 * math.exp(half)), rel=1e-3)
    assert (row["passes"], row["method"], row["verdict"], row["regression"]) == (3, "unpaired", "unclear", False)


def test_verdicts_and_regressions() -> None:
    before = run(*(records(name, STEADY) for name in ("same", "slower", "worse", "faster", "unclear")))
    after = run(
        records("same", times(1.01)),
        records("slower", times(1.045)),
        records("worse", times(1.2)),
        records("faster", times(0.8)),
        records("unclear", [0.7, 1.5, 1.2, 0.9, 1.3, 1.1]),
    )
    found = compare(before, after)
    assert verdicts(found) == {
        "same": "same", "slower": "slower", "worse": "slower", "faster": "faster", "unclear": "unclear",
    }  # fmt: skip
    assert found.regressions["backend"].tolist() == ["worse"]  # the other is slower by less than the threshold
    assert found.failed()
    assert not compare(before, after, threshold=0.25).failed()
    assert compare(before, after, threshold=0.04).regressions["backend"].tolist() == ["worse", "slower"]


@given(st.floats(0.5, 2.0), st.floats(0.01, 0.5))
def test_the_other_way_round_the_verdict_is_the_other_way_round(factor: float, threshold: float) -> None:
    one, other = run(records("a", STEADY)), run(records("a", times(factor)))
    there, back = compare(one, other, threshold=threshold), compare(other, one, threshold=threshold)
    opposite = {"slower": "faster", "faster": "slower", "same": "same", "unclear": "unclear"}
    assert verdicts(there)["a"] == opposite[verdicts(back)["a"]]
    assert there.mean.value == pytest.approx(1 / back.mean.value)


def test_a_run_is_the_same_as_itself() -> None:
    one = run(records("a", STEADY), records("b", [2.0, 2.0, 2.0]), records("c", [], status="skipped"))
    found = compare(one, one)
    assert verdicts(found) == {"a": "same", "b": "same", "c": "untimed"}
    assert found.mean.value == pytest.approx(1)
    assert not found.failed()


def test_a_status_lost_fails_and_one_gained_does_not() -> None:
    before = run(records("a", STEADY), records("b", STEADY), records("c", [], status="skipped", reason="work"))
    after = run(
        records("a", [], status="wrong", reason="3 of 9 outputs are wrong"),
        records("b", []),  # verified, and its turn never came
        records("c", STEADY),
    )
    found = compare(before, after)
    assert verdicts(found) == {"a": "lost", "b": "lost", "c": "gained"}
    assert found.failed(fail_on_missing=False)
    lines = pairs_grid(found).plain()
    assert any("lost: ok → wrong, 3 of 9 outputs are wrong" in line for line in lines)


def test_single_passes_are_compared_by_samples_or_by_the_others_passes() -> None:
    many, few = [[Record(run_id="r", case=CASE, spec=CASE, backend="a", pass_=1, samples_s=[1.0 + i / 100] * 4)
                  for i in (0, 1, 2)][n : n + 1] for n in (0, 1)]  # fmt: skip
    few[0].samples_s = [2.0 + i / 100 for i in range(9)]
    many[0].samples_s = [1.0 + i / 100 for i in range(9)]
    (row,) = compare(run(many), run(few)).pairs.to_dict("records")
    assert (row["method"], row["low"], row["high"]) == ("samples", pytest.approx(2 / 1.08), pytest.approx(2.08))
    (row,) = compare(run(records("a", STEADY)), run(records("a", [2.0]))).pairs.to_dict("records")
    assert (row["method"], row["verdict"]) == ("pooled", "slower")
    found = compare(run(records("a", [1.0])), run(records("a", [2.0])))
    assert verdicts(found) == {"a": "unclear"}
    assert any("1 of 1 ratios rest on fewer than four passes" in note for note in found.notes)


def test_means_have_intervals_over_passes() -> None:
    before = run(records("a", STEADY), records("b", STEADY, weight=3))
    after = run(records("a", times(2.0)), records("b", STEADY, weight=3))
    found = compare(before, after)
    assert found.mean.value == pytest.approx(2**0.25)
    assert found.mean.low < 2**0.25 < found.mean.high
    rows = found.backends.set_index("backend")
    assert rows.loc["a", ["pairs", "slower", "regressions"]].tolist() == [1, 1, 1]
    assert rows.loc["b", "mean"] == pytest.approx(1)


# -- what is not in both ----------------------------------------------------------------------------


def test_missing_and_new_pairs() -> None:
    before = run(records("a", STEADY), records("gone", STEADY), records("refused", [], status="unsupported"))
    after = run(records("a", STEADY), records("come", STEADY))
    found = compare(before, after)
    assert found.missing == ((CASE, "gone"),)
    assert found.new == ((CASE, "come"),)
    assert (found.failed(), found.failed(fail_on_missing=False)) == (True, False)
    assert f"missing: gone on {CASE}" in list(remarks(found))


def test_a_case_written_otherwise_is_the_same_renamed() -> None:
    """Its pairs are compared all the same."""
    written = "n1 c1 o1 i64x64 k3 p1 f32 x=photo"
    found = compare(run(records("a", STEADY, case=f"{CASE} x=photo")), run(records("a", times(2.0), case=written)))
    assert [tuple(entry) for entry in found.renamed] == [(f"{CASE} x=photo", written)]
    assert verdicts(found) == {"a": "slower"}
    assert found.failed()
    assert (found.missing, found.new) == ((), ())


def test_like_data_of_the_same_spec_may_be_the_same() -> None:
    """A question: the pairs are missing and new. Another kernel size is another case."""
    found = compare(run(records("a", STEADY, case=f"{CASE} x=photo")), run(records("a", STEADY, case=f"{CASE} x=phot")))
    assert found.renamed == ()
    assert [tuple(entry) for entry in found.alike] == [(f"{CASE} x=photo", f"{CASE} x=phot")]
    assert (len(found.missing), len(found.new)) == (1, 1)
    assert found.pairs.empty
    assert found.failed()
    assert any(line.startswith("perhaps renamed? ") for line in remarks(found))
    for other in ("n8 c3 o5 i9x9x9 k1 f64", CASE.replace("k3", "k11")):
        far = compare(run(records("a", STEADY)), run(records("a", STEADY, case=other)))
        assert (far.renamed, far.alike) == ((), ())
        assert (len(far.missing), len(far.new)) == (1, 1)


# -- what else differs ------------------------------------------------------------------------------


def test_another_cuda_or_driver_is_said() -> None:
    """The GPU is the same, so that times are compared."""
    cuda = {"device": "NVIDIA H200", "bus_id": "0000:1A:00.0", "runtime_cuda": "13.0", "cupy": "14.2.0", "cufft": None}
    gpus = [{"bus_id": "00000000:1A:00.0", "driver": "570.86"}, {"bus_id": "00000000:1B:00.0", "driver": "1.0"}]
    newer = [gpus[0] | {"driver": "580.10"}, gpus[1]]
    before = HOST | {"cuda": cuda, "gpus": gpus}
    after = HOST | {"cuda": cuda | {"runtime_cuda": "13.1", "cufft": "12000"}, "gpus": newer}

    def notes(*environments: dict[str, Any]) -> list[str]:
        found = compare(*(run(records("a", STEADY), environment=environment) for environment in environments))
        return [note for note in found.notes if note.startswith("GPU")]

    assert notes(before, after) == [
        "GPU and CUDA: CUDA runtime 13.0 → 13.1, cuFFT unknown → 12000, driver 570.86 → 580.10"
    ]
    assert notes(before, before) == notes(HOST, after) == []


def test_what_differs_between_the_runs_is_said() -> None:
    newer = {**HOST, "libraries": {"numpy": "2.4.6", "scipy": "1.17"}, "git_revision": "def"}
    found = compare(
        run(records("a", STEADY, implementation="AVX2", threads=1)),
        run(records("a", STEADY, implementation="AVX-512", threads=2, mode="cold"), environment=newer),
    )
    notes = "\n".join(found.notes)
    for text in (
        "numpy 2.4.5 → 2.4.6",
        "threads: 1 → 2",
        "mode: hot → cold",
        "a: another implementation: AVX2 → AVX-5",
    ):
        assert text in notes
    assert "scipy" not in notes
    assert "not known" in "\n".join(compare(run(records("a", STEADY), environment={}), run(records("a", STEADY))).notes)


def test_on_another_machine_only_ratios_are_compared() -> None:
    """It is three times as fast throughout, but for one backend."""
    other = {"host": {"fingerprint": "def", "cpu": {"model": "B CPU"}}}
    before = run(*(records(name, times(f)) for name, f in (("scipy-fft", 1.0), ("a", 2.0), ("b", 4.0))))
    after = run(
        *(records(name, times(f / 3)) for name, f in (("scipy-fft", 1.0), ("a", 2.0), ("b", 6.0))), environment=other
    )
    found = compare(before, after)
    assert found.relative
    assert verdicts(found) == {"scipy-fft": "reference", "a": "same", "b": "slower"}
    assert found.pairs.set_index("backend").loc["b", "ratio"] == pytest.approx(1.5)
    assert any("A CPU (abc) → B CPU (def): their times cannot be compared" in note for note in found.notes)
    assert "over that of the reference" in conclusion(found)
    assert verdicts(compare(before, after, relative=False))["a"] == "faster"
    one, two = (run(records("x", STEADY), records("y", times(factor))) for factor in (2.0, 1.0))
    alone = compare(one, two, relative=True)
    assert verdicts(alone) == {"x": "reference", "y": "faster"}  # the first run's fastest


def test_a_change_of_everything_is_suspected_to_be_the_machines() -> None:
    before, after = (run(*(records(name, times(f)) for name in "abc")) for f in (1.0, 1.5))
    assert any(line.startswith("all pairs together are slower, 1.50×") for line in remarks(compare(before, after)))
    assert not any("all pairs together" in line for line in remarks(compare(before, before)))


def test_the_noise_of_both_runs_is_said() -> None:
    twins = records("a", times(1.001), twin=True)
    found = compare(run(records("a", STEADY), twins), run(records("a", STEADY)))
    assert (found.noise_before.comparisons, found.noise_after.comparisons) == (1, 0)
    assert any(line.startswith("before: A/A: 1 comparison of") for line in remarks(found))


def test_input_is_checked() -> None:
    one = run(records("a", STEADY))
    with pytest.raises(SpecError, match="threshold"):
        compare(one, one, threshold=0.0)
    with pytest.raises(SpecError, match="confidence"):
        compare(one, one, confidence=1.0)
    with pytest.raises(SpecError, match="nothing to compare"):
        compare(one, one.iloc[:0])
    with pytest.raises(SpecError, match="cannot be compared"):
        compare(one, run(records("a", STEADY, case="pool=max n1 c1 i64x64 k3 f32")))


# -- the command ------------------------------------------------------------------------------------


def folder(path: Path, *parts: list[Record]) -> str:
    path.mkdir()
    (path / ENVIRONMENT_FILE).write_text(json.dumps(HOST), encoding="utf-8")
    for record in (record for part in parts for record in part):
        append(path / RECORDS_FILE, record)
    return str(path)


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = folder(tmp_path / "old", records("a", STEADY), records("b", STEADY, case=OTHER))
    slow = folder(tmp_path / "slow", records("a", times(1.2)), records("b", STEADY, case=OTHER))
    less = folder(tmp_path / "less", records("a", STEADY))
    assert main(["compare", old, f"{old}/{RECORDS_FILE}"]) == 0
    assert main(["compare", old, slow]) == 1
    assert main(["compare", old, slow, "--threshold", "25%"]) == 0
    assert main(["compare", old, slow, "--threshold", "0.25"]) == 0
    assert main(["compare", old, slow, "--threshold", "1e-3", "--confidence", "0.9"]) == 1
    assert main(["compare", old, less]) == 1
    assert main(["compare", old, less, "--no-fail-on-missing"]) == 0
    assert main(["compare", less, old]) == 0  # new pairs are no failure
    capsys.readouterr()
    for wrong in (["compare", old], ["compare", old, str(tmp_path / "none")], ["compare", old, old, "--threshold", "5"],
                  ["compare", old, old, "--threshold", "-1%"], ["compare", old, old, "--threshold", "100%"],
                  ["compare", old, old, "--threshold", "5%%"], ["compare", old, old, "--threshold", "nan"],
                  ["compare", old, old, "--confidence", "0.3"]):  # fmt: skip
        assert main(wrong) == 2
        output, error = capsys.readouterr()
        assert (output, error.count("\n")) == ("", 1)


def test_what_the_command_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = folder(tmp_path / "old", records("a", STEADY), records("b", STEADY))
    new = folder(tmp_path / "new", records("a", times(1.2)), records("b", STEADY))
    main(["compare", old, new])
    text, _ = capsys.readouterr()
    assert "slower: regression" in text
    assert "2 pairs of both runs: 1 regression; time after over before, geometric mean: 1.10×" in text
    main(["compare", old, new, "--all"])
    assert "same" in capsys.readouterr().out.partition("Backends")[0]
    main(["compare", old, new, "--format", "markdown"])
    assert "| a | 1.00 s | 1.20 s | 1.20× |" in capsys.readouterr().out
    main(["compare", old, new, "--format", "json"])
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (found["before"], found["after"], found["failed"]) == (old, new, True)
    assert [pair["verdict"] for pair in found["pairs"]] == ["slower", "same"]
    assert (found["compared"], found["told"]) == (2, 2)
    assert found["noise_before"]["comparisons"] == found["noise_after"]["comparisons"] == 0


def test_markdown_of_runs_with_nothing_in_common() -> None:
    found = compare(run(records("a", STEADY)), run(records("b", STEADY)))
    assert markdown(found, ("x", "y")).startswith("# x → y\n\n0 pairs of both runs: 1 pair missing, no pair has a time")


def test_nothing_compared_is_no_all_clear() -> None:
    """Not even where missing pairs do not count; what is unclear is no all-clear either, and is counted."""
    one, untimed = run(records("a", STEADY)), run(records("a", [], status="unsupported"))
    twins = run(records("a", STEADY, twin=True))
    for before, after in ((one, run(records("b", STEADY))), (untimed, untimed), (twins, twins), (untimed, one)):
        found = compare(before, after)
        assert found.failed(fail_on_missing=False)
        assert "nothing was compared" in conclusion(found)
        assert "no regression" not in conclusion(found)
    unsteady = run(records("a", STEADY), records("b", [0.7, 1.5, 1.2, 0.9, 1.3, 0.8]))
    found = compare(unsteady, unsteady)
    assert "no regression among the 1 that can be told, 1 unclear (median interval ±" in conclusion(found)
    single = run(records("a", [1.0]))
    found = compare(single, single)
    assert not found.failed()
    assert "none can be told, 1 unclear (no interval is known)" in conclusion(found)


def test_a_single_process_has_no_verdict() -> None:
    """However many samples it has, and however far they are apart."""
    before, after = (run([Record(run_id="r", case=CASE, spec=CASE, backend="a", pass_=1, samples_s=[s] * 20)])
                     for s in (1.0, 2.0))  # fmt: skip
    found = compare(before, after)
    assert verdicts(found) == {"a": "unclear"}
    (row,) = found.pairs.to_dict("records")
    assert (row["method"], row["ratio"], row["low"], row["high"]) == ("samples", 2.0, 2.0, 2.0)
    assert any("[2.00–2.00]" in line for line in pairs_grid(found, everything=True).plain())
    assert verdicts(compare(before, before)) == {"a": "unclear"}


def test_orders_of_two_runs_by_hand() -> None:
    def made(**factors: float) -> pd.DataFrame:
        return run(*(records(name, times(factor)) for name, factor in factors.items()))

    found = compare(made(a=1.0, b=2.0, c=4.0, d=8.0), made(a=1.0, b=2.0, c=8.0, d=4.0))
    assert (found.orders.both, found.orders.one, found.orders.neither) == (6, 0, 0)
    assert found.orders.turned == ((CASE, "c", "d"),)
    assert f"order: c is faster than d before, and slower after: {CASE}" in list(remarks(found))
    unsteady = run(records("a", STEADY), records("b", [0.7, 1.5, 1.2, 0.9, 1.3, 0.8]))
    mixed = compare(unsteady, made(a=1.0, b=2.0)).orders
    assert (mixed.both, mixed.one, mixed.neither, mixed.turned) == (0, 1, 0, ())
