use super::{Gate, Saved, Then};
use crate::error::Result;
use crate::gpu::kernels::apply as kernels;
use crate::gpu::{Gpu, Ptr};
use crate::ops::batch_norm::gpu::{PIXELS, Vectors, bounds, finish_sums};
use crate::ops::batch_norm::{self, Activation};
use crate::ops::noise::gpu::Fused;
use crate::ops::pool2d::{self, Argmax, Pool2d};
use crate::ops::relu::Mask;
use crate::ops::spans::{divisor, span, span_of};
use crate::ops::{noise, relu};
use crate::tensor::{Shape, Tensor};

/// Whether the pass pools in this way; else pooling and noise are launches of their own.
pub(in crate::ops) fn fuses(pool: Pool2d) -> bool {
    pool == Pool2d { k: 2, stride: 2 }
}

/// The pass's result, and what of it backward needs.
pub(in crate::ops) struct Passed {
    pub y: Tensor,
    pub gate: Gate,
    pub pooled: Option<(Pool2d, Argmax)>,
}

pub(super) fn forward(
    op: &'static str,
    gpu: &Gpu,
    x: Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    statistics: Option<batch_norm::Saved>,
    then: &Then<'_>,
    out: Shape,
) -> Result<(Tensor, Option<Saved>)> {
    let v = Vectors::new(statistics.as_ref(), affine);
    let gated = then.gated(statistics.is_some());
    let Passed { y, gate, pooled } = passed(op, gpu, &x, v, gated, then, out)?;
    let saved = then.record.then(|| Saved {
        shape: x.shape(),
        activation: then.activation,
        residual: then.residual.is_some(),
        norm: statistics.map(|statistics| (x, statistics)),
        gate,
        pooled,
    });
    Ok((y, saved))
}

/// In one launch where the kernels do; `gated` asks for the activation's gate.
pub(in crate::ops) fn passed(
    op: &'static str,
    gpu: &Gpu,
    x: &Tensor,
    v: Vectors,
    gated: bool,
    then: &Then<'_>,
    out: Shape,
) -> Result<Passed> {
    let (y, gate, pooled) = match then.pool {
        Some(pool) if fuses(pool) && then.residual.is_none() => {
            let mask = gated.then(|| relu::gpu::mask(gpu, out)).transpose()?;
            let argmax = pool2d::gpu::argmax(gpu, out, pool);
            let argmax = then.record.then_some(argmax).transpose()?;
            let y = pass_pool(op, gpu, x, v, then, out, argmax.as_ref(), mask.as_ref())?;
            (
                y,
                mask.map_or(Gate::None, Gate::Pooled),
                argmax.map(|a| (pool, a)),
            )
        }
        Some(pool) => {
            let mask = gated.then(|| relu::gpu::mask(gpu, x.shape())).transpose()?;
            let noiseless = Then {
                noise: None,
                ..*then
            };
            let y = pass(op, gpu, x, v, &noiseless, mask.as_ref())?;
            let (y, argmax) = pool2d::max_forward(&y, pool)?;
            let y = match then.noise {
                Some(noise) => noise::forward(&y, noise)?,
                None => y,
            };
            (y, mask.map_or(Gate::None, Gate::Mask), Some((pool, argmax)))
        }
        None => {
            let mask = gated.then(|| relu::gpu::mask(gpu, x.shape())).transpose()?;
            let y = pass(op, gpu, x, v, then, mask.as_ref())?;
            (y, mask.map_or(Gate::None, Gate::Mask), None)
        }
    };
    Ok(Passed { y, gate, pooled })
}

/// Everything but the pooling.
fn pass(
    op: &'static str,
    gpu: &Gpu,
    x: &Tensor,
    v: Vectors,
    then: &Then<'_>,
    mask: Option<&Mask>,
) -> Result<Tensor> {
    let shape = x.shape();
    let (span, grid) = span(op, shape.pixels(), shape.c)?;
    let noise = Fused::new(gpu, then.noise, shape)?;
    let (low, cap) = bounds(then.activation);
    let mut y = Tensor::uninit(gpu, shape, x.dtype())?;
    kernels::apply_forward(
        gpu,
        x.dtype(),
        span.vector(),
        then.residual.is_some(),
        noise.mode,
        grid,
        0,
        y.ptr_mut()?,
        mask.map_or(Ptr::null(), Mask::ptr),
        x.ptr(),
        then.residual.map_or(Ptr::null(), Tensor::ptr),
        v.mean,
        v.inv_std,
        v.gamma,
        v.beta,
        noise.rows,
        noise.draw,
        noise.row_pixels,
        span,
        low,
        cap,
    )?;
    Ok(y)
}

#[allow(clippy::too_many_arguments)]
fn pass_pool(
    op: &'static str,
    gpu: &Gpu,
    x: &Tensor,
    v: Vectors,
    then: &Then<'_>,
    out: Shape,
    argmax: Option<&Argmax>,
    mask: Option<&Mask>,
) -> Result<Tensor> {
    // The input's pixels are numbered in 32 bits, too.
    span(op, x.shape().pixels(), out.c)?;
    let (span, grid) = span(op, out.pixels(), out.c)?;
    let noise = Fused::new(gpu, then.noise, out)?;
    let (low, cap) = bounds(then.activation);
    let mut y = Tensor::uninit(gpu, out, x.dtype())?;
    kernels::apply_pool(
        gpu,
        x.dtype(),
        span.vector(),
        noise.mode,
        grid,
        0,
        y.ptr_mut()?,
        argmax.map_or(Ptr::null(), Argmax::ptr),
        mask.map_or(Ptr::null(), Mask::ptr),
        x.ptr(),
        v.mean,
        v.inv_std,
        v.gamma,
        v.beta,
        noise.rows,
        noise.draw,
        divisor(out.w),
        divisor(out.h),
        x.shape().h as u32,
        x.shape().w as u32,
        span,
        low,
        cap,
    )?;
    Ok(y)
}

/// Backward of batch norm, activation and 2x2 pooling; dy is the pooling's.
#[allow(clippy::too_many_arguments)]
pub(super) fn backward(
    gpu: &Gpu,
    dy: Tensor,
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    saved: &batch_norm::Saved,
    activation: Activation,
    argmax: &Argmax,
    affine_grads: Option<(&mut Tensor, &mut Tensor)>,
) -> Result<Tensor> {
    const OP: &str = "apply::backward";
    let (t, shape, out) = (x.dtype(), x.shape(), dy.shape());
    let (v, (low, cap)) = (Vectors::new(Some(saved), affine), bounds(activation));
    let (h, w) = (shape.h as u32, shape.w as u32);
    let mut through = None;
    if saved.batch || affine_grads.is_some() {
        let (span, grid) = span_of(OP, out.pixels(), out.c, PIXELS)?;
        let mut partial = gpu.alloc::<f32>(grid[0] as usize * 2 * out.c)?;
        kernels::apply_pool_sums(
            gpu,
            t,
            span.vector(),
            grid,
            0,
            partial.ptr_mut(),
            dy.ptr(),
            argmax.ptr(),
            x.ptr(),
            v.mean,
            v.inv_std,
            v.gamma,
            v.beta,
            divisor(out.w),
            divisor(out.h),
            h,
            w,
            span,
            low,
            cap,
        )?;
        let partial = partial.ptr();
        let sums = finish_sums(
            gpu,
            partial,
            grid[0],
            shape.pixels(),
            saved,
            v,
            affine_grads,
        )?;
        through = saved.batch.then_some(sums);
    }
    let (cells_h, cells_w) = (shape.h.div_ceil(2), shape.w.div_ceil(2));
    let (span, grid) = span(OP, shape.n * cells_h * cells_w, shape.c)?;
    let mut dx = Tensor::uninit(gpu, shape, t)?;
    kernels::apply_pool_backward(
        gpu,
        t,
        span.vector(),
        saved.batch,
        grid,
        0,
        dx.ptr_mut()?,
        dy.ptr(),
        argmax.ptr(),
        x.ptr(),
        v.mean,
        v.inv_std,
        v.gamma,
        v.beta,
        through.as_ref().map_or(Ptr::null(), Tensor::ptr),
        divisor(cells_w),
        divisor(cells_h),
        out.h as u32,
        out.w as u32,
        h,
        w,
        span,
        low,
        cap,
    )?;
    Ok(dx)
}
