// Implicit GEMM on the general-purpose cores, forward; see gather.cuh.
//
// A block computes BM output channels of one group for BN columns n, over its share of the rows k, BK at a time. In
// shared memory lie two K-tiles of each matrix, W (BK x BM) and X (BK x BN); the next one is read into registers
// while this one is multiplied: one barrier a K-tile. A thread holds TM x TN sums, as 128-bit blocks of rows and
// columns that lie BM / (TM / V) and BN / (TN / V) apart, so that a warp of 4 x 8 threads reads 4 and 8 neighbouring
// 128-bit words of the two matrices, a transaction each, without bank conflicts. Weights are packed (G, K, outputs
// filled up) and read as 128-bit words. Of X neighbouring threads gather neighbouring columns: neighbouring samples
// at stride 1 with channels first; with channels last they are a pixel apart, and the rows k that follow are the
// rest of the same sectors, from the L1 cache. The sums leave through shared memory, so that y is written along its
// own memory order.
//
// Arithmetic intensity: a K-tile costs (BM + BN) * BK operands for 2 * BM * BN * BK FLOPs: 128 FLOPs an operand from
// the caches for 128 x 128 and 64 for 64 x 64, 32 and 16 a byte of float. From shared memory a thread reads TM + TN
// operands for TM * TN multiply-adds: 8 x 8 takes 4 128-bit loads for 64 of them, 1 issue slot in 17.
// Tiles of 64 and 16 outputs are for layers with so few, and for problems with too few blocks for all multiprocessors;
// where blocks are few even so, the rows k are split among several, whose partial sums add_up adds in a fixed order.
//
// NVRTC 13.0, registers on sm_80 and sm_90, none spilled: float 128 x 128: 124 and 127 (two blocks of 256 threads a
// multiprocessor, 19.5 KB of shared memory each), 64 x 128: 133 and 143, 64 x 64: 99 and 107; resources.tsv has all.
// Prediction for an H200 (not a measurement): 128 x 128 at 65 to 75 % of peak FP32 where K and the number of blocks
// are large. Gathering takes one issue slot in ten and shared memory one in seventeen; the last wave and the beginnings
// and ends of blocks take the rest.
#include "gather.cuh"
#include "tile.cuh"

// y: the result, or where partial sums go, `part_items` for each of `splits`. Grid: as struct Block counts.
template <typename T, int BM, int BN, int BK, int TM, int TN, int RESIDENT, bool FEW>
__global__ void __launch_bounds__((BM / TM) * (BN / TN), RESIDENT)
implicit_gemm(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
              const Tap* __restrict__ taps, Conv c, int per_outputs, int per_columns, int tiles, int splits,
              Index part_items) {
    typedef Tile<T, BM, BN, TM, TN, BM, BN> Sums;
    typedef typename Sum<T>::type A;
    constexpr int THREADS = Sums::THREADS, WORD = 16 / sizeof(T);
    constexpr int STAGE = BK * (BM + BN);
    constexpr int LEFT = (BK * BM / WORD + THREADS - 1) / THREADS;  // 128-bit words of W that a thread reads
    constexpr int RIGHT = BK * BN / THREADS;                        // numbers of X
    constexpr int RIGHT_STEP = THREADS / BN;
    static_assert(THREADS % BN == 0 && BK % RIGHT_STEP == 0 && BM % WORD == 0, "every thread gathers one column");
    __shared__ __align__(16) A arena[2 * STAGE > Sums::SLAB ? 2 * STAGE : Sums::SLAB];
    __shared__ Column places[BN];

    const Block block(BM, BN, c.groups, per_outputs, per_columns, tiles, splits);
    const unsigned columns = static_cast<unsigned>(c.batch) * c.result[0] * c.result[1] * c.result[2];
    const int packed = per_outputs * BM;  // output channels of a row of packed weights
    const T* weights = w + (static_cast<Index>(block.group) * tiles + block.first) * BK * packed + block.output;
    const int own = threadIdx.x % BN, own_row = threadIdx.x / BN;
    Gather<T, BK, FEW> gather(c, x, taps, block.group, block.column + own, columns, block.first);
    Sums sums;
    __align__(16) T left[LEFT * WORD];
    T right[RIGHT];

    auto fetch = [&]() {
#pragma unroll
        for (int i = 0; i < LEFT; ++i) {
            const int word = threadIdx.x + i * THREADS;
            if (LEFT * THREADS * WORD == BK * BM || word * WORD < BK * BM)
                copy_vector(left + i * WORD,
                            weights + static_cast<Index>(word * WORD / BM) * packed + word * WORD % BM);
        }
#pragma unroll
        for (int i = 0; i < RIGHT; ++i) right[i] = gather.read(own_row + i * RIGHT_STEP);
    };
    auto place = [&](A* stage) {
#pragma unroll
        for (int i = 0; i < LEFT; ++i) {
            const int word = threadIdx.x + i * THREADS;
            if (LEFT * THREADS * WORD == BK * BM || word * WORD < BK * BM) {
#pragma unroll
                for (int j = 0; j < WORD; ++j) stage[word * WORD + j] = widen(left[i * WORD + j]);
            }
        }
#pragma unroll
        for (int i = 0; i < RIGHT; ++i) stage[BK * BM + (own_row + i * RIGHT_STEP) * BN + own] = widen(right[i]);
    };

    if (threadIdx.x < BN) places[threadIdx.x] = column_of(c, block.group, block.column + threadIdx.x, columns);
    int current = 0;
    if (block.first < block.last) {
        fetch();
        place(arena);
        __syncthreads();
    }
    for (int tile = block.first; tile < block.last; ++tile) {
        const bool more = tile + 1 < block.last;
        if (more) {
            weights += static_cast<Index>(BK) * packed;
            gather.advance();
            fetch();
        }
        sums.template multiply<BK>(arena + current * STAGE, arena + current * STAGE + BK * BM);
        current ^= 1;
        if (more) {
            place(arena + current * STAGE);
            __syncthreads();
        }
    }
    const Index part = block.split * part_items;
    sums.release(arena, c.y[2] == 1, [&](int i, int j, A sum) {
        if (block.output + i < c.outputs && places[j].used)
            put(y, bias, c, places[j], block.output + i, part, sum);
    });
}
