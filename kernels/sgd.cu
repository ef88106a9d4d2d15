// Stochastic gradient descent with momentum and weight decay (PyTorch's rule).
#include "gpu.cuh"
#include "optimiser.cuh"

/// `g = grad + weight_decay w; v = momentum v + g; w -= lr (nesterov ? g + momentum v : v)`
__device__ __forceinline__ void sgd_update(float &w, float &v, float grad, float lr, float momentum,
                                           float weight_decay, bool nesterov) {
  float g = grad + weight_decay * w;
  v = momentum * v + g;
  w -= lr * (nesterov ? g + momentum * v : v);
}

/// One step of every parameter. The learning rate is `rates[min(cursor->batch, last)]`; the gradients,
/// divided by the loss scale, become 0. Where one was not finite (`step_check`) nothing else happens.
KERNEL(256) sgd_step(const Piece *pieces, const double *rates, const Cursor *cursor, uint32_t last,
                     const LossScale *scale, float momentum, float weight_decay, bool nesterov) {
  Piece p = pieces[blockIdx.x];
  float *w = p.w, *grad = p.grad, *velocity = p.first;
  float lr = float(rates[min(cursor->batch, last)]), inverse = scale->inverse;
  bool skip = scale->not_finite != 0;
  optimiser::by_fours(
      p.len,
      [&](uint64_t i) {
        optimiser::Fours<3> four;
        optimiser::load(four.v[0], grad + i);
        optimiser::load(four.v[1], w + i);
        optimiser::load(four.v[2], velocity + i);
        return four;
      },
      [&](uint64_t i, optimiser::Fours<3> &four) {
        auto &[g, x, v] = four.v;
        float zero[4] = {0, 0, 0, 0};
        optimiser::store(grad + i, zero);
        if (skip) return;
#pragma unroll
        for (int j = 0; j < 4; j++) sgd_update(x[j], v[j], g[j] * inverse, lr, momentum, weight_decay, nesterov);
        optimiser::store(w + i, x);
        optimiser::store(velocity + i, v);
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
  uint64_t start = uint64_t(blockIdx.x) * PIECE;
  optimiser::by_fours(
      min(n - start, uint64_t(PIECE)),
      [&](uint64_t i) {
        optimiser::Fours<3> four;
        optimiser::load(four.v[0], grad + start + i);
        optimiser::load(four.v[1], w + start + i);
        optimiser::load(four.v[2], velocity + start + i);
        return four;
      },
      [&](uint64_t i, optimiser::Fours<3> &four) {
        auto &[g, x, v] = four.v;
#pragma unroll
        for (int j = 0; j < 4; j++) sgd_update(x[j], v[j], g[j], lr, momentum, weight_decay, nesterov);
        optimiser::store(w + start + i, x);
        optimiser::store(velocity + start + i, v);
      },
      [&](uint64_t i) {
        sgd_update(w[start + i], velocity[start + i], grad[start + i], lr, momentum, weight_decay, nesterov);
      });
}
