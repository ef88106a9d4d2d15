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
char *shared_pointer(uint32_t address, size_t size);

// cp.async
void copy_async(void *shared, const void *global, int bytes, bool valid, Site site);
void copy_commit();
void copy_wait(int pending);

// tensor cores
void load_matrix(uint32_t *r, int count, bool transposed, const void *row, Site site);
void store_matrix(const uint32_t *r, int count, bool transposed, void *row, Site site);
enum class Element { BF16, F16, TF32 };
void multiply(float *d, const uint32_t *a, const uint32_t *b, Element type, Site site);

/// One wgmma: shapes and operands that all lanes share.
struct Wgmma {
  int n;
  Element type;
  uint64_t descriptor_a, descriptor_b;
  bool transpose_a, transpose_b, accumulate;
};
void wgmma(float *d, const uint32_t *a, const Wgmma &w, Site site);
void wgmma_commit(Site site);
void wgmma_wait(int pending, Site site);

// mbarrier, TMA, clusters
void mbarrier_init(uint64_t *barrier, unsigned count, Site site);
void mbarrier_arrive(uint64_t *barrier, unsigned arrivals, unsigned bytes, Site site);
void mbarrier_wait(uint64_t *barrier, unsigned parity, Site site);
void tma_load(void *shared, const CUtensorMap *map, uint64_t *barrier, int rank, const int *coordinate,
              const unsigned *offset, unsigned block_mask, Site site);
void bulk_load(void *shared, const void *global, uint32_t bytes, uint64_t *barrier, Site site);
void tma_store(const CUtensorMap *map, const void *shared, int rank, const int *coordinate, Site site);
void bulk_commit();
void bulk_wait(int pending, bool read_only);
void fence_proxy();
unsigned cluster_rank();
unsigned cluster_size();
void cluster_arrive(Site site);
void cluster_wait(Site site);
void *cluster_map(void *p, unsigned rank, Site site);

// 16-byte accesses, which the compiler may otherwise split into smaller ones that are aligned
void vector_read(void *to, const void *from, Site site);
void vector_write(void *to, const void *from, Site site);

} // namespace emu

namespace gpu {

// Launches run one after another here.
inline void begin() {}

inline uint32_t shared_u32(const void *p) { return emu::shared_address(p); }
template <class T>
inline T *shared_pointer(uint32_t address) {
  return reinterpret_cast<T *>(emu::shared_pointer(address, sizeof(T)));
}

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
template <class T>
inline void store_vec_whole(T *p, const Vec<T> &v, EMU_HERE) {
  store_vec(p, v, site);
}
template <class T>
inline Vec<T> load_vec_past_l1(const T *p, EMU_HERE) {
  return load_vec(p, site);
}
template <class T>
inline void store_vec_past_l1(T *p, const Vec<T> &v, EMU_HERE) {
  store_vec(p, v, site);
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

// Approximations: the host's functions, rounded to f32.
inline float lg2_approx(float x) { return log2f(x); }
inline float sqrt_approx(float x) { return sqrtf(x); }
inline float sqrt_normal(float x) { return sqrtf(x); }
inline float sin_approx(float x) { return sinf(x); }
inline float cos_approx(float x) { return cosf(x); }

inline float max_nan(float a, float b) {
  if (a != a || b != b) return __uint_as_float(0x7fffffff);
  return a > b || (a == b && !signbit(a)) ? a : b;
}
inline float min_nan(float a, float b) {
  if (a != a || b != b) return __uint_as_float(0x7fffffff);
  return a < b || (a == b && signbit(a)) ? a : b;
}

template <uint32_t MASK, uint32_t BITS>
inline uint32_t mask_or(uint32_t x) {
  return (x & MASK) | BITS;
}

inline uint32_t opaque(uint32_t x) { return x; }

inline void bar_sync(int id, int threads, EMU_HERE) { emu::barrier(id, threads, false, site); }
inline void bar_arrive(int id, int threads, EMU_HERE) { emu::barrier(id, threads, true, site); }

template <int X, bool TRANS = false>
inline void stmatrix(void *row, const uint32_t (&r)[X], EMU_HERE) {
  static_assert(X == 1 || X == 2 || X == 4, "stmatrix stores 1, 2 or 4 matrices");
  emu::store_matrix(r, X, TRANS, row, site);
}

// ---- mbarrier -----------------------------------------------------------------------------------------------

inline void mbar_init(uint64_t *b, unsigned arrivals, EMU_HERE) { emu::mbarrier_init(b, arrivals, site); }
inline void mbar_fence_init() {}
inline void mbar_arrive(uint64_t *b, EMU_HERE) { emu::mbarrier_arrive(b, 1, 0, site); }
inline void mbar_arrive_expect(uint64_t *b, unsigned bytes, EMU_HERE) { emu::mbarrier_arrive(b, 1, bytes, site); }
inline void mbar_expect(uint64_t *b, unsigned bytes, EMU_HERE) { emu::mbarrier_arrive(b, 0, bytes, site); }
inline void mbar_wait(uint64_t *b, unsigned parity, EMU_HERE) { emu::mbarrier_wait(b, parity, site); }
inline void mbar_wait_warp(uint64_t *b, unsigned parity, EMU_HERE) {
  emu::mbarrier_wait(b, parity, site);
  __syncwarp(0xffffffffu, site);
}

// ---- clusters -----------------------------------------------------------------------------------------------

inline unsigned cluster_rank() { return emu::cluster_rank(); }
inline unsigned cluster_size() { return emu::cluster_size(); }
inline void cluster_arrive(EMU_HERE) { emu::cluster_arrive(site); }
inline void cluster_wait(EMU_HERE) { emu::cluster_wait(site); }
inline void cluster_sync(EMU_HERE) {
  emu::cluster_arrive(site);
  emu::cluster_wait(site);
}
template <class T>
inline T *cluster_map(T *p, unsigned rank, EMU_HERE) {
  return static_cast<T *>(emu::cluster_map(p, rank, site));
}
inline void mbar_arrive_remote(uint64_t *b, unsigned rank, EMU_HERE) {
  emu::mbarrier_arrive(static_cast<uint64_t *>(emu::cluster_map(b, rank, site)), 1, 0, site);
}

// ---- TMA ----------------------------------------------------------------------------------------------------

inline void fence_proxy_async() { emu::fence_proxy(); }
inline void tma_prefetch_map(const CUtensorMap *) {}

#define EMU_TMA(RANK, COORDINATES, ...)                                                                       \
  inline void tma_load_##RANK##d(void *s, const CUtensorMap *m, uint64_t *b, COORDINATES, EMU_HERE) {         \
    int c[] = {__VA_ARGS__};                                                                                  \
    emu::tma_load(s, m, b, RANK, c, nullptr, 0, site);                                                        \
  }                                                                                                           \
  inline void tma_load_multicast_##RANK##d(void *s, const CUtensorMap *m, uint64_t *b, uint16_t blocks, COORDINATES, \
                                           EMU_HERE) {                                                        \
    int c[] = {__VA_ARGS__};                                                                                  \
    emu::tma_load(s, m, b, RANK, c, nullptr, blocks, site);                                                   \
  }                                                                                                           \
  inline void tma_store_##RANK##d(const CUtensorMap *m, const void *s, COORDINATES, EMU_HERE) {               \
    int c[] = {__VA_ARGS__};                                                                                  \
    emu::tma_store(m, s, RANK, c, site);                                                                      \
  }
#define EMU_COMMA ,
EMU_TMA(1, int c0, c0)
EMU_TMA(2, int c0 EMU_COMMA int c1, c0, c1)
EMU_TMA(3, int c0 EMU_COMMA int c1 EMU_COMMA int c2, c0, c1, c2)
EMU_TMA(4, int c0 EMU_COMMA int c1 EMU_COMMA int c2 EMU_COMMA int c3, c0, c1, c2, c3)
EMU_TMA(5, int c0 EMU_COMMA int c1 EMU_COMMA int c2 EMU_COMMA int c3 EMU_COMMA int c4, c0, c1, c2, c3, c4)
#undef EMU_COMMA
#undef EMU_TMA

inline void tma_load_im2col_3d(void *s, const CUtensorMap *m, uint64_t *b, int c, int w, int n, uint16_t dw, EMU_HERE) {
  int at[] = {c, w, n};
  unsigned offset[] = {dw};
  emu::tma_load(s, m, b, 3, at, offset, 0, site);
}
inline void tma_load_im2col_4d(void *s, const CUtensorMap *m, uint64_t *b, int c, int w, int h, int n, uint16_t dw,
                               uint16_t dh, EMU_HERE) {
  int at[] = {c, w, h, n};
  unsigned offset[] = {dw, dh};
  emu::tma_load(s, m, b, 4, at, offset, 0, site);
}
inline void tma_load_im2col_5d(void *s, const CUtensorMap *m, uint64_t *b, int c, int w, int h, int d, int n,
                               uint16_t dw, uint16_t dh, uint16_t dd, EMU_HERE) {
  int at[] = {c, w, h, d, n};
  unsigned offset[] = {dw, dh, dd};
  emu::tma_load(s, m, b, 5, at, offset, 0, site);
}

inline void bulk_load(void *s, const void *g, uint32_t bytes, uint64_t *b, EMU_HERE) {
  emu::bulk_load(s, g, bytes, b, site);
}
inline void bulk_commit() { emu::bulk_commit(); }
template <int N>
inline void bulk_wait() {
  emu::bulk_wait(N, false);
}
template <int N>
inline void bulk_wait_read() {
  emu::bulk_wait(N, true);
}

// ---- wgmma --------------------------------------------------------------------------------------------------

template <int N>
inline void setmaxnreg_inc() {}
template <int N>
inline void setmaxnreg_dec() {}
inline void wgmma_fence() {}
inline void wgmma_commit(EMU_HERE) { emu::wgmma_commit(site); }
template <int N>
inline void wgmma_wait(EMU_HERE) {
  emu::wgmma_wait(N, site);
}

#define EMU_WGMMA(name, TYPE)                                                                                 \
  template <int N, bool TRANS_A = false, bool TRANS_B = false>                                                \
  inline void wgmma_##name(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate = true, EMU_HERE) {     \
    static_assert(N % 8 == 0 && N >= 8 && N <= 256, "N is a multiple of 8 up to 256");                        \
    emu::wgmma(d, nullptr, {N, emu::Element::TYPE, a, b, TRANS_A, TRANS_B, accumulate}, site);                \
  }                                                                                                           \
  template <int N, bool TRANS_B = false>                                                                      \
  inline void wgmma_##name(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate = true,     \
                           EMU_HERE) {                                                                        \
    static_assert(N % 8 == 0 && N >= 8 && N <= 256, "N is a multiple of 8 up to 256");                        \
    emu::wgmma(d, a, {N, emu::Element::TYPE, 0, b, false, TRANS_B, accumulate}, site);                        \
  }
EMU_WGMMA(bf16, BF16)
EMU_WGMMA(f16, F16)
#undef EMU_WGMMA
/// Both operands along K.
template <int N>
inline void wgmma_tf32(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate = true, EMU_HERE) {
  emu::wgmma(d, nullptr, {N, emu::Element::TF32, a, b, false, false, accumulate}, site);
}
template <int N>
inline void wgmma_tf32(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate = true, EMU_HERE) {
  emu::wgmma(d, a, {N, emu::Element::TF32, 0, b, false, false, accumulate}, site);
}

} // namespace gpu
