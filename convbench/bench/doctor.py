"""Whether this machine, as it is just now, is fit to measure on: what it is, what it does, and what could be better.

Everything is found out and returned as data; ``convbench doctor`` prints it. Whatever cannot be found out is None, and
a library whose absence is the reason is named under ``missing``.
"""

from __future__ import annotations

import importlib
import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise, repeat
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from convbench.bench.advice import advise
from convbench.bench.environment import describe
from convbench.bench.host import (
    activity,
    activity_now,
    frequency_mhz,
    library,
    memory_limit_bytes,
    physical_cores,
    quota_cores,
    turbo,
    usable_cpus,
)
from convbench.bench.limits import measure_limits
from convbench.cuda.device import gpu_problem
from convbench.registry import all_backends, get_backend, what_is_missing
from convbench.spec import ConvSpec
from convbench.threads import Pool, parallel, resolve

__all__ = ["SECTIONS", "clock_stability", "examine", "noise", "peak_flop_per_s"]

#: What :func:`examine` returns, beside ``threads``, ``seconds`` and ``time``.
SECTIONS = ("machine", "clock", "timer", "libraries", "pools", "settings", "backends", "kernels", "limits", "gpus",
            "cuda", "gpu_problem", "noise", "missing", "advice")  # fmt: skip

_DISTURBED = 1.1  # a sample is disturbed if it takes this many times the median
_ROUNDS = 8
#: Small enough to be at the mercy of overheads and interruptions; large enough to keep all threads busy for a while.
_NOISE_CASES = ("n1 c16 o16 i28x28 k3 psame f32", "n1 c64 o64 i56x56 k3 psame f32")
_NOISE_BACKEND = "im2col"  # available everywhere

Found = Mapping[str, Any]
Clock = Callable[[], float]


def examine(threads: int | None = None, seconds: float = 6.0) -> dict[str, Any]:
    """Find out what measurements on this machine would be worth.

    Parameters
    ----------
    threads : int, optional
        What to measure with; None: every core that this process may use.
    seconds : float
        To measure for: the clock, the limits, the noise. Importing the backends' libraries comes on top.

    Returns
    -------
    dict
        One entry for each of :data:`SECTIONS`, and threads, seconds, time; JSON has room for all of it.

    Raises
    ------
    SpecError
        If the number of threads is none, or the environment forces kernels to a target that this CPU has not.
    """
    threads = resolve(threads)
    backends = _backends()
    environment = describe(threads, [])
    clock = _clock(environment, seconds * 0.15)
    found: dict[str, Any] = {
        "threads": threads,
        "seconds": seconds,
        "time": environment["time"],
        "machine": _machine(environment),
        "clock": clock,
        "timer": {**environment["clock"], **_timer()},
        "libraries": environment["libraries"],
        "pools": _pools(threads),
        "settings": {"environment": _variables(os.environ), "flushes_subnormals": _flushes_subnormals()},
        "backends": backends,
        "kernels": _kernels(),
        "gpus": environment["gpus"],
        "cuda": environment["cuda"],
        "gpu_problem": gpu_problem(),
        "missing": _missing(),
    }
    found["limits"] = {**measure_limits(threads, seconds * 0.4), **_peak(found)}
    found["noise"] = [noise(line, threads, seconds * 0.45 / len(_NOISE_CASES)) for line in _NOISE_CASES]
    found["advice"] = advise(found)
    return {name: found[name] for name in ("threads", "seconds", "time", *SECTIONS)}


# -- what is here ---------------------------------------------------------------------------------


def _backends() -> dict[str, Any]:
    reasons = {name: what_is_missing(backend) for name, backend in all_backends().items()}
    return {
        "usable": [name for name, reason in reasons.items() if reason is None],
        "unusable": {name: reason for name, reason in reasons.items() if reason is not None},
    }


def _missing() -> list[dict[str, str]]:
    """Name the libraries that the examination itself lacks."""
    wanted = {
        "llvmlite": "the peak rate of multiply–adds between registers",
        "psutil": "load by others, stolen time, frequency, free memory and swap",
        "threadpoolctl": "the thread pools of BLAS and OpenMP, which are then neither set nor verified",
        "scipy": "the interval of the noise figure",
    }
    return [
        {"library": name, "costs": costs, "install": f"pip install {name}"}
        for name, costs in wanted.items()
        if library(name) is None
    ]


def _kernels() -> dict[str, Any] | None:
    """Return what kernels are generated for, and where their machine code is kept; None without the compiler."""
    if library("llvmlite") is None:
        return None
    from convbench.jit.compile import cache_folder, cache_trouble
    from convbench.jit.target import host_target, targets

    target, folder = host_target(), cache_folder()
    sizes = [path.stat().st_size for path in folder.glob("*.o")]
    return {
        "target": target.name,
        "targets": list(targets()),
        "cpu": target.cpu,
        "vector_bits": 8 * target.vector_bytes,
        "registers": target.registers,
        "cache": str(folder),
        "cache_entries": len(sizes),
        "cache_bytes": sum(sizes),
        "cache_trouble": cache_trouble(),
    }


def _machine(environment: Found) -> dict[str, Any]:
    host = environment["host"]
    cpu = {name: value for name, value in host["cpu"].items() if name not in ("governor", "clock_mhz")}
    psutil = library("psutil")
    return {
        **{name: host[name] for name in ("fingerprint", "system", "machine", "memory_bytes")},
        **cpu,
        "usable_physical_cores": physical_cores(usable_cpus()),
        "quota_cores": quota_cores(),
        "memory_limit_bytes": memory_limit_bytes(),
        "memory_available_bytes": psutil and int(psutil.virtual_memory().available),
        "swap_used_bytes": psutil and int(psutil.swap_memory().used),
    }


#: Environment variable → what it changes.
_VARIABLES = {
    **dict.fromkeys(
        ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_DYNAMIC", "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS",
         "MKL_NUM_THREADS", "MKL_DYNAMIC", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS",
         "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "TBB_NUM_THREADS"),
        "the number of threads",
    ),
    **dict.fromkeys(
        ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_WAIT_POLICY", "KMP_BLOCKTIME",
         "GOMP_SPINCOUNT", "OPENBLAS_MAIN_FREE", "OPENBLAS_THREAD_TIMEOUT"),
        "where threads run, or how they wait",
    ),
    **dict.fromkeys(
        ("OPENBLAS_CORETYPE", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE", "MKL_CBWR", "BLIS_ARCH_TYPE",
         "NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES", "NUMBA_CPU_NAME", "NUMBA_DISABLE_JIT",
         "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "OPENCV_IPP", "OPENCV_CPU_DISABLE",
         "XLA_FLAGS", "CONVBENCH_JIT_TARGET"),
        "the instructions that are used",
    ),
    **dict.fromkeys(
        ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE", "JAX_ENABLE_X64",
         "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "JAX_DEFAULT_MATMUL_PRECISION", "MKL_VML_MODE"),
        "precision or subnormal numbers",
    ),
    **dict.fromkeys(
        ("LD_PRELOAD", "DYLD_INSERT_LIBRARIES", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES",
         "NUMPY_MADVISE_HUGEPAGE", "PYTHONMALLOC", "PYTHONTRACEMALLOC"),
        "how memory is allocated",
    ),
}  # fmt: skip


def _variables(environment: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": environment[name], "changes": what}
            for name, what in _VARIABLES.items() if name in environment]  # fmt: skip


def _flushes_subnormals() -> bool:
    """Whether this thread takes subnormal numbers for zero: a library built with -ffast-math may have set that."""
    least = np.array([np.finfo(np.float32).smallest_subnormal])
    return not bool((least * np.float32(1)).view(np.uint32)[0])


# -- thread pools ---------------------------------------------------------------------------------

#: Library → the module that holds its pool, and the pool's name there.
_LIBRARY_POOLS = {
    "torch": ("convbench.backends._torch", "POOL"),
    "cv2": ("convbench.backends._opencv", "POOL"),
    "numba": ("convbench.backends.numba", "_POOL"),
}


def _pools(threads: int) -> list[dict[str, Any]]:
    """Set every pool to one thread and to ``threads``, and ask it what it has then."""
    asked = sorted({1, threads})
    pools = _native_pools(asked)
    for name, (module, attribute) in _LIBRARY_POOLS.items():
        if sys.modules.get(name) is not None:
            pool = getattr(importlib.import_module(module), attribute)
            pools.append({"name": name} | _obeys(_sizes_of(pool, asked)))
    return [*pools, {"name": "convbench"} | _obeys({size: _threads_at_once(size) for size in asked})]


def _obeys(sizes: Mapping[int, int]) -> dict[str, Any]:
    return {"sizes": {str(size): got for size, got in sizes.items()},
            "obeys": all(size == got for size, got in sizes.items())}  # fmt: skip


def _native_pools(asked: Sequence[int]) -> list[dict[str, Any]]:
    """Those of BLAS and OpenMP libraries."""
    threadpoolctl = library("threadpoolctl")
    if threadpoolctl is None:
        return []
    about: dict[str, dict[str, Any]] = {}
    sizes: dict[str, dict[int, int]] = {}
    for size in asked:
        with threadpoolctl.threadpool_limits(limits=size):
            for pool in threadpoolctl.threadpool_info():
                about[pool["filepath"]] = pool
                sizes.setdefault(pool["filepath"], {})[size] = int(pool["num_threads"])
    keys = {"api": "user_api", "version": "version", "kernel": "architecture", "threading_layer": "threading_layer"}
    return [
        {"name": Path(path).name, **{ours: pool.get(its) for ours, its in keys.items()}} | _obeys(sizes[path])
        for path, pool in about.items()
    ]


def _sizes_of(pool: Pool, asked: Iterable[int]) -> dict[int, int]:
    sizes = {}
    for size in asked:
        with pool.held(size):
            sizes[size] = pool.sizes()[0]
    return sizes


def _threads_at_once(wanted: int) -> int:
    """Count the threads that convbench's own pool brings together."""
    barrier, arrived = threading.Barrier(wanted), set[int]()

    def meet(_: int) -> None:
        with suppress(threading.BrokenBarrierError):
            barrier.wait(timeout=5)
        arrived.add(threading.get_ident())

    parallel(meet, range(wanted), wanted)
    return len(arrived)


# -- the clock ------------------------------------------------------------------------------------


def _clock(environment: Found, seconds: float) -> dict[str, Any]:
    frequency = frequency_mhz()
    before = activity_now()
    stability = clock_stability(seconds)
    return {
        "governor": environment["host"]["cpu"]["governor"],
        "frequency_mhz": frequency and frequency[0],
        "frequency_max_mhz": frequency and frequency[1],
        "turbo": turbo(),
        "stability": stability,
        "meanwhile": activity(before, activity_now()),
    }


def clock_stability(
    seconds: float, work: Callable[[], object] | None = None, clock: Clock = time.perf_counter
) -> dict[str, Any]:
    """Time the same short piece of arithmetic over and over, on one core and without touching memory.

    Parameters
    ----------
    seconds : float
    work : callable, optional
        The arithmetic; default: square roots of numbers that stay in the first-level cache.
    clock : callable

    Returns
    -------
    dict
        ``samples``; ``median_s``; ``spread``, interquartile range over median; ``drift``, how much longer the last
        fifth took than the first (medians); ``disturbed_share`` of samples that took 10 % more than the median.
    """
    work = work or _arithmetic()
    work()
    samples: list[float] = []
    began = clock()
    while clock() < began + seconds or len(samples) < 10:
        start = clock()
        work()
        samples.append(clock() - start)
    low, middle, high = (float(q) for q in np.quantile(samples, (0.25, 0.5, 0.75)))
    fifth = len(samples) // 5
    return {
        "samples": len(samples),
        "median_s": middle,
        "spread": (high - low) / middle,
        "drift": median(samples[-fifth:]) / median(samples[:fifth]) - 1,
        "disturbed_share": sum(sample > _DISTURBED * middle for sample in samples) / len(samples),
    }


def _arithmetic() -> Callable[[], None]:
    """Return about a quarter of a millisecond's work."""
    values, roots = np.linspace(1.0, 2.0, 1024), np.empty(1024)

    def work() -> None:
        for _ in repeat(None, 200):
            np.sqrt(values, out=roots)

    return work


def _timer(clock: Clock = time.perf_counter, calls: int = 10_000) -> dict[str, Any]:
    """Return the least step of the clock and what reading it costs, as seen."""
    readings = [clock() for _ in range(calls)]
    steps = [after - before for before, after in pairwise(readings) if after > before]
    return {"step_s": min(steps, default=None), "call_s": (readings[-1] - readings[0]) / (calls - 1)}


# -- limits and noise -----------------------------------------------------------------------------


def peak_flop_per_s(features: Iterable[str], cores: int | None, max_mhz: float | None) -> dict[str, Any] | None:
    """Return the most that the instructions allow: cores · frequency · lanes · 2 (multiply, add) · 2 units.

    None where the highest frequency, the cores or the instructions are not known. That each core has two units for
    fused multiply–add of its longest vectors is an assumption, and said to be one; few CPUs have more.

    >>> peak_flop_per_s(["avx2", "fma"], 2, 3000.0)["float32"]
    192000000000.0
    """
    present = set(features)
    bits = next((bits for needed, bits in ((("avx512f",), 512), (("avx2", "fma"), 256), (("asimd",), 128))
                 if present.issuperset(needed)), None)  # fmt: skip
    if not max_mhz or not cores or bits is None:
        return None
    rate = cores * max_mhz * 1e6 * 2 * 2
    assumed = f"{cores} cores at {max_mhz / 1000:.2f} GHz with two units for multiply–add of {bits} bits each"
    return {"float32": rate * bits / 32, "float64": rate * bits / 64, "assumes": assumed}


def _peak(found: Found) -> dict[str, Any]:
    machine = found["machine"]
    cores = machine["usable_physical_cores"] and min(machine["usable_physical_cores"], found["threads"])
    return {"peak_flop_per_s": peak_flop_per_s(machine["features"], cores, found["clock"]["frequency_max_mhz"])}


def noise(line: str, threads: int, seconds: float, rounds: int = _ROUNDS) -> dict[str, Any]:
    """Time one backend under two names in several rounds, as if it were two (A/A), and compare them.

    Both have plans, prepared weights and operands of their own. All rounds are in this one process, so that what
    differs between processes, such as where memory lies, shows only in part: a run's noise is rather larger.

    Parameters
    ----------
    line : str
        A spec.
    threads : int
    seconds : float
        For all rounds together.
    rounds : int

    Returns
    -------
    dict
        ``case``, ``backend``, ``rounds``; ``ratio``, ``low``, ``high``: of the two, with the interval by which a run
        calls a winner; ``verdict``: anything but a tie is a false win; ``noise``: how far from 1 the interval reaches,
        which is what a difference has to exceed to be seen here. None where it cannot be told.
    """
    calls = [_call(line, threads) for _ in range(2)]
    medians: list[dict[int, float]] = [{}, {}]
    rng = random.Random(0)
    for number in range(rounds):
        for twin in rng.sample((0, 1), 2):
            medians[twin][number] = _median_s(calls[twin], seconds / rounds / 2)
    about = {"case": line, "backend": _NOISE_BACKEND, "rounds": rounds}
    if library("scipy") is None:
        return {**about, **dict.fromkeys(("ratio", "low", "high", "verdict", "noise"))}
    from convbench.bench.ratios import paired_ratio

    ratio = paired_ratio(medians[0], medians[1])
    known = math.isfinite(ratio.high) and ratio.low > 0
    low, high, reach = (ratio.low, ratio.high, max(ratio.high, 1 / ratio.low) - 1) if known else (None, None, None)
    return {**about, "ratio": ratio.value, "low": low, "high": high, "verdict": ratio.verdict, "noise": reach}


def _call(line: str, threads: int) -> Callable[[], object]:
    spec = ConvSpec.parse(line)
    plan = get_backend(_NOISE_BACKEND).plan(spec, threads=threads)
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(spec.dtype) for shape in (spec.input_shape, spec.weight_shape))
    call = partial(plan, x, plan.prepare(w), None)
    call()
    return call


def _median_s(call: Callable[[], object], seconds: float) -> float:
    samples: list[float] = []
    until = time.perf_counter() + seconds
    while len(samples) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        call()
        samples.append(time.perf_counter() - began)
    return median(samples)
