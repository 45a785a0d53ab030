"""What the driver says of each GPU: names, clocks, limits, and why its clocks are held back."""

from __future__ import annotations

import csv
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["clocks", "describe_gpus", "gpu_at", "held_back_by", "query"]

#: Runs nvidia-smi with these arguments; returns its exit code and what it printed.
Runner = Callable[[Sequence[str]], tuple[int, str]]

_MIB = 2**20
#: Ours → the driver's name of a field, and what one unit of it is; None for a text.
_FIELDS: dict[str, tuple[str, float | None]] = {
    "name": ("name", None),
    "bus_id": ("pci.bus_id", None),
    "driver": ("driver_version", None),
    "compute_capability": ("compute_cap", None),
    "memory_bytes": ("memory.total", _MIB),
    "sm_clock_mhz": ("clocks.sm", 1),
    "sm_clock_max_mhz": ("clocks.max.sm", 1),
    "sm_clock_application_mhz": ("clocks.applications.graphics", 1),
    "memory_clock_mhz": ("clocks.mem", 1),
    "memory_clock_max_mhz": ("clocks.max.mem", 1),
    "memory_clock_application_mhz": ("clocks.applications.mem", 1),
    "power_limit_w": ("power.limit", 1),
    "power_limit_default_w": ("power.default_limit", 1),
    "temperature_c": ("temperature.gpu", 1),
    "persistence": ("persistence_mode", None),
    "mig": ("mig.mode.current", None),
    "ecc": ("ecc.mode.current", None),
    "reasons": ("clocks_event_reasons.active", None),
}
#: What a field was called by older drivers.
_FORMERLY = {"clocks_event_reasons.active": "clocks_throttle_reasons.active"}
_CLOCK_FIELDS = ("bus_id", "sm_clock_mhz", "memory_clock_mhz", "temperature_c", "reasons")
_INVALID = re.compile(r'Field "([\w.]+)" is not a valid field')
_UNKNOWN = re.compile(r"\[?(N/A|Not Supported|Unknown Error|Not Available|GPU requires reset|Insufficient.*)\]?", re.I)

#: Bits of nvmlClocksEventReasons that say that clocks are lower than they might be (NVML's reference); an idle device
#: (1) and clocks that were set by a person (2, 0x100) are no trouble.
_HELD_BACK = {
    0x04: "its power limit",
    0x08: "a slowdown in hardware",
    0x10: "a group of devices whose clocks are kept alike",
    0x20: "its temperature (software)",
    0x40: "its temperature (hardware)",
    0x80: "an external power brake",
}


def query(names: Sequence[str] = tuple(_FIELDS), run: Runner | None = None) -> list[dict[str, Any]]:
    """Return these fields of each GPU, in the driver's order; none without a driver, None for what it does not tell.

    A field that this driver does not know costs itself, not the others.

    Parameters
    ----------
    names : sequence of str
        Keys of a row of :func:`describe_gpus`.
    run : callable, optional
        Stands in for nvidia-smi.
    """
    asked = {name: _FIELDS[name][0] for name in names}
    code, text = 1, ""
    for _ in range(2 * len(names) + 1):
        if not asked:
            return []
        arguments = [f"--query-gpu={','.join(asked.values())}", "--format=csv,noheader,nounits"]
        code, text = (run or _nvidia_smi)(arguments)
        unknown = _INVALID.search(text)
        if unknown is None:
            break
        asked = _without(asked, unknown[1])
    if code:
        return []
    rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if len(row) == len(asked)]
    return [dict.fromkeys(names) | {n: _value(n, cell) for n, cell in zip(asked, row, strict=True)} for row in rows]


def _without(asked: Mapping[str, str], field: str) -> dict[str, str]:
    """Call a field by its older name, or leave it out."""
    renamed = {name: _FORMERLY.get(its, "") if its == field else its for name, its in asked.items()}
    return {name: its for name, its in renamed.items() if its}


def _value(name: str, cell: str) -> Any:
    text, unit = cell.strip(), _FIELDS[name][1]
    if not text or _UNKNOWN.fullmatch(text):
        return None
    if name == "reasons":
        return _mask(text)
    if unit is None:
        return text
    try:
        value = float(text.split()[0]) * unit
    except ValueError:
        return None
    return int(value) if value.is_integer() else value


def _mask(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None


def _nvidia_smi(arguments: Sequence[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return 1, ""
    return done.returncode, done.stdout + done.stderr * bool(done.returncode)


def held_back_by(reasons: int | None) -> list[str] | None:
    """Say what keeps clocks down; None if that is not known.

    >>> held_back_by(0x1), held_back_by(0x44), held_back_by(None)
    ([], ['its power limit', 'its temperature (hardware)'], None)
    """
    return None if reasons is None else [text for bit, text in _HELD_BACK.items() if reasons & bit]


def describe_gpus(run: Runner | None = None) -> list[dict[str, Any]]:
    """Return a row for each GPU: its name, bus_id, driver, compute_capability, memory, clocks, limits and states.

    ``held_back_by`` are reasons for which its clocks are lower than they might be just now.
    """
    return [_readable(gpu) for gpu in query(run=run)]


def clocks(bus_id: str | None = None, run: Runner | None = None) -> dict[str, Any] | None:
    """Return the clocks of one GPU as they are now, its temperature and what holds it back; None without a driver."""
    gpu = gpu_at(bus_id, query(_CLOCK_FIELDS, run))
    return None if gpu is None else _readable(gpu)


def _readable(gpu: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in gpu.items() if name != "reasons"}
    return rest | {"held_back_by": held_back_by(gpu["reasons"])}


def gpu_at(bus_id: str | None, gpus: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the row of the GPU at a place on the bus; CUDA and the driver may count in different orders.

    The only one there is without a place; None where that is not clear. The driver writes the domain with eight digits,
    CUDA with four.

    >>> gpu_at("0000:1A:00.0", [{"bus_id": "00000000:1a:00.0", "name": "a"}])["name"]
    'a'
    """
    if bus_id is None:
        return gpus[0] if len(gpus) == 1 else None
    place = bus_id.lower()[-12:]
    return next((gpu for gpu in gpus if str(gpu["bus_id"]).lower()[-12:] == place), None)
