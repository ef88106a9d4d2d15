// The weight gradient by wgmma, for compute capability 9.0: bf16 and f16, sums in f32. Strides 1 and 2 of 3x3 kernels, any
// of 1x1 kernels, whose map of x has no other pixels than those that they meet.
#include "weight_wgmma.cuh"

/// Partial sums of dw[o, u, v, c] = sum over n, i, j of dy[n, i, j, o] x[n, i stride - pad + u, j stride - pad + v, c]
/// and of db[o] = sum of dy, each over the tiles of a split: dw is `[splits][w]`, db `[splits][c_out]`. Of one split they are
/// added to what is there. A block has 64 (K = 1: 128) output channels by N input channels under all taps. `x_map` and
/// `y_map` are x and dy as (channels, images, columns, rows) in boxes of a patch and of a tile. Grid: one block a split
/// and piece of dw. Dynamic shared memory: stages, then what leaves. GROUPS warpgroups multiply, the warp behind them
/// brings data; for K = 3 it is one of a warpgroup that leaves its registers to the others.
// instances: T = bf16 f16; K = 3; N = 32 64; GROUPS = 3; THREADS = 512
// instances: T = bf16 f16; K = 1; N = 128 256; GROUPS = 2; THREADS = 288
template <class T, int K, int N, int GROUPS, int THREADS>
KERNEL(THREADS, 1)
conv2d_wgmma_weight_grad(float *dw, float *db, const CUtensorMap &x_map, const CUtensorMap &y_map, WeightPatches p) {
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  GPU_DYN_SHARED(stages);
  GPU_SHARED(weight_wgmma::Shared, s, [1]);
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < p.stages; i++) {
      gpu::mbar_init(&s->full[i], 1);
      gpu::mbar_init(&s->empty[i], GROUPS * 4);
    }
    gpu::mbar_fence_init();
  }
  __syncthreads();
  const weight_wgmma::Part part = weight_wgmma::locate(p);
  if (threadIdx.x < GROUPS * 128) {
    if constexpr (K == 3) gpu::setmaxnreg_inc<152>();
    weight_wgmma::consume<T, K, N, GROUPS>(dw, stages, *s, part, p);
  } else {
    if constexpr (K == 3) gpu::setmaxnreg_dec<56>();
    if (threadIdx.x < GROUPS * 128 + 32) weight_wgmma::produce<T, K, N, GROUPS>(db, stages, *s, x_map, y_map, part, p);
  }
#endif
}
