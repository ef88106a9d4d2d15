// Kernels with one planted mistake each. tests/planted.rs looks for the line that a comment "MISTAKE: name" marks.
#include "gpu.cuh"

/// No barrier between the write and the read.
extern "C" __global__ void missing_barrier(float *y) {
  GPU_SHARED(float, s, [64]);
  s[threadIdx.x] = threadIdx.x;
  y[threadIdx.x] = s[63 - threadIdx.x]; // MISTAKE: missing_barrier
}
GPU_EXPORT(missing_barrier)

/// The second barrier of the loop is missing: a fast thread writes what a slow one still reads.
extern "C" __global__ void missing_barrier_in_loop(float *y) {
  GPU_SHARED(float, s, [64]);
  float v = 0;
  for (int i = 0; i < 4; i++) {
    s[threadIdx.x] = float(i) + threadIdx.x; // MISTAKE: missing_barrier_in_loop
    __syncthreads();
    v += s[(threadIdx.x + 1) & 63]; // MISTAKE: missing_barrier_in_loop
  }
  y[threadIdx.x] = v;
}
GPU_EXPORT(missing_barrier_in_loop)

/// The lanes of a warp are not in lockstep.
extern "C" __global__ void missing_syncwarp(float *y) {
  GPU_SHARED(float, s, [32]);
  s[threadIdx.x] = 0;
  __syncwarp();
  s[threadIdx.x] = threadIdx.x;         // MISTAKE: missing_syncwarp
  y[threadIdx.x] = s[31 - threadIdx.x]; // MISTAKE: missing_syncwarp
}
GPU_EXPORT(missing_syncwarp)

/// One element too far.
extern "C" __global__ void read_past_end(float *y, const float *x) {
  y[threadIdx.x] = x[threadIdx.x + 1]; // MISTAKE: read_past_end
}
GPU_EXPORT(read_past_end)

/// Far outside every buffer: found without the checker.
extern "C" __global__ void wild_write(float *y) {
  y[100000 + threadIdx.x] = 1; // MISTAKE: wild_write
}
GPU_EXPORT(wild_write)

/// Half of the block never comes.
extern "C" __global__ void barrier_in_branch(float *y) {
  if (threadIdx.x < 32) __syncthreads(); // MISTAKE: barrier_in_branch
  y[threadIdx.x] = 0;
}
GPU_EXPORT(barrier_in_branch)

/// The mask names lanes that do not take part.
extern "C" __global__ void half_a_shuffle(float *y) {
  float v = threadIdx.x;
  if (threadIdx.x < 16) v = __shfl_xor_sync(0xffffffffu, v, 1); // MISTAKE: half_a_shuffle
  y[threadIdx.x] = v;
}
GPU_EXPORT(half_a_shuffle)

/// The lanes of a warp stand in two different collectives.
extern "C" __global__ void divergent_collectives(float *y) {
  float v = threadIdx.x;
  if (threadIdx.x < 16)
    v = __shfl_xor_sync(0xffffffffu, v, 1); // MISTAKE: divergent_collectives
  else
    __syncwarp(); // MISTAKE: divergent_collectives
  y[threadIdx.x] = v;
}
GPU_EXPORT(divergent_collectives)

/// The copy is committed and not waited for.
extern "C" __global__ void cp_async_without_wait(float *y, const float *x) {
  GPU_SHARED(float, s, [256]);
  gpu::cp_async16(s + threadIdx.x * 4, x + threadIdx.x * 4);
  gpu::cp_async_commit();
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x]; // MISTAKE: cp_async_without_wait
}
GPU_EXPORT(cp_async_without_wait)

/// The wait leaves one group too many in flight.
extern "C" __global__ void cp_async_wait_off_by_one(float *y, const float *x) {
  GPU_SHARED(float, s, [2][128]);
  for (int i = 0; i < 2; i++) {
    gpu::cp_async16(&s[i][threadIdx.x * 4], x + i * 128 + threadIdx.x * 4);
    gpu::cp_async_commit();
  }
  gpu::cp_async_wait<1>();
  __syncthreads();
  y[threadIdx.x] = s[1][threadIdx.x]; // MISTAKE: cp_async_wait_off_by_one
}
GPU_EXPORT(cp_async_wait_off_by_one)

/// Two blocks write one element.
extern "C" __global__ void blocks_race(float *y) {
  if (threadIdx.x == 0) y[0] = y[0] + 1; // MISTAKE: blocks_race
}
GPU_EXPORT(blocks_race)

/// The last block adds up what the others wrote, but nothing makes their writes visible before the count.
extern "C" __global__ void last_block_without_fence(float *y, float *partial, unsigned *count) {
  GPU_SHARED(bool, last, [1]);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = 1;
    last[0] = atomicAdd(count, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (last[0] && threadIdx.x == 0) {
    float sum = 0;
    for (unsigned b = 0; b < gridDim.x; b++) sum += partial[b]; // MISTAKE: last_block_without_fence
    y[0] = sum;
  }
}
GPU_EXPORT(last_block_without_fence)

/// The same with the fence: correct, and the checker must say so.
extern "C" __global__ void last_block_with_fence(float *y, float *partial, unsigned *count) {
  GPU_SHARED(bool, last, [1]);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = 1;
    __threadfence();
    last[0] = atomicAdd(count, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (last[0] && threadIdx.x == 0) {
    float sum = 0;
    for (unsigned b = 0; b < gridDim.x; b++) sum += partial[b];
    y[0] = sum;
  }
}
GPU_EXPORT(last_block_with_fence)

/// More threads than the launch gave bytes for.
extern "C" __global__ void past_dynamic_shared(float *y) {
  GPU_DYN_SHARED(bytes);
  float *s = reinterpret_cast<float *>(bytes);
  s[threadIdx.x] = 1; // MISTAKE: past_dynamic_shared
  y[threadIdx.x] = s[threadIdx.x];
}
GPU_EXPORT(past_dynamic_shared)

/// An index outside a row of a static array; the element is inside the array itself.
extern "C" __global__ void past_a_row(float *y) {
  GPU_SHARED(float, s, [4][16]);
  s[threadIdx.x / 16][threadIdx.x % 16] = 1;
  __syncthreads();
  unsigned column = threadIdx.x % 16 + 1;
  y[threadIdx.x] = s[threadIdx.x / 32][column]; // MISTAKE: past_a_row
}
GPU_EXPORT(past_a_row)

extern "C" __global__ void three_arguments(float *y, const float *x, uint32_t n) {
  if (threadIdx.x < n) y[threadIdx.x] = x[threadIdx.x];
}
GPU_EXPORT(three_arguments)

/// A 4-byte access to an odd address.
extern "C" __global__ void misaligned_float(float *y) {
  auto p = reinterpret_cast<float *>(reinterpret_cast<char *>(y) + 2);
  p[threadIdx.x] = 1; // MISTAKE: misaligned_float
}
GPU_EXPORT(misaligned_float)

/// A vector that starts at an odd element.
extern "C" __global__ void misaligned_vector(float *y, const float *x) {
  gpu::Vec<float> v = gpu::load_vec(x + 1); // MISTAKE: misaligned_vector
  y[threadIdx.x] = v.v[0];
}
GPU_EXPORT(misaligned_vector)

/// The same through a pointer to a vector type.
extern "C" __global__ void misaligned_float4(float *y, const float *x) {
  float4 v = *reinterpret_cast<const float4 *>(x + 1); // MISTAKE: misaligned_float4
  y[threadIdx.x] = v.x + v.y + v.z + v.w;
}
GPU_EXPORT(misaligned_float4)

/// The host frees x first.
extern "C" __global__ void use_after_free(float *y, const float *x) {
  y[threadIdx.x] = x[threadIdx.x]; // MISTAKE: use_after_free
}
GPU_EXPORT(use_after_free)

/// Nobody wrote x.
extern "C" __global__ void uninitialised_global(float *y, const float *x) {
  y[threadIdx.x] = x[threadIdx.x]; // MISTAKE: uninitialised_global
}
GPU_EXPORT(uninitialised_global)

/// The last thread's element stays unwritten.
extern "C" __global__ void uninitialised_shared(float *y) {
  GPU_SHARED(float, s, [64]);
  if (threadIdx.x < 63) s[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x]; // MISTAKE: uninitialised_shared
}
GPU_EXPORT(uninitialised_shared)

extern "C" __global__ void divide_by_zero(int *y, int n) {
  y[threadIdx.x] = 7 / n; // MISTAKE: divide_by_zero
}
GPU_EXPORT(divide_by_zero)

extern "C" __global__ void shift_too_far(unsigned *y, unsigned n) {
  y[threadIdx.x] = 1u << n; // MISTAKE: shift_too_far
}
GPU_EXPORT(shift_too_far)
