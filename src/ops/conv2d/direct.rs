//! The direct convolution under forward and input gradient.
//!
//! A task takes a few images, or a band of rows of a large one, with all output channels. It
//! copies its window of the input once, with the zero border and with noise, then lets register
//! tiles of a few pixels by a block of output channels run over kernel rows, kernel columns and
//! channels. A tile leaves out the taps that meet only padding at all of its pixels; adding their
//! zeros would not change the sums. Of a 3 x 3 kernel on 4 x 4 pixels that leaves 100 of 144 taps.

use std::ops::Range;

use rayon::prelude::*;

use super::Conv2d;
use super::operand::{Operand, Window};
use crate::ops::isa::Isa;
use crate::ops::tile::{
    Block, Element, MAX_ROWS, Purpose, Run, Scratch, Start, Tile, Unset, blocks, collect,
};
use crate::tensor::Shape;

/// Elements of one task's copy of the input: what stays in a core's second-level cache beside
/// the weights.
const PATCH_LEN: usize = 192 << 10;

/// Elements of the weights that one sweep over the task's pixels uses.
const PANEL_LEN: usize = 40 << 10;

/// A convolution from windows of the source to a regular grid of pixels of the destination:
///
/// ```text
/// y[row + i grid, col + j grid, o] =
///     sum over u < kh, v < kw, c of x[top + i step + u, left + j step + v, c] w[o, u, v, c]
/// ```
pub(super) struct Part<T> {
    pub kh: usize,
    pub kw: usize,
    /// Source pixel under tap (0, 0) of grid pixel (0, 0); may lie outside of the source.
    pub top: isize,
    pub left: isize,
    /// Source pixels between grid pixels.
    pub step: usize,
    /// Grid pixels.
    pub rows: usize,
    pub cols: usize,
    /// Destination pixel of grid pixel (0, 0).
    pub row: usize,
    pub col: usize,
    /// Destination pixels between grid pixels.
    pub grid: usize,
    pub weights: Packed<T>,
}

/// Weights of all groups, cut into blocks of output channels: `[group][block][u, v, c][lane]`.
pub(super) struct Packed<T> {
    /// The blocks of one group's output channels.
    blocks: Vec<Block<T>>,
    /// Taps times input channels of a group.
    depth: usize,
    /// Length of one group's panels.
    group_len: usize,
    data: Scratch,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Packed<T> {
    /// Packs the weights of `groups` groups of `cols` output channels. `fill` writes a range of
    /// the depth of one block, `[depth, lanes]`; it is given the group, the block and the range.
    pub fn new(
        isa: Isa,
        groups: usize,
        cols: usize,
        depth: usize,
        fill: impl Fn(usize, &Block<T>, Range<usize>, &mut [T]) + Sync,
    ) -> Self {
        const SLICE: usize = 128;
        let blocks = blocks(T::kernels(isa), cols);
        let group_len = depth * blocks.iter().map(|b| b.kernel.cols).sum::<usize>();
        let mut data = Scratch::take(Purpose::Weights);
        let mut rest = data.get::<T>(groups * group_len);
        let mut pieces = Vec::new();
        for group in 0..groups {
            for block in &blocks {
                for from in (0..depth).step_by(SLICE) {
                    let range = from..depth.min(from + SLICE);
                    let (piece, tail) = rest.split_at_mut(range.len() * block.kernel.cols);
                    rest = tail;
                    pieces.push((group, block, range, piece));
                }
            }
        }
        pieces
            .into_par_iter()
            .for_each(|(group, block, range, piece)| fill(group, block, range, piece));
        Packed {
            blocks,
            depth,
            group_len,
            data,
            element: std::marker::PhantomData,
        }
    }

    fn all(&self) -> &[T] {
        self.data.filled()
    }
}

/// `y = conv(x, w) + b`, dense `[n, oh, ow, c_out]`.
pub(super) fn forward<T: Element>(
    isa: Isa,
    x: &Operand<'_, T>,
    w: &[T],
    w_shape: Shape,
    b: Option<&[T]>,
    y_shape: Shape,
    conv: Conv2d,
) -> Vec<T> {
    let depth = w_shape.row_len();
    let cols = w_shape.n / conv.groups;
    let weights = Packed::new(isa, conv.groups, cols, depth, |group, block, range, to| {
        let rows = &w[(group * cols + block.first) * depth..];
        transpose(rows, depth, block.width, range, block.kernel.cols, to);
    });
    let part = Part {
        kh: w_shape.h,
        kw: w_shape.w,
        top: -(conv.pad as isize),
        left: -(conv.pad as isize),
        step: conv.stride,
        rows: y_shape.h,
        cols: y_shape.w,
        row: 0,
        col: 0,
        grid: 1,
        weights,
    };
    convolve(x, conv.groups, &[part], b, y_shape)
}

/// `to[k][lane] = rows[lane][range.start + k]`, 0 beyond `width` lanes.
fn transpose<T: Element>(
    rows: &[T],
    depth: usize,
    width: usize,
    range: Range<usize>,
    lanes: usize,
    to: &mut [T],
) {
    // Squares of one cache line by as many rows: whole lines are read and written.
    const SIDE: usize = 16;
    for from in range.clone().step_by(SIDE) {
        let count = SIDE.min(range.end - from);
        let to = &mut to[(from - range.start) * lanes..][..count * lanes];
        for lane in (0..lanes).step_by(SIDE) {
            let side = SIDE.min(lanes - lane);
            if count == SIDE && side == SIDE && lane + SIDE <= width {
                let square: [&[T; SIDE]; SIDE] = std::array::from_fn(|l| {
                    let row = &rows[(lane + l) * depth + from..][..SIDE];
                    row.try_into().expect("SIDE elements")
                });
                for (k, to) in to.chunks_exact_mut(lanes).enumerate() {
                    let line: [T; SIDE] = std::array::from_fn(|l| square[l][k]);
                    to[lane..][..SIDE].copy_from_slice(&line);
                }
            } else {
                for (k, to) in to.chunks_exact_mut(lanes).enumerate() {
                    for l in lane..lane + side {
                        to[l] = match l < width {
                            true => rows[l * depth + from + k],
                            false => T::zero(),
                        };
                    }
                }
            }
        }
    }
}

/// All parts of one convolution; destination pixels of no part are 0.
pub(super) fn convolve<T: Element>(
    x: &Operand<'_, T>,
    groups: usize,
    parts: &[Part<T>],
    b: Option<&[T]>,
    y_shape: Shape,
) -> Vec<T> {
    let call = Call {
        x,
        groups,
        b,
        y: y_shape,
    };
    collect(y_shape.len(), |y| {
        tasks(x.shape, parts, y_shape, y)
            .into_par_iter()
            .for_each(|task| {
                let y = task.y.zero();
                for part in parts {
                    call.compute(part, &task.images, &task.rows, y);
                }
            });
    })
}

/// What all tasks share.
struct Call<'a, T> {
    x: &'a Operand<'a, T>,
    groups: usize,
    b: Option<&'a [T]>,
    y: Shape,
}

/// Some images and some of their destination rows, the only ones of this task.
struct Task<'a, T> {
    images: Range<usize>,
    rows: Range<usize>,
    y: Unset<'a, T>,
}

/// Cuts the work so that a task's input fits a core's cache and every thread has some. The cut
/// changes no result.
fn tasks<'a, T: Element>(
    x: Shape,
    parts: &[Part<T>],
    y_shape: Shape,
    mut y: Unset<'a, T>,
) -> Vec<Task<'a, T>> {
    let patch = |part: &Part<T>| {
        let rows = (part.rows - 1) * part.step + part.kh;
        rows * ((part.cols - 1) * part.step + part.kw) * x.c
    };
    let image = parts.iter().map(patch).max().unwrap_or(1);
    let threads = rayon::current_num_threads();
    let most = (PATCH_LEN / image).clamp(1, x.n.div_ceil(threads));
    let groups = x.n.div_ceil(most);
    let bands = match most {
        1 => image
            .div_ceil(PATCH_LEN * 2)
            .max(threads.div_ceil(groups))
            .min(y_shape.h),
        _ => 1,
    };
    let mut tasks = Vec::with_capacity(groups * bands);
    for group in 0..groups {
        let images = group * x.n / groups..(group + 1) * x.n / groups;
        for band in 0..bands {
            let rows = band * y_shape.h / bands..(band + 1) * y_shape.h / bands;
            // With several bands there is one image, so that a task's part of y is one slice.
            let len = images.len() * rows.len() * y_shape.w * y_shape.c;
            let (mine, rest) = y.split_at(len);
            y = rest;
            let images = images.clone();
            tasks.push(Task {
                images,
                rows,
                y: mine,
            });
        }
    }
    tasks
}

/// One pixel of a task's grid.
#[derive(Clone, Copy)]
struct Pixel {
    /// Offset of its window in the patch.
    from: usize,
    /// Offset of its channels in the task's part of y.
    to: usize,
    /// Taps that meet the image.
    taps: Taps,
}

/// Ranges of kernel rows and columns.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Taps {
    u: (usize, usize),
    v: (usize, usize),
}

impl Taps {
    fn is_empty(&self) -> bool {
        self.u.0 >= self.u.1 || self.v.0 >= self.v.1
    }

    /// The smallest ranges that hold both.
    fn hull(self, other: Taps) -> Taps {
        if self.is_empty() {
            return other;
        }
        if other.is_empty() {
            return self;
        }
        let hull = |a: (usize, usize), b: (usize, usize)| (a.0.min(b.0), a.1.max(b.1));
        Taps {
            u: hull(self.u, other.u),
            v: hull(self.v, other.v),
        }
    }
}

/// The taps `0..taps` that meet pixels `0..size` when tap 0 lies at `first`.
fn inside(first: isize, taps: usize, size: usize) -> (usize, usize) {
    let low = (-first).max(0) as usize;
    let high = (size as isize - first).clamp(0, taps as isize) as usize;
    (low.min(taps), high)
}

/// The `count` pixels along an axis, cut into ranges of equal [`inside`] taps. Tap 0 of the first
/// pixel lies at `first`, of the next `step` further.
fn equal_taps(
    first: isize,
    step: usize,
    count: usize,
    taps: usize,
    size: usize,
) -> Vec<(Range<usize>, (usize, usize))> {
    let mut ranges: Vec<(Range<usize>, (usize, usize))> = Vec::new();
    for i in 0..count {
        let taps = inside(first + (i * step) as isize, taps, size);
        match ranges.last_mut() {
            Some((range, last)) if *last == taps => range.end = i + 1,
            _ => ranges.push((i..i + 1, taps)),
        }
    }
    ranges
}

/// A task's copy of its input.
struct Patch<'a, T> {
    data: &'a [T],
    /// Elements from one row to the next.
    pitch: usize,
}

impl<T: Element> Call<'_, T> {
    /// One part of the convolution, for the images and destination rows of one task.
    fn compute(
        &self,
        part: &Part<T>,
        task_images: &Range<usize>,
        task_rows: &Range<usize>,
        y: &mut [T],
    ) {
        // Grid rows that lie in the task's destination rows.
        let grid_row = |row: usize| row.saturating_sub(part.row).div_ceil(part.grid);
        let rows = grid_row(task_rows.start)..grid_row(task_rows.end).min(part.rows);
        if rows.is_empty() {
            return;
        }
        let c = self.x.shape.c;
        let window = Window {
            top: part.top + (rows.start * part.step) as isize,
            left: part.left,
            rows: (rows.len() - 1) * part.step + part.kh,
            cols: (part.cols - 1) * part.step + part.kw,
        };
        let pitch = window.cols * c;
        // An odd number of cache lines: equal pixels of several images then differ in their place
        // in the cache.
        let image_len = (window.rows * pitch).div_ceil(32) * 32 + 16;
        let mut scratch = Scratch::take(Purpose::Patch);
        let patch = scratch.get::<T>(task_images.len() * image_len);
        for (image, to) in task_images.clone().zip(patch.chunks_exact_mut(image_len)) {
            let read = |r: usize| r % part.step < part.kh;
            self.x
                .copy(image, window, read, &mut to[..window.rows * pitch]);
        }
        let patch = Patch { data: patch, pitch };

        // Pixels that meet the padding with the same taps come together, so that tiles can leave
        // out as many taps as single pixels could.
        let row_taps = equal_taps(window.top, part.step, rows.len(), part.kh, self.x.shape.h);
        let col_taps = equal_taps(window.left, part.step, part.cols, part.kw, self.x.shape.w);
        let mut pixels = Vec::with_capacity(task_images.len() * rows.len() * part.cols);
        for (some_rows, u) in &row_taps {
            for (some_cols, v) in &col_taps {
                for image in 0..task_images.len() {
                    for i in some_rows.clone() {
                        let row = part.row + (rows.start + i) * part.grid - task_rows.start;
                        let from = image * image_len + i * part.step * pitch;
                        let to = (image * task_rows.len() + row) * self.y.w + part.col;
                        pixels.extend(some_cols.clone().map(|j| Pixel {
                            from: from + j * part.step * c,
                            to: (to + j * part.grid) * self.y.c,
                            taps: Taps { u: *u, v: *v },
                        }));
                    }
                }
            }
        }
        self.tiles(part, &patch, &pixels, y);
    }

    /// All output channels of these pixels.
    fn tiles(&self, part: &Part<T>, patch: &Patch<'_, T>, pixels: &[Pixel], y: &mut [T]) {
        let depth = part.weights.depth;
        let cols = self.y.c / self.groups;
        let mut runs = Vec::new();
        let mut bias = [T::zero(); crate::ops::tile::MAX_COLS];
        for group in 0..self.groups {
            let panels = &part.weights.all()[group * part.weights.group_len..];
            let mut panel_at = 0;
            for block in &part.weights.blocks {
                let kernel = block.kernel;
                let panel = &panels[panel_at..][..depth * kernel.cols];
                panel_at += panel.len();
                let first = group * cols + block.first;
                if let Some(b) = self.b {
                    bias[..block.width].copy_from_slice(&b[first..][..block.width]);
                }
                let chunks = (depth * kernel.cols).div_ceil(PANEL_LEN);
                for chunk in 0..chunks {
                    let range = chunk * depth / chunks..(chunk + 1) * depth / chunks;
                    let mut taken = None;
                    for pixels in pixels.chunks(kernel.rows) {
                        let last = pixels.len() - 1;
                        let at = |m: usize| &pixels[m.min(last)];
                        let taps = pixels.iter().map(|p| p.taps).reduce(Taps::hull);
                        if taken != taps {
                            taken = taps;
                            self.runs(
                                part,
                                patch.pitch,
                                group,
                                taps,
                                &range,
                                kernel.cols,
                                &mut runs,
                            );
                        }
                        if chunk > 0 && runs.is_empty() {
                            continue;
                        }
                        let mut a_rows = [0; MAX_ROWS];
                        let mut c_rows = [0; MAX_ROWS];
                        for m in 0..kernel.rows {
                            a_rows[m] = at(m).from;
                            c_rows[m] = at(m).to + first;
                        }
                        let tile = Tile {
                            a: patch.data,
                            a_rows,
                            a_step: 1,
                            b: panel,
                            b_step: kernel.cols,
                            runs: &runs,
                            start: match chunk {
                                0 => Start::From(&bias),
                                _ => Start::Resume,
                            },
                        };
                        kernel.run(&tile, y, &c_rows, block.width);
                    }
                }
            }
        }
    }

    /// The runs over the part of `range` (of the depth `[u, v, c]`) that lies in `taps`. Without
    /// groups all channels of neighbouring taps are neighbours, in the patch as in the weights.
    #[allow(clippy::too_many_arguments)]
    fn runs(
        &self,
        part: &Part<T>,
        pitch: usize,
        group: usize,
        taps: Option<Taps>,
        range: &Range<usize>,
        lanes: usize,
        runs: &mut Vec<Run>,
    ) {
        runs.clear();
        let Some(taps) = taps.filter(|taps| !taps.is_empty()) else {
            return;
        };
        let c = self.x.shape.c;
        let c_group = c / self.groups;
        let (v0, v1) = taps.v;
        let joined = if self.groups == 1 { v1 - v0 } else { 1 };
        for u in taps.u.0..taps.u.1 {
            for v in (v0..v1).step_by(joined) {
                let first = (u * part.kw + v) * c_group;
                let from = first.max(range.start);
                let end = (first + joined * c_group).min(range.end);
                if from < end {
                    runs.push(Run {
                        a: u * pitch + v * c + group * c_group + (from - first),
                        b: from * lanes,
                        len: end - from,
                    });
                }
            }
        }
    }
}
