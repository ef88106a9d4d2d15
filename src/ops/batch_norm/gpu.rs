use super::{Activation, Chunks, EPS, MOMENTUM, Running, Saved};
use crate::error::Result;
use crate::gpu::kernels::batch_norm as kernels;
use crate::gpu::{Buffer, Gpu, Ptr, launch_blocks};
use crate::ops::spans::{reuse, span, span_of};
use crate::tensor::{DType, Shape, Tensor};

/// Channels whose statistics a block merges, as the kernels have it.
const MERGED: usize = 2;

/// Pixels over which a thread of a reduction adds up in f32.
pub(in crate::ops) const PIXELS: usize = 64;

/// The vectors that normalise; null without a batch norm, the last two without affine parameters.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Vectors {
    pub mean: Ptr,
    pub inv_std: Ptr,
    pub gamma: Ptr,
    pub beta: Ptr,
}

impl Vectors {
    pub fn new(saved: Option<&Saved>, affine: Option<(&Tensor, &Tensor)>) -> Self {
        let null = Ptr::null();
        let (mean, inv_std) = saved.map_or((null, null), |s| (s.mean.ptr(), s.inv_std.ptr()));
        let (gamma, beta) = affine.map_or((null, null), |(g, b)| (g.ptr(), b.ptr()));
        Vectors {
            mean,
            inv_std,
            gamma,
            beta,
        }
    }
}

/// The activation's bounds.
pub(in crate::ops) fn bounds(activation: Activation) -> (f32, f32) {
    match activation {
        Activation::Identity => (f32::NEG_INFINITY, f32::INFINITY),
        Activation::Relu => (0.0, f32::INFINITY),
        Activation::BoundedRelu(cap) => (0.0, cap as f32),
    }
}

/// The statistics of `x`, block by block.
pub(super) fn chunks(op: &'static str, gpu: &Gpu, x: &Tensor) -> Result<Chunks> {
    let (pixels, c) = (x.shape().pixels(), x.shape().c);
    let (span, grid) = span_of(op, pixels, c, PIXELS)?;
    let mut partial = gpu.alloc::<f32>(grid[0] as usize * 3 * c)?;
    let to = partial.ptr_mut();
    kernels::batch_norm_statistics(gpu, x.dtype(), span.vector(), grid, 0, to, x.ptr(), span)?;
    Ok(Chunks {
        partial,
        counts: None,
        chunks: grid[0],
        each: span.pixels_per_block(),
    })
}

/// Parts that one thread's reads of the last step reach; more are merged in groups first.
const FEW: u32 = 128;
/// Parts of a group, as the kernels have it.
const GROUP: u32 = 64;

/// [`GROUP`] chunks each made one.
fn grouped(chunks: &Chunks, shape: Shape) -> Result<Chunks> {
    let (gpu, c) = (chunks.partial.gpu(), shape.c);
    let groups = chunks.chunks.div_ceil(GROUP);
    let mut partial = gpu.alloc::<f32>(groups as usize * 3 * c)?;
    let mut counts = gpu.alloc::<u32>(groups as usize)?;
    kernels::batch_norm_merge(
        gpu,
        [groups, c.div_ceil(32) as u32, 1],
        0,
        partial.ptr_mut(),
        counts.ptr_mut(),
        chunks.partial.ptr(),
        chunks.counts.as_ref().map_or(Ptr::null(), Buffer::ptr),
        shape.pixels() as u32,
        c as u32,
        chunks.chunks,
        chunks.each,
    )?;
    Ok(Chunks {
        partial,
        counts: Some(counts),
        chunks: groups,
        each: 0,
    })
}

/// All chunks' statistics together; moves the running ones.
pub(super) fn merge(chunks: &Chunks, shape: Shape, running: &mut Running) -> Result<Saved> {
    if chunks.chunks > FEW {
        return merge(&grouped(chunks, shape)?, shape, running);
    }
    let (gpu, c) = (chunks.partial.gpu(), shape.c);
    let mut mean = Tensor::uninit(gpu, Shape::vector(c), DType::F32)?;
    let mut inv_std = Tensor::uninit(gpu, Shape::vector(c), DType::F32)?;
    kernels::batch_norm_finish(
        gpu,
        [c.div_ceil(MERGED) as u32, 1, 1],
        0,
        mean.ptr_mut()?,
        inv_std.ptr_mut()?,
        running.mean.ptr_mut()?,
        running.var.ptr_mut()?,
        chunks.partial.ptr(),
        chunks.counts.as_ref().map_or(Ptr::null(), Buffer::ptr),
        shape.pixels() as u32,
        c as u32,
        chunks.chunks,
        chunks.each,
        MOMENTUM,
        EPS,
    )?;
    Ok(Saved {
        mean,
        inv_std,
        batch: true,
    })
}

/// What the running estimates normalise with.
pub(in crate::ops) fn eval(gpu: &Gpu, running: &Running) -> Result<Saved> {
    let shape = running.var.shape();
    let mut inv_std = Tensor::uninit(gpu, shape, DType::F32)?;
    let (grid, to) = ([shape.c.div_ceil(256) as u32, 1, 1], inv_std.ptr_mut()?);
    kernels::batch_norm_inv_std(gpu, grid, 0, to, running.var.ptr(), shape.c as u32, EPS)?;
    Ok(Saved {
        mean: running.mean.clone(),
        inv_std,
        batch: false,
    })
}

pub(super) fn forward(
    op: &'static str,
    gpu: &Gpu,
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    saved: &Saved,
    activation: Activation,
) -> Result<Tensor> {
    let (span, grid) = span(op, x.shape().pixels(), x.shape().c)?;
    let mut y = Tensor::uninit(gpu, x.shape(), x.dtype())?;
    let (v, (low, cap)) = (Vectors::new(Some(saved), affine), bounds(activation));
    kernels::batch_norm_forward(
        gpu,
        x.dtype(),
        span.vector(),
        grid,
        0,
        y.ptr_mut()?,
        x.ptr(),
        v.mean,
        v.inv_std,
        v.gamma,
        v.beta,
        span,
        low,
        cap,
    )?;
    Ok(y)
}

/// Merges the blocks' sums `[blocks, 2, c]` over `pixels` values per channel: adds to the parameters'
/// gradients and returns what passes through the batch's statistics, `[2, c]`.
pub(in crate::ops) fn finish_sums(
    gpu: &Gpu,
    partial: Ptr,
    blocks: u32,
    pixels: usize,
    saved: &Saved,
    v: Vectors,
    affine_grads: Option<(&mut Tensor, &mut Tensor)>,
) -> Result<Tensor> {
    let c = saved.mean.shape().c;
    if blocks > FEW {
        let groups = blocks.div_ceil(GROUP);
        let mut merged = gpu.alloc::<f32>(groups as usize * 2 * c)?;
        let (grid, to) = ([groups, (2 * c).div_ceil(32) as u32, 1], merged.ptr_mut());
        kernels::batch_norm_merge_sums(gpu, grid, 0, to, partial, 2 * c as u32, blocks)?;
        return finish_sums(gpu, merged.ptr(), groups, pixels, saved, v, affine_grads);
    }
    let mut through = Tensor::uninit(gpu, Shape::new(1, 1, 2, c), DType::F32)?;
    let (dgamma, dbeta) = match affine_grads {
        Some((dgamma, dbeta)) => (dgamma.ptr_mut()?, dbeta.ptr_mut()?),
        None => (Ptr::null(), Ptr::null()),
    };
    kernels::batch_norm_finish_sums(
        gpu,
        [c.div_ceil(MERGED) as u32, 1, 1],
        0,
        dgamma,
        dbeta,
        through.ptr_mut()?,
        partial,
        v.inv_std,
        v.gamma,
        pixels as u32,
        c as u32,
        blocks,
    )?;
    Ok(through)
}

pub(super) fn backward(
    gpu: &Gpu,
    dy: Tensor,
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    saved: &Saved,
    activation: Activation,
    affine_grads: Option<(&mut Tensor, &mut Tensor)>,
) -> Result<Tensor> {
    const OP: &str = "batch_norm::backward";
    let (t, pixels, c) = (x.dtype(), x.shape().pixels(), x.shape().c);
    let (v, (low, cap)) = (Vectors::new(Some(saved), affine), bounds(activation));
    let mut through = None;
    if saved.batch || affine_grads.is_some() {
        let (span, grid) = span_of(OP, pixels, c, PIXELS)?;
        let mut partial = gpu.alloc::<f32>(grid[0] as usize * 2 * c)?;
        kernels::batch_norm_sums(
            gpu,
            t,
            span.vector(),
            grid,
            0,
            partial.ptr_mut(),
            dy.ptr(),
            x.ptr(),
            v.mean,
            v.inv_std,
            v.gamma,
            v.beta,
            span,
            low,
            cap,
        )?;
        let partial = partial.ptr();
        let sums = finish_sums(gpu, partial, grid[0], pixels, saved, v, affine_grads)?;
        through = saved.batch.then_some(sums);
    }
    let (span, grid) = span(OP, pixels, c)?;
    let dy = reuse(gpu, dy)?;
    kernels::batch_norm_backward(
        gpu,
        t,
        span.vector(),
        saved.batch,
        grid,
        0,
        dy.to,
        dy.from,
        x.ptr(),
        v.mean,
        v.inv_std,
        v.gamma,
        v.beta,
        through.as_ref().map_or(Ptr::null(), Tensor::ptr),
        span,
        low,
        cap,
    )?;
    Ok(dy.y)
}

pub(super) fn fold(
    op: &'static str,
    gpu: &Gpu,
    w: &Tensor,
    b: Option<&Tensor>,
    affine: Option<(&Tensor, &Tensor)>,
    running: &Running,
) -> Result<(Tensor, Tensor)> {
    let (shape, c) = (w.shape(), w.shape().n);
    let mut folded = Tensor::uninit(gpu, shape, w.dtype())?;
    let mut shift = Tensor::uninit(gpu, Shape::vector(c), w.dtype())?;
    kernels::batch_norm_fold(
        gpu,
        [launch_blocks(op, shape.len(), 256)?, 1, 1],
        0,
        folded.ptr_mut()?,
        shift.ptr_mut()?,
        w.ptr(),
        b.map_or(Ptr::null(), Tensor::ptr),
        affine.map_or(Ptr::null(), |(gamma, _)| gamma.ptr()),
        affine.map_or(Ptr::null(), |(_, beta)| beta.ptr()),
        running.mean.ptr(),
        running.var.ptr(),
        shape.row_len() as u64,
        shape.len() as u64,
        EPS,
    )?;
    Ok((folded, shift))
}
