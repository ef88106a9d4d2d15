//! Launches on a GPU. Arguments are checked by the callers.

use super::Sgd;
use crate::error::Result;
use crate::gpu::kernels::sgd as kernels;
use crate::gpu::{Gpu, launch_blocks};
use crate::ops::step::{Cursor, LearningRates, LossScale, MultiTensor};
use crate::tensor::Tensor;

/// One tensor; the gradient stays.
pub(super) fn step(
    op: &'static str,
    gpu: &Gpu,
    w: &mut Tensor,
    grad: &Tensor,
    velocity: &mut Tensor,
    sgd: Sgd,
) -> Result<()> {
    let n = w.shape().len();
    kernels::sgd_tensor(
        gpu,
        [launch_blocks(op, n, 4096)?, 1, 1],
        0,
        w.ptr_mut()?,
        grad.ptr(),
        velocity.ptr_mut()?,
        n as u64,
        sgd.lr as f32,
        sgd.momentum as f32,
        sgd.weight_decay as f32,
        sgd.nesterov,
    )
}

/// All tensors; the gradients become 0.
pub(super) fn step_all(
    op: &'static str,
    tensors: &MultiTensor,
    rates: &LearningRates,
    cursor: &Cursor,
    scale: &LossScale,
    sgd: Sgd,
) -> Result<()> {
    let gpu = tensors.gpu();
    kernels::sgd_step(
        gpu,
        tensors.grid(),
        0,
        tensors.ptr(),
        rates.ptr(op, gpu)?,
        cursor.ptr(op, gpu)?,
        rates.last(),
        scale.ptr(op, gpu)?,
        sgd.momentum as f32,
        sgd.weight_decay as f32,
        sgd.nesterov,
    )
}
