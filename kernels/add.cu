// Residual addition; the gradient of both sides is dy.
#include "gpu.cuh"

/// y = a + b, rounded once. 16 bytes a thread; y may be a or b.
template <class T>
KERNEL(256) add_forward(T *y, const T *a, const T *b, uint64_t n) {
  constexpr int N = gpu::Vec<T>::N;
  uint64_t at = (blockIdx.x * (uint64_t)256 + threadIdx.x) * N;
  if (at + N <= n) {
    gpu::Vec<T> u = gpu::load_vec(a + at), v = gpu::load_vec(b + at);
#pragma unroll
    for (int j = 0; j < N; j++) u.v[j] = gpu::from_f32<T>(gpu::to_f32(u.v[j]) + gpu::to_f32(v.v[j]));
    gpu::store_vec(y + at, u);
  } else {
    for (; at < n; at++) y[at] = gpu::from_f32<T>(gpu::to_f32(a[at]) + gpu::to_f32(b[at]));
  }
}
