// The Carlini-Wagner margin (Carlini and Wagner 2017, f_6). One warp takes a row of logits.
#include "gpu.cuh"
#include "margin.cuh"
#include "rowwise.cuh"

/// Away from class t: `margin = max(Z_t - max_{i != t} Z_i, -kappa)`; towards it the difference has
/// the other sign. Gradient of the sum over rows of `weight[r] * scale * margin[r]`, 0 where the hinge
/// holds; of equally large other classes the first gets it. Without `weight` it is 1.
template <class T>
KERNEL(256) margin_forward_backward(T *dlogits, Margin *margins, const T *logits, const uint32_t *classes,
                                    const double *weight, uint32_t rows, uint32_t count, bool towards,
                                    double kappa, float scale) {
  uint32_t r = blockIdx.x * 8 + rowwise::warp();
  if (r >= rows) return;
  const T *z = logits + uint64_t(r) * count;
  T *dz = dlogits + uint64_t(r) * count;
  uint32_t t = classes[r];
  rowwise::Entry other = rowwise::largest(z, count, t);
  rowwise::Entry own = {t < count ? gpu::to_f32(z[t]) : NAN, t};
  double sign = towards ? -1.0 : 1.0;
  double margin = sign * (double(own.value) - double(other.value));
  bool hinged = margin <= -kappa;
  double d = sign * (weight ? weight[r] : 1.0) * double(scale);
  double bad = 0;
  for (uint32_t i = rowwise::lane(); i < count; i += 32) {
    dz[i] = rowwise::from_f64<T>(hinged ? 0.0 : i == t ? d : i == other.at ? -d : 0.0);
    bad += isfinite(gpu::to_f32(z[i])) ? 0.0 : 1.0;
  }
  bad = rowwise::warp_sum(bad);
  if (rowwise::lane() == 0) {
    margins[r].value = hinged ? -kappa : margin;
    margins[r].met = hinged && rowwise::beats(own, other) == towards;
    margins[r].not_finite = uint32_t(bad);
  }
}
