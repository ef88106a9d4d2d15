//! Batch normalisation over channels (Ioffe and Szegedy 2015), with an optional fused (bounded) ReLU.

use crate::error::Result;
use crate::tensor::Tensor;

/// Activation fused behind the normalisation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// None.
    Identity,
    /// `max(., 0)`.
    Relu,
    /// `min(max(., 0), cap)`.
    BoundedRelu(f64),
}

/// Running estimates, `[1, 1, 1, c]` each: what evaluation normalises with.
#[derive(Debug, Clone)]
pub struct Running {
    /// Running mean.
    pub mean: Tensor,
    /// Running variance (unbiased).
    pub var: Tensor,
}

/// What backward needs of forward: the mean and `1 / sqrt(var + eps)` it normalised with.
#[derive(Debug, Clone)]
pub struct Saved {
    /// Mean per channel.
    pub mean: Tensor,
    /// `1 / sqrt(var + eps)` per channel.
    pub inv_std: Tensor,
    /// Whether they are the batch's own (then backward goes through them) or the running ones.
    pub batch: bool,
}

/// PyTorch's momentum.
pub const MOMENTUM: f64 = 0.1;
/// PyTorch's eps.
pub const EPS: f64 = 1e-5;

/// Normalises with the batch's statistics and moves the running ones.
/// gamma and beta `[1, 1, 1, c]`, both or neither.
pub fn forward_train(
    _x: &Tensor,
    _affine: Option<(&Tensor, &Tensor)>,
    _running: &mut Running,
    _activation: Activation,
) -> Result<(Tensor, Saved)> {
    unimplemented!()
}

/// Normalises with the running statistics.
pub fn forward_eval(
    _x: &Tensor,
    _affine: Option<(&Tensor, &Tensor)>,
    _running: &Running,
    _activation: Activation,
) -> Result<(Tensor, Saved)> {
    unimplemented!()
}

/// Gradient in `x`; adds to `(dgamma, dbeta)` if given. `dy` is the gradient behind the
/// activation, whose mask is computed again from `x` and `saved`, not stored.
pub fn backward(
    _dy: Tensor,
    _x: &Tensor,
    _affine: Option<(&Tensor, &Tensor)>,
    _saved: &Saved,
    _activation: Activation,
    _affine_grads: Option<(&mut Tensor, &mut Tensor)>,
) -> Result<Tensor> {
    unimplemented!()
}
