//! `min(max(x, 0), cap)`: ReLU without a cap, BReLU (Zantedeschi et al. 2017) with one.
//!
//! The derivative at the two kinks, `x = 0` and `x = cap`, is taken as 0.

pub(super) mod gpu;
mod mask;

use super::simd::{BLOCK, for_blocks, multiversion};
use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::{Real, Tensor};

pub use mask::{Mask, backward_mask, forward_mask};

/// One element of the forward pass; NaN fails both comparisons and stays.
#[inline(always)]
pub(super) fn clip<T: Real>(x: T, cap: T) -> T {
    let x = if x <= T::zero() { T::zero() } else { x };
    if x >= cap { cap } else { x }
}

/// One element of the backward pass, from the output (or from the value before the clip).
#[inline(always)]
pub(super) fn gate<T: Real>(dy: T, y: T, cap: T) -> T {
    // `&`, not `&&`: two comparisons and a mask, no branch.
    if (y > T::zero()) & (y < cap) {
        dy
    } else {
        T::zero()
    }
}

multiversion! {
    fn clip_all<T>(x: &mut [T], cap: T) {
        for x in x {
            *x = clip(*x, cap);
        }
    }

    fn gate_all<T>(dy: &mut [T], y: &[T], cap: T) {
        for (dy, &y) in dy.iter_mut().zip(y) {
            *dy = gate(*dy, y, cap);
        }
    }
}

/// The cap as a number: infinity where there is none. An error unless it is above 0.
pub(super) fn cap_value(op: &'static str, cap: Option<f64>) -> Result<f64> {
    match cap {
        None => Ok(f64::INFINITY),
        Some(cap) if cap > 0.0 => Ok(cap),
        Some(cap) => Err(Error::argument(op, "cap", "a number above 0", cap)),
    }
}

/// x and y `[n, h, w, c]`; works in place where `x` is not shared. NaN stays NaN.
///
/// Errors: a cap that is not above 0.
pub fn forward(mut x: Tensor, cap: Option<f64>) -> Result<Tensor> {
    let cap = cap_value("relu::forward", cap)?;
    if let Some(gpu) = x.gpu().cloned() {
        return gpu::forward(&gpu, x, cap);
    }
    let len = x.shape().len();
    dispatch!(x.dtype(), T => {
        for_blocks(len, x.data_mut::<T>(), BLOCK, |_, x| clip_all(x, T::of(cap)));
    });
    Ok(x)
}

/// `dx = dy` where `0 < y < cap`, else 0 (from the output: `y` decides as `x` would).
///
/// Errors: `y` has another shape, dtype or device than `dy`; a cap that is not above 0.
pub fn backward(mut dy: Tensor, y: &Tensor, cap: Option<f64>) -> Result<Tensor> {
    let cap = cap_value("relu::backward", cap)?;
    y.expect("relu::backward", "y", dy.shape(), dy.kind())?;
    if let Some(gpu) = y.gpu() {
        return gpu::backward(gpu, dy, y, cap);
    }
    dispatch!(dy.dtype(), T => {
        let y = y.data::<T>();
        for_blocks(y.len(), dy.data_mut::<T>(), BLOCK, |start, dy| {
            gate_all(dy, &y[start..start + dy.len()], T::of(cap));
        });
    });
    Ok(dy)
}
