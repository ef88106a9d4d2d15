// Convolution by wgmma out of halo patches (compute capability 9.0): pixels are the rows of the product, output
// channels its columns. See conv2d_wgmma.cu.
//
// The sum runs over slabs of 64 bytes: chunk of 32 channels, kernel column, half of the chunk, kernel row. The patch of
// a tile, one chunk at a time, comes by TMA as [row][column][image][64 bytes]: images are innermost, so that the 16
// pixels of a fragment lie one behind the other on any image of at least that many columns x images, and a tap is a
// shift of whole pixels. Pieces of 16 bytes are exchanged by TMA's 64-byte swizzle: eight neighbours, from any pixel
// on, lie in different banks.
//
// A thread's MT rows of fragments are rows of pixels one below the other: under K kernel rows they need MT + K - 1
// rows of the patch, each loaded once. Rows and columns of the patch that lie outside of the image for the whole
// warpgroup are passed over: adding their zeros would not change a bit.
#pragma once
#include "conv2d.cuh"
#include "divide.cuh"
#include "noise.cuh"

/// What the host plans (src/ops/conv2d/wgmma.rs).
struct Halo {
  Dims from, to;
  /// Rows and columns of zeros that the first tap of the first pixel meets: the padding, k - 1 less it in the input
  /// gradient, whose taps are numbered from the end.
  uint32_t pad, flip;
  /// Channels of a group, and chunks of 32 of them.
  uint32_t group_from, group_to, chunks;
  /// Rows of a slab of packed weights.
  uint32_t slab_rows;
  /// A tile: images, rows (a multiple of MT) and columns; its patch, and how many rows and columns before the tile it
  /// begins: `pad`, or 0 where the taps outside of the image are passed over.
  uint32_t images, rows, cols, patch_rows, patch_cols, rows_before, cols_before;
  Divisor by_images, by_cols, by_patch_cols;
  /// Tiles: image blocks x down x across x column blocks of all groups, the last innermost.
  uint32_t tiles;
  Divisor by_down, by_across, by_blocks, by_group_blocks;
  /// Bytes of a patch with the space behind it; how many patches and stages of weights there is space for.
  uint32_t patch_bytes, patches, stages;
  /// Pieces of a patch that a thread adds noise to, and how many of them at a time.
  uint32_t pieces, pieces_step;
};

namespace halo {

constexpr uint32_t CHUNK = 32;       // channels
constexpr uint32_t SLAB_ROW = 64;    // bytes
constexpr uint32_t CONSUMERS = 256;  // threads that multiply
constexpr uint32_t MAX_STAGES = 8, MAX_PATCHES = 4;
constexpr uint32_t STAGING = 2048;   // bytes of a warp's output on its way

/// The place in a ring of buffers, and the parity of its turn.
struct Turn {
  uint32_t at = 0, parity = 0;
  __device__ __forceinline__ void next(uint32_t count) {
    if (++at == count) {
      at = 0;
      parity ^= 1;
    }
  }
};

struct Barriers {
  uint64_t stage_full[MAX_STAGES], stage_empty[MAX_STAGES];
  uint64_t patch_full[MAX_PATCHES], patch_noisy[MAX_PATCHES], patch_empty[MAX_PATCHES];
};

/// A tile: its first image, row and column, its group and its first output channel in the group.
struct Place {
  uint32_t image, row, col, group, column;
};

template <int N>
__device__ __forceinline__ Place locate(uint32_t tile, const Halo &p) {
  const Division block = divide_rest(tile, p.by_blocks), group = divide_rest(block.remainder, p.by_group_blocks);
  const Division across = divide_rest(block.quotient, p.by_across), down = divide_rest(across.quotient, p.by_down);
  return {down.quotient * p.images, down.remainder * p.rows, across.remainder * p.cols, group.quotient,
          group.remainder * N};
}

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// One thread brings the weights: a stage is a kernel column, K slabs of a chunk.
template <int K, int N>
__device__ __forceinline__ void bring_weights(unsigned char *stages, Barriers &bar, const unsigned char *packed,
                                              const Halo &p) {
  Turn turn;
  for (uint32_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const Place place = locate<N>(tile, p);
    const uint32_t rows = min((uint32_t)N, p.slab_rows - place.column);
    const uint64_t slab = (uint64_t)p.slab_rows * SLAB_ROW;
    const unsigned char *from = packed + place.group * p.chunks * (K * K) * slab + place.column * SLAB_ROW;
    for (uint32_t chunk = 0; chunk < p.chunks; chunk++, from += K * K * slab)
#pragma unroll 1
      for (uint32_t v = 0; v < K; v++) {
        gpu::mbar_wait(&bar.stage_empty[turn.at], turn.parity ^ 1);
        gpu::mbar_arrive_expect(&bar.stage_full[turn.at], K * rows * SLAB_ROW);
        unsigned char *const to = stages + turn.at * (K * N * SLAB_ROW);
#pragma unroll
        for (uint32_t u = 0; u < K; u++) {
          const uint32_t tap = p.flip ? K * K - 1 - (u * K + v) : u * K + v;
          gpu::bulk_load(to + u * (N * SLAB_ROW), from + tap * slab, rows * SLAB_ROW, &bar.stage_full[turn.at]);
        }
        turn.next(p.stages);
      }
  }
}

/// Another brings the patches.
template <int N>
__device__ __forceinline__ void bring_patches(unsigned char *patches, Barriers &bar, const CUtensorMap &map,
                                              const Halo &p) {
  Turn turn;
  const uint32_t bytes = p.images * p.patch_rows * p.patch_cols * SLAB_ROW;
  for (uint32_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const Place place = locate<N>(tile, p);
    for (uint32_t chunk = 0; chunk < p.chunks; chunk++) {
      gpu::mbar_wait(&bar.patch_empty[turn.at], turn.parity ^ 1);
      gpu::mbar_arrive_expect(&bar.patch_full[turn.at], bytes);
      gpu::tma_load_4d(patches + turn.at * p.patch_bytes, &map, &bar.patch_full[turn.at],
                       place.group * p.group_from + chunk * CHUNK, place.image,
                       (int)(place.col - p.cols_before), (int)(place.row - p.rows_before));
      turn.next(p.patches);
    }
  }
}

/// Adds noise to the patches one chunk ahead of the products, a few pieces at a time.
template <class T>
struct Noisy {
  Place place;
  uint32_t tile, chunk, piece;
  Turn turn;

  template <int N>
  __device__ __forceinline__ void begin(const Halo &p) {
    tile = blockIdx.x;
    place = locate<N>(tile, p);
    chunk = piece = 0;
  }

  /// Goes on to the next chunk.
  template <int N>
  __device__ __forceinline__ void next(const Halo &p) {
    turn.next(p.patches);
    piece = 0;
    if (++chunk == p.chunks) {
      chunk = 0;
      tile += gridDim.x;
      if (tile < p.tiles) place = locate<N>(tile, p);
    }
  }

  /// Adds noise to up to `most` further pieces; behind the last the warp has done its part of the patch.
  __device__ __forceinline__ void work(uint32_t most, unsigned char *patches, Barriers &bar, const Halo &p,
                                       const Row *rows, const Draw &draw, bool precise) {
    if (tile >= p.tiles || piece == p.pieces) return;
    if (piece == 0) gpu::mbar_wait(&bar.patch_full[turn.at], turn.parity);
    const uint32_t eight = threadIdx.x % 4, channel = chunk * CHUNK + eight * 8;
    const uint32_t end = min(piece + most, p.pieces);
#pragma unroll 1
    for (; piece < end; piece++) {
      const uint32_t pixel = threadIdx.x / 4 + piece * (CONSUMERS / 4);
      const Division line = divide_rest(pixel, p.by_images), at = divide_rest(line.quotient, p.by_patch_cols);
      // A pixel above or left of the image wraps around to one far below or right of it.
      const uint32_t n = place.image + line.remainder, r = place.row - p.rows_before + at.quotient,
                     c = place.col - p.cols_before + at.remainder;
      if (at.quotient >= p.patch_rows || n >= p.from.n || r >= p.from.h || c >= p.from.w || channel >= p.group_from)
        continue;
      T *const x = reinterpret_cast<T *>(patches + turn.at * p.patch_bytes + pixel * SLAB_ROW +
                                         ((eight ^ (pixel >> 1 & 3)) << 4));
      const gpu::Vec<T> clean = gpu::load_vec(x);
      const uint32_t group = (place.group * p.group_from + channel) / 8;
      float z[8];
      if (precise)
        noise::normals<true>(z, draw, rows[n], r * p.from.w + c, group);
      else
        noise::normals<false>(z, draw, rows[n], r * p.from.w + c, group);
      gpu::Vec<T> noisy;
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        T two[2];
        gpu::pack2(two, fmaf(draw.sigma, z[j], gpu::to_f32(clean.v[j])),
                   fmaf(draw.sigma, z[j + 1], gpu::to_f32(clean.v[j + 1])));
        noisy.v[j] = two[0];
        noisy.v[j + 1] = two[1];
      }
      gpu::store_vec(x, noisy);
    }
    if (piece == p.pieces) {
      __syncwarp();
      if (threadIdx.x % 32 == 0) gpu::mbar_arrive(&bar.patch_noisy[turn.at]);
    }
  }
};

template <class T>
struct Product;
template <>
struct Product<__nv_bfloat16> {
  template <int N>
  static __device__ __forceinline__ void add(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    gpu::wgmma_bf16<N>(d, a, b, accumulate);
  }
};
template <>
struct Product<__half> {
  template <int N>
  static __device__ __forceinline__ void add(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    gpu::wgmma_f16<N>(d, a, b, accumulate);
  }
};

/// Whether positions `first ..= last`, moved by `f - pad`, meet 0 .. size.
__device__ __forceinline__ bool meets(uint32_t first, uint32_t last, uint32_t f, uint32_t pad, uint32_t size) {
  return last + f >= pad && first + f < pad + size;
}

/// What a warp's lane knows of the pixels it multiplies.
template <int MT>
struct Pixels {
  /// Of this lane's row of a fragment: image, first of MT rows, column in the tile; rows are far outside if the tile
  /// has no such pixel.
  uint32_t image, row, col;
  /// Pixel of the patch under tap (0, 0) of the first row.
  uint32_t under;
  /// Of the warpgroup: whether it has any; first and last of MT rows, columns.
  bool any;
  uint32_t row_first, row_last, col_first, col_last;

  __device__ __forceinline__ void find(const Halo &p) {
    const uint32_t thread = gpu::opaque(threadIdx.x);
    const uint32_t used = p.images * p.cols * (p.rows / MT), m = thread / 32 * 16 + thread % 16;
    const Division line = divide_rest(m, p.by_images), at = divide_rest(line.quotient, p.by_cols);
    const bool inside = m < used;
    image = inside ? line.remainder : 0;
    row = inside ? at.quotient * MT : 1u << 30;
    col = inside ? at.remainder : 0;
    // It may lie before the patch: such taps are passed over.
    under = (((inside ? row : 0) + p.rows_before - p.pad) * p.patch_cols + col + p.cols_before - p.pad) * p.images + image;
    const uint32_t m0 = thread / 128 * 64, m1 = min(m0 + 63, used - 1);
    any = m0 < used;
    const Division first = divide_rest(divide(m0, p.by_images), p.by_cols),
                   last = divide_rest(divide(m1, p.by_images), p.by_cols);
    row_first = first.quotient * MT;
    row_last = last.quotient * MT;
    const bool one = first.quotient == last.quotient;
    col_first = one ? first.remainder : 0;
    col_last = one ? last.remainder : p.cols - 1;
  }
};

/// What of a step's products is passed over: bit 0 the patch's first row, bit 1 its last, ALL all of them. They would
/// meet nothing but the zeros around the image.
constexpr uint32_t ALL = 4;

/// Fragments of FR rows of the patch: 16 channels from `half` on, under kernel column v.
template <int FR>
__device__ __forceinline__ void fragments(uint32_t (&a)[FR][4], const unsigned char *patch, uint32_t under, uint32_t v,
                                          uint32_t half, uint32_t skip, const Halo &p) {
  const uint32_t eight = half * 2 + threadIdx.x % 32 / 16, line = p.patch_cols * p.images;
#pragma unroll
  for (int f = 0; f < FR; f++) {
    // A row that is passed over may lie outside of the patch; a branch would part the products.
    const bool out = skip == ALL || (f == 0 && (skip & 1)) || (f == FR - 1 && (skip & 2));
    const uint32_t pixel = out ? 0 : under + v * p.images + f * line;
    gpu::ldmatrix(a[f], patch + pixel * SLAB_ROW + ((eight ^ (pixel >> 1 & 3)) << 4));
  }
}

/// acc[mt] += fragments of row mt + u times slab u, for rows LO .. FR - HI of the patch: one group of products, with
/// no branch in it.
template <class T, int K, int MT, int N, int LO, int HI>
__device__ __forceinline__ void multiply_rows(float (&acc)[MT][N / 2], bool (&on)[MT],
                                              const uint32_t (&a)[MT + K - 1][4], uint64_t b) {
  gpu::wgmma_fence();
#pragma unroll
  for (int f = LO; f < MT + K - 1 - HI; f++) {
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
      const int u = f - mt;
      if (u < 0 || u >= K) continue;
      Product<T>::template add<N>(acc[mt], a[f], b + u * (N * SLAB_ROW >> 4), on[mt]);
      on[mt] = true;
    }
  }
  gpu::wgmma_commit();
}

template <class T, int K, int MT, int N>
__device__ __forceinline__ void multiply(float (&acc)[MT][N / 2], bool (&on)[MT], const uint32_t (&a)[MT + K - 1][4],
                                         uint64_t b, uint32_t skip) {
  if constexpr (K == 1) {
    multiply_rows<T, K, MT, N, 0, 0>(acc, on, a, b);
  } else if (skip == 0) {
    multiply_rows<T, K, MT, N, 0, 0>(acc, on, a, b);
  } else if (skip == 1) {
    multiply_rows<T, K, MT, N, 1, 0>(acc, on, a, b);
  } else if (skip == 2) {
    multiply_rows<T, K, MT, N, 0, 1>(acc, on, a, b);
  } else if (skip == 3) {
    multiply_rows<T, K, MT, N, 1, 1>(acc, on, a, b);
  } else {
    gpu::wgmma_commit();
  }
}

#endif

} // namespace halo
