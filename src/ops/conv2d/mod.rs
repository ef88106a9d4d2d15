//! 2-D convolution over NHWC, weights OHWI.
//!
//! ```text
//! y[n, i, j, o] = b[o] + sum over u, v, c of x[n, i stride - pad + u, j stride - pad + v, c] w[o, u, v, c]
//! ```
//!
//! where `x` is 0 outside of the image and `c` runs over the channels of `o`'s group. Forward and
//! input gradient are direct convolutions (the `direct` module); the weight gradient is a sum of
//! outer products over pixels (the `weight_grad` module). None of them builds a matrix of patches.
//!
//! A row of the result does not depend on the other rows of the batch, bit for bit; nothing
//! depends on the number of threads.

#[cfg(test)]
mod banks;
mod direct;
pub(in crate::ops) mod gpu;
mod input_grad;
pub(in crate::ops) mod mma;
mod mma_weight_grad;
pub mod model;
mod operand;
mod packs;
mod plan;
mod plans;
pub mod predict;
pub mod tune;
mod weight_grad;
mod weights;
mod wgmma;
mod wgmma_weight_grad;

use super::add;
use super::ensemble::repeat;
use super::isa::Isa;
use super::noise::{self, Noise};
use super::relu::{self, Mask};
use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

pub use packs::Packs;
pub use weights::{Constant, Weights};

/// Geometry of a convolution; the kernel's size is the weight's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Conv2d {
    /// Step between output pixels, in input pixels; at least 1.
    pub stride: usize,
    /// Zeros added on each side.
    pub pad: usize,
    /// Channel groups; divides both channel counts.
    pub groups: usize,
}

impl Conv2d {
    /// The output's shape for an input and a weight shape, or which argument does not fit.
    pub fn output_shape(&self, op: &'static str, x: Shape, w: Shape) -> Result<Shape> {
        let Conv2d {
            stride,
            pad,
            groups,
        } = *self;
        if stride == 0 {
            return Err(Error::argument(op, "conv.stride", "at least 1", stride));
        }
        if x.is_empty() {
            return Err(Error::argument(op, "x", "sizes of at least 1", x));
        }
        if w.is_empty() {
            return Err(Error::argument(op, "w", "sizes of at least 1", w));
        }
        if w.h != w.w {
            return Err(Error::argument(op, "w", "a square kernel", w));
        }
        if groups == 0 || !x.c.is_multiple_of(groups) || !w.n.is_multiple_of(groups) {
            return Err(Error::argument(
                op,
                "conv.groups",
                format_args!("a divisor of {} and {} channels", x.c, w.n),
                groups,
            ));
        }
        if w.c != x.c / groups {
            return Err(Error::argument(
                op,
                "w",
                format_args!("{} input channels per group", x.c / groups),
                w,
            ));
        }
        let output = |size: usize| {
            let padded = pad.checked_mul(2).and_then(|pads| pads.checked_add(size));
            padded.map(|padded| {
                (
                    padded,
                    padded.checked_sub(w.h).map(|rest| rest / stride + 1),
                )
            })
        };
        let (Some((padded_h, oh)), Some((padded_w, ow))) = (output(x.h), output(x.w)) else {
            return Err(Error::argument(op, "conv.pad", "a smaller padding", pad));
        };
        let (Some(oh), Some(ow)) = (oh, ow) else {
            return Err(Error::argument(
                op,
                "w",
                format_args!("a kernel no larger than the padded input, {padded_h} x {padded_w}"),
                w,
            ));
        };
        let len = [oh, ow, w.n]
            .iter()
            .try_fold(x.n, |len, &size| len.checked_mul(size))
            .filter(|&len| len <= isize::MAX as usize / 8);
        match len {
            Some(_) => Ok(Shape::new(x.n, oh, ow, w.n)),
            None => Err(Error::argument(op, "conv.pad", "a smaller padding", pad)),
        }
    }
}

/// What a convolution reads: each image of `x` as `draws` rows of its batch, one after the other, and the
/// noise that is added to the rows. The image itself is read for all of its draws.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// `[n, h, w, c]`.
    pub x: &'a Tensor,
    /// Rows made of an image, at least 1: an ensemble's draws.
    pub draws: usize,
    /// Of the `n * draws` rows.
    pub noise: Option<&'a Noise>,
}

impl<'a> From<&'a Tensor> for Input<'a> {
    /// As it is.
    fn from(x: &'a Tensor) -> Self {
        Input {
            x,
            draws: 1,
            noise: None,
        }
    }
}

impl<'a> Input<'a> {
    /// A row an image, with noise if there is any.
    pub fn noisy(x: &'a Tensor, noise: Option<&'a Noise>) -> Self {
        Input {
            noise,
            ..Input::from(x)
        }
    }

    /// `[n * draws, h, w, c]`.
    ///
    /// Errors: no draw, or more rows than can be counted; noise of other rows.
    pub(super) fn shape(&self, op: &'static str) -> Result<Shape> {
        let x = self.x.shape();
        let rows = x.n.checked_mul(self.draws).filter(|_| self.draws > 0);
        let Some(rows) = rows else {
            let expected = format_args!("at least 1, and few enough for {} images", x.n);
            return Err(Error::argument(op, "draws", expected, self.draws));
        };
        if let Some(noise) = self.noise {
            noise::check_shape(op, noise, x.with_n(rows))?;
        }
        Ok(x.with_n(rows))
    }

    /// Where every row lies by itself, for a kernel that looks for it there.
    fn repeated(&self) -> Result<Tensor> {
        repeat(self.x, 0..self.x.shape().n, self.draws)
    }
}

/// `y = conv(x, w) + b`. x `[n, h, w, c_in]`, w `[c_out, k, k, c_in / groups]`,
/// b `[1, 1, 1, c_out]`, y `[n, oh, ow, c_out]`, `oh = (h + 2 pad - k) / stride + 1`.
pub fn forward(x: &Tensor, w: &Tensor, b: Option<&Tensor>, conv: Conv2d) -> Result<Tensor> {
    forward_of("conv2d::forward", &x.into(), w.into(), b, conv)
}

/// Gradient in `x`, of shape `x_shape`.
pub fn input_grad<'w>(
    dy: &Tensor,
    w: impl Into<Weights<'w>>,
    x_shape: Shape,
    conv: Conv2d,
) -> Result<Tensor> {
    input_grad_then(dy, w, x_shape, conv, &Then::default())
}

/// What follows an input gradient `dx`, in this order: on tensor cores before it is rounded and stored.
#[derive(Debug, Clone, Copy, Default)]
pub struct Then<'a> {
    /// Added: the gradient that `x` got elsewhere. `[n, h, w, c_in]` like `dx`.
    pub plus: Option<&'a Tensor>,
    /// The gradient is 0 where it does not pass: the activation whose output `x` is.
    pub gate: Option<&'a Mask>,
}

impl Then<'_> {
    /// The same by passes of its own.
    pub(crate) fn follow(&self, dx: Tensor) -> Result<Tensor> {
        let dx = match self.plus {
            Some(plus) => add::forward(dx, plus)?,
            None => dx,
        };
        match self.gate {
            Some(gate) => relu::backward_mask(dx, gate),
            None => Ok(dx),
        }
    }
}

/// [`input_grad`], and what follows it.
pub fn input_grad_then<'w>(
    dy: &Tensor,
    w: impl Into<Weights<'w>>,
    x_shape: Shape,
    conv: Conv2d,
    then: &Then<'_>,
) -> Result<Tensor> {
    input_grad_of("conv2d::input_grad", dy, w.into(), x_shape, conv, then)
}

/// [`input_grad_then`]; `op` is the name errors carry.
pub(super) fn input_grad_of(
    op: &'static str,
    dy: &Tensor,
    w: Weights<'_>,
    x_shape: Shape,
    conv: Conv2d,
    then: &Then<'_>,
) -> Result<Tensor> {
    let y_shape = conv.output_shape(op, x_shape, w.shape())?;
    w.expect(op, "w", w.shape(), w.kind().master())?;
    // Activations may have another type than their parameters, and no other device.
    let dtype = match dy.dtype().master() == w.dtype() {
        true => dy.dtype(),
        false => w.dtype(),
    };
    dy.expect(op, "dy", y_shape, w.kind().with(dtype))?;
    if let Some(plus) = then.plus {
        plus.expect(op, "plus", x_shape, dy.kind())?;
    }
    if let Some(gate) = then.gate {
        gate.expect(op, "gate", x_shape, dy.gpu())?;
    }
    if let Some(gpu) = w.gpu() {
        return gpu::input_grad(op, gpu, dy, w, x_shape, conv, then);
    }
    let dx = dispatch!(w.dtype(), T => {
        let dx = input_grad::input_grad::<T>(
            Isa::current(), dy.data(), y_shape, w.data(), w.shape(), x_shape, conv,
        );
        Tensor::from_vec(x_shape, dx)
    })?;
    then.follow(dx)
}

/// Adds the gradients in `w` and `b` to `dw` and `db`.
pub fn weight_grad(
    dy: &Tensor,
    x: &Tensor,
    dw: &mut Tensor,
    db: Option<&mut Tensor>,
    conv: Conv2d,
) -> Result<()> {
    weight_grad_noisy("conv2d::weight_grad", dy, x, None, dw, db, conv)
}

/// [`forward`] of all that may be read; `op` is the name errors carry.
pub(super) fn forward_of(
    op: &'static str,
    input: &Input<'_>,
    w: Weights<'_>,
    b: Option<&Tensor>,
    conv: Conv2d,
) -> Result<Tensor> {
    let (x, x_shape) = (input.x, input.shape(op)?);
    let y_shape = conv.output_shape(op, x_shape, w.shape())?;
    w.expect(op, "w", w.shape(), x.kind().master())?;
    if let Some(b) = b {
        b.expect(op, "b", Shape::vector(y_shape.c), x.kind().master())?;
    }
    if let Some(gpu) = x.gpu() {
        return gpu::forward(op, gpu, input, w, b, (x_shape, y_shape), conv);
    }
    dispatch!(x.dtype(), T => {
        let x = operand::Operand::<T>::new(x.data(), x_shape, input.draws, input.noise);
        let b = b.map(|b| b.data());
        let y = direct::forward(Isa::current(), &x, w.data(), w.shape(), b, y_shape, conv);
        Tensor::from_vec(y_shape, y)
    })
}

/// [`weight_grad`] with noise added to `x` while it is read; `op` is the name errors carry.
pub(super) fn weight_grad_noisy(
    op: &'static str,
    dy: &Tensor,
    x: &Tensor,
    noise: Option<&Noise>,
    dw: &mut Tensor,
    db: Option<&mut Tensor>,
    conv: Conv2d,
) -> Result<()> {
    let y_shape = conv.output_shape(op, x.shape(), dw.shape())?;
    dy.expect(op, "dy", y_shape, x.kind())?;
    dw.expect(op, "dw", dw.shape(), x.kind().master())?;
    if let Some(db) = &db {
        db.expect(op, "db", Shape::vector(y_shape.c), x.kind().master())?;
    }
    if let Some(gpu) = x.gpu() {
        return gpu::weight_grad(op, gpu, dy, x, noise, dw, db, conv);
    }
    let w_shape = dw.shape();
    dispatch!(x.dtype(), T => {
        let x = operand::Operand::<T>::new(x.data(), x.shape(), 1, noise);
        let db = db.map(|db| db.data_mut());
        weight_grad::weight_grad(
            Isa::current(), dy.data(), y_shape, &x, dw.data_mut(), w_shape, db, conv,
        );
        Ok(())
    })
}
