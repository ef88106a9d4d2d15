//! Images and labels from two `.npy` files.
//!
//! One pair of files is one set of images, so both splits are the whole of it: who wants another
//! set for testing names another pair.

use std::path::Path;

use rayon::prelude::*;

use super::{Dataset, Pixels, files};
use crate::error::{Error, Result};
use crate::io::npy::{self, Array, Values};
use crate::tensor::Shape;

/// The most classes that labels can name; a larger label is a mistake in the file.
const CLASSES_MOST: i64 = 65_536;

/// Classes are named by their numbers, `0` to the largest label.
pub(super) fn load(images: &Path, labels: &Path) -> Result<Dataset> {
    let (pixels, shape) = read_images(images)?;
    let labels = read_labels(labels, images, shape.n)?;
    let classes = labels.iter().max().map_or(0, |&most| most + 1);
    let classes = (0..classes).map(|class| class.to_string()).collect();
    Ok(Dataset::from_parts(pixels, shape, labels, classes))
}

fn read_images(path: &Path) -> Result<(Pixels, Shape)> {
    let Array { shape, values } = npy::read(path)?;
    let wrong = |expected: &str| Error::file(path, expected, npy::show(&shape));
    let &[n, a, b, c] = shape.as_slice() else {
        return Err(wrong("images of shape (n, h, w, c) or (n, c, h, w)"));
    };
    if shape.contains(&0) {
        return Err(wrong("at least one image, and at least one pixel in it"));
    }
    let is_channels = |axis: usize| axis == 1 || axis == 3;
    let planes = match (is_channels(a), is_channels(c)) {
        (true, false) => true,
        (false, true) => false,
        (true, true) => {
            return Err(wrong(
                "one axis of 1 or 3, so that (n, h, w, c) and (n, c, h, w) can be told apart",
            ));
        }
        (false, false) => return Err(wrong("1 or 3 channels, as second or as last axis")),
    };
    if let Values::F32(data) = &values
        && let Some(i) = data.iter().position(|v| !(0.0..=1.0).contains(v))
    {
        let row = a * b * c;
        let place = [i / row, i % row / (b * c), i % (b * c) / c, i % c];
        return Err(Error::file(
            path,
            "f32 values in [0, 1]",
            format_args!("{} at {place:?}", data[i]),
        ));
    }
    let shape = match planes {
        true => Shape::new(n, b, c, a),
        false => Shape::new(n, a, b, c),
    };
    let pixels = match values {
        Values::U8(data) if planes => Pixels::Bytes(interleave(&data, shape)),
        Values::U8(data) => Pixels::Bytes(data),
        Values::F32(data) if planes => Pixels::Floats(interleave(&data, shape)),
        Values::F32(data) => Pixels::Floats(data),
        Values::Int(_) => {
            return Err(Error::file(
                path,
                "images of u8 in 0..255 or f32 in [0, 1]",
                "another integer type",
            ));
        }
    };
    Ok((pixels, shape))
}

/// `[n, c, h, w]` to `[n, h, w, c]`; `shape` is that of the result.
fn interleave<T: Copy + Default + Send + Sync>(data: &[T], shape: Shape) -> Vec<T> {
    let mut out = vec![T::default(); data.len()];
    out.par_chunks_exact_mut(shape.row_len())
        .zip(data.par_chunks_exact(shape.row_len()))
        .for_each(|(image, planes)| files::interleave(planes, shape.c, image));
    out
}

fn read_labels(path: &Path, images: &Path, n: usize) -> Result<Vec<u32>> {
    let Array { shape, values } = npy::read(path)?;
    let labels: Vec<i64> = match values {
        Values::U8(data) => data.into_iter().map(i64::from).collect(),
        Values::Int(data) => data,
        Values::F32(_) => {
            return Err(Error::file(path, "labels of an integer type", "f32"));
        }
    };
    if shape != [n] {
        return Err(Error::file(
            path,
            format_args!(
                "labels of shape ({n},), one per image of {}",
                images.display()
            ),
            npy::show(&shape),
        ));
    }
    if let Some(i) = labels.iter().position(|l| !(0..CLASSES_MOST).contains(l)) {
        return Err(Error::file(
            path,
            format_args!("labels from 0 to {}", CLASSES_MOST - 1),
            format_args!("{} at index {i}", labels[i]),
        ));
    }
    Ok(labels.into_iter().map(|label| label as u32).collect())
}
