//! `y = x w^T + b`.

use crate::error::Result;
use crate::tensor::Tensor;

/// x `[n, 1, 1, in]`, w `[out, 1, 1, in]`, b `[1, 1, 1, out]`, y `[n, 1, 1, out]`.
pub fn forward(_x: &Tensor, _w: &Tensor, _b: Option<&Tensor>) -> Result<Tensor> {
    unimplemented!()
}

/// Gradient in `x`: `dx = dy w`.
pub fn input_grad(_dy: &Tensor, _w: &Tensor) -> Result<Tensor> {
    unimplemented!()
}

/// Adds `dy^T x` to `dw` and the column sums of `dy` to `db`.
pub fn weight_grad(
    _dy: &Tensor,
    _x: &Tensor,
    _dw: &mut Tensor,
    _db: Option<&mut Tensor>,
) -> Result<()> {
    unimplemented!()
}
