//! `min(max(x, 0), cap)`: ReLU without a cap, BReLU (Zantedeschi et al. 2017) with one.

use crate::error::Result;
use crate::tensor::Tensor;

/// x and y `[n, h, w, c]`; works in place where `x` is not shared. NaN stays NaN.
pub fn forward(_x: Tensor, _cap: Option<f64>) -> Result<Tensor> {
    unimplemented!()
}

/// `dx = dy` where `0 < y < cap`, else 0 (from the output: `y` decides as `x` would).
pub fn backward(_dy: Tensor, _y: &Tensor, _cap: Option<f64>) -> Result<Tensor> {
    unimplemented!()
}
