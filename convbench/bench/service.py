"""What a worker does for a run, one request at a time: in a process of its own, or in the run's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from convbench.backend import Backend
from convbench.bench.cases import Case
from convbench.bench.environment import describe, thread_pools
from convbench.bench.families import only_family
from convbench.bench.limits import last_level_bytes, measure_gpu_limits, measure_limits
from convbench.bench.places import HOST, OnDevice, Place, place_of
from convbench.bench.predict import Known
from convbench.bench.record import Record
from convbench.bench.state import State
from convbench.bench.timing import heap_set_aside, tidy_heap
from convbench.bench.worker import Effort, Evidence, Limits, Watch, sample, verify
from convbench.errors import MissingDependency, one_line
from convbench.registry import what_is_missing
from convbench.threads import pool_sizes

__all__ = ["DeviceFault", "Service", "Setup"]

_LEAVING_S = 60.0  # that work may take which is still queued
IMPORT_S = 120.0  # that importing a backend's libraries may take, on a cold disk
_USUAL_CACHE_BYTES = 2**25  # of the last level, where the system does not say
HELD_DATA_BYTES = 2**30  # of operands kept between visits


class DeviceFault(Exception):
    """A GPU does nothing more for this process: after an illegal access, say, all that CUDA is asked for fails."""


@dataclass(frozen=True)
class Setup:
    """What a worker has to know before it begins.

    Attributes
    ----------
    run_id : str
    cases : tuple of Case
    backends : tuple of str or Backend
        Names of registered ones; others as they are.
    threads : int
    mode : str
        "hot" or "cold".
    """

    run_id: str
    cases: tuple[Case, ...]
    backends: tuple[str | Backend, ...]
    threads: int
    mode: str = "hot"


class Service:
    """Holds data, backends and thread pools; cases and backends are named by their positions in the setup.

    Parameters
    ----------
    setup : Setup
    watch : callable
        See :data:`convbench.bench.worker.Watch`.
    """

    def __init__(self, setup: Setup, watch: Watch) -> None:
        self._setup, self._watch = setup, watch
        self._family = only_family(str(case) for case in setup.cases)
        self._backends: dict[int, Backend] = {}
        self._data = _HeldData(setup.cases)
        self._held, self._pools, self._state = ExitStack(), ExitStack(), State()
        self._problems: list[str] = []

    def load(self, backend: int) -> str | None:
        """Import a backend with its libraries; return what is missing, if anything is."""
        self._watch("importing it", IMPORT_S)
        given = self._setup.backends[backend]
        loaded = self._family.get_backend(given) if isinstance(given, str) else given
        self._backends[backend] = loaded
        return what_is_missing(loaded)

    def begin(self) -> None:
        """Hold all thread pools, now that the libraries are there."""
        self._problems = self._pools.enter_context(thread_pools(self._setup.threads))
        self._held.enter_context(heap_set_aside())
        self._state = State()

    def environment(self) -> dict[str, Any]:
        """Return what this process runs on."""
        return describe(self._setup.threads, self._problems)

    def limits(self) -> dict[str, Any]:
        """Measure the machine's, and under "cuda" those of its GPU if a backend has one."""
        limits = measure_limits(self._setup.threads)
        usable = (backend for backend in self._backends.values() if what_is_missing(backend) is None)
        gpu = next((place for place in map(place_of, usable) if isinstance(place, OnDevice)), None)
        if gpu is None:
            return limits
        try:
            return limits | {"cuda": measure_gpu_limits(gpu)}
        except Exception as error:  # such as a cuBLAS that is missing: it costs the figure, not the run
            return limits | {"cuda": {"problem": one_line(error)}}

    def check_data(self, case: int) -> None:
        """Make a case's data, to find out now what would go wrong in mid-run, such as a file of the wrong size.

        A library that is missing costs the cases that need it: their pairs become "unavailable" in their turn.
        """
        with suppress(MissingDependency):
            _ = self._data.evidence(self._setup.cases[case]).data

    def verify(self, case: int, backend: int, limits: Limits, known: Sequence[Known], last: bool) -> Record:
        """Verify a pair; ``last``: of its case, so that the truth is not needed any more.

        Raises
        ------
        DeviceFault
        """
        evidence = self._data.evidence(self._setup.cases[case])
        record = verify(
            evidence,
            self._backends[backend],
            self._setup.run_id,
            threads=self._setup.threads,
            limits=limits,
            known=known,
            watch=self._watch,
        )
        if last:
            evidence.let_go_of_truth()
        record.mode = self._setup.mode
        self._leave_device(record, self._backends[backend])
        record.caveats += self._restore()
        return record

    def sample(self, case: int, backend: int, verified: Record, number: int, effort: Effort, limits: Limits) -> Record:
        """Time a pair in a pass.

        Raises
        ------
        DeviceFault
        """
        tidy_heap()
        evidence = self._data.evidence(self._setup.cases[case])
        record = sample(
            verified,
            evidence,
            self._backends[backend],
            number=number,
            effort=effort,
            limits=limits,
            mode=self._setup.mode,
            cache_bytes=last_level_bytes() or _USUAL_CACHE_BYTES,
            watch=self._watch,
        )
        evidence.let_go_of_truth()
        self._leave_device(record, self._backends[backend])
        record.caveats += self._restore()
        return record

    def _leave_device(self, record: Record, backend: Backend) -> None:
        """See that the GPU still works and has its memory free for the next pair; raise if it does not."""
        place = _used_place(record, backend)
        if isinstance(place, OnDevice):
            self._watch("leaving the GPU", _LEAVING_S)
            try:
                place.device.synchronize()
                place.device.release()
            except Exception as error:  # whatever a library makes of CUDA's error
                reason = record.reason or f"{type(error).__name__}: {one_line(error)}"
                raise DeviceFault(f"the GPU does nothing more for its process: {reason}") from None

    def _restore(self) -> list[str]:
        """Put back what a backend has changed of the process, so that the next one finds it as it was; say what."""
        changed = self._state.restore()
        others = {name: size for name, size in (pool_sizes() or {}).items() if size != self._setup.threads}
        if others:
            self._pools.close()
            self._pools.enter_context(thread_pools(self._setup.threads))
        return [*changed, *(f"threads: {name} was left with {size}" for name, size in others.items())]

    def close(self) -> None:
        """Let go of thread pools and data."""
        self._held.close()
        self._pools.close()


def _used_place(record: Record, backend: Backend) -> Place:
    """Return where a pair was worked on: nowhere on a GPU if the backend says, or shows, that it has none."""
    if record.status != "unavailable":
        with suppress(Exception):
            return place_of(backend)
    return HOST


class _HeldData:
    """Operands between visits: of all cases if they fit in :data:`HELD_DATA_BYTES`, else of the last one asked for."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self._all = fit_in_memory(cases)
        self._held: dict[Case, Evidence] = {}

    def evidence(self, case: Case) -> Evidence:
        """Return the case's evidence, with its data if they are here."""
        if case not in self._held:
            if not self._all:
                self._held.clear()
            self._held[case] = Evidence(case)
        return self._held[case]


def fit_in_memory(cases: Sequence[Case]) -> bool:
    """Return whether the operands of all cases are held at once; else pairs are visited case by case."""
    return sum(case.spec.bytes_min for case in cases) <= HELD_DATA_BYTES
