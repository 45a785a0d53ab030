// What stands around cuFFT's transforms: samples and kernels laid out for them, the products in between, and outputs
// taken out of them. Three kernels move values (fft_pack, fft_taps, fft_unpack), one multiplies (fft_multiply).
//
// A transform is of a tile of one channel's polyphase component on one interleaved subgrid of one image (a whole image
// is a single tile; see convbench/algorithms/lowering.py for the decomposition of strides and dilations). Along an
// axis, sample i of a tile stands at place u = tile*outputs + first + i of the component, which reads position
// u*(stride*subgrids) + subgrid*stride + phase*dilation - before of the input. Tap m of a component is laid out at
// first - m, modulo the size, so that output j of the tile is item j of the circular convolution.
//
// Moving: a block serves one transform (blockIdx.x); its first thread finds out which one that is, by some ten
// divisions, and tells the others through shared memory. Then threads along x take columns and threads along y rows,
// so that a warp reads and writes neighbouring columns. Traffic: each value is read once and written once; nothing is
// computed. The shape of a block is the launcher's choice: 16 x 16 for the smallest tiles, 32 x 8, or 256 x 1 for long
// lines, and blockIdx.y and z cut what is larger. Registers, not shared memory (56 bytes), say how many blocks a
// processor holds.
#include "common.cuh"

template <typename R>
struct alignas(2 * sizeof(R)) Complex {
    R real, imag;
    __device__ __forceinline__ Complex(R re = R(0), R im = R(0)) : real(re), imag(im) {}
};

template <typename R>
__device__ __forceinline__ Complex<R> operator+(Complex<R> a, Complex<R> b) {
    return Complex<R>(a.real + b.real, a.imag + b.imag);
}

template <typename R>
__device__ __forceinline__ Complex<R> operator*(Complex<R> a, R b) {
    return Complex<R>(a.real * b, a.imag * b);
}

template <typename R>
__device__ __forceinline__ Complex<R> widen(Complex<R> value) {
    return value;
}

// The real type of the same precision.
template <typename T> struct Real { typedef T type; };
template <typename R> struct Real<Complex<R>> { typedef R type; };

// Mirrored by convbench/cuda/fft.py, field by field.
struct Tiles {
    int count[3];      // tiles along each axis
    int outputs[3];    // of a tile
    int size[3];       // samples of a tile
    int first[3];      // place of the first sample of the first tile
    int length[3];     // places of a component that are read at all
    int phases[3];     // polyphase components: further channels
    int subgrids[3];   // interleaved subgrids: further images
    int tap_step[3];   // from tap to tap of a component
    int grid_step[3];  // from output to output of a subgrid
    int images;
    Index lanes[3];    // from transform to transform, in transforms: group, channel, (image, subgrid, tile)
};

// Which transform a block serves.
struct Lane {
    Index number;
    int group, channel, image;
    int phase[3], subgrid[3], tile[3];
};

__device__ __forceinline__ int take(unsigned& rest, int extent) {
    const unsigned found = rest % extent;
    rest /= extent;
    return found;
}

// Neighbouring blocks serve neighbouring tiles, which share samples in the cache.
__device__ __forceinline__ void find_lane(Lane& lane, const Tiles& t, int channels) {
    unsigned rest = blockIdx.x;
    int place = 0, places = 1;
    for (int axis = 2; axis >= 0; --axis) {
        lane.tile[axis] = take(rest, t.count[axis]);
        place += lane.tile[axis] * places;
        places *= t.count[axis];
    }
    for (int axis = 2; axis >= 0; --axis) {
        lane.subgrid[axis] = take(rest, t.subgrids[axis]);
        place += lane.subgrid[axis] * places;
        places *= t.subgrids[axis];
    }
    lane.image = take(rest, t.images);
    place += lane.image * places;
    int phase = 0, phases = 1;
    for (int axis = 2; axis >= 0; --axis) {
        lane.phase[axis] = take(rest, t.phases[axis]);
        phase += lane.phase[axis] * phases;
        phases *= t.phases[axis];
    }
    lane.channel = take(rest, channels);
    lane.group = rest;
    lane.number = lane.group * t.lanes[0] + (lane.channel * phases + phase) * t.lanes[1] + place * t.lanes[2];
}

// Lay out samples, as the boundary continues the input; zeros where there are none. Written without gaps, all of it.
template <typename T>
__global__ void __launch_bounds__(256, 4)
fft_pack(const T* __restrict__ x, T* __restrict__ samples, Conv c, Tiles t) {
    __shared__ Lane lane;
    if (threadIdx.x == 0 && threadIdx.y == 0) find_lane(lane, t, c.inputs);
    __syncthreads();
    int start[3], origin[3], step[3];
    for (int axis = 0; axis < 3; ++axis) {
        start[axis] = lane.tile[axis] * t.outputs[axis] + t.first[axis];
        step[axis] = c.stride[axis] * t.grid_step[axis];
        origin[axis] =
            c.stride[axis] * lane.subgrid[axis] + lane.phase[axis] * c.dilation[axis] - c.before[axis];
    }
    const T* source = x + lane.image * c.x[0] + lane.group * c.x[1] + lane.channel * c.x[2];
    const int rows = t.size[0] * t.size[1], columns = t.size[2];
    T* target = samples + lane.number * rows * columns;
    for (int line = blockIdx.y * blockDim.y + threadIdx.y; line < rows; line += gridDim.y * blockDim.y) {
        const int i = t.size[0] == 1 ? 0 : line / t.size[1];
        const int at[2] = {start[0] + i, start[1] + line - i * t.size[1]};
        Index from = 0;
        bool inside = true;
        for (int axis = 0; axis < 2; ++axis) {
            const int read = at[axis] < t.length[axis]
                                 ? source_index(origin[axis] + at[axis] * step[axis], c.size[axis], c.boundary)
                                 : -1;
            inside = inside && read >= 0;
            from += read * c.x[3 + axis];
        }
        for (int k = blockIdx.z * blockDim.x + threadIdx.x; k < columns; k += gridDim.z * blockDim.x) {
            const int place = start[2] + k;
            const int read = inside && place < t.length[2]
                                 ? source_index(origin[2] + place * step[2], c.size[2], c.boundary)
                                 : -1;
            target[Index(line) * columns + k] = read < 0 ? T(0) : source[from + read * c.x[5]];
        }
    }
}

// The tap that stands at item i of an axis, or -1.
__device__ __forceinline__ int tap_at(const Conv& c, const Tiles& t, int axis, int phase, int i) {
    int m = t.first[axis] % t.size[axis] - i;
    if (m < 0) m += t.size[axis];
    const int k = m * t.tap_step[axis] + phase;
    return k < c.kernel[axis] ? stored_tap(c, axis, k) : -1;
}

// Lay out the components of kernels, scaled by what the transforms there and back multiply by. A block serves one of
// them, in the order (group, output, input, phase), counted from the first.
template <typename T>
__global__ void __launch_bounds__(256, 4)
fft_taps(const T* __restrict__ w, T* __restrict__ samples, Conv c, Tiles t, Index first,
         typename Real<T>::type scale) {
    __shared__ int phase[3];
    __shared__ Index offset;
    if (threadIdx.x == 0 && threadIdx.y == 0) {
        Index rest = first + blockIdx.x;
        for (int axis = 2; axis >= 0; --axis) {
            phase[axis] = rest % t.phases[axis];
            rest /= t.phases[axis];
        }
        const int input = rest % c.inputs;
        rest /= c.inputs;
        offset = (rest / c.outputs) * c.w[0] + (rest % c.outputs) * c.w[1] + input * c.w[2];
    }
    __syncthreads();
    const int rows = t.size[0] * t.size[1], columns = t.size[2];
    T* target = samples + Index(blockIdx.x) * rows * columns;
    for (int line = blockIdx.y * blockDim.y + threadIdx.y; line < rows; line += gridDim.y * blockDim.y) {
        const int i = t.size[0] == 1 ? 0 : line / t.size[1];
        const int depth = tap_at(c, t, 0, phase[0], i);
        const int row = tap_at(c, t, 1, phase[1], line - i * t.size[1]);
        const bool inside = depth >= 0 && row >= 0;
        const Index from = offset + depth * c.w[3] + row * c.w[4];
        for (int k = blockIdx.z * blockDim.x + threadIdx.x; k < columns; k += gridDim.z * blockDim.x) {
            const int column = inside ? tap_at(c, t, 2, phase[2], k) : -1;
            target[Index(line) * columns + k] = column < 0 ? T(0) : w[from + column * c.w[5]] * scale;
        }
    }
}

// Take each tile's outputs, add the bias, interleave the subgrids. There are no phases here.
template <typename T>
__global__ void __launch_bounds__(256, 4)
fft_unpack(const T* __restrict__ samples, const T* __restrict__ bias, T* __restrict__ y, Conv c, Tiles t) {
    __shared__ Lane lane;
    if (threadIdx.x == 0 && threadIdx.y == 0) find_lane(lane, t, c.outputs);
    __syncthreads();
    const T* source = samples + lane.number * t.size[0] * t.size[1] * t.size[2];
    T* target = y + lane.image * c.y[0] + lane.group * c.y[1] + lane.channel * c.y[2];
    const int rows = t.outputs[0] * t.outputs[1];
    for (int line = blockIdx.y * blockDim.y + threadIdx.y; line < rows; line += gridDim.y * blockDim.y) {
        const int i = t.outputs[0] == 1 ? 0 : line / t.outputs[1];
        const int j = line - i * t.outputs[1];
        const int depth = (lane.tile[0] * t.outputs[0] + i) * t.grid_step[0] + lane.subgrid[0];
        const int row = (lane.tile[1] * t.outputs[1] + j) * t.grid_step[1] + lane.subgrid[1];
        if (depth >= c.result[0] || row >= c.result[1]) continue;
        const Index from = (Index(i) * t.size[1] + j) * t.size[2], to = depth * c.y[3] + row * c.y[4];
        for (int k = blockIdx.z * blockDim.x + threadIdx.x; k < t.outputs[2]; k += gridDim.z * blockDim.x) {
            const int column = (lane.tile[2] * t.outputs[2] + k) * t.grid_step[2] + lane.subgrid[2];
            if (column < c.result[2])
                target[to + column * c.y[5]] =
                    source[from + k] + bias_at(bias, c, lane.group, lane.channel, depth, row, column);
        }
    }
}

// Multiply spectra and sum over the channels of a group, where there are too few of them for a matrix product:
//
//   y[b, g, o, f] = sum over i of  x[b, g, i, f] * w[g, o, i, f]
//
// A thread has one frequency of OUTPUTS outputs and TILES transforms b, whose sums stay in registers; a warp has 32
// neighbouring frequencies, so that all loads are of 32 neighbouring complex numbers. A block is 32 x 4: four such rows
// of transforms read the same weights. 8 FLOPs for (1/OUTPUTS + 1/TILES) complex numbers from the caches, and of memory
// each spectrum about once: bound by memory for the few channels that this is for. No shared memory.
template <typename R, int OUTPUTS, int TILES>
__global__ void __launch_bounds__(128, sizeof(R) == 8 ? 3 : 4)
fft_multiply(const Complex<R>* x, const Complex<R>* w, Complex<R>* y,  // x and y may be one array: not restricted
             int frequencies, int groups, int inputs, int outputs, int tiles) {
    const int f = blockIdx.x * 32 + threadIdx.x;
    if (f >= frequencies) return;  // there is no barrier
    const int output_blocks = (outputs + OUTPUTS - 1) / OUTPUTS;
    for (int block = blockIdx.y; block < groups * output_blocks; block += gridDim.y) {
        const int group = block / output_blocks, output = (block - group * output_blocks) * OUTPUTS;
        const Complex<R>* weights = w + Index(group * outputs + output) * inputs * frequencies + f;
        for (int tile = (blockIdx.z * 4 + threadIdx.y) * TILES; tile < tiles; tile += gridDim.z * 4 * TILES) {
            const Complex<R>* samples = x + (Index(tile) * groups + group) * inputs * frequencies + f;
            Complex<R> sums[OUTPUTS][TILES];
            for (int i = 0; i < inputs; ++i) {
                Complex<R> a[TILES], b[OUTPUTS];
#pragma unroll
                for (int n = 0; n < TILES; ++n)
                    if (tile + n < tiles) a[n] = samples[(Index(n) * groups * inputs + i) * frequencies];
#pragma unroll
                for (int o = 0; o < OUTPUTS; ++o)
                    if (output + o < outputs) b[o] = weights[(Index(o) * inputs + i) * frequencies];
#pragma unroll
                for (int o = 0; o < OUTPUTS; ++o)
#pragma unroll
                    for (int n = 0; n < TILES; ++n) {
                        sums[o][n].real += a[n].real * b[o].real - a[n].imag * b[o].imag;
                        sums[o][n].imag += a[n].real * b[o].imag + a[n].imag * b[o].real;
                    }
            }
#pragma unroll
            for (int o = 0; o < OUTPUTS; ++o)
#pragma unroll
                for (int n = 0; n < TILES; ++n)
                    if (tile + n < tiles && output + o < outputs)
                        y[((Index(tile + n) * groups + group) * outputs + output + o) * frequencies + f] = sums[o][n];
        }
    }
}
