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

/// Sums of a channel's values over the threads of a block that share it, in every one of the first CHANNELS threads:
/// thread t has channel t % CHANNELS. Always in the same order.
template <uint32_t CHANNELS, int K>
__device__ __forceinline__ void sum_channels(double (&v)[K], double (&tile)[K][8][CHANNELS]) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (uint32_t d = 16; d >= CHANNELS; d /= 2) {
#pragma unroll
    for (int k = 0; k < K; k++) v[k] += __shfl_xor_sync(0xffffffffu, v[k], d);
  }
  if (lane < CHANNELS) {
#pragma unroll
    for (int k = 0; k < K; k++) tile[k][warp][lane] = v[k];
  }
  __syncthreads();
  if (threadIdx.x >= CHANNELS) return;
#pragma unroll
  for (int k = 0; k < K; k++) {
#pragma unroll
    for (int w = 1; w < 8; w++) v[k] += tile[k][w][lane];
  }
}

/// Parts of one channel's statistics. `partial` is [chunks, 3, c]; a part is of `counts[i]` pixels, without counts
/// (null) of `chunk`, but for the last. A part without pixels may hold anything.
struct Parts {
  const float *partial;  // at the channel
  const uint32_t *counts;
  uint32_t pixels, c, chunk;

  __device__ __forceinline__ uint32_t count(uint32_t i) const {
    return counts ? counts[i] : min(chunk, pixels - i * chunk);
  }
  __device__ __forceinline__ const float *at(uint32_t i) const { return partial + (uint64_t)i * 3 * c; }

  /// About where the values lie: deviations from it are small where those from the mean are.
  __device__ __forceinline__ double origin(uint32_t i) const {
    return count(i) > 0 ? (double)at(i)[0] + (double)at(i)[c] : 0.0;
  }

  /// Adds up every `step`-th of `first .. end`: pixels, and sum and sum of squares of their deviations from `origin`.
  /// In f64 the squares of the parts' means cost no digit of the f32 that is wanted.
  __device__ __forceinline__ void add(double (&to)[3], double origin, uint32_t first, uint32_t end, uint32_t step) const {
#pragma unroll 8
    for (uint32_t i = first; i < end; i += step) {
      const uint32_t n = count(i);
      const float first_value = at(i)[0], mean = at(i)[c], squares = at(i)[2 * c];
      const double d = n > 0 ? (double)first_value + (double)mean - origin : 0.0;
      to[0] += n;
      to[1] += n * d;
      to[2] += n > 0 ? fma(n * d, d, (double)squares) : 0.0;
    }
  }
};

/// The sum of squared deviations from the mean, of sums that Parts::add made.
__device__ __forceinline__ double squares(const double (&sums)[3], double count) {
  const double v = fma(-sums[1], sums[1] / count, sums[2]);
  return v < 0.0 ? 0.0 : v;  // a maximum would lose a NaN
}

/// Many parts are merged in two steps: GROUP of them by a block of 32 channels, then what is left.
constexpr uint32_t GROUP = 64;

/// Statistics of GROUP parts each, `merged` and `merged_counts`, in the form of `partial` and `counts`; those are as
/// batch_norm_finish takes them. The mean is stored as a float and what it lacks. Grid: groups, 32 channels each.
KERNEL(256) batch_norm_merge(float *merged, uint32_t *merged_counts, const float *partial, const uint32_t *counts,
                             uint32_t pixels, uint32_t c, uint32_t chunks, uint32_t chunk) {
  GPU_SHARED(double, tile, [3][8][32]);
  const uint32_t channel = blockIdx.y * 32 + threadIdx.x % 32, first = blockIdx.x * GROUP;
  const Parts parts = {partial + channel, counts, pixels, c, chunk};
  double sums[3] = {}, origin = 0.0;
  if (channel < c) {
    origin = parts.origin(first);
    parts.add(sums, origin, first + threadIdx.x / 32, min(chunks, first + GROUP), 8);
  }
  sum_channels<32>(sums, tile);
  if (threadIdx.x >= 32 || channel >= c) return;
  const double count = sums[0] > 0.0 ? sums[0] : 1.0, m = origin + sums[1] / count;
  float *out = merged + (uint64_t)blockIdx.x * 3 * c + channel;
  out[0] = (float)m;
  out[c] = (float)(m - (double)(float)m);
  out[2 * c] = (float)squares(sums, count);
  if (channel == 0) merged_counts[blockIdx.x] = (uint32_t)sums[0];
}

/// Sums of GROUP rows each of `partial` [rows, c]: `merged` is [rows / GROUP, c]. Grid as above.
KERNEL(256) batch_norm_merge_sums(float *merged, const float *partial, uint32_t c, uint32_t rows) {
  GPU_SHARED(double, tile, [1][8][32]);
  uint32_t channel = blockIdx.y * 32 + threadIdx.x % 32, end = min(rows, (blockIdx.x + 1) * GROUP);
  double sum[1] = {};
  if (channel < c) {
#pragma unroll 8
    for (uint32_t i = blockIdx.x * GROUP + threadIdx.x / 32; i < end; i += 8) sum[0] += (double)partial[(uint64_t)i * c + channel];
  }
  sum_channels<32>(sum, tile);
  if (threadIdx.x < 32 && channel < c) merged[(uint64_t)blockIdx.x * c + channel] = (float)sum[0];
}

/// Channels of a block of the last step: few, so that many threads share a channel's parts and no thread waits for
/// memory often.
constexpr uint32_t MERGED = 2;
constexpr uint32_t SLOTS = 256 / MERGED;

/// All parts of the statistics merged, `partial` being [chunks, 3, c]: mean and 1 / sqrt(var + eps) with the
/// biased variance; the running estimates move by `momentum`, the variance to the unbiased one. A part is of
/// `counts[i]` pixels, without counts (null) of `chunk`, but for the last. MERGED channels a block.
KERNEL(256) batch_norm_finish(float *mean, float *inv_std, float *running_mean, float *running_var,
                              const float *partial, const uint32_t *counts, uint32_t pixels, uint32_t c,
                              uint32_t chunks, uint32_t chunk, double momentum, double eps) {
  GPU_SHARED(double, tile, [3][8][MERGED]);
  const uint32_t channel = blockIdx.x * MERGED + threadIdx.x % MERGED;
  const Parts parts = {partial + channel, counts, pixels, c, chunk};
  double sums[3] = {}, origin = 0.0;
  if (channel < c) {
    origin = parts.origin(0);
    parts.add(sums, origin, threadIdx.x / MERGED, chunks, SLOTS);
  }
  sum_channels<MERGED>(sums, tile);
  if (threadIdx.x >= MERGED || channel >= c) return;
  const double m = origin + sums[1] / pixels, var = squares(sums, pixels);
  mean[channel] = (float)m;
  inv_std[channel] = (float)(1.0 / sqrt(var / pixels + eps));
  running_mean[channel] = (float)((1.0 - momentum) * running_mean[channel] + momentum * m);
  running_var[channel] = (float)((1.0 - momentum) * running_var[channel] + momentum * (var / (pixels - 1.0)));
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
  GPU_SHARED(double, tile, [2][8][MERGED]);
  uint32_t channel = blockIdx.x * MERGED + threadIdx.x % MERGED;
  double sums[2] = {};
  if (channel < c) {
    for (uint32_t i = threadIdx.x / MERGED; i < chunks; i += SLOTS) {
      const float *at = partial + (uint64_t)i * 2 * c + channel;
      sums[0] += (double)at[0];
      sums[1] += (double)at[c];
    }
  }
  sum_channels<MERGED>(sums, tile);
  if (threadIdx.x >= MERGED || channel >= c) return;
  const double sum_g = sums[0], sum_gx = sums[1], s = (double)inv_std[channel];
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
