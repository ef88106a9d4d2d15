// The weight gradient's tiles: where they lie, and how they come to shared memory. See weight_mma.cuh.
#pragma once
#include "conv2d.cuh"
#include "noise.cuh"

/// How the weight gradient is cut: see src/ops/conv2d/plan_mma_weight_grad.rs.
struct WeightGrad {
  Dims x, y;
  uint32_t k, stride, pad;
  /// Channels of a group; groups that are taken together as if they were one, and how many such.
  uint32_t group_in, group_out, merged, supergroups;
  /// Pieces of dw in a supergroup: blocks of output channels, of windows and of taps.
  uint32_t channel_blocks, window_blocks, tap_blocks;
  /// What the warps of a block share: logarithms of 64s of output channels, of warps side by side in the windows, and
  /// of parts of the pixels. They sum to 3.
  uint32_t log_rows, log_cols, log_parts;
  /// Slots of a warp: taps of a block by windows of a warp.
  uint32_t taps, warp_windows;
  /// A tile: its pixels, and as the product's sum has them, a multiple of 16.
  uint32_t images, rows, cols, pixels;
  /// Tiles down and across one image, of all images, of one split.
  uint32_t down, across, tiles, split_tiles;
  /// A patch: its pixels, the logarithm of its windows rounded up, bytes from a pixel to the next, from a row to the
  /// next, from an image to the next.
  uint32_t patch_rows, patch_cols, windows, log_windows, pitch, row_pitch, image_pitch;
  /// Patch pixels from one of the tile's to the next, input pixels from one of the patch's to the next.
  uint32_t step, gap;
  /// Bytes from one pixel of dy to the next; of a stage, patch first; where dy begins in it.
  uint32_t dy_pitch, stage, dy_at;
  /// Bytes of all stages and all of shared memory.
  uint32_t stages, shared;
  /// Whether pixels lie at 16-byte boundaries; whether db is wanted; whether there is one split, added to dw at once.
  uint32_t vector_x, vector_y, bias, direct;
};

namespace weight_mma {

constexpr uint32_t THREADS = 256;
constexpr uint32_t STAGES = 3;
/// Tiles of 16 output channels, and slots, of a warp.
constexpr int ROWS = 4;
constexpr int SLOTS = 9;
/// Pieces that a thread begins to copy at a time.
constexpr int BATCH = 4;
/// Fields of a place: image, row and column, 9 bits each with a bit to spare.
constexpr uint32_t GUARD = 1u << 9 | 1u << 19 | 1u << 29;
constexpr uint32_t NOWHERE = 511u << 20 | 511u << 10 | 511u;

__device__ __forceinline__ uint32_t place_of(uint32_t image, uint32_t row, uint32_t col) {
  return image << 20 | row << 10 | col;
}

/// A pixel of a tile or of a patch. Where the patch skips input pixels, so do its rows and columns.
struct alignas(16) Pixel {
  /// Its number in the tensor, counted from the first one, and its place.
  uint32_t number, place;
  /// Where it lies in the patch; of a tile's pixel: where its first tap does.
  uint32_t at;
  /// Its number in the image, counted from the first one.
  uint32_t in_image;
};

__device__ __forceinline__ Pixel pixel_at(const Pixel *p) {
  const uint4 v = *reinterpret_cast<const uint4 *>(p);
  return {v.x, v.y, v.z, v.w};
}

/// A tile of the block.
struct Origin {
  /// Elements before its patch in x and before its pixels in dy.
  int64_t x, y;
  /// Its first image, row and column.
  uint32_t image, row, col;
  /// The patch's first pixel, counted in the image; it may lie before it.
  uint32_t first;
  /// Places of the patch inside of the image: GUARD - lowest, GUARD + highest.
  uint32_t low, high;
  /// Places of the tile inside of the image: GUARD + highest.
  uint32_t last;
  /// Bytes from where the first pixel's first tap would lie to the patch.
  int32_t shift;
};

/// Where things lie in shared memory behind the stages.
struct Shared {
  unsigned char *stages;
  /// Sixteen zeros.
  unsigned char *zero;
  Origin *origins;
  Pixel *pixels, *patch;
  /// Of each stage and pixel: where its first tap lies behind `stages`, twice, plus 1 if it counts; by position, once.
  /// Of each stage and 16 pixels: its slots. Of each output pixel of an image: its slots.
  uint32_t *starts, *masks, *slots;
  /// Sums of dy, `[8][THREADS]`.
  float *bias;
};

__device__ __forceinline__ Shared layout(unsigned char *p, const WeightGrad &w, bool skip) {
  Shared s;
  s.stages = p;
  p += w.stages;
  s.zero = p;
  p += 16;
  s.origins = reinterpret_cast<Origin *>(p);
  p += STAGES * sizeof(Origin);
  s.pixels = reinterpret_cast<Pixel *>(p);
  p += w.pixels * sizeof(Pixel);
  s.patch = reinterpret_cast<Pixel *>(p);
  p += w.images * w.patch_rows * w.patch_cols * sizeof(Pixel);
  s.starts = reinterpret_cast<uint32_t *>(p);
  p += STAGES * w.pixels * 4;
  s.masks = reinterpret_cast<uint32_t *>(p);
  p += STAGES * w.pixels / 16 * 4;
  s.slots = reinterpret_cast<uint32_t *>(p);
  if (skip) p += w.y.h * w.y.w * 4;
  s.bias = reinterpret_cast<float *>(p);
  return s;
}

/// What the block owns: first output channel, window and tap, and where its supergroup's channels begin and end.
struct Block {
  uint32_t split, channel, channel_end, window, c_end, tap;
};

/// Pieces of dw fastest, so that blocks which read the same pixels run together.
__device__ __forceinline__ Block locate(const WeightGrad &p) {
  Block b;
  uint32_t i = blockIdx.x;
  b.tap = i % p.tap_blocks * p.taps;
  i /= p.tap_blocks;
  const uint32_t window = i % p.window_blocks;
  i /= p.window_blocks;
  const uint32_t channel = i % p.channel_blocks;
  i /= p.channel_blocks;
  const uint32_t super = i % p.supergroups, low_in = super * p.merged * p.group_in, low_out = super * p.merged * p.group_out;
  b.split = i / p.supergroups;
  b.c_end = low_in + p.merged * p.group_in;
  b.channel_end = low_out + p.merged * p.group_out;
  b.channel = low_out / 8 * 8 + (channel << (6 + p.log_rows));
  b.window = low_in / 8 + window * p.windows;
  return b;
}

/// A field that holds `value` or, beyond what a tile reaches, the largest that does.
__device__ __forceinline__ uint32_t field(int32_t value) { return (uint32_t)min(value, 510); }

/// Makes the tile that begins at this image, row and column.
template <bool SKIP>
__device__ __forceinline__ void set_origin(Origin &o, const WeightGrad &p, uint32_t tap, uint32_t image, uint32_t row,
                                           uint32_t col) {
  const int32_t tap_row = (int32_t)(tap / p.k);
  int32_t top = (int32_t)(row * p.stride) - (int32_t)p.pad + tap_row, left = (int32_t)(col * p.stride) - (int32_t)p.pad;
  o.shift = 0;
  if constexpr (SKIP) {
    // The patch is a part of the image, without border.
    const int32_t first = max(0, min(top, (int32_t)(p.x.h - p.patch_rows)));
    o.shift = (top - first) * (int32_t)p.row_pitch + left * (int32_t)p.pitch;
    top = first;
    left = 0;
  }
  const int32_t bottom = (int32_t)p.x.h - 1 - top, right = (int32_t)p.x.w - 1 - left;
  const bool none = bottom < 0 || right < 0;
  o.image = image;
  o.row = row;
  o.col = col;
  o.first = (uint32_t)top * p.x.w + (uint32_t)left;
  o.x = (((int64_t)image * p.x.h + top) * p.x.w + left) * p.x.c;
  o.y = (((int64_t)image * p.y.h + row) * p.y.w + col) * p.y.c;
  o.low = GUARD - (none ? NOWHERE : place_of(0, field(max(0, -top)), field(max(0, -left))));
  o.high = GUARD + (none ? 0 : place_of(field((int32_t)(p.x.n - 1 - image)), field(bottom), field(right)));
  o.last = GUARD + place_of(field((int32_t)(p.y.n - 1 - image)), field((int32_t)(p.y.h - 1 - row)),
                            field((int32_t)(p.y.w - 1 - col)));
}

/// Tile `tile` of the block, from its number.
template <bool SKIP>
__device__ __forceinline__ void first_origin(Origin &o, const WeightGrad &p, uint32_t tap, uint32_t tile) {
  const uint32_t across = tile % p.across, rest = tile / p.across;
  set_origin<SKIP>(o, p, tap, rest / p.down * p.images, rest % p.down * p.rows, across * p.cols);
}

/// The one behind it. Past the last tile it is not used.
template <bool SKIP>
__device__ __forceinline__ void next_origin(Origin &o, const Origin &before, const WeightGrad &p, uint32_t tap) {
  uint32_t image = before.image, row = before.row, col = before.col + p.cols;
  if (col >= p.y.w) {
    col = 0;
    row += p.rows;
    if (row >= p.y.h) {
      row = 0;
      image += p.images;
    }
  }
  set_origin<SKIP>(o, p, tap, image, row, col);
}

/// Slots of output pixel (row, col) that do not lie on padding.
__device__ __forceinline__ uint32_t slots_of(const WeightGrad &p, uint32_t row, uint32_t col) {
  uint32_t mask = 0;
  for (uint32_t s = 0; s < p.taps * p.warp_windows; s++) {
    const uint32_t tap = s % p.taps;
    const uint32_t r = row * p.stride + tap / p.k - p.pad, c = col * p.stride + tap % p.k - p.pad;
    mask |= (uint32_t)(r < p.x.h && c < p.x.w) << s;
  }
  return mask;
}

/// Fills the tables that are the same for all tiles.
template <bool SKIP>
__device__ __forceinline__ void make_tables(const Shared &s, const WeightGrad &p) {
  const uint32_t tile = p.images * p.rows * p.cols;
  for (uint32_t i = threadIdx.x; i < p.pixels; i += THREADS) {
    Pixel pixel = {0, NOWHERE, 0, 0};
    if (i < tile) {
      // By position: the images of one position together. Else image by image.
      const uint32_t position = SKIP ? i / p.images : i % (p.rows * p.cols);
      const uint32_t image = SKIP ? i % p.images : i / (p.rows * p.cols);
      const uint32_t row = position / p.cols, col = position % p.cols;
      pixel = {(image * p.y.h + row) * p.y.w + col, place_of(image, row, col),
               image * p.image_pitch + row * p.step * p.row_pitch + col * p.step * p.pitch, row * p.y.w + col};
    }
    s.pixels[i] = pixel;
  }
  const uint32_t area = p.patch_rows * p.patch_cols;
  for (uint32_t i = threadIdx.x; i < p.images * area; i += THREADS) {
    const uint32_t image = i / area, row = i % area / p.patch_cols, col = i % p.patch_cols;
    const uint32_t in_image = row * p.gap * p.x.w + col * p.gap;
    s.patch[i] = {image * p.x.h * p.x.w + in_image, place_of(image, row * p.gap, col * p.gap),
                  image * p.image_pitch + row * p.row_pitch + col * p.pitch, in_image};
  }
  if constexpr (SKIP) {
    for (uint32_t i = threadIdx.x; i < p.y.h * p.y.w; i += THREADS) s.slots[i] = slots_of(p, i / p.y.w, i % p.y.w);
  }
  if (threadIdx.x == 0) *reinterpret_cast<uint4 *>(s.zero) = uint4{0, 0, 0, 0};
  if (p.bias) {
#pragma unroll
    for (int j = 0; j < 8; j++) s.bias[j * THREADS + threadIdx.x] = 0.0f;
  }
}

/// Eight channels of a pixel of which `channels` exist, to shared memory, at once: what cannot be copied as a piece.
template <class T>
__device__ __forceinline__ void copy_elements(unsigned char *to, const unsigned char *from, bool valid,
                                              uint32_t channels) {
  gpu::Vec<T> v;
#pragma unroll
  for (uint32_t j = 0; j < 8; j++)
    v.v[j] = valid && j < channels ? reinterpret_cast<const T *>(from)[j] : gpu::from_f32<T>(0.0f);
  gpu::store_vec(reinterpret_cast<T *>(to), v);
}

/// Whether a place of the patch lies inside of the image.
__device__ __forceinline__ bool inside(uint32_t low, uint32_t high, uint32_t place) {
  return ((place + low) & (high - place) & GUARD) == GUARD;
}

/// Begins to copy a tile.
template <class T, bool SKIP>
__device__ __forceinline__ void copy_tile(const Shared &s, uint32_t stage, const Origin &o, const T *dy, const T *x,
                                          const WeightGrad &p, const Block &block) {
  const uint32_t at = stage * p.stage;
  {
    const uint32_t log = 3 + p.log_rows, piece = threadIdx.x & ((1u << log) - 1), c = block.channel + piece * 8;
    const uint32_t first = threadIdx.x >> log, step = THREADS >> log, bytes = p.y.c * sizeof(T);
    const unsigned char *const from = reinterpret_cast<const unsigned char *>(dy + o.y + c);
    unsigned char *to = s.stages + at + p.dy_at + first * p.dy_pitch + piece * 16;
    // Without its guards a limit holds nothing.
    const uint32_t last = c < block.channel_end ? o.last : NOWHERE;
    if (p.vector_y) {
#pragma unroll 1
      for (uint32_t i = first; i < p.pixels; i += BATCH * step) {
        uint2 pixels[BATCH];
#pragma unroll
        for (int j = 0; j < BATCH; j++)
          pixels[j] = *reinterpret_cast<const uint2 *>(s.pixels + min(i + j * step, p.pixels - 1));
#pragma unroll
        for (int j = 0; j < BATCH; j++, to += step * p.dy_pitch)
          if (i + j * step < p.pixels)
            gpu::cp_async16(to, from + (uint64_t)pixels[j].x * bytes, ((last - pixels[j].y) & GUARD) == GUARD);
      }
    } else {
#pragma unroll 1
      for (uint32_t i = first; i < p.pixels; i += step, to += step * p.dy_pitch) {
        const uint2 pixel = *reinterpret_cast<const uint2 *>(s.pixels + i);
        copy_elements<T>(to, from + (uint64_t)pixel.x * bytes, ((last - pixel.y) & GUARD) == GUARD, p.y.c - c);
      }
    }
  }
  const uint32_t log = p.log_windows, window = threadIdx.x & ((1u << log) - 1), c = (block.window + window) * 8;
  if (window < p.windows) {
    const uint32_t first = threadIdx.x >> log, step = THREADS >> log, bytes = p.x.c * sizeof(T);
    const uint32_t total = p.images * p.patch_rows * p.patch_cols;
    const unsigned char *const from = reinterpret_cast<const unsigned char *>(x + o.x + c);
    unsigned char *const to = s.stages + at + window * 16;
    const uint32_t low = o.low, high = c < block.c_end ? o.high : NOWHERE;
    if (p.vector_x) {
#pragma unroll 1
      for (uint32_t i = first; i < total; i += BATCH * step) {
        Pixel pixels[BATCH];
#pragma unroll
        for (int j = 0; j < BATCH; j++) pixels[j] = pixel_at(s.patch + min(i + j * step, total - 1));
#pragma unroll
        for (int j = 0; j < BATCH; j++)
          if (i + j * step < total)
            gpu::cp_async16(to + pixels[j].at, from + (uint64_t)pixels[j].number * bytes,
                            inside(low, high, pixels[j].place));
      }
    } else {
#pragma unroll 1
      for (uint32_t i = first; i < total; i += step) {
        const Pixel pixel = pixel_at(s.patch + i);
        copy_elements<T>(to + pixel.at, from + (uint64_t)pixel.number * bytes, inside(low, high, pixel.place), p.x.c - c);
      }
    }
  }
  // Where the product finds the tile's pixels.
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < p.pixels; i += THREADS) {
    const Pixel pixel = pixel_at(s.pixels + i);
    if constexpr (SKIP) {
      s.starts[stage * p.pixels + i] = at + pixel.at + (uint32_t)o.shift;
      if (i % 16 == 0) s.masks[(stage * p.pixels + i) / 16] = s.slots[o.row * p.y.w + pixel.in_image];
    } else {
      const bool valid = ((o.last - pixel.place) & GUARD) == GUARD;
      s.starts[stage * p.pixels + i] = valid ? 2 * (at + pixel.at) + 1 : 2 * p.stages;
    }
  }
}

/// Adds noise to a piece that lies in shared memory, rounded as if the noisy image had been stored.
template <class T, int NOISE>
__device__ __forceinline__ void add_noise(unsigned char *piece, const Draw &draw, Row row, uint32_t pixel, uint32_t c) {
  T *const at = reinterpret_cast<T *>(piece);
  gpu::Vec<T> v = gpu::load_vec(at);
  float z[8];
  if constexpr (NOISE == 2)
    noise::normals<true>(z, draw, row, pixel, c / 8);
  else
    noise::normals<false>(z, draw, row, pixel, c / 8);
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    T pair[2];
    gpu::pack2(pair, fmaf(draw.sigma, z[j], gpu::to_f32(v.v[j])), fmaf(draw.sigma, z[j + 1], gpu::to_f32(v.v[j + 1])));
    v.v[j] = pair[0];
    v.v[j + 1] = pair[1];
  }
  gpu::store_vec(at, v);
}

/// Adds noise to what this thread copied of patch pixel `i`.
template <class T, int NOISE>
__device__ __forceinline__ void add_noise_at(const Shared &s, uint32_t stage, const Origin &o, uint32_t i,
                                             const WeightGrad &p, const Block &block, const Row *rows,
                                             const Draw &draw) {
  const uint32_t window = threadIdx.x & ((1u << p.log_windows) - 1), c = (block.window + window) * 8;
  const Pixel pixel = pixel_at(s.patch + i);
  if (window >= p.windows || c >= block.c_end || !inside(o.low, o.high, pixel.place)) return;
  add_noise<T, NOISE>(s.stages + stage * p.stage + pixel.at + window * 16, draw, rows[o.image + (pixel.place >> 20)],
                      o.first + pixel.in_image, c);
}

/// Adds the pieces of dy that this thread copied to its sums.
template <class T>
__device__ __forceinline__ void sum_outputs(const Shared &s, uint32_t stage, const WeightGrad &p) {
  const uint32_t log = 3 + p.log_rows, piece = threadIdx.x & ((1u << log) - 1);
  const unsigned char *const dys = s.stages + stage * p.stage + p.dy_at + piece * 16;
  float *const to = s.bias + threadIdx.x;
  float sum[8];
#pragma unroll
  for (int j = 0; j < 8; j++) sum[j] = to[j * THREADS];
#pragma unroll 1
  for (uint32_t i = threadIdx.x >> log; i < p.pixels; i += THREADS >> log) {
    const gpu::Vec<T> v = gpu::load_vec(reinterpret_cast<const T *>(dys + i * p.dy_pitch));
#pragma unroll
    for (int j = 0; j < 8; j++) sum[j] += gpu::to_f32(v.v[j]);
  }
#pragma unroll
  for (int j = 0; j < 8; j++) to[j * THREADS] = sum[j];
}

} // namespace weight_mma
