"""The clock: samples of one call, and how a budget is shared among those who wait for it."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

__all__ = [
    "MIN_SAMPLE_S",
    "Measurement",
    "fair_share",
    "garbage_collector_off",
    "heap_set_aside",
    "measure",
    "relative_spread",
]

MIN_SAMPLE_S = 0.01  # a sample shorter than this is a batch of calls
SETTLED = 0.05  # warm-up ends when two samples in a row differ by less
WARM_UP_SHARE = 0.25  # of the budget, at most
SPREAD = 0.01  # samples that agree this well need no more of them

Clock = Callable[[], float]


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
        All of it, warm-up included.
    result : object
        What the last timed call returned.
    """

    samples_s: list[float] = field(default_factory=list)
    batch: int = 1
    stop_reason: str = ""
    elapsed_s: float = 0.0
    result: Any = None


@contextmanager
def heap_set_aside() -> Iterator[None]:
    """Spare the collector what exists already: a collection before each visit then costs next to nothing."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


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
    enough: int,
    most: int,
    cold: bool = False,
    clock: Clock = time.perf_counter,
) -> Measurement:
    """Warm up, then take samples until they agree, or agree no better, or the budget ends.

    Parameters
    ----------
    call : callable
    budget_s : float
        Seconds for all of it. One sample is taken even if that takes longer.
    enough, most : int
        Agreement is judged from ``enough`` samples on; ``most`` are taken at most.
    cold : bool
        No warm-up, and no batches: for calls so long that what warms up is a small part of them.
    """
    began = clock()
    batch = 1 if cold else _warm_up(call, began + budget_s * WARM_UP_SHARE, clock)
    taken = Measurement(batch=batch)
    while not taken.stop_reason:
        taken.result = None
        taken.result, seconds = _batch(call, batch, clock)
        taken.samples_s.append(seconds / batch)
        taken.elapsed_s = clock() - began
        taken.stop_reason = _stop_reason(taken, enough, most, budget_s - seconds)
    return taken


def _batch(call: Callable[[], Any], batch: int, clock: Clock) -> tuple[Any, float]:
    result = None
    began = clock()
    for _ in repeat(None, batch):
        result = None  # let go of the last result first: every call then finds the same memory free
        result = call()
    return result, clock() - began


def _warm_up(call: Callable[[], Any], until: float, clock: Clock) -> int:
    """Return the batch size; call once, grow the batch until it is long enough, then wait until samples settle."""
    batch, previous = 1, _batch(call, 1, clock)[1]
    while clock() + batch * previous < until:
        short = MIN_SAMPLE_S / max(previous, 1e-9)
        batch = max(batch, min(math.ceil(short), 10 * batch))
        now = _batch(call, batch, clock)[1] / batch
        if batch * now >= MIN_SAMPLE_S and abs(now - previous) <= SETTLED * previous:
            break
        previous = now
    return batch


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
