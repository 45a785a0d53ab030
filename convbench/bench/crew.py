"""The worker of a run, replaced whenever it dies."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from convbench.bench.process import Local, Lost, Process
from convbench.bench.service import Setup
from convbench.errors import BackendUnavailable

__all__ = ["Crew"]

KILLS_BORNE = 3  # times that somebody else may kill the worker before what it was asked for counts as the reason


class Crew:
    """One worker at a time, started when there is something to ask.

    A worker that somebody else killed (the system, for want of memory; a person) is replaced and asked again. A backend
    whose import ends the worker is dead to the run, and the next worker does without it. One that has lost its GPU is
    replaced too: only another process gets it back.

    Parameters
    ----------
    setup : Setup
    isolate : bool
        False: no process of its own.
    memory_limit_bytes : int
        See :class:`convbench.bench.process.Process`.

    Attributes
    ----------
    missing : dict of int to str
        Backends that are not here, with the reason.
    start_s : float
        What the last start took.
    """

    def __init__(self, setup: Setup, *, isolate: bool, memory_limit_bytes: int) -> None:
        self._setup, self._kind, self._limit_bytes = setup, Process if isolate else Local, memory_limit_bytes
        self._worker: Local | Process | None = None
        self._wanted: list[int] = []
        self._dead: dict[int, Lost] = {}
        self.missing: dict[int, str] = {}
        self.start_s = 0.0

    def renew(self, wanted: Iterable[int]) -> None:
        """Let the worker go; the next one loads these backends."""
        self.let_go()
        self._wanted = sorted(set(wanted) - self._dead.keys())

    def let_go(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
        self._worker = None

    def ask(self, request: str, *arguments: Any) -> Any:
        """Ask for something that is of no backend.

        Raises
        ------
        BackendUnavailable
            If the worker does not survive it.
        """
        try:
            return self._ask(request, None, *arguments)
        except Lost as lost:
            raise BackendUnavailable(f"no worker process can be had: {lost.reason}") from None

    def ask_of(self, case: int, backend: int, request: str, *arguments: Any) -> Any:
        """Ask for something of a (case, backend); raises :class:`Lost` if the worker does not survive it."""
        return self._ask(request, backend, case, backend, *arguments)

    def _ask(self, request: str, backend: int | None, *arguments: Any) -> Any:
        kills = 0
        while True:
            try:
                worker = self._worker or self._start()
                if backend is None or backend not in self._dead:
                    return worker.ask(request, *arguments)
            except Lost as lost:
                self.let_go()
                kills += 1
                if not lost.killed or kills == KILLS_BORNE:
                    raise
            else:
                raise self._dead[backend]

    def _start(self) -> Local | Process:
        """Start a worker with the libraries that are wanted of it, as often as it takes."""
        began = time.perf_counter()
        while True:
            self._worker = self._kind(self._setup, self._limit_bytes)
            fatal = self._load(self._worker)
            if fatal is None:
                break
            self.let_go()
            self._wanted.remove(fatal)
        self._worker.ask("begin")
        self.start_s = time.perf_counter() - began
        return self._worker

    def _load(self, worker: Local | Process) -> int | None:
        """Have it import what is wanted; return the backend that it has died of."""
        for backend in self._wanted:
            try:
                missing = worker.ask("load", backend)
            except Lost as lost:
                if lost.killed:
                    raise
                self._dead[backend] = lost
                return backend
            if missing:
                self.missing[backend] = missing
        return None
