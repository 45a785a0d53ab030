"""``convbench doctor``: what measurements on this machine would be worth, and what would make them better."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from convbench.commands.parameters import Count, Seconds
from convbench.refusals import human_bytes
from convbench.report.screen import Screen
from convbench.report.text import Column, Grid, Row, human_number, human_seconds

__all__ = ["doctor"]

Found = Mapping[str, Any]
Lines = Iterator[tuple[str, str]]  # name, what was found

_UNKNOWN = "not known"


@click.command()
@click.option("--seconds", type=Seconds(), default=6, show_default=True, metavar="S",
              help="To measure for; importing the backends' libraries takes some more.")  # fmt: skip
@click.option("--threads", type=Count(), metavar="N", help="To measure with; default: every core.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def doctor(seconds: float, threads: int | None, as_json: bool) -> None:
    """Examine this machine: is it fit to measure on?

    Prints what it has (CPU, caches, libraries, thread pools, backends), what it does just now (stability of the clock,
    load by others, time taken by a hypervisor), its limits as measured (rates of multiply–adds and of a
    matrix product, bandwidth of a copy), how far apart two equal backends look, and advice. It changes nothing, and its
    exit code says nothing of what it found.
    """
    from convbench.bench.doctor import examine

    if as_json:
        print(json.dumps(examine(threads, seconds), ensure_ascii=False, allow_nan=False))
        return
    screen = Screen()
    with screen.busy(f"examining this machine for about {seconds:g} s"):
        found = examine(threads, seconds)
    for title, describe in _SECTIONS.items():
        screen.title(title)
        grid = Grid([Column("", right=False), Column("", right=False)])
        grid.rows += [Row((name,), text) for name, text in describe(found)]
        screen.grid(grid)
    screen.title("Advice")
    for line in found["advice"] or ["none: nothing was found that disturbs measurements"]:
        screen.say(f"- {line}", "yellow" if found["advice"] else "green")


# -- sections: name and finding, line by line -----------------------------------------------------


def _machine(found: Found) -> Lines:
    machine = found["machine"]
    virtual = ", virtual" * bool(machine["virtual"])
    yield "CPU", f"{machine['model'] or 'unknown'}{virtual}"
    yield "cores", _cores(machine)
    yield "caches", " · ".join(f"{n} {human_bytes(size)}" for n, size in machine["caches_bytes"].items()) or _UNKNOWN
    yield "features", " ".join(machine["features"]) or _UNKNOWN
    yield "memory", _memory(machine)
    yield "system", machine["system"]
    yield "fingerprint", machine["fingerprint"]


def _gpu(found: Found) -> Lines:
    """Say what the driver lists, what CUDA uses of it, and what is missing."""
    for gpu in found["gpus"]:
        yield gpu["name"] or _UNKNOWN, _card(gpu)
    if not found["gpus"]:
        yield "driver", "nvidia-smi lists no GPU"
    cuda = found["cuda"]
    if cuda:
        sizes = f"{cuda['multiprocessors']} multiprocessors, L2 {human_bytes(cuda['l2_bytes'] or 0)}"
        yield "used", f"{cuda['device']}, compute capability {cuda['compute_capability']}, {sizes}"
        versions = (f"{title} {cuda[key] or _UNKNOWN}" for title, key in _CUDA_VERSIONS.items())
        yield "CUDA", ", ".join(versions)
    yield "backends", f"cannot run: {found['gpu_problem']}" if found["gpu_problem"] else "a kernel has run"


_CUDA_VERSIONS = {"driver's": "driver_cuda", "runtime": "runtime_cuda", "NVRTC": "nvrtc", "CuPy": "cupy"}


def _card(gpu: Found) -> str:
    """Describe one card as the driver does, without what it does not tell."""
    memory = gpu["memory_bytes"] and human_bytes(gpu["memory_bytes"])
    known = {
        "driver {}": gpu["driver"],
        "{}": memory,
        "SM clock {}": _of_most(gpu, "sm_clock", "MHz"),
        "memory clock {}": _of_most(gpu, "memory_clock", "MHz"),
        "power limit {} W": gpu["power_limit_w"],
        "{} °C": gpu["temperature_c"],
        "persistence {}": gpu["persistence"] and str(gpu["persistence"]).lower(),
        "MIG {}": gpu["mig"] and str(gpu["mig"]).lower(),
        "held back by {}": ", ".join(gpu["held_back_by"] or ()) or None,
    }
    return ", ".join(form.format(value) for form, value in known.items() if value is not None)


def _of_most(gpu: Found, name: str, unit: str) -> str | None:
    now, most, application = (gpu[f"{name}{suffix}_mhz"] for suffix in ("", "_max", "_application"))
    if now is None:
        return None
    limits = [f"at most {most}"] * (most is not None) + [f"for applications {application}"] * (application is not None)
    return f"{now} {unit}" + f" ({', '.join(limits)})" * bool(limits)


def _cores(machine: Found) -> str:
    parts = [f"{machine['usable_cores']} of {machine['cores']} may be used"]
    physical, quota = machine["usable_physical_cores"], machine["quota_cores"]
    if physical is not None:
        alone = physical == machine["usable_cores"]
        parts.append("none shared by hyperthreads" if alone else f"{physical} physical: hyperthreads share them")
    parts.append("no quota" if quota is None else f"a quota of {quota:g} cores' time")
    return "; ".join(parts)


def _memory(machine: Found) -> str:
    whole, free, limit, swap = (
        machine[name] for name in ("memory_bytes", "memory_available_bytes", "memory_limit_bytes", "swap_used_bytes")
    )
    parts = [human_bytes(whole) if whole else _UNKNOWN]
    if free is not None:
        parts.append(f"{human_bytes(free)} available")
    if limit is not None:
        parts.append(f"limited to {human_bytes(limit)}")
    if swap is not None:
        parts.append(f"{human_bytes(swap)} of swap in use" if swap else "no swap in use")
    return "; ".join(parts)


def _clock(found: Found) -> Lines:
    clock, timer = found["clock"], found["timer"]
    mhz = (clock["frequency_mhz"], clock["frequency_max_mhz"])
    now, most = (_UNKNOWN if value is None else f"{value / 1000:.2f} GHz" for value in mhz)
    turbo = {None: _UNKNOWN, True: "on", False: "off"}[clock["turbo"]]
    yield "frequency", f"now {now}; at most {most}; turbo {turbo}; governor {clock['governor'] or _UNKNOWN}"
    yield "stability", _stability(clock["stability"])
    yield "meanwhile", _UNKNOWN if clock["meanwhile"] is None else _meanwhile(clock["meanwhile"])
    step, call = human_seconds(timer["step_s"]), human_seconds(timer["call_s"])
    yield "timer", f"{timer['name']} ({timer['implementation']}), least step {step}, {call} a call"


def _stability(stability: Found) -> str:
    work = f"the same {human_seconds(stability['median_s'])} of arithmetic, {stability['samples']:,} times"
    spread, drift, disturbed = (stability[name] for name in ("spread", "drift", "disturbed_share"))
    return f"{work}: spread {spread:.1%} (interquartile), drift {drift:+.1%}, {disturbed:.1%} disturbed (by over 10 %)"


def _meanwhile(meanwhile: Found) -> str:
    others, steal = f"{meanwhile['others_cores']:.2f} cores", f"{meanwhile['steal_share']:.1%}"
    switches = f"{meanwhile['involuntary_switches_per_s']:.0f}"
    return f"others kept {others} busy; the hypervisor took {steal}; {switches} involuntary switches a second"


def _limits(found: Found) -> Lines:
    limits = found["limits"]
    peak = limits["peak_flop_per_s"]
    for dtype, best in limits.get("fma_flop_per_s", {}).items():
        usual = _giga(limits["fma_median_flop_per_s"][dtype])
        share = f"; {best / peak[dtype]:.0%} of the peak" if peak else ""
        yield f"FMA {dtype}", f"{_giga(best)} GFLOP/s between registers ({limits['fma_by']}), usually {usual}{share}"
    for dtype, best in limits["gemm_flop_per_s"].items():
        usual, way = _giga(limits["gemm_median_flop_per_s"][dtype]), limits["gemm_by"][dtype]
        share = f"; {best / peak[dtype]:.0%} of the peak" if peak else ""
        yield f"GEMM {dtype}", f"{_giga(best)} GFLOP/s, usually {usual} ({way}){share}"
    copy, usual = _giga(limits["copy_bytes_per_s"]), _giga(limits["copy_median_bytes_per_s"])
    arrays = f"arrays of {human_bytes(limits['copy_array_bytes'])}"
    arrays += ", which the caches may hold in part" * (limits["copy_beyond_cache"] is False)
    yield "copy", f"{copy} GB/s, read and written, usually {usual} ({arrays})"
    if peak:
        yield "peak", f"{_giga(peak['float32'])} GFLOP/s in float32, if it is {peak['assumes']}"
    else:
        yield "peak", f"{_UNKNOWN}: the system does not say the highest frequency"


def _giga(rate: float) -> str:
    return human_number(rate / 1e9)


def _noise(found: Found) -> Lines:
    for entry in found["noise"]:
        if entry["noise"] is None:
            yield entry["case"], f"{_UNKNOWN}: its interval needs SciPy and two rounds"
            continue
        interval = f"ratio {entry['ratio']:.3f}, 99 % interval {entry['low']:.3f}–{entry['high']:.3f}"
        verdict = "a tie, as it should be" if entry["verdict"] == "tie" else f"a false win ({entry['verdict']})"
        yield entry["case"], f"{interval}: {verdict}; differences below {entry['noise']:.1%} cannot be told here"


def _pools(found: Found) -> Lines:
    for pool in found["pools"]:
        about = "".join(f", {pool[key]}" for key in ("version", "kernel", "threading_layer") if pool.get(key))
        sizes = ", ".join(f"{size} → {got}" for size, got in pool["sizes"].items())
        yield pool["name"], f"{'obeys' if pool['obeys'] else 'DOES NOT OBEY'} ({sizes}){about}"


def _libraries(found: Found) -> Lines:
    for name, version in found["libraries"].items():
        if version:
            yield name, str(version)
    for entry in found["missing"]:
        yield entry["library"], f"missing, and with it: {entry['costs']} ({entry['install']})"


def _settings(found: Found) -> Lines:
    settings = found["settings"]
    yield "subnormals", "taken for zero" if settings["flushes_subnormals"] else "kept"
    for entry in settings["environment"]:
        yield entry["name"], f"{entry['value']} (changes {entry['changes']})"


def _kernels(found: Found) -> Lines:
    kernels = found["kernels"]
    if kernels is None:
        return
    width = f"vectors of {kernels['vector_bits']} bits, {kernels['registers']} registers"
    others = [name for name in kernels["targets"] if name != kernels["target"]]
    yield "target", f"{kernels['target']} ({kernels['cpu']}, {width}); also: {', '.join(others) or 'none'}"
    kept = f"{kernels['cache_entries']:,} kernels, {human_bytes(kernels['cache_bytes'])}, in {kernels['cache']}"
    trouble = kernels["cache_trouble"]
    yield "cache", f"{kept}: NOT USED, {trouble}; every process compiles for itself" if trouble else kept


def _backends(found: Found) -> Lines:
    backends = found["backends"]
    yield "usable", ", ".join(backends["usable"]) or "none"
    yield from _by_reason(backends["unusable"])


def _by_reason(unusable: Mapping[str, str]) -> Lines:
    """Yield a line for each reason, with all backends that share it."""
    names: dict[str, Sequence[str]] = {}
    for name, reason in unusable.items():
        names[reason] = [*names.get(reason, ()), name]
    for reason, sharing in names.items():
        yield "not usable", f"{', '.join(sharing)}: {reason}"


_SECTIONS = {
    "Machine": _machine,
    "GPU": _gpu,
    "Clock": _clock,
    "Libraries": _libraries,
    "Thread pools: asked → got": _pools,
    "Settings": _settings,
    "Backends": _backends,
    "Kernel generator": _kernels,
    "Limits, as measured": _limits,
    "Noise: the same backend under two names": _noise,
}
