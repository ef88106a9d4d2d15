// The weight gradient on tensor cores: dw = dy^T x, a product whose sum runs over pixels. Rows are output channels,
// columns are pairs of a tap and an input channel.
//
// A block goes through its part of the pixels a tile at a time. The tile's dy and its patch of x lie in shared memory,
// pixel by pixel, and ldmatrix.trans turns them as the product wants them; a tap is an offset into the patch. Each of
// the eight warps holds the sums of 64 output channels by nine slots, a slot being a tap and a window of eight input
// channels: a fragment of dy serves nine slots, one of x four times 16 output channels, and each element of x is
// copied, and its noise drawn, once for all taps. Where a block has less to do, warps share slots, each with a part of
// the pixels, and their sums are added at the end.
//
// Three tiles are in shared memory: the one that is multiplied, the next, to which noise is added meanwhile, and the
// one after, which is under way. A thread adds noise to what it copied itself.
//
// What does not count (pixels beyond the image, the border, images beyond the batch) is zero on both sides, so that a
// NaN beside it stays where it is.
#pragma once
#include "mma.cuh"
#include "weight_tile.cuh"

namespace weight_mma {

/// Adds the sums of the parts, halves of them at a time: `scratch` has 36 floats of each thread.
__device__ __forceinline__ void add_parts(float (&acc)[ROWS][SLOTS][4], float *scratch, uint32_t log_parts) {
#pragma unroll 1
  for (uint32_t half = THREADS / 2; half >= THREADS >> log_parts; half /= 2) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
      __syncthreads();
      if (threadIdx.x >= half && threadIdx.x < 2 * half) {
#pragma unroll
        for (int j = 0; j < SLOTS * 4; j++) scratch[j * half + threadIdx.x - half] = acc[i][j / 4][j % 4];
      }
      __syncthreads();
      if (threadIdx.x < half) {
#pragma unroll
        for (int j = 0; j < SLOTS * 4; j++) acc[i][j / 4][j % 4] += scratch[j * half + threadIdx.x];
      }
    }
  }
}

/// Two neighbouring sums: written, or added to what is there.
__device__ __forceinline__ void write_pair(float *to, float a, float b, bool direct, bool has_a, bool has_b, bool pair) {
  if (pair) {
    if (!has_a) return;
    float2 *const both = reinterpret_cast<float2 *>(to);
    float2 v = direct ? *both : float2{0.0f, 0.0f};
    v.x += a;
    v.y += b;
    *both = v;
  } else {
    if (has_a) to[0] = direct ? to[0] + a : a;
    if (has_b) to[1] = direct ? to[1] + b : b;
  }
}

/// Writes a warp's sums to dw or to the split's row of partial sums.
__device__ __forceinline__ void write_sums(float *to, const float (&acc)[ROWS][SLOTS][4], const WeightGrad &p,
                                           const Block &block, uint32_t row, uint32_t col) {
  const uint32_t lane = threadIdx.x % 32, area = p.k * p.k;
  const uint32_t c0 = (block.window + col * p.warp_windows) * 8 + lane % 4 * 2;
  const bool pairs = p.group_in % 2 == 0;
#pragma unroll
  for (int i = 0; i < 2 * ROWS; i++) {
    const uint32_t o = block.channel + row * 64 + i * 8 + lane / 4;
    const uint32_t group = o / p.group_out, low = group * p.group_in;
    // The supergroup before may share the first eight channels.
    if (o >= block.channel_end || o + p.merged * p.group_out < block.channel_end) continue;
    float *const from = to + (uint64_t)o * area * p.group_in;
    // Below 0 in the group before.
    uint32_t tap = block.tap, c = c0 - low;
#pragma unroll
    for (int s = 0; s < SLOTS; s++) {
      const bool exists = s < p.taps * p.warp_windows && tap < area;
      write_pair(from + (int64_t)tap * p.group_in + (int32_t)c, acc[i / 2][s][i % 2 * 2], acc[i / 2][s][i % 2 * 2 + 1], p.direct,
                 exists && c < p.group_in, exists && c + 1 < p.group_in, pairs);
      if (++tap == block.tap + p.taps) {
        tap = block.tap;
        c += 8;
      }
    }
  }
}

template <class T, int NOISE, bool SKIP>
__device__ __forceinline__ void accumulate(float *dw, float *db, const T *dy, const T *x, const WeightGrad &p,
                                           const Row *rows, const Draw &draw) {
  GPU_DYN_SHARED(dynamic);
  const Shared s = layout(dynamic, p, SKIP);
  const Block block = locate(p);
  const uint32_t begin = block.split * p.split_tiles, count = min(p.split_tiles, p.tiles - begin);
  make_tables<SKIP>(s, p);
  if (threadIdx.x == 0) {
    first_origin<SKIP>(s.origins[0], p, block.tap, begin);
    next_origin<SKIP>(s.origins[1], s.origins[0], p, block.tap);
    next_origin<SKIP>(s.origins[2], s.origins[1], p, block.tap);
  }
  __syncthreads();

  // A warp's part of the product, and what a lane brings to it: pixels of its rows of ldmatrix, and where its slots lie.
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t row = warp & ((1u << p.log_rows) - 1), col = warp >> p.log_rows & ((1u << p.log_cols) - 1);
  const uint32_t part = warp >> (p.log_rows + p.log_cols), parts = 1u << p.log_parts;
  uint32_t offsets[(SLOTS + 1) / 2];
#pragma unroll
  for (int j = 0; j < (SLOTS + 1) / 2; j++) {
    uint32_t slot = 2 * j + lane / 16;
    if (slot >= p.taps * p.warp_windows || block.tap + slot % p.taps >= p.k * p.k) slot = 0;
    const uint32_t tap = block.tap + slot % p.taps, window = col * p.warp_windows + slot / p.taps;
    offsets[j] = (tap / p.k - block.tap / p.k) * p.row_pitch + tap % p.k * p.pitch + min(window, p.windows - 1) * 16;
  }
  const uint32_t x_pixel = lane % 16, y_pixel = lane % 8 + lane / 16 * 8;
  const uint32_t y_offset = p.dy_at + y_pixel * p.dy_pitch + row * 128 + lane / 8 % 2 * 16;
  const uint32_t y_step = parts * 16 * p.dy_pitch;
  const uint32_t patch_pixels = p.images * p.patch_rows * p.patch_cols;
  const bool sums_bias = p.bias && block.tap == 0 && block.window == (block.c_end - p.merged * p.group_in) / 8;

#pragma unroll 1
  for (uint32_t t = 0; t < 2; t++) {
    if (t < count) copy_tile<T, SKIP>(s, t, s.origins[t], dy, x, p, block);
    gpu::cp_async_commit();
  }
  gpu::cp_async_wait<1>();
  if constexpr (NOISE != 0) {
#pragma unroll 1
    for (uint32_t i = threadIdx.x >> p.log_windows; i < patch_pixels; i += THREADS >> p.log_windows)
      add_noise_at<T, NOISE>(s, 0, s.origins[0], i, p, block, rows, draw);
  }
  __syncthreads();

  float acc[ROWS][SLOTS][4] = {};
  // Stages of this tile, the next and the one after.
  uint32_t now = 0, next = 1, after = 2;
#pragma unroll 1
  for (uint32_t t = 0; t < count; t++) {
    // The next tile is here.
    if constexpr (NOISE != 0) gpu::cp_async_wait<0>();
    if (threadIdx.x == 0) next_origin<SKIP>(s.origins[now], s.origins[after], p, block.tap);
    if (sums_bias) sum_outputs<T>(s, now, p);
    const uint32_t steps = p.pixels / 16;
    uint32_t noisy = t + 1 < count ? threadIdx.x >> p.log_windows : patch_pixels;
    // One half of the warps begins to copy at once, the other in the middle of the tile: the tensor cores have work.
    uint32_t step = part, copy_at = t + 2 >= count ? steps : warp < 4 ? 0 : steps / 2;
    // Where this step's pixels lie is read during the step before.
    const uint32_t *starts = s.starts + now * p.pixels + x_pixel;
    uint32_t start = starts[min(step, steps - 1) * 16];
    const unsigned char *y_from = s.stages + now * p.stage + y_offset + part * 16 * p.dy_pitch;
#pragma unroll 1
    while (true) {
      if (step >= copy_at && copy_at < steps) {
        copy_tile<T, SKIP>(s, after, s.origins[after], dy, x, p, block);
        gpu::cp_async_commit();
        copy_at = steps;
      }
      if (step < steps) {
        const uint32_t mask = SKIP ? s.masks[now * steps + step] : 0;
        uint32_t counts = start & 1;
        if constexpr (!SKIP) start >>= 1;
        uint32_t a[ROWS][4];
#pragma unroll
        for (int i = 0; i < ROWS; i++) gpu::ldmatrix<4, true>(a[i], y_from + i * 32);
        y_from += y_step;
        step += parts;
        const uint32_t next_start = starts[min(step, steps - 1) * 16];
#pragma unroll
        for (int j = 0; j < (SLOTS + 1) / 2; j++) {
          uint32_t b[4];
          // A slot on padding may lie before the patch: it is loaded from anywhere else, and not used.
          if constexpr (SKIP) counts = mask >> (2 * j + lane / 16) & 1;
          gpu::ldmatrix<4, true>(b, SKIP && counts == 0 ? s.zero : s.stages + (int32_t)(start + offsets[j] * counts));
#pragma unroll
          for (int h = 0; h < 2 && 2 * j + h < SLOTS; h++) {
            const uint32_t half[2] = {b[2 * h], b[2 * h + 1]};
            if (!SKIP || mask >> (2 * j + h) & 1) {
#pragma unroll
              for (int i = 0; i < ROWS; i++) gpu::mma<T>(acc[i][2 * j + h], a[i], half);
            }
          }
        }
        start = next_start;
      }
      if constexpr (NOISE != 0) {
        if (noisy < patch_pixels) {
          add_noise_at<T, NOISE>(s, next, s.origins[next], noisy, p, block, rows, draw);
          noisy += THREADS >> p.log_windows;
          continue;
        }
      }
      if (step >= steps && copy_at >= steps) break;
    }
    if constexpr (NOISE == 0) {
      if (t + 2 < count)
        gpu::cp_async_wait<1>();
      else
        gpu::cp_async_wait<0>();
    }
    __syncthreads();
    const uint32_t old = now;
    now = next;
    next = after;
    after = old;
  }

  add_parts(acc, reinterpret_cast<float *>(s.stages), p.log_parts);
  const uint64_t w_len = (uint64_t)p.y.c * p.k * p.k * p.group_in;
  if (part == 0) write_sums(dw + (p.direct ? 0 : block.split * w_len), acc, p, block, row, col);
  if (sums_bias) {
    // The threads that copied a channel's piece, in their order.
    const uint32_t log = 3 + p.log_rows, channels = 8u << log;
    for (uint32_t i = threadIdx.x; i < channels; i += THREADS) {
      float sum = 0.0f;
      for (uint32_t at = i / 8; at < THREADS; at += 1u << log) sum += s.bias[i % 8 * THREADS + at];
      const uint32_t o = block.channel + i;
      if (o < block.channel_end && o + p.merged * p.group_out >= block.channel_end) {
        float *const to = db + (p.direct ? 0 : (uint64_t)block.split * p.y.c) + o;
        *to = p.direct ? *to + sum : sum;
      }
    }
  }
}

} // namespace weight_mma
