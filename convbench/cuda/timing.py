"""The stopwatch of the GPU: CUDA events around calls, with nothing of the host in what they measure.

A launch only puts work into a queue, so that a clock on the host would time launches. An event stands in the queue
itself, and the device notes the time when it comes to it. That alone is not enough where calls are short: the device
reaches the first event while the host is still on its way to launch the first kernel, and then the way counts. So a
kernel that does nothing is launched first and holds the queue until the calls stand in it (:meth:`Device.hold`);
whether it did is asked afterwards, and if not the calls are made again behind a longer hold.

An event's resolution is about half a microsecond (CUDA Runtime API, cudaEventElapsedTime): several short calls stand
between one pair of events. The time between two events is a float32 number of milliseconds, which is precise for events
that are close: each window has a pair of its own, and no event serves as the zero of a long measurement.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import repeat
from typing import Any, Protocol

from convbench.backend import Backend
from convbench.cuda.kernel import Kernel
from convbench.stopwatch import Lap

__all__ = ["KERNELS", "CupyDevice", "Device", "DeviceMemory", "EventStopwatch", "device_of"]

WINDOW_S = 2e-4  # between two events, at least: 400 times their resolution
MOST_CALLS = 64  # between two events: the queue is finite, and a call may be many launches
CACHE_TIMES = 2  # what is written to flush the cache, over its size
_HOLD_TIMES = 2  # the host's time for the calls, that a hold lasts
_HOLD_LEAST_S = 5e-5
_HOLD_MOST_S = 1e-2  # calls that need more are not short
_TRIES = 3  # at queueing a window's calls before the device reaches them
_LONG_S = 1e-2  # a window in which the gap of a launch does not show, or in which something was compiled
_EXPOSED_WINDOWS = 3  # in a row: then its calls wait for the device themselves, and holding is of no use
_TRIED_AGAIN = 16  # of so many windows one is held all the same: the first calls may have been special
_EXPOSED_FIRST, _EXPOSED_SHARE = 2, 0.1  # windows that need no word: the first ones, and so many of all

HOLD = Kernel("hold.cu", "hold", (1, 1, 1))
KERNELS = (HOLD,)


@dataclass
class DeviceMemory:
    """Bytes of a device that arrays and scratch have taken since counting began, and the most since ``peak`` was set.

    Negative where what was there before has been given back.
    """

    now: int = 0
    peak: int = 0

    def add(self, count: int) -> None:
        """Take, or with a negative count give back."""
        self.now += count
        self.peak = max(self.peak, self.now)


class Device(Protocol):
    """What timing needs of a GPU. What is queued goes to the current stream; :meth:`synchronize` alone waits for it."""

    def now(self) -> float:
        """Return seconds of the host's clock."""
        ...

    def event(self) -> Any:
        """Return a new event."""
        ...

    def record(self, event: Any) -> None:
        """Put an event into the queue."""
        ...

    def done(self, event: Any) -> bool:
        """Tell whether the device has come to the event."""
        ...

    def elapsed_s(self, start: Any, stop: Any) -> float:
        """Return the time between two events that are done."""
        ...

    def hold(self, seconds: float) -> None:
        """Keep the queue waiting."""
        ...

    def flush(self) -> None:
        """Write to more memory than the cache holds."""
        ...

    def synchronize(self) -> None:
        """Wait until all is done."""
        ...

    def memory(self) -> AbstractContextManager[DeviceMemory]:
        """Count memory within the block."""
        ...

    def free_bytes(self) -> int:
        """Return how much memory is there to be had."""
        ...

    def release(self) -> None:
        """Give back the memory that pools keep for arrays to come."""
        ...

    def clocks(self) -> dict[str, Any] | None:
        """Return the clocks as they are now; see :func:`convbench.cuda.nvidia_smi.clocks`."""
        ...


def device_of(backend: Backend) -> Device | None:
    """Return the device that the arrays of a backend are on; None for the host.

    They are those of its namespace if it says that it computes on a GPU. A namespace may name its own device in a
    method ``device()``, as those of tests do.
    """
    if backend.device != "cuda" or not hasattr(backend, "ns"):
        return None
    ns = backend.ns()
    own: Callable[[], Device] | None = getattr(ns, "device", None)
    if own is not None:
        return own()
    return _cupy_device() if ns.name == "cupy" else None


class EventStopwatch:
    """Times work on a device, whatever it takes the host to launch it.

    Parameters
    ----------
    device : Device
    cold : bool
        The cache is flushed before each call, outside what is measured.

    Attributes
    ----------
    launch_s : float
        What a call takes the host: the least that was seen.
    exposed, windows, exposed_in_a_row : int
        In how many windows, of all, calls could not be queued before the device came to them; of the last ones.
    """

    def __init__(self, device: Device, *, cold: bool = False) -> None:
        self.now = device.now
        self.launch_s = math.inf
        self.exposed = self.windows = self.exposed_in_a_row = 0
        self._device, self._cold = device, cold
        self._call_s = math.inf  # of the device, in the last window

    def lap(self, call: Callable[[], Any], batch: int) -> Lap:
        """Make so many calls, a few at a time between two events each."""
        began, seconds, left, result = self.now(), 0.0, batch, None
        while left:
            result = None  # let go of the last result first: every call then finds the same memory free
            calls = min(left, self._calls_between_events())
            taken_s, result = self._window(call, calls)
            self._call_s = taken_s / calls
            seconds, left = seconds + taken_s, left - calls
        return Lap(seconds, self.now() - began, math.nan, result)

    @property
    def caveat(self) -> str | None:
        """Say so if times hold gaps between launches: more often than where somebody else disturbed the host."""
        if self.exposed <= max(_EXPOSED_FIRST, _EXPOSED_SHARE * self.windows):
            return None
        return (
            "launches: times hold gaps in which the GPU waited for the host: its calls wait for the GPU themselves, or "
            "take the host longer than the GPU"
        )

    def _calls_between_events(self) -> int:
        """One if each finds the cache flushed; one at first, when nothing is known yet."""
        if self._cold or not math.isfinite(self._call_s):
            return 1
        return min(MOST_CALLS, max(1, math.ceil(WINDOW_S / max(self._call_s, 1e-9))))

    def _window(self, call: Callable[[], Any], calls: int) -> tuple[float, Any]:
        """Time calls between two events, again behind a longer hold if the device did not wait for them."""
        self.windows += 1
        longer = 1
        for _ in range(_TRIES):
            result = None
            hold_s = min(_HOLD_MOST_S, longer * max(_HOLD_LEAST_S, _HOLD_TIMES * calls * self._known_launch_s()))
            if self.exposed_in_a_row >= _EXPOSED_WINDOWS and self.windows % _TRIED_AGAIN:
                hold_s = 0.0
            seconds, result, hidden = self._once(call, calls, hold_s)
            if hidden:
                self.exposed_in_a_row = 0
                return seconds, result
            if not hold_s or hold_s == _HOLD_MOST_S or seconds > _LONG_S:
                break
            longer *= 4
        self.exposed += 1
        self.exposed_in_a_row += seconds <= _LONG_S
        return seconds, result

    def _known_launch_s(self) -> float:
        return self.launch_s if math.isfinite(self.launch_s) else 0.0

    def _once(self, call: Callable[[], Any], calls: int, hold_s: float) -> tuple[float, Any, bool]:
        """Return the seconds between the events, the last result, and whether all was queued before the first one."""
        device, result = self._device, None
        start, stop = device.event(), device.event()
        if hold_s:
            device.hold(hold_s)
        if self._cold:
            device.flush()
        device.record(start)
        began = self.now()
        for _ in repeat(None, calls):
            result = None
            result = call()
        self.launch_s = min(self.launch_s, (self.now() - began) / calls)
        device.record(stop)
        hidden = not device.done(start)
        device.synchronize()
        return device.elapsed_s(start, stop), result, hidden


# -- CuPy -----------------------------------------------------------------------------------------------------


@cache
def _cupy_device() -> CupyDevice:
    return CupyDevice()


class CupyDevice:
    """CuPy's current device and stream; the libraries of rivals use the same stream, the default one, unless told."""

    def __init__(self) -> None:
        import cupy

        self._cuda: Any = cupy.cuda
        self._device = cupy.cuda.Device()

    def now(self) -> float:
        """Read the host's clock."""
        return time.perf_counter()

    def event(self) -> Any:
        """Return a new event, which notes the time."""
        return self._cuda.Event()

    def record(self, event: Any) -> None:
        """Put it into the current stream."""
        event.record(self._cuda.get_current_stream())

    def done(self, event: Any) -> bool:
        """Ask without waiting."""
        return bool(event.done)

    def elapsed_s(self, start: Any, stop: Any) -> float:
        """Return what CUDA tells in milliseconds."""
        return float(self._cuda.get_elapsed_time(start, stop)) / 1e3

    def hold(self, seconds: float) -> None:
        """Launch a thread that watches the clock."""
        import numpy as np

        self._launch_hold((1, 1, 1), (np.uint64(seconds * 1e9),))

    @cached_property
    def _launch_hold(self) -> Any:
        from convbench.cuda.launch import cupy_kernels

        return cupy_kernels(HOLD)

    def flush(self) -> None:
        """Fill an array of twice the size of the L2, which displaces everything else."""
        self._filler.fill(0)

    @cached_property
    def _filler(self) -> Any:
        import cupy

        return cupy.empty(CACHE_TIMES * int(self._device.attributes["L2CacheSize"]), dtype=cupy.uint8)

    def synchronize(self) -> None:
        """Wait for all streams of the device."""
        self._device.synchronize()

    @contextmanager
    def memory(self) -> Iterator[DeviceMemory]:
        """Count what CuPy's memory pool hands out to this thread and gets back, in its units of 512 bytes.

        That is every array, cuFFT's work area and whatever else CuPy allocates; not what libraries take for themselves
        (cuBLAS's workspace, PyTorch's own pool).
        """
        used = DeviceMemory()

        class Counting(self._cuda.MemoryHook):  # type: ignore[misc, name-defined]
            name = "convbench"

            def malloc_postprocess(self, **about: Any) -> None:
                if about["mem_ptr"]:
                    used.add(about["mem_size"])

            def free_postprocess(self, **about: Any) -> None:
                used.add(-about["mem_size"])

        with Counting():
            yield used

    def free_bytes(self) -> int:
        """Return what CUDA can hand out, and what CuPy's pool keeps for arrays to come."""
        import cupy

        return int(self._device.mem_info[0]) + int(cupy.get_default_memory_pool().free_bytes())

    def release(self) -> None:
        """Empty CuPy's pool, and PyTorch's if it is in use: neither can take what the other keeps."""
        import cupy

        cupy.get_default_memory_pool().free_all_blocks()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()

    def clocks(self) -> dict[str, Any] | None:
        """Ask the driver, which takes a tenth of a second."""
        from convbench.cuda.nvidia_smi import clocks

        return clocks(str(self._device.pci_bus_id))
