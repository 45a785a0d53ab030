"""What times calls: on the host here, on a GPU in :mod:`convbench.cuda.timing`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import repeat
from typing import Any, NamedTuple, Protocol

__all__ = ["Clock", "HostStopwatch", "Lap", "Stopwatch"]

#: Returns seconds, from any beginning.
Clock = Callable[[], float]


class Lap(NamedTuple):
    """One batch of calls.

    Attributes
    ----------
    seconds : float
        Of the calls: what is measured.
    wall_s : float
        What taking that time took, which is what budgets pay.
    cpu_s : float
        Of the process, during the calls; NaN where it does not say how many threads worked.
    result : object
        Of the last call.
    """

    seconds: float
    wall_s: float
    cpu_s: float
    result: Any


class Stopwatch(Protocol):
    """What times a batch of calls, and tells how late it is.

    Attributes
    ----------
    launch_s : float
        What a call takes the host, where another device does its work; the least that was seen. NaN where none does.
    caveat : str or None
        What makes its times less comparable.
    """

    @property
    def launch_s(self) -> float: ...  # noqa: D102  # above
    @property
    def caveat(self) -> str | None: ...  # noqa: D102

    def now(self) -> float:
        """Return seconds on the wall, from any beginning."""
        ...

    def lap(self, call: Callable[[], Any], batch: int) -> Lap:
        """Make so many calls and time them."""
        ...


class HostStopwatch:
    """Times calls that have done their work when they return."""

    launch_s = math.nan
    caveat = None

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.now = clock

    def lap(self, call: Callable[[], Any], batch: int) -> Lap:
        """Make so many calls between two readings of the clock."""
        clock, result = self.now, None
        cpu_began, began = time.process_time(), clock()
        for _ in repeat(None, batch):
            result = None  # let go of the last result first: every call then finds the same memory free
            result = call()
        seconds, cpu_s = clock() - began, time.process_time() - cpu_began
        return Lap(seconds, seconds, cpu_s, result)
