// im2col in bands: the samples under the kernel as columns, for a GEMM that is somebody else's (cuBLAS's).
//
// unfold writes the columns of a band of L positions, counted over all images, as (G, C/g * taps, L) without gaps,
// in the order of the stored weights. A thread has one column and writes the taps of one channel after another, a
// block 256 neighbouring columns: writes are coalesced always, reads where neighbouring outputs read neighbouring
// samples, and a sample is read from memory once, from the L1 cache for the other taps that want it.
// scatter brings the products (G, O/g, L) into y, bias added; collect brings g into (G, L, O/g), for the gradient of
// the weights: both turn 32 x 32 tiles in shared memory (rows of 33: no two threads of a warp meet in a bank), so
// that both sides are coalesced whether y has channels first or last.
//
// All three are bound by memory, below one FLOP an item: unfold writes taps items for each sample it reads, and the
// GEMM reads them again, so that stored columns cost 2 * taps * |x| of traffic that implicit GEMM does not have.
// NVRTC 13.0, sm_90, none spilled: unfold 38 registers; scatter 64 and collect 40, 4.1 KiB (double 8.3) of shared
// memory.
// Prediction for an H200 (not a measurement): 60 to 80 % of memory bandwidth.
#include "gather.cuh"

template <typename T>
__global__ void __launch_bounds__(256, 4)
unfold(const T* __restrict__ x, typename Sum<T>::type* __restrict__ columns, Conv c, int first, int count) {
    const int here = blockIdx.x * 256 + threadIdx.x;
    if (here >= count) return;
    const Position p(c, first + here);
    const int depth = p.depth * c.stride[0] - c.before[0], row = p.row * c.stride[1] - c.before[1],
              column = p.column * c.stride[2] - c.before[2];
    const int channels = c.groups * c.inputs, taps = c.kernel[0] * c.kernel[1] * c.kernel[2];
    for (int channel = blockIdx.y; channel < channels; channel += gridDim.y) {
        const int group = channel / c.inputs;
        const T* samples = x + p.image * c.x[0] + group * c.x[1] + (channel - group * c.inputs) * c.x[2];
        typename Sum<T>::type* target = columns + static_cast<Index>(channel) * taps * count + here;
        for (int i = 0; i < c.kernel[0]; ++i) {
            const int d = source_index(depth + i * c.dilation[0], c.size[0], c.boundary);
            for (int j = 0; j < c.kernel[1]; ++j) {
                const int r = source_index(row + j * c.dilation[1], c.size[1], c.boundary);
                const Index line = d * c.x[3] + r * c.x[4];
                for (int k = 0; k < c.kernel[2]; ++k) {
                    const int q = source_index(column + k * c.dilation[2], c.size[2], c.boundary);
                    *target = (d | r | q) < 0 ? typename Sum<T>::type(0) : widen(samples[line + q * c.x[5]]);
                    target += count;
                }
            }
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(256, 4)
scatter(const typename Sum<T>::type* __restrict__ products, const T* __restrict__ bias, T* __restrict__ y, Conv c,
        int first, int count) {
    __shared__ typename Sum<T>::type tile[32][33];
    const int lane = threadIdx.x % 32, line = threadIdx.x / 32;
    const int column = blockIdx.x * 32, output = blockIdx.y * 32;
    const bool by_outputs = c.y[2] == 1;
    for (int group = blockIdx.z; group < c.groups; group += gridDim.z) {
        for (int i = line; i < 32; i += 8)
            if (output + i < c.outputs && column + lane < count)
                tile[i][lane] = products[(static_cast<Index>(group) * c.outputs + output + i) * count + column + lane];
        __syncthreads();
        for (int i = line; i < 32; i += 8) {
            const int m = by_outputs ? lane : i, n = by_outputs ? i : lane;
            const Column place = column_of(c, group, first + column + n, first + count);
            if (output + m < c.outputs && place.used) put(y, bias, c, place, output + m, 0, tile[m][n]);
        }
        __syncthreads();
    }
}

template <typename T>
__global__ void __launch_bounds__(256, 4)
collect(const T* __restrict__ g, typename Sum<T>::type* __restrict__ rows, Conv c, int first, int count) {
    __shared__ typename Sum<T>::type tile[32][33];
    const int lane = threadIdx.x % 32, line = threadIdx.x / 32;
    const int column = blockIdx.x * 32, output = blockIdx.y * 32;
    const bool by_outputs = c.y[2] == 1;
    for (int group = blockIdx.z; group < c.groups; group += gridDim.z) {
        for (int i = line; i < 32; i += 8) {
            const int m = by_outputs ? lane : i, n = by_outputs ? i : lane;
            const Column place = column_of(c, group, first + column + n, first + count);
            if (output + m < c.outputs && place.used) tile[m][n] = widen(g[place.y + (output + m) * c.y[2]]);
        }
        __syncthreads();
        for (int i = line; i < 32; i += 8)
            if (output + lane < c.outputs && column + i < count)
                rows[(static_cast<Index>(group) * count + column + i) * c.outputs + output + lane] = tile[lane][i];
        __syncthreads();
    }
}
