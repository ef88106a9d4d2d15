//! The weight gradient: a sum of outer products over pixels.
//!
//! ```text
//! dw[o, u, v, c] = sum over n, i, j of dy[n, i, j, o] x[n, i stride - pad + u, j stride - pad + v, c]
//! ```
//!
//! A task takes some of the images and a block of input channels; it copies that part of the
//! input once, with noise. A register tile is a few output channels by the block, its sum runs
//! over pixels: both operands are read as they lie, nothing is transposed. Tasks write partial
//! sums, which are added in order; how the images are split depends on the shapes alone.

use std::ops::Range;

use rayon::prelude::*;

use super::Conv2d;
use super::operand::{Operand, Window};
use crate::ops::isa::Isa;
use crate::ops::tile::{Block, Element, MAX_ROWS, Purpose, Run, Scratch, Start, Tile, blocks};
use crate::tensor::Shape;

/// Tasks worth having, so that many cores find work.
const TASKS: usize = 16;

/// Elements that all partial sums together may take, unless one set takes more.
const PARTIAL_LEN: usize = 2 << 20;

/// Elements of one copy of the input.
const PATCH_LEN: usize = 128 << 10;

/// Pixels that all tiles go over before the next pixels are read.
const PIXELS: usize = 512;

/// Lanes up to which a kernel row's columns and channels are taken as one block of lanes.
const JOINED_LANES: usize = 64;

/// Columns of the gradient that one task computes.
#[derive(Clone, Copy)]
struct Lanes<T> {
    group: usize,
    block: Block<T>,
}

/// The shapes of one call and what follows from them.
struct Plan<'a, T> {
    dy: &'a [T],
    y: Shape,
    x: &'a Operand<'a, T>,
    w: Shape,
    conv: Conv2d,
    /// With few channels, the lanes of a block are the columns and channels `(v, c)` of a kernel
    /// row; else they are channels.
    joined: bool,
}

/// Some images, a block of lanes, and the sums over them: `[c_out / groups, taps, lanes]`.
struct Task<'a, T> {
    images: Range<usize>,
    lanes: Lanes<T>,
    partial: &'a mut [T],
    /// Column sums of `dy` over the images.
    db: Option<&'a mut [T]>,
}

/// Adds the gradients in w and b to `dw` and `db`.
#[allow(clippy::too_many_arguments)]
pub(super) fn weight_grad<T: Element>(
    isa: Isa,
    dy: &[T],
    y: Shape,
    x: &Operand<'_, T>,
    dw: &mut [T],
    w: Shape,
    db: Option<&mut [T]>,
    conv: Conv2d,
) {
    let joined = conv.groups == 1 && w.h > 1 && w.w * w.c <= JOINED_LANES;
    let plan = Plan {
        dy,
        y,
        x,
        w,
        conv,
        joined,
    };
    let columns = if joined { w.w * w.c } else { w.c };
    let blocks = blocks(T::kernels(isa), columns);
    let lanes: Vec<Lanes<T>> = (0..conv.groups)
        .flat_map(|group| blocks.iter().map(move |&block| Lanes { group, block }))
        .collect();
    let lens: Vec<usize> = lanes.iter().map(|l| plan.partial_len(l)).collect();
    let set: usize = lens.iter().sum();
    let splits = TASKS
        .div_ceil(lanes.len())
        .min(PARTIAL_LEN / set)
        .clamp(1, y.n);

    let mut partial = Scratch::take(Purpose::Partial);
    let partial = partial.get::<T>(splits * set);
    let mut db_partial = vec![T::zero(); if db.is_some() { splits * y.c } else { 0 }];
    let mut db_splits = db_partial.chunks_exact_mut(y.c);
    let mut tasks = Vec::with_capacity(splits * lanes.len());
    let mut rest = &mut *partial;
    for split in 0..splits {
        let mut db = db_splits.next();
        for (&lanes, &len) in lanes.iter().zip(&lens) {
            let (mine, tail) = rest.split_at_mut(len);
            rest = tail;
            tasks.push(Task {
                images: split * y.n / splits..(split + 1) * y.n / splits,
                lanes,
                partial: mine,
                db: db.take(),
            });
        }
    }
    tasks.into_par_iter().for_each(|task| plan.compute(task));

    if let Some(db) = db {
        for split in db_partial.chunks_exact(y.c) {
            add(db, split);
        }
    }
    let starts: Vec<usize> = lens
        .iter()
        .scan(0, |at, len| {
            *at += len;
            Some(*at - len)
        })
        .collect();
    let c_group = w.n / conv.groups;
    dw.par_chunks_mut(w.row_len())
        .enumerate()
        .for_each(|(o, dw)| {
            let (group, row) = (o / c_group, o % c_group);
            for (lanes, start) in lanes.iter().zip(&starts).filter(|(l, _)| l.group == group) {
                let Block {
                    kernel,
                    first,
                    width,
                } = lanes.block;
                for tap in 0..plan.taps() {
                    let dw = &mut dw[tap * columns + first..][..width];
                    for split in 0..splits {
                        let at = split * set + start + (row * plan.taps() + tap) * kernel.cols;
                        add(dw, &partial[at..][..width]);
                    }
                }
            }
        });
}

/// `to += from`.
fn add<T: Element>(to: &mut [T], from: &[T]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to += from;
    }
}

/// The output pixels `0..count` for which tap `u` meets the `size` input pixels.
fn reached(u: usize, size: usize, count: usize, conv: Conv2d) -> Range<usize> {
    let Conv2d { stride, pad, .. } = conv;
    // 0 <= i stride - pad + u < size
    let low = pad.saturating_sub(u).div_ceil(stride);
    let high = (size + pad).saturating_sub(u).div_ceil(stride).min(count);
    low.min(high)..high
}

/// Images copied together and how they lie: pixel `(image, row, col)` of the window at
/// `image * image_step + (row * cols + col) * pixel_step`.
struct Layout {
    window: Window,
    images: usize,
    image_step: usize,
    pixel_step: usize,
    len: usize,
    /// Whether sums run over the images at a pixel, rather than over the pixels of a row.
    across: bool,
}

impl<T: Element> Plan<'_, T> {
    /// Kernel pixels that have sums of their own.
    fn taps(&self) -> usize {
        if self.joined {
            self.w.h
        } else {
            self.w.h * self.w.w
        }
    }

    fn partial_len(&self, lanes: &Lanes<T>) -> usize {
        self.w.n / self.conv.groups * self.taps() * lanes.block.kernel.cols
    }

    fn layout(&self, images: usize, lanes: &Lanes<T>) -> Layout {
        let Conv2d { stride, pad, .. } = self.conv;
        let window = Window {
            top: -(pad as isize),
            left: -(pad as isize),
            rows: (self.y.h - 1) * stride + self.w.h,
            cols: (self.y.w - 1) * stride + self.w.w,
        };
        let cols = lanes.block.kernel.cols;
        let pixels = window.rows * window.cols;
        let pixel = if self.joined { self.w.c } else { cols };
        let together = (PATCH_LEN / (pixels * pixel)).clamp(1, images);
        let images = images.div_ceil(images.div_ceil(together));
        let across = !self.joined && images > 2 * self.y.w;
        Layout {
            window,
            images,
            image_step: if across { pixel } else { pixels * pixel },
            pixel_step: if across { images * pixel } else { pixel },
            // Joined lanes of the last pixels reach beyond the last pixel.
            len: images * pixels * pixel + cols,
            across,
        }
    }

    fn compute(&self, mut task: Task<'_, T>) {
        if let Some(db) = task.db.take() {
            // Sums of sums: a few rows at a time, for accuracy.
            let row_len = self.y.row_len();
            let mut part = vec![T::zero(); self.y.c];
            let dy = &self.dy[task.images.start * row_len..task.images.end * row_len];
            for rows in dy.chunks(64 * self.y.c) {
                part.fill(T::zero());
                rows.chunks_exact(self.y.c)
                    .for_each(|row| add(&mut part, row));
                add(db, &part);
            }
        }
        let layout = self.layout(task.images.len(), &task.lanes);
        let mut patch = Scratch::take(Purpose::Patch);
        let patch = patch.get::<T>(layout.len);
        let mut stage = Scratch::take(Purpose::Stage);
        let stage = stage.get::<T>(self.x.shape.w * self.x.shape.c);
        let mut runs = Vec::new();
        let mut started = false;
        for first in task.images.clone().step_by(layout.images) {
            let images = first..task.images.end.min(first + layout.images);
            for (at, image) in images.clone().enumerate() {
                self.copy(
                    image,
                    &task.lanes,
                    &layout,
                    stage,
                    &mut patch[at * layout.image_step..],
                );
            }
            // Blocks of whole rows, of one image or of all of them.
            let per_row = self.y.w * if layout.across { images.len() } else { 1 };
            let rows = (PIXELS / per_row).clamp(1, self.y.h);
            let together = match layout.across {
                true => images.len(),
                false => (PIXELS / (per_row * rows)).clamp(1, images.len()),
            };
            for block_images in (0..images.len()).step_by(together) {
                let block_images = block_images..images.len().min(block_images + together);
                for row in (0..self.y.h).step_by(rows) {
                    let block_rows = row..self.y.h.min(row + rows);
                    for tap in 0..self.taps() {
                        let at = (block_images.clone(), block_rows.clone());
                        self.runs(tap, first, at, &layout, &mut runs);
                        if !started || !runs.is_empty() {
                            self.tiles(&mut task, tap, &runs, patch, &layout, started);
                        }
                    }
                    started = true;
                }
            }
        }
    }

    fn copy(&self, image: usize, lanes: &Lanes<T>, layout: &Layout, stage: &mut [T], to: &mut [T]) {
        if self.joined {
            let len = layout.window.rows * layout.window.cols * self.w.c;
            return self.x.copy(image, layout.window, |_| true, &mut to[..len]);
        }
        let Block {
            kernel,
            first,
            width,
        } = lanes.block;
        let channels = (lanes.group * self.w.c + first, width);
        let step = layout.pixel_step;
        self.x
            .copy_channels(image, layout.window, channels, kernel.cols, step, stage, to);
    }

    /// The runs of one tap over a block of images (counted in the patch, whose first image is
    /// `first`) and of output rows, without the pixels at which the tap meets padding.
    fn runs(
        &self,
        tap: usize,
        first: usize,
        (images, rows): (Range<usize>, Range<usize>),
        layout: &Layout,
        runs: &mut Vec<Run>,
    ) {
        runs.clear();
        let (u, v) = match self.joined {
            true => (tap, 0),
            false => (tap / self.w.w, tap % self.w.w),
        };
        let stride = self.conv.stride;
        let in_rows = reached(u, self.x.shape.h, self.y.h, self.conv);
        let in_cols = match self.joined {
            // The columns of a kernel row meet the zero border at different pixels.
            true => 0..self.y.w,
            false => reached(v, self.x.shape.w, self.y.w, self.conv),
        };
        if in_cols.is_empty() {
            return;
        }
        let run = |image: usize, i: usize, j: usize, len: usize| {
            let pixel = (i * stride + u) * layout.window.cols + j * stride + v;
            Run {
                a: (((first + image) * self.y.h + i) * self.y.w + j) * self.y.c,
                b: image * layout.image_step + pixel * layout.pixel_step,
                len,
            }
        };
        let rows = rows.start.max(in_rows.start)..rows.end.min(in_rows.end);
        if layout.across {
            for i in rows {
                runs.extend(
                    in_cols
                        .clone()
                        .map(|j| run(images.start, i, j, images.len())),
                );
            }
        } else {
            for image in images {
                runs.extend(
                    rows.clone()
                        .map(|i| run(image, i, in_cols.start, in_cols.len())),
                );
            }
        }
    }

    /// All output channels of one tap.
    fn tiles(
        &self,
        task: &mut Task<'_, T>,
        tap: usize,
        runs: &[Run],
        patch: &[T],
        layout: &Layout,
        started: bool,
    ) {
        let Block {
            kernel,
            first: lane,
            ..
        } = task.lanes.block;
        let outputs = self.w.n / self.conv.groups;
        let channel = task.lanes.group * outputs;
        let zeros = [T::zero(); crate::ops::tile::MAX_COLS];
        let (a_step, b_step) = match layout.across {
            true => (self.y.row_len(), layout.image_step),
            false => (self.y.c, self.conv.stride * layout.pixel_step),
        };
        // Joined lanes are found behind the pixel, channels were copied from their first.
        let lane = if self.joined { lane } else { 0 };
        for first in (0..outputs).step_by(kernel.rows) {
            let mut a_rows = [0; MAX_ROWS];
            let mut c_rows = [0; MAX_ROWS];
            for m in 0..kernel.rows {
                let o = (first + m).min(outputs - 1);
                a_rows[m] = channel + o;
                c_rows[m] = (o * self.taps() + tap) * kernel.cols;
            }
            let tile = Tile {
                a: self.dy,
                a_rows,
                a_step,
                b: &patch[lane..],
                b_step,
                runs,
                start: match started {
                    true => Start::Resume,
                    false => Start::From(&zeros),
                },
            };
            kernel.run(&tile, task.partial, &c_rows, kernel.cols);
        }
    }
}
