// Direct convolution with many outputs a group: a block computes a tile of outputs x pixels in registers.
//
// A thread holds 8 output channels (4 in double precision) of 7 pixels, one below the other: 56 sums, and 7 rows divide
// the planes of the usual networks (7, 14, 28, 56, 112, 224). Lanes are neighbouring columns (8, 16 or 32), then groups
// of outputs, so that samples are read from neighbouring banks and weights, 16 bytes at a time, by broadcast. A block
// has 128 or 256 threads: columns x outputs x row groups x images, as the launch code chooses by the plane's size.
//
// Shared memory holds, twice (one part is computed while cp.async fills the other), the halo of some input channels and
// their weights [channel][kernel column][kernel row][output]. Along a kernel column of TAPS rows the samples are a
// sliding window: TAPS + 6 loads serve 7 * TAPS products, for each of 8 outputs. TAPS divides the kernel's rows; any
// stride and dilation goes with TAPS = 1, and with more if they are the same along the rows.
//
// Where there are too few tiles to fill the device, the steps are split among gridDim.y blocks. Each writes its sums to
// `parts`, and direct_summed adds them up in order: without atomics, so that results repeat bit for bit.
//
// A step of TAPS taps: 56 * TAPS FMAs for TAPS + 6 loads of samples and 2 * TAPS of weights: 168 to 15 at TAPS = 3, 56
// to 9 at TAPS = 1. From global memory a block of 64 outputs x 7 * 32 pixels reads, a channel, 306 samples and 576
// weights for 2 * 9 * 64 * 224 FLOPs: 73 FLOP a byte, where an H200 balances at 67 / 4.8 = 14, and most of the weights
// come from L2. Registers by NVRTC 13.0 for sm_90: 112 (TAPS = 1), 123 (3), 126 (5), double 118; none spilled, so two
// blocks of 256 threads an SM; shared memory: up to 80 KiB, as channels are staged. Prediction (not a measurement),
// from the share of FMAs among issued instructions: 75 to 85 % of peak FP32 at TAPS = 3 in whole tiles and enough
// blocks to fill the device.
#include "direct.cuh"

template <typename T, int TAPS>
__global__ void __launch_bounds__(256, 2)
direct_tiles(const T* __restrict__ x, const typename Sum<T>::type* __restrict__ w, const T* __restrict__ bias,
             T* __restrict__ y, typename Sum<T>::type* __restrict__ parts, const Conv c, const Tile t) {
    typedef typename Sum<T>::type S;
    constexpr int OUTPUTS = 32 / sizeof(S), ROWS = 7;
    extern __shared__ __align__(16) unsigned char memory[];

    // this thread's place in the tile
    int rest = threadIdx.x;
    const int lane_column = rest % t.columns;
    rest /= t.columns;
    const int lane_output = rest % t.outputs * OUTPUTS;
    rest /= t.outputs;
    const int lane_row = rest % t.row_groups * ROWS;
    const int lane_image = rest / t.row_groups;

    // this block's tile; tiles of outputs are neighbours, for they share their samples in L2
    unsigned number = blockIdx.x;
    const int tile_outputs = t.outputs * OUTPUTS;
    const int first_output = number % t.blocks[0] * tile_outputs;
    number /= t.blocks[0];
    const int first_column = number % t.blocks[1] * t.columns;
    number /= t.blocks[1];
    const int first_row = number % t.blocks[2] * (t.row_groups * ROWS);
    number /= t.blocks[2];
    const int depth = number % t.blocks[3];
    number /= t.blocks[3];
    const int group = number % c.groups;
    const int first_image = number / c.groups * t.planes;

    const int taps = c.kernel[1] * c.kernel[2], chunks = covering(c.inputs, t.channels);
    Pieces pieces = {memory};
    Halo halo(pieces, t);
    int* places = pieces.take<int>(t.channels * c.kernel[2] + 1);  // of each channel's kernel columns in a buffer
    const Buffers<S> buffers(pieces, 2, t.planes * t.channels * t.plane, t.channels * taps * tile_outputs);

    halo.locate(c, t, t.fold ? 0 : first_row * c.stride[1] - c.before[1],
                (t.fold ? first_row * t.fold : first_column) * c.stride[2] - c.before[2], c.stride[2]);
    for (int i = threadIdx.x; i <= t.channels * c.kernel[2]; i += blockDim.x) {
        const int channel = i / c.kernel[2], across = (i - channel * c.kernel[2]) * c.dilation[2];
        places[i] = channel * t.plane + across % c.stride[2] * t.phase + across / c.stride[2];
    }
    __syncthreads();

    auto stage = [&](int step) {
        const int tap = step / chunks, first = (step - tap * chunks) * t.channels;
        const int count = min(t.channels, c.inputs - first);
        const int plane = source_index(depth * c.stride[0] + tap * c.dilation[0] - c.before[0], c.size[0], c.boundary);
        const T* source = x + group * c.x[1] + first * c.x[2] + plane * c.x[3];
        for (int pair = threadIdx.x / t.team; pair < t.planes * count; pair += blockDim.x / t.team) {
            const int image = pair / count, channel = pair - image * count;
            halo.stage<T>(buffers.samples_of(step) + (image * t.channels + channel) * t.plane,
                          source + (first_image + image) * c.x[0] + channel * c.x[2],
                          plane >= 0 && first_image + image < c.batch, t, threadIdx.x % t.team);
        }
        const S* packed = w + (Index(group * c.kernel[0] + tap) * c.inputs + first) * taps * t.weights + first_output;
        constexpr int EACH = Vector<S>::COUNT;
        const int vectors = tile_outputs / EACH;
        for (int i = threadIdx.x; i < count * taps * vectors; i += blockDim.x) {
            const int row = i / vectors, output = (i - row * vectors) * EACH;
            S* target = buffers.weights_of(step) + row * tile_outputs + output;
            if (first_output + output < t.weights)
                __pipeline_memcpy_async(target, packed + Index(row) * t.weights + output, 16);
            else
                *reinterpret_cast<Vector<S>*>(target) = Vector<S>();
        }
        __pipeline_commit();
    };

    S sum[ROWS][OUTPUTS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int o = 0; o < OUTPUTS; ++o) sum[i][o] = 0;

    const int own_steps = covering(c.kernel[0] * chunks, gridDim.y);
    int step = own_steps * blockIdx.y;
    const int last = min(c.kernel[0] * chunks, step + own_steps);
    if (step < last) stage(step);
    for (; step < last; ++step) {
        if (step + 1 < last) stage(step + 1);
        arrived(step + 1 < last);
        const int channels = min(t.channels, c.inputs - step % chunks * t.channels);
        const S* weight = buffers.weights_of(step) + lane_output;
        const S* own =
            buffers.samples_of(step) + lane_image * t.channels * t.plane + lane_row * t.row_step + lane_column;
        int place = places[0];
#pragma unroll 1
        for (int k = 0; k < channels * c.kernel[2]; ++k) {
            const S* below = own + place;
            place = places[k + 1];  // read ahead: a load that waits for it waits twice
#pragma unroll 1
            for (int j = 0; j < c.kernel[1]; j += TAPS, below += TAPS * t.tap_step) {
                S window[ROWS + TAPS - 1];
#pragma unroll
                for (int i = 0; i < ROWS + TAPS - 1; ++i) window[i] = below[i * t.row_step];
#pragma unroll
                for (int tap = 0; tap < TAPS; ++tap, weight += tile_outputs) {
                    S factor[OUTPUTS];
                    read(factor, weight);
#pragma unroll
                    for (int i = 0; i < ROWS; ++i)
#pragma unroll
                        for (int o = 0; o < OUTPUTS; ++o) sum[i][o] += window[i + tap] * factor[o];
                }
            }
        }
        __syncthreads();
    }

    if (first_image + lane_image >= c.batch) return;  // no barrier follows
    const Index target = (first_image + lane_image) * c.y[0] + group * c.y[1] + depth * c.y[3];
    const Index area = Index(c.result[1]) * c.result[2], plane = c.result[0] * area;
    const Index before = (Index(blockIdx.y) * c.batch + first_image + lane_image) * c.groups + group;
    const Index part = before * c.outputs * plane + depth * area;
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        const int below = first_row + lane_row + i;
        const int row = t.fold ? 0 : below;
        const int column = t.fold ? below * t.fold + lane_column : first_column + lane_column;
        if (row >= c.result[1] || column >= c.result[2]) continue;
#pragma unroll
        for (int o = 0; o < OUTPUTS; ++o) {
            const int output = first_output + lane_output + o;
            if (output >= c.outputs) continue;
            if (parts != nullptr)
                parts[part + output * plane + Index(row) * c.result[2] + column] = sum[i][o];
            else
                store(y, target + output * c.y[2] + row * c.y[4] + column * c.y[5],
                      sum[i][o] + bias_at(bias, c, group, output, depth, row, column), c);
        }
    }
}

// Add up the parts of each output and its bias: a thread is one output of the images blockIdx.y, + gridDim.y, ...
template <typename T>
__global__ void __launch_bounds__(256, 4)
direct_summed(const typename Sum<T>::type* __restrict__ parts, const T* __restrict__ bias, T* __restrict__ y,
              const Conv c, int count) {
    const unsigned place = blockIdx.x * 256u + threadIdx.x;
    unsigned rest = place;
    const int column = rest % c.result[2];
    rest /= c.result[2];
    const int row = rest % c.result[1];
    rest /= c.result[1];
    const int depth = rest % c.result[0];
    rest /= c.result[0];
    const int output = rest % c.outputs, group = rest / c.outputs;
    if (group >= c.groups) return;  // no barrier follows
    const Index image_items = Index(c.groups) * c.outputs * c.result[0] * c.result[1] * c.result[2];
    for (int image = blockIdx.y; image < c.batch; image += gridDim.y) {
        typename Sum<T>::type sum = bias_at(bias, c, group, output, depth, row, column);
        for (int i = 0; i < count; ++i) sum += parts[(Index(i) * c.batch + image) * image_items + place];
        const Index target = image * c.y[0] + group * c.y[1] + output * c.y[2] + depth * c.y[3];
        store(y, target + row * c.y[4] + column * c.y[5], sum, c);
    }
}
