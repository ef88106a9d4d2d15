//! Random crops and flips of training images.

use super::random::{Draws, Use};
use crate::error::{Error, Result};
use crate::tensor::Shape;

/// What happens to a training image before each epoch.
///
/// The image is zero-padded (black) by `pad` pixels on every side, cut back to its size at a
/// uniformly random place and, if `flip` is set, mirrored left to right with probability 1/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Augment {
    /// Pixels of padding on every side; 0 leaves images in place. 4 is usual for 32x32 images.
    pub pad: usize,
    /// Whether images are mirrored with probability 1/2.
    pub flip: bool,
}

impl Augment {
    /// An error unless the padding is smaller than the images.
    pub(super) fn check(&self, op: &'static str, images: Shape) -> Result<()> {
        let smaller = images.h.min(images.w);
        if self.pad >= smaller {
            let expected = format!("padding smaller than the image ({smaller})");
            return Err(Error::argument(op, "augment", expected, self.pad));
        }
        Ok(())
    }

    /// What is drawn for one image in one epoch.
    pub(super) fn draw(&self, seed: u64, epoch: u32, index: usize) -> Moved {
        let mut draws = Draws::new(seed, Use::Augment, epoch, index as u32);
        let mut offset = || draws.below(2 * self.pad + 1) as isize - self.pad as isize;
        let (dy, dx) = (offset(), offset());
        Moved {
            dy,
            dx,
            flip: self.flip && draws.chance(0.5),
        }
    }
}

/// Pixel (y, x) of the result is pixel (y + dy, x + dx) of the image, 0 outside of it, and the
/// result is then mirrored if `flip`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moved {
    pub dy: isize,
    pub dx: isize,
    pub flip: bool,
}

impl Moved {
    /// `image` and `out` are `[h, w, c]`; `out` is overwritten.
    pub fn apply(self, image: &[f32], [h, w, c]: [usize; 3], out: &mut [f32]) {
        for (y, row) in out.chunks_exact_mut(w * c).enumerate() {
            let source_y = y.checked_add_signed(self.dy).filter(|&y| y < h);
            for (x, pixel) in row.chunks_exact_mut(c).enumerate() {
                let x = if self.flip { w - 1 - x } else { x };
                let source_x = x.checked_add_signed(self.dx).filter(|&x| x < w);
                match (source_y, source_x) {
                    (Some(y), Some(x)) => {
                        pixel.copy_from_slice(&image[(y * w + x) * c..][..c]);
                    }
                    _ => pixel.fill(0.0),
                }
            }
        }
    }
}
