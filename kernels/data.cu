// Batches from a data set on the device, cropped and flipped.
#include "data.cuh"
#include "gpu.cuh"
#include "noise.cuh"
#include "step.cuh"

/// Rows `first = cursor->batch * stride` and following of the plan: the image at `index`, padded, cropped
/// and mirrored, `f32(byte) / 255` where the data set is of bytes; its label; its noise's name.
///
/// Pixel (y, x) of a row is pixel (y + dy, x' + dx) of the image, `x' = flip ? w - 1 - x : x`, and 0
/// outside of it. A thread makes a 16-byte vector of a row, or as many single elements where rows are not
/// made of vectors; `blocks` blocks share a row.
template <class T, bool U8, bool VECTORS>
KERNEL(256) data_gather(T *x, uint32_t *labels, Row *rows, const uint8_t *bytes, const float *floats,
                        const uint32_t *all_labels, const Pick *plan, uint64_t planned, const Cursor *cursor,
                        uint32_t stride, uint32_t h, uint32_t w, uint32_t c, uint32_t blocks) {
  constexpr int N = gpu::Vec<T>::N;
  uint32_t row = blockIdx.x / blocks, block = blockIdx.x % blocks;
  // A cursor past the plan stays within it.
  Pick pick = plan[min(uint64_t(cursor->batch) * stride + row, planned - 1)];
  if (block == 0 && threadIdx.x == 0) {
    labels[row] = all_labels[pick.index];
    rows[row].id = pick.id;
    rows[row].draw = cursor->draw;
  }
  uint32_t len = h * w * c, first = (block * 256 + threadIdx.x) * N;
  if (first >= len) return;
  uint32_t y = first / (w * c), column = first / c % w, channel = first % c;
  uint64_t image = uint64_t(pick.index) * len;
  gpu::Vec<T> out;
#pragma unroll
  for (int j = 0; j < N; j++) {
    int32_t from_y = int32_t(y) + pick.dy;
    int32_t from_x = int32_t(pick.flip ? w - 1 - column : column) + pick.dx;
    bool inside = from_y >= 0 && from_y < int32_t(h) && from_x >= 0 && from_x < int32_t(w);
    float value = 0;
    if (inside && first + j < len) {
      uint64_t at = image + (uint64_t(from_y) * w + from_x) * c + channel;
      value = U8 ? float(bytes[at]) / 255.0f : floats[at];
    }
    out.v[j] = gpu::from_f32<T>(value);
    if (++channel == c) {
      channel = 0;
      if (++column == w) {
        column = 0;
        y++;
      }
    }
  }
  T *to = x + uint64_t(row) * len + first;
  if constexpr (VECTORS) {
    gpu::store_vec(to, out);
  } else {
#pragma unroll
    for (int j = 0; j < N; j++)
      if (first + j < len) to[j] = out.v[j];
  }
}
