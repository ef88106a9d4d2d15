//! Checkpoints: safetensors files with the tensor names and layouts of a PyTorch `state_dict`.
//!
//! A file is eight bytes of header length (little endian), a JSON header (name, dtype, shape and
//! byte range of every tensor, and free text under `__metadata__`), then the elements. The
//! `safetensors` crate parses and validates the header on reading. The header is written here,
//! because that crate keeps the metadata in a hash map: the same checkpoint would give other bytes
//! in every process, and equal training runs must give equal files.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::error::{Error, Result};
use crate::io::atomic::write_atomic;
use crate::io::fingerprint::Fingerprint;
use crate::tensor::{Shape, Tensor};

/// What every safetensors reader accepts as the largest header, in bytes.
const MAX_HEADER: u64 = 100_000_000;

/// Elements of an [`Array`].
#[derive(Debug, Clone, PartialEq)]
pub enum ArrayData {
    /// Parameters and running statistics.
    F32(Vec<f32>),
    /// Counters, such as batch norm's `num_batches_tracked`.
    I64(Vec<i64>),
}

/// The element type of an [`Array`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrayType {
    /// 32-bit float.
    F32,
    /// 64-bit signed integer.
    I64,
}

impl fmt::Display for ArrayType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ArrayType::F32 => "F32",
            ArrayType::I64 => "I64",
        })
    }
}

/// A named array of a file, in PyTorch's shape and row-major order. A scalar has the shape `[]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// PyTorch's sizes: `[out, in, k, k]`, `[out, in]`, `[c]` or `[]`.
    pub shape: Vec<usize>,
    /// The elements, the last axis innermost.
    pub data: ArrayData,
}

impl Array {
    /// An F32 array.
    pub fn f32(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Self {
        Array {
            shape: shape.into(),
            data: ArrayData::F32(data),
        }
    }

    /// An I64 scalar.
    pub fn counter(value: i64) -> Self {
        Array {
            shape: Vec::new(),
            data: ArrayData::I64(vec![value]),
        }
    }

    /// The element type.
    pub fn dtype(&self) -> ArrayType {
        match self.data {
            ArrayData::F32(_) => ArrayType::F32,
            ArrayData::I64(_) => ArrayType::I64,
        }
    }

    /// Number of elements held.
    pub fn len(&self) -> usize {
        match &self.data {
            ArrayData::F32(v) => v.len(),
            ArrayData::I64(v) => v.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn bytes(&self) -> usize {
        match &self.data {
            ArrayData::F32(v) => size_of_val(&v[..]),
            ArrayData::I64(v) => size_of_val(&v[..]),
        }
    }

    /// The elements of an F32 array of `rank` non-zero sizes.
    fn floats(&self, op: &'static str, rank: usize, axes: &str) -> Result<&[f32]> {
        let misfit = || {
            Error::argument(
                op,
                "array",
                format_args!("F32 of shape {axes}, all sizes at least 1"),
                format_args!("{} of shape {:?}", self.dtype(), self.shape),
            )
        };
        let ArrayData::F32(data) = &self.data else {
            return Err(misfit());
        };
        if self.shape.len() != rank || self.shape.contains(&0) {
            return Err(misfit());
        }
        if checked_len(&self.shape) != Some(data.len()) {
            return Err(Error::argument(
                op,
                "array",
                format_args!("as many elements as the shape {:?} says", self.shape),
                data.len(),
            ));
        }
        Ok(data)
    }
}

fn checked_len(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1, |n: usize, &s| n.checked_mul(s))
}

/// What a network needs of a checkpoint: one tensor. See [`Checkpoint::expect`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The name, as in PyTorch's `state_dict`.
    pub name: String,
    /// The sizes in the file (PyTorch's).
    pub shape: Vec<usize>,
    /// The element type.
    pub dtype: ArrayType,
    /// Whether the file must hold it. Counters are not required: old files lack them.
    pub required: bool,
}

/// Tensors by name and free text by key, both in the order of their names.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Checkpoint {
    /// The tensors.
    pub tensors: BTreeMap<String, Array>,
    /// Architecture, defence, sigmas, seed, step. Empty in files written by other programs.
    pub metadata: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Reads a safetensors file. F64, F16 and BF16 become F32; NaN and infinities are kept.
    ///
    /// Errors name the file, and the byte where that is known: not a safetensors file, truncated,
    /// longer than its header says, a tensor of an integer type other than I64. Nothing is
    /// allocated beyond a small multiple of the file's own size.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let status = std::fs::metadata(path).map_err(Error::io("read", path))?;
        if !status.is_file() {
            return Err(Error::file(
                path,
                "a safetensors file",
                "something that is not a regular file",
            ));
        }
        let file = File::open(path).map_err(Error::io("read", path))?;
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let (header_len, header) = read_header(&mut reader, path, status.len())?;

        let mut tensors = BTreeMap::new();
        for name in header.offset_keys() {
            let Some(info) = header.info(&name) else {
                continue;
            };
            let offset = 8 + header_len + info.data_offsets.0 as u64;
            let data = read_tensor(&mut reader, path, &name, info, offset)?;
            let shape = info.shape.clone();
            tensors.insert(name, Array { shape, data });
        }
        let metadata = header.metadata().iter().flatten();
        let metadata = metadata.map(|(k, v)| (k.clone(), v.clone())).collect();
        Ok(Checkpoint { tensors, metadata })
    }

    /// Writes a safetensors file: beside `path` first, then renamed over it, so that `path` holds
    /// the old content or the new one whatever happens. Equal checkpoints give equal bytes.
    ///
    /// Errors: an array whose length is not its shape's, the reserved name `__metadata__`, a file
    /// that cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        // Widest elements first: every tensor is aligned to its own type.
        let mut order: Vec<(&String, &Array)> = self.tensors.iter().collect();
        order.sort_by_key(|(_, array)| match array.dtype() {
            ArrayType::I64 => 0,
            ArrayType::F32 => 1,
        });
        let header = self.header(&order)?;
        write_atomic(path.as_ref(), |w| {
            w.write_all(&(header.len() as u64).to_le_bytes())?;
            w.write_all(&header)?;
            for (_, array) in &order {
                match &array.data {
                    ArrayData::F32(v) => {
                        v.iter().try_for_each(|x| w.write_all(&x.to_le_bytes()))?
                    }
                    ArrayData::I64(v) => {
                        v.iter().try_for_each(|x| w.write_all(&x.to_le_bytes()))?
                    }
                }
            }
            Ok(())
        })
    }

    /// Of names, sizes, elements and metadata: tells one checkpoint from another.
    pub fn fingerprint(&self) -> String {
        let mut all = Fingerprint::new();
        for (key, value) in &self.metadata {
            all.add(format!("{key}={value}\n").as_bytes());
        }
        for (name, array) in &self.tensors {
            all.add(format!("{name} {:?}\n", array.shape).as_bytes());
            match &array.data {
                ArrayData::F32(v) => v.iter().for_each(|x| all.add(&x.to_le_bytes())),
                ArrayData::I64(v) => v.iter().for_each(|x| all.add(&x.to_le_bytes())),
            }
        }
        all.text()
    }

    fn header(&self, order: &[(&String, &Array)]) -> Result<Vec<u8>> {
        let mut header = serde_json::Map::new();
        if !self.metadata.is_empty() {
            header.insert("__metadata__".into(), serde_json::json!(self.metadata));
        }
        let mut start = 0;
        for &(name, array) in order {
            if name == "__metadata__" {
                return Err(Error::argument(
                    "Checkpoint::write",
                    "tensors",
                    "names other than the reserved one",
                    "`__metadata__`",
                ));
            }
            if checked_len(&array.shape) != Some(array.len()) {
                return Err(Error::argument(
                    "Checkpoint::write",
                    "tensors",
                    format_args!(
                        "as many elements in `{name}` as its shape {:?} says",
                        array.shape
                    ),
                    array.len(),
                ));
            }
            let end = start + array.bytes();
            let info = serde_json::json!({
                "dtype": array.dtype().to_string(),
                "shape": array.shape,
                "data_offsets": [start, end],
            });
            header.insert(name.clone(), info);
            start = end;
        }
        let mut header = serde_json::Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        if header.len() as u64 > MAX_HEADER {
            return Err(Error::argument(
                "Checkpoint::write",
                "tensors",
                format_args!("names, shapes and metadata of at most {MAX_HEADER} bytes"),
                format_args!("{} bytes", header.len()),
            ));
        }
        Ok(header)
    }

    /// An error naming the first of `slots` that this checkpoint, read from `path`, does not fill:
    /// missing, or of another type or shape (expected and found are given); then the first tensor
    /// that no slot asks for.
    pub fn expect(&self, path: impl AsRef<Path>, slots: &[Slot]) -> Result<()> {
        let path = path.as_ref();
        for slot in slots {
            let found = match self.tensors.get(&slot.name) {
                None if slot.required => "no tensor of that name".into(),
                Some(array) if array.shape != slot.shape || array.dtype() != slot.dtype => {
                    format!("{} of shape {:?}", array.dtype(), array.shape)
                }
                _ => continue,
            };
            let expected = format!("`{}`: {} of shape {:?}", slot.name, slot.dtype, slot.shape);
            return Err(Error::file(path, expected, found));
        }
        let known: std::collections::HashSet<&str> =
            slots.iter().map(|s| s.name.as_str()).collect();
        match self
            .tensors
            .iter()
            .find(|(n, _)| !known.contains(n.as_str()))
        {
            None => Ok(()),
            Some((name, array)) => Err(Error::file(
                path,
                "only tensors of this network",
                format_args!("`{name}`: {} of shape {:?}", array.dtype(), array.shape),
            )),
        }
    }
}

/// Length of the header and its content; every byte of the file is accounted for by it.
fn read_header(reader: &mut impl Read, path: &Path, file_len: u64) -> Result<(u64, Metadata)> {
    let at = |offset: u64, expected: String, found: String| Error::File {
        path: path.into(),
        offset: Some(offset),
        expected,
        found,
    };
    if file_len < 8 {
        return Err(Error::file(
            path,
            "a safetensors file, at least 8 bytes",
            format_args!("{file_len} bytes"),
        ));
    }
    let mut len = [0; 8];
    reader
        .read_exact(&mut len)
        .map_err(Error::io("read", path))?;
    let len = u64::from_le_bytes(len);
    let room = (file_len - 8).min(MAX_HEADER);
    if len > room {
        return Err(at(
            0,
            format!("a safetensors header of at most {room} bytes"),
            format!("a header length of {len}"),
        ));
    }
    let mut json = vec![0; len as usize];
    reader
        .read_exact(&mut json)
        .map_err(Error::io("read", path))?;
    let header: Metadata = serde_json::from_slice(&json)
        .map_err(|e| at(8, "a safetensors header".into(), e.to_string()))?;
    let end = (8 + len).checked_add(header.data_len() as u64);
    if end != Some(file_len) {
        return Err(Error::file(
            path,
            format_args!("{} bytes of tensors, as its header says", header.data_len()),
            format_args!("{} bytes", file_len - 8 - len),
        ));
    }
    Ok((len, header))
}

fn read_tensor(
    reader: &mut impl Read,
    path: &Path,
    name: &str,
    info: &TensorInfo,
    offset: u64,
) -> Result<ArrayData> {
    let bytes = info.data_offsets.1 - info.data_offsets.0;
    let mut source = Elements {
        reader,
        path,
        offset,
        bytes,
    };
    Ok(match info.dtype {
        Dtype::F32 => ArrayData::F32(source.read(f32::from_le_bytes)?),
        Dtype::F64 => ArrayData::F32(source.read(|b| f64::from_le_bytes(b) as f32)?),
        Dtype::F16 => ArrayData::F32(source.read(|b| f32_of_f16(u16::from_le_bytes(b)))?),
        // bfloat16 is the upper half of an f32.
        Dtype::BF16 => {
            ArrayData::F32(source.read(|b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))?)
        }
        Dtype::I64 => ArrayData::I64(source.read(i64::from_le_bytes)?),
        other => {
            return Err(Error::File {
                path: path.into(),
                offset: Some(offset),
                expected: format!("`{name}` as F32, F64, F16, BF16 or I64"),
                found: format!("{other:?}"),
            });
        }
    })
}

/// The bytes of one tensor, still in the file.
struct Elements<'a, R> {
    reader: &'a mut R,
    path: &'a Path,
    offset: u64,
    bytes: usize,
}

impl<R: Read> Elements<'_, R> {
    fn read<const N: usize, T>(&mut self, decode: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let mut out = Vec::new();
        // The header fits the file, but a sparse file can be larger than memory.
        out.try_reserve_exact(self.bytes / N)
            .map_err(|_| Error::File {
                path: self.path.into(),
                offset: Some(self.offset),
                expected: "a tensor that fits in memory".into(),
                found: format!("{} bytes", self.bytes),
            })?;
        let mut buffer = [0; 1 << 14];
        let mut left = self.bytes;
        while left > 0 {
            let part = &mut buffer[..left.min(1 << 14)];
            self.reader
                .read_exact(part)
                .map_err(Error::io("read", self.path))?;
            let (elements, _) = part.as_chunks::<N>();
            out.extend(elements.iter().map(|&e| decode(e)));
            left -= part.len();
        }
        Ok(out)
    }
}

/// IEEE binary16 in f32; exact for every value.
fn f32_of_f16(half: u16) -> f32 {
    let sign = u32::from(half >> 15) << 31;
    let exponent = u32::from(half >> 10) & 0x1f;
    let fraction = u32::from(half) & 0x3ff;
    let magnitude = match exponent {
        // Subnormal: fraction * 2^-24, exact in f32.
        0 => (fraction as f32 * 2f32.powi(-24)).to_bits(),
        // Infinity and NaN, the payload kept.
        31 => 0x7f80_0000 | fraction << 13,
        // The exponent's bias grows from 15 to 127.
        e => (e + 112) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

/// A convolution's weight `[out, k, k, in]` as PyTorch's `[out, in, k, k]`, in f32.
pub fn conv_to_oihw(weight: &Tensor) -> Array {
    let s = weight.shape();
    let src = f32_vec(weight);
    let mut data: Vec<f32> = Vec::with_capacity(src.len());
    for o in 0..s.n {
        let filter = &src[o * s.row_len()..(o + 1) * s.row_len()];
        for i in 0..s.c {
            data.extend(filter.iter().skip(i).step_by(s.c));
        }
    }
    Array::f32([s.n, s.c, s.h, s.w], data)
}

/// PyTorch's `[out, in, k, k]` as `[out, k, k, in]`. Errors unless it is F32 of rank 4.
pub fn conv_from_oihw(array: &Array) -> Result<Tensor> {
    let src = array.floats("conv_from_oihw", 4, "[out, in, h, w]")?;
    let shape = Shape::new(
        array.shape[0],
        array.shape[2],
        array.shape[3],
        array.shape[1],
    );
    let pixels = shape.h * shape.w;
    let mut data: Vec<f32> = Vec::with_capacity(src.len());
    for filter in src.chunks_exact(shape.row_len()) {
        for p in 0..pixels {
            data.extend(filter.iter().skip(p).step_by(pixels));
        }
    }
    Tensor::from_vec(shape, data)
}

/// A linear layer's weight `[out, 1, 1, in]` as PyTorch's `[out, in]`, in f32.
pub fn linear_to_oi(weight: &Tensor) -> Array {
    let s = weight.shape();
    Array::f32([s.n, s.row_len()], f32_vec(weight))
}

/// PyTorch's `[out, in]` as `[out, 1, 1, in]`. Errors unless it is F32 of rank 2.
pub fn linear_from_oi(array: &Array) -> Result<Tensor> {
    let data = array.floats("linear_from_oi", 2, "[out, in]")?.to_vec();
    Tensor::from_vec(Shape::new(array.shape[0], 1, 1, array.shape[1]), data)
}

/// A vector over channels `[1, 1, 1, c]` as `[c]`, in f32.
pub fn vector_to_array(vector: &Tensor) -> Array {
    Array::f32([vector.shape().len()], f32_vec(vector))
}

/// `[c]` as a vector over channels `[1, 1, 1, c]`. Errors unless it is F32 of rank 1.
pub fn vector_from_array(array: &Array) -> Result<Tensor> {
    let data = array.floats("vector_from_array", 1, "[c]")?.to_vec();
    Tensor::from_vec(Shape::vector(data.len()), data)
}

fn f32_vec(tensor: &Tensor) -> Vec<f32> {
    tensor.to_f64_vec().iter().map(|&v| v as f32).collect()
}
