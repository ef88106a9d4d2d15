//! The weight gradient by `wgmma` (compute capability 9.0): which shapes it takes, how those are cut, and the
//! launch. The kernel is `kernels/conv2d_wgmma_weight_grad.cu`, `kernels/weight_wgmma.cuh` says how it walks.

use super::Conv2d;
use super::model::{Card, Times};
use super::wgmma::{View, counts, cuts, dims, runs_on};
use crate::error::Result;
use crate::gpu::kernels::WeightPatches;
use crate::gpu::kernels::conv2d_wgmma_weight_grad as kernels;
use crate::gpu::{Gpu, Ptr};
use crate::ops::spans::divisor;
use crate::tensor::{DType, Shape};

#[cfg(test)]
mod tests;

/// The family's name.
pub(super) const KERNEL: &str = "conv2d_wgmma_weight_grad";

/// Output channels that a warpgroup multiplies, and their bytes side by side in shared memory; at most so many input
/// channels lie there side by side.
const CHANNELS: usize = 64;
const ROW: usize = 128;
/// Of a block, less its barriers.
const SHARED: usize = 224 * 1024;
const MAX_STAGES: usize = 6;
/// Pixels of a tile, at most, and what divides those that lie one after the other; images that a tap of a 3x3 kernel
/// shifts as whole rows of the swizzle.
const MAX_PIXELS: usize = 256;
const STEP: usize = 32;
const IMAGES: usize = 8;
const MAX_BOX: usize = 256;
/// Most elements of all splits.
const PARTIAL: usize = 64 << 20;

/// A weight gradient.
#[derive(Debug, Clone, Copy)]
pub(super) struct Problem {
    x: View,
    y: Shape,
    k: usize,
    /// The stride of a 3x3 kernel.
    step: usize,
    pad: usize,
    groups: usize,
    bias: bool,
}

/// How it is cut.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Plan {
    problem: Problem,
    /// Input channels of a block.
    n: usize,
    images: usize,
    rows: usize,
    cols: usize,
    stages: usize,
    pub splits: usize,
    split_tiles: usize,
}

impl Problem {
    /// Whether the kernel takes it.
    pub fn new(
        gpu: &Gpu,
        dtype: DType,
        x: Shape,
        w: Shape,
        y: Shape,
        bias: bool,
        conv: Conv2d,
    ) -> Option<Problem> {
        runs_on(gpu, dtype)
            .then(|| Problem::of_shapes(x, w, y, bias, conv))
            .flatten()
    }

    pub fn of_shapes(x: Shape, w: Shape, y: Shape, bias: bool, conv: Conv2d) -> Option<Problem> {
        let k = w.h;
        let (group_in, group_out) = (x.c / conv.groups, y.c / conv.groups);
        // 16 bytes at a time; half of a block's channels may be idle, not more.
        let channels = x.c.is_multiple_of(8)
            && y.c.is_multiple_of(8)
            && group_in.is_multiple_of(8)
            && group_out.is_multiple_of(8)
            && group_in >= CHANNELS / 2
            && group_out >= CHANNELS / 2;
        let (seen, step) = View::under(x, y, k, conv);
        (matches!((k, step), (1, _) | (3, 1 | 2))
            && conv.pad < k
            && channels
            && counts(x)
            && counts(y))
        .then_some(Problem {
            x: seen,
            y,
            k,
            step,
            pad: conv.pad,
            groups: conv.groups,
            bias,
        })
    }

    fn group_in(&self) -> usize {
        self.x.seen.c / self.groups
    }

    fn group_out(&self) -> usize {
        self.y.c / self.groups
    }

    fn w_len(&self) -> usize {
        self.y.c * self.k * self.k * self.group_in()
    }

    /// The cheapest cut; `None` where every tile would be mostly empty.
    pub fn plan(&self, card: &Card) -> Option<Plan> {
        let (sizes, first): (&[usize], usize) = match self.k {
            3 => (&[32, 64], IMAGES),
            _ if self.group_in() > 128 => (&[256], 1),
            _ => (&[128], 1),
        };
        let most = MAX_PIXELS / first;
        // Besides equal parts what fills lines, with zeros behind the image where it has to be.
        let widths = cuts(self.y.w, most).chain([4, 8, 16, 32]);
        let mut plans = Vec::new();
        for cols in widths {
            for rows in cuts(self.y.h, most / cols) {
                let images = std::iter::successors(Some(first), |&i| Some(2 * i));
                // With a stride, sixteen pixels are the images of a column or of two.
                let fits = |i: usize| i * rows * cols <= MAX_PIXELS && (self.step == 1 || i <= 16);
                for images in images.take_while(|&i| fits(i)) {
                    let plan = |&n| Plan::new(*self, n, images, rows, cols, card);
                    plans.extend(sizes.iter().filter_map(plan));
                }
            }
        }
        let least = |a: &Plan, b: &Plan| a.clocks(card).total_cmp(&b.clocks(card));
        plans.into_iter().min_by(least)
    }
}

impl Plan {
    /// A tile of this size; `None` if it does not fit or is mostly empty.
    fn new(
        problem: Problem,
        n: usize,
        images: usize,
        rows: usize,
        cols: usize,
        card: &Card,
    ) -> Option<Plan> {
        let mut plan = Plan {
            problem,
            n,
            images,
            rows,
            cols,
            stages: 0,
            splits: 1,
            split_tiles: 0,
        };
        let y = problem.y;
        let covered = plan.tiles() * plan.pixels();
        let [_, patch_rows, patch_cols] = plan.patch();
        plan.stages = (SHARED / plan.stage_bytes()).min(MAX_STAGES);
        let fits = plan.line().is_multiple_of(STEP)
            && covered <= 2 * y.pixels()
            && patch_rows <= MAX_BOX
            && patch_cols <= MAX_BOX
            && plan.stages >= 2;
        if !fits {
            return None;
        }
        // What fills all multiprocessors once, twice, ...
        let (tiles, pieces) = (plan.tiles(), plan.pieces());
        let most = (PARTIAL / problem.w_len()).clamp(1, tiles);
        let splits = (1..=4).map(|waves| (waves * card.multiprocessors / pieces).clamp(1, most));
        splits
            .chain([1])
            .map(|splits| {
                let split_tiles = tiles.div_ceil(splits);
                Plan {
                    splits: tiles.div_ceil(split_tiles),
                    split_tiles,
                    ..plan
                }
            })
            .min_by(|a, b| a.clocks(card).total_cmp(&b.clocks(card)))
    }

    /// Patches of a tile, and the channels of each.
    fn patches(&self) -> [usize; 2] {
        let channels = self.n.min(CHANNELS);
        [self.n / channels, channels]
    }

    /// Blocks of 64 output channels.
    fn outs(&self) -> usize {
        if self.problem.k == 1 { 2 } else { 1 }
    }

    /// Pixels that lie one after the other in the tile and in the patch.
    fn line(&self) -> usize {
        match self.problem.k {
            1 => self.pixels(),
            _ => self.images * self.cols,
        }
    }

    fn pixels(&self) -> usize {
        self.images * self.rows * self.cols
    }

    /// Images, rows and columns.
    fn patch(&self) -> [usize; 3] {
        let Problem { k, step, .. } = self.problem;
        [
            self.images,
            step * (self.rows - 1) + k,
            step * (self.cols - 1) + k,
        ]
    }

    fn patch_bytes(&self) -> usize {
        let [_, channels] = self.patches();
        (self.patch().iter().product::<usize>() * 2 * channels).next_multiple_of(1024)
    }

    fn stage_bytes(&self) -> usize {
        let [patches, _] = self.patches();
        patches * self.patch_bytes() + self.outs() * self.pixels() * ROW
    }

    /// The result leaves through the stages' space.
    fn shared(&self) -> usize {
        let leaving = self.warpgroups() * CHANNELS * (self.problem.k * self.n + 8) * 4;
        leaving.max(self.stages * self.stage_bytes())
    }

    fn in_blocks(&self) -> usize {
        self.problem.group_in().div_ceil(self.n)
    }

    fn out_blocks(&self) -> usize {
        self.problem.group_out().div_ceil(self.outs() * CHANNELS)
    }

    fn pieces(&self) -> usize {
        self.problem.groups * self.in_blocks() * self.out_blocks()
    }

    fn down(&self) -> usize {
        self.problem.y.h.div_ceil(self.rows)
    }

    fn across(&self) -> usize {
        self.problem.y.w.div_ceil(self.cols)
    }

    fn tiles(&self) -> usize {
        self.problem.y.n.div_ceil(self.images) * self.down() * self.across()
    }

    /// Clocks of the tensor cores for a tile: 64 x n x 16 products of a warpgroup each take n / 2.
    fn tensor(&self) -> f64 {
        (self.pixels() / 16 * self.warpgroups() * self.problem.k * self.n / 2) as f64
    }

    /// Warpgroups that multiply, each under all taps of a kernel row.
    fn warpgroups(&self) -> usize {
        match self.problem.k {
            1 => self.outs(),
            k => k,
        }
    }

    /// Bytes of shared memory that a tile's products read and its copies write.
    fn shared_bytes(&self) -> f64 {
        let x = self.problem.k * 32 * self.n;
        (self.pixels() / 16 * self.warpgroups() * (x + 16 * ROW) + self.stage_bytes()) as f64
    }

    /// Clocks of the launch on the multiprocessor with the most blocks.
    fn clocks(&self, card: &Card) -> f64 {
        /// Of the second-level cache, for one multiprocessor, a clock.
        const L2: f64 = 30.0;
        /// Of a stage: waiting for its data and for the last products.
        const STAGE: f64 = 120.0;
        /// A block's begin and end, and the launch that adds the splits.
        const BLOCK: f64 = 4000.0;
        const SUM: f64 = 3000.0;
        /// Of what the others take, for what bounds a tile: requests come in bursts.
        const OTHERS: f64 = 0.1;
        let pipes = [
            self.tensor(),
            self.shared_bytes() / 128.0,
            self.stage_bytes() as f64 / L2,
        ];
        let bound = pipes.into_iter().fold(0.0, f64::max);
        let tile = bound
            + OTHERS * (pipes.iter().sum::<f64>() - bound)
            + STAGE
            // With two stages the next is on its way when it is needed.
            + if self.stages == 2 { 0.1 * self.tensor() } else { 0.0 };
        let blocks = self.pieces() * self.splits;
        let waves = blocks.div_ceil(card.multiprocessors);
        let partial = if self.splits > 1 { 2 * self.splits } else { 0 };
        let dw =
            ((partial + 2) * 4 * self.problem.w_len()) as f64 / (L2 * card.multiprocessors as f64);
        let sum = if self.splits > 1 { SUM } else { 0.0 };
        waves as f64 * (self.split_tiles as f64 * tile + BLOCK) + dw + sum
    }

    /// What the model says; `bytes` of memory.
    pub fn times(&self, card: &Card, bytes: f64) -> Times {
        let blocks = (self.pieces() * self.splits) as f64;
        let all = blocks * self.split_tiles as f64;
        let per_sm = card.multiprocessors as f64 * card.clock;
        Times {
            tensor: all * self.tensor() / per_sm,
            issue: 0.0,
            mufu: 0.0,
            shared: all * self.shared_bytes() / 128.0 / per_sm,
            l2: all * self.stage_bytes() as f64 / card.l2,
            memory: bytes / card.memory,
            blocks: self.clocks(card) / card.clock,
            resident: 1,
            waves: blocks / card.multiprocessors as f64,
        }
    }

    /// Input and output channels, under all taps, of a block.
    pub fn block(&self) -> [usize; 2] {
        [self.n, self.outs() * CHANNELS]
    }

    /// Images, rows and columns.
    pub fn tile(&self) -> [usize; 3] {
        [self.images, self.rows, self.cols]
    }

    pub fn blocks(&self) -> usize {
        self.pieces() * self.splits
    }

    /// Floats of the partial sums; none where they are added to dw at once.
    pub fn partial_len(&self) -> usize {
        let bias = if self.problem.bias {
            self.problem.y.c
        } else {
            0
        };
        match self.splits {
            1 => 0,
            splits => splits * (self.problem.w_len() + bias),
        }
    }

    pub fn launch(&self, gpu: &Gpu, dtype: DType, dw: Ptr, db: Ptr, dy: Ptr, x: Ptr) -> Result<()> {
        let Problem { x: from, y: to, .. } = self.problem;
        let [images, patch_rows, patch_cols] = self.patch();
        let [_, channels] = self.patches();
        let x_map = from.map(gpu, x, [channels, images, patch_cols, patch_rows])?;
        let tile = [CHANNELS, images, self.cols, self.rows];
        let y_map = View::whole(to).map(gpu, dy, tile)?;
        let threads = if self.problem.k == 1 { 288 } else { 512 };
        kernels::conv2d_wgmma_weight_grad(
            gpu,
            dtype,
            self.problem.k as u32,
            self.n as u32,
            self.warpgroups() as u32,
            threads,
            [self.blocks() as u32, 1, 1],
            self.shared() as u32,
            dw,
            db,
            x_map,
            y_map,
            self.arguments(),
        )
    }

    /// As the kernel takes it.
    fn arguments(&self) -> WeightPatches {
        let problem = self.problem;
        let [_, patch_rows, patch_cols] = self.patch();
        WeightPatches {
            y: dims(problem.y),
            step: problem.step as u32,
            pad: problem.pad as u32,
            group_in: problem.group_in() as u32,
            group_out: problem.group_out() as u32,
            in_blocks: self.in_blocks() as u32,
            out_blocks: self.out_blocks() as u32,
            images: self.images as u32,
            rows: self.rows as u32,
            cols: self.cols as u32,
            pixels: self.pixels() as u32,
            patch_rows: patch_rows as u32,
            patch_cols: patch_cols as u32,
            line: self.line() as u32,
            octet: match self.images {
                8 => 8 * problem.step as u32,
                _ => 8,
            },
            skip: (problem.step * (patch_cols - self.cols) * self.images) as u32,
            tiles: self.tiles() as u32,
            split_tiles: self.split_tiles as u32,
            by_down: divisor(self.down()),
            by_across: divisor(self.across()),
            by_pieces: divisor(self.pieces()),
            by_in_blocks: divisor(self.in_blocks()),
            by_out_blocks: divisor(self.out_blocks()),
            patch_bytes: self.patch_bytes() as u32,
            stage_bytes: self.stage_bytes() as u32,
            stages: self.stages as u32,
            bias: problem.bias.into(),
            direct: (self.splits == 1).into(),
        }
    }
}
