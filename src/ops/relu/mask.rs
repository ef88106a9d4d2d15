//! The (bounded) ReLU that keeps one bit an element for its backward pass, instead of its output.

use super::{cap_value, clip, gpu};
use crate::dispatch;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Ptr};
use crate::ops::bytes::Bytes;
use crate::ops::simd::for_blocks;
use crate::tensor::{Real, Shape, Tensor};

/// Where the gradient of a (bounded) ReLU passes, `0 < x < cap`. Where its tensor lies; a clone is
/// the same mask.
///
/// Bit `c % 8` of byte `pixel * ceil(C / 8) + c / 8` belongs to channel `c` of a pixel.
#[derive(Debug, Clone)]
pub struct Mask {
    pub(super) shape: Shape,
    pub(super) bits: Bytes,
}

impl Mask {
    /// Of the tensor it belongs to.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The bits, eight channels a byte. Waits for the device.
    ///
    /// Errors: a fault of the device.
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        self.bits.to_vec()
    }

    /// Errors: it is of another shape, or lies elsewhere.
    pub(in crate::ops) fn expect(
        &self,
        op: &'static str,
        name: &'static str,
        shape: Shape,
        gpu: Option<&Gpu>,
    ) -> Result<()> {
        let own = self.bits.gpu();
        if self.shape == shape && own.map(Gpu::ordinal) == gpu.map(Gpu::ordinal) {
            return Ok(());
        }
        let expected = format!("one of {shape}{}", Bytes::place(gpu));
        let found = format!("one of {}{}", self.shape, Bytes::place(own));
        Err(Error::argument(op, name, expected, found))
    }

    /// How many a shape takes.
    pub(super) fn bytes(shape: Shape) -> usize {
        shape.pixels() * shape.c.div_ceil(8)
    }

    pub(in crate::ops) fn ptr(&self) -> Ptr {
        self.bits.ptr()
    }
}

/// [`forward`](super::forward), and where its gradient passes. x and y `[n, h, w, c]`; works in place
/// where `x` is not shared.
///
/// Errors: a cap that is not above 0.
pub fn forward_mask(mut x: Tensor, cap: Option<f64>) -> Result<(Tensor, Mask)> {
    const OP: &str = "relu::forward_mask";
    let cap = cap_value(OP, cap)?;
    if let Some(gpu) = x.gpu().cloned() {
        return gpu::forward_mask(&gpu, x, cap);
    }
    let shape = x.shape();
    let mut bits = vec![0u8; Mask::bytes(shape)];
    dispatch!(x.dtype(), T => {
        let (zero, cap) = (T::of(0.0), T::of(cap));
        let data = x.data_mut::<T>();
        if !data.is_empty() {
            let pixels = bits.chunks_mut(shape.c.div_ceil(8)).zip(data.chunks_mut(shape.c));
            for (bits, x) in pixels {
                for (bits, x) in bits.iter_mut().zip(x.chunks_mut(8)) {
                    for (j, x) in x.iter_mut().enumerate() {
                        *bits |= u8::from(*x > zero && *x < cap) << j;
                        *x = clip(*x, cap);
                    }
                }
            }
        }
    });
    let bits = Bytes::Host(bits.into());
    Ok((x, Mask { shape, bits }))
}

/// `dx = dy` where the mask lets it pass, else 0. Works in place where `dy` is not shared.
///
/// Errors: a mask of another shape or device than `dy`.
pub fn backward_mask(mut dy: Tensor, mask: &Mask) -> Result<Tensor> {
    mask.expect("relu::backward_mask", "mask", dy.shape(), dy.gpu())?;
    if let Some(gpu) = mask.bits.gpu() {
        return gpu::backward_mask(gpu, dy, mask);
    }
    let (shape, bits) = (dy.shape(), mask.bits.host());
    let bytes = shape.c.div_ceil(8);
    dispatch!(dy.dtype(), T => {
        for_blocks(shape.len(), dy.data_mut::<T>(), shape.c.max(1), |start, dy| {
            let bits = &bits[start / shape.c * bytes..][..bytes];
            for (c, dy) in dy.iter_mut().enumerate() {
                if bits[c / 8] >> (c % 8) & 1 == 0 {
                    *dy = T::of(0.0);
                }
            }
        });
    });
    Ok(dy)
}
