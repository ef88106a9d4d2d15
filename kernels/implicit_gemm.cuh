// The tensor cores' convolution of conv2d_mma.cu: rows of a product are a tile's pixels, columns output channels
// (input channels in the input gradient), and its sum runs over slabs: a tap and 64 bytes of channels, or a few taps of
// a pixel that has few channels. The tile's patch lies in shared memory once for all taps, with the noise; a tap is an
// offset into it.
//
// A sum's order is (chunks of 64 bytes, taps, halves of a chunk): it depends on the kernel's size and the channels
// alone, so a row's result is the same bits in any batch and for any tile. A tap that lies on the padding adds zeros,
// and where a tile's rows are ordered by position it is not computed at all.
#pragma once
#include "conv2d.cuh"
#include "mma.cuh"
#include "noise.cuh"

/// What a launch computes. Forward: from x to y. Input gradient: from dy to dx.
struct Gemm {
  Dims from, to;
  uint32_t k, stride, pad, grad;
  /// Of the input gradient: pixels that differ by a multiple of the stride are one phase and meet the same taps.
  uint32_t row_phases, col_phases;
  /// Supergroups, their channels in `from` and `to`, and blocks of columns in one.
  uint32_t supergroups, from_channels, to_channels, blocks;
  /// Packed weights: see Packing.
  uint32_t slab_rows, slabs, narrow;
  /// Chunks of the channels, and the base-two logarithm of 8-channel windows in one.
  uint32_t chunks, log_windows;
  Tile tile;
  /// The patch of one chunk: pixels of an image's part, of all of it, bytes from one to the next.
  uint32_t patch_rows, patch_cols, patch_row_magic, patch_col_magic, patch_pixels, pitch;
  /// Patch pixels from one of the tile's to the next; input pixels from one of the patch's to the next.
  uint32_t step, gap;
  /// Patches in shared memory.
  uint32_t buffers;
  /// Whether a window can be copied as 16-byte pieces.
  uint32_t vectors;
  /// Rows of the batch that one image of `from` makes: row n reads image n / draws.
  Divisor draws;
};

namespace gemm {

using conv::Axis;
using conv::axis;
using conv::divide;
using ::divide;

constexpr uint32_t THREADS = 128;
/// Slabs of weights in flight, the one in use included.
constexpr uint32_t STAGES = 3;
constexpr uint32_t MAX_TAPS = 64;
constexpr uint32_t OUTSIDE = 0xFFFFFFFF;

/// How four warps share a block's product: ROWS x COLS, in warps WARP_ROWS x WARP_COLS. BY_POSITION: a tile is whole
/// small images, 16 or a multiple, and its rows are ordered so that 16 of them are one position of 16 images.
template <int TILE>
struct Shape {
  static constexpr int ROWS = TILE == 2 || TILE == 6 ? 64 : TILE == 4 || TILE == 5 ? 256 : 128;
  static constexpr int COLS = TILE == 0 ? 128 : TILE == 3 || TILE == 5 ? 32 : 64;
  static constexpr bool TALL = TILE >= 3 && TILE <= 5;
  static constexpr int WARP_ROWS = TALL ? ROWS / 4 : ROWS / 2;
  static constexpr int WARP_COLS = TALL ? COLS : COLS / 2;
  static constexpr bool BY_POSITION = TILE >= 4;
  static constexpr int M = WARP_ROWS / 16, N = WARP_COLS / 8;
};

/// What a block computes.
struct Place {
  uint32_t supergroup, column;
  uint32_t row_phase, col_phase;
  /// First image, row and column of the tile, in the pixels of the phase.
  uint32_t image, row, col;
  /// Number of the tile.
  uint32_t tile;
};

/// Columns fastest, then supergroups and phases, so that blocks which read the same patch run together.
template <int TILE>
__device__ __forceinline__ Place locate(const Gemm &p) {
  Place place;
  uint32_t i = blockIdx.x;
  place.column = i % p.blocks * Shape<TILE>::COLS;
  i /= p.blocks;
  place.supergroup = i % p.supergroups;
  i /= p.supergroups;
  place.col_phase = i % p.col_phases;
  i /= p.col_phases;
  place.row_phase = i % p.row_phases;
  i /= p.row_phases;
  place.tile = i;
  place.col = i % p.tile.across * p.tile.cols;
  i /= p.tile.across;
  place.row = i % p.tile.down * p.tile.rows;
  place.image = i / p.tile.down * p.tile.images;
  return place;
}

/// A pixel of a tile.
struct Pixel {
  uint32_t image, row, col;
};

/// The pixel that is row `m` of the product. By position: positions in squares of four, the images of one together.
template <bool BY_POSITION>
__device__ __forceinline__ Pixel pixel(const Tile &tile, uint32_t m) {
  if constexpr (BY_POSITION) {
    const uint32_t position = m / tile.images, square = position / 4, across = tile.cols / 2;
    return {m % tile.images, square / across * 2 + position % 4 / 2, square % across * 2 + position % 2};
  }
  const uint32_t line = divide(m, tile.col_magic), image = divide(line, tile.row_magic);
  return {image, line - image * tile.rows, m - line * tile.cols};
}

/// A pixel of the patch: which of the source, and of its row of the batch, and that row. OUTSIDE: it is zero.
struct Source {
  uint32_t at, pixel, row;
};

/// What the block's threads know of its pixels and taps.
template <int TILE>
struct Tables {
  /// Of a row of the product: its pixel in `to`, and the byte where its pixel of the patch lies for the first tap.
  uint32_t *to, *patch;
  /// Of a tap (`narrow`: of a slab): bytes from there to each of its four units.
  int32_t (*units)[4];
  /// Of a tap: its slab in the first chunk.
  uint32_t *slab;
};

template <int TILE>
__device__ __forceinline__ void describe(const Gemm &p, const Place &place, const Axis &rows, const Axis &cols,
                                         const Tables<TILE> &tables, Source *sources) {
  using S = Shape<TILE>;
  const uint32_t images = min(p.tile.images, p.to.n - place.image);
  for (uint32_t m = threadIdx.x; m < (uint32_t)S::ROWS; m += THREADS) {
    const Pixel at = pixel<S::BY_POSITION>(p.tile, m);
    const uint32_t r = (place.row + at.row) * (p.grad ? p.stride : 1) + place.row_phase;
    const uint32_t c = (place.col + at.col) * (p.grad ? p.stride : 1) + place.col_phase;
    tables.to[m] = at.image < images && r < p.to.h && c < p.to.w
                       ? ((place.image + at.image) * p.to.h + r) * p.to.w + c : OUTSIDE;
    const uint32_t in_patch =
        S::BY_POSITION ? (at.row * p.tile.cols + at.col) * p.tile.images + at.image
                       : (at.image * p.patch_rows + at.row * p.step) * p.patch_cols + at.col * p.step;
    // Rows behind the tile's last pixel compute the first one's product, and nobody stores it.
    tables.patch[m] = at.image < p.tile.images ? in_patch * p.pitch : 0;
  }

  const int32_t top = (int32_t)(place.row * p.step * p.gap) + (S::BY_POSITION ? 0 : rows.first);
  const int32_t left = (int32_t)(place.col * p.step * p.gap) + (S::BY_POSITION ? 0 : cols.first);
  for (uint32_t i = threadIdx.x; i < p.patch_pixels; i += THREADS) {
    uint32_t image, row, col;
    if constexpr (S::BY_POSITION) {
      const uint32_t position = i / p.tile.images;
      image = i % p.tile.images, row = position / p.tile.cols, col = position % p.tile.cols;
    } else {
      const uint32_t line = divide(i, p.patch_col_magic);
      image = divide(line, p.patch_row_magic), row = line - image * p.patch_rows, col = i - line * p.patch_cols;
    }
    // A pixel above or left of the image wraps around to one far below or right of it.
    const uint32_t r = (uint32_t)top + row * p.gap, c = (uint32_t)left + col * p.gap, n = place.image + image;
    const bool inside = image < images && r < p.from.h && c < p.from.w;
    const uint32_t at = r * p.from.w + c;
    sources[i] = {inside ? divide(n, p.draws) * (p.from.h * p.from.w) + at : OUTSIDE, at, n};
  }

  const uint32_t taps = rows.taps * cols.taps;
  if (p.narrow) {
    const uint32_t count = (taps * p.narrow + 3) / 4 * 4;
    for (uint32_t q = threadIdx.x; q < count; q += THREADS) {
      // Packed by the weights' taps; the units behind the last meet zero weights.
      const uint32_t tap = min(q / p.narrow, taps - 1), u = tap / p.k, v = tap - u * p.k;
      const uint32_t i = p.grad ? p.k - 1 - u : u, j = p.grad ? p.k - 1 - v : v;
      tables.units[q / 4][q % 4] = (int32_t)((i * p.patch_cols + j) * p.pitch + q % p.narrow * 16);
      if (q % 4 == 0) tables.slab[q / 4] = q / 4;
    }
  } else {
    for (uint32_t t = threadIdx.x; t < taps; t += THREADS) {
      const uint32_t i = t / cols.taps, j = t - i * cols.taps;
      int32_t offset;
      if constexpr (S::BY_POSITION) {
        offset = ((int32_t)i + rows.first) * (int32_t)p.tile.cols + (int32_t)j + cols.first;
        offset *= (int32_t)(p.tile.images * p.pitch);
      } else {
        offset = (int32_t)((i * p.patch_cols + j) * p.pitch);
      }
#pragma unroll
      for (int unit = 0; unit < 4; unit++) tables.units[t][unit] = offset + unit * 16;
      tables.slab[t] = (rows.u + i * rows.du) * p.k + cols.u + j * cols.du;
    }
  }
}

/// Copies channels `c .. c + 8` of a pixel, zero from `limit` on, in the background if they can be copied as vectors.
template <class T>
__device__ __forceinline__ void copy_window(unsigned char *to, const T *x, Source source, const Gemm &p, uint32_t c,
                                            uint32_t limit) {
  const bool inside = source.at != OUTSIDE && c < limit;
  const T *from = x + (inside ? (uint64_t)source.at * p.from.c + c : 0);
  constexpr int N = gpu::Vec<T>::N;
  if (p.vectors) {
#pragma unroll
    for (int i = 0; i < 8; i += N) gpu::cp_async16(to + i * sizeof(T), from + i, inside);
  } else {
#pragma unroll
    for (int i = 0; i < 8; i += N) {
      gpu::Vec<T> v;
#pragma unroll
      for (int j = 0; j < N; j++) v.v[j] = inside && c + i + j < limit ? from[i + j] : gpu::from_f32<T>(0.0f);
      gpu::store_vec(reinterpret_cast<T *>(to) + i, v);
    }
  }
}

/// Channels `first` and up of eight are 0 again.
template <class T>
__device__ __forceinline__ void zero_from(T *at, uint32_t first) {
#pragma unroll
  for (uint32_t i = 0; i < 8; i++)
    if (i >= first) at[i] = gpu::from_f32<T>(0.0f);
}

/// Adds noise to channels `c .. c + 8` of a pixel in shared memory, those below `limit`, and rounds to T.
template <class T>
__device__ __forceinline__ void add_noise(unsigned char *to, const Draw &draw, bool precise, Row row, uint32_t pixel,
                                          uint32_t c, uint32_t limit) {
  constexpr int N = gpu::Vec<T>::N;
  float z[8];
  if (precise) {
    noise::normals<true>(z, draw, row, pixel, c / 8);
  } else {
    noise::normals<false>(z, draw, row, pixel, c / 8);
  }
  T *at = reinterpret_cast<T *>(to);
#pragma unroll
  for (int i = 0; i < 8; i += N) {
    gpu::Vec<T> v = gpu::load_vec(at + i);
#pragma unroll
    for (int j = 0; j < N; j += 2) {
      T two[2];
      gpu::pack2(two, fmaf(draw.sigma, z[i + j], gpu::to_f32(v.v[j])), fmaf(draw.sigma, z[i + j + 1], gpu::to_f32(v.v[j + 1])));
      v.v[j] = two[0], v.v[j + 1] = two[1];
    }
    gpu::store_vec(at + i, v);
  }
  // What lies behind the limit was 0. A test for each channel above would cost all windows what only the last needs.
  if (limit - c < 8) zero_from(at, limit - c);
}

/// Copies `COLS` rows of a slab of weights, which are zero from `rows` on.
template <int COLS>
__device__ __forceinline__ void copy_slab(unsigned char *to, const unsigned char *slab, uint32_t rows) {
#pragma unroll
  for (uint32_t i = threadIdx.x; i < COLS * 4; i += THREADS)
    gpu::cp_async16(to + i * 16, slab + (i / 4 < rows ? i * 16 : 0), i / 4 < rows);
}

/// The product of one block, in `sum`: of m-th 16 rows and n-th 8 columns of the warp. Dynamic shared memory:
/// STAGES slabs, the patches, `sources`.
template <class T, bool NOISE, int TILE>
__device__ __forceinline__ void multiply(float (&sum)[Shape<TILE>::M][Shape<TILE>::N][4], const T *x, const T *packed,
                                         const Gemm &p, const Place &place, const Tables<TILE> &tables,
                                         unsigned char *shared, const Row *noise_rows, uint32_t precise,
                                         const Draw &draw) {
  using S = Shape<TILE>;
  constexpr uint32_t SLAB = S::COLS * 64, WINDOW = 8 * sizeof(T);
  const uint32_t patch_bytes = p.patch_pixels * p.pitch;
  unsigned char *const slabs = shared, *const patches = shared + STAGES * SLAB;
  Source *const sources = reinterpret_cast<Source *>(patches + p.buffers * patch_bytes);
  const Axis rows = axis(p.grad, p, place.row_phase), cols = axis(p.grad, p, place.col_phase);
  describe(p, place, rows, cols, tables, sources);
  __syncthreads();

  const uint32_t taps = p.narrow ? (rows.taps * cols.taps * p.narrow + 3) / 4 : rows.taps * cols.taps;
  const uint32_t all_taps = p.narrow ? taps : p.k * p.k, total = p.chunks * taps;
  const unsigned char *const weights = reinterpret_cast<const unsigned char *>(packed) +
                                       ((uint64_t)place.supergroup * p.slabs * p.slab_rows + place.column) * 64;
  const uint32_t slab_rows = p.slab_rows - place.column;
  auto load_slab = [&](uint32_t stage, uint32_t slab) {
    copy_slab<S::COLS>(slabs + stage * SLAB, weights + (uint64_t)slab * p.slab_rows * 64, slab_rows);
  };

  // A thread's windows of the patch, the same in every chunk: it adds the noise to those that it copied itself, so it
  // waits for nobody.
  const uint32_t low = place.supergroup * p.from_channels, high = min(low + p.from_channels, p.from.c);
  const uint32_t window = threadIdx.x & ((1u << p.log_windows) - 1);
  const uint32_t first_pixel = threadIdx.x >> p.log_windows, pixel_step = THREADS >> p.log_windows;
  auto load_patch = [&](uint32_t chunk, uint32_t buffer) {
    unsigned char *to = patches + buffer * patch_bytes + window * WINDOW;
    const uint32_t c = low + ((chunk << p.log_windows) + window) * 8;
#pragma unroll 2
    for (uint32_t i = first_pixel; i < p.patch_pixels; i += pixel_step)
      copy_window(to + i * p.pitch, x, sources[i], p, c, high);
  };
  auto noise_patch = [&](uint32_t chunk, uint32_t buffer, uint32_t begin, uint32_t count) {
    unsigned char *to = patches + buffer * patch_bytes + window * WINDOW;
    const uint32_t c = low + ((chunk << p.log_windows) + window) * 8;
    if (c >= high) return;
    uint32_t i = first_pixel + begin * pixel_step;
#pragma unroll 1
    for (; count > 0 && i < p.patch_pixels; count--, i += pixel_step) {
      const Source source = sources[i];
      if (source.at != OUTSIDE)
        add_noise<T>(to + i * p.pitch, draw, precise, noise_rows[source.row], source.pixel, c, high);
    }
  };

  // Stage s of the sum is slab s % taps of chunk s / taps. Patches are copied as many chunks ahead as there are
  // buffers, at the first stage of a chunk; they have arrived STAGES - 1 stages later. In the rest of the chunk in
  // front of theirs they get their noise.
  const uint32_t ahead = max(p.buffers, 2u) - 1;
  if (total > 0)
    for (uint32_t chunk = 0; chunk < min(ahead, p.chunks); chunk++) load_patch(chunk, chunk);
  uint32_t next_tap = 0, next_base = 0;
  auto load_next = [&](uint32_t stage) {
    load_slab(stage % STAGES, next_base + tables.slab[next_tap]);
    if (++next_tap == taps) next_tap = 0, next_base += all_taps;
  };
#pragma unroll
  for (uint32_t stage = 0; stage < STAGES - 1; stage++) {
    if (stage < total) load_next(stage);
    gpu::cp_async_commit();
  }
  const uint32_t pieces = (p.patch_pixels + pixel_step - 1) / pixel_step;
  const uint32_t arrived = STAGES - 1 + taps, quiet = arrived > ahead * taps ? arrived - ahead * taps : 0;
  const uint32_t each = NOISE && taps > quiet ? (pieces + taps - quiet - 1) / (taps - quiet) : 0;
  if constexpr (NOISE) {
    gpu::cp_async_wait<STAGES - 2>();
    if (total > 0) noise_patch(0, 0, 0, pieces);
  }

  // Where this lane's rows of a fragment lie: lanes 0 to 15 bring the first 16 bytes of the step, the others the rest.
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t warp_row = (S::TALL ? warp : warp / 2) * S::WARP_ROWS, warp_col = S::TALL ? 0 : warp % 2 * S::WARP_COLS;
  uint32_t a_at[S::M];
#pragma unroll
  for (int m = 0; m < S::M; m++) a_at[m] = tables.patch[warp_row + m * 16 + lane % 16];
  const uint32_t b_row = warp_col + lane % 8 + lane / 16 * 8;
  const uint32_t b_at = b_row * 64 + ((lane / 8 % 2) ^ (b_row / 2 % 4)) * 16;
  // By position: which taps of each 16 rows are inside of the image.
  uint32_t open[S::M];
  if constexpr (S::BY_POSITION) {
#pragma unroll
    for (int m = 0; m < S::M; m++) {
      const Pixel at = pixel<true>(p.tile, warp_row + m * 16);
      open[m] = 0;
      for (uint32_t t = 0; t < taps; t++) {
        const uint32_t i = t / cols.taps, j = t - i * cols.taps;
        if (at.row + i + rows.first < p.from.h && at.col + j + cols.first < p.from.w) open[m] |= 1u << t;
      }
    }
  }

  // `buffer` is chunk % buffers, counted: a division would stand in the loop.
  uint32_t tap = 0, chunk = 0, buffer = 0, stage = 0;
#pragma unroll 1
  for (uint32_t s = 0; s < total; s++) {
    gpu::cp_async_wait<STAGES - 2>();
    __syncthreads();
    const uint32_t free_stage = stage == 0 ? STAGES - 1 : stage - 1;
    if (s + STAGES - 1 < total) load_next(free_stage);
    if (tap == 0 && chunk + ahead < p.chunks) load_patch(chunk + ahead, buffer == 0 ? p.buffers - 1 : buffer - 1);
    gpu::cp_async_commit();

    const unsigned char *const patch = patches + buffer * patch_bytes;
    const unsigned char *const slab = slabs + stage * SLAB + b_at;
#pragma unroll
    for (int step = 0; step < 2; step++) {
      const unsigned char *const a_from = patch + tables.units[tap][2 * step + lane / 16];
      uint32_t a[S::M][4];
#pragma unroll
      for (int m = 0; m < S::M; m++) {
        if (S::BY_POSITION && !(open[m] >> tap & 1)) continue;
        gpu::ldmatrix<4>(a[m], a_from + a_at[m]);
        gpu::round_operand<T>(a[m]);
      }
#pragma unroll
      for (int n = 0; n < S::N; n += 2) {
        uint32_t b[4];
        // The pieces of a row are exchanged: the second step's are the first's, two further or back.
        gpu::ldmatrix<4>(b, slabs + ((uint32_t)(slab - slabs) ^ step * 32) + n * 8 * 64);
        const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
        for (int m = 0; m < S::M; m++) {
          if (S::BY_POSITION && !(open[m] >> tap & 1)) continue;
          gpu::mma<T>(sum[m][n], a[m], b0);
          gpu::mma<T>(sum[m][n + 1], a[m], b1);
        }
      }
    }
    if constexpr (NOISE)
      if (tap >= quiet && chunk + 1 < p.chunks)
        noise_patch(chunk + 1, buffer + 1 == p.buffers ? 0 : buffer + 1, (tap - quiet) * each, each);
    stage = stage + 1 == STAGES ? 0 : stage + 1;
    if (++tap == taps) tap = 0, chunk++, buffer = buffer + 1 == p.buffers ? 0 : buffer + 1;
  }
  gpu::cp_async_wait<0>();
  __syncthreads();
}

} // namespace gemm
