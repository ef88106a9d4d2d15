//! Noise, then convolution, in one pass: the noise is drawn while the operand is read.
//! The input gradient is [`conv2d::input_grad`]: noise has none.
//!
//! No noisy copy of the input is stored: each task of a convolution draws the noise of what it
//! reads into its own small buffer, and the weight gradient draws the same noise again.

use super::conv2d::{self, Conv2d, Input};
use super::noise::{self, Noise};
use crate::error::Result;
use crate::tensor::Tensor;

/// `y = conv(x + sigma z, w) + b`; bit-identical to `noise` followed by `conv2d`.
pub fn forward(
    x: &Tensor,
    noise: &Noise,
    w: &Tensor,
    b: Option<&Tensor>,
    conv: Conv2d,
) -> Result<Tensor> {
    const OP: &str = "noisy_conv2d::forward";
    conv2d::forward_of(OP, &Input::noisy(x, Some(noise)), w.into(), b, conv)
}

/// Adds the gradients in `w` and `b`; draws the forward pass's noise again.
pub fn weight_grad(
    dy: &Tensor,
    x: &Tensor,
    noise: &Noise,
    dw: &mut Tensor,
    db: Option<&mut Tensor>,
    conv: Conv2d,
) -> Result<()> {
    const OP: &str = "noisy_conv2d::weight_grad";
    noise::check_shape(OP, noise, x.shape())?;
    conv2d::weight_grad_noisy(OP, dy, x, Some(noise), dw, db, conv)
}
