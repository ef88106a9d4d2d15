// Gaussian noise from a counter, y = x + sigma z; noise.cuh has the definition. The gradient is dy.
#include "channels.cuh"
#include "divide.cuh"
#include "noise.cuh"

/// `row_pixels` divides by the pixels of an image. y may be x.
template <class T, bool VECTOR, bool PRECISE>
KERNEL(256) noise_forward(T *y, const T *x, const Row *rows, Draw draw, Divisor row_pixels, Span span) {
  Place<VECTOR> p = place<VECTOR>(span);
  uint32_t n = pixel_count(span, p);
  if (n == 0) return;
  Raw8<T> next = load_raw(x + offset(span, p, p.first), p);
  for (uint32_t i = 0; i < n; i++) {
    uint32_t pixel = p.first + i * p.rows;
    float v[8];
    unpack(v, next);
    if (i + 1 < n) next = load_raw(x + offset(span, p, pixel + p.rows), p);
    Division row = divide_rest(pixel, row_pixels);
    noise::add<PRECISE>(v, draw, rows[row.quotient], row.remainder, p.group);
    store8(y + offset(span, p, pixel), v, p);
  }
}

/// The words themselves, `[rows, blocks, 4]`: blocks `first ..` of row blockIdx.y. For tests and comparisons.
KERNEL(256) noise_words(uint32_t *words, const Row *rows, uint32_t first, uint32_t blocks, Draw draw) {
  uint32_t block = blockIdx.x * 256 + threadIdx.x;
  if (block >= blocks) return;
  noise::Words w = noise::words(draw, rows[blockIdx.y], first + block);
  uint32_t *out = words + 4 * ((uint64_t)blockIdx.y * blocks + block);
#pragma unroll
  for (int j = 0; j < 4; j++) out[j] = w.w[j];
}
