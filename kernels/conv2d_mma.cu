// 2-D convolution on tensor cores by mma.sync, f32 sums: forward with what comes in front of it and behind it, and the
// input gradient. The definition is in src/ops/conv2d and src/ops/fused_conv2d, the product in implicit_gemm.cuh.
#include "epilogue.cuh"

namespace convolution {

template <class T, bool NOISE, int TILE>
__device__ __forceinline__ void run(const epilogue::Results<T> &to, const T *x, const T *packed, const float *bias,
                                    float *partial, uint32_t *counts, const Gemm &p, const Epilogue &e,
                                    const Row *rows, uint32_t precise, const Draw &draw, const Draw &next) {
  using S = gemm::Shape<TILE>;
  GPU_SHARED(uint32_t, pixels, [S::ROWS]);
  GPU_SHARED(uint32_t, patch, [S::ROWS]);
  GPU_SHARED(int32_t, units, [gemm::MAX_TAPS][4]);
  GPU_SHARED(uint32_t, slabs, [gemm::MAX_TAPS]);
  GPU_DYN_SHARED(shared);
  const gemm::Tables<TILE> tables = {pixels, patch, units, slabs};
  const gemm::Place place = gemm::locate<TILE>(p);
  float sum[S::M][S::N][4] = {};
  gemm::multiply<T, NOISE, TILE>(sum, x, packed, p, place, tables, shared, rows, precise, draw);
  epilogue::finish<T, TILE>(sum, to, bias, partial, counts, p, place, pixels, e, next, shared);
}

} // namespace convolution

/// y = epilogue(conv(x, w) + bias), with NOISE of x + sigma z (`precise` or not); of dy in the input gradient. `packed`
/// are the weights, see pack.cuh. Grid: one block a tile, phase, supergroup and columns, in the order of `locate`.
// instances: T = bf16 f16; TILE = 0 1 2 3 4 5 6
template <class T, bool NOISE, int TILE>
KERNEL(128, 2) conv2d_mma(T *y, const T *x, const T *packed, const float *bias, const T *residual, uint8_t *mask,
                          uint8_t *argmax, float *partial, uint32_t *counts, Gemm p, Epilogue e, const Row *rows,
                          uint32_t precise, Draw draw, const Row *next_rows, Draw next) {
  convolution::run<T, NOISE, TILE>({y, residual, mask, argmax, next_rows}, x, packed, bias, partial, counts, p, e, rows,
                                   precise, draw, next);
}

/// The same for f32, its operands rounded to tf32.
// instances: TILE = 1 3
template <bool NOISE, int TILE>
KERNEL(128, 2) conv2d_tf32(float *y, const float *x, const float *packed, const float *bias, const float *residual,
                           uint8_t *mask, uint8_t *argmax, float *partial, uint32_t *counts, Gemm p, Epilogue e,
                           const Row *rows, uint32_t precise, Draw draw, const Row *next_rows, Draw next) {
  convolution::run<float, NOISE, TILE>({y, residual, mask, argmax, next_rows}, x, packed, bias, partial, counts, p, e,
                                       rows, precise, draw, next);
}
