//! NumPy's `.npy` files: reading numbers, writing `f32`.
//!
//! The format: `\x93NUMPY`, a version (1.0, 2.0 or 3.0), the header's length (2 bytes in 1.0,
//! 4 after), the header, the elements. The header is a Python dictionary of `descr` (the type,
//! e.g. `'<f4'`), `fortran_order` and `shape`. Files come from anywhere, so every number in the
//! header is held against the size of the file before anything of that size is allocated.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use super::atomic::write_atomic;
use super::npy_header::{self, Descr, Header, Kind};
use crate::error::{Error, Result};

/// The elements of an array, in C order (last index fastest).
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// `u1`.
    U8(Vec<u8>),
    /// `f4`.
    F32(Vec<f32>),
    /// Every other integer type, `i1 i2 i4 i8 u2 u4 u8`.
    Int(Vec<i64>),
}

/// An array as read from a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Length of each axis; empty for a single number.
    pub shape: Vec<usize>,
    /// As many elements as the product of `shape`.
    pub values: Values,
}

/// The longest header that is read: NumPy's own limit.
const HEADER_MOST: usize = 10_000;

/// Reads an array of `f32`, `u8` or any other integers, either byte order, C or Fortran order.
///
/// An error names the file and what was expected if the file is not there, is no `.npy` file,
/// holds another type, an integer beyond `i64`, or fewer or more bytes than its header says.
pub fn read(path: &Path) -> Result<Array> {
    let meta = std::fs::metadata(path).map_err(Error::io("read", path))?;
    if !meta.is_file() {
        return Err(Error::file(path, "a .npy file", "a directory or device"));
    }
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let (header, header_len) = read_header(&mut file, path)?;
    let count = header
        .shape
        .iter()
        .try_fold(1usize, |count, &axis| count.checked_mul(axis));
    let bytes = count.and_then(|count| count.checked_mul(header.descr.size));
    let rest = meta.len().saturating_sub(header_len);
    let Some((count, bytes)) = count.zip(bytes).filter(|&(_, b)| b as u64 == rest) else {
        let expected = match bytes {
            Some(bytes) => format!("{bytes} bytes of {} {}", show(&header.shape), header.descr),
            None => format!(
                "an array that fits into memory, not {}",
                show(&header.shape)
            ),
        };
        return Err(Error::File {
            path: path.into(),
            offset: Some(header_len),
            expected,
            found: format!("{rest} bytes"),
        });
    };
    let mut data = vec![0; bytes];
    file.read_exact(&mut data)
        .map_err(Error::io("read", path))?;

    let values = decode(&data, header.descr).map_err(|position| Error::File {
        path: path.into(),
        offset: Some(header_len + (position * header.descr.size) as u64),
        expected: "an integer below 2^63".into(),
        found: "a larger one".into(),
    })?;
    let values = if header.fortran_order && count > 0 {
        match values {
            Values::U8(v) => Values::U8(to_c_order(&v, &header.shape)),
            Values::F32(v) => Values::F32(to_c_order(&v, &header.shape)),
            Values::Int(v) => Values::Int(to_c_order(&v, &header.shape)),
        }
    } else {
        values
    };
    Ok(Array {
        shape: header.shape,
        values,
    })
}

/// Reads an array of `f32`: its shape and its elements. Any other type is an error.
pub fn read_f32(path: &Path) -> Result<(Vec<usize>, Vec<f32>)> {
    match read(path)? {
        Array {
            shape,
            values: Values::F32(data),
        } => Ok((shape, data)),
        _ => Err(Error::file(path, "an array of f32", "integers")),
    }
}

/// Writes an array of `f32`, whole or not at all ([`write_atomic`]).
///
/// An error if `shape` does not have as many elements as `data`, or if the file cannot be written.
pub fn write_f32(path: &Path, shape: &[usize], data: &[f32]) -> Result<()> {
    if shape.iter().product::<usize>() != data.len() {
        let expected = format!("{} elements, as the data", data.len());
        return Err(Error::argument(
            "npy::write_f32",
            "shape",
            expected,
            show(shape),
        ));
    }
    write_atomic(path, |file| {
        file.write_all(&npy_header::encode(shape))?;
        // A megabyte at a time: bytes of a whole ensemble need not stand beside its floats.
        let mut bytes = Vec::new();
        for chunk in data.chunks(1 << 18) {
            bytes.clear();
            bytes.extend(chunk.iter().flat_map(|v| v.to_le_bytes()));
            file.write_all(&bytes)?;
        }
        Ok(())
    })
}

/// A shape as Python shows it: `(2, 3)`, `(5,)`, `()`.
pub(crate) fn show(shape: &[usize]) -> String {
    let axes: Vec<String> = shape.iter().map(usize::to_string).collect();
    match axes.as_slice() {
        [one] => format!("({one},)"),
        axes => format!("({})", axes.join(", ")),
    }
}

/// The header and the offset of the first element.
fn read_header(file: &mut File, path: &Path) -> Result<(Header, u64)> {
    let fail = |offset: usize, expected: &str, found: String| Error::File {
        path: path.into(),
        offset: Some(offset as u64),
        expected: expected.into(),
        found,
    };
    let take = |file: &mut File, offset: usize, len: usize, what: &str| -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        file.take(len as u64)
            .read_to_end(&mut bytes)
            .map_err(Error::io("read", path))?;
        if bytes.len() < len {
            let found = format!("the end of the file after {} bytes", bytes.len());
            return Err(fail(offset, what, found));
        }
        Ok(bytes)
    };

    let magic = take(file, 0, 8, "the 8 bytes that begin a .npy file")?;
    if &magic[..6] != b"\x93NUMPY" {
        let found = magic[..6].escape_ascii().to_string();
        return Err(fail(0, "\\x93NUMPY, which begins a .npy file", found));
    }
    let len_size = match (magic[6], magic[7]) {
        (1, 0) => 2,
        (2 | 3, 0) => 4,
        (major, minor) => {
            return Err(fail(
                6,
                "version 1.0, 2.0 or 3.0",
                format!("{major}.{minor}"),
            ));
        }
    };
    let mut len = [0; 4];
    len[..len_size].copy_from_slice(&take(file, 8, len_size, "the header's length")?);
    let len = u32::from_le_bytes(len) as usize;
    if len > HEADER_MOST {
        let expected = format!("a header of at most {HEADER_MOST} bytes");
        return Err(fail(8, &expected, len.to_string()));
    }
    let start = 8 + len_size;
    let text = take(file, start, len, &format!("a header of {len} bytes"))?;
    let header = npy_header::parse(&text)
        .map_err(|wrong| fail(start + wrong.at, &wrong.expected, wrong.found))?;
    Ok((header, (start + len) as u64))
}

/// Elements in the order of the file; `Err` is the position of an integer that is too large.
fn decode(data: &[u8], descr: Descr) -> Result<Values, usize> {
    fn each<const N: usize, T>(data: &[u8], big: bool, of: fn([u8; N]) -> T) -> Vec<T> {
        data.chunks_exact(N)
            .map(|bytes| {
                let mut bytes: [u8; N] = bytes.try_into().expect("chunks of N");
                if big {
                    bytes.reverse();
                }
                of(bytes)
            })
            .collect()
    }
    let big = descr.big_endian;
    let ints = match (descr.kind, descr.size) {
        (Kind::Float, _) => return Ok(Values::F32(each(data, big, f32::from_le_bytes))),
        (Kind::Unsigned, 1) => return Ok(Values::U8(data.to_vec())),
        (Kind::Unsigned, 2) => each(data, big, |b| i64::from(u16::from_le_bytes(b))),
        (Kind::Unsigned, 4) => each(data, big, |b| i64::from(u32::from_le_bytes(b))),
        (Kind::Unsigned, _) => {
            let ints = each(data, big, i64::from_le_bytes);
            // Read as signed, what is beyond i64 is negative.
            if let Some(position) = ints.iter().position(|&v| v < 0) {
                return Err(position);
            }
            ints
        }
        (Kind::Signed, 1) => each(data, big, |b| i64::from(i8::from_le_bytes(b))),
        (Kind::Signed, 2) => each(data, big, |b| i64::from(i16::from_le_bytes(b))),
        (Kind::Signed, 4) => each(data, big, |b| i64::from(i32::from_le_bytes(b))),
        (Kind::Signed, _) => each(data, big, i64::from_le_bytes),
    };
    Ok(Values::Int(ints))
}

/// First index fastest to last index fastest. No axis is 0.
fn to_c_order<T: Copy>(data: &[T], shape: &[usize]) -> Vec<T> {
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = 1;
    for &axis in shape {
        strides.push(stride);
        stride *= axis;
    }
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    let mut out = Vec::with_capacity(data.len());
    for _ in 0..data.len() {
        out.push(data[at]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= index[axis] * strides[axis];
            index[axis] = 0;
        }
    }
    out
}
