// What the C&W attack knows of a row.
#pragma once
#include "gpu.cuh"

/// One image under attack. `w` and Adam's moments are arrays beside it.
struct Attacked {
  /// The margin's weight.
  double c;
  /// Squared distance of the closest success, infinity before the first.
  double best;
  /// Squared distance of the image of the last step.
  double squared;
  /// Loss at the last check for progress, infinity before the first.
  double previous;
  /// Steps done: Adam's t, and forward passes.
  uint32_t steps;
  /// Whether the image of the last step met the criterion.
  uint32_t success;
  /// Successive checks that saw no progress.
  uint32_t stalled;
  /// Whether the row still moves.
  uint32_t active;
  /// Steps whose logits were not finite.
  uint32_t not_finite;
  /// The first of them, counted from 1; 0: none.
  uint32_t first_bad;
};
