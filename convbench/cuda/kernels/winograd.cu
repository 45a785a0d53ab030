// Winograd's minimal filtering (Winograd 1980; Lavin and Gray 2016) along rows and columns, summed along depth:
//
//   y(tile) = A^T [ sum over c, k of (G w G^T) . (B^T x B) ] A        F(M, 3): M outputs from M + 2 samples an axis
//
// A is the same for rows and columns, and so are G and B; where the kernel has one row only columns are transformed.
// Kernels of two taps are kernels of three whose last tap is zero. Samples of a dilated kernel lie on interleaved
// grids, each of which has tiles of its own. Along depth, kernel offsets count as further channels ("steps" below).
//
// Fused (winograd_fused). A block computes OUTPUTS output channels of TILES tiles, whatever image and row they are
// from, so that small images fill blocks too. Its threads are 16 a frequency: 4 along outputs times 4 along tiles,
// each with UO x UT sums in registers, so that the channels of a chunk take (UO + UT) shared loads for UO * UT
// multiply-adds. While chunk k is multiplied,
//   - the samples of chunk k + 2 and the weights of chunk k + 1 are on their way (cp.async: no register waits),
//   - the first warps transform chunk k + 1, one (tile, channel, part of the frequencies) a thread;
// then there is one barrier. In shared memory lie, each twice: samples [channel][sample][tile], their transforms
// [frequency][channel][tile] and weights [frequency][channel][output]; where samples are written and transformed
// lanes are tiles, so there is no bank conflict. A thread loads the same samples of the same tile in every chunk, so
// its places in x are worked out once, boundary included. At the end products go through shared memory to threads
// that have a tile each, some outputs at a time.
//
//   F(2, 3), float:  256 threads, 64 sums each, 32 outputs x 32 tiles x 16 frequencies, chunks of 4: 49 KiB; two an SM
//   F(4, 3), float:  576 threads, 64 sums each, 32 outputs x 32 tiles x 36 frequencies, chunks of 2: 64 KiB; one
//   F(4, 3) along columns only: 96 threads, 64 sums each, 6 frequencies, chunks of 8: 37 KiB; four
// 18 warps leave 96 registers a thread (the scheduler that has five of them decides). A whole transform of 36 values
// beside 64 sums would not fit, so a thread does a third of one, and what changes rarely is kept in shared memory.
// Double sums take two registers: 32 or 16 a thread.
//
// Work: 2 F FLOPs a tile, channel and output against 18 M^2 of the definition: 2.25 times less for F(2, 3), 4 times
// less for F(4, 3). Traffic from L2 a block and channel: F * 4 B * (32 weights + 32 samples; of these 9/4 to 4 times
// fewer where L1 catches what tiles share) for F * 2048 FLOPs: 8 to 13 FLOPs a byte. Prediction for an H200 (not a
// measurement): that, and not the multipliers, bounds F(4, 3): 5 TB/s of L2 are 40 to 65 TFLOP/s.
//
// In three steps (winograd_input, a GEMM a frequency, winograd_output). Transforms go through memory: 2 * F * 4 B *
// (C + O) a tile, but the GEMM's blocks are larger, so with many channels less is moved in all.
#include "common.cuh"

#include <cuda_pipeline.h>

// --- the transforms of F(M, 3), in exact fractions: those of convbench.jit.winograd.axis_transforms

template <int M>
struct Axis;

template <>
struct Axis<1> {  // one tap: nothing to transform
    static constexpr int SIZE = 1, TAPS = 1;
    static __device__ constexpr double b(int, int) { return 1; }
    static __device__ constexpr double a(int, int) { return 1; }
    static __device__ constexpr double g(int, int) { return 1; }
};

template <>
struct Axis<2> {  // points 0, 1, -1, infinity
    static constexpr int SIZE = 4, TAPS = 3;
    static __device__ constexpr double b(int frequency, int sample) {
        constexpr double table[4][4] = {{-1, 0, 1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, -1, 0, 1}};
        return table[frequency][sample];
    }
    static __device__ constexpr double a(int output, int frequency) {
        constexpr double table[2][4] = {{1, 1, 1, 0}, {0, 1, -1, 1}};
        return table[output][frequency];
    }
    static __device__ constexpr double g(int frequency, int tap) {
        constexpr double table[4][3] = {{-1, 0, 0}, {1. / 2, 1. / 2, 1. / 2}, {1. / 2, -1. / 2, 1. / 2}, {0, 0, 1}};
        return table[frequency][tap];
    }
};

template <>
struct Axis<4> {  // points 0, 2/3, -2/3, 3/2, -3/2, infinity: they magnify rounding errors least
    static constexpr int SIZE = 6, TAPS = 3;
    static __device__ constexpr double b(int frequency, int sample) {
        constexpr double table[6][6] = {{1, 0, -97. / 36, 0, 1, 0},
                                        {0, -3. / 2, -9. / 4, 2. / 3, 1, 0},
                                        {0, 3. / 2, -9. / 4, -2. / 3, 1, 0},
                                        {0, -2. / 3, -4. / 9, 3. / 2, 1, 0},
                                        {0, 2. / 3, -4. / 9, -3. / 2, 1, 0},
                                        {0, 1, 0, -97. / 36, 0, 1}};
        return table[frequency][sample];
    }
    static __device__ constexpr double a(int output, int frequency) {
        constexpr double table[4][6] = {{1, 1, 1, 1, 1, 0},
                                        {0, 2. / 3, -2. / 3, 3. / 2, -3. / 2, 0},
                                        {0, 4. / 9, 4. / 9, 9. / 4, 9. / 4, 0},
                                        {0, 8. / 27, -8. / 27, 27. / 8, -27. / 8, 1}};
        return table[output][frequency];
    }
    static __device__ constexpr double g(int frequency, int tap) {
        constexpr double table[6][3] = {{1, 0, 0},
                                        {-81. / 130, -27. / 65, -18. / 65},
                                        {-81. / 130, 27. / 65, -18. / 65},
                                        {8. / 65, 12. / 65, 18. / 65},
                                        {8. / 65, -12. / 65, 18. / 65},
                                        {0, 0, 1}};
        return table[frequency][tap];
    }
};

// Add a constant times a value; zeros cost nothing, ones no multiplication.
template <typename A>
__device__ __forceinline__ void add_multiple(A& sum, double factor, A value) {
    if (factor != 0) sum += A(factor) * value;
}

// --- 16 bytes at once

template <typename A>
struct __align__(16) Pack {
    A items[16 / sizeof(A)];
};

template <int COUNT, typename A>
__device__ __forceinline__ void load_packs(A (&values)[COUNT], const A* from, int step) {
    constexpr int EACH = 16 / sizeof(A);
#pragma unroll
    for (int i = 0; i < COUNT / 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; j += EACH) {
            const Pack<A> pack = *reinterpret_cast<const Pack<A>*>(from + i * step + j);
#pragma unroll
            for (int k = 0; k < EACH; ++k) values[4 * i + j + k] = pack.items[k];
        }
}

// --- tiles

// How tiles cover the outputs: of every image and depth so many rows and columns of them, neighbours of a dilated
// kernel on different grids. Mirrored by convbench/cuda/winograd.py.
struct Tiles {
    int rows, columns;  // of tiles
    int total;          // of all images and depths
    int steps;          // of the sum: kernel offsets along depth times channels, the channels in whole chunks
};

// Where a tile is: its first output; its other outputs, and its samples, are a dilation apart.
struct Place {
    int image, depth, row, column;
};

template <int MR, int MC>
__device__ __forceinline__ Place place_of(int tile, const Tiles& tiles, const Conv& c) {
    const int across = tile % tiles.columns;
    tile /= tiles.columns;
    const int down = tile % tiles.rows;
    tile /= tiles.rows;
    Place place;
    place.depth = tile % c.result[0];
    place.image = tile / c.result[0];
    place.row = down % c.dilation[1] + down / c.dilation[1] * c.dilation[1] * MR;
    place.column = across % c.dilation[2] + across / c.dilation[2] * c.dilation[2] * MC;
    return place;
}

constexpr Index NOWHERE = Index(1) << 62;  // no place in an array; strides may be negative, so -1 is one

// Where a sample of a tile lies in a plane of x, or NOWHERE.
__device__ __forceinline__ Index sample_at(const Place& place, int row, int column, const Conv& c) {
    const int r = source_index(place.row + row * c.dilation[1] - c.before[1], c.size[1], c.boundary);
    const int q = source_index(place.column + column * c.dilation[2] - c.before[2], c.size[2], c.boundary);
    return r < 0 || q < 0 ? NOWHERE : r * c.x[4] + q * c.x[5];
}

__device__ __forceinline__ int depth_of(const Place& place, int offset, const Conv& c) {
    return source_index(place.depth * c.stride[0] + offset * c.dilation[0] - c.before[0], c.size[0], c.boundary);
}

// Write those outputs of one row of a tile that exist, all at once where they are neighbours.
template <typename T, int MC>
__device__ __forceinline__ void write_row(T* __restrict__ y, const T* __restrict__ bias,
                                          typename Sum<T>::type (&line)[MC], int group, int output, const Place& place,
                                          int row, const Conv& c) {
    typedef typename Sum<T>::type A;
    row = place.row + row * c.dilation[1];
    if (row >= c.result[1]) return;
    const Index at = place.image * c.y[0] + group * c.y[1] + output * c.y[2] + place.depth * c.y[3] + row * c.y[4] +
                     place.column * c.y[5];
#pragma unroll
    for (int j = 0; j < MC; ++j) {
        const int column = place.column + j * c.dilation[2];
        if (column < c.result[2]) line[j] += bias_at(bias, c, group, output, place.depth, row, column);
    }
    if constexpr (sizeof(T) == sizeof(A) && MC * sizeof(T) <= 16) {
        struct __align__(MC * sizeof(T)) Line {
            T items[MC];
        };
        const bool neighbours = c.y[5] == 1 && c.dilation[2] == 1 && place.column + MC <= c.result[2];
        if (neighbours && reinterpret_cast<size_t>(y + at) % sizeof(Line) == 0) {
            Line whole;
#pragma unroll
            for (int j = 0; j < MC; ++j) whole.items[j] = line[j];
            *reinterpret_cast<Line*>(y + at) = whole;
            return;
        }
    }
#pragma unroll
    for (int j = 0; j < MC; ++j)
        if (place.column + j * c.dilation[2] < c.result[2]) store(y, at + j * c.dilation[2] * c.y[5], line[j], c);
}

// --- transforms of one tile, held in registers

// Rows FIRST ... FIRST + ROWS - 1 of B^T x B; samples and transforms are handed over one at a time.
template <typename A, int MR, int MC, int FIRST, int ROWS, typename Read, typename Write>
__device__ __forceinline__ void transform_samples(Read read, Write write) {
    constexpr int TR = Axis<MR>::SIZE, TC = Axis<MC>::SIZE;
    A rows[ROWS][TC];
#pragma unroll
    for (int j = 0; j < TC; ++j) {
        A column[TR];
#pragma unroll
        for (int i = 0; i < TR; ++i) column[i] = read(i, j);
#pragma unroll
        for (int f = 0; f < ROWS; ++f) {
            rows[f][j] = 0;
#pragma unroll
            for (int i = 0; i < TR; ++i) add_multiple(rows[f][j], Axis<MR>::b(FIRST + f, i), column[i]);
        }
    }
#pragma unroll
    for (int f = 0; f < ROWS; ++f)
#pragma unroll
        for (int h = 0; h < TC; ++h) {
            A value = 0;
#pragma unroll
            for (int j = 0; j < TC; ++j) add_multiple(value, Axis<MC>::b(h, j), rows[f][j]);
            write(FIRST + f, h, value);
        }
}

// A^T m A, row by row of the products.
template <typename A, int MR, int MC, typename Read>
__device__ __forceinline__ void transform_back(A (&values)[MR][MC], Read read) {
    constexpr int TR = Axis<MR>::SIZE, TC = Axis<MC>::SIZE;
#pragma unroll
    for (int i = 0; i < MR; ++i)
#pragma unroll
        for (int j = 0; j < MC; ++j) values[i][j] = 0;
#pragma unroll
    for (int f = 0; f < TR; ++f) {
        A products[TC];
#pragma unroll
        for (int h = 0; h < TC; ++h) products[h] = read(f, h);
#pragma unroll
        for (int j = 0; j < MC; ++j) {
            A line = 0;
#pragma unroll
            for (int h = 0; h < TC; ++h) add_multiple(line, Axis<MC>::a(j, h), products[h]);
#pragma unroll
            for (int i = 0; i < MR; ++i) add_multiple(values[i][j], Axis<MR>::a(i, f), line);
        }
    }
}

// --- weights, once

// G w G^T for one pair of channels and one offset along depth, in double precision: rounded once.
template <typename T, int MR, int MC, typename Write>
__device__ __forceinline__ void transform_weights(const T* __restrict__ w, const Conv& c, int group, int output,
                                                  int channel, int offset, Write write) {
    constexpr int TR = Axis<MR>::SIZE, TC = Axis<MC>::SIZE, KR = Axis<MR>::TAPS, KC = Axis<MC>::TAPS;
    const T* taps = w + group * c.w[0] + output * c.w[1] + channel * c.w[2] + stored_tap(c, 0, offset) * c.w[3];
    double rows[TR][KC];
#pragma unroll
    for (int k = 0; k < KC; ++k) {
        double column[KR];
#pragma unroll
        for (int i = 0; i < KR; ++i)
            column[i] = i < c.kernel[1] && k < c.kernel[2]
                            ? double(widen(taps[stored_tap(c, 1, i) * c.w[4] + stored_tap(c, 2, k) * c.w[5]]))
                            : 0.0;
#pragma unroll
        for (int f = 0; f < TR; ++f) {
            rows[f][k] = 0;
#pragma unroll
            for (int i = 0; i < KR; ++i) add_multiple(rows[f][k], Axis<MR>::g(f, i), column[i]);
        }
    }
#pragma unroll
    for (int f = 0; f < TR; ++f)
#pragma unroll
        for (int h = 0; h < TC; ++h) {
            double value = 0;
#pragma unroll
            for (int k = 0; k < KC; ++k) add_multiple(value, Axis<MC>::g(h, k), rows[f][k]);
            write(f * TC + h, value);
        }
}

// One thread a pair of channels and an offset: into [group][block of outputs][step][frequency][output], the steps in
// chunks, [chunk][frequency][step of the chunk][output], as a block of winograd_fused takes them. What is beyond the
// channels is zero.
template <typename T, int MR, int MC, int OUTPUTS, int CHUNK>
__global__ void __launch_bounds__(256, 2)
winograd_pack(const T* __restrict__ w, typename Sum<T>::type* __restrict__ packed, Conv c, int steps) {
    typedef typename Sum<T>::type A;
    constexpr int F = Axis<MR>::SIZE * Axis<MC>::SIZE;
    const int outputs = (c.outputs + OUTPUTS - 1) / OUTPUTS * OUTPUTS, padded = steps / c.kernel[0];
    unsigned rest = blockIdx.x * 256u + threadIdx.x;
    const int output = rest % outputs;
    rest /= outputs;
    const int step = rest % steps, group = rest / steps;
    if (group >= c.groups) return;
    const int channel = step % padded, offset = step / padded;
    const Index slab = (Index(group) * (outputs / OUTPUTS) + output / OUTPUTS) * (steps / CHUNK) + step / CHUNK;
    A* target = packed + slab * (F * CHUNK * OUTPUTS) + step % CHUNK * OUTPUTS + output % OUTPUTS;
    if (output < c.outputs && channel < c.inputs)
        transform_weights<T, MR, MC>(w, c, group, output, channel, offset, [=](int frequency, double value) {
            target[frequency * (CHUNK * OUTPUTS)] = A(value);
        });
    else
        for (int frequency = 0; frequency < F; ++frequency) target[frequency * (CHUNK * OUTPUTS)] = A(0);
}

// The same into [frequency][group][output][step], without padding: one matrix a frequency.
template <typename T, int MR, int MC>
__global__ void __launch_bounds__(256, 2)
winograd_matrices(const T* __restrict__ w, typename Sum<T>::type* __restrict__ matrices, Conv c) {
    typedef typename Sum<T>::type A;
    const int steps = c.kernel[0] * c.inputs;
    unsigned rest = blockIdx.x * 256u + threadIdx.x;
    const int step = rest % steps;
    rest /= steps;
    const int output = rest % c.outputs, group = rest / c.outputs;
    if (group >= c.groups) return;
    const Index plane = Index(c.groups) * c.outputs * steps;
    A* target = matrices + (Index(group) * c.outputs + output) * steps + step;
    transform_weights<T, MR, MC>(w, c, group, output, step % c.inputs, step / c.inputs,
                                 [=](int frequency, double value) { target[frequency * plane] = A(value); });
}

// --- everything in one kernel

template <typename T, int MR, int MC, int UO, int UT, int CHUNK>
__global__ void 
__launch_bounds__(16 * Axis<MR>::SIZE * Axis<MC>::SIZE, MR == 4 || sizeof(T) == 8 ? 1 : MR == 2 ? 2 : 4)
winograd_fused(const T* __restrict__ x, const typename Sum<T>::type* __restrict__ packed, const T* __restrict__ bias,
               T* __restrict__ y, Conv c, Tiles tiles) {
    typedef typename Sum<T>::type A;
    constexpr int TR = Axis<MR>::SIZE, TC = Axis<MC>::SIZE, F = TR * TC, THREADS = 16 * F;
    constexpr int OUTPUTS = 4 * UO, TILES = 4 * UT, SAMPLES = TILES / 16;  // samples of a channel that a thread loads
    constexpr int PARTS = TR == 6 ? 3 : 1, ROWS = TR / PARTS;              // a thread transforms so many rows of a tile
    constexpr int RAW = CHUNK * F * TILES, WEIGHTS = CHUNK * F * OUTPUTS;
    constexpr bool KEPT = F == 36;
    constexpr int PASS = CHUNK * 6 >= UO * 2 ? UO / 2 : UO / 4;  // of each thread's outputs that go back at once
    static_assert(THREADS % TILES == 0 && UO % 4 == 0 && UT % 4 == 0, "tiles must divide threads");
    static_assert(4 * PASS * F * TILES <= 4 * RAW + 2 * WEIGHTS, "products must fit where chunks lay");

    extern __shared__ __align__(16) unsigned char winograd_memory[];
    A* const raw = reinterpret_cast<A*>(winograd_memory);  // [2][channel][sample][tile]
    A* const transformed = raw + 2 * RAW;                  // [2][frequency][channel][tile]
    A* const weights = transformed + 2 * RAW;              // [2][frequency][channel][output]
    Place* const places = reinterpret_cast<Place*>(weights + 2 * WEIGHTS);  // [tile]
    Index* const kept = reinterpret_cast<Index*>(places + TILES);           // [sample][tile]

    const int thread = threadIdx.x;
    const int output_blocks = (c.outputs + OUTPUTS - 1) / OUTPUTS;
    const int output_block = blockIdx.x % output_blocks, tile_block = blockIdx.x / output_blocks;
    const int group = blockIdx.y, chunks = tiles.steps / CHUNK, padded = tiles.steps / c.kernel[0];
    const A* const slabs = packed + (Index(group) * output_blocks + output_block) * chunks * WEIGHTS;

    // A thread's own tile is always the same: where it is, and where its samples are in x, is worked out once. For
    // F(4, 3) that is kept in shared memory, too: registers are short.
    if (thread < TILES) {
        const int tile = tile_block * TILES + thread;
        places[thread] = place_of<MR, MC>(tile < tiles.total ? tile : 0, tiles, c);
    }
    __syncthreads();
    const bool exists = tile_block * TILES + thread % TILES < tiles.total;
    Index at[SAMPLES];
#pragma unroll
    for (int i = 0; i < SAMPLES; ++i) {
        const int sample = thread / TILES + i * (THREADS / TILES);
        const Place place = places[thread % TILES];
        const Index inside = exists ? sample_at(place, sample / TC, sample % TC, c) : NOWHERE;
        at[i] = inside == NOWHERE ? NOWHERE : inside + place.image * c.x[0] + group * c.x[1];
        if (KEPT) kept[thread + i * THREADS] = at[i];
    }

    auto fetch_samples = [&](int chunk) {
        const int offset = chunk * CHUNK / padded, first = chunk * CHUNK % padded;
        const int depth = depth_of(places[thread % TILES], offset, c);
        const Index plane = depth * c.x[3] + first * c.x[2];
        A* const target = raw + chunk % 2 * RAW + thread;
#pragma unroll
        for (int channel = 0; channel < CHUNK; ++channel)
#pragma unroll
            for (int i = 0; i < SAMPLES; ++i) {
                const Index start = KEPT ? kept[thread + i * THREADS] : at[i];
                const bool inside = start != NOWHERE && depth >= 0 && first + channel < c.inputs;
                const T* const source = inside ? x + start + plane + channel * c.x[2] : x;
                A* const to = target + channel * (F * TILES) + i * THREADS;
                if constexpr (sizeof(T) == sizeof(A))
                    __pipeline_memcpy_async(to, source, sizeof(T), inside ? 0 : sizeof(T));
                else
                    *to = inside ? widen(*source) : A(0);
            }
    };
    auto fetch_weights = [&](int chunk) {
        constexpr int EACH = 16 / sizeof(A);
        const A* const source = slabs + Index(chunk) * WEIGHTS;
        A* const target = weights + chunk % 2 * WEIGHTS;
#pragma unroll 1  // a counter less
        for (int i = thread * EACH; i < WEIGHTS; i += THREADS * EACH)
            __pipeline_memcpy_async(target + i, source + i, 16);
    };
    auto transform = [&](int chunk) {
        for (int task = thread; task < TILES * CHUNK * PARTS; task += THREADS) {
            const int own = task % TILES, channel = task / TILES % CHUNK, part = task / (TILES * CHUNK);
            const A* const samples = raw + chunk % 2 * RAW + channel * (F * TILES) + own;
            A* const target = transformed + chunk % 2 * RAW + channel * TILES + own;
            auto read = [=](int i, int j) { return samples[(i * TC + j) * TILES]; };
            auto write = [=](int f, int h, A value) { target[(f * TC + h) * (CHUNK * TILES)] = value; };
            if (part == 0)
                transform_samples<A, MR, MC, 0, ROWS>(read, write);
            else if (part == 1)
                transform_samples<A, MR, MC, ROWS % TR, ROWS>(read, write);
            else
                transform_samples<A, MR, MC, TR - ROWS, ROWS>(read, write);
        }
    };

    fetch_samples(0);
    fetch_weights(0);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
    transform(0);
    if (chunks > 1) fetch_samples(1);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();

    const int frequency = thread / 16, to = thread % 4, tt = thread / 4 % 4;
    A sums[UO][UT];
#pragma unroll
    for (int o = 0; o < UO; ++o)
#pragma unroll
        for (int t = 0; t < UT; ++t) sums[o][t] = 0;
    for (int chunk = 0; chunk < chunks; ++chunk) {
        if (chunk + 2 < chunks) fetch_samples(chunk + 2);
        if (chunk + 1 < chunks) {
            fetch_weights(chunk + 1);
            transform(chunk + 1);
        }
        __pipeline_commit();
        const A* const u = weights + chunk % 2 * WEIGHTS + frequency * (CHUNK * OUTPUTS) + to * 4;
        const A* const v = transformed + chunk % 2 * RAW + frequency * (CHUNK * TILES) + tt * 4;
#pragma unroll
        for (int channel = 0; channel < CHUNK; ++channel) {
            A weight[UO], value[UT];
            load_packs(weight, u + channel * OUTPUTS, 16);
            load_packs(value, v + channel * TILES, 16);
#pragma unroll
            for (int o = 0; o < UO; ++o)
#pragma unroll
                for (int t = 0; t < UT; ++t) sums[o][t] += weight[o] * value[t];
        }
        __pipeline_wait_prior(0);
        __syncthreads();
    }

    // Products, [slot][frequency][tile], where the chunks lay. Slot PASS * to + i is output 16 (u / 4) + 4 to + u % 4
    // with u = first + i: as load_packs has it.
    A* const products = raw;
#pragma unroll
    for (int first = 0; first < UO; first += PASS) {
        if (first > 0) __syncthreads();
#pragma unroll
        for (int i = 0; i < PASS; ++i)
#pragma unroll
            for (int t = 0; t < UT; ++t)
                products[((PASS * to + i) * F + frequency) * TILES + t / 4 * 16 + tt * 4 + t % 4] = sums[first + i][t];
        __syncthreads();
        for (int task = thread; task < 4 * PASS * TILES; task += THREADS) {
            const int slot = task / TILES, u = first + slot % PASS;
            const int output = output_block * OUTPUTS + u / 4 * 16 + slot / PASS * 4 + u % 4;
            if (tile_block * TILES + task % TILES >= tiles.total || output >= c.outputs) continue;
            A* const own = products + slot * F * TILES + task % TILES;
            {
                A values[MR][MC];
                transform_back<A, MR, MC>(values, [=](int f, int h) { return own[(f * TC + h) * TILES]; });
#pragma unroll
                for (int i = 0; i < MR * MC; ++i) own[i * TILES] = values[i / MC][i % MC];
            }
            // From shared memory, which is this thread's alone here, and row by row: registers hold the other sums.
#pragma unroll 1
            for (int i = 0; i < MR; ++i) {
                A line[MC];
#pragma unroll
                for (int j = 0; j < MC; ++j) line[j] = own[(i * MC + j) * TILES];
                write_row<T, MC>(y, bias, line, group, output, places[task % TILES], i, c);
            }
        }
    }
}

// --- in three steps, for count tiles from first on; matrices have rows of pitch tiles

// One thread a (tile, step): B^T x B into [frequency][group][step][tile], zeros where there is no tile.
template <typename T, int MR, int MC>
__global__ void __launch_bounds__(128, sizeof(T) == 8 ? 3 : 4)
winograd_input(const T* __restrict__ x, typename Sum<T>::type* __restrict__ values, Conv c, Tiles tiles, int first,
               int count, int pitch) {
    typedef typename Sum<T>::type A;
    const int own = blockIdx.x * 128 + threadIdx.x;
    if (own >= pitch) return;
    const int steps = c.kernel[0] * c.inputs;
    const Index plane = Index(c.groups) * steps * pitch;
    const Place place = place_of<MR, MC>(own < count ? first + own : first, tiles, c);
    for (int row = blockIdx.y; row < c.groups * steps; row += gridDim.y) {
        const int group = row / steps, step = row % steps;
        const int depth = depth_of(place, step / c.inputs, c);
        const T* const samples =
            x + place.image * c.x[0] + group * c.x[1] + step % c.inputs * c.x[2] + (depth < 0 ? 0 : depth * c.x[3]);
        A* const target = values + Index(row) * pitch + own;
        transform_samples<A, MR, MC, 0, Axis<MR>::SIZE>(
            [&](int i, int j) {
                const Index at = own < count && depth >= 0 ? sample_at(place, i, j, c) : NOWHERE;
                return at == NOWHERE ? A(0) : widen(samples[at]);
            },
            [=](int f, int h, A value) { target[(f * Axis<MC>::SIZE + h) * plane] = value; });
    }
}

// One thread a (tile, output): A^T m A, from [frequency][group][output][tile].
template <typename T, int MR, int MC>
__global__ void __launch_bounds__(128, 4)
winograd_output(const typename Sum<T>::type* __restrict__ products, const T* __restrict__ bias, T* __restrict__ y,
                Conv c, Tiles tiles, int first, int count, int pitch) {
    typedef typename Sum<T>::type A;
    const int own = blockIdx.x * 128 + threadIdx.x;
    if (own >= count) return;
    const Index plane = Index(c.groups) * c.outputs * pitch;
    const Place place = place_of<MR, MC>(first + own, tiles, c);
    for (int row = blockIdx.y; row < c.groups * c.outputs; row += gridDim.y) {
        const A* const source = products + Index(row) * pitch + own;
        A values[MR][MC];
        transform_back<A, MR, MC>(values, [=](int f, int h) { return source[(f * Axis<MC>::SIZE + h) * plane]; });
#pragma unroll
        for (int i = 0; i < MR; ++i)
            write_row<T, MC>(y, bias, values[i], row / c.outputs, row % c.outputs, place, i, c);
    }
}
