//! The Carlini-Wagner margin on logits (Carlini and Wagner 2017, f_6).

mod gpu;

use super::loss::{check_classes, check_logits};
use crate::dispatch;
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Ptr};
use crate::tensor::{Real, Shape, Tensor};

/// What a GPU tells of a row.
pub use crate::gpu::kernels::Margin;

/// Whether an attack moves away from a class or towards one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// `classes[i]` is the true label: `max(Z_t - max_{i != t} Z_i, -kappa)`.
    Away,
    /// `classes[i]` is the target: `max(max_{i != t} Z_i - Z_t, -kappa)`.
    Towards,
}

/// Margin per row (in f64) and the gradient of the **sum** over rows in the logits, each row's
/// scaled by `weight[i]` (C&W's c). The hinge's gradient is 0 where the margin is at or below `-kappa`.
///
/// logits and gradient `[n, 1, 1, classes]`; the margins themselves are not scaled. Of equally
/// large other classes the first gets the gradient. A row with a NaN has a NaN margin. On a GPU it
/// waits for the margins; [`attack_step`] does not.
///
/// Errors: other shapes; fewer than two classes; a class that is not below `classes`, with its
/// row; `kappa` negative or not finite; a weight that is not finite, with its row.
pub fn forward_backward(
    logits: &Tensor,
    classes: &[u32],
    direction: Direction,
    kappa: f64,
    weight: &[f64],
) -> Result<(Vec<f64>, Tensor)> {
    const OP: &str = "margin::forward_backward";
    let shape = check(OP, logits, kappa)?;
    check_classes(OP, "classes", classes, shape)?;
    if weight.len() != shape.n {
        let expected = format!("{} entries, one per row", shape.n);
        return Err(Error::argument(OP, "weight", expected, weight.len()));
    }
    if let Some(row) = weight.iter().position(|c| !c.is_finite()) {
        let found = format!("{} in row {row}", weight[row]);
        return Err(Error::argument(OP, "weight", "finite numbers", found));
    }
    if let Some(gpu) = logits.gpu() {
        let weight = gpu.upload(weight)?;
        let mut margins = gpu.alloc(shape.n)?;
        let hinge = gpu::Hinge {
            direction,
            kappa,
            weight: weight.ptr(),
            scale: 1.0,
        };
        let grad =
            gpu::forward_backward(OP, gpu, logits, &gpu.upload(classes)?, hinge, &mut margins)?;
        return Ok((margins.to_vec()?.iter().map(|m| m.value).collect(), grad));
    }
    let sign = match direction {
        Direction::Away => 1.0,
        Direction::Towards => -1.0,
    };
    dispatch!(logits.dtype(), T => {
        let mut grad = Tensor::zeros(shape, logits.dtype());
        let mut margins = Vec::with_capacity(shape.n);
        let rows = logits.data::<T>().chunks(shape.c).zip(grad.data_mut::<T>().chunks_mut(shape.c));
        for ((row, grad), (&t, &c)) in rows.zip(classes.iter().zip(weight)) {
            let t = t as usize;
            let other = largest_other(row, t);
            let margin = sign * (row[t].f64() - row[other].f64());
            if margin <= -kappa {
                margins.push(-kappa);
            } else {
                margins.push(margin);
                grad[t] = T::of(sign * c);
                grad[other] = T::of(-sign * c);
            }
        }
        Ok((margins, grad))
    })
}

/// Shape of logits with two classes or more; an error unless they are, or `kappa` is no confidence.
fn check(op: &'static str, logits: &Tensor, kappa: f64) -> Result<Shape> {
    let shape = check_logits(op, logits)?;
    if shape.c < 2 {
        return Err(Error::argument(op, "logits", "at least 2 classes", shape));
    }
    Error::unless_not_negative(op, "kappa", kappa)?;
    Ok(shape)
}

/// [`forward_backward`] inside an attack's step on a GPU: classes lie there, the margins go to
/// `margins` together with the verdict by the prediction, and nothing waits.
///
/// The gradient is that of the sum of the margins times `scale`, the same power of two for every row:
/// the rows' own weights would leave the range of 16-bit gradients, so that whoever takes the
/// gradient on (`tanh_space::Iterates::step`) multiplies by them. Logits that are not finite are
/// counted in [`Margin::not_finite`].
///
/// Errors: other shapes; logits on the CPU; fewer than two classes; `kappa` negative or not finite;
/// another argument on another device.
pub fn attack_step(
    logits: &Tensor,
    classes: &Buffer<u32>,
    direction: Direction,
    kappa: f64,
    scale: f32,
    margins: &mut Buffer<Margin>,
) -> Result<Tensor> {
    const OP: &str = "margin::attack_step";
    let shape = check(OP, logits, kappa)?;
    let gpu = logits.expect_gpu(OP, "logits")?;
    classes.expect(OP, "classes", shape.n, gpu)?;
    margins.expect(OP, "margins", shape.n, gpu)?;
    let hinge = gpu::Hinge {
        direction,
        kappa,
        weight: Ptr::null(),
        scale,
    };
    gpu::forward_backward(OP, gpu, logits, classes, hinge, margins)
}

/// Position of the largest entry but `t`'s (the first of equals; of the first NaN if there is one).
pub(crate) fn largest_other<T: Real>(row: &[T], t: usize) -> usize {
    let mut best = usize::from(t == 0);
    for (i, &z) in row.iter().enumerate() {
        if i != t && (z > row[best] || (z.is_nan() && !row[best].is_nan())) {
            best = i;
        }
    }
    best
}
