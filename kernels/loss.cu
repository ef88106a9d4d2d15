// Softmax and softmax cross-entropy. One warp takes a row of logits; the arithmetic is f64, as on the
// CPU: rows are short and losses are sums of small differences.
#include "gpu.cuh"
#include "rowwise.cuh"
#include "step.cuh"

/// What a run of training steps has seen. Sums of one epoch, begun at 0.
struct Metrics {
  /// Sum over rows, in nats.
  double loss;
  /// Rows whose largest logit is their label's.
  uint64_t correct;
  /// Rows seen.
  uint64_t rows;
  /// Rows whose loss was not finite.
  uint64_t not_finite;
  /// Steps seen.
  uint64_t steps;
  /// The first step, counted from 1, with such a row; 0: none.
  uint64_t first_bad;
};

/// Loss of each row, `-log softmax(z)[label]`, the winning class, and the gradient of the mean loss
/// times `scale`: `dz = (softmax(z) - onehot(label)) / rows * scale`. A label that is no class gives a
/// NaN. Without `scale` it is 1.
template <class T>
KERNEL(256) loss_cross_entropy(T *dlogits, double *losses, uint32_t *predictions, const T *logits,
                               const uint32_t *labels, const LossScale *scale, uint32_t rows, uint32_t classes) {
  uint32_t r = blockIdx.x * 8 + rowwise::warp();
  if (r >= rows) return;
  const T *z = logits + uint64_t(r) * classes;
  T *dz = dlogits + uint64_t(r) * classes;
  uint32_t label = labels[r];
  rowwise::Entry top = rowwise::largest(z, classes, classes);
  double m = top.value, rest = rowwise::rest(z, classes, top);
  double factor = scale ? double(scale->scale) : 1.0;
  for (uint32_t i = rowwise::lane(); i < classes; i += 32) {
    double p = exp(rowwise::to_f64(z[i]) - m) / (1.0 + rest);
    double hit = i == label ? 1.0 : 0.0;
    dz[i] = rowwise::from_f64<T>((p - hit) / double(rows) * factor);
  }
  if (rowwise::lane() == 0) {
    losses[r] = label < classes ? (m - rowwise::to_f64(z[label])) + log1p(rest) : double(NAN);
    predictions[r] = top.at;
  }
}

/// Adds one step to the metrics. One block, so that the sum over rows has one order.
KERNEL(256) loss_metrics(Metrics *metrics, const double *losses, const uint32_t *predictions,
                         const uint32_t *labels, uint32_t rows) {
  GPU_SHARED(double, part, [8]);
  double loss = 0, correct = 0, bad = 0;
  for (uint32_t r = threadIdx.x; r < rows; r += 256) {
    loss += losses[r];
    correct += predictions[r] == labels[r] ? 1.0 : 0.0;
    bad += isfinite(losses[r]) ? 0.0 : 1.0;
  }
  loss = rowwise::block_sum(loss, part);
  correct = rowwise::block_sum(correct, part);
  bad = rowwise::block_sum(bad, part);
  if (threadIdx.x == 0) {
    metrics->loss += loss;
    metrics->correct += uint64_t(correct);
    metrics->rows += rows;
    metrics->not_finite += uint64_t(bad);
    metrics->steps += 1;
    if (bad > 0 && metrics->first_bad == 0) metrics->first_bad = metrics->steps;
  }
}

/// Softmax of each row, or its logarithm.
template <class T, bool LOG>
KERNEL(256) loss_softmax(T *out, const T *logits, uint32_t rows, uint32_t classes) {
  uint32_t r = blockIdx.x * 8 + rowwise::warp();
  if (r >= rows) return;
  const T *z = logits + uint64_t(r) * classes;
  T *y = out + uint64_t(r) * classes;
  rowwise::Entry top = rowwise::largest(z, classes, classes);
  double m = top.value, rest = rowwise::rest(z, classes, top), log_rest = log1p(rest);
  for (uint32_t i = rowwise::lane(); i < classes; i += 32) {
    double d = rowwise::to_f64(z[i]) - m;
    y[i] = rowwise::from_f64<T>(LOG ? d - log_rest : exp(d) / (1.0 + rest));
  }
}

/// Place of the largest entry of each row: the first of equals, of the first NaN if there is one.
template <class T>
KERNEL(256) loss_argmax(uint32_t *out, const T *logits, uint32_t rows, uint32_t classes) {
  uint32_t r = blockIdx.x * 8 + rowwise::warp();
  if (r >= rows) return;
  rowwise::Entry top = rowwise::largest(logits + uint64_t(r) * classes, classes, classes);
  if (rowwise::lane() == 0) out[r] = top.at;
}
