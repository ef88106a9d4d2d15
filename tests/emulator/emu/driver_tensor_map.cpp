// The driver API: tensor maps, with the checks of their encoders.
#include "driver.h"
#include "tensor_map.h"
#include <cstring>

using namespace emu;

namespace {
struct Common {
  const char *name;
  int type, interleave, swizzle, promotion, fill;
  uint32_t rank;
  void *address;
  const uint64_t *dim, *stride;
  const uint32_t *step;
};
} // namespace

// What both encoders ask for.
static int encode(TensorMap &map, const Common &c) {
  // CU_TENSOR_MAP_DATA_TYPE_*: the packed types of fewer than 8 bits are not emulated.
  static const uint8_t sizes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  if (c.type < 0 || c.type > 12) return refuse(NOT_SUPPORTED, "%s: data type %d", c.name, c.type);
  if (c.interleave) return refuse(NOT_SUPPORTED, "%s: interleaved layouts", c.name);
  if (c.swizzle < 0 || c.swizzle > 3) return refuse(NOT_SUPPORTED, "%s: swizzle %d", c.name, c.swizzle);
  auto bad = [&](const char *what, unsigned i, unsigned long long value) {
    return refuse(INVALID_VALUE, "%s: %s[%u] = %llu", c.name, what, i, value);
  };
  if (reinterpret_cast<uintptr_t>(c.address) % 16)
    return refuse(INVALID_VALUE, "%s: the address is not 16-byte aligned", c.name);
  bool integer = c.type < 6;
  if (c.fill && integer) return refuse(INVALID_VALUE, "%s: NaN fill of integers", c.name);
  map = TensorMap();
  map.magic = tensor_map_magic;
  map.address = static_cast<char *>(c.address);
  map.rank = uint8_t(c.rank);
  map.element = sizes[c.type];
  map.swizzle = uint8_t(c.swizzle);
  map.fill_nan = c.fill != 0;
  for (unsigned i = 0; i < c.rank; i++) {
    if (c.dim[i] == 0 || c.dim[i] >= 1ull << 32) return bad("globalDim", i, c.dim[i]);
    if (c.step[i] == 0 || c.step[i] > 8) return bad("elementStrides", i, c.step[i]);
    map.dim[i] = uint32_t(c.dim[i]);
    // Without interleaving the innermost one is ignored.
    map.step[i] = uint8_t(i == 0 ? 1 : c.step[i]);
    if (i + 1 == c.rank) continue;
    // The documentation has every stride a multiple of the one before; the driver asks for less, and strides that do
    // not ascend are in wide use (heads inside of a sequence, for one).
    if (c.stride[i] % 16 || c.stride[i] >= 1ull << 40 || c.stride[i] < c.dim[0] * map.element)
      return bad("globalStrides", i, c.stride[i]);
    map.stride[i] = c.stride[i];
  }
  return SUCCESS;
}

// The innermost extent in shared memory, in bytes.
static int check_row(const Common &c, uint64_t bytes) {
  if (bytes % 16) return refuse(INVALID_VALUE, "%s: rows of %llu bytes, not a multiple of 16", c.name, (unsigned long long)bytes);
  if (c.swizzle && bytes != 16u << c.swizzle)
    return refuse(INVALID_VALUE, "%s: rows of %llu bytes: emulated only as wide as the swizzle, %u", c.name,
                  (unsigned long long)bytes, 16u << c.swizzle);
  return SUCCESS;
}

EMU_API cuTensorMapEncodeTiled(void *out, int type, uint32_t rank, void *address, const uint64_t *dim,
                               const uint64_t *stride, const uint32_t *box, const uint32_t *step, int interleave,
                               int swizzle, int promotion, int fill) {
  const char *name = "cuTensorMapEncodeTiled";
  if (rank < 1 || rank > 5) return refuse(INVALID_VALUE, "%s: rank %u", name, rank);
  Common c{name, type, interleave, swizzle, promotion, fill, rank, address, dim, stride, step};
  TensorMap map;
  if (int r = encode(map, c)) return r;
  for (uint32_t i = 0; i < rank; i++) {
    if (box[i] == 0 || box[i] > 256) return refuse(INVALID_VALUE, "%s: boxDim[%u] = %u", name, i, box[i]);
    // A step of s loads every s-th element of the box.
    map.box[i] = uint16_t((box[i] + map.step[i] - 1u) / map.step[i]);
  }
  if (int r = check_row(c, uint64_t(box[0]) * map.element)) return r;
  memset(out, 0, 128);
  memcpy(out, &map, sizeof map);
  return SUCCESS;
}

EMU_API cuTensorMapEncodeIm2col(void *out, int type, uint32_t rank, void *address, const uint64_t *dim,
                                const uint64_t *stride, const int *lower, const int *upper, uint32_t channels,
                                uint32_t pixels, const uint32_t *step, int interleave, int swizzle, int promotion,
                                int fill) {
  const char *name = "cuTensorMapEncodeIm2col";
  if (rank < 3 || rank > 5) return refuse(INVALID_VALUE, "%s: rank %u", name, rank);
  Common c{name, type, interleave, swizzle, promotion, fill, rank, address, dim, stride, step};
  TensorMap map;
  if (int r = encode(map, c)) return r;
  map.im2col = 1;
  // The corners have 16 bits together in each dimension's field.
  int most = rank == 3 ? 32767 : rank == 4 ? 127 : 15;
  for (uint32_t i = 0; i < rank - 2; i++) {
    if (lower[i] < -most - 1 || lower[i] > most || upper[i] < -most - 1 || upper[i] > most)
      return refuse(INVALID_VALUE, "%s: corners[%u] = %d, %d", name, i, lower[i], upper[i]);
    map.lower[i] = int16_t(lower[i]);
    map.upper[i] = int16_t(upper[i]);
  }
  if (channels == 0 || channels > 256) return refuse(INVALID_VALUE, "%s: channelsPerPixel = %u", name, channels);
  if (pixels == 0 || pixels > 1024) return refuse(INVALID_VALUE, "%s: pixelsPerColumn = %u", name, pixels);
  map.channels = uint16_t(channels);
  map.pixels = uint16_t(pixels);
  if (int r = check_row(c, uint64_t(channels) * map.element)) return r;
  memset(out, 0, 128);
  memcpy(out, &map, sizeof map);
  return SUCCESS;
}

EMU_API cuTensorMapReplaceAddress(void *map, void *address) {
  if (reinterpret_cast<uintptr_t>(address) % 16)
    return refuse(INVALID_VALUE, "cuTensorMapReplaceAddress: the address is not 16-byte aligned");
  static_cast<TensorMap *>(map)->address = static_cast<char *>(address);
  return SUCCESS;
}
