// The state of a training run that lives on the device.
#pragma once
#include "gpu.cuh"

/// Loss scale of f16 training (1 elsewhere) and the steps taken. The loss's gradient is multiplied by
/// `scale`, the optimiser divides it out again; a step with a gradient that is not finite is left out.
struct LossScale {
  /// A power of two.
  float scale;
  /// 1 / scale.
  float inverse;
  /// Whether this step met a gradient that is not finite.
  uint32_t not_finite;
  /// Steps since the last change of the scale.
  uint32_t good;
  /// Steps left out.
  uint32_t skipped;
  /// Steps taken.
  uint32_t steps;
};

/// Where a run stands.
struct Cursor {
  /// Batches done in the epoch.
  uint32_t batch;
  /// Steps done in all: the draw of the next step's noise.
  uint32_t draw;
};
