// The same for mbarrier, TMA, clusters and wgmma. The map is of 64 rows of 128 bytes (f32), a tile 8 rows, 1 KB.
#include "gpu.cuh"

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Nobody waits for the barrier.
extern "C" __global__ void missing_mbarrier_wait(float *y, const __grid_constant__ CUtensorMap map) {
  GPU_DYN_SHARED(s);
  GPU_SHARED(uint64_t, full, [1]);
  if (threadIdx.x == 0) {
    gpu::mbar_init(full, 1);
    gpu::mbar_fence_init();
    gpu::mbar_arrive_expect(full, 1024);
    gpu::tma_load_2d(s, &map, full, 0, 0);
  }
  __syncthreads();
  y[threadIdx.x] = reinterpret_cast<float *>(s)[threadIdx.x]; // MISTAKE: missing_mbarrier_wait
  gpu::mbar_wait(full, 0);
}
GPU_EXPORT(missing_mbarrier_wait)

/// The first phase has parity 0.
extern "C" __global__ void wrong_parity(float *y, const __grid_constant__ CUtensorMap map) {
  GPU_DYN_SHARED(s);
  GPU_SHARED(uint64_t, full, [1]);
  if (threadIdx.x == 0) {
    gpu::mbar_init(full, 1);
    gpu::mbar_fence_init();
    gpu::mbar_arrive_expect(full, 1024);
    gpu::tma_load_2d(s, &map, full, 0, 0);
  }
  __syncthreads();
  gpu::mbar_wait(full, 0);
  gpu::mbar_wait(full, 1); // MISTAKE: wrong_parity
  y[threadIdx.x] = reinterpret_cast<float *>(s)[threadIdx.x];
}
GPU_EXPORT(wrong_parity)

/// More bytes are expected than come.
extern "C" __global__ void expects_too_much(float *y, const __grid_constant__ CUtensorMap map) {
  GPU_DYN_SHARED(s);
  GPU_SHARED(uint64_t, full, [1]);
  if (threadIdx.x == 0) {
    gpu::mbar_init(full, 1);
    gpu::mbar_fence_init();
    gpu::mbar_arrive_expect(full, 2048);
    gpu::tma_load_2d(s, &map, full, 0, 0);
  }
  __syncthreads();
  gpu::mbar_wait(full, 0); // MISTAKE: expects_too_much
  y[threadIdx.x] = reinterpret_cast<float *>(s)[threadIdx.x];
}
GPU_EXPORT(expects_too_much)

/// Two tiles come, one is expected.
extern "C" __global__ void expects_too_little(float *y, const __grid_constant__ CUtensorMap map) {
  GPU_DYN_SHARED(s);
  GPU_SHARED(uint64_t, full, [1]);
  if (threadIdx.x == 0) {
    gpu::mbar_init(full, 1);
    gpu::mbar_fence_init();
    gpu::mbar_arrive_expect(full, 1024);
    gpu::tma_load_2d(s, &map, full, 0, 0);
    gpu::tma_load_2d(s + 1024, &map, full, 0, 8);
  }
  __syncthreads();
  gpu::mbar_wait(full, 0);
  y[threadIdx.x] = reinterpret_cast<float *>(s)[threadIdx.x] + reinterpret_cast<float *>(s + 1024)[threadIdx.x]; // MISTAKE: expects_too_little
}
GPU_EXPORT(expects_too_little)

/// The second tile is loaded over the first while threads still read it.
extern "C" __global__ void load_into_stage_in_use(float *y, const __grid_constant__ CUtensorMap map) {
  GPU_DYN_SHARED(s);
  GPU_SHARED(uint64_t, full, [1]);
  if (threadIdx.x == 0) {
    gpu::mbar_init(full, 1);
    gpu::mbar_fence_init();
  }
  __syncthreads();
  float v = 0;
  for (int k = 0; k < 2; k++) {
    if (threadIdx.x == 0) {
      gpu::mbar_arrive_expect(full, 1024);
      gpu::tma_load_2d(s, &map, full, 0, k * 8); // MISTAKE: load_into_stage_in_use
    }
    gpu::mbar_wait(full, unsigned(k));
    v += reinterpret_cast<float *>(s)[threadIdx.x]; // MISTAKE: load_into_stage_in_use
  }
  y[threadIdx.x] = v;
}
GPU_EXPORT(load_into_stage_in_use)

extern "C" __global__ void mbarrier_without_init(float *y) {
  GPU_SHARED(uint64_t, full, [1]);
  gpu::mbar_wait(full, 0); // MISTAKE: mbarrier_without_init
  y[threadIdx.x] = 0;
}
GPU_EXPORT(mbarrier_without_init)

/// The copy engine does not see what the threads wrote.
extern "C" __global__ void store_without_proxy_fence(const __grid_constant__ CUtensorMap map) {
  GPU_DYN_SHARED(s);
  for (unsigned i = threadIdx.x; i < 256; i += blockDim.x) reinterpret_cast<float *>(s)[i] = 1;
  __syncthreads();
  if (threadIdx.x == 0) {
    gpu::tma_store_2d(&map, s, 0, 0); // MISTAKE: store_without_proxy_fence
    gpu::bulk_commit();
    gpu::bulk_wait<0>();
  }
}
GPU_EXPORT(store_without_proxy_fence)

/// The block may end, and its shared memory go, before the store has read it.
extern "C" __global__ void store_without_wait(const __grid_constant__ CUtensorMap map) {
  GPU_DYN_SHARED(s);
  for (unsigned i = threadIdx.x; i < 256; i += blockDim.x) reinterpret_cast<float *>(s)[i] = 1;
  gpu::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    gpu::tma_store_2d(&map, s, 0, 0); // MISTAKE: store_without_wait
    gpu::bulk_commit();
  }
}
GPU_EXPORT(store_without_wait)

/// Shared memory is written again while the store may still read it.
extern "C" __global__ void write_under_store(const __grid_constant__ CUtensorMap map) {
  GPU_DYN_SHARED(s);
  for (unsigned i = threadIdx.x; i < 256; i += blockDim.x) reinterpret_cast<float *>(s)[i] = 1;
  gpu::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    gpu::tma_store_2d(&map, s, 0, 0); // MISTAKE: write_under_store
    gpu::bulk_commit();
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < 256; i += blockDim.x) reinterpret_cast<float *>(s)[i] = 2;
  __syncthreads();
  if (threadIdx.x == 0) gpu::bulk_wait<0>();
}
GPU_EXPORT(write_under_store)

/// A block reads another's variable before that one is known to have written it.
extern "C" __global__ void cluster_without_barrier(float *y) {
  GPU_SHARED(float, v, [1]);
  if (threadIdx.x == 0) {
    v[0] = float(gpu::cluster_rank());
    y[blockIdx.x] = *gpu::cluster_map(&v[0], gpu::cluster_rank() ^ 1); // MISTAKE: cluster_without_barrier
  }
  gpu::cluster_sync();
}
GPU_EXPORT(cluster_without_barrier)

/// A block ends while another may still read its shared memory.
extern "C" __global__ void cluster_exits_early(float *y) {
  GPU_SHARED(float, v, [1]);
  if (threadIdx.x == 0) v[0] = 1;
  gpu::cluster_sync();
  if (gpu::cluster_rank() == 1) {
    // Enough turns for the other block to end.
    for (int i = 0; i < 4; i++) __syncthreads();
    if (threadIdx.x == 0) y[0] = *gpu::cluster_map(&v[0], 0); // MISTAKE: cluster_exits_early
  }
}
GPU_EXPORT(cluster_exits_early)

/// Operands for one product: A is 64 rows of 32 bytes, B is 8; no swizzle.
__device__ void fill_operands(unsigned char *s) {
  for (unsigned i = threadIdx.x; i < 72 * 8; i += 128) reinterpret_cast<uint32_t *>(s)[i] = 0x3f803f80; // ones
  gpu::fence_proxy_async();
  __syncthreads();
}

/// The accumulators are read before the product is complete.
extern "C" __global__ void missing_wgmma_wait(float *y) {
  GPU_DYN_SHARED(s);
  fill_operands(s);
  float d[4] = {};
  gpu::wgmma_fence();
  gpu::wgmma_bf16<8>(d, gpu::matrix_descriptor(s, gpu::Swizzle::None, 128, 256),
                     gpu::matrix_descriptor(s + 2048, gpu::Swizzle::None, 128, 256));
  gpu::wgmma_commit();
  y[threadIdx.x] = d[0];
  gpu::wgmma_wait<0>();
}
GPU_EXPORT(missing_wgmma_wait)

/// An operand is written while the product may still read it.
extern "C" __global__ void write_under_wgmma(float *y) {
  GPU_DYN_SHARED(s);
  fill_operands(s);
  float d[4] = {};
  gpu::wgmma_fence();
  gpu::wgmma_bf16<8>(d, gpu::matrix_descriptor(s, gpu::Swizzle::None, 128, 256), // MISTAKE: write_under_wgmma
                     gpu::matrix_descriptor(s + 2048, gpu::Swizzle::None, 128, 256)); // MISTAKE: write_under_wgmma
  gpu::wgmma_commit();
  reinterpret_cast<uint32_t *>(s)[threadIdx.x] = 0;
  gpu::wgmma_wait<0>();
  y[threadIdx.x] = d[0];
}
GPU_EXPORT(write_under_wgmma)

/// The operands are not visible to the tensor core.
extern "C" __global__ void wgmma_without_proxy_fence(float *y) {
  GPU_DYN_SHARED(s);
  for (unsigned i = threadIdx.x; i < 72 * 8; i += 128) reinterpret_cast<uint32_t *>(s)[i] = 0x3f803f80;
  __syncthreads();
  float d[4] = {};
  gpu::wgmma_fence();
  gpu::wgmma_bf16<8>(d, gpu::matrix_descriptor(s, gpu::Swizzle::None, 128, 256), // MISTAKE: wgmma_without_proxy_fence
                     gpu::matrix_descriptor(s + 2048, gpu::Swizzle::None, 128, 256)); // MISTAKE: wgmma_without_proxy_fence
  gpu::wgmma_commit();
  gpu::wgmma_wait<0>();
  y[threadIdx.x] = d[0];
}
GPU_EXPORT(wgmma_without_proxy_fence)

#endif
