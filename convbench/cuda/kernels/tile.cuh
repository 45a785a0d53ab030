// Products of matrices on the general-purpose cores: the tile of sums that a block holds in registers.
#pragma once
#include "common.cuh"

// Copy 128 bits.
template <typename T>
__device__ __forceinline__ void copy_vector(T* target, const T* source) {
    *reinterpret_cast<int4*>(target) = *reinterpret_cast<const int4*>(source);
}

// The tile of sums of a block: which of them a thread holds, how they are multiplied and how they leave.
template <typename T, int BM, int BN, int TM, int TN, int PITCH_M, int PITCH_N>
struct Tile {
    typedef typename Sum<T>::type A;
    static constexpr int V = 16 / sizeof(A);                              // sums in 128 bits
    static constexpr int ROWS = BM / TM, COLUMNS = BN / TN;               // of threads
    static constexpr int THREADS = ROWS * COLUMNS;
    static constexpr int WARPS_M = ROWS / 4, WARPS_N = COLUMNS / 8;
    static constexpr int STEP_M = BM / (TM / V), STEP_N = BN / (TN / V);  // between the 128-bit parts of a thread
    static constexpr int SLAB_M = 4 * V, SLAB_PITCH = BN + V;             // what leaves at a time
    static constexpr int SLAB = SLAB_M * SLAB_PITCH;
    static_assert(ROWS % 4 == 0 && COLUMNS % 8 == 0 && TM % V == 0 && TN % V == 0, "a warp is 4 x 8 threads");

    int warp_row, row, column;  // of this thread
    __align__(16) A sums[TM][TN];

    __device__ __forceinline__ Tile() {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        warp_row = warp / WARPS_N;
        row = warp_row * 4 + lane / 8;
        column = warp % WARPS_N * 8 + lane % 8;
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
            for (int j = 0; j < TN; ++j) sums[i][j] = A(0);
    }

    // Add the product of DEPTH rows of both matrices.
    template <int DEPTH>
    __device__ __forceinline__ void multiply(const A* left, const A* right) {
#pragma unroll
        for (int k = 0; k < DEPTH; ++k) {
            __align__(16) A a[TM];
            __align__(16) A b[TN];
#pragma unroll
            for (int i = 0; i < TM; i += V) copy_vector(a + i, left + k * PITCH_M + i / V * STEP_M + row * V);
#pragma unroll
            for (int j = 0; j < TN; j += V) copy_vector(b + j, right + k * PITCH_N + j / V * STEP_N + column * V);
#pragma unroll
            for (int i = 0; i < TM; ++i)
#pragma unroll
                for (int j = 0; j < TN; ++j) sums[i][j] += a[i] * b[j];
        }
    }

    // Hand each sum to `leave(row, column, sum)`, neighbouring threads having neighbouring columns, or rows `by_rows`.
    template <typename Leave>
    __device__ __forceinline__ void release(A* slab, bool by_rows, Leave leave) {
#pragma unroll
        for (int part = 0; part < TM / V; ++part) {
#pragma unroll 1
            for (int turn = 0; turn < WARPS_M; ++turn) {
                __syncthreads();
                if (warp_row == turn)
#pragma unroll
                    for (int i = 0; i < V; ++i)
#pragma unroll
                        for (int j = 0; j < TN; j += V)
                            copy_vector(slab + ((row % 4) * V + i) * SLAB_PITCH + j / V * STEP_N + column * V,
                                        &sums[part * V + i][j]);
                __syncthreads();
                const int first = part * STEP_M + turn * SLAB_M;
#pragma unroll 1  // it is left once: its code need not be long
                for (int n = threadIdx.x; n < SLAB_M * BN; n += THREADS) {
                    const int i = by_rows ? n % SLAB_M : n / BN;
                    const int j = by_rows ? n / SLAB_M : n % BN;
                    leave(first + i, j, slab[i * SLAB_PITCH + j]);
                }
            }
        }
    }
};
