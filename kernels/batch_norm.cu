// Batch normalisation over channels with an optional (bounded) ReLU; NHWC, the definition is in
// src/ops/batch_norm. Sums: in f32 over at most `each` pixels a thread, in f32 by a tree in the block, in
// f64 over the blocks; always in the same order, which depends on the shape alone.
#include "norm.cuh"

/// A block's share of the statistics: `partial` is [chunks, 3, c], the first pixel's value k, mean - k and
/// the sum of squared deviations from the mean.
///
/// A thread adds up deviations from its own first value, which is one of its values: so the cancellation in
/// sum (x - k)^2 - (sum (x - k))^2 / n costs no more than a factor n, at most 64. Threads are merged as in
/// Chan, Golub and LeVeque 1979.
template <class T, bool VECTOR>
KERNEL(256) batch_norm_statistics(float *partial, const T *x, Span span) {
  GPU_SHARED(float, tile, [2][8][256]);
  GPU_SHARED(float, counts, [256]);
  GPU_SHARED(float, origin, [8][32]);
  Place<VECTOR> p = place<VECTOR>(span);
  uint32_t n = pixel_count(span, p);
  float first[8] = {}, mean[8] = {}, m2[8] = {};
  if (n > 0) load8(first, x + offset(span, p, p.first), p);
#pragma unroll 4
  for (uint32_t i = 1; i < n; i++) {
    float v[8];
    load8(v, x + offset(span, p, p.first + i * p.rows), p);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float d = v[j] - first[j];
      mean[j] += d;
      m2[j] = fmaf(d, d, m2[j]);
    }
  }
  if (p.row == 0) {
#pragma unroll
    for (int j = 0; j < 8; j++) origin[j][p.lane] = first[j];
  }
  __syncthreads();
  float count = (float)n;
  if (n > 0) {
    float inverse = 1.0f / count;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float sum = mean[j];
      float squares = fmaf(-sum, sum * inverse, m2[j]);
      m2[j] = squares < 0.0f ? 0.0f : squares;  // a maximum would lose a NaN
      mean[j] = (first[j] - origin[j][p.lane]) + sum * inverse;
    }
  }
  for (uint32_t half = p.rows / 2; half > 0; half /= 2) {
    if (p.row >= half && p.row < 2 * half) {
      counts[threadIdx.x] = count;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        tile[0][j][threadIdx.x] = mean[j];
        tile[1][j][threadIdx.x] = m2[j];
      }
    }
    __syncthreads();
    uint32_t other = threadIdx.x + half * (256 / p.rows);
    if (p.row < half && counts[other] > 0.0f) {
      // Rows further down never have more pixels: this one has some.
      float theirs = counts[other], total = count + theirs, part = theirs / total;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        float delta = tile[0][j][other] - mean[j];
        mean[j] = fmaf(delta, part, mean[j]);
        m2[j] += fmaf(delta * delta, count * part, tile[1][j][other]);
      }
      count = total;
    }
  }
  if (p.row == 0) {
    float *out = partial + (uint64_t)blockIdx.x * 3 * span.c + 8 * p.group;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      if (j < (int)p.count) {
        out[j] = first[j];
        out[span.c + j] = mean[j];
        out[2 * span.c + j] = m2[j];
      }
    }
  }
}

/// A thread's share of one channel's parts of the statistics: every `step`-th of `first .. end`. `partial` is
/// [chunks, 3, c]; a part is of `counts[i]` pixels, without counts (null) of `chunk`, but for the last.
struct Share {
  const float *partial;  // at the channel
  const uint32_t *counts;
  uint32_t pixels, c, chunk, first, end, step;

  __device__ __forceinline__ uint32_t count(uint32_t i) const {
    return counts ? counts[i] : min(chunk, pixels - i * chunk);
  }
  __device__ __forceinline__ const float *at(uint32_t i) const { return partial + (uint64_t)i * 3 * c; }

  /// Sum over its pixels, and their number. A part without pixels may hold anything.
  __device__ __forceinline__ double sum(uint32_t &own) const {
    double sum = 0.0;
    own = 0;
    for (uint32_t i = first; i < end; i += step) {
      const uint32_t n = count(i);
      if (n > 0) sum += (double)n * ((double)at(i)[0] + (double)at(i)[c]);
      own += n;
    }
    return sum;
  }

  /// Sum of squared deviations from `mean`.
  __device__ __forceinline__ double squares(double mean) const {
    double squares = 0.0;
    for (uint32_t i = first; i < end; i += step) {
      const uint32_t n = count(i);
      if (n == 0) continue;
      const double d = (double)at(i)[0] + (double)at(i)[c] - mean;
      squares += (double)at(i)[2 * c] + (double)n * (d * d);
    }
    return squares;
  }
};

/// Many parts are merged in two steps: GROUP of them by a block of 32 channels, then what is left.
constexpr uint32_t GROUP = 64;

/// Sum over the eight threads of each of a block's 32 channels, in every one of them.
__device__ __forceinline__ double sum_group(double v, double (&tile)[256]) {
  tile[threadIdx.x] = v;
  __syncthreads();
  for (uint32_t half = 128; half >= 32; half /= 2) {
    if (threadIdx.x < half) tile[threadIdx.x] += tile[threadIdx.x + half];
    __syncthreads();
  }
  double sum = tile[threadIdx.x % 32];
  __syncthreads();
  return sum;
}

/// Statistics of GROUP parts each, `merged` and `merged_counts`, in the form of `partial` and `counts`; those are as
/// batch_norm_finish takes them. The mean is stored as a float and what it lacks. Grid: groups, 32 channels each.
KERNEL(256) batch_norm_merge(float *merged, uint32_t *merged_counts, const float *partial, const uint32_t *counts,
                             uint32_t pixels, uint32_t c, uint32_t chunks, uint32_t chunk) {
  GPU_SHARED(double, tile, [256]);
  const uint32_t channel = blockIdx.y * 32 + threadIdx.x % 32;
  const uint32_t end = channel < c ? min(chunks, (blockIdx.x + 1) * GROUP) : 0;
  const Share share = {partial + channel, counts, pixels, c, chunk, blockIdx.x * GROUP + threadIdx.x / 32, end, 8};
  uint32_t own;
  const double sum = share.sum(own);
  const double count = sum_group((double)own, tile), m = sum_group(sum, tile) / (count > 0.0 ? count : 1.0);
  const double squares = sum_group(share.squares(m), tile);
  if (threadIdx.x >= 32 || channel >= c) return;
  float *out = merged + (uint64_t)blockIdx.x * 3 * c + channel;
  out[0] = (float)m;
  out[c] = (float)(m - (double)(float)m);
  out[2 * c] = (float)squares;
  if (channel == 0) merged_counts[blockIdx.x] = (uint32_t)count;
}

/// Sums of GROUP rows each of `partial` [rows, c]: `merged` is [rows / GROUP, c]. Grid as above.
KERNEL(256) batch_norm_merge_sums(float *merged, const float *partial, uint32_t c, uint32_t rows) {
  GPU_SHARED(double, tile, [256]);
  uint32_t channel = blockIdx.y * 32 + threadIdx.x % 32, end = min(rows, (blockIdx.x + 1) * GROUP);
  double sum = 0.0;
  if (channel < c)
    for (uint32_t i = blockIdx.x * GROUP + threadIdx.x / 32; i < end; i += 8) sum += (double)partial[(uint64_t)i * c + channel];
  sum = sum_group(sum, tile);
  if (threadIdx.x < 32 && channel < c) merged[(uint64_t)blockIdx.x * c + channel] = (float)sum;
}

/// Channels of a block of the last step: few, so that many threads share a channel's parts and no thread waits for
/// memory often.
constexpr uint32_t MERGED = 2;
constexpr uint32_t SLOTS = 256 / MERGED;

/// Sum over the threads of each of a block's channels, in every one of them.
__device__ __forceinline__ double sum_chunks(double v, double (&tile)[256]) {
  tile[threadIdx.x] = v;
  __syncthreads();
  for (uint32_t half = 128; half >= MERGED; half /= 2) {
    if (threadIdx.x < half) tile[threadIdx.x] += tile[threadIdx.x + half];
    __syncthreads();
  }
  double sum = tile[threadIdx.x % MERGED];
  __syncthreads();
  return sum;
}

/// All parts of the statistics merged, `partial` being [chunks, 3, c]: mean and 1 / sqrt(var + eps) with the
/// biased variance; the running estimates move by `momentum`, the variance to the unbiased one. A part is of
/// `counts[i]` pixels, without counts (null) of `chunk`, but for the last. MERGED channels a block.
KERNEL(256) batch_norm_finish(float *mean, float *inv_std, float *running_mean, float *running_var,
                              const float *partial, const uint32_t *counts, uint32_t pixels, uint32_t c,
                              uint32_t chunks, uint32_t chunk, double momentum, double eps) {
  GPU_SHARED(double, tile, [256]);
  const uint32_t channel = blockIdx.x * MERGED + threadIdx.x % MERGED;
  const uint32_t end = channel < c ? chunks : 0;
  const Share share = {partial + channel, counts, pixels, c, chunk, threadIdx.x / MERGED, end, SLOTS};
  uint32_t own;
  const double m = sum_chunks(share.sum(own), tile) / pixels;
  const double squares = sum_chunks(share.squares(m), tile);
  if (threadIdx.x >= MERGED || channel >= c) return;
  mean[channel] = (float)m;
  inv_std[channel] = (float)(1.0 / sqrt(squares / pixels + eps));
  running_mean[channel] = (float)((1.0 - momentum) * running_mean[channel] + momentum * m);
  running_var[channel] = (float)((1.0 - momentum) * running_var[channel] + momentum * (squares / (pixels - 1.0)));
}

/// 1 / sqrt(var + eps).
KERNEL(256) batch_norm_inv_std(float *inv_std, const float *var, uint32_t c, double eps) {
  uint32_t i = blockIdx.x * 256 + threadIdx.x;
  if (i < c) inv_std[i] = (float)(1.0 / sqrt((double)var[i] + eps));
}

/// Part of the convolution in front of it: w' = w gamma inv_std, b' = (b - mean) gamma inv_std + beta,
/// inv_std = 1 / sqrt(var + eps); in f64, rounded once. `row` weights an output channel, `n` in all; b, and
/// gamma with beta, may be null.
KERNEL(256) batch_norm_fold(float *folded, float *shift, const float *w, const float *b, const float *gamma,
                            const float *beta, const float *mean, const float *var, uint64_t row, uint64_t n,
                            double eps) {
  uint64_t i = (uint64_t)blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  uint64_t c = i / row;
  double scale = (gamma ? (double)gamma[c] : 1.0) / sqrt((double)var[c] + eps);
  folded[i] = (float)((double)w[i] * scale);
  if (i % row == 0) {
    double from = (b ? (double)b[c] : 0.0) - (double)mean[c];
    shift[c] = (float)fma(from, scale, beta ? (double)beta[c] : 0.0);
  }
}

/// y = min(max((x - mean) gamma inv_std + beta, low), cap)
template <class T, bool VECTOR>
KERNEL(256) batch_norm_forward(T *y, const T *x, const float *mean, const float *inv_std, const float *gamma,
                               const float *beta, Span span, float low, float cap) {
  Place<VECTOR> p = place<VECTOR>(span);
  uint32_t n = pixel_count(span, p);
  if (n == 0) return;
  Normalise norm(mean, inv_std, gamma, beta, p);
  Raw8<T> next = load_raw(x + offset(span, p, p.first), p);
  for (uint32_t i = 0; i < n; i++) {
    uint32_t pixel = p.first + i * p.rows;
    float v[8];
    unpack(v, next);
    if (i + 1 < n) next = load_raw(x + offset(span, p, pixel + p.rows), p);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = clip(norm.value(v[j], j), low, cap);
    store8(y + offset(span, p, pixel), v, p);
  }
}

/// A block's share of sum g and sum g (x - mean), `partial` is [chunks, 2, c]; g is the gradient in front of
/// the activation, dy where the forward value lies between its bounds.
template <class T, bool VECTOR>
KERNEL(256) batch_norm_sums(float *partial, const T *dy, const T *x, const float *mean, const float *inv_std,
                            const float *gamma, const float *beta, Span span, float low, float cap) {
  GPU_SHARED(float, tile, [2][8][256]);
  Place<VECTOR> p = place<VECTOR>(span);
  uint32_t n = pixel_count(span, p);
  Normalise norm(mean, inv_std, gamma, beta, p);
  float sum_g[8] = {}, sum_gx[8] = {};
#pragma unroll 2
  for (uint32_t i = 0; i < n; i++) {
    uint64_t at = offset(span, p, p.first + i * p.rows);
    float v[8], g[8];
    load8(g, dy + at, p);
    load8(v, x + at, p);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      if (!passes(norm.value(v[j], j), low, cap)) g[j] = 0.0f;
      sum_g[j] += g[j];
      sum_gx[j] = fmaf(g[j], __fsub_rn(v[j], norm.mean[j]), sum_gx[j]);
    }
  }
  sum_rows(sum_g, sum_gx, p, tile);
  store_sums(partial, sum_g, sum_gx, span, p);
}

/// All blocks' sums: dgamma += sum(g xhat), dbeta += sum(g) if given, and `through` [2, c], what passes
/// through the batch's statistics: a = scale mean(g), b = scale mean(g xhat) inv_std. MERGED channels a block.
KERNEL(256) batch_norm_finish_sums(float *dgamma, float *dbeta, float *through, const float *partial,
                                   const float *inv_std, const float *gamma, uint32_t pixels, uint32_t c,
                                   uint32_t chunks) {
  GPU_SHARED(double, tile, [256]);
  uint32_t channel = blockIdx.x * MERGED + threadIdx.x % MERGED;
  double sum_g = 0.0, sum_gx = 0.0;
  if (channel < c) {
    for (uint32_t i = threadIdx.x / MERGED; i < chunks; i += SLOTS) {
      const float *at = partial + (uint64_t)i * 2 * c + channel;
      sum_g += (double)at[0];
      sum_gx += (double)at[c];
    }
  }
  sum_g = sum_chunks(sum_g, tile);
  sum_gx = sum_chunks(sum_gx, tile);
  if (threadIdx.x >= MERGED || channel >= c) return;
  double s = (double)inv_std[channel];
  if (dgamma) {
    dgamma[channel] += (float)(sum_gx * s);
    dbeta[channel] += (float)sum_g;
  }
  double scale = (gamma ? (double)(gamma[channel] * inv_std[channel]) : s) / pixels;
  through[channel] = (float)(scale * sum_g);
  through[c + channel] = (float)(scale * sum_gx * s * s);
}

/// dx = scale g - a - b (x - mean) through the batch's statistics, dx = scale g through running ones (not
/// BATCH; `through` is null then). dx may be dy.
template <class T, bool VECTOR, bool BATCH>
KERNEL(256) batch_norm_backward(T *dx, const T *dy, const T *x, const float *mean, const float *inv_std,
                                const float *gamma, const float *beta, const float *through, Span span, float low,
                                float cap) {
  Place<VECTOR> p = place<VECTOR>(span);
  uint32_t n = pixel_count(span, p);
  if (n == 0) return;
  NormaliseBackward<BATCH> norm(mean, inv_std, gamma, beta, through, span, p);
  // dx may be dy: the next pixel of both is read before this one is written.
  Raw8<T> next_g = load_raw(dy + offset(span, p, p.first), p), next_x = load_raw(x + offset(span, p, p.first), p);
  for (uint32_t i = 0; i < n; i++) {
    uint64_t at = offset(span, p, p.first + i * p.rows);
    float v[8], g[8];
    unpack(g, next_g);
    unpack(v, next_x);
    if (i + 1 < n) {
      uint64_t next = offset(span, p, p.first + (i + 1) * p.rows);
      next_g = load_raw(dy + next, p);
      next_x = load_raw(x + next, p);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) g[j] = norm.gradient(passes(norm.value(v[j], j), low, cap) ? g[j] : 0.0f, v[j], j);
    store8(dx + at, g, p);
  }
}
