//! Layers with saved state: ops know how to compute, layers remember what backward needs.

pub(crate) mod chain;
mod conv_block;
mod dense;
mod frozen;
mod norm_block;
mod residual;

pub use chain::{Back, End, Link, NoisePlan, Site};
pub use conv_block::{Conv, ConvBlock};
pub use dense::{Dense, Flatten, GlobalAverage};
pub use frozen::{FrozenBlock, FrozenDense};
pub use norm_block::{BatchNorm, NormBlock};
pub use residual::{Block, Gradients, Residual};

use crate::error::Result;
use crate::ops::noise::{self, Key, Noise, Normals};
use crate::ops::relu::Mask;
use crate::tensor::{DType, Device, Tensor};

/// Which statistics batch normalisation uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The batch's own; the running estimates move.
    Train,
    /// The running estimates; rows do not see each other.
    Eval,
}

/// One pass through a network.
#[derive(Debug, Clone)]
pub struct Pass {
    /// Batch norm's statistics. Independent of the noise: RSE keeps its noise at test time.
    pub mode: Mode,
    /// Whose noise the noise layers draw; `None` draws none.
    pub noise: Option<Key>,
    /// Whether a backward pass follows: layers then keep what it needs.
    pub record: bool,
}

/// Which gradients a backward pass computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grads {
    /// The input's, and the parameters' are added to [`Param::grad`].
    Accumulate,
    /// The input's alone: what attacks need.
    InputOnly,
}

/// A parameter and its gradient, of one shape and dtype.
#[derive(Debug, Clone)]
pub struct Param {
    /// The value.
    pub value: Tensor,
    /// The accumulated gradient.
    pub grad: Tensor,
}

impl Param {
    /// A parameter with gradient 0.
    ///
    /// Errors: not enough device memory.
    pub fn new(value: Tensor) -> Result<Self> {
        let grad = value.zeros_like()?;
        Ok(Param { value, grad })
    }
}

/// How a tensor of ours stands in a PyTorch `state_dict`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Convolution weights: `[o, k, k, i]` here, `[o, i, k, k]` there.
    Oihw,
    /// A linear layer's weights: `[o, 1, 1, i]` here, `[o, i]` there.
    Matrix,
    /// A linear layer's weights over flattened `[h, w, c]` pixels: `[o, 1, 1, h*w*c]` here; there
    /// `[o, c*h*w]`, because PyTorch flattens channels first.
    Flattened {
        /// Height of the flattened image.
        h: usize,
        /// Width of the flattened image.
        w: usize,
        /// Channels of the flattened image.
        c: usize,
    },
    /// A vector over channels: `[1, 1, 1, c]` here, `[c]` there.
    Vector,
}

/// One named piece of a layer's state.
pub enum Entry<'a> {
    /// Trained.
    Param(&'a mut Param, Layout),
    /// Kept but not trained: running statistics.
    Buffer(&'a mut Tensor, Layout),
    /// Batches seen by a batch norm (`num_batches_tracked`).
    Count(&'a mut u64),
}

/// A piece of a network with a hand-written backward pass.
pub trait Layer: Send {
    /// The noise in front of it, which the layer before may draw: `None` where there is none, or where
    /// the input is also read without it.
    fn noise(&self, _pass: &Pass) -> Option<Noise> {
        None
    }

    /// Its last pass, which may take the next layer's noise along.
    fn end(&self) -> End {
        End::Other
    }

    /// Whether it can read an image once for all the rows that it makes: takes [`Link::draws`] above 1.
    fn takes_draws(&self) -> bool {
        false
    }

    /// Where the gradient in the output of the last recorded pass passes, if the next layer may apply it to
    /// what it hands back; [`Back::gated`] then says so.
    fn gate(&self) -> Option<&Mask> {
        None
    }

    /// Whether its backward pass applies the gate of the layer before, in [`Back::then`].
    fn gates(&self) -> bool {
        false
    }

    /// Whether there is anything to train in it.
    fn is_trained(&self) -> bool {
        false
    }

    /// Rows in, rows out. Keeps what backward needs if `pass.record`.
    fn forward(&mut self, x: Tensor, pass: &Pass, link: &Link<'_>) -> Result<Tensor>;

    /// Gradient in the input of the last recorded forward pass, whose state it consumes; may be `None`
    /// where `back.input` is false. Panics without such a pass: that is a bug of the caller, not of the
    /// data.
    fn backward(&mut self, dy: Tensor, back: Back<'_>) -> Result<Option<Tensor>>;

    /// Whether [`Layer::remake`] can: whether it keeps enough of a recorded pass.
    fn remakes(&self) -> bool {
        false
    }

    /// The output of the last recorded forward pass once more, the same bits. Panics where
    /// [`Layer::remakes`] says no.
    fn remake(&self) -> Result<Tensor> {
        panic!("asked to make again what cannot be")
    }

    /// The same layer for evaluation alone, with batch norm as part of its weights.
    fn freeze(&self) -> Result<Box<dyn Layer>>;

    /// Calls `visit` with the full name of every parameter and buffer, in a fixed order.
    fn visit(&mut self, visit: &mut dyn FnMut(&str, Entry<'_>));
}

impl<L: Layer + ?Sized> Layer for Box<L> {
    fn noise(&self, pass: &Pass) -> Option<Noise> {
        (**self).noise(pass)
    }

    fn end(&self) -> End {
        (**self).end()
    }

    fn takes_draws(&self) -> bool {
        (**self).takes_draws()
    }

    fn gate(&self) -> Option<&Mask> {
        (**self).gate()
    }

    fn gates(&self) -> bool {
        (**self).gates()
    }

    fn is_trained(&self) -> bool {
        (**self).is_trained()
    }

    fn forward(&mut self, x: Tensor, pass: &Pass, link: &Link<'_>) -> Result<Tensor> {
        (**self).forward(x, pass, link)
    }

    fn backward(&mut self, dy: Tensor, back: Back<'_>) -> Result<Option<Tensor>> {
        (**self).backward(dy, back)
    }

    fn remakes(&self) -> bool {
        (**self).remakes()
    }

    fn remake(&self) -> Result<Tensor> {
        (**self).remake()
    }

    fn freeze(&self) -> Result<Box<dyn Layer>> {
        (**self).freeze()
    }

    fn visit(&mut self, visit: &mut dyn FnMut(&str, Entry<'_>)) {
        (**self).visit(visit);
    }
}

/// The noise in front of a layer: `x + sigma z`, `z ~ N(0, 1)` anew for every row and draw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseLayer {
    /// Its number in the network; 0 is the noise on the image.
    pub layer: u16,
    /// Standard deviation; 0 draws nothing.
    pub sigma: f32,
}

impl NoiseLayer {
    /// This layer's draw in a pass; `None` where nothing is to be drawn.
    pub(crate) fn draw(&self, pass: &Pass) -> Option<Noise> {
        let key = pass.noise.as_ref().filter(|_| self.sigma != 0.0)?;
        Some(Noise {
            key: key.clone(),
            layer: self.layer,
            sigma: self.sigma,
            normals: Normals::Fast,
        })
    }
}

/// By itself, where what follows does not draw it: the gradient of the addition is the identity.
impl Layer for NoiseLayer {
    fn noise(&self, pass: &Pass) -> Option<Noise> {
        self.draw(pass)
    }

    fn forward(&mut self, x: Tensor, pass: &Pass, link: &Link<'_>) -> Result<Tensor> {
        match self.draw(pass).filter(|_| !link.drawn) {
            Some(noise) => noise::forward(&x, &noise),
            None => Ok(x),
        }
    }

    fn backward(&mut self, dy: Tensor, _: Back<'_>) -> Result<Option<Tensor>> {
        Ok(Some(dy))
    }

    fn freeze(&self) -> Result<Box<dyn Layer>> {
        Ok(Box::new(*self))
    }

    fn visit(&mut self, _: &mut dyn FnMut(&str, Entry<'_>)) {}
}

/// Moves every parameter and buffer to a device and rounds it to a dtype; gradients start at 0.
pub(crate) fn cast(layers: &mut [Box<dyn Layer>], device: &Device, dtype: DType) -> Result<()> {
    let mut result = Ok(());
    for layer in layers {
        layer.visit(&mut |_, entry| {
            if result.is_ok() {
                result = cast_entry(entry, device, dtype);
            }
        });
    }
    result
}

fn cast_entry(entry: Entry<'_>, device: &Device, dtype: DType) -> Result<()> {
    let cast = |t: &Tensor| match device {
        // f64 lives on the CPU alone: there first in one direction, there last in the other.
        Device::Cpu => t.to_cpu()?.to_dtype(dtype),
        Device::Gpu(_) => t.to_dtype(dtype)?.to(device),
    };
    match entry {
        Entry::Param(p, _) => *p = Param::new(cast(&p.value)?)?,
        Entry::Buffer(t, _) => *t = cast(t)?,
        Entry::Count(_) => {}
    }
    Ok(())
}
