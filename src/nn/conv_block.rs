//! Noise, convolution, batch norm, activation, pooling: the block every network here is made of.

use super::{
    Back, BatchNorm, Block, End, Entry, FrozenBlock, Gradients, Grads, Layer, Layout, Link, Mode,
    NoiseLayer, Param, Pass,
};
use crate::error::Result;
use crate::ops::apply::{self, Norm, Then};
use crate::ops::batch_norm::Activation;
use crate::ops::conv2d::{self, Conv2d, Input};
use crate::ops::fused_conv2d::{self, Epilogue};
use crate::ops::noise::{self, Noise};
use crate::ops::noisy_conv2d;
use crate::ops::pool2d::Pool2d;
use crate::ops::relu::Mask;
use crate::tensor::{Shape, Tensor};

/// A convolution's parameters.
#[derive(Debug, Clone)]
pub struct Conv {
    /// Name in the `state_dict`, e.g. `features.0`.
    pub name: String,
    /// Stride, padding, groups.
    pub geometry: Conv2d,
    /// `[c_out, k, k, c_in / groups]`.
    pub weight: Param,
    /// `[1, 1, 1, c_out]`.
    pub bias: Option<Param>,
}

/// `pool(activation(batch_norm(conv(x + sigma z)) + residual))`, every part but the convolution
/// optional: a convolution, and one pass over its result.
pub struct ConvBlock {
    /// Noise in front of the convolution, drawn where the [`NoisePlan`](super::NoisePlan) says.
    pub noise: NoiseLayer,
    /// The convolution.
    pub conv: Conv,
    /// Batch norm behind it.
    pub norm: Option<BatchNorm>,
    /// Activation behind that.
    pub activation: Activation,
    /// Max-pooling at the end.
    pub pool: Option<Pool2d>,
    saved: Option<Saved>,
}

/// What backward needs of forward.
struct Saved {
    /// What the convolution read; not kept where the layer before makes it again.
    x: Option<Tensor>,
    x_shape: Shape,
    /// The noise that `x`, or what is made again, does not carry: to be drawn again for the weight gradient.
    noise: Option<Noise>,
    /// What follows the convolution.
    applied: apply::Saved,
    /// The noise added at the end, to make the output again.
    next: Option<Noise>,
}

impl ConvBlock {
    /// A block that has not run yet.
    pub fn new(
        noise: NoiseLayer,
        conv: Conv,
        norm: Option<BatchNorm>,
        activation: Activation,
        pool: Option<Pool2d>,
    ) -> Self {
        ConvBlock {
            noise,
            conv,
            norm,
            activation,
            pool,
            saved: None,
        }
    }
}

impl Block for ConvBlock {
    fn backward_block(&mut self, dy: Tensor, back: Back<'_>) -> Result<Gradients> {
        let Saved {
            x,
            x_shape,
            noise,
            applied,
            ..
        } = self
            .saved
            .take()
            .expect("backward follows a recorded forward");
        let applied = match back.gated {
            true => applied.gated(),
            false => applied,
        };
        let trained = back.grads == Grads::Accumulate;
        let (affine, affine_grads) = match &mut self.norm {
            Some(norm) => norm.split(trained),
            None => (None, None),
        };
        let apply::Gradients { dx: dz, dresidual } =
            apply::backward(dy, affine, applied, affine_grads)?;
        let Conv {
            geometry,
            weight,
            bias,
            ..
        } = &mut self.conv;
        if trained {
            let x = match (x, back.before) {
                (Some(x), _) => x,
                (None, before) => before.expect("it said that it would").remake()?,
            };
            let db = bias.as_mut().map(|b| &mut b.grad);
            match &noise {
                Some(noise) => {
                    noisy_conv2d::weight_grad(&dz, &x, noise, &mut weight.grad, db, *geometry)?
                }
                None => conv2d::weight_grad(&dz, &x, &mut weight.grad, db, *geometry)?,
            }
        }
        let dx = back
            .input
            .then(|| conv2d::input_grad_then(&dz, &weight.value, x_shape, *geometry, &back.then));
        Ok(Gradients {
            dx: dx.transpose()?,
            dresidual,
        })
    }

    fn freeze_block(&self) -> Result<Box<dyn Block>> {
        Ok(Box::new(FrozenBlock::new(self)?))
    }
}

impl Layer for ConvBlock {
    fn noise(&self, pass: &Pass) -> Option<Noise> {
        self.noise.draw(pass)
    }

    fn end(&self) -> End {
        End::Apply
    }

    fn gate(&self) -> Option<&Mask> {
        self.saved.as_ref().and_then(|saved| saved.applied.gate())
    }

    fn gates(&self) -> bool {
        true
    }

    fn is_trained(&self) -> bool {
        true
    }

    fn forward(&mut self, x: Tensor, pass: &Pass, link: &Link<'_>) -> Result<Tensor> {
        let noise = self.noise.draw(pass).filter(|_| !link.drawn);
        let alone = noise.as_ref().filter(|_| link.plan.site.is_alone(&x));
        let (x, in_load) = match alone {
            Some(noise) => (noise::forward(&x, noise)?, None),
            None => (x, noise.as_ref()),
        };
        let (w, b) = (
            &self.conv.weight.value,
            self.conv.bias.as_ref().map(|b| &b.value),
        );
        let epilogue = Epilogue {
            statistics: pass.mode == Mode::Train && self.norm.is_some(),
            ..Epilogue::default()
        };
        let input = Input::noisy(&x, in_load);
        let (z, extras) = fused_conv2d::forward(input, w, b, self.conv.geometry, &epilogue)?;
        let x_shape = x.shape();
        // Memory that nobody needs any more is free for what follows.
        let x = (pass.record && !link.remade).then_some(x);
        let missing = match x {
            Some(_) => in_load.cloned(),
            None => noise,
        };

        let norm = match &mut self.norm {
            None => Norm::None,
            Some(norm) => norm.begin(pass.mode, extras.statistics),
        };
        let then = Then {
            residual: link.residual,
            activation: self.activation,
            pool: self.pool,
            noise: link.next,
            record: pass.record,
        };
        let (y, applied) = apply::forward(z, norm, &then)?;
        self.saved = applied.map(|applied| Saved {
            x,
            x_shape,
            noise: missing,
            applied,
            next: link.next.cloned(),
        });
        Ok(y)
    }

    fn backward(&mut self, dy: Tensor, back: Back<'_>) -> Result<Option<Tensor>> {
        Ok(self.backward_block(dy, back)?.dx)
    }

    fn remakes(&self) -> bool {
        self.norm.is_some()
    }

    fn remake(&self) -> Result<Tensor> {
        let saved = self
            .saved
            .as_ref()
            .expect("a recorded forward comes before");
        let affine = self.norm.as_ref().and_then(BatchNorm::affine);
        let again = saved.applied.again(affine, saved.next.as_ref())?;
        Ok(again.expect("there is a batch norm"))
    }

    fn freeze(&self) -> Result<Box<dyn Layer>> {
        Ok(Box::new(FrozenBlock::new(self)?))
    }

    fn visit(&mut self, visit: &mut dyn FnMut(&str, Entry<'_>)) {
        let name = &self.conv.name;
        visit(
            &format!("{name}.weight"),
            Entry::Param(&mut self.conv.weight, Layout::Oihw),
        );
        if let Some(bias) = &mut self.conv.bias {
            visit(&format!("{name}.bias"), Entry::Param(bias, Layout::Vector));
        }
        if let Some(norm) = &mut self.norm {
            norm.visit(visit);
        }
    }
}
