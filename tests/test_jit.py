"""The kernel generator: its vocabulary on every target, what is kept on disk, and jobs over threads."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llvmlite import binding
from numpy.typing import NDArray

from convbench.errors import SpecError
from convbench.jit import compile as compiling
from convbench.jit import pool
from convbench.jit.compile import Kernel, cache_folder, cache_trouble, compiled
from convbench.jit.ir import Code
from convbench.jit.memory import CACHE_LINE, address_of, aligned
from convbench.jit.peak import FmaWork
from convbench.jit.target import VARIABLE, Target, host_target, targets

Array = NDArray[Any]
DTYPES = ("float32", "float64")
on_targets = pytest.mark.parametrize("target", targets().values(), ids=list(targets()))
on_dtypes = pytest.mark.parametrize("dtype", DTYPES)

#: Of CPUs that are not at hand: LLVM makes code for them, which nobody runs.
FOREIGN = {
    "neon": Target("neon", "aarch64-unknown-linux-gnu", "neoverse-n1", "", 16, 32),
    "avx512": Target("avx512", "x86_64-unknown-linux-gnu", "skylake-avx512", "", 64, 32),
    "generic": Target("generic", "x86_64-unknown-linux-gnu", "x86-64", "", 16, 16),
    "power": Target("generic", "powerpc64le-unknown-linux-gnu", "pwr9", "", 16, 32),
}

Write = Callable[[Code], None]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder for entries, for a process that knows no kernel but those of the pool."""
    pool._started()
    monkeypatch.setenv("CONVBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(compiling, "_kernels", {})
    return tmp_path / "jit"


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list that each compilation from now on is added to."""
    seen: list[str] = []
    compile_ = compiling._compile

    def counted(text: str, target: Target) -> bytes:
        seen.append(text)
        return compile_(text, target)

    monkeypatch.setattr(compiling, "_compile", counted)
    return seen


def made(names: str, target: Target, dtype: str, write: Write) -> str:
    code = Code("probe", target, dtype, names.split())
    write(code)
    return code.finish()


def call(
    write: Write, *arguments: int | Array, names: str, target: Target | None = None, dtype: str = "float32"
) -> None:
    """Make, compile and run a kernel as job 5 on thread 3; arrays are given by their addresses."""
    target = target or host_target()
    kernel = compiled(made(names, target, dtype, write), "probe", target)
    table = [address_of(value) if isinstance(value, np.ndarray) else value for value in arguments]
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(kernel.address)
    function((ctypes.c_int64 * len(table))(*table), 5, 3)


def integers_of(write: Callable[[Code], list[Any]], *arguments: int, names: str = "") -> list[int]:
    """Return the integers that a kernel works out."""
    out = np.zeros(32, np.int64)

    def put(code: Code) -> None:
        results = write(code)
        for place, value in enumerate(results):
            code.put(code.const(value), code.integers("out"), place)
        code.put(code.const(len(results)), code.integers("out"), 31)

    call(put, out, *arguments, names=f"out {names}")
    return [int(value) for value in out[: out[31]]]


# -- vocabulary -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(17, 5), (5, 17), (0, 1), (2**40 + 3, 2**20)])
def test_integers(a: int, b: int) -> None:
    def write(code: Code) -> list[Any]:
        x, y = code.integer("a"), code.integer("b")
        return [
            *(code.add(x, y), code.sub(x, y), code.mul(x, 3), code.div(x, y), code.rem(x, y), *code.divmod(x, y)),
            *(code.min(x, y), code.max(x, y), code.select(code.less(x, y), x, y)),
            code.select(code.both(code.less(x, y), code.equal(x, 5)), code.const(1), code.const(0)),
        ]

    expected = [a + b, a - b, 3 * a, a // b, a % b, *divmod(a, b), min(a, b), max(a, b), min(a, b), int(a < b == 17)]
    assert integers_of(write, a, b, names="a b") == expected


def test_integers_of_python_are_worked_out_at_once() -> None:
    code = Code("probe", host_target(), "float32", [])
    assert (code.add(2, 3), code.sub(2, 3), code.mul(2, 3)) == (5, -1, 6)


def test_negative_integers_are_compared_as_such() -> None:
    def write(code: Code) -> list[Any]:
        x = code.integer("a")
        return [code.min(x, 0), code.max(x, 0), code.select(code.less(-1, x), code.const(1), code.const(0))]

    assert integers_of(write, -7, names="a") == [-7, 0, 0]


@pytest.mark.parametrize(("start", "stop", "step"), [(0, 0, 1), (3, 2, 1), (0, 5, 1), (1, 10, 4), (-3, 3, 2)])
def test_a_loop_is_a_range(start: int, stop: int, step: int) -> None:
    def write(code: Code) -> list[Any]:
        count, total = code.variable(0), code.variable(0)
        with code.loop(code.integer("start"), code.integer("stop"), code.integer("step")) as i:
            count.set(code.add(count.get(), 1))
            total.set(code.add(code.mul(total.get(), 31), i))
        return [count.get(), total.get()]

    total = 0
    for i in range(start, stop, step):
        total = 31 * total + i
    assert integers_of(write, start, stop, step, names="start stop step") == [len(range(start, stop, step)), total]


def test_variables_in_loops_take_no_more_stack_with_each_turn() -> None:
    def write(code: Code) -> list[Any]:
        total = code.variable(0)
        with code.loop(0, code.integer("turns")) as i:
            inner = code.variable(i)  # on the stack once, not 10,000,000 times
            with code.loop(0, 2):
                inner.set(code.add(inner.get(), 1))
            total.set(code.add(total.get(), code.sub(inner.get(), i)))
        return [total.get()]

    assert integers_of(write, 10_000_000, names="turns") == [20_000_000]


@pytest.mark.parametrize("value", [0, 1, 6, 27])
def test_repeat_looks_before_each_turn(value: int) -> None:
    def write(code: Code) -> list[Any]:
        n, steps = code.variable(code.integer("n")), code.variable(0)
        with code.repeat(lambda: code.less(1, n.get())):
            odd = code.equal(code.rem(n.get(), 2), 1)
            code.choose(odd, lambda: n.set(code.add(code.mul(n.get(), 3), 1)), lambda: n.set(code.div(n.get(), 2)))
            steps.set(code.add(steps.get(), 1))
        return [steps.get()]

    steps, n = 0, value
    while n > 1:
        n, steps = (3 * n + 1 if n % 2 else n // 2), steps + 1
    assert integers_of(write, value, names="n") == [steps]


@pytest.mark.parametrize("value", [1, 2, 3])
def test_when_and_choose(value: int) -> None:
    def write(code: Code) -> list[Any]:
        x, seen, side = code.integer("x"), code.variable(0), code.variable(0)
        with code.when(code.equal(x, 2)):
            seen.set(1)
        code.choose(code.less(x, 2), lambda: side.set(-1), lambda: side.set(1))
        return [seen.get(), side.get()]

    assert integers_of(write, value, names="x") == [int(value == 2), -1 if value < 2 else 1]


def test_a_kernel_knows_its_job_and_thread() -> None:
    assert integers_of(lambda code: [code.job, code.thread]) == [5, 3]


def test_addresses_are_integers_and_back() -> None:
    row = np.arange(4, dtype="f4")
    out = np.zeros(2, "f4")

    def write(code: Code) -> None:
        place = code.address(code.pointer("x"), 2)
        code.put(code.item(code.numbers_at(place), 1), code.pointer("out"), 0)
        code.put(code.item(code.numbers_at(code.sub(place, 4))), code.pointer("out"), 1)
        code.prefetch(code.pointer("x"), 10**6)  # wherever that is
        code.pause()

    call(write, row, out, names="x out")
    assert out.tolist() == [3, 1]


@on_targets
@on_dtypes
def test_vectors(target: Target, dtype: str) -> None:
    lanes = target.lanes(dtype)
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((3, lanes + 1)).astype(dtype)[:, 1:]  # not aligned
    out = np.zeros((8, lanes), dtype)

    def write(code: Code) -> None:
        x, y, z = (code.load(code.pointer(name)) for name in "abc")
        spread = code.broadcast(code.pointer("a"), 1)
        swapped = [lanes - 1 - lane for lane in range(lanes - 1)] + [lanes]  # one of b
        results = [
            *(code.fma(x, y, z), code.fma(code.negated(x), y, z), code.fadd(x, y), code.fsub(x, y), code.fmul(x, y)),
            *(spread, code.shuffle(x, y, swapped), code.fadd(code.constant(1.5), code.zeros())),
        ]
        for place, vector in enumerate(results):
            code.store(vector, code.pointer("out"), place * lanes)

    call(write, a, b, c, out, names="a b c out", target=target, dtype=dtype)
    expected = [a * b + c, c - a * b, a + b, a - b, a * b, np.full(lanes, a[1]), [*a[:0:-1], b[0]], np.full(lanes, 1.5)]
    np.testing.assert_allclose(out, np.array(expected), rtol=1e-5 if dtype == "float32" else 1e-12, atol=1e-6)


@on_dtypes
def test_multiply_add_is_rounded_once_where_the_target_can(dtype: str) -> None:
    target = host_target()
    epsilon = float(np.finfo(dtype).eps)
    a, out = np.array([1 + epsilon, 1 - epsilon, -1.0], dtype), np.zeros(1, dtype)

    def write(code: Code) -> None:
        numbers = [code.item(code.pointer("a"), place) for place in range(3)]
        code.put(code.fma(*numbers), code.pointer("out"))

    call(write, a, out, names="a out", target=target, dtype=dtype)
    assert out[0] == (-(epsilon**2) if target.name != "generic" or "x86" not in target.triple else 0)


@on_targets
@on_dtypes
def test_a_square_is_transposed(target: Target, dtype: str) -> None:
    lanes = target.lanes(dtype)
    square = np.arange(lanes * lanes, dtype=dtype).reshape(lanes, lanes)
    out = np.zeros_like(square)

    def write(code: Code) -> None:
        rows = [code.load(code.pointer("x"), row * lanes) for row in range(lanes)]
        for place, column in enumerate(code.transpose(rows)):
            code.store(column, code.pointer("out"), place * lanes)
        with pytest.raises(ValueError, match=f"{lanes} make a square"):
            code.transpose(rows[:-1])

    call(write, square, out, names="x out", target=target, dtype=dtype)
    np.testing.assert_array_equal(out, square.T)


@pytest.fixture
def page() -> Iterator[Array]:
    """Return a page of bytes before and after which nothing can be touched."""
    mprotect = getattr(ctypes.CDLL(None), "mprotect", None) if os.name == "posix" else None
    if mprotect is None:
        pytest.skip("memory cannot be protected here")
    size = mmap.PAGESIZE
    memory = mmap.mmap(-1, 3 * size)
    whole = np.frombuffer(memory, np.uint8)
    mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    first = whole.ctypes.data
    for place in (first, first + 2 * size):
        assert mprotect(place, size, 0) == 0  # PROT_NONE
    yield whole[size : 2 * size]
    for place in (first, first + 2 * size):
        mprotect(place, size, 3)


@on_targets
@on_dtypes
@pytest.mark.parametrize("constant", [True, False])
def test_masked_vectors_touch_no_memory_beyond(target: Target, dtype: str, constant: bool, page: Array) -> None:
    lanes = target.lanes(dtype)
    numbers = page.view(dtype)
    for count in range(lanes + 1):
        numbers[:] = np.arange(len(numbers))
        tail, out = numbers[len(numbers) - count :], np.full(lanes, 7, dtype)

        def copy_some(code: Code, count: int = count) -> None:
            some = count if constant else code.integer("count")
            vector = code.load_some(code.pointer("x"), 0, some)
            code.store(vector, code.pointer("out"))
            code.store_some(code.fadd(vector, code.constant(1.0)), code.pointer("x"), 0, some)

        place = address_of(page) + page.nbytes - tail.nbytes  # of an empty tail too
        call(copy_some, place, out, count, names="x out count", target=target, dtype=dtype)
        expected = np.arange(len(numbers))[len(numbers) - count :]
        np.testing.assert_array_equal(out, [*expected, *[0] * (lanes - count)])
        np.testing.assert_array_equal(tail, expected + 1)
        np.testing.assert_array_equal(numbers[: len(numbers) - count], np.arange(len(numbers) - count))


@pytest.mark.parametrize("target", FOREIGN.values(), ids=list(FOREIGN))
@on_dtypes
def test_code_is_made_for_other_cpus(target: Target, dtype: str) -> None:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()

    def write(code: Code) -> None:
        x, out, lanes = code.pointer("x"), code.pointer("out"), code.lanes
        with code.loop(0, code.integer("count"), lanes) as i:
            rows = [code.load_some(x, i, code.integer("count")) for _ in range(lanes)]
            sums = [code.fma(row, code.broadcast(x, i), code.zeros()) for row in code.transpose(rows)]
            for vector in sums:
                code.store_some(vector, out, i, code.integer("count"))
            code.prefetch(x, i)
            if target.triple.partition("-")[0] == host_target().triple.partition("-")[0]:
                code.pause()  # is assembly, which llvmlite reads for the host alone

    code = compiling._compile(made("x out count", target, dtype, write), target)
    assert binding.ObjectFileRef.from_data(code)


@pytest.mark.parametrize("width", [16, 32])
@on_dtypes
def test_panels_of_narrow_and_wide_targets_are_the_same(width: int, dtype: str) -> None:
    """Lanes come from the target alone: a target of this CPU with other vectors does the same."""
    host = host_target()
    narrow = Target("narrow", host.triple, host.cpu, host.features, width, host.registers)
    x = np.arange(101, dtype=dtype)
    out = np.zeros_like(x)

    def write(code: Code) -> None:
        count = code.integer("count")
        with code.loop(0, count, code.lanes) as i:
            left = code.min(code.lanes, code.sub(count, i))
            vector = code.load_some(code.pointer("x"), i, left)
            code.store_some(code.fadd(vector, vector), code.pointer("out"), i, left)

    call(write, x, out, len(x), names="x out count", target=narrow, dtype=dtype)
    np.testing.assert_array_equal(out, 2 * x)


# -- targets --------------------------------------------------------------------------------------


def test_a_target_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert host_target() is next(iter(targets().values()))
    for name, target in targets().items():
        monkeypatch.setenv(VARIABLE, name)
        assert host_target() is target
    assert "generic" in targets()


def test_a_target_that_this_cpu_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "mmx")
    with pytest.raises(SpecError, match=r"CONVBENCH_JIT_TARGET.*mmx.*must be one of .*generic"):
        host_target()


def test_a_hidden_instruction_costs_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    features = dict.fromkeys(("avx512f", "avx512vl", "avx512dq", "avx2", "fma", "bmi", "bmi2", "movbe"), True)

    class Features(dict[str, bool]):
        def flatten(self) -> str:
            return ",".join(f"+{name}" for name in self)

    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: Features(features))
    monkeypatch.setattr(binding, "get_default_triple", lambda: "x86_64-unknown-linux-gnu")
    targets.cache_clear()
    try:
        assert list(targets()) == ["avx512", "generic"]  # avx2's code may use lzcnt
    finally:
        targets.cache_clear()


# -- memory ---------------------------------------------------------------------------------------


def test_aligned_arrays_begin_on_a_cache_line() -> None:
    for size in range(1, 40):
        array = aligned((size, 3), "float64")
        assert array.shape == (size, 3)
        assert address_of(array) == array.ctypes.data
        assert address_of(array) % CACHE_LINE == 0


def test_strides_in_items() -> None:
    x = np.zeros((4, 6), "f4")
    assert address_of(x[1:, 2:]) == x.ctypes.data + (6 + 2) * 4


# -- what is kept on disk -------------------------------------------------------------------------


def text_of(number: int, target: Target | None = None) -> str:
    """Return the IR of a kernel that writes a number."""
    write: Write = lambda code: code.put(code.const(number), code.integers("out"))  # noqa: E731
    return made("out", target or host_target(), "float32", write)


def number_of(kernel: Kernel) -> int:
    out = np.zeros(1, np.int64)
    pool.run(kernel, (address_of(out),), 1, 1)
    return int(out[0])


def load(text: str) -> int:
    return number_of(compiled(text, "probe", host_target()))


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be another process, as far as kernels go."""
    monkeypatch.setattr(compiling, "_kernels", {})


def entries(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


def test_a_kernel_is_compiled_once_a_machine(
    cache: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(text_of(41)) == load(text_of(41)) == 41
    assert len(compilations) == 1
    forget(monkeypatch)
    assert load(text_of(41)) == 41
    assert len(compilations) == 1
    assert load(text_of(42)) == 42
    assert len(compilations) == 2
    assert [path.suffix for path in entries(cache)] == [".o"] * 2  # and nothing temporary


def test_entries_depend_on_ir_cpu_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    import llvmlite

    target = host_target()
    kinds = {
        "ir": (text_of(1), target),
        "other": (text_of(2), target),
        "cpu": (text_of(1), replace(target, cpu="another")),
        "features": (text_of(1), replace(target, features="+more")),
    }
    keys = {name: compiling._key(*kind) for name, kind in kinds.items()}
    monkeypatch.setattr(llvmlite, "__version__", "0.0")
    keys["llvmlite"] = compiling._key(text_of(1), target)
    monkeypatch.setattr(binding, "llvm_version_info", (1, 0, 0))
    keys["llvm"] = compiling._key(text_of(1), target)
    assert len(set(keys.values())) == len(keys)


def cut(entry: bytes, other: bytes) -> bytes:
    return entry[: len(entry) // 2]


def no_code(entry: bytes, other: bytes) -> bytes:
    return entry[:32]


def empty(entry: bytes, other: bytes) -> bytes:
    return b""


def flipped(entry: bytes, other: bytes) -> bytes:
    return entry[:-9] + bytes([entry[-9] ^ 4]) + entry[-8:]


def flipped_digest(entry: bytes, other: bytes) -> bytes:
    return bytes([entry[0] ^ 1]) + entry[1:]


def longer(entry: bytes, other: bytes) -> bytes:
    return entry + b"\0"


def another_kernel(entry: bytes, other: bytes) -> bytes:
    return other  # whole, but under this one's name


@pytest.mark.parametrize("harm", [cut, no_code, empty, flipped, flipped_digest, longer, another_kernel])
def test_a_harmed_entry_is_built_anew(
    harm: Callable[[bytes, bytes], bytes], cache: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(text_of(41))
    (path,) = entries(cache)
    good = path.read_bytes()
    load(text_of(42))
    (other,) = (entry.read_bytes() for entry in entries(cache) if entry != path)
    path.write_bytes(harm(good, other))
    forget(monkeypatch)
    assert load(text_of(41)) == 41
    assert len(compilations) == 3
    forget(monkeypatch)
    assert load(text_of(41)) == 41
    assert len(compilations) == 3
    assert len(entries(cache)) == 2


def test_a_folder_in_the_place_of_an_entry_costs_a_compilation(
    cache: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(text_of(41))
    (path,) = entries(cache)
    path.unlink()
    path.mkdir()
    forget(monkeypatch)
    assert load(text_of(41)) == 41
    assert len(compilations) == 2
    assert entries(cache) == [path]


@pytest.mark.parametrize("problem", ["a file", "below a file", "not to be written"])
def test_a_folder_that_cannot_be_written_costs_time_only(
    problem: str, cache: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if problem == "a file":
        cache.write_text("")
    elif problem == "below a file":
        (cache.parent / "file").write_text("")
        monkeypatch.setenv("CONVBENCH_CACHE", str(cache.parent / "file"))
    else:
        monkeypatch.setattr(compiling.tempfile, "mkstemp", _refuse)
    for _ in range(2):
        forget(monkeypatch)
        assert load(text_of(41)) == 41
    assert len(compilations) == 2


def _refuse(*_: object, **__: object) -> None:
    raise PermissionError("read-only")


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_no_temporary_file_is_left(error: type[BaseException], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(compiling.os, "replace", fail)
    if error is OSError:
        assert load(text_of(41)) == 41
    else:
        with pytest.raises(KeyboardInterrupt):
            load(text_of(41))
    assert entries(cache) == []


only_posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")


@only_posix
def test_code_is_for_its_user_alone(cache: Path) -> None:
    old = os.umask(0)
    try:
        load(text_of(41))
    finally:
        os.umask(old)
    (path,) = entries(cache)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert cache_trouble() is None


@only_posix
@pytest.mark.parametrize("where", ["folder", "entry"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_code_that_others_could_have_written_is_not_run(
    where: str, mode: int, cache: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(text_of(41))
    (path,) = entries(cache)
    harmed = cache if where == "folder" else path
    harmed.chmod(stat.S_IMODE(harmed.stat().st_mode) | mode)
    forget(monkeypatch)
    assert load(text_of(41)) == 41
    assert len(compilations) == 2
    assert (cache_trouble() is not None) == (where == "folder")
    forget(monkeypatch)
    load(text_of(41))
    assert len(compilations) == (3 if where == "folder" else 2)  # the entry was replaced, the folder is as it was


@only_posix
def test_code_of_another_user_is_not_run(cache: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    load(text_of(41))
    own = os.geteuid()
    monkeypatch.setattr(compiling.os, "geteuid", lambda: own + 1)
    forget(monkeypatch)
    assert load(text_of(41)) == 41
    assert len(compilations) == 2
    assert cache_trouble() == "it belongs to another user, or others may write it (chmod go-w)"
    assert len(entries(cache)) == 1


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVBENCH_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "jit"
    assert cache_trouble() is None  # not there yet, but can be made
    monkeypatch.delenv("CONVBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "convbench" / "jit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(compiling.Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "convbench" / "jit"


@only_posix
def test_a_user_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("CONVBENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compiling.Path, "home", no_home)
    assert cache_folder().parts[-2:] == (f"convbench-{os.getuid()}", "jit")


#: Compiles 8 kernels as soon as a file appears, and prints their numbers.
TOGETHER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_jit import load, text_of
texts = [text_of(number) for number in range(8)]
Path({folder!r}, "ready-" + sys.argv[1]).touch()
while not Path({folder!r}, "go").exists():
    time.sleep(0.001)
print([load(text) for text in texts])
"""


def python(program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    piped = subprocess.PIPE
    return subprocess.Popen(command, stdout=piped, stderr=piped, text=True, env=os.environ | environment)


def finished(process: subprocess.Popen[str], timeout_s: float = 100) -> str:
    """Wait for the process and return what it printed."""
    out, errors = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, (process.returncode, errors)
    assert errors == ""
    return out


def test_processes_that_compile_the_same_at_once_are_right(tmp_path: Path) -> None:
    program = TOGETHER.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    cache = tmp_path / "cache"
    processes = [python(program, str(number), CONVBENCH_CACHE=str(cache)) for number in range(3)]
    until = time.monotonic() + 100
    while len(list(tmp_path.glob("ready-*"))) < len(processes) and time.monotonic() < until:
        time.sleep(0.005)
    (tmp_path / "go").touch()
    assert [finished(process).strip() for process in processes] == [str(list(range(8)))] * 3
    # the numbers, and the pool's leader and helper
    assert [path.suffix for path in entries(cache / "jit")] == [".o"] * 10


# -- jobs over threads ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counting() -> Kernel:
    """Return a kernel that adds thread + 1 to its job's integer, after some turns of a loop."""

    def write(code: Code) -> None:
        out, total = code.integers("out"), code.variable(0)
        with code.loop(0, code.integer("turns")) as i:
            total.set(code.add(code.mul(total.get(), 7), i))
        code.put(total.get(), code.integers("sink"), code.thread)
        code.put(code.add(code.item(out, code.job), code.add(code.thread, 1)), out, code.job)

    return compiled(made("out sink turns", host_target(), "float32", write), "probe", host_target())


def count(kernel: Kernel, jobs: int, threads: int, turns: int = 10) -> Array:
    """Return what the jobs wrote, and see that nothing was written beyond."""
    out, sink = np.zeros(jobs + 1, np.int64), np.zeros(threads + 1, np.int64)
    pool.run(kernel, (address_of(out), address_of(sink), turns), jobs, threads)
    assert out[jobs] == 0
    assert sink[threads] == 0
    return out[:jobs]


def is_right(found: Array, threads: int) -> bool:
    """Was every job done once? Twice would be a sum of threads that these cannot all make."""
    return bool(((found >= 1) & (found <= threads)).all())


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("jobs", [0, 1, 2, 3, 64])
def test_every_job_is_done(jobs: int, threads: int, counting: Kernel) -> None:
    for _ in range(20):
        assert is_right(count(counting, jobs, threads), threads)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_job_is_done_once(threads: int) -> None:
    def write(code: Code) -> None:
        code.put(code.add(code.item(code.integers("out"), code.job), 1), code.integers("out"), code.job)

    kernel = compiled(made("out", host_target(), "float32", write), "probe", host_target())
    out = np.zeros(100, np.int64)
    for turn in range(1, 300):
        pool.run(kernel, (address_of(out),), len(out), threads)
        assert (out == turn).all()


def two_threads_meet(pause_s: Callable[[], float] = lambda: 0.0, times: int = 20) -> None:
    """See that two jobs, of which each waits for the other to begin, are done by threads 0 and 1."""

    def write(code: Code) -> None:
        arrived, turns = code.integers("arrived"), code.variable(0)
        code.builder.atomic_rmw("add", arrived, code.const(1), "seq_cst")

        def is_alone() -> Any:
            there = code.builder.load_atomic(arrived, "seq_cst", 8)
            return code.both(code.less(there, 2), code.less(turns.get(), 2 * 10**8))  # many seconds

        with code.repeat(is_alone):
            turns.set(code.add(turns.get(), 1))
            code.pause()
        code.put(code.add(code.thread, 1), code.integers("out"), code.job)

    kernel = compiled(made("arrived out", host_target(), "float32", write), "probe", host_target())
    for _ in range(times):
        arrived, out = np.zeros(1, np.int64), np.zeros(2, np.int64)
        pool.run(kernel, (address_of(arrived), address_of(out)), 2, 2)
        assert sorted(out) == [1, 2]
        time.sleep(pause_s())


def test_threads_have_numbers_of_their_own() -> None:
    two_threads_meet()


def test_no_helper_falls_asleep_over_a_call() -> None:
    """Calls come just when helpers give up waiting for them."""
    rng = random.Random(0)
    two_threads_meet(lambda: rng.uniform(0, 3 * pool._SPIN_S), 100)


def test_random_calls(counting: Kernel) -> None:
    rng = random.Random(0)
    for _ in range(2000):
        jobs, threads = rng.randrange(20), rng.randrange(1, 6)
        assert is_right(count(counting, jobs, threads, rng.choice((0, 10, 1000))), threads)


def test_many_threads_may_call_at_once(counting: Kernel) -> None:
    wrong: list[Array] = []
    begin = threading.Barrier(6)

    def calls(seed: int) -> None:
        rng = random.Random(seed)
        begin.wait(timeout=60)
        for _ in range(300):
            threads = rng.randrange(1, 4)
            found = count(counting, rng.randrange(1, 30), threads, rng.choice((0, 100, 3000)))
            if not is_right(found, threads):
                wrong.append(found)

    callers = [threading.Thread(target=calls, args=(seed,)) for seed in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


def test_many_threads_may_make_the_first_call_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_teams", [])
    found: list[int] = []
    begin = threading.Barrier(5)

    def first(number: int) -> None:
        begin.wait(timeout=60)
        found.append(load(text_of(number % 2)))

    callers = [threading.Thread(target=first, args=(number,)) for number in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(found) == [0, 0, 0, 1, 1]
    assert len(pool._teams) == 1
    assert len(entries(cache)) == 4


def test_helpers_that_sleep_are_woken(counting: Kernel) -> None:
    count(counting, 8, 3)
    team = pool._teams[0]
    until = time.monotonic() + 60
    while len(team._asleep) < len(team._helpers) and time.monotonic() < until:
        time.sleep(0.01)
    assert len(team._asleep) == len(team._helpers) >= 2
    two_threads_meet()
    assert len(set(map(id, team._asleep))) == len(team._asleep)


def test_where_no_thread_can_be_started_the_caller_does_all(counting: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(pool, "_teams", [])
    monkeypatch.setattr(pool.threading.Thread, "start", fail)
    assert is_right(count(counting, 50, 4), 1)
    assert pool._teams[0]._helpers == []


def test_arguments_may_be_any_integers(counting: Kernel) -> None:
    out = np.zeros(4, np.int64)

    def write(code: Code) -> None:
        for place, name in enumerate("abc"):
            code.put(code.integer(name), code.integers("out"), place)

    kernel = compiled(made("out a b c", host_target(), "float32", write), "probe", host_target())
    pool.run(kernel, [address_of(out), -1, np.int64(-(2**63)), 2**63 - 1], 1, 1)  # type: ignore[list-item]
    assert out.tolist() == [-1, -(2**63), 2**63 - 1, 0]


HEAD = """
import os, sys, threading, time
sys.path.insert(0, {tests!r})
import numpy as np
from test_jit import count, counting, is_right
from convbench.jit import pool
kernel = counting.__wrapped__() if hasattr(counting, "__wrapped__") else counting._fixture_function()
"""


def in_fresh_process(program: str) -> str:
    return finished(python(HEAD.format(tests=str(Path(__file__).parent)) + textwrap.dedent(program)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_has_helpers_of_its_own() -> None:
    program = """
    assert is_right(count(kernel, 50, 3), 3)
    for _ in range(5):
        child = os.fork()
        if not child:
            ok = all(is_right(count(kernel, 50, 3, 1000), 3) for _ in range(50))
            os._exit(0 if ok and len(pool._teams[0]._helpers) == 2 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert is_right(count(kernel, 50, 3), 3)
    """
    in_fresh_process(program)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_of_a_process_that_calls_and_compiles_meanwhile() -> None:
    program = """
    from test_jit import load, text_of
    over = threading.Event()

    def calls():
        while not over.is_set():
            count(kernel, 50, 3, 1000)

    def compiles():
        number = 0
        while not over.is_set():
            number += 1
            load(text_of(number))

    os.environ["CONVBENCH_CACHE"] = os.devnull  # everything is compiled
    others = [threading.Thread(target=work) for work in (calls, compiles)]
    for other in others:
        other.start()
    for number in range(10):
        child = os.fork()
        if not child:
            ok = is_right(count(kernel, 50, 3), 3) and load(text_of(-number)) == -number
            os._exit(0 if ok else 1)
        assert os.waitpid(child, 0)[1] == 0
    over.set()
    for other in others:
        other.join()
    """
    in_fresh_process(program)


@pytest.mark.parametrize("asleep_s", [0.0, 0.05])
def test_the_interpreter_ends_with_helpers_awake_or_asleep(asleep_s: float) -> None:
    program = f"""
    count(kernel, 50, 4, 1000)
    time.sleep({asleep_s})
    team = pool._teams[0]
    import atexit
    atexit.register(lambda: print("awake", len(team._helpers) - len(team._asleep)))  # before the pool's own
    if not {asleep_s}:
        count(kernel, 50, 4, 1000)
    """
    for _ in range(3):
        printed = in_fresh_process(program)
        assert "awake" in printed
        assert not asleep_s or printed.strip() == "awake 0"


def test_calls_go_on_while_the_interpreter_ends() -> None:
    program = """
    import atexit
    atexit._run_exitfuncs()  # the pool's too: its helpers are gone
    assert not any(helper.is_alive() for team in pool._teams for helper in team._helpers)
    assert is_right(count(kernel, 50, 4), 1)
    """
    in_fresh_process("count(kernel, 50, 4)\n" + textwrap.dedent(program))


# -- the peak -------------------------------------------------------------------------------------


@on_targets
@on_dtypes
@pytest.mark.parametrize("threads", [1, 2])
def test_the_work_that_shows_the_peak_is_done(target: Target, dtype: str, threads: int) -> None:
    work = FmaWork(dtype, threads, target)
    work()
    chains = target.registers - 3
    assert work._sums[0] == pytest.approx(np.full(target.lanes(dtype), chains))  # each chain goes to 1
    assert work.flops == 2 * chains * target.lanes(dtype) * 2000 * 4 * threads


def test_the_peak_stays_in_registers() -> None:
    """Between the loop's label and its jump nothing is read or written."""
    from convbench.jit import peak

    target = host_target()
    machine = compiling._machine(target)
    module = binding.parse_assembly(peak._text("float32", target))
    builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(module, builder)
    assembly = machine.emit_assembly(module)
    if not target.triple.startswith("x86_64"):
        pytest.skip("reads the assembly of x86-64")
    products = [line for line in assembly.splitlines() if "fmadd" in line or "mulps" in line]
    assert len(products) >= (target.registers - 3) * 4
    assert not any("(%r" in line for line in products)


# -- without the compiler -------------------------------------------------------------------------


def test_importing_and_listing_need_no_compiler() -> None:
    program = """
    import sys, convbench
    convbench.all_backends()
    print([name for name in sys.modules if name.partition(".")[0] == "llvmlite"])
    """
    assert finished(python(program)).strip() == "[]"


def test_without_the_compiler_its_backends_name_the_command() -> None:
    program = """
    import sys
    sys.modules["llvmlite"] = None  # fails to be imported
    import convbench
    found = convbench.all_backends()
    lost = {name: backend for name, backend in found.items() if "llvmlite.binding" in backend.requires}
    for name, backend in lost.items():
        assert backend.unavailable() == "not installed: needs llvmlite: pip install llvmlite", backend.unavailable()
        assert backend.why_not(convbench.ConvSpec.parse("i8 k3")) == backend.unavailable()
        assert backend.implementation
    print(len(lost))
    """
    assert int(finished(python(program))) > 0
