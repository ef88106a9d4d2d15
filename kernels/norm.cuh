// What the batch norm kernels and the fused pass share.
#pragma once
#include "channels.cuh"

/// A thread's channels of `v = (x - mean) scale + shift`, scale = gamma inv_std, shift = beta.
struct Normalise {
  float mean[8], scale[8], shift[8];

  /// Without mean and inv_std it is the identity, without gamma and beta the plain normalisation.
  template <bool VECTOR>
  __device__ __forceinline__ Normalise(const float *mean_, const float *inv_std, const float *gamma,
                                       const float *beta, const Place<VECTOR> &p) {
    load_channels(mean, mean_, p, 0.0f);
    load_channels(scale, inv_std, p, 1.0f);
    load_channels(shift, beta, p, 0.0f);
    if (gamma) {
      float g[8];
      load_channels(g, gamma, p, 1.0f);
#pragma unroll
      for (int j = 0; j < 8; j++) scale[j] *= g[j];
    }
  }

  /// Two roundings, the same in every kernel: backward decides as forward did.
  __device__ __forceinline__ float value(float x, int j) const {
    return fmaf(__fsub_rn(x, mean[j]), scale[j], shift[j]);
  }
};

/// The same with what backward needs: dx = scale g - a - b (x - mean) through the batch's statistics, of
/// which `through` is [a, b]; dx = scale g through running ones.
template <bool BATCH>
struct NormaliseBackward : Normalise {
  float a[8], b[8];

  template <bool VECTOR>
  __device__ __forceinline__ NormaliseBackward(const float *mean, const float *inv_std, const float *gamma,
                                               const float *beta, const float *through, const Span &span,
                                               const Place<VECTOR> &p)
      : Normalise(mean, inv_std, gamma, beta, p) {
    if (BATCH) {
      load_channels(a, through, p, 0.0f);
      load_channels(b, through + span.c, p, 0.0f);
    }
  }

  __device__ __forceinline__ float gradient(float g, float x, int j) const {
    if (!BATCH) return scale[j] * g;
    return fmaf(scale[j], g, -fmaf(b[j], __fsub_rn(x, mean[j]), a[j]));
  }
};

/// A batch norm's sums over the threads of a block that share channels: adds `a` and `b` of all rows to
/// those of row 0, by a tree. `tile` is shared memory.
template <bool VECTOR>
__device__ __forceinline__ void sum_rows(float (&a)[8], float (&b)[8], const Place<VECTOR> &p, float (&tile)[2][8][256]) {
  for (uint32_t half = p.rows / 2; half > 0; half /= 2) {
    if (p.row >= half && p.row < 2 * half) {
#pragma unroll
      for (int j = 0; j < 8; j++) {
        tile[0][j][threadIdx.x] = a[j];
        tile[1][j][threadIdx.x] = b[j];
      }
    }
    __syncthreads();
    if (p.row < half) {
      uint32_t other = threadIdx.x + half * (256 / p.rows);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        a[j] += tile[0][j][other];
        b[j] += tile[1][j][other];
      }
    }
  }
}

/// Row 0's pair of sums to `[chunks, 2, c]`.
template <bool VECTOR>
__device__ __forceinline__ void store_sums(float *partial, const float (&a)[8], const float (&b)[8], const Span &span,
                                           const Place<VECTOR> &p) {
  if (p.row != 0) return;
  float *out = partial + (uint64_t)blockIdx.x * 2 * span.c + 8 * p.group;
#pragma unroll
  for (int j = 0; j < 8; j++) {
    if (j < (int)p.count) {
      out[j] = a[j];
      out[span.c + j] = b[j];
    }
  }
}
