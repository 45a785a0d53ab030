"""Jobs over threads without the interpreter: a kernel's jobs are taken one by one from a counter that threads share.

Handing work to Python's own pools costs 20 µs and more. Here the helpers are Python threads that sit in machine code:
they spin for a hundred microseconds after their last job, as OpenMP's do, and then go to sleep in Python until they
are called. One call at a time has the helpers; a call that finds them taken does all its jobs itself.

A call is *open* while there may be jobs left. A helper enters an open call by raising ``inside``, looks again whether
it is open, takes jobs until there are no more, and lowers ``inside``; the caller closes the call when it finds no more
jobs itself, and returns when nobody is inside. So a helper that comes late, or sleeps, costs time and never the result.
All accesses are sequentially consistent.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from convbench.jit.compile import Kernel, compiled
from convbench.jit.ir import Code, Value, Variable
from convbench.jit.target import host_target

__all__ = ["run"]

#: 64-bit words that threads share; those written often have cache lines of their own. An odd ``generation`` is open,
#: ``call`` is the address of what is to be done, and ``over`` sends helpers out.
_WORDS = {"generation": 0, "call": 1, "over": 2, "next": 16, "ticket": 24, "inside": 32, "busy": 40}

#: A call as the leader gets it: these words, then the kernel's arguments. One table costs 1 µs less than six arguments.
#: ``begun`` is 0 until helpers can enter the call, or need not.
_HEAD = ("words", "yield", "kernel", "jobs", "threads", "begun")

_BEGUN = _HEAD.index("begun")

_SPIN_S = 100e-6  # that a helper waits for the next call before it sleeps
_PROBE = 500  # turns by which their duration is measured
_YIELD_AFTER = 1_000  # turns of a waiting caller, after which it lets other threads have the core
_STOP_S = 1.0  # that the end of the interpreter waits for a helper

#: Calling releases the interpreter's lock.
_Lead = ctypes.CFUNCTYPE(None, ctypes.c_size_t)
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
    team = _teams[0] if _teams else _started()
    team.run(kernel.address, arguments, jobs, threads if threads < jobs else jobs)


class _Team:
    """The helpers of this process, and the words shared with them."""

    def __init__(self) -> None:
        self._words = np.zeros(64, np.int64)
        self._code = _machine_code(_leader), _machine_code(_helper)  # which is gone when these are
        self._lead, self._help = _Lead(self._code[0].address), _Help(self._code[1].address)
        self._shared = self._words.ctypes.data, _address_of_yield()
        self._turns = max(_PROBE, int(_PROBE * _SPIN_S / self._probe_s()))
        self._asleep: list[threading.Semaphore] = []
        self._helpers: list[threading.Thread] = []
        self._latest = _call(*self._shared, 0, 0, 0, -1)
        self._over = False

    def run(self, kernel: int, arguments: Sequence[int], jobs: int, threads: int) -> None:
        """Do all jobs of a call."""
        call = _call(*self._shared, kernel, jobs, threads, 0, *arguments)
        try:
            if threads > 1:
                if len(self._helpers) < threads - 1:
                    self._hire(threads - 1)
                self._latest = call
                if self._asleep:
                    self._wake(threads - 1)
            self._lead(call.buffer_info()[0])
        except BaseException:  # Ctrl-C: nobody need stay awake for this call
            call[_BEGUN] = 1
            raise

    def stop(self) -> None:
        """Send all helpers home and wait for them, for the interpreter is about to take their code away."""
        with _lock:  # nobody is hired from here on
            self._over = True
        self._words[_WORDS["over"]] = 1
        self._wake(len(self._helpers))
        for helper in self._helpers:
            helper.join(_STOP_S)

    def _hire(self, count: int) -> None:
        with _lock:
            while len(self._helpers) < count and not self._over:
                name = f"convbench-{len(self._helpers) + 1}"
                helper = threading.Thread(target=self._serve, name=name, daemon=True)
                try:
                    helper.start()
                except RuntimeError:  # the system allows no more threads: those there are do the work
                    return
                self._helpers.append(helper)

    def _wake(self, count: int) -> None:
        for _ in repeat(None, count):
            try:
                self._asleep.pop().release()
            except IndexError:
                return

    def _serve(self) -> None:
        """Spin in machine code, sleep in Python, and so on.

        A caller announces its call, wakes who is on the list, and opens the call. A helper puts itself on the list, and
        sleeps only if the latest call that is announced had begun before it last looked out for calls. So none falls
        asleep over a call that takes it to be awake.
        """
        wake = threading.Semaphore(0)
        state = self._state(self._turns)
        while not self._over:
            latest = self._latest
            has_begun = latest[_BEGUN]
            self._help(state.ctypes.data, 0, 0)
            self._asleep.append(wake)
            if self._over or self._latest is not latest or not has_begun:
                try:
                    self._asleep.remove(wake)
                    continue
                except ValueError:  # a caller is about to wake it
                    pass
            wake.acquire()

    def _probe_s(self) -> float:
        """Return how long a helper takes for some turns in vain; a turn's pause is 10 to 140 cycles of the CPU."""
        state, samples = self._state(_PROBE), []
        for _ in range(5):
            began = time.perf_counter()
            self._help(state.ctypes.data, 0, 0)
            samples.append(time.perf_counter() - began)
        return max(min(samples), 1e-9)

    def _state(self, turns: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array([self._words.ctypes.data, turns], np.int64)


def _call(*words: int) -> array[int]:
    """Return a call's table, in a quarter of the time that ctypes takes."""
    return array("q", words)


# -- one team a process ---------------------------------------------------------------------------------------------

_lock = threading.Lock()
_teams: list[_Team] = []


def _started() -> _Team:
    with _lock:
        if not _teams:
            _teams.append(_Team())
        return _teams[0]


@atexit.register
def _stop() -> None:
    for team in _teams:
        team.stop()


def _forget() -> None:
    """Begin anew in a child, which has no helpers."""
    _teams.clear()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_forget)


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

    def __init__(self, code: Code, address: Value) -> None:
        self._code, self._base = code, code.integers_at(address)

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


class _Call:
    """What is to be done, as :data:`_HEAD` lays it out at an address."""

    def __init__(self, code: Code, address: Value) -> None:
        self._code, self._base = code, code.integers_at(address)

    def get(self, name: str) -> Value:
        return self._code.item(self._base, _HEAD.index(name))

    def begin(self) -> None:
        self._code.put(self._code.const(1), self._base, _BEGUN)

    def do(self, job: Value, thread: Value) -> None:
        code = self._code
        table = code.at(self._base, len(_HEAD))
        code.call(self.get("kernel"), [table, code.const(job), code.const(thread)])


def _do_jobs(code: Code, words: _Words, call: _Call, thread: Value) -> None:
    """Take jobs until there are no more."""
    job = code.variable(words.raised("next"))
    with code.repeat(lambda: code.less(job.get(), call.get("jobs"))):
        call.do(job.get(), thread)
        job.set(words.raised("next"))


def _wait(code: Code, turns: Variable) -> None:
    turns.set(code.add(turns.get(), 1))
    code.pause()


def _leader() -> str:
    """Open a call, work on it, close it, and wait until nobody is inside; alone if another call has the helpers."""
    code = Code("leader", host_target(), "float32", ["call"], in_table=False)
    call = _Call(code, code.integer("call"))
    words = _Words(code, call.get("words"))

    def alone() -> None:
        call.begin()
        with code.loop(0, call.get("jobs")) as job:
            call.do(job, 0)

    def together() -> None:
        words.set("call", code.integer("call"))
        words.set("next", 0)
        words.set("ticket", 1)
        words.raised("generation")
        call.begin()
        _do_jobs(code, words, call, 0)
        words.raised("generation")
        turns = code.variable(0)
        with code.repeat(lambda: code.less(0, words.get("inside"))):
            _wait(code, turns)
            with code.when(code.less(_YIELD_AFTER, turns.get())):
                code.call(call.get("yield"), [])  # whose result is not read
        words.set("busy", 0)

    one = code.less(call.get("threads"), 2)
    code.choose(one, alone, lambda: code.choose(words.taken("busy"), together, alone))
    return code.finish()


def _helper() -> str:
    """Wait for a call that is open and new, help, and wait again; return after so many turns in vain, or when over."""
    code = Code("helper", host_target(), "float32", ["words", "turns"])
    words = _Words(code, code.integer("words"))
    seen, turns = code.variable(0), code.variable(0)
    with code.repeat(lambda: code.less(turns.get(), code.integer("turns"))):
        generation = words.get("generation")
        is_open = code.equal(code.rem(generation, 2), 1)
        is_new = code.less(seen.get(), generation)

        def enter(generation: Value = generation) -> None:
            words.raised("inside")
            with code.when(code.equal(words.get("generation"), generation)):
                thread = words.raised("ticket")
                call = _Call(code, words.get("call"))
                with code.when(code.less(thread, call.get("threads"))):
                    _do_jobs(code, words, call, thread)
            words.raised("inside", -1)
            seen.set(generation)
            turns.set(0)

        code.choose(code.both(is_open, is_new), enter, lambda: _wait(code, turns))
        with code.when(code.equal(words.get("over"), 1)):
            turns.set(code.integer("turns"))
    return code.finish()
