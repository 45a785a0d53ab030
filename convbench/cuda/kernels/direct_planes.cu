// Direct convolution with few outputs a group: image filters, depthwise layers, volumes.
//
// A thread computes a strip of ROWS outputs, one below the other, of one plane (image, group and output), and with
// DEPTHS > 1 the same strip in as many neighbouring slices. Lanes are neighbouring columns (from 8 on), then strips,
// then planes, so that narrow planes share a block. Along a kernel column TAPS weights meet a sliding window of samples
// in registers: ROWS + TAPS - 1 loads from shared memory, free of bank conflicts, and TAPS weights by broadcast, 16
// bytes at a time, serve ROWS * TAPS products. Kernels of 3, 5 and 7 rows are one window; others are windows of 8, then
// of 4, 2 and 1. TAPS = 1 goes with any stride and dilation, the others where the two are the same along the rows.
//
// In shared memory: the halo of one slice and channel of each plane, and its weights [kernel column][kernel row]. A
// second buffer is there if there is more than one step (input channel, slice) and it fits. Volumes: a slice that is
// staged serves all of the DEPTHS slices of outputs that it reaches, so K + DEPTHS - 1 slices are read for DEPTHS, not
// K * DEPTHS.
//
// Bytes: input and output once, but for halos that overlap; FLOPs: 2 K an output, so K / 4 FLOP a byte in float where
// an H200 balances at 14: small kernels are bound by memory. Registers by NVRTC 13.0 for sm_90: 70 to 92 with float,
// 124 with DEPTHS = 4 and TAPS = 7, up to 128 with double; none spilled. Shared memory: 24 to 80 KiB. Prediction for an
// H200 (no measurement), from the share of FMAs among the instructions and from loads of shared memory (one row of 32 a
// cycle): K = 3 x 3 and 5 x 5 float: bound by global memory, 70 to 85 % of 4.8 TB/s; 31 x 31 with ROWS = 16: a window
// is 128 FMAs to 23 + 2 loads, so 65 to 75 % of peak FP32.
#include "direct.cuh"

// Add a kernel column's next TAPS weights times the samples of a strip. Slices that the weights do not reach are left.
template <int TAPS, int ROWS, int DEPTHS, typename S>
__device__ __forceinline__ void add_window(S (&sum)[DEPTHS][ROWS], const S* below, int step, const S* weights,
                                           int slice, int slices, int slice_weights) {
    S window[ROWS + TAPS - 1];
#pragma unroll
    for (int i = 0; i < ROWS + TAPS - 1; ++i) window[i] = below[i * step];
#pragma unroll
    for (int d = 0; d < DEPTHS; ++d) {
        const int tap_slice = DEPTHS == 1 ? 0 : slice - d;
        if (DEPTHS > 1 && static_cast<unsigned>(tap_slice) >= static_cast<unsigned>(slices)) continue;
        S factor[TAPS];
        read(factor, weights + tap_slice * slice_weights);
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap)
#pragma unroll
            for (int i = 0; i < ROWS; ++i) sum[d][i] += window[i + tap] * factor[tap];
    }
}

template <typename T, int ROWS, int TAPS, int DEPTHS>
__global__ void __launch_bounds__(128, DEPTHS > 1 && sizeof(T) == 8 ? 3 : 4)
direct_planes(const T* __restrict__ x, const typename Sum<T>::type* __restrict__ w, const T* __restrict__ bias,
              T* __restrict__ y, const Conv c, const Tile t) {
    typedef typename Sum<T>::type S;
    extern __shared__ __align__(16) unsigned char memory[];

    int rest = threadIdx.x;
    const int lane_column = rest % t.columns;
    rest /= t.columns;
    const int lane_row = rest % t.row_groups * ROWS;
    const int lane_plane = rest / t.row_groups;

    unsigned number = blockIdx.x;
    const int first_column = number % t.blocks[1] * t.columns;
    number /= t.blocks[1];
    const int first_row = number % t.blocks[2] * (t.row_groups * ROWS);
    number /= t.blocks[2];
    const int first_depth = number % t.blocks[3] * DEPTHS;
    const Index planes = Index(c.batch) * c.groups * c.outputs, first_plane = Index(number / t.blocks[3]) * t.planes;

    const int column_weights = TAPS == 1 ? c.kernel[1] : (c.kernel[1] + 3) / 4 * 4;
    const int slice_weights = (c.kernel[2] * column_weights + 3) / 4 * 4;
    const int staged_weights = DEPTHS == 1 ? slice_weights : c.kernel[0] * slice_weights;
    Pieces pieces = {memory};
    Halo halo(pieces, t);
    int* tap_columns = pieces.take<int>(c.kernel[2]);
    const Buffers<S> buffers(pieces, t.buffers, t.planes * t.plane, t.planes * t.weights);

    halo.locate(c, t, t.fold ? 0 : first_row * c.stride[1] - c.before[1],
                (t.fold ? first_row * t.fold : first_column) * c.stride[2] - c.before[2], c.stride[2]);
    for (int k = threadIdx.x; k < c.kernel[2]; k += blockDim.x)
        tap_columns[k] = k * c.dilation[2] % c.stride[2] * t.phase + k * c.dilation[2] / c.stride[2];
    __syncthreads();

    const int slices = DEPTHS == 1 ? c.kernel[0] : c.kernel[0] + DEPTHS - 1;  // of the input, to each channel
    auto stage = [&](int step) {
        const int channel = step / slices, slice = step - channel * slices, member = threadIdx.x % t.team;
        const int at =
            source_index(first_depth * c.stride[0] + slice * c.dilation[0] - c.before[0], c.size[0], c.boundary);
        const T* source = x + channel * c.x[2] + at * c.x[3];
        for (int p = threadIdx.x / t.team; p < t.planes; p += blockDim.x / t.team) {
            const bool present = first_plane + p < planes;
            const Index plane = present ? first_plane + p : 0;
            const Index filter = plane % (c.groups * c.outputs), image = plane / (c.groups * c.outputs);
            halo.stage<T>(buffers.samples_of(step) + p * t.plane, source + image * c.x[0] + filter / c.outputs * c.x[1],
                          present && at >= 0, t, member);
            const Index first = (filter * c.inputs + channel) * c.kernel[0] + (DEPTHS == 1 ? slice : 0);
            fetch_all(buffers.weights_of(step) + p * t.weights, w + first * slice_weights, staged_weights, member,
                      t.team);
        }
        __pipeline_commit();
    };

    S sum[DEPTHS][ROWS];
#pragma unroll
    for (int d = 0; d < DEPTHS; ++d)
#pragma unroll
        for (int i = 0; i < ROWS; ++i) sum[d][i] = 0;

    const int steps = c.inputs * slices;
    if (steps > 0) stage(0);
    for (int step = 0; step < steps; ++step) {
        const bool meanwhile = step + 1 < steps && t.buffers == 2;
        if (meanwhile) stage(step + 1);
        arrived(meanwhile);
        const int slice = step % slices;
        const S* own = buffers.samples_of(step) + lane_plane * t.plane + lane_row * t.row_step + lane_column;
        const S* weight = buffers.weights_of(step) + lane_plane * t.weights;
        for (int k = 0; k < c.kernel[2]; ++k, weight += column_weights) {
            const S* below = own + tap_columns[k];
            int tap = 0;
#pragma unroll 1
            for (; tap + TAPS <= c.kernel[1]; tap += TAPS)
                add_window<TAPS>(sum, below + tap * t.tap_step, t.row_step, weight + tap, slice, c.kernel[0],
                                 slice_weights);
            if (TAPS != 8) continue;
            if (c.kernel[1] & 4) {
                add_window<4>(sum, below + tap * t.tap_step, t.row_step, weight + tap, slice, c.kernel[0],
                              slice_weights);
                tap += 4;
            }
            if (c.kernel[1] & 2) {
                add_window<2>(sum, below + tap * t.tap_step, t.row_step, weight + tap, slice, c.kernel[0],
                              slice_weights);
                tap += 2;
            }
            if (c.kernel[1] & 1)
                add_window<1>(sum, below + tap * t.tap_step, t.row_step, weight + tap, slice, c.kernel[0],
                              slice_weights);
        }
        __syncthreads();
        if (step + 1 < steps && t.buffers == 1) stage(step + 1);
    }

    const Index plane = first_plane + lane_plane;
    if (plane >= planes) return;  // no barrier follows
    const int filter = plane % (c.groups * c.outputs), group = filter / c.outputs, output = filter % c.outputs;
    const Index target = plane / (c.groups * c.outputs) * c.y[0] + group * c.y[1] + output * c.y[2];
#pragma unroll
    for (int d = 0; d < DEPTHS; ++d) {
        const int depth = first_depth + d;
        if (depth >= c.result[0]) break;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const int below = first_row + lane_row + i;
            const int row = t.fold ? 0 : below;
            const int column = t.fold ? below * t.fold + lane_column : first_column + lane_column;
            if (row < c.result[1] && column < c.result[2])
                store(y, target + depth * c.y[3] + row * c.y[4] + column * c.y[5],
                      sum[d][i] + bias_at(bias, c, group, output, depth, row, column), c);
        }
    }
}
