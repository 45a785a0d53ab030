// The textbook kernel: one thread computes one output.
//
// A block is 256 neighbouring outputs of one image (blockIdx.y) in the order (g, o, depth, row, column), so that a warp
// reads neighbouring columns of x and, but at the end of a plane, one and the same weight at a time. Nothing is shared:
// each output reads its C/g * K samples and weights anew, from the caches at best.
//
// Work: 2 * C/g * K FLOPs an output. Traffic: 2 loads for each multiply-add, so the load units bound it: at 32 lanes a
// cycle an SM loads one operand a lane, against 128 multiply-adds. Registers by NVRTC 13.0: 80, no shared memory.
// Prediction for an H200 (not a measurement): at most 1/8 of peak FP32, and less for the index arithmetic of a tap.
#include "common.cuh"

template <typename T>
__global__ void __launch_bounds__(256, 3)  // with one argument only, NVRTC 13.0 spills for the sake of occupancy
direct_naive(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y, Conv c) {
    unsigned place = blockIdx.x * 256u + threadIdx.x;  // of one image: 64-bit divisions would be calls
    const int column = place % c.result[2];
    place /= c.result[2];
    const int row = place % c.result[1];
    place /= c.result[1];
    const int depth = place % c.result[0];
    place /= c.result[0];
    const int output = place % c.outputs;
    const int group = place / c.outputs;
    if (group >= c.groups) return;  // the last block's spare threads: there is no barrier that they could miss

    for (int image = blockIdx.y; image < c.batch; image += gridDim.y) {
        typename Sum<T>::type sum = bias_at(bias, c, group, output, depth, row, column);
        const T* samples = x + image * c.x[0] + group * c.x[1];
        const T* weights = w + group * c.w[0] + output * c.w[1];
        for (int i = 0; i < c.kernel[0]; ++i) {
            const int d = source_index(depth * c.stride[0] + i * c.dilation[0] - c.before[0], c.size[0], c.boundary);
            if (d < 0) continue;
            for (int j = 0; j < c.kernel[1]; ++j) {
                const int r = source_index(row * c.stride[1] + j * c.dilation[1] - c.before[1], c.size[1], c.boundary);
                if (r < 0) continue;
                for (int k = 0; k < c.kernel[2]; ++k) {
                    const int q =
                        source_index(column * c.stride[2] + k * c.dilation[2] - c.before[2], c.size[2], c.boundary);
                    if (q < 0) continue;
                    const T* sample = samples + d * c.x[3] + r * c.x[4] + q * c.x[5];
                    const T* weight = weights + stored_tap(c, 0, i) * c.w[3] + stored_tap(c, 1, j) * c.w[4] +
                                      stored_tap(c, 2, k) * c.w[5];
                    for (int channel = 0; channel < c.inputs; ++channel)
                        sum += widen(sample[channel * c.x[2]]) * widen(weight[channel * c.w[2]]);
                }
            }
        }
        const Index target = image * c.y[0] + group * c.y[1] + output * c.y[2] + depth * c.y[3] + row * c.y[4];
        store(y, target + column * c.y[5], sum, c);
    }
}
