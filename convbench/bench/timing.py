"""The clock: samples of one call, and how a budget is shared among those who wait for it."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from convbench.stopwatch import HostStopwatch, Lap, Stopwatch

__all__ = [
    "INSPECTED",
    "MIN_SAMPLE_S",
    "Measurement",
    "fair_share",
    "garbage_collector_off",
    "heap_set_aside",
    "measure",
    "relative_spread",
    "tidy_heap",
]

MIN_SAMPLE_S = 0.01  # a sample shorter than this is a batch of calls
INSPECTED = 8  # first calls whose results are looked at one by one
SETTLED = 0.05  # warm-up ends when two samples in a row differ by less
WARM_UP_SHARE = 0.25  # of the budget, at most
SPREAD = 0.01  # samples that agree this well need no more of them

_LONG_COLLECTION_S = 0.005


@dataclass
class Measurement:
    """Samples of one visit.

    Attributes
    ----------
    samples_s : list of float
        Seconds a call, one entry for each batch.
    batch : int
        Calls a sample.
    stop_reason : str
        "spread", "plateau", "count", "budget".
    elapsed_s : float
        All of it: warm-up, samples and inspections.
    called_s : float
        Warm-up and samples alone.
    cores_used : float
        CPU time of the process over wall time, in the samples.
    """

    samples_s: list[float] = field(default_factory=list)
    batch: int = 1
    stop_reason: str = ""
    elapsed_s: float = 0.0
    called_s: float = 0.0
    cores_used: float = math.nan


@contextmanager
def heap_set_aside() -> Iterator[None]:
    """Spare the collector what exists already: a collection before each visit then costs next to nothing."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def tidy_heap() -> None:
    """Collect; and if that takes long, spare the collector what has come since: libraries load parts when first used.

    To be called while nothing is alive that is to be collected later.
    """
    began = time.perf_counter()
    gc.collect()
    if time.perf_counter() - began > _LONG_COLLECTION_S:
        gc.freeze()


@contextmanager
def garbage_collector_off() -> Iterator[None]:
    """Collect, then keep the collector from running within the block."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def measure(
    call: Callable[[], Any],
    budget_s: float,
    *,
    least: int = 1,
    enough: int,
    most: int,
    warm_up: bool = True,
    inspect: Callable[[Any], None] = lambda result: None,
    stopwatch: Stopwatch = HostStopwatch(),  # noqa: B008  # it has no state
) -> Measurement:
    """Warm up, then take samples until they agree, or agree no better, or the budget ends.

    The first calls find how many make a sample of :data:`MIN_SAMPLE_S`; the warm-up ends when two such batches agree.

    Parameters
    ----------
    call : callable
    budget_s : float
        Seconds for all of it but the first calls, which may have to import something. ``least`` samples are taken even
        if that takes longer.
    least : int
    enough, most : int
        Agreement is judged from ``enough`` samples on; ``most`` are taken at most.
    warm_up : bool
        False: none, and no batches, for calls so long that what warms up is a small part of them.
    inspect : callable
        Is handed results while the clock stands still: those of the first :data:`INSPECTED` calls, the last one of each
        sample, and one between two batches. What it raises ends the measurement.
    stopwatch : Stopwatch
        Of the device on which the calls do their work; the budget is time on the wall in any case.
    """
    taken = _Measuring(call, inspect, stopwatch)
    if warm_up:
        taken.find_batch()
    began = stopwatch.now()
    if warm_up:
        taken.settle(began + budget_s * WARM_UP_SHARE)
    while not taken.stop_reason:
        taken.sample()
        taken.elapsed_s = stopwatch.now() - began
        if len(taken.samples_s) >= least:
            last_start_s = budget_s - taken.sample_wall_s
            taken.stop_reason = _stop_reason(taken, max(enough, least), most, last_start_s)
    taken.cores_used = taken.cpu_s / sampled_s if (sampled_s := sum(taken.samples_s) * taken.batch) else math.nan
    return Measurement(**{f.name: getattr(taken, f.name) for f in fields(Measurement)})


class _Measuring(Measurement):
    """A measurement under way."""

    def __init__(self, call: Callable[[], Any], inspect: Callable[[Any], None], stopwatch: Stopwatch) -> None:
        super().__init__()
        self._call, self._inspect, self._stopwatch = call, inspect, stopwatch
        self.cpu_s = self.sample_wall_s = self._batch_s = self._batch_wall_s = 0.0

    def _time(self, batch: int) -> Lap:
        """Make a batch of calls, and have its last result looked at."""
        lap = self._stopwatch.lap(self._call, batch)
        self.called_s += lap.wall_s
        self._inspect(lap.result)
        return lap._replace(result=None)

    def sample(self) -> None:
        """Take one."""
        if self.batch > 1:
            self._time(1)  # off the clock: so the calls that are looked at do not keep step with the batches
        lap = self._time(self.batch)
        self.cpu_s += lap.cpu_s
        self.sample_wall_s = lap.wall_s
        self.samples_s.append(lap.seconds / self.batch)

    def find_batch(self) -> None:
        """Make the first calls, one by one if they are short, and find how many of them make a sample.

        The very first does not tell: it may have to import, compile or set something up.
        """
        self._time(1)
        lap = self._time(1)
        if lap.wall_s < MIN_SAMPLE_S:
            lap = min(lap, *(self._time(1) for _ in range(INSPECTED - 2)), key=lambda lap: lap.wall_s)
            self.batch = math.ceil(MIN_SAMPLE_S / max(lap.wall_s, 1e-9))
        self._batch_s, self._batch_wall_s = self.batch * lap.seconds, self.batch * lap.wall_s

    def settle(self, until: float) -> None:
        """Go on until two batches in a row agree."""
        while self._stopwatch.now() + self._batch_wall_s < until:
            previous, lap = self._batch_s, self._time(self.batch)
            self._batch_s, self._batch_wall_s = lap.seconds, lap.wall_s
            if abs(lap.seconds - previous) <= SETTLED * previous:
                break


def _stop_reason(taken: Measurement, enough: int, most: int, last_start_s: float) -> str:
    samples = taken.samples_s
    if len(samples) >= enough:
        spread = relative_spread(samples)
        if spread <= SPREAD:
            return "spread"
        half = len(samples) // 2
        if half >= enough and spread >= 0.9 * relative_spread(samples[:half]):
            return "plateau"
    if len(samples) >= most:
        return "count"
    return "budget" if taken.elapsed_s > last_start_s else ""


def relative_spread(samples: Sequence[float]) -> float:
    """Interquartile range over median; 0 for a single sample.

    >>> relative_spread([1.0, 2.0, 3.0, 4.0, 5.0])
    0.6666666666666666
    """
    ordered = sorted(samples)
    low, middle, high = (_quantile(ordered, q) for q in (0.25, 0.5, 0.75))
    return (high - low) / middle if middle else 0.0


def _quantile(ordered: Sequence[float], q: float) -> float:
    position = q * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def fair_share(budget_s: float, least: Sequence[float], most: Sequence[float]) -> float:
    """Return the level L at which Σ clamp(L, least, most) spends the budget: quick pairs leave theirs to slow ones.

    Infinite if everybody's ``most`` fits, 0 if not even everybody's ``least`` does.

    >>> fair_share(10.0, least=[0, 0, 4], most=[1, 9, 9])
    4.5
    """
    most = [max(low, high) for low, high in zip(least, most, strict=True)]
    if sum(most) <= budget_s:
        return math.inf
    spare = budget_s - sum(least)
    if spare <= 0:
        return 0.0
    # The sum is piecewise linear in L with slope = number of pairs between their bounds.
    slope, level = 0, 0.0
    for bound, step in sorted([(low, 1) for low in least] + [(high, -1) for high in most]):
        if slope and spare <= slope * (bound - level):
            return level + spare / slope
        spare -= slope * (bound - level)
        level, slope = bound, slope + step
    return level
