// Ensembles over noise draws: `draws` adjacent rows of a batch are one image.
#include "gpu.cuh"
#include "noise.cuh"
#include "rowwise.cuh"
#include "vector.cuh"

/// Softmax's normaliser of a row: `log softmax(z)_k = (z_k - top) - log_rest`. Two numbers, because their
/// sum would lose the digits of `log_rest` where one logit dominates.
struct Normaliser {
  /// The largest logit.
  double top;
  /// `ln(1 + sum of exp(z_i - top) over the others)`.
  double log_rest;
};

template <class T> __device__ __forceinline__ double ensemble_log_p(T z, Normaliser n) {
  return (rowwise::to_f64(z) - n.top) - n.log_rest;
}

/// Each row `draws` times.
template <class T, bool VECTORS>
KERNEL(256) ensemble_repeat(T *y, const T *x, uint64_t len, uint64_t n, uint32_t draws) {
  constexpr int N = VECTORS ? gpu::Vec<T>::N : 1;
  // Threads read consecutive elements once and write them `draws` times.
  uint64_t at = (uint64_t(blockIdx.x) * 256 + threadIdx.x) * N;
  if (at >= n) return;
  uint64_t row = at / len, to = row * draws * len + at % len;
  if constexpr (VECTORS) {
    gpu::Vec<T> v = gpu::load_vec(x + at);
    for (uint32_t j = 0; j < draws; j++) gpu::store_vec_whole(y + to + j * len, v);
  } else {
    T v = x[at];
    for (uint32_t j = 0; j < draws; j++) y[to + j * len] = v;
  }
}

/// Draw j of a row that says draw d is draw `d * draws + j`.
KERNEL(256) ensemble_rows(Row *out, const Row *rows, uint32_t n, uint32_t draws) {
  uint32_t i = blockIdx.x * 256 + threadIdx.x;
  if (i >= n * draws) return;
  Row row = rows[i / draws];
  out[i].id = row.id;
  out[i].draw = row.draw * draws + i % draws;
}

/// Sums groups of `draws` adjacent rows, in their order, in f32.
template <class T, bool VECTORS>
KERNEL(256) ensemble_sum_draws(T *y, const T *x, uint64_t len, uint64_t n, uint32_t draws) {
  constexpr int N = VECTORS ? gpu::Vec<T>::N : 1;
  uint64_t at = (uint64_t(blockIdx.x) * 256 + threadIdx.x) * N;
  if (at >= n) return;
  uint64_t row = at / len, from = row * draws * len + at % len;
  float sum[N], v[N];
#pragma unroll
  for (int k = 0; k < N; k++) sum[k] = 0;
  for (uint32_t j = 0; j < draws; j++) {
    if constexpr (VECTORS)
      vec::load(v, x + from + j * len);
    else
      v[0] = gpu::to_f32(x[from + j * len]);
#pragma unroll
    for (int k = 0; k < N; k++) sum[k] += v[k];
  }
  if constexpr (VECTORS)
    vec::store(y + at, sum);
  else
    y[at] = gpu::from_f32<T>(sum[0]);
}

/// Softmax's normaliser of every row. One warp a row.
template <class T>
KERNEL(256) ensemble_normalisers(Normaliser *out, const T *z, uint32_t rows, uint32_t classes) {
  uint32_t r = blockIdx.x * 8 + rowwise::warp();
  if (r >= rows) return;
  const T *row = z + uint64_t(r) * classes;
  rowwise::Entry top = rowwise::largest(row, classes, classes);
  double rest = rowwise::rest(row, classes, top);
  if (rowwise::lane() == 0) {
    out[r].top = top.value;
    out[r].log_rest = log1p(rest);
  }
}

/// Mean over the draws: the logarithm of the mean probability, or the mean logit. One warp for each image
/// and class; its lanes share the draws.
template <class T, bool LOGITS>
KERNEL(256) ensemble_combine(T *scores, const T *z, const Normaliser *normalisers, uint32_t n, uint32_t draws,
                             uint32_t classes) {
  uint64_t entry = uint64_t(blockIdx.x) * 8 + rowwise::warp();
  if (entry >= uint64_t(n) * classes) return;
  uint64_t first = entry / classes * draws, k = entry % classes;
  double score;
  if constexpr (LOGITS) {
    double sum = 0;
    for (uint32_t j = rowwise::lane(); j < draws; j += 32) sum += rowwise::to_f64(z[(first + j) * classes + k]);
    score = rowwise::warp_sum(sum) / draws;
  } else {
    // log mean_j p_jk, by log-sum-exp: probabilities may underflow.
    double top = -INFINITY;
    for (uint32_t j = rowwise::lane(); j < draws; j += 32)
      top = fmax(top, ensemble_log_p(z[(first + j) * classes + k], normalisers[first + j]));
    top = rowwise::warp_max(top);
    double sum = 0;
    for (uint32_t j = rowwise::lane(); j < draws; j += 32) {
      double log_p = ensemble_log_p(z[(first + j) * classes + k], normalisers[first + j]);
      sum += top == -INFINITY ? log_p : exp(log_p - top);
    }
    sum = rowwise::warp_sum(sum);
    score = top == -INFINITY ? sum : top + log(sum / draws);
  }
  if (rowwise::lane() == 0) scores[entry] = rowwise::from_f64<T>(score);
}

/// Gradient in the draws' scores of a function whose gradient in the mean logits is `g`: `g / draws`.
template <class T>
KERNEL(256) ensemble_logits_backward(T *dz, const T *g, uint64_t n, uint32_t draws, uint32_t classes) {
  uint64_t i = uint64_t(blockIdx.x) * 256 + threadIdx.x;
  if (i >= n) return;
  uint64_t image = i / classes / draws;
  dz[i] = rowwise::from_f64<T>(rowwise::to_f64(g[image * classes + i % classes]) / draws);
}

/// The same for the logarithm of the mean probability: `a_jk = g_k p_jk / sum_i p_ik`,
/// `dz_jk = a_jk - p_jk sum_l a_jl`. One block an image; dynamic shared memory holds `g_k / sum_i p_ik`,
/// `classes` doubles.
template <class T>
KERNEL(256) ensemble_probabilities_backward(T *dz, const T *z, const T *g, const Normaliser *normalisers,
                                            uint32_t draws, uint32_t classes) {
  GPU_DYN_SHARED(bytes);
  double *ratio = reinterpret_cast<double *>(bytes);
  uint64_t image = blockIdx.x, first = image * draws;
#pragma unroll 1
  for (uint32_t k = rowwise::warp(); k < classes; k += 8) {
    double total = 0;
#pragma unroll 1
    for (uint32_t j = rowwise::lane(); j < draws; j += 32)
      total += exp(ensemble_log_p(z[(first + j) * classes + k], normalisers[first + j]));
    total = rowwise::warp_sum(total);
    // A class without any probability has no gradient.
    if (rowwise::lane() == 0) ratio[k] = total > 0 ? rowwise::to_f64(g[image * classes + k]) / total : 0.0;
  }
  __syncthreads();
#pragma unroll 1
  for (uint32_t j = rowwise::warp(); j < draws; j += 8) {
    const T *row = z + (first + j) * classes;
    Normaliser normaliser = normalisers[first + j];
    double sum = 0;
#pragma unroll 1
    for (uint32_t k = rowwise::lane(); k < classes; k += 32) sum += ratio[k] * exp(ensemble_log_p(row[k], normaliser));
    sum = rowwise::warp_sum(sum);
#pragma unroll 1
    for (uint32_t k = rowwise::lane(); k < classes; k += 32) {
      double p = exp(ensemble_log_p(row[k], normaliser));
      dz[(first + j) * classes + k] = rowwise::from_f64<T>(p * (ratio[k] - sum));
    }
  }
}

/// How many of an image's draws chose each class, added to `votes`. One warp for each image and class.
KERNEL(256) ensemble_votes(uint32_t *votes, const uint32_t *predictions, uint32_t n, uint32_t draws,
                           uint32_t classes) {
  uint64_t entry = uint64_t(blockIdx.x) * 8 + rowwise::warp();
  if (entry >= uint64_t(n) * classes) return;
  uint64_t first = entry / classes * draws, k = entry % classes;
  uint32_t count = 0;
  for (uint32_t base = 0; base < draws; base += 32) {
    uint32_t j = base + rowwise::lane();
    count += __popc(__ballot_sync(~0u, j < draws && predictions[first + j] == k));
  }
  if (rowwise::lane() == 0) votes[entry] += count;
}
