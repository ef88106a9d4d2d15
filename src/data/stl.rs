//! STL-10, binary version: `train_X.bin`, `train_y.bin`, `test_X.bin`, `test_y.bin`.
//!
//! Images are 96x96: the red, the green and the blue plane, each **column by column** (the order
//! of the Matlab arrays they were saved from). Labels are bytes from 1 to 10.

use std::path::Path;

use rayon::prelude::*;

use super::files;
use super::{Dataset, Pixels, Split};
use crate::error::{Error, Result};
use crate::tensor::Shape;

const IMAGE: Shape = Shape::new(1, 96, 96, 3);
const HOLDS: &str = "train_X.bin, train_y.bin, test_X.bin and test_y.bin (STL-10, binary version)";
const CLASSES: [&str; 10] = [
    "airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck",
];

/// Reads a split from `dir`, or from the folder inside it that the official archive unpacks to.
pub(super) fn load(dir: &Path, split: Split) -> Result<Dataset> {
    files::check_dir(dir, HOLDS)?;
    let unpacked = dir.join("stl10_binary");
    let dir = if unpacked.is_dir() { &unpacked } else { dir };
    let images_path = dir.join(format!("{}_X.bin", split.name()));
    let labels_path = dir.join(format!("{}_y.bin", split.name()));
    let classes = match files::class_names(&dir.join("class_names.txt"), CLASSES.len())? {
        Some(names) => names,
        None => CLASSES.map(str::to_owned).to_vec(),
    };

    let bytes = files::read(&images_path, HOLDS)?;
    let broken = bytes.len() % IMAGE.len();
    if bytes.is_empty() || broken != 0 {
        return Err(Error::File {
            path: images_path,
            offset: Some((bytes.len() - broken) as u64),
            expected: format!("an image of {} bytes", IMAGE.len()),
            found: match broken {
                0 => "an empty file".into(),
                _ => format!("the end of the file after {broken} bytes"),
            },
        });
    }
    let n = bytes.len() / IMAGE.len();

    let label_bytes = files::read(&labels_path, HOLDS)?;
    if label_bytes.len() != n {
        return Err(Error::file(
            labels_path,
            format_args!(
                "{n} labels, one byte for each image of {}",
                images_path.display()
            ),
            label_bytes.len(),
        ));
    }
    if let Some(i) = label_bytes.iter().position(|l| !(1..=10).contains(l)) {
        return Err(Error::File {
            path: labels_path,
            offset: Some(i as u64),
            expected: "a label from 1 to 10".into(),
            found: label_bytes[i].to_string(),
        });
    }

    let mut pixels = vec![0; bytes.len()];
    pixels
        .par_chunks_exact_mut(IMAGE.len())
        .zip(bytes.par_chunks_exact(IMAGE.len()))
        .for_each(|(image, planes)| turn(planes, image));
    let labels = label_bytes.iter().map(|&l| u32::from(l) - 1).collect();
    Ok(Dataset::from_parts(
        Pixels::Bytes(pixels),
        IMAGE.with_n(n),
        labels,
        classes,
    ))
}

/// `[c, w, h]` to `[h, w, c]`.
fn turn(planes: &[u8], image: &mut [u8]) {
    let Shape { h, w, c, .. } = IMAGE;
    for (i, pixel) in image.chunks_exact_mut(c).enumerate() {
        let (y, x) = (i / w, i % w);
        for (channel, value) in pixel.iter_mut().enumerate() {
            *value = planes[(channel * w + x) * h + y];
        }
    }
}
