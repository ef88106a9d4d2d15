//! Softmax and softmax cross-entropy.

use crate::error::Result;
use crate::tensor::Tensor;

/// Loss per row, in nats (f64, from a stable log-sum-exp), and the gradient of the **mean** over
/// rows in the logits. logits `[n, 1, 1, classes]`, labels `n` class indices.
pub fn cross_entropy(_logits: &Tensor, _labels: &[u32]) -> Result<(Vec<f64>, Tensor)> {
    unimplemented!()
}
/// Softmax of each row.
pub fn softmax(_logits: &Tensor) -> Result<Tensor> {
    unimplemented!()
}
/// Logarithm of the softmax of each row.
pub fn log_softmax(_logits: &Tensor) -> Result<Tensor> {
    unimplemented!()
}
/// Index of the largest entry of each row (the first of equals).
pub fn argmax(_logits: &Tensor) -> Result<Vec<u32>> {
    unimplemented!()
}
