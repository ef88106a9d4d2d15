// The one place with inline PTX; what only compute capability 9.0 has is in its second half, gpu_sm90.cuh.
// nvcc sees CUDA's own headers and the PTX; the host's C++ compiler (tests/emulator) sees emu/gpu.h, which
// gives every name its twin on the CPU.
//
// A kernel file includes this and our other .cuh files, nothing else, and holds no asm.
#pragma once

/// A kernel: a function template that the generated wrapper calls. `threads` (and the least number of
/// blocks per SM) are read by kernels/interface.rs; see there.
#define KERNEL(...) __device__ __forceinline__ void

#ifndef __CUDACC__
#include "emu/gpu.h"
#else

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#define GPU_EXPORT(kernel)
#define GPU_SHARED(type, name, dims) __shared__ __align__(16) type name dims
#define GPU_DYN_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

#define GPU_FN __device__ __forceinline__

namespace gpu {

// ---- launches -----------------------------------------------------------------------------------------------

/// Every instance begins with this: a launch may start while the one in front of it ends (src/gpu/launch.rs). Lets
/// the next one do the same, and waits until all in front are done and their results are visible.
GPU_FN void begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- addresses ------------------------------------------------------------------------------------------

/// The 32-bit address of shared memory that PTX instructions take.
GPU_FN uint32_t shared_u32(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/// The shared memory at such an address.
template <class T>
GPU_FN T *shared_pointer(uint32_t address) {
  return reinterpret_cast<T *>(__cvta_shared_to_generic(address));
}

// ---- 16-byte vectors --------------------------------------------------------------------------------------

/// Sixteen bytes of T.
template <class T>
struct alignas(16) Vec {
  static constexpr int N = 16 / sizeof(T);
  T v[N];
};

/// p must be 16-byte aligned.
template <class T>
GPU_FN Vec<T> load_vec(const T *p) {
  Vec<T> r;
  *reinterpret_cast<uint4 *>(&r) = *reinterpret_cast<const uint4 *>(p);
  return r;
}

/// p must be 16-byte aligned.
template <class T>
GPU_FN void store_vec(T *p, const Vec<T> &v) {
  *reinterpret_cast<uint4 *>(p) = *reinterpret_cast<const uint4 *>(&v);
}

/// To global memory, in one instruction whatever is around it: nvcc has taken the one above apart into four where it
/// could see the pieces.
template <class T>
GPU_FN void store_vec_whole(T *p, const Vec<T> &v) {
  __stwb(reinterpret_cast<uint4 *>(p), *reinterpret_cast<const uint4 *>(&v));
}

/// The same past the first-level cache, for what is read and then overwritten.
template <class T>
GPU_FN Vec<T> load_vec_past_l1(const T *p) {
  Vec<T> r;
  *reinterpret_cast<uint4 *>(&r) = __ldcg(reinterpret_cast<const uint4 *>(p));
  return r;
}
template <class T>
GPU_FN void store_vec_past_l1(T *p, const Vec<T> &v) {
  __stcg(reinterpret_cast<uint4 *>(p), *reinterpret_cast<const uint4 *>(&v));
}

// ---- cp.async ---------------------------------------------------------------------------------------------

/// Copies 16 bytes to shared memory in the background; zeros if not valid (g is not read then).
GPU_FN void cp_async16(void *s, const void *g, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_u32(s)), "l"(g), "r"(valid ? 16 : 0)
               : "memory");
}

/// The same for 4 or 8 bytes.
template <int BYTES>
GPU_FN void cp_async(void *s, const void *g, bool valid = true) {
  static_assert(BYTES == 4 || BYTES == 8, "cp.async copies 4, 8 or 16 bytes");
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_u32(s)), "l"(g), "n"(BYTES),
               "r"(valid ? BYTES : 0)
               : "memory");
}

GPU_FN void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most N of this thread's groups are still in flight.
template <int N>
GPU_FN void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- tensor cores: ldmatrix, mma.sync ---------------------------------------------------------------------

/// X 8x8 matrices of 16-bit elements; lane 8q+r brings the address of row r of matrix q.
template <int X, bool TRANS = false>
GPU_FN void ldmatrix(uint32_t (&r)[X], const void *row) {
  static_assert(X == 1 || X == 2 || X == 4, "ldmatrix loads 1, 2 or 4 matrices");
  uint32_t a = shared_u32(row);
  if constexpr (X == 4 && !TRANS)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
  if constexpr (X == 4 && TRANS)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
  if constexpr (X == 2 && !TRANS)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(a) : "memory");
  if constexpr (X == 2 && TRANS)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(a) : "memory");
  if constexpr (X == 1 && !TRANS)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(a) : "memory");
  if constexpr (X == 1 && TRANS)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(a) : "memory");
}

/// D += A B for one 16x8x16 tile; fragments as in the PTX manual.
GPU_FN void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

GPU_FN void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// D += A B for one 16x8x8 tile of tf32 (see to_tf32).
GPU_FN void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Rounded to 10 mantissa bits, nearest, ties away from zero.
GPU_FN uint32_t to_tf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}

// ---- approximations ---------------------------------------------------------------------------------------
// One MUFU instruction each (sin and cos: after a multiplication by 1 / 2 pi). None takes or gives
// subnormal numbers. Bounds from the PTX manual.

/// log2(x), off by at most 2^-22 for x in [0.5, 2], by 2^-22 of the result elsewhere.
GPU_FN float lg2_approx(float x) {
  float r;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

/// sqrt(x), off by at most 2^-23 of the result.
GPU_FN float sqrt_approx(float x) {
  float r;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

/// sqrt(x) rounded to nearest, for x from 2^-100 to 2^100: what nvcc makes of sqrtf without its branch for
/// other x.
GPU_FN float sqrt_normal(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  float s = __fmul_rn(x, y), half = __fmul_rn(y, 0.5f);
  return fmaf(fmaf(-s, s, x), half, s);
}

/// sin(x) and cos(x), off by at most 2^-20.5 for x in [-2 pi, 2 pi].
GPU_FN float sin_approx(float x) {
  float r;
  asm("sin.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

GPU_FN float cos_approx(float x) {
  float r;
  asm("cos.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

// ---- maximum and minimum that keep NaN ----------------------------------------------------------------------

/// The larger one, NaN if either is NaN; +0 is larger than -0.
GPU_FN float max_nan(float a, float b) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}

/// The smaller one, NaN if either is NaN.
GPU_FN float min_nan(float a, float b) {
  float r;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}

// ---- bits -------------------------------------------------------------------------------------------------

/// (x & MASK) | BITS as one instruction; nvcc makes two of it, because both operands are constants.
template <uint32_t MASK, uint32_t BITS>
GPU_FN uint32_t mask_or(uint32_t x) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(r) : "r"(x), "n"(MASK), "n"(BITS));
  return r;
}

/// x, of which the compiler knows nothing any more: what is computed from it is computed where it stands, and not kept
/// in a register from before a loop.
GPU_FN uint32_t opaque(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

// ---- named barriers ---------------------------------------------------------------------------------------

/// Barrier `id` (1 to 15) for `threads` threads, a multiple of 32.
GPU_FN void bar_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
GPU_FN void bar_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

} // namespace gpu

#include "gpu_sm90.cuh"
#endif // __CUDACC__

// ---- the same on both sides ---------------------------------------------------------------------------------
namespace gpu {

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_f32(__half x) { return __half2float(x); }

template <class T>
struct FromF32;
template <>
struct FromF32<float> {
  static __device__ __forceinline__ float of(float x) { return x; }
};
template <>
struct FromF32<__nv_bfloat16> {
  static __device__ __forceinline__ __nv_bfloat16 of(float x) { return __float2bfloat16_rn(x); }
};
template <>
struct FromF32<__half> {
  static __device__ __forceinline__ __half of(float x) { return __float2half_rn(x); }
};

/// Rounded to nearest even.
template <class T>
__device__ __forceinline__ T from_f32(float x) {
  return FromF32<T>::of(x);
}

/// How 16-byte pieces are exchanged in shared memory; numbered as wgmma's descriptors do.
enum class Swizzle { None = 0, B128 = 1, B64 = 2, B32 = 3 };

/// The half of wgmma's descriptor that does not say where the matrix is.
__device__ __forceinline__ uint64_t matrix_descriptor_upper(Swizzle swizzle, uint32_t stride) {
  return uint64_t(stride >> 4) << 32 | uint64_t(swizzle) << 62;
}

/// wgmma's descriptor of a matrix at p. Along K: `stride` bytes from 8 rows to the next 8; `leading` (no swizzle only)
/// from one 16-byte piece of a row to the next. Transposed: see the PTX manual's canonical layouts.
__device__ __forceinline__ uint64_t matrix_descriptor(const void *p, Swizzle swizzle, uint32_t leading, uint32_t stride) {
  return (shared_u32(p) & 0x3ffff) >> 4 | uint64_t(leading >> 4) << 16 | matrix_descriptor_upper(swizzle, stride);
}

/// Two values rounded and packed by one instruction where T has 16 bits.
__device__ __forceinline__ void pack2(float (&out)[2], float a, float b) {
  out[0] = a;
  out[1] = b;
}
__device__ __forceinline__ void pack2(__nv_bfloat16 (&out)[2], float a, float b) {
  __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
  out[0] = v.x;
  out[1] = v.y;
}
__device__ __forceinline__ void pack2(__half (&out)[2], float a, float b) {
  __half2 v = __floats2half2_rn(a, b);
  out[0] = v.x;
  out[1] = v.y;
}

/// Sum over the warp in a fixed order; every lane gets the same bits. All 32 lanes must call it.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}

/// The block's linear index in the grid, x fastest.
__device__ __forceinline__ uint64_t block_index() {
  return blockIdx.x + (uint64_t)gridDim.x * (blockIdx.y + (uint64_t)gridDim.y * blockIdx.z);
}

} // namespace gpu
