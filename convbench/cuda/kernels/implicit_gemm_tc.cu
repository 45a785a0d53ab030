// Implicit GEMM on tensor cores, forward; see gather.cuh. Products of operands of type S, sums in float32.
//
// S is __half (arrays of __half), __nv_bfloat16 (arrays of float, rounded to 8 significant bits on the way) or float
// (arrays of float, rounded to TF32's 11). A block computes BM output channels of one group for BN columns n, 32
// rows k at a time, a warp WM x WN of them as fragments of 16 x 16. In shared memory lie two K-tiles of W (BM x 32)
// and of X (BN x 32), k fastest in both. Weights come by cp.async, 128 bits at a time, while the tile before is
// multiplied. Samples pass through registers, to be rounded and turned: in each step of a K-tile (16 rows k, of
// TF32 8) a thread gathers its share of one column for the next K-tile, multiplies, and stores 128 bits of operands
// at a time; channels that are neighbours in memory (channels last) it reads 128 bits at a time too. A row in shared
// memory is 128 bits longer than 32 items, so that eight rows begin in eight different groups of four banks: neither
// stores nor fragments meet.
// The sums leave by way of a warp's own 16 x 16 floats of shared memory, along y's memory order.
//
// Arithmetic intensity: (BM + BN) * 32 operands a K-tile for 2 * BM * BN * 32 FLOPs: 128 FLOPs an operand from the
// caches for 128 x 128. From shared memory a warp of 64 x 32 reads 96 operands for 2048 multiply-adds. Dynamic
// shared memory of a 128 x 128 block: 40 KiB for 16-bit operands and 72 KiB for TF32, and 3 KiB of places: two
// blocks a multiprocessor.
// NVRTC 13.0, registers on sm_80 and sm_90 for 128 x 128, none spilled: __half 121 and 122, the others 128.
// Prediction for an H200 (not a measurement): 20 to 35 % of the dense peak of sm_90. wmma compiles to mma.sync,
// which on Hopper falls well short of its warp-group instructions, and gathering shares the issue slots with it:
// some 5 instructions a sample with many channels, 20 with few.
#include <cuda_bf16.h>
#include <cuda_pipeline.h>
#include <mma.h>

#include "gather.cuh"

namespace tensor {

using namespace nvcuda;

// How operands are multiplied: fragments of 16 x 16 x DEPTH.
template <typename S> struct Operand { typedef S type; static constexpr int DEPTH = 16; };
template <> struct Operand<float> { typedef wmma::precision::tf32 type; static constexpr int DEPTH = 8; };

template <typename S, typename T> __device__ __forceinline__ S rounded(T value) { return value; }
template <> __device__ __forceinline__ __nv_bfloat16 rounded<__nv_bfloat16, float>(float value) {
    return __float2bfloat16(value);
}
template <> __device__ __forceinline__ float rounded<float, float>(float value) { return wmma::__float_to_tf32(value); }

}  // namespace tensor

// Weights as operands: one thread a number.
template <typename T, typename S>
__global__ void __launch_bounds__(256, 4) round_weights(const T* __restrict__ w, S* __restrict__ rounded, Index count) {
    const Index step = static_cast<Index>(gridDim.x) * 256;
    for (Index i = blockIdx.x * 256ll + threadIdx.x; i < count; i += step) rounded[i] = tensor::rounded<S>(w[i]);
}

// y: the result, or where partial sums go, `part_items` for each of `splits`. Grid: as struct Block counts.
template <typename T, typename S, int BM, int BN, int WM, int WN, int RESIDENT, bool FEW>
__global__ void __launch_bounds__((BM / WM) * (BN / WN) * 32, RESIDENT)
implicit_gemm_tc(const T* __restrict__ x, const S* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
                 const Tap* __restrict__ taps, Conv c, int per_outputs, int per_columns, int tiles, int splits,
                 Index part_items) {
    using namespace nvcuda;
    typedef typename tensor::Operand<S>::type Precision;
    constexpr int THREADS = (BM / WM) * (BN / WN) * 32, BK = 32, DEPTH = tensor::Operand<S>::DEPTH;
    constexpr int WORD = 16 / sizeof(S), PITCH = BK + WORD, STAGE = (BM + BN) * PITCH;
    constexpr int STEPS = BK / DEPTH;                // a K-tile is multiplied in so many
    constexpr int RUN = BK * BN / THREADS / STEPS;  // rows k that a thread gathers of its column in each
    constexpr int READ = 16 / sizeof(T);
    constexpr int SLAB_PITCH = 20;
    static_assert(THREADS % BN == 0 && RUN % WORD == 0 && RUN % READ == 0, "every thread gathers whole words");
    static_assert(WM % 16 == 0 && WN % 16 == 0, "whole fragments");
    extern __shared__ __align__(128) unsigned char arena[];
    __shared__ Column places[BN];
    S* const stages = reinterpret_cast<S*>(arena);

    const Block block(BM, BN, c.groups, per_outputs, per_columns, tiles, splits);
    const unsigned columns = static_cast<unsigned>(c.batch) * c.result[0] * c.result[1] * c.result[2];
    const Index rows = static_cast<Index>(tiles) * BK;
    constexpr int WORDS = BK / WORD;  // of a row of weights
    const int own_output = threadIdx.x / WORDS, own_word = threadIdx.x % WORDS * WORD;
    const S* weights = w + (static_cast<Index>(block.group) * per_outputs * BM + block.output + own_output) * rows +
                       block.first * BK + own_word;
    const int own = threadIdx.x % BN, own_row = threadIdx.x / BN * STEPS * RUN;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_m = warp / (BN / WN) * WM, warp_n = warp % (BN / WN) * WN;
    Gather<T, BK, FEW> gather(c, x, taps, block.group, block.column + own, columns, block.first);
    __align__(16) T samples[RUN];

    auto begin_weights = [&](S* stage) {
        S* target = stage + own_output * PITCH + own_word;
        const S* source = weights;
#pragma unroll
        for (int m = 0; m < BM; m += THREADS / WORDS) {
            __pipeline_memcpy_async(target + m * PITCH, source, 16);
            source += THREADS / WORDS * rows;
        }
        __pipeline_commit();
    };
    auto fetch = [&](int step) {
        const int row = own_row + step * RUN;
#pragma unroll
        for (int i = 0; i < RUN; i += READ) {
            const T* together = gather.template run<READ>(row + i);
            if (together) {
                *reinterpret_cast<int4*>(samples + i) = *reinterpret_cast<const int4*>(together);
            } else {
#pragma unroll
                for (int j = 0; j < READ; ++j) samples[i + j] = gather.read(row + i + j);
            }
        }
    };
    auto place = [&](S* stage, int step) {
        S* target = stage + (BM + own) * PITCH + own_row + step * RUN;
#pragma unroll
        for (int i = 0; i < RUN; i += WORD) {
            __align__(16) S word[WORD];
#pragma unroll
            for (int j = 0; j < WORD; ++j) word[j] = tensor::rounded<S>(samples[i + j]);
            *reinterpret_cast<int4*>(target + i) = *reinterpret_cast<const int4*>(word);
        }
    };

    wmma::fragment<wmma::accumulator, 16, 16, DEPTH, float> sums[WM / 16][WN / 16];
#pragma unroll
    for (int i = 0; i < WM / 16; ++i)
#pragma unroll
        for (int j = 0; j < WN / 16; ++j) wmma::fill_fragment(sums[i][j], 0.0f);
    if (threadIdx.x < BN) places[threadIdx.x] = column_of(c, block.group, block.column + threadIdx.x, columns);

    int current = 0;
    if (block.first < block.last) {
        begin_weights(stages);
#pragma unroll 1
        for (int step = 0; step < STEPS; ++step) {
            fetch(step);
            place(stages, step);
        }
        __pipeline_wait_prior(0);
    }
    __syncthreads();
    for (int tile = block.first; tile < block.last; ++tile) {
        const bool more = tile + 1 < block.last;
        const S* stage = stages + current * STAGE;
        current ^= 1;
        if (more) {
            weights += BK;
            begin_weights(stages + current * STAGE);
            gather.advance();
        }
#pragma unroll 1  // or fragments are loaded long before they are wanted, for which there are no registers
        for (int step = 0; step < STEPS; ++step) {
            if (more) fetch(step);
            const int k = step * DEPTH;
            wmma::fragment<wmma::matrix_b, 16, 16, DEPTH, Precision, wmma::col_major> right[WN / 16];
#pragma unroll
            for (int j = 0; j < WN / 16; ++j)
                wmma::load_matrix_sync(right[j], stage + (BM + warp_n + 16 * j) * PITCH + k, PITCH);
#pragma unroll
            for (int i = 0; i < WM / 16; ++i) {
                wmma::fragment<wmma::matrix_a, 16, 16, DEPTH, Precision, wmma::row_major> left;
                wmma::load_matrix_sync(left, stage + (warp_m + 16 * i) * PITCH + k, PITCH);
#pragma unroll
                for (int j = 0; j < WN / 16; ++j) wmma::mma_sync(sums[i][j], left, right[j], sums[i][j]);
            }
            if (more) place(stages + current * STAGE, step);
        }
        if (more) __pipeline_wait_prior(0);
        __syncthreads();
    }

    float* const slab = reinterpret_cast<float*>(arena) + warp * 16 * SLAB_PITCH;
    const Index part = block.split * part_items;
    const bool by_outputs = c.y[2] == 1;
#pragma unroll
    for (int i = 0; i < WM / 16; ++i)
#pragma unroll
        for (int j = 0; j < WN / 16; ++j) {
            wmma::store_matrix_sync(slab, sums[i][j], SLAB_PITCH, wmma::mem_row_major);
            __syncwarp();
#pragma unroll 1
            for (int n = lane; n < 256; n += 32) {
                const int m = by_outputs ? n % 16 : n / 16, q = by_outputs ? n / 16 : n % 16;
                const int output = block.output + warp_m + 16 * i + m;
                const Column& column = places[warp_n + 16 * j + q];
                if (output < c.outputs && column.used)
                    put(y, bias, c, column, output, part, slab[m * SLAB_PITCH + q]);
            }
            __syncwarp();
        }
}
