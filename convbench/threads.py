"""Threads: how many there are, how work is split over them, and how BLAS is told.

Own algorithms on NumPy split their work over one process-wide pool with :func:`parallel`, while BLAS is held at one
thread with :func:`blas_threads`; generated kernels have a pool in machine code (:mod:`convbench.jit.pool`); a library
with a pool of its own is held by a :class:`Pool`. So ``threads=`` means the same for every backend.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Protocol, TypeVar

from convbench.errors import SpecError

__all__ = ["Pool", "available", "blas_threads", "parallel", "pool_sizes", "resolve", "shares"]

_MOST_HELPERS = 255

Job = TypeVar("Job")
JobOut = TypeVar("JobOut", covariant=True)


class Jobs(Protocol[JobOut]):
    """Anything with a length that can be gone through: a list, or blocks that are made on the way."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[JobOut]: ...


def available() -> int:
    """Return the number of cores this process may use (its affinity mask where the system has one)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def resolve(threads: int | None) -> int:
    """Return ``threads``, or every available core for None."""
    if threads is None:
        return available()
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= _MOST_HELPERS + 1:
        raise SpecError("threads", threads, f"must be an integer from 1 to {_MOST_HELPERS + 1}, or None for every core")
    return threads


@cache
def _executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST_HELPERS, thread_name_prefix="convbench")  # threads start as they are needed


class _Shared:
    """Jobs that threads take one by one; an exception anywhere stops all after the job in hand."""

    def __init__(self, jobs: Iterator[Any]) -> None:
        self._jobs, self._lock, self._stopped = jobs, threading.Lock(), False

    def work(self, function: Callable[[Any], None]) -> None:
        """Do jobs until there are no more."""
        try:
            while True:
                with self._lock:
                    if self._stopped:
                        return
                    try:
                        job = next(self._jobs)
                    except StopIteration:
                        return
                function(job)
        except BaseException:
            self._stopped = True
            raise


def shares(extent: int, count: int) -> list[slice]:
    """Cut ``extent`` into ``count`` parts as equal as they can be.

    >>> shares(5, 2)
    [slice(0, 2, None), slice(2, 5, None)]
    """
    return [slice(extent * part // count, extent * (part + 1) // count) for part in range(count)]


def parallel(function: Callable[[Job], None], jobs: Jobs[Job], threads: int) -> None:
    """Call ``function`` on every job, over ``threads`` threads, this one included.

    Threads take the next job as they become free. The first exception stops the rest and is raised.
    """
    if threads == 1 or len(jobs) < 2:
        for job in jobs:
            function(job)
        return
    shared = _Shared(iter(jobs))
    helpers = [_executor().submit(shared.work, function) for _ in range(min(threads, len(jobs), _MOST_HELPERS) - 1)]
    try:
        shared.work(function)
    finally:  # helpers that never started, all threads being busy with other callers' jobs, are not waited for
        errors = [helper.exception() for helper in helpers if not helper.cancel()]
    for error in errors:
        if error is not None:
            raise error


@cache
def _blas_libraries() -> tuple[Any, ...]:
    """Return threadpoolctl's controllers of the BLAS libraries loaded so far, NumPy's among them."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:  # BLAS then keeps its own thread count, and `pool_sizes` says that it is not known
        return ()
    return tuple(ThreadpoolController().select(user_api="blas").lib_controllers)


class Pool:
    """A library's own thread pool, held at a size while plans are inside :meth:`held`.

    Of nested and concurrent plans the most modest wins, and the last to leave restores what was there.

    Parameters
    ----------
    libraries : callable
        ``libraries()``: objects with ``get_num_threads()`` and ``set_num_threads(n)``; asked at each use, so that
        nothing is imported before.
    each_thread : bool
        The library keeps one size for each calling thread, not one for the process.
    """

    def __init__(self, libraries: Callable[[], Sequence[Any]], *, each_thread: bool = False) -> None:
        self._libraries = libraries
        self._kind: type[Any] = _HoldersInThread if each_thread else _Holders
        self.start_anew()
        _pools.append(self)

    def start_anew(self) -> None:
        """Forget who holds it: in a forked child there is nobody."""
        self._lock, self._holders = threading.Lock(), self._kind()

    def sizes(self) -> list[int]:
        """Return the size that each library says its pool has now."""
        return [int(library.get_num_threads()) for library in self._libraries()]

    def held(self, threads: int) -> AbstractContextManager[None]:
        """Hold the pool at ``threads`` within the block."""
        return _Hold(self._libraries(), self._lock, self._holders, threads)


class _Holders:
    """One size a plan that is inside ``held``, and what each library had before the first of them."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.before: list[int] = []


class _HoldersInThread(_Holders, threading.local):
    """Every thread sees its own."""


_pools: list[Pool] = []


class _Hold(AbstractContextManager[None]):
    """What :meth:`Pool.held` gives; from a generator it would take a microsecond more in every call of every plan."""

    __slots__ = ("_holders", "_libraries", "_lock", "_threads")

    def __init__(self, libraries: Sequence[Any], lock: threading.Lock, holders: _Holders, threads: int) -> None:
        self._libraries, self._lock, self._holders, self._threads = libraries, lock, holders, threads

    def __enter__(self) -> None:
        holders = self._holders
        with self._lock:
            now = [library.get_num_threads() for library in self._libraries]
            if not holders.sizes:
                holders.before = now
            holders.sizes.append(self._threads)
            self._set(now, [min(holders.sizes)] * len(now))

    def __exit__(self, *exception: object) -> None:
        holders = self._holders
        with self._lock:
            holders.sizes.remove(self._threads)
            now = [library.get_num_threads() for library in self._libraries]
            self._set(now, [min(holders.sizes)] * len(now) if holders.sizes else holders.before)

    def _set(self, now: Sequence[int], wanted: Sequence[int]) -> None:
        if now != wanted:
            for library, before, after in zip(self._libraries, now, wanted, strict=True):
                if before != after:
                    library.set_num_threads(after)


_blas = Pool(_blas_libraries)


def blas_threads(threads: int) -> AbstractContextManager[None]:
    """Hold every BLAS pool at ``threads`` within the block; BLAS has one pool a process."""
    return _blas.held(threads)


def pool_sizes() -> dict[str, int] | None:
    """Return the size of every thread pool that threadpoolctl finds, by library file; None without it."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return None
    return {
        f"{pool['user_api']}:{os.path.basename(pool['filepath'])}": int(pool["num_threads"])
        for pool in threadpool_info()
    }


def _start_anew_in_child() -> None:
    """After a fork: the parent's threads do not exist here, and its locks may have been held."""
    _executor.cache_clear()
    for pool in _pools:
        pool.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_in_child)
