"""What a run ran on: recorded once, so that its figures can be judged later. Whatever cannot be found out is None."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from convbench.cuda.device import cuda_version
from convbench.cuda.nvidia_smi import describe_gpus
from convbench.revision import git_revision, output_of, utc_now
from convbench.threads import available, pool_sizes

__all__ = [
    "cache_bytes",
    "command_line",
    "cuda_facts",
    "describe",
    "memory_bytes",
    "thread_note",
    "thread_pools",
]

_DISTRIBUTIONS = (
    "numpy", "scipy", "pyfftw", "threadpoolctl", "pandas", "matplotlib", "llvmlite", "numba", "torch",
    "opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python", "jax",
    "cupy-cuda12x", "cupy-cuda13x",
)  # fmt: skip
_FEATURES = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimdhp", "sve", "sve2", "bf16", "i8mm",
)  # fmt: skip


@contextmanager
def thread_pools(threads: int) -> Iterator[list[str]]:
    """Hold every thread pool that threadpoolctl knows at ``threads`` within the block.

    Yields one line for each pool that does not obey, or for threadpoolctl itself if it is missing. Import the libraries
    first: a pool that is loaded later is not held.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        yield ["thread pools are neither set nor verified: pip install threadpoolctl"]
        return
    with threadpool_limits(limits=threads):
        others = {name: size for name, size in (pool_sizes() or {}).items() if size != threads}
        yield [f"{name} has {size} threads where {threads} were asked for" for name, size in others.items()]


def thread_note(environment: Mapping[str, Any]) -> str | None:
    """Return one line if the pools of a run were not verified to have the threads that it was asked to use.

    Parameters
    ----------
    environment : mapping
        What :func:`describe` returned, perhaps read back from a file.

    Examples
    --------
    >>> thread_note({"thread_pool_problems": ["blas:libopenblas has 8 threads where 2 were asked for"]})
    'threads: blas:libopenblas has 8 threads where 2 were asked for'
    """
    problems = environment.get("thread_pool_problems")
    if not problems or not isinstance(problems, list):
        return None
    return " ".join(f"threads: {'; '.join(map(str, problems))}".split())


def describe(threads: int, problems: list[str]) -> dict[str, Any]:
    """Return the environment as JSON has it; call it within :func:`thread_pools`.

    Parameters
    ----------
    threads : int
        What the run was asked to use.
    problems : list of str
        Thread pools that did not obey.
    """
    cpu = _cpu()
    host = {"system": platform.platform(), "machine": platform.machine(), "memory_bytes": memory_bytes(), "cpu": cpu}
    gpus = describe_gpus()
    devices = [f"{gpu['name']}, {gpu['memory_bytes']}" for gpu in gpus]  # not what changes by itself or an update
    identity = repr((host["machine"], host["memory_bytes"], cpu["model"], cpu["cores"], cpu["caches_bytes"], devices))
    return {
        "time": utc_now().isoformat(timespec="seconds"),
        "command_line": command_line(),
        "git_revision": git_revision(),
        "host": {"fingerprint": hashlib.blake2b(identity.encode(), digest_size=6).hexdigest(), **host},
        "gpus": gpus,
        "cuda": _cuda(),
        "clock": _clock(),
        "libraries": _libraries(),
        "threads": threads,
        "thread_pools": _thread_pools(),
        "thread_pool_problems": problems,
    }


def command_line() -> str:
    """Return how this process was called, the program without its folder."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    if program == "__main__.py" and Path(sys.argv[0]).parent.name == "convbench":
        program = "convbench"  # called as a module
    return shlex.join([program, *sys.argv[1:]])


def _clock() -> dict[str, Any]:
    clock = time.get_clock_info("perf_counter")
    return {"name": "perf_counter", "implementation": clock.implementation, "resolution_s": clock.resolution}


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _cpu() -> dict[str, Any]:
    info: dict[str, str] = {}
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            info.setdefault(key.strip(), value.strip())
    flags = set((info.get("flags") or info.get("Features") or "").split())
    model = info.get("model name") or output_of(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.processor()
    return {
        "model": model or None,
        "family_model_stepping": [info.get(key) for key in ("cpu family", "model", "stepping")] if info else None,
        "cores": os.cpu_count(),
        "usable_cores": available(),
        "caches_bytes": _caches(),
        "features": [feature for feature in _FEATURES if feature in flags],
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "clock_mhz": info.get("cpu MHz"),
        "virtual": "hypervisor" in flags,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def _caches() -> dict[str, int]:
    """Size of each cache as seen from the first core, such as {"L1d": 32768, "L2": 1048576}."""
    sizes = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index[0-9]*")):
        level, kind, size = (_read(str(folder / name)) for name in ("level", "type", "size"))
        parsed = cache_bytes(size or "")
        if level and kind and parsed is not None:
            suffix = {"Data": "d", "Instruction": "i"}.get(kind, "")
            sizes[f"L{level}{suffix}"] = parsed
    return sizes


def cache_bytes(size: str) -> int | None:
    """Read the size of a cache as Linux writes it; None if it is not one.

    >>> cache_bytes("48K"), cache_bytes("")
    (49152, None)
    """
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(size[:-1]) * units[size[-1]] if size[:-1].isdigit() and size[-1] in units else None


def memory_bytes() -> int | None:
    """Return the physical memory of this machine; None if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _cuda() -> dict[str, Any] | None:
    """The device that CuPy uses and the libraries it brings; None if no backend has imported it, or none is usable."""
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return None
    from convbench.cuda.device import gpu_problem

    return None if gpu_problem() else cuda_facts(cupy)


def cuda_facts(cupy: Any) -> dict[str, Any]:
    """Return what CUDA says of the current device and of itself, as CuPy passes it on; None for what it does not."""
    device, runtime = cupy.cuda.Device(), cupy.cuda.runtime
    found = {
        "device": lambda: runtime.getDeviceProperties(device.id)["name"].decode(),
        "bus_id": lambda: str(device.pci_bus_id),
        "compute_capability": lambda: f"{device.compute_capability[:-1]}.{device.compute_capability[-1]}",
        "memory_bytes": lambda: int(device.mem_info[1]),
        "multiprocessors": lambda: int(device.attributes["MultiProcessorCount"]),
        "l2_bytes": lambda: int(device.attributes["L2CacheSize"]),
        "shared_bytes_per_block": lambda: int(device.attributes["MaxSharedMemoryPerBlockOptin"]),
        "driver_cuda": lambda: cuda_version(runtime.driverGetVersion()),
        "runtime_cuda": lambda: cuda_version(runtime.runtimeGetVersion()),
        "nvrtc": lambda: "{}.{}".format(*cupy.cuda.nvrtc.getVersion()),
        "cufft": lambda: str(cupy.cuda.cufft.getVersion()),
        "cupy": lambda: str(cupy.__version__),
    }
    return {name: _or_none(ask) for name, ask in found.items()}


def _or_none(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception:  # a name that this CuPy has not, a library that is missing
        return None


def _libraries() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": f"{platform.python_implementation()} {platform.python_version()}"}
    for name in ("convbench", *_DISTRIBUTIONS):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if "convbench" not in versions:
        from convbench import __version__

        versions["convbench"] = f"{__version__} (not installed)"
    pyfftw = sys.modules.get("pyfftw")  # only if a backend has imported it
    if pyfftw is not None:
        versions["fftw"] = str(getattr(pyfftw, "fftw_version", None))
    return versions | {"numpy's blas": _numpy_blas()} | _inside_rivals()


def _inside_rivals() -> dict[str, str | None]:
    """What the rivals that have been imported bring along, and settings of theirs that change speed or precision."""
    found: dict[str, str | None] = {}
    torch, cv2, numba = (sys.modules.get(name) for name in ("torch", "cv2", "numba"))
    if torch is not None:
        built = torch.__config__.show()
        onednn, mkl = (re.search(rf"{name}.*? v?(\d[\w.]*)", built) for name in ("MKL-DNN", "Math Kernel Library"))
        found["torch's onednn"] = onednn and onednn[1]
        found["torch's mkl"] = mkl and mkl[1]
        found["torch's float32 precision"] = torch.get_float32_matmul_precision()  # highest: neither TF32 nor bfloat16
    if cv2 is not None:
        found["opencv's ipp"] = cv2.ipp.getIppVersion() if cv2.ipp.useIPP() else None
    if numba is not None:
        with suppress(ValueError):  # not chosen yet
            found["numba's threading layer"] = numba.threading_layer()
    return found


def _numpy_blas() -> str | None:
    """Name and version of the BLAS that NumPy was built with."""
    import numpy

    try:
        blas: Any = numpy.show_config(mode="dicts")
        found = blas["Build Dependencies"]["blas"]
        return f"{found['name']} {found['version']}"
    except (KeyError, TypeError):
        return None


def _thread_pools() -> list[dict[str, Any]] | None:
    """Every pool as it is now, its file without the folder."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return None
    keys = ("user_api", "internal_api", "prefix", "version", "num_threads", "threading_layer", "architecture")
    return [
        {"file": Path(str(pool.get("filepath"))).name, **{key: pool[key] for key in keys if key in pool}}
        for pool in threadpool_info()
    ]
