// The direct convolution of conv2d.cu.
#pragma once
#include "patch.cuh"

namespace direct {

using conv::Axis;
using conv::axis;

constexpr uint32_t THREADS = 128;
/// Taps times input channels of one stage.
constexpr uint32_t DEPTH = 72;

/// What a block computes.
struct Place {
  uint32_t group, channel;
  uint32_t row_phase, col_phase;
  /// First image, row and column of the tile, in the pixels of the phase.
  uint32_t image, row, col;
};

/// Output channels fastest, then groups and phases, so that blocks which read the same patch run together.
template <bool GRAD, int COLS>
__device__ __forceinline__ Place locate(const Direct &p) {
  Place place;
  uint32_t i = blockIdx.x;
  place.channel = i % p.blocks * COLS;
  i /= p.blocks;
  place.group = i % p.groups;
  i /= p.groups;
  place.row_phase = place.col_phase = 0;
  if constexpr (GRAD) {
    place.col_phase = i % p.col_phases;
    i /= p.col_phases;
    place.row_phase = i % p.row_phases;
    i /= p.row_phases;
  }
  place.col = i % p.tile.across * p.tile.cols;
  i /= p.tile.across;
  place.row = i % p.tile.down * p.tile.rows;
  place.image = i / p.tile.down * p.tile.images;
  return place;
}

/// Taps of one stage, and the channels of the sum.
struct Stage {
  uint32_t tap, taps, first, channels;
};

/// Loads of a thread in flight at a time.
constexpr int BATCH = 4;

/// Elements `at .. at + 4` of `low .. high`, zero outside; `from` points to element `at`. Whole vectors if `vectors`:
/// the element `low` lies at a 16-byte boundary then, and `at` is four times something beyond or before it.
__device__ __forceinline__ gpu::Vec<float> load_quad(const float *from, uint32_t at, uint32_t low, uint32_t high,
                                                     bool vectors) {
  gpu::Vec<float> v = {};
  if (vectors) {
    if (at >= low && at < high) v = gpu::load_vec(from);
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (at + j >= low && at + j < high) v.v[j] = from[j];
  }
  return v;
}

/// Stages weights as `to[tap][channel][column]`. In forward the sum runs over input channels, and columns are output
/// channels.
template <int COLS>
__device__ __forceinline__ void load_weights(float *to, const float *w, const Direct &p, const Place &place,
                                             const Stage &s) {
  const uint32_t c_in = p.from.c / p.groups, c_out = p.to.c / p.groups, low = place.group * c_in;
  const uint32_t quads_log2 = 29 - __clz(s.channels), total = s.taps << quads_log2;
  // Consecutive threads take consecutive columns, so that their stores meet no bank twice.
  const uint32_t at = threadIdx.x % COLS;
  const uint32_t o = at % (COLS / 2) / 4 * 8 + at / (COLS / 2) * 4 + at % 4 + place.channel;
  const float *row = w + ((uint64_t)(place.group * c_out + o) * (p.k * p.k) + s.tap) * c_in;
#pragma unroll 1
  for (uint32_t i = threadIdx.x / COLS; i < total; i += BATCH * (THREADS / COLS)) {
    gpu::Vec<float> v[BATCH];
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
      const uint32_t unit = i + b * (THREADS / COLS), tap = unit >> quads_log2;
      const uint32_t c = s.first + (unit - (tap << quads_log2)) * 4;
      v[b] = {};
      if (unit < total && o < c_out)
        v[b] = load_quad(row + (uint64_t)tap * c_in + c - low, c, low, low + c_in, c_in % 4 == 0);
    }
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
      const uint32_t unit = i + b * (THREADS / COLS);
      // Unit and quad of a tap are counted together: the taps' channels lie one behind the other.
      if (unit < total)
#pragma unroll
        for (int j = 0; j < 4; j++) to[(unit * 4 + j) * COLS + at] = v[b].v[j];
    }
  }
}

/// The same for the input gradient: the sum runs over output channels, columns are input channels.
template <int COLS>
__device__ __forceinline__ void load_weights(float *to, const float *w, const Direct &p, const Place &place,
                                             const Stage &s, const Axis &rows, const Axis &cols, uint32_t cols_magic) {
  const uint32_t c_out = p.from.c / p.groups, c_in = p.to.c / p.groups, low = place.group * c_out;
  const uint32_t channels_log2 = 31 - __clz(s.channels), total = s.taps << channels_log2;
  const uint32_t quad = threadIdx.x % (COLS / 4), c = place.channel + quad * 4;
#pragma unroll 1
  for (uint32_t i = threadIdx.x / (COLS / 4); i < total; i += BATCH * (THREADS / (COLS / 4))) {
    gpu::Vec<float> v[BATCH];
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
      const uint32_t unit = i + b * (THREADS / (COLS / 4)), tap = s.tap + (unit >> channels_log2);
      const uint32_t o = s.first + (unit & (s.channels - 1));
      const uint32_t row = conv::divide(tap, cols_magic), col = tap - row * cols.taps;
      const uint32_t at = (rows.u + row * rows.du) * p.k + cols.u + col * cols.du;
      v[b] = {};
      if (unit < total && o >= low && o < low + c_out)
        v[b] = load_quad(w + ((uint64_t)o * (p.k * p.k) + at) * c_in + c, c, 0, c_in, c_in % 4 == 0);
    }
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
      const uint32_t unit = i + b * (THREADS / (COLS / 4));
      if (unit < total) gpu::store_vec(to + unit * COLS + patch::column<COLS>(quad * 4), v[b]);
    }
  }
}

/// Writes channels `first .. first + 8` of a group of `count`, in vectors where the group's channels are whole vectors.
template <class T>
__device__ __forceinline__ void store(T *group, const float (&v)[8], uint32_t first, uint32_t count) {
  constexpr int N = gpu::Vec<T>::N;
  if (count % N == 0) {
#pragma unroll
    for (int i = 0; i < 8; i += N) {
      gpu::Vec<T> vec;
#pragma unroll
      for (int j = 0; j < N; j++) vec.v[j] = gpu::from_f32<T>(v[i + j]);
      if (first + i < count) gpu::store_vec(group + first + i, vec);
    }
  } else {
#pragma unroll
    for (int j = 0; j < 8; j++)
      if (first + j < count) group[first + j] = gpu::from_f32<T>(v[j]);
  }
}

/// Output pixel `m` of the tile: where its taps begin in the patch.
__device__ __forceinline__ uint32_t patch_offset(const Direct &p, uint32_t m) {
  if (m >= p.tile.images * p.tile.rows * p.tile.cols) return 0;
  const uint32_t line = conv::divide(m, p.tile.col_magic), col = m - line * p.tile.cols;
  const uint32_t image = conv::divide(line, p.tile.row_magic), row = line - image * p.tile.rows;
  return ((image * p.patch.rows + row * p.patch.step) * p.patch.cols + col * p.patch.step) * p.patch.pitch;
}

/// A thread has TX = COLS / 8 pixels, 128 / TX apart, and eight neighbouring channels.
template <class T, int NOISE, bool GRAD, int COLS>
__device__ __forceinline__ void convolve(T *y, const T *x, const float *w, const float *b, const Direct &p,
                                         const Row *noise_rows, const Draw &draw) {
  constexpr int TX = COLS / 8, TY = THREADS / TX, M = TX;
  GPU_SHARED(float, weights, [DEPTH * COLS]);
  GPU_DYN_SHARED(dynamic);
  float *const pixels = reinterpret_cast<float *>(dynamic);

  const Place place = locate<GRAD, COLS>(p);
  const Axis rows = axis(GRAD, p, place.row_phase), cols = axis(GRAD, p, place.col_phase);
  const uint32_t cols_magic = GRAD && cols.taps > 0 ? (0x80000000u + cols.taps - 1) / cols.taps : 0;
  const uint32_t tx = threadIdx.x % TX, ty = threadIdx.x / TX;
  const uint32_t c_in = p.from.c / p.groups, c_out = p.to.c / p.groups;
  const uint32_t low = place.group * c_in, high = low + c_in;
  const uint32_t channels = p.patch.windows * patch::WINDOW, most_taps = DEPTH / channels;
  const int32_t step = (int32_t)(p.patch.step * p.patch.gap);
  const int32_t top = (int32_t)place.row * step + rows.first, left = (int32_t)place.col * step + cols.first;

  uint32_t offset[M];
#pragma unroll
  for (int m = 0; m < M; m++) offset[m] = patch_offset(p, ty + m * TY);

  float sum[M][8];
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const uint32_t o = place.channel + tx * 8 + j;
    const float bias = b != nullptr && o < c_out ? b[place.group * c_out + o] : 0.0f;
#pragma unroll
    for (int m = 0; m < M; m++) sum[m][j] = bias;
  }

#pragma unroll 1
  for (uint32_t c = low / 8 * 8; c < high; c += channels) {
    const uint32_t quads = (min(high - c, channels) + 3) / 4;
#pragma unroll 1
    for (uint32_t u = 0; u < rows.taps; u += p.band) {
      const uint32_t taps = min(p.band, rows.taps - u) * cols.taps;
      if (taps == 0) continue;
      const patch::Origin origin = {place.image, p.tile.images, top + (int32_t)u, left, c, low, high};
      patch::load<T, NOISE, THREADS>(pixels, x, p.from, p.patch, origin, noise_rows, draw);
      uint32_t col = 0, tap_offset = 0;
#pragma unroll 1
      for (uint32_t tap = 0; tap < taps; tap += most_taps) {
        const uint32_t here = min(most_taps, taps - tap);
        const Stage stage = {u * cols.taps + tap, here, c, channels};
        if constexpr (GRAD) load_weights<COLS>(weights, w, p, place, stage, rows, cols, cols_magic);
        if constexpr (!GRAD) load_weights<COLS>(weights, w, p, place, stage);
        __syncthreads();
#pragma unroll 1
        for (uint32_t t = 0; t < here; t++) {
          const float *wt = weights + t * channels * COLS + tx * 4;
          const float *px = pixels + tap_offset;
#pragma unroll 1
          for (uint32_t quad = 0; quad < quads; quad++, px += 4, wt += 4 * COLS) {
            gpu::Vec<float> a[M];
#pragma unroll
            for (int m = 0; m < M; m++) a[m] = gpu::load_vec(px + offset[m]);
#pragma unroll
            for (int i = 0; i < 4; i++) {
              const gpu::Vec<float> b0 = gpu::load_vec(wt + i * COLS), b1 = gpu::load_vec(wt + i * COLS + COLS / 2);
#pragma unroll
              for (int m = 0; m < M; m++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                  sum[m][j] = fmaf(a[m].v[i], b0.v[j], sum[m][j]);
                  sum[m][j + 4] = fmaf(a[m].v[i], b1.v[j], sum[m][j + 4]);
                }
            }
          }
          tap_offset += p.patch.pitch;
          if (++col == cols.taps) {
            col = 0;
            tap_offset += (p.patch.cols - cols.taps) * p.patch.pitch;
          }
        }
        __syncthreads();
      }
    }
  }

  // Rows and columns of this phase.
  const uint32_t grid = GRAD ? p.stride : 1;
#pragma unroll
  for (int m = 0; m < M; m++) {
    const uint32_t at = ty + m * TY;
    const uint32_t line = conv::divide(at, p.tile.col_magic), col = at - line * p.tile.cols;
    const uint32_t image = conv::divide(line, p.tile.row_magic), row = line - image * p.tile.rows;
    const uint32_t n = place.image + image;
    const uint32_t i = (place.row + row) * grid + place.row_phase, j = (place.col + col) * grid + place.col_phase;
    if (image < p.tile.images && n < p.to.n && i < p.to.h && j < p.to.w) {
      const uint64_t pixel = ((uint64_t)n * p.to.h + i) * p.to.w + j;
      store(y + pixel * p.to.c + place.group * c_out, sum[m], place.channel + tx * 8, c_out);
    }
  }
}

} // namespace direct
