// The change of variables of Carlini and Wagner 2017, x' = (tanh w + 1) / 2, and their attack's step in w.
// Images and their gradients may be of 16 bits; w and its gradient are f32.
#include "adam.cuh"
#include "gpu.cuh"
#include "margin.cuh"
#include "noise.cuh"
#include "rowwise.cuh"
#include "tanh_space.cuh"
#include "vector.cuh"

__device__ __forceinline__ float tanh_space_image(float w) { return 0.5f * (tanhf(w) + 1.0f); }

/// `(2 (x' - x) + df) dx'/dw`, `dx'/dw = (1 - tanh^2 w) / 2 = 2 x' (1 - x')`
__device__ __forceinline__ float tanh_space_gradient(float adversarial, float delta, float df) {
  return (2.0f * delta + df) * (2.0f * adversarial * (1.0f - adversarial));
}

/// `w = atanh(shrink (2 x - 1))`. `first_bad` becomes `~i` of the first pixel outside of [0, 1] if that
/// is larger than it was.
template <class T>
KERNEL(256) tanh_space_from_image(float *w, const T *x, uint32_t n, double shrink, uint32_t *first_bad) {
  uint32_t i = blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  double v = rowwise::to_f64(x[i]);
  w[i] = float(atanh(shrink * (2.0 * v - 1.0)));
  if (!(v >= 0.0 && v <= 1.0)) atomicMax(first_bad, ~i);
}

/// `x' = (tanh w + 1) / 2`
template <class T>
KERNEL(256) tanh_space_to_image(T *x, const float *w, uint64_t n) {
  uint64_t i = uint64_t(blockIdx.x) * 256 + threadIdx.x;
  if (i < n) x[i] = gpu::from_f32<T>(tanh_space_image(w[i]));
}

/// Squared distance of each row, in f64; and the gradient in `w` of `||x' - x||^2 + f(x')`, `df` being
/// f's gradient in `x'`. One block a row, so that a row's sum has one order.
template <class T>
KERNEL(256) tanh_space_backward(float *dw, double *squared, const T *adversarial, const T *x, const T *df,
                                uint64_t len) {
  GPU_SHARED(double, part, [8]);
  uint64_t row = uint64_t(blockIdx.x) * len;
  double sum = 0;
  for (uint64_t i = threadIdx.x; i < len; i += 256) {
    float a = gpu::to_f32(adversarial[row + i]), delta = a - gpu::to_f32(x[row + i]);
    sum += double(delta) * double(delta);
    dw[row + i] = tanh_space_gradient(a, delta, gpu::to_f32(df[row + i]));
  }
  sum = rowwise::block_sum(sum, part);
  if (threadIdx.x == 0) squared[blockIdx.x] = sum;
}

/// Squared distance of each row, `||a_i - b_i||^2`, in f64.
template <class T>
KERNEL(256) tanh_space_squared_distances(double *squared, const T *a, const T *b, uint64_t len) {
  GPU_SHARED(double, part, [8]);
  uint64_t row = uint64_t(blockIdx.x) * len;
  double sum = 0;
  for (uint64_t i = threadIdx.x; i < len; i += 256) {
    float delta = gpu::to_f32(a[row + i]) - gpu::to_f32(b[row + i]);
    sum += double(delta) * double(delta);
  }
  sum = rowwise::block_sum(sum, part);
  if (threadIdx.x == 0) squared[blockIdx.x] = sum;
}

/// Calls `body(i)` for the first of every `N` elements of a row; a block's 256 threads share them.
template <int N, class Body>
__device__ __forceinline__ void tanh_space_row(uint32_t len, Body body) {
  for (uint32_t i = threadIdx.x * N; i < len; i += 256 * N) body(i);
}

/// Reads or writes `N` elements: at once if `N` of them are whole 16-byte pieces, else the one.
template <int N, class T> __device__ __forceinline__ void tanh_space_load(float (&r)[N], const T *p) {
  if constexpr (N > 1)
    vec::load(r, p);
  else
    r[0] = gpu::to_f32(*p);
}
template <int N, class T> __device__ __forceinline__ void tanh_space_store(T *p, const float (&r)[N]) {
  if constexpr (N > 1)
    vec::store(p, r);
  else
    *p = gpu::from_f32<T>(r[0]);
}

/// A step of the attack, one block a row. `margins` and `df` are what the network said of the row's image
/// `x' = (tanh w + 1) / 2`, `df` the gradient of the margin alone, times `1 / unscale`. In this order:
///
/// 1. `squared = ||x' - x||^2`; `success` as the margin says; a success closer than `best` is the new
///    best, and `x'` is copied there;
/// 2. `g = 2 (x' - x) + c df`, `dw = g dx'/dw`; Adam's step of `w` with the row's own counter; `image`
///    becomes the next `x'`, rounded to T;
/// 3. the row's counter and its noise's draw advance; every `check_every` steps from the first (0: never)
///    the loss `squared + c margin` has to have fallen by 0.01%: at the second check in a row without, the
///    row stands still from now on.
///
/// The sum over a row is f64 and its order depends on `len` and `T` alone.
template <class T, bool VECTORS>
KERNEL(256) tanh_space_step(Attacked *state, Row *rows, float *w, float *m, float *v, T *image, float *best,
                            const float *x, const T *df, const Margin *margins, uint32_t len,
                            uint32_t check_every, float unscale, Adam adam) {
  constexpr int N = VECTORS ? gpu::Vec<T>::N : 1;
  GPU_SHARED(double, part, [8]);
  GPU_SHARED(adam::Rates, rates, [1]);
  uint32_t row = blockIdx.x;
  if (!state[row].active) return;
  if (threadIdx.x == 0) rates[0] = adam::rates(adam, state[row].steps + 1);
  uint64_t start = uint64_t(row) * len;
  double c = state[row].c, best_before = state[row].best;
  bool met = margins[row].met != 0;

  double sum = 0;
  tanh_space_row<N>(len, [&](uint32_t i) {
    float w_[N], x_[N];
    tanh_space_load(w_, w + start + i);
    tanh_space_load(x_, x + start + i);
#pragma unroll
    for (int j = 0; j < N; j++) {
      float delta = tanh_space_image(w_[j]) - x_[j];
      sum += double(delta) * double(delta);
    }
  });
  // Also makes `rates` visible, and lets thread 0 write the state that the others have read.
  double squared = rowwise::block_sum(sum, part);
  bool closer = met && squared < best_before;
  adam::Rates r = rates[0];
  float weight = float(c * double(unscale));

  tanh_space_row<N>(len, [&](uint32_t i) {
    uint64_t at = start + i;
    float w_[N], x_[N], df_[N], m_[N], v_[N], now[N], next[N];
    tanh_space_load(w_, w + at);
    tanh_space_load(x_, x + at);
    tanh_space_load(df_, df + at);
    tanh_space_load(m_, m + at);
    tanh_space_load(v_, v + at);
#pragma unroll
    for (int j = 0; j < N; j++) {
      now[j] = tanh_space_image(w_[j]);
      float dw = tanh_space_gradient(now[j], now[j] - x_[j], weight * df_[j]);
      adam::update(w_[j], m_[j], v_[j], dw, r);
      next[j] = tanh_space_image(w_[j]);
    }
    tanh_space_store(w + at, w_);
    tanh_space_store(m + at, m_);
    tanh_space_store(v + at, v_);
    tanh_space_store(image + at, next);
    if (closer) tanh_space_store(best + at, now);
  });

  if (threadIdx.x != 0) return;
  Attacked s = state[row];
  Margin margin = margins[row];
  s.squared = squared;
  s.success = margin.met;
  if (closer) s.best = squared;
  if (check_every != 0 && s.steps % check_every == 0) {
    double loss = squared + s.c * margin.value;
    s.stalled = loss <= 0.9999 * s.previous ? 0 : s.stalled + 1;
    s.previous = loss;
    if (s.stalled >= 2) s.active = 0;
  }
  s.steps += 1;
  if (margin.not_finite != 0) {
    s.not_finite += 1;
    if (s.first_bad == 0) s.first_bad = s.steps;
  }
  state[row] = s;
  if (rows) rows[row].draw += 1;
}
