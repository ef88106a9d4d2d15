// wgmma: y (64 x N) = A (64 x depth) B (depth x N), from shared memory whose bytes the test lays out.
#include "gpu.cuh"

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// `image` is `bytes` of shared memory with both operands; the descriptors are made of the offsets in it. `steps` pairs
/// of descriptors follow one another at `step_a` and `step_b` bytes.
struct Layout {
  uint32_t bytes, a, b, leading_a, stride_a, leading_b, stride_b, swizzle, step_a, step_b, steps;
};

enum Type { BF16, F16, TF32 };

template <int N, Type TYPE, bool TA, bool TB, bool A_REGISTERS>
__device__ void product(float *y, const uint32_t *image, const uint32_t *a_fragments, const Layout &l) {
  GPU_DYN_SHARED(s);
  for (uint32_t i = threadIdx.x; i < l.bytes / 4; i += 128) reinterpret_cast<uint32_t *>(s)[i] = image[i];
  gpu::fence_proxy_async();
  __syncthreads();
  float d[N / 2];
  for (int i = 0; i < N / 2; i++) d[i] = 1000; // the first product does not accumulate
  uint32_t a[4];
  gpu::wgmma_fence();
  for (uint32_t k = 0; k < l.steps; k++) {
    auto swizzle = gpu::Swizzle(l.swizzle);
    uint64_t da = gpu::matrix_descriptor(s + l.a + k * l.step_a, swizzle, l.leading_a, l.stride_a);
    uint64_t db = gpu::matrix_descriptor(s + l.b + k * l.step_b, swizzle, l.leading_b, l.stride_b);
    bool more = k > 0;
    if constexpr (A_REGISTERS) {
      for (int r = 0; r < 4; r++) a[r] = a_fragments[(k * 128 + threadIdx.x) * 4 + r];
      gpu::wgmma_fence();
      if constexpr (TYPE == BF16) gpu::wgmma_bf16<N, TB>(d, a, db, more);
      if constexpr (TYPE == F16) gpu::wgmma_f16<N, TB>(d, a, db, more);
      if constexpr (TYPE == TF32) gpu::wgmma_tf32<N>(d, a, db, more);
      // The registers of A are read in the background too.
      gpu::wgmma_commit();
      gpu::wgmma_wait<0>();
    } else {
      if constexpr (TYPE == BF16) gpu::wgmma_bf16<N, TA, TB>(d, da, db, more);
      if constexpr (TYPE == F16) gpu::wgmma_f16<N, TA, TB>(d, da, db, more);
      if constexpr (TYPE == TF32) gpu::wgmma_tf32<N>(d, da, db, more);
    }
  }
  gpu::wgmma_commit();
  gpu::wgmma_wait<0>();
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = 0; i < N / 2; i++) {
    int row = warp * 16 + lane / 4 + 8 * (i >> 1 & 1), column = (i >> 2) * 8 + lane % 4 * 2 + (i & 1);
    y[row * N + column] = d[i];
  }
}
#define BODY(...) __VA_ARGS__
#else
struct Layout {
  uint32_t bytes, a, b, leading_a, stride_a, leading_b, stride_b, swizzle, step_a, step_b, steps;
};
#define BODY(...)
#endif

#define PRODUCT(name, ...)                                                                                    \
  extern "C" __global__ void __launch_bounds__(128) name(float *y, const uint32_t *image, const uint32_t *fragments, \
                                                         Layout l) {                                          \
    BODY(product<__VA_ARGS__>(y, image, fragments, l);)                                                       \
  }                                                                                                           \
  GPU_EXPORT(name)

// Every N that the device build has, along K.
PRODUCT(test_wgmma_bf16_8, 8, BF16, false, false, false)
PRODUCT(test_wgmma_bf16_16, 16, BF16, false, false, false)
PRODUCT(test_wgmma_bf16_32, 32, BF16, false, false, false)
PRODUCT(test_wgmma_bf16_64, 64, BF16, false, false, false)
PRODUCT(test_wgmma_bf16_96, 96, BF16, false, false, false)
PRODUCT(test_wgmma_bf16_128, 128, BF16, false, false, false)
PRODUCT(test_wgmma_bf16_192, 192, BF16, false, false, false)
PRODUCT(test_wgmma_bf16_256, 256, BF16, false, false, false)
// The other types, transposed operands, A from registers.
PRODUCT(test_wgmma_f16_64, 64, F16, false, false, false)
PRODUCT(test_wgmma_tf32_64, 64, TF32, false, false, false)
PRODUCT(test_wgmma_bf16_64_ta, 64, BF16, true, false, false)
PRODUCT(test_wgmma_bf16_64_tb, 64, BF16, false, true, false)
PRODUCT(test_wgmma_f16_64_ta_tb, 64, F16, true, true, false)
PRODUCT(test_wgmma_bf16_64_ra, 64, BF16, false, false, true)
PRODUCT(test_wgmma_f16_32_ra_tb, 32, F16, false, true, true)
PRODUCT(test_wgmma_tf32_64_ra, 64, TF32, false, false, true)

#ifndef __CUDACC__
// Sizes that only the emulator has.
PRODUCT(test_wgmma_bf16_24, 24, BF16, false, false, false)
PRODUCT(test_wgmma_bf16_136, 136, BF16, false, false, false)
PRODUCT(test_wgmma_bf16_248, 248, BF16, false, false, false)
#endif
