//! Batch norm by running statistics as part of the convolution in front of it.

use super::{EPS, Running, gpu};
use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::{Real, Shape, Tensor};

/// Batch norm by running statistics, as part of the convolution in front of it:
/// `w' = w gamma inv_std`, `b' = (b - mean) gamma inv_std + beta`, `inv_std = 1 / sqrt(var + eps)`.
/// Returns `(w', b')`, computed in f64 and rounded once.
///
/// Networks that were folded give the same numbers as before up to the rounding of `w'` and `b'`.
///
/// Errors: a vector does not fit `w`'s output channels; on the CPU a variance below 0.
pub fn fold(
    w: &Tensor,
    b: Option<&Tensor>,
    affine: Option<(&Tensor, &Tensor)>,
    running: &Running,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "batch_norm::fold";
    let (vector, kind) = (Shape::vector(w.shape().n), w.kind());
    let vectors = [
        ("b", b),
        ("gamma", affine.map(|(gamma, _)| gamma)),
        ("beta", affine.map(|(_, beta)| beta)),
        ("running.mean", Some(&running.mean)),
        ("running.var", Some(&running.var)),
    ];
    for (arg, v) in vectors {
        if let Some(v) = v {
            v.expect(OP, arg, vector, kind)?;
        }
    }
    if let Some(gpu) = w.gpu() {
        return gpu::fold(OP, gpu, w, b, affine, running);
    }
    let row = w.shape().row_len();
    dispatch!(w.dtype(), T => {
        let at = |t: Option<&Tensor>, i: usize, otherwise: f64| {
            t.map_or(otherwise, |t| t.data::<T>()[i].f64())
        };
        let (gamma, beta) = (affine.map(|a| a.0), affine.map(|a| a.1));
        let mut folded = w.data::<T>().to_vec();
        let mut shift = Vec::with_capacity(vector.c);
        for (i, w) in folded.chunks_exact_mut(row).enumerate() {
            let var = running.var.data::<T>()[i].f64();
            if var < 0.0 {
                let found = format!("{var} in channel {i}");
                return Err(Error::argument(OP, "running.var", "at least 0", found));
            }
            let scale = at(gamma, i, 1.0) / (var + EPS).sqrt();
            w.iter_mut().for_each(|w| *w = T::of(w.f64() * scale));
            let mean = running.mean.data::<T>()[i].f64();
            shift.push(T::of(
                (at(b, i, 0.0) - mean).mul_add(scale, at(beta, i, 0.0)),
            ));
        }
        Ok((Tensor::from_vec(w.shape(), folded)?, Tensor::from_vec(vector, shift)?))
    })
}
