//! CIFAR-10, binary version: `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`.
//!
//! Each file is a row of records of 3073 bytes: the label, 0 to 9, then the red, the green and the
//! blue plane of a 32x32 image, row by row. A file may hold any number of records but none, so
//! that parts of the set can be used in its form.

use std::path::Path;

use rayon::prelude::*;

use super::files;
use super::{Dataset, Pixels, Split};
use crate::error::{Error, Result};
use crate::tensor::Shape;

const IMAGE: Shape = Shape::new(1, 32, 32, 3);
const RECORD: usize = 1 + IMAGE.len();
const HOLDS: &str = "data_batch_1.bin to data_batch_5.bin and test_batch.bin (CIFAR-10, binary \
                     version)";
const CLASSES: [&str; 10] = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
];

/// Reads a split from `dir`, or from the folder inside it that the official archive unpacks to.
pub(super) fn load(dir: &Path, split: Split) -> Result<Dataset> {
    files::check_dir(dir, HOLDS)?;
    let unpacked = dir.join("cifar-10-batches-bin");
    let dir = if unpacked.is_dir() { &unpacked } else { dir };
    let names: &[&str] = match split {
        Split::Train => &[
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
        ],
        Split::Test => &["test_batch.bin"],
    };
    let classes = match files::class_names(&dir.join("batches.meta.txt"), CLASSES.len())? {
        Some(names) => names,
        None => CLASSES.map(str::to_owned).to_vec(),
    };

    let mut pixels = Vec::new();
    let mut labels = Vec::new();
    for name in names {
        read_batch(&dir.join(name), &mut pixels, &mut labels)?;
    }
    let shape = IMAGE.with_n(labels.len());
    Ok(Dataset::from_parts(
        Pixels::Bytes(pixels),
        shape,
        labels,
        classes,
    ))
}

fn read_batch(path: &Path, pixels: &mut Vec<u8>, labels: &mut Vec<u32>) -> Result<()> {
    let bytes = files::read(path, HOLDS)?;
    let broken = bytes.len() % RECORD;
    if bytes.is_empty() || broken != 0 {
        return Err(Error::File {
            path: path.into(),
            offset: Some((bytes.len() - broken) as u64),
            expected: format!("a record of {RECORD} bytes"),
            found: match broken {
                0 => "an empty file".into(),
                _ => format!("the end of the file after {broken} bytes"),
            },
        });
    }
    for (i, record) in bytes.chunks_exact(RECORD).enumerate() {
        if record[0] as usize >= CLASSES.len() {
            return Err(Error::File {
                path: path.into(),
                offset: Some((i * RECORD) as u64),
                expected: "a label from 0 to 9".into(),
                found: record[0].to_string(),
            });
        }
        labels.push(u32::from(record[0]));
    }
    let start = pixels.len();
    pixels.resize(start + bytes.len() / RECORD * IMAGE.len(), 0);
    pixels[start..]
        .par_chunks_exact_mut(IMAGE.len())
        .zip(bytes.par_chunks_exact(RECORD))
        .for_each(|(image, record)| files::interleave(&record[1..], IMAGE.c, image));
    Ok(())
}
