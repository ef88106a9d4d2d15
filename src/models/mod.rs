//! The networks: VGG16, ResNeXt29, PreActResNet-18, Model A, a small CNN and a linear model.

mod architectures;
mod builder;
mod weights;

pub(crate) use builder::Sizes;
pub(crate) use weights::{put_array, to_array};

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::nn::{self, Back, Entry, Grads, Layer, Link, NoisePlan, Param, Pass};
use crate::ops::conv2d::predict::{Launch, Pass as Direction};
use crate::ops::conv2d::{Conv2d, Then};
use crate::tensor::{DType, Device, Kind, Shape, Tensor};

/// Which network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// VGG16 with batch norm for small images (Simonyan and Zisserman 2015; head one linear layer).
    Vgg16,
    /// ResNeXt29 (Xie et al. 2017); `cardinality` groups of `width` channels.
    ResNeXt29,
    /// ResNet-18 with pre-activation for small images (He et al. 2016), as RobustBench's and the usual
    /// PyTorch code have it: no batch norm behind the last block.
    PreActResNet18,
    /// The STL-10 network of the RSE paper; batch norm without affine.
    ModelA,
    /// Four convolutions and two linear layers, for demos and tests.
    Small,
    /// `W x + b` on the flattened image, with noise on the image: exact answers can be checked from outside.
    Linear,
}

impl Arch {
    /// Every architecture.
    pub const ALL: [Arch; 6] = [
        Arch::Vgg16,
        Arch::ResNeXt29,
        Arch::PreActResNet18,
        Arch::ModelA,
        Arch::Small,
        Arch::Linear,
    ];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Vgg16 => "vgg16",
            Arch::ResNeXt29 => "resnext29",
            Arch::PreActResNet18 => "preactresnet18",
            Arch::ModelA => "model-a",
            Arch::Small => "small",
            Arch::Linear => "linear",
        }
    }

    /// Channels of the first stage in the published network; [`Config::width`] scales all others.
    pub fn default_width(self) -> usize {
        match self {
            Arch::Vgg16 | Arch::ResNeXt29 | Arch::PreActResNet18 => 64,
            Arch::ModelA | Arch::Small => 32,
            Arch::Linear => 1,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arch {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Arch::ALL
            .into_iter()
            .find(|a| a.name() == s)
            .ok_or_else(|| {
                let names: Vec<_> = Arch::ALL.iter().map(|a| a.name()).collect();
                Error::argument("models", "model", names.join(", "), s)
            })
    }
}

/// A convolution or linear layer of a network, for one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Convolution {
    /// Its name.
    pub name: String,
    /// The input's shape.
    pub x: Shape,
    /// The weights' shape.
    pub w: Shape,
    /// Its geometry.
    pub conv: Conv2d,
    /// A 2x2 max pool follows.
    pub pool: bool,
    /// A residual is added behind it.
    pub residual: bool,
    /// A noise layer stands in front of it.
    pub noise: bool,
    /// Batch norm follows.
    pub norm: bool,
}

impl Convolution {
    /// Its launch on `n` images, without noise and without anything behind it.
    pub fn launch(&self, pass: Direction, dtype: DType, n: usize) -> Launch {
        Launch {
            pass,
            dtype,
            x: self.x.with_n(n),
            draws: 1,
            w: self.w,
            conv: self.conv,
            pool: false,
            residual: false,
            noise: false,
        }
    }
}

impl Config {
    /// The convolutions and linear layers of the network, in order. It makes the network's weights on the
    /// way.
    ///
    /// Errors: the configuration does not fit together.
    pub fn convolutions(&self) -> Result<Vec<Convolution>> {
        self.check()?;
        architectures::convolutions(self)
    }
}

/// Which noise layer carries the `init` noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NoisePlacement {
    /// The one on the image, as the paper's text says.
    #[default]
    Image,
    /// As the authors' VGG16 does: the one in front of the **second** convolution, the image gets
    /// the inner noise. So do ours of that kind (VGG16 and the small CNN); the authors' other networks place it
    /// on the image, and so do all others here.
    Authors,
}

impl NoisePlacement {
    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            NoisePlacement::Image => "image",
            NoisePlacement::Authors => "authors",
        }
    }
}

impl fmt::Display for NoisePlacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for NoisePlacement {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "image" => Ok(NoisePlacement::Image),
            "authors" => Ok(NoisePlacement::Authors),
            _ => Err(Error::argument(
                "models",
                "noise placement",
                "image or authors",
                s,
            )),
        }
    }
}

/// Everything that fixes a network but its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Which network.
    pub arch: Arch,
    /// `[1, h, w, c]` of the images it takes.
    pub input: Shape,
    /// Number of classes, at least 2.
    pub classes: usize,
    /// Channels of the first stage, at least 1.
    pub width: usize,
    /// Groups of the 3x3 convolutions of ResNeXt; 1 elsewhere.
    pub cardinality: usize,
    /// Standard deviation of the noise on the image (or where `placement` puts it).
    pub init_noise: f32,
    /// Standard deviation of the noise in front of every other convolution.
    pub inner_noise: f32,
    /// Which layer carries `init_noise`.
    pub placement: NoisePlacement,
    /// Whether the noise is also drawn outside training. RSE draws it, robust optimisation does not.
    pub noise_at_test: bool,
    /// Caps every activation at this value: bounded ReLU.
    pub relu_cap: Option<f32>,
}

impl Config {
    /// The published network for images of this shape, without noise.
    pub fn new(arch: Arch, input: Shape, classes: usize) -> Self {
        Config {
            arch,
            input: input.with_n(1),
            classes,
            width: arch.default_width(),
            cardinality: if arch == Arch::ResNeXt29 { 2 } else { 1 },
            init_noise: 0.0,
            inner_noise: 0.0,
            placement: NoisePlacement::Image,
            noise_at_test: true,
            relu_cap: None,
        }
    }

    /// The same with RSE's noise.
    pub fn with_noise(self, init_noise: f32, inner_noise: f32) -> Self {
        Config {
            init_noise,
            inner_noise,
            ..self
        }
    }

    fn check(&self) -> Result<()> {
        let wrong = |arg, expected: &str, found: &dyn fmt::Display| {
            Err(Error::argument("Model::new", arg, expected, found))
        };
        for (arg, sigma) in [
            ("init noise", self.init_noise),
            ("inner noise", self.inner_noise),
        ] {
            if !(sigma.is_finite() && sigma >= 0.0) {
                return wrong(arg, "a standard deviation, finite and not negative", &sigma);
            }
        }
        if let Some(cap) = self.relu_cap
            && !(cap.is_finite() && cap > 0.0)
        {
            return wrong("relu cap", "a finite number above 0", &cap);
        }
        if self.classes < 2 {
            return wrong("classes", "at least 2", &self.classes);
        }
        if self.width == 0 {
            return wrong("width", "at least 1", &self.width);
        }
        if self.cardinality == 0 {
            return wrong("cardinality", "at least 1", &self.cardinality);
        }
        if self.input.is_empty() {
            return wrong(
                "input",
                "an image with at least one pixel and channel",
                &self.input,
            );
        }
        Ok(())
    }
}

/// A network with its weights.
pub struct Model {
    config: Config,
    layers: Vec<Box<dyn Layer>>,
    device: Device,
    dtype: DType,
    plan: NoisePlan,
    sizes: Sizes,
}

impl Model {
    /// A freshly initialised network; the weights are a pure function of `seed`.
    ///
    /// Initialisation as in the paper's code: convolution and linear weights N(0, 0.02), batch norm
    /// scales N(1, 0.02), shifts 0, other biases uniform in `+-1 / sqrt(fan_in)`.
    pub fn new(config: Config, seed: u64) -> Result<Self> {
        config.check()?;
        let (layers, sizes) = architectures::build(&config, seed)?;
        Ok(Model {
            config,
            layers,
            device: Device::Cpu,
            dtype: DType::F32,
            plan: NoisePlan::default(),
            sizes,
        })
    }

    /// What the network is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Type of the activations inside; weights, statistics, images, logits and the images' gradients
    /// are of its [`DType::master`] type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the network works.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What its convolutions work on.
    pub(crate) fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// The type and place of the activations.
    pub fn kind(&self) -> Kind {
        let gpu = match &self.device {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some(gpu.ordinal()),
        };
        Kind {
            dtype: self.dtype,
            gpu,
        }
    }

    /// Moves the network to a device, to work there on activations of a dtype: f64 on the CPU for
    /// gradient checks, 16-bit floats on a GPU for speed. Gradients start at 0.
    ///
    /// Errors: a dtype the device does not work in; not enough device memory.
    pub fn to(&mut self, device: &Device, dtype: DType) -> Result<()> {
        let fits = match device {
            Device::Cpu => dtype == dtype.master(),
            Device::Gpu(_) => dtype != DType::F64,
        };
        if !fits {
            let expected = match device {
                Device::Cpu => "f32 or f64 on the CPU",
                Device::Gpu(_) => "f32, bf16 or f16 on a GPU",
            };
            return Err(Error::argument("Model::to", "dtype", expected, dtype));
        }
        nn::cast(&mut self.layers, device, dtype.master())?;
        self.device = device.clone();
        self.dtype = dtype;
        Ok(())
    }

    /// Where noise is drawn and what is kept for backward. It changes time and memory, no number.
    pub fn noise_plan(&self) -> NoisePlan {
        self.plan
    }

    /// Chooses [`Model::noise_plan`], for the passes from now on.
    pub fn set_noise_plan(&mut self, plan: NoisePlan) {
        self.plan = plan;
    }

    /// The network for evaluation alone, as it stands now: batch norm becomes part of the convolutions'
    /// weights, and every block is one fused convolution. The same numbers as [`Model::forward`] in
    /// [`Mode::Eval`](nn::Mode::Eval), up to the rounding of those weights.
    ///
    /// Errors: not enough device memory; on the CPU a variance below 0.
    pub fn freeze(&self) -> Result<Frozen> {
        let layers = self.layers.iter().map(|layer| layer.freeze());
        Ok(Frozen {
            layers: layers.collect::<Result<_>>()?,
            input: self.config.input,
            kind: self.kind(),
            plan: self.plan,
        })
    }

    /// Logits `[n, 1, 1, classes]` of images `[n, h, w, c]`.
    ///
    /// Errors: images of another size, dtype or device; no row; not enough device memory.
    pub fn forward(&mut self, x: Tensor, pass: &Pass) -> Result<Tensor> {
        check_images("Model::forward", &x, self.config.input, self.kind())?;
        forward(&mut self.layers, x, 1, self.dtype, pass, self.plan)
    }

    /// Gradient in the images of the last recorded forward pass; `dy` is the logits' gradient.
    pub fn backward(&mut self, dy: Tensor, grads: Grads) -> Result<Tensor> {
        let dx = backward(&mut self.layers, dy, self.dtype, grads, true)?;
        Ok(dx.expect("it was asked for"))
    }

    /// [`Model::backward`] for the parameters' gradients alone, as training wants them: the images' is
    /// not computed.
    pub fn accumulate(&mut self, dy: Tensor) -> Result<()> {
        backward(&mut self.layers, dy, self.dtype, Grads::Accumulate, false).map(drop)
    }

    /// Calls `visit` with every named parameter and buffer, in a fixed order.
    pub fn visit(&mut self, mut visit: impl FnMut(&str, Entry<'_>)) {
        for layer in &mut self.layers {
            layer.visit(&mut visit);
        }
    }

    /// Calls `visit` with every parameter, in a fixed order.
    pub fn visit_params(&mut self, mut visit: impl FnMut(&str, &mut Param)) {
        self.visit(|name, entry| {
            if let Entry::Param(param, _) = entry {
                visit(name, param);
            }
        });
    }

    /// Number of trained numbers.
    pub fn count_params(&mut self) -> usize {
        let mut count = 0;
        self.visit_params(|_, p| count += p.value.shape().len());
        count
    }

    /// An error naming the first parameter or statistic that holds NaN or infinity.
    pub fn check_finite(&mut self) -> Result<()> {
        let mut first = Ok(());
        self.visit(|name, entry| {
            let tensor = match entry {
                Entry::Param(p, _) => &p.value,
                Entry::Buffer(t, _) => t,
                Entry::Count(_) => return,
            };
            if first.is_ok() {
                first = match tensor.count_not_finite() {
                    Ok(0) => Ok(()),
                    Ok(count) => Err(Error::NotFinite {
                        what: name.to_string(),
                        count,
                        total: tensor.shape().len(),
                    }),
                    Err(e) => Err(e),
                };
            }
        });
        first
    }
}

/// A network for evaluation alone: [`Model::freeze`].
pub struct Frozen {
    layers: Vec<Box<dyn Layer>>,
    input: Shape,
    kind: Kind,
    plan: NoisePlan,
}

impl Frozen {
    /// Logits `[n * draws, 1, 1, classes]` of images `[n, h, w, c]`: `draws` rows one after the other are an
    /// image's, which the first convolution reads once for all of them. `pass.noise` names that many rows.
    ///
    /// Errors: as [`Model::forward`]; no draw; a pass that trains.
    pub fn forward(&mut self, x: Tensor, draws: usize, pass: &Pass) -> Result<Tensor> {
        check_images("Frozen::forward", &x, self.input, self.kind)?;
        if pass.mode == nn::Mode::Train {
            let expected = "eval, as the network is frozen";
            return Err(Error::argument(
                "Frozen::forward",
                "pass.mode",
                expected,
                "train",
            ));
        }
        let (dtype, plan) = (self.kind.dtype, self.plan);
        forward(&mut self.layers, x, draws, dtype, pass, plan)
    }

    /// Gradient `[n * draws, h, w, c]` in the rows of the last recorded forward pass; `dy` is the logits' gradient.
    pub fn backward(&mut self, dy: Tensor) -> Result<Tensor> {
        let dx = backward(
            &mut self.layers,
            dy,
            self.kind.dtype,
            Grads::InputOnly,
            true,
        )?;
        Ok(dx.expect("it was asked for"))
    }
}

fn check_images(op: &'static str, x: &Tensor, input: Shape, kind: Kind) -> Result<()> {
    let expected = input.with_n(x.shape().n);
    x.expect(op, "x", expected, kind.master())?;
    match expected.n {
        0 => Err(Error::argument(op, "x", "at least one row", 0)),
        _ => Ok(()),
    }
}

fn forward(
    layers: &mut [Box<dyn Layer>],
    x: Tensor,
    draws: usize,
    dtype: DType,
    pass: &Pass,
    plan: NoisePlan,
) -> Result<Tensor> {
    let link = Link {
        plan,
        draws,
        ..Link::default()
    };
    nn::chain::forward(layers, x.to_dtype(dtype)?, pass, &link)?.to_dtype(dtype.master())
}

fn backward(
    layers: &mut [Box<dyn Layer>],
    dy: Tensor,
    dtype: DType,
    grads: Grads,
    input: bool,
) -> Result<Option<Tensor>> {
    let back = Back {
        grads,
        input,
        then: Then::default(),
        gated: false,
        before: None,
    };
    let dx = nn::chain::backward(layers, dy.to_dtype(dtype)?, back)?;
    dx.map(|dx| dx.to_dtype(dtype.master())).transpose()
}
