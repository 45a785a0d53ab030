"""Where a backend computes, the host or a GPU: how operands get there and results back, and by which clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

from convbench.arrays import Namespace
from convbench.backend import Backend
from convbench.bench.data import Data
from convbench.cuda.timing import Device, EventStopwatch, device_of
from convbench.refusals import human_bytes, refuse
from convbench.stopwatch import HostStopwatch

__all__ = ["HOST", "Host", "OnDevice", "Place", "place_of"]

T = TypeVar("T")
_TRANSFERS = 3  # that are timed, after one that may have to set something up
_COMPILING_S = 120.0  # that kernels may take to be compiled, all of a file at once
_AHEAD_S = 0.1  # of work that stands in the queue while the driver is asked for the clocks
_NAP_S = 1e-3


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

    def lacks(self, needed_bytes: int) -> str | None:
        """Refuse nothing: what others may take of main memory meanwhile is not known."""
        return None


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

    def lacks(self, needed_bytes: int) -> str | None:
        """Refuse if more memory is needed than the device has free."""
        free_bytes = self.device.free_bytes()
        if needed_bytes <= free_bytes:
            return None
        return refuse("memory", f"{human_bytes(needed_bytes)} needed, the GPU has {human_bytes(free_bytes)} free")

    def sending_s(self, *arrays: Any) -> float:
        """Return how long it takes to send arrays, from memory that is not pinned; None among them is none."""
        return self._transfer_s(lambda: [self.ns.from_host(array) for array in arrays if array is not None])

    def fetching_s(self, array: Any) -> float:
        """Return how long it takes to fetch an array."""
        return self._transfer_s(lambda: self.fetch(array))

    def _transfer_s(self, move: Callable[[], Any]) -> float:
        move()
        return median(self.timed(move)[0] for _ in range(_TRANSFERS))

    def clocks(self, call: Callable[[], Any], call_s: float) -> dict[str, Any]:
        """Return the device's clocks while calls are under way: those of an idle one say nothing of the samples.

        The driver takes longer to answer than the queue is deep where calls are short, so that another thread asks and
        this one goes on calling; where they are long, no more are queued than :data:`_AHEAD_S` takes.
        """
        began, queued_s, answer = self.device.now(), 0.0, None
        with ThreadPoolExecutor(1) as asking:
            while answer is None or not answer.done():
                spent_s = self.device.now() - began
                if answer is None and max(queued_s, spent_s) >= _AHEAD_S:
                    answer = asking.submit(self.device.clocks)
                elif queued_s < spent_s + _AHEAD_S:
                    call()
                    queued_s += call_s
                else:
                    time.sleep(_NAP_S)
        self.device.synchronize()
        return answer.result() or {}


Place = Host | OnDevice
HOST = Host()


def place_of(backend: Backend) -> Place:
    """Return where the arrays of a backend are: those of its namespace, or NumPy's if it has none."""
    device = device_of(backend)
    return HOST if device is None else OnDevice(device, backend.ns())  # type: ignore[attr-defined]
