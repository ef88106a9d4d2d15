//! Convolutions on a GPU: a plan and a launch for each. Arguments are checked by the callers.

use super::{Conv2d, plan};
use crate::error::Result;
use crate::gpu::kernels::conv2d as kernels;
use crate::gpu::{Gpu, Ptr, launch_blocks};
use crate::ops::noise::Noise;
use crate::ops::noise::gpu::Fused;
use crate::tensor::{Shape, Tensor};

#[allow(clippy::too_many_arguments)]
pub(super) fn forward(
    op: &'static str,
    gpu: &Gpu,
    x: &Tensor,
    noise: Option<&Noise>,
    w: &Tensor,
    b: Option<&Tensor>,
    y_shape: Shape,
    conv: Conv2d,
) -> Result<Tensor> {
    let plan = plan::direct(op, false, x.shape(), w.shape(), y_shape, conv)?;
    let noise = Fused::new(gpu, noise, x.shape())?;
    let mut y = Tensor::uninit(gpu, y_shape, x.dtype())?;
    kernels::conv2d_forward(
        gpu,
        x.dtype(),
        noise.mode,
        plan.cols,
        plan.grid,
        plan.shared,
        y.ptr_mut()?,
        x.ptr(),
        w.ptr(),
        b.map_or(Ptr::null(), Tensor::ptr),
        plan.p,
        noise.rows,
        noise.draw,
    )?;
    Ok(y)
}

pub(super) fn input_grad(
    op: &'static str,
    gpu: &Gpu,
    dy: &Tensor,
    w: &Tensor,
    x_shape: Shape,
    conv: Conv2d,
) -> Result<Tensor> {
    let plan = plan::direct(op, true, x_shape, w.shape(), dy.shape(), conv)?;
    let mut dx = Tensor::uninit(gpu, x_shape, dy.dtype())?;
    kernels::conv2d_input_grad(
        gpu,
        dy.dtype(),
        plan.cols,
        plan.grid,
        plan.shared,
        dx.ptr_mut()?,
        dy.ptr(),
        w.ptr(),
        plan.p,
    )?;
    Ok(dx)
}

#[allow(clippy::too_many_arguments)]
pub(super) fn weight_grad(
    op: &'static str,
    gpu: &Gpu,
    dy: &Tensor,
    x: &Tensor,
    noise: Option<&Noise>,
    dw: &mut Tensor,
    db: Option<&mut Tensor>,
    conv: Conv2d,
) -> Result<()> {
    let w = dw.shape();
    let plan = plan::outer(op, x.shape(), w, dy.shape(), db.is_some(), conv)?;
    let noise = Fused::new(gpu, noise, x.shape())?;
    let mut partial = gpu.alloc::<f32>(plan.partial_len(w))?;
    kernels::conv2d_weight_grad(
        gpu,
        x.dtype(),
        noise.mode,
        plan.grid,
        plan.shared,
        partial.ptr_mut(),
        dy.ptr(),
        x.ptr(),
        plan.p,
        noise.rows,
        noise.draw,
    )?;
    let (db, bias_splits) = match db {
        Some(db) => (db.ptr_mut()?, plan.splits as u32),
        None => (Ptr::null(), 0),
    };
    let elements = w.len() + if bias_splits > 0 { w.n } else { 0 };
    kernels::conv2d_weight_grad_sum(
        gpu,
        [launch_blocks(op, elements, 32)?, 1, 1],
        0,
        dw.ptr_mut()?,
        db,
        partial.ptr(),
        w.len() as u64,
        w.n as u32,
        plan.p.partial_rows,
        bias_splits,
    )
}
