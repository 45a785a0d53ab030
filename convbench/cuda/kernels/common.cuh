// What all kernels share: the geometry of one forward convolution, types, and where samples and biases lie.
//
//   y[n, g, o, p] = bias[g, o, p] + sum over c, k of  x[n, g, c, p*stride + k*dilation - before] * w[g, o, c, k]
//
// There are always three spatial axes, depth, rows and columns (0, 1, 2); those that a problem has not are of size 1.
// Arrays come with their groups split off, and with any strides, counted in items.
#pragma once
#include <cuda_fp16.h>

typedef long long Index;  // offsets in items: an array may have more than 2^31

enum Boundary { ZERO = 0, CIRCULAR = 1, REFLECT = 2, REPLICATE = 3 };

// Mirrored by convbench/cuda/geometry.py, field by field.
struct Conv {
    int batch, groups, inputs, outputs;  // inputs, outputs: channels of one group
    int size[3];                         // of the input, along each axis
    int kernel[3];
    int result[3];                       // of the output
    int stride[3], dilation[3], before[3];
    int boundary;
    int flip;                            // 1: the kernel is mirrored along every axis
    int wide;                            // 1: y is of the type that sums are formed in, not of the type of x
    Index x[6];                          // strides: image, group, channel, depth, row, column
    Index y[6];
    Index w[6];                          // group, output, input, depth, row, column
    Index bias[5];                       // group, output, depth, row, column: 0 where one entry stands for all
};

// The type in which values of T are summed up: half precision is storage only.
template <typename T> struct Sum { typedef T type; };
template <> struct Sum<__half> { typedef float type; };

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }

template <typename T, typename A> __device__ __forceinline__ T narrow(A value) { return static_cast<T>(value); }
template <> __device__ __forceinline__ __half narrow<__half, float>(float value) { return __float2half(value); }

// The sample that stands at a position of the extended axis, or -1 where zeros lie. The extension is unlimited.
__device__ __forceinline__ int source_index(int position, int size, int boundary) {
    if (static_cast<unsigned>(position) < static_cast<unsigned>(size)) return position;
    if (boundary == ZERO) return -1;
    if (boundary == REPLICATE) return position < 0 ? 0 : size - 1;
    int period = boundary == CIRCULAR ? size : 2 * (size - 1);
    if (period == 0) return 0;  // reflect, of a single sample
    int folded = position % period;
    if (folded < 0) folded += period;
    return folded < size ? folded : period - folded;
}

// Which tap of the stored kernel meets offset k.
__device__ __forceinline__ int stored_tap(const Conv& c, int axis, int k) {
    return c.flip ? c.kernel[axis] - 1 - k : k;
}

template <typename T>
__device__ __forceinline__ typename Sum<T>::type bias_at(const T* bias, const Conv& c, int group, int output, int depth,
                                                         int row, int column) {
    if (bias == nullptr) return typename Sum<T>::type(0);
    return widen(bias[group * c.bias[0] + output * c.bias[1] + depth * c.bias[2] + row * c.bias[3] + column * c.bias[4]]);
}

// Write one result.
template <typename T>
__device__ __forceinline__ void store(T* y, Index place, typename Sum<T>::type value, const Conv& c) {
    if (c.wide)
        reinterpret_cast<typename Sum<T>::type*>(y)[place] = value;
    else
        y[place] = narrow<T>(value);
}
