//! Layers for evaluation alone: batch norm is part of the weights, and a block is one fused convolution.
//! They share nothing with the layers they were made of, and never change.

use super::{Back, Block, ConvBlock, End, Entry, Gradients, Grads, Layer, Link, NoiseLayer, Pass};
use crate::error::Result;
use crate::ops::batch_norm::{self, Activation};
use crate::ops::conv2d::{self, Constant, Conv2d, Input};
use crate::ops::fused_conv2d::{self, Epilogue, Extras};
use crate::ops::linear;
use crate::ops::noise::{self, Noise};
use crate::ops::pool2d::Pool2d;
use crate::ops::relu::{self, Mask};
use crate::tensor::{Shape, Tensor};

/// Panics: there is nothing to train in a frozen layer.
fn expect_input_only(grads: Grads) {
    assert!(grads == Grads::InputOnly, "frozen layers are not trained");
}

/// `pool(activation(conv(x + sigma z, w) + b + residual))`, a [`ConvBlock`]'s frozen form.
pub struct FrozenBlock {
    noise: NoiseLayer,
    geometry: Conv2d,
    /// With the batch norm's share; packed for the kernels once.
    w: Constant,
    b: Option<Tensor>,
    activation: Activation,
    pool: Option<Pool2d>,
    saved: Option<Saved>,
}

/// What backward needs of forward: neither the input nor the convolution's result.
struct Saved {
    x_shape: Shape,
    v_shape: Shape,
    residual: bool,
    extras: Extras,
}

impl FrozenBlock {
    /// Errors: not enough device memory; on the CPU a variance below 0.
    pub fn new(block: &ConvBlock) -> Result<Self> {
        let w = &block.conv.weight.value;
        let b = block.conv.bias.as_ref().map(|b| &b.value);
        let (w, b) = match &block.norm {
            Some(norm) => {
                let affine = norm.affine.as_ref().map(|(g, b)| (&g.value, &b.value));
                let (w, b) = batch_norm::fold(w, b, affine, &norm.running)?;
                (w, Some(b))
            }
            None => (w.duplicate()?, b.map(Tensor::duplicate).transpose()?),
        };
        let w = Constant::new(w);
        Ok(FrozenBlock {
            noise: block.noise,
            geometry: block.conv.geometry,
            w,
            b,
            activation: block.activation,
            pool: block.pool,
            saved: None,
        })
    }

    fn duplicate(&self) -> Self {
        FrozenBlock {
            noise: self.noise,
            geometry: self.geometry,
            w: self.w.clone(),
            b: self.b.clone(),
            activation: self.activation,
            pool: self.pool,
            saved: None,
        }
    }
}

impl Block for FrozenBlock {
    fn backward_block(&mut self, dy: Tensor, back: Back<'_>) -> Result<Gradients> {
        expect_input_only(back.grads);
        let mut saved = self
            .saved
            .take()
            .expect("backward follows a recorded forward");
        if back.gated {
            saved.extras.mask = None;
        }
        let dv = fused_conv2d::output_grad(dy, saved.v_shape, self.pool, &saved.extras)?;
        let dx = back.input.then(|| {
            conv2d::input_grad_then(&dv, &self.w, saved.x_shape, self.geometry, &back.then)
        });
        Ok(Gradients {
            dx: dx.transpose()?,
            dresidual: saved.residual.then_some(dv),
        })
    }

    fn freeze_block(&self) -> Result<Box<dyn Block>> {
        Ok(Box::new(self.duplicate()))
    }
}

impl Layer for FrozenBlock {
    fn noise(&self, pass: &Pass) -> Option<Noise> {
        self.noise.draw(pass)
    }

    fn end(&self) -> End {
        End::Epilogue
    }

    fn takes_draws(&self) -> bool {
        true
    }

    fn gate(&self) -> Option<&Mask> {
        self.saved.as_ref()?.extras.mask.as_ref()
    }

    fn gates(&self) -> bool {
        true
    }

    fn forward(&mut self, x: Tensor, pass: &Pass, link: &Link<'_>) -> Result<Tensor> {
        let noise = self.noise.draw(pass).filter(|_| !link.drawn);
        let alone = |_: &&Noise| link.draws == 1 && link.plan.site.is_alone(&x);
        let (x, noise) = match noise.as_ref().filter(alone) {
            Some(noise) => (noise::forward(&x, noise)?, None),
            None => (x, noise),
        };
        let epilogue = Epilogue {
            statistics: false,
            residual: link.residual,
            activation: self.activation,
            pool: self.pool,
            noise: link.next,
            record: pass.record,
        };
        let (w, b, geometry) = (&self.w, self.b.as_ref(), self.geometry);
        let input = Input {
            x: &x,
            draws: link.draws,
            noise: noise.as_ref(),
        };
        let (y, extras) = fused_conv2d::forward(input, w, b, geometry, &epilogue)?;
        let x_shape = x.shape().with_n(x.shape().n * link.draws);
        let saved = || -> Result<Saved> {
            Ok(Saved {
                x_shape,
                v_shape: geometry.output_shape("nn", x_shape, w.tensor().shape())?,
                residual: link.residual.is_some(),
                extras,
            })
        };
        self.saved = pass.record.then(saved).transpose()?;
        Ok(y)
    }

    fn backward(&mut self, dy: Tensor, back: Back<'_>) -> Result<Option<Tensor>> {
        Ok(self.backward_block(dy, back)?.dx)
    }

    fn freeze(&self) -> Result<Box<dyn Layer>> {
        Ok(Box::new(self.duplicate()))
    }

    fn visit(&mut self, _: &mut dyn FnMut(&str, Entry<'_>)) {}
}

/// A [`Dense`](super::Dense) layer's frozen form.
pub struct FrozenDense {
    w: Constant,
    b: Tensor,
    /// `Some(cap)` puts a ReLU behind the layer.
    activation: Option<Option<f64>>,
    saved: Option<Tensor>,
}

impl FrozenDense {
    /// `w` is `[out, 1, 1, in]`.
    pub fn new(w: Constant, b: Tensor, activation: Option<Option<f64>>) -> Self {
        FrozenDense {
            w,
            b,
            activation,
            saved: None,
        }
    }
}

impl Layer for FrozenDense {
    fn forward(&mut self, x: Tensor, pass: &Pass, _: &Link<'_>) -> Result<Tensor> {
        let y = linear::forward(&x, &self.w, Some(&self.b))?;
        let y = match self.activation {
            Some(cap) => relu::forward(y, cap)?,
            None => y,
        };
        self.saved = pass.record.then(|| y.clone());
        Ok(y)
    }

    fn backward(&mut self, dy: Tensor, back: Back<'_>) -> Result<Option<Tensor>> {
        expect_input_only(back.grads);
        let y = self
            .saved
            .take()
            .expect("backward follows a recorded forward");
        let dy = match self.activation {
            Some(cap) => relu::backward(dy, &y, cap)?,
            None => dy,
        };
        linear::input_grad(&dy, &self.w).map(Some)
    }

    fn freeze(&self) -> Result<Box<dyn Layer>> {
        let (w, b) = (self.w.clone(), self.b.clone());
        Ok(Box::new(FrozenDense::new(w, b, self.activation)))
    }

    fn visit(&mut self, _: &mut dyn FnMut(&str, Entry<'_>)) {}
}
