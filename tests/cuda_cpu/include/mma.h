// nvcuda::wmma: the elements of a matrix are dealt out to the lanes of a warp, one after another (the standard leaves
// open how). Loads and stores order nothing between lanes; mma_sync is where they meet, and the last computes.
#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace nvcuda {
namespace wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
namespace precision {
struct tf32;
}
enum layout_t { mem_row_major, mem_col_major };

namespace shim {

template <typename T> struct Stored { typedef T type; };
template <> struct Stored<precision::tf32> { typedef float type; };

template <typename Use, int m, int n, int k> struct Shape;
template <int m, int n, int k> struct Shape<matrix_a, m, n, k> { static constexpr int rows = m, columns = k; };
template <int m, int n, int k> struct Shape<matrix_b, m, n, k> { static constexpr int rows = k, columns = n; };
template <int m, int n, int k> struct Shape<accumulator, m, n, k> { static constexpr int rows = m, columns = n; };

// What the tensor core multiplies: of a TF32 operand it reads 10 bits of the fraction and drops the rest.
template <typename T> inline float operand(typename Stored<T>::type x) { return float(x); }
template <> inline float operand<precision::tf32>(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); }

template <typename T, int m, int n, int k> constexpr bool exists() {
    constexpr bool sixteen = (m == 16 && n == 16 && k == 16) || (m == 32 && n == 8 && k == 16) ||
                             (m == 8 && n == 32 && k == 16);
    if (std::is_same_v<T, precision::tf32>) return m == 16 && n == 16 && k == 8;
    if (std::is_same_v<T, double>) return m == 8 && n == 8 && k == 4;
    return sixteen;
}

}  // namespace shim

template <typename Use, int m, int n, int k, typename T, typename Layout = void>
struct fragment {
    typedef shim::Shape<Use, m, n, k> shape;
    typedef typename shim::Stored<T>::type storage_element_type;
    typedef storage_element_type element_type;
    enum { num_elements = shape::rows * shape::columns / 32 };
    static_assert(std::is_same_v<Use, accumulator> || shim::exists<T, m, n, k>(), "no such shape for this type");
    storage_element_type x[num_elements];
};

template <typename Use, int m, int n, int k, typename T, typename Layout>
inline void fill_fragment(fragment<Use, m, n, k, T, Layout>& f, typename shim::Stored<T>::type value) {
    for (auto& x : f.x) x = value;
}

namespace shim {

template <typename T>
inline void require(const T* p, unsigned stride, cuda_cpu::Place place) {
    if (reinterpret_cast<uintptr_t>(p) % 32) cuda_cpu::fault(place, "wmma: matrix not aligned to 32 bytes");
    if (stride * sizeof(T) % 16) cuda_cpu::fault(place, "wmma: leading dimension not a multiple of 16 bytes");
}

template <typename F, typename T>
__attribute__((always_inline)) inline void load(F& f, const T* p, unsigned stride, bool by_rows) {
    for (int e = 0; e < F::num_elements; e++) {
        int at = e * 32 + cuda_cpu::lane(), row = at / F::shape::columns, column = at % F::shape::columns;
        f.x[e] = by_rows ? p[size_t(row) * stride + column] : p[size_t(column) * stride + row];
    }
}

template <typename F>
inline auto& element(void* const* lanes, int at) {
    return static_cast<F*>(lanes[at % 32])->x[at / 32];
}

template <typename D, typename A, typename B, typename C>
struct Brought {
    D* d;
    const A* a;
    const B* b;
    const C* c;
};

template <int m, int n, int k, typename S, typename T, typename D, typename A, typename B, typename C>
__attribute__((no_sanitize("thread", "undefined"), optimize("O3"))) void multiply(void** brought, uint32_t mask) {
    typedef Brought<D, A, B, C> Each;
    void *as[32], *bs[32], *cs[32], *ds[32];
    (void)mask;
    for (int i = 0; i < 32; i++) {
        auto* each = static_cast<Each*>(brought[i]);
        as[i] = const_cast<A*>(each->a);
        bs[i] = const_cast<B*>(each->b);
        cs[i] = const_cast<C*>(each->c);
        ds[i] = each->d;
    }
    S b[k * n], sums[m * n];
    for (int i = 0; i < k * n; i++) {
        if constexpr (std::is_same_v<T, double>) b[i] = element<B>(bs, i);
        else b[i] = operand<T>(element<B>(bs, i));
    }
    for (int i = 0; i < m * n; i++) sums[i] = S(element<C>(cs, i));
    for (int i = 0; i < m; i++)
        for (int l = 0; l < k; l++) {
            S a;
            if constexpr (std::is_same_v<T, double>) a = element<A>(as, i * k + l);
            else a = operand<T>(element<A>(as, i * k + l));
            for (int j = 0; j < n; j++) sums[i * n + j] += a * b[l * n + j];
        }
    for (int i = 0; i < m * n; i++) element<D>(ds, i) = sums[i];
}

}  // namespace shim

template <typename Use, int m, int n, int k, typename T, typename Layout>
__attribute__((always_inline)) inline void load_matrix_sync(fragment<Use, m, n, k, T, Layout>& f,
                                                           const typename shim::Stored<T>::type* p, unsigned stride,
                                                           cuda_cpu::Place place = cuda_cpu::here()) {
    shim::require(p, stride, place);
    shim::load(f, p, stride, std::is_same_v<Layout, row_major>);
}

template <int m, int n, int k, typename T>
__attribute__((always_inline)) inline void load_matrix_sync(fragment<accumulator, m, n, k, T>& f, const T* p,
                                                           unsigned stride, layout_t layout,
                                                           cuda_cpu::Place place = cuda_cpu::here()) {
    shim::require(p, stride, place);
    shim::load(f, p, stride, layout == mem_row_major);
}

template <int m, int n, int k, typename T>
__attribute__((always_inline)) inline void store_matrix_sync(T* p, const fragment<accumulator, m, n, k, T>& f,
                                                            unsigned stride, layout_t layout,
                                                            cuda_cpu::Place place = cuda_cpu::here()) {
    shim::require(p, stride, place);
    for (int e = 0; e < f.num_elements; e++) {
        int at = e * 32 + cuda_cpu::lane(), row = at / n, column = at % n;
        p[layout == mem_row_major ? size_t(row) * stride + column : size_t(column) * stride + row] = f.x[e];
    }
}

template <int m, int n, int k, typename T, typename LA, typename LB, typename D, typename C>
inline void mma_sync(fragment<accumulator, m, n, k, D>& d, const fragment<matrix_a, m, n, k, T, LA>& a,
                     const fragment<matrix_b, m, n, k, T, LB>& b, const fragment<accumulator, m, n, k, C>& c,
                     cuda_cpu::Place place = cuda_cpu::here()) {
    typedef fragment<accumulator, m, n, k, D> FD;
    typedef fragment<matrix_a, m, n, k, T, LA> FA;
    typedef fragment<matrix_b, m, n, k, T, LB> FB;
    typedef fragment<accumulator, m, n, k, C> FC;
    typedef std::conditional_t<std::is_same_v<T, double>, double, float> S;
    shim::Brought<FD, FA, FB, FC> mine = {&d, &a, &b, &c};
    cuda_cpu::meet(cuda_cpu::MATRIX, 0xffffffffu, &mine, shim::multiply<m, n, k, S, T, FD, FA, FB, FC>, place);
}

// To the nearest, ties away from zero (cvt.rna.tf32.f32).
inline float __float_to_tf32(float x) {
    unsigned all = __float_as_uint(x);
    if ((all & 0x7f800000u) == 0x7f800000u) return x;
    return __uint_as_float((all + 0x1000u) & 0xffffe000u);
}

}  // namespace wmma
}  // namespace nvcuda
