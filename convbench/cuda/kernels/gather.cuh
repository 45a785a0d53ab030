// Implicit GEMM: convolution as a product of matrices, of which that of the samples under the kernel is never stored.
//
//   Y[o, n] = sum over k of  W[o, k] * X[k, n],   o: output channel of a group, n: (image, position), k: (tap, channel)
//
// (Chetlur et al. 2014, cuDNN, section 3; Chellapilla et al. 2006 for the stored form.) What the kernels of this form
// share is here: how rows k are ordered and samples found, and how sums leave for y.
//
// Rows k come in one of two orders, between which the launch code chooses by the channels:
// - many channels: (tap, channel), the channels of each tap filled up with zeros to whole K-tiles. A K-tile belongs to
//   one tap, so a thread finds its sample, boundary included, once a tap, and walks along the channels by one stride;
// - few channels: (tap, channel) without gaps, read from a table of Tap, made once at plan time: no division either.
#pragma once
#include "common.cuh"

// Row k of the few-channels order: a channel, and how far the tap lies from the first one; channel -1: zeros.
struct __align__(16) Tap {
    int channel, offset[3];
};

// Which image and output a column n stands for.
struct Position {
    int image, depth, row, column;

    __device__ __forceinline__ Position(const Conv& c, unsigned n) {
        column = n % c.result[2];
        n /= c.result[2];
        row = n % c.result[1];
        n /= c.result[1];
        depth = n % c.result[0];
        image = n / c.result[0];
    }
};

// The samples of one column n, K-tile after K-tile of DEPTH rows.
template <typename T, int DEPTH, bool FEW>
class Gather {
    const Conv& c;
    const T* samples;    // of the image and group; null: there is no such column
    const Tap* taps;     // few channels: the rows of this K-tile
    int first[3];        // where the first tap lies, along each axis
    int tap[3];          // many channels: the tap of this K-tile,
    int channel;         //   and its first channel
    Index place;         //   and where they lie in the image
    bool inside;         // is there a sample?

    __device__ __forceinline__ void find() {
        place = 0;
        bool found = samples != nullptr;
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) {
            const int at = source_index(first[axis] + tap[axis] * c.dilation[axis], c.size[axis], c.boundary);
            found = found && at >= 0;
            place += at * c.x[3 + axis];
        }
        inside = found;
    }

  public:
    // columns: how many there are; tile: the first K-tile.
    __device__ __forceinline__ Gather(const Conv& c, const T* x, const Tap* table, int group, unsigned n,
                                      unsigned columns, int tile)
        : c(c) {
        const Position p(c, n < columns ? n : 0);
        samples = n < columns ? x + p.image * c.x[0] + group * c.x[1] : nullptr;
        first[0] = p.depth * c.stride[0] - c.before[0];
        first[1] = p.row * c.stride[1] - c.before[1];
        first[2] = p.column * c.stride[2] - c.before[2];
        if (FEW) {
            taps = table + tile * DEPTH;
        } else {
            const int tiles = (c.inputs + DEPTH - 1) / DEPTH;  // of one tap
            int number = tile / tiles;
            channel = (tile - number * tiles) * DEPTH;
            tap[2] = number % c.kernel[2];
            number /= c.kernel[2];
            tap[1] = number % c.kernel[1];
            tap[0] = number / c.kernel[1];
            find();
        }
    }

    // Go on to the next K-tile.
    __device__ __forceinline__ void advance() {
        if (FEW) {
            taps += DEPTH;
            return;
        }
        channel += DEPTH;
        if (channel < c.inputs) return;
        channel = 0;
        if (++tap[2] == c.kernel[2]) {
            tap[2] = 0;
            if (++tap[1] == c.kernel[1]) {
                tap[1] = 0;
                ++tap[0];
            }
        }
        find();
    }

    // The sample of row `row` of the K-tile, or zero.
    __device__ __forceinline__ T read(int row) const {
        if (FEW) {
            const Tap t = taps[row];
            const int depth = source_index(first[0] + t.offset[0], c.size[0], c.boundary);
            const int line = source_index(first[1] + t.offset[1], c.size[1], c.boundary);
            const int column = source_index(first[2] + t.offset[2], c.size[2], c.boundary);
            if (samples == nullptr || (t.channel | depth | line | column) < 0) return narrow<T>(0.0f);
            return samples[t.channel * c.x[2] + depth * c.x[3] + line * c.x[4] + column * c.x[5]];
        }
        if (!inside || channel + row >= c.inputs) return narrow<T>(0.0f);
        return samples[place + (channel + row) * c.x[2]];
    }

    // Where the channels of COUNT rows from `row` on lie, if all are there, one behind the other and aligned; or null.
    template <int COUNT>
    __device__ __forceinline__ const T* run(int row) const {
        if (FEW || c.x[2] != 1 || !inside || channel + row + COUNT > c.inputs) return nullptr;
        const T* start = samples + place + (channel + row);
        return reinterpret_cast<size_t>(start) % (COUNT * sizeof(T)) == 0 ? start : nullptr;
    }
};

// Where the sums of one column go, and where its biases lie.
struct Column {
    Index y, bias;
    int used;  // is there such a column?
};

__device__ __forceinline__ Column column_of(const Conv& c, int group, unsigned n, unsigned columns) {
    const Position p(c, n < columns ? n : 0);
    return {p.image * c.y[0] + group * c.y[1] + p.depth * c.y[3] + p.row * c.y[4] + p.column * c.y[5],
            group * c.bias[0] + p.depth * c.bias[2] + p.row * c.bias[3] + p.column * c.bias[4], n < columns};
}

// Write the sum of one output channel of a column; `part` is where this block's partial sums begin.
template <typename T>
__device__ __forceinline__ void put(T* y, const T* bias, const Conv& c, const Column& column, int output, Index part,
                                    typename Sum<T>::type sum) {
    if (bias != nullptr) sum += widen(bias[column.bias + output * c.bias[1]]);
    store(y, part + column.y + output * c.y[2], sum, c);
}

// Blocks are numbered with the tiles of outputs fastest: those that run at a time share their samples in the L2 cache.
struct Block {
    int output, group, split, first, last;  // the first output; which K-tiles
    unsigned column;

    // per_outputs, per_columns: how many blocks cover them; tiles: K-tiles in all.
    __device__ __forceinline__ Block(int height, int width, int groups, int per_outputs, int per_columns, int tiles,
                                     int splits) {
        unsigned number = blockIdx.x;
        output = number % per_outputs * height;
        number /= per_outputs;
        column = number % per_columns * width;
        number /= per_columns;
        group = number % groups;
        split = number / groups;
        first = static_cast<int>(static_cast<Index>(tiles) * split / splits);
        last = static_cast<int>(static_cast<Index>(tiles) * (split + 1) / splits);
    }
};
