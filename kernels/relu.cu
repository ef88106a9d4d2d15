// min(max(x, 0), cap): ReLU without a cap (infinity), bounded ReLU with one; src/ops/relu.
#include "channels.cuh"

namespace relu {
/// A cap that T can hold, so that an output which was cut is not below it.
template <class T>
__device__ __forceinline__ float rounded(float cap) {
  return gpu::to_f32(gpu::from_f32<T>(cap));
}
}  // namespace relu

/// y = min(max(x, 0), cap); NaN stays NaN. 16 bytes a thread; y may be x.
template <class T>
KERNEL(256) relu_forward(T *y, const T *x, uint64_t n, float cap) {
  constexpr int N = gpu::Vec<T>::N;
  uint64_t at = (blockIdx.x * (uint64_t)256 + threadIdx.x) * N;
  cap = relu::rounded<T>(cap);
  if (at + N <= n) {
    gpu::Vec<T> v = gpu::load_vec(x + at);
#pragma unroll
    for (int j = 0; j < N; j++) v.v[j] = gpu::from_f32<T>(clip(gpu::to_f32(v.v[j]), 0.0f, cap));
    gpu::store_vec(y + at, v);
  } else {
    for (; at < n; at++) y[at] = gpu::from_f32<T>(clip(gpu::to_f32(x[at]), 0.0f, cap));
  }
}

/// dx = dy where 0 < y < cap, else 0. dx may be dy.
template <class T>
KERNEL(256) relu_backward(T *dx, const T *dy, const T *y, uint64_t n, float cap) {
  constexpr int N = gpu::Vec<T>::N;
  uint64_t at = (blockIdx.x * (uint64_t)256 + threadIdx.x) * N;
  cap = relu::rounded<T>(cap);
  if (at + N <= n) {
    gpu::Vec<T> g = gpu::load_vec(dy + at), v = gpu::load_vec(y + at);
#pragma unroll
    for (int j = 0; j < N; j++)
      if (!passes(gpu::to_f32(v.v[j]), 0.0f, cap)) g.v[j] = gpu::from_f32<T>(0.0f);
    gpu::store_vec(dx + at, g);
  } else {
    for (; at < n; at++) dx[at] = passes(gpu::to_f32(y[at]), 0.0f, cap) ? dy[at] : gpu::from_f32<T>(0.0f);
  }
}

/// relu_forward that keeps a bit per element: whether the gradient passes. A byte is 8 channels of a pixel.
template <class T, bool VECTOR>
KERNEL(256) relu_forward_mask(T *y, uint8_t *mask, const T *x, Span span, float cap) {
  Place<VECTOR> p = place<VECTOR>(span);
  uint32_t n = pixel_count(span, p);
  cap = relu::rounded<T>(cap);
#pragma unroll 2
  for (uint32_t i = 0; i < n; i++) {
    uint32_t pixel = p.first + i * p.rows;
    uint64_t at = offset(span, p, pixel);
    float v[8];
    load8(v, x + at, p);
    mask[mask_offset(span, p, pixel)] = (uint8_t)mask8(v, 0.0f, cap);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = clip(v[j], 0.0f, cap);
    store8(y + at, v, p);
  }
}

/// dx = dy where the mask's bit is set, else 0. dx may be dy.
template <class T, bool VECTOR>
KERNEL(256) relu_backward_mask(T *dx, const T *dy, const uint8_t *mask, Span span) {
  Place<VECTOR> p = place<VECTOR>(span);
  uint32_t n = pixel_count(span, p);
#pragma unroll 2
  for (uint32_t i = 0; i < n; i++) {
    uint32_t pixel = p.first + i * p.rows;
    uint64_t at = offset(span, p, pixel);
    float g[8];
    load8(g, dy + at, p);
    uint32_t bits = mask[mask_offset(span, p, pixel)];
#pragma unroll
    for (int j = 0; j < 8; j++)
      if (!(bits & 1u << j)) g[j] = 0.0f;
    store8(dx + at, g, p);
  }
}
