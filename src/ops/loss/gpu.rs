//! Launches on a GPU. Arguments are checked by the callers.

use crate::error::Result;
use crate::gpu::kernels::loss as kernels;
use crate::gpu::{Buffer, Gpu, Ptr, launch_blocks, launch_size};
use crate::tensor::Tensor;

/// Rows of a block: one a warp.
const ROWS: usize = 8;

fn sizes(op: &'static str, logits: &Tensor) -> Result<([u32; 3], u32, u32)> {
    let shape = logits.shape();
    let grid = [launch_blocks(op, shape.n, ROWS)?, 1, 1];
    Ok((
        grid,
        launch_size(op, "logits", shape.n)?,
        launch_size(op, "logits", shape.c)?,
    ))
}

/// What [`cross_entropy`] returns.
pub(super) struct Losses {
    pub per_row: Buffer<f64>,
    pub predictions: Buffer<u32>,
    pub dlogits: Tensor,
}

/// `scale` is null or points at a `LossScale`.
pub(super) fn cross_entropy(
    op: &'static str,
    gpu: &Gpu,
    logits: &Tensor,
    labels: &Buffer<u32>,
    scale: Ptr,
) -> Result<Losses> {
    let (grid, rows, classes) = sizes(op, logits)?;
    let mut losses = Losses {
        per_row: gpu.alloc(logits.shape().n)?,
        predictions: gpu.alloc(logits.shape().n)?,
        dlogits: Tensor::uninit(gpu, logits.shape(), logits.dtype())?,
    };
    kernels::loss_cross_entropy(
        gpu,
        logits.dtype(),
        grid,
        0,
        losses.dlogits.ptr_mut()?,
        losses.per_row.ptr_mut(),
        losses.predictions.ptr_mut(),
        logits.ptr(),
        labels.ptr(),
        scale,
        rows,
        classes,
    )?;
    Ok(losses)
}

/// Adds a step to the metrics.
pub(super) fn count(
    gpu: &Gpu,
    metrics: &mut Buffer<kernels::Metrics>,
    per_row: &Buffer<f64>,
    predictions: &Buffer<u32>,
    labels: &Buffer<u32>,
) -> Result<()> {
    kernels::loss_metrics(
        gpu,
        [1, 1, 1],
        0,
        metrics.ptr_mut(),
        per_row.ptr(),
        predictions.ptr(),
        labels.ptr(),
        per_row.len() as u32,
    )
}

/// Softmax, or its logarithm.
pub(super) fn softmax(op: &'static str, gpu: &Gpu, logits: &Tensor, log: bool) -> Result<Tensor> {
    let (grid, rows, classes) = sizes(op, logits)?;
    let dtype = logits.dtype();
    let mut out = Tensor::uninit(gpu, logits.shape(), dtype)?;
    let to = out.ptr_mut()?;
    kernels::loss_softmax(gpu, dtype, log, grid, 0, to, logits.ptr(), rows, classes)?;
    Ok(out)
}

/// Predictions that stay on the device.
pub(crate) fn argmax(op: &'static str, gpu: &Gpu, logits: &Tensor) -> Result<Buffer<u32>> {
    let (grid, rows, classes) = sizes(op, logits)?;
    let mut out = gpu.alloc(logits.shape().n)?;
    let (dtype, to) = (logits.dtype(), out.ptr_mut());
    kernels::loss_argmax(gpu, dtype, grid, 0, to, logits.ptr(), rows, classes)?;
    Ok(out)
}
