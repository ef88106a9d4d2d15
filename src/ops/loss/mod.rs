//! Softmax, softmax cross-entropy and the loss of distillation.

mod distillation;
pub(crate) mod gpu;
mod metrics;

pub use distillation::{Scaling, distillation};
pub use metrics::{Metrics, Totals, count_step, cross_entropy_step};

use super::simd::{block_of, for_blocks};
use crate::dispatch;
use crate::error::{Error, Result};
use crate::gpu::Ptr;
use crate::tensor::{Real, Shape, Tensor};

/// An error unless these are logits: `[n, 1, 1, classes]` with at least one row and class.
pub(super) fn check_logits(op: &'static str, logits: &Tensor) -> Result<Shape> {
    let shape = logits.shape();
    if shape.h != 1 || shape.w != 1 || shape.is_empty() {
        return Err(Error::argument(op, "logits", "[n, 1, 1, classes]", shape));
    }
    Ok(shape)
}

/// An error naming the row unless there is one class in `0..classes` per row.
pub(super) fn check_classes(
    op: &'static str,
    arg: &'static str,
    classes: &[u32],
    logits: Shape,
) -> Result<()> {
    if classes.len() != logits.n {
        let expected = format!("{} entries, one per row", logits.n);
        return Err(Error::argument(op, arg, expected, classes.len()));
    }
    match classes.iter().position(|&t| t as usize >= logits.c) {
        None => Ok(()),
        Some(row) => Err(Error::argument(
            op,
            arg,
            format_args!("classes below {}", logits.c),
            format_args!("{} in row {row}", classes[row]),
        )),
    }
}

/// Position of the largest entry, the first of equals; the first NaN if there is one.
pub(crate) fn largest<T: Real>(row: &[T]) -> usize {
    let mut best = 0;
    for (i, &z) in row.iter().enumerate() {
        if z > row[best] || (z.is_nan() && !row[best].is_nan()) {
            best = i;
        }
    }
    best
}

/// Maximum `m` of a row and `s = sum of exp(z_i - m)` over all entries but that one, so that the
/// log-sum-exp is `m + ln(1 + s)`: no overflow, and no digit lost where one logit dominates.
fn max_and_rest<T: Real>(row: &[T]) -> (f64, f64) {
    let best = largest(row);
    let m = row[best].f64();
    let rest = row.iter().enumerate().filter(|&(i, _)| i != best);
    (m, rest.map(|(_, z)| (z.f64() - m).exp()).sum())
}

/// Loss per row, in nats (f64, from a stable log-sum-exp), and the gradient of the **mean** over
/// rows in the logits. logits `[n, 1, 1, classes]`, labels `n` class indices.
///
/// The loss of a row that holds a NaN or plus infinity is not finite. On a GPU it waits for the
/// losses; [`cross_entropy_step`] does not.
///
/// Errors: other shapes; a label that is not below `classes`, with its row.
pub fn cross_entropy(logits: &Tensor, labels: &[u32]) -> Result<(Vec<f64>, Tensor)> {
    const OP: &str = "loss::cross_entropy";
    let shape = check_logits(OP, logits)?;
    check_classes(OP, "labels", labels, shape)?;
    if let Some(gpu) = logits.gpu() {
        let losses = gpu::cross_entropy(OP, gpu, logits, &gpu.upload(labels)?, Ptr::null())?;
        return Ok((losses.per_row.to_vec()?, losses.dlogits));
    }
    let n = shape.n as f64;
    dispatch!(logits.dtype(), T => {
        let mut grad = Vec::with_capacity(shape.len());
        let mut loss = Vec::with_capacity(shape.n);
        for (row, &label) in logits.data::<T>().chunks(shape.c).zip(labels) {
            let (m, rest) = max_and_rest(row);
            loss.push((m - row[label as usize].f64()) + rest.ln_1p());
            for (i, z) in row.iter().enumerate() {
                let p = (z.f64() - m).exp() / (1.0 + rest);
                let hit = if i == label as usize { 1.0 } else { 0.0 };
                grad.push(T::of((p - hit) / n));
            }
        }
        Ok((loss, Tensor::from_vec(shape, grad)?))
    })
}

/// Applies `f(z, maximum, rest)` to every entry of the logits, in double precision: softmax or, if
/// `log`, its logarithm.
fn map_rows(
    op: &'static str,
    logits: &Tensor,
    log: bool,
    f: impl Fn(f64, f64, f64) -> f64 + Sync,
) -> Result<Tensor> {
    let shape = check_logits(op, logits)?;
    if let Some(gpu) = logits.gpu() {
        return gpu::softmax(op, gpu, logits, log);
    }
    dispatch!(logits.dtype(), T => {
        let data = logits.data::<T>();
        let mut out = vec![T::of(0.0); shape.len()];
        for_blocks(shape.len(), &mut out, block_of(shape.c), |start, out| {
            let rows = data[start..start + out.len()].chunks(shape.c);
            for (out, row) in out.chunks_mut(shape.c).zip(rows) {
                let (m, rest) = max_and_rest(row);
                for (out, z) in out.iter_mut().zip(row) {
                    *out = T::of(f(z.f64(), m, rest));
                }
            }
        });
        Tensor::from_vec(shape, out)
    })
}

/// Softmax of each row. logits and result `[n, 1, 1, classes]`.
///
/// Errors: other shapes.
pub fn softmax(logits: &Tensor) -> Result<Tensor> {
    map_rows("loss::softmax", logits, false, |z, m, rest| {
        (z - m).exp() / (1.0 + rest)
    })
}

/// Logarithm of the softmax of each row. logits and result `[n, 1, 1, classes]`.
///
/// Errors: other shapes.
pub fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    map_rows("loss::log_softmax", logits, true, |z, m, rest| {
        (z - m) - rest.ln_1p()
    })
}

/// Index of the largest entry of each row (the first of equals; of the first NaN if there is one).
/// logits `[n, 1, 1, classes]`.
///
/// Errors: other shapes.
pub fn argmax(logits: &Tensor) -> Result<Vec<u32>> {
    const OP: &str = "loss::argmax";
    let shape = check_logits(OP, logits)?;
    if let Some(gpu) = logits.gpu() {
        return gpu::argmax(OP, gpu, logits)?.to_vec();
    }
    dispatch!(logits.dtype(), T => {
        let rows = logits.data::<T>().chunks(shape.c);
        Ok(rows.map(|row| largest(row) as u32).collect())
    })
}
