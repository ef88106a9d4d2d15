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

use super::Conv2d;
use super::direct::{Packed, Part, convolve};
use super::operand::Operand;
use crate::ops::tile::{Element, Isa};
use crate::tensor::Shape;

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
    let dy = Operand::new(dy, y_shape, None);
    convolve(&dy, conv.groups, &parts, None, x_shape)
}
