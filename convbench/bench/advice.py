"""What would make measurements on a machine better: one line each, from what the doctor found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from convbench.refusals import human_bytes

__all__ = ["advise"]

Found = Mapping[str, Any]

_OTHERS = 0.1  # cores that others keep busy


def advise(found: Found) -> list[str]:
    """Return one line for each thing that makes measurements on this machine worse than they need be.

    Parameters
    ----------
    found : mapping
        The other sections, as :func:`convbench.bench.doctor.examine` has them.
    """
    return [line for rule in _RULES for line in rule(found)]


def _on_neighbours(found: Found) -> Iterator[str]:
    meanwhile = found["clock"]["meanwhile"] or {}
    others, steal = meanwhile.get("others_cores", 0.0), meanwhile.get("steal_share", 0.0)
    if others >= _OTHERS:
        yield f"other processes keep {others:.1f} cores busy: stop them, or measure with fewer threads (--threads)"
    if steal > 0.01:
        yield (
            f"the hypervisor takes {steal:.0%} of this machine's time for others: measure when it is quieter, or use "
            "more passes"
        )


def _on_cores(found: Found) -> Iterator[str]:
    machine, threads = found["machine"], found["threads"]
    usable, quota, physical = (machine[name] for name in ("usable_cores", "quota_cores", "usable_physical_cores"))
    if quota is not None and quota < threads:
        fits = max(1, int(quota))
        yield (
            f"the control group allows {quota:g} cores' time, less than {threads} threads: they will be stopped in "
            f"mid-call; use --threads {fits}"
        )
    if threads > usable:
        yield f"{threads} threads share {usable} usable cores: use --threads {usable}"
    if physical is not None and physical < threads <= usable:
        yield (
            f"{threads} threads share {physical} physical cores as hyperthreads: --threads {physical}, with "
            "OMP_PLACES=cores or taskset, gives steadier times"
        )


def _on_clock(found: Found) -> Iterator[str]:
    clock = found["clock"]
    stability = clock["stability"]
    if clock["governor"] in ("powersave", "conservative", "ondemand", "schedutil"):
        yield (
            f"the frequency governor is {clock['governor']}: 'cpupower frequency-set -g performance' keeps the "
            "clock up between samples"
        )
    if clock["turbo"]:
        yield (
            "turbo is on, so the clock depends on heat and on what other cores do: for steadier (slower) times turn "
            "it off"
        )
    if stability["spread"] > 0.05 or stability["disturbed_share"] > 0.1:
        yield (
            f"the same arithmetic spreads by {stability['spread']:.0%}, and {stability['disturbed_share']:.0%} of "
            "its samples are disturbed: take more passes, and expect wide ties"
        )
    if abs(stability["drift"]) > 0.05:
        yield f"the clock drifted by {stability['drift']:+.0%} within a second or so: let the machine settle first"


def _on_pools(found: Found) -> Iterator[str]:
    for pool in found["pools"]:
        if not pool["obeys"]:
            told = ", ".join(f"{got} where {size} were asked for" for size, got in pool["sizes"].items())
            yield f"the thread pool of {pool['name']} does not obey ({told}): do not compare its backends with others"
    used, threads = max(found["limits"]["gemm_cores_used"].values()), found["threads"]
    others = (found["clock"]["meanwhile"] or {}).get("others_cores", 0.0)
    if threads > 1 and used < 0.75 * threads and others < _OTHERS:  # else it is the others
        yield f"BLAS kept {used:.1f} cores busy where {threads} threads were asked for: is it a build for one thread?"


def _on_memory(found: Found) -> Iterator[str]:
    machine = found["machine"]
    whole = [machine[name] for name in ("memory_available_bytes", "memory_limit_bytes") if machine[name] is not None]
    if whole and min(whole) < 4 * 2**30:
        yield (
            f"{human_bytes(min(whole))} of memory can be had: lower --memory-limit to half of that, or large cases "
            "will run out of it"
        )
    if machine["swap_used_bytes"]:
        yield (
            f"{human_bytes(machine['swap_used_bytes'])} of swap are in use: what comes back from there in mid-sample "
            "costs milliseconds"
        )


def _on_settings(found: Found) -> Iterator[str]:
    settings = found["settings"]
    if settings["flushes_subnormals"]:
        yield (
            "subnormal numbers are taken for zero in this process, perhaps by a library built with -ffast-math: "
            "results with them are faster and less accurate than elsewhere"
        )
    names = [entry["name"] for entry in settings["environment"] if entry["changes"] in _UNWANTED]
    if names:
        verb = "is set and makes" if len(names) == 1 else "are set and make"
        yield f"{', '.join(names)} {verb} results unlike those elsewhere: unset what is not meant"


_UNWANTED = ("the instructions that are used", "precision or subnormal numbers")


def _on_missing(found: Found) -> Iterator[str]:
    for entry in found["missing"]:
        yield f"{entry['install']} to know: {entry['costs']}"


def _on_gpus(found: Found) -> Iterator[str]:
    gpus, problem = found.get("gpus") or [], found.get("gpu_problem")
    if gpus and problem:
        yield f"there is a GPU, and its backends cannot run: {problem}"
    for gpu in gpus:
        if str(gpu.get("persistence")).lower() == "disabled":
            yield f"persistence mode of {gpu['name']} is off, so that its driver starts anew: 'nvidia-smi -pm 1'"
        if gpu.get("held_back_by"):
            yield f"the clocks of {gpu['name']} are held back by {', '.join(gpu['held_back_by'])}: let it cool, or wait"
        if str(gpu.get("mig")).lower() == "enabled":
            yield f"{gpu['name']} is divided (MIG): neighbours share its memory's bandwidth and its power"


def _on_limits(found: Found) -> Iterator[str]:
    limits = found["limits"]
    rates = [limits["gemm_median_flop_per_s"][dtype] / best for dtype, best in limits["gemm_flop_per_s"].items()]
    if min(rates) < 0.7:
        yield (
            f"a matrix product usually ran at {min(rates):.0%} of its best rate: the machine is disturbed, and the "
            "limits may be too low"
        )


def _on_noise(found: Found) -> Iterator[str]:
    reaches = [entry["noise"] for entry in found["noise"] if entry["noise"] is not None]
    if reaches and max(reaches) > 0.05:
        yield (
            f"two equal backends look up to {max(reaches):.0%} apart here: smaller differences will be ties; more "
            "passes (--passes 12, a larger --budget) narrow that"
        )


_RULES: tuple[Callable[[Found], Iterator[str]], ...] = (
    _on_neighbours, _on_cores, _on_clock, _on_pools, _on_memory, _on_settings, _on_limits, _on_noise, _on_gpus,
    _on_missing,
)  # fmt: skip
