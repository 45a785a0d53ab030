"""Does a plan keep its word? Buffers, strides, threads, memory, refusals: everything but the numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbench.backend import second_operand
from convbench.checks.subject import CheckFunction, Failure, Refusal, Subject, require_equal
from convbench.errors import SpecError
from convbench.memory import PYTHON_OBJECTS_BYTES, Memory, slack_bytes
from convbench.refusals import human_bytes
from convbench.spec import DTYPES, ConvSpec

__all__ = ["CONTRACT"]

Array = NDArray[Any]

_MOST_GAPPED = 2**20  # elements of an array with gaps along every axis
_MOST_OVERSTATED = 2  # times what weights take: a limit on memory would refuse them in vain
_CALLS = 7  # at least six, and old weights again after new ones


def why_not_agrees_with_plan(subject: Subject) -> None:
    """``why_not`` says None, so there is a plan, and it says what it is."""
    spec, plan = subject.spec, subject.plan()
    facts = {"spec": (plan.spec, spec), "backend": (plan.backend, subject.backend.name), "threads": (plan.threads, 1)}
    for name, (given, expected) in facts.items():
        if given != expected:
            raise Failure(f"plan.{name} must be {expected}, got {given}")
    for name in ("workspace_bytes", "flops"):
        value = getattr(plan, name)
        if not isinstance(value, int) or value < 0:
            raise Failure(f"plan.{name} must be an integer ≥ 0, got {value!r}")
    if plan.accumulate_dtype not in DTYPES:
        raise Failure(f"plan.accumulate_dtype must be one of {', '.join(DTYPES)}, got {plan.accumulate_dtype!r}")
    if subject.backend.kind == "own" and plan.accumulate_dtype != spec.accumulate_dtype:
        raise Failure(f"plan.accumulate_dtype must be {spec.accumulate_dtype} here, got {plan.accumulate_dtype}")


def many_calls_of_one_plan_are_all_right(subject: Subject) -> None:
    """Operands prepared beforehand, new data in each call, and earlier results stay as they were."""
    for index in range(_CALLS):
        subject.case(index)
    kept = []
    for index in range(_CALLS):
        y = subject.run_case(index)
        subject.judge(subject.case(index).truth, y, f"call {index + 1}")
        kept.append((y, y.copy()))
    for index, (y, before) in enumerate(kept):
        require_equal(y, before, f"the result of call {index + 1}, after {_CALLS} calls")


def out_is_honoured(subject: Subject) -> None:
    """The result lies in ``out``, whatever its strides, all of it and nothing beside it."""
    case, spec = subject.case(), subject.spec
    first, _, bias = case.operands
    for name, arrange in _ARRANGEMENTS.items():
        if not subject.strided and name != "contiguous":
            continue
        base, view = arrange(_garbage(spec.result_shape, spec.result_dtype))
        before, (around, out) = base.copy(order="K"), subject.send_within(base, view)
        given = subject.plan()(subject.send(first), case.second, subject.send(bias), out)
        if given is not out:
            raise Failure(f"{name} out: the plan returns another object than out")
        subject.judge(case.truth, subject.fetch(out), f"{name} out")
        if subject.strided:
            base[...] = subject.fetch(around)
            view[...] = _garbage(spec.result_shape, spec.result_dtype)  # so that only what lies beside it can differ
            require_equal(base, before, f"the memory beside a {name} out")


def results_are_laid_out_as_the_spec_says(subject: Subject) -> str | None:
    """Channels last in memory, as the operands are, without being asked by ``out``; a rival's library may differ."""
    if not subject.strided:
        raise Refusal("its arrays have no strides")
    y = np.moveaxis(subject.run_case(), 1, -1)
    if y.flags.c_contiguous:
        return None
    if subject.backend.kind != "own":
        return f"strides of {y.strides}, channels last"
    raise Failure(
        f"channels must lie next to each other in memory; strides of (N, *space, C) {y.shape} are {y.strides}"
    )


def inputs_are_untouched(subject: Subject) -> None:
    """The operands hold the same bytes after ``prepare`` and a run."""
    before = subject.case().operands
    operands = [subject.send(array) for array in before.copies()]
    first, second, bias = operands
    prepared = second_operand(subject.plan(), second)
    for _ in range(2):
        subject.plan()(first, prepared, bias)
        for name, now, then in zip((*subject.spec.operand_names, "bias"), operands, before, strict=True):
            if now is not None and then is not None:
                require_equal(subject.fetch(now), then, f"{name} after the run")


def any_strides_will_do(subject: Subject) -> None:
    """Gaps, negative strides, Fortran order, read-only and badly aligned operands, channels last."""
    if not subject.strided:
        raise Refusal("its arrays have no strides")
    case = subject.case()
    for name, arrange in _ARRANGEMENTS.items():
        sent = [None if a is None else subject.send_within(*_read_only(*arrange(a))) for a in case.operands]
        first, second, bias = (None if pair is None else pair[1] for pair in sent)
        y = subject.plan()(first, second_operand(subject.plan(), second), bias)
        subject.judge(case.truth, subject.fetch(y), f"{name}, read-only operands")


def _read_only(base: Array, view: Array) -> tuple[Array, Array]:
    base.flags.writeable = view.flags.writeable = False
    return base, view


def runs_repeat_bit_for_bit(subject: Subject) -> str | None:
    """The same plan, weights and data give the same bytes; a rival's library on a GPU may add up in any order."""
    first, remark = subject.run_case(), None
    for _ in range(2):
        again = subject.run_case()
        if subject.backend.kind == "rival" and subject.backend.device == "cuda" and not np.array_equal(again, first):
            remark = "does not repeat: " + subject.judge(subject.case().truth, again, "the same call again")
            continue
        require_equal(again, first, "the same call again")
    return remark


def two_threads_may_call_one_plan(subject: Subject) -> None:
    """Two threads, different data, switched as often as the interpreter can."""
    for index in (0, 2):  # other data, and another second operand
        subject.case(index)
    start = Barrier(2)

    def work(index: int) -> list[Array]:
        start.wait()
        return [subject.run_case(index) for _ in range(4)]

    with _restless_threads(), ThreadPoolExecutor(2) as pool:
        jobs = {index: pool.submit(work, index) for index in (0, 2)}
    for index, job in jobs.items():
        for y in job.result():
            subject.judge(subject.case(index).truth, y, "two threads at once")


@contextmanager
def _restless_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def two_threads_give_the_same_as_one(subject: Subject) -> None:
    """``threads`` changes the time, not the result, and no more are used than given."""
    case = subject.case()
    used = subject.plan(2).threads
    if used not in (1, 2):
        raise Failure(f"plan.threads must be 1 or 2 where 2 are given, got {used}")
    subject.judge(case.truth, subject.run(case.operands, threads=2), "threads=2")


def workspace_is_declared_honestly(subject: Subject) -> str:
    """What a plan and a run allocate beyond operands, prepared weights and result is declared, by two threads too."""
    remark = _honest_workspace(subject, 1)
    if subject.plan(2).threads == 2:
        remark += f"; threads=2: {_honest_workspace(subject, 2)}"
    return remark


def _honest_workspace(subject: Subject, threads: int) -> str:
    declared, slack = subject.plan(threads).workspace_bytes, slack_bytes(subject.spec, threads)
    memory = _measured(subject, threads, lambda memory: memory.workspace_bytes <= declared + slack)
    measured = memory.workspace_bytes
    if measured > declared + slack:
        raise Failure(
            f"threads={threads} declares {human_bytes(declared)} of workspace and needs {human_bytes(measured)}, "
            f"{human_bytes(measured - declared)} more ({human_bytes(slack)} are let pass)"
        )
    subject.judge(subject.case().truth, subject.fetch(memory.y), f"threads={threads}, under tracemalloc")
    return f"{human_bytes(measured)} measured, {human_bytes(declared)} declared"


def prepared_weights_are_declared_honestly(subject: Subject) -> str:
    """What preparing leaves behind is declared; and no more than twice of it, where the tracer sees what is kept."""
    declared, slack = subject.plan().prepared_bytes, PYTHON_OBJECTS_BYTES
    memory = _measured(subject, 1, lambda memory: memory.prepared_bytes <= declared + slack)
    measured = memory.prepared_bytes
    says = f"declares {human_bytes(declared)} of prepared weights and keeps {human_bytes(measured)}"
    if measured > declared + slack:
        raise Failure(f"{says}, {human_bytes(measured - declared)} more ({human_bytes(slack)} are let pass)")
    if measured > slack and declared > _MOST_OVERSTATED * measured + slack:
        raise Failure(f"{says}: at most {_MOST_OVERSTATED} times as much may be declared")
    return f"{human_bytes(measured)} measured, {human_bytes(declared)} declared"


def _measured(subject: Subject, threads: int, honest: Callable[[Memory], bool]) -> Memory:
    """Measure a plan's memory; again if it seems too much: a table of Python's own that grows does not do so twice."""
    if not subject.on_host:
        raise Refusal("memory: only NumPy's buffers can be measured")
    memory = subject.memory(threads)
    return memory if honest(memory) else subject.memory(threads, again=True)


def malformed_operands_raise(subject: Subject) -> None:
    """Wrong shape, wrong dtype, missing or unasked bias, unprepared weights: SpecError, and the plan lives on."""
    for name, attempt in _malformed(subject):
        try:
            attempt()
        except SpecError:
            continue
        except Exception as error:
            raise Failure(f"{name} must raise SpecError, got {type(error).__name__}: {error}") from error
        raise Failure(f"{name} must raise SpecError, and is accepted")
    subject.judge(subject.case().truth, subject.run_case(), "after the malformed calls")


def _malformed(subject: Subject) -> Iterator[tuple[str, Callable[[], object]]]:
    """Return what must be refused, by name."""
    spec, case, plan = subject.spec, subject.case(), subject.plan()
    other = "float64" if spec.dtype == "float32" else "float32"
    names, (first_shape, second_shape) = spec.operand_names, spec.operand_shapes
    first, second, bias = map(subject.send, case.operands)

    def ones(shape: tuple[int, ...], dtype: str = spec.dtype) -> Any:
        return subject.send(np.ones(shape, dtype))

    def longer(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] + 1)

    def take(array: Any) -> Any:
        """Hand over another second operand."""
        return plan(first, array) if names[1] == "g" else plan.prepare(array)

    yield f"{names[0]} of another shape", lambda: plan(ones(longer(first_shape)), case.second, bias)
    yield f"{names[0]} of {other}", lambda: plan(ones(first_shape, other), case.second, bias)
    yield f"{names[1]} of another shape", lambda: take(ones(longer(second_shape)))
    yield f"{names[1]} of {other}", lambda: take(ones(second_shape, other))
    if spec.bias_shape is None:
        yield "a bias that the spec has not", lambda: plan(first, case.second, ones((spec.out_channels,)))
    else:
        shape = longer(spec.bias_shape)
        yield "a missing bias", lambda: plan(first, case.second)
        yield "a bias of another shape", lambda: plan(first, case.second, ones(shape))
    too_large = ones(longer(spec.result_shape), spec.result_dtype)
    wrong_type = "float64" if spec.result_dtype == "float32" else "float32"
    yield "out of another shape", lambda: plan(first, case.second, bias, too_large)
    yield f"out of {wrong_type}", lambda: plan(first, case.second, bias, ones(spec.result_shape, wrong_type))
    if subject.on_host:
        read_only = np.ones(spec.result_shape, spec.result_dtype)
        read_only.flags.writeable = False
        yield "a read-only out", lambda: plan(first, case.second, bias, read_only)
    if names[1] == "g":
        yield "weights to prepare for the weight gradient", lambda: plan.prepare(ones(spec.weight_shape))
    elif type(case.second) is not type(second):
        yield "weights that are not prepared", lambda: plan(first, second, bias)
    yield "threads=0", lambda: subject.backend.plan(spec, threads=0)


# -- arrangements in memory: (the whole buffer, a view of it that holds the values of an array) ----------------


def _gapped(array: Array) -> tuple[Array, Array]:
    """Every other element along every axis; along the last two alone where that would be many elements."""
    every = array.size << array.ndim <= _MOST_GAPPED
    gaps = [every or axis >= array.ndim - 2 for axis in range(array.ndim)]
    base = _garbage(tuple(2 * n + 1 if gap else n for n, gap in zip(array.shape, gaps, strict=True)), array.dtype.name)
    view = base[tuple(slice(1, None, 2) if gap else slice(None) for gap in gaps)]
    view[...] = array
    return base, view


def _reversed(array: Array) -> tuple[Array, Array]:
    base = np.ascontiguousarray(np.flip(array))
    return base, np.flip(base)


def _fortran(array: Array) -> tuple[Array, Array]:
    base = np.array(array, order="F")
    return base, base[...]


def _contiguous(array: Array) -> tuple[Array, Array]:
    base = np.array(array, order="C")
    return base, base[...]


def _off_alignment(array: Array) -> tuple[Array, Array]:
    """One element beyond where the allocator puts it: no vector's alignment."""
    base = np.empty(array.size + 1, array.dtype)
    view = base[1:].reshape(array.shape)
    view[...] = array
    return base, view


def _channels_last(array: Array) -> tuple[Array, Array]:
    base = np.ascontiguousarray(np.moveaxis(array, min(1, array.ndim - 1), -1))
    return base, np.moveaxis(base, -1, min(1, array.ndim - 1))


_ARRANGEMENTS: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "contiguous": _contiguous,
    "gapped": _gapped,
    "reversed": _reversed,
    "Fortran-ordered": _fortran,
    "channels-last": _channels_last,
    "off-alignment": _off_alignment,
}


def _garbage(shape: tuple[int, ...], dtype: str) -> Array:
    """NaN, or the largest integer: shows in any sum that reads it."""
    return np.full(shape, np.iinfo(dtype).max if "int" in dtype else np.nan, dtype)


def _always(spec: ConvSpec) -> bool:
    return True


#: Each rule, and the specs it applies to.
CONTRACT: tuple[tuple[CheckFunction, Callable[[ConvSpec], bool]], ...] = (
    (why_not_agrees_with_plan, _always),
    (many_calls_of_one_plan_are_all_right, _always),
    (out_is_honoured, _always),
    (
        results_are_laid_out_as_the_spec_says,
        lambda spec: spec.layout == "channels_last" and spec.op != "weight_grad" and 0 not in spec.result_shape,
    ),
    (inputs_are_untouched, _always),
    (any_strides_will_do, _always),
    (runs_repeat_bit_for_bit, _always),
    (two_threads_may_call_one_plan, _always),
    (two_threads_give_the_same_as_one, _always),
    (workspace_is_declared_honestly, _always),
    (prepared_weights_are_declared_honestly, lambda spec: spec.op != "weight_grad"),
    (malformed_operands_raise, _always),
)
