//! Loops of the CPU path.

use std::mem::MaybeUninit;

use super::{Activation, Saved};
use crate::error::Result;
use crate::ops::simd::{BLOCK, block_of, for_blocks, multiversion, written_by};
use crate::tensor::{Real, Shape, Tensor};

/// Pixels over which a block adds up in the tensor's own type; blocks are merged in f64. A block
/// of `n` squares `(x - x_0)^2` is at most `n + 1` times its sum of squared deviations, `x_0`
/// being one of them: that bounds the cancellation whatever the data.
const STATISTICS_PIXELS: usize = 256;

/// Pixels of a block of a reduction, from the number of channels only.
fn reduction_pixels(c: usize) -> usize {
    (BLOCK / c).clamp(1, STATISTICS_PIXELS)
}

/// How often vectors over channels are repeated so that the innermost loops stay long where there
/// are few channels.
fn repeats(c: usize) -> usize {
    (32 / c).max(1)
}

fn repeated<T: Copy>(v: &[T]) -> Vec<T> {
    v.repeat(repeats(v.len()))
}

/// The value before the activation, `(x - mean) scale + shift` with `scale = gamma inv_std` and
/// `shift = beta`, and the activation's bounds. The vectors are [`repeated`].
pub(super) struct Normalise<T> {
    mean: Vec<T>,
    scale: Vec<T>,
    shift: Vec<T>,
    low: T,
    cap: T,
}

impl<T: Real> Normalise<T> {
    pub fn new(saved: &Saved, affine: Option<(&Tensor, &Tensor)>, activation: Activation) -> Self {
        let inv_std = saved.inv_std.data::<T>();
        let (scale, shift) = match affine {
            Some((gamma, beta)) => {
                let gamma = gamma.data::<T>().iter();
                let scale: Vec<T> = gamma.zip(inv_std).map(|(&g, &s)| g * s).collect();
                (repeated(&scale), repeated(beta.data::<T>()))
            }
            None => (repeated(inv_std), repeated(&vec![T::zero(); inv_std.len()])),
        };
        let (low, cap) = match activation {
            Activation::Identity => (T::neg_infinity(), T::infinity()),
            Activation::Relu => (T::zero(), T::infinity()),
            Activation::BoundedRelu(cap) => (T::zero(), T::of(cap)),
        };
        let mean = repeated(saved.mean.data::<T>());
        Normalise {
            mean,
            scale,
            shift,
            low,
            cap,
        }
    }
}

/// `min(max(v, low), cap)`; NaN stays NaN.
#[inline(always)]
fn clip<T: Real>(v: T, low: T, cap: T) -> T {
    let v = if v <= low { low } else { v };
    if v >= cap { cap } else { v }
}

/// `dy` where `low < v < cap`, else 0.
#[inline(always)]
fn gate<T: Real>(dy: T, v: T, low: T, cap: T) -> T {
    if (v > low) & (v < cap) { dy } else { T::zero() }
}

multiversion! {
    /// `sum += x - x_0` and `square += (x - x_0)^2`; all slices but `x` have the same length.
    fn add_deviations<T>(x: &[T], x_0: &[T], sum: &mut [T], square: &mut [T]) {
        let width = x_0.len();
        let mut fours = x.chunks_exact(4 * width);
        for x in &mut fours {
            let (a, x) = x.split_at(width);
            let (b, x) = x.split_at(width);
            let (c, d) = x.split_at(width);
            let sums = x_0.iter().zip(sum.iter_mut()).zip(square.iter_mut());
            let pixels = a.iter().zip(b).zip(c).zip(d);
            for (((&k, sum), square), (((&a, &b), &c), &d)) in sums.zip(pixels) {
                let (a, b, c, d) = (a - k, b - k, c - k, d - k);
                *sum += (a + b) + (c + d);
                *square += (a * a + b * b) + (c * c + d * d);
            }
        }
        for x in fours.remainder().chunks(width) {
            let sums = sum.iter_mut().zip(square.iter_mut());
            for ((&x, &k), (sum, square)) in x.iter().zip(x_0).zip(sums) {
                let d = x - k;
                *sum += d;
                *square += d * d;
            }
        }
    }

    fn apply<T>(x: &[T], y: &mut [MaybeUninit<T>], norm: &Normalise<T>) {
        let (low, cap) = (norm.low, norm.cap);
        let width = norm.mean.len();
        for (x, y) in x.chunks(width).zip(y.chunks_mut(width)) {
            let norm = norm.mean.iter().zip(&norm.scale).zip(&norm.shift);
            for ((&x, y), ((&mean, &scale), &shift)) in x.iter().zip(y).zip(norm) {
                y.write(clip((x - mean) * scale + shift, low, cap));
            }
        }
    }

    /// `sum_g += g` and `sum_gx += g (x - mean)`, `g` being `dy` before the activation.
    fn add_gradients<T>(
        dy: &[T],
        x: &[T],
        norm: &Normalise<T>,
        sum_g: &mut [T],
        sum_gx: &mut [T],
    ) {
        let (low, cap) = (norm.low, norm.cap);
        let width = norm.mean.len();
        let (mut dys, mut xs) = (dy.chunks_exact(2 * width), x.chunks_exact(2 * width));
        // Two pixels at a time: the vectors over channels are read, the sums written, half as often.
        for (dy, x) in (&mut dys).zip(&mut xs) {
            let ((dy_a, dy_b), (x_a, x_b)) = (dy.split_at(width), x.split_at(width));
            let pixels = dy_a.iter().zip(dy_b).zip(x_a.iter().zip(x_b));
            let norm = norm.mean.iter().zip(&norm.scale).zip(&norm.shift);
            let sums = sum_g.iter_mut().zip(sum_gx.iter_mut());
            for ((((&dy_a, &dy_b), (&x_a, &x_b)), ((&mean, &scale), &shift)), (sum_g, sum_gx)) in
                pixels.zip(norm).zip(sums)
            {
                let (a, b) = (x_a - mean, x_b - mean);
                let g_a = gate(dy_a, a * scale + shift, low, cap);
                let g_b = gate(dy_b, b * scale + shift, low, cap);
                *sum_g += g_a + g_b;
                *sum_gx += g_a * a + g_b * b;
            }
        }
        for (dy, x) in dys.remainder().chunks(width).zip(xs.remainder().chunks(width)) {
            let norm = norm.mean.iter().zip(&norm.scale).zip(&norm.shift);
            let sums = sum_g.iter_mut().zip(sum_gx.iter_mut());
            for (((&dy, &x), ((&mean, &scale), &shift)), (sum_g, sum_gx)) in
                dy.iter().zip(x).zip(norm).zip(sums)
            {
                let d = x - mean;
                let g = gate(dy, d * scale + shift, low, cap);
                *sum_g += g;
                *sum_gx += g * d;
            }
        }
    }

    /// `dx = scale g - a - b (x - mean)`, in the place of `dy`.
    fn apply_backward<T>(dy: &mut [T], x: &[T], norm: &Normalise<T>, a: &[T], b: &[T]) {
        let (low, cap) = (norm.low, norm.cap);
        let width = norm.mean.len();
        for (dy, x) in dy.chunks_mut(width).zip(x.chunks(width)) {
            let norm = norm.mean.iter().zip(&norm.scale).zip(&norm.shift);
            let through = a.iter().zip(b);
            for (((dy, &x), ((&mean, &scale), &shift)), (&a, &b)) in
                dy.iter_mut().zip(x).zip(norm).zip(through)
            {
                let d = x - mean;
                let g = gate(*dy, d * scale + shift, low, cap);
                *dy = scale * g - a - b * d;
            }
        }
    }

    /// `dx = scale g`, in the place of `dy`.
    fn apply_backward_running<T>(dy: &mut [T], x: &[T], norm: &Normalise<T>) {
        let (low, cap) = (norm.low, norm.cap);
        let width = norm.mean.len();
        for (dy, x) in dy.chunks_mut(width).zip(x.chunks(width)) {
            let norm = norm.mean.iter().zip(&norm.scale).zip(&norm.shift);
            for ((dy, &x), ((&mean, &scale), &shift)) in dy.iter_mut().zip(x).zip(norm) {
                *dy = scale * gate(*dy, (x - mean) * scale + shift, low, cap);
            }
        }
    }
}

/// Sums over pixels, two per channel and block of [`reduction_pixels`]: calls `f(start, end,
/// sum_1, sum_2)` for the elements of each block with zeroed, [`repeated`] sums, and returns
/// `[first; c] [second; c]` of block after block, in f64.
fn reduce<T: Real>(shape: Shape, f: impl Fn(usize, usize, &mut [T], &mut [T]) + Sync) -> Vec<f64> {
    let c = shape.c;
    let pixels = reduction_pixels(c);
    let mut sums = vec![0.0; shape.pixels().div_ceil(pixels) * 2 * c];
    for_blocks(shape.len(), &mut sums, 2 * c, |start, out| {
        let start = start / 2 * pixels;
        let end = (start + pixels * c).min(shape.len());
        let width = c * repeats(c);
        let mut sums = vec![T::zero(); 2 * width];
        let (first, second) = sums.split_at_mut(width);
        f(start, end, first, second);
        for (i, out) in out.iter_mut().enumerate() {
            let lanes = [&*first, &*second][i / c].iter().skip(i % c).step_by(c);
            *out = lanes.map(|v| v.f64()).sum();
        }
    });
    sums
}

/// Mean and sum of squared deviations of every channel.
pub(super) fn statistics<T: Real>(x: &[T], shape: Shape) -> (Vec<f64>, Vec<f64>) {
    let c = shape.c;
    let sums = reduce::<T>(shape, |start, end, sum, square| {
        add_deviations(&x[start..end], &repeated(&x[start..start + c]), sum, square);
    });
    let (mut mean, mut m2, mut count) = (vec![0.0; c], vec![0.0; c], 0.0);
    // Merging of two sets' moments (Chan, Golub and LeVeque 1979), block after block.
    let blocks = x.chunks(reduction_pixels(c) * c).zip(sums.chunks(2 * c));
    for (x, sums) in blocks {
        let n = (x.len() / c) as f64;
        let total = count + n;
        for i in 0..c {
            let (sum, square) = (sums[i], sums[c + i]);
            let delta = x[i].f64() + sum / n - mean[i];
            mean[i] += delta * (n / total);
            // `max` would turn a NaN into 0.
            let block = square - sum * sum / n;
            let block = if block < 0.0 { 0.0 } else { block };
            m2[i] += block + delta * delta * (count * n / total);
        }
        count = total;
    }
    (mean, m2)
}

pub(super) fn normalise<T: Real>(x: &Tensor, norm: &Normalise<T>) -> Result<Tensor> {
    let (shape, x) = (x.shape(), x.data::<T>());
    // SAFETY: `apply` writes as many elements as it reads, and gets as many of x as of y.
    let y = unsafe {
        written_by(shape.len(), block_of(shape.c), |start, y| {
            apply(&x[start..start + y.len()], y, norm);
        })
    };
    Tensor::from_vec(shape, y)
}

pub(super) fn vector<T: Real>(values: impl Iterator<Item = f64>) -> Result<Tensor> {
    let data: Vec<T> = values.map(T::of).collect();
    Tensor::from_vec(Shape::vector(data.len()), data)
}

/// Turns `dy` into `dx`; the arguments are checked.
pub(super) fn backward<T: Real>(
    dy: &mut Tensor,
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    saved: &Saved,
    activation: Activation,
    affine_grads: Option<(&mut Tensor, &mut Tensor)>,
) {
    let (shape, c) = (x.shape(), x.shape().c);
    let norm = Normalise::<T>::new(saved, affine, activation);
    let inv_std = saved.inv_std.data::<T>();
    let x = x.data::<T>();
    // Sums over all pixels of g and of g (x - mean).
    let mut sums = vec![0.0; 2 * c];
    if saved.batch || affine_grads.is_some() {
        let dy = dy.data::<T>();
        let blocks = reduce::<T>(shape, |start, end, sum_g, sum_gx| {
            add_gradients(&dy[start..end], &x[start..end], &norm, sum_g, sum_gx);
        });
        for block in blocks.chunks(2 * c) {
            for (sum, block) in sums.iter_mut().zip(block) {
                *sum += block;
            }
        }
    }
    let (sum_g, sum_gx) = sums.split_at(c);
    if let Some((dgamma, dbeta)) = affine_grads {
        for (i, dgamma) in dgamma.data_mut::<T>().iter_mut().enumerate() {
            *dgamma += T::of(sum_gx[i] * inv_std[i].f64());
        }
        for (dbeta, &sum) in dbeta.data_mut::<T>().iter_mut().zip(sum_g) {
            *dbeta += T::of(sum);
        }
    }
    let data = dy.data_mut::<T>();
    if saved.batch {
        // dx = scale g - a - b (x - mean): a = scale mean(g), b = scale mean(g xhat) inv_std
        let scale = |i: usize| norm.scale[i].f64() / shape.pixels() as f64;
        let a: Vec<T> = (0..c).map(|i| T::of(scale(i) * sum_g[i])).collect();
        let inv_var = |i: usize| inv_std[i].f64() * inv_std[i].f64();
        let b: Vec<T> = (0..c)
            .map(|i| T::of(scale(i) * sum_gx[i] * inv_var(i)))
            .collect();
        let (a, b) = (repeated(&a), repeated(&b));
        for_blocks(shape.len(), data, block_of(c), |start, dy| {
            apply_backward(dy, &x[start..start + dy.len()], &norm, &a, &b);
        });
    } else {
        for_blocks(shape.len(), data, block_of(c), |start, dy| {
            apply_backward_running(dy, &x[start..start + dy.len()], &norm);
        });
    }
}
