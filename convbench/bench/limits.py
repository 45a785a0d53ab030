"""What this machine can do at best: the rate of multiply–adds and of a copy, both measured, never looked up.

They are the two roofs of the roofline model (Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009). Multiply–adds
between registers (:mod:`convbench.jit.peak`) are what no algorithm exceeds; a matrix product, measured beside them, is
what libraries make of that, and the roof where there is no compiler. Of a GPU the roofs are its matrix product and its
copy, by its own clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from convbench.bench.environment import cache_bytes, memory_bytes
from convbench.bench.places import OnDevice
from convbench.cuda.timing import EventStopwatch
from convbench.threads import blas_threads, parallel, pool_sizes, resolve, shares

__all__ = [
    "ROOFS",
    "attainable_s",
    "last_level_bytes",
    "limits_of",
    "measure_gpu_limits",
    "measure_limits",
    "peak_rate",
    "roof_name",
]

#: What sums are formed in → the dtype of the multiply–adds that bound its rate.
ROOFS = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}

_MEASURED = ("float32", "float64")

#: Operands from less than 1 MB, in L2 and multiplied between two interruptions, to a hundred, enough for many threads.
_GEMM_SIZES = (256, 512, 1024, 2048)
_VISITS = 8  # times that everything is gone through, if there is time
_LEAST_VISITS = 3
_LEAST_COPY_BYTES, _MOST_COPY_BYTES = 2**26, 2**30  # of one array
_PIECES = 4  # that a thread copies, so that one disturbed thread does not hold up all
#: On a GPU a product needs many blocks, a copy much more than the L2; a lap is of so many calls.
_GPU_GEMM_SIZES = (1024, 2048, 4096)
_GPU_COPY_BYTES = 2**28
_GPU_CALLS = 4
_CPUS = Path("/sys/devices/system/cpu")

Call = Callable[[], object]


# -- measuring ------------------------------------------------------------------------------------


@dataclass
class _Timed:
    """A call, what it does (operations or bytes), and how long it took each time."""

    call: Call
    amount: int
    samples_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0

    def visit(self, seconds: float) -> None:
        """Take samples for some time, one at least."""
        began_cpu, began = time.process_time(), time.perf_counter()
        now = began
        while now < began + seconds or now == began:
            start, _ = now, self.call()
            now = time.perf_counter()
            self.samples_s.append(max(now - start, 1e-9))
        self.cpu_s += time.process_time() - began_cpu

    @property
    def best(self) -> float:
        """Amount a second."""
        return self.amount / min(self.samples_s)

    @property
    def median(self) -> float:
        """Amount a second."""
        return self.amount / median(self.samples_s)

    @property
    def cores_used(self) -> float:
        """CPU time over wall time."""
        return self.cpu_s / sum(self.samples_s)


def measure_limits(threads: int, seconds: float = 1.0) -> dict[str, Any]:
    """Measure the best rates of multiply–adds, GEMM and copy that this machine shows just now.

    The best of many is the limit: what disturbs can only take away. All are measured in turn, several times, so that
    a disturbance falls on all alike; the medians say how far the machine was from being left alone.

    Parameters
    ----------
    threads : int
        For all of them.
    seconds : float
        About how long it takes; a slow machine may take longer for the least number of samples.

    Returns
    -------
    dict
        As JSON has it. ``gemm_flop_per_s`` and ``gemm_median_flop_per_s``: dtype → rate of NumPy's ``matmul``, which
        is BLAS, by what is best of several: ``gemm_by`` is "BLAS's threads, 1024" (the threads share one product of
        that size) or "a product a thread, 256". ``gemm_cores_used``: CPU time over wall time where BLAS's threads
        share the smallest product. ``copy_bytes_per_s`` and ``copy_median_bytes_per_s``: bytes read and bytes written,
        both counted, of arrays of ``copy_array_bytes``; ``copy_beyond_cache`` says whether the two are at least four
        times all last-level caches (None if their size is not known). ``blas_threads``: pool → its size as verified
        while BLAS's threads share a product; None without threadpoolctl. ``threads``. With llvmlite also
        ``fma_flop_per_s`` and ``fma_median_flop_per_s``: dtype → rate of multiply–adds between registers, by the
        instructions named by ``fma_by``, such as "avx512".

    Raises
    ------
    SpecError
        If the number of threads is none, or the environment forces kernels to a target that this CPU has not.
    """
    threads = resolve(threads)
    caches = last_level_bytes()
    size = _copy_array_bytes(caches, memory_bytes())
    with blas_threads(threads):
        products = {dtype: _products(dtype, threads, seconds) for dtype in _MEASURED}
        copy = _Timed(_copy(size, threads), 2 * size)
        sums, by = _multiply_adds(threads)
        every = [*(timed for ways in products.values() for timed in ways.values()), *sums.values(), copy]
        _take_turns(every, seconds)
        pools = pool_sizes()
    best = {dtype: max(timed, key=lambda way: timed[way].best) for dtype, timed in products.items()}
    peak = {
        "fma_flop_per_s": {dtype: timed.best for dtype, timed in sums.items()},
        "fma_median_flop_per_s": {dtype: timed.median for dtype, timed in sums.items()},
        "fma_by": by,
    }
    return {
        **(peak if sums else {}),
        "gemm_flop_per_s": {dtype: products[dtype][way].best for dtype, way in best.items()},
        "gemm_median_flop_per_s": {dtype: products[dtype][way].median for dtype, way in best.items()},
        "gemm_by": best,
        "gemm_cores_used": {dtype: next(iter(timed.values())).cores_used for dtype, timed in products.items()},
        "copy_bytes_per_s": copy.best,
        "copy_median_bytes_per_s": copy.median,
        "copy_array_bytes": size,
        "copy_beyond_cache": 2 * size >= 4 * caches if caches else None,
        "blas_threads": pools and {name: size for name, size in pools.items() if name.startswith("blas:")},
        "threads": threads,
    }


def _take_turns(all_timed: Sequence[_Timed], seconds: float) -> None:
    for timed in all_timed:
        timed.call()
    until = time.perf_counter() + seconds
    visits = 0
    while visits < _LEAST_VISITS or time.perf_counter() < until:
        for timed in all_timed:
            timed.visit(seconds / _VISITS / len(all_timed))
        visits += 1


def _multiply_adds(threads: int) -> tuple[dict[str, _Timed], str]:
    """Return multiply–adds in each dtype, and the instructions that do them; none without llvmlite."""
    try:
        from convbench.jit.peak import FmaWork
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "llvmlite":
            return {}, ""
        raise
    work = {dtype: FmaWork(dtype, threads) for dtype in _MEASURED}
    return {dtype: _Timed(call, call.flops) for dtype, call in work.items()}, work["float32"].target.name


def _products(dtype: str, threads: int, seconds: float) -> dict[str, _Timed]:
    """Return ways to multiply matrices.

    One product shared by BLAS's threads waits for the slowest of them many times, which costs a busy machine most of
    its rate; a product for each thread waits once.
    """
    ways = {}
    for size in _GEMM_SIZES:
        call = _product(dtype, size)
        ways[f"BLAS's threads, {size}"] = _Timed(call, 2 * size**3)
        began = time.perf_counter()
        call()
        if 8 * (time.perf_counter() - began) > seconds / 20:  # twice the size is eight times the work
            break
    if threads > 1:
        size = _GEMM_SIZES[0]
        calls = [_product(dtype, size) for _ in range(threads)]
        ways[f"a product a thread, {size}"] = _Timed(partial(_alone, calls), 2 * size**3 * threads)
    return ways


def _product(dtype: str, size: int) -> Call:
    rng = np.random.default_rng(size)
    a, b = (rng.standard_normal((size, size)).astype(dtype) for _ in range(2))
    return partial(np.matmul, a, b, out=np.empty_like(a))


def _alone(calls: Sequence[Call]) -> None:
    """Make each call in a thread of its own, in which BLAS has no others."""

    def make(call: Call) -> None:
        call()

    with blas_threads(1):
        parallel(make, calls, len(calls))


def _copy(size: int, threads: int) -> Call:
    """Return a call that copies so many bytes."""
    pieces = shares(size, threads * _PIECES if threads > 1 else 1)
    source, target = np.empty(size, np.uint8), np.empty(size, np.uint8)

    def fill(piece: slice) -> None:  # by several threads: on a NUMA machine its pages are then in several places
        source[piece] = 1
        target[piece] = 0

    def copy(piece: slice) -> None:
        np.copyto(target[piece], source[piece])  # lets go of the interpreter's lock

    parallel(fill, pieces, threads)
    return partial(parallel, copy, pieces, threads)


def _copy_array_bytes(caches: int | None, memory: int | None) -> int:
    """Twice all last-level caches, so that two arrays are four times as large; but an eighth of memory at most."""
    most = min(_MOST_COPY_BYTES, memory // 8 if memory else _MOST_COPY_BYTES)
    return min(most, max(_LEAST_COPY_BYTES, 2 * (caches or 0)))


def last_level_bytes(cpus: Path = _CPUS) -> int | None:
    """Return the size of all last-level caches together, None if the system does not say.

    A large machine has several, one for each group of cores; what is spread over its threads must exceed their sum.
    """
    caches: dict[tuple[int, str], int] = {}
    for folder in cpus.glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level, shared, size = ((folder / name).read_text().strip() for name in ("level", "shared_cpu_list", "size"))
        except OSError:
            continue
        if level.isdigit() and (parsed := cache_bytes(size)) is not None:
            caches[int(level), shared] = parsed
    last = max((level for level, _ in caches), default=None)
    return sum(size for (level, _), size in caches.items() if level == last) or None


# -- measuring a GPU ------------------------------------------------------------------------------


def measure_gpu_limits(place: OnDevice, seconds: float = 1.0) -> dict[str, Any]:
    """Measure the best rates of GEMM and copy that a GPU shows just now, by its events.

    Parameters
    ----------
    place : OnDevice
    seconds : float
        About how long it takes, without the making of operands.

    Returns
    -------
    dict
        As :func:`measure_limits` has them: ``gemm_flop_per_s`` and ``gemm_median_flop_per_s`` of the array library's
        ``matmul`` (cuBLAS; float32 without TF32, unless CUPY_TF32 is set), ``gemm_by`` (size → of the best),
        ``copy_bytes_per_s``, ``copy_median_bytes_per_s`` and ``copy_array_bytes``.
    """
    xp = place.ns.xp
    products = {dtype: _gpu_products(place, dtype, seconds) for dtype in _MEASURED}
    source, target = (xp.ones(_GPU_COPY_BYTES, dtype=xp.uint8) for _ in range(2))
    copy = _Timed(partial(xp.copyto, target, source), 2 * _GPU_COPY_BYTES)
    every = [*(timed for sizes in products.values() for timed in sizes.values()), copy]
    watches = [place.stopwatch("hot") for _ in every]
    until, visits = place.device.now() + seconds, 0
    while visits < _LEAST_VISITS or place.device.now() < until:
        for timed, watch in zip(every, watches, strict=True):
            timed.samples_s.append(_lap_s(watch, timed.call, _GPU_CALLS))
        visits += 1
    best = {dtype: max(timed, key=lambda size: timed[size].best) for dtype, timed in products.items()}
    return {
        "gemm_flop_per_s": {dtype: products[dtype][size].best for dtype, size in best.items()},
        "gemm_median_flop_per_s": {dtype: products[dtype][size].median for dtype, size in best.items()},
        "gemm_by": {dtype: f"matmul, {size}" for dtype, size in best.items()},
        "copy_bytes_per_s": copy.best,
        "copy_median_bytes_per_s": copy.median,
        "copy_array_bytes": _GPU_COPY_BYTES,
    }


def _gpu_products(place: OnDevice, dtype: str, seconds: float) -> dict[int, _Timed]:
    """Return products of ever larger matrices, warmed up, as long as there is time for the next size."""
    sizes = {}
    for size in _GPU_GEMM_SIZES:
        numbers = np.random.default_rng(size).standard_normal(2**16).astype(dtype)  # repeated: quickly made
        a, b = (place.ns.from_host(np.resize(numbers, (size, size))) for _ in range(2))
        call = partial(place.ns.xp.matmul, a, b, out=place.ns.xp.empty((size, size), dtype=dtype))
        sizes[size] = _Timed(call, 2 * size**3)
        call()  # the first one has libraries to load
        if 8 * _lap_s(place.stopwatch("hot"), call, 1) > seconds / 20:  # twice the size is eight times the work
            break
    return sizes


def _lap_s(watch: EventStopwatch, call: Call, calls: int) -> float:
    """Return the seconds of one call."""
    return max(watch.lap(call, calls).seconds / calls, 1e-9)


# -- judging --------------------------------------------------------------------------------------


def limits_of(device: str | None, limits: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the limits of one device among those of a run: the CPU's, which it has itself, or the GPU's under "cuda".

    >>> limits_of("cuda", {"copy_bytes_per_s": 2e10, "cuda": {"copy_bytes_per_s": 4e12}})
    {'copy_bytes_per_s': 4000000000000.0}
    """
    known = limits or {}
    return known if device in ("cpu", "", None) else known.get(str(device)) or {}


def peak_rate(dtype: str, limits: Mapping[str, Any] | None) -> float:
    """Return the most FLOP/s that were measured where sums are formed in ``dtype``; NaN if unknown.

    That of multiply–adds between registers, or of matrix products where those are not known (see :func:`roof_name`), or
    were disturbed while a product was not: what was reached once is no more than the peak.
    """
    known = (((limits or {}).get(f"{kind}_flop_per_s") or {}).get(ROOFS.get(dtype, dtype)) for kind in ("fma", "gemm"))
    return max((float(rate) for rate in known if rate), default=math.nan)


def roof_name(limits: Mapping[str, Any] | None) -> str:
    """Name what :func:`peak_rate` is the rate of.

    >>> roof_name({"fma_flop_per_s": {"float32": 236e9}, "fma_by": "avx512"}), roof_name({})
    ('multiply–adds (avx512)', 'matrix product')
    """
    known = limits or {}
    return f"multiply–adds ({known['fma_by']})" if known.get("fma_flop_per_s") else "matrix product"


def attainable_s(
    *, flops: float | None, bytes_min: float | None, dtype: str, limits: Mapping[str, Any] | None
) -> float:
    """Return the time that this machine's limits leave for a call: of its work or of its traffic, whichever is longer.

    That is the work at :func:`peak_rate`, or the bytes at the measured copy rate. Over the measured time it is the
    share of the limit that the call reaches, and the height of a point in the roofline plot over that of the roof.

    It is no bound. The share exceeds 1 where operands stay in a cache, which is faster than the copy through memory;
    where a plan counts more work than it does; and where a kernel beats BLAS, if only matrix products were measured: on
    a GPU so does whatever multiplies on tensor cores. It
    judges the algorithm's own work: one that does four times too much at full speed has a share of 1.

    Parameters
    ----------
    flops, bytes_min : float or None
        Work really done (``flops_executed``); least traffic.
    dtype : str
        What sums are formed in: ``accumulate_dtype`` of a record, not the dtype of its spec. Half precision is summed
        in float32 and narrow integers are summed in float32 or float64, and these bound their rates. Wide integers and
        complex numbers have no limit here: no rate of the former is measured, and plans count the latter's work in
        two ways (a complex multiply–add is 2 operations to those that multiply directly and 8 to those that transform).
    limits : mapping or None
        From :func:`measure_limits` or :func:`measure_gpu_limits`, for the device of the call (:func:`limits_of`).

    Returns
    -------
    float
        NaN if any of it is unknown.

    Examples
    --------
    >>> limits = {"fma_flop_per_s": {"float32": 100e9}, "copy_bytes_per_s": 20e9}
    >>> attainable_s(flops=100e9, bytes_min=10e9, dtype="float32", limits=limits)
    1.0
    >>> attainable_s(flops=1e9, bytes_min=40e9, dtype="float16", limits=limits)
    2.0
    """
    rate = (limits or {}).get("copy_bytes_per_s")
    if not rate or flops is None or bytes_min is None:
        return math.nan
    work_s, traffic_s = flops / peak_rate(dtype, limits), bytes_min / rate
    return math.nan if math.isnan(work_s + traffic_s) else max(work_s, traffic_s)
