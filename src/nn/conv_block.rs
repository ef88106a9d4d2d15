//! Noise, convolution, batch norm, activation, pooling: the block every network here is made of.

use super::{Entry, Grads, Layer, Layout, Mode, NoiseLayer, Param, Pass};
use crate::error::Result;
use crate::ops::batch_norm::{self, Activation, Running};
use crate::ops::conv2d::{self, Conv2d};
use crate::ops::noise::Noise;
use crate::ops::pool2d::{self, Pool2d};
use crate::ops::{noisy_conv2d, relu};
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
    /// The convolution's output and batch norm's statistics, or the activation's output.
    middle: Middle,
    /// Shape in front of the pooling, and which element of each window was largest.
    pooled: Option<(Shape, Vec<u8>)>,
}

enum Middle {
    Norm(Tensor, batch_norm::Saved),
    Activated(Tensor),
}

fn cap(activation: Activation) -> Option<Option<f64>> {
    match activation {
        Activation::Identity => None,
        Activation::Relu => Some(None),
        Activation::BoundedRelu(cap) => Some(Some(cap)),
    }
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

        let (y, middle) = match &mut self.norm {
            Some(norm) => {
                let affine = norm.affine.as_ref().map(|(g, b)| (&g.value, &b.value));
                let (y, saved) = match pass.mode {
                    Mode::Train => {
                        norm.count += 1;
                        batch_norm::forward_train(&z, affine, &mut norm.running, self.activation)?
                    }
                    Mode::Eval => {
                        batch_norm::forward_eval(&z, affine, &norm.running, self.activation)?
                    }
                };
                (y, Middle::Norm(z, saved))
            }
            None => {
                let y = match cap(self.activation) {
                    Some(cap) => relu::forward(z, cap)?,
                    None => z,
                };
                (y.clone(), Middle::Activated(y))
            }
        };

        let (y, pooled) = match self.pool {
            Some(pool) => {
                let shape = y.shape();
                let (y, argmax) = pool2d::max_forward(&y, pool)?;
                (y, Some((shape, argmax)))
            }
            None => (y, None),
        };
        self.saved = pass.record.then_some(Saved {
            x,
            noise,
            middle,
            pooled,
        });
        Ok(y)
    }

    fn backward(&mut self, dy: Tensor, grads: Grads) -> Result<Tensor> {
        let Saved {
            x,
            noise,
            middle,
            pooled,
        } = self
            .saved
            .take()
            .expect("backward follows a recorded forward");
        let dy = match (pooled, self.pool) {
            (Some((shape, argmax)), Some(pool)) => pool2d::max_backward(&dy, &argmax, shape, pool)?,
            _ => dy,
        };
        let dz = match middle {
            Middle::Norm(z, saved) => {
                let norm = self.norm.as_mut().expect("recorded with this norm");
                let (affine, affine_grads) = match &mut norm.affine {
                    Some((g, b)) => (
                        Some((&g.value, &b.value)),
                        (grads == Grads::Accumulate).then_some((&mut g.grad, &mut b.grad)),
                    ),
                    None => (None, None),
                };
                batch_norm::backward(dy, &z, affine, &saved, self.activation, affine_grads)?
            }
            Middle::Activated(y) => match cap(self.activation) {
                Some(cap) => relu::backward(dy, &y, cap)?,
                None => dy,
            },
        };
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
