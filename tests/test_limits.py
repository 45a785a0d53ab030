"""The machine's limits, and the share of them that a call reaches."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from convbench.bench import limits as module
from convbench.bench.limits import gemm_rate, last_level_bytes, limit_share, measure_limits
from convbench.errors import SpecError

LIMITS = {"gemm_flop_per_s": {"float32": 200e9, "float64": 100e9}, "copy_bytes_per_s": 20e9, "threads": 2}


def _share(**changes: object) -> float:
    given = {"time_s": 1e-3, "flops_executed": 1e8, "bytes_min": 1e6, "dtype": "float32", "limits": LIMITS} | changes
    return limit_share(**given)  # type: ignore[arg-type]


def test_work_bounds_where_it_takes_longer_than_the_bytes() -> None:
    assert _share() == pytest.approx(0.5)  # 1e8 / 200e9 = 0.5 ms of 1 ms; the bytes would take 0.05 ms


def test_bytes_bound_where_they_take_longer_than_the_work() -> None:
    assert _share(flops_executed=1e6, bytes_min=5e6) == pytest.approx(0.25)


def test_double_precision_has_its_own_roof() -> None:
    assert _share(dtype="float64") == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_has_the_roof_of_what_it_is_summed_in(dtype: str) -> None:
    assert _share(dtype=dtype) == _share(dtype="float32")


def test_a_share_may_exceed_one() -> None:
    assert _share(time_s=1e-4) == pytest.approx(5.0)


@pytest.mark.parametrize(
    "unknown",
    [
        {"time_s": math.nan},
        {"time_s": None},
        {"time_s": 0.0},
        {"flops_executed": None},
        {"flops_executed": math.nan},
        {"bytes_min": None},
        {"bytes_min": math.nan},
        {"dtype": "int64"},
        {"dtype": "complex64"},
        {"limits": None},
        {"limits": {}},
        {"limits": {"gemm_flop_per_s": {"float32": None}, "copy_bytes_per_s": 20e9}},
        {"limits": {"gemm_flop_per_s": {"float32": 1e9}, "copy_bytes_per_s": None}},
    ],
)
def test_what_is_unknown_leaves_the_share_unknown(unknown: dict[str, object]) -> None:
    assert math.isnan(_share(**unknown))


def test_the_rate_of_an_unknown_product_is_unknown() -> None:
    assert gemm_rate("float16", LIMITS) == 200e9
    assert math.isnan(gemm_rate("longdouble", LIMITS))


@pytest.mark.parametrize("threads", [1, 2])
def test_limits_are_measured(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GEMM_SIZES", (64,))
    monkeypatch.setattr(module, "_LEAST_COPY_BYTES", 2**20)
    monkeypatch.setattr(module, "last_level_bytes", lambda: 2**18)
    found = json.loads(json.dumps(measure_limits(threads, 0.01), allow_nan=False))
    assert found["threads"] == threads
    assert found["gemm_flop_per_s"].keys() == found["gemm_median_flop_per_s"].keys() == {"float32", "float64"}
    for dtype, best in found["gemm_flop_per_s"].items():
        assert best >= found["gemm_median_flop_per_s"][dtype] > 0
    assert found["copy_bytes_per_s"] >= found["copy_median_bytes_per_s"] > 0
    assert found["copy_array_bytes"] == 2**20
    assert found["copy_beyond_cache"] is True
    assert set(found["blas_threads"].values()) <= {threads}


def test_a_copy_really_copies() -> None:
    copy = module._copy(1001, 3)
    source, target = (cell.cell_contents for cell in copy.args[0].__closure__)  # type: ignore[attr-defined]
    target[...] = 0
    copy()
    assert (target == source).all()
    assert (target == 1).all()


def test_limits_refuse_an_impossible_number_of_threads() -> None:
    with pytest.raises(SpecError, match="threads"):
        measure_limits(0)


@pytest.mark.parametrize(
    ("caches", "memory", "expected"),
    [
        (None, None, 2**26),  # nothing is known: the least
        (2**25, None, 2**26),
        (2**28, None, 2**29),  # twice the caches
        (2**32, None, 2**30),  # bounded
        (2**28, 2**28, 2**25),  # an eighth of memory
    ],
)
def test_arrays_of_the_copy(caches: int | None, memory: int | None, expected: int) -> None:
    assert module._copy_array_bytes(caches, memory) == expected


def _write_cache(cpus: Path, cpu: int, index: int, level: int, size: str, shared: str) -> None:
    folder = cpus / f"cpu{cpu}" / "cache" / f"index{index}"
    folder.mkdir(parents=True)
    for name, text in (("level", str(level)), ("size", size), ("shared_cpu_list", shared)):
        (folder / name).write_text(f"{text}\n")


def test_last_level_caches_are_summed_once_each(tmp_path: Path) -> None:
    for cpu in range(4):
        _write_cache(tmp_path, cpu, 0, 1, "48K", str(cpu))
        _write_cache(tmp_path, cpu, 3, 3, "32768K", "0-1" if cpu < 2 else "2-3")
    assert last_level_bytes(tmp_path) == 2 * 32 * 2**20


def test_caches_that_the_system_does_not_show_are_unknown(tmp_path: Path) -> None:
    assert last_level_bytes(tmp_path) is None


def test_a_visit_takes_samples_for_its_time_and_one_at_least() -> None:
    calls: list[int] = []
    timed = module._Timed(lambda: calls.append(1), 10)
    timed.visit(0.0)
    assert len(timed.samples_s) == len(calls) == 1
    assert timed.best == timed.median == 10 / timed.samples_s[0]
