//! Convolutions on a GPU: a plan and a launch for each. Arguments are checked by the callers.
//!
//! 16-bit types (and f32, where tf32 is allowed) go to the tensor cores if their shape fits, the rest to
//! the CUDA cores.

use super::mma::{self, Demands, Operands};
use super::model::Card;
use super::{Conv2d, plan};
use crate::error::Result;
use crate::gpu::kernels::conv2d as kernels;
use crate::gpu::{Gpu, Ptr, launch_blocks};
use crate::ops::noise::Noise;
use crate::ops::noise::gpu::Fused;
use crate::tensor::{DType, Shape, Tensor};

/// The plan for the tensor cores; `None`: not there.
#[allow(clippy::too_many_arguments)]
pub(in crate::ops) fn tensor_cores(
    op: &'static str,
    gpu: &Gpu,
    grad: bool,
    dtype: DType,
    x: Shape,
    w: Shape,
    y: Shape,
    conv: Conv2d,
    pool: bool,
    noise: bool,
) -> Result<Option<mma::Plan>> {
    let options = gpu.options();
    if dtype == DType::F32 && !options.tf32 {
        return Ok(None);
    }
    let tuning = gpu.tuning();
    let demands = Demands {
        pool,
        noise,
        blocking: options.blocking,
        tuning: Some(&tuning),
        card: Card::of(gpu.properties()),
    };
    mma::plan(op, grad, dtype, x, w, y, conv, demands)
}

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
    let noise = Fused::new(gpu, noise, x.shape())?;
    let mut y = Tensor::uninit(gpu, y_shape, x.dtype())?;
    let plan = tensor_cores(
        op,
        gpu,
        false,
        x.dtype(),
        x.shape(),
        w.shape(),
        y_shape,
        conv,
        false,
        noise.mode != 0,
    )?;
    if let Some(plan) = plan {
        let packed = mma::packed(gpu, &plan, w.ptr())?;
        let operands = Operands::plain(y.ptr_mut()?, x.ptr(), b.map(Tensor::ptr));
        let none = Fused::new(gpu, None, y_shape)?;
        plan.launch(gpu, &packed, &operands, plan.store(), &noise, &none)?;
        return Ok(y);
    }
    let plan = plan::direct(op, false, x.shape(), w.shape(), y_shape, conv)?;
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
    let mut dx = Tensor::uninit(gpu, x_shape, dy.dtype())?;
    let plan = tensor_cores(
        op,
        gpu,
        true,
        dy.dtype(),
        x_shape,
        w.shape(),
        dy.shape(),
        conv,
        false,
        false,
    )?;
    if let Some(plan) = plan {
        let packed = mma::packed(gpu, &plan, w.ptr())?;
        let none = Fused::new(gpu, None, x_shape)?;
        let operands = Operands::plain(dx.ptr_mut()?, dy.ptr(), None);
        plan.launch(gpu, &packed, &operands, plan.store(), &none, &none)?;
        return Ok(dx);
    }
    let plan = plan::direct(op, true, x_shape, w.shape(), dy.shape(), conv)?;
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
