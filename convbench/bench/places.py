"""Where a backend computes, the host or a GPU: how operands get there and results back, and by which clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

from convbench.arrays import Namespace
from convbench.backend import Backend
from convbench.bench.data import Data
from convbench.cuda.timing import Device, EventStopwatch, device_of
from convbench.stopwatch import HostStopwatch

__all__ = ["HOST", "Host", "OnDevice", "Place", "place_of"]

T = TypeVar("T")
_TRANSFERS = 3  # that are timed, after one that may have to set something up
_COMPILING_S = 120.0  # that kernels may take to be compiled, all of a file at once


@dataclass(frozen=True)
class Host:
    """Main memory: operands are used where they are.

    Attributes
    ----------
    compiling_s : float
        Seconds that a backend's first stages may take beyond what is asked of them.
    """

    compiling_s: float = 0.0

    def send(self, data: Data) -> Data:
        """Return the operands themselves."""
        return data

    def fetch(self, array: Any) -> Any:
        """Return the array itself."""
        return array

    def timed(self, action: Callable[[], T]) -> tuple[float, T]:
        """Read the clock before and after."""
        began = time.perf_counter()
        result = action()
        return time.perf_counter() - began, result

    def stopwatch(self, mode: str) -> HostStopwatch:
        """Return the same for both: cold calls differ in their operands."""
        return HostStopwatch()


@dataclass(frozen=True)
class OnDevice:
    """The memory of a GPU.

    Attributes
    ----------
    device : Device
    ns : Namespace
        Of its arrays.
    compiling_s : float
        As of :class:`Host`.
    """

    device: Device
    ns: Namespace
    compiling_s: float = _COMPILING_S

    def send(self, data: Data) -> Data:
        """Copy the operands there."""
        return Data(*(None if array is None else self.ns.from_host(array) for array in data))  # type: ignore[arg-type]

    def fetch(self, array: Any) -> Any:
        """Copy an array from there."""
        return self.ns.to_host(array) if self.ns.is_array(array) else array

    def timed(self, action: Callable[[], T]) -> tuple[float, T]:
        """Read the host's clock when nothing is under way, before and after."""
        self.device.synchronize()
        began = self.device.now()
        result = action()
        self.device.synchronize()
        return self.device.now() - began, result

    def stopwatch(self, mode: str) -> EventStopwatch:
        """Return one that flushes the cache before each cold call."""
        return EventStopwatch(self.device, cold=mode == "cold")

    def transfer_s(self, data: Data, result: Any) -> float:
        """Return how long it takes to send all operands, from memory that is not pinned, and to fetch the result."""
        self.send(data)
        times = []
        for _ in range(_TRANSFERS):
            there_s, _sent = self.timed(lambda: self.send(data))
            back_s, _fetched = self.timed(lambda: self.fetch(result))
            times.append(there_s + back_s)
        return median(times)


Place = Host | OnDevice
HOST = Host()


def place_of(backend: Backend) -> Place:
    """Return where the arrays of a backend are: those of its namespace, or NumPy's if it has none."""
    ns: Namespace | None = backend.ns() if backend.device == "cuda" and hasattr(backend, "ns") else None
    device = None if ns is None else device_of(ns)
    return HOST if ns is None or device is None else OnDevice(device, ns)
