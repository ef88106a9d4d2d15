// Adam (Kingma and Ba 2015).
#pragma once
#include "gpu.cuh"

/// Hyper-parameters.
struct Adam {
  double lr, beta1, beta2, eps;
};

namespace adam {

/// Factors of an update: `step = lr / (1 - beta1^t)`, `root = 1 / sqrt(1 - beta2^t)`.
struct Rates {
  float beta1, rest1, beta2, rest2, step, root, eps;
};

/// The factors of step `t`, counted from 1. In f64, as on the CPU: `1 - beta^t` cancels.
__device__ __forceinline__ Rates rates(Adam a, uint32_t t) {
  return {float(a.beta1), float(1.0 - a.beta1),
          float(a.beta2), float(1.0 - a.beta2),
          float(a.lr / (1.0 - pow(a.beta1, double(t)))), float(1.0 / sqrt(1.0 - pow(a.beta2, double(t)))),
          float(a.eps)};
}

/// `m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
/// w -= lr mhat / (sqrt(vhat) + eps)`, the hats `1 / (1 - beta^t)` in `step` and `root`.
__device__ __forceinline__ void update(float &w, float &m, float &v, float g, const Rates &r) {
  m = r.beta1 * m + r.rest1 * g;
  v = r.beta2 * v + r.rest2 * (g * g);
  w -= r.step * m / (sqrtf(v) * r.root + r.eps);
}

} // namespace adam
