"""The machine's limits, and the share of them that a call reaches."""

from __future__ import annotations

import json
import math
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import pytest

from convbench.bench import limits as module
from convbench.bench.limits import attainable_s, last_level_bytes, measure_limits, peak_rate, roof_name
from convbench.errors import SpecError

LIMITS = {"gemm_flop_per_s": {"float32": 200e9, "float64": 100e9}, "copy_bytes_per_s": 20e9, "threads": 2}


PEAK = LIMITS | {"fma_flop_per_s": {"float32": 400e9, "float64": 160e9}, "fma_by": "avx512"}


def _attainable(**changes: object) -> float:
    given = {"flops": 1e8, "bytes_min": 1e6, "dtype": "float32", "limits": LIMITS} | changes
    return attainable_s(**given)  # type: ignore[arg-type]


def test_work_bounds_where_it_takes_longer_than_the_bytes() -> None:
    assert _attainable() == pytest.approx(0.5e-3)  # 1e8 / 200e9; the bytes would take 0.05 ms


def test_bytes_bound_where_they_take_longer_than_the_work() -> None:
    assert _attainable(flops=1e6, bytes_min=5e6) == pytest.approx(0.25e-3)


def test_double_precision_has_its_own_roof() -> None:
    assert _attainable(dtype="float64") == pytest.approx(1e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_has_the_roof_of_what_it_is_summed_in(dtype: str) -> None:
    assert _attainable(dtype=dtype) == _attainable(dtype="float32")


def test_multiply_adds_are_the_roof_where_they_are_known() -> None:
    assert _attainable(limits=PEAK) == pytest.approx(0.25e-3)
    assert _attainable(limits=PEAK, dtype="float64") == pytest.approx(0.625e-3)
    disturbed = PEAK | {"fma_flop_per_s": {"float32": 150e9, "float64": 160e9}}
    assert peak_rate("float32", disturbed) == 200e9  # which a product reached
    assert roof_name(PEAK) == "multiply–adds (avx512)"
    assert roof_name(LIMITS) == roof_name(None) == "matrix product"


@pytest.mark.parametrize(
    "unknown",
    [
        {"flops": None},
        {"flops": math.nan},
        {"bytes_min": None},
        {"bytes_min": math.nan},
        {"dtype": "int64"},
        {"dtype": "complex64"},
        {"limits": None},
        {"limits": {}},
        {"limits": {"gemm_flop_per_s": {"float32": None}, "copy_bytes_per_s": 20e9}},
        {"limits": {"gemm_flop_per_s": {"float32": 1e9}, "copy_bytes_per_s": None}},
        {"limits": {"fma_flop_per_s": {}, "copy_bytes_per_s": 20e9}},
    ],
)
def test_what_is_unknown_leaves_the_attainable_time_unknown(unknown: dict[str, object]) -> None:
    assert math.isnan(_attainable(**unknown))


def test_the_rate_of_an_unknown_dtype_is_unknown() -> None:
    assert peak_rate("float16", LIMITS) == 200e9
    assert math.isnan(peak_rate("longdouble", LIMITS))
    assert math.isnan(peak_rate("longdouble", PEAK))


@pytest.mark.parametrize("threads", [1, 2])
def test_limits_are_measured(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GEMM_SIZES", (64,))
    monkeypatch.setattr(module, "_LEAST_COPY_BYTES", 2**20)
    monkeypatch.setattr(module, "last_level_bytes", lambda: 2**18)
    found = json.loads(json.dumps(measure_limits(threads, 0.01), allow_nan=False))
    assert found["threads"] == threads
    assert found["gemm_flop_per_s"].keys() == found["gemm_median_flop_per_s"].keys() == {"float32", "float64"}
    assert found["fma_flop_per_s"].keys() == found["fma_median_flop_per_s"].keys() == {"float32", "float64"}
    for kind in ("gemm", "fma"):
        for dtype, best in found[f"{kind}_flop_per_s"].items():
            assert best >= found[f"{kind}_median_flop_per_s"][dtype] > 0
    assert found["fma_by"] in ("avx512", "avx2", "neon", "generic")
    assert found["copy_bytes_per_s"] >= found["copy_median_bytes_per_s"] > 0
    assert found["copy_array_bytes"] == 2**20
    assert found["copy_beyond_cache"] is True
    assert set(found["blas_threads"].values()) <= {threads}


def test_without_the_compiler_the_matrix_product_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GEMM_SIZES", (64,))
    monkeypatch.setattr(module, "_LEAST_COPY_BYTES", 2**20)
    for name in [name for name in sys.modules if name.partition(".")[0] == "llvmlite"]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("convbench.jit.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_WithoutLlvmlite(), *sys.meta_path])
    found = measure_limits(1, 0.01)
    assert not any(name.startswith("fma") for name in found)
    assert peak_rate("float32", found) == found["gemm_flop_per_s"]["float32"]
    assert roof_name(found) == "matrix product"


class _WithoutLlvmlite(MetaPathFinder):
    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname.partition(".")[0] == "llvmlite":
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


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
