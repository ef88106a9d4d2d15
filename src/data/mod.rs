//! Data sets: where labelled images come from and how they become batches.
//!
//! A [`Spec`] is what the user types after `--data`; [`Spec::load`] reads one [`Split`] of it into
//! a [`Dataset`]; [`Dataset::batch`] and [`Dataset::augmented_batch`] turn positions into tensors
//! `[n, h, w, c]` of `f32` in [0, 1]. Nothing here keeps hidden state: the order of an epoch and
//! the augmentation of an image are functions of the seed, the epoch and the image's index.

mod augment;
mod cifar;
mod device;
mod figure;
mod files;
mod folder;
mod npy;
mod random;
mod spec;
mod stl;
mod synthetic;

pub use augment::Augment;
pub use device::{Batch, DeviceData, Pick, Plan};
pub use spec::{Spec, Split};

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};
use random::{Draws, Use};

/// Labelled images of one size, in memory.
///
/// Images read as bytes stay bytes (value / 255 is the pixel); others are `f32` in [0, 1].
#[derive(Clone)]
pub struct Dataset {
    pixels: Pixels,
    shape: Shape,
    labels: Vec<u32>,
    classes: Vec<String>,
}

/// `[n, h, w, c]`, channels innermost.
#[derive(Clone)]
enum Pixels {
    Bytes(Vec<u8>),
    Floats(Vec<f32>),
}

impl Dataset {
    /// A data set of images already in memory.
    ///
    /// `images` is `[n, h, w, c]` of `f32` in [0, 1]; `labels` holds `n` positions in `classes`.
    pub fn from_tensor(images: &Tensor, labels: Vec<u32>, classes: Vec<String>) -> Result<Self> {
        const OP: &str = "Dataset::from_tensor";
        let shape = images.shape();
        images.expect(OP, "images", shape, crate::DType::F32)?;
        if shape.is_empty() {
            return Err(Error::argument(OP, "images", "at least one pixel", shape));
        }
        if labels.len() != shape.n {
            let expected = format!("{} labels, one per image", shape.n);
            return Err(Error::argument(OP, "labels", expected, labels.len()));
        }
        if let Some(i) = labels.iter().position(|&l| l as usize >= classes.len()) {
            let expected = format!("labels below {}", classes.len());
            let found = format!("{} for image {i}", labels[i]);
            return Err(Error::argument(OP, "labels", expected, found));
        }
        let data = images.data::<f32>();
        if let Some(i) = data.iter().position(|v| !(0.0..=1.0).contains(v)) {
            let found = format!("{} in image {}", data[i], i / shape.row_len());
            return Err(Error::argument(OP, "images", "values in [0, 1]", found));
        }
        Ok(Dataset {
            pixels: Pixels::Floats(data.to_vec()),
            shape,
            labels,
            classes,
        })
    }

    /// `pixels` is `[n, h, w, c]`; the readers have checked sizes, labels and classes.
    fn from_parts(pixels: Pixels, shape: Shape, labels: Vec<u32>, classes: Vec<String>) -> Self {
        let len = match &pixels {
            Pixels::Bytes(v) => v.len(),
            Pixels::Floats(v) => v.len(),
        };
        assert_eq!(len, shape.len(), "one value per element of {shape}");
        assert_eq!(labels.len(), shape.n, "one label per image");
        assert!(labels.iter().all(|&l| (l as usize) < classes.len()));
        Dataset {
            pixels,
            shape,
            labels,
            classes,
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image; a loaded data set has at least one.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The size of one image, `[1, h, w, c]`.
    pub fn image_shape(&self) -> Shape {
        self.shape.with_n(1)
    }

    /// The names of the classes; a label is a position in this list.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The labels of all images, in order.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The images at these positions, `[indices.len(), h, w, c]` of `f32` in [0, 1], and their
    /// labels. An error if `indices` is empty or a position is out of range.
    pub fn batch(&self, indices: &[usize]) -> Result<(Tensor, Vec<u32>)> {
        self.check("Dataset::batch", indices)?;
        self.gather(indices, |index, out| self.copy_image(index, out))
    }

    /// As [`Dataset::batch`], each image padded, cropped and flipped as `augment` says.
    ///
    /// What happens to an image is a function of `(seed, epoch, its index)`, whatever else is in
    /// the batch. An error also if the padding is not smaller than the image.
    pub fn augmented_batch(
        &self,
        indices: &[usize],
        augment: &Augment,
        seed: u64,
        epoch: u32,
    ) -> Result<(Tensor, Vec<u32>)> {
        const OP: &str = "Dataset::augmented_batch";
        self.check(OP, indices)?;
        augment.check(OP, self.shape)?;
        let (h, w, c) = (self.shape.h, self.shape.w, self.shape.c);
        self.gather(indices, |index, out| {
            let moved = augment.draw(seed, epoch, index);
            let mut image = vec![0.0; out.len()];
            self.copy_image(index, &mut image);
            moved.apply(&image, [h, w, c], out);
        })
    }

    /// The first `n` images; all of them if there are fewer.
    pub fn take(&self, n: usize) -> Self {
        let n = n.min(self.len());
        let end = n * self.shape.row_len();
        Dataset {
            pixels: match &self.pixels {
                Pixels::Bytes(v) => Pixels::Bytes(v[..end].to_vec()),
                Pixels::Floats(v) => Pixels::Floats(v[..end].to_vec()),
            },
            shape: self.shape.with_n(n),
            labels: self.labels[..n].to_vec(),
            classes: self.classes.clone(),
        }
    }

    /// The images at these positions as a data set of their own, in this order, numbered from 0.
    /// An error if `indices` is empty or a position is out of range.
    pub fn subset(&self, indices: &[usize]) -> Result<Self> {
        self.check("Dataset::subset", indices)?;
        let len = self.shape.row_len();
        Ok(Dataset {
            pixels: match &self.pixels {
                Pixels::Bytes(v) => Pixels::Bytes(gather_rows(v, len, indices)),
                Pixels::Floats(v) => Pixels::Floats(gather_rows(v, len, indices)),
            },
            shape: self.shape.with_n(indices.len()),
            labels: indices.iter().map(|&i| self.labels[i]).collect(),
            classes: self.classes.clone(),
        })
    }

    /// All positions in the random order of one epoch, a function of `(seed, epoch)`.
    pub fn shuffled_indices(&self, seed: u64, epoch: u32) -> Vec<usize> {
        shuffled(self.len(), seed, epoch)
    }

    fn check(&self, op: &'static str, indices: &[usize]) -> Result<()> {
        if indices.is_empty() {
            return Err(Error::argument(op, "indices", "at least one", "none"));
        }
        match indices.iter().find(|&&i| i >= self.len()) {
            Some(i) => {
                let expected = format!("positions below {}", self.len());
                Err(Error::argument(op, "indices", expected, i))
            }
            None => Ok(()),
        }
    }

    fn gather(
        &self,
        indices: &[usize],
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<(Tensor, Vec<u32>)> {
        let shape = self.shape.with_n(indices.len());
        let mut images = vec![0.0f32; shape.len()];
        images
            .par_chunks_mut(shape.row_len())
            .zip(indices)
            .for_each(|(out, &index)| fill(index, out));
        let labels = indices.iter().map(|&i| self.labels[i]).collect();
        Ok((Tensor::from_vec(shape, images)?, labels))
    }

    fn copy_image(&self, index: usize, out: &mut [f32]) {
        let len = self.shape.row_len();
        let range = index * len..(index + 1) * len;
        match &self.pixels {
            Pixels::Bytes(v) => {
                for (o, &byte) in out.iter_mut().zip(&v[range]) {
                    *o = f32::from(byte) / 255.0;
                }
            }
            Pixels::Floats(v) => out.copy_from_slice(&v[range]),
        }
    }
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Dataset {} in {} classes",
            self.shape,
            self.classes.len()
        )
    }
}

/// `0..n` in the random order of one epoch.
fn shuffled(n: usize, seed: u64, epoch: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    let mut draws = Draws::new(seed, Use::Shuffle, epoch, 0);
    for last in (1..n).rev() {
        order.swap(last, draws.below(last + 1));
    }
    order
}

fn gather_rows<T: Copy>(data: &[T], len: usize, rows: &[usize]) -> Vec<T> {
    let mut out = Vec::with_capacity(rows.len() * len);
    for &r in rows {
        out.extend_from_slice(&data[r * len..(r + 1) * len]);
    }
    out
}
