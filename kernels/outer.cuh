// The weight gradient of conv2d.cu: sums over pixels of outer products of dy and the taps' inputs.
//
// A block owns 64 output channels, some taps, some windows of eight input channels and a part of the pixels. It goes
// through its pixels 64 at a time: their dy and the patch they see are copied to shared memory, with noise if there
// is any. A thread holds the sums of eight output channels by one window of one tap. Where a block has fewer taps and
// windows than it has room for, several threads share them, each with a part of the pixels.
#pragma once
#include "patch.cuh"

namespace outer {

constexpr uint32_t THREADS = 288;
constexpr uint32_t PIXELS = 64;
constexpr uint32_t CHANNELS = 64;

/// What a block owns, and the tile it is at. In shared memory: the sums leave few registers.
struct Block {
  uint32_t split, group, channel, tap, window;
  /// The tile and where the split ends.
  uint32_t tile, end;
  /// The tile's pixels, without those beyond the image, and their patch.
  uint32_t count;
  patch::Origin origin;
};

/// What eight threads do for eight output channels each, from pixel `part` on every `parts`-th.
struct Slot {
  uint32_t part, tap, channel;
  /// Tap and channel in the patch.
  uint32_t offset;
};

/// One pixel of the tile.
struct Pixel {
  /// Its taps begin here in the patch.
  uint32_t patch;
  /// Its number in dy, counted from the tile's first image.
  uint32_t at;
};

/// Slot `i` of the block. One without work has no pixels.
__device__ __forceinline__ Slot slot_of(const Block &block, const Outer &p, uint32_t i) {
  const uint32_t window = i % p.windows, tap = block.tap + i / p.windows % p.taps, part = i / (p.taps * p.windows);
  const uint32_t c = block.origin.first + window * patch::WINDOW;
  const uint32_t row = tap / p.k - block.tap / p.k, col = tap % p.k;
  const bool works = part < p.parts && tap < p.k * p.k && c < block.origin.high;
  return {works ? part : PIXELS, tap, c, (row * p.patch.cols + col) * p.patch.pitch + window * patch::WINDOW};
}

/// Pieces of dw fastest, so that blocks which read the same pixels run together.
__device__ __forceinline__ void locate(Block &block, const Outer &p) {
  uint32_t i = blockIdx.x;
  block.tap = i % p.tap_blocks * p.taps;
  i /= p.tap_blocks;
  block.window = i % p.window_blocks * p.windows;
  i /= p.window_blocks;
  block.channel = i % p.channel_blocks * CHANNELS;
  i /= p.channel_blocks;
  block.group = i % p.groups;
  block.split = i / p.groups;
  block.tile = block.split * p.split_tiles;
  block.end = min(p.tiles, block.tile + p.split_tiles);
  block.origin.low = block.group * (p.x.c / p.groups);
  block.origin.high = block.origin.low + p.x.c / p.groups;
  block.origin.first = block.origin.low / 8 * 8 + block.window * patch::WINDOW;
}

/// Threads 0 to 63 describe the tile and its pixels. Pixels beyond the image take no part: their product with a NaN
/// would not be zero.
__device__ __forceinline__ void describe(Block &block, Pixel *pixels, const Outer &p) {
  const uint32_t tile = block.tile;
  const uint32_t col0 = tile % p.tile.across * p.tile.cols, rest = tile / p.tile.across;
  const uint32_t row0 = rest % p.tile.down * p.tile.rows, image0 = rest / p.tile.down * p.tile.images;
  const uint32_t images = min(p.tile.images, p.y.n - image0);
  const uint32_t rows = min(p.tile.rows, p.y.h - row0), cols = min(p.tile.cols, p.y.w - col0);
  if (threadIdx.x < images * rows * cols) {
    const uint32_t line = threadIdx.x / cols, col = threadIdx.x - line * cols;
    const uint32_t image = line / rows, row = line - image * rows;
    const uint32_t patch_row = image * p.patch.rows + row * p.patch.step;
    pixels[threadIdx.x] = {(patch_row * p.patch.cols + col * p.patch.step) * p.patch.pitch,
                           (image * p.y.h + row0 + row) * p.y.w + col0 + col};
  }
  if (threadIdx.x == 0) {
    block.origin.images = images;
    block.origin.image = image0;
    block.count = images * rows * cols;
    block.origin.top = (int32_t)(row0 * p.stride + block.tap / p.k * p.patch.gap - p.pad);
    block.origin.left = (int32_t)(col0 * p.stride - p.pad);
  }
}

/// Copies dy of the tile's pixels: `to[pixel][column]`.
template <class T>
__device__ __forceinline__ void load_outputs(float *to, const T *dy, const Block &block, const Pixel *pixels,
                                             const Outer &p) {
  const uint32_t c_out = p.y.c / p.groups, low = block.group * c_out;
  const T *image = dy + (uint64_t)block.origin.image * p.y.h * p.y.w * p.y.c;
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < block.count * 8; i += THREADS) {
    const uint32_t pixel = i / 8, first = low + block.channel + i % 8 * 8;
    float v[8] = {};
    patch::read(v, image + (uint64_t)pixels[pixel].at * p.y.c, p.y.c, first, low, low + c_out);
    patch::write(to + pixel * CHANNELS + i % 8 * 4, v, CHANNELS / 2);
  }
}

/// Writes a thread's sums, tap `tap` and channels `c .. c + 8`, those of the group.
__device__ __forceinline__ void write_sums(float *partial, const float (&sum)[8][8], const Block &block, const Outer &p,
                                           const Slot &slot) {
  const uint32_t part = slot.part, tap = slot.tap, c = slot.channel;
  const uint32_t c_in = p.x.c / p.groups, c_out = p.y.c / p.groups, o = block.channel + threadIdx.x % 8 * 8;
  const uint64_t row_len = (uint64_t)p.k * p.k * c_in;
  float *to = partial + (block.split * p.parts + part) * (p.y.c * row_len) + (block.group * c_out + o) * row_len +
              (uint64_t)tap * c_in;
#pragma unroll
  for (int m = 0; m < 8; m++, to += row_len) {
    if (o + m >= c_out) break;
    if (c_in % 4 == 0) {
#pragma unroll
      for (int j = 0; j < 8; j += 4)
        if (c + j >= block.origin.low && c + j < block.origin.high)
          gpu::store_vec(to + (c + j - block.origin.low),
                         gpu::Vec<float>{{sum[m][j], sum[m][j + 1], sum[m][j + 2], sum[m][j + 3]}});
    } else {
#pragma unroll
      for (int j = 0; j < 8; j++)
        if (c + j >= block.origin.low && c + j < block.origin.high) to[c + j - block.origin.low] = sum[m][j];
    }
  }
}

template <class T, int NOISE>
__device__ __forceinline__ void accumulate(float *partial, const T *dy, const T *x, const Outer &p,
                                           const Row *noise_rows, const Draw &draw) {
  GPU_SHARED(float, outputs, [PIXELS * CHANNELS]);
  GPU_SHARED(float, bias, [THREADS]);
  GPU_SHARED(Pixel, pixels, [PIXELS]);
  GPU_SHARED(Slot, slots, [THREADS / 8]);
  GPU_SHARED(Block, blocks, [1]);
  GPU_DYN_SHARED(dynamic);
  float *const inputs = reinterpret_cast<float *>(dynamic);
  Block &block = blocks[0];
  if (threadIdx.x == 0) locate(block, p);
  __syncthreads();

  // Neighbouring threads have neighbouring output channels.
  if (threadIdx.x < THREADS / 8) slots[threadIdx.x] = slot_of(block, p, threadIdx.x);

  // Threads 0 to 255 of one block of each split and group sum dy as well: four of them a channel.
  bias[threadIdx.x] = 0.0f;

  float sum[8][8] = {};
#pragma unroll 1
  do {
    __syncthreads();
    if (threadIdx.x < PIXELS) describe(block, pixels, p);
    __syncthreads();
    if (threadIdx.x == 0) block.tile++;
    load_outputs(outputs, dy, block, pixels, p);
    const volatile patch::Origin &origin = block.origin;
    patch::load<T, NOISE, THREADS>(inputs, x, p.x, p.patch, origin, noise_rows, draw);
    __syncthreads();
    const uint32_t count = block.count;
    {
      const Slot &slot = slots[threadIdx.x / 8];
      const float *a_from = outputs + threadIdx.x % 8 * 4, *b_from = inputs + slot.offset;
#pragma unroll 1
      for (uint32_t i = slot.part; i < count; i += p.parts) {
        const float *a_at = a_from + i * CHANNELS, *b_at = b_from + pixels[i].patch;
        const gpu::Vec<float> a0 = gpu::load_vec(a_at), a1 = gpu::load_vec(a_at + CHANNELS / 2);
        const gpu::Vec<float> b0 = gpu::load_vec(b_at), b1 = gpu::load_vec(b_at + 4);
#pragma unroll
        for (int m = 0; m < 4; m++)
#pragma unroll
          for (int j = 0; j < 4; j++) {
            sum[m][j] = fmaf(a0.v[m], b0.v[j], sum[m][j]);
            sum[m][j + 4] = fmaf(a0.v[m], b1.v[j], sum[m][j + 4]);
            sum[m + 4][j] = fmaf(a1.v[m], b0.v[j], sum[m + 4][j]);
            sum[m + 4][j + 4] = fmaf(a1.v[m], b1.v[j], sum[m + 4][j + 4]);
          }
      }
    }
    if (p.bias && block.tap == 0 && block.window == 0 && threadIdx.x < 4 * CHANNELS) {
      const float *from = outputs + patch::column<CHANNELS>(threadIdx.x % CHANNELS);
      float sum = bias[threadIdx.x];
#pragma unroll 1
      for (uint32_t i = threadIdx.x / CHANNELS; i < count; i += 4) sum += from[i * CHANNELS];
      bias[threadIdx.x] = sum;
    }
  } while (block.tile < block.end);

  const Slot slot = slots[threadIdx.x / 8];
  if (slot.part < PIXELS) write_sums(partial, sum, block, p, slot);
  if (p.bias && block.tap == 0 && block.window == 0) {
    __syncthreads();
    const uint32_t c_out = p.y.c / p.groups, o = block.channel + threadIdx.x;
    if (threadIdx.x < CHANNELS && o < c_out) {
      const float *q = bias + threadIdx.x;
      const uint64_t w_len = (uint64_t)p.y.c * p.k * p.k * (p.x.c / p.groups);
      float *to = partial + p.partial_rows * w_len + (uint64_t)block.split * p.y.c + block.group * c_out;
      to[o] = (q[0] + q[CHANNELS]) + (q[2 * CHANNELS] + q[3 * CHANNELS]);
    }
  }
}

/// See conv2d_weight_grad_sum.
template <bool VECTOR>
__device__ __forceinline__ void add_rows(float *dw, float *db, const float *partial, uint64_t w_len, uint32_t c_out,
                                         uint32_t splits, uint32_t bias_splits, uint32_t log_lanes) {
  constexpr uint32_t N = VECTOR ? 4 : 1;
  GPU_SHARED(float, sums, [N][256]);
  const uint32_t per_lane = 256u >> log_lanes, lane = threadIdx.x / per_lane;
  const uint64_t i = ((uint64_t)blockIdx.x * per_lane + threadIdx.x % per_lane) * N;
  const bool is_w = i < w_len, is_b = !is_w && i < w_len + (bias_splits > 0 ? c_out : 0);
  const uint64_t row_len = is_w ? w_len : c_out;
  const uint32_t rows = is_w ? splits : is_b ? bias_splits : 0;
  const float *from = is_w ? partial + i : partial + splits * w_len + (i - w_len);
  gpu::Vec<float> sum = {};
#pragma unroll 8
  for (uint32_t row = lane; row < rows; row += 1u << log_lanes) {
    if constexpr (VECTOR) {
      const gpu::Vec<float> v = gpu::load_vec(from + row * row_len);
#pragma unroll
      for (uint32_t j = 0; j < N; j++) sum.v[j] += v.v[j];
    } else {
      sum.v[0] += from[row * row_len];
    }
  }
#pragma unroll 1
  for (uint32_t half = 128; half >= per_lane; half /= 2) {
    if (threadIdx.x >= half && threadIdx.x < 2 * half) {
#pragma unroll
      for (uint32_t j = 0; j < N; j++) sums[j][threadIdx.x] = sum.v[j];
    }
    __syncthreads();
    if (threadIdx.x < half) {
#pragma unroll
      for (uint32_t j = 0; j < N; j++) sum.v[j] += sums[j][threadIdx.x + half];
    }
  }
  if (lane != 0 || rows == 0) return;
  float *const to = is_w ? dw + i : db + (i - w_len);
  if constexpr (VECTOR) {
    gpu::Vec<float> v = gpu::load_vec(to);
#pragma unroll
    for (uint32_t j = 0; j < N; j++) v.v[j] += sum.v[j];
    gpu::store_vec(to, v);
  } else {
    *to += sum.v[0];
  }
}

} // namespace outer
