// Packs weights for the tensor cores: see pack.cuh.
#include "pack.cuh"

namespace pack {

/// As the tensor cores take it.
template <class T>
__device__ __forceinline__ T element(float w) {
  return gpu::from_f32<T>(w);
}
template <>
__device__ __forceinline__ float element<float>(float w) {
  return __uint_as_float(gpu::to_tf32(w));
}

/// Piece i of 16 bytes.
template <class T>
__device__ __forceinline__ void piece(T *packed, const float *w, const Packing &p, uint64_t i) {
  constexpr uint32_t UNIT = gpu::Vec<T>::N;
  if (i >= (uint64_t)p.supergroups * p.slabs * p.rows * 4) return;
  const uint32_t row = i / 4 % p.rows, unit_of_slab = i % 4 ^ (row / 2 % 4);
  const uint32_t slab = i / 4 / p.rows % p.slabs, supergroup = i / 4 / p.rows / p.slabs;
  uint32_t tap, unit;
  if (p.narrow) {
    const uint32_t q = slab * 4 + unit_of_slab;
    tap = q / p.narrow;
    unit = q % p.narrow;
  } else {
    tap = slab % p.taps;
    unit = slab / p.taps * 4 + unit_of_slab;
  }
  const uint32_t group = row / p.rows_group, row_in_group = row % p.rows_group;
  const uint32_t first = supergroup * p.merge + group;
  const bool row_valid = group < p.merge && first < p.groups && tap < p.taps;
  gpu::Vec<T> v;
#pragma unroll
  for (uint32_t e = 0; e < UNIT; e++) {
    const uint32_t channel = unit * UNIT + e, inside = channel - group * p.channels_group;
    float value = 0.0f;
    if (row_valid && channel >= group * p.channels_group && inside < p.channels_group) {
      const uint64_t at = p.transposed
                              ? ((uint64_t)(first * p.channels_group + inside) * p.taps + tap) * p.rows_group + row_in_group
                              : ((uint64_t)(first * p.rows_group + row_in_group) * p.taps + tap) * p.channels_group + inside;
      value = w[at];
    }
    v.v[e] = element<T>(value);
  }
  gpu::store_vec(packed + i * UNIT, v);
}

} // namespace pack

/// `packed` is [supergroups][slabs][rows][64 bytes], `w` OHWI. A thread writes 16 bytes.
template <class T>
KERNEL(256) pack_weights(T *packed, const float *w, Packing p) {
  pack::piece(packed, w, p, (uint64_t)blockIdx.x * 256 + threadIdx.x);
}

/// The same for all of `count` entries, whose blocks follow each other.
template <class T>
KERNEL(256) pack_all(const PackEntry *entries, uint32_t count) {
  uint32_t at = 0;
  for (uint32_t behind = count; behind - at > 1;) {
    const uint32_t middle = (at + behind) / 2;
    (entries[middle].first_block <= blockIdx.x ? at : behind) = middle;
  }
  const PackEntry entry = entries[at];
  pack::piece(static_cast<T *>(entry.packed), entry.w, entry.p, (uint64_t)(blockIdx.x - entry.first_block) * 256 + threadIdx.x);
}
