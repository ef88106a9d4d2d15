// The weight gradient by wgmma (compute capability 9.0): dw = x^T dy, a product whose sum runs over pixels. Rows are
// input channels under a tap, columns are output channels. See conv2d_wgmma_weight_grad.cu.
//
// A stage is a tile of pixels: their dy, and the patch of x under all taps, both as TMA brings them, [row][column]
// [image][128 bytes] for each 64 channels, pieces of 16 bytes exchanged by the 128-byte swizzle. dy is the product's
// second operand as it lies there. x comes through registers: ldmatrix.trans turns eight pixels of eight channels, and
// takes its pixels from anywhere, so that a tap is a shift in the patch and each element of x is copied once for all
// taps. The border of the image and images behind the last are zeros on both sides.
#pragma once
#include "conv2d.cuh"
#include "divide.cuh"

/// What the host plans (src/ops/conv2d/wgmma_weight_grad.rs).
struct WeightPatches {
  Dims x, y;
  uint32_t pad;
  /// Channels of a group; blocks of a group's input and output channels.
  uint32_t group_in, group_out, in_blocks, out_blocks;
  /// A tile: images, rows and columns; pixels, a multiple of 32; rows and columns of its patch.
  uint32_t images, rows, cols, pixels, patch_rows, patch_cols;
  Divisor by_images, by_cols;
  /// Tiles: image blocks x down x across; of one split.
  uint32_t tiles, split_tiles;
  Divisor by_down, by_across, by_pieces, by_in_blocks, by_out_blocks;
  /// Bytes of a patch of 64 channels, of a stage; stages.
  uint32_t patch_bytes, stage_bytes, stages;
  /// Whether db is wanted; whether there is one split, added to dw at once.
  uint32_t bias, direct;
};

namespace weight_wgmma {

constexpr uint32_t ROW = 128;  // bytes of 64 channels
constexpr uint32_t MAX_STAGES = 6, MAX_PIXELS = 256;

struct Shared {
  uint64_t full[MAX_STAGES], empty[MAX_STAGES];
  /// Pixel of the patch under the first tap of each of the tile's.
  uint32_t starts[MAX_PIXELS];
};

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// A block's part: group, blocks of channels, and tiles.
struct Part {
  uint32_t group, in_block, out_block, split, begin, count;
};

__device__ __forceinline__ Part locate(const WeightPatches &p) {
  const Division piece = divide_rest(blockIdx.x, p.by_pieces), out = divide_rest(piece.remainder, p.by_out_blocks),
                 in = divide_rest(out.quotient, p.by_in_blocks);
  const uint32_t begin = piece.quotient * p.split_tiles;
  return {in.quotient, in.remainder, out.remainder, piece.quotient, begin, min(p.split_tiles, p.tiles - begin)};
}

/// One thread brings a tile: PATCHES times 64 channels of x, N of dy.
template <int PATCHES, int N>
__device__ __forceinline__ void bring(unsigned char *stage, uint64_t *full, const CUtensorMap &x_map,
                                      const CUtensorMap &y_map, uint32_t tile, const Part &part, const WeightPatches &p) {
  const Division across = divide_rest(tile, p.by_across), down = divide_rest(across.quotient, p.by_down);
  const int image = down.quotient * p.images, row = down.remainder * p.rows, col = across.remainder * p.cols;
  const uint32_t patch = p.images * p.patch_rows * p.patch_cols * ROW, dy = p.pixels * ROW;
  gpu::mbar_arrive_expect(full, PATCHES * patch + N / 64 * dy);
#pragma unroll 1
  for (uint32_t i = 0; i < PATCHES; i++)
    gpu::tma_load_4d(stage + i * p.patch_bytes, &x_map, full,
                     p.group_in * part.group + (part.in_block * PATCHES + i) * 64, image, col - (int)p.pad,
                     row - (int)p.pad);
#pragma unroll 1
  for (uint32_t i = 0; i < N / 64; i++)
    gpu::tma_load_4d(stage + PATCHES * p.patch_bytes + i * dy, &y_map, full,
                     p.group_out * part.group + part.out_block * N + i * 64, image, col, row);
}

/// A warp brings the tiles, and sums dy for the bias.
template <class T, int PATCHES, int N, int GROUPS>
__device__ __forceinline__ void produce(float *db, unsigned char *stages, Shared &s, const CUtensorMap &x_map,
                                        const CUtensorMap &y_map, const Part &part, const WeightPatches &p) {
  const uint32_t lane = threadIdx.x % 32, piece = lane % 8;
  const bool sums = p.bias && part.in_block == 0;
  float sum[N / 64][8] = {};
  uint32_t at = 0, parity = 0;
  if (lane == 0) {
    const uint32_t first = min(p.stages, part.count);
    for (uint32_t t = 0; t < first; t++)
      bring<PATCHES, N>(stages + t * p.stage_bytes, &s.full[t], x_map, y_map, part.begin + t, part, p);
  }
  for (uint32_t t = 0; t < part.count; t++) {
    unsigned char *const stage = stages + at * p.stage_bytes;
    if (sums) {
      gpu::mbar_wait(&s.full[at], parity);
#pragma unroll
      for (int n = 0; n < N / 64; n++) {
        const unsigned char *const from = stage + PATCHES * p.patch_bytes + n * p.pixels * ROW;
        for (uint32_t r = lane / 8; r < p.pixels; r += 4) {
          const gpu::Vec<T> v = gpu::load_vec(reinterpret_cast<const T *>(from + r * ROW + ((piece ^ (r & 7)) << 4)));
#pragma unroll
          for (int j = 0; j < 8; j++) sum[n][j] += gpu::to_f32(v.v[j]);
        }
      }
      __syncwarp();
    }
    if (lane == 0 && t + p.stages < part.count) {
      gpu::mbar_wait(&s.empty[at], parity);
      bring<PATCHES, N>(stage, &s.full[at], x_map, y_map, part.begin + t + p.stages, part, p);
    }
    __syncwarp();
    if (++at == p.stages) {
      at = 0;
      parity ^= 1;
    }
  }
  gpu::bar_arrive(1, GROUPS * 128 + 32);
  if (!sums) return;
#pragma unroll
  for (int n = 0; n < N / 64; n++) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float v = sum[n][j];
      v += __shfl_xor_sync(0xffffffffu, v, 8);
      v += __shfl_xor_sync(0xffffffffu, v, 16);
      const uint32_t o = part.out_block * N + n * 64 + piece * 8 + j;
      if (lane < 8 && o < p.group_out) {
        float *const to = db + (p.direct ? 0 : (uint64_t)part.split * p.y.c) + part.group * p.group_out + o;
        *to = p.direct ? *to + v : v;
      }
    }
  }
}

template <class T>
struct Product;
template <>
struct Product<__nv_bfloat16> {
  template <int N>
  static __device__ __forceinline__ void add(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) {
    gpu::wgmma_bf16<N, true>(d, a, b);
  }
};
template <>
struct Product<__half> {
  template <int N>
  static __device__ __forceinline__ void add(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) {
    gpu::wgmma_f16<N, true>(d, a, b);
  }
};

/// Sixteen pixels of the warp's sixteen channels under TAPS taps beside each other, turned.
template <int TAPS>
__device__ __forceinline__ void fragments(uint32_t (&a)[TAPS][4], const unsigned char *patch, uint32_t pixel,
                                          uint32_t piece, uint32_t images) {
#pragma unroll
  for (int v = 0; v < TAPS; v++, pixel += images)
    gpu::ldmatrix<4, true>(a[v], patch + pixel * ROW + ((piece ^ (pixel & 7)) << 4));
}

/// One group of products.
template <class T, int TAPS, int N>
__device__ __forceinline__ void multiply(float (&acc)[TAPS][N / 2], const uint32_t (&a)[TAPS][4], uint64_t b) {
  gpu::wgmma_fence();
#pragma unroll
  for (int v = 0; v < TAPS; v++) Product<T>::template add<N>(acc[v], a[v], b);
  gpu::wgmma_commit();
}

/// Rows of a piece of dw on its way out, output channels; floats from one to the next, so that neither side of the
/// exchange meets in a bank; bytes of a warpgroup's piece.
template <int TAPS>
constexpr int LEAVING = TAPS == 1 ? 32 : 16;
template <int TAPS>
constexpr int PITCH = TAPS * 64 + 4;
template <int TAPS>
constexpr uint32_t LEAVING_BYTES = LEAVING<TAPS> * PITCH<TAPS> * 4;

/// Four floats of dw on their way: output channel, tap and input channel of the piece.
struct Leaving {
  uint32_t out, tap, in;
  template <int K>
  __device__ __forceinline__ uint32_t offset(uint32_t group_in) const {
    return (out * (K * K) + tap) * group_in + in;
  }
};

template <int TAPS>
__device__ __forceinline__ Leaving leaving(uint32_t i, uint32_t first) {
  return {first + i / (TAPS * 16), i / 16 % TAPS, i % 16 * 4};
}

/// Writes what a warpgroup has of dw, or adds it there: through shared memory, in rows of 256 bytes. `to` is the first of
/// its output channels under its first tap, `channels_in` and `channels_out` are what there is from there on.
template <int K, int TAPS, int N>
__device__ __forceinline__ void leave(float *to, const float (&acc)[TAPS][N / 2], float *staging, uint32_t channels_in,
                                      uint32_t channels_out, const WeightPatches &p) {
  constexpr int ROWS = LEAVING<TAPS>, WIDTH = PITCH<TAPS>, PIECES = ROWS * TAPS * 16 / 128;
  const uint32_t thread = threadIdx.x % 128, lane = thread % 32, barrier = 2 + threadIdx.x / 128;
  float *const own = staging + lane % 4 * 2 * WIDTH + thread / 32 * 16 + lane / 4;
#pragma unroll
  for (int first = 0; first < N; first += ROWS) {
    // The piece before has left.
    if (first > 0) gpu::bar_sync(barrier, 128);
#pragma unroll
    for (int i = 0; i < ROWS / 2; i++) {
#pragma unroll
      for (int v = 0; v < TAPS; v++)
        own[(i / 4 * 8 + i % 2) * WIDTH + v * 64 + i / 2 % 2 * 8] = acc[v][first / 2 + i];
    }
    gpu::bar_sync(barrier, 128);
    // What is there already is on its way before it is needed.
    gpu::Vec<float> sum[PIECES] = {};
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      const Leaving l = leaving<TAPS>(i * 128 + thread, first);
      if (p.direct && l.out < channels_out && l.in < channels_in) sum[i] = gpu::load_vec(to + l.offset<K>(p.group_in));
    }
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      const Leaving l = leaving<TAPS>(i * 128 + thread, first);
      const gpu::Vec<float> own = gpu::load_vec(staging + (l.out - first) * WIDTH + l.tap * 64 + l.in);
#pragma unroll
      for (int j = 0; j < 4; j++) sum[i].v[j] = p.direct ? sum[i].v[j] + own.v[j] : own.v[j];
      if (l.out < channels_out && l.in < channels_in) gpu::store_vec(to + l.offset<K>(p.group_in), sum[i]);
    }
  }
}

/// A warpgroup: of a 3x3 kernel a row of taps, of a 1x1 kernel 64 input channels.
template <class T, int K, int N, int GROUPS>
__device__ __forceinline__ void consume(float *dw, unsigned char *stages, Shared &s, const Part &part,
                                        const WeightPatches &p) {
  constexpr int TAPS = K, PATCHES = K == 1 ? 2 : 1;
  constexpr uint64_t STEP = 16 * ROW >> 4;
  const uint32_t lane = threadIdx.x % 32, group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4;
  const uint32_t piece = warp * 2 + lane / 8 % 2, patch = K == 1 ? group * p.patch_bytes : 0;
  const uint32_t shift = K == 1 ? 0 : group * p.patch_cols * p.images;
  const uint32_t *const starts = s.starts + lane / 16 * 8 + lane % 8;
  float acc[TAPS][N / 2] = {};
  uint32_t a0[TAPS][4], a1[TAPS][4];
  uint32_t at = 0, parity = 0, last = MAX_STAGES; // the stage that products in flight may read
  for (uint32_t t = 0; t < part.count; t++) {
    gpu::mbar_wait(&s.full[at], parity);
    const unsigned char *const stage = stages + at * p.stage_bytes, *const from = stage + patch;
    uint64_t b = gpu::matrix_descriptor(stage + PATCHES * p.patch_bytes, gpu::Swizzle::B128, p.pixels * ROW, 8 * ROW);
#pragma unroll 1
    for (uint32_t i = 0; i < p.pixels; i += 32, b += 2 * STEP) {
      // The products before the last ones have read their fragments.
      gpu::wgmma_wait<1>();
      fragments<TAPS>(a0, from, starts[i] + shift, piece, p.images);
      multiply<T, TAPS, N>(acc, a0, b);
      gpu::wgmma_wait<1>();
      if (last != MAX_STAGES && lane == 0) gpu::mbar_arrive(&s.empty[last]);
      last = MAX_STAGES;
      fragments<TAPS>(a1, from, starts[i + 16] + shift, piece, p.images);
      multiply<T, TAPS, N>(acc, a1, b + STEP);
    }
    last = at;
    if (++at == p.stages) {
      at = 0;
      parity ^= 1;
    }
  }
  gpu::wgmma_wait<0>();
  // Nobody reads the stages any more.
  gpu::bar_sync(1, GROUPS * 128 + 32);
  const uint64_t w_len = (uint64_t)p.y.c * (K * K) * p.group_in;
  const uint32_t in = (part.in_block * PATCHES + (K == 1 ? group : 0)) * 64, out = part.out_block * N;
  float *const to = dw + (p.direct ? 0 : part.split * w_len) +
                    ((uint64_t)(part.group * p.group_out + out) * (K * K) + (K == 1 ? 0 : group * K)) * p.group_in + in;
  leave<K, TAPS, N>(to, acc, reinterpret_cast<float *>(stages + group * LEAVING_BYTES<TAPS>),
                    in < p.group_in ? p.group_in - in : 0, p.group_out - out, p);
}

#endif

} // namespace weight_wgmma
