// What the kernels of direct convolution share: how the samples beneath a tile of outputs come into shared memory.
//
// A block owns a tile of outputs and walks over steps (kernel depths and chunks of input channels). For each step the
// samples beneath the tile, its halo, are staged in shared memory, boundaries resolved, in the type that sums are
// formed in. Two tables, made once a block, say where each row and each column of the halo comes from, so that any
// boundary costs two look-ups a sample. With column stride s, the samples of a row lie ordered by q mod s (its phases),
// so that neighbouring threads, whose samples are s apart, read neighbouring banks.
#pragma once
#include "common.cuh"
#include <cuda_pipeline.h>

// How a block's work is laid out; mirrored by convbench/cuda/tiles.py, field by field.
struct Tile {
    int columns, row_groups, planes, outputs;  // threads of a block along each
    int channels;                              // input channels staged at a time
    int halo[2];                               // rows and columns of samples beneath the tile
    unsigned reciprocal;                       // 2^32 / halo[1], rounded up: divides by halo[1]; 0: by 1
    int phase, pitch, plane;                   // items in shared memory between phases, rows, channels
    int row_step, tap_step;                    // items between the samples of neighbouring output rows, kernel rows
    int fold;                                  // of one axis: columns of a row that it is folded into; 0: not folded
    int team;                                  // threads that stage one plane together
    int weights;                               // of packed weights: items from one tap (tiles) or filter to the next
    int buffers;                               // 2: the next step is staged while one is computed; 1: after it
    unsigned blocks[4];                        // tiles along outputs, columns, rows and depth
};

const Index NOWHERE = -(1LL << 62);  // zeros lie here: strides may be negative, so any small number is somewhere

// Copy a sample to shared memory: asynchronously where the type stays the same.
__device__ __forceinline__ void fetch(float* target, const float* source) {
    __pipeline_memcpy_async(target, source, sizeof(float));
}
__device__ __forceinline__ void fetch(double* target, const double* source) {
    __pipeline_memcpy_async(target, source, sizeof(double));
}
__device__ __forceinline__ void fetch(float* target, const __half* source) { *target = __half2float(*source); }

template <typename S> struct __align__(16) Vector {
    enum { COUNT = 16 / sizeof(S) };
    S item[COUNT];
};

// Read neighbours, 16 bytes at a time where there are so many: `source` is then aligned to 16 bytes.
template <int COUNT, typename S> __device__ __forceinline__ void read(S (&target)[COUNT], const S* source) {
    constexpr int EACH = Vector<S>::COUNT, WHOLE = COUNT < 4 ? 0 : COUNT / EACH * EACH;
#pragma unroll
    for (int i = 0; i < WHOLE; i += EACH) {
        const Vector<S> four = *reinterpret_cast<const Vector<S>*>(source + i);
#pragma unroll
        for (int j = 0; j < EACH; ++j) target[i + j] = four.item[j];
    }
#pragma unroll
    for (int i = WHOLE; i < COUNT; ++i) target[i] = source[i];
}

// Copy `count` weights, a multiple of 16 bytes, to shared memory with the block's threads, from `thread` in steps.
template <typename S>
__device__ __forceinline__ void fetch_all(S* target, const S* source, int count, int thread, int threads) {
    for (int i = thread * Vector<S>::COUNT; i < count; i += threads * Vector<S>::COUNT)
        __pipeline_memcpy_async(target + i, source + i, 16);
}

// Shared memory, handed out piece by piece, each aligned to 16 bytes.
struct Pieces {
    unsigned char* next;

    template <typename S> __device__ __forceinline__ S* take(int count) {
        S* piece = reinterpret_cast<S*>(next);
        next += (count * static_cast<int>(sizeof(S)) + 15) / 16 * 16;
        return piece;
    }
};

// What one step needs in shared memory: samples, then weights; twice if the next step is staged meanwhile.
template <typename S> struct Buffers {
    S* first;
    int samples, all;  // items: to the weights, to the next buffer or 0

    __device__ __forceinline__ Buffers(Pieces& memory, int count, int sample_items, int weight_items) {
        constexpr int EACH = Vector<S>::COUNT;
        samples = (sample_items + EACH - 1) / EACH * EACH;
        all = samples + (weight_items + EACH - 1) / EACH * EACH;
        first = memory.take<S>(count * all);
        if (count == 1) all = 0;
    }
    __device__ __forceinline__ S* samples_of(int step) const { return first + (step & 1) * all; }
    __device__ __forceinline__ S* weights_of(int step) const { return first + (step & 1) * all + samples; }
};

// The tables: where the rows and columns of the halo lie in a plane of x, and its columns in shared memory.
struct Halo {
    Index *rows, *columns;
    int* places;

    __device__ __forceinline__ Halo(Pieces& memory, const Tile& t) {
        rows = memory.take<Index>(t.halo[0]);
        columns = memory.take<Index>(t.halo[1]);
        places = memory.take<int>(t.halo[1]);
    }

    // row, column: the position of the first sample. phases: how many a row is ordered by.
    __device__ __forceinline__ void locate(const Conv& c, const Tile& t, int row, int column, int phases) {
        for (int i = threadIdx.x; i < t.halo[0]; i += blockDim.x) {
            const int at = source_index(row + i, c.size[1], c.boundary);
            rows[i] = at < 0 ? NOWHERE : at * c.x[4];
        }
        for (int i = threadIdx.x; i < t.halo[1]; i += blockDim.x) {
            const int at = source_index(column + i, c.size[2], c.boundary);
            columns[i] = at < 0 ? NOWHERE : at * c.x[5];
            places[i] = i % phases * t.phase + i / phases;
        }
    }

    // Stage one plane, or zeros if there is none, with the threads of a team, of which this is number `member`.
    template <typename T>
    __device__ __forceinline__ void stage(typename Sum<T>::type* target, const T* plane, bool present, const Tile& t,
                                          int member) const {
        const int count = t.halo[0] * t.halo[1];
        for (int i = member; i < count; i += t.team) {
            const int row = t.reciprocal ? static_cast<int>((1ULL * i * t.reciprocal) >> 32) : i;
            const int column = i - row * t.halo[1];
            const Index above = rows[row], beside = columns[column];
            typename Sum<T>::type* place = target + row * t.pitch + places[column];
            if (present && above != NOWHERE && beside != NOWHERE)
                fetch(place, plane + (above + beside));
            else
                *place = 0;
        }
    }
};

// Wait for all copies but those of the last `newer` commits, and for the other threads.
__device__ __forceinline__ void arrived(bool newer) {
    if (newer)
        __pipeline_wait_prior(1);
    else
        __pipeline_wait_prior(0);
    __syncthreads();
}

// How many steps of size `each` cover `total`.
__device__ __forceinline__ int covering(int total, int each) { return (total + each - 1) / each; }
