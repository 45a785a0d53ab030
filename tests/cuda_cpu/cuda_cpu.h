// The part of CUDA C++ that kernels use, for a host compiler. Loaded before the kernel's own text, which is not changed,
// but for `extern __shared__ T name[];`: the loader turns it into a pointer (C++ has nothing that a macro could make it).
#pragma once

#define _GLIBCXX_USE_STD_SPEC_FUNCS 0
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

#include "runtime.h"

#define CUDA_CPU 1
#define __CUDA_ARCH__ 800
#define __CUDACC_RTC__ 1

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static
#define __restrict __restrict__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define alignas(n) __attribute__((aligned(n)))  // or GCC drops one that follows __shared__
#define __builtin_assume(condition) ((void)0)
#define __trap() cuda_cpu::fault(cuda_cpu::here(), "__trap()")
#define __grid_constant__

// --- where a thread is

#define threadIdx (cuda_cpu::now.thread)
#define blockIdx (cuda_cpu::now.block)
#define gridDim (cuda_cpu::grid_size)
#define blockDim (cuda_cpu::block_size)
constexpr int warpSize = 32;

// --- barriers

inline void __syncthreads(cuda_cpu::Place place = cuda_cpu::here()) { cuda_cpu::barrier(0, place); }
inline int __syncthreads_count(int value, cuda_cpu::Place place = cuda_cpu::here()) {
    return cuda_cpu::barrier(value != 0, place);
}
inline int __syncthreads_or(int value, cuda_cpu::Place place = cuda_cpu::here()) {
    return cuda_cpu::barrier(value != 0, place) > 0;
}
inline int __syncthreads_and(int value, cuda_cpu::Place place = cuda_cpu::here()) {
    return cuda_cpu::barrier(value == 0, place) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, cuda_cpu::Place place = cuda_cpu::here()) {
    cuda_cpu::meet(cuda_cpu::SYNC, mask, nullptr, [](void**, uint32_t) {}, place);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}
inline unsigned __activemask() { return cuda_cpu::active_lanes(); }

// --- shuffles and votes

namespace cuda_cpu {

template <typename T>
T shuffle(unsigned mask, T value, int source, Place place) {
    struct Brought {
        T value, result;
        int source;
    } mine = {value, value, source};
    meet(
        SHUFFLE, mask, &mine,
        [](void** all, uint32_t present) {
            for (int i = 0; i < 32; i++) {
                if (!(present >> i & 1)) continue;
                auto* to = static_cast<Brought*>(all[i]);
                auto* from = static_cast<Brought*>(all[to->source]);
                if (from) to->result = from->value;
                else memset(&to->result, 0xFF, sizeof(T));  // undefined by the standard: a lane not in the mask
            }
        },
        place);
    return mine.result;
}

inline unsigned ballot(unsigned mask, bool value, Place place) {
    struct Brought {
        bool value;
        unsigned result;
    } mine = {value, 0};
    meet(
        VOTE, mask, &mine,
        [](void** all, uint32_t present) {
            unsigned votes = 0;
            for (int i = 0; i < 32; i++)
                if (present >> i & 1) votes |= unsigned(static_cast<Brought*>(all[i])->value) << i;
            for (int i = 0; i < 32; i++)
                if (present >> i & 1) static_cast<Brought*>(all[i])->result = votes;
        },
        place);
    return mine.result;
}

}  // namespace cuda_cpu

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, cuda_cpu::Place place = cuda_cpu::here()) {
    int lane = cuda_cpu::lane();
    return cuda_cpu::shuffle(mask, value, (lane & -width) | (source & (width - 1)), place);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, cuda_cpu::Place place = cuda_cpu::here()) {
    int lane = cuda_cpu::lane(), source = lane - int(by);
    return cuda_cpu::shuffle(mask, value, source < (lane & -width) ? lane : source, place);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, cuda_cpu::Place place = cuda_cpu::here()) {
    int lane = cuda_cpu::lane(), source = lane + int(by);
    return cuda_cpu::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, place);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, cuda_cpu::Place place = cuda_cpu::here()) {
    int lane = cuda_cpu::lane(), source = lane ^ bits;
    return cuda_cpu::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, place);
}
inline unsigned __ballot_sync(unsigned mask, int value, cuda_cpu::Place place = cuda_cpu::here()) {
    return cuda_cpu::ballot(mask, value != 0, place);
}
inline int __any_sync(unsigned mask, int value, cuda_cpu::Place place = cuda_cpu::here()) {
    return cuda_cpu::ballot(mask, value != 0, place) != 0;
}
inline int __all_sync(unsigned mask, int value, cuda_cpu::Place place = cuda_cpu::here()) {
    return cuda_cpu::ballot(mask, value == 0, place) == 0;
}

// --- memory

template <typename T> inline T __ldg(const T* p) { return *p; }
template <typename T> inline T __ldcg(const T* p) { return *p; }
template <typename T> inline T __ldca(const T* p) { return *p; }
template <typename T> inline T __ldcs(const T* p) { return *p; }
template <typename T> inline T __ldlu(const T* p) { return *p; }
template <typename T> inline void __stcg(T* p, T value) { *p = value; }
template <typename T> inline void __stcs(T* p, T value) { *p = value; }
template <typename T> inline void __stwb(T* p, T value) { *p = value; }
template <typename T> inline void __stwt(T* p, T value) { *p = value; }


// --- atomics: one fiber runs at a time, so any read, change and write is one. Accesses are noted as atomic.

namespace cuda_cpu {

template <typename T, typename Change>
T atomically(T* target, Place place, Change change) {
    note_access(target, sizeof(T), true, true, place);
    T old, fresh;
    move_unchecked(&old, target, sizeof(T));
    fresh = change(old);
    move_unchecked(target, &fresh, sizeof(T));
    return old;
}

}  // namespace cuda_cpu

template <typename T>
T atomicAdd(T* p, std::common_type_t<T> value, cuda_cpu::Place place = cuda_cpu::here()) {
    return cuda_cpu::atomically(p, place, [=](T old) { return T(old + value); });
}
template <typename T>
T atomicSub(T* p, std::common_type_t<T> value, cuda_cpu::Place place = cuda_cpu::here()) {
    return cuda_cpu::atomically(p, place, [=](T old) { return T(old - value); });
}
template <typename T>
T atomicMax(T* p, std::common_type_t<T> value, cuda_cpu::Place place = cuda_cpu::here()) {
    return cuda_cpu::atomically(p, place, [=](T old) { return old > value ? old : value; });
}
template <typename T>
T atomicMin(T* p, std::common_type_t<T> value, cuda_cpu::Place place = cuda_cpu::here()) {
    return cuda_cpu::atomically(p, place, [=](T old) { return old < value ? old : value; });
}
template <typename T>
T atomicOr(T* p, std::common_type_t<T> value, cuda_cpu::Place place = cuda_cpu::here()) {
    return cuda_cpu::atomically(p, place, [=](T old) { return T(old | value); });
}
template <typename T>
T atomicAnd(T* p, std::common_type_t<T> value, cuda_cpu::Place place = cuda_cpu::here()) {
    return cuda_cpu::atomically(p, place, [=](T old) { return T(old & value); });
}
template <typename T>
T atomicExch(T* p, std::common_type_t<T> value, cuda_cpu::Place place = cuda_cpu::here()) {
    return cuda_cpu::atomically(p, place, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> value,
            cuda_cpu::Place place = cuda_cpu::here()) {
    return cuda_cpu::atomically(p, place, [=](T old) { return old == expected ? value : old; });
}

// --- vector types, aligned as on the device (their loads must be)

#define CUDA_CPU_VECTORS(T, base, a2, a4)                                                     \
    struct base##1 { T x; };                                                                  \
    struct alignas(a2) base##2 { T x, y; };                                                   \
    struct alignas(a4) base##4 { T x, y, z, w; };                                             \
    inline base##1 make_##base##1(T x) { return {x}; }                                        \
    inline base##2 make_##base##2(T x, T y) { return {x, y}; }                                \
    inline base##4 make_##base##4(T x, T y, T z, T w) { return {x, y, z, w}; }
#define CUDA_CPU_VECTORS_OF_3(T, base)                                                        \
    struct base##3 { T x, y, z; };                                                            \
    inline base##3 make_##base##3(T x, T y, T z) { return {x, y, z}; }

CUDA_CPU_VECTORS(signed char, char, 2, 4)
CUDA_CPU_VECTORS(unsigned char, uchar, 2, 4)
CUDA_CPU_VECTORS(short, short, 4, 8)
CUDA_CPU_VECTORS(unsigned short, ushort, 4, 8)
CUDA_CPU_VECTORS(int, int, 8, 16)
CUDA_CPU_VECTORS(unsigned, uint, 8, 16)
CUDA_CPU_VECTORS(long long, longlong, 16, 16)
CUDA_CPU_VECTORS(unsigned long long, ulonglong, 16, 16)
CUDA_CPU_VECTORS(float, float, 8, 16)
CUDA_CPU_VECTORS(double, double, 16, 16)
CUDA_CPU_VECTORS_OF_3(signed char, char)
CUDA_CPU_VECTORS_OF_3(unsigned char, uchar)
CUDA_CPU_VECTORS_OF_3(short, short)
CUDA_CPU_VECTORS_OF_3(unsigned short, ushort)
CUDA_CPU_VECTORS_OF_3(int, int)
CUDA_CPU_VECTORS_OF_3(float, float)
CUDA_CPU_VECTORS_OF_3(double, double)
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// --- arithmetic

template <typename A, typename B, typename = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return T(b) != T(b) || T(a) < T(b) ? T(a) : T(b);
    else return T(a) < T(b) ? T(a) : T(b);
}
template <typename A, typename B, typename = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return T(b) != T(b) || T(a) > T(b) ? T(a) : T(b);
    else return T(a) > T(b) ? T(a) : T(b);
}

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float fdividef(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frsqrt_rn(float a) { return 1.0f / sqrtf(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
#define __expf(x) expf(x)  // macros, for glibc has functions of these names
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)

inline int __mul24(int a, int b) { return a * b; }
inline int __mulhi(int a, int b) { return int(static_cast<long long>(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(static_cast<unsigned long long>(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1) << (31 - i);
    return y;
}

namespace cuda_cpu {

template <typename To, typename From>
inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

}  // namespace cuda_cpu

inline int __float_as_int(float x) { return cuda_cpu::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_cpu::bits<unsigned>(x); }
inline float __int_as_float(int x) { return cuda_cpu::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return cuda_cpu::bits<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_cpu::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_cpu::bits<double>(x); }
inline int __float2int_rn(float x) { return int(rintf(x)); }
inline int __float2int_rz(float x) { return int(x); }
inline int __float2int_rd(float x) { return int(floorf(x)); }
inline int __float2int_ru(float x) { return int(ceilf(x)); }

// --- how the loader finds the kernels of a module

namespace cuda_cpu {

template <typename... P>
struct Signature {
    static constexpr int sizes[] = {int(sizeof(P))..., 0};
    static constexpr int pointers[] = {
        (std::is_pointer_v<P> ? 1 + std::is_const_v<std::remove_pointer_t<P>> : 0)..., 0};

    template <size_t... I>
    __attribute__((no_sanitize("thread", "undefined"))) static void spread(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_const_t<P>*>(arguments[I])...);
    }
    static void call(void* kernel, void** arguments) {
        spread(reinterpret_cast<void (*)(P...)>(kernel), arguments, std::index_sequence_for<P...>());
    }
};

template <typename... P>
Entry entry(const char* name, void (*kernel)(P...)) {
    using S = Signature<P...>;
    return {name, reinterpret_cast<void*>(kernel), S::call, int(sizeof...(P)), S::sizes, S::pointers};
}

}  // namespace cuda_cpu
