// The twins of what kernels/gpu.cuh writes in PTX, and all of CUDA that a kernel may use. Names and meaning are
// documented in gpu.cuh; each call here ends in one of the emulator's engines.
#pragma once
#include "half.h"
#include "intrinsics.h"
#include "language.h"
#include "warp.h"

/// A tensor map as the driver fills it in; only the emulator reads it. Alignment as in cuda.h 13.0.
struct alignas(128) CUtensorMap {
  uint64_t opaque[16];
};

namespace emu {

/// The address of shared memory that instructions take: below 2^18 in the block's own, with the rank of the block
/// above that in a cluster.
uint32_t shared_address(const void *p);

// cp.async
void copy_async(void *shared, const void *global, int bytes, bool valid, Site site);
void copy_commit();
void copy_wait(int pending);

// tensor cores
void load_matrix(uint32_t *r, int count, bool transposed, const void *row, Site site);
void store_matrix(const uint32_t *r, int count, bool transposed, void *row, Site site);
enum class Element { BF16, F16, TF32 };
void multiply(float *d, const uint32_t *a, const uint32_t *b, Element type, Site site);

// 16-byte accesses, which the compiler may otherwise split into smaller ones that are aligned
void vector_read(void *to, const void *from, Site site);
void vector_write(void *to, const void *from, Site site);

} // namespace emu

namespace gpu {

inline uint32_t shared_u32(const void *p) { return emu::shared_address(p); }

template <class T>
struct alignas(16) Vec {
  static constexpr int N = 16 / sizeof(T);
  T v[N];
};
template <class T>
inline Vec<T> load_vec(const T *p, EMU_HERE) {
  Vec<T> r;
  emu::vector_read(&r, p, site);
  return r;
}
template <class T>
inline void store_vec(T *p, const Vec<T> &v, EMU_HERE) {
  emu::vector_write(p, &v, site);
}

inline void cp_async16(void *s, const void *g, bool valid = true, EMU_HERE) { emu::copy_async(s, g, 16, valid, site); }
template <int BYTES>
inline void cp_async(void *s, const void *g, bool valid = true, EMU_HERE) {
  static_assert(BYTES == 4 || BYTES == 8, "cp.async copies 4, 8 or 16 bytes");
  emu::copy_async(s, g, BYTES, valid, site);
}
inline void cp_async_commit() { emu::copy_commit(); }
template <int N>
inline void cp_async_wait() {
  emu::copy_wait(N);
}

template <int X, bool TRANS = false>
inline void ldmatrix(uint32_t (&r)[X], const void *row, EMU_HERE) {
  static_assert(X == 1 || X == 2 || X == 4, "ldmatrix loads 1, 2 or 4 matrices");
  emu::load_matrix(r, X, TRANS, row, site);
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMU_HERE) {
  emu::multiply(d, a, b, emu::Element::BF16, site);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMU_HERE) {
  emu::multiply(d, a, b, emu::Element::F16, site);
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMU_HERE) {
  emu::multiply(d, a, b, emu::Element::TF32, site);
}
/// Half of the last place kept is added to the magnitude; infinities and NaN stay what they are.
inline uint32_t to_tf32(float x) {
  uint32_t u = __float_as_uint(x);
  if ((u & 0x7f800000u) == 0x7f800000u) return x != x ? 0x7fffffffu : u;
  return (u + 0x1000u) & ~0x1fffu;
}

inline void bar_sync(int id, int threads, EMU_HERE) { emu::barrier(id, threads, false, site); }
inline void bar_arrive(int id, int threads, EMU_HERE) { emu::barrier(id, threads, true, site); }

} // namespace gpu
