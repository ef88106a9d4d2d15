//! Max, average and global average pooling.

use crate::error::Result;
use crate::tensor::{Shape, Tensor};

/// Window of a pooling: `k x k`, no padding; a rest that does not fill a window is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool2d {
    /// Window size; at least 1.
    pub k: usize,
    /// Step; at least 1.
    pub stride: usize,
}

/// y and, per output, which window element was the (first) largest: what backward needs.
pub fn max_forward(_x: &Tensor, _pool: Pool2d) -> Result<(Tensor, Vec<u8>)> {
    unimplemented!()
}
/// Gradient in `x`.
pub fn max_backward(
    _dy: &Tensor,
    _argmax: &[u8],
    _x_shape: Shape,
    _pool: Pool2d,
) -> Result<Tensor> {
    unimplemented!()
}
/// Mean of each window.
pub fn average_forward(_x: &Tensor, _pool: Pool2d) -> Result<Tensor> {
    unimplemented!()
}
/// Gradient in `x`.
pub fn average_backward(_dy: &Tensor, _x_shape: Shape, _pool: Pool2d) -> Result<Tensor> {
    unimplemented!()
}
/// Mean over all pixels: `[n, h, w, c]` to `[n, 1, 1, c]`.
pub fn global_average_forward(_x: &Tensor) -> Result<Tensor> {
    unimplemented!()
}
/// Gradient in `x`.
pub fn global_average_backward(_dy: &Tensor, _x_shape: Shape) -> Result<Tensor> {
    unimplemented!()
}
