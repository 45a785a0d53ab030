"""The rivals: threads held and restored, memory shared, as much of the family as they have, what they would change."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import reduce
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import convbench as cb
from convbench import backend, oracle
from convbench.backend import second_operand
from convbench.backends._planes import Frame
from convbench.threads import Pool

TORCH = ("torch", "torch-channels-last", "torch-padded-first")
OPENCV = ("opencv", "opencv-sep", "opencv-two-pass")
SEPARABLE = ("opencv-sep", "opencv-two-pass", "scipy-ndimage-sep")
LINE = "n1 c4 o4 g2 i20x24 k3x5 p1x2 f32"


def operands(spec: cb.ConvSpec, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x, w = (rng.standard_normal(shape).astype(spec.dtype) for shape in (spec.input_shape, spec.weight_shape))
    return x, w


def whole_numbers(spec: cb.ConvSpec, seed: int = 0) -> tuple[Any, Any, Any]:
    """Small integers as operands and bias, in the order of the spec's layout."""
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> Any:
        low = 0 if spec.dtype.startswith("u") else -4
        values = rng.integers(low, 5, shape)
        values = values + 1j * rng.integers(low, 5, shape) if "complex" in spec.dtype else values
        if spec.layout == "channels_last" and len(shape) == 2 + spec.ndim:
            values = np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)
        return values.astype(spec.dtype)

    bias = None if spec.bias_shape is None else draw(spec.bias_shape)
    return (*map(draw, spec.operand_shapes), bias)


def require_exact(name: str, line: str, threads: int = 1) -> Any:
    """The backend's result, equal to the oracle's in value, shape and dtype; skip if its library is missing."""
    spec, chosen = cb.ConvSpec.parse(line), cb.get_backend(name)
    missing = chosen.unavailable()
    if missing is not None:
        pytest.skip(missing)
    first, second, bias = whole_numbers(spec)
    plan = chosen.plan(spec, threads=threads)
    result = plan(first, second_operand(plan, second), bias)
    assert result.dtype == np.dtype(spec.result_dtype)
    exact = np.rint(result) if not chosen.error_bound(spec).exact_on_integers else result
    np.testing.assert_array_equal(exact, oracle.conv(spec, first, second, bias))
    return result


def rank_one(spec: cb.ConvSpec) -> Any:
    factors = (np.arange(1.0, size + 1) for size in spec.kernel_size)
    outer = reduce(np.multiply.outer, factors).astype(spec.dtype)
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
    function = "sepFilter2D" if name == "opencv-sep" else "filter2D"
    return Rival(name, "cv2", pytest.importorskip("cv2"), function, "getNumThreads", "setNumThreads")


@pytest.fixture(params=[*TORCH, "numba", *OPENCV])
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
    assert module._compiled.__wrapped__("float32", "float32") == "compiled"
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


# -- the whole family -----------------------------------------------------------------------------

GEOMETRIES = (
    "n2 c3 o4 i9x8 k3x2 p1",
    "n2 c4 o6 i11x9 k3 s2x1 p0:1x2 g2 flip",
    "c2 o2 i9x8 k3x2 p-2:1x0:-3",
    "n3 c2 o2 i4x5 k3x2 p-6:9x1",
    "n2 c2 o3 i17 k4 s3 p2:1 d2",
    "c4 o4 i6x5x7 k2x3x2 s1x2x2 p1x0x1:0 g4",
    "n0 c2 o2 i6x5 k3",
    "n2 c5 o3 i6x7 k1",
    "c16 o16 i24x25 k5 p2 g2",
)


@pytest.mark.parametrize("op", cb.spec.OPS)
@pytest.mark.parametrize("dtype", ["f32", "f64", "complex128"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", TORCH)
def test_torchs_operations_and_gradients(name: str, geometry: str, dtype: str, op: str) -> None:
    line = f"op={op} {geometry} {dtype}"
    if name == "torch-channels-last" and "x" not in geometry.split("i")[1].split()[0]:
        assert str(cb.get_backend(name).why_not(cb.ConvSpec.parse(line))).startswith("axes: 1 given")
    else:
        require_exact(name, line)


@pytest.mark.parametrize("op", cb.spec.OPS)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_jaxs_operations_and_gradients(geometry: str, dtype: str, op: str) -> None:
    """where the convolution itself is to crop, as in two of these, JAX 0.10.2 gives a wrong weight gradient."""
    require_exact("jax", f"op={op} {geometry} {dtype}")


@pytest.mark.parametrize("op", cb.spec.OPS)
@pytest.mark.parametrize(
    "line",
    [
        "n2 c3 o4 i6x5 k3x2 tunshared f32",
        "n2 c2 o3 i7x6 k2x3 s2x1 p0:1x1:2 d1x2 flip tunshared f64",
        "c2 o2 i9 k3 s2 p1 tunshared layout=channels_last f32",
        "n2 c2 o3 i4x5x3 k2 tunshared complex64",
        "n2 c2 o2 i5x6 k3x2 p2 boundary=reflect tunshared layout=channels_last f64",
        "n2 c3 o2 i6x5 k3x2 p1 tunshared f16",
    ],
)
def test_jaxs_locally_connected_layers(line: str, op: str) -> None:
    require_exact("jax", f"op={op} {line}")


@pytest.mark.parametrize("bias", ["channel", "location", "tile"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_jaxs_biases(layout: str, bias: str) -> None:
    tile = "tunshared" if bias == "tile" else ""
    require_exact("jax", f"n2 c3 o4 i6x5 k3x2 p1 {tile} bias={bias} layout={layout} f32")


@pytest.mark.parametrize("op", cb.spec.OPS)
@pytest.mark.parametrize("boundary", ["circular", "reflect", "replicate"])
@pytest.mark.parametrize(
    "geometry", ["i6x7 k3x2 p2:1x0:3", "i6 k3 s2 p5", "i6x5x7 k2 p1x0:2x4:-3", "i8x9 k4x3 p-1:4x3:-2"]
)
@pytest.mark.parametrize("name", ["torch", "torch-channels-last", "torch-padded-first", "torch-prepacked", "jax"])
def test_boundaries_and_their_adjoints(name: str, geometry: str, boundary: str, op: str) -> None:
    spec = cb.ConvSpec.parse(f"op={op} n2 c4 o2 g2 {geometry} boundary={boundary} f32")
    reason = cb.get_backend(name).why_not(spec)
    if reason is not None and reason.startswith(("op: ", "axes: ")):
        pytest.skip(reason)
    require_exact(name, str(spec))


@pytest.mark.parametrize("op", cb.spec.OPS)
@pytest.mark.parametrize("axes", ["i9x8 k3", "i5x6x7 k3"])
@pytest.mark.parametrize("dtype", ["f32", "f64", "complex64"])
@pytest.mark.parametrize("name", [*TORCH, "jax"])
def test_channels_last_comes_and_goes_in_that_order(name: str, dtype: str, axes: str, op: str) -> None:
    result = require_exact(name, f"op={op} n2 c3 o5 {axes} p1 layout=channels_last {dtype}")
    if op != "weight_grad":
        assert np.moveaxis(result, 1, -1).flags.c_contiguous


@pytest.mark.parametrize("op", cb.spec.OPS)
@pytest.mark.parametrize("line", ["n9 c4 o5 i12x11 k3 p1 bias=channel", "n2 c2 o3 i9x8 k5 p4 boundary=replicate"])
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_half_precision_is_summed_in_float32_or_refused(name: str, line: str, op: str) -> None:
    spec, chosen = cb.ConvSpec.parse(f"op={op} {line} f16"), cb.get_backend(name)
    if chosen.unavailable() is not None:
        pytest.skip(str(chosen.unavailable()))
    if name == "torch" and op != "forward":
        assert str(chosen.why_not(spec)).startswith("dtype: float16 given, in which PyTorch adds up gradients")
        return
    rng = np.random.default_rng(0)
    first, second = (rng.random(shape).astype("f2") for shape in spec.operand_shapes)
    bias = None if spec.bias_shape is None else rng.random(spec.bias_shape).astype("f2")
    plan = chosen.plan(spec, threads=1)
    result = plan(first, second_operand(plan, second), bias)
    verdict = oracle.Truth(spec, first, second, bias).judge(result, chosen.error_bound(spec))
    assert plan.accumulate_dtype == "float32"
    assert verdict.ok, verdict.message


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64"])
@pytest.mark.parametrize(
    "name",
    [*TORCH, "jax", "numba", "scipy-direct", "numpy-convolve", "scipy-ndimage", "opencv"],
)  # fmt: skip
def test_integers_are_exact_or_refused(name: str, dtype: str) -> None:
    """beyond the type's own range, too: a sum of products of 127 is no int8."""
    size = "i20 k3 p1" if name == "numpy-convolve" else "i20x9 k3 p1"
    spec = cb.ConvSpec.parse(f"n2 c3 o2 {size} bias=channel {dtype}")
    chosen = cb.get_backend(name)
    if chosen.unavailable() is not None:
        pytest.skip(str(chosen.unavailable()))
    reason = chosen.why_not(spec)
    if name in ("opencv", "scipy-ndimage") and dtype in ("int8", "int32", "int64") and reason is not None:
        assert reason.startswith("dtype: ")
        return
    assert reason is None
    largest = min(np.iinfo(dtype).max, 2**20)
    x, w = np.full(spec.input_shape, largest, dtype), np.full(spec.weight_shape, largest, dtype)
    x[0, 0, 3], bias = 1, np.full(spec.bias_shape or (), largest, dtype)
    plan = chosen.plan(spec, threads=1)
    np.testing.assert_array_equal(plan(x, plan.prepare(w), bias), oracle.conv(spec, x, w, bias))


@pytest.mark.parametrize("kernel", [3, 9, 15])
@pytest.mark.parametrize("boundary", ["zero", "reflect", "replicate"])
def test_opencvs_images_of_bytes(kernel: int, boundary: str) -> None:
    """sums in float32, in float64, and by a DFT whose errors are rounded away."""
    pytest.importorskip("cv2")
    spec = cb.ConvSpec.parse(f"c3 o3 g3 i40x37 k{kernel} psame boundary={boundary} uint8")
    rng = np.random.default_rng(0)
    x, w = (rng.integers(0, 256, shape).astype("u1") for shape in spec.operand_shapes)
    plan = cb.plan(spec, backend="opencv")
    assert plan.accumulate_dtype == ("float32" if kernel == 3 else "float64")
    np.testing.assert_array_equal(plan(x, plan.prepare(w)), oracle.conv(spec, x, w))


@pytest.mark.parametrize("line", ["c2 o2 i7x8 k3x5 psame", "i7x8 k4x3 pfull flip", "i5x6 k5x3 p4x2 complex64"])
def test_scipys_wrapped_boundary(line: str) -> None:
    require_exact("scipy-direct", f"{line} boundary=circular")


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize(
    "name", ["scipy-direct", "scipy-fft", "scipy-oa", "scipy-ndimage", "numpy-convolve", "numba"]
)  # fmt: skip
def test_complex_kernels_are_not_conjugated(name: str, dtype: str) -> None:
    for padding in ("valid", "1", "full", "0:3"):
        word = f"p{padding}" if padding != "valid" else ""
        require_exact(name, f"n2 c2 o3 i30 k3 {word} {dtype}")


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("torch", "op=input_grad i9 k3 int32", "dtype: int32 given, PyTorch has gradients of floating-point"),
        ("torch", "i9 k3 uint16", "dtype: uint16 given, only"),
        ("torch", "i4x9 k3 p4x1 boundary=reflect", "boundary: reflect padding of 4 given, F.pad takes up to 3"),
        (
            "torch",
            "op=weight_grad i4 k9 p5 boundary=circular",
            "boundary: circular padding of 5 given, F.pad takes up to 4",
        ),
        ("torch", "i9 k3 layout=channels_last", "layout: channels_last given, PyTorch has it along 2 and 3 axes only"),
        ("torch", "i9 k3 t2", "tile: "),
        ("torch-prepacked", "op=input_grad i9x9 k3", "op: input_grad given, only forward is done"),
        ("jax", "i9 k3 t2", "tile: 2 given, only unshared weights are done"),
        ("jax", "c2 o2 g2 i9 k3 tunshared", "groups: 2 given, only 1 is done with unshared weights"),
        ("jax", "i9 k3 tunshared int8", None),
        ("jax", "op=weight_grad i9 k3 int8", "dtype: int8 given, JAX has gradients of floating-point"),
        ("scipy-direct", "i9 k3 psame boundary=circular", "boundary: circular given along 1 axes"),
        ("scipy-direct", "i9x9 k3 p2 s1 boundary=circular", None),
        ("scipy-direct", "i9x9 k3 p0:1x1 boundary=circular", "boundary: circular given, SciPy has it with the padding"),
        (
            "scipy-direct",
            "i2x9 k3 pfull boundary=circular",
            "boundary: circular given, SciPy wraps a kernel around once",
        ),
        ("scipy-ndimage", "i9 k3 int32", "dtype: int32 given, whose sums may leave the 53 bits"),
        ("opencv", "i9 k3 boundary=circular", "boundary: circular given, only"),
        ("scipy-fft", "op=input_grad i9 k3", "op: input_grad given, only forward is done"),
    ],
)
def test_what_a_rival_does_not_do_is_refused_in_due_form(name: str, line: str, reason: str | None) -> None:
    chosen, spec = cb.get_backend(name), cb.ConvSpec.parse(line)
    if chosen.unavailable() is not None:
        pytest.skip(str(chosen.unavailable()))
    given = chosen.why_not(spec)
    if reason is None or given is None:
        assert given is reason
        return
    assert given.startswith(reason)
    with pytest.raises(cb.UnsupportedSpec, match=f"{name}: {reason.partition(':')[0]}: "):
        chosen.plan(spec)


# -- jax ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's list of threads")
def test_jax_has_a_pool_for_each_number_of_threads() -> None:
    """whatever JAX has started before, and without a trace in the environment."""
    pytest.importorskip("jax")
    program = """
    import os
    from pathlib import Path
    import jax
    jax.numpy.ones(3) + 1  # JAX's own client
    import convbench as cb

    def workers():
        return sum("XLAEigen" in path.read_text() for path in Path("/proc/self/task").glob("*/comm"))

    before = workers()
    for threads in (1, 3, 2, 3):
        cb.plan("c2 o2 i9x8 k3 f32", backend="jax", threads=threads)
        print(workers() - before, os.environ.get("NPROC"))
        before = workers()
    """
    environment = {**os.environ, "NPROC": "1"}
    program = textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:4] == ["1 1", "3 1", "2 1", "0 1"]


def test_jax_compiles_once_a_spec_and_leaves_its_32_bit_default() -> None:
    jax = pytest.importorskip("jax")
    module = importlib.import_module("convbench.backends.jax")
    line = "i13 k3 f64"
    first = cb.plan(line, backend="jax", threads=1)
    misses = module._program.cache_info().misses
    again = cb.plan(line, backend="jax", threads=1)
    assert module._program.cache_info().misses == misses
    y = again(np.ones((1, 1, 13)), first.prepare(np.ones((1, 1, 3))))
    assert y.dtype == np.float64
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_jaxs_results_may_be_written_and_stay(layout: str) -> None:
    """they are views of XLA's memory, which nobody else has."""
    pytest.importorskip("jax")
    plan = cb.plan(f"n2 c3 o4 i20x30 k3 layout={layout} f32", backend="jax", threads=2)
    first, second, _ = whole_numbers(plan.spec)
    weights = plan.prepare(second)
    kept = plan(first, weights)
    copy = kept.copy()
    others = [plan(first + i, weights) for i in range(5)]
    np.testing.assert_array_equal(kept, copy)
    kept += 1
    np.testing.assert_array_equal(plan(first, weights), copy)
    assert len({y.__array_interface__["data"][0] for y in (kept, *others)}) == 6


def test_jax_counts_the_columns_of_unshared_weights() -> None:
    """workspace and FLOPs are XLA's own figures: columns are C·∏K times the outputs."""
    pytest.importorskip("jax")
    spec = cb.ConvSpec.parse("c8 o8 i32x32 k3 p1 tunshared f32")
    plan = cb.plan(spec, backend="jax", threads=1)
    assert plan.workspace_bytes > 8 * 9 * 32 * 32 * 4
    assert plan.flops > 1.5 * spec.flops


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


@pytest.mark.parametrize("name", SEPARABLE)
def test_separable_filters_name_the_rank_that_they_do_not_do(name: str) -> None:
    plan = planned(name, "i9x9 k3")
    with pytest.raises(cb.UnsupportedWeights, match="weights: numerical rank 3 of 3, only 1 is done"):
        plan.prepare(np.eye(3, dtype="f4")[None, None])
    with pytest.raises(cb.UnsupportedWeights, match="weights: NaN or infinity among them"):
        plan.prepare(np.full((1, 1, 3, 3), np.nan, "f4"))


def test_ndimage_names_both_ranks_of_a_volume() -> None:
    kernel = np.zeros((1, 1, 3, 3, 3), "f4")
    kernel[0, 0, [0, 1, 2], [0, 1, 2], [0, 1, 2]] = 1
    with pytest.raises(cb.UnsupportedWeights, match="numerical rank 3 of 3 and 3 of 3, only 1 is done"):
        cb.plan("i9x9x9 k3", backend="scipy-ndimage-sep").prepare(kernel)


@pytest.mark.parametrize("boundary", ["zero", "circular", "reflect", "replicate"])
@pytest.mark.parametrize(
    "geometry", ["i8x9 k3x4 p1x2:1", "i8x9 k5x4 p0:4x3:0", "i8x9 k4x3 p9:1x2:7", "i8x9 k3x5 p-1:2x2:-3 flip",
                 "i5x6x7 k3x2x3 p1x0:1x2", "n2 c4 o6 g2 i8x9 k3 psame bias=channel"],
)  # fmt: skip
@pytest.mark.parametrize("name", SEPARABLE)
def test_passes_are_exact_on_integers_whatever_the_border(name: str, geometry: str, boundary: str) -> None:
    plan = planned(name, f"{geometry} boundary={boundary} f64")
    x, _, bias = whole_numbers(plan.spec)
    w = rank_one(plan.spec)
    np.testing.assert_array_equal(plan(x, plan.prepare(w), bias), oracle.conv(plan.spec, x, w, bias))


def planned(name: str, line: str) -> Any:
    """Return a plan; skip where the library is missing or has not such a filter."""
    spec, chosen = cb.ConvSpec.parse(line), cb.get_backend(name)
    reason = chosen.why_not(spec)
    if reason is not None:
        assert reason.startswith(("boundary: circular", "axes: ", "not installed")), reason
        pytest.skip(reason)
    return chosen.plan(spec, threads=1)


@pytest.mark.parametrize("name", ["opencv", "opencv-sep", "opencv-two-pass", "scipy-ndimage", "scipy-ndimage-sep"])
def test_planes_that_need_no_padding_are_filtered_into_the_result(name: str) -> None:
    """and not into a plane that is copied: nothing else of a plane's size is allocated."""
    spec, chosen = cb.ConvSpec.parse("n2 c3 o6 g3 i90x80 k3 psame f32"), cb.get_backend(name)
    if chosen.unavailable() is not None:
        pytest.skip(str(chosen.unavailable()))
    plan = chosen.plan(spec, threads=1)
    x, weights = operands(spec)[0], plan.prepare(rank_one(spec))
    plan(x, weights)
    tracemalloc.start()
    try:
        y = plan(x, weights)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    plane = y[0, 0].nbytes
    assert peak < y.nbytes + plane * (1.5 if name == "opencv-two-pass" else 0.5)


@pytest.mark.parametrize(
    ("line", "calls"), [("n40 c1 o1 i300 k9 pfull f64", 1), ("n2000 c1 o1 i1664 k9 pfull f64", 27)]
)
@pytest.mark.parametrize(("name", "function"), [("scipy-fft", "fftconvolve"), ("scipy-oa", "oaconvolve")])
def test_scipys_transforms_take_many_examples_in_one_call(
    name: str, function: str, line: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nine times as fast as one by one; as many as stay in cache."""
    from scipy import signal

    real, seen = getattr(signal, function), list[int]()
    monkeypatch.setattr(signal, function, lambda x, *rest, **more: seen.append(len(x)) or real(x, *rest, **more))
    plan = cb.plan(line, backend=name, threads=1)
    x, w = operands(plan.spec)
    expected = np.array([[np.correlate(row[0], w[0, 0], "full")] for row in x])
    np.testing.assert_allclose(plan(x, plan.prepare(w)), expected, atol=1e-12)
    assert (len(seen), sum(seen)) == (calls, plan.spec.batch)


def test_opencv_two_pass_leaves_long_lines_to_others() -> None:
    """from 130 taps filter2D transforms."""
    chosen = cb.get_backend("opencv-two-pass")
    if chosen.unavailable() is not None:
        pytest.skip(str(chosen.unavailable()))
    assert chosen.why_not(cb.ConvSpec.parse("i200x200 k129 psame f32")) is None
    reason = chosen.why_not(cb.ConvSpec.parse("i200x200 k3x130 f32"))
    assert reason == "kernel size: 130 given, filter2D runs lines of up to 129 taps directly"
    assert str(chosen.why_not(cb.ConvSpec.parse("i200x200 k50 f64"))).startswith("kernel size: 50 given")
    assert str(chosen.why_not(cb.ConvSpec.parse("i9x9 k1x5"))).startswith("kernel size: at most one axis")


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
        ("cv2", "opencv-python-headless", OPENCV),
        ("numba", "numba", ("numba",)),
        ("scipy", "scipy", ("scipy-ndimage", "scipy-ndimage-sep")),
        ("jax", "jax", ("jax",)),
    ],
)
def test_a_missing_library_is_named_with_its_command(
    module: str, distribution: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    backend.import_problem.cache_clear()
    try:
        for name in names:
            reason = cb.get_backend(name).unavailable()
            assert reason == f"not installed: needs {distribution}: pip install {distribution}"
            with pytest.raises(cb.BackendUnavailable, match=f"pip install {distribution}"):
                cb.plan(LINE, backend=name)
    finally:
        backend.import_problem.cache_clear()
