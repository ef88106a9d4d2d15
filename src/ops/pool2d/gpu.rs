use std::sync::Arc;

use super::{Argmax, Pool2d};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::kernels::pool2d::{self as kernels, Window};
use crate::ops::bytes::Bytes;
use crate::ops::spans::{divisor, span, span_of};
use crate::tensor::{Shape, Tensor};

fn window(x: Shape, pool: Pool2d) -> Window {
    // Windows are no larger than the image, whose pixels `span` counted; a larger step than the
    // image leaves one window.
    let stride = pool.stride.min(x.h.max(x.w));
    Window {
        h: x.h as u32,
        w: x.w as u32,
        k: pool.k as u32,
        stride: stride as u32,
    }
}

/// What a kernel writes for outputs of this shape.
pub(in crate::ops) fn argmax(gpu: &Gpu, shape: Shape, pool: Pool2d) -> Result<Argmax> {
    Ok(Argmax {
        positions: pool.k * pool.k,
        bytes: Bytes::Device(Arc::new(gpu.alloc(shape.len())?)),
    })
}

pub(super) fn max_forward(
    gpu: &Gpu,
    x: &Tensor,
    shape: Shape,
    pool: Pool2d,
) -> Result<(Tensor, Argmax)> {
    const OP: &str = "pool2d::max_forward";
    span(OP, x.shape().pixels(), shape.c)?;
    let (span, grid) = span(OP, shape.pixels(), shape.c)?;
    let mut y = Tensor::uninit(gpu, shape, x.dtype())?;
    let argmax = argmax(gpu, shape, pool)?;
    let (to, bytes) = (y.ptr_mut()?, argmax.bytes.ptr());
    let (oh, ow) = (divisor(shape.h), divisor(shape.w));
    let window = window(x.shape(), pool);
    let unrolled = if pool.k == 2 { 2 } else { 0 };
    kernels::pool2d_max_forward(
        gpu,
        x.dtype(),
        span.vector(),
        unrolled,
        grid,
        0,
        to,
        bytes,
        x.ptr(),
        window,
        oh,
        ow,
        span,
    )?;
    Ok((y, argmax))
}

pub(super) fn max_backward(
    gpu: &Gpu,
    dy: &Tensor,
    argmax: &Argmax,
    x: Shape,
    pool: Pool2d,
) -> Result<Tensor> {
    let (span, grid) = span("pool2d::max_backward", x.pixels(), x.c)?;
    let mut dx = Tensor::uninit(gpu, x, dy.dtype())?;
    let (to, bytes, window) = (dx.ptr_mut()?, argmax.bytes.ptr(), window(x, pool));
    let (h, w) = (divisor(x.h), divisor(x.w));
    let (oh, ow) = (dy.shape().h as u32, dy.shape().w as u32);
    let t = dy.dtype();
    kernels::pool2d_max_backward(
        gpu,
        t,
        span.vector(),
        grid,
        0,
        to,
        dy.ptr(),
        bytes,
        window,
        h,
        w,
        oh,
        ow,
        span,
    )?;
    Ok(dx)
}

fn scale(pool: Pool2d) -> f32 {
    (1.0 / (pool.k as f64 * pool.k as f64)) as f32
}

pub(super) fn average_forward(gpu: &Gpu, x: &Tensor, shape: Shape, pool: Pool2d) -> Result<Tensor> {
    const OP: &str = "pool2d::average_forward";
    span(OP, x.shape().pixels(), shape.c)?;
    let (span, grid) = span(OP, shape.pixels(), shape.c)?;
    let mut y = Tensor::uninit(gpu, shape, x.dtype())?;
    let (to, window) = (y.ptr_mut()?, window(x.shape(), pool));
    let (oh, ow) = (divisor(shape.h), divisor(shape.w));
    let (t, scale) = (x.dtype(), scale(pool));
    kernels::pool2d_average_forward(
        gpu,
        t,
        span.vector(),
        grid,
        0,
        to,
        x.ptr(),
        window,
        oh,
        ow,
        span,
        scale,
    )?;
    Ok(y)
}

pub(super) fn average_backward(gpu: &Gpu, dy: &Tensor, x: Shape, pool: Pool2d) -> Result<Tensor> {
    let (span, grid) = span("pool2d::average_backward", x.pixels(), x.c)?;
    let mut dx = Tensor::uninit(gpu, x, dy.dtype())?;
    let (to, window, scale) = (dx.ptr_mut()?, window(x, pool), scale(pool));
    let (h, w) = (divisor(x.h), divisor(x.w));
    let (oh, ow) = (dy.shape().h as u32, dy.shape().w as u32);
    let (t, dy) = (dy.dtype(), dy.ptr());
    kernels::pool2d_average_backward(
        gpu,
        t,
        span.vector(),
        grid,
        0,
        to,
        dy,
        window,
        h,
        w,
        oh,
        ow,
        span,
        scale,
    )?;
    Ok(dx)
}

pub(super) fn global_average_forward(gpu: &Gpu, x: &Tensor, shape: Shape) -> Result<Tensor> {
    const OP: &str = "pool2d::global_average_forward";
    let pixels = x.shape().h * x.shape().w;
    // One block takes all pixels of an image.
    let (mut span, mut grid) = span_of(OP, pixels, shape.c, usize::MAX)?;
    span.each = span.pixels.div_ceil(256 >> span.log_lanes);
    grid[0] = 1;
    // Images are the grid's third size, which is short.
    const MOST: usize = 65_535;
    if shape.n > MOST {
        let expected = format!("at most {MOST} images on a GPU");
        return Err(Error::argument(OP, "x", expected, x.shape()));
    }
    grid[2] = shape.n as u32;
    let mut y = Tensor::uninit(gpu, shape, x.dtype())?;
    let to = y.ptr_mut()?;
    kernels::pool2d_global_forward(gpu, x.dtype(), span.vector(), grid, 0, to, x.ptr(), span)?;
    Ok(y)
}

pub(super) fn global_average_backward(gpu: &Gpu, dy: &Tensor, x: Shape) -> Result<Tensor> {
    let (span, grid) = span("pool2d::global_average_backward", x.pixels(), x.c)?;
    let mut dx = Tensor::uninit(gpu, x, dy.dtype())?;
    let to = dx.ptr_mut()?;
    let pixels = x.h * x.w;
    let scale = (1.0 / pixels as f64) as f32;
    let t = dy.dtype();
    kernels::pool2d_global_backward(
        gpu,
        t,
        span.vector(),
        grid,
        0,
        to,
        dy.ptr(),
        divisor(pixels),
        span,
        scale,
    )?;
    Ok(dx)
}
