// 2-D convolution by wgmma, for compute capability 9.0: bf16 and f16, sums in f32. Strides: forward 1 and 2 of 3x3
// kernels, any of 1x1 kernels; input gradients 1 of 3x3 kernels, any of 1x1 kernels.
//
// A block is two warpgroups that multiply, and two of which a thread brings data by TMA and seven warps add noise; it
// takes tile after tile. A tile is MT x 128 pixels by N output channels. Weights come packed (pack.cuh), patches clean,
// chunk by chunk of 32 channels. Noise is added to a patch in shared memory once for all taps, while the products of the
// chunks before run: drawing takes the arithmetic units, which those leave idle. The same warps add the next layer's
// noise to the results. The order of a sum depends on the kernel's size and the channels alone (halo.cuh), so a row's
// result is the same bits in any batch and for any tile.
#include "halo_epilogue.cuh"

/// y = epilogue(conv(x, w) + bias), or of the input gradient (p.flip: taps in reverse, weights packed transposed).
/// STEP: the stride of a 3x3 kernel. A 1x1 kernel's is the maps': it sees no other pixels (Halo::from, to).
/// `noise`: 0 none, 1 fast, 2 precise, added to x. `map` is x as (channels, images, columns, rows) in boxes of a
/// patch, `weights` the packed ones as (512 bytes, the rest of a slab, kernel columns, kernel rows of all chunks),
/// `boxes` y as x, in boxes of a fragment's pixels (p.boxes).
/// `mask` is written, or read where it gates the result (e.gated).
/// Grid: at most one block a tile. Dynamic shared memory: stages, patches, 8 warps' staging, twice; with noise Notes,
/// and Spots of the patch.
// instances: T = bf16 f16; K = 3; STEP = 1; MT = 2; N = 64 128
// instances: T = bf16 f16; K = 3; STEP = 1; MT = 4; N = 64
// instances: T = bf16 f16; K = 3; STEP = 2; MT = 1; N = 128
// instances: T = bf16 f16; K = 1; STEP = 1; MT = 2; N = 128
template <class T, int K, int STEP, int MT, int N>
KERNEL(512, 1) conv2d_wgmma(T *y, const float *bias, const T *residual, uint8_t *mask, uint8_t *argmax,
                            float *partial, uint32_t *counts, const CUtensorMap &map, const CUtensorMap &weights,
                            const CUtensorMap &boxes, Halo p, Epilogue e,
                            const Row *rows, uint32_t noise, Draw draw, const Row *next_rows, Draw next) {
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  GPU_DYN_SHARED(shared);
  GPU_SHARED(halo::Barriers, bar, [1]);
  unsigned char *const stages = shared, *const patches = stages + p.stages * (K * N * halo::SLAB_ROW);
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < p.stages; i++) {
      gpu::mbar_init(&bar->stage_full[i], 1);
      gpu::mbar_init(&bar->stage_empty[i], halo::CONSUMERS / 32);
    }
    for (uint32_t i = 0; i < p.patches; i++) {
      gpu::mbar_init(&bar->patch_full[i], 1);
      gpu::mbar_init(&bar->patch_noisy[i], halo::DISTURBERS / 32);
      gpu::mbar_init(&bar->patch_empty[i], halo::CONSUMERS / 32);
    }
    for (uint32_t i = 0; i < halo::CONSUMERS / 32 * 2; i++) {
      gpu::mbar_init(&bar->result_full[i / 2][i % 2], 1);
      gpu::mbar_init(&bar->result_empty[i / 2][i % 2], 2);
    }
    gpu::mbar_fence_init();
  }
  if (e.noise) halo::find_pixels<MT>(halo::notes(patches, p).pixels, p);
  __syncthreads();
  if (threadIdx.x < halo::CONSUMERS) {
    gpu::setmaxnreg_inc<halo::MULTIPLYING_REGISTERS<K, MT, N>>();
    halo::consume<T, K, STEP, MT, N>({y, residual, mask, argmax, next_rows}, boxes, bias, partial, counts, stages,
                                     patches, patches + p.patches * p.patch_bytes, *bar, p, e, noise != 0);
  } else {
    gpu::setmaxnreg_dec<halo::OTHER_REGISTERS<K, MT, N>>();
    if (threadIdx.x == halo::CONSUMERS)
      halo::bring<K, STEP, N>(stages, patches, *bar, map, weights, p);
    else if (threadIdx.x >= halo::CONSUMERS + 32 && (noise || e.noise))
      halo::draw_noise<T, K, STEP, MT, N>(y, patches, *bar, p, e, noise, rows, draw, next_rows, next);
  }
#endif
}
