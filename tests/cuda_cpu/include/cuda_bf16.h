// bfloat16: the upper half of a float32, rounded to the nearest even.
#pragma once

struct alignas(2) __nv_bfloat16 {
    unsigned short raw;

    __nv_bfloat16() = default;
    template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
    __nv_bfloat16(T x) : raw(rounded(float(x))) {}
    operator float() const { return cuda_cpu::bits<float>(unsigned(raw) << 16); }

  private:
    static unsigned short rounded(float x) {
        auto all = cuda_cpu::bits<unsigned>(x);
        if (x != x) return 0x7fff;
        return static_cast<unsigned short>((all + 0x7fff + (all >> 16 & 1)) >> 16);
    }
};
typedef __nv_bfloat16 nv_bfloat16;

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
    __nv_bfloat162() = default;
    __nv_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) : x(x), y(y) {}
};
typedef __nv_bfloat162 nv_bfloat162;

inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {__nv_bfloat16(v.x), __nv_bfloat16(v.y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {float(v.x), float(v.y)}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return cuda_cpu::bits<__nv_bfloat16>(x); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.raw; }
