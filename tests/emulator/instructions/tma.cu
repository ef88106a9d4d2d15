// TMA: a tile to shared memory and its bytes, as they lie there, to y.
#include "gpu.cuh"

#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 900
#define BODY(...) __VA_ARGS__
#else
#define BODY(...)
#endif

// Waits for the tile and copies its words to y; `bytes` is a multiple of 16.
#define LOAD(...)                                                                                             \
  GPU_DYN_SHARED(s);                                                                                          \
  GPU_SHARED(uint64_t, full, [1]);                                                                            \
  if (threadIdx.x == 0) {                                                                                     \
    gpu::mbar_init(full, 1);                                                                                  \
    gpu::mbar_fence_init();                                                                                   \
    gpu::mbar_arrive_expect(full, bytes);                                                                     \
    __VA_ARGS__;                                                                                              \
  }                                                                                                           \
  __syncthreads();                                                                                            \
  gpu::mbar_wait(full, 0);                                                                                    \
  for (uint32_t i = threadIdx.x; i < bytes / 4; i += blockDim.x) y[i] = reinterpret_cast<uint32_t *>(s)[i];

#define KERNEL_LOAD(name, ...)                                                                                \
  extern "C" __global__ void name(uint32_t *y, const __grid_constant__ CUtensorMap map, uint32_t bytes, int c0, int c1, \
                                  int c2, int c3, int c4, uint32_t dw, uint32_t dh, uint32_t dd) {            \
    BODY(LOAD(__VA_ARGS__))                                                                                   \
  }                                                                                                           \
  GPU_EXPORT(name)
KERNEL_LOAD(test_tma_1d, gpu::tma_load_1d(s, &map, full, c0))
KERNEL_LOAD(test_tma_2d, gpu::tma_load_2d(s, &map, full, c0, c1))
KERNEL_LOAD(test_tma_3d, gpu::tma_load_3d(s, &map, full, c0, c1, c2))
KERNEL_LOAD(test_tma_4d, gpu::tma_load_4d(s, &map, full, c0, c1, c2, c3))
KERNEL_LOAD(test_tma_5d, gpu::tma_load_5d(s, &map, full, c0, c1, c2, c3, c4))
KERNEL_LOAD(test_tma_im2col_3d, gpu::tma_load_im2col_3d(s, &map, full, c0, c1, c2, dw))
KERNEL_LOAD(test_tma_im2col_4d, gpu::tma_load_im2col_4d(s, &map, full, c0, c1, c2, c3, dw, dh))
KERNEL_LOAD(test_tma_im2col_5d, gpu::tma_load_im2col_5d(s, &map, full, c0, c1, c2, c3, c4, dw, dh, dd))

/// A run of bytes, without a map.
extern "C" __global__ void test_bulk_load(uint32_t *y, const uint8_t *x, uint32_t bytes) {
  BODY(LOAD(gpu::bulk_load(s, x, bytes, full)))
}
GPU_EXPORT(test_bulk_load)

/// A tile through shared memory into another tensor, at other coordinates.
extern "C" __global__ void test_tma_store_3d(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to,
                                             uint32_t bytes, int c0, int c1, int c2, int d0, int d1, int d2) {
  BODY(
      GPU_DYN_SHARED(s); GPU_SHARED(uint64_t, full, [1]);
      if (threadIdx.x == 0) {
        gpu::mbar_init(full, 1);
        gpu::mbar_fence_init();
        gpu::mbar_arrive_expect(full, bytes);
        gpu::tma_load_3d(s, &from, full, c0, c1, c2);
      }
      __syncthreads();
      gpu::mbar_wait(full, 0);
      // Each thread changes what it reads, so that the generic proxy has written before the store.
      for (uint32_t i = threadIdx.x; i < bytes / 4; i += blockDim.x) reinterpret_cast<uint32_t *>(s)[i] ^= 0x01010101u;
      gpu::fence_proxy_async();
      __syncthreads();
      if (threadIdx.x == 0) {
        gpu::tma_store_3d(&to, s, d0, d1, d2);
        gpu::bulk_commit();
        gpu::bulk_wait_read<0>();
        gpu::bulk_wait<0>();
      })
}
GPU_EXPORT(test_tma_store_3d)

/// Each block of a cluster loads its share of rows for all of them.
extern "C" __global__ void test_tma_multicast(uint32_t *y, const __grid_constant__ CUtensorMap map, uint32_t bytes, int rows) {
  BODY(
      GPU_DYN_SHARED(s); GPU_SHARED(uint64_t, full, [1]);
      unsigned rank = gpu::cluster_rank(); unsigned n = gpu::cluster_size();
      if (threadIdx.x == 0) {
        gpu::mbar_init(full, 1);
        gpu::mbar_fence_init();
      }
      // No block may send before all barriers are there.
      gpu::cluster_sync();
      if (threadIdx.x == 0) {
        gpu::mbar_arrive_expect(full, bytes * n);
        gpu::tma_load_multicast_2d(s + rank * bytes, &map, full, uint16_t((1u << n) - 1), 0, int(rank) * rows);
      }
      gpu::mbar_wait(full, 0);
      for (uint32_t i = threadIdx.x; i < bytes * n / 4; i += blockDim.x)
        y[blockIdx.x * (bytes * n / 4) + i] = reinterpret_cast<uint32_t *>(s)[i];
      // Nor may one end while others still send to it.
      gpu::cluster_sync();)
}
GPU_EXPORT(test_tma_multicast)

/// Sum over a cluster: each block adds up its own, then all blocks' through their shared memory.
extern "C" __global__ void test_cluster_sum(float *y, const float *x) {
  BODY(
      GPU_SHARED(float, part, [1]); GPU_SHARED(float, s, [128]);
      s[threadIdx.x] = x[blockIdx.x * 128 + threadIdx.x];
      __syncthreads();
      if (threadIdx.x == 0) {
        float v = 0;
        for (int i = 0; i < 128; i++) v += s[i];
        part[0] = v;
      }
      gpu::cluster_sync();
      if (threadIdx.x == 0) {
        float v = 0;
        for (unsigned r = 0; r < gpu::cluster_size(); r++) v += *gpu::cluster_map(&part[0], r);
        y[blockIdx.x] = v;
      }
      gpu::cluster_sync();)
}
GPU_EXPORT(test_cluster_sum)

/// A ring of messages through the blocks of a cluster: remote arrivals on mbarriers.
extern "C" __global__ void test_cluster_ring(uint32_t *y) {
  BODY(
      GPU_SHARED(uint64_t, full, [1]); GPU_SHARED(uint32_t, box, [1]);
      unsigned rank = gpu::cluster_rank(); unsigned n = gpu::cluster_size();
      if (threadIdx.x == 0) {
        gpu::mbar_init(full, 1);
        gpu::mbar_fence_init();
      }
      gpu::cluster_sync();
      if (threadIdx.x == 0) {
        uint32_t v = 0;
        if (rank > 0) {
          gpu::mbar_wait(full, 0);
          v = box[0];
        }
        y[blockIdx.x] = v;
        if (rank + 1 < n) {
          *gpu::cluster_map(&box[0], rank + 1) = v + rank + 1;
          gpu::mbar_arrive_remote(full, rank + 1);
        }
      }
      gpu::cluster_sync();)
}
GPU_EXPORT(test_cluster_ring)
