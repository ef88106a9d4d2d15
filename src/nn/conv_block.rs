//! Noise, convolution, batch norm, activation, pooling: the block every network here is made of.

use super::{Entry, Grads, Layer, Layout, Mode, NoiseLayer, Param, Pass};
use crate::error::Result;
use crate::ops::apply::{self, Gradients, Norm, Then};
use crate::ops::batch_norm::{Activation, Running};
use crate::ops::conv2d::{self, Conv2d};
use crate::ops::noise::Noise;
use crate::ops::noisy_conv2d;
use crate::ops::pool2d::Pool2d;
use crate::tensor::Tensor;

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

/// `pool(activation(batch_norm(conv(x + sigma z))))`, every part but the convolution optional.
pub struct ConvBlock {
    /// Noise in front of the convolution, drawn while its operand is read.
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
    /// Input, without the noise.
    x: Tensor,
    /// The draw, to be made again for the weight gradient.
    noise: Option<Noise>,
    /// What follows the convolution.
    applied: apply::Saved,
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

impl Layer for ConvBlock {
    fn forward(&mut self, x: Tensor, pass: &Pass) -> Result<Tensor> {
        let noise = self.noise.draw(pass);
        let (w, b) = (
            &self.conv.weight.value,
            self.conv.bias.as_ref().map(|b| &b.value),
        );
        let z = match &noise {
            Some(noise) => noisy_conv2d::forward(&x, noise, w, b, self.conv.geometry)?,
            None => conv2d::forward(&x, w, b, self.conv.geometry)?,
        };

        let norm = match &mut self.norm {
            None => Norm::None,
            Some(norm) => {
                let affine = norm.affine.as_ref().map(|(g, b)| (&g.value, &b.value));
                match pass.mode {
                    Mode::Train => {
                        norm.count += 1;
                        let running = &mut norm.running;
                        Norm::Train {
                            affine,
                            running,
                            partials: None,
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
            residual: None,
            activation: self.activation,
            pool: self.pool,
            noise: None,
            record: pass.record,
        };
        let (y, applied) = apply::forward(z, norm, &then)?;
        self.saved = applied.map(|applied| Saved { x, noise, applied });
        Ok(y)
    }

    fn backward(&mut self, dy: Tensor, grads: Grads) -> Result<Tensor> {
        let Saved { x, noise, applied } = self
            .saved
            .take()
            .expect("backward follows a recorded forward");
        let (affine, affine_grads) = match self.norm.as_mut().and_then(|n| n.affine.as_mut()) {
            Some((g, b)) => (
                Some((&g.value, &b.value)),
                (grads == Grads::Accumulate).then_some((&mut g.grad, &mut b.grad)),
            ),
            None => (None, None),
        };
        let Gradients { dx: dz, .. } = apply::backward(dy, affine, applied, affine_grads)?;
        let Conv {
            geometry,
            weight,
            bias,
            ..
        } = &mut self.conv;
        if grads == Grads::Accumulate {
            let db = bias.as_mut().map(|b| &mut b.grad);
            match &noise {
                Some(noise) => {
                    noisy_conv2d::weight_grad(&dz, &x, noise, &mut weight.grad, db, *geometry)?
                }
                None => conv2d::weight_grad(&dz, &x, &mut weight.grad, db, *geometry)?,
            }
        }
        conv2d::input_grad(&dz, &weight.value, x.shape(), *geometry)
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
