//! Adam (Kingma and Ba 2015).

pub(crate) mod gpu;

use rayon::prelude::*;

use super::simd::{BLOCK, block_of, multiversion};
use crate::dispatch;
use crate::error::{Error, Result};
use crate::ops::step::{Cursor, LearningRates, LossScale, MultiTensor};
use crate::tensor::{Real, Tensor};

/// Hyper-parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// Step size.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Default for Adam {
    fn default() -> Self {
        Adam {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
        }
    }
}

impl Adam {
    pub(crate) fn check(self, op: &'static str) -> Result<()> {
        for (arg, value) in [("adam.lr", self.lr), ("adam.eps", self.eps)] {
            Error::unless_not_negative(op, arg, value)?;
        }
        for (arg, value) in [("adam.beta1", self.beta1), ("adam.beta2", self.beta2)] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::argument(op, arg, "a number in [0, 1)", value));
            }
        }
        Ok(())
    }
}

/// Factors of one row's update: `step = lr / (1 - beta1^t)`, `root = 1 / sqrt(1 - beta2^t)`.
#[derive(Clone, Copy)]
struct Rates<T> {
    beta1: T,
    rest1: T,
    beta2: T,
    rest2: T,
    step: T,
    root: T,
    eps: T,
}

impl<T: Real> Rates<T> {
    fn new(adam: Adam, t: u32) -> Self {
        let t = f64::from(t);
        Rates {
            beta1: T::of(adam.beta1),
            rest1: T::of(1.0 - adam.beta1),
            beta2: T::of(adam.beta2),
            rest2: T::of(1.0 - adam.beta2),
            step: T::of(adam.lr / (1.0 - adam.beta1.powf(t))),
            root: T::of(1.0 / (1.0 - adam.beta2.powf(t)).sqrt()),
            eps: T::of(adam.eps),
        }
    }
}

multiversion! {
    fn update<T>(w: &mut [T], grad: &[T], m: &mut [T], v: &mut [T], r: Rates<T>) {
        for (((w, &g), m), v) in w.iter_mut().zip(grad).zip(m).zip(v) {
            *m = r.beta1 * *m + r.rest1 * g;
            *v = r.beta2 * *v + r.rest2 * (g * g);
            // w -= lr mhat / (sqrt(vhat) + eps), the hats (1 - beta^t) in `step` and `root`
            *w -= r.step * *m / (v.sqrt() * r.root + r.eps);
        }
    }
}

/// One update; `t[i]` counts row `i`'s steps from 1, so that rows of a batch may start anew.
/// `w`, `grad`, `m`, `v` have one shape, `t` has `n` entries; a row with `t = 0` stays untouched.
///
/// Errors: a tensor does not fit `w`; `t` has not `n` entries; a beta outside `[0, 1)`, or `lr` or
/// `eps` negative or not finite.
pub fn step(
    w: &mut Tensor,
    grad: &Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    t: &[u32],
    adam: Adam,
) -> Result<()> {
    const OP: &str = "adam::step";
    let (shape, kind) = (w.shape(), w.kind().master());
    w.expect(OP, "w", shape, kind)?;
    grad.expect(OP, "grad", shape, kind)?;
    m.expect(OP, "m", shape, kind)?;
    v.expect(OP, "v", shape, kind)?;
    if t.len() != shape.n {
        let expected = format!("{} entries, one per row", shape.n);
        return Err(Error::argument(OP, "t", expected, t.len()));
    }
    adam.check(OP)?;
    if shape.is_empty() {
        return Ok(());
    }
    if let Some(gpu) = w.gpu().cloned() {
        return gpu::step(OP, &gpu, w, grad, m, v, t, adam);
    }
    dispatch!(w.dtype(), T => step_typed::<T>(w, grad, m, v, t, adam));
    Ok(())
}

/// One step of all parameters of a network on a GPU, in one launch and without waiting, as
/// [`sgd::step_all`](crate::ops::sgd::step_all); the loss scale counts the steps.
///
/// Errors: parameters without two moments; an argument on another device; a beta outside `[0, 1)`, or
/// `lr` or `eps` negative or not finite.
pub fn step_all(
    tensors: &MultiTensor,
    rates: &LearningRates,
    cursor: &Cursor,
    scale: &mut LossScale,
    adam: Adam,
) -> Result<()> {
    const OP: &str = "adam::step_all";
    tensors.expect_state(OP, true)?;
    adam.check(OP)?;
    scale.check(tensors)?;
    gpu::step_all(OP, tensors, rates, cursor, scale, adam)
}

fn step_typed<T: Real>(
    w: &mut Tensor,
    grad: &Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    t: &[u32],
    adam: Adam,
) {
    let row = w.shape().row_len();
    let (w, grad) = (w.data_mut::<T>(), grad.data::<T>());
    let (m, v) = (m.data_mut::<T>(), v.data_mut::<T>());
    let rows = |w: &mut [T], grad: &[T], m: &mut [T], v: &mut [T], t: &[u32]| {
        let tensors = w.chunks_mut(row).zip(grad.chunks(row));
        let moments = m.chunks_mut(row).zip(v.chunks_mut(row));
        for (((w, grad), (m, v)), &t) in tensors.zip(moments).zip(t) {
            if t > 0 {
                update(w, grad, m, v, Rates::new(adam, t));
            }
        }
    };
    if w.len() <= BLOCK {
        return rows(w, grad, m, v, t);
    }
    let block = block_of(row);
    (
        w.par_chunks_mut(block),
        grad.par_chunks(block),
        m.par_chunks_mut(block),
        v.par_chunks_mut(block),
        t.par_chunks(block / row),
    )
        .into_par_iter()
        .for_each(|(w, grad, m, v, t)| rows(w, grad, m, v, t));
}
