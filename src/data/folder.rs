//! Image files in one folder per class: `train/CLASS/*.png|jpg|jpeg` and `test/CLASS/*`.
//!
//! Classes and, in each of them, files are in the order of their names' bytes. Grey images become
//! RGB, transparency is dropped, 16-bit samples are rounded to 8. All images have one size.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageReader};
use rayon::prelude::*;

use super::files;
use super::{Dataset, Pixels, Split};
use crate::error::{Error, Result};
use crate::tensor::Shape;

const HOLDS: &str = "train/CLASS/ and test/CLASS/ of .png, .jpg or .jpeg images";

pub(super) fn load(dir: &Path, split: Split) -> Result<Dataset> {
    files::check_dir(dir, HOLDS)?;
    let classes = class_folders(&dir.join("train"))?;
    let test = class_folders(&dir.join("test"))?;
    for (here, there, other) in [(&classes, &test, "test"), (&test, &classes, "train")] {
        if let Some(class) = here.iter().find(|class| !there.contains(class)) {
            return Err(Error::file(
                dir.join(other),
                format_args!("the same classes in train and test, so `{class}` too"),
                "no such folder",
            ));
        }
    }

    let mut paths = Vec::new();
    let mut labels = Vec::new();
    for (label, class) in classes.iter().enumerate() {
        let images = image_files(&dir.join(split.name()).join(class))?;
        labels.resize(labels.len() + images.len(), label as u32);
        paths.extend(images);
    }

    // The first image gives the size, so the rest goes straight to its place.
    let first = decode(&paths[0])?;
    let (w, h) = (first.width() as usize, first.height() as usize);
    let shape = Shape::new(paths.len(), h, w, 3);
    let mut pixels: Vec<u8> = Vec::new();
    if pixels.try_reserve_exact(shape.len()).is_err() {
        let found = format!("{} of {w}x{h} pixels", paths.len());
        return Err(Error::file(dir, "images that fit into memory", found));
    }
    pixels.resize(shape.len(), 0);
    let failures: Vec<Error> = pixels
        .par_chunks_exact_mut(shape.row_len())
        .zip(&paths)
        .map(|(out, path)| {
            let image = decode(path)?;
            if (image.width(), image.height()) != (first.width(), first.height()) {
                return Err(Error::file(
                    path,
                    format_args!("{w}x{h} pixels, as {}", paths[0].display()),
                    format_args!("{}x{}", image.width(), image.height()),
                ));
            }
            out.copy_from_slice(&image.into_rgb8());
            Ok(())
        })
        .filter_map(Result::err)
        .collect();
    // `collect` keeps the order, so this is the first file at fault, whatever the threads did.
    match failures.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(Dataset::from_parts(
            Pixels::Bytes(pixels),
            shape,
            labels,
            classes,
        )),
    }
}

/// The names of the folders in `dir`, sorted; at least two.
fn class_folders(dir: &Path) -> Result<Vec<String>> {
    files::check_dir(dir, "one folder of images per class")?;
    let mut classes = Vec::new();
    for path in entries(dir)?.into_iter().filter(|path| path.is_dir()) {
        match path.file_name().and_then(OsStr::to_str) {
            Some(name) => classes.push(name.to_owned()),
            None => return Err(Error::file(path, "a name in UTF-8", "other bytes")),
        }
    }
    match classes.len() {
        0 | 1 => Err(Error::file(
            dir,
            "one folder of images for each of two classes or more",
            format_args!("{} folders", classes.len()),
        )),
        _ => Ok(classes),
    }
}

/// The images in `dir`, sorted by name; at least one.
fn image_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut images = entries(dir)?;
    images.retain(|path| {
        let extension = path.extension().and_then(OsStr::to_str).unwrap_or("");
        ["png", "jpg", "jpeg"].contains(&extension.to_ascii_lowercase().as_str()) && path.is_file()
    });
    match images.is_empty() {
        true => Err(Error::file(
            dir,
            "at least one .png, .jpg or .jpeg image",
            "none",
        )),
        false => Ok(images),
    }
}

/// What is in `dir` and not hidden, sorted by name.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Decodes a file by its content: a JPEG that is called `.png` is read all the same.
fn decode(path: &Path) -> Result<DynamicImage> {
    ImageReader::open(path)
        .and_then(ImageReader::with_guessed_format)
        .map_err(Error::io("read", path))?
        .decode()
        .map_err(|e| Error::file(path, "a PNG or JPEG image", e))
}
