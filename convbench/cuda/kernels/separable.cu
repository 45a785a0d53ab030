// Separable convolution: a pass along rows, then one along columns, in one kernel.
//
//   y = bias + sum over pairs of  v_pair (along columns) * [ u_pair (along rows) * x_channel ]
//
// A pair is a channel and one of the products of 1-D kernels that its kernel is the sum of; mostly there is one in
// all.
//
// A block makes a strip of the outputs of one plane, `width` columns wide, and goes down some of its rows, 16 at a
// time:
//   - 16 lines of samples with their halo are copied to shared memory (cp.async, zeros where there is nothing to read),
//   - they are filtered along the row into a ring of filtered lines (HALO + 16 of them),
//   - the outputs whose lines are all in the ring are filtered along columns and written;
// meanwhile the next lines are on their way. Only at the top of a segment HALO lines are filtered for nothing.
// Further pairs go over the same outputs and add to them, which by then are in the second-level cache. Along three
// axes it is launched twice: for the planes of every channel, and then with the depth in place of the rows and one
// tap along them.
//
// At stride and dilation 1 a thread makes 8 neighbouring outputs of a pass from 8 + K - 1 samples, 8 of them at a
// time, each of which meets the 8 outputs in registers: (K + 7) / 8 samples an output and pass come from shared
// memory, in place of K. Along rows lanes are 8 different lines, a pitch of 4 * odd words apart, so that 16 bytes of
// each are read and written without bank conflict; along columns lanes are neighbouring columns. Taps are padded with
// zeros, so that one loop does any number of them; of 3, 5 and 7 it is unrolled without the zeros. Other strides and
// dilations take one thread an output.
//
// Work: 2 * 2 K FLOPs an output. Traffic: an output written and, to first order, a sample read: 8 bytes in float.
// Prediction for an H200 (not a measurement): up to 15 taps memory bounds it, at 4.8 TB/s times 0.8 for 64 rows a
// block and what little is in flight: 480 Gpixel/s; with 100 taps the multiply-adds do.
#include "common.cuh"

#include <cuda_pipeline.h>

// Mirrored by convbench/cuda/separable.py.
struct Passes {
    int width, strips;     // columns of a strip, and strips of a plane
    int rows, segments;    // outputs down a segment, and segments of a strip
    int pairs, rank;       // pairs of an output in all, and of each channel; the channel of a pair is
    int fan, cycle, skip;  // output / fan % cycle * skip + pair / rank
};

constexpr int LINES = 16;  // copied and filtered at once
constexpr int EACH = 8;    // outputs of a thread

template <typename T>
struct __align__(16) Pack {
    T items[16 / sizeof(T)];
};

template <int COUNT, typename T>
__device__ __forceinline__ void load_packs(T (&values)[COUNT], const T* from) {
    constexpr int SIZE = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < COUNT / SIZE; ++i) {
        const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(from + i * SIZE);
#pragma unroll
        for (int j = 0; j < SIZE; ++j) values[i * SIZE + j] = pack.items[j];
    }
}

template <int COUNT, typename T>
__device__ __forceinline__ void store_packs(T* to, const T (&values)[COUNT]) {
    constexpr int SIZE = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < COUNT / SIZE; ++i) {
        Pack<T> pack;
#pragma unroll
        for (int j = 0; j < SIZE; ++j) pack.items[j] = values[i * SIZE + j];
        *reinterpret_cast<Pack<T>*>(to + i * SIZE) = pack;
    }
}

// 8 neighbouring outputs: sums[j] += sum over k of taps[EACH + k] * sample j + k, for samples in groups of 8.
// K = 0: `groups` of them, whatever the taps; what lies beyond them is multiplied by zero.
template <int K, typename T, typename Read>
__device__ __forceinline__ void filter_with(T (&sums)[EACH], const T* taps, int groups, Read read) {
    constexpr int KNOWN = (K + EACH - 1 + EACH - 1) / EACH;
#pragma unroll(K > 0 ? KNOWN : 1)
    for (int group = 0; group < (K > 0 ? KNOWN : groups); ++group) {
        T samples[EACH], window[2 * EACH];  // window[EACH + i] is tap EACH * group + i
        read(group, samples);
        load_packs(window, taps + group * EACH);
#pragma unroll
        for (int i = 0; i < EACH; ++i)
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                const int k = group * EACH + i - j;
                if (K == 0 || (0 <= k && k < K)) sums[j] += window[EACH + i - j] * samples[i];
            }
    }
}

template <bool FEW, typename T, typename Read>
__device__ __forceinline__ void filter(T (&sums)[EACH], const T* taps, int count, Read read) {
    if (FEW && count == 3)
        filter_with<3>(sums, taps, 0, read);
    else if (FEW && count == 5)
        filter_with<5>(sums, taps, 0, read);
    else if (FEW && count == 7)
        filter_with<7>(sums, taps, 0, read);
    else
        filter_with<0>(sums, taps, (count + 2 * EACH - 2) / EACH, read);
}

// HALO: most that a kernel reaches beyond its first sample, along either axis. PLAIN: stride and dilation are 1.
// taps: [group][output][pair][along the row, along the column][HALO + 16], tap k at EACH + k, zeros elsewhere.
template <typename T, int WIDTH, int HALO, bool PLAIN>
__global__ void __launch_bounds__(2 * WIDTH, sizeof(T) == 8 ? 5 : HALO > 16 ? 3 : 4)
separable(const T* __restrict__ x, const T* __restrict__ taps, const T* __restrict__ bias, T* y, Conv c,
          Passes passes) {
    constexpr int THREADS = 2 * WIDTH, TAPS = HALO + 16, RING = HALO + LINES, SLOTS = RING / LINES;
    constexpr int SPARE = 16 / sizeof(T), PITCH = WIDTH + HALO + SPARE, RING_PITCH = WIDTH + SPARE;
    constexpr bool FEW = HALO == 16;
    static_assert(HALO % LINES == 0 && WIDTH % 32 == 0, "lines must fill slots, and warps");

    extern __shared__ __align__(16) unsigned char separable_memory[];
    T* const lines = reinterpret_cast<T*>(separable_memory);        // [LINES][PITCH]
    T* const ring = lines + LINES * PITCH;                          // [RING][RING_PITCH]
    T* const row_taps = ring + RING * RING_PITCH;                   // [TAPS]
    T* const column_taps = row_taps + TAPS;                         // [TAPS]
    int* const columns = reinterpret_cast<int*>(column_taps + TAPS);  // [WIDTH + HALO]: where a line reads its samples

    const int thread = threadIdx.x;
    unsigned rest = blockIdx.x;
    const int first_column = rest % passes.strips * passes.width;
    rest /= passes.strips;
    const int first_row = rest % passes.segments * passes.rows;
    rest /= passes.segments;
    const int depth = rest % c.result[0];
    rest /= c.result[0];
    const int output = rest % c.outputs;
    rest /= c.outputs;
    const int group = rest % c.groups, image = rest / c.groups;

    const int width = min(passes.width, c.result[2] - first_column);
    const int rows = min(passes.rows, c.result[1] - first_row);
    const int row_extent = (rows - 1) * c.stride[1] + (c.kernel[1] - 1) * c.dilation[1] + 1;
    const int column_extent = (width - 1) * c.stride[2] + (c.kernel[2] - 1) * c.dilation[2] + 1;
    // What lines hold, zeros included: a plain kernel reads whole groups of samples, for whole groups of outputs.
    const int held = PLAIN ? (width + EACH - 1) / EACH * EACH + (c.kernel[2] + EACH - 2) / EACH * EACH : column_extent;
    const int lead = (c.kernel[1] + LINES - 2) / LINES;  // steps before the first outputs, of a plain kernel
    const int steps = PLAIN ? lead + (rows + LINES - 1) / LINES : (row_extent + LINES - 1) / LINES;
    const int plane = source_index(depth * c.stride[0] - c.before[0], c.size[0], c.boundary);

    for (int i = thread; i < held; i += THREADS) {
        const int at = source_index(first_column * c.stride[2] + i - c.before[2], c.size[2], c.boundary);
        columns[i] = i < column_extent && plane >= 0 ? at : -1;
    }

    for (int pair = 0; pair < passes.pairs; ++pair) {
        const int channel = output / passes.fan % passes.cycle * passes.skip + pair / passes.rank;
        const T* const samples =
            x + image * c.x[0] + group * c.x[1] + channel * c.x[2] + (plane < 0 ? 0 : plane * c.x[3]);
        __syncthreads();  // columns are there; the last pair's taps and lines are done with
        const Index own = ((Index(group) * c.outputs + output) * passes.pairs + pair) * (2 * TAPS);
        for (int i = thread; i < 2 * TAPS; i += THREADS) row_taps[i] = taps[own + i];

        auto fetch = [&](int step) {  // a warp copies a line
            for (int line = thread / 32; line < LINES; line += THREADS / 32) {
                const int below = step * LINES + line;
                const int row = below < row_extent
                                    ? source_index(first_row * c.stride[1] + below - c.before[1], c.size[1], c.boundary)
                                    : -1;
                const T* const from = samples + (row < 0 ? 0 : row * c.x[4]);
                for (int i = thread % 32; i < held; i += 32) {
                    const int column = row < 0 ? -1 : columns[i];
                    const T* const source = column < 0 ? x : from + column * c.x[5];
                    __pipeline_memcpy_async(lines + line * PITCH + i, source, sizeof(T), column < 0 ? sizeof(T) : 0);
                }
            }
        };
        // Write an output, or add to what earlier pairs have made of it.
        auto add = [&](int row, int column, T value) {
            row += first_row, column += first_column;
            const Index at = image * c.y[0] + group * c.y[1] + output * c.y[2] + depth * c.y[3] + row * c.y[4] +
                             column * c.y[5];  // all of it here, or registers are spilled on sm_80
            y[at] = value + (pair == 0 ? bias_at(bias, c, group, output, depth, row, column) : y[at]);
        };

        fetch(0);
        __pipeline_commit();
        int done = 0;  // rows of outputs, of strided kernels
        for (int step = 0; step < steps; ++step) {
            __pipeline_wait_prior(0);
            __syncthreads();
            T* const slot = ring + step % SLOTS * (LINES * RING_PITCH);
            if constexpr (PLAIN) {
                const int line = thread % LINES, first = thread / LINES * EACH;
                if (first < width) {
                    const T* const own = lines + line * PITCH + first;
                    T sums[EACH] = {};
                    filter<FEW>(sums, row_taps, c.kernel[2],
                                [=](int i, T(&values)[EACH]) { load_packs(values, own + i * EACH); });
                    store_packs(slot + line * RING_PITCH + first, sums);
                }
            } else {
                for (int task = thread; task < LINES * width; task += THREADS) {
                    const int line = task / width, column = task % width;
                    T sum = 0;
                    for (int k = 0; k < c.kernel[2]; ++k)
                        sum += row_taps[EACH + k] * lines[line * PITCH + column * c.stride[2] + k * c.dilation[2]];
                    slot[line * RING_PITCH + column] = sum;
                }
            }
            __syncthreads();
            if (step + 1 < steps) fetch(step + 1);
            __pipeline_commit();
            if constexpr (PLAIN) {
                const int column = thread % WIDTH;
                const int first = (step - lead) * LINES + thread / WIDTH * EACH;
                if (first < 0 || first >= rows || column >= width) continue;
                T sums[EACH] = {};
                filter<FEW>(sums, column_taps, c.kernel[1], [=](int i, T(&values)[EACH]) {
                    const T* const own = ring + (first + i * EACH) % RING * RING_PITCH + column;
#pragma unroll
                    for (int j = 0; j < EACH; ++j) values[j] = own[j * RING_PITCH];
                });
#pragma unroll
                for (int i = 0; i < EACH; ++i)
                    if (first + i < rows) add(first + i, column, sums[i]);
            } else {
                const int beyond = (step + 1) * LINES - 1 - (c.kernel[1] - 1) * c.dilation[1];
                const int ready = beyond < 0 ? 0 : min(rows, beyond / c.stride[1] + 1);
                for (int task = thread; task < (ready - done) * width; task += THREADS) {
                    const int row = done + task / width, column = task % width;
                    T sum = 0;
                    for (int k = 0; k < c.kernel[1]; ++k) {
                        const int line = (row * c.stride[1] + k * c.dilation[1]) % RING;
                        sum += column_taps[EACH + k] * ring[line * RING_PITCH + column];
                    }
                    add(row, column, sum);
                }
                done = max(done, ready);
            }
        }
    }
}
