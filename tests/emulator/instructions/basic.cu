// Plain kernels for the tests of the driver, and loops that measure the emulator.
#include "gpu.cuh"

extern "C" __global__ void saxpy(float *y, const float *x, float a, uint32_t n) {
  uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] += a * x[i];
}
GPU_EXPORT(saxpy)

/// Sum of each block's 256 elements: a tree in shared memory, then the warp's shuffles.
extern "C" __global__ void block_sum(float *y, const float *x, uint32_t n) {
  GPU_SHARED(float, s, [8]);
  uint32_t i = blockIdx.x * 256 + threadIdx.x;
  float v = gpu::warp_sum(i < n ? x[i] : 0.0f);
  if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0;
    for (int w = 0; w < 8; w++) sum += s[w];
    y[blockIdx.x] = sum;
  }
}
GPU_EXPORT(block_sum)

extern "C" __global__ void many_barriers(int *y, int n) {
  GPU_SHARED(int, s, [1024]);
  s[threadIdx.x] = 0;
  for (int i = 0; i < n; i++) {
    __syncthreads();
    s[threadIdx.x]++;
  }
  y[blockIdx.x * blockDim.x + threadIdx.x] = s[threadIdx.x];
}
GPU_EXPORT(many_barriers)

extern "C" __global__ void many_shuffles(int *y, int n) {
  int v = threadIdx.x;
  for (int i = 0; i < n; i++) v += __shfl_xor_sync(0xffffffffu, v, 1);
  y[blockIdx.x * blockDim.x + threadIdx.x] = v;
}
GPU_EXPORT(many_shuffles)
