// Halo patches: what a tile of pixels sees of its input, in shared memory as f32, with the zero border and with
// the noise. Every element is read, and its noise drawn, once for all taps of the kernel.
#pragma once
#include "conv2d.cuh"
#include "noise.cuh"

namespace patch {

/// Channels that one thread copies at a time: what one block of the fast noise serves.
constexpr uint32_t WINDOW = 8;

/// Where output channel `o` of a block of COLS lies in a row of shared memory. A thread's eight channels are two
/// vectors half a row apart: a warp then reads each half from neighbouring banks.
template <int COLS>
__device__ __forceinline__ uint32_t column(uint32_t o) {
  return o % 8 / 4 * (COLS / 2) + o / 8 * 4 + o % 4;
}

/// Channels `c .. c + 8` of a pixel, those outside of `low .. high` left as they are. `x` points to channel 0.
template <class T>
__device__ __forceinline__ void read(float (&v)[8], const T *x, uint32_t channels, uint32_t c, uint32_t low,
                                     uint32_t high) {
  constexpr int N = gpu::Vec<T>::N;
  if (c >= low && c + 8 <= high && channels % N == 0) {
#pragma unroll
    for (int i = 0; i < 8; i += N) {
      const gpu::Vec<T> vec = gpu::load_vec(x + c + i);
#pragma unroll
      for (int j = 0; j < N; j++) v[i + j] = gpu::to_f32(vec.v[j]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < 8; j++)
      if (c + j >= low && c + j < high) v[j] = gpu::to_f32(x[c + j]);
  }
}

/// Eight floats at a 16-byte boundary of shared memory: four, and four more `apart` floats behind.
__device__ __forceinline__ void write(float *to, const float (&v)[8], uint32_t apart) {
  gpu::store_vec(to, gpu::Vec<float>{{v[0], v[1], v[2], v[3]}});
  gpu::store_vec(to + apart, gpu::Vec<float>{{v[4], v[5], v[6], v[7]}});
}

/// Adds noise to two elements of channels `c` and `c + 1`, those in `low .. high`.
template <class T>
__device__ __forceinline__ void add_pair(float *x, float sigma, float z0, float z1, uint32_t c, uint32_t low,
                                         uint32_t high) {
  if (c >= low && c < high) x[0] = gpu::to_f32(gpu::from_f32<T>(fmaf(sigma, z0, x[0])));
  if (c + 1 >= low && c + 1 < high) x[1] = gpu::to_f32(gpu::from_f32<T>(fmaf(sigma, z1, x[1])));
}

/// Adds noise to channels `c .. c + 8` of a pixel, those in `low .. high`; they lie in shared memory already, for want
/// of registers. An element is rounded to T as if the noisy image had been stored.
template <class T, bool PRECISE>
__device__ __forceinline__ void add_noise(float *x, const Draw &draw, Row row, uint32_t pixel, uint32_t c, uint32_t low,
                                          uint32_t high) {
  // In as few registers as it can be done, for the same reason.
  if constexpr (PRECISE) {
#pragma unroll 1
    for (uint32_t i = 0; i < 8; i += 4) {
      const noise::Words words = noise::words(draw, row, pixel * draw.blocks + (c + i) / 4);
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        float z0, z1;
        noise::precise(words.w[j], words.w[j + 1], z0, z1);
        add_pair<T>(x + i + j, draw.sigma, z0, z1, c + i + j, low, high);
      }
    }
  } else {
    const noise::Words words = noise::words(draw, row, pixel * draw.blocks + c / 8);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      float z0, z1;
      noise::fast(words.w[j], z0, z1);
      add_pair<T>(x + 2 * j, draw.sigma, z0, z1, c + 2 * j, low, high);
    }
  }
}

/// Where a patch lies.
struct Origin {
  /// First image, and how many.
  uint32_t image, images;
  /// The input pixel of patch pixel (0, 0).
  int32_t top, left;
  /// First channel, a multiple of 8, and the channels `low .. high` that are wanted.
  uint32_t first, low, high;
};

/// Fills a patch. Zero: what lies outside of the images or of the wanted channels. A caller that is short of registers
/// passes a volatile origin in shared memory.
template <class T, int NOISE, int THREADS, class O>
__device__ __forceinline__ void load(float *to, const T *x, const Dims &dims, const Patch &p, const O &o,
                                     const Row *rows, const Draw &draw) {
  const uint32_t total = o.images * p.rows * p.cols * p.windows;
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < total; i += THREADS) {
    const uint32_t at = conv::divide(i, p.window_magic), window = i - at * p.windows;
    const uint32_t line = conv::divide(at, p.col_magic), col = at - line * p.cols;
    const uint32_t which = conv::divide(line, p.row_magic), row = line - which * p.rows;
    const uint32_t n = o.image + which, c = o.first + window * WINDOW, low = o.low, high = o.high;
    // A pixel above or left of the image wraps around to one far below or right of it.
    const uint32_t r = (uint32_t)o.top + row * p.gap, q = (uint32_t)o.left + col * p.gap;
    float *const eight = to + at * p.pitch + window * WINDOW;
    float v[8] = {};
    const bool inside = n < dims.n && r < dims.h && q < dims.w && c < high;
    if (inside)
      read(v, x + (((uint64_t)divide(n, p.draws) * dims.h + r) * dims.w + q) * dims.c, dims.c, c, low, high);
    write(eight, v, 4);
    if constexpr (NOISE != 0)
      if (inside) add_noise<T, NOISE == 2>(eight, draw, rows[n], r * dims.w + q, c, low, high);
  }
}

} // namespace patch
