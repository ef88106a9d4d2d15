// Adam over a whole network in one launch, and over the rows of one tensor.
#include "adam.cuh"
#include "gpu.cuh"
#include "optimiser.cuh"

/// One step of every parameter, as `sgd_step`; the step's number is `scale->steps + 1`, and
/// `rates[...]` takes the place of `adam.lr`.
KERNEL(256) adam_step(const Piece *pieces, const double *rates, const Cursor *cursor, uint32_t last,
                      const LossScale *scale, Adam adam) {
  GPU_SHARED(adam::Rates, shared, [1]);
  if (threadIdx.x == 0) {
    adam.lr = rates[min(cursor->batch, last)];
    shared[0] = adam::rates(adam, scale->steps + 1);
  }
  __syncthreads();
  adam::Rates r = shared[0];
  Piece p = pieces[blockIdx.x];
  float *w = p.w, *grad = p.grad;
  float *first = p.first, *second = p.second;
  float inverse = scale->inverse;
  bool skip = scale->not_finite != 0;
  optimiser::by_fours(
      p.len,
      [&](uint64_t i) {
        optimiser::Fours<4> four;
        optimiser::load(four.v[0], grad + i);
        optimiser::load(four.v[1], w + i);
        optimiser::load(four.v[2], first + i);
        optimiser::load(four.v[3], second + i);
        return four;
      },
      [&](uint64_t i, optimiser::Fours<4> &four) {
        auto &[g, x, m, v] = four.v;
        float zero[4] = {0, 0, 0, 0};
        optimiser::store(grad + i, zero);
        if (skip) return;
#pragma unroll
        for (int j = 0; j < 4; j++) adam::update(x[j], m[j], v[j], g[j] * inverse, r);
        optimiser::store(w + i, x);
        optimiser::store(first + i, m);
        optimiser::store(second + i, v);
      },
      [&](uint64_t i) {
        float g = grad[i];
        grad[i] = 0;
        if (!skip) adam::update(w[i], first[i], second[i], g * inverse, r);
      });
}

/// One step of one tensor, `t[row]` counting each row's steps from 1; a row with 0 stays untouched.
/// `blocks` blocks share a row of `len` elements.
KERNEL(256) adam_rows(float *w, const float *grad, float *m, float *v, const uint32_t *t, uint64_t len,
                      uint32_t blocks, Adam adam) {
  GPU_SHARED(adam::Rates, shared, [1]);
  uint32_t row = blockIdx.x / blocks;
  uint32_t step = t[row];
  if (step == 0) return;
  if (threadIdx.x == 0) shared[0] = adam::rates(adam, step);
  __syncthreads();
  adam::Rates r = shared[0];
  uint64_t start = uint64_t(blockIdx.x % blocks) * 4096;
  uint64_t end = min(start + 4096, len);
  for (uint64_t i = start + threadIdx.x; i < end; i += 256) {
    uint64_t at = uint64_t(row) * len + i;
    adam::update(w[at], m[at], v[at], grad[at], r);
  }
}
