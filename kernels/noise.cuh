// Gaussian noise from a counter: the draw of src/ops/noise, word for word, on the device.
//
// Counter: word 0 = number of the block in its row, `pixel * blocks + channel / 8` (`/ 4` if precise),
// word 1 = the row's id, word 2 = purpose * 65536 + layer, word 3 = the row's draw. Key: the seed.
//
// The words are the CPU's to the bit. Normals: `precise` ones are the CPU's to the bit as well, the same
// IEEE operations in the same order. `fast` ones come from the approximations of gpu.cuh. With the C
// library in their place (the emulator) they are within 2.1e-6 of exact arithmetic, over all radii. By
// the PTX manual's bounds it is 2^-20.5 + 2e-7 of a radian in the angle and 2e-7 + 1.7e-7 / r in the
// radius: within 6e-6 where r > 0.1; of the 0.5% of the draws with a smaller radius only the closest
// to 0 are worse, by up to 2e-4.
//
// Counted (nvcc 13.0, sm_80): 12.5 instructions a normal with the addition in f32, 2 of them MUFU.
//
// y = fmaf(sigma, z, x) in f32, then one rounding to T. sigma = 0 has to copy the bits of x: the host
// launches without noise then.
#pragma once
#include "gpu.cuh"

/// Which random variables a row of the batch sees.
struct Row {
  uint32_t id;
  uint32_t draw;
};

/// One noise layer's draw, the same for all rows.
struct Draw {
  uint32_t keys[20];       // Philox's key of each of the 10 rounds, two words each
  uint32_t purpose_layer;  // counter word 2
  uint32_t blocks;         // blocks per pixel: ceil(c / 8), precise ceil(c / 4)
  float sigma;
};

namespace noise {

struct Words {
  uint32_t w[4];
};

/// The blocks of counters (block, row.id, purpose_layer, row.draw): Philox4x32-10. With the keys in the constant bank a
/// round is two wide multiplications and two three-way xors. What one block's instructions wait for is hidden by the
/// others', so they stand side by side.
template <int COUNT>
__device__ __forceinline__ void words(Words (&to)[COUNT], const Draw &draw, const Row (&rows)[COUNT],
                                      const uint32_t (&blocks)[COUNT]) {
#pragma unroll
  for (int n = 0; n < COUNT; n++) to[n] = {{blocks[n], rows[n].id, draw.purpose_layer, rows[n].draw}};
#pragma unroll
  for (int round = 0; round < 10; round++) {
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
      uint32_t (&c)[4] = to[n].w;
      const uint64_t p0 = (uint64_t)c[0] * 0xD2511F53u, p1 = (uint64_t)c[2] * 0xCD9E8D57u;
      c[0] = (uint32_t)(p1 >> 32) ^ c[1] ^ draw.keys[2 * round];
      c[1] = (uint32_t)p1;
      c[2] = (uint32_t)(p0 >> 32) ^ c[3] ^ draw.keys[2 * round + 1];
      c[3] = (uint32_t)p0;
    }
  }
}

/// One block.
__device__ __forceinline__ Words words(const Draw &draw, Row row, uint32_t block) {
  Words one[1];
  words<1>(one, draw, {row}, {block});
  return one[0];
}

/// Two normals of one word: radius from the top 20 bits, angle from the low 12.
/// r = sqrt(-2 ln u), u = (a + 0.5) 2^-20; t = 2 pi (b + 0.5) 2^-12; r cos t and r sin t.
__device__ __forceinline__ void fast(uint32_t word, float &z0, float &z1) {
  // Floats of chosen exponent around the bits, no conversion: 8 + a 2^-20, then exactly u.
  float u = __uint_as_float((word >> 12) + 0x41000000u) - (8.0f - 0x1p-21f);
  // 2^11 + b 2^-12, then exactly (b + 0.5) 2^-12.
  float turn = __uint_as_float(gpu::mask_or<0xFFF, 0x45000000>(word)) - (2048.0f - 0x1p-13f);
  // The logarithm's error must not turn the sign.
  float r = gpu::sqrt_approx(fabsf(gpu::lg2_approx(u) * -1.38629436f));
  float t = turn * 6.28318531f;
  z0 = r * gpu::cos_approx(t);
  z1 = r * gpu::sin_approx(t);
}

/// Two normals of a pair of words: 32-bit radius from `u`, 32-bit angle from `v`. Every line is one IEEE
/// operation, as in src/ops/noise/normals.rs.
__device__ __forceinline__ void precise(uint32_t u, uint32_t v, float &z0, float &z1) {
  // (u + 0.5) 2^-32 = 2^e (1 + t), 1 + t in [sqrt(1/2), sqrt(2)); e in the place of a float's exponent.
  float unit = __fadd_rn(__uint2float_rn(u), 0.5f);
  int32_t bits = (int32_t)__float_as_uint(unit);
  int32_t exponent = (int32_t)((uint32_t)(bits - (0x3F3504F3 + (32 << 23))) & 0xFF800000u);
  float t = fmaf(__uint_as_float((uint32_t)(bits - exponent)), 0x1p-32f, -1.0f);
  // Near 1 the radius depends on 1 - (u + 0.5) 2^-32, which would drown in the rounding of u.
  float from_one = fmaf(__uint2float_rn(~u), -0x1p-32f, -0x1p-33f);
  t = exponent == 0 ? from_one : t;
  // -2 ln(1 + t) / t
  float p = -0.17444699f;
  p = fmaf(p, t, 0.2873368f);
  p = fmaf(p, t, -0.29904535f);
  p = fmaf(p, t, 0.33124787f);
  p = fmaf(p, t, -0.39913666f);
  p = fmaf(p, t, 0.5000415f);
  p = fmaf(p, t, -0.66668373f);
  p = fmaf(p, t, 0.99999976f);
  p = fmaf(p, t, -2.0f);
  float minus_two_ln2 = (float)(-2.0 * 0.693147180559945309417 / 8388608.0);
  float r = gpu::sqrt_normal(fmaf(t, p, __fmul_rn(__int2float_rn(exponent), minus_two_ln2)));
  // The signed distance to the nearest quarter turn, in units of 2^-34 of a turn.
  int32_t offset = (int32_t)(v << 2 | 2u);
  float x = __fmul_rn(__int2float_rn(offset), (float)(1.57079632679489661923 / 4294967296.0));
  float y = __fmul_rn(x, x);
  float s = fmaf(fmaf(fmaf(-0.00019504035f, y, 0.008332037f), y, -0.1666665f), y, 1.0f);
  s = __fmul_rn(s, x);
  float c = fmaf(fmaf(fmaf(-0.001358592f, y, 0.041655026f), y, -0.49999857f), y, 1.0f);
  // The nearest multiple: bit 30 swaps sine and cosine, bit 31 is the sign of the sine, and a quarter
  // turn further that of the cosine.
  uint32_t quarter = v + (1u << 29);
  bool swap = quarter & 1u << 30;
  uint32_t cosine = __float_as_uint(swap ? s : c) ^ ((quarter + (1u << 30)) & 1u << 31);
  uint32_t sine = __float_as_uint(swap ? c : s) ^ (quarter & 1u << 31);
  z0 = __fmul_rn(r, __uint_as_float(cosine));
  z1 = __fmul_rn(r, __uint_as_float(sine));
}

/// Blocks that eight normals of a pixel are made of.
template <bool PRECISE>
constexpr int BLOCKS = PRECISE ? 2 : 1;

/// Normals 2 j and 2 j + 1 of a pixel's blocks.
template <bool PRECISE>
__device__ __forceinline__ void pair(const Words *blocks, int j, float &z0, float &z1) {
  if constexpr (PRECISE)
    precise(blocks[j / 2].w[j % 2 * 2], blocks[j / 2].w[j % 2 * 2 + 1], z0, z1);
  else
    fast(blocks->w[j], z0, z1);
}

/// The normals of channels `8 group .. 8 group + 8` of one pixel, numbered `h * W + w`.
template <bool PRECISE>
__device__ __forceinline__ void normals(float (&z)[8], const Draw &draw, Row row, uint32_t pixel, uint32_t group) {
  Words all[BLOCKS<PRECISE>];
  // Where the pixel ends in the first half, the second is its neighbour's block, and not used.
#pragma unroll
  for (int i = 0; i < BLOCKS<PRECISE>; i++) all[i] = words(draw, row, pixel * draw.blocks + BLOCKS<PRECISE> * group + i);
#pragma unroll
  for (int j = 0; j < 4; j++) pair<PRECISE>(all, j, z[2 * j], z[2 * j + 1]);
}

/// x += sigma z for channels `8 group .. 8 group + 8` of one pixel.
template <bool PRECISE>
__device__ __forceinline__ void add(float (&x)[8], const Draw &draw, Row row, uint32_t pixel, uint32_t group) {
  float z[8];
  normals<PRECISE>(z, draw, row, pixel, group);
#pragma unroll
  for (int j = 0; j < 8; j++) x[j] = fmaf(draw.sigma, z[j], x[j]);
}

/// x += sigma z, rounded to T, for eight 16-bit channels of each of COUNT pixels, whose blocks begin at `first`.
template <bool PRECISE, int COUNT, class T>
__device__ __forceinline__ void add_rounded(gpu::Vec<T> (&x)[COUNT], const Draw &draw, const Row (&rows)[COUNT],
                                            const uint32_t (&first)[COUNT]) {
  constexpr int EACH = BLOCKS<PRECISE>;
  Words all[COUNT * EACH];
  Row names[COUNT * EACH];
  uint32_t blocks[COUNT * EACH];
#pragma unroll
  for (int i = 0; i < COUNT * EACH; i++) {
    names[i] = rows[i / EACH];
    blocks[i] = first[i / EACH] + i % EACH;
  }
  words(all, draw, names, blocks);
#pragma unroll
  for (int j = 0; j < 4; j++) {
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
      float z0, z1;
      pair<PRECISE>(all + n * EACH, j, z0, z1);
      T two[2];
      gpu::pack2(two, fmaf(draw.sigma, z0, gpu::to_f32(x[n].v[2 * j])), fmaf(draw.sigma, z1, gpu::to_f32(x[n].v[2 * j + 1])));
      x[n].v[2 * j] = two[0];
      x[n].v[2 * j + 1] = two[1];
    }
  }
}

}  // namespace noise
