// Direct convolution of signals: one axis, stride and dilation 1, few outputs a group, kernels of any length.
//
// A thread computes STRIP neighbouring outputs of one line (image, group and output): 16, in double precision 8. STRIP
// taps meet a window of 2 * STRIP - 1 samples in registers: 256 FMAs for 31 loads of samples and 4 of weights, 16 bytes
// each, by broadcast. Neighbouring threads are STRIP samples apart, so the samples lie in shared memory ordered by
// q mod STRIP (phases): a warp reads neighbours, free of bank conflicts, and since blocks of taps begin at multiples of
// STRIP, which phase a load reads is known to the compiler. Taps left over go one by one.
//
// A step is one input channel and so many taps as are staged at a time (t.tap_step); long kernels take several, and the
// next is staged by cp.async while one is computed. Results leave through shared memory, so that neighbouring threads
// write neighbouring outputs.
//
// FLOPs: 2 K an output; bytes: each sample once a step and output once: K / 4 FLOP a byte with float. Registers by
// NVRTC 13.0 for sm_90: 64 (float), 74 (double); shared memory: 24 to 80 KiB, by the kernel's length. Prediction for an
// H200 (not a measurement), from the share of FMAs among instructions: long kernels 80 to 88 % of peak FP32; short ones
// are bound by global memory.
#include "direct.cuh"

template <typename T>
__global__ void __launch_bounds__(128, 4)
direct_lines(const T* __restrict__ x, const typename Sum<T>::type* __restrict__ w, const T* __restrict__ bias,
             T* __restrict__ y, const Conv c, const Tile t) {
    typedef typename Sum<T>::type S;
    constexpr int STRIP = 64 / sizeof(S);
    extern __shared__ __align__(16) unsigned char memory[];

    const int lane = threadIdx.x % t.columns, lane_plane = threadIdx.x / t.columns, length = t.columns * STRIP;
    const int first = blockIdx.x % t.blocks[1] * length;
    const Index planes = Index(c.batch) * c.groups * c.outputs;
    const Index first_plane = Index(blockIdx.x / t.blocks[1]) * t.planes;
    const int padded = (c.kernel[2] + STRIP - 1) / STRIP * STRIP;  // taps of a packed filter
    const int chunks = covering(c.kernel[2], t.tap_step);

    Pieces pieces = {memory};
    const Buffers<S> buffers(pieces, t.buffers, t.planes * t.plane, t.planes * t.weights);
    auto stage = [&](int step) {
        const int channel = step / chunks, tap = (step - channel * chunks) * t.tap_step, member = threadIdx.x % t.team;
        for (int p = threadIdx.x / t.team; p < t.planes; p += blockDim.x / t.team) {
            const bool present = first_plane + p < planes;
            const Index plane = present ? first_plane + p : 0;
            const Index filter = plane % (c.groups * c.outputs), image = plane / (c.groups * c.outputs);
            const T* line = x + image * c.x[0] + filter / c.outputs * c.x[1] + channel * c.x[2];
            S* target = buffers.samples_of(step) + p * t.plane;
            for (int i = member; i < t.halo[1]; i += t.team) {
                const int at = source_index(first + tap - c.before[2] + i, c.size[2], c.boundary);
                S* place = target + i % STRIP * t.phase + i / STRIP;
                if (present && at >= 0)
                    fetch(place, line + at * c.x[5]);
                else
                    *place = 0;
            }
            fetch_all(buffers.weights_of(step) + p * t.weights, w + (filter * c.inputs + channel) * padded + tap,
                      min(t.tap_step, padded - tap), member, t.team);
        }
        __pipeline_commit();
    };

    S sum[STRIP];
#pragma unroll
    for (int i = 0; i < STRIP; ++i) sum[i] = 0;

    const int steps = c.inputs * chunks;
    if (steps > 0) stage(0);
    for (int step = 0; step < steps; ++step) {
        if (step + 1 < steps) stage(step + 1);
        arrived(step + 1 < steps);
        const S* own = buffers.samples_of(step) + lane_plane * t.plane + lane;
        const S* weight = buffers.weights_of(step) + lane_plane * t.weights;
        const int taps = min(t.tap_step, c.kernel[2] - step % chunks * t.tap_step);
        int tap = 0;
#pragma unroll 1
        for (; tap + STRIP <= taps; tap += STRIP, ++own) {
            S window[2 * STRIP - 1], factor[STRIP];
#pragma unroll
            for (int i = 0; i < 2 * STRIP - 1; ++i) window[i] = own[i % STRIP * t.phase + i / STRIP];
            read(factor, weight + tap);
#pragma unroll
            for (int k = 0; k < STRIP; ++k)
#pragma unroll
                for (int i = 0; i < STRIP; ++i) sum[i] += window[i + k] * factor[k];
        }
#pragma unroll 1
        for (int k = 0; tap + k < taps; ++k) {
            const S factor = weight[tap + k];
#pragma unroll
            for (int i = 0; i < STRIP; ++i) sum[i] += own[(i + k) % STRIP * t.phase + (i + k) / STRIP] * factor;
        }
        __syncthreads();
    }

    S* sums = buffers.first;
#pragma unroll
    for (int i = 0; i < STRIP; ++i) sums[lane_plane * t.plane + i * t.phase + lane] = sum[i];
    __syncthreads();
    for (int i = threadIdx.x; i < t.planes * length; i += blockDim.x) {
        const int p = i / length, q = i - p * length, column = first + q;
        const Index plane = first_plane + p;
        if (plane >= planes || column >= c.result[2]) continue;
        const int filter = plane % (c.groups * c.outputs), group = filter / c.outputs, output = filter % c.outputs;
        const Index target = plane / (c.groups * c.outputs) * c.y[0] + group * c.y[1] + output * c.y[2];
        store(y, target + column * c.y[5],
              sums[p * t.plane + q % STRIP * t.phase + q / STRIP] + bias_at(bias, c, group, output, 0, 0, column), c);
    }
}
