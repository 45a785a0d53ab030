"""What the system says of the cores, the memory and the load that this process has: read, never measured.

None stands for what it does not say. A ``root`` other than ``/`` is a copy of the files that Linux shows there.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "Activity",
    "activity",
    "activity_now",
    "frequency_mhz",
    "library",
    "memory_limit_bytes",
    "physical_cores",
    "quota_cores",
    "turbo",
    "usable_cpus",
]

_ROOT = Path("/")


def library(name: str) -> Any:
    """Import a library; None if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def usable_cpus() -> list[int]:
    """Return the numbers of the hardware threads that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))


def physical_cores(cpus: Iterable[int], root: Path = _ROOT) -> int | None:
    """Return how many cores these hardware threads belong to; None if the system does not say.

    A virtual machine may not tell the truth about it.
    """
    folder = root / "sys/devices/system/cpu"
    siblings = {_read(folder / f"cpu{cpu}/topology/thread_siblings_list") for cpu in cpus}
    return None if None in siblings else len(siblings)


def quota_cores(root: Path = _ROOT) -> float | None:
    """Return how many cores' time the control groups of this process allow it; None if they set no limit."""
    pairs = [text.split() for (text,) in _group_settings("cpu", ("cpu.max",), root)]
    pairs += _group_settings("cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us"), root)
    return min((int(quota) / int(period) for quota, period in pairs if quota.isdigit()), default=None)


def memory_limit_bytes(root: Path = _ROOT) -> int | None:
    """Return what the control groups of this process allow it to hold; None if they set no limit."""
    texts = [text for name in ("memory.max", "memory.limit_in_bytes")
             for (text,) in _group_settings("memory", (name,), root)]  # fmt: skip
    limits = (int(text) for text in texts if text.isdigit())
    return min((limit for limit in limits if limit < 2**60), default=None)  # version 1 writes no limit as about 2⁶³


def _group_settings(controller: str, files: Sequence[str], root: Path) -> Iterator[list[str]]:
    """Yield what the files say in this process's control group and in each above it, in version 1 and 2."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        bases = (controllers, controller) if controllers else (".", "unified")
        for base in dict.fromkeys(root / "sys/fs/cgroup" / name for name in bases):
            place = base / group.strip("/")
            for folder in (place, *(above for above in place.parents if above.is_relative_to(base))):
                texts = [_read(folder / name) for name in files]
                if None not in texts:
                    yield [text or "" for text in texts]


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def frequency_mhz() -> tuple[float | None, float | None] | None:
    """Frequency now and at most, in MHz, as far as the system knows them: a virtual one often does not."""
    psutil = library("psutil")
    try:
        found = psutil and psutil.cpu_freq()
    except (AttributeError, OSError, NotImplementedError, RuntimeError):
        return None
    return (found.current or None, found.max or None) if found else None


def turbo(root: Path = _ROOT) -> bool | None:
    """Whether the clock may exceed its nominal frequency."""
    folder = root / "sys/devices/system/cpu"
    off, on = _read(folder / "intel_pstate/no_turbo"), _read(folder / "cpufreq/boost")
    return off == "0" if off in ("0", "1") else on == "1" if on in ("0", "1") else None


@dataclass(frozen=True)
class Activity:
    """Counters of the system and of this process at one moment.

    Attributes
    ----------
    wall_s : float
    cpus : int
        Those that this process may use; the next two are of these alone.
    busy_s, steal_s : float
        CPU time spent by anybody; time in which the hypervisor ran something else. The latter is part of neither.
    own_s : float
        CPU time of this process.
    switches : int
        How often this process was made to leave its core.
    """

    wall_s: float
    cpus: int
    busy_s: float
    steal_s: float
    own_s: float
    switches: int


def activity_now() -> Activity | None:
    """Read the counters; None without psutil."""
    psutil = library("psutil")
    if psutil is None:
        return None
    times, usable = psutil.cpu_times(percpu=True), usable_cpus()
    times = [times[cpu] for cpu in usable if cpu < len(times)]
    busy = ("user", "nice", "system", "irq", "softirq")  # guests' time is part of the user's
    return Activity(
        wall_s=time.perf_counter(),
        cpus=len(times),
        busy_s=sum(getattr(each, name, 0.0) for each in times for name in busy),
        steal_s=sum(getattr(each, "steal", 0.0) for each in times),
        own_s=time.process_time(),
        switches=int(psutil.Process().num_ctx_switches().involuntary),
    )


def activity(before: Activity | None, after: Activity | None) -> dict[str, float] | None:
    """Return what went on between two moments.

    Returns
    -------
    dict or None
        ``others_cores``, how many of the usable cores others kept busy; ``steal_share`` of the usable cores' time;
        ``involuntary_switches_per_s`` of this process.
    """
    if before is None or after is None or after.wall_s <= before.wall_s:
        return None
    wall_s = after.wall_s - before.wall_s
    others_s = after.busy_s - before.busy_s - (after.own_s - before.own_s)
    return {
        "others_cores": max(0.0, others_s / wall_s),
        "steal_share": (after.steal_s - before.steal_s) / (wall_s * after.cpus),
        "involuntary_switches_per_s": (after.switches - before.switches) / wall_s,
    }
