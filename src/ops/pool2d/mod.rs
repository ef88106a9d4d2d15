//! Max, average and global average pooling.

pub(super) mod gpu;

use rayon::prelude::*;

use super::bytes::Bytes;
use super::simd::{BLOCK, for_blocks, multiversion};
use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::{DType, Real, Shape, Tensor};

/// Window of a pooling: `k x k`, no padding; a rest that does not fill a window is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool2d {
    /// Window size; at least 1.
    pub k: usize,
    /// Step; at least 1.
    pub stride: usize,
}

impl Pool2d {
    /// `[n, oh, ow, c]` with `oh = (h - k) / stride + 1`.
    ///
    /// Errors: `k` or `stride` is 0; `x` has no element or is smaller than the window.
    pub fn output_shape(&self, op: &'static str, x: Shape) -> Result<Shape> {
        let Pool2d { k, stride } = *self;
        if k == 0 {
            return Err(Error::argument(op, "pool.k", "at least 1", k));
        }
        if stride == 0 {
            return Err(Error::argument(op, "pool.stride", "at least 1", stride));
        }
        if x.is_empty() || x.h < k || x.w < k {
            let expected = format!("at least one image of {k} x {k} pixels");
            return Err(Error::argument(op, "x", expected, x));
        }
        Ok(Shape {
            h: (x.h - k) / stride + 1,
            w: (x.w - k) / stride + 1,
            ..x
        })
    }

    /// The same, and the window small enough for a `u8` position.
    pub(super) fn max_output_shape(&self, op: &'static str, x: Shape) -> Result<Shape> {
        if self.k > 16 {
            return Err(Error::argument(op, "pool.k", "at most 16", self.k));
        }
        self.output_shape(op, x)
    }

    /// The input rows under output row `row` of all images, numbered through.
    fn band<'a, T>(&self, x: &'a [T], shape: Shape, oh: usize, row: usize) -> &'a [T] {
        let line = shape.w * shape.c;
        let first = (row / oh) * shape.h + (row % oh) * self.stride;
        &x[first * line..(first + self.k) * line]
    }
}

/// Which element of its window every output of a max pooling took, `(i, j)` as `i k + j`: a byte per
/// output, where the output lies. A clone is the same list.
#[derive(Debug, Clone)]
pub struct Argmax {
    /// Elements of a window: the bytes are smaller than this.
    positions: usize,
    bytes: Bytes,
}

impl Argmax {
    /// Number of outputs.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no output.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes. Waits for the device.
    ///
    /// Errors: a fault of the device.
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        self.bytes.to_vec()
    }

    /// Errors unless it fits outputs of a pooling that lie where `dy` does.
    pub(super) fn expect(&self, op: &'static str, dy: &Tensor, pool: Pool2d) -> Result<()> {
        let (len, gpu) = (dy.shape().len(), dy.gpu());
        if self.len() != len || self.bytes.gpu() != gpu {
            let expected = format!("{len} entries{}, one per output", Bytes::place(gpu));
            let found = format!("{}{}", self.len(), Bytes::place(self.bytes.gpu()));
            return Err(Error::argument(op, "argmax", expected, found));
        }
        if self.positions > pool.k * pool.k {
            let expected = format!("positions below {}", pool.k * pool.k);
            return Err(Error::argument(op, "argmax", expected, self.positions - 1));
        }
        Ok(())
    }

    pub(in crate::ops) fn ptr(&self) -> crate::gpu::Ptr {
        self.bytes.ptr()
    }
}

impl From<Vec<u8>> for Argmax {
    /// On the CPU.
    fn from(bytes: Vec<u8>) -> Self {
        Argmax {
            positions: bytes
                .iter()
                .max()
                .map_or(0, |&largest| usize::from(largest) + 1),
            bytes: Bytes::Host(bytes.into()),
        }
    }
}

/// Splits of one row of windows: where window `ow`'s element `(i, j)` starts.
#[derive(Clone, Copy)]
struct Line {
    /// Input pixels of a line.
    w: usize,
    /// Channels.
    c: usize,
    k: usize,
    stride: usize,
}

impl Line {
    fn new(x: Shape, pool: Pool2d) -> Self {
        let (w, c) = (x.w, x.c);
        let Pool2d { k, stride } = pool;
        Line { w, c, k, stride }
    }

    #[inline(always)]
    fn at(&self, ow: usize, e: usize) -> usize {
        let (i, j) = (e / self.k, e % self.k);
        (i * self.w + ow * self.stride + j) * self.c
    }
}

multiversion! {
    /// One row of outputs from its `k` input lines.
    fn max_row<T>(x: &[T], y: &mut [T], argmax: &mut [u8], line: Line) {
        let c = line.c;
        for (ow, (y, argmax)) in y.chunks_exact_mut(c).zip(argmax.chunks_exact_mut(c)).enumerate() {
            y.copy_from_slice(&x[line.at(ow, 0)..][..c]);
            argmax.fill(0);
            for e in 1..line.k * line.k {
                let x = &x[line.at(ow, e)..][..c];
                for ((y, argmax), &x) in y.iter_mut().zip(&mut *argmax).zip(x) {
                    // A NaN is taken, and nothing compares larger than a NaN: it stays.
                    let take = (x > *y) | x.is_nan();
                    *y = if take { x } else { *y };
                    *argmax = if take { e as u8 } else { *argmax };
                }
            }
        }
    }

    /// Adds one row of output gradients to its `k` lines of input gradients.
    fn max_row_backward<T>(dy: &[T], argmax: &[u8], dx: &mut [T], line: Line) {
        let c = line.c;
        for (ow, (dy, argmax)) in dy.chunks_exact(c).zip(argmax.chunks_exact(c)).enumerate() {
            for e in 0..line.k * line.k {
                let dx = &mut dx[line.at(ow, e)..][..c];
                for ((dx, &dy), &argmax) in dx.iter_mut().zip(dy).zip(argmax) {
                    *dx += if argmax == e as u8 { dy } else { T::zero() };
                }
            }
        }
    }

    fn average_row<T>(x: &[T], y: &mut [T], line: Line) {
        let c = line.c;
        let scale = T::of(1.0 / (line.k * line.k) as f64);
        for (ow, y) in y.chunks_exact_mut(c).enumerate() {
            y.copy_from_slice(&x[line.at(ow, 0)..][..c]);
            for e in 1..line.k * line.k {
                let x = &x[line.at(ow, e)..][..c];
                for (y, &x) in y.iter_mut().zip(x) {
                    *y += x;
                }
            }
            for y in y {
                *y *= scale;
            }
        }
    }

    fn average_row_backward<T>(dy: &[T], dx: &mut [T], line: Line) {
        let c = line.c;
        let scale = T::of(1.0 / (line.k * line.k) as f64);
        for (ow, dy) in dy.chunks_exact(c).enumerate() {
            for e in 0..line.k * line.k {
                let dx = &mut dx[line.at(ow, e)..][..c];
                for (dx, &dy) in dx.iter_mut().zip(dy) {
                    *dx += dy * scale;
                }
            }
        }
    }

    /// Adds `pixels * c` values into the `c` sums.
    fn add_pixels<T>(x: &[T], sums: &mut [f64]) {
        for x in x.chunks_exact(sums.len()) {
            for (sum, &x) in sums.iter_mut().zip(x) {
                *sum += x.f64();
            }
        }
    }

    fn spread_pixel<T>(dy: &[T], dx: &mut [T], scale: T) {
        for dx in dx.chunks_exact_mut(dy.len()) {
            for (dx, &dy) in dx.iter_mut().zip(dy) {
                *dx = dy * scale;
            }
        }
    }
}

/// y and, per output, which window element was the (first) largest: what backward needs.
///
/// x `[n, h, w, c]`, y `[n, oh, ow, c]`; element `(i, j)` of a window has the number `i k + j`.
/// A NaN in a window makes its output NaN.
///
/// Errors: as [`Pool2d::output_shape`]; `k` above 16.
pub fn max_forward(x: &Tensor, pool: Pool2d) -> Result<(Tensor, Argmax)> {
    let shape = pool.max_output_shape("pool2d::max_forward", x.shape())?;
    if let Some(gpu) = x.gpu() {
        return gpu::max_forward(gpu, x, shape, pool);
    }
    let mut argmax = vec![0; shape.len()];
    let mut y = Tensor::zeros(shape, x.dtype());
    let line = Line::new(x.shape(), pool);
    dispatch!(x.dtype(), T => {
        let (data, row) = (x.data::<T>(), shape.w * shape.c);
        let one_row = |i: usize, y: &mut [T], argmax: &mut [u8]| {
            max_row(pool.band(data, x.shape(), shape.h, i), y, argmax, line);
        };
        let y = y.data_mut::<T>();
        if data.len() <= BLOCK {
            let rows = y.chunks_mut(row).zip(argmax.chunks_mut(row));
            rows.enumerate().for_each(|(i, (y, argmax))| one_row(i, y, argmax));
        } else {
            let rows = y.par_chunks_mut(row).zip(argmax.par_chunks_mut(row));
            rows.enumerate().for_each(|(i, (y, argmax))| one_row(i, y, argmax));
        }
    });
    let argmax = Argmax {
        positions: pool.k * pool.k,
        bytes: Bytes::Host(argmax.into()),
    };
    Ok((y, argmax))
}

/// Calls `f(output_row, dx_lines)` for every output row, where `dx_lines` are the `k` input
/// lines under it, zero before the first call.
fn scatter<T: Real>(
    x: Shape,
    oh: usize,
    pool: Pool2d,
    f: impl Fn(usize, &mut [T]) + Sync,
) -> Result<Tensor> {
    let line = x.w * x.c;
    let mut dx = vec![T::zero(); x.len()];
    // Images are independent of each other, whether or not windows overlap.
    for_blocks(x.len(), &mut dx, x.h * line, |start, dx| {
        let n = start / (x.h * line);
        for i in 0..oh {
            f(
                n * oh + i,
                &mut dx[i * pool.stride * line..][..pool.k * line],
            );
        }
    });
    Tensor::from_vec(x, dx)
}

/// Gradient in `x`: every output's goes to the window element its `argmax` names.
///
/// dy `[n, oh, ow, c]`, `argmax` as [`max_forward`] returned it.
///
/// Errors: as [`max_forward`]; `dy` or `argmax` does not fit `x_shape`; they lie on different devices.
pub fn max_backward(dy: &Tensor, argmax: &Argmax, x_shape: Shape, pool: Pool2d) -> Result<Tensor> {
    const OP: &str = "pool2d::max_backward";
    let shape = pool.max_output_shape(OP, x_shape)?;
    dy.expect(OP, "dy", shape, dy.kind())?;
    argmax.expect(OP, dy, pool)?;
    if let Some(gpu) = dy.gpu() {
        return gpu::max_backward(gpu, dy, argmax, x_shape, pool);
    }
    let argmax = argmax.bytes.host();
    let line = Line::new(x_shape, pool);
    dispatch!(dy.dtype(), T => {
        let (dy, row) = (dy.data::<T>(), shape.w * shape.c);
        scatter(x_shape, shape.h, pool, |i, dx: &mut [T]| {
            let outputs = i * row..(i + 1) * row;
            max_row_backward(&dy[outputs.clone()], &argmax[outputs], dx, line);
        })
    })
}

/// Mean of each window. x `[n, h, w, c]`, y `[n, oh, ow, c]`.
///
/// Errors: as [`Pool2d::output_shape`].
pub fn average_forward(x: &Tensor, pool: Pool2d) -> Result<Tensor> {
    let shape = pool.output_shape("pool2d::average_forward", x.shape())?;
    if let Some(gpu) = x.gpu() {
        return gpu::average_forward(gpu, x, shape, pool);
    }
    let line = Line::new(x.shape(), pool);
    dispatch!(x.dtype(), T => {
        let (data, row) = (x.data::<T>(), shape.w * shape.c);
        let mut y = vec![T::of(0.0); shape.len()];
        for_blocks(data.len(), &mut y, row, |start, y| {
            average_row(pool.band(data, x.shape(), shape.h, start / row), y, line);
        });
        Tensor::from_vec(shape, y)
    })
}

/// Gradient in `x`. dy `[n, oh, ow, c]`.
///
/// Errors: as [`Pool2d::output_shape`]; `dy` does not fit `x_shape`.
pub fn average_backward(dy: &Tensor, x_shape: Shape, pool: Pool2d) -> Result<Tensor> {
    const OP: &str = "pool2d::average_backward";
    let shape = pool.output_shape(OP, x_shape)?;
    dy.expect(OP, "dy", shape, dy.kind())?;
    if let Some(gpu) = dy.gpu() {
        return gpu::average_backward(gpu, dy, x_shape, pool);
    }
    let line = Line::new(x_shape, pool);
    dispatch!(dy.dtype(), T => {
        let (dy, row) = (dy.data::<T>(), shape.w * shape.c);
        scatter(x_shape, shape.h, pool, |i, dx: &mut [T]| {
            average_row_backward(&dy[i * row..(i + 1) * row], dx, line);
        })
    })
}

fn global_shape(op: &'static str, x: Shape) -> Result<Shape> {
    if x.is_empty() {
        return Err(Error::argument(op, "x", "at least one element", x));
    }
    Ok(Shape::new(x.n, 1, 1, x.c))
}

/// Mean over all pixels: `[n, h, w, c]` to `[n, 1, 1, c]`.
///
/// Errors: `x` has no element.
pub fn global_average_forward(x: &Tensor) -> Result<Tensor> {
    let shape = global_shape("pool2d::global_average_forward", x.shape())?;
    if let Some(gpu) = x.gpu() {
        return gpu::global_average_forward(gpu, x, shape);
    }
    let (row, pixels) = (x.shape().row_len(), (x.shape().h * x.shape().w) as f64);
    dispatch!(x.dtype(), T => {
        let data = x.data::<T>();
        let mut y = vec![T::of(0.0); shape.len()];
        for_blocks(data.len(), &mut y, shape.c, |start, y| {
            let n = start / shape.c;
            let mut sums = vec![0.0; shape.c];
            add_pixels(&data[n * row..(n + 1) * row], &mut sums);
            for (y, sum) in y.iter_mut().zip(sums) {
                *y = T::of(sum / pixels);
            }
        });
        Tensor::from_vec(shape, y)
    })
}

/// Gradient in `x`. dy `[n, 1, 1, c]`.
///
/// Errors: `x_shape` has no element; `dy` does not fit it.
pub fn global_average_backward(dy: &Tensor, x_shape: Shape) -> Result<Tensor> {
    const OP: &str = "pool2d::global_average_backward";
    let shape = global_shape(OP, x_shape)?;
    dy.expect(OP, "dy", shape, dy.kind())?;
    if let Some(gpu) = dy.gpu() {
        return gpu::global_average_backward(gpu, dy, x_shape);
    }
    let row = x_shape.row_len();
    let dtype: DType = dy.dtype();
    dispatch!(dtype, T => {
        let dy = dy.data::<T>();
        let scale = T::of(1.0 / (x_shape.h * x_shape.w) as f64);
        let mut dx = vec![T::of(0.0); x_shape.len()];
        for_blocks(x_shape.len(), &mut dx, row, |start, dx| {
            let n = start / row;
            spread_pixel(&dy[n * shape.c..(n + 1) * shape.c], dx, scale);
        });
        Tensor::from_vec(x_shape, dx)
    })
}
