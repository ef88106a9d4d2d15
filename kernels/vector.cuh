// Several consecutive elements at a time: 16-byte accesses, as f32 in registers.
#pragma once
#include "gpu.cuh"

namespace vec {

/// Reads `N` elements at a place whose address is a multiple of 16 bytes.
template <int N, class T> __device__ __forceinline__ void load(float (&r)[N], const T *p) {
  constexpr int S = gpu::Vec<T>::N;
  static_assert(N % S == 0, "whole 16-byte pieces");
#pragma unroll
  for (int i = 0; i < N; i += S) {
    gpu::Vec<T> v = gpu::load_vec(p + i);
#pragma unroll
    for (int j = 0; j < S; j++) r[i + j] = gpu::to_f32(v.v[j]);
  }
}

/// Writes `N` elements, rounded to `T`, at a place whose address is a multiple of 16 bytes.
template <int N, class T> __device__ __forceinline__ void store(T *p, const float (&r)[N]) {
  constexpr int S = gpu::Vec<T>::N;
  static_assert(N % S == 0, "whole 16-byte pieces");
#pragma unroll
  for (int i = 0; i < N; i += S) {
    gpu::Vec<T> v;
#pragma unroll
    for (int j = 0; j < S; j++) v.v[j] = gpu::from_f32<T>(r[i + j]);
    gpu::store_vec(p + i, v);
  }
}

} // namespace vec
