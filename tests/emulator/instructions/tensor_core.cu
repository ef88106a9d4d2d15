// One instruction each: operands from memory to registers, the instruction, and back. The tests compute the same from
// the definitions.
#include "gpu.cuh"

// ---- mma.sync: y (16x8) = c + a (16xK) b (Kx8), all f32 in memory, row by row ---------------------------------

template <class T>
__device__ uint32_t pack(float low, float high) {
  T l = gpu::from_f32<T>(low), h = gpu::from_f32<T>(high);
  uint16_t bits[2];
  memcpy(bits, &l, 2);
  memcpy(bits + 1, &h, 2);
  return bits[0] | uint32_t(bits[1]) << 16;
}

template <class T>
__device__ void mma_tile(float *y, const float *a, const float *b, const float *c) {
  int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4 * 2;
  uint32_t ra[4], rb[2];
  float d[4];
  for (int r = 0; r < 4; r++) {
    const float *p = a + (g + 8 * (r & 1)) * 16 + t + 8 * (r >> 1);
    ra[r] = pack<T>(p[0], p[1]);
    d[r] = c[(g + 8 * (r >> 1)) * 8 + t + (r & 1)];
  }
  for (int r = 0; r < 2; r++) rb[r] = pack<T>(b[(t + 8 * r) * 8 + g], b[(t + 8 * r + 1) * 8 + g]);
  if constexpr (sizeof(T) == 2) {
    if (std::is_same<T, __half>::value)
      gpu::mma_f16(d, ra, rb);
    else
      gpu::mma_bf16(d, ra, rb);
  }
  for (int r = 0; r < 4; r++) y[(g + 8 * (r >> 1)) * 8 + t + (r & 1)] = d[r];
}

extern "C" __global__ void test_mma_bf16(float *y, const float *a, const float *b, const float *c) {
  mma_tile<__nv_bfloat16>(y, a, b, c);
}
GPU_EXPORT(test_mma_bf16)
extern "C" __global__ void test_mma_f16(float *y, const float *a, const float *b, const float *c) {
  mma_tile<__half>(y, a, b, c);
}
GPU_EXPORT(test_mma_f16)

extern "C" __global__ void test_mma_tf32(float *y, const float *a, const float *b, const float *c) {
  int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  uint32_t ra[4], rb[2];
  float d[4];
  for (int r = 0; r < 4; r++) {
    ra[r] = gpu::to_tf32(a[(g + 8 * (r & 1)) * 8 + t + 4 * (r >> 1)]);
    d[r] = c[(g + 8 * (r >> 1)) * 8 + 2 * t + (r & 1)];
  }
  for (int r = 0; r < 2; r++) rb[r] = gpu::to_tf32(b[(t + 4 * r) * 8 + g]);
  gpu::mma_tf32(d, ra, rb);
  for (int r = 0; r < 4; r++) y[(g + 8 * (r >> 1)) * 8 + 2 * t + (r & 1)] = d[r];
}
GPU_EXPORT(test_mma_tf32)

// ---- ldmatrix, stmatrix: x is X matrices of 8x8; y gets each lane's registers ----------------------------------

template <int X, bool TRANS>
__device__ void load_matrices(uint32_t *y, const uint16_t *x) {
  GPU_SHARED(uint16_t, s, [4][8][16]); // rows apart: the addresses are what counts
  int lane = threadIdx.x;
  for (int i = lane; i < X * 64; i += 32) s[i / 64][i / 8 % 8][i % 8] = x[i];
  __syncwarp();
  uint32_t r[X];
  gpu::ldmatrix<X, TRANS>(r, s[lane / 8 % X][lane % 8]);
  for (int q = 0; q < X; q++) y[q * 32 + lane] = r[q];
}

/// The inverse: registers to memory.
template <int X, bool TRANS>
__device__ void store_matrices(uint16_t *y, const uint32_t *x) {
#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 900
  GPU_SHARED(uint16_t, s, [4][8][16]);
  int lane = threadIdx.x;
  uint32_t r[X];
  for (int q = 0; q < X; q++) r[q] = x[q * 32 + lane];
  gpu::stmatrix<X, TRANS>(s[lane / 8 % X][lane % 8], r);
  __syncwarp();
  for (int i = lane; i < X * 64; i += 32) y[i] = s[i / 64][i / 8 % 8][i % 8];
#endif
}

#define MATRICES(X, SUFFIX, TRANS)                                                                            \
  extern "C" __global__ void test_ldmatrix_##X##SUFFIX(uint32_t *y, const uint16_t *x) {                      \
    load_matrices<X, TRANS>(y, x);                                                                            \
  }                                                                                                           \
  GPU_EXPORT(test_ldmatrix_##X##SUFFIX)                                                                       \
  extern "C" __global__ void test_stmatrix_##X##SUFFIX(uint16_t *y, const uint32_t *x) {                      \
    store_matrices<X, TRANS>(y, x);                                                                           \
  }                                                                                                           \
  GPU_EXPORT(test_stmatrix_##X##SUFFIX)
MATRICES(1, , false)
MATRICES(2, , false)
MATRICES(4, , false)
MATRICES(1, _trans, true)
MATRICES(2, _trans, true)
MATRICES(4, _trans, true)

// ---- cp.async: blocks of 128 threads copy 16-, 8- and 4-byte pieces of x, every third one zeros ------------------

template <int BYTES>
__device__ void copy_pieces(uint32_t *y, const uint32_t *x) {
  constexpr int WORDS = BYTES / 4;
  GPU_SHARED(uint32_t, s, [2][128 * WORDS]);
  int t = threadIdx.x, first = int(blockIdx.x) * 256;
  for (int stage = 0; stage < 2; stage++) {
    int piece = first + stage * 128 + t;
    bool valid = piece % 3 != 0;
    void *to = &s[stage][t * WORDS];
    const uint32_t *from = x + size_t(piece) * WORDS;
    if constexpr (BYTES == 16)
      gpu::cp_async16(to, from, valid);
    else
      gpu::cp_async<BYTES>(to, from, valid);
    gpu::cp_async_commit();
  }
  gpu::cp_async_wait<1>();
  __syncthreads();
  for (int i = t; i < 128 * WORDS; i += 128) y[size_t(first) * WORDS + 128 * WORDS - 1 - i] = s[0][i];
  gpu::cp_async_wait<0>();
  __syncthreads();
  for (int i = t; i < 128 * WORDS; i += 128) y[size_t(first + 128) * WORDS + 128 * WORDS - 1 - i] = s[1][i];
}
extern "C" __global__ void test_cp_async_16(uint32_t *y, const uint32_t *x) { copy_pieces<16>(y, x); }
GPU_EXPORT(test_cp_async_16)
extern "C" __global__ void test_cp_async_8(uint32_t *y, const uint32_t *x) { copy_pieces<8>(y, x); }
GPU_EXPORT(test_cp_async_8)
extern "C" __global__ void test_cp_async_4(uint32_t *y, const uint32_t *x) { copy_pieces<4>(y, x); }
GPU_EXPORT(test_cp_async_4)
