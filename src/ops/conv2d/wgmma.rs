//! Convolutions by `wgmma` (compute capability 9.0): which shapes they take, and how those are cut into tiles;
//! `launch.rs` has the launch. The kernel is `kernels/conv2d_wgmma.cu`, `kernels/halo.cuh` says how it walks.

use super::Conv2d;
use super::model::{Card, Times};
use crate::gpu::Gpu;
use crate::gpu::kernels::Dims;
use crate::tensor::{DType, Shape};

mod launch;
mod rings;
#[cfg(test)]
mod tests;
mod view;

use rings::Rings;
pub(super) use view::View;

/// Channels of a chunk, and bytes of them.
const CHUNK: usize = 32;
const SLAB_ROW: usize = 64;
/// Threads that multiply, in two warpgroups; a fragment's rows of a warpgroup.
const CONSUMERS: usize = 256;
/// Threads that add noise; bytes of what they keep in shared memory, and of what says which noise a pixel has.
const DISTURBERS: usize = 224;
const NOTES: usize = 736;
const SPOT: usize = 16;
const GROUP_ROWS: usize = 64;
/// Shared memory of a block, less its barriers.
const SHARED: usize = 226 * 1024;
const STAGING: usize = 2 * 8 * 2048;
/// Elements of packed weights that a box takes in a row: eight rows of a slab.
const LINE: usize = 256;
/// Most elements of a box in a dimension.
const MAX_BOX: usize = 256;

/// The family's name.
pub(super) const KERNEL: &str = "conv2d_wgmma";

/// The kernel's instances are numbered behind the blockings of `mma.sync`.
pub(super) const FIRST_BLOCKING: u32 = 7;

/// An instance of the kernel: rows of pixels of a thread, output channels of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instance {
    mt: usize,
    n: usize,
}

const THREE: [Instance; 3] = [
    Instance { mt: 2, n: 128 },
    Instance { mt: 4, n: 64 },
    Instance { mt: 2, n: 64 },
];
const THREE_STRIDED: [Instance; 1] = [Instance { mt: 1, n: 128 }];
const ONE: [Instance; 1] = [Instance { mt: 2, n: 128 }];

/// A convolution from `from` to `to`, forward or backward.
#[derive(Debug, Clone, Copy)]
pub(super) struct Problem {
    from: View,
    to: View,
    k: usize,
    /// The stride of a 3x3 kernel, forward.
    step: usize,
    /// Zeros before the first pixel that its first tap meets.
    pad: usize,
    groups: usize,
    backward: bool,
}

impl Problem {
    /// Whether the kernel takes it; the number of images does not matter.
    pub fn new(
        gpu: &Gpu,
        dtype: DType,
        backward: bool,
        x: Shape,
        w: Shape,
        y: Shape,
        conv: Conv2d,
    ) -> Option<Problem> {
        runs_on(gpu, dtype)
            .then(|| Problem::of_shapes(backward, x, w, y, conv))
            .flatten()
    }

    pub fn of_shapes(
        backward: bool,
        x: Shape,
        w: Shape,
        y: Shape,
        conv: Conv2d,
    ) -> Option<Problem> {
        let k = w.h;
        let strides = match (k, backward) {
            (1, _) => 1..=usize::MAX,
            (3, false) => 1..=2,
            (3, true) => 1..=1,
            _ => return None,
        };
        if !strides.contains(&conv.stride) || conv.pad >= k {
            return None;
        }
        let (x, step) = View::under(x, y, k, conv);
        let (from, to, pad) = match backward {
            false => (x, View::whole(y), conv.pad),
            true => (View::whole(y), x, k - 1 - conv.pad),
        };
        let (from_group, to_group) = (from.seen.c / conv.groups, to.seen.c / conv.groups);
        // 16 bytes at a time; a chunk of zeros and a quarter of a tile's columns may be idle, not more.
        let channels = from_group.is_multiple_of(8)
            && to_group.is_multiple_of(8)
            && from_group >= CHUNK
            && to_group >= CHUNK
            && (conv.groups == 1 || from_group.is_multiple_of(CHUNK));
        (channels && counts(from.whole) && counts(to.whole)).then_some(Problem {
            from,
            to,
            k,
            step,
            pad,
            groups: conv.groups,
            backward,
        })
    }

    fn columns(&self) -> usize {
        self.to.seen.c / self.groups
    }

    fn chunks(&self) -> usize {
        (self.from.seen.c / self.groups).div_ceil(CHUNK)
    }

    /// The instances that may have a cut, numbered on from FIRST_BLOCKING.
    fn instances(&self) -> &'static [Instance] {
        match (self.k, self.step) {
            (1, _) => &ONE,
            (_, 1) => &THREE,
            _ => &THREE_STRIDED,
        }
    }

    /// Whether taps that lie outside of the image for a whole warpgroup are passed over.
    fn passes_over(&self) -> bool {
        self.k == 3 && self.step == 1
    }

    fn slab_rows(&self) -> usize {
        self.columns().next_multiple_of(32)
    }

    /// The cheapest cut on a device of so many multiprocessors. With a 2x2 max pool behind it there may be none, or it
    /// may be cheaper to pool by a pass of its own: then `None`. Only by the instance of this number, where it has a cut.
    pub fn plan(&self, multiprocessors: usize, pool: bool, blocking: Option<u32>) -> Option<Plan> {
        let instances = self.instances();
        let instance = |number: u32| instances.get(number.checked_sub(FIRST_BLOCKING)? as usize);
        let only = blocking.and_then(instance);
        if only.is_some() {
            let found = self.best(only.into_iter(), multiprocessors, pool);
            if found.is_some() {
                return found;
            }
        }
        let found = self.best(instances.iter(), multiprocessors, pool)?;
        if pool {
            let apart = self.best(instances.iter(), multiprocessors, false)?;
            let [pooled, plain] = [found, apart].map(|plan| plan.clocks(multiprocessors, false));
            let cheap = pooled <= plain + self.pool_clocks(multiprocessors);
            return cheap.then_some(found);
        }
        Some(found)
    }

    /// What a pool costs as a pass of its own: a launch of two microseconds, and the result written and read once
    /// more. An H100 copies 12.8 bytes a clock and multiprocessor.
    fn pool_clocks(&self, multiprocessors: usize) -> u64 {
        let bytes = 2 * 2 * self.to.seen.len();
        3500 + (bytes as f64 / (12.8 * multiprocessors as f64)) as u64
    }

    /// Numbers of the instances that may have a cut.
    pub fn numbers(&self) -> std::ops::Range<u32> {
        FIRST_BLOCKING..FIRST_BLOCKING + self.instances().len() as u32
    }

    fn best<'a>(
        &self,
        instances: impl Iterator<Item = &'a Instance>,
        multiprocessors: usize,
        pool: bool,
    ) -> Option<Plan> {
        let plans = instances.flat_map(|&instance| {
            let most = CONSUMERS / 2;
            let to = self.to.seen;
            let cols = cuts(to.w, most);
            cols.flat_map(move |cols| {
                let bands = cuts(to.h.div_ceil(instance.mt), most / cols);
                bands.flat_map(move |bands| {
                    let images = (most / (bands * cols)).min(to.n);
                    let halves = std::iter::successors(Some(images), |&n| (n > 1).then_some(n / 2));
                    halves.filter_map(move |images| Plan::new(*self, instance, images, bands, cols))
                })
            })
        });
        plans
            .filter(|plan| !pool || plan.pools())
            // With noise the cut is the same: networks draw it elsewhere.
            .min_by_key(|plan| plan.clocks(multiprocessors, false))
    }
}

/// Whether a device runs the family's machine code on this type: that of 9.0 runs there alone.
pub(super) fn runs_on(gpu: &Gpu, dtype: DType) -> bool {
    gpu.properties().capability == (9, 0) && matches!(dtype, DType::BF16 | DType::F16)
}

/// Whether the kernels can count a tensor's pixels and a row's values.
pub(super) fn counts(s: Shape) -> bool {
    s.h < 1 << 15 && s.w < 1 << 15 && s.row_len() < 1 << 31 && s.pixels() < 1 << 31
}

/// As the kernels take it, of a shape that they can count.
pub(super) fn dims(s: Shape) -> Dims {
    Dims {
        n: s.n as u32,
        h: s.h as u32,
        w: s.w as u32,
        c: s.c as u32,
    }
}

/// Sizes of equal parts of `len`, none larger than `most`, each once.
pub(super) fn cuts(len: usize, most: usize) -> impl Iterator<Item = usize> {
    let mut last = 0;
    (1..=len)
        .map(move |count| len.div_ceil(count))
        .filter(move |&size| size <= most && std::mem::replace(&mut last, size) != size)
        .take(8)
}

/// A tile and its space in shared memory.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Plan {
    problem: Problem,
    instance: Instance,
    images: usize,
    /// Of `mt` rows each.
    bands: usize,
    cols: usize,
    rows_before: usize,
    cols_before: usize,
    patch_rows: usize,
    patch_cols: usize,
}

impl Plan {
    /// A tile of this size; `None` if its patch does not fit.
    fn new(
        problem: Problem,
        instance: Instance,
        images: usize,
        bands: usize,
        cols: usize,
    ) -> Option<Plan> {
        let Problem { k, step, pad, .. } = problem;
        let (from, to) = (problem.from.seen, problem.to.seen);
        let rows = bands * instance.mt;
        let full = images * bands * cols == CONSUMERS / 2 && problem.passes_over() && pad == 1;
        // Where all pixels of a warpgroup have one row (or column), its taps outside of the image are passed over,
        // and the patch needs no zeros there.
        let bare_rows =
            full && rows == from.h && rows == to.h && (images * cols).is_multiple_of(GROUP_ROWS);
        let bare_cols = full && cols == from.w && cols == to.w && images.is_multiple_of(GROUP_ROWS);
        let around = |bare: bool| if bare { (0, 0) } else { (pad, k - 1) };
        let (rows_before, more_rows) = around(bare_rows);
        let (cols_before, more_cols) = around(bare_cols);
        let plan = Plan {
            problem,
            instance,
            images,
            bands,
            cols,
            rows_before,
            cols_before,
            patch_rows: step * (rows - 1) + 1 + more_rows,
            patch_cols: step * (cols - 1) + 1 + more_cols,
        };
        if plan.patch_rows > MAX_BOX || plan.patch_cols > MAX_BOX {
            return None;
        }
        // On any device, with noise too.
        plan.rings(1, plan.noise_bytes(true)).map(|_| plan)
    }

    /// Whether a warp holds all four pixels of a window of the pool.
    fn pools(&self) -> bool {
        self.cols.is_multiple_of(2) && matches!(self.images, 1 | 2 | 4 | 8)
    }

    fn rows(&self) -> usize {
        self.bands * self.instance.mt
    }

    fn patch_pixels(&self) -> usize {
        self.images * self.patch_rows * self.patch_cols
    }

    fn patch_bytes(&self) -> usize {
        (self.patch_pixels() * SLAB_ROW).next_multiple_of(1024)
    }

    fn stage_bytes(&self) -> usize {
        self.problem.k * self.instance.n * SLAB_ROW
    }

    /// Pieces of a patch that a thread adds noise to, at most.
    fn pieces(&self) -> usize {
        (self.patch_pixels() * 4).div_ceil(DISTURBERS)
    }

    /// Of shared memory where noise is added to the result, or also to the input: eight pixels of each warp for each piece
    /// of a thread.
    fn noise_bytes(&self, input: bool) -> usize {
        let spots = self.pieces() * (DISTURBERS / 4) * SPOT;
        NOTES + if input { spots } else { 0 }
    }

    fn shared(&self, rings: &Rings) -> usize {
        rings.stages * self.stage_bytes() + rings.patches * self.patch_bytes() + STAGING
    }

    fn group_blocks(&self) -> usize {
        self.problem.columns().div_ceil(self.instance.n)
    }

    /// Tiles: of images, down, across, columns.
    fn tiles(&self) -> [usize; 4] {
        let to = self.problem.to.seen;
        [
            to.n.div_ceil(self.images),
            to.h.div_ceil(self.rows()),
            to.w.div_ceil(self.cols),
            self.group_blocks() * self.problem.groups,
        ]
    }

    fn tile_count(&self) -> usize {
        self.tiles().iter().product()
    }

    /// Products (of 64 pixels by `n` by 16) of a chunk's half in both warpgroups of a tile, on average, of those that
    /// the kernel does not pass over.
    fn products(&self) -> f64 {
        let Problem { k, pad, .. } = self.problem;
        let from = self.problem.from.seen;
        let [_, down, across, _] = self.tiles();
        let mt = self.instance.mt;
        let used = self.images * self.bands * self.cols;
        let all = !self.problem.passes_over();
        let meets = |span: (usize, usize), origin: usize, f: usize, size: usize| {
            all || origin + span.1 + f >= pad && origin + span.0 + f < pad + size
        };
        let mut total = 0;
        for m0 in [0, GROUP_ROWS] {
            if m0 >= used {
                continue;
            }
            let m1 = (m0 + GROUP_ROWS - 1).min(used - 1);
            let [first, last] = [m0, m1].map(|m| m / self.images);
            let bands = (first / self.cols, last / self.cols);
            let rows = (bands.0 * mt, bands.1 * mt);
            let cols = match bands.0 == bands.1 {
                true => (first % self.cols, last % self.cols),
                false => (0, self.cols - 1),
            };
            // Rows and columns are passed over independently of each other.
            let taps = (0..across)
                .map(|a| {
                    (0..k)
                        .filter(|&v| meets(cols, a * self.cols, v, from.w))
                        .count()
                })
                .sum::<usize>();
            let passed = |origin, f| usize::from(!meets(rows, origin, f, from.h));
            let lines = (0..down)
                .map(|d| d * self.rows())
                .map(|origin| mt * k - passed(origin, 0) - passed(origin, mt + k - 2))
                .sum::<usize>();
            total += taps * lines;
        }
        total as f64 / (down * across) as f64
    }

    /// What limits a tile, in clocks of one of so many multiprocessors.
    fn limits(&self, multiprocessors: usize) -> Limits {
        let Instance { mt, n } = self.instance;
        let Problem { k, step, .. } = self.problem;
        let chunks = self.problem.chunks() as f64;
        let products = 2.0 * self.products() * chunks;
        // 16 channels of 64 pixels are 2 KB, those of n weights 32 n bytes; what is copied is written once more.
        let fragments = (2 * 2 * k * (step * (mt - 1) + k)) as f64 * chunks * 2048.0;
        // Of the images and columns that lie one behind the other; with a stride every other one does.
        let row = self.images * if step == 1 { self.cols } else { 1 };
        let conflicts = match row.is_multiple_of(8) {
            true => 1.0,
            false if step == 1 => 1.5,
            false => 2.0,
        };
        let normals = chunks * (self.patch_pixels() * CHUNK) as f64;
        let weights = (self.steps() * self.stage_bytes()) as f64;
        let weights = match self.rings(multiprocessors, 0) {
            Some(Rings {
                blocks, stay: true, ..
            }) => weights / self.tile_count().div_ceil(blocks) as f64,
            _ => weights,
        };
        let copied = chunks * (self.patch_pixels() * SLAB_ROW) as f64 + weights;
        Limits {
            tensor: products * n as f64 / 2.0,
            shared: (fragments * conflicts + products * (32 * n) as f64 + copied) / 128.0,
            // 7.7 TB/s, measured on an H100, over 132 multiprocessors at 1.75 GHz.
            l2: copied / 33.0,
            // Two MUFU a normal, 16 a clock.
            mufu: normals / 8.0,
            // Seven warps, each waiting for its own arithmetic: measured on an H100.
            noise: normals / 1.4,
            // What no product runs beside: filling the pipeline, writing the tile.
            overhead: 700.0 + (mt * n) as f64 * 4.0,
        }
    }

    fn clocks(&self, multiprocessors: usize, noise: bool) -> u64 {
        let (limits, tiles) = (self.limits(multiprocessors), self.tile_count());
        // MUFU counts without noise too: it stands for the size of the patches, and the cuts that it leads to were the
        // fastest of those measured (1x1 kernels' are all alike). What is nearly as busy as the busiest is not free.
        let drawing = match noise {
            true => limits.noise,
            false if self.problem.k == 1 => 0.0,
            false => limits.mufu,
        };
        let parts = [limits.tensor, limits.shared, limits.l2, drawing];
        let busiest = parts
            .iter()
            .map(|part| part.powi(4))
            .sum::<f64>()
            .sqrt()
            .sqrt();
        (tiles.div_ceil(multiprocessors) as f64 * (busiest + limits.overhead)) as u64
    }

    /// The number of the instance, and a tile's rows and columns of the product.
    pub fn blocking(&self) -> (u32, [usize; 2]) {
        let mut instances = self.problem.instances().iter();
        let at = instances.position(|i| *i == self.instance);
        let Instance { mt, n } = self.instance;
        let number = FIRST_BLOCKING + at.unwrap_or_default() as u32;
        (number, [2 * GROUP_ROWS * mt, n])
    }

    /// Images, rows and columns of a tile.
    pub fn tile(&self) -> [usize; 3] {
        [self.images, self.rows(), self.cols]
    }

    /// What the model says of it on a card, with noise or not.
    pub fn times(&self, card: &Card, noise: bool, bytes: f64) -> Times {
        let (limits, tiles) = (self.limits(card.multiprocessors), self.tile_count());
        let each = tiles as f64 / (card.multiprocessors as f64 * card.clock);
        let mufu = if noise { limits.mufu } else { 0.0 };
        let mut times = Times {
            tensor: limits.tensor * each,
            // Twelve and a half instructions a normal, of 32 threads, four a clock; the rest is the products'.
            issue: mufu * 8.0 * 12.5 / 128.0 * each,
            mufu: mufu * each,
            shared: limits.shared * each,
            l2: limits.l2 * 33.0 * tiles as f64 / card.l2,
            memory: bytes / card.memory,
            blocks: self.clocks(card.multiprocessors, noise) as f64 / card.clock,
            resident: 1,
            waves: tiles as f64 / card.multiprocessors as f64,
        };
        let pipes = [times.tensor, times.issue, times.mufu, times.shared];
        times.blocks = pipes.into_iter().fold(times.blocks, f64::max);
        times
    }

    /// Parts in which the batch norm's statistics come: a warp's pixels of a tile.
    pub fn chunks(&self) -> usize {
        self.tiles()[..3].iter().product::<usize>() * (CONSUMERS / 32)
    }
}

/// Clocks of a tile by what it needs.
#[derive(Debug, Clone, Copy)]
struct Limits {
    tensor: f64,
    shared: f64,
    l2: f64,
    mufu: f64,
    noise: f64,
    overhead: f64,
}
