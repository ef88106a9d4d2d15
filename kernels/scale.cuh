// The state of an optimiser that lives on the device.
#pragma once
#include "gpu.cuh"

/// Loss scale of f16 training (1 elsewhere) and the steps taken. The loss's gradient is multiplied by
/// `scale`, the optimiser divides it out again; a step with a gradient that is not finite is left out.
struct LossScale {
  float scale;          // a power of two
  float inverse;        // 1 / scale
  uint32_t not_finite;  // whether this step met a gradient that is not finite
  uint32_t good;        // steps since the last change of the scale
  uint32_t skipped;     // steps left out
  uint32_t steps;       // steps taken
};
