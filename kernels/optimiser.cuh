// What optimisers over many tensors in one launch share.
#pragma once
#include "gpu.cuh"
#include "step.cuh"

/// Most elements of a piece.
constexpr uint32_t PIECE = 4096;

/// A piece of a parameter, at most PIECE elements: one block's work. A table of them covers a whole
/// network.
struct Piece {
  float *w;
  float *grad;
  /// SGD's velocity, Adam's first moment.
  float *first;
  /// Adam's second moment.
  float *second;
  uint64_t len;
};

namespace optimiser {

/// Four consecutive elements of each of COUNT tensors.
template <int COUNT>
struct Fours {
  float v[COUNT][4];
};

__device__ __forceinline__ void load(float (&r)[4], const float *p) {
  const gpu::Vec<float> v = gpu::load_vec_past_l1(p);
#pragma unroll
  for (int j = 0; j < 4; j++) r[j] = v.v[j];
}

__device__ __forceinline__ void store(float *p, const float (&r)[4]) {
  gpu::store_vec_past_l1(p, gpu::Vec<float>{{r[0], r[1], r[2], r[3]}});
}

/// Shares the elements of a piece among the block's 256 threads: `store(i, load(i))` for every fourth in front of the
/// last multiple of four, `tail(i)` for each one behind it. A thread's loads all come before its stores, and both pass the
/// first-level cache: with stores in between, one of them zeros, SGD took twice as long on an H100.
template <class Load, class Store, class Tail>
__device__ __forceinline__ void by_fours(uint64_t len, Load load, Store store, Tail tail) {
  constexpr int ROUNDS = PIECE / 1024;
  const uint64_t whole = len / 4 * 4;
  decltype(load(whole)) fours[ROUNDS];
#pragma unroll
  for (int j = 0; j < ROUNDS; j++) {
    const uint64_t i = threadIdx.x * 4 + j * 1024;
    if (i < whole) fours[j] = load(i);
  }
#pragma unroll
  for (int j = 0; j < ROUNDS; j++) {
    const uint64_t i = threadIdx.x * 4 + j * 1024;
    if (i < whole) store(i, fours[j]);
  }
  if (threadIdx.x < len - whole) tail(whole + threadIdx.x);
}

} // namespace optimiser
