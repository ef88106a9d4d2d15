// Everything between two convolutions in one pass: noise(pool(act(batch_norm(x) + residual))), every part
// optional; src/ops/apply. One 16-byte load and store (f32: two) per 8 channels, nothing in between stored.
//
// In f32 the result has the bits of the single ops run one after another: each step is the same device
// function, and none is contracted with the next. With 16-bit storage those round in between; this rounds in
// front of the noise, as the convolution that draws it in its load would see its input, and at the end.
//
// `mask` (a bit per output, src/ops/relu) and `argmax` (a byte per output) may be null.
#include "divide.cuh"
#include "noise.cuh"
#include "norm.cuh"

/// NOISE: 0 none, 1 fast, 2 precise. `row_pixels` divides by the pixels of an image.
// instances: NOISE = 0 1 2
template <class T, bool VECTOR, bool ADD, int NOISE>
KERNEL(256, 3) apply_forward(T *y, uint8_t *mask, const T *x, const T *residual, const float *mean,
                          const float *inv_std, const float *gamma, const float *beta, const Row *rows, Draw draw,
                          Divisor row_pixels, Span span, float low, float cap) {
  Place<VECTOR> p = place<VECTOR>(span);
  uint32_t n = pixel_count(span, p);
  if (n == 0) return;
  Normalise norm(mean, inv_std, gamma, beta, p);
  Raw8<T> next = load_raw(x + offset(span, p, p.first), p);
  for (uint32_t i = 0; i < n; i++) {
    uint32_t pixel = p.first + i * p.rows;
    uint64_t at = offset(span, p, pixel);
    float v[8], add[8];
    unpack(v, next);
    if (i + 1 < n) next = load_raw(x + offset(span, p, pixel + p.rows), p);
    if (ADD) load8(add, residual + at, p);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      v[j] = norm.value(v[j], j);
      if (ADD) v[j] = __fadd_rn(v[j], add[j]);
      v[j] = clip(v[j], low, cap);
    }
    if (mask) mask[mask_offset(span, p, pixel)] = (uint8_t)mask8(v, low, cap);
    if (NOISE > 0) {
      round_to<T, 8>(v);
      Division row = divide_rest(pixel, row_pixels);
      noise::add<NOISE == 2>(v, draw, rows[row.quotient], row.remainder, p.group);
    }
    store8(y + at, v, p);
  }
}

/// Where the 2x2 window of output pixel `pixel` starts, in pixels of the input [n, h, w], `ow` and `oh` being
/// the output's width and height; and the image.
struct Corner {
  uint32_t pixel, image;
};

__device__ __forceinline__ Corner corner(uint32_t pixel, const Divisor &ow, const Divisor &oh, uint32_t h, uint32_t w) {
  Division line = divide_rest(pixel, ow), image = divide_rest(line.quotient, oh);
  return {(image.quotient * h + 2 * image.remainder) * w + 2 * line.remainder, image.quotient};
}

/// With a 2x2 max pool of stride 2; `span` goes over the pixels of the output. argmax as in pool2d: the first
/// of the largest, a NaN wins.
// instances: NOISE = 0 1 2
template <class T, bool VECTOR, int NOISE>
KERNEL(256) apply_pool(T *y, uint8_t *argmax, uint8_t *mask, const T *x, const float *mean, const float *inv_std,
                       const float *gamma, const float *beta, const Row *rows, Draw draw, Divisor ow, Divisor oh,
                       uint32_t h, uint32_t w, Span span, float low, float cap) {
  Place<VECTOR> p = place<VECTOR>(span);
  uint32_t n = pixel_count(span, p);
  if (n == 0) return;
  Normalise norm(mean, inv_std, gamma, beta, p);
  for (uint32_t i = 0; i < n; i++) {
    uint32_t pixel = p.first + i * p.rows;
    Corner from = corner(pixel, ow, oh, h, w);
    float best[8];
    uint32_t first[8];
#pragma unroll
    for (int e = 0; e < 4; e++) {
      float v[8];
      load8(v, x + offset(span, p, from.pixel + e / 2 * w + e % 2), p);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        float value = clip(norm.value(v[j], j), low, cap);
        bool take = e == 0 || value > best[j] || isnan(value);
        best[j] = take ? value : best[j];
        first[j] = take ? e : first[j];
      }
    }
    uint64_t at = offset(span, p, pixel);
    if (argmax) store_bytes(argmax + at, first, p);
    if (mask) mask[mask_offset(span, p, pixel)] = (uint8_t)mask8(best, low, cap);
    if (NOISE > 0) {
      round_to<T, 8>(best);
      uint32_t in_image = pixel - from.image * (ow.divisor * oh.divisor);
      noise::add<NOISE == 2>(best, draw, rows[from.image], in_image, p.group);
    }
    store8(y + at, best, p);
  }
}

/// batch_norm_sums behind the pool: dy and argmax are the pool's; only the element that a window took has a
/// gradient.
template <class T, bool VECTOR>
KERNEL(256) apply_pool_sums(float *partial, const T *dy, const uint8_t *argmax, const T *x, const float *mean,
                            const float *inv_std, const float *gamma, const float *beta, Divisor ow, Divisor oh,
                            uint32_t h, uint32_t w, Span span, float low, float cap) {
  GPU_SHARED(float, tile, [2][8][256]);
  Place<VECTOR> p = place<VECTOR>(span);
  uint32_t n = pixel_count(span, p);
  Normalise norm(mean, inv_std, gamma, beta, p);
  float sum_g[8] = {}, sum_gx[8] = {};
  for (uint32_t i = 0; i < n; i++) {
    uint32_t pixel = p.first + i * p.rows;
    Corner from = corner(pixel, ow, oh, h, w);
    uint64_t at = offset(span, p, pixel);
    float g[8], taken[8];
    uint32_t first[8];
    load8(g, dy + at, p);
    load_bytes(first, argmax + at, p);
#pragma unroll
    for (int e = 0; e < 4; e++) {
      float v[8];
      load8(v, x + offset(span, p, from.pixel + e / 2 * w + e % 2), p);
#pragma unroll
      for (int j = 0; j < 8; j++) taken[j] = e == 0 || first[j] == e ? v[j] : taken[j];
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
      if (!passes(norm.value(taken[j], j), low, cap)) g[j] = 0.0f;
      sum_g[j] += g[j];
      sum_gx[j] = fmaf(g[j], __fsub_rn(taken[j], norm.mean[j]), sum_gx[j]);
    }
  }
  sum_rows(sum_g, sum_gx, p, tile);
  store_sums(partial, sum_g, sum_gx, span, p);
}

/// batch_norm_backward behind the pool. `span` goes over 2x2 cells of dx, `cells_w` by `cells_h` of them, with
/// those at the border that no window covers: ow and oh windows do.
template <class T, bool VECTOR, bool BATCH>
KERNEL(256) apply_pool_backward(T *dx, const T *dy, const uint8_t *argmax, const T *x, const float *mean,
                                const float *inv_std, const float *gamma, const float *beta, const float *through,
                                Divisor cells_w, Divisor cells_h, uint32_t oh, uint32_t ow, uint32_t h, uint32_t w,
                                Span span, float low, float cap) {
  Place<VECTOR> p = place<VECTOR>(span);
  uint32_t n = pixel_count(span, p);
  if (n == 0) return;
  NormaliseBackward<BATCH> norm(mean, inv_std, gamma, beta, through, span, p);
  for (uint32_t cell = 0; cell < n; cell++) {
    Division line = divide_rest(p.first + cell * p.rows, cells_w), image = divide_rest(line.quotient, cells_h);
    uint32_t i = image.remainder, j = line.remainder;
    float taken[8] = {};
    uint32_t first[8] = {};
    if (i < oh && j < ow) {
      uint64_t window = offset(span, p, (image.quotient * oh + i) * ow + j);
      load8(taken, dy + window, p);
      load_bytes(first, argmax + window, p);
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
      uint32_t y = 2 * i + e / 2, z = 2 * j + e % 2;
      if (y >= h || z >= w) continue;
      uint64_t at = offset(span, p, (image.quotient * h + y) * w + z);
      float v[8];
      load8(v, x + at, p);
#pragma unroll
      for (int k = 0; k < 8; k++) {
        bool open = first[k] == e && passes(norm.value(v[k], k), low, cap);
        v[k] = norm.gradient(open ? taken[k] : 0.0f, v[k], k);
      }
      store8(dx + at, v, p);
    }
  }
}
