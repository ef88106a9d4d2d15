//! Noise, convolution and everything up to the next convolution's operand, in one pass.
//!
//! ```text
//! v = conv(x + sigma z, w) + b                    noise in the operand's load
//! statistics of v                                 of every channel, over n, h, w
//! u = act(v + residual)
//! y = T(pool(u))                                  max; T rounds to the tensor's type
//! y = T(y + sigma' z')                            the noise of the next layer
//! ```
//!
//! every part but the convolution optional, in this order. In front of a pool `v` is rounded to the tensor's type, so
//! that the same of a window's values is taken wherever the pool stands. Noise is added to what was rounded, as
//! [`noise`] adds it to a stored tensor: drawn here, by the pass in between
//! ([`apply`]) or in the next convolution's load ([`noisy_conv2d`](super::noisy_conv2d)),
//! the same key gives the same bits.
//!
//! With running statistics, batch norm is an affine map and part of `w` and `b` ([`batch_norm::fold`]).
//!
//! Where no kernel fuses all of this, and on the CPU, it is the single ops one after another; then 16-bit
//! tensors hold `v` rounded, and the statistics are those of the rounded values.

mod gpu;

use super::batch_norm::{self, Activation, Partials};
use super::conv2d::{self, Conv2d, Input, Weights};
use super::noise::{self, Noise};
use super::pool2d::{self, Argmax, Pool2d};
use super::relu::{self, Mask};
use super::{add, apply};
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

/// What follows the convolution, in this order.
#[derive(Debug, Clone, Copy)]
pub struct Epilogue<'a> {
    /// Gathers the statistics of the convolution's result, for a batch norm behind it.
    pub statistics: bool,
    /// Added in front of the activation; of the convolution's result's shape.
    pub residual: Option<&'a Tensor>,
    /// The activation.
    pub activation: Activation,
    /// Max pooling. Kernels fuse windows of 2x2 with a stride of 2.
    pub pool: Option<Pool2d>,
    /// Noise on the result: the next layer's. Its gradient is the identity.
    pub noise: Option<&'a Noise>,
    /// Whether a backward pass follows.
    pub record: bool,
}

impl Default for Epilogue<'_> {
    /// Nothing.
    fn default() -> Self {
        Epilogue {
            statistics: false,
            residual: None,
            activation: Activation::Identity,
            pool: None,
            noise: None,
            record: false,
        }
    }
}

/// What [`forward`] gives beside its result.
#[derive(Default)]
pub struct Extras {
    /// Where the activation lets the gradient pass, a bit per element of `y`; if a backward pass follows
    /// and there is an activation.
    pub mask: Option<Mask>,
    /// What the pooling took; if a backward pass follows and there is a pooling.
    pub argmax: Option<Argmax>,
    /// The statistics of the convolution's result.
    pub statistics: Option<Partials>,
}

impl Epilogue<'_> {
    /// The part that stands behind the convolution and its statistics.
    fn then(&self) -> apply::Then<'_> {
        apply::Then {
            residual: self.residual,
            activation: self.activation,
            pool: self.pool,
            noise: self.noise,
            record: self.record,
        }
    }

    /// Whether the activation's mask is wanted.
    fn masked(&self) -> bool {
        self.record && self.activation != Activation::Identity
    }
}

/// x `[n, h, w, c_in]`, w `[c_out, k, k, c_in / groups]`, b `[1, 1, 1, c_out]`, y `[n * draws, oh, ow, c_out]`,
/// pooled if asked for.
///
/// Errors: what the single ops refuse.
pub fn forward<'x, 'w>(
    x: impl Into<Input<'x>>,
    w: impl Into<Weights<'w>>,
    b: Option<&Tensor>,
    conv: Conv2d,
    epilogue: &Epilogue<'_>,
) -> Result<(Tensor, Extras)> {
    const OP: &str = "fused_conv2d::forward";
    let (input, w) = (x.into(), w.into());
    let (x, x_shape) = (input.x, input.shape(OP)?);
    let v_shape = conv.output_shape(OP, x_shape, w.shape())?;
    w.expect(OP, "w", w.shape(), x.kind().master())?;
    if let Some(b) = b {
        b.expect(OP, "b", Shape::vector(v_shape.c), x.kind().master())?;
    }
    batch_norm::check_activation(OP, epilogue.activation)?;
    if let Some(residual) = epilogue.residual {
        residual.expect(OP, "residual", v_shape, x.kind())?;
    }
    let y_shape = epilogue.then().output_shape(OP, v_shape)?;
    if let Some(noise) = epilogue.noise {
        noise::check_shape(OP, noise, y_shape)?;
    }
    if let Some(gpu) = x.gpu() {
        let shapes = [x_shape, v_shape, y_shape];
        return gpu::forward(OP, gpu, &input, w, b, shapes, conv, epilogue);
    }
    let v = conv2d::forward_of(OP, &input, w, b, conv)?;
    let statistics = epilogue.statistics.then(|| batch_norm::partials(&v));
    let (y, mut extras) = composed(v, epilogue)?;
    extras.statistics = statistics.transpose()?;
    Ok((y, extras))
}

/// What follows the convolution, by the single ops one after another.
fn composed(v: Tensor, epilogue: &Epilogue<'_>) -> Result<(Tensor, Extras)> {
    let mut extras = Extras::default();
    let u = match epilogue.residual {
        Some(residual) => add::forward(v, residual)?,
        None => v,
    };
    let cap = apply::cap(epilogue.activation);
    let mut y = match cap {
        Some(cap) => relu::forward(u, cap)?,
        None => u,
    };
    if let Some(pool) = epilogue.pool {
        let (pooled, argmax) = pool2d::max_forward(&y, pool)?;
        y = pooled;
        extras.argmax = epilogue.record.then_some(argmax);
    }
    if let Some(cap) = cap.filter(|_| epilogue.record) {
        // The activation once more changes nothing, and the largest of a window passes if it does.
        let (same, mask) = relu::forward_mask(y, cap)?;
        y = same;
        extras.mask = Some(mask);
    }
    if let Some(noise) = epilogue.noise {
        y = noise::forward(&y, noise)?;
    }
    Ok((y, extras))
}

/// Gradient in the convolution's result `v`, of shape `v_shape`, and so in the residual; dy is the
/// gradient in `y`, `extras` what [`forward`] recorded.
///
/// Errors: dy does not fit; `extras` lacks the pooling's choice.
pub fn output_grad(
    dy: Tensor,
    v_shape: Shape,
    pool: Option<Pool2d>,
    extras: &Extras,
) -> Result<Tensor> {
    const OP: &str = "fused_conv2d::output_grad";
    let shape = pool.map_or(Ok(v_shape), |pool| pool.output_shape(OP, v_shape))?;
    dy.expect(OP, "dy", shape, dy.kind())?;
    let du = match &extras.mask {
        Some(mask) => relu::backward_mask(dy, mask)?,
        None => dy,
    };
    match (pool, &extras.argmax) {
        (None, _) => Ok(du),
        (Some(pool), Some(argmax)) => pool2d::max_backward(&du, argmax, v_shape, pool),
        (Some(_), None) => {
            let expected = "those of a recorded pass";
            Err(Error::argument(OP, "extras", expected, "none"))
        }
    }
}
