// What follows the products of halo.cuh, as epilogue.cuh has it for mma.sync: the same results to the bit, from the
// accumulators of wgmma. Lane l holds channels l % 4 x 2 and the next of every eight, of rows l / 4 and l / 4 + 8 of its
// warp's sixteen; a thread's MT tiles are rows of pixels one below the other. Bias, statistics, residual, activation,
// pool and mask are done there; then it goes through shared memory: in boxes that TMA stores, or row by row in
// stores of 16 bytes. Where noise is drawn on the way, it is left there for the warps that have nothing else to do.
#pragma once
#include "epilogue.cuh"
#include "halo.cuh"

namespace halo {

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Where a warp's pixels go: at lane l what concerns row l % 16, `row` far outside if there is none. With a pool these
/// are pixels of its result, and rows count its rows.
struct Target {
  uint32_t pixel, row;
  __device__ __forceinline__ Target of(uint32_t lane) const {
    return {__shfl_sync(0xffffffffu, pixel, lane), __shfl_sync(0xffffffffu, row, lane)};
  }
};

template <int STEP, int MT>
__device__ __forceinline__ Target target(const Pixels<STEP, MT> &pixels, const Place &place, const Halo &p, bool pool) {
  const uint32_t image = place.image + pixels.image, col = place.col + pixels.col, row = place.row + pixels.row;
  const bool exists = image < p.to.n && (col >> pool) < p.to.w >> pool && !(pool && (col & 1)) && pixels.row < 1u << 30;
  return {image * p.to_image + (row >> pool) * p.to_row + (col >> pool) * p.to_col, exists ? row >> pool : 1u << 30};
}

/// Statistics of a warp's pixels, one chunk; see epilogue::statistics.
template <int STEP, int MT, int N>
__device__ __forceinline__ void statistics(float *partial, uint32_t *counts, const float (&acc)[MT][N / 2],
                                           const Pixels<STEP, MT> &pixels, uint32_t tile, const Place &place,
                                           const Halo &p) {
  const uint32_t lane = threadIdx.x % 32;
  const Target mine = target(pixels, place, p, false);
  uint32_t exists = 0;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const uint32_t row = mine.of(lane / 4 + 8 * h).row;
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
      if (row + mt < p.to.h) exists |= 1u << (2 * mt + h);
  }
  const uint32_t count = epilogue::count_rows<2 * MT>(exists);
  const uint32_t chunk = divide(tile, p.by_blocks) * (CONSUMERS / 32) + threadIdx.x / 32;
  if (lane == 0 && place.group == 0 && place.column == 0) counts[chunk] = count;
  float *const out = partial + (uint64_t)chunk * 3 * p.to.c + place.group * p.group_to + place.column;
  constexpr int COUNT = MT > 2 ? 4 : 8; // as many as there are registers for
#pragma unroll
  for (int n = 0; n < N; n += 4 * COUNT) {
    float mean[COUNT], squares[COUNT];
    epilogue::moments<2 * MT>(mean, squares, exists, count > 0 ? 1.0f / (float)count : 0.0f, [&](int m, int i) {
      return acc[m / 2][(n + i / 2 * 8) / 2 + m % 2 * 2 + i % 2];
    });
    const uint32_t columns = p.group_to - place.column;
    epilogue::write_moments(out + n, p.to.c, columns - min(columns, (uint32_t)n), mean, squares);
  }
}

/// 2x2 max pool of a thread's rows `top` and `below` and of neighbouring columns, which lie `images` (1, 2, 4 or 8) rows
/// of the fragment apart: to `top`, where the column is even. Returns which of the four was taken, two bits for each of
/// the four accumulators.
template <int SIZE>
__device__ __forceinline__ uint32_t pool(float (&top)[SIZE], const float (&below)[SIZE], int at, uint32_t images) {
  uint32_t taken = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float own[2] = {top[at + i], below[at + i]};
    float all[4];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      all[2 * r] = own[r];
      // With eight images the neighbour is the other half of the thread's rows.
      const float half = r == 0 ? top[at + (i ^ 2)] : below[at + (i ^ 2)];
      all[2 * r + 1] = images == 8 ? half : __shfl_xor_sync(0xffffffffu, own[r], images * 4);
    }
    float best = all[0];
    uint32_t first = 0;
#pragma unroll
    for (int q = 1; q < 4; q++) {
      const bool take = all[q] > best || isnan(all[q]);
      best = take ? all[q] : best;
      first = take ? q : first;
    }
    // With eight images this is what rows of an odd column still read, for results that nobody takes.
    top[at + i] = best;
    taken |= first << (2 * i);
  }
  return taken;
}

/// The bits that gate fragments of 64 channels from `first` on, of which there are `columns`: four lanes have those of a
/// row and of the eighth behind it, 32 channels each. Channels are whole words.
template <int MT>
__device__ __forceinline__ void load_gate(uint32_t (&gate)[MT], const uint8_t *mask, const Target &mine, uint32_t first,
                                          uint32_t columns, const Halo &p) {
  const uint32_t lane = threadIdx.x % 32, channel = lane % 2 * 32;
  const Target own = mine.of(lane / 4 + lane % 4 / 2 * 8);
#pragma unroll
  for (int mt = 0; mt < MT; mt++) {
    const uint32_t *const at =
        reinterpret_cast<const uint32_t *>(mask + (uint64_t)(own.pixel + mt * p.to_row) * (p.to.c / 8));
    gate[mt] = own.row + mt < p.to.h && channel < columns ? at[(first + channel) / 32] : 0;
  }
}

/// Where a half of a warp's staging has eight channels of a row of a fragment.
__device__ __forceinline__ unsigned char *staged_at(unsigned char *half, uint32_t row, uint32_t eight) {
  return half + row * 128 + ((eight ^ (row & 7)) << 4);
}

/// This lane's eight of a row.
template <class T>
__device__ __forceinline__ gpu::Vec<T> staged(unsigned char *half, uint32_t row) {
  return gpu::load_vec(reinterpret_cast<const T *>(staged_at(half, row, threadIdx.x % 8)));
}

/// Everything behind the sums of a tile. `staging` is this warp's alone; `boxes` is the result as (channels, images,
/// columns, rows) in boxes of a fragment's pixels. Where noise is added, fragments are left to other warps
/// (disturb_results), and this one has left `written` before.
template <class T, int STEP, int MT, int N>
__device__ __forceinline__ void finish(float (&acc)[MT][N / 2], const epilogue::Results<T> &to, const CUtensorMap &boxes,
                                       const float *bias, float *partial, uint32_t *counts, unsigned char *staging,
                                       Barriers &bar, uint32_t &written, uint32_t tile, const Place &place,
                                       const Halo &p, const Epilogue &e) {
  const bool clips = e.low > -INFINITY || e.cap < INFINITY;
  const uint32_t lane = threadIdx.x % 32, first = place.group * p.group_to + place.column;
  const uint32_t columns = p.group_to - place.column; // that there are
  Pixels<STEP, MT> pixels;
  pixels.find(p);
  if (bias) {
#pragma unroll
    for (int n = 0; n < N; n += 8) {
      const uint32_t c = n + lane % 4 * 2;
      const float b0 = c < columns ? bias[first + c] : 0.0f, b1 = c < columns ? bias[first + c + 1] : 0.0f;
#pragma unroll
      for (int mt = 0; mt < MT; mt++) {
        float *const d = &acc[mt][n / 2];
        d[0] += b0, d[1] += b1, d[2] += b0, d[3] += b1;
      }
    }
  }
  if (partial) statistics<STEP, MT, N>(partial, counts, acc, pixels, tile, place, p);

  const Target mine = target(pixels, place, p, e.pool != 0);
  const uint32_t height = p.to.h >> (e.pool != 0);
#pragma unroll
  for (int n = 0; n < N; n += 64) {
    uint32_t gate[MT] = {};
    if (e.gated) load_gate(gate, to.mask, mine, first + n, columns - min(columns, (uint32_t)n), p);
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
      if (e.pool && mt % 2) continue;
      // Computed anew each time, for want of registers.
      const uint32_t down = gpu::opaque(e.pool ? mt / 2 : mt), lane = gpu::opaque(threadIdx.x) % 32;
      // The half of the staging that was written before the last time.
      const uint32_t which = e.noise ? written % 2 : (n / 64 * MT + mt) % 2, warp = threadIdx.x / 32;
      unsigned char *const half = staging + which * STAGING;
      const auto wait = [&] {
        if (e.noise) {
          gpu::mbar_wait_warp(&bar.result_empty[warp][which], (written / 2 & 1) ^ 1);
        } else if (p.boxes) {
          gpu::bulk_wait_read<1>(); // lane 0's
          __syncwarp();
        }
      };
      // In registers.
      if (to.residual || to.mask || e.pool || clips) {
        Target ends[2] = {};
        if (to.residual || to.mask || to.argmax) ends[0] = mine.of(lane / 4), ends[1] = mine.of(lane / 4 + 8);
        if (to.residual) {
          // Through the staging: loads of 16 bytes, which all are on their way without a register.
          wait();
#pragma unroll 1
          for (uint32_t i = 0; i < 4; i++) {
            const uint32_t r = i * 4 + lane / 8, c = n + lane % 8 * 8;
            const Target there = mine.of(r);
            const bool exists = there.row + down < height && c < columns;
            const uint64_t from = (uint64_t)(there.pixel + down * p.to_row) * p.to.c + first + c;
            gpu::cp_async16(staged_at(half, r, lane % 8), to.residual + (exists ? from : 0), exists);
          }
          gpu::cp_async_commit();
          gpu::cp_async_wait<0>();
          __syncwarp();
#pragma unroll
          for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int j = 0; j < 8; j++) {
              float *const d = &acc[mt][n / 2 + j * 4 + 2 * h];
              T two[2];
              const uint32_t word = reinterpret_cast<const uint32_t *>(staged_at(half, lane / 4 + 8 * h, j))[lane % 4];
              memcpy(two, &word, 4);
              d[0] = __fadd_rn(d[0], gpu::to_f32(two[0]));
              d[1] = __fadd_rn(d[1], gpu::to_f32(two[1]));
            }
          }
          __syncwarp();
        }
#pragma unroll
        for (int j = 0; j < 64; j += 8) {
          float *const d = &acc[mt][(n + j) / 2];
          // As a pass behind it would see them.
          if (e.pool) round_to<T, 4>(d), round_to<T, 4>(&acc[mt + 1 < MT ? mt + 1 : mt][(n + j) / 2]);
          if (clips) {
#pragma unroll
            for (int i = 0; i < 4; i++) d[i] = clip(d[i], e.low, e.cap);
          }
          if (e.pool) {
            float *const d2 = &acc[mt + 1 < MT ? mt + 1 : mt][(n + j) / 2];
#pragma unroll
            for (int i = 0; i < 4; i++) d2[i] = clip(d2[i], e.low, e.cap);
            const uint32_t taken = pool(acc[mt], acc[mt + 1 < MT ? mt + 1 : mt], (n + j) / 2, p.images);
            if (to.argmax) {
#pragma unroll
              for (int h = 0; h < 2; h++)
                if (ends[h].row + down < height && n + j < columns)
                  *reinterpret_cast<uchar2 *>(to.argmax + (uint64_t)(ends[h].pixel + down * p.to_row) * p.to.c + first + n +
                                              j + lane % 4 * 2) = {(unsigned char)(taken >> (4 * h) & 3),
                                                                   (unsigned char)(taken >> (4 * h + 2) & 3)};
            }
          }
        }
        if (e.gated) {
#pragma unroll
          for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int j = 0; j < 64; j += 32) {
              const uint32_t word = __shfl_sync(0xffffffffu, gate[mt], lane / 4 * 4 + 2 * h + j / 32);
              const uint32_t bits = word >> (lane % 4 * 2);
#pragma unroll
              for (int q = 0; q < 4; q++) {
                float *const d = &acc[mt][(n + j + 8 * q) / 2 + 2 * h];
                d[0] = bits >> 8 * q & 1 ? d[0] : 0.0f;
                d[1] = bits >> 8 * q & 2 ? d[1] : 0.0f;
              }
            }
          }
        } else if (to.mask) {
#pragma unroll
          for (int h = 0; h < 2; h++) {
            uint8_t *const at =
                to.mask + (uint64_t)(ends[h].pixel + down * p.to_row) * ((p.to.c + 7) / 8) + (first + n) / 8 + lane % 4;
#pragma unroll
            for (int j = 0; j < 64; j += 32) {
              // Four lanes have a byte between them, and store four.
              uint32_t byte = 0;
#pragma unroll
              for (int q = 0; q < 4; q++) {
                const float *const d = &acc[mt][(n + j + 8 * q) / 2 + 2 * h];
                uint32_t bits = (passes(d[0], e.low, e.cap) ? 1u : 0u) | (passes(d[1], e.low, e.cap) ? 2u : 0u);
                bits <<= lane % 4 * 2;
                bits |= __shfl_xor_sync(0xffffffffu, bits, 1);
                bits |= __shfl_xor_sync(0xffffffffu, bits, 2);
                byte = lane % 4 == (uint32_t)q ? bits : byte;
              }
              if (ends[h].row + down < height && n + j + lane % 4 * 8 < columns) at[j / 8] = (uint8_t)byte;
            }
          }
        }
      }
      wait();
#pragma unroll
      for (int j = 0; j < 64; j += 16) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float *const d = &acc[mt][(n + j) / 2 + 2 * i];
          T two[2];
          gpu::pack2(two, d[0], d[1]);
          memcpy(&words[i], two, 4);
        }
        const uint32_t r = lane % 16, piece = j / 8 + lane / 16;
        gpu::stmatrix(staged_at(half, r, piece), words);
      }
      if (p.boxes) {
        gpu::fence_proxy_async();
        __syncwarp();
        // This lane's pixel is the box's first; what lies outside of the result is not written.
        if (lane == 0) {
          if (pixels.row < 1u << 30 && (uint32_t)n < columns)
            gpu::tma_store_4d(&boxes, half, first + n, place.image + pixels.image, place.col + pixels.col,
                              place.row + pixels.row + mt);
          gpu::bulk_commit(); // an empty group counts too
        }
        continue;
      }
      __syncwarp();
      if (e.noise) {
        if (lane == 0) gpu::mbar_arrive(&bar.result_full[warp][which]);
        written++;
        continue;
      }
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) {
        const uint32_t r = i * 4 + lane / 8, c = n + lane % 8 * 8;
        const Target there = mine.of(r);
        if (there.row + down < height && c < columns)
          gpu::store_vec_whole(to.y + (uint64_t)(there.pixel + down * p.to_row) * p.to.c + first + c, staged<T>(half, r));
      }
      __syncwarp();
    }
  }
}

/// See Notes::pixels.
template <int MT>
__device__ __forceinline__ void find_pixels(uint32_t *to, const Halo &p) {
  for (uint32_t m = threadIdx.x; m < FRAGMENT_PIXELS; m += blockDim.x) {
    const Division line = divide_rest(m, p.by_images), at = divide_rest(line.quotient, p.by_cols);
    const bool inside = m < p.images * p.cols * (p.rows / MT);
    to[m] = inside ? line.remainder << 24 | at.quotient * MT << 12 | at.remainder : NOWHERE;
  }
}

/// A warp's shares of the fragments to which noise is added. A fragment is two, its upper eight rows and its lower; of
/// thirty-two, the fragments of two turns of the eight warps' staging, each of seven warps has four or five for itself, so
/// that it sees every turn of its place (a parity tells a turn from the next, but not from the one after that).
struct Shares {
  static constexpr uint32_t DRAWING = DISTURBERS / 32, CYCLE = 32;

  /// Behind one of its own.
  static __device__ __forceinline__ uint32_t next(uint32_t share) {
    return share % CYCLE + DRAWING < CYCLE ? share + DRAWING : share / CYCLE * CYCLE + CYCLE + drawing_warp();
  }
};

/// Seven warps add noise to the fragments of a tile that the others have left in their staging, and store them. `share` is
/// the next of this one's. A warp's staging takes two fragments, in turn. They are taken in their order, the eight warps'
/// first, their second, and so on. Nobody waits in a circle: all fragments before the least one that is still waited for
/// are done, so that its warp has a place for it.
template <class T, int MT, int N, bool PRECISE, bool SCARCE>
__device__ __forceinline__ void disturb_results(T *y, unsigned char *patches, Barriers &bar, uint32_t &share,
                                                const Halo &p, const Epilogue &e, const Row *rows, const Draw &draw) {
  constexpr uint32_t WARPS = CONSUMERS / 32;
  constexpr int AT_ONCE = PRECISE || SCARCE ? 1 : 2;
  Place place = noted(patches, p).place;
  // Every warp has shares of every tile.
  for (bool more = true; more;) {
    // Computed anew each time, for want of registers.
    const uint32_t pool = gpu::opaque(e.pool) != 0, log_bands = (MT == 4 ? 2 : MT == 2 ? 1 : 0) - pool;
    const uint32_t h = gpu::opaque(p.to.h) >> pool, w = gpu::opaque(p.to.w) >> pool;
    const uint32_t lane = gpu::opaque(threadIdx.x) % 32;
    // Of the fragments of each of the eight warps in a tile, which are a power of two.
    const uint32_t index = share / 2, in_tile = index / WARPS & ((N / 64 << log_bands) - 1);
    if constexpr (SCARCE) place = noted(patches, p).place;
    const uint32_t warp = index % WARPS, which = index / WARPS % 2, down = in_tile & ((1u << log_bands) - 1);
    const uint32_t column = place.column + (in_tile >> log_bands) * 64 + lane % 8 * 8;
    const uint32_t channel = place.group * p.group_to + column;
    unsigned char *const half = staging_at(patches, warp * 2 + which, p);
#pragma unroll 1
    for (int i = 0; i < 2; i += AT_ONCE) {
      Row names[AT_ONCE];
      uint32_t blocks[AT_ONCE];
      uint32_t to[AT_ONCE];
      gpu::Vec<T> x[AT_ONCE] = {};
#pragma unroll
      for (int j = 0; j < AT_ONCE; j++) {
        const uint32_t at = notes(patches, p).pixels[warp * 16 + share % 2 * 8 + (i + j) * 4 + lane / 8];
        const uint32_t n = place.image + (at >> 24), row = ((place.row + (at >> 12 & 0xfff)) >> pool) + down,
                       col = (place.col + (at & 0xfff)) >> pool, pixel = row * w + col;
        const bool there = (at != NOWHERE) & (n < p.to.n) & (row < h) & (col < w) & !(pool & at) & (column < p.group_to);
        to[j] = there ? n * (h * w) + pixel : NOWHERE;
        names[j] = rows[there ? n : 0];
        blocks[j] = pixel * draw.blocks + (PRECISE ? 2 : 1) * (channel / 8);
      }
      gpu::mbar_wait(&bar.result_full[warp][which], index / WARPS / 2 & 1);
#pragma unroll
      for (int j = 0; j < AT_ONCE; j++)
        if (to[j] != NOWHERE) x[j] = staged<T>(half, share % 2 * 8 + (i + j) * 4 + lane / 8);
      noise::add_rounded<PRECISE>(x, draw, names, blocks);
#pragma unroll
      for (int j = 0; j < AT_ONCE; j++)
        if (to[j] != NOWHERE) gpu::store_vec_whole(y + (uint64_t)to[j] * p.to.c + channel, x[j]);
    }
    __syncwarp();
    if (gpu::opaque(threadIdx.x) % 32 == 0) {
      const uint32_t done = gpu::opaque(share) / 2;
      gpu::mbar_arrive(&bar.result_empty[done % WARPS][done / WARPS % 2]);
    }
    const uint32_t next = Shares::next(share);
    more = ((next ^ share) & ~((N / 64 * 2 * WARPS << log_bands) - 1)) == 0;
    share = next;
  }
}

/// All noise of a block. With noise on either side the next tile's patches wait for this tile's results: networks have
/// it on one.
template <class T, int K, int STEP, int MT, int N>
__device__ __forceinline__ void draw_noise(T *y, unsigned char *patches, Barriers &bar, const Halo &p,
                                           const Epilogue &e, uint32_t noise, const Row *rows,
                                           const Draw &draw, const Row *next_rows, const Draw &next) {
  Turn patch;
  uint32_t share = drawing_warp();
  uint32_t tile = blockIdx.x;
#pragma unroll 1
  while (tile < p.tiles) {
    if (gpu::opaque(threadIdx.x) % 32 == 0) noted(patches, p) = {tile, locate<N>(tile, p)};
    __syncwarp();
    if (noise == 1)
      disturb<T, STEP, false, SCARCE<K, MT, N>>(patches, bar, patch, p, rows, draw);
    else if (noise)
      disturb<T, STEP, true, SCARCE<K, MT, N>>(patches, bar, patch, p, rows, draw);
    if (e.noise == 1)
      disturb_results<T, MT, N, false, SCARCE<K, MT, N>>(y, patches, bar, share, p, e, next_rows, next);
    else if (e.noise)
      disturb_results<T, MT, N, true, SCARCE<K, MT, N>>(y, patches, bar, share, p, e, next_rows, next);
    tile = noted(patches, p).tile + p.blocks;
    __syncwarp();
  }
}

/// Two warpgroups multiply. A step, a kernel column of a chunk, has to be few instructions: each of a warp's waits for the
/// one before it, and the products of narrow tiles take no more than a hundred of them. So the loop over kernel columns
/// is unrolled, and what the steps have in common is computed before.
template <class T, int K, int STEP, int MT, int N>
__device__ __forceinline__ void consume(const epilogue::Results<T> &to, const CUtensorMap &boxes, const float *bias,
                                        float *partial, uint32_t *counts, unsigned char *stages, unsigned char *patches,
                                        unsigned char *staging, Barriers &bar, const Halo &p, const Epilogue &e,
                                        bool noise) {
  constexpr int FR = FRAGMENT_ROWS<K, STEP, MT>;
  constexpr uint32_t STAGE = K * N * SLAB_ROW, SLAB = N * SLAB_ROW >> 4;
  const bool first_lane = threadIdx.x % 32 == 0;
  const uint32_t slabs = (uint32_t)gpu::matrix_descriptor(stages, gpu::Swizzle::B64, 16, 8 * SLAB_ROW);
  const uint32_t first_slab = slabs + (p.flip ? (K - 1) * SLAB : 0), slab_step = p.flip ? -SLAB : SLAB;
  // Addresses of shared memory cost several instructions where they are made.
  const uint32_t patches_at = gpu::opaque(gpu::shared_u32(patches));
  const uint32_t here = gpu::opaque(gpu::shared_u32(noise ? bar.patch_noisy : bar.patch_full));
  const uint32_t left_at = gpu::opaque(gpu::shared_u32(bar.patch_empty));
  const uint32_t full_at = gpu::opaque(gpu::shared_u32(bar.stage_full));
  const uint32_t empty_at = gpu::opaque(gpu::shared_u32(bar.stage_empty));
  const auto barrier = [](uint32_t first, uint32_t at) { return gpu::shared_pointer<uint64_t>(first + 8 * at); };
  Pixels<STEP, MT> pixels;
  pixels.find(p);
  uint32_t at[K][FR];
  places(at, pixels, p);
  float acc[MT][N / 2];
  uint32_t a0[FR][4], a1[FR][4];
  Turn stage, patch;
  uint32_t written = 0;

  // One warpgroup begins LEAD steps before the other and stays ahead: one's products then run beside the other's epilogue.
  constexpr int LEAD = K == 1 ? 1 : 2;
  bool leads = threadIdx.x < CONSUMERS / 2;
  if (!leads) gpu::bar_sync(1, CONSUMERS);
  for (uint32_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const Place place = locate<N>(tile, p);
    // Weights that stay came in their first turn.
    if (p.stay) stage.parity = 0;
    if constexpr (MT > 2) {
      // Kept, they would not fit into the registers beside the sums.
      pixels.find(p);
      places(at, pixels, p);
    }
    uint32_t skips = 0;
    if constexpr (K > 1 && STEP == 1) skips = passed_over<K>(pixels, place, p);
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
#pragma unroll
      for (int i = 0; i < N / 2; i++) acc[mt][i] = 0.0f;
    uint32_t last = MAX_STAGES; // the stage that products in flight may read
#pragma unroll 1
    for (uint32_t left = p.chunks; left > 0; left--) {
      gpu::mbar_wait(barrier(here, patch.at), patch.parity);
      const uint32_t from = patches_at + patch.at * p.patch_bytes;
#pragma unroll
      for (int v = 0; v < K; v++) {
        const uint32_t skip = skips >> (3 * v) & 7;
        const uint32_t b = first_slab + stage.at * (STAGE >> 4);
        gpu::wgmma_wait<1>();
#pragma unroll
        for (int f = 0; f < FR; f++) gpu::ldmatrix(a0[f], gpu::shared_pointer<unsigned char>(from + at[v][f]));
        gpu::mbar_wait(barrier(full_at, stage.at), stage.parity);
        multiply<T, K, STEP, MT, N>(acc, a0, b, slab_step, skip);
        gpu::wgmma_wait<1>();
        if (last != MAX_STAGES && first_lane) gpu::mbar_arrive(barrier(empty_at, last));
        last = stage.at;
#pragma unroll
        for (int f = 0; f < FR; f++) gpu::ldmatrix(a1[f], gpu::shared_pointer<unsigned char>(from + at[v][f] ^ 32));
        multiply<T, K, STEP, MT, N>(acc, a1, b + (32 >> 4), slab_step, skip);
        stage.next(p.stages);
        if (v + 1 == LEAD && leads) {
          gpu::bar_arrive(1, CONSUMERS);
          leads = false;
        }
      }
      // All of the patch is in registers.
      __syncwarp();
      if (first_lane) gpu::mbar_arrive(barrier(left_at, patch.at));
      patch.next(p.patches);
    }
    gpu::wgmma_wait<0>();
    if (first_lane) gpu::mbar_arrive(barrier(empty_at, last));
    finish<T, STEP, MT, N>(acc, to, boxes, bias, partial, counts, staging + threadIdx.x / 32 * (2 * STAGING), bar, written,
                     tile, place, p, e);
  }
  // The staging is read until then.
  if (p.boxes && first_lane) gpu::bulk_wait_read<0>();
}

#endif

} // namespace halo
