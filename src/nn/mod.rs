//! Layers with saved state: ops know how to compute, layers remember what backward needs.

mod conv_block;
mod dense;
mod residual;

pub use conv_block::{BatchNorm, Conv, ConvBlock};
pub use dense::{Dense, Flatten, GlobalAverage};
pub use residual::Residual;

use crate::error::Result;
use crate::ops::noise::{Key, Noise, Normals};
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
    /// Rows in, rows out. Keeps what backward needs if `pass.record`.
    fn forward(&mut self, x: Tensor, pass: &Pass) -> Result<Tensor>;

    /// Gradient in the input of the last recorded forward pass, whose state it consumes.
    /// Panics without one: that is a bug of the caller, not of the data.
    fn backward(&mut self, dy: Tensor, grads: Grads) -> Result<Tensor>;

    /// Calls `visit` with the full name of every parameter and buffer, in a fixed order.
    fn visit(&mut self, visit: &mut dyn FnMut(&str, Entry<'_>));
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

/// Runs layers in order.
pub(crate) fn forward_all(layers: &mut [Box<dyn Layer>], x: Tensor, pass: &Pass) -> Result<Tensor> {
    layers
        .iter_mut()
        .try_fold(x, |x, layer| layer.forward(x, pass))
}

/// Runs backward passes in reverse order.
pub(crate) fn backward_all(
    layers: &mut [Box<dyn Layer>],
    dy: Tensor,
    grads: Grads,
) -> Result<Tensor> {
    layers
        .iter_mut()
        .rev()
        .try_fold(dy, |dy, layer| layer.backward(dy, grads))
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
