//! The input as convolutions read it: zero outside of the image, with noise inside if asked for.

use crate::ops::noise::{Noise, RowNoise};
use crate::ops::tile::Element;
use crate::tensor::Shape;

/// A batch of images and the noise that is added to them while they are read.
pub(super) struct Operand<'a, T> {
    data: &'a [T],
    /// Of the rows, of which `draws` read the same image of `data`.
    pub shape: Shape,
    draws: usize,
    noise: Option<&'a Noise>,
}

/// The part of an image a task reads. It may reach beyond the image on every side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub top: isize,
    pub left: isize,
    pub rows: usize,
    pub cols: usize,
}

impl Window {
    /// The columns of row `r` of the window that lie inside of an image of this size: the first
    /// of them counted in the window, the first counted in the image, how many. None if there
    /// is none.
    fn inside(&self, r: usize, image: Shape) -> Option<(usize, usize, usize, usize)> {
        let row = self.top + r as isize;
        if row < 0 || row >= image.h as isize {
            return None;
        }
        let first = self.left.max(0);
        let end = (self.left + self.cols as isize).min(image.w as isize);
        (first < end).then(|| {
            let (first, end) = (first as usize, end as usize);
            let at = (first as isize - self.left) as usize;
            (at, row as usize, first, end - first)
        })
    }
}

impl<'a, T: Element> Operand<'a, T> {
    pub fn new(data: &'a [T], shape: Shape, draws: usize, noise: Option<&'a Noise>) -> Self {
        // Adding 0 z would turn -0 into +0: without deviation there is no noise.
        let noise = noise.filter(|noise| noise.sigma != 0.0);
        Operand {
            data,
            shape,
            draws,
            noise,
        }
    }

    /// The image that row `n` of the batch reads.
    fn image(&self, n: usize) -> &'a [T] {
        let len = self.shape.row_len();
        &self.data[n / self.draws * len..][..len]
    }

    /// Copies a window of row `n`, all channels, to `to`: `[rows, cols, c]`, dense.
    /// Rows that `read` declines are left as they are.
    pub fn copy(&self, n: usize, window: Window, read: impl Fn(usize) -> bool, to: &mut [T]) {
        let c = self.shape.c;
        let pitch = window.cols * c;
        let noise = self.noise.map(|noise| RowNoise::new(noise, n, c));
        let from = self.image(n);
        for r in (0..window.rows).filter(|&r| read(r)) {
            let to = &mut to[r * pitch..][..pitch];
            let Some((at, row, col, count)) = window.inside(r, self.shape) else {
                to.fill(T::zero());
                continue;
            };
            let (left, rest) = to.split_at_mut(at * c);
            let (inside, right) = rest.split_at_mut(count * c);
            left.fill(T::zero());
            right.fill(T::zero());
            let first = row * self.shape.w + col;
            let from = &from[first * c..][..count * c];
            match &noise {
                Some(noise) => noise.add(first, from, inside),
                None => inside.copy_from_slice(from),
            }
        }
    }

    /// Copies channels `c0 .. c0 + width` of a window of row `n`: pixel `p` of the window
    /// (row by row) goes to `to[p * step..][..lanes]`, channels beyond `width` are 0.
    /// `stage` is room for the channels of one row of the image, all of them if noise is to be
    /// drawn and `c0` is not a multiple of 8.
    #[allow(clippy::too_many_arguments)]
    pub fn copy_channels(
        &self,
        n: usize,
        window: Window,
        (c0, width): (usize, usize),
        lanes: usize,
        step: usize,
        stage: &mut [T],
        to: &mut [T],
    ) {
        let c = self.shape.c;
        let noise = self.noise.map(|noise| RowNoise::new(noise, n, c));
        let from = self.image(n);
        for r in 0..window.rows {
            let row_at = r * window.cols * step;
            let (at, row, col, count) =
                window
                    .inside(r, self.shape)
                    .unwrap_or((window.cols, 0, 0, 0));
            for p in (0..at).chain(at + count..window.cols) {
                to[row_at + p * step..][..lanes].fill(T::zero());
            }
            if count == 0 {
                continue;
            }
            let first = row * self.shape.w + col;
            let from = &from[first * c..][..count * c];
            // Pixel p's channels lie at p * pixel + offset of what is copied.
            let (from, pixel, offset) = match &noise {
                None => (from, c, c0),
                Some(noise) if c0 % 8 == 0 => {
                    let stage = &mut stage[..count * width];
                    noise.add_channels(first, c0, width, from, stage);
                    (&*stage, width, 0)
                }
                Some(noise) => {
                    let stage = &mut stage[..count * c];
                    noise.add(first, from, stage);
                    (&*stage, c, c0)
                }
            };
            for p in 0..count {
                let to = &mut to[row_at + (at + p) * step..][..lanes];
                to[..width].copy_from_slice(&from[p * pixel + offset..][..width]);
                to[width..].fill(T::zero());
            }
        }
    }
}
