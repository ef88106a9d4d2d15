//! Noise, convolution, batch norm, activation, pooling: the block every network here is made of.

use super::{
    Back, Block, End, Entry, FrozenBlock, Gradients, Grads, Layer, Layout, Link, Mode, NoiseLayer,
    Param, Pass,
};
use crate::error::Result;
use crate::ops::apply::{self, Norm, Then};
use crate::ops::batch_norm::{Activation, Running};
use crate::ops::conv2d::{self, Conv2d, Input};
use crate::ops::fused_conv2d::{self, Epilogue};
use crate::ops::noise::Noise;
use crate::ops::noisy_conv2d;
use crate::ops::pool2d::Pool2d;
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

/// A batch norm's parameters and running estimates.
#[derive(Debug, Clone)]
pub struct BatchNorm {
    /// Name in the `state_dict`, e.g. `features.1`.
    pub name: String,
    /// Scale and shift, `[1, 1, 1, c]` each.
    pub affine: Option<(Param, Param)>,
    /// What evaluation normalises with.
    pub running: Running,
    /// Batches seen in training.
    pub count: u64,
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
    /// The input as it came; not kept where the layer before makes it again.
    x: Option<Tensor>,
    x_shape: Shape,
    /// The noise drawn in the load, to be drawn again for the weight gradient.
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
        let trained = back.grads == Grads::Accumulate;
        let (affine, affine_grads) = match self.norm.as_mut().and_then(|n| n.affine.as_mut()) {
            Some((g, b)) => (
                Some((&g.value, &b.value)),
                trained.then_some((&mut g.grad, &mut b.grad)),
            ),
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
            .then(|| conv2d::input_grad(&dz, &weight.value, x_shape, *geometry));
        Ok(Gradients {
            dx: dx.transpose()?,
            dresidual,
        })
    }

    fn freeze_block(&self) -> Result<FrozenBlock> {
        FrozenBlock::new(self)
    }
}

impl Layer for ConvBlock {
    fn noise(&self, pass: &Pass) -> Option<Noise> {
        self.noise.draw(pass)
    }

    fn end(&self) -> End {
        End::Apply
    }

    fn is_trained(&self) -> bool {
        true
    }

    fn forward(&mut self, x: Tensor, pass: &Pass, link: &Link<'_>) -> Result<Tensor> {
        let noise = self.noise.draw(pass).filter(|_| !link.drawn);
        let (w, b) = (
            &self.conv.weight.value,
            self.conv.bias.as_ref().map(|b| &b.value),
        );
        let epilogue = Epilogue {
            statistics: pass.mode == Mode::Train && self.norm.is_some(),
            ..Epilogue::default()
        };
        let input = Input::noisy(&x, noise.as_ref());
        let (z, extras) = fused_conv2d::forward(input, w, b, self.conv.geometry, &epilogue)?;
        let x_shape = x.shape();
        // Memory that nobody needs any more is free for what follows.
        let x = (pass.record && !link.remade).then_some(x);

        let norm = match &mut self.norm {
            None => Norm::None,
            Some(norm) => {
                let affine = norm.affine.as_ref().map(|(g, b)| (&g.value, &b.value));
                match pass.mode {
                    Mode::Train => {
                        norm.count += 1;
                        Norm::Train {
                            affine,
                            running: &mut norm.running,
                            partials: extras.statistics,
                        }
                    }
                    Mode::Eval => {
                        let running = &norm.running;
                        Norm::Eval { affine, running }
                    }
                }
            }
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
            noise,
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
        let affine = self.norm.as_ref().and_then(|n| n.affine.as_ref());
        let affine = affine.map(|(g, b)| (&g.value, &b.value));
        let again = saved.applied.again(affine, saved.next.as_ref())?;
        Ok(again.expect("there is a batch norm"))
    }

    fn freeze(&self) -> Result<Box<dyn Layer>> {
        Ok(Box::new(self.freeze_block()?))
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
        let Some(norm) = &mut self.norm else { return };
        let name = &norm.name;
        if let Some((gamma, beta)) = &mut norm.affine {
            visit(
                &format!("{name}.weight"),
                Entry::Param(gamma, Layout::Vector),
            );
            visit(&format!("{name}.bias"), Entry::Param(beta, Layout::Vector));
        }
        visit(
            &format!("{name}.running_mean"),
            Entry::Buffer(&mut norm.running.mean, Layout::Vector),
        );
        visit(
            &format!("{name}.running_var"),
            Entry::Buffer(&mut norm.running.var, Layout::Vector),
        );
        visit(
            &format!("{name}.num_batches_tracked"),
            Entry::Count(&mut norm.count),
        );
    }
}
