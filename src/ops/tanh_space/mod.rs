//! The change of variables of Carlini and Wagner 2017: `x' = (tanh w + 1) / 2` is always an image.

mod gpu;
mod iterates;

pub use iterates::{Attacked, Iterates};

use rayon::prelude::*;

use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::{DType, Real, Tensor};

/// `w = atanh(shrink (2 x - 1))`, x in `[0, 1]`, both `[n, h, w, c]`.
///
/// With `shrink` 1 pixels at exactly 0 or 1 become infinite and can never move, as in the RSE
/// authors' attack; Carlini and Wagner shrink by 0.999999. On a GPU `w` is f32 whatever `x` is, and the
/// call waits for the check.
///
/// Errors: a pixel outside of `[0, 1]`.
pub fn from_image(x: &Tensor, shrink: f64) -> Result<Tensor> {
    const OP: &str = "tanh_space::from_image";
    if let Some(gpu) = x.gpu() {
        let (w, first_bad) = gpu::from_image(OP, gpu, x, shrink)?;
        return match first_bad {
            None => Ok(w),
            Some(i) => {
                let pixel = x.to_cpu()?.data::<f32>()[i];
                Err(Error::argument(OP, "x", "pixels in [0, 1]", pixel))
            }
        };
    }
    dispatch!(x.dtype(), T => {
        let data = x.data::<T>();
        if let Some(bad) = data.iter().find(|v| !(T::of(0.0)..=T::of(1.0)).contains(v)) {
            return Err(Error::argument(OP, "x", "pixels in [0, 1]", bad));
        }
        let w = data
            .par_iter()
            .map(|v| T::of((shrink * (2.0 * v.f64() - 1.0)).atanh()))
            .collect();
        Tensor::from_vec(x.shape(), w)
    })
}

/// `x' = (tanh w + 1) / 2`.
///
/// Errors: a `w` of 16 bits.
pub fn to_image(w: &Tensor) -> Result<Tensor> {
    to_image_as(w, w.dtype())
}

/// [`to_image`], rounded to a type: on a GPU from an f32 `w` to any type, on the CPU to `w`'s alone.
///
/// Errors: another type.
pub fn to_image_as(w: &Tensor, dtype: DType) -> Result<Tensor> {
    const OP: &str = "tanh_space::to_image";
    w.expect(OP, "w", w.shape(), w.kind().master())?;
    if let Some(gpu) = w.gpu() {
        return gpu::to_image(OP, gpu, w, dtype);
    }
    if dtype != w.dtype() {
        let expected = format_args!("{}, as w on the CPU", w.dtype());
        return Err(Error::argument(OP, "dtype", expected, dtype));
    }
    dispatch!(w.dtype(), T => {
        let half = T::of(0.5);
        let x = w
            .data::<T>()
            .par_iter()
            .map(|w| half * (w.tanh() + T::of(1.0)))
            .collect();
        Tensor::from_vec(w.shape(), x)
    })
}

/// Squared distance of each row, `||x' - x||^2`, summed in f64 in the order of the pixels; and the
/// gradient in `w` of `sum_i ||x'_i - x_i||^2 + f(x')`, `df` being f's gradient in `x'`:
/// `dw = (2 (x' - x) + df) dx'/dw`, `dx'/dw = (1 - tanh^2 w) / 2 = 2 x' (1 - x')`.
///
/// On a GPU `dw` is f32, the order of the sums is another fixed one, and the call waits for them;
/// [`Iterates::step`] does not.
///
/// Errors: `x` or `df` does not fit.
pub fn backward(adversarial: &Tensor, x: &Tensor, df: &Tensor) -> Result<(Vec<f64>, Tensor)> {
    const OP: &str = "tanh_space::backward";
    let shape = adversarial.shape();
    for (arg, t) in [("x", x), ("df", df)] {
        t.expect(OP, arg, shape, adversarial.kind())?;
    }
    if let Some(gpu) = adversarial.gpu() {
        return gpu::backward(OP, gpu, adversarial, x, df);
    }
    let len = shape.row_len();
    dispatch!(adversarial.dtype(), T => {
        let (two, one) = (T::of(2.0), T::of(1.0));
        let mut dw = vec![T::of(0.0); shape.len()];
        let distances = dw
            .par_chunks_mut(len)
            .zip(adversarial.data::<T>().par_chunks(len))
            .zip(x.data::<T>().par_chunks(len).zip(df.data::<T>().par_chunks(len)))
            .map(|((dw, adv), (x, df))| {
                let mut squared = 0.0;
                for i in 0..len {
                    let delta = adv[i] - x[i];
                    squared += delta.f64() * delta.f64();
                    dw[i] = (two * delta + df[i]) * (two * adv[i] * (one - adv[i]));
                }
                squared
            })
            .collect();
        Ok((distances, Tensor::from_vec(shape, dw)?))
    })
}

/// Squared distance of each row, `||a_i - b_i||^2`, summed in f64. On a GPU it waits for them.
///
/// Errors: `b` does not fit `a`.
pub fn squared_distances(a: &Tensor, b: &Tensor) -> Result<Vec<f64>> {
    const OP: &str = "tanh_space::squared_distances";
    b.expect(OP, "b", a.shape(), a.kind())?;
    if let Some(gpu) = a.gpu() {
        return gpu::squared_distances(OP, gpu, a, b);
    }
    let len = a.shape().row_len();
    dispatch!(a.dtype(), T => Ok(a
        .data::<T>()
        .par_chunks(len)
        .zip(b.data::<T>().par_chunks(len))
        .map(|(a, b)| a.iter().zip(b).map(|(a, b)| (*a - *b).f64().powi(2)).sum())
        .collect()))
}
