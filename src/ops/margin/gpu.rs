//! Launches on a GPU. Arguments are checked by the callers.

use super::{Direction, Margin};
use crate::error::Result;
use crate::gpu::kernels::margin as kernels;
use crate::gpu::{Buffer, Gpu, Ptr, launch_blocks, launch_size};
use crate::tensor::Tensor;

/// What the margins are and what their gradients are multiplied by.
pub(super) struct Hinge {
    pub direction: Direction,
    pub kappa: f64,
    /// Null, or one f64 a row.
    pub weight: Ptr,
    pub scale: f32,
}

/// Returns the gradient in the logits.
pub(super) fn forward_backward(
    op: &'static str,
    gpu: &Gpu,
    logits: &Tensor,
    classes: &Buffer<u32>,
    hinge: Hinge,
    margins: &mut Buffer<Margin>,
) -> Result<Tensor> {
    let shape = logits.shape();
    let mut grad = Tensor::uninit(gpu, shape, logits.dtype())?;
    kernels::margin_forward_backward(
        gpu,
        logits.dtype(),
        [launch_blocks(op, shape.n, 8)?, 1, 1],
        0,
        grad.ptr_mut()?,
        margins.ptr_mut(),
        logits.ptr(),
        classes.ptr(),
        hinge.weight,
        launch_size(op, "logits", shape.n)?,
        launch_size(op, "logits", shape.c)?,
        hinge.direction == Direction::Towards,
        hinge.kappa,
        hinge.scale,
    )?;
    Ok(grad)
}
