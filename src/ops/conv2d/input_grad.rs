//! The input gradient: convolutions of `dy` with the flipped kernel, one for every remainder of
//! the input pixel by the stride.
//!
//! With `i = stride q + r - pad`, input row `i` meets output row `q - t` through kernel row
//! `r + stride t`, for every `t` with `r + stride t < k`:
//!
//! ```text
//! dx[stride q + r - pad] = sum over t of dy[q - t] w[r + stride t]
//! ```
//!
//! and so for columns: for fixed remainders `r` of row and column a convolution of stride 1 over
//! `dy` with `T = ceil((k - r) / stride)` taps, tap `u = T - 1 - t` lying at `dy` row `q - T + 1 + u`.

use rayon::prelude::*;

use super::Conv2d;
use super::direct::{Packed, Part, convolve};
use super::operand::Operand;
use crate::ops::isa::Isa;
use crate::ops::tile::Element;
use crate::tensor::Shape;

/// Input channels that would leave most lanes of a vector idle.
const FEW_CHANNELS: usize = 5;

/// One remainder `r` along one axis.
#[derive(Clone, Copy)]
struct Phase {
    r: usize,
    taps: usize,
    /// First input pixel of the phase, and how many there are.
    pixel: usize,
    count: usize,
    /// `dy` pixel under tap 0 of the first input pixel.
    first: isize,
}

/// The phases along an axis of `size` input pixels that have pixels and taps.
fn phases(size: usize, k: usize, conv: Conv2d) -> Vec<Phase> {
    let Conv2d { stride, pad, .. } = conv;
    (0..stride.min(k))
        .filter_map(|r| {
            let taps = (k - r).div_ceil(stride);
            // The smallest q with stride q + r - pad >= 0.
            let q = pad.saturating_sub(r).div_ceil(stride);
            let pixel = stride * q + r - pad;
            (pixel < size).then(|| Phase {
                r,
                taps,
                pixel,
                count: (size - pixel).div_ceil(stride),
                first: q as isize - taps as isize + 1,
            })
        })
        .collect()
}

/// `dx`, dense `[n, h, w, c_in]`.
pub(super) fn input_grad<T: Element>(
    isa: Isa,
    dy: &[T],
    y_shape: Shape,
    w: &[T],
    w_shape: Shape,
    x_shape: Shape,
    conv: Conv2d,
) -> Vec<T> {
    let k = w_shape.h;
    if conv.groups == 1 && conv.stride == 1 && k > 1 && w_shape.c <= FEW_CHANNELS {
        return few_channels(isa, dy, y_shape, w, w_shape, x_shape, conv);
    }
    let (c_in, c_out) = (w_shape.c, w_shape.n / conv.groups);
    let mut parts = Vec::new();
    for row in phases(x_shape.h, k, conv) {
        for col in phases(x_shape.w, k, conv) {
            // Depth [u, v, o]: tap (u, v) of the part is kernel pixel r + stride (T - 1 - u).
            let depth = row.taps * col.taps * c_out;
            let weights = Packed::new(isa, conv.groups, c_in, depth, |group, block, range, to| {
                let lanes = block.kernel.cols;
                for (at, to) in range.zip(to.chunks_exact_mut(lanes)) {
                    let (tap, o) = (at / c_out, at % c_out);
                    let (u, v) = (tap / col.taps, tap % col.taps);
                    let kernel_row = row.r + conv.stride * (row.taps - 1 - u);
                    let kernel_col = col.r + conv.stride * (col.taps - 1 - v);
                    let at = ((group * c_out + o) * k + kernel_row) * k + kernel_col;
                    let from = &w[at * c_in + block.first..][..block.width];
                    to[..block.width].copy_from_slice(from);
                    to[block.width..].fill(T::zero());
                }
            });
            parts.push(Part {
                kh: row.taps,
                kw: col.taps,
                top: row.first,
                left: col.first,
                step: 1,
                rows: row.count,
                cols: col.count,
                row: row.pixel,
                col: col.pixel,
                grid: conv.stride,
                weights,
            });
        }
    }
    let dy = Operand::new(dy, y_shape, 1, None);
    convolve(&dy, conv.groups, &parts, None, x_shape)
}

/// The same for few input channels and stride 1: columns and channels `(v, c)` of a kernel row are
/// taken as output channels of a convolution along the columns of the image, whose results are
/// then added up along its rows.
///
/// ```text
/// t[i, j, v, c] = sum over u, o of dy[i + pad - u, j, o] w[o, u, v, c]
/// dx[i, j, c] = sum over v of t[i, j + pad - v, v, c]
/// ```
fn few_channels<T: Element>(
    isa: Isa,
    dy: &[T],
    y_shape: Shape,
    w: &[T],
    w_shape: Shape,
    x_shape: Shape,
    conv: Conv2d,
) -> Vec<T> {
    let (k, c_in, c_out) = (w_shape.h, w_shape.c, w_shape.n);
    let weights = Packed::new(isa, 1, k * c_in, k * c_out, |_, block, range, to| {
        for (at, to) in range.zip(to.chunks_exact_mut(block.kernel.cols)) {
            let (u, o) = (k - 1 - at / c_out, at % c_out);
            let from = &w[(o * k + u) * k * c_in + block.first..][..block.width];
            to[..block.width].copy_from_slice(from);
            to[block.width..].fill(T::zero());
        }
    });
    let part = Part {
        kh: k,
        kw: 1,
        top: conv.pad as isize + 1 - k as isize,
        left: 0,
        step: 1,
        rows: x_shape.h,
        cols: y_shape.w,
        row: 0,
        col: 0,
        grid: 1,
        weights,
    };
    let t_shape = Shape::new(x_shape.n, x_shape.h, y_shape.w, k * c_in);
    let dy = Operand::new(dy, y_shape, 1, None);
    let t = convolve(&dy, 1, &[part], None, t_shape);

    let mut dx = vec![T::zero(); x_shape.len()];
    let rows = dx.par_chunks_mut(x_shape.w * c_in);
    rows.zip(t.par_chunks(y_shape.w * k * c_in))
        .for_each(|(dx, t)| {
            for (j, dx) in dx.chunks_exact_mut(c_in).enumerate() {
                for v in 0..k {
                    let col = (j + conv.pad).wrapping_sub(v);
                    if col < y_shape.w {
                        let t = &t[(col * k + v) * c_in..][..c_in];
                        dx.iter_mut().zip(t).for_each(|(dx, &t)| *dx += t);
                    }
                }
            }
        });
    dx
}
