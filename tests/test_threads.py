"""Threads: all jobs done once, errors stop the rest, BLAS restored, forks and concurrent callers do not hang."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

import convbench as cb
from convbench.errors import SpecError
from convbench.threads import _blas_libraries, available, blas_threads, parallel, resolve


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_job_is_done_once(threads: int) -> None:
    """whatever the number of threads."""
    done: list[int] = []
    parallel(done.append, range(100), threads)
    assert sorted(done) == list(range(100))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_first_error_is_raised_and_stops_the_rest(error: type[BaseException]) -> None:
    """jobs not begun are not begun any more."""
    done: list[int] = []

    def work(job: int) -> None:
        if job == 3:
            raise error("job 3")
        done.append(job)

    with pytest.raises(error, match="job 3"):
        parallel(work, range(10**6), 2)
    assert len(done) < 10**6


def test_nested_and_concurrent_calls_do_not_wait_for_each_other() -> None:
    """more callers than threads, each of them calling again: no deadlock."""
    done: list[tuple[int, int]] = []
    parallel(lambda i: parallel(lambda j: done.append((i, j)), range(3), 3), range(20), 4)
    assert len(set(done)) == len(done) == 60


def test_blas_is_held_at_the_least_and_restored() -> None:
    """the most modest of nested holders wins, and an exception restores as well."""
    pytest.importorskip("threadpoolctl")

    def sizes() -> set[int]:  # of the libraries that were there at the first use; NumPy's, which does the products, is
        return {library.get_num_threads() for library in _blas_libraries()}

    def fail_within() -> None:
        with blas_threads(1):
            assert sizes() == {1}
            with blas_threads(2):
                assert sizes() == {1}
            raise ZeroDivisionError

    before = sizes()
    assert before
    with pytest.raises(ZeroDivisionError):
        fail_within()
    assert sizes() == before


def test_count_of_threads_is_checked() -> None:
    """None is every core of the affinity mask."""
    assert resolve(None) == available() >= 1
    for wrong in (0, -1, True, 2.0, "2", 10**6):
        with pytest.raises(SpecError, match="threads"):
            resolve(wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_go_on_computing() -> None:
    """the parent's threads do not exist in the child; it starts its own."""
    x, w = np.ones((1, 4, 128, 128), "f4"), np.ones((4, 4, 3, 3), "f4")
    expected = cb.conv(x, w, backend="direct-numpy", threads=2)
    child = os.fork()
    if child == 0:
        same = np.array_equal(cb.conv(x, w, backend="direct-numpy", threads=2), expected)
        os._exit(0 if same else 1)
    deadline = threading.Timer(60, os.kill, (child, 9))
    deadline.start()
    _, status = os.waitpid(child, 0)
    deadline.cancel()
    assert status == 0


def test_out_must_not_be_an_operand() -> None:
    """sharing an element with x, w or bias is refused; lying between the elements of x is not."""
    memory = np.zeros(18)
    w = memory[:9].reshape(1, 1, 3, 3)
    w[:] = 1.5
    x = np.ones((1, 1, 5, 5))
    with pytest.raises(SpecError, match="memory shared with w"):
        cb.conv(x, w, out=memory[:9].reshape(1, 1, 3, 3), backend="direct-numpy")
    both = np.ones((1, 2, 5, 5))
    cb.conv(both[:, :1], w, padding=1, out=both[:, 1:])
    assert both[0, 1, 2, 2] == 13.5


def test_integer_sums_that_could_overflow_are_refused_by_the_plan() -> None:
    """exact or refused, in the front door and in a plan."""
    plan = cb.plan("i3 k2 int64", backend="direct-numpy")
    with pytest.raises(cb.UnsupportedSpec, match="could overflow int64"):
        plan(np.full((1, 1, 3), 2**62), plan.prepare(np.full((1, 1, 2), 2)))
