"""What a call does besides its kernel, counted and not timed; ``suites/bench_overhead.py`` has the times."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import convbench as cb
from convbench import registry
from convbench.algorithms.blocking import Blocking, ScratchPool, scratch_not_kept
from convbench.arrays import address, numpy_namespace
from convbench.backend import overlap, second_operand
from convbench.errors import SpecError
from convbench.threads import Pool

_found = spec_from_file_location("bench_overhead", Path(__file__).parents[1] / "suites" / "bench_overhead.py")
assert _found is not None
assert _found.loader is not None
bench = module_from_spec(_found)
_found.loader.exec_module(bench)

#: Functions of a call that knows its operands: they are checked, allocated, regrouped and handed on.
PLAN_CALLS = {"__call__", "_source", "_check", "_run", "run"}
CONV_CALLS = {"conv", "call", "<listcomp>", "_run_prepared", "prepare", "_prepare", *PLAN_CALLS}
CONV_CALLS |= {"<lambda>"}  # so NamedTuple names what makes one


def python_calls(function: Callable[..., Any], *args: Any, **options: Any) -> list[str]:
    """Return the names of the Python functions that a call goes through, after a first call."""
    function(*args, **options)
    names: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            names.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function(*args, **options)
    finally:
        sys.setprofile(before)
    return names


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend that does nothing."""
    monkeypatch.setattr(registry, "_plug_ins", lambda: {"nothing": bench.NOTHING})
    return "nothing"


@pytest.mark.parametrize("line", bench.PLANS.values())
def test_a_plan_does_nothing_but_check_and_hand_on(line: str) -> None:
    plan, operands = bench.planned(line)
    calls = python_calls(plan, *operands)
    assert set(calls) <= PLAN_CALLS | {"_check_bias"}
    assert len(calls) <= 7
    assert calls.count("run") == 1


@pytest.mark.parametrize("line", bench.PLANS.values())
def test_of_arrays_with_memory_of_their_own_it_is_not_asked_whether_they_share_it(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, operands = bench.planned(line)
    monkeypatch.delattr(np, "may_share_memory")
    monkeypatch.delattr(np, "shares_memory")
    out = np.empty(plan.spec.result_shape, plan.spec.result_dtype)
    calls = python_calls(plan, *operands, out)
    assert set(calls) <= PLAN_CALLS | {"_check_bias", "_check_out", "overlap"}
    assert len(calls) <= 12
    assert plan(*operands, out) is out


def test_conv_of_known_shapes_plans_nothing_and_checks_each_operand_once_a_stage(nothing: str) -> None:
    calls = python_calls(cb.conv, *bench.image(8), backend=nothing, threads=1)
    assert set(calls) <= CONV_CALLS
    assert len(calls) <= 14
    assert calls.count("_check") == 2  # w by prepare, x by the call


@pytest.mark.parametrize("threads", [1, None])
def test_auto_costs_what_the_backend_costs_that_it_takes(
    nothing: str, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convbench.planning.choose", lambda spec, **options: bench.NOTHING)
    monkeypatch.setattr("convbench.planning._PLANS", type(cb.planning._PLANS)())
    x, w = bench.image(1)
    named = python_calls(cb.conv, x, w, backend=nothing, threads=threads)
    assert python_calls(cb.conv, x, w, threads=threads) == named


def test_the_doors_of_gradients_add_one_call(nothing: str) -> None:
    x, w = bench.image(8)
    g = np.ones((1, 8, 6, 6), "f4")
    forward = python_calls(cb.conv, x, w, backend=nothing)
    assert len(python_calls(cb.conv_input_grad, g, w, 8, backend=nothing)) <= len(forward) + 1
    assert len(python_calls(cb.conv_weight_grad, x, g, 3, backend=nothing)) <= len(forward) + 1


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_narrow_integers_are_not_searched_for_the_largest(dtype: str) -> None:
    plan, operands = bench.planned(f"c8 o8 i8x8 k3 {dtype}")
    assert set(python_calls(plan, *operands)) <= PLAN_CALLS


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint64"])
def test_wide_ones_are(dtype: str) -> None:
    plan, operands = bench.planned(f"c8 o8 i8x8 k3 {dtype}")
    assert "_refuse_overflow" in python_calls(plan, *operands)
    first, _, _ = operands
    first[0, 0, 0, 0] = np.iinfo(dtype).max
    weights = plan.prepare(np.full(plan.spec.weight_shape, np.iinfo(dtype).max, dtype))
    with pytest.raises(cb.UnsupportedSpec, match="could overflow"):
        plan(first, weights)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
def test_the_widest_sum_of_narrow_integers_is_exact(dtype: str) -> None:
    most = int(np.iinfo(dtype).max)
    x, w = np.full((1, 8, 8, 8), most, dtype), np.full((8, 8, 3, 3), most, dtype)
    for backend in ("im2col", "direct-numpy"):
        assert (cb.conv(x, w, backend=backend) == 72 * most**2).all()


# -- the quick way refuses what the close look refuses, with its words -----------------------------------------


class Subclass(np.ndarray):
    """Taken by a plan as any array is."""


def test_subclasses_are_taken_and_the_rest_is_refused() -> None:
    plan = cb.plan("c1 o1 i4 k2 f64", "im2col", threads=1)
    x, weights = np.arange(4.0).reshape(1, 1, 4), plan.prepare(np.ones((1, 1, 2)))
    assert plan(x.view(Subclass), weights).tolist() == plan(x, weights).tolist() == [[[1.0, 3.0, 5.0]]]
    for wrong, words in [
        (x.tolist(), "x: got 'list'; must be an array of numpy"),
        (x[:, :, :3], r"must have shape \(1, 1, 4\)"),
        (x.astype("f4"), "must have dtype float64"),
        (x.astype(">f8"), "must have dtype float64"),
        (x[:, :, :3].view(Subclass), r"must have shape \(1, 1, 4\)"),
    ]:
        with pytest.raises(SpecError, match=words):
            plan(wrong, weights)


def test_out_names_the_operand_that_it_shares_memory_with() -> None:
    plan = cb.plan("c1 o1 i4 k1 bias=location f64", "im2col", threads=1)
    x, w, bias = np.ones((1, 1, 4)), np.ones((1, 1, 1)), np.ones((1, 4))
    weights = plan.prepare(w)
    for operand, name in [(x, "x"), (bias[None], "bias")]:
        for out in (operand, operand[:], operand[..., ::-1]):
            with pytest.raises(SpecError, match=f"memory shared with {name}"):
                plan(x, weights, bias, out)
    plan = cb.plan("c1 o1 i1 k1 f64", "im2col", threads=1)
    weights = plan.prepare(w)
    with pytest.raises(SpecError, match="memory shared with w"):
        plan(np.ones((1, 1, 1)), weights, None, w)


def test_arrays_overlap_if_an_element_is_shared() -> None:
    base = np.zeros((4, 6))
    own = np.zeros(3)
    assert overlap(base, base)
    assert overlap(base, base[1:2])
    assert overlap(base[:, :4], base[:, 3:])
    assert not overlap(base[:, ::2], base[:, 1::2])
    assert not overlap(base, own)
    assert not overlap(own, np.zeros(3))
    assert not overlap(own[:0], own)
    empty = np.zeros((0, 3))
    assert not overlap(empty, empty)
    lent = np.frombuffer(bytearray(24))  # neither of the two owns the memory
    assert overlap(lent, np.asarray(memoryview(lent)))


# -- prepared weights, buffers, addresses ----------------------------------------------------------------------


def test_prepared_weights_cannot_be_changed_and_print_without_their_values() -> None:
    plan = cb.plan("c1 o1 i999 k500", "im2col", threads=1)
    weights = plan.prepare(np.ones((1, 1, 500), "f4"))
    assert "array" not in repr(weights)
    assert repr(plan.spec) in repr(weights)
    with pytest.raises(AttributeError):
        weights.value = None


def test_buffers_are_lent_again_after_an_exception_and_to_each_borrower_its_own() -> None:
    pool = ScratchPool(lambda: [0], most=1)
    with pytest.raises(ZeroDivisionError), pool.borrow() as first:
        raise ZeroDivisionError
    with pool.borrow() as again, pool.borrow() as other:
        assert again is first
        assert other is not first
    with pool.borrow() as kept:  # the last to come back found a place taken
        assert kept is other
    with scratch_not_kept():
        pool = ScratchPool(lambda: [0])
    with pool.borrow() as first:
        pass
    with pool.borrow() as again:
        assert again is not first


def test_a_pool_is_held_at_the_least_and_then_as_before() -> None:
    class Library:
        size, set_to = 7, []  # type: ignore[var-annotated]

        def get_num_threads(self) -> int:
            return self.size

        def set_num_threads(self, size: int) -> None:
            self.size = size
            self.set_to.append(size)

    library = Library()
    pool = Pool(lambda: (library,))
    with pool.held(4), pool.held(2), pool.held(3):
        assert pool.sizes() == [2]
    assert library.set_to == [4, 2, 4, 7]
    with pytest.raises(ZeroDivisionError), pool.held(1):
        raise ZeroDivisionError
    assert pool.sizes() == [7]
    with pool.held(7):  # nothing to set
        pass
    assert library.set_to == [4, 2, 4, 7, 1, 7]


@pytest.mark.parametrize("lines", [1, 40])
def test_blocks_are_counted_once(lines: int) -> None:
    spec = cb.ConvSpec.parse(f"n{lines} i64 k3")
    blocking = Blocking(spec, 4, 4 * 62, 1)
    assert len(blocking) == len(list(blocking)) == lines


def test_an_address_is_that_of_the_first_element() -> None:
    base = np.arange(24.0).reshape(4, 6)
    frozen = base.copy()
    frozen.flags.writeable = False
    for array in (
        base,
        base[1:, 2:],
        base[::-1, ::-2],
        base.T,
        base[:0],
        np.array(3.0),
        frozen,
        base.view(Subclass),
        np.frombuffer(bytearray(25), "u1")[1:].view("f8"),
    ):
        assert address(array) == array.ctypes.data


def test_results_are_allocated_in_the_spec_s_order() -> None:
    ns = numpy_namespace()
    new = ns.allocator(cb.ConvSpec.parse("n2 c3 o5 i8x9 k3 layout=channels_last"))
    first, second = new(), new()
    assert first.shape == (2, 5, 6, 7)
    assert np.moveaxis(first, 1, -1).flags.c_contiguous
    assert not np.shares_memory(first, second)
    assert ns.allocator(cb.ConvSpec.parse("o5 i8 k3 int8"))().dtype == "int64"


def test_a_second_operand_is_prepared_but_for_the_weight_gradient() -> None:
    plan, (_, g, _) = bench.planned(bench.PLANS["weight_grad"])
    assert second_operand(plan, g) is g
    with pytest.raises(SpecError, match="has no weights to prepare"):
        plan.prepare(g)
