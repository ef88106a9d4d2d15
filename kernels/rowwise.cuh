// What kernels that work row by row share: sums in a fixed order, softmax's normaliser, argmax.
#pragma once
#include "gpu.cuh"

namespace rowwise {

__device__ __forceinline__ uint32_t lane() { return threadIdx.x % 32; }
__device__ __forceinline__ uint32_t warp() { return threadIdx.x / 32; }

template <class T> __device__ __forceinline__ double to_f64(T v) { return double(gpu::to_f32(v)); }
template <class T> __device__ __forceinline__ T from_f64(double v) { return gpu::from_f32<T>(float(v)); }

/// Sum over the lanes of a warp, the same bits in each of them.
__device__ __forceinline__ double warp_sum(double v) {
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  return v;
}

/// Largest value of the lanes of a warp; NaN is skipped.
__device__ __forceinline__ double warp_max(double v) {
  for (int d = 16; d > 0; d /= 2) v = fmax(v, __shfl_xor_sync(~0u, v, d));
  return v;
}

/// Sum over all threads of a block of 256, in every thread. `part` is shared by the block, and may be
/// used again at once.
__device__ __forceinline__ double block_sum(double v, double (&part)[8]) {
  v = warp_sum(v);
  if (lane() == 0) part[warp()] = v;
  __syncthreads();
  double sum = part[0];
  for (int i = 1; i < 8; i++) sum += part[i];
  __syncthreads();
  return sum;
}

/// An entry of a row and its place.
struct Entry {
  float value;
  uint32_t at;
};

/// Whether `a` beats `b`: a NaN beats numbers, the larger beats the smaller, the first of equals.
__device__ __forceinline__ bool beats(Entry a, Entry b) {
  bool a_nan = isnan(a.value), b_nan = isnan(b.value);
  if (a_nan || b_nan) return a_nan && (!b_nan || a.at < b.at);
  return a.value > b.value || (a.value == b.value && a.at < b.at);
}

/// The winner of a row's `count` entries, `skip`'s left out (none is if it is `count`), in every lane.
/// At least one entry takes part.
template <class T>
__device__ __forceinline__ Entry largest(const T *row, uint32_t count, uint32_t skip) {
  // A lane without an entry loses against any, by its place: infinitely small and behind the row.
  Entry best = {-INFINITY, ~0u};
  for (uint32_t i = lane(); i < count; i += 32) {
    Entry e = {gpu::to_f32(row[i]), i};
    if (i != skip && beats(e, best)) best = e;
  }
  for (int d = 16; d > 0; d /= 2) {
    Entry other = {__shfl_xor_sync(~0u, best.value, d), __shfl_xor_sync(~0u, best.at, d)};
    if (beats(other, best)) best = other;
  }
  return best;
}

/// Sum of `exp(z_i - top)` over a row's entries but the top one, so that the log-sum-exp is
/// `top + ln(1 + rest)`: no overflow, and no digit lost where one logit dominates.
template <class T>
__device__ __forceinline__ double rest(const T *row, uint32_t count, Entry top) {
  double sum = 0;
  for (uint32_t i = lane(); i < count; i += 32)
    if (i != top.at) sum += exp(to_f64(row[i]) - double(top.value));
  return warp_sum(sum);
}

} // namespace rowwise
