// The partial sums of blocks that share an output, added in their order: the same bits at every run.
#include "common.cuh"

// A block adds 256 neighbouring outputs of each image in turn, from arrays (image, group, output, depth, row, column)
// without gaps, one behind the other, and writes them with their bias wherever y has them. Memory-bound: `splits` reads
// and one write an output, all coalesced where y is.
template <typename T>
__global__ void __launch_bounds__(256, 4)
add_up(const typename Sum<T>::type* __restrict__ parts, const T* __restrict__ bias, T* __restrict__ y, Conv c,
       int splits, Index part_items) {
    const unsigned here = blockIdx.x * 256u + threadIdx.x;
    unsigned number = here;
    const int column = number % c.result[2];
    number /= c.result[2];
    const int row = number % c.result[1];
    number /= c.result[1];
    const int depth = number % c.result[0];
    number /= c.result[0];
    const int output = number % c.outputs;
    const int group = number / c.outputs;
    if (group >= c.groups) return;
    const Index image_items = part_items / c.batch;
    for (int image = blockIdx.y; image < c.batch; image += gridDim.y) {
        typename Sum<T>::type sum = bias_at(bias, c, group, output, depth, row, column);
        for (int split = 0; split < splits; ++split) sum += parts[split * part_items + image * image_items + here];
        const Index place = image * c.y[0] + group * c.y[1] + output * c.y[2] + depth * c.y[3] + row * c.y[4];
        store(y, place + column * c.y[5], sum, c);
    }
}
