//! Stochastic gradient descent with momentum and weight decay (PyTorch's rule).

mod gpu;

use rayon::prelude::*;

use super::simd::{BLOCK, multiversion};
use crate::dispatch;
use crate::error::{Error, Result};
use crate::ops::step::{Cursor, LearningRates, LossScale, MultiTensor};
use crate::tensor::{Real, Tensor};

/// Hyper-parameters of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// Momentum.
    pub momentum: f64,
    /// L2 weight decay, added to the gradient.
    pub weight_decay: f64,
    /// Nesterov's variant.
    pub nesterov: bool,
}

impl Sgd {
    fn check(self, op: &'static str) -> Result<()> {
        for (arg, value) in [
            ("sgd.lr", self.lr),
            ("sgd.momentum", self.momentum),
            ("sgd.weight_decay", self.weight_decay),
        ] {
            Error::unless_not_negative(op, arg, value)?;
        }
        Ok(())
    }
}

multiversion! {
    fn update<T>(w: &mut [T], grad: &[T], velocity: &mut [T], sgd: Sgd) {
        let (lr, momentum) = (T::of(sgd.lr), T::of(sgd.momentum));
        let weight_decay = T::of(sgd.weight_decay);
        for ((w, &grad), v) in w.iter_mut().zip(grad).zip(velocity) {
            let g = grad + weight_decay * *w;
            *v = momentum * *v + g;
            *w -= lr * if sgd.nesterov { g + momentum * *v } else { *v };
        }
    }
}

/// `g = grad + weight_decay w; v = momentum v + g; w -= lr (nesterov ? g + momentum v : v)`.
///
/// All three tensors have one shape and dtype (f32 on a GPU); the velocity starts as zeros.
///
/// Errors: `grad` or `velocity` does not fit `w`; a hyper-parameter is negative or not finite.
pub fn step(w: &mut Tensor, grad: &Tensor, velocity: &mut Tensor, sgd: Sgd) -> Result<()> {
    const OP: &str = "sgd::step";
    let kind = w.kind().master();
    w.expect(OP, "w", w.shape(), kind)?;
    grad.expect(OP, "grad", w.shape(), kind)?;
    velocity.expect(OP, "velocity", w.shape(), kind)?;
    sgd.check(OP)?;
    if let Some(gpu) = w.gpu().cloned() {
        return gpu::step(OP, &gpu, w, grad, velocity, sgd);
    }
    dispatch!(w.dtype(), T => step_typed::<T>(w, grad, velocity, sgd));
    Ok(())
}

/// One step of all parameters of a network on a GPU, in one launch and without waiting. The rate is
/// the cursor's batch's in `rates`, not `sgd.lr`; gradients are divided by the loss scale and become 0.
/// Where one of f16 training is not finite, that is all that happens.
///
/// Errors: parameters without a velocity or with more state; an argument on another device; a
/// hyper-parameter that is negative or not finite.
pub fn step_all(
    tensors: &MultiTensor,
    rates: &LearningRates,
    cursor: &Cursor,
    scale: &mut LossScale,
    sgd: Sgd,
) -> Result<()> {
    const OP: &str = "sgd::step_all";
    tensors.expect_state(OP, false)?;
    sgd.check(OP)?;
    scale.check(tensors)?;
    gpu::step_all(OP, tensors, rates, cursor, scale, sgd)
}

fn step_typed<T: Real>(w: &mut Tensor, grad: &Tensor, velocity: &mut Tensor, sgd: Sgd) {
    let (w, grad, velocity) = (
        w.data_mut::<T>(),
        grad.data::<T>(),
        velocity.data_mut::<T>(),
    );
    if w.len() <= BLOCK {
        return update(w, grad, velocity, sgd);
    }
    (
        w.par_chunks_mut(BLOCK),
        grad.par_chunks(BLOCK),
        velocity.par_chunks_mut(BLOCK),
    )
        .into_par_iter()
        .for_each(|(w, grad, velocity)| update(w, grad, velocity, sgd));
}
