//! Launches on a GPU. Arguments are checked by the callers.

use super::Adam;
use crate::error::Result;
use crate::gpu::kernels::{self, adam as launch};
use crate::gpu::{Gpu, launch_blocks, launch_size};
use crate::ops::step::{Cursor, LearningRates, LossScale, MultiTensor};
use crate::tensor::Tensor;

impl From<Adam> for kernels::Adam {
    fn from(adam: Adam) -> Self {
        kernels::Adam {
            lr: adam.lr,
            beta1: adam.beta1,
            beta2: adam.beta2,
            eps: adam.eps,
        }
    }
}

/// One tensor, a clock for every row. Uploads the clocks.
#[allow(clippy::too_many_arguments)]
pub(super) fn step(
    op: &'static str,
    gpu: &Gpu,
    w: &mut Tensor,
    grad: &Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    t: &[u32],
    adam: Adam,
) -> Result<()> {
    let shape = w.shape();
    let blocks = shape.row_len().div_ceil(4096);
    let t = gpu.upload(t)?;
    launch::adam_rows(
        gpu,
        [launch_blocks(op, shape.n.saturating_mul(blocks), 1)?, 1, 1],
        0,
        w.ptr_mut()?,
        grad.ptr(),
        m.ptr_mut()?,
        v.ptr_mut()?,
        t.ptr(),
        shape.row_len() as u64,
        launch_size(op, "w", blocks)?,
        adam.into(),
    )
}

/// All tensors; the gradients become 0.
pub(super) fn step_all(
    op: &'static str,
    tensors: &MultiTensor,
    rates: &LearningRates,
    cursor: &Cursor,
    scale: &LossScale,
    adam: Adam,
) -> Result<()> {
    let gpu = tensors.gpu();
    launch::adam_step(
        gpu,
        tensors.grid(),
        0,
        tensors.ptr(),
        rates.ptr(op, gpu)?,
        cursor.ptr(op, gpu)?,
        rates.last(),
        scale.ptr(op, gpu)?,
        adam.into(),
    )
}
