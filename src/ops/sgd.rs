//! Stochastic gradient descent with momentum and weight decay (PyTorch's rule).

use crate::error::Result;
use crate::tensor::Tensor;

/// Hyper-parameters of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// Momentum.
    pub momentum: f64,
    /// L2 weight decay, added to the gradient.
    pub weight_decay: f64,
    /// Nesterov's variant.
    pub nesterov: bool,
}

/// `g = grad + weight_decay w; v = momentum v + g; w -= lr (nesterov ? g + momentum v : v)`.
pub fn step(_w: &mut Tensor, _grad: &mut Tensor, _velocity: &mut Tensor, _sgd: Sgd) -> Result<()> {
    unimplemented!()
}
