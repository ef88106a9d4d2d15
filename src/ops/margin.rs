//! The Carlini-Wagner margin on logits.

use crate::error::Result;
use crate::tensor::Tensor;

/// Whether an attack moves away from a class or towards one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// `classes[i]` is the true label: `max(Z_t - max_{i != t} Z_i, -kappa)`.
    Away,
    /// `classes[i]` is the target: `max(max_{i != t} Z_i - Z_t, -kappa)`.
    Towards,
}

/// Margin per row (in f64) and the gradient of the **sum** over rows in the logits, each row's
/// scaled by `weight[i]` (C&W's c). The hinge's gradient is 0 where the margin is at or below `-kappa`.
pub fn forward_backward(
    _logits: &Tensor,
    _classes: &[u32],
    _direction: Direction,
    _kappa: f64,
    _weight: &[f64],
) -> Result<(Vec<f64>, Tensor)> {
    unimplemented!()
}
