// The weight gradient by wgmma (compute capability 9.0): dw = dy^T x, a product whose sum runs over pixels. Rows are
// output channels, columns are input channels under a tap. See conv2d_wgmma_weight_grad.cu.
//
// A stage is a tile of pixels: the patch of x under all taps, and dy, both as TMA brings them, [row][column][image]
// [bytes of 32 or 64 channels], pieces of 16 bytes exchanged by the swizzle of that width. dy comes through registers:
// ldmatrix.trans turns eight pixels of eight channels, and what it brings serves all taps of a kernel row. x is the
// product's second operand as it lies there, a tap is a shift of whole groups of eight pixels: in 3x3 kernels a tile
// has a multiple of eight images. The border of the image and images behind the last are zeros on both sides.
#pragma once
#include "conv2d.cuh"
#include "divide.cuh"

/// What the host plans (src/ops/conv2d/wgmma_weight_grad.rs).
struct WeightPatches {
  Dims y;
  /// The stride of a 3x3 kernel.
  uint32_t step, pad;
  /// Channels of a group; blocks of a group's input and output channels.
  uint32_t group_in, group_out, in_blocks, out_blocks;
  /// A tile: images, rows and columns; pixels; rows and columns of its patch.
  uint32_t images, rows, cols, pixels, patch_rows, patch_cols;
  /// Pixels of a line, a multiple of 32 that lie one after the other in dy, and in x by every `step`-th column; pixels of
  /// the patch from eight of them to the next eight of sixteen, and between lines.
  uint32_t line, octet, skip;
  /// Tiles: image blocks x down x across; of one split.
  uint32_t tiles, split_tiles;
  Divisor by_down, by_across, by_pieces, by_in_blocks, by_out_blocks;
  /// Bytes of a patch of (at most) 64 channels, of a stage; stages.
  uint32_t patch_bytes, stage_bytes, stages;
  /// Whether db is wanted; whether there is one split, added to dw at once.
  uint32_t bias, direct;
};

namespace weight_wgmma {

constexpr uint32_t ROW = 128;  // bytes of 64 output channels
constexpr uint32_t MAX_STAGES = 6;

/// Blocks of 64 output channels, of (at most) 64 input channels; bytes of a pixel of the latter.
template <int K>
constexpr uint32_t OUTS = K == 1 ? 2 : 1;
template <int N>
constexpr uint32_t PATCHES = N <= 64 ? 1 : N / 64;
template <int N>
constexpr uint32_t PATCH_ROW = N < 64 ? 2 * N : ROW;

struct Shared {
  uint64_t full[MAX_STAGES], empty[MAX_STAGES];
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

/// One thread brings a tile.
template <int K, int N>
__device__ __forceinline__ void bring(unsigned char *stage, uint64_t *full, const CUtensorMap &x_map,
                                      const CUtensorMap &y_map, uint32_t tile, const Part &part, const WeightPatches &p) {
  const Division across = divide_rest(tile, p.by_across), down = divide_rest(across.quotient, p.by_down);
  const int image = down.quotient * p.images, row = down.remainder * p.rows, col = across.remainder * p.cols;
  const uint32_t patch = p.images * p.patch_rows * p.patch_cols * PATCH_ROW<N>, dy = p.pixels * ROW;
  gpu::mbar_arrive_expect(full, PATCHES<N> * patch + OUTS<K> * dy);
#pragma unroll 1
  for (uint32_t i = 0; i < PATCHES<N>; i++)
    gpu::tma_load_4d(stage + i * p.patch_bytes, &x_map, full, p.group_in * part.group + part.in_block * N + i * 64, image,
                     col * (int)p.step - (int)p.pad, row * (int)p.step - (int)p.pad);
#pragma unroll 1
  for (uint32_t i = 0; i < OUTS<K>; i++)
    gpu::tma_load_4d(stage + PATCHES<N> * p.patch_bytes + i * dy, &y_map, full,
                     p.group_out * part.group + (part.out_block * OUTS<K> + i) * 64, image, col, row);
}

/// A warp brings the tiles, and sums dy for the bias.
template <class T, int K, int N, int GROUPS>
__device__ __forceinline__ void produce(float *db, unsigned char *stages, Shared &s, const CUtensorMap &x_map,
                                        const CUtensorMap &y_map, const Part &part, const WeightPatches &p) {
  const uint32_t lane = threadIdx.x % 32, piece = lane % 8;
  const bool sums = p.bias && part.in_block == 0;
  float sum[OUTS<K>][8] = {};
  uint32_t at = 0, parity = 0;
  if (lane == 0) {
    const uint32_t first = min(p.stages, part.count);
    for (uint32_t t = 0; t < first; t++)
      bring<K, N>(stages + t * p.stage_bytes, &s.full[t], x_map, y_map, part.begin + t, part, p);
  }
  for (uint32_t t = 0; t < part.count; t++) {
    unsigned char *const stage = stages + at * p.stage_bytes;
    if (sums) {
      gpu::mbar_wait(&s.full[at], parity);
#pragma unroll
      for (int n = 0; n < OUTS<K>; n++) {
        const unsigned char *const from = stage + PATCHES<N> * p.patch_bytes + n * p.pixels * ROW;
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
      bring<K, N>(stage, &s.full[at], x_map, y_map, part.begin + t + p.stages, part, p);
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
  for (int n = 0; n < OUTS<K>; n++) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float v = sum[n][j];
      v += __shfl_xor_sync(0xffffffffu, v, 8);
      v += __shfl_xor_sync(0xffffffffu, v, 16);
      const uint32_t o = (part.out_block * OUTS<K> + n) * 64 + piece * 8 + j;
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

/// Sixteen pixels under TAPS taps beside each other, `tap` from one to the next. `b` is the lower half of wgmma's
/// descriptor, which alone says where the pixels are: no carry leaves it; `upper` the other half.
template <class T, int TAPS, int N>
__device__ __forceinline__ void multiply(float (&acc)[TAPS][N / 2], const uint32_t (&a)[4], uint64_t upper, uint32_t b,
                                         uint32_t tap) {
  gpu::wgmma_fence();
#pragma unroll
  for (int v = 0; v < TAPS; v++) Product<T>::template add<N>(acc[v], a, upper | (b + v * tap));
  gpu::wgmma_commit();
}

/// Floats from an output channel of dw to the next on its way out, so that neither side of the exchange meets in a bank.
template <int TAPS, int N>
constexpr uint32_t PITCH = TAPS * N + 8;

/// Writes what a warp has of dw, or adds it there: through shared memory of its own, in rows of N floats. `to` is the first
/// of its output channels under its first tap, `channels_in` and `channels_out` are what there is from there on.
template <int K, int TAPS, int N>
__device__ __forceinline__ void leave(float *to, const float (&acc)[TAPS][N / 2], float *staging, uint32_t channels_in,
                                      uint32_t channels_out, const WeightPatches &p) {
  constexpr uint32_t WIDTH = PITCH<TAPS, N>, ROW_PIECES = TAPS * N / 4, AT_ONCE = TAPS == 1 ? 8 : 6;
  static_assert(16 * ROW_PIECES % (32 * AT_ONCE) == 0, "pieces of sixteen output channels");
  const uint32_t lane = threadIdx.x % 32;
  float *const own = staging + lane / 4 * WIDTH + lane % 4 * 2;
#pragma unroll
  for (int v = 0; v < TAPS; v++) {
#pragma unroll
    for (int i = 0; i < N / 8; i++) {
      float2 *const to = reinterpret_cast<float2 *>(own + v * N + i * 8);
      to[0] = make_float2(acc[v][4 * i], acc[v][4 * i + 1]);
      to[4 * WIDTH] = make_float2(acc[v][4 * i + 2], acc[v][4 * i + 3]);
    }
  }
  __syncwarp();
#pragma unroll 1
  for (uint32_t first = lane; first < 16 * ROW_PIECES; first += 32 * AT_ONCE) {
    float *at[AT_ONCE];
    gpu::Vec<float> sum[AT_ONCE] = {};
    // What is there already is on its way before it is needed.
#pragma unroll
    for (uint32_t i = 0; i < AT_ONCE; i++) {
      const uint32_t piece = first + i * 32, out = piece / ROW_PIECES, tap = piece % ROW_PIECES / (N / 4),
                     in = piece % (N / 4) * 4;
      at[i] = out < channels_out && in < channels_in ? to + (uint64_t)(out * (K * K) + tap) * p.group_in + in : nullptr;
      if (p.direct && at[i]) sum[i] = gpu::load_vec(at[i]);
    }
#pragma unroll
    for (uint32_t i = 0; i < AT_ONCE; i++) {
      const uint32_t piece = first + i * 32;
      const gpu::Vec<float> own = gpu::load_vec(staging + piece / ROW_PIECES * WIDTH + piece % ROW_PIECES * 4);
#pragma unroll
      for (int j = 0; j < 4; j++) sum[i].v[j] = p.direct ? sum[i].v[j] + own.v[j] : own.v[j];
      if (at[i]) gpu::store_vec(at[i], sum[i]);
    }
  }
}

/// A warpgroup: of a 3x3 kernel a row of taps, of a 1x1 kernel 64 output channels.
template <class T, int K, int N, int GROUPS>
__device__ __forceinline__ void consume(float *dw, unsigned char *stages, Shared &s, const Part &part,
                                        const WeightPatches &p) {
  constexpr int TAPS = K;
  constexpr gpu::Swizzle SWIZZLE = N < 64 ? gpu::Swizzle::B64 : gpu::Swizzle::B128;
  const uint64_t upper = gpu::matrix_descriptor_upper(SWIZZLE, (K == 1 ? 8 : p.octet) * PATCH_ROW<N>);
  const uint32_t sixteen = (K == 1 ? 16 : 16 * p.step) * PATCH_ROW<N> >> 4;
  const uint32_t lane = threadIdx.x % 32, group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4;
  // The lane's row of dy among sixteen pixels; the piece is exchanged alike in all of them.
  const uint32_t pixel = lane / 16 * 8 + lane % 8, piece = warp * 2 + lane / 8 % 2;
  const uint32_t row = PATCHES<N> * p.patch_bytes + (K == 1 ? group * p.pixels * ROW : 0) + pixel * ROW +
                       ((piece ^ (pixel & 7)) << 4);
  const uint32_t shift = K == 1 ? 0 : group * p.patch_cols * p.images * PATCH_ROW<N>;
  const uint32_t tap = p.images * PATCH_ROW<N> >> 4, skip = p.skip * PATCH_ROW<N> >> 4;
  float acc[TAPS][N / 2] = {};
  uint32_t a0[4], a1[4];
  uint32_t at = 0, parity = 0, last = MAX_STAGES; // the stage that products in flight may read
  for (uint32_t t = 0; t < part.count; t++) {
    gpu::mbar_wait(&s.full[at], parity);
    const unsigned char *const stage = stages + at * p.stage_bytes, *from = stage + row;
    uint32_t b = (uint32_t)gpu::matrix_descriptor(stage + shift, gpu::Swizzle::None, p.patch_bytes, 0);
#pragma unroll 1
    for (uint32_t begin = 0; begin < p.pixels; begin += p.line, b += skip) {
#pragma unroll 1
      for (uint32_t i = 0; i < p.line; i += 32, b += 2 * sixteen, from += 32 * ROW) {
        // The products before the last ones have read their fragments.
        gpu::wgmma_wait<1>();
        gpu::ldmatrix<4, true>(a0, from);
        multiply<T, TAPS, N>(acc, a0, upper, b, tap);
        gpu::wgmma_wait<1>();
        if (last != MAX_STAGES && lane == 0) gpu::mbar_arrive(&s.empty[last]);
        last = MAX_STAGES;
        gpu::ldmatrix<4, true>(a1, from + 16 * ROW);
        multiply<T, TAPS, N>(acc, a1, upper, b + sixteen, tap);
      }
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
  const uint32_t in = part.in_block * N, out = (part.out_block * OUTS<K> + (K == 1 ? group : 0)) * 64 + warp * 16;
  float *const to = dw + (p.direct ? 0 : part.split * w_len) +
                    ((uint64_t)(part.group * p.group_out + out) * (K * K) + (K == 1 ? 0 : group * K)) * p.group_in + in;
  leave<K, TAPS, N>(to, acc, reinterpret_cast<float *>(stages) + threadIdx.x / 32 * 16 * PITCH<TAPS, N>,
                    in < p.group_in ? p.group_in - in : 0, out < p.group_out ? p.group_out - out : 0, p);
}

#endif

} // namespace weight_wgmma
