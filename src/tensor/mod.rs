//! Tensors: four sizes, one dtype, contiguous, channels innermost.
//!
//! A tensor lies in the host's memory or on a GPU. An op works where its arguments are; nothing moves
//! by itself ([`Tensor::to`]).
//!
//! There are no strides, no views and no broadcasting. Activations are `[n, h, w, c]`;
//! convolution weights are `[c_out, k, k, c_in / groups]`; a linear layer's weights are
//! `[out, 1, 1, in]`; a vector over channels is `[1, 1, 1, c]`; logits are `[n, 1, 1, classes]`.

mod gpu;

use std::fmt;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::gpu::{Elem, Gpu};

/// Elements a thread clears at a time.
const CLEAR_BLOCK: usize = 1 << 18;

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float: training, inference, attacks.
    F32,
    /// 64-bit float: gradient checks, on the CPU alone.
    F64,
    /// bfloat16: activations on the GPU.
    BF16,
    /// IEEE half precision: activations on the GPU.
    F16,
}

impl DType {
    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F64 => 8,
            DType::BF16 | DType::F16 => 2,
        }
    }

    /// The type of parameters, statistics and optimiser state beside activations of this type.
    pub const fn master(self) -> Self {
        match self {
            DType::F64 => DType::F64,
            DType::F32 | DType::BF16 | DType::F16 => DType::F32,
        }
    }

    /// The tag of a device address.
    pub(crate) const fn elem(self) -> Elem {
        match self {
            DType::F32 => Elem::F32,
            DType::F64 => Elem::F64,
            DType::BF16 => Elem::Bf16,
            DType::F16 => Elem::F16,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
        })
    }
}

impl std::str::FromStr for DType {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        [DType::F32, DType::F64, DType::BF16, DType::F16]
            .into_iter()
            .find(|d| d.to_string() == s)
            .ok_or_else(|| Error::argument("tensor", "dtype", "f32, f64, bf16 or f16", s))
    }
}

/// Where a tensor lies and an op works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Gpu(Gpu),
}

impl Device {
    /// The GPU, if it is one.
    pub fn gpu(&self) -> Option<&Gpu> {
        match self {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some(gpu),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Gpu(gpu) => write!(f, "cuda:{}", gpu.ordinal()),
        }
    }
}

/// What tensors must have in common to meet in an op: the element type and the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Element type.
    pub dtype: DType,
    /// Number of the GPU; `None` is the CPU.
    pub gpu: Option<usize>,
}

impl Kind {
    /// The same device, with the element type of parameters.
    pub const fn master(self) -> Self {
        self.with(self.dtype.master())
    }

    /// The same device, with another element type.
    pub const fn with(self, dtype: DType) -> Self {
        Kind { dtype, ..self }
    }
}

impl From<DType> for Kind {
    /// On the CPU.
    fn from(dtype: DType) -> Self {
        Kind { dtype, gpu: None }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dtype)?;
        match self.gpu {
            None => Ok(()),
            Some(ordinal) => write!(f, " on cuda:{ordinal}"),
        }
    }
}

/// Sizes of a tensor, `[n, h, w, c]`, channels innermost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Rows: images of a batch, or output channels of a weight.
    pub n: usize,
    /// Height in pixels.
    pub h: usize,
    /// Width in pixels.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl Shape {
    /// `[n, h, w, c]`.
    pub const fn new(n: usize, h: usize, w: usize, c: usize) -> Self {
        Shape { n, h, w, c }
    }

    /// `[1, 1, 1, c]`, a vector over channels.
    pub const fn vector(c: usize) -> Self {
        Shape::new(1, 1, 1, c)
    }

    /// Number of elements.
    pub const fn len(&self) -> usize {
        self.n * self.h * self.w * self.c
    }

    /// Whether there is no element at all.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements of one row, `h * w * c`.
    pub const fn row_len(&self) -> usize {
        self.h * self.w * self.c
    }

    /// Pixels of all rows, `n * h * w`.
    pub const fn pixels(&self) -> usize {
        self.n * self.h * self.w
    }

    /// The same sizes with another number of rows.
    pub const fn with_n(self, n: usize) -> Self {
        Shape { n, ..self }
    }

    /// The same sizes with another number of channels.
    pub const fn with_c(self, c: usize) -> Self {
        Shape { c, ..self }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}, {}, {}]", self.n, self.h, self.w, self.c)
    }
}

/// Element types of the CPU path: `f32` and `f64`.
pub trait Real:
    num_traits::Float
    + num_traits::NumAssign
    + std::iter::Sum
    + Default
    + fmt::Debug
    + fmt::Display
    + Send
    + Sync
    + 'static
    + sealed::Storable
{
    /// The run-time tag of this type.
    const DTYPE: DType;

    /// This value, rounded to this type.
    fn of(value: f64) -> Self;

    /// This value in double precision.
    fn f64(self) -> f64;
}

impl Real for f32 {
    const DTYPE: DType = DType::F32;
    fn of(value: f64) -> Self {
        value as f32
    }
    fn f64(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    const DTYPE: DType = DType::F64;
    fn of(value: f64) -> Self {
        value
    }
    fn f64(self) -> f64 {
        self
    }
}

use sealed::Storage;

mod sealed {
    use std::sync::Arc;

    use super::DType;
    use crate::gpu::Memory;

    /// The elements. Shared until written: a clone costs nothing.
    #[derive(Clone)]
    pub enum Storage {
        F32(Arc<Vec<f32>>),
        F64(Arc<Vec<f64>>),
        Gpu(Arc<Memory>, DType),
    }

    pub trait Storable: Sized {
        fn slice(storage: &Storage) -> Option<&[Self]>;
        fn vec_mut(storage: &mut Storage) -> Option<&mut Vec<Self>>;
        fn store(data: Vec<Self>) -> Storage;
    }

    impl Storable for f32 {
        fn slice(storage: &Storage) -> Option<&[Self]> {
            match storage {
                Storage::F32(v) => Some(v),
                Storage::F64(_) | Storage::Gpu(..) => None,
            }
        }
        fn vec_mut(storage: &mut Storage) -> Option<&mut Vec<Self>> {
            match storage {
                Storage::F32(v) => Some(Arc::make_mut(v)),
                Storage::F64(_) | Storage::Gpu(..) => None,
            }
        }
        fn store(data: Vec<Self>) -> Storage {
            Storage::F32(Arc::new(data))
        }
    }

    impl Storable for f64 {
        fn slice(storage: &Storage) -> Option<&[Self]> {
            match storage {
                Storage::F64(v) => Some(v),
                Storage::F32(_) | Storage::Gpu(..) => None,
            }
        }
        fn vec_mut(storage: &mut Storage) -> Option<&mut Vec<Self>> {
            match storage {
                Storage::F64(v) => Some(Arc::make_mut(v)),
                Storage::F32(_) | Storage::Gpu(..) => None,
            }
        }
        fn store(data: Vec<Self>) -> Storage {
            Storage::F64(Arc::new(data))
        }
    }
}

/// A dense tensor. Cloning shares the elements; the first write to a shared tensor copies them.
#[derive(Clone)]
pub struct Tensor {
    storage: Storage,
    shape: Shape,
}

/// Runs an expression with `$t` bound to the element type of a [`DType`].
#[macro_export]
macro_rules! dispatch {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::tensor::DType::F32 => {
                type $t = f32;
                $body
            }
            $crate::tensor::DType::F64 => {
                type $t = f64;
                $body
            }
            dtype => {
                unreachable!("{dtype} tensors lie on a GPU, where ops have a path of their own")
            }
        }
    };
}

impl Tensor {
    /// A tensor over `data`; an error unless `data` holds `shape.len()` elements.
    pub fn from_vec<T: Real>(shape: Shape, data: Vec<T>) -> Result<Self> {
        if data.len() != shape.len() {
            return Err(Error::argument(
                "Tensor::from_vec",
                "data",
                format_args!("{} elements for shape {shape}", shape.len()),
                data.len(),
            ));
        }
        Ok(Tensor {
            storage: T::store(data),
            shape,
        })
    }

    /// All elements 0, on the CPU.
    pub fn zeros(shape: Shape, dtype: DType) -> Self {
        dispatch!(dtype, T => Self::filled::<T>(shape, 0.0))
    }

    /// All elements `value`, on the CPU.
    pub fn full(shape: Shape, dtype: DType, value: f64) -> Self {
        dispatch!(dtype, T => Self::filled::<T>(shape, T::of(value)))
    }

    fn filled<T: Real>(shape: Shape, value: T) -> Self {
        Tensor {
            storage: T::store(vec![value; shape.len()]),
            shape,
        }
    }

    /// The sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self.storage {
            Storage::F32(_) => DType::F32,
            Storage::F64(_) => DType::F64,
            Storage::Gpu(_, dtype) => dtype,
        }
    }

    /// The element type and the device.
    pub fn kind(&self) -> Kind {
        Kind {
            dtype: self.dtype(),
            gpu: self.gpu().map(Gpu::ordinal),
        }
    }

    /// The elements. Panics if `T` is not the tensor's dtype or the tensor lies on a GPU: call it
    /// inside [`dispatch!`](crate::dispatch), or after [`Tensor::expect`].
    pub fn data<T: Real>(&self) -> &[T] {
        T::slice(&self.storage).unwrap_or_else(|| self.wrong_dtype::<T>())
    }

    /// The elements, to be written. Panics as [`Tensor::data`] does.
    pub fn data_mut<T: Real>(&mut self) -> &mut [T] {
        if self.kind() != Kind::from(T::DTYPE) {
            self.wrong_dtype::<T>()
        }
        T::vec_mut(&mut self.storage).expect("dtype and device checked above")
    }

    fn wrong_dtype<T: Real>(&self) -> ! {
        panic!("tensor is {}, asked for {}", self.kind(), T::DTYPE)
    }

    /// The elements rounded to another type; shares them if the type is the same.
    ///
    /// Errors: a type the device does not hold (16-bit types on the CPU, f64 on a GPU); a fault of the
    /// device.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        if dtype == self.dtype() {
            return Ok(self.clone());
        }
        if let Some(gpu) = self.gpu() {
            return gpu::cast(gpu, self, dtype);
        }
        if dtype != dtype.master() {
            let expected = "f32 or f64 for a tensor on the CPU";
            return Err(Error::argument(
                "Tensor::to_dtype",
                "dtype",
                expected,
                dtype,
            ));
        }
        Ok(dispatch!(self.dtype(), From => dispatch!(dtype, To => {
            let data = self.data::<From>().iter().map(|v| To::of(v.f64())).collect();
            Tensor { storage: <To as sealed::Storable>::store(data), shape: self.shape }
        })))
    }

    /// The same elements under another shape of equal length.
    pub fn reshape(mut self, shape: Shape) -> Result<Self> {
        if shape.len() != self.shape.len() {
            return Err(Error::argument(
                "Tensor::reshape",
                "shape",
                format_args!("{} elements ({})", self.shape.len(), self.shape),
                shape,
            ));
        }
        self.shape = shape;
        Ok(self)
    }

    /// All elements in double precision. Panics as [`Tensor::data`] does.
    pub fn to_f64_vec(&self) -> Vec<f64> {
        dispatch!(self.dtype(), T => self.data::<T>().iter().map(|v| v.f64()).collect())
    }

    /// One row's elements. Panics as [`Tensor::data`] does, and for a row that is not there.
    pub fn row<T: Real>(&self, row: usize) -> &[T] {
        let len = self.shape.row_len();
        &self.data()[row * len..][..len]
    }

    /// The rows at these positions, in this order; an error if one is out of range.
    pub fn gather_rows(&self, rows: &[usize]) -> Result<Self> {
        if let Some(&bad) = rows.iter().find(|&&r| r >= self.shape.n) {
            return Err(Error::argument(
                "Tensor::gather_rows",
                "rows",
                format_args!("positions below {}", self.shape.n),
                bad,
            ));
        }
        let len = self.shape.row_len();
        let shape = self.shape.with_n(rows.len());
        if let Some(gpu) = self.gpu() {
            return gpu::gather_rows(gpu, self, rows);
        }
        dispatch!(self.dtype(), T => {
            let src = self.data::<T>();
            let mut out = Vec::with_capacity(shape.len());
            for &r in rows {
                out.extend_from_slice(&src[r * len..(r + 1) * len]);
            }
            Tensor::from_vec(shape, out)
        })
    }

    /// Sets every element to 0.
    ///
    /// Errors: a fault of the device.
    pub fn clear(&mut self) -> Result<()> {
        if self.gpu().is_some() {
            return gpu::clear(self);
        }
        dispatch!(self.dtype(), T => self
            .data_mut::<T>()
            .par_chunks_mut(CLEAR_BLOCK)
            .for_each(|block| block.fill(T::of(0.0))));
        Ok(())
    }

    /// Number of elements that are NaN or infinite. Waits for the device.
    ///
    /// Errors: a fault of the device.
    pub fn count_not_finite(&self) -> Result<usize> {
        if let Some(gpu) = self.gpu() {
            return gpu::count_not_finite(gpu, self);
        }
        Ok(dispatch!(self.dtype(), T => self.data::<T>().iter().filter(|v| !v.is_finite()).count()))
    }

    /// An error naming `op` and `arg` unless shape, dtype and device are these; a [`DType`] alone
    /// means a tensor on the CPU.
    pub fn expect(
        &self,
        op: &'static str,
        arg: &'static str,
        shape: Shape,
        kind: impl Into<Kind>,
    ) -> Result<()> {
        let (expected, found) = (kind.into(), self.kind());
        if self.shape == shape && expected == found {
            return Ok(());
        }
        let text = |shape: Shape, kind: Kind| match (kind.gpu, expected.gpu == found.gpu) {
            (None, false) => format!("{shape} {kind} on the CPU"),
            _ => format!("{shape} {kind}"),
        };
        let (expected, found) = (text(shape, expected), text(self.shape, found));
        Err(Error::argument(op, arg, expected, found))
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor {} {}", self.shape, self.kind())
    }
}
