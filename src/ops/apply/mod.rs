//! Everything between two convolutions, `noise(pool(act(batch_norm(x) + residual)))`, every part
//! optional: on a GPU one pass over the tensor, which reads `x` once and writes the result once.
//!
//! On the CPU it is the single ops one after another. So it is on a GPU, to the bit in f32: the pass
//! runs the same steps with the same roundings on values it keeps in registers. With 16-bit tensors
//! the single ops round after every step, the pass in front of the noise and at its end: noise gives the
//! same bits here as in the load of the convolution that reads the result
//! ([`noisy_conv2d`](super::noisy_conv2d)).

pub(super) mod gpu;

use super::add;
use super::batch_norm::{self, Activation, Partials, Running};
use super::noise::{self, Noise};
use super::pool2d::{self, Argmax, Pool2d};
use super::relu::{self, Mask};
use crate::error::Result;
use crate::tensor::{Shape, Tensor};

/// Which batch norm stands at the front.
pub enum Norm<'a> {
    /// None.
    None,
    /// With the batch's statistics; the running ones move.
    Train {
        /// Scale and shift, `[1, 1, 1, c]`, both or neither.
        affine: Option<(&'a Tensor, &'a Tensor)>,
        /// Running estimates.
        running: &'a mut Running,
        /// The batch's statistics, where what made `x` has gathered them.
        partials: Option<Partials>,
    },
    /// With the running statistics.
    Eval {
        /// Scale and shift, `[1, 1, 1, c]`, both or neither.
        affine: Option<(&'a Tensor, &'a Tensor)>,
        /// Running estimates.
        running: &'a Running,
    },
    /// With what an earlier pass normalised with.
    Saved {
        /// Scale and shift, `[1, 1, 1, c]`, both or neither.
        affine: Option<(&'a Tensor, &'a Tensor)>,
        /// Mean and `1 / sqrt(var + eps)`.
        saved: &'a batch_norm::Saved,
    },
}

/// What follows the batch norm, in this order.
#[derive(Debug, Clone, Copy)]
pub struct Then<'a> {
    /// Added in front of the activation; of `x`'s shape.
    pub residual: Option<&'a Tensor>,
    /// The activation.
    pub activation: Activation,
    /// Max pooling.
    pub pool: Option<Pool2d>,
    /// Noise on the result: the next layer's. Its gradient is the identity.
    pub noise: Option<&'a Noise>,
    /// Whether a backward pass follows.
    pub record: bool,
}

impl Default for Then<'_> {
    /// Nothing.
    fn default() -> Self {
        Then {
            residual: None,
            activation: Activation::Identity,
            pool: None,
            noise: None,
            record: false,
        }
    }
}

/// What backward needs of forward.
pub struct Saved {
    shape: Shape,
    activation: Activation,
    residual: bool,
    /// The input and the statistics, where there is a batch norm.
    norm: Option<(Tensor, batch_norm::Saved)>,
    /// Where the activation lets the gradient pass, unless batch norm's backward decides it.
    gate: Gate,
    pooled: Option<(Pool2d, Argmax)>,
}

pub(super) enum Gate {
    None,
    /// The activation's output.
    Output(Tensor),
    Mask(Mask),
    /// A bit per output of the pooling.
    Pooled(Mask),
}

/// The gradients [`backward`] returns.
pub struct Gradients {
    /// In `x`.
    pub dx: Tensor,
    /// In the residual, if there is one.
    pub dresidual: Option<Tensor>,
}

/// The activation as a ReLU's cap; `None` where there is none.
pub(super) fn cap(activation: Activation) -> Option<Option<f64>> {
    match activation {
        Activation::Identity => None,
        Activation::Relu => Some(None),
        Activation::BoundedRelu(cap) => Some(Some(cap)),
    }
}

impl Then<'_> {
    /// The result's shape.
    pub(super) fn output_shape(&self, op: &'static str, x: Shape) -> Result<Shape> {
        self.pool.map_or(Ok(x), |pool| pool.max_output_shape(op, x))
    }

    /// Whether the activation needs a gate of its own in the backward pass.
    fn gated(&self, norm: bool) -> bool {
        self.record && self.activation != Activation::Identity && (!norm || self.residual.is_some())
    }
}

/// x `[n, h, w, c]`, y `[n, oh, ow, c]`, or `[n, h, w, c]` without pooling; and what backward needs,
/// if `then.record`.
///
/// Errors: what the single ops refuse.
pub fn forward(x: Tensor, norm: Norm<'_>, then: &Then<'_>) -> Result<(Tensor, Option<Saved>)> {
    const OP: &str = "apply::forward";
    match &norm {
        Norm::None => batch_norm::check_activation(OP, then.activation)?,
        Norm::Train {
            affine,
            running,
            partials,
        } => {
            batch_norm::check(OP, &x, *affine, then.activation)?;
            batch_norm::check_train(OP, &x, running)?;
            if let Some(partials) = partials {
                partials.expect(OP, &x)?;
            }
        }
        Norm::Eval { affine, running } => {
            batch_norm::check(OP, &x, *affine, then.activation)?;
            batch_norm::check_running(OP, &x, running)?;
        }
        Norm::Saved { affine, saved } => {
            batch_norm::check(OP, &x, *affine, then.activation)?;
            batch_norm::check_saved(OP, &x, *affine, saved, &None)?;
        }
    }
    if let Some(residual) = then.residual {
        residual.expect(OP, "residual", x.shape(), x.kind())?;
    }
    let out = then.output_shape(OP, x.shape())?;
    if let Some(noise) = then.noise {
        noise::check_shape(OP, noise, out)?;
    }
    let (affine, statistics) = match norm {
        Norm::None => (None, None),
        Norm::Train {
            affine,
            running,
            partials,
        } => {
            let partials = match partials {
                Some(partials) => partials,
                None => batch_norm::partials(&x)?,
            };
            (affine, Some(batch_norm::merge(&partials, running)?))
        }
        Norm::Eval { affine, running } => (affine, Some(batch_norm::evaluated(OP, running)?)),
        Norm::Saved { affine, saved } => (affine, Some(saved.clone())),
    };
    match x.gpu().cloned() {
        Some(gpu) => gpu::forward(OP, &gpu, x, affine, statistics, then, out),
        None => composed(x, affine, statistics, then),
    }
}

impl Saved {
    /// Where the gradient in the result passes, as far as somebody else may apply it: who did goes on
    /// with [`Saved::gated`].
    pub fn gate(&self) -> Option<&Mask> {
        match &self.gate {
            Gate::Pooled(mask) => Some(mask),
            Gate::Mask(mask) => Some(mask).filter(|_| self.pooled.is_none()),
            Gate::None | Gate::Output(_) => None,
        }
    }

    /// For a gradient that is 0 already where [`Saved::gate`] lets none pass.
    pub fn gated(self) -> Self {
        let gate = Gate::None;
        Saved { gate, ..self }
    }

    /// The forward pass once more, without its residual: the same bits, if `affine` and `noise` are what
    /// they were. `None` where there was no batch norm, or a residual: its input was not kept.
    ///
    /// Errors: what [`forward`] refuses.
    pub fn again(
        &self,
        affine: Option<(&Tensor, &Tensor)>,
        noise: Option<&Noise>,
    ) -> Result<Option<Tensor>> {
        let Some((x, saved)) = self.norm.as_ref().filter(|_| !self.residual) else {
            return Ok(None);
        };
        let then = Then {
            residual: None,
            activation: self.activation,
            pool: self.pooled.as_ref().map(|(pool, _)| *pool),
            noise,
            record: false,
        };
        let norm = Norm::Saved { affine, saved };
        Ok(Some(forward(x.clone(), norm, &then)?.0))
    }
}

/// The single ops one after another.
fn composed(
    x: Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    statistics: Option<batch_norm::Saved>,
    then: &Then<'_>,
) -> Result<(Tensor, Option<Saved>)> {
    let shape = x.shape();
    let gated = then.gated(statistics.is_some());
    // Batch norm fuses the activation, unless the residual comes in between.
    let (fused, rest) = match (&statistics, then.residual) {
        (None, _) | (_, Some(_)) => (Activation::Identity, then.activation),
        _ => (then.activation, Activation::Identity),
    };
    let y = match &statistics {
        None => x.clone(),
        Some(saved) => batch_norm::forward_saved(&x, affine, saved, fused)?,
    };
    let norm = statistics
        .filter(|_| then.record)
        .map(|saved| (x.clone(), saved));
    // Without a batch norm nobody else needs x: the ops below work in its place.
    drop(x);
    let y = match then.residual {
        Some(residual) => add::forward(y, residual)?,
        None => y,
    };
    let y = match cap(rest) {
        Some(cap) => relu::forward(y, cap)?,
        None => y,
    };
    let gate = match gated {
        true => Gate::Output(y.clone()),
        false => Gate::None,
    };
    let (y, pooled) = match then.pool {
        Some(pool) => {
            let (y, argmax) = pool2d::max_forward(&y, pool)?;
            (y, Some((pool, argmax)))
        }
        None => (y, None),
    };
    let y = match then.noise {
        Some(noise) => noise::forward(&y, noise)?,
        None => y,
    };
    let saved = then.record.then_some(Saved {
        shape,
        activation: then.activation,
        residual: then.residual.is_some(),
        norm,
        gate,
        pooled,
    });
    Ok((y, saved))
}

/// Gradients in `x` and in the residual; adds to `(dgamma, dbeta)` if given. dy is the result's.
///
/// Errors: dy or a vector does not fit what forward saw; `affine_grads` without `affine`.
pub fn backward(
    dy: Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    saved: Saved,
    affine_grads: Option<(&mut Tensor, &mut Tensor)>,
) -> Result<Gradients> {
    const OP: &str = "apply::backward";
    let Saved {
        shape,
        activation,
        residual,
        norm,
        gate,
        pooled,
    } = saved;
    if let Some((x, statistics)) = &norm {
        batch_norm::check(OP, x, affine, activation)?;
        batch_norm::check_saved(OP, x, affine, statistics, &affine_grads)?;
        let out = match &pooled {
            Some((pool, _)) => pool.max_output_shape(OP, shape)?,
            None => shape,
        };
        dy.expect(OP, "dy", out, x.kind())?;
        if let (Some(gpu), Some((pool, argmax)), false) = (x.gpu(), &pooled, residual)
            && gpu::fuses(*pool)
        {
            argmax.expect(OP, &dy, *pool)?;
            let dx = gpu::backward(
                gpu,
                dy,
                x,
                affine,
                statistics,
                activation,
                argmax,
                affine_grads,
            )?;
            return Ok(Gradients {
                dx,
                dresidual: None,
            });
        }
    }

    let dy = match &gate {
        Gate::Pooled(mask) => relu::backward_mask(dy, mask)?,
        _ => dy,
    };
    let dy = match &pooled {
        Some((pool, argmax)) => pool2d::max_backward(&dy, argmax, shape, *pool)?,
        None => dy,
    };
    let dy = match gate {
        Gate::Output(y) => relu::backward(dy, &y, cap(activation).flatten())?,
        Gate::Mask(mask) => relu::backward_mask(dy, &mask)?,
        Gate::None | Gate::Pooled(_) => dy,
    };
    let dresidual = residual.then(|| dy.clone());
    let dx = match norm {
        Some((x, statistics)) => {
            let inside = match residual {
                true => Activation::Identity,
                false => activation,
            };
            batch_norm::backward(dy, &x, affine, &statistics, inside, affine_grads)?
        }
        None => dy,
    };
    Ok(Gradients { dx, dresidual })
}
