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
  /// A tile: images, rows (a multiple of MT) and columns; its patch, and how many rows and columns before the tile it
  /// begins: `pad`, or 0 where the taps outside of the image are passed over.
  uint32_t images, rows, cols, patch_rows, patch_cols, rows_before, cols_before;
  Divisor by_images, by_cols, by_patch_cols;
  /// Tiles: image blocks x down x across x column blocks of all groups, the last innermost.
  uint32_t tiles;
  Divisor by_down, by_across, by_blocks, by_group_blocks;
  /// Bytes of a patch with the space behind it; how many patches and stages of weights there is space for.
  uint32_t patch_bytes, patches, stages;
  /// Pieces of a patch that a thread adds noise to.
  uint32_t pieces;
  /// Whether the result leaves in boxes: 16 pixels of a fragment by 64 channels.
  uint32_t boxes;
};

namespace halo {

constexpr uint32_t CHUNK = 32;       // channels
constexpr uint32_t SLAB_ROW = 64;    // bytes
constexpr uint32_t CONSUMERS = 256;  // threads that multiply
constexpr uint32_t DISTURBERS = 224; // threads that add noise
constexpr uint32_t MAX_STAGES = 8, MAX_PATCHES = 4;
constexpr uint32_t STAGING = 2048;   // bytes of a warp's output on its way, twice

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
  /// Of a warp's output on its way, where other warps add noise to it.
  uint64_t result_full[CONSUMERS / 32][2], result_empty[CONSUMERS / 32][2];
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

/// What a ring of buffers is filled with next, and how often it was.
struct Cursor {
  Turn turn;
  Place place;
  uint32_t tile, chunk = 0, column = 0;
  int32_t count = 0;

  template <int N>
  __device__ __forceinline__ void begin(const Halo &p) {
    tile = blockIdx.x;
    place = locate<N>(tile, p);
  }

  /// Goes on to the next of `columns` of a chunk, in a ring of so many buffers.
  template <int N>
  __device__ __forceinline__ void next(uint32_t columns, uint32_t buffers, const Halo &p) {
    turn.next(buffers);
    count++;
    if (++column < columns) return;
    column = 0;
    if (++chunk < p.chunks) return;
    chunk = 0;
    tile += gridDim.x;
    if (tile < p.tiles) place = locate<N>(tile, p);
  }
};

/// One thread brings patches and weights; a stage of weights is a kernel column, K slabs of a chunk. Each waits until
/// its place in its ring is free, so they are brought in the order in which the products set the places free: a patch
/// at the end of its last column, a stage in the middle of the column behind its own.
template <int K, int N>
__device__ __forceinline__ void bring(unsigned char *stages, unsigned char *patches, Barriers &bar,
                                      const CUtensorMap &x, const CUtensorMap &weights, const Halo &p) {
  const uint32_t patch_bytes = p.images * p.patch_rows * p.patch_cols * SLAB_ROW;
  const int32_t buffers = p.patches, places = p.stages;
  Cursor patch, stage;
  patch.begin<N>(p);
  stage.begin<N>(p);
  while (patch.tile < p.tiles || stage.tile < p.tiles) {
    // While rings are empty, in the order of use.
    const bool free_before = patch.count < buffers ? K * patch.count <= stage.count
                                                   : K * (patch.count - buffers) + K - 1 <= stage.count - places;
    if (patch.tile < p.tiles && (free_before || stage.tile >= p.tiles)) {
      const uint32_t at = patch.turn.at;
      gpu::mbar_wait(&bar.patch_empty[at], patch.turn.parity ^ 1);
      gpu::mbar_arrive_expect(&bar.patch_full[at], patch_bytes);
      gpu::tma_load_4d(patches + at * p.patch_bytes, &x, &bar.patch_full[at],
                       patch.place.group * p.group_from + patch.chunk * CHUNK, patch.place.image,
                       (int)(patch.place.col - p.cols_before), (int)(patch.place.row - p.rows_before));
      patch.next<N>(1, p.patches, p);
    } else {
      const uint32_t at = stage.turn.at;
      gpu::mbar_wait(&bar.stage_empty[at], stage.turn.parity ^ 1);
      // Rows behind the packed ones come as zeros.
      gpu::mbar_arrive_expect(&bar.stage_full[at], K * N * SLAB_ROW);
      gpu::tma_load_4d(stages + at * (K * N * SLAB_ROW), &weights, &bar.stage_full[at], 0, stage.place.column / 8,
                       p.flip ? K - 1 - stage.column : stage.column, (stage.place.group * p.chunks + stage.chunk) * K);
      stage.next<N>(K, p.stages, p);
    }
  }
}

/// Seven warps add noise to a tile's patches when they are there, ahead of the products, 16 bytes of a thread after the
/// other.
template <class T, int N, bool PRECISE>
__device__ __forceinline__ void disturb(unsigned char *patches, Barriers &bar, Turn &turn, uint32_t tile,
                                        const Halo &p, const Row *rows, const Draw &draw) {
  const Place place = locate<N>(tile, p);
  const uint32_t thread = threadIdx.x - CONSUMERS - 32, eight = thread % 4;
#pragma unroll 1
  for (uint32_t chunk = 0; chunk < p.chunks; chunk++) {
    const uint32_t channel = chunk * CHUNK + eight * 8, group = (place.group * p.group_from + channel) / 8;
    unsigned char *const patch = patches + turn.at * p.patch_bytes;
    gpu::mbar_wait(&bar.patch_full[turn.at], turn.parity);
#pragma unroll 1
    for (uint32_t i = 0; i < p.pieces; i++) {
      const uint32_t pixel = thread / 4 + i * (DISTURBERS / 4);
      const Division line = divide_rest(pixel, p.by_images), at = divide_rest(line.quotient, p.by_patch_cols);
      // A pixel above or left of the image wraps around to one far below or right of it.
      const uint32_t n = place.image + line.remainder, r = place.row - p.rows_before + at.quotient,
                     c = place.col - p.cols_before + at.remainder;
      if (at.quotient >= p.patch_rows || n >= p.from.n || r >= p.from.h || c >= p.from.w || channel >= p.group_from)
        continue;
      T *const piece = reinterpret_cast<T *>(patch + pixel * SLAB_ROW + ((eight ^ (pixel >> 1 & 3)) << 4));
      const noise::Bits<PRECISE> bits = noise::bits<PRECISE>(draw, rows[n], r * p.from.w + c, group);
      gpu::Vec<T> x = gpu::load_vec(piece);
      noise::add_rounded<PRECISE>(x, draw.sigma, bits);
      gpu::store_vec(piece, x);
    }
    // The next patch comes to this place by TMA.
    gpu::fence_proxy_async();
    __syncwarp();
    if (threadIdx.x % 32 == 0) gpu::mbar_arrive(&bar.patch_noisy[turn.at]);
    turn.next(p.patches);
  }
}

template <class T>
struct Product;
template <>
struct Product<__nv_bfloat16> {
  template <int N>
  static __device__ __forceinline__ void add(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) {
    gpu::wgmma_bf16<N>(d, a, b);
  }
};
template <>
struct Product<__half> {
  template <int N>
  static __device__ __forceinline__ void add(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) {
    gpu::wgmma_f16<N>(d, a, b);
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
  /// Row and column of the patch under tap (0, 0) of the first row; they may lie before the patch.
  uint32_t patch_row, patch_col;
  /// Of the warpgroup: whether it has any; first and last of MT rows, columns.
  bool any;
  uint32_t row_first, row_last, col_first, col_last;

  __device__ __forceinline__ void find(const Halo &p) { find(p, gpu::opaque(threadIdx.x)); }
  __device__ __forceinline__ void find(const Halo &p, uint32_t thread) {
    const uint32_t used = gpu::opaque(p.images) * p.cols * (p.rows / MT), m = thread / 32 * 16 + thread % 16;
    const Division line = divide_rest(m, p.by_images), at = divide_rest(line.quotient, p.by_cols);
    const bool inside = m < used;
    image = inside ? line.remainder : 0;
    row = inside ? at.quotient * MT : 1u << 30;
    col = inside ? at.remainder : 0;
    patch_row = (inside ? row : 0) + p.rows_before - p.pad;
    patch_col = col + p.cols_before - p.pad;
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

/// Where a lane's rows of the fragments lie in a patch, in bytes, for the first half of a chunk: under kernel column v
/// those of FR rows of the patch. What lies outside of the patch is passed over; the patch's first pixel stands for it.
template <int K, int FR, int MT>
__device__ __forceinline__ void places(uint32_t (&at)[K][FR], const Pixels<MT> &pixels, const Halo &p) {
  const uint32_t half = threadIdx.x % 32 / 16;
#pragma unroll
  for (int v = 0; v < K; v++) {
#pragma unroll
    for (int f = 0; f < FR; f++) {
      const uint32_t r = pixels.patch_row + f, c = pixels.patch_col + v;
      const uint32_t pixel = (r * p.patch_cols + c) * p.images + pixels.image;
      at[v][f] = r < p.patch_rows && c < p.patch_cols ? pixel * SLAB_ROW + ((half ^ (pixel >> 1 & 3)) << 4) : half << 4;
    }
  }
}

/// What of a column's products is passed over: bit 0 the patch's first row, bit 1 its last, ALL all of them. They would
/// meet nothing but the zeros around the image.
constexpr uint32_t ALL = 4;

/// For kernel column v three bits, from bit 3 v on; the same in a warpgroup.
template <int K, int MT>
__device__ __forceinline__ uint32_t passed_over(const Pixels<MT> &pixels, const Place &place, const Halo &p) {
  const uint32_t row0 = place.row + pixels.row_first, row1 = place.row + pixels.row_last;
  const uint32_t col0 = place.col + pixels.col_first, col1 = place.col + pixels.col_last;
  const uint32_t rows = (meets(row0, row1, 0, p.pad, p.from.h) ? 0 : 1) |
                        (meets(row0, row1, MT + K - 2, p.pad, p.from.h) ? 0 : 2);
  uint32_t skip = 0;
#pragma unroll
  for (int v = 0; v < K; v++)
    skip |= (pixels.any && meets(col0, col1, v, p.pad, p.from.w) ? rows : ALL) << (3 * v);
  return __shfl_sync(0xffffffffu, skip, 0);
}

/// wgmma's descriptor of a slab by its lower half, which alone says where it is: no carry leaves it.
__device__ __forceinline__ uint64_t descriptor(uint32_t lower) {
  return gpu::matrix_descriptor_upper(gpu::Swizzle::B64, 8 * SLAB_ROW) | lower;
}

/// acc[mt] += fragments of row mt + u times slab u, for rows LO .. FR - HI of the patch: one group of products, with
/// no branch in it. `b` says where slab 0 is, the next is `step` behind it: see descriptor.
template <class T, int K, int MT, int N, int LO, int HI>
__device__ __forceinline__ void multiply_rows(float (&acc)[MT][N / 2], const uint32_t (&a)[MT + K - 1][4], uint32_t b,
                                              uint32_t step) {
  gpu::wgmma_fence();
#pragma unroll
  for (int f = LO; f < MT + K - 1 - HI; f++) {
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
      const int u = f - mt;
      if (u < 0 || u >= K) continue;
      Product<T>::template add<N>(acc[mt], a[f], descriptor(b + u * step));
    }
  }
  gpu::wgmma_commit();
}

template <class T, int K, int MT, int N>
__device__ __forceinline__ void multiply(float (&acc)[MT][N / 2], const uint32_t (&a)[MT + K - 1][4], uint32_t b,
                                         uint32_t step, uint32_t skip) {
  // Tests of bits: of values in turn nvcc makes a jump by a table.
  if (K == 1 || skip == 0)
    multiply_rows<T, K, MT, N, 0, 0>(acc, a, b, step);
  else if (skip & ALL)
    gpu::wgmma_commit();
  else if (~skip & 2)
    multiply_rows<T, K, MT, N, 1, 0>(acc, a, b, step);
  else if (skip & 1)
    multiply_rows<T, K, MT, N, 1, 1>(acc, a, b, step);
  else
    multiply_rows<T, K, MT, N, 0, 1>(acc, a, b, step);
}

#endif

} // namespace halo
