//! 2-D convolution over NHWC, weights OHWI.

use crate::error::Result;
use crate::tensor::{Shape, Tensor};

/// Geometry of a convolution; the kernel's size is the weight's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    /// Step between output pixels, in input pixels; at least 1.
    pub stride: usize,
    /// Zeros added on each side.
    pub pad: usize,
    /// Channel groups; divides both channel counts.
    pub groups: usize,
}

impl Conv2d {
    /// The output's shape for an input and a weight shape, or which argument does not fit.
    pub fn output_shape(&self, _op: &'static str, _x: Shape, _w: Shape) -> Result<Shape> {
        unimplemented!()
    }
}

/// `y = conv(x, w) + b`. x `[n, h, w, c_in]`, w `[c_out, k, k, c_in / groups]`,
/// b `[1, 1, 1, c_out]`, y `[n, oh, ow, c_out]`, `oh = (h + 2 pad - k) / stride + 1`.
pub fn forward(_x: &Tensor, _w: &Tensor, _b: Option<&Tensor>, _conv: Conv2d) -> Result<Tensor> {
    unimplemented!()
}

/// Gradient in `x`, of shape `x_shape`.
pub fn input_grad(_dy: &Tensor, _w: &Tensor, _x_shape: Shape, _conv: Conv2d) -> Result<Tensor> {
    unimplemented!()
}

/// Adds the gradients in `w` and `b` to `dw` and `db`.
pub fn weight_grad(
    _dy: &Tensor,
    _x: &Tensor,
    _dw: &mut Tensor,
    _db: Option<&mut Tensor>,
    _conv: Conv2d,
) -> Result<()> {
    unimplemented!()
}
