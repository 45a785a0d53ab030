"""Jobs over threads without the interpreter: a kernel's jobs are taken one by one from a counter that threads share.

Handing work to Python's own pools costs 20 µs and more. Here the helpers are Python threads that sit in machine code:
they spin for some hundred microseconds after their last job, as OpenMP's do, and then go to sleep in Python until they
are called. One call at a time has the helpers; a call that finds them taken does all its jobs itself.

A call is *open* while there may be jobs left. A helper enters an open call by raising ``inside``, looks again whether
it is open, takes jobs until there are no more, and lowers ``inside``; the caller closes the call when it finds no more
jobs itself, and returns when nobody is inside. So a helper that comes late, or sleeps, costs time and never the result.
All accesses are sequentially consistent.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from convbench.jit.compile import Kernel, compiled
from convbench.jit.ir import Code, Value
from convbench.jit.target import host_target

__all__ = ["run"]

#: 64-bit words that threads share; those written often have cache lines of their own. An odd ``generation`` is open.
_WORDS = {
    "generation": 0,
    "kernel": 1,
    "arguments": 2,
    "jobs": 3,
    "threads": 4,
    "next": 16,
    "ticket": 24,
    "inside": 32,
    "busy": 40,
}
_SPINS = 20_000  # turns of a waiting helper: some 200 µs
_YIELD_AFTER = 2_000  # turns of a waiting caller, after which it lets other threads have the core

#: Calling releases the interpreter's lock.
_Lead = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
_Help = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def run(kernel: Kernel, arguments: Sequence[int], jobs: int, threads: int) -> None:
    """Do jobs 0 … ``jobs`` − 1 of a kernel on up to ``threads`` threads, this one included, and wait for all.

    Parameters
    ----------
    kernel : Kernel
        Called with its table, job and thread < ``threads``.
    arguments : sequence of int
        What the table holds, in the order of the kernel's argument names. Whoever calls keeps alive what addresses
        point to.
    """
    _team().run(kernel.address, (ctypes.c_int64 * len(arguments))(*arguments), jobs, min(threads, jobs))


class _Team:
    """The helpers of this process, and the words shared with them."""

    def __init__(self) -> None:
        self._words = np.zeros(64, np.int64)
        self._lead = _Lead(_machine_code(_leader).address)
        self._help = _Help(_machine_code(_helper).address)
        self._shared = self._words.ctypes.data, _address_of_yield()
        self._asleep: list[threading.Semaphore] = []
        self._helpers = 0
        self._lock = threading.Lock()

    def run(self, kernel: int, arguments: ctypes.Array[ctypes.c_int64], jobs: int, threads: int) -> None:
        """Do all jobs of a call."""
        if threads > 1:
            if self._helpers < threads - 1:
                self._hire(threads - 1)
            for _ in range(threads - 1):
                try:
                    self._asleep.pop().release()
                except IndexError:
                    break
        self._lead(*self._shared, kernel, arguments, jobs, threads)

    def _hire(self, count: int) -> None:
        with self._lock:
            while self._helpers < count:
                self._helpers += 1
                threading.Thread(target=self._serve, name=f"convbench-{self._helpers}", daemon=True).start()

    def _serve(self) -> None:
        """Spin in machine code, sleep in Python, and so on; the interpreter leaves daemons behind when it ends."""
        wake = threading.Semaphore(0)
        state = np.array([self._words.ctypes.data, 0], np.int64)
        while True:
            self._help(state.ctypes.data, 0, 0)
            self._asleep.append(wake)
            wake.acquire()


@cache
def _team() -> _Team:
    return _Team()


if hasattr(os, "register_at_fork"):  # in a child there are no helpers
    os.register_at_fork(after_in_child=_team.cache_clear)


def _address_of_yield() -> int:
    """Return the address of what gives the core to another thread: ``int (void)``."""
    library: Any = ctypes.CDLL(None) if os.name == "posix" else ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
    function = library.sched_yield if os.name == "posix" else library.SwitchToThread
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _machine_code(make: Callable[[], str]) -> Kernel:
    return compiled(make(), make.__name__.strip("_"), host_target())


# -- machine code ---------------------------------------------------------------------------------------------------


class _Words:
    """Access to the shared words."""

    def __init__(self, code: Code, name: str) -> None:
        self._code, self._base = code, code.integers(name)

    def _place(self, word: str) -> Value:
        return self._code.at(self._base, _WORDS[word])

    def get(self, word: str) -> Value:
        return self._code.builder.load_atomic(self._place(word), "seq_cst", 8)

    def set(self, word: str, value: Value) -> None:
        self._code.builder.store_atomic(self._code.const(value), self._place(word), "seq_cst", 8)

    def raised(self, word: str, by: int = 1) -> Value:
        """Add, and return what was there before."""
        return self._code.builder.atomic_rmw("add", self._place(word), self._code.const(by), "seq_cst")

    def taken(self, word: str) -> Value:
        """Turn 0 into 1; return whether it was 0."""
        code = self._code
        return code.equal(code.builder.atomic_rmw("xchg", self._place(word), code.const(1), "seq_cst"), 0)


def _call(code: Code, address: Value, result: ir.Type, arguments: Sequence[Value]) -> None:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    code.builder.call(code.builder.inttoptr(address, kind.as_pointer()), arguments)


def _do_jobs(code: Code, words: _Words, thread: Value) -> None:
    """Take jobs until there are no more."""
    kernel, arguments, jobs = (words.get(name) for name in ("kernel", "arguments", "jobs"))
    table = code.builder.inttoptr(arguments, code.integers("words").type)
    job = code.variable(words.raised("next"))
    with code.repeat(lambda: code.less(job.get(), jobs)):
        _call(code, kernel, ir.VoidType(), [table, job.get(), code.const(thread)])
        job.set(words.raised("next"))


def _leader() -> str:
    """Open a call, work on it, close it, and wait until nobody is inside; alone if another call has the helpers."""
    code = Code(
        "leader", host_target(), "float32", ["words", "yield", "kernel", "arguments", "jobs", "threads"], in_table=False
    )
    words = _Words(code, "words")
    jobs = code.integer("jobs")

    def alone() -> None:
        table = code.integers("arguments")
        with code.loop(0, jobs) as job:
            _call(code, code.integer("kernel"), ir.VoidType(), [table, job, code.const(0)])

    def together() -> None:
        for name in ("kernel", "arguments", "jobs", "threads"):
            words.set(name, code.integer(name))
        words.set("next", 0)
        words.set("ticket", 1)
        words.raised("generation")
        _do_jobs(code, words, 0)
        words.raised("generation")
        turns = code.variable(0)
        with code.repeat(lambda: code.less(0, words.get("inside"))):
            turns.set(code.add(turns.get(), 1))
            code.pause()
            with code.when(code.less(_YIELD_AFTER, turns.get())):
                _call(code, code.integer("yield"), ir.IntType(32), [])
        words.set("busy", 0)

    one = code.less(code.integer("threads"), 2)
    code.choose(one, alone, lambda: code.choose(words.taken("busy"), together, alone))
    return code.finish()


def _helper() -> str:
    """Wait for a call that is open and new, help, and wait again; return after so many turns in vain."""
    code = Code("helper", host_target(), "float32", ["words", "seen"])
    words = _Words(code, "words")
    seen, turns = code.variable(code.integer("seen")), code.variable(0)
    with code.repeat(lambda: code.less(turns.get(), _SPINS)):
        turns.set(code.add(turns.get(), 1))
        generation = words.get("generation")
        is_open = code.equal(code.rem(generation, 2), 1)
        is_new = code.less(seen.get(), generation)

        def enter(generation: Value = generation) -> None:
            words.raised("inside")
            with code.when(code.equal(words.get("generation"), generation)):
                thread = words.raised("ticket")
                with code.when(code.less(thread, words.get("threads"))):
                    _do_jobs(code, words, thread)
            words.raised("inside", -1)
            seen.set(generation)
            turns.set(0)

        code.choose(code.both(is_open, is_new), enter, code.pause)
    return code.finish()
