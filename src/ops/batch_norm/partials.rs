//! Statistics that are gathered before the batch norm runs: by the convolution in front of it, while it
//! has its results at hand.

use super::{EPS, MOMENTUM, Running, Saved, cpu, gpu};
use crate::dispatch;
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Gpu, launch_size};
use crate::tensor::{Real, Shape, Tensor};

/// A tensor's mean and squared deviations per channel, on a GPU in parts that are yet to be merged.
pub struct Partials {
    shape: Shape,
    parts: Parts,
}

enum Parts {
    /// Mean and sum of squared deviations.
    Host(Vec<f64>, Vec<f64>),
    Device(Chunks),
}

/// Parts on a GPU, one for each chunk of pixels.
pub(super) struct Chunks {
    /// `[chunks, 3, c]`: one of the chunk's values (or one near them), the mean less that value, the sum
    /// of squared deviations from the mean.
    pub partial: Buffer<f32>,
    /// The pixels of every chunk; a chunk without any may hold anything. Without this list they are
    /// `each`, of the last chunk what is left.
    pub counts: Option<Buffer<u32>>,
    /// Number of chunks.
    pub chunks: u32,
    /// See `counts`.
    pub each: u32,
}

impl Partials {
    /// Of a tensor of this shape on a GPU, as a convolution's epilogue gathers them: `partial` is
    /// `[chunks, 3, c]`, one of a chunk's values (or one near them), the mean less that value, the sum of
    /// squared deviations from the mean; `counts` are the chunks' pixels, together those of the tensor. A
    /// chunk without pixels may hold anything.
    ///
    /// Errors: lengths that do not fit each other; two devices.
    pub fn on_device(shape: Shape, partial: Buffer<f32>, counts: Buffer<u32>) -> Result<Self> {
        const OP: &str = "Partials::on_device";
        let chunks = counts.len();
        partial.expect(OP, "partial", chunks * 3 * shape.c, counts.gpu())?;
        Ok(Partials {
            shape,
            parts: Parts::Device(Chunks {
                chunks: launch_size(OP, "counts", chunks)?,
                partial,
                counts: Some(counts),
                each: 0,
            }),
        })
    }

    /// Of which tensor.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    fn gpu(&self) -> Option<&Gpu> {
        match &self.parts {
            Parts::Host(..) => None,
            Parts::Device(chunks) => Some(chunks.partial.gpu()),
        }
    }

    /// An error unless they are of `x`, as far as shape and place tell.
    pub(in crate::ops) fn expect(&self, op: &'static str, x: &Tensor) -> Result<()> {
        if self.shape == x.shape() && self.gpu() == x.gpu() {
            return Ok(());
        }
        let place = |gpu: Option<&Gpu>| match gpu {
            None => String::new(),
            Some(gpu) => format!(" on cuda:{}", gpu.ordinal()),
        };
        let expected = format!("those of {}{}", x.shape(), place(x.gpu()));
        let found = format!("those of {}{}", self.shape, place(self.gpu()));
        Err(Error::argument(op, "partials", expected, found))
    }
}

/// The statistics of `x` `[n, h, w, c]`.
///
/// Errors: `x` has no element; not enough device memory.
pub fn partials(x: &Tensor) -> Result<Partials> {
    const OP: &str = "batch_norm::partials";
    let shape = x.shape();
    if shape.is_empty() {
        return Err(Error::argument(OP, "x", "at least one element", shape));
    }
    let parts = match x.gpu() {
        Some(gpu) => Parts::Device(gpu::chunks(OP, gpu, x)?),
        None => dispatch!(x.dtype(), T => {
            let (mean, m2) = cpu::statistics::<T>(x.data(), shape);
            Parts::Host(mean, m2)
        }),
    };
    Ok(Partials { shape, parts })
}

/// What the statistics normalise with; moves the running ones.
pub(in crate::ops) fn merge(partials: &Partials, running: &mut Running) -> Result<Saved> {
    let n = partials.shape.pixels() as f64;
    let (mean, m2) = match &partials.parts {
        Parts::Host(mean, m2) => (mean, m2),
        Parts::Device(chunks) => return gpu::merge(chunks, partials.shape, running),
    };
    dispatch!(running.mean.dtype(), T => {
        let estimates = [
            (&mut running.mean, mean, 1.0),
            (&mut running.var, m2, 1.0 / (n - 1.0)),
        ];
        for (running, batch, scale) in estimates {
            for (running, batch) in running.data_mut::<T>().iter_mut().zip(batch) {
                let moved = (1.0 - MOMENTUM) * running.f64() + MOMENTUM * (batch * scale);
                *running = T::of(moved);
            }
        }
        Ok(Saved {
            mean: cpu::vector::<T>(mean.iter().copied())?,
            inv_std: cpu::vector::<T>(m2.iter().map(|m2| 1.0 / (m2 / n + EPS).sqrt()))?,
            batch: true,
        })
    })
}
