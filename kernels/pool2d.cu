// Pooling, src/ops/pool2d: windows of k x k, step `stride`, no padding. Backward gathers: an element of dx
// sums over the windows it lies in, in their order, so that overlapping windows need no atomics.
#include "channels.cuh"
#include "divide.cuh"

/// Input [n, h, w] and window.
struct Window {
  uint32_t h, w;
  uint32_t k, stride;
};

namespace pool2d {

/// A pixel of [n, h, w].
struct Pixel {
  uint32_t n, i, j;
};

__device__ __forceinline__ Pixel pixel(uint32_t at, const Divisor &h, const Divisor &w) {
  Division line = divide_rest(at, w), image = divide_rest(line.quotient, h);
  return {image.quotient, image.remainder, line.remainder};
}

/// The windows along one axis that cover position `at`: begin .. end, `out` windows in all.
struct Range {
  uint32_t begin, end;
};

__device__ __forceinline__ Range covering(uint32_t at, const Window &win, uint32_t out) {
  uint32_t begin = at < win.k ? 0 : (at - win.k) / win.stride + 1;
  return {begin, min(at / win.stride + 1, out)};
}

/// The first largest element of eight windows, and its number.
struct Largest {
  float value[8] = {};
  uint32_t first[8] = {};

  /// Element `e`, in order from 0.
  __device__ __forceinline__ void see(const float (&v)[8], uint32_t e) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
      bool take = e == 0 || v[j] > value[j] || isnan(v[j]);
      value[j] = take ? v[j] : value[j];
      first[j] = take ? e : first[j];
    }
  }
};

}  // namespace pool2d

/// y and, per output, the number i k + j of the first largest element; a NaN wins. `span` goes over y. K: the
/// window's size, 0 any; of a known one all loads are under way before the first is compared.
// instances: K = 0 2
template <class T, bool VECTOR, int K>
KERNEL(256) pool2d_max_forward(T *y, uint8_t *argmax, const T *x, Window win, Divisor oh, Divisor ow, Span span) {
  Place<VECTOR> p = place<VECTOR>(span);
  uint32_t n = pixel_count(span, p);
  for (uint32_t i = 0; i < n; i++) {
    uint32_t pixel = p.first + i * p.rows;
    pool2d::Pixel at = pool2d::pixel(pixel, oh, ow);
    uint32_t from = (at.n * win.h + at.i * win.stride) * win.w + at.j * win.stride;
    pool2d::Largest largest;
    if constexpr (K > 0) {
      Raw8<T> raw[K * K];
#pragma unroll
      for (int e = 0; e < K * K; e++) raw[e] = load_raw(x + offset(span, p, from + e / K * win.w + e % K), p);
#pragma unroll
      for (int e = 0; e < K * K; e++) {
        float v[8];
        unpack(v, raw[e]);
        largest.see(v, e);
      }
    } else {
      uint32_t e = 0;
      for (uint32_t wi = 0; wi < win.k; wi++) {
        for (uint32_t wj = 0; wj < win.k; wj++, e++) {
          float v[8];
          load8(v, x + offset(span, p, from + wi * win.w + wj), p);
          largest.see(v, e);
        }
      }
    }
    store8(y + offset(span, p, pixel), largest.value, p);
    store_bytes(argmax + offset(span, p, pixel), largest.first, p);
  }
}

/// `span` goes over dx [n, h, w], `h` and `w` divide by its sizes; dy is [n, oh, ow].
template <class T, bool VECTOR>
KERNEL(256, 4) pool2d_max_backward(T *dx, const T *dy, const uint8_t *argmax, Window win, Divisor h, Divisor w,
                                uint32_t oh, uint32_t ow, Span span) {
  Place<VECTOR> p = place<VECTOR>(span);
  uint32_t n = pixel_count(span, p);
  for (uint32_t i = 0; i < n; i++) {
    uint32_t pixel = p.first + i * p.rows;
    pool2d::Pixel at = pool2d::pixel(pixel, h, w);
    pool2d::Range lines = pool2d::covering(at.i, win, oh), columns = pool2d::covering(at.j, win, ow);
    float sum[8] = {};
    for (uint32_t wi = lines.begin; wi < lines.end; wi++) {
      for (uint32_t wj = columns.begin; wj < columns.end; wj++) {
        uint32_t e = (at.i - wi * win.stride) * win.k + at.j - wj * win.stride;
        uint64_t window = offset(span, p, (at.n * oh + wi) * ow + wj);
        float g[8];
        uint32_t first[8];
        load8(g, dy + window, p);
        load_bytes(first, argmax + window, p);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += first[j] == e ? g[j] : 0.0f;
      }
    }
    store8(dx + offset(span, p, pixel), sum, p);
  }
}

/// Mean of each window. `span` goes over y.
template <class T, bool VECTOR>
KERNEL(256) pool2d_average_forward(T *y, const T *x, Window win, Divisor oh, Divisor ow, Span span, float scale) {
  Place<VECTOR> p = place<VECTOR>(span);
  uint32_t n = pixel_count(span, p);
  for (uint32_t i = 0; i < n; i++) {
    uint32_t pixel = p.first + i * p.rows;
    pool2d::Pixel at = pool2d::pixel(pixel, oh, ow);
    uint32_t from = (at.n * win.h + at.i * win.stride) * win.w + at.j * win.stride;
    float sum[8] = {};
    for (uint32_t wi = 0; wi < win.k; wi++) {
#pragma unroll 1  // unrolled it does not fit the registers that nvcc allows itself
      for (uint32_t wj = 0; wj < win.k; wj++) {
        float v[8];
        load8(v, x + offset(span, p, from + wi * win.w + wj), p);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += v[j];
      }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) sum[j] *= scale;
    store8(y + offset(span, p, pixel), sum, p);
  }
}

/// dx = scale times the sum of the gradients of the windows that cover it. `span` goes over dx.
template <class T, bool VECTOR>
KERNEL(256) pool2d_average_backward(T *dx, const T *dy, Window win, Divisor h, Divisor w, uint32_t oh, uint32_t ow,
                                    Span span, float scale) {
  Place<VECTOR> p = place<VECTOR>(span);
  uint32_t n = pixel_count(span, p);
  for (uint32_t i = 0; i < n; i++) {
    uint32_t pixel = p.first + i * p.rows;
    pool2d::Pixel at = pool2d::pixel(pixel, h, w);
    pool2d::Range lines = pool2d::covering(at.i, win, oh), columns = pool2d::covering(at.j, win, ow);
    float sum[8] = {};
    for (uint32_t wi = lines.begin; wi < lines.end; wi++) {
      for (uint32_t wj = columns.begin; wj < columns.end; wj++) {
        float g[8];
        load8(g, dy + offset(span, p, (at.n * oh + wi) * ow + wj), p);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += g[j];
      }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) sum[j] *= scale;
    store8(dx + offset(span, p, pixel), sum, p);
  }
}

/// Mean over all `pixels` of an image, [n, pixels, c] to [n, c]: image blockIdx.z, 8 channels a lane; rows of
/// threads sum in turn and are added by a tree. `span` is that of one image, taken by one block.
template <class T, bool VECTOR>
KERNEL(256) pool2d_global_forward(T *y, const T *x, Span span) {
  GPU_SHARED(float, tile, [8][256]);
  Place<VECTOR> p = place<VECTOR>(span);
  uint32_t n = pixel_count(span, p);
  uint64_t image = blockIdx.z;
  x += image * span.pixels * span.c;
  float sum[8] = {};
#pragma unroll 2
  for (uint32_t i = 0; i < n; i++) {
    float v[8];
    load8(v, x + offset(span, p, p.first + i * p.rows), p);
#pragma unroll
    for (int j = 0; j < 8; j++) sum[j] += v[j];
  }
  for (uint32_t half = p.rows / 2; half > 0; half /= 2) {
    if (p.row >= half && p.row < 2 * half) {
#pragma unroll
      for (int j = 0; j < 8; j++) tile[j][threadIdx.x] = sum[j];
    }
    __syncthreads();
    if (p.row < half) {
#pragma unroll
      for (int j = 0; j < 8; j++) sum[j] += tile[j][threadIdx.x + half * (256 / p.rows)];
    }
  }
  if (p.row != 0 || p.count == 0) return;
#pragma unroll
  for (int j = 0; j < 8; j++) sum[j] /= (float)span.pixels;
  store8(y + image * span.c + 8 * p.group, sum, p);
}

/// dx = dy scale, to all pixels of an image. `span` goes over dx.
template <class T, bool VECTOR>
KERNEL(256) pool2d_global_backward(T *dx, const T *dy, Divisor row_pixels, Span span, float scale) {
  Place<VECTOR> p = place<VECTOR>(span);
  uint32_t n = pixel_count(span, p);
#pragma unroll 2
  for (uint32_t i = 0; i < n; i++) {
    uint32_t pixel = p.first + i * p.rows;
    float g[8];
    load8(g, dy + offset(span, p, divide(pixel, row_pixels)), p);
#pragma unroll
    for (int j = 0; j < 8; j++) g[j] *= scale;
    store8(dx + offset(span, p, pixel), g, p);
  }
}
