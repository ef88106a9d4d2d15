//! Launches on a GPU. Arguments are checked by the callers.

use crate::error::Result;
use crate::gpu::kernels::tanh_space as kernels;
use crate::gpu::{Gpu, launch_blocks, launch_size};
use crate::tensor::{DType, Tensor};

/// `w`, and the place of the first pixel outside of [0, 1]. Waits for it.
pub(super) fn from_image(
    op: &'static str,
    gpu: &Gpu,
    x: &Tensor,
    shrink: f64,
) -> Result<(Tensor, Option<usize>)> {
    let n = launch_size(op, "x", x.shape().len())?;
    let mut w = Tensor::uninit(gpu, x.shape(), DType::F32)?;
    let mut first_bad = gpu.zeros::<u32>(1)?;
    let grid = [launch_blocks(op, n as usize, 256)?, 1, 1];
    let (to, bad) = (w.ptr_mut()?, first_bad.ptr_mut());
    kernels::tanh_space_from_image(gpu, x.dtype(), grid, 0, to, x.ptr(), n, shrink, bad)?;
    let first_bad = match first_bad.to_vec()?[0] {
        0 => None,
        found => Some(!found as usize),
    };
    Ok((w, first_bad))
}

pub(super) fn to_image(op: &'static str, gpu: &Gpu, w: &Tensor, dtype: DType) -> Result<Tensor> {
    let n = w.shape().len();
    let mut x = Tensor::uninit(gpu, w.shape(), dtype)?;
    let grid = [launch_blocks(op, n, 256)?, 1, 1];
    let to = x.ptr_mut()?;
    kernels::tanh_space_to_image(gpu, dtype, grid, 0, to, w.ptr(), n as u64)?;
    Ok(x)
}

pub(super) fn backward(
    op: &'static str,
    gpu: &Gpu,
    adversarial: &Tensor,
    x: &Tensor,
    df: &Tensor,
) -> Result<(Vec<f64>, Tensor)> {
    let shape = adversarial.shape();
    let mut dw = Tensor::uninit(gpu, shape, DType::F32)?;
    let mut squared = gpu.alloc(shape.n)?;
    kernels::tanh_space_backward(
        gpu,
        adversarial.dtype(),
        [launch_blocks(op, shape.n, 1)?, 1, 1],
        0,
        dw.ptr_mut()?,
        squared.ptr_mut(),
        adversarial.ptr(),
        x.ptr(),
        df.ptr(),
        shape.row_len() as u64,
    )?;
    Ok((squared.to_vec()?, dw))
}

pub(super) fn squared_distances(
    op: &'static str,
    gpu: &Gpu,
    a: &Tensor,
    b: &Tensor,
) -> Result<Vec<f64>> {
    let shape = a.shape();
    let mut squared = gpu.alloc(shape.n)?;
    let grid = [launch_blocks(op, shape.n, 1)?, 1, 1];
    let (to, len) = (squared.ptr_mut(), shape.row_len() as u64);
    kernels::tanh_space_squared_distances(gpu, a.dtype(), grid, 0, to, a.ptr(), b.ptr(), len)?;
    squared.to_vec()
}
