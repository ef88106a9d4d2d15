// The weight gradient of conv2d.cu on tensor cores, for the 16-bit types; f32 sums.
#include "weight_mma.cuh"

/// Partial sums of dw[o, u, v, c] = sum over n, i, j of dy[n, i, j, o] x[n, i stride - pad + u, j stride - pad + v, c]
/// and of db[o] = sum of dy, each over a part of the pixels: dw is `[splits][w]`, db `[splits][c_out]`. Of one split
/// they are added to what is there. With NOISE (1 fast, 2 precise) x + sigma z takes the place of x. With SKIP a tile
/// has 16 images of each position, and taps that lie on padding there are left out. Grid: one block a split and piece
/// of dw. Dynamic shared memory: p.shared bytes.
// instances: T = bf16 f16; NOISE = 0 1 2
template <class T, int NOISE, bool SKIP>
KERNEL(256) conv2d_mma_weight_grad(float *dw, float *db, const T *dy, const T *x, WeightGrad p, const Row *rows,
                                   Draw draw) {
  weight_mma::accumulate<T, NOISE, SKIP>(dw, db, dy, x, p, rows, draw);
}
