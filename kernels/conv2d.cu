// 2-D convolution over NHWC, weights OHWI, f32 sums on the CUDA cores.
//
//   y[n, i, j, o] = b[o] + sum over u, v, c of x[n, i stride - pad + u, j stride - pad + v, c] w[o, u, v, c]
//
// Forward and input gradient are one direct convolution. A block owns a tile of 128 pixels, which may span several
// small images, by 64 or 8 output channels. It copies a few channels of the tile's patch and their weights to shared
// memory, with noise if there is any, adds their products, and goes on to the next channels. A sum's order is
// (channels of a stage, taps, channels in the stage): it depends on the kernel's size and the channels alone, so a
// row's result is the same bits in any batch and for any tile.
#include "direct.cuh"
#include "outer.cuh"

/// y = conv(x, w) + b; with NOISE (1 fast, 2 precise) conv(x + sigma z, w) + b. b may be null. Grid: one block a tile
/// and COLS output channels, in the order of `direct::locate`. Dynamic shared memory: the patch.
// instances: NOISE = 0 1 2; COLS = 8 64
template <class T, int NOISE, int COLS>
KERNEL(128, 3) conv2d_forward(T *y, const T *x, const float *w, const float *b, Direct p, const Row *rows, Draw draw) {
  direct::convolve<T, NOISE, false, COLS>(y, x, w, b, p, rows, draw);
}

/// dx = the adjoint of the convolution applied to dy. Grid and shared memory as above; tiles are cut from the pixels
/// of one phase: with a stride s, pixels that differ by a multiple of s meet the same taps.
// instances: COLS = 8 64
template <class T, int COLS>
KERNEL(128, 3) conv2d_input_grad(T *dx, const T *dy, const float *w, Direct p) {
  direct::convolve<T, 0, true, COLS>(dx, dy, w, nullptr, p, nullptr, Draw{});
}

/// Partial sums of dw[o, u, v, c] = sum over n, i, j of dy[n, i, j, o] x[n, i stride - pad + u, j stride - pad + v, c]
/// and of db[o] = sum of dy, each over a part of the pixels: `partial` is `[splits parts][w]`, then `[splits][c_out]`
/// if p.bias. With NOISE x + sigma z takes the place of x. Grid: one block a split and piece of dw.
// instances: NOISE = 0 1 2
template <class T, int NOISE>
KERNEL(288, 2) conv2d_weight_grad(float *partial, const T *dy, const T *x, Outer p, const Row *rows, Draw draw) {
  outer::accumulate<T, NOISE>(partial, dy, x, p, rows, draw);
}

/// dw += sum over `splits` rows of w_len, db += sum over `bias_splits` rows of c_out. 2^log_lanes threads share an
/// element's rows: each adds up those that are equal modulo their number, and a tree adds the threads'. With VECTOR a
/// thread has four elements; w_len and c_out are multiples of four then. 256 >> log_lanes threads' elements a block.
template <bool VECTOR>
KERNEL(256) conv2d_weight_grad_sum(float *dw, float *db, const float *partial, uint64_t w_len, uint32_t c_out,
                                   uint32_t splits, uint32_t bias_splits, uint32_t log_lanes) {
  outer::add_rows<VECTOR>(dw, db, partial, w_len, c_out, splits, bias_splits, log_lanes);
}
