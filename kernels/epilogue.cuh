// What follows a tensor cores' convolution before its result leaves the chip: bias, the batch norm's statistics, the
// residual, the activation, a 2x2 max pool, the mask, and the next layer's noise; src/ops/fused_conv2d. Every part is
// optional. The noise is added to what would have been stored without it, so that it is the same as anywhere else.
#pragma once
#include "channels.cuh"
#include "divide.cuh"
#include "implicit_gemm.cuh"

/// What is wanted.
struct Epilogue {
  /// Bounds of the activation.
  float low, cap;
  /// 2x2 max pool of stride 2: tiles then have even sides and start at even pixels.
  uint32_t pool;
  /// Noise behind it: 0 none, 1 fast, 2 precise.
  uint32_t noise;
  /// Whether the mask is there before: the result is 0 where it has no bit. Without pool and noise.
  uint32_t gated;
  /// Whether eight channels can be stored as 16-byte pieces.
  uint32_t vectors;
  /// Divides by the pixels of an image of the result.
  Divisor image;
};

namespace epilogue {

/// Sums over the lanes that hold the same columns of a fragment, in every one of them; many side by side, since each
/// exchange takes long and they stay in their order.
template <int COUNT>
__device__ __forceinline__ void sum_rows(float (&v)[COUNT]) {
#pragma unroll
  for (int d = 4; d < 32; d *= 2)
#pragma unroll
    for (int i = 0; i < COUNT; i++) v[i] += __shfl_xor_sync(0xffffffffu, v[i], d);
}

/// Of how many of a lane's ROWS rows, a bit each, a warp has the pixel.
template <int ROWS>
__device__ __forceinline__ uint32_t count_rows(uint32_t exists) {
  float count[1] = {(float)__popc(exists)};
  sum_rows(count);
  return (uint32_t)count[0];
}

/// Statistics of COUNT columns of a warp's rows, side by side, in two passes over its registers: `value(row, i)` is what
/// a lane has of column i. `mean` becomes the means, `squares` the sums of squared deviations, in every lane.
template <int ROWS, int COUNT, class Value>
__device__ __forceinline__ void moments(float (&mean)[COUNT], float (&squares)[COUNT], uint32_t exists, float inverse,
                                        Value value) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    mean[i] = 0.0f;
#pragma unroll
    for (int m = 0; m < ROWS; m++)
      if (exists >> m & 1) mean[i] += value(m, i);
  }
  sum_rows(mean);
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    mean[i] *= inverse;
    squares[i] = 0.0f;
#pragma unroll
    for (int m = 0; m < ROWS; m++) {
      const float d = value(m, i) - mean[i];
      if (exists >> m & 1) squares[i] = fmaf(d, d, squares[i]);
    }
  }
  sum_rows(squares);
}

/// Writes the moments of columns 8 (i / 2) + lane % 4 x 2 + i % 2 from `out` on, those below `columns`: the lanes of row q
/// of the fragment those of i / 2 = q. `stride` floats lie between the mean, 0 and the squares.
template <int COUNT>
__device__ __forceinline__ void write_moments(float *out, uint32_t stride, uint32_t columns,
                                              const float (&mean)[COUNT], const float (&squares)[COUNT]) {
  static_assert(COUNT <= 16, "a row of the fragment for every two");
  const uint32_t lane = threadIdx.x % 32, row = lane / 4, first = row * 8 + lane % 4 * 2;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    float m = mean[j], s = squares[j];
#pragma unroll
    for (int i = 2; i < COUNT; i += 2) {
      m = row == (uint32_t)i / 2 ? mean[i + j] : m;
      s = row == (uint32_t)i / 2 ? squares[i + j] : s;
    }
    const uint32_t c = first + j;
    if (row >= COUNT / 2 || c >= columns) continue;
    out[c] = m;
    out[stride + c] = 0.0f;
    out[2 * stride + c] = s;
  }
}

/// Statistics of a warp's rows: `partial` is [chunks, 3, c], the mean, 0 and the sum of squared deviations, and `counts`
/// the pixels of a chunk; see batch_norm.cu. A warp's rows of a tile are a chunk.
template <int TILE>
__device__ __forceinline__ void statistics(float *partial, uint32_t *counts,
                                           const float (&sum)[gemm::Shape<TILE>::M][gemm::Shape<TILE>::N][4],
                                           const Gemm &p, const gemm::Place &place, const uint32_t *to) {
  using S = gemm::Shape<TILE>;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t part = S::TALL ? warp : warp / 2, parts = S::TALL ? 4 : 2;
  const uint32_t warp_col = S::TALL ? 0 : warp % 2 * S::WARP_COLS;
  uint32_t exists = 0;
#pragma unroll
  for (int m = 0; m < 2 * S::M; m++)
    if (to[part * S::WARP_ROWS + m * 8 + lane / 4] != gemm::OUTSIDE) exists |= 1u << m;
  const uint32_t count = count_rows<2 * S::M>(exists), chunk = place.tile * parts + part;
  if (lane == 0 && warp_col == 0 && place.column == 0 && place.supergroup == 0) counts[chunk] = count;
  float mean[2 * S::N], squares[2 * S::N];
  moments<2 * S::M>(mean, squares, exists, count > 0 ? 1.0f / (float)count : 0.0f,
                    [&](int m, int i) { return sum[m / 2][i / 2][m % 2 * 2 + i % 2]; });
  const uint32_t column = place.column + warp_col, first = place.supergroup * p.to_channels + column;
  const uint32_t end = min(p.to_channels - min(p.to_channels, column), p.to.c - min(p.to.c, first));
  write_moments(partial + (uint64_t)chunk * 3 * p.to.c + first, p.to.c, end, mean, squares);
}

/// Where a launch's results go, and what they need; all but `y` may be null.
template <class T>
struct Results {
  T *y;
  const T *residual;
  uint8_t *mask, *argmax;
  const Row *rows;
};

/// Activation, mask, rounding, noise and store of a window at pixel `pixel` of the result. `draw` is a kernel's
/// parameter: Philox's keys then come from the constant bank.
template <class T>
__device__ __forceinline__ void emit(float (&v)[8], const Results<T> &to, const Epilogue &e, const Draw &draw,
                                     uint32_t pixel, uint32_t channel, uint32_t count, uint32_t c) {
  if (to.mask && !e.gated)
    to.mask[(uint64_t)pixel * ((c + 7) / 8) + channel / 8] = (uint8_t)mask8(v, e.low, e.cap);
  if (e.noise != 0) {
    round_to<T, 8>(v);
    const Division image = divide_rest(pixel, e.image);
    const Row row = to.rows[image.quotient];
    if (e.noise == 1) {
      noise::add<false>(v, draw, row, image.remainder, channel / 8);
    } else {
      noise::add<true>(v, draw, row, image.remainder, channel / 8);
    }
  }
  store8(to.y + (uint64_t)pixel * c + channel, v, count, e.vectors);
}

/// Everything behind the sums. `shared` has room for ROWS x (columns of a slice + 8) floats.
template <class T, int TILE>
__device__ __forceinline__ void finish(float (&sum)[gemm::Shape<TILE>::M][gemm::Shape<TILE>::N][4],
                                       const Results<T> &to, const float *bias, float *partial, uint32_t *counts,
                                       const Gemm &p, const gemm::Place &place, const uint32_t *pixels,
                                       const Epilogue &e, const Draw &draw, unsigned char *shared) {
  using S = gemm::Shape<TILE>;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t warp_row = (S::TALL ? warp : warp / 2) * S::WARP_ROWS, warp_side = S::TALL ? 0 : warp % 2;
  const uint32_t first_channel = place.supergroup * p.to_channels;
  const uint32_t channels = min(p.to_channels, p.to.c - first_channel);
  if (bias) {
#pragma unroll
    for (int n = 0; n < S::N; n++) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const uint32_t column = place.column + warp_side * S::WARP_COLS + n * 8 + lane % 4 * 2 + j;
        const float b = column < channels ? bias[first_channel + column] : 0.0f;
#pragma unroll
        for (int m = 0; m < S::M; m++) sum[m][n][j] += b, sum[m][n][2 + j] += b;
      }
    }
  }
  if (partial) statistics<TILE>(partial, counts, sum, p, place, pixels);

  // In slices of 32 columns of each warp, so that a thread then has eight neighbouring channels of a pixel. The pitch
  // keeps both accesses free of bank conflicts.
  constexpr uint32_t WINDOWS = S::TALL ? 4 : 8, PITCH = WINDOWS * 8 + 8;
  float *const stage = reinterpret_cast<float *>(shared);
#pragma unroll
  for (int slice = 0; slice < S::WARP_COLS / 32; slice++) {
    if (slice > 0) __syncthreads();
#pragma unroll
    for (int m = 0; m < S::M; m++) {
#pragma unroll
      for (int n = 0; n < 4; n++) {
        float *at = stage + (warp_row + m * 16 + lane / 4) * PITCH + warp_side * 32 + n * 8 + lane % 4 * 2;
        const float(&from)[4] = sum[m][slice * 4 + n];
        *reinterpret_cast<float2 *>(at) = {from[0], from[1]};
        *reinterpret_cast<float2 *>(at + 8 * PITCH) = {from[2], from[3]};
      }
    }
    __syncthreads();
    const uint32_t window = threadIdx.x % WINDOWS;
    const uint32_t column = place.column + window / 4 * S::WARP_COLS + slice * 32 + window % 4 * 8;
    if (column >= channels) continue;
    const uint32_t count = min(channels - column, 8u), channel = first_channel + column;
    if (!e.pool) {
#pragma unroll 1
      for (uint32_t row = threadIdx.x / WINDOWS; row < (uint32_t)S::ROWS; row += gemm::THREADS / WINDOWS) {
        const uint32_t pixel = pixels[row];
        if (pixel == gemm::OUTSIDE) continue;
        float v[8];
        unpack(v, load_raw(stage + row * PITCH + window * 8, 8, true));
        if (to.residual) {
          float add[8];
          unpack(add, load_raw(to.residual + (uint64_t)pixel * p.to.c + channel, count, e.vectors));
#pragma unroll
          for (int j = 0; j < 8; j++) v[j] = __fadd_rn(v[j], add[j]);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = clip(v[j], e.low, e.cap);
        if (e.gated) {
          const uint32_t bits = to.mask[(uint64_t)pixel * ((p.to.c + 7) / 8) + channel / 8];
#pragma unroll
          for (int j = 0; j < 8; j++) v[j] = bits >> j & 1 ? v[j] : 0.0f;
        }
        emit(v, to, e, draw, pixel, channel, count, p.to.c);
      }
      continue;
    }
    // The four pixels of a window of the pool; the first is at an even row and column of its image.
    const uint32_t cells_across = p.tile.cols / 2, cells_down = p.tile.rows / 2, height = p.to.h / 2, width = p.to.w / 2;
    const uint32_t apart = S::BY_POSITION ? p.tile.images : 1;
    const uint32_t below = S::BY_POSITION ? 2 * p.tile.images : p.tile.cols;
#pragma unroll 1
    for (uint32_t cell = threadIdx.x / WINDOWS; cell < p.tile.images * cells_down * cells_across;
         cell += gemm::THREADS / WINDOWS) {
      uint32_t row, image, i, j;
      if constexpr (S::BY_POSITION) {
        const uint32_t square = cell / p.tile.images;
        image = cell % p.tile.images, i = square / cells_across, j = square % cells_across;
        row = square * 4 * p.tile.images + image;
      } else {
        const uint32_t line = cell / cells_across;
        image = line / cells_down, i = line % cells_down, j = cell % cells_across;
        row = (image * p.tile.rows + 2 * i) * p.tile.cols + 2 * j;
      }
      i += place.row / 2, j += place.col / 2, image += place.image;
      if (image >= p.to.n || i >= height || j >= width) continue;
      float best[8];
      uint32_t first[8];
#pragma unroll
      for (int q = 0; q < 4; q++) {
        float v[8];
        unpack(v, load_raw(stage + (row + q / 2 * below + q % 2 * apart) * PITCH + window * 8, 8, true));
        // As a pass behind it would see them.
        round_to<T, 8>(v);
#pragma unroll
        for (int k = 0; k < 8; k++) {
          const float value = clip(v[k], e.low, e.cap);
          const bool take = q == 0 || value > best[k] || isnan(value);
          best[k] = take ? value : best[k];
          first[k] = take ? q : first[k];
        }
      }
      const uint32_t pixel = (image * height + i) * width + j;
      if (to.argmax)
#pragma unroll
        for (int k = 0; k < 8; k++)
          if (k < (int)count) to.argmax[(uint64_t)pixel * p.to.c + channel + k] = (uint8_t)first[k];
      emit(best, to, e, draw, pixel, channel, count, p.to.c);
    }
  }
}

} // namespace epilogue
