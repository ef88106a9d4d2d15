//! The change of variables of Carlini and Wagner 2017: `x' = (tanh w + 1) / 2` is always an image.

use rayon::prelude::*;

use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::{Real, Tensor};

/// `w = atanh(shrink (2 x - 1))`, x in `[0, 1]`, both `[n, h, w, c]`.
///
/// With `shrink` 1 pixels at exactly 0 or 1 become infinite and can never move, as in the RSE
/// authors' attack; Carlini and Wagner shrink by 0.999999.
pub fn from_image(x: &Tensor, shrink: f64) -> Result<Tensor> {
    dispatch!(x.dtype(), T => {
        let data = x.data::<T>();
        if let Some(bad) = data.iter().find(|v| !(T::of(0.0)..=T::of(1.0)).contains(v)) {
            return Err(Error::argument("tanh_space::from_image", "x", "pixels in [0, 1]", bad));
        }
        let w = data
            .par_iter()
            .map(|v| T::of((shrink * (2.0 * v.f64() - 1.0)).atanh()))
            .collect();
        Tensor::from_vec(x.shape(), w)
    })
}

/// `x' = (tanh w + 1) / 2`.
pub fn to_image(w: &Tensor) -> Result<Tensor> {
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
pub fn backward(adversarial: &Tensor, x: &Tensor, df: &Tensor) -> Result<(Vec<f64>, Tensor)> {
    let shape = adversarial.shape();
    for (arg, t) in [("x", x), ("df", df)] {
        t.expect("tanh_space::backward", arg, shape, adversarial.dtype())?;
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

/// Squared distance of each row, `||a_i - b_i||^2`, summed in f64.
pub fn squared_distances(a: &Tensor, b: &Tensor) -> Result<Vec<f64>> {
    b.expect("tanh_space::squared_distances", "b", a.shape(), a.dtype())?;
    let len = a.shape().row_len();
    dispatch!(a.dtype(), T => Ok(a
        .data::<T>()
        .par_chunks(len)
        .zip(b.data::<T>().par_chunks(len))
        .map(|(a, b)| a.iter().zip(b).map(|(a, b)| (*a - *b).f64().powi(2)).sum())
        .collect()))
}
