// Weights as the tensor cores' kernels read them. The sum of such a convolution runs over units, 16 bytes of a pixel
// under a tap, four of which are a slab. A slab of packed weights is `rows` rows (output channels in forward, input
// channels in the input gradient) of 64 bytes, whose four pieces are exchanged as piece ^ (row / 2 % 4): matrices of
// eight rows lie in different banks, and it is the 64-byte swizzle of wgmma. One stage of a kernel is a contiguous copy.
#pragma once
#include "gpu.cuh"

/// Which weights go where.
struct Packing {
  /// Of a group: rows and channels of the sum. Taps of the kernel.
  uint32_t rows_group, channels_group, taps;
  /// Groups, and how many make one dense supergroup, zero where a row and a channel are of different groups.
  uint32_t groups, merge;
  /// Rows of a slab, a multiple of 32; those behind the last are zero.
  uint32_t rows;
  /// Slabs of a supergroup, and supergroups.
  uint32_t slabs, supergroups;
  /// Units of a tap, with `narrow`: a slab then holds several taps, unit q of the supergroup being unit q % units of
  /// tap q / units. Else 0: slab s is tap s % taps of units 4 (s / taps) and on.
  uint32_t narrow;
  /// Rows are input channels, sums run over output channels.
  uint32_t transposed;
};

/// One of many that are packed at once: weights, where they go, and the first of their blocks.
struct PackEntry {
  const float *w;
  void *packed;
  uint32_t first_block, padding;
  Packing p;
};
