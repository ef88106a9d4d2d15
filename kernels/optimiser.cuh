// What optimisers over many tensors in one launch share.
#pragma once
#include "gpu.cuh"
#include "step.cuh"

/// A piece of a parameter, at most 4096 elements: one block's work. A table of them covers a whole
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

/// Calls `body(i)` for every fourth element in front of `len`'s last multiple of four, and `tail(i)`
/// for each one behind it; the block's 256 threads share them.
template <class Body, class Tail>
__device__ __forceinline__ void by_fours(uint64_t len, Body body, Tail tail) {
  uint64_t whole = len / 4 * 4;
  for (uint64_t i = threadIdx.x * 4; i < whole; i += 1024) body(i);
  if (threadIdx.x < len - whole) tail(whole + threadIdx.x);
}

} // namespace optimiser
