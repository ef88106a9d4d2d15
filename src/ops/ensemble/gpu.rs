//! Launches on a GPU. Arguments are checked by the callers.

use std::ops::Range;
use std::sync::Arc;

use super::Average;
use crate::error::{Error, Result};
use crate::gpu::kernels::ensemble as kernels;
use crate::gpu::{Buffer, Gpu, launch_blocks, launch_size};
use crate::ops::loss;
use crate::ops::noise::{Row, Rows};
use crate::tensor::{Shape, Tensor};

/// Elements a thread of a kernel over rows handles, and whether as vectors.
fn per_thread(x: &Tensor) -> (usize, bool) {
    let n = 16 / x.dtype().size();
    match x.shape().row_len().is_multiple_of(n) {
        true => (n, true),
        false => (1, false),
    }
}

pub(super) fn repeat(
    op: &'static str,
    gpu: &Gpu,
    x: &Tensor,
    range: Range<usize>,
    draws: usize,
) -> Result<Tensor> {
    let (len, dtype) = (x.shape().row_len(), x.dtype());
    let n = range.len() * len;
    let mut y = Tensor::uninit(gpu, x.shape().with_n(range.len() * draws), dtype)?;
    let (per_thread, vectors) = per_thread(x);
    kernels::ensemble_repeat(
        gpu,
        dtype,
        // Rows of whole vectors begin at whole vectors.
        vectors,
        [launch_blocks(op, n, 256 * per_thread)?, 1, 1],
        0,
        y.ptr_mut()?,
        x.ptr().offset(range.start * len * dtype.size()),
        len as u64,
        n as u64,
        launch_size(op, "draws", draws)?,
    )?;
    Ok(y)
}

pub(super) fn repeat_rows(
    op: &'static str,
    gpu: &Gpu,
    rows: &Rows,
    range: Range<usize>,
    draws: usize,
) -> Result<Rows> {
    let (n, total) = (range.len(), range.len().saturating_mul(draws));
    launch_size(op, "rows", total)?;
    let mut out = gpu.alloc::<Row>(total)?;
    kernels::ensemble_rows(
        gpu,
        [launch_blocks(op, total, 256)?, 1, 1],
        0,
        out.ptr_mut(),
        rows.ptr(gpu)?.offset(range.start * size_of::<Row>()),
        n as u32,
        draws as u32,
    )?;
    Ok(Rows::on_device(Arc::new(out)))
}

pub(super) fn concat_rows(gpu: &Gpu, parts: &[Tensor], shape: Shape) -> Result<Tensor> {
    let mut all = Tensor::uninit(gpu, shape, parts[0].dtype())?;
    let to = all.ptr_mut()?.address;
    let mut at = 0;
    for part in parts {
        let bytes = part.shape().len() * part.dtype().size();
        gpu.copy_within(to + at as u64, part.ptr().address, bytes)?;
        at += bytes;
    }
    Ok(all)
}

pub(super) fn sum_draws(op: &'static str, gpu: &Gpu, x: &Tensor, draws: usize) -> Result<Tensor> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let mut y = Tensor::uninit(gpu, shape.with_n(shape.n / draws), dtype)?;
    let n = y.shape().len();
    let (per_thread, vectors) = per_thread(x);
    kernels::ensemble_sum_draws(
        gpu,
        dtype,
        vectors,
        [launch_blocks(op, n, 256 * per_thread)?, 1, 1],
        0,
        y.ptr_mut()?,
        x.ptr(),
        shape.row_len() as u64,
        n as u64,
        launch_size(op, "draws", draws)?,
    )?;
    Ok(y)
}

fn normalisers(op: &'static str, gpu: &Gpu, z: &Tensor) -> Result<Buffer<kernels::Normaliser>> {
    let shape = z.shape();
    let mut out = gpu.alloc(shape.n)?;
    kernels::ensemble_normalisers(
        gpu,
        z.dtype(),
        [launch_blocks(op, shape.n, 8)?, 1, 1],
        0,
        out.ptr_mut(),
        z.ptr(),
        launch_size(op, "z", shape.n)?,
        launch_size(op, "z", shape.c)?,
    )?;
    Ok(out)
}

pub(super) fn combine(
    op: &'static str,
    gpu: &Gpu,
    z: &Tensor,
    draws: usize,
    average: Average,
) -> Result<Tensor> {
    let shape = z.shape().with_n(z.shape().n / draws);
    let mut scores = Tensor::uninit(gpu, shape, z.dtype())?;
    let logits = average == Average::Logits;
    let normalisers = match logits {
        true => None,
        false => Some(normalisers(op, gpu, z)?),
    };
    kernels::ensemble_combine(
        gpu,
        z.dtype(),
        logits,
        [launch_blocks(op, shape.len(), 8)?, 1, 1],
        0,
        scores.ptr_mut()?,
        z.ptr(),
        normalisers
            .as_ref()
            .map_or(crate::gpu::Ptr::null(), Buffer::ptr),
        launch_size(op, "z", shape.n)?,
        launch_size(op, "draws", draws)?,
        launch_size(op, "z", shape.c)?,
    )?;
    Ok(scores)
}

/// Doubles in the shared memory that every GPU has.
const MAX_CLASSES: usize = 48 * 1024 / 8;

pub(super) fn combine_backward(
    op: &'static str,
    gpu: &Gpu,
    z: &Tensor,
    g: &Tensor,
    draws: usize,
    average: Average,
) -> Result<Tensor> {
    let (shape, dtype) = (z.shape(), z.dtype());
    let (images, classes) = (shape.n / draws, launch_size(op, "z", shape.c)?);
    let draws = launch_size(op, "draws", draws)?;
    let mut dz = Tensor::uninit(gpu, shape, dtype)?;
    let (to, n) = (dz.ptr_mut()?, shape.len());
    match average {
        Average::Logits => {
            let grid = [launch_blocks(op, n, 256)?, 1, 1];
            let (g, n) = (g.ptr(), n as u64);
            kernels::ensemble_logits_backward(gpu, dtype, grid, 0, to, g, n, draws, classes)?;
        }
        Average::Votes => unreachable!("a vote has no gradient"),
        Average::Probabilities => {
            if shape.c > MAX_CLASSES {
                let expected = format_args!("at most {MAX_CLASSES} classes");
                return Err(Error::argument(op, "z", expected, shape));
            }
            let normalisers = normalisers(op, gpu, z)?;
            kernels::ensemble_probabilities_backward(
                gpu,
                dtype,
                [launch_blocks(op, images, 1)?, 1, 1],
                classes * size_of::<f64>() as u32,
                to,
                z.ptr(),
                g.ptr(),
                normalisers.ptr(),
                draws,
                classes,
            )?;
        }
    }
    Ok(dz)
}

/// Votes `[n][classes]`, on the device.
pub(super) fn votes(op: &'static str, gpu: &Gpu, z: &Tensor, draws: usize) -> Result<Buffer<u32>> {
    let shape = z.shape().with_n(z.shape().n / draws);
    let predictions = loss::gpu::argmax(op, gpu, z)?;
    let mut votes = gpu.zeros(shape.len())?;
    kernels::ensemble_votes(
        gpu,
        [launch_blocks(op, shape.len(), 8)?, 1, 1],
        0,
        votes.ptr_mut(),
        predictions.ptr(),
        launch_size(op, "z", shape.n)?,
        launch_size(op, "draws", draws)?,
        launch_size(op, "z", shape.c)?,
    )?;
    Ok(votes)
}
