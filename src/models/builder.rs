//! Builds networks layer by layer: numbers the noise layers, names and initialises the parameters.

use super::{Arch, Config, Convolution, NoisePlacement};
use crate::error::{Error, Result};
use crate::nn::{BatchNorm, Conv, ConvBlock, Dense, Layer, Layout, NoiseLayer, NormBlock, Param};
use crate::ops::batch_norm::{Activation, Running};
use crate::ops::conv2d::Conv2d;
use crate::ops::pool2d::Pool2d;
use crate::rng::Stream;
use crate::tensor::{DType, Shape, Tensor};

/// 2x2 max-pooling.
pub(super) const POOL: Pool2d = Pool2d { k: 2, stride: 2 };

/// What stands behind a convolution.
#[derive(Clone, Copy)]
pub(super) enum Norm {
    None,
    Affine,
    Plain,
}

/// A convolution to be built.
pub(super) struct ConvSpec<'a> {
    pub name: &'a str,
    pub norm_name: &'a str,
    pub c_out: usize,
    pub k: usize,
    pub geometry: Conv2d,
    pub bias: bool,
    pub norm: Norm,
    pub activation: bool,
    pub pool: bool,
}

/// Elements that an image has in the convolutions of a network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// The most that one reads and writes together.
    pub most: usize,
    /// The fewest that one computes.
    pub least: usize,
}

impl Default for Sizes {
    /// Of a network without convolutions.
    fn default() -> Self {
        Sizes {
            most: 0,
            least: usize::MAX,
        }
    }
}

/// Follows the image's shape through the layers built so far.
pub(super) struct Builder<'a> {
    config: &'a Config,
    seed: u64,
    /// Noise layers so far.
    noise_layers: u16,
    /// Initialised tensors so far: each has its own random stream.
    tensors: u64,
    /// `[1, h, w, c]` behind the last layer.
    pub shape: Shape,
    pub sizes: Sizes,
    pub layers: Vec<Box<dyn Layer>>,
    /// Convolutions and linear layers so far.
    pub convolutions: Vec<Convolution>,
}

/// Tag of the random streams that initialise weights.
const INIT: u32 = 0;

/// A parameter on the CPU.
fn param(value: Tensor) -> Param {
    Param::new(value).expect("zeros on the CPU")
}

impl<'a> Builder<'a> {
    pub fn new(config: &'a Config, seed: u64) -> Self {
        Builder {
            config,
            seed,
            noise_layers: 0,
            tensors: 0,
            shape: config.input,
            sizes: Sizes::default(),
            layers: Vec::new(),
            convolutions: Vec::new(),
        }
    }

    pub fn cap(&self) -> Option<f64> {
        self.config.relu_cap.map(f64::from)
    }

    /// Kernel, stride and padding of a convolution that keeps the size.
    pub fn same(k: usize) -> Conv2d {
        Conv2d {
            stride: 1,
            pad: k / 2,
            groups: 1,
        }
    }

    pub fn push(&mut self, layer: impl Layer + 'static) {
        self.layers.push(Box::new(layer));
    }

    /// The next noise layer.
    pub fn noise(&mut self) -> NoiseLayer {
        let layer = self.noise_layers;
        self.noise_layers += 1;
        let authors = self.config.placement == NoisePlacement::Authors
            && matches!(self.config.arch, Arch::Vgg16 | Arch::Small);
        let sigma = if layer == u16::from(authors) {
            self.config.init_noise
        } else {
            self.config.inner_noise
        };
        NoiseLayer { layer, sigma }
    }

    fn stream(&mut self) -> Stream {
        self.tensors += 1;
        Stream::new(self.seed, INIT, self.tensors)
    }

    fn normal(&mut self, shape: Shape, mean: f32, sd: f32) -> Param {
        let mut stream = self.stream();
        let data = (0..shape.len())
            .map(|_| mean + sd * stream.normal() as f32)
            .collect();
        param(Tensor::from_vec::<f32>(shape, data).expect("length is the shape's"))
    }

    fn uniform(&mut self, shape: Shape, bound: f32) -> Param {
        let mut stream = self.stream();
        let data = (0..shape.len())
            .map(|_| bound * (2.0 * stream.uniform() - 1.0) as f32)
            .collect();
        param(Tensor::from_vec::<f32>(shape, data).expect("length is the shape's"))
    }

    /// A convolution block on the current shape; moves the shape on.
    pub fn conv(&mut self, spec: ConvSpec<'_>) -> Result<ConvBlock> {
        let ConvSpec {
            name,
            norm_name,
            c_out,
            k,
            geometry,
            ..
        } = spec;
        if !self.shape.c.is_multiple_of(geometry.groups) || !c_out.is_multiple_of(geometry.groups) {
            return Err(Error::argument(
                "Model::new",
                "cardinality",
                format_args!("a divisor of {} and {c_out} channels", self.shape.c),
                geometry.groups,
            ));
        }
        let c_in = self.shape.c / geometry.groups;
        let w = Shape::new(c_out, k, k, c_in);
        self.convolutions.push(Convolution {
            name: name.to_string(),
            x: self.shape,
            w,
            conv: geometry,
            pool: spec.pool,
            residual: false,
            noise: true,
            norm: !matches!(spec.norm, Norm::None),
        });
        let pooled = |shape: Shape| match spec.pool {
            false => Some(shape),
            true if shape.h < POOL.k || shape.w < POOL.k => None,
            true => Some(Shape::new(1, shape.h / 2, shape.w / 2, c_out)),
        };
        let from = self.shape;
        let output = geometry.output_shape("Model::new", from, w).ok();
        self.shape = output.and_then(pooled).ok_or_else(|| {
            let expected = format!("images large enough for every layer up to {name}");
            Error::argument("Model::new", "input", expected, self.config.input)
        })?;

        let most = from.row_len() + self.shape.row_len();
        self.sizes.most = self.sizes.most.max(most);
        let least = output.map_or(usize::MAX, |output| output.row_len());
        self.sizes.least = self.sizes.least.min(least);

        let noise = self.noise();
        let weight = self.normal(w, 0.0, 0.02);
        let bias = spec.bias.then(|| {
            let bound = 1.0 / ((k * k * c_in) as f32).sqrt();
            self.uniform(Shape::vector(c_out), bound)
        });
        let norm = self.batch_norm(norm_name, spec.norm, c_out);
        let activation = match spec.activation {
            true => self.activation(),
            false => Activation::Identity,
        };
        let conv = Conv {
            name: name.to_string(),
            geometry,
            weight,
            bias,
        };
        let pool = spec.pool.then_some(POOL);
        Ok(ConvBlock::new(noise, conv, norm, activation, pool))
    }

    /// Says that a residual is added behind the last convolution.
    pub fn add_residual(&mut self) {
        if let Some(last) = self.convolutions.last_mut() {
            last.residual = true;
        }
    }

    fn batch_norm(&mut self, name: &str, norm: Norm, c: usize) -> Option<BatchNorm> {
        let affine = match norm {
            Norm::None => return None,
            Norm::Affine => Some((
                self.normal(Shape::vector(c), 1.0, 0.02),
                param(Tensor::zeros(Shape::vector(c), DType::F32)),
            )),
            Norm::Plain => None,
        };
        Some(BatchNorm {
            name: name.to_string(),
            affine,
            running: Running {
                mean: Tensor::zeros(Shape::vector(c), DType::F32),
                var: Tensor::full(Shape::vector(c), DType::F32, 1.0),
            },
            count: 0,
        })
    }

    fn activation(&self) -> Activation {
        match self.cap() {
            None => Activation::Relu,
            Some(cap) => Activation::BoundedRelu(cap),
        }
    }

    /// Batch norm and activation on the current shape.
    pub fn norm_block(&mut self, name: &str) -> NormBlock {
        let norm = self.batch_norm(name, Norm::Affine, self.shape.c);
        NormBlock::new(norm.expect("asked for"), self.activation())
    }

    /// A linear layer on the current `[1, 1, 1, c]`.
    pub fn dense(&mut self, name: &str, out: usize, layout: Layout, activation: bool) {
        let fan_in = self.shape.row_len();
        self.convolutions.push(Convolution {
            name: name.to_string(),
            x: Shape::vector(fan_in),
            w: Shape::new(out, 1, 1, fan_in),
            conv: Builder::same(1),
            pool: false,
            residual: false,
            noise: false,
            norm: false,
        });
        let weight = self.normal(Shape::new(out, 1, 1, fan_in), 0.0, 0.02);
        let bias = self.uniform(Shape::vector(out), 1.0 / (fan_in as f32).sqrt());
        let activation = activation.then(|| self.cap());
        self.shape = Shape::vector(out);
        self.push(Dense::new(
            name.to_string(),
            weight,
            bias,
            layout,
            activation,
        ));
    }
}
