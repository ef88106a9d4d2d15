//! Stochastic gradient descent with momentum and weight decay (PyTorch's rule).

use rayon::prelude::*;

use super::simd::{BLOCK, multiversion};
use crate::dispatch;
use crate::error::{Error, Result};
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
/// All three tensors have one shape and dtype; the velocity starts as zeros.
///
/// Errors: `grad` or `velocity` does not fit `w`; a hyper-parameter is negative or not finite.
pub fn step(w: &mut Tensor, grad: &Tensor, velocity: &mut Tensor, sgd: Sgd) -> Result<()> {
    const OP: &str = "sgd::step";
    grad.expect(OP, "grad", w.shape(), w.dtype())?;
    velocity.expect(OP, "velocity", w.shape(), w.dtype())?;
    for (arg, value) in [
        ("sgd.lr", sgd.lr),
        ("sgd.momentum", sgd.momentum),
        ("sgd.weight_decay", sgd.weight_decay),
    ] {
        Error::unless_not_negative(OP, arg, value)?;
    }
    dispatch!(w.dtype(), T => step_typed::<T>(w, grad, velocity, sgd));
    Ok(())
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
