// How the kernels that go over pixels with channels innermost are cut: a thread keeps 8 channels (one
// block of noise, one byte of a mask, 16 bytes of a 16-bit type) and walks over pixels, so that what
// belongs to its channels stays in registers.
#pragma once
#include "gpu.cuh"

/// A tensor of `pixels` pixels with `c` channels, cut for blocks of 256 threads: `1 << log_lanes` groups of
/// 8 channels side by side, the rest of the threads along the pixels, `each` pixels a thread.
struct Span {
  uint32_t pixels;  // below 2^31
  uint32_t c;
  uint32_t log_lanes;
  uint32_t each;
};

/// A thread's place in a Span. VECTOR: the channels are whole groups of 8, loads and stores have 16 bytes.
template <bool VECTOR>
struct Place {
  uint32_t lane;    // its group among the block's
  uint32_t row;     // its pixel among those that the block takes at a time
  uint32_t rows;    // how many these are
  uint32_t group;   // channels 8 group .. 8 group + count
  uint32_t count;   // 0 behind the last channel
  uint32_t first;   // its first pixel; the next one is `rows` further
};

template <bool VECTOR>
__device__ __forceinline__ Place<VECTOR> place(const Span &span) {
  Place<VECTOR> p;
  p.lane = threadIdx.x & ((1u << span.log_lanes) - 1);
  p.row = threadIdx.x >> span.log_lanes;
  p.rows = 256u >> span.log_lanes;
  p.group = (blockIdx.y << span.log_lanes) + p.lane;
  uint32_t channel = 8 * p.group;
  p.count = channel >= span.c ? 0 : min(span.c - channel, 8u);
  p.first = blockIdx.x * span.each * p.rows + p.row;
  return p;
}

/// How many pixels this thread has.
template <bool VECTOR>
__device__ __forceinline__ uint32_t pixel_count(const Span &span, const Place<VECTOR> &p) {
  if (p.count == 0 || p.first >= span.pixels) return 0;
  return min((span.pixels - p.first + p.rows - 1) >> (8 - span.log_lanes), span.each);
}

/// Where this thread's channels of a pixel are.
template <bool VECTOR>
__device__ __forceinline__ uint64_t offset(const Span &span, const Place<VECTOR> &p, uint32_t pixel) {
  return (uint64_t)pixel * span.c + 8 * p.group;
}

/// Where the byte for them is: 8 channels a byte, every pixel starts a new one.
template <bool VECTOR>
__device__ __forceinline__ uint64_t mask_offset(const Span &span, const Place<VECTOR> &p, uint32_t pixel) {
  return (uint64_t)pixel * ((span.c + 7) / 8) + p.group;
}

/// 8 values as they are stored: a loop loads the next pixel's before it works on this one's.
template <class T>
struct Raw8 {
  gpu::Vec<T> part[8 / gpu::Vec<T>::N];
};

/// Behind `count` zeros. `vector`: all eight exist, in 16-byte pieces.
template <class T>
__device__ __forceinline__ Raw8<T> load_raw(const T *x, uint32_t count, bool vector) {
  constexpr int N = gpu::Vec<T>::N;
  Raw8<T> raw;
#pragma unroll
  for (int i = 0; i < 8; i += N) {
    if (vector) {
      raw.part[i / N] = gpu::load_vec(x + i);
    } else {
#pragma unroll
      for (int j = 0; j < N; j++) raw.part[i / N].v[j] = i + j < (int)count ? x[i + j] : gpu::from_f32<T>(0.0f);
    }
  }
  return raw;
}

template <class T, bool VECTOR>
__device__ __forceinline__ Raw8<T> load_raw(const T *x, const Place<VECTOR> &p) {
  return load_raw(x, p.count, VECTOR);
}

template <class T>
__device__ __forceinline__ void unpack(float (&v)[8], const Raw8<T> &raw) {
  constexpr int N = gpu::Vec<T>::N;
#pragma unroll
  for (int j = 0; j < 8; j++) v[j] = gpu::to_f32(raw.part[j / N].v[j % N]);
}

template <class T, bool VECTOR>
__device__ __forceinline__ void load8(float (&v)[8], const T *x, const Place<VECTOR> &p) {
  unpack(v, load_raw(x, p));
}

/// Rounds to T, once, and stores what exists.
template <class T>
__device__ __forceinline__ void store8(T *y, const float (&v)[8], uint32_t count, bool vector) {
  constexpr int N = gpu::Vec<T>::N;
#pragma unroll
  for (int i = 0; i < 8; i += N) {
    gpu::Vec<T> part;
#pragma unroll
    for (int j = 0; j < N; j += 2) {
      T two[2];
      gpu::pack2(two, v[i + j], v[i + j + 1]);
      part.v[j] = two[0];
      part.v[j + 1] = two[1];
    }
    if (vector) {
      gpu::store_vec(y + i, part);
    } else {
#pragma unroll
      for (int j = 0; j < N; j++)
        if (i + j < (int)count) y[i + j] = part.v[j];
    }
  }
}

template <class T, bool VECTOR>
__device__ __forceinline__ void store8(T *y, const float (&v)[8], const Place<VECTOR> &p) {
  store8(y, v, p.count, VECTOR);
}

/// Rounds to T and stays in registers: what follows sees what it would read from memory.
template <class T, int COUNT>
__device__ __forceinline__ void round_to(float *v) {
#pragma unroll
  for (int j = 0; j < COUNT; j += 2) {
    T two[2];
    gpu::pack2(two, v[j], v[j + 1]);
    v[j] = gpu::to_f32(two[0]);
    v[j + 1] = gpu::to_f32(two[1]);
  }
}

/// 8 bytes, one per channel.
template <bool VECTOR>
__device__ __forceinline__ void load_bytes(uint32_t (&v)[8], const uint8_t *x, const Place<VECTOR> &p) {
  if (VECTOR) {
    uint2 two = *reinterpret_cast<const uint2 *>(x);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = (j < 4 ? two.x : two.y) >> 8 * (j % 4) & 0xFF;
  } else {
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = j < (int)p.count ? x[j] : 0;
  }
}

template <bool VECTOR>
__device__ __forceinline__ void store_bytes(uint8_t *y, const uint32_t (&v)[8], const Place<VECTOR> &p) {
  if (VECTOR) {
    uint2 two = {0, 0};
#pragma unroll
    for (int j = 0; j < 8; j++) (j < 4 ? two.x : two.y) |= v[j] << 8 * (j % 4);
    *reinterpret_cast<uint2 *>(y) = two;
  } else {
#pragma unroll
    for (int j = 0; j < 8; j++)
      if (j < (int)p.count) y[j] = (uint8_t)v[j];
  }
}

/// What a vector over channels holds for this thread, `otherwise` where there is no vector or no channel.
template <bool VECTOR>
__device__ __forceinline__ void load_channels(float (&v)[8], const float *x, const Place<VECTOR> &p, float otherwise) {
  if (x && p.count > 0) {
    load8(v, x + 8 * p.group, p);
  } else {
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = otherwise;
  }
}

/// min(max(v, low), cap); NaN stays NaN.
__device__ __forceinline__ float clip(float v, float low, float cap) {
  return gpu::min_nan(gpu::max_nan(v, low), cap);
}

/// Whether the gradient passes the clip: low < v < cap, v before or behind it.
__device__ __forceinline__ bool passes(float v, float low, float cap) { return v > low && v < cap; }

/// A bit per channel: whether the gradient passes.
__device__ __forceinline__ uint32_t mask8(const float (&v)[8], float low, float cap) {
  uint32_t mask = 0;
#pragma unroll
  for (int j = 0; j < 8; j++) mask |= passes(v[j], low, cap) ? 1u << j : 0;
  return mask;
}
