// What the margin tells of a row.
#pragma once
#include "gpu.cuh"

struct Margin {
  /// The margin, at least -kappa.
  double value;
  /// Whether the prediction meets the criterion, by kappa.
  uint32_t met;
  /// Logits of the row that are NaN or infinite.
  uint32_t not_finite;
};
