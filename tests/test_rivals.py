"""The rivals: threads held and restored, memory shared, what SciPy would quietly change refused, libraries missing."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import convbench as cb
from convbench import backend, oracle
from convbench.backends._planes import Frame
from convbench.threads import Pool

TORCH = ("torch", "torch-channels-last", "torch-padded-first")
LINE = "n1 c4 o4 g2 i20x24 k3x5 p1x2 f32"


def operands(spec: cb.ConvSpec, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x, w = (rng.standard_normal(shape).astype(spec.dtype) for shape in (spec.input_shape, spec.weight_shape))
    return x, w


def rank_one(spec: cb.ConvSpec) -> Any:
    factors = (np.arange(1.0, size + 1) for size in spec.kernel_size)
    outer = np.multiply.outer(*factors).astype(spec.dtype)
    return np.array(np.broadcast_to(outer, spec.weight_shape))


# -- threads --------------------------------------------------------------------------------------


class Library:
    """Stands for a library with a pool of 8 threads."""

    def __init__(self) -> None:
        self.size = 8

    def get_num_threads(self) -> int:
        return self.size

    def set_num_threads(self, threads: int) -> None:
        self.size = threads


def test_the_most_modest_of_concurrent_plans_wins_and_the_last_restores() -> None:
    library = Library()
    pool = Pool(lambda: (library,))
    first, second = pool.held(4), pool.held(2)
    first.__enter__()
    assert library.size == 4
    second.__enter__()
    assert library.size == 2
    first.__exit__(None, None, None)
    assert library.size == 2
    second.__exit__(None, None, None)
    assert library.size == 8


def test_a_pool_of_each_thread_is_held_for_each_thread() -> None:
    library = Library()
    pool = Pool(lambda: (library,), each_thread=True)

    def hold() -> int:
        with pool.held(4):
            return library.size

    with pool.held(2), ThreadPoolExecutor(1) as other:
        assert other.submit(hold).result() == 4  # a size of its own: this thread's 2 does not count
        assert library.size == 2
    assert library.size == 8


class Rival:
    """One rival's library, its pool, and where to put a spy that its function calls."""

    def __init__(self, name: str, module: str, place: Any, attribute: str, getter: str, setter: str) -> None:
        self.name, self.place, self.attribute = name, place, attribute
        self.library = pytest.importorskip(module)
        self.read, self.write = getattr(self.library, getter), getattr(self.library, setter)


def rival(name: str) -> Rival:
    names = ("get_num_threads", "set_num_threads")
    if name in TORCH:
        functional = pytest.importorskip("torch").nn.functional
        return Rival(name, "torch", functional, "conv2d", *names)
    if name == "numba":
        return Rival(name, "numba", importlib.import_module("convbench.backends.numba"), "_compiled", *names)
    function = {"opencv": "filter2D", "opencv-sep": "sepFilter2D"}[name]
    return Rival(name, "cv2", pytest.importorskip("cv2"), function, "getNumThreads", "setNumThreads")


@pytest.fixture(params=[*TORCH, "numba", "opencv", "opencv-sep"])
def threaded(request: pytest.FixtureRequest) -> Iterator[Rival]:
    """A rival with threads, its pool at 2 where it may be, put back afterwards."""
    found = rival(request.param)
    before = found.read()
    with suppress(ValueError):  # Numba on one core
        found.write(2)
    yield found
    found.write(before)


def spy_on(monkeypatch: pytest.MonkeyPatch, rival: Rival, look: Callable[[], None]) -> None:
    """Call ``look`` at each call of the library's function."""
    real = getattr(rival.place, rival.attribute)

    def spy(*arguments: Any, **keywords: Any) -> Any:
        if rival.name != "numba":
            look()
            return real(*arguments, **keywords)
        loops = real(*arguments)

        def spied(*arrays: Any) -> None:
            look()
            loops(*arrays)

        return spied

    monkeypatch.setattr(rival.place, rival.attribute, spy)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_plan_uses_the_threads_it_reports(threaded: Rival, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """inside the library's own function; afterwards the pool is what it was."""
    plan = cb.plan(LINE, backend=threaded.name, threads=threads)
    most = threaded.library.config.NUMBA_NUM_THREADS if threaded.name == "numba" else threads
    assert plan.threads == min(threads, most)
    weights = plan.prepare(rank_one(plan.spec))
    before, seen = threaded.read(), list[int]()
    spy_on(monkeypatch, threaded, lambda: seen.append(threaded.read()))
    plan(operands(plan.spec)[0], weights)
    assert set(seen) == {plan.threads}
    assert threaded.read() == before


def test_an_error_restores_the_threads_too(threaded: Rival, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = cb.plan(LINE, backend=threaded.name, threads=1)
    weights = plan.prepare(rank_one(plan.spec))
    before = threaded.read()

    def fail() -> None:
        assert threaded.read() == 1
        raise ZeroDivisionError

    spy_on(monkeypatch, threaded, fail)
    with pytest.raises(ZeroDivisionError):
        plan(operands(plan.spec)[0], weights)
    assert threaded.read() == before


def test_plans_of_different_threads_may_run_at_once(threaded: Rival) -> None:
    plans = [cb.plan(LINE, backend=threaded.name, threads=threads) for threads in (1, 2)]
    x, w = operands(plans[0].spec)[0], rank_one(plans[0].spec)
    expected = oracle.conv(plans[0].spec, x, w)
    before, start = threaded.read(), Barrier(2)

    def work(plan: Any) -> float:
        weights = plan.prepare(w)
        start.wait()
        return max(float(np.abs(plan(x, weights) - expected).max()) for _ in range(20))

    with ThreadPoolExecutor(2) as executor:
        assert max(executor.map(work, plans)) < 1e-3
    assert threaded.read() == before


# -- numba ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_numba_survives_two_threads_whatever_its_threading_layer(layer: str) -> None:
    """its own layer, workqueue, would end the process: calls then wait for each other."""
    pytest.importorskip("numba")
    program = f"""
    from concurrent.futures import ThreadPoolExecutor
    import numba, numpy as np, sys
    import convbench as cb
    try:
        plan = cb.plan("c8 o8 i60x60 k3 p1 f32", backend="numba", threads=2)
    except ValueError as error:  # no such layer here
        sys.exit(print("skip", error))
    assert numba.threading_layer() == {layer!r}
    x, weights = np.ones(plan.spec.input_shape, "f4"), plan.prepare(np.ones(plan.spec.weight_shape, "f4"))
    with ThreadPoolExecutor(4) as pool:
        sums = {{float(y[0, 0, 30, 30]) for y in pool.map(lambda _: plan(x, weights), range(200))}}
    assert sums == {{72.0}}, sums
    """
    environment = {**os.environ, "NUMBA_THREADING_LAYER": layer}
    program = textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    if done.stdout.startswith("skip"):
        pytest.skip(done.stdout.strip())


def test_numba_compiles_without_a_folder_for_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba")
    module = importlib.import_module("convbench.backends.numba")
    asked: list[bool] = []

    def njit(signature: Any, *, cache: bool = False, **options: Any) -> Callable[[Any], str]:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: "compiled"

    names = ("int64", "prange", "types")
    monkeypatch.setattr(module, "_library", lambda: SimpleNamespace(njit=njit, **{n: getattr(numba, n) for n in names}))
    assert module._compiled.__wrapped__("float32") == "compiled"
    assert asked == [True, False]


def test_numba_compiles_in_the_plan() -> None:
    """once a dtype, so that no call is slow."""
    pytest.importorskip("numba")
    module = importlib.import_module("convbench.backends.numba")
    plan = cb.plan("i9 k3 f64", backend="numba", threads=1)
    misses = module._compiled.cache_info().misses
    plan(np.ones((1, 1, 9)), plan.prepare(np.ones((1, 1, 3))))
    assert module._compiled.cache_info().misses == misses


# -- torch ----------------------------------------------------------------------------------------


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


@pytest.mark.filterwarnings("error")
def test_torch_reads_numpys_memory_and_warns_of_nothing() -> None:
    """read-only arrays too; only negative strides cost a copy."""
    pytest.importorskip("torch")
    from convbench.backends._torch import as_tensor

    array = np.arange(24.0).reshape(2, 3, 4)
    for view in (array, read_only(array.copy()), array[::2, 1:, ::3], np.moveaxis(array, 0, 2), array[:0]):
        tensor = as_tensor(view)
        assert tensor.data_ptr() == view.__array_interface__["data"][0] or view.size == 0
        np.testing.assert_array_equal(tensor.numpy(), view)
    np.testing.assert_array_equal(as_tensor(array[:, ::-1]).numpy(), array[:, ::-1])


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_channels_last_results_are_views_of_what_torch_returns(layout: str) -> None:
    pytest.importorskip("torch")
    plan = cb.plan(f"n2 c8 o16 i12x10 k3 p1 layout={layout} f32", backend="torch-channels-last", threads=1)
    x, w = operands(plan.spec)
    if layout == "channels_last":
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    y = plan(x, plan.prepare(w))
    assert y.shape == plan.spec.output_shape
    assert np.moveaxis(y, 1, -1).flags.c_contiguous
    assert not y.flags.owndata


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_torch_keeps_the_bound_of_its_complex_products(name: str, dtype: str) -> None:
    """the imaginary part is a difference of sums of both parts: the case where that is worst."""
    pytest.importorskip("torch")
    spec = cb.ConvSpec.parse(f"c8 o8 i30x30 k5 p2 {dtype}")
    x, w = operands(spec)
    x, w = x * (1 + 1j), w * (1 - 1j)  # an imaginary part that cancels
    x, w = x.astype(dtype), w.astype(dtype)
    plan = cb.plan(spec, backend=name, threads=2)
    verdict = oracle.Truth(spec, x, w).judge(plan(x, plan.prepare(w)), cb.get_backend(name).error_bound(spec))
    assert verdict.ok, verdict.message


# -- planes ---------------------------------------------------------------------------------------


def test_a_frame_uses_the_librarys_border_where_the_kernel_reaches_it() -> None:
    within = Frame.of(cb.ConvSpec.parse("i9x8 k3x4 p0:2x3:-1 boundary=replicate"))
    assert (within.margins, within.anchor, within.size, within.boundary) == (None, (0, 3), (9, 8), "replicate")
    beyond = Frame.of(cb.ConvSpec.parse("i9x8 k3 p2x-1"))
    assert (beyond.margins, beyond.anchor, beyond.size) == (((2, 2), (0, 0)), (0, 0), (13, 8))
    assert beyond.wanted == (slice(0, 11), slice(1, 5))


@pytest.mark.parametrize("name", ["scipy-ndimage", "opencv"])
@pytest.mark.parametrize("boundary", ["zero", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("geometry", ["k3x4 p1x2:1", "k5x4 p0:4x3:0", "k4x3 p9:1x2:7", "k3x5 p-1:2x2:-3", "k7x6 pfull"])
def test_boundaries_are_those_of_the_spec(name: str, boundary: str, geometry: str) -> None:
    spec = cb.ConvSpec.parse(f"c2 o2 i5x6 {geometry} boundary={boundary} f64")
    reason = cb.get_backend(name).why_not(spec)
    if reason is not None:
        assert reason.startswith(("boundary: circular", "not installed")), reason
        pytest.skip(reason)
    x, w = (np.rint(4 * a) for a in operands(spec))
    np.testing.assert_array_equal(
        cb.plan(spec, backend=name)(x, cb.plan(spec, backend=name).prepare(w)), oracle.conv(spec, x, w)
    )


@pytest.mark.parametrize(
    ("line", "taps", "reason"),
    [
        ("i9x9 k1x3", [1, 1e-17, 1], "leaves out"),
        ("i9x9 k1x3", [1, np.nan, 1], "NaN"),
        ("i9 k3", [1, 2, 1 + 2**-52], "symmetric within"),
        ("i9 k3", [1e-17, 5e-17, 3e-17], "symmetric within"),
        ("i9 k5", [-1, 1, 7, -1 + 2**-53, 1], "symmetric within"),
        ("i9 k3", [np.nan, 2, 1], "NaN"),
    ],
)
def test_weights_that_ndimage_would_change_are_refused(line: str, taps: list[float], reason: str) -> None:
    plan = cb.plan(f"{line} f64", backend="scipy-ndimage")
    with pytest.raises(cb.UnsupportedWeights, match=f"weights: .*{reason}"):
        plan.prepare(np.array(taps, "f8").reshape(plan.spec.weight_shape))


@pytest.mark.parametrize("taps", [[1e-17, 5, 1e-17], [-1, 0, 1], [1, 2, 4], [3e-17, 9], [0, 0, 0]])
def test_weights_that_ndimage_takes_as_they_are(taps: list[float]) -> None:
    plan = cb.plan(f"i9 k{len(taps)} pfull f64", backend="scipy-ndimage")
    x, w = operands(plan.spec)[0], np.array(taps, "f8").reshape(plan.spec.weight_shape)
    np.testing.assert_allclose(plan(x, plan.prepare(w)), oracle.conv(plan.spec, x, w), rtol=1e-14, atol=1e-30)


def test_opencv_sep_names_the_rank_that_it_does_not_do() -> None:
    pytest.importorskip("cv2")
    plan = cb.plan("i9x9 k3", backend="opencv-sep")
    with pytest.raises(cb.UnsupportedWeights, match="weights: numerical rank 3 of 3, only 1 is done"):
        plan.prepare(np.eye(3, dtype="f4")[None, None])


@pytest.mark.parametrize("ipp", [True, False])
@pytest.mark.parametrize(
    "line", ["i300x310 k13 p6 f64", "i300x310 k13 p6 f32", "i5000 k301 p150 f64", "i90x80 k7x8 f64"]
)
def test_opencvs_transforms_keep_their_bound(line: str, ipp: bool) -> None:
    """with Intel's transforms and with OpenCV's own, which are less accurate."""
    cv2 = pytest.importorskip("cv2")
    spec = cb.ConvSpec.parse(line)
    x, w = operands(spec)
    before = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(ipp)
    try:
        plan, bound = cb.plan(spec, backend="opencv"), cb.get_backend("opencv").error_bound(spec)
        verdict = oracle.Truth(spec, x, w).judge(plan(x, plan.prepare(w)), bound)
    finally:
        cv2.ipp.setUseIPP(before)
    assert bound.normwise > 0
    assert verdict.ok, verdict.message


# -- libraries that are not there -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "distribution", "names"),
    [
        ("torch", "torch", TORCH),
        ("cv2", "opencv-python-headless", ("opencv", "opencv-sep")),
        ("numba", "numba", ("numba",)),
        ("scipy", "scipy", ("scipy-ndimage",)),
    ],
)
def test_a_missing_library_is_named_with_its_command(
    module: str, distribution: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    backend._import_problem.cache_clear()
    try:
        for name in names:
            reason = cb.get_backend(name).unavailable()
            assert reason == f"not installed: needs {distribution}: pip install {distribution}"
            with pytest.raises(cb.BackendUnavailable, match=f"pip install {distribution}"):
                cb.plan(LINE, backend=name)
    finally:
        backend._import_problem.cache_clear()
