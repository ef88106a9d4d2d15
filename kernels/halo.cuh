// Convolution by wgmma out of halo patches (compute capability 9.0): pixels are the rows of the product, output
// channels its columns. See conv2d_wgmma.cu.
//
// The sum runs over slabs of 64 bytes: chunk of 32 channels, kernel column, half of the chunk, kernel row. The patch of
// a tile, one chunk at a time, comes by TMA as [row][column][image][64 bytes]: images are innermost, so that the 16
// pixels of a fragment lie one behind the other on any image of at least that many columns x images, and a tap is a
// shift of whole pixels. Pieces of 16 bytes are exchanged by TMA's 64-byte swizzle: eight neighbours, from any pixel
// on, lie in different banks.
//
// A thread's MT rows of fragments are rows of pixels one below the other: under K kernel rows they need
// STEP (MT - 1) + K rows of the patch, each loaded once. Rows and columns of the patch that lie outside of the image for
// the whole warpgroup are passed over where STEP, the stride of a 3x3 kernel, is 1: adding their zeros would not change
// a bit. A 1x1 kernel with a stride sees no other pixels than those that it meets, as if they were the image.
#pragma once
#include "conv2d.cuh"
#include "divide.cuh"
#include "noise.cuh"

/// What the host plans (src/ops/conv2d/wgmma.rs).
struct Halo {
  /// What the kernel sees of the operand and of the result: all of them, but for 1x1 kernels with a stride.
  Dims from, to;
  /// Pixels in memory from one that it sees to the one below, to the one beside; of the result (what a pool leaves of
  /// it) from an image to the next, too.
  uint32_t from_row, from_col, to_image, to_row, to_col;
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
  /// Whether the weights stay: all of a block's tiles have the same, and there is a stage for each of their steps.
  uint32_t stay;
  /// Pieces of a patch that a thread adds noise to, at most.
  uint32_t pieces;
  /// Whether the result leaves in boxes: 16 pixels of a fragment by 64 channels.
  uint32_t boxes;
  /// The grid, which nvcc would keep in a register.
  uint32_t blocks;
};

namespace halo {

constexpr uint32_t CHUNK = 32;       // channels
constexpr uint32_t SLAB_ROW = 64;    // bytes
constexpr uint32_t CONSUMERS = 256;  // threads that multiply
constexpr uint32_t DISTURBERS = 224; // threads that add noise
constexpr uint32_t MAX_STAGES = 16, MAX_PATCHES = 8;
constexpr uint32_t FRAGMENT_PIXELS = CONSUMERS / 2, NOWHERE = ~0u;
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
/// at the end of its last column, a stage in the middle of the column behind its own. Weights that stay are
/// brought for the first tile alone.
template <int K, int STEP, int N>
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
                       (int)(patch.place.col * STEP - p.cols_before), (int)(patch.place.row * STEP - p.rows_before));
      patch.next<N>(1, p.patches, p);
    } else {
      const uint32_t at = stage.turn.at;
      gpu::mbar_wait(&bar.stage_empty[at], stage.turn.parity ^ 1);
      // Rows behind the packed ones come as zeros.
      gpu::mbar_arrive_expect(&bar.stage_full[at], K * N * SLAB_ROW);
      gpu::tma_load_4d(stages + at * (K * N * SLAB_ROW), &weights, &bar.stage_full[at], 0, stage.place.column / 8,
                       p.flip ? K - 1 - stage.column : stage.column, (stage.place.group * p.chunks + stage.chunk) * K);
      stage.next<N>(K, p.stages, p);
      if (p.stay && stage.turn.at == 0) stage.tile = p.tiles;
    }
  }
}

/// Registers of a thread that multiplies, and of the others: four warpgroups share 512. With few left, noise is drawn for
/// one piece of a thread at a time, not two.
template <int K, int MT, int N>
constexpr int MULTIPLYING_REGISTERS = K == 3 && MT * N > 128 ? 208 : 184;
template <int K, int MT, int N>
constexpr int OTHER_REGISTERS = 256 - MULTIPLYING_REGISTERS<K, MT, N>;
template <int K, int MT, int N>
constexpr bool SCARCE = OTHER_REGISTERS<K, MT, N> < 64;

/// What the warps that add noise keep in shared memory, for want of registers.
struct Notes {
  /// Of each warp.
  struct alignas(16) Tile {
    uint32_t tile;
    Place place;
  } tiles[DISTURBERS / 32];
  /// Of a tile's pixels (of the first of their MT rows), sixteen of each warp that multiplies: image, row and column, 8, 12
  /// and 12 bits; or NOWHERE. Where noise is added to the results.
  uint32_t pixels[FRAGMENT_PIXELS];
};
static_assert(sizeof(Notes) == 736, "what the host leaves (src/ops/conv2d/wgmma.rs)");

/// The place of a warp's output on its way: two of each warp that multiplies, behind the patches.
__device__ __forceinline__ unsigned char *staging_at(unsigned char *patches, uint32_t place, const Halo &p) {
  return patches + gpu::opaque(p.patches) * p.patch_bytes + place * STAGING;
}

/// Behind the last of those.
__device__ __forceinline__ Notes &notes(unsigned char *patches, const Halo &p) {
  return *reinterpret_cast<Notes *>(staging_at(patches, CONSUMERS / 32 * 2, p));
}

/// Which of the warps that add noise this one is.
__device__ __forceinline__ uint32_t drawing_warp() { return gpu::opaque(threadIdx.x) / 32 - CONSUMERS / 32 - 1; }

/// This warp's.
__device__ __forceinline__ Notes::Tile &noted(unsigned char *patches, const Halo &p) {
  return notes(patches, p).tiles[drawing_warp()];
}

/// A pixel of a patch that noise is added to: what the noise is named by, and where the pixel lies.
struct alignas(16) Spot {
  Row row;
  /// Its first block of normals.
  uint32_t block;
  /// Bytes to the piece with which the swizzle exchanges its first.
  uint32_t at;
};
static_assert(sizeof(Spot) == 16, "one load");

/// The pixels that a warp adds noise to, those in the image: made once a tile, for all chunks. Returns how many.
template <int STEP>
__device__ __forceinline__ uint32_t find_spots(Spot *spots, const Place &place, const Halo &p, const Row *rows,
                                               uint32_t blocks) {
  uint32_t count = 0;
#pragma unroll 1
  for (uint32_t i = 0; i < p.pieces; i += 4) {
    const uint32_t thread = gpu::opaque(threadIdx.x) - CONSUMERS - 32, lane = thread % 32;
    const uint32_t first = thread / 32 * 8 + lane % 8;
    const uint32_t pixel = first + (i + lane / 8) * (DISTURBERS / 4);
    const Division line = divide_rest(pixel, p.by_images), at = divide_rest(line.quotient, p.by_patch_cols);
    // A pixel above or left of the image wraps around to one far below or right of it.
    const uint32_t n = place.image + line.remainder, r = place.row * STEP - p.rows_before + at.quotient,
                   c = place.col * STEP - p.cols_before + at.remainder;
    const bool inside = at.quotient < p.patch_rows && n < p.from.n && r < p.from.h && c < p.from.w;
    const uint32_t all = __ballot_sync(0xffffffffu, inside);
    if (inside)
      spots[count + __popc(all & ((1u << lane) - 1))] = {rows[n], (r * p.from_row + c * p.from_col) * blocks,
                                                         pixel * SLAB_ROW + ((pixel >> 1 & 3) << 4)};
    count += __popc(all);
  }
  __syncwarp();
  return count;
}

/// Seven warps add noise to a tile's patches when they are there, ahead of the products: to 16 bytes of a thread at a time,
/// or to two times 16, so that one's instructions are issued while the other's take their time.
template <class T, int STEP, bool PRECISE, bool SCARCE>
__device__ __forceinline__ void disturb(unsigned char *patches, Barriers &bar, Turn &turn, const Halo &p,
                                        const Row *rows, const Draw &draw) {
  constexpr int AT_ONCE = PRECISE || SCARCE ? 1 : 2;
  const Place place = noted(patches, p).place;
  const uint32_t thread = gpu::opaque(threadIdx.x) - CONSUMERS - 32, eight = thread % 4;
  Spot *const spots = reinterpret_cast<Spot *>(&notes(patches, p) + 1) + thread / 32 * (p.pieces * 8);
  const uint32_t count = find_spots<STEP>(spots, place, p, rows, draw.blocks);
#pragma unroll 1
  for (uint32_t chunk = 0; chunk < p.chunks; chunk++) {
    const uint32_t channel = chunk * CHUNK + eight * 8;
    const uint32_t group = (PRECISE ? 2 : 1) * ((place.group * p.group_from + channel) / 8);
    gpu::mbar_wait(&bar.patch_full[turn.at], turn.parity);
#pragma unroll 1
    for (uint32_t i = channel < p.group_from ? thread % 32 / 4 : count; i < count; i += 8 * AT_ONCE) {
      T *pieces[AT_ONCE];
      Row names[AT_ONCE];
      uint32_t blocks[AT_ONCE];
      gpu::Vec<T> x[AT_ONCE] = {};
#pragma unroll
      for (int j = 0; j < AT_ONCE; j++) {
        const Spot spot = spots[min(i + j * 8, count - 1)];
        pieces[j] = reinterpret_cast<T *>(patches + turn.at * p.patch_bytes + (spot.at ^ eight << 4));
        names[j] = spot.row;
        blocks[j] = spot.block + group;
        if (i + j * 8 < count) x[j] = gpu::load_vec(pieces[j]);
      }
      noise::add_rounded<PRECISE>(x, draw, names, blocks);
#pragma unroll
      for (int j = 0; j < AT_ONCE; j++)
        if (i + j * 8 < count) gpu::store_vec(pieces[j], x[j]);
    }
    // The next patch comes to this place by TMA.
    gpu::fence_proxy_async();
    __syncwarp();
    if (thread % 32 == 0) gpu::mbar_arrive(&bar.patch_noisy[turn.at]);
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
template <int STEP, int MT>
struct Pixels {
  /// Of this lane's row of a fragment: image, first of MT rows, column in the tile; rows are far outside if the tile
  /// has no such pixel.
  uint32_t image, row, col;
  /// Row and column of the patch under tap (0, 0) of the first row; they may lie before the patch.
  uint32_t patch_row, patch_col;
  /// Of the warpgroup: whether it has any; first and last of MT rows, columns.
  bool any;
  uint32_t row_first, row_last, col_first, col_last;

  __device__ __forceinline__ void find(const Halo &p) {
    const uint32_t thread = gpu::opaque(threadIdx.x);
    const uint32_t used = gpu::opaque(p.images) * p.cols * (p.rows / MT), m = thread / 32 * 16 + thread % 16;
    const Division line = divide_rest(m, p.by_images), at = divide_rest(line.quotient, p.by_cols);
    const bool inside = m < used;
    image = inside ? line.remainder : 0;
    row = inside ? at.quotient * MT : 1u << 30;
    col = inside ? at.remainder : 0;
    patch_row = (inside ? row : 0) * STEP + p.rows_before - p.pad;
    patch_col = col * STEP + p.cols_before - p.pad;
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
template <int K, int FR, int STEP, int MT>
__device__ __forceinline__ void places(uint32_t (&at)[K][FR], const Pixels<STEP, MT> &pixels, const Halo &p) {
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
__device__ __forceinline__ uint32_t passed_over(const Pixels<1, MT> &pixels, const Place &place, const Halo &p) {
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

/// Rows of the patch under a thread's MT rows of pixels.
template <int K, int STEP, int MT>
constexpr int FRAGMENT_ROWS = STEP *(MT - 1) + K;

/// acc[mt] += fragments of row STEP mt + u times slab u, for rows LO .. FR - HI of the patch: one group of products,
/// with no branch in it. `b` says where slab 0 is, the next is `step` behind it: see descriptor.
template <class T, int K, int STEP, int MT, int N, int LO, int HI>
__device__ __forceinline__ void multiply_rows(float (&acc)[MT][N / 2],
                                              const uint32_t (&a)[FRAGMENT_ROWS<K, STEP, MT>][4], uint32_t b,
                                              uint32_t step) {
  gpu::wgmma_fence();
#pragma unroll
  for (int f = LO; f < FRAGMENT_ROWS<K, STEP, MT> - HI; f++) {
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
      const int u = f - STEP * mt;
      if (u < 0 || u >= K) continue;
      Product<T>::template add<N>(acc[mt], a[f], descriptor(b + u * step));
    }
  }
  gpu::wgmma_commit();
}

template <class T, int K, int STEP, int MT, int N>
__device__ __forceinline__ void multiply(float (&acc)[MT][N / 2], const uint32_t (&a)[FRAGMENT_ROWS<K, STEP, MT>][4],
                                         uint32_t b, uint32_t step, uint32_t skip) {
  // Tests of bits: of values in turn nvcc makes a jump by a table.
  if (K == 1 || STEP > 1 || skip == 0)
    multiply_rows<T, K, STEP, MT, N, 0, 0>(acc, a, b, step);
  else if (skip & ALL)
    gpu::wgmma_commit();
  else if (~skip & 2)
    multiply_rows<T, K, STEP, MT, N, 1, 0>(acc, a, b, step);
  else if (skip & 1)
    multiply_rows<T, K, STEP, MT, N, 1, 1>(acc, a, b, step);
  else
    multiply_rows<T, K, STEP, MT, N, 0, 1>(acc, a, b, step);
}

#endif

} // namespace halo
