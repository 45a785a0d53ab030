// The gradient of the weights as an implicit GEMM: g times the transposed matrix of samples, for each group.
//
//   V[o, (c, tap)] = sum over k = (image, position) of  g[k, o] * x[k, (c, tap)]
//
// A block computes BM output channels for BN pairs (c, tap), over its share of the rows k, BK at a time; tiles and
// pipeline are those of implicit_gemm.cu. With channels first both matrices are contiguous along k, so neighbouring
// threads read neighbouring k, segments of 64 bytes for BK = 16, and turn the tile on its way to shared memory,
// whose rows are 128 bits longer than the tile: 2 threads of a warp meet in a bank, where 16 would. A thread finds
// its position k by carrying, once a K-tile; where the taps of the pairs lie is in shared memory. There are few
// outputs and many rows, so as a rule the rows are split among blocks, whose partial sums add_up adds in a fixed
// order.
//
// Arithmetic intensity: as in implicit_gemm.cu, 85 FLOPs an operand from the caches for 128 x 64. NVRTC 13.0,
// registers on sm_80 and sm_90, none spilled: float 128 x 64: 101 and 105, 27 KB of shared memory; 64 x 64: 104 and
// 107, 19 KB.
// Prediction for an H200 (not a measurement): 50 to 60 % of peak FP32; every sample is found by its own index
// arithmetic, some 16 instructions for each 32 to 64 multiply-adds of a thread.
#include "gather.cuh"
#include "tile.cuh"

// w: the result, or where partial sums go, `part_items` for each of `splits`. Grid: as struct Block counts.
template <typename T, int BM, int BN, int BK, int TM, int TN, int RESIDENT>
__global__ void __launch_bounds__((BM / TM) * (BN / TN), RESIDENT)
weight_gradient(const T* __restrict__ x, const T* __restrict__ g, T* __restrict__ w, Conv c, int per_outputs,
                int per_columns, int tiles, int splits, Index part_items) {
    typedef typename Sum<T>::type A;
    constexpr int PAD = 16 / sizeof(A);
    typedef Tile<T, BM, BN, TM, TN, BM + PAD, BN + PAD> Sums;
    constexpr int THREADS = Sums::THREADS;
    constexpr int STAGE = BK * (BM + BN + 2 * PAD);
    constexpr int STEP = THREADS / BK, LEFT = BM / STEP, RIGHT = BN / STEP;
    static_assert(THREADS % BK == 0 && BM % STEP == 0 && BN % STEP == 0, "every thread reads one k");
    __shared__ __align__(16) A arena[2 * STAGE > Sums::SLAB ? 2 * STAGE : Sums::SLAB];
    __shared__ Tap pairs[BN];
    __shared__ Index places[BN];

    const Block block(BM, BN, c.groups, per_outputs, per_columns, tiles, splits);
    const int taps = c.kernel[0] * c.kernel[1] * c.kernel[2];
    for (int n = threadIdx.x; n < BN; n += THREADS) {
        const int pair = block.column + n, channel = pair / taps;
        int tap = pair - channel * taps;
        const int k = tap % c.kernel[2];
        tap /= c.kernel[2];
        const int j = tap % c.kernel[1], i = tap / c.kernel[1];
        pairs[n].channel = channel < c.inputs ? channel : -1;
        pairs[n].offset[0] = i * c.dilation[0];
        pairs[n].offset[1] = j * c.dilation[1];
        pairs[n].offset[2] = k * c.dilation[2];
        places[n] = block.group * c.w[0] + channel * c.w[2] + stored_tap(c, 0, i) * c.w[3] +
                    stored_tap(c, 1, j) * c.w[4] + stored_tap(c, 2, k) * c.w[5];
    }
    __syncthreads();

    const int own_k = threadIdx.x % BK, own = threadIdx.x / BK;
    Position p(c, block.first * BK + own_k);
    Sums sums;
    T left[LEFT], right[RIGHT];

    auto fetch = [&]() {
        const bool used = p.image < c.batch;
        const T* gradients = g + p.image * c.y[0] + block.group * c.y[1] + p.depth * c.y[3] + p.row * c.y[4] +
                             p.column * c.y[5];
#pragma unroll
        for (int i = 0; i < LEFT; ++i) {
            const int output = block.output + own + i * STEP;
            left[i] = used && output < c.outputs ? gradients[output * c.y[2]] : narrow<T>(0.0f);
        }
        const T* samples = x + p.image * c.x[0] + block.group * c.x[1];
        const int depth = p.depth * c.stride[0] - c.before[0], row = p.row * c.stride[1] - c.before[1],
                  column = p.column * c.stride[2] - c.before[2];
#pragma unroll
        for (int i = 0; i < RIGHT; ++i) {
            const Tap pair = pairs[own + i * STEP];
            const int d = source_index(depth + pair.offset[0], c.size[0], c.boundary);
            const int r = source_index(row + pair.offset[1], c.size[1], c.boundary);
            const int q = source_index(column + pair.offset[2], c.size[2], c.boundary);
            right[i] = used && (pair.channel | d | r | q) >= 0
                           ? samples[pair.channel * c.x[2] + d * c.x[3] + r * c.x[4] + q * c.x[5]]
                           : narrow<T>(0.0f);
        }
    };
    auto place = [&](A* stage) {
#pragma unroll
        for (int i = 0; i < LEFT; ++i) stage[own_k * (BM + PAD) + own + i * STEP] = widen(left[i]);
        stage += BK * (BM + PAD);
#pragma unroll
        for (int i = 0; i < RIGHT; ++i) stage[own_k * (BN + PAD) + own + i * STEP] = widen(right[i]);
    };
    auto advance = [&]() {
        p.column += BK;
        while (p.column >= c.result[2]) {
            p.column -= c.result[2];
            if (++p.row < c.result[1]) continue;
            p.row = 0;
            if (++p.depth < c.result[0]) continue;
            p.depth = 0;
            ++p.image;
        }
    };

    int current = 0;
    if (block.first < block.last) {
        fetch();
        place(arena);
        __syncthreads();
    }
    for (int tile = block.first; tile < block.last; ++tile) {
        const bool more = tile + 1 < block.last;
        if (more) {
            advance();
            fetch();
        }
        sums.template multiply<BK>(arena + current * STAGE, arena + current * STAGE + BK * (BM + PAD));
        current ^= 1;
        if (more) {
            place(arena + current * STAGE);
            __syncthreads();
        }
    }
    const Index part = block.split * part_items;
    const int pairs_used = c.inputs * taps - static_cast<int>(block.column);
    sums.release(arena, c.w[1] == 1, [&](int i, int j, A sum) {
        if (block.output + i < c.outputs && j < pairs_used)
            store(w, part + places[j] + (block.output + i) * c.w[1], sum, c);
    });
}
