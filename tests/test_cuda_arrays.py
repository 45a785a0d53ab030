"""Backends for the GPU that are made of array operations and of libraries, held to CuPy's manners without a GPU.

Kernels run on the CPU (``tests/cuda_cpu``); cuFFT, cuSPARSE and PyTorch have stand-ins that take the same arguments.
What only hardware can tell, speed and the libraries' own rounding, is not tested here.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from cuda_cpu import compiler_problem, cpu_kernels, on_cpu
from cupy_guard import Cufft, DeviceArray, Misuse, guarded_cupy, guarded_namespace, guarded_transforms, unwrapped
from test_imports import run
from test_namespaces import ON_STRICT

from convbench import AlgorithmBackend, Backend, ConvSpec, all_backends, check_backend, get_backend
from convbench.arrays import Namespace, numpy_namespace, standard_namespace
from convbench.backends import _cupyx
from convbench.backends._cuda import CudaBackend
from convbench.backends._scipy_ndimage import pad
from convbench.checks.specs import EDGE_LINES, random_spec
from convbench.cuda import fft as cuda_fft
from convbench.cuda.fft import AxisTiles, CudaFFT, cheapest_tiles, whole_tiles
from convbench.cuda.sparse import CudaSparseMatrix
from convbench.transforms import Lanes, cufft_size, standard_transforms

needs_compiler = pytest.mark.skipif(compiler_problem() is not None, reason=str(compiler_problem()))

#: Every boundary, strides and dilations with and without a common divisor, both gradients, few and many channels.
LINES = (
    "n2 c2 o3 i7x6 k3x2 s2x1 p1 bias=channel f32",
    "c2 o2 i15x14 k3x2 s2x3 p2 d3x2 f32",
    "c2 o3 i19x17 k3x2 s2x3 p3 d4x6 flip f64",
    "n2 c2 o2 i6x5 k3 s2x1 psame boundary=circular f64",
    "c2 o2 i4x5 k3x2 p6:1x2:7 boundary=circular f32",
    "i4x1 k3x2 p7:5x3:0 boundary=reflect f64",
    "c2 o3 i3x5 k2x4 p4:8x2:1 d2x1 boundary=replicate flip f32",
    "n2 c2 o3 i5x6x7 k2x3x4 s1x2x3 p1:0x0:2x1:1 d2x1x1 bias=location f64",
    "n2 c2 o3 i7x6 k2x3 p1x0 flip bias=channel complex64",
    "n2 c2 o3 i7x6 k3x2 p1 t2x3 bias=tile f64",
    "n5 c8 o3 i9x10 k3 p1 bias=channel layout=channels_last f32",
    "n0 c2 o3 i6x5 k3 p1 bias=channel f32",
    "op=input_grad n2 c2 o2 i11x9 k2 s4x3 p-1:0x2:-2 f32",
    "op=input_grad c2 o2 i4x5 k3x2 s2x1 p6:1x2:7 boundary=circular f32",
    "op=input_grad c2 o2 i6x5 k2x3 s1x2 p1 tunshared complex64",
    "op=weight_grad n2 c2 o4 i8x7 k3x2 p1 g2 f64",
    "op=weight_grad n2 c3 o2 i3x5 k2x4 p4:8x2:1 boundary=replicate f32",
)
SPECS = tuple(map(ConvSpec.parse, LINES))


def require_passes(backend: Backend, specs: Sequence[ConvSpec], least: int) -> None:
    """Run the battery."""
    results = check_backend(backend, specs=list(specs), seed=3)
    assert [r.message for r in results if r.status == "failed"] == []
    assert sum(r.status == "passed" for r in results) >= least


@cache
def guard() -> Namespace:
    return guarded_namespace(cpu_kernels)


@pytest.fixture
def cupy_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what asks CuPy itself whether arrays share memory take those of the guard."""
    import cupy

    monkeypatch.setattr(cupy, "may_share_memory", lambda a, b: np.may_share_memory(unwrapped(a), unwrapped(b)))


def guarded(backend: Any) -> Any:
    """Return a backend of CuPy's arrays, bound to the guard's."""
    return replace(on_cpu(backend), ns=guard)


# -- FFT ------------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.usefixtures("cupy_on_cpu")
@pytest.mark.parametrize("name", ["fft-cupy", "fft-tiled-cupy"])
def test_fft_passes_the_battery_with_the_manners_of_cupy(name: str) -> None:
    require_passes(guarded(get_backend(name)), SPECS[::2] if name == "fft-cupy" else SPECS[1::4], 70)


def _smallest_tiles(spec: ConvSpec) -> tuple[AxisTiles, ...]:
    """Return the most tiles that there may be."""
    whole, axes = whole_tiles(spec), cuda_fft.Lowering(spec).axes
    real = [number == spec.ndim - 1 and "complex" not in spec.dtype for number in range(spec.ndim)]
    cut = [list(cuda_fft._cut(axis, one)) for axis, one in zip(axes, real, strict=True)]
    return tuple(choices[0] if choices else one for choices, one in zip(cut, whole, strict=True))


@needs_compiler
@pytest.mark.parametrize("by_gemm", [False, True])
def test_fft_in_many_tiles_by_either_product(by_gemm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_fft, "_gemm_cost", lambda spec, counts: -1.0 if by_gemm else float("inf"))
    lines = (
        "n2 c3 o5 i23x31 k3x4 p1x2 bias=channel f32",
        "c2 o3 i29x41 k3x2 s2x1 p2 d1x2 boundary=reflect f64",
        "c4 o2 i27x6 k1x3 g2 p1 flip boundary=circular f32",
    )
    specs = list(map(ConvSpec.parse, lines))
    assert max(np.prod([axis.number for axis in _smallest_tiles(spec)]) for spec in specs) >= 10
    tiled: Any = get_backend("fft-tiled-cupy")

    def algorithm(ns: Namespace, spec: ConvSpec, threads: int) -> CudaFFT:
        return CudaFFT(ns, spec, threads, _smallest_tiles(spec))

    whole_bound = replace(tiled, algorithm=algorithm, bound=get_backend("fft-cupy").error_bound)
    require_passes(on_cpu(whole_bound), specs, 40)


@needs_compiler
def test_fft_cuts_large_batches_and_many_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_fft, "_CALL_BYTES", 2**13)
    monkeypatch.setattr(cuda_fft, "_TAPS_BYTES", 2**12)
    spec = ConvSpec.parse("n6 c4 o6 i11x10 k3 p1 bias=location f32")
    algorithm = CudaFFT(guard(), spec, 1, whole_tiles(spec))
    assert algorithm._images < spec.batch
    assert algorithm._kernels_at_once < 24
    require_passes(on_cpu(get_backend("fft-cupy")), [spec], 10)


def test_fft_sizes_and_tiles() -> None:
    for n in range(1, 600):
        size = cufft_size(n)
        rest = size
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        assert rest == 1
        assert n <= size <= 1 << max(0, n - 1).bit_length()
    for spec in map(ConvSpec.parse, ("c64 o64 i224x224 k3 p1 f32", "i1000000 k1023 psame f32", "i9 k9 f32")):
        for axis, tile in zip(cuda_fft.Lowering(spec).axes, cheapest_tiles(spec), strict=True):
            assert tile.number * tile.outputs >= axis.lowered_outputs
            assert tile.number == 1 or tile.size == tile.outputs + axis.lowered_kernel - 1


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("sizes", [(12,), (6, 8), (4, 6, 10), (1, 6)])
@pytest.mark.parametrize("row", [0, 5, 9])
def test_cufft_plans_lie_in_memory_as_numpy_transforms_do(dtype: str, sizes: tuple[int, ...], row: int) -> None:
    layout = Lanes(5, sizes, dtype, row)
    kept, rng = int(np.prod(layout.kept)), np.random.default_rng(1)
    samples = rng.standard_normal((5, *sizes)).astype(dtype)
    spectra = [np.zeros((kept, row) if row else (5, kept), np.result_type(dtype, "c8")) for _ in range(2)]
    parts = [memory[:, row - 5 :] if row else memory for memory in spectra]
    libraries = [guarded_transforms(np), standard_transforms(np)]
    for library, part in zip(libraries, parts, strict=True):
        assert library.lanes is not None
        forward = library.lanes(layout, False).run
        forward(samples, part)
        back = np.empty_like(samples)
        library.lanes(layout, True).run(part, back)
        np.testing.assert_allclose(back, samples * np.prod(sizes), atol=1e-4)
        forward(samples, part)  # once more, as the inverse may leave anything there
    np.testing.assert_array_equal(*spectra)


def test_a_cufft_plan_serves_one_stream_and_one_call_at_a_time() -> None:
    stream, made = [0], Cufft()
    transforms = guarded_transforms(np, lambda: stream[0], made).lanes
    assert transforms is not None
    planned = transforms(Lanes(1, (8,), "float32"), False)
    samples, spectra = np.ones((1, 8), "f4"), np.empty((1, 5), "c8")
    planned.run(samples, spectra)
    assert len(made.plans) == 1  # made when it was planned
    stream[0] = 7
    for _ in range(3):
        planned.run(samples, spectra)
    assert len(made.plans) == 2
    inner = made.plans[-1].fft

    def meanwhile(*args: Any) -> None:  # another thread comes in on the same stream while this call is being enqueued
        thread = Thread(target=planned.run, args=(samples, spectra.copy()))
        made.plans[1].fft = inner
        thread.start()
        thread.join()
        inner(*args)

    made.plans[1].fft = meanwhile
    planned.run(samples, spectra)
    assert len(made.plans) == 3
    assert planned.workspace_bytes == 512


def test_plans_have_the_parameters_of_cupy() -> None:
    import cupy

    folder = Path(cupy.__file__).parent
    text, declared = ((folder / "cuda" / f"cufft.{end}").read_text(encoding="utf-8") for end in ("pyx", "pxd"))
    found = re.search(r"class PlanNd.*?:\s+def __init__\(self, (.*?)\):", text, re.DOTALL)
    assert found is not None
    names = [part.split()[-1] for part in found[1].partition("*")[0].strip(" ,\n").split(",")]
    assert names == list(inspect.signature(Cufft().PlanNd).parameters)
    assert "def fft(self, a, out, direction):" in text.partition("class PlanNd")[2]
    assert re.search(r"class PlanNd:.*readonly object work_area", declared.replace("\n", " "))
    used = (folder / "fft" / "_fft.py").read_text(encoding="utf-8")
    for name in ("R2C", "C2R", "C2C", "D2Z", "Z2D", "Z2Z", "FORWARD", "INVERSE"):
        assert f"cufft.CUFFT_{name}" in used


# -- sparse matrices ------------------------------------------------------------------------------------------


class _ScipySparse:
    """SciPy's in the place of cuSPARSE: column-major operands, one entry a place, sums added to what is there."""

    def rows(self, values: Any, columns: Any, starts: Any, shape: tuple[int, int], transposed: bool) -> Any:
        from scipy.sparse import csr_matrix

        matrix = csr_matrix(tuple(map(unwrapped, (values, columns, starts))), shape=shape)
        matrix = matrix.T.tocsr() if transposed else matrix
        matrix.sum_duplicates()
        return matrix

    def multiply(self, matrix: Any, columns: Any, out: Any) -> None:
        assert columns.flags.f_contiguous
        assert out.flags.f_contiguous
        host = unwrapped(out)
        host[...] = matrix @ unwrapped(columns) + 0 * host


@pytest.mark.usefixtures("cupy_on_cpu")
def test_sparse_matrix_passes_the_battery_with_the_manners_of_cupy() -> None:
    backend: Any = get_backend("matrix-sparse-cupy")
    library = _ScipySparse()
    require_passes(guarded(replace(backend, algorithm=partial(CudaSparseMatrix, library=library))), SPECS, 200)


def test_products_have_the_parameters_of_cupyx() -> None:
    import cupyx

    tree = ast.parse((Path(cupyx.__file__).parent / "cusparse.py").read_text(encoding="utf-8"))
    found = {node.name: [a.arg for a in node.args.args] for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert found["spmm"][:3] == ["a", "b", "c"]
    assert found["spmv"][:3] == ["a", "x", "y"]


# -- rivals ---------------------------------------------------------------------------------------------------


@pytest.fixture
def scipy_for_cupyx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what imports CuPy and ``cupyx.scipy`` late find NumPy and SciPy."""
    real = importlib.import_module

    def stand_in(name: str) -> Any:
        return real({"cupy": "numpy"}.get(name, name.replace("cupyx.scipy", "scipy")))

    monkeypatch.setattr(_cupyx.importlib, "import_module", stand_in)


@pytest.mark.usefixtures("scipy_for_cupyx")
@pytest.mark.parametrize("name", ["cupyx-signal", "cupyx-signal-fft", "cupyx-ndimage"])
def test_cupyx_rivals_pass_the_battery_with_scipy_in_the_place_of_cupyx(name: str) -> None:
    rng = np.random.default_rng(5)
    specs = [random_spec(rng, common=True, max_macs=3000).replace(stride=1, dilation=1) for _ in range(12)]
    lines = ("c2 o3 i9x8 k3x2 p1 boundary=reflect f32", "i12x9 k5 psame boundary=circular f64", "i9 k4 p2 complex64")
    backend: Any = replace(get_backend(name), ns=numpy_namespace, device_problem=lambda: None, device="cpu")
    if name == "cupyx-ndimage":  # SciPy's leaves out small taps, so its own check of them is needed
        scipy: Any = get_backend("scipy-ndimage")
        backend = replace(backend, prepare=scipy.prepare, prepared=scipy.prepared)
    require_passes(backend, [*specs, *map(ConvSpec.parse, lines)], 100)


def test_ndimage_pads_by_the_functions_of_cupy() -> None:
    spec = ConvSpec.parse("i4x5 k3x2 p6:1x2:7 boundary=circular f32")
    cupy = guarded_cupy()
    padded = pad(spec, DeviceArray(np.ones((4, 5), "f4")), ((6, 1), (2, 7)), cupy)
    assert padded.shape == (11, 14)


@pytest.mark.parametrize("tf32", [False, True])
def test_torch_cuda_passes_the_battery_on_the_cpu(tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from convbench.backends import _torch_cuda
    from convbench.backends._torch import Exchange
    from convbench.backends._views import Writeable

    as_tensor = _torch_cuda.by_dlpack(lambda: np)
    seen = []

    def from_array(array: Any) -> Any:  # CuPy has no read-only arrays
        tensor = as_tensor(array if array.flags.writeable else np.asarray(Writeable(array)))
        seen.append((array, tensor))
        return tensor

    exchange = Exchange(numpy_namespace, from_array, lambda tensor: np.from_dlpack(tensor.resolve_conj().detach()))
    monkeypatch.setattr(_torch_cuda, "CUPY_EXCHANGE", exchange)
    settings = partial(_torch_cuda.cudnn_settings, stream=nullcontext)
    monkeypatch.setattr(_torch_cuda, "cudnn_settings", settings)
    made: Any = _torch_cuda.torch_cuda("torch-cuda-here", "PyTorch on the CPU", tf32)
    backend = replace(made, ns=numpy_namespace, device_problem=lambda: None, device="cpu")
    require_passes(backend, [spec for spec in SPECS if spec.tile is None][tf32::3], 50)
    shared = [
        np.shares_memory(array, tensor.numpy()) for array, tensor in seen if array.size and min(array.strides) > 0
    ]
    assert sum(shared) > len(shared) * 0.9  # all but those that lie at odd places
    assert torch.backends.cudnn.benchmark is False


def test_torch_without_memory_is_a_memory_error() -> None:
    torch = pytest.importorskip("torch")
    from convbench.backends._torch_cuda import cudnn_settings

    with pytest.raises(MemoryError, match="tried to allocate"), cudnn_settings(False, stream=nullcontext):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory: tried to allocate\n2 GiB")
    with pytest.raises(RuntimeError, match="another"), cudnn_settings(False, stream=nullcontext):
        raise RuntimeError("another")


def test_torch_settings_are_put_back() -> None:
    torch = pytest.importorskip("torch")
    from convbench.backends._torch_cuda import cudnn_settings

    def settings() -> tuple[bool, ...]:
        cudnn = torch.backends.cudnn
        return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32

    before = settings()
    for tf32 in (False, True):
        with cudnn_settings(tf32, stream=nullcontext):
            assert settings() == (True, True, False, tf32)
        assert settings() == before
        with pytest.raises(RuntimeError, match="here"), cudnn_settings(tf32, stream=nullcontext):
            raise RuntimeError("here")
        assert settings() == before


def test_torch_of_the_cpu_says_what_is_missing() -> None:
    torch = pytest.importorskip("torch")
    if torch.version.cuda is not None:
        pytest.skip("this PyTorch has CUDA")
    for name in ("torch-cuda", "torch-cuda-tf32"):
        missing = get_backend(name).unavailable()
        assert missing is not None
        assert missing.startswith("not installed: needs a CUDA build of PyTorch: pip install torch")


# -- no copy to the host --------------------------------------------------------------------------------------


class _OnDevice1:
    """``array_api_strict`` whose arrays are made on a device that NumPy cannot read."""

    _CREATING = ("arange", "asarray", "empty", "eye", "full", "linspace", "ones", "zeros")

    def __init__(self, xp: Any) -> None:
        self._xp, self._device = xp, xp.Device("device1")
        self.__name__ = "array_api_strict"

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._xp, name)
        if name not in self._CREATING:
            return found

        def create(*args: Any, **kwargs: Any) -> Any:
            if name == "asarray" and isinstance(args[0], type(self._xp.empty(1))):
                return found(*args, **kwargs)
            return found(*args, device=self._device, **kwargs)

        return create

    def on_host(self, array: Any) -> Any:
        return np.asarray(array.to_device(self._xp.Device("CPU_DEVICE")))


@cache
def device1_namespace() -> Namespace:
    xp = _OnDevice1(pytest.importorskip("array_api_strict"))
    return replace(standard_namespace(xp), to_host=xp.on_host)


@pytest.mark.parametrize("name", ON_STRICT)
def test_no_algorithm_copies_to_the_host_but_by_the_namespace(name: str) -> None:
    ns = device1_namespace()
    with pytest.raises((TypeError, RuntimeError)):
        np.asarray(ns.from_host(np.ones(3)))
    bound = all_backends()[name]
    assert isinstance(bound, AlgorithmBackend)
    small = [
        spec for spec in map(ConvSpec.parse, EDGE_LINES) if 0 < spec.macs < 300 and spec.dtype in ("float32", "float64")
    ]
    limits = replace(bound.limits, dtypes=("float32", "float64"))
    require_passes(replace(bound, ns=lambda: ns, limits=limits), [s for s in small if s.ndim < 4][::8], 6)


def _kernel_backends() -> Iterator[str]:
    for name, backend in all_backends().items():
        if isinstance(backend, CudaBackend) and name not in ("fft-cupy", "fft-tiled-cupy", "matrix-sparse-cupy"):
            yield name


@needs_compiler
@pytest.mark.usefixtures("cupy_on_cpu")
@pytest.mark.parametrize("name", list(_kernel_backends()))
def test_backends_with_kernels_have_the_manners_of_cupy(name: str) -> None:
    backend: Any = get_backend(name)
    boundaries = {"forward": "reflect", "input_grad": "zero", "weight_grad": "circular"}
    lines = [f"op={op} n2 c4 o4 i9x8 k3 p1 boundary={boundary} f32" for op, boundary in boundaries.items()]
    lines += ["n2 c2 o3 i6 k3 s2 t2 bias=tile f32"]
    dtype = min(backend.limits.dtypes, key=lambda name: name != "float32")
    specs = [spec.replace(dtype=dtype) for spec in map(ConvSpec.parse, lines)]
    taken = [spec for spec in specs if backend.limits.why_not(spec) is None]
    require_passes(guarded(backend), taken, 10)


# -- the guard guards -----------------------------------------------------------------------------------------

#: What must be noticed: one line of code each, with the module ``xp`` and an array ``a`` (2, 3) on the device.
MISUSES = {
    "float()": lambda xp, a: float(a[0, 0]),
    "int()": lambda xp, a: int(xp.max(a)),
    "bool()": lambda xp, a: 1 if xp.sum(a) else 0,
    ".item()": lambda xp, a: a[0, 0].item(),
    ".tolist()": lambda xp, a: a.tolist(),
    "np.asarray()": lambda xp, a: np.asarray(a),
    "a range up to an element": lambda xp, a: range(a[0, 0]),
    "an array of NumPy's in an operator": lambda xp, a: a + np.ones(3),
    "an array of NumPy's first in an operator": lambda xp, a: np.ones(3) + a,
    "an array of NumPy's in a function": lambda xp, a: xp.multiply(a, np.ones(3)),
    "an array of NumPy's assigned": lambda xp, a: a.__setitem__(..., np.ones(3)),
    "an array of NumPy's as index": lambda xp, a: a[np.array([0, 1])],
    "a mask": lambda xp, a: a[a > 0],
    "a list made an array": lambda xp, a: xp.asarray([1, 2]),
    "sliding_window_view": lambda xp, a: xp.lib.stride_tricks.sliding_window_view(a, 2, axis=1),
    "einsum out=": lambda xp, a: xp.einsum("ij->j", a, out=a[0]),
    "einsum order=": lambda xp, a: xp.einsum("ij->j", a, order="C"),
    "pad median": lambda xp, a: xp.pad(a, 1, mode="median"),
    "pad with a keyword that does not exist": lambda xp, a: xp.pad(a, 1, constant_value=1),
    "einsum_path": lambda xp, a: xp.einsum_path("ij->j", a),
    "vecdot": lambda xp, a: xp.vecdot(a, a),
    "a keyword that only NumPy has": lambda xp, a: xp.max(a, initial=0.0),
    "a ufunc's keyword that only NumPy has": lambda xp, a: xp.add(a, a, order="C"),
    "nonzero": lambda xp, a: xp.nonzero(a),
    "writeable as_strided": lambda xp, a: guard_as_strided(a, (2,), (4,), writeable=False),
}


def guard_as_strided(*args: Any, **kwargs: Any) -> Any:
    """``as_strided`` of the guard; CuPy's has the same parameters."""
    from cupy_guard import as_strided

    try:
        return as_strided(*args, **kwargs)
    except TypeError as error:
        raise Misuse(str(error)) from error


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
def test_planted_misuse_is_caught(misuse: Callable[[Any, Any], Any]) -> None:
    with pytest.raises((Misuse, TypeError)) as caught:
        misuse(guarded_cupy(), DeviceArray(np.ones((2, 3), "f4")))
    assert not isinstance(caught.value, TypeError) or "DeviceArray" in str(caught.value)


def test_good_manners_are_let_through() -> None:
    xp, a = guarded_cupy(), DeviceArray(np.arange(6, dtype="f4").reshape(2, 3))
    assert unwrapped(xp.einsum("ij->j", a)).tolist() == [3, 5, 7]
    assert unwrapped(xp.pad(a, ((0, 0), (1, 0)), mode="wrap")).shape == (2, 4)
    assert isinstance(xp.sum(a, axis=None), DeviceArray)
    a[0, 1:] += xp.ones(2, dtype=xp.float32) * 2
    assert unwrapped(a).tolist() == [[0, 3, 4], [3, 4, 5]]
    assert xp.asarray(a, copy=True).dtype == xp.float32
    assert np.isnan(unwrapped(xp.empty((2,), dtype=xp.float32))).all()


def test_as_strided_has_the_parameters_of_cupy() -> None:
    from cupy.lib.stride_tricks import as_strided as theirs
    from cupy_guard import as_strided as ours

    assert list(inspect.signature(theirs).parameters)[:3] == list(inspect.signature(ours).parameters)


@needs_compiler
@pytest.mark.usefixtures("cupy_on_cpu")
def test_a_backend_that_looks_at_its_operands_is_caught() -> None:
    class Curious(CudaFFT):
        def run(self, first: Any, second: Any, bias: Any, out: Any) -> None:
            if float(first[(0,) * len(first.shape)]) != 0.0:
                super().run(first, second, bias, out)

    backend: Any = get_backend("fft-cupy")
    curious = replace(backend, algorithm=lambda ns, spec, threads: Curious(ns, spec, threads, whole_tiles(spec)))
    results = check_backend(guarded(curious), specs=[SPECS[0]])
    assert any("float() of DeviceArray" in r.message for r in results if r.status == "failed")


# -- what is missing costs itself -----------------------------------------------------------------------------

GPU_NAMES = """
names = ["fft-cupy", "fft-tiled-cupy", "matrix-sparse-cupy", "cupyx-signal", "cupyx-signal-fft", "cupyx-ndimage",
         "torch-cuda", "torch-cuda-tf32", "direct-naive-cupy"]
"""


def test_without_the_cpu_libraries_the_gpu_backends_stand() -> None:
    blocked = ("pyfftw", "cv2", "torch", "numba", "llvmlite", "scipy", "threadpoolctl")
    said = run(
        (
            GPU_NAMES
            + """
import sys
from convbench.cuda.kernel import all_kernels
from convbench.backends._cuda import CudaBackend
from convbench.cli import main
for name in names:
    reason = cb.get_backend(name).unavailable()
    if "torch" in name:
        assert reason.startswith("not installed: needs torch: pip install torch"), reason
    else:
        assert reason is None or reason.startswith("no device"), (name, reason)
spec = cb.ConvSpec.parse("c2 o3 i9x8 k3 p1 f32")
for name, backend in cb.all_backends().items():
    assert backend.implementation
    if backend.why_not(spec) is None:
        backend.error_bound(spec)
assert len(all_kernels()) > 20
from convbench.arrays import cupy_namespace
assert cupy_namespace().name == "cupy"
assert not BLOCKED & {module.partition(".")[0] for module in sys.modules}
assert main(["list", "backends"]) == 0
"""
        ).replace("BLOCKED", repr(set(blocked))),
        blocked,
    )
    for name in ("fft-cupy", "torch-cuda", "cupyx-ndimage"):
        assert name in said


def test_without_cupy_the_other_backends_stand() -> None:
    said = run(
        GPU_NAMES
        + """
from convbench.cuda.kernel import all_kernels
from convbench.cli import main
for name in names:
    backend = cb.get_backend(name)
    reason = backend.unavailable()
    assert "\\n" not in reason
    assert reason.startswith("not installed: needs"), (name, reason)
    assert "torch" in name or "CuPy" in reason, (name, reason)
    assert backend.why_not(cb.ConvSpec.parse("i9 k3 f32")) == reason
    print(refusal(lambda: backend.plan(cb.ConvSpec.parse("i9 k3 f32"))))
assert len(all_kernels()) > 20
np.testing.assert_allclose(cb.conv(x, w), 9.0)
assert main(["list", "backends"]) == 0
""",
        ("cupy", "cupyx", "cupy_backends"),
    )
    assert said.count("BackendUnavailable") == 9
    assert "fft-numpy" in said or "fft-pocketfft" in said


def test_no_module_of_kernels_imports_cupy() -> None:
    run(
        """
import sys
from convbench.cuda.kernel import all_kernels
all_kernels()
from convbench.registry import backend_names
for name in backend_names():
    cb.get_backend(name)
assert not {"cupy", "cupyx", "torch"} & set(sys.modules), sys.modules.keys() & {"cupy", "cupyx", "torch"}
"""
    )
