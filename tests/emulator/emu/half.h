// bfloat16 and half as in cuda_bf16.h and cuda_fp16.h: storage types and conversions. Conversions round to nearest
// even; a NaN becomes 0x7fff, as on the GPU.
#pragma once
#include "language.h"
#include "intrinsics.h"

struct alignas(2) __nv_bfloat16 {
  uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
struct alignas(2) __half {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline float __bfloat162float(__nv_bfloat16 b) { return __uint_as_float(uint32_t(b.bits) << 16); }

inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  if (f != f) return {0x7fff};
  uint32_t u = __float_as_uint(f);
  return {uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16)};
}

// aarch64 has __fp16 in every C++ compiler, _Float16 from gcc 13 on alone.
#if defined(__ARM_FP16_FORMAT_IEEE)
using emu_float16 = __fp16;
#elif defined(__FLT16_MAX__)
using emu_float16 = _Float16;
#else
#error "the host's compiler has no _Float16 (gcc 12 or clang 15 on x86-64)"
#endif

inline float __half2float(__half h) {
  emu_float16 f;
  memcpy(&f, &h.bits, 2);
  return float(f);
}

inline __half __float2half_rn(float f) {
  if (f != f) return {0x7fff};
  emu_float16 r = emu_float16(f);
  __half h;
  memcpy(&h.bits, &r, 2);
  return h;
}

inline __nv_bfloat16 __float2bfloat16(float f) { return __float2bfloat16_rn(f); }
inline __half __float2half(float f) { return __float2half_rn(f); }

inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
  return {__float2bfloat16_rn(a), __float2bfloat16_rn(b)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {__bfloat162float(v.x), __bfloat162float(v.y)}; }
inline float __low2float(__nv_bfloat162 v) { return __bfloat162float(v.x); }
inline float __high2float(__nv_bfloat162 v) { return __bfloat162float(v.y); }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return {a, b}; }

inline __half2 __floats2half2_rn(float a, float b) { return {__float2half_rn(a), __float2half_rn(b)}; }
inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline float __low2float(__half2 v) { return __half2float(v.x); }
inline float __high2float(__half2 v) { return __half2float(v.y); }
inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }

inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 b) { return b.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t u) { return {u}; }
inline uint16_t __half_as_ushort(__half h) { return h.bits; }
inline __half __ushort_as_half(uint16_t u) { return {u}; }
