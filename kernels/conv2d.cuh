// A convolution as the host describes it to the kernels of conv2d.cu.
#pragma once
#include "divide.cuh"

/// Sizes of an activation tensor, `[n, h, w, c]`.
struct Dims {
  uint32_t n, h, w, c;
};

/// A tile: some rows and columns of some images. Its pixels are counted image by image, row by row.
struct Tile {
  uint32_t images, rows, cols;
  /// Divide by `rows` and `cols`.
  uint32_t row_magic, col_magic;
  /// Tiles down and across one image.
  uint32_t down, across;
};

/// A tile's patch: `[images][rows][cols]` pixels of `windows` times eight channels.
struct Patch {
  uint32_t rows, cols, windows;
  /// Divide by `rows`, `cols` and `windows`.
  uint32_t row_magic, col_magic, window_magic;
  /// Floats from one pixel to the next: an odd number of 16-byte units, so that neighbours lie in other banks.
  uint32_t pitch;
  /// Patch pixels from one of the tile's pixels to the next.
  uint32_t step;
  /// Input pixels from one patch pixel to the next: the stride if no other pixel is read, else 1.
  uint32_t gap;
  /// Rows of the batch that one image of the source makes: row n reads image n / draws.
  Divisor draws;
};

/// Forward and input gradient: a convolution from `from` to `to`. In the input gradient that is from dy to dx.
struct Direct {
  Dims from, to;
  uint32_t k, stride, pad, groups;
  /// Of the input gradient: pixels that differ by a multiple of the stride are one phase.
  uint32_t row_phases, col_phases;
  Tile tile;
  Patch patch;
  /// Kernel rows whose pixels the patch holds at a time; all of them but for kernels of many pixels.
  uint32_t band;
  /// Blocks of COLS output channels in a group.
  uint32_t blocks;
};

/// The weight gradient.
struct Outer {
  Dims x, y;
  uint32_t k, stride, pad, groups;
  /// What a block owns, and how many threads share a window of a tap.
  uint32_t taps, windows, parts;
  /// Blocks of 64 output channels, `taps` taps and `windows` windows in a group.
  uint32_t channel_blocks, tap_blocks, window_blocks;
  /// Tiles of all images, and those of one split.
  uint32_t tiles, split_tiles;
  /// All parts of all splits.
  uint32_t partial_rows;
  /// Whether db is wanted.
  uint32_t bias;
  Tile tile;
  Patch patch;
};

namespace conv {

/// One axis of the taps that meet the pixels of a phase: tap t = 0 .. taps reads pixel `a step + first + t` of the
/// source for pixel `a` of the phase, through kernel row `u + t du`.
struct Axis {
  uint32_t taps;
  int32_t first;
  uint32_t u;
  int32_t du;
};

/// Forward: i stride - pad + u. Input gradient, pixel r = a stride + phase: those i with i stride - pad + u = r. They
/// go with u = u0, u0 + stride, ..., the larger i with the smaller u.
template <class P>
__device__ __forceinline__ Axis axis(bool grad, const P &p, uint32_t phase) {
  if (!grad) return {p.k, -(int32_t)p.pad, 0, 1};
  const uint32_t u0 = (phase + p.pad) % p.stride;
  const uint32_t taps = u0 < p.k ? (p.k - 1 - u0) / p.stride + 1 : 0;
  const int32_t largest = (int32_t)((phase + p.pad - u0) / p.stride);
  return {taps, largest - (int32_t)taps + 1, u0 + (taps - 1) * p.stride, -(int32_t)p.stride};
}

/// `value / divisor` for `magic = ceil(2^31 / divisor)`; exact while `value * divisor < 2^31`.
__device__ __forceinline__ uint32_t divide(uint32_t value, uint32_t magic) {
  return (uint32_t)(((uint64_t)(2 * value) * magic) >> 32);
}

} // namespace conv
