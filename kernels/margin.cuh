// What the margin tells of a row.
#pragma once
#include "gpu.cuh"

struct Margin {
  double value;         // the margin, at least -kappa
  uint32_t met;         // whether the prediction meets the criterion, by kappa
  uint32_t not_finite;  // logits of the row that are NaN or infinite
};
