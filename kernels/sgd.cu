// Stochastic gradient descent with momentum and weight decay (PyTorch's rule), and the loss scale.
#include "gpu.cuh"
#include "optimiser.cuh"
#include "vector.cuh"

/// `g = grad + weight_decay w; v = momentum v + g; w -= lr (nesterov ? g + momentum v : v)`
__device__ __forceinline__ void sgd_update(float &w, float &v, float grad, float lr, float momentum,
                                           float weight_decay, bool nesterov) {
  float g = grad + weight_decay * w;
  v = momentum * v + g;
  w -= lr * (nesterov ? g + momentum * v : v);
}

/// One step of every parameter. The learning rate is `rates[min(*at, last)]`; the gradients, divided
/// by the loss scale, become 0. Where one is not finite (`sgd_check` saw it) nothing else happens.
KERNEL(256) sgd_step(const Piece *pieces, const double *rates, const uint32_t *at, uint32_t last,
                     const LossScale *scale, float momentum, float weight_decay, bool nesterov) {
  Piece p = pieces[blockIdx.x];
  float *w = p.w, *grad = p.grad, *velocity = p.first;
  float lr = float(rates[min(*at, last)]), inverse = scale->inverse;
  bool skip = scale->not_finite != 0;
  optimiser::by_fours(
      p.len,
      [&](uint64_t i) {
        float g[4], zero[4] = {0, 0, 0, 0};
        vec::load(g, grad + i);
        vec::store(grad + i, zero);
        if (skip) return;
        float x[4], v[4];
        vec::load(x, w + i);
        vec::load(v, velocity + i);
#pragma unroll
        for (int j = 0; j < 4; j++) sgd_update(x[j], v[j], g[j] * inverse, lr, momentum, weight_decay, nesterov);
        vec::store(w + i, x);
        vec::store(velocity + i, v);
      },
      [&](uint64_t i) {
        float g = grad[i];
        grad[i] = 0;
        if (!skip) sgd_update(w[i], velocity[i], g * inverse, lr, momentum, weight_decay, nesterov);
      });
}

/// The same for one tensor; the gradient stays.
KERNEL(256) sgd_tensor(float *w, const float *grad, float *velocity, uint64_t n, float lr, float momentum,
                       float weight_decay, bool nesterov) {
  uint64_t start = uint64_t(blockIdx.x) * 4096;
  optimiser::by_fours(
      min(n - start, uint64_t(4096)),
      [&](uint64_t i) {
        float g[4], x[4], v[4];
        vec::load(g, grad + start + i);
        vec::load(x, w + start + i);
        vec::load(v, velocity + start + i);
#pragma unroll
        for (int j = 0; j < 4; j++) sgd_update(x[j], v[j], g[j], lr, momentum, weight_decay, nesterov);
        vec::store(w + start + i, x);
        vec::store(velocity + start + i, v);
      },
      [&](uint64_t i) {
        sgd_update(w[start + i], velocity[start + i], grad[start + i], lr, momentum, weight_decay, nesterov);
      });
}

/// Sets `not_finite` if any gradient is NaN or infinite.
KERNEL(256) sgd_check(const Piece *pieces, LossScale *scale) {
  Piece p = pieces[blockIdx.x];
  const float *grad = p.grad;
  bool bad = false;
  optimiser::by_fours(
      p.len,
      [&](uint64_t i) {
        float g[4];
        vec::load(g, grad + i);
#pragma unroll
        for (int j = 0; j < 4; j++) bad |= !isfinite(g[j]);
      },
      [&](uint64_t i) { bad |= !isfinite(grad[i]); });
  // Blocks that write write the same, so their order does not matter.
  uint32_t lanes = __ballot_sync(~0u, bad);
  if (lanes != 0 && threadIdx.x % 32 == 0) atomicMax(&scale->not_finite, 1u);
}

/// Ends a step: halves the scale after a gradient that was not finite, doubles it after `every` good
/// steps (0: never), within [2^-24, 2^24]; counts the step. One thread.
KERNEL(32) sgd_finish(LossScale *scale, uint32_t every) {
  if (threadIdx.x != 0) return;
  LossScale s = *scale;
  if (s.not_finite != 0) {
    s.scale = fmaxf(s.scale * 0.5f, 0x1p-24f);
    s.good = 0;
    s.skipped += 1;
  } else {
    s.steps += 1;
    s.good += 1;
    if (every != 0 && s.good >= every) {
      s.scale = fminf(s.scale * 2.0f, 0x1p24f);
      s.good = 0;
    }
  }
  s.inverse = 1.0f / s.scale;
  s.not_finite = 0;
  *scale = s;
}
