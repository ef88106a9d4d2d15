//! Opening what the user named: missing directories and files with what they should hold.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};

/// An error unless `dir` is a directory; `holds` says what it should hold.
pub(super) fn check_dir(dir: &Path, holds: &str) -> Result<()> {
    match fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(Error::file(
            dir,
            format_args!("a directory with {holds}"),
            "a file",
        )),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::file(
            dir,
            format_args!("a directory with {holds}"),
            "no such directory",
        )),
        Err(e) => Err(Error::io("read", dir)(e)),
    }
}

/// The bytes of a file; `holds` says what its directory should hold if the file is missing.
pub(super) fn read(path: &Path, holds: &str) -> Result<Vec<u8>> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() => fs::read(path).map_err(Error::io("read", path)),
        Ok(_) => Err(Error::file(path, "a file", "a directory or device")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::file(
            path,
            format_args!("this file beside {holds}"),
            "no such file",
        )),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}

/// The names of the classes, one per line, if there is such a file.
pub(super) fn class_names(path: &Path, count: usize) -> Result<Option<Vec<String>>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::file(path, "class names in UTF-8", "other bytes"))?;
    let names: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect();
    if names.len() != count {
        let expected = format!("{count} class names, one per line");
        return Err(Error::file(path, expected, names.len()));
    }
    Ok(Some(names))
}

/// Planes `[c, h, w]` to pixels `[h, w, c]`.
pub(super) fn interleave<T: Copy>(planes: &[T], c: usize, pixels: &mut [T]) {
    let area = planes.len() / c;
    for (channel, plane) in planes.chunks_exact(area).enumerate() {
        for (pixel, &value) in pixels.chunks_exact_mut(c).zip(plane) {
            pixel[channel] = value;
        }
    }
}
