// mma.sync for the types that tensors have: the two 16-bit ones, and f32 rounded to tf32. A step multiplies 16 rows
// of 32 bytes by 8 columns of 32 bytes, and the fragments of all types lie alike: ldmatrix loads them.
#pragma once
#include "gpu.cuh"

namespace gpu {

/// d += a b.
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_bf16(d, a, b);
}
template <>
__device__ __forceinline__ void mma<__half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_f16(d, a, b);
}
template <>
__device__ __forceinline__ void mma<float>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_tf32(d, a, b);
}

/// Rounds what was loaded as the tensor cores want it: f32 to tf32.
template <class T>
__device__ __forceinline__ void round_operand(uint32_t (&a)[4]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = to_tf32(__uint_as_float(a[i]));
  }
}

} // namespace gpu
