// Which images a batch is made of.
#pragma once
#include "gpu.cuh"

/// One row of an epoch's plan.
struct Pick {
  /// Place in the data set.
  uint32_t index;
  /// The name its noise has.
  uint32_t id;
  /// Rows of pixels by which the cut is moved down.
  int32_t dy;
  /// Columns by which it is moved right.
  int32_t dx;
  /// Whether the cut is mirrored.
  uint32_t flip;
};
