//! Batch normalisation over channels (Ioffe and Szegedy 2015), with an optional fused (bounded) ReLU.
//!
//! Per channel, `xhat = (x - mean) inv_std` with `inv_std = 1 / sqrt(var + eps)` and
//! `y = act(gamma xhat + beta)`. Every pass goes over the tensor once: training reads `x` for the
//! statistics and again to normalise; backward reads `dy` and `x` for two sums per channel and
//! again for `dx`.

mod cpu;
mod fold;
pub(super) mod gpu;
mod partials;

use cpu::{Normalise, normalise, vector};

use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::{Real, Shape, Tensor};

pub use fold::fold;
use partials::Chunks;
pub(super) use partials::merge;
pub use partials::{Partials, partials};

/// Activation fused behind the normalisation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// None.
    Identity,
    /// `max(., 0)`.
    Relu,
    /// `min(max(., 0), cap)`.
    BoundedRelu(f64),
}

/// Running estimates, `[1, 1, 1, c]` each: what evaluation normalises with.
#[derive(Debug, Clone)]
pub struct Running {
    /// Running mean.
    pub mean: Tensor,
    /// Running variance (unbiased).
    pub var: Tensor,
}

/// What backward needs of forward: the mean and `1 / sqrt(var + eps)` it normalised with.
#[derive(Debug, Clone)]
pub struct Saved {
    /// Mean per channel.
    pub mean: Tensor,
    /// `1 / sqrt(var + eps)` per channel.
    pub inv_std: Tensor,
    /// Whether they are the batch's own (then backward goes through them) or the running ones.
    pub batch: bool,
}

/// PyTorch's momentum.
pub const MOMENTUM: f64 = 0.1;
/// PyTorch's eps.
pub const EPS: f64 = 1e-5;

pub(super) fn check(
    op: &'static str,
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    activation: Activation,
) -> Result<()> {
    if x.shape().is_empty() {
        return Err(Error::argument(op, "x", "at least one element", x.shape()));
    }
    let vector = Shape::vector(x.shape().c);
    if let Some((gamma, beta)) = affine {
        gamma.expect(op, "gamma", vector, x.kind().master())?;
        beta.expect(op, "beta", vector, x.kind().master())?;
    }
    check_activation(op, activation)
}

pub(super) fn check_activation(op: &'static str, activation: Activation) -> Result<()> {
    match activation {
        Activation::BoundedRelu(cap) if cap.is_nan() || cap <= 0.0 => {
            let expected = "a bound above 0";
            Err(Error::argument(op, "activation", expected, cap))
        }
        _ => Ok(()),
    }
}

/// What normalising with the batch's statistics asks for.
pub(super) fn check_train(op: &'static str, x: &Tensor, running: &Running) -> Result<()> {
    check_running(op, x, running)?;
    if x.shape().pixels() < 2 {
        let expected = "more than one value per channel (n h w > 1)";
        return Err(Error::argument(op, "x", expected, x.shape()));
    }
    Ok(())
}

pub(super) fn check_running(op: &'static str, x: &Tensor, running: &Running) -> Result<()> {
    let vector = Shape::vector(x.shape().c);
    let kind = x.kind().master();
    running.mean.expect(op, "running.mean", vector, kind)?;
    running.var.expect(op, "running.var", vector, kind)
}

/// What a backward pass asks of its arguments beside the activations.
pub(super) fn check_saved(
    op: &'static str,
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    saved: &Saved,
    affine_grads: &Option<(&mut Tensor, &mut Tensor)>,
) -> Result<()> {
    let (vector, kind) = (Shape::vector(x.shape().c), x.kind().master());
    saved.mean.expect(op, "saved.mean", vector, kind)?;
    saved.inv_std.expect(op, "saved.inv_std", vector, kind)?;
    if let Some((dgamma, dbeta)) = affine_grads {
        if affine.is_none() {
            let expected = "none without affine";
            return Err(Error::argument(op, "affine_grads", expected, "some"));
        }
        dgamma.expect(op, "dgamma", vector, kind)?;
        dbeta.expect(op, "dbeta", vector, kind)?;
    }
    Ok(())
}

/// Normalises with the batch's statistics and moves the running ones.
///
/// x and y `[n, h, w, c]`; gamma and beta `[1, 1, 1, c]`, both or neither. The variance that
/// normalises is the biased one, the running estimate takes the unbiased one.
///
/// Errors: a vector does not fit `x`; fewer than two values per channel; a bound not above 0.
pub fn forward_train(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    running: &mut Running,
    activation: Activation,
) -> Result<(Tensor, Saved)> {
    const OP: &str = "batch_norm::forward_train";
    check(OP, x, affine, activation)?;
    check_train(OP, x, running)?;
    let saved = merge(&partials(x)?, running)?;
    let y = forward_saved(x, affine, &saved, activation)?;
    Ok((y, saved))
}

/// Normalises with what an earlier pass saved: the same bits again.
///
/// Errors: a vector does not fit `x`; a bound not above 0.
pub fn forward_saved(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    saved: &Saved,
    activation: Activation,
) -> Result<Tensor> {
    const OP: &str = "batch_norm::forward_saved";
    check(OP, x, affine, activation)?;
    check_saved(OP, x, affine, saved, &None)?;
    if let Some(gpu) = x.gpu() {
        return gpu::forward(OP, gpu, x, affine, saved, activation);
    }
    dispatch!(x.dtype(), T => normalise(x, &Normalise::<T>::new(saved, affine, activation)))
}

/// Normalises with the running statistics: no row depends on another.
///
/// x and y `[n, h, w, c]`; gamma and beta `[1, 1, 1, c]`, both or neither.
///
/// Errors: a vector does not fit `x`; a running variance below 0 (on a GPU it is not read back to be
/// looked at, and gives NaN); a bound not above 0.
pub fn forward_eval(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    running: &Running,
    activation: Activation,
) -> Result<(Tensor, Saved)> {
    const OP: &str = "batch_norm::forward_eval";
    check(OP, x, affine, activation)?;
    check_running(OP, x, running)?;
    let saved = evaluated(OP, running)?;
    let y = forward_saved(x, affine, &saved, activation)?;
    Ok((y, saved))
}

/// What the running statistics normalise with.
pub(super) fn evaluated(op: &'static str, running: &Running) -> Result<Saved> {
    if let Some(gpu) = running.var.gpu() {
        return gpu::eval(gpu, running);
    }
    dispatch!(running.var.dtype(), T => {
        let var = running.var.data::<T>();
        if let Some((i, var)) = var.iter().enumerate().find(|(_, var)| var.f64() < 0.0) {
            let found = format!("{var} in channel {i}");
            return Err(Error::argument(op, "running.var", "at least 0", found));
        }
        Ok(Saved {
            mean: running.mean.clone(),
            inv_std: vector::<T>(var.iter().map(|var| 1.0 / (var.f64() + EPS).sqrt()))?,
            batch: false,
        })
    })
}

/// Gradient in `x`; adds to `(dgamma, dbeta)` if given. `dy` is the gradient behind the
/// activation, whose mask is computed again from `x` and `saved`, not stored.
///
/// dy, x and dx `[n, h, w, c]`; the others `[1, 1, 1, c]`. With `g` the gradient before the
/// activation and means over the `n h w` values of a channel,
/// `dx = gamma inv_std (g - mean(g) - xhat mean(g xhat))` through the batch's statistics,
/// `dx = gamma inv_std g` through running ones; `dgamma = sum(g xhat)`, `dbeta = sum(g)`.
///
/// Errors: a tensor does not fit `x`; `affine_grads` without `affine`; a bound not above 0.
pub fn backward(
    mut dy: Tensor,
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    saved: &Saved,
    activation: Activation,
    affine_grads: Option<(&mut Tensor, &mut Tensor)>,
) -> Result<Tensor> {
    const OP: &str = "batch_norm::backward";
    check(OP, x, affine, activation)?;
    dy.expect(OP, "dy", x.shape(), x.kind())?;
    check_saved(OP, x, affine, saved, &affine_grads)?;
    if let Some(gpu) = x.gpu() {
        return gpu::backward(gpu, dy, x, affine, saved, activation, affine_grads);
    }
    dispatch!(x.dtype(), T => {
        cpu::backward::<T>(&mut dy, x, affine, saved, activation, affine_grads);
    });
    Ok(dy)
}
