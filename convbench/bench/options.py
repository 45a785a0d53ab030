"""How a run is to be made."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from convbench.errors import SpecError
from convbench.threads import resolve

__all__ = ["Options"]

MODES = ("hot", "cold")


@dataclass(frozen=True)
class Options:
    """How to run.

    Attributes
    ----------
    threads : int or None
        Of every pool; None: every core in the affinity mask.
    passes : int
        Each in a fresh process, through all pairs, in a random order of its own. Comparisons rest on what differs
        between passes: six or more make narrow intervals. What is ten times slower than the quickest of its case is
        visited in three of them.
    time_limit_s : float
        For one pair, its verifying call and the samples of all passes together. A pair is skipped if planning,
        preparing and calling it four times should take longer; a stage that lasts more than twice as long is stopped.
    memory_limit_bytes : int
        For one pair: operands, result and workspace. A process that grows by more is stopped.
    budget_s : float or None
        For the whole run. It wins over the number of samples: what is left is shared among the visits still to come.
    seed : int
        Of the orders.
    timed : bool
        False: every pair is verified by one call, its error recorded, and nothing is timed; there are no passes.
    mode : str
        "hot": every call has the same operands. "cold": calls take turns among so many sets of operands that each
        finds its own outside the last-level cache; on a GPU the L2 cache is overwritten before each call.
    twins : int
        Of each case, so many of the quickest backends are visited twice in each pass, as if they were two: how
        often the two are told apart is how often this machine would name a false winner.
    isolate : bool
        False: everything in this process, for debuggers and for backends that cannot be sent to another one. Then a
        crash ends the run, nothing is stopped, and passes are less independent.
    """

    threads: int | None = None
    passes: int = 6
    time_limit_s: float = 10.0
    memory_limit_bytes: int = 2 * 2**30
    budget_s: float | None = 120.0
    seed: int = 0
    timed: bool = True
    mode: str = "hot"
    twins: int = 1
    isolate: bool = os.name == "posix"

    def __post_init__(self) -> None:
        resolve(self.threads)
        _whole("passes", self.passes, 1)
        _whole("memory_limit_bytes", self.memory_limit_bytes, 1)
        _whole("seed", self.seed, 0)
        _whole("twins", self.twins, 0)
        _positive("time_limit_s", self.time_limit_s)
        if self.budget_s is not None:
            _positive("budget_s", self.budget_s)
        for name in ("timed", "isolate"):
            if not isinstance(getattr(self, name), bool):
                raise SpecError(name, getattr(self, name), "must be True or False")
        if self.isolate and os.name != "posix":
            raise SpecError("isolate", self.isolate, "needs a POSIX system; use isolate=False")
        if self.mode not in MODES:
            raise SpecError("mode", self.mode, f"must be one of {', '.join(MODES)}")

    @property
    def passes_made(self) -> int:
        """Passes that the run will make: none if nothing is timed."""
        return self.passes if self.timed else 0


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SpecError(name, value, f"must be an integer ≥ {least}")


def _positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise SpecError(name, value, "must be a finite number of seconds > 0")
