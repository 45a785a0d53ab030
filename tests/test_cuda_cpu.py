"""The shim that runs CUDA sources on the CPU: what it computes, and that planted faults of kernels are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from cuda_cpu import ORDERS, KernelFault, Mode, compiler_problem, cpu_kernels

from convbench.cuda.geometry import CONV
from convbench.cuda.kernel import Kernel, source_text

pytestmark = pytest.mark.skipif(compiler_problem() is not None, reason=compiler_problem() or "")

MODES = [*(Mode(order) for order in ORDERS), *(Mode(order, check=True) for order in ORDERS)]


@dataclass(frozen=True)
class Text(Kernel):
    """A kernel whose source is given."""

    text: str = ""

    def source(self) -> str:
        return self.text


def mode_name(mode: Mode) -> str:
    return f"{mode.order}{'-checked' if mode.check else ''}"


# --- a filter along rows: a tile with its halo in shared memory, used for one row after another

FILTER = """
template <typename T, int TILE, int TAPS>
__global__ void __launch_bounds__(TILE)
row_filter(const T* __restrict__ x, const T* __restrict__ w, T* __restrict__ y, int n, int rows) {
    __shared__ T tile[TILE + TAPS - 1];
    const int first = blockIdx.x * TILE, i = threadIdx.x, given = n + TAPS - 1;
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        for (int j = i; j < TILE + TAPS - 1; j += TILE)
            tile[j] = first + j < given ? __ldg(x + row * given + first + j) : T(0);
        __syncthreads();  // filled
        T sum = 0;
#pragma unroll
        for (int k = 0; k < TAPS; ++k) sum += w[k] * tile[i + k];
        if (first + i < n) y[row * n + first + i] = sum;
        __syncthreads();  // read
    }
}
"""


def run_filter(text: str, mode: Mode) -> tuple[Any, Any]:
    """Return the result and what it should be."""
    rng = np.random.default_rng(1)
    n, rows, taps, tile = 150, 5, 5, 64
    x, w, y = rng.integers(-8, 9, (rows, n + taps - 1)), rng.integers(-8, 9, taps), np.full((rows, n), np.nan)
    x, w, y = (a.astype("f4") for a in (x, w, y))
    launch = cpu_kernels(Text("row_filter.cu", f"row_filter<float, {tile}, {taps}>", (tile, 1, 1), text=text), mode)
    launch((-(-n // tile), 2, 1), (x, w, y, np.int32(n), np.int32(rows)))
    return y, np.stack([np.correlate(row, w, "valid") for row in x])


# --- sums of rows: cp.async into dynamic shared memory, two stages, shuffles and atomics

SUMS = """
#include <cuda_pipeline.h>
template <int WARPS>
__global__ void row_sums(const float* __restrict__ x, float* __restrict__ sums, float* total, int chunks) {
    extern __shared__ __align__(16) float buffers[];
    constexpr int THREADS = 32 * WARPS;
    float4* stages[2] = {reinterpret_cast<float4*>(buffers), reinterpret_cast<float4*>(buffers) + THREADS};
    const int i = threadIdx.x, lane = i % 32;
    const float4* row = reinterpret_cast<const float4*>(x) + (size_t)blockIdx.x * chunks * THREADS;
    __pipeline_memcpy_async(stages[0] + i, row + i, 16);
    __pipeline_commit();
    float sum = 0.0f;
    for (int chunk = 0; chunk < chunks; ++chunk) {
        if (chunk + 1 < chunks)
            __pipeline_memcpy_async(stages[(chunk + 1) & 1] + i, row + (chunk + 1) * THREADS + i, 16);
        __pipeline_commit();
        __pipeline_wait_prior(1);
        __syncthreads();  // the chunk is there
        const float4 v = stages[chunk & 1][THREADS - 1 - i];
        sum += v.x + v.y + v.z + v.w;
        __syncthreads();  // it may be overwritten
    }
    for (int by = 16; by > 0; by /= 2) sum += __shfl_down_sync(0xffffffffu, sum, by);
    __shared__ float of_warp[WARPS];
    if (lane == 0) of_warp[i / 32] = sum;
    __syncthreads();  // each warp's sum
    if (i < 32) {
        float all = lane < WARPS ? of_warp[lane] : 0.0f;
        for (int by = 16; by > 0; by /= 2) all += __shfl_xor_sync(0xffffffffu, all, by);
        if (i == 0) {
            sums[blockIdx.x] = all;
            atomicAdd(total, all);
        }
    }
}
"""


def run_sums(text: str, mode: Mode) -> tuple[Any, Any]:
    warps, chunks, rows = 4, 3, 3
    x = np.random.default_rng(2).integers(-8, 9, (rows, chunks * warps * 32 * 4)).astype("f4")
    sums, total = np.full(rows, np.nan, "f4"), np.zeros(1, "f4")
    kernel = Text("row_sums.cu", f"row_sums<{warps}>", (32 * warps, 1, 1), 2 * warps * 32 * 16, text=text)
    cpu_kernels(kernel, mode)((rows, 1, 1), (x, sums, total, np.int32(chunks)))
    return np.append(sums, total), np.append(x.sum(1), x.sum())


Run = Callable[[str, Mode], tuple[Any, Any]]


@pytest.mark.parametrize("mode", MODES, ids=mode_name)
@pytest.mark.parametrize(("text", "run"), [(FILTER, run_filter), (SUMS, run_sums)], ids=["filter", "sums"])
def test_a_sound_kernel_passes_in_every_mode(text: str, run: Run, mode: Mode) -> None:
    result, expected = run(text, mode)
    np.testing.assert_array_equal(result, expected)


@dataclass(frozen=True)
class Plant:
    """A fault put into a kernel by replacing a piece of its text, and what check mode says of it (or plain mode)."""

    name: str
    run: Run
    text: str
    old: str
    new: str
    says: str
    plain: bool = True  # is it found without check mode, in one of the three orders?


PLANTS = [
    Plant("no-barrier-before", run_filter, FILTER, "__syncthreads();  // filled", "", "race: reads"),
    Plant("no-barrier-after", run_filter, FILTER, "__syncthreads();  // read", "", "race: writes"),
    Plant("halo-off-by-one", run_filter, FILTER, "j < TILE + TAPS - 1;", "j < TILE + TAPS - 2;", "", True),
    Plant("index-off-by-one", run_filter, FILTER, "tile[i + k]", "tile[i + k + 1]", "outside its array"),
    Plant("read-before", run_filter, FILTER, "+ first + j)", "+ first + j - 1)", "byte -4 of"),
    Plant("read-past", run_filter, FILTER, "first + j < given", "first + j <= given", "byte 3080 of 3080", False),
    Plant("write-past", run_filter, FILTER, "first + i < n)", "first + i < n + 1)", "writes 4 bytes outside", False),
    Plant("two-write-one", run_filter, FILTER, "tile[j] =", "tile[j / 2] =", "race: writes"),
    Plant("one-short", run_filter, FILTER, "tile[TILE + TAPS - 1]", "tile[TILE + TAPS - 2]", "its array", False),
    Plant(
        "divergent-barrier", run_filter, FILTER, "__syncthreads();  // filled",
        "if (first + i < n) __syncthreads();", "divergent barrier",
    ),
    Plant(
        "early-return", run_filter, FILTER, "const int first = blockIdx.x * TILE, i = threadIdx.x",
        "if (blockIdx.x * TILE + threadIdx.x >= n) return; const int first = blockIdx.x * TILE, i = threadIdx.x",
        "returned without reaching it",
    ),
    Plant("write-to-input", run_filter, FILTER, "y[row * n + first + i] = sum", "const_cast<T*>(x)[row] = sum", "race"),
    Plant("no-wait", run_sums, SUMS, "__pipeline_wait_prior(1);", "", "", True),
    Plant("waits-for-too-few", run_sums, SUMS, "__pipeline_wait_prior(1);", "__pipeline_wait_prior(2);", "", True),
    Plant("no-barrier-after-wait", run_sums, SUMS, "__syncthreads();  // the chunk is there", "", "race: "),
    Plant("overwrites-too-early", run_sums, SUMS, "__syncthreads();  // it may be overwritten", "", "race: "),
    Plant("never-written", run_sums, SUMS, "if (lane == 0) of_warp[i / 32] = sum;", "", "", True),
    Plant("no-barrier-of-warps", run_sums, SUMS, "__syncthreads();  // each warp's sum", "", "race: reads"),
    Plant(
        "absent-lanes", run_sums, SUMS, "for (int by = 16; by > 0; by /= 2) sum +=",
        "if (lane < 16) for (int by = 16; by > 0; by /= 2) sum +=", "never come",
    ),
    Plant("not-in-mask", run_sums, SUMS, "__shfl_down_sync(0xffffffffu", "__shfl_down_sync(0x0000ffffu", "not in"),
    Plant("misaligned", run_sums, SUMS, "reinterpret_cast<const float4*>(x)", "reinterpret_cast<const float4*>(x + 1)",
          "not aligned"),
    Plant("past-dynamic", run_sums, SUMS, "stages[chunk & 1][THREADS - 1 - i]", "stages[chunk & 1][THREADS - i]",
          "dynamic shared memory"),
]  # fmt: skip


def caught(run: Run, text: str, mode: Mode) -> str | None:
    """Return how a fault shows: the message, "wrong result", or None if it does not."""
    try:
        result, expected = run(text, mode)
    except KernelFault as fault:
        return str(fault)
    return None if np.array_equal(result, expected) else "wrong result"


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_planted_fault_is_caught(plant: Plant) -> None:
    assert plant.text.count(plant.old) == 1
    text = plant.text.replace(plant.old, plant.new)
    found = [caught(plant.run, text, Mode(order)) for order in ORDERS]
    assert not plant.plain or any(found)
    checked = [caught(plant.run, text, Mode(order, check=True)) for order in ORDERS]
    assert all(checked)
    assert any(plant.says in message for message in checked if message), checked


def test_a_fault_names_file_line_thread_and_block() -> None:
    text = FILTER.replace("__syncthreads();  // filled", "if (i != 3 || row != 1) __syncthreads();")
    line = text[: text.index("if (i != 3")].count("\n") + 1
    other = text[: text.index("__syncthreads();  // read")].count("\n") + 1
    with pytest.raises(
        KernelFault, match=rf"row_filter\.cu:({line}|{other}): `.*\n  thread \(\d+, 0, 0\) of block \(0, 1, 0\)"
    ):
        run_filter(text, Mode())


# --- arguments


def launch_filter(*changed: tuple[int, Any], grid: Any = (1, 1, 1)) -> None:
    arguments: list[Any] = [np.zeros(20, "f4"), np.zeros(5, "f4"), np.zeros(16, "f4"), np.int32(16), np.int32(1)]
    for i, value in changed:
        arguments[i] = value
    kernel = Text("row_filter.cu", "row_filter<float, 64, 5>", (64, 1, 1), text=FILTER)
    cpu_kernels(kernel, Mode(check=True))(grid, arguments)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ((3, 16), "argument 3 is a int, 16: pass NumPy"),
        ((3, 16.0), "argument 3 is a float"),
        ((3, np.int64(16)), r"argument 3 has 8 bytes \(int64\), and the kernel takes 4"),
        ((3, np.int16(16)), "argument 3 has 2 bytes"),
        ((3, None), "argument 3 is None"),
        ((3, np.zeros(1, "i4")), "argument 3 is an array"),
        ((0, [0.0]), "argument 0 is a list"),
        ((0, np.float32(0)), "argument 0 is a value"),
        ((3, np.zeros(2, CONV)), "array of 2 structs"),
        ((3, np.zeros(1, CONV)), f"has {CONV.itemsize} bytes"),
        ((0, None), "outside all arrays|memory that is not there"),
    ],
)
def test_wrong_arguments_are_refused(changed: tuple[int, Any], says: str) -> None:
    launch_filter()
    with pytest.raises(KernelFault, match=says):
        launch_filter(changed)


def test_wrong_launches_are_refused() -> None:
    with pytest.raises(KernelFault, match="grid"):
        launch_filter(grid=(0, 1, 1))
    with pytest.raises(KernelFault, match="grid"):
        launch_filter(grid=(1, 65536, 1))
    kernel = Text("row_filter.cu", "row_filter<float, 64, 5>", (2048, 1, 1), text=FILTER)
    with pytest.raises(KernelFault, match="block"):
        cpu_kernels(kernel, Mode())
    with pytest.raises(KernelFault, match="shared memory"):
        cpu_kernels(replace(kernel, block=(64, 1, 1), shared_bytes=200_000), Mode())
    with pytest.raises(KernelFault, match="takes 5 arguments"):
        cpu_kernels(replace(kernel, block=(64, 1, 1)), Mode())((1, 1, 1), ())


def test_a_read_only_array_cannot_be_written() -> None:
    y = np.zeros(16, "f4")
    y.flags.writeable = False
    with pytest.raises(KernelFault, match="read-only"):
        launch_filter((2, y))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("*(volatile int*)8 = 1;", "memory that is not there"),
        ("y[0] = 7 / zero;", "division of an integer by zero"),
        ("volatile char all[300000]; all[zero] = 1; y[0] = all[zero];", "stack overflow"),
        ("__trap();", "__trap"),
    ],
)
def test_a_crash_is_a_fault_and_the_next_launch_runs(body: str, says: str) -> None:
    text = (
        f"__global__ void crash(float* y, int zero) {{ if (threadIdx.x == 5) {{ {body} }} __syncthreads(); y[0] = 2; }}"
    )
    launch = cpu_kernels(Text("crash.cu", "crash", (32, 1, 1), text=text), Mode())
    with pytest.raises(KernelFault, match=says):
        launch((1, 1, 1), (np.zeros(1, "f4"), np.int32(0)))
    run_filter(FILTER, Mode())


# --- the language


def test_the_struct_of_a_geometry_is_laid_out_as_in_numpy() -> None:
    """Every field of struct Conv lies where geometry.CONV says, and is read as it was written."""
    probes = "\n".join(
        f"out[{2 * i}] = offsetof(Conv, {name}); out[{2 * i + 1}] = sizeof(Conv::{name});"
        for i, name in enumerate(CONV.names or ())
    )
    reads = "\n".join(
        f"memcpy(bytes + offsetof(Conv, {name}), &c.{name}, sizeof c.{name});" for name in CONV.names or ()
    )
    text = (
        source_text("common.cuh")
        + f"""
__global__ void layout(int* out, unsigned char* bytes, Conv c) {{
{probes}
out[{2 * len(CONV)}] = sizeof(Conv);
{reads}
}}"""
    )
    out = np.zeros(2 * len(CONV) + 1, "i4")
    given = np.zeros(1, CONV)
    for number, name in enumerate(CONV.names or (), 1):
        given[name] = number * np.arange(1, given[name].size + 1).reshape(given[name].shape)
    read = np.zeros(1, CONV)
    as_bytes = read.view(np.uint8)
    launch = cpu_kernels(Text("layout.cu", "layout", (1, 1, 1), text=text), Mode())
    launch((1, 1, 1), (out, as_bytes, given))
    fields = CONV.fields or {}
    expected = [value for dtype, offset in fields.values() for value in (offset, dtype.itemsize)]
    assert [*expected, CONV.itemsize] == out.tolist()
    assert read.tobytes() == given.tobytes()


HALVES = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
__global__ void halves(const float* x, __half* h, __nv_bfloat16* b, float* from_h, float* from_b, __half2* fma, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        h[i] = __float2half(x[i]);
        b[i] = __float2bfloat16(x[i]);
        from_h[i] = __half2float(h[i]);
        from_b[i] = __bfloat162float(b[i]);
        const __half2 pair = __floats2half2_rn(x[i], 2.0f);
        fma[i] = __hfma2(pair, pair, __half2half2(__float2half(0.5f)));
    }
}
"""


def test_half_precision_rounds_to_the_nearest_even() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([
        rng.standard_normal(2000) * 10.0 ** rng.integers(-9, 6, 2000),
        (1 + np.arange(64) / 2**11) * 2.0 ** rng.integers(-14, 15, 64),  # half of them are ties
        [0.0, -0.0, 65504, 65519.9, 65520, 1e9, -1e9, np.inf, 2**-24, 2**-25, 2**-25 * 1.001],
    ]).astype("f4")  # fmt: skip
    n = len(x)
    h, b, fma = np.zeros(n, "f2"), np.zeros(n, "u2"), np.zeros((n, 2), "f2")
    from_h, from_b = np.zeros(n, "f4"), np.zeros(n, "f4")
    launch = cpu_kernels(Text("halves.cu", "halves", (32, 1, 1), text=HALVES), Mode())
    launch((1, 1, 1), (x, h, b, from_h, from_b, fma, np.int32(n)))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(h.view("u2"), x.astype("f2").view("u2"))
        np.testing.assert_array_equal(from_h, x.astype("f2").astype("f4"))
        of_half = x.astype("f2").astype("f8")
        np.testing.assert_array_equal(fma[:, 0], (of_half * of_half + 0.5).astype("f2"))
    assert np.all(fma[:, 1] == 4.5)
    assert from_b[np.isinf(x)] == np.inf
    x, from_b = x[np.isfinite(x)], from_b[np.isfinite(x)]
    upper = x.view("u4") & np.uint32(0xFFFF0000)
    around = np.stack([upper.view("f4"), (upper + np.uint32(0x10000)).view("f4")]).astype("f8")
    distance = np.abs(around - x.astype("f8"))
    even = (upper >> 16) % 2 == 0
    nearest = np.where((distance[0] < distance[1]) | ((distance[0] == distance[1]) & even), around[0], around[1])
    np.testing.assert_array_equal(from_b, nearest.astype("f4"))


MATRICES = """
#include <mma.h>
using namespace nvcuda;
template <typename T, typename S, int M, int N, int K, bool ROUND>
__global__ void matrices(const S* a, const S* b, const float* c, float* d) {
    __shared__ __align__(32) S of_b[K * N];
    for (int i = threadIdx.x; i < K * N; i += 32) of_b[i] = b[i];
    __syncwarp();
    wmma::fragment<wmma::matrix_a, M, N, K, T, wmma::row_major> fa;
    wmma::fragment<wmma::matrix_b, M, N, K, T, wmma::col_major> fb;
    wmma::fragment<wmma::accumulator, M, N, K, float> fc, fd;
    wmma::load_matrix_sync(fa, a, K);
    wmma::load_matrix_sync(fb, of_b, K);
    wmma::load_matrix_sync(fc, c, N, wmma::mem_row_major);
    wmma::fill_fragment(fd, 0.0f);
    if constexpr (ROUND) {
        for (int i = 0; i < fa.num_elements; ++i) fa.x[i] = wmma::__float_to_tf32(fa.x[i]);
        for (int i = 0; i < fb.num_elements; ++i) fb.x[i] = wmma::__float_to_tf32(fb.x[i]);
    }
    wmma::mma_sync(fd, fa, fb, fc);
    for (int i = 0; i < fd.num_elements; ++i) fd.x[i] *= 2.0f;
    wmma::store_matrix_sync(d, fd, M, wmma::mem_col_major);
}
"""


def tf32(x: Any, rounded: bool) -> Any:
    """Return x with 10 bits of its fraction."""
    return ((x.view("u4") + np.uint32(0x1000 * rounded)) & np.uint32(0xFFFFE000)).view("f4")


@pytest.mark.parametrize("mode", [Mode(), Mode("shuffled", check=True)], ids=mode_name)
@pytest.mark.parametrize(
    ("kind", "shape"),
    [*((kind, shape) for kind in ("half", "bfloat16") for shape in ((16, 16, 16), (32, 8, 16), (8, 32, 16))),
     ("tf32", (16, 16, 8)), ("tf32 rounded", (16, 16, 8))],
)  # fmt: skip
def test_tensor_cores_multiply_matrices(kind: str, shape: tuple[int, int, int], mode: Mode) -> None:
    m, n, k = shape
    rng = np.random.default_rng(m)
    if kind.startswith("tf32"):  # so few terms of so few bits that each sum is exact
        a, b = (1 + rng.integers(0, 2**13, size) / 2**13 for size in ((m, k), (n, k)))
        a, b = a.astype("f4"), b.astype("f4")
        a[:, 1:], b[:, 1:] = 0, 0
        given, numbers = (a, b), tuple(tf32(x, kind == "tf32 rounded") for x in (a, b))
    else:
        a, b = (rng.integers(-8, 9, size).astype("f4") for size in ((m, k), (n, k)))
        given = (
            (a.astype("f2"), b.astype("f2"))
            if kind == "half"
            else tuple((x.view("u4") >> 16).astype("u2") for x in (a, b))
        )
        numbers = (a, b)
    c, d = rng.integers(-8, 9, (m, n)).astype("f4"), np.full((n, m), np.nan, "f4")
    types = {"half": "__half, __half", "bfloat16": "__nv_bfloat16, __nv_bfloat16"}.get(
        kind, "wmma::precision::tf32, float"
    )
    name = f"matrices<{types}, {m}, {n}, {k}, {str(kind == 'tf32 rounded').lower()}>"
    launch = cpu_kernels(Text("matrices.cu", name, (32, 1, 1), text=MATRICES), mode)
    launch((1, 1, 1), (*given, c, d))
    np.testing.assert_allclose(d.T, 2 * (numbers[0].astype("f8") @ numbers[1].T.astype("f8") + c), rtol=2e-7)


def test_lanes_that_share_memory_need_a_barrier_of_the_warp() -> None:
    text = MATRICES.replace("__syncwarp();", "")
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 9, (16, 16)).astype("f2") for _ in range(2))
    kernel = Text("matrices.cu", "matrices<__half, __half, 16, 16, 16, false>", (32, 1, 1), text=text)
    with pytest.raises(KernelFault, match="race: "):
        cpu_kernels(kernel, Mode(check=True))((1, 1, 1), (a, b, np.zeros((16, 16), "f4"), np.zeros((16, 16), "f4")))


INTRINSICS = """
__global__ void intrinsics(int* out, float* reals, const float4* quads) {
    const int i = threadIdx.x;
    const unsigned all = 0xffffffffu;
    out[i] = __shfl_sync(all, i, 3, 8);
    out[32 + i] = __shfl_up_sync(all, i, 2u, 8);
    out[64 + i] = __shfl_down_sync(all, i, 2u, 8);
    out[96 + i] = __shfl_xor_sync(all, i, 5);
    out[128 + i] = (int)__ballot_sync(all, i % 3 == 0);
    out[160 + i] = __any_sync(all, i == 40) * 4 + __any_sync(all, i == 4) * 2 + __all_sync(all, i < 32);
    if (i < 16) out[192 + i] = __shfl_xor_sync(0x0000ffffu, i, 1);
    else out[192 + i] = __shfl_xor_sync(0xffff0000u, 100 + i, 16 + 1 - 16);
    out[224 + i] = __syncthreads_count(i < 5) * 100 + __syncthreads_or(i == 3) * 10 + __syncthreads_and(i < 32);
    const float4 q = __ldg(quads + i);
    reals[i] = fmaf(q.x, q.y, q.z) + min(q.w, 2.0f) + max(i, 7);
    atomicAdd(reals + 32, 0.5f);
    atomicMax(out + 256, i);
}
"""


@pytest.mark.parametrize("mode", [Mode(), Mode("backward"), Mode("shuffled", check=True)], ids=mode_name)
def test_lanes_of_a_warp_exchange_values(mode: Mode) -> None:
    out, reals, lanes = np.zeros(257, "i4"), np.zeros(33, "f4"), np.arange(32)
    quads = np.random.default_rng(0).integers(-4, 5, (32, 4)).astype("f4")
    launch = cpu_kernels(Text("intrinsics.cu", "intrinsics", (32, 1, 1), text=INTRINSICS), mode)
    launch((1, 1, 1), (out, reals, quads))
    assert out[:32].tolist() == (lanes // 8 * 8 + 3).tolist()
    assert out[32:64].tolist() == np.where(lanes % 8 < 2, lanes, lanes - 2).tolist()
    assert out[64:96].tolist() == np.where(lanes % 8 > 5, lanes, lanes + 2).tolist()
    assert out[96:128].tolist() == (lanes ^ 5).tolist()
    assert set(out[128:160].view("u4")) == {sum(1 << i for i in range(0, 32, 3))}
    assert set(out[160:192]) == {3}
    assert out[192:224].tolist() == np.where(lanes < 16, lanes ^ 1, (lanes ^ 1) + 100).tolist()
    assert set(out[224:256]) == {511}
    assert out[256] == 31
    assert reals[32] == 16.0
    x, y, z, w = quads.T
    np.testing.assert_array_equal(reals[:32], x * y + z + np.minimum(w, 2) + np.maximum(lanes, 7))


def test_blocks_that_write_to_the_same_place_are_found_unless_they_add_atomically() -> None:
    text = "__global__ void add(float* y) { if (threadIdx.x == 0) %s; }"
    for body, sound in (("atomicAdd(y, 1.0f)", True), ("y[0] += 1.0f", False)):
        y = np.zeros(1, "f4")
        launch = cpu_kernels(Text("add.cu", "add", (32, 1, 1), text=text % body), Mode(check=True))
        if sound:
            launch((4, 1, 1), (y,))
            assert y[0] == 4
        else:
            with pytest.raises(KernelFault, match="race between blocks"):
                launch((4, 1, 1), (y,))


def test_what_lies_between_the_elements_of_a_view_is_not_there() -> None:
    """Only the view's own elements are copied to the device: others are NaN, and stay as they were."""
    text = "__global__ void copy(const float* x, int a, float* y, int b) { int i = threadIdx.x; y[i * b] = x[i * a]; }"
    launch = cpu_kernels(Text("copy.cu", "copy", (8, 1, 1), text=text), Mode())
    x, y = np.arange(16, dtype="f4"), np.zeros(16, "f4")
    launch((1, 1, 1), (x[::2], np.int32(2), y[::2], np.int32(2)))
    assert y[::2].tolist() == x[::2].tolist()
    assert not y[1::2].any()
    launch((1, 1, 1), (x[::-2], np.int32(-2), y[::-2], np.int32(-2)))
    assert y[1::2].tolist() == x[1::2].tolist()
    with pytest.raises(KernelFault, match="outside all arrays"):
        launch((1, 1, 1), (x[::2], np.int32(2), y[::2], np.int32(1)))


def test_the_portable_fibers_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_CPU_FIBERS", "ucontext")
    for order in ORDERS:
        result, expected = run_filter(FILTER + "// on portable fibers\n", Mode(order))
        np.testing.assert_array_equal(result, expected)
    text = FILTER.replace("__syncthreads();  // filled", "if (first + i < n) __syncthreads();")
    assert "divergent barrier" in (caught(run_filter, text + "// on portable fibers\n", Mode()) or "")
