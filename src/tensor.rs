//! Tensors: four sizes, one dtype, contiguous, channels innermost.
//!
//! There are no strides, no views and no broadcasting. Activations are `[n, h, w, c]`;
//! convolution weights are `[c_out, k, k, c_in / groups]`; a linear layer's weights are
//! `[out, 1, 1, in]`; a vector over channels is `[1, 1, 1, c]`; logits are `[n, 1, 1, classes]`.

use std::fmt;

use rayon::prelude::*;

use crate::error::{Error, Result};

/// Elements a thread clears at a time.
const CLEAR_BLOCK: usize = 1 << 18;

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DType {
    /// 32-bit float: training, inference, attacks.
    F32,
    /// 64-bit float: gradient checks.
    F64,
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
        })
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

    /// The elements. Shared until written: a clone costs nothing.
    #[derive(Clone)]
    pub enum Storage {
        F32(Arc<Vec<f32>>),
        F64(Arc<Vec<f64>>),
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
                Storage::F64(_) => None,
            }
        }
        fn vec_mut(storage: &mut Storage) -> Option<&mut Vec<Self>> {
            match storage {
                Storage::F32(v) => Some(Arc::make_mut(v)),
                Storage::F64(_) => None,
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
                Storage::F32(_) => None,
            }
        }
        fn vec_mut(storage: &mut Storage) -> Option<&mut Vec<Self>> {
            match storage {
                Storage::F64(v) => Some(Arc::make_mut(v)),
                Storage::F32(_) => None,
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

    /// All elements 0.
    pub fn zeros(shape: Shape, dtype: DType) -> Self {
        dispatch!(dtype, T => Self::filled::<T>(shape, 0.0))
    }

    /// All elements `value`.
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
        }
    }

    /// The elements. Panics if `T` is not the tensor's dtype: call it inside
    /// [`dispatch!`](crate::dispatch), or after [`Tensor::expect`].
    pub fn data<T: Real>(&self) -> &[T] {
        T::slice(&self.storage).unwrap_or_else(|| self.wrong_dtype::<T>())
    }

    /// The elements, to be written. Panics as [`Tensor::data`] does.
    pub fn data_mut<T: Real>(&mut self) -> &mut [T] {
        if self.dtype() != T::DTYPE {
            self.wrong_dtype::<T>()
        }
        T::vec_mut(&mut self.storage).expect("dtype checked above")
    }

    fn wrong_dtype<T: Real>(&self) -> ! {
        panic!("tensor is {}, asked for {}", self.dtype(), T::DTYPE)
    }

    /// The elements rounded to another type; shares them if the type is the same.
    pub fn to_dtype(&self, dtype: DType) -> Self {
        if dtype == self.dtype() {
            return self.clone();
        }
        dispatch!(self.dtype(), From => dispatch!(dtype, To => {
            let data = self.data::<From>().iter().map(|v| To::of(v.f64())).collect();
            Tensor { storage: <To as sealed::Storable>::store(data), shape: self.shape }
        }))
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

    /// All elements in double precision.
    pub fn to_f64_vec(&self) -> Vec<f64> {
        dispatch!(self.dtype(), T => self.data::<T>().iter().map(|v| v.f64()).collect())
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
    pub fn clear(&mut self) {
        dispatch!(self.dtype(), T => self
            .data_mut::<T>()
            .par_chunks_mut(CLEAR_BLOCK)
            .for_each(|block| block.fill(T::of(0.0))));
    }

    /// Number of elements that are NaN or infinite.
    pub fn count_not_finite(&self) -> usize {
        dispatch!(self.dtype(), T => self.data::<T>().iter().filter(|v| !v.is_finite()).count())
    }

    /// An error naming `op` and `arg` unless the shape and dtype are these.
    pub fn expect(
        &self,
        op: &'static str,
        arg: &'static str,
        shape: Shape,
        dtype: DType,
    ) -> Result<()> {
        if self.shape != shape || self.dtype() != dtype {
            return Err(Error::argument(
                op,
                arg,
                format_args!("{shape} {dtype}"),
                format_args!("{} {}", self.shape, self.dtype()),
            ));
        }
        Ok(())
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor {} {}", self.shape, self.dtype())
    }
}
