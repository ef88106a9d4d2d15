use std::sync::Arc;

use super::Mask;
use crate::error::Result;
use crate::gpu::kernels::relu as kernels;
use crate::gpu::{Gpu, launch_blocks};
use crate::ops::bytes::Bytes;
use crate::ops::spans::{reuse, span};
use crate::tensor::{Shape, Tensor};

pub(super) fn forward(gpu: &Gpu, x: Tensor, cap: f64) -> Result<Tensor> {
    let (n, dtype) = (x.shape().len(), x.dtype());
    let grid = [
        launch_blocks("relu::forward", n, 256 * 16 / dtype.size())?,
        1,
        1,
    ];
    let x = reuse(gpu, x)?;
    kernels::relu_forward(gpu, dtype, grid, 0, x.to, x.from, n as u64, cap as f32)?;
    Ok(x.y)
}

pub(super) fn backward(gpu: &Gpu, dy: Tensor, y: &Tensor, cap: f64) -> Result<Tensor> {
    let (n, dtype) = (y.shape().len(), y.dtype());
    let grid = [
        launch_blocks("relu::backward", n, 256 * 16 / dtype.size())?,
        1,
        1,
    ];
    let dy = reuse(gpu, dy)?;
    let cap = cap as f32;
    kernels::relu_backward(gpu, dtype, grid, 0, dy.to, dy.from, y.ptr(), n as u64, cap)?;
    Ok(dy.y)
}

/// A mask for outputs of this shape, for a kernel to write.
pub(in crate::ops) fn mask(gpu: &Gpu, shape: Shape) -> Result<Mask> {
    let bytes = gpu.alloc::<u8>(Mask::bytes(shape))?;
    Ok(Mask {
        shape,
        bits: Bytes::Device(Arc::new(bytes)),
    })
}

pub(super) fn forward_mask(gpu: &Gpu, x: Tensor, cap: f64) -> Result<(Tensor, Mask)> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let (span, grid) = span("relu::forward_mask", shape.pixels(), shape.c)?;
    let mask = mask(gpu, shape)?;
    let x = reuse(gpu, x)?;
    let to = mask.bits.ptr();
    kernels::relu_forward_mask(
        gpu,
        dtype,
        span.vector(),
        grid,
        0,
        x.to,
        to,
        x.from,
        span,
        cap as f32,
    )?;
    Ok((x.y, mask))
}

pub(super) fn backward_mask(gpu: &Gpu, dy: Tensor, mask: &Mask) -> Result<Tensor> {
    let (shape, dtype) = (dy.shape(), dy.dtype());
    let (span, grid) = span("relu::backward_mask", shape.pixels(), shape.c)?;
    let dy = reuse(gpu, dy)?;
    let bits = mask.bits.ptr();
    kernels::relu_backward_mask(
        gpu,
        dtype,
        span.vector(),
        grid,
        0,
        dy.to,
        dy.from,
        bits,
        span,
    )?;
    Ok(dy.y)
}
