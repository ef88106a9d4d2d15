// What a tensor map of the emulator holds in its 128 bytes, and the arithmetic of swizzles.
#pragma once
#include <cstdint>

namespace emu {

struct TensorMap {
  uint64_t magic;
  char *address;
  uint32_t dim[5];
  uint64_t stride[4];    // in bytes, of dimensions 1 and up
  uint16_t box[5];       // tiled: elements of a tile in each dimension
  int16_t lower[3], upper[3]; // im2col: corners of the box of pixels, for W, H, D
  uint16_t channels, pixels;  // im2col: of one load
  uint8_t step[5];       // from element to element
  uint8_t rank, element; // bytes of an element
  uint8_t swizzle;       // 0 none, 1 to 3: 32, 64, 128 bytes
  uint8_t fill_nan, im2col;
};
static_assert(sizeof(TensorMap) <= 128, "a CUtensorMap has 128 bytes");

constexpr uint64_t tensor_map_magic = 0x70616d726f736e74;

/// The address at which the byte of shared address `a` really lies: 16-byte pieces are exchanged within 8 rows.
inline uint32_t swizzled(uint32_t a, unsigned swizzle) {
  unsigned mask = (1u << swizzle) - 1;
  return a ^ ((a >> 7 & mask) << 4);
}

} // namespace emu
