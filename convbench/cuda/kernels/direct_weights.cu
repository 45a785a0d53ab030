// Weight gradients:  dw[g, o, c, k] = sum over n, p of  g[n, g, o, p] * x[n, g, c, p*stride + k*dilation - before].
//
// Two kernels for two shapes, each of which splits the sum over images and positions among blocks, for there are often
// few weights and many positions. A block writes its part to scratch memory, in the type that sums are formed in, and a
// third kernel adds the parts up in order: no atomics, so results repeat bit for bit.
#include "direct.cuh"

// Which sample a column of the product is about: a channel and a tap.
struct Source {
    Index channel;
    int tap[3];  // where it lies, from the stride's multiple
};

// Many outputs and channels: a product of matrices, outputs x (channel, tap), summed over positions (n, p).
//
// A block computes 64 x 64 weights from 16 positions at a time; its 128 threads hold 8 x 4 sums each. Neighbouring
// threads read neighbouring positions of g and x from global memory (16 of them: 64 bytes); samples are gathered, a
// boundary costs three look-ups an axis. cp.async fills one buffer while the other is used. In shared memory both are
// [position][row], 68 items apart, so that a thread reads its 8 and 4 factors 16 bytes at a time.
//
// 2 * 64 * 64 * 16 FLOPs for 2 * 64 * 16 items: 16 FLOP a byte, mostly from L2 (neighbouring taps read the same
// samples). 32 FMAs to 3 loads of 16 bytes. Registers by NVRTC 13.0 for sm_90: 103 (double 128); shared memory: 19 KiB
// (double 36). Prediction for an H200 (not a
// measurement): 50 to 65 % of peak FP32, for the gathering issues about a third as many instructions as the product.
template <typename T>
__global__ void __launch_bounds__(128, 4)
weights_of_tiles(const T* __restrict__ x, const T* __restrict__ g, typename Sum<T>::type* __restrict__ parts,
                 const Conv c, int positions_a_block) {
    typedef typename Sum<T>::type S;
    constexpr int WIDE = 64, DEEP = 16, PITCH = WIDE + 4, EACH = WIDE / 8;
    __shared__ __align__(16) S from_g[2][DEEP * PITCH];
    __shared__ __align__(16) S from_x[2][DEEP * PITCH];
    __shared__ Source sources[WIDE];

    const int taps = c.kernel[0] * c.kernel[1] * c.kernel[2], columns = c.inputs * taps;
    unsigned number = blockIdx.x;
    const int column_blocks = covering(columns, WIDE), output_blocks = covering(c.outputs, WIDE);
    const int first_column = number % column_blocks * WIDE;
    number /= column_blocks;
    const int first_output = number % output_blocks * WIDE;
    number /= output_blocks;
    const int group = number % c.groups, split = number / c.groups;
    const unsigned plane = c.result[0] * c.result[1] * c.result[2];
    const unsigned all = c.batch * plane, first = static_cast<unsigned>(split) * positions_a_block;
    const unsigned last = min(all, first + positions_a_block);

    for (int i = threadIdx.x; i < WIDE; i += blockDim.x) {
        const int column = min(first_column + i, columns - 1);
        int tap = column % taps;
        sources[i].channel = column / taps * c.x[2];
#pragma unroll
        for (int axis = 2; axis >= 0; --axis) {
            sources[i].tap[axis] = tap % c.kernel[axis] * c.dilation[axis] - c.before[axis];
            tap /= c.kernel[axis];
        }
    }
    __syncthreads();

    const int own_position = threadIdx.x % DEEP, own_row = threadIdx.x / DEEP;
    auto stage = [&](unsigned start, int buffer) {
        const unsigned position = start + own_position;
        const bool present = position < last;
        unsigned rest = present ? position : 0;
        const int column = rest % c.result[2];
        rest /= c.result[2];
        const int row = rest % c.result[1];
        rest /= c.result[1];
        const int depth = rest % c.result[0], image = rest / c.result[0];
        const T* gradient = g + image * c.y[0] + group * c.y[1] + depth * c.y[3] + row * c.y[4] + column * c.y[5];
        const T* samples = x + image * c.x[0] + group * c.x[1];
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int line = own_row + 8 * i;
            S* target = from_g[buffer] + own_position * PITCH + line;
            if (present && first_output + line < c.outputs)
                fetch(target, gradient + (first_output + line) * c.y[2]);
            else
                *target = 0;
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int line = own_row + 8 * i;
            const Source source = sources[line];
            const int d = source_index(depth * c.stride[0] + source.tap[0], c.size[0], c.boundary);
            const int r = source_index(row * c.stride[1] + source.tap[1], c.size[1], c.boundary);
            const int q = source_index(column * c.stride[2] + source.tap[2], c.size[2], c.boundary);
            S* target = from_x[buffer] + own_position * PITCH + line;
            if (present && (d | r | q) >= 0)
                fetch(target, samples + source.channel + d * c.x[3] + r * c.x[4] + q * c.x[5]);
            else
                *target = 0;
        }
        __pipeline_commit();
    };

    S sum[8][4];
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = 0;

    const int lane_column = threadIdx.x % 16 * 4, lane_output = threadIdx.x / 16 * 8;
    int buffer = 0;
    if (first < last) stage(first, 0);
    for (unsigned start = first; start < last; start += DEEP, buffer ^= 1) {
        const bool more = last - start > DEEP;
        if (more) stage(start + DEEP, buffer ^ 1);
        arrived(more);
#pragma unroll
        for (int k = 0; k < DEEP; ++k) {
            S a[8], b[4];
            read(a, from_g[buffer] + k * PITCH + lane_output);
            read(b, from_x[buffer] + k * PITCH + lane_column);
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[i][j] += a[i] * b[j];
        }
        __syncthreads();
    }

    S* part = parts + (Index(split) * c.groups + group) * c.outputs * columns;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int output = first_output + lane_output + i;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int column = first_column + lane_column + j;
            if (output < c.outputs && column < columns) part[Index(output) * columns + column] = sum[i][j];
        }
    }
}

// Few outputs a group, as depthwise: the correlation of one plane of x with one of g.
//
// A block is about one filter (group, output, channel) and kernel depth. Each of its warps holds the sums of TAPS taps,
// one below the other in one kernel column, for its lanes' columns (and images, where planes are narrow); t.outputs
// warps hold different taps, t.row_groups share the strips of 8 rows. The halo of x is staged in shared memory, g is
// read from global memory, from the L1 cache but for the first warp: 8 rows of g and a window of TAPS + 7 rows of x
// serve 8 * TAPS products. TAPS = 1 goes with any stride and dilation, the others where the two are the same along
// rows; taps that the kernel has not are computed and dropped. Sums stay in registers over all tiles that a block walks
// through; lanes are added up by shuffles at the end.
//
// Positions outside the result are left out rather than multiplied by zero: samples beneath them may be infinite.
// FLOPs: 2 a tap and position; bytes: a plane of x and of g for each t.outputs windows of taps, mostly from L2.
// Registers by NVRTC 13.0 for sm_90: 82 to 96 (double 103 to 116); shared memory: 24 to 80 KiB. Prediction for an H200
// (not a measurement): TAPS = 8: 64 FMAs to 23 loads, 45 to 60 % of peak FP32 for wide planes.
template <typename T, int TAPS>
__global__ void __launch_bounds__(256, 2)
weights_of_planes(const T* __restrict__ x, const T* __restrict__ g, typename Sum<T>::type* __restrict__ parts,
                  const Conv c, const Tile t, int tiles, int tiles_a_block) {
    typedef typename Sum<T>::type S;
    constexpr int ROWS = 8;
    extern __shared__ __align__(16) unsigned char memory[];

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int lane_column = lane % t.columns, lane_image = lane / t.columns;
    const int lane_tap = warp % t.outputs, lane_strip = warp / t.outputs;

    const int chunks = covering(c.kernel[1], TAPS), tap_blocks = covering(chunks * c.kernel[2], t.outputs);
    unsigned number = blockIdx.x;
    const int tap_number = number % tap_blocks * t.outputs + lane_tap;
    number /= tap_blocks;
    const int tap_depth = number % c.kernel[0];
    number /= c.kernel[0];
    const int filters = c.groups * c.outputs * c.inputs;
    const int filter = number % filters, split = number / filters;
    const int channel = filter % c.inputs, output = filter / c.inputs % c.outputs;
    const int group = filter / c.inputs / c.outputs;
    const bool works = tap_number < chunks * c.kernel[2];
    const int tap_column = works ? tap_number / chunks : 0, tap_row = works ? tap_number % chunks * TAPS : 0;
    const int across = tap_column * c.dilation[2];
    const int tap_place = across % c.stride[2] * t.phase + across / c.stride[2] + tap_row * t.tap_step;

    Pieces pieces = {memory};
    Halo halo(pieces, t);
    S* samples = pieces.take<S>(t.planes * t.plane);

    S sum[TAPS];
#pragma unroll
    for (int tap = 0; tap < TAPS; ++tap) sum[tap] = 0;

    const int last = min(tiles, (split + 1) * tiles_a_block);
    for (int tile = split * tiles_a_block; tile < last; ++tile) {
        unsigned rest = tile;
        const int first_column = rest % t.blocks[1] * t.columns;
        rest /= t.blocks[1];
        const int first_row = rest % t.blocks[2] * t.channels;  // rows of a tile
        rest /= t.blocks[2];
        const int depth = rest % c.result[0], first_image = rest / c.result[0] * t.planes;
        const int at =
            source_index(depth * c.stride[0] + tap_depth * c.dilation[0] - c.before[0], c.size[0], c.boundary);

        __syncthreads();  // the last tile's samples have been used
        halo.locate(c, t, t.fold ? 0 : first_row * c.stride[1] - c.before[1],
                    (t.fold ? first_row * t.fold : first_column) * c.stride[2] - c.before[2], c.stride[2]);
        __syncthreads();
        const T* source = x + group * c.x[1] + channel * c.x[2] + at * c.x[3];
        for (int p = threadIdx.x / t.team; p < t.planes; p += blockDim.x / t.team)
            halo.stage<T>(samples + p * t.plane, source + (first_image + p) * c.x[0],
                          at >= 0 && first_image + p < c.batch, t, threadIdx.x % t.team);
        __pipeline_commit();
        arrived(false);

        const int image = first_image + lane_image;
        if (!works || image >= c.batch) continue;
        const T* gradient = g + image * c.y[0] + group * c.y[1] + output * c.y[2] + depth * c.y[3];
        for (int strip = lane_strip * ROWS; strip < t.channels; strip += t.row_groups * ROWS) {
            const S* below = samples + lane_image * t.plane + strip * t.row_step + lane_column + tap_place;
            const int row = first_row + strip;
            const int column = t.fold ? row * t.fold + lane_column : first_column + lane_column;
            const Index step = t.fold ? t.fold * c.y[5] : c.y[4];
            const T* from = gradient + column * c.y[5] + (t.fold ? 0 : row * c.y[4]);
            // rows of this lane that are there
            const int rows = t.fold ? covering(max(0, c.result[2] - column), t.fold)
                                    : column < c.result[2] ? c.result[1] - row : 0;
            if (rows >= ROWS) {
                S factor[ROWS], window[ROWS + TAPS - 1];
#pragma unroll
                for (int i = 0; i < ROWS; ++i) factor[i] = widen(from[i * step]);
#pragma unroll
                for (int i = 0; i < ROWS + TAPS - 1; ++i) window[i] = below[i * t.row_step];
#pragma unroll
                for (int i = 0; i < ROWS; ++i)
#pragma unroll
                    for (int tap = 0; tap < TAPS; ++tap) sum[tap] += window[i + tap] * factor[i];
            } else {
                for (int i = 0; i < rows; ++i) {
                    const S factor = widen(from[i * step]);
#pragma unroll
                    for (int tap = 0; tap < TAPS; ++tap) sum[tap] += below[(i + tap) * t.row_step] * factor;
                }
            }
        }
    }

    const int slot = split * t.row_groups + lane_strip;
    S* part = parts + ((Index(slot) * filters + filter) * c.kernel[0] + tap_depth) * c.kernel[1] * c.kernel[2];
#pragma unroll
    for (int tap = 0; tap < TAPS; ++tap) {
        S whole = sum[tap];
#pragma unroll
        for (int away = 16; away > 0; away /= 2) whole += __shfl_down_sync(0xffffffffu, whole, away);
        if (lane == 0 && works && tap_row + tap < c.kernel[1])
            part[(tap_row + tap) * c.kernel[2] + tap_column] = whole;
    }
}

// Add up the parts of each weight, in order, and write it where it belongs: a thread is one weight.
template <typename T>
__global__ void __launch_bounds__(256, 4)
weights_summed(const typename Sum<T>::type* __restrict__ parts, T* __restrict__ w, const Conv c, int count) {
    const int taps = c.kernel[0] * c.kernel[1] * c.kernel[2];
    const Index weights = Index(c.groups) * c.outputs * c.inputs * taps;
    const Index weight = Index(blockIdx.x) * 256 + threadIdx.x;
    if (weight >= weights) return;  // no barrier follows
    typename Sum<T>::type sum = 0;
    for (int i = 0; i < count; ++i) sum += parts[i * weights + weight];
    unsigned rest = weight;
    const int column = stored_tap(c, 2, rest % c.kernel[2]);
    rest /= c.kernel[2];
    const int row = stored_tap(c, 1, rest % c.kernel[1]);
    rest /= c.kernel[1];
    const int depth = stored_tap(c, 0, rest % c.kernel[0]);
    rest /= c.kernel[0];
    const int channel = rest % c.inputs;
    rest /= c.inputs;
    const int output = rest % c.outputs, group = rest / c.outputs;
    w[group * c.w[0] + output * c.w[1] + channel * c.w[2] + depth * c.w[3] + row * c.w[4] + column * c.w[5]] =
        narrow<T>(sum);
}
