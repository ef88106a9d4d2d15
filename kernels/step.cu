// What a training step on the device needs beside its ops: whether its gradients are finite, and its end.
#include "gpu.cuh"
#include "optimiser.cuh"

/// Sets `not_finite` if any gradient is NaN or infinite.
KERNEL(256) step_check(const Piece *pieces, LossScale *scale) {
  Piece p = pieces[blockIdx.x];
  const float *grad = p.grad;
  bool bad = false;
  optimiser::by_fours(
      p.len,
      [&](uint64_t i) {
        optimiser::Fours<1> four;
        optimiser::load(four.v[0], grad + i);
        return four;
      },
      [&](uint64_t, optimiser::Fours<1> &four) {
#pragma unroll
        for (int j = 0; j < 4; j++) bad |= !isfinite(four.v[0][j]);
      },
      [&](uint64_t i) { bad |= !isfinite(grad[i]); });
  // Blocks that write write the same, so their order does not matter.
  uint32_t lanes = __ballot_sync(~0u, bad);
  if (lanes != 0 && threadIdx.x % 32 == 0) atomicMax(&scale->not_finite, 1u);
}

/// Ends a step: the loss scale is halved after a gradient that was not finite and doubled after `every`
/// good steps (0: never), within [2^-24, 2^24]; the cursor moves on. Either may be left out. One thread.
KERNEL(32) step_end(LossScale *scale, Cursor *cursor, uint32_t every) {
  if (threadIdx.x != 0) return;
  if (cursor) {
    cursor->batch += 1;
    cursor->draw += 1;
  }
  if (!scale) return;
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
