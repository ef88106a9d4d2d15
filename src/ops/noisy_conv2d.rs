//! Noise, then convolution, in one pass: the noise is drawn while the operand is read.
//! The input gradient is [`conv2d::input_grad`](super::conv2d::input_grad): noise has none.

use super::conv2d::Conv2d;
use super::noise::Noise;
use crate::error::Result;
use crate::tensor::Tensor;

/// `y = conv(x + sigma z, w) + b`; bit-identical to `noise` followed by `conv2d`.
pub fn forward(
    _x: &Tensor,
    _noise: &Noise,
    _w: &Tensor,
    _b: Option<&Tensor>,
    _conv: Conv2d,
) -> Result<Tensor> {
    unimplemented!()
}

/// Adds the gradients in `w` and `b`; draws the forward pass's noise again.
pub fn weight_grad(
    _dy: &Tensor,
    _x: &Tensor,
    _noise: &Noise,
    _dw: &mut Tensor,
    _db: Option<&mut Tensor>,
    _conv: Conv2d,
) -> Result<()> {
    unimplemented!()
}
