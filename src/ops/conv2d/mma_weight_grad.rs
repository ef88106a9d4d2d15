//! The weight gradient on tensor cores: how it is cut, and the launch. The kernel is in
//! `kernels/conv2d_mma_weight_grad.cu`.

mod work;

pub(in crate::ops) use work::Work;

use super::Conv2d;
use super::plan::{dims, parts, size, windows};
use crate::error::Result;
use crate::gpu::kernels::WeightGrad;
use crate::gpu::kernels::conv2d_mma_weight_grad as kernels;
use crate::gpu::{Gpu, Ptr};
use crate::ops::noise::gpu::Fused;
use crate::tensor::{DType, Shape};

/// The kernel's constants.
const THREADS: usize = 256;
const WARPS: usize = 8;
const STAGES: usize = 3;
const SLOTS: usize = 9;
/// Output channels of a warp.
const ROWS: usize = 64;
/// Largest number of a row, column or image in a tile or patch.
const MOST: usize = 510;
/// Tables beside the pixels: the zero piece and the tiles' origins.
const FIXED: usize = 16 + STAGES * ORIGIN;
const ORIGIN: usize = 48;

/// The device, as far as the cut depends on it.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Device {
    pub multiprocessors: usize,
    /// Bytes of shared memory of a block.
    pub shared: usize,
}

/// Launch of a weight gradient on tensor cores.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Plan {
    pub p: WeightGrad,
    /// Whether a tile is ordered by position, and taps on padding are left out.
    pub skip: bool,
    pub grid: [u32; 3],
    pub work: Work,
}

/// What does not depend on how blocks are cut.
struct Layer {
    x: Shape,
    y: Shape,
    k: usize,
    conv: Conv2d,
    group_in: usize,
    group_out: usize,
    merged: usize,
    supergroups: usize,
    /// Eights of output channels and windows of input channels that a supergroup meets.
    channels: usize,
    windows: usize,
    tap_blocks: usize,
    taps: usize,
    /// Kernel rows of a block.
    tap_rows: usize,
    w_len: usize,
    bias: bool,
}

/// A block's part of dw.
#[derive(Clone, Copy)]
struct Cut {
    log_rows: usize,
    log_cols: usize,
    warp_windows: usize,
    windows: usize,
    window_blocks: usize,
    channel_blocks: usize,
}

/// A tile and its patch.
#[derive(Clone, Copy)]
struct Tile {
    images: usize,
    rows: usize,
    cols: usize,
    patch_rows: usize,
    patch_cols: usize,
    skip: bool,
    /// Share of the products that is not left out.
    kept: f64,
}

impl Tile {
    fn pixels(&self) -> usize {
        (self.images * self.rows * self.cols).next_multiple_of(16)
    }
}

/// Bytes of a pixel with `pieces` 16-byte pieces: an odd number of them, so that neighbours lie in other
/// banks.
fn pitch(pieces: usize) -> usize {
    (pieces | 1) * 16
}

impl Cut {
    fn log_parts(&self) -> usize {
        3 - self.log_rows - self.log_cols
    }
    fn row_pitch(&self, tile: &Tile) -> usize {
        tile.patch_cols * pitch(self.windows)
    }
    fn image_pitch(&self, tile: &Tile) -> usize {
        pitch(tile.patch_rows * self.row_pitch(tile) / 16)
    }
    fn dy_pitch(&self) -> usize {
        pitch(8 << self.log_rows)
    }
    fn dy_at(&self, tile: &Tile) -> usize {
        tile.images * self.image_pitch(tile)
    }
    fn stage(&self, tile: &Tile) -> usize {
        self.dy_at(tile) + tile.pixels() * self.dy_pitch()
    }
    fn stages(&self, tile: &Tile) -> usize {
        // Sums of the parts are added there.
        let scratch = match self.log_parts() {
            0 => 0,
            _ => THREADS / 2 * 4 * SLOTS * 4,
        };
        (STAGES * self.stage(tile)).max(scratch)
    }
    fn shared(&self, layer: &Layer, tile: &Tile) -> usize {
        let pixels = tile.pixels();
        let patch = tile.images * tile.patch_rows * tile.patch_cols;
        let slots = if tile.skip {
            layer.y.h * layer.y.w * 4
        } else {
            0
        };
        let bias = if layer.bias { 8 * THREADS * 4 } else { 0 };
        let tables = pixels * 16 + patch * 16 + STAGES * (pixels * 4 + pixels / 16 * 4) + slots;
        self.stages(tile) + FIXED + tables.next_multiple_of(16) + bias
    }
}

impl Layer {
    fn new(x: Shape, w: Shape, y: Shape, bias: bool, conv: Conv2d) -> Self {
        let (group_in, group_out) = (w.c, w.n / conv.groups);
        // Small groups are one product with those beside them: 64 rows are multiplied in any case.
        let merged = (1..=conv.groups.min(ROWS / group_out.min(ROWS)))
            .rev()
            .find(|merged| conv.groups.is_multiple_of(*merged))
            .expect("1 divides all");
        let supergroups = conv.groups / merged;
        let area = w.h * w.h;
        let tap_blocks = area.div_ceil(SLOTS);
        let taps = area.div_ceil(tap_blocks);
        Layer {
            x,
            y,
            k: w.h,
            conv,
            group_in,
            group_out,
            merged,
            supergroups,
            channels: windows(merged * group_out, supergroups),
            windows: windows(merged * group_in, supergroups),
            tap_blocks,
            taps,
            tap_rows: match tap_blocks {
                1 => w.h,
                _ => w.h.min((taps + w.h - 2) / w.h + 1),
            },
            w_len: w.len(),
            bias,
        }
    }

    /// Patch pixels from one pixel to the next, input pixels from one patch pixel to the next: one tap
    /// reads no pixels between two pixels of a stride.
    fn step_and_gap(&self) -> (usize, usize) {
        match self.k {
            1 => (1, self.conv.stride),
            _ => (self.conv.stride, 1),
        }
    }

    fn cuts(&self) -> impl Iterator<Item = Cut> {
        (0..4usize)
            .flat_map(move |log_rows| {
                (0..4 - log_rows).map(move |log_cols| {
                    let most = (SLOTS / self.taps) << log_cols;
                    let window_blocks = self.windows.div_ceil(most);
                    let warp_windows = self.windows.div_ceil(window_blocks << log_cols);
                    Cut {
                        log_rows,
                        log_cols,
                        warp_windows,
                        windows: (warp_windows << log_cols).min(self.windows),
                        window_blocks,
                        channel_blocks: self.channels.div_ceil(8 << log_rows),
                    }
                })
            })
            .filter(|cut| {
                // No warps without work.
                let narrow = |log: usize, of: usize| log == 0 || 1 << (log - 1) < of;
                narrow(cut.log_rows, self.channels.div_ceil(8))
                    && narrow(
                        cut.log_cols,
                        self.windows.div_ceil((SLOTS / self.taps).max(1)),
                    )
            })
    }

    /// Tiles of an image's part, ordered image by image.
    fn plain_tiles(&self, fits: impl Fn(&Tile) -> bool) -> Vec<Tile> {
        /// Most pixels of a tile.
        const PIXELS: usize = 256;
        let (step, gap) = self.step_and_gap();
        let mut tiles = Vec::new();
        for cols in parts(self.y.w, PIXELS) {
            for rows in parts(self.y.h, PIXELS / cols) {
                let patch_rows = (rows - 1) * step + self.tap_rows;
                let patch_cols = (cols - 1) * step + self.k;
                if (patch_rows.max(patch_cols) - 1) * gap > MOST {
                    continue;
                }
                let mut images = (PIXELS / (rows * cols)).min(self.y.n);
                loop {
                    let tile = Tile {
                        images,
                        rows,
                        cols,
                        patch_rows,
                        patch_cols,
                        skip: false,
                        kept: 1.0,
                    };
                    if fits(&tile) {
                        tiles.push(tile);
                    }
                    if images == 1 {
                        break;
                    }
                    images /= 2;
                }
            }
        }
        tiles
    }

    /// Tiles of 16 images, or a multiple, ordered by position, if enough taps lie on padding.
    fn position_tiles(&self, fits: impl Fn(&Tile) -> bool) -> Vec<Tile> {
        let (x, y, pad, stride) = (self.x, self.y, self.conv.pad, self.conv.stride);
        if self.k == 1 || self.tap_blocks > 1 || y.n < 16 || y.h * y.w > 64 || x.h * x.w > 256 {
            return Vec::new();
        }
        let axis = |out: usize, size: usize| {
            let taps = |i: usize| {
                (0..self.k).filter(move |u| (pad..pad + size).contains(&(i * stride + u)))
            };
            (0..out).map(|i| taps(i).count()).sum::<usize>() as f64 / (out * self.k) as f64
        };
        let kept = axis(y.h, x.h) * axis(y.w, x.w);
        if kept > 0.8 {
            return Vec::new();
        }
        let mut tiles = Vec::new();
        for rows in (1..=y.h).filter(|rows| y.h.is_multiple_of(*rows)) {
            // The most rows of the image that a tile's taps meet.
            let met = |row: usize| {
                let end = ((row + rows - 1) * stride + self.k)
                    .saturating_sub(pad)
                    .min(x.h);
                end.saturating_sub((row * stride).saturating_sub(pad))
            };
            let patch_rows = (0..y.h).step_by(rows).map(met).max().unwrap_or(1).max(1);
            for images in [16, 32, 64] {
                let tile = Tile {
                    images,
                    rows,
                    cols: y.w,
                    patch_rows,
                    patch_cols: x.w,
                    skip: true,
                    kept,
                };
                if (images == 16 || images <= y.n) && images * rows * y.w <= 512 && fits(&tile) {
                    tiles.push(tile);
                }
            }
        }
        tiles
    }

    /// What a launch with noise does and how long it takes; one without is cut alike, so that its sums
    /// have the same order and noise drawn before it gives the same bits. Clocks are those of an SM; rates per clock are an
    /// H100's: mma.sync 620 TFLOP/s, L2 7 TB/s.
    fn work(&self, cut: &Cut, tile: &Tile, device: &Device) -> Work {
        const PRODUCT: f64 = 1.53;
        const L2: f64 = 30.0;
        const SHARED_MEMORY: f64 = 128.0;
        let per_sm = L2 * device.multiprocessors as f64;
        let parts = 1 << cut.log_parts();
        let (pixels, patch) = (
            tile.pixels(),
            tile.images * tile.patch_rows * tile.patch_cols,
        );
        let steps = (pixels / 16).div_ceil(parts);
        let products = pixels / 16 * (WARPS / parts) * 4 * SLOTS;
        let normals = patch * cut.windows * 8;
        let dy_pieces = (pixels * (8 << cut.log_rows)).div_ceil(THREADS);
        let x_pieces = patch.div_ceil(THREADS / cut.windows.next_power_of_two().min(THREADS));
        let instructions = steps * 72 + dy_pieces * 16 + x_pieces * 180 + 150;
        let row = |channels: usize| channels * 2;
        let l2_bytes = pixels * row(64 << cut.log_rows) + patch * row(cut.windows * 8);
        let shared = (pixels / 16 * (WARPS / parts) * 9 * 512 + 3 * l2_bytes) as f64;
        let tensor = (steps * WARPS * 4 * SLOTS) as f64 * tile.kept * PRODUCT;
        let issue = 2.0 * instructions as f64;
        let clocks = tensor
            .max(issue)
            .max(l2_bytes as f64 / L2)
            .max(shared / SHARED_MEMORY)
            + 0.25 * tensor.min(issue)
            + 100.0;

        let pieces = self.supergroups * cut.channel_blocks * cut.window_blocks * self.tap_blocks;
        let all = self.y.n.div_ceil(tile.images)
            * self.y.h.div_ceil(tile.rows)
            * self.y.w.div_ceil(tile.cols);
        let of_splits = |splits: usize| {
            let tiles = all.div_ceil(splits);
            let splits = all.div_ceil(tiles);
            let waves = (pieces * splits).div_ceil(device.multiprocessors);
            let partial_bytes = if splits > 1 {
                2 * splits * self.w_len * 4
            } else {
                0
            };
            // A block's begin and end; the launch that adds the splits.
            let fixed = 4000.0 * waves as f64 + if splits > 1 { 3000.0 } else { 0.0 };
            let dw = (self.w_len * 8 + partial_bytes) as f64 / per_sm;
            Work {
                pieces,
                splits,
                tiles,
                products,
                kept: tile.kept,
                instructions,
                l2_bytes,
                normals,
                partial_bytes,
                clocks: (waves * tiles) as f64 * clocks + fixed + dw,
            }
        };
        // What fills all SMs once, twice, ...
        let most = ((64 << 20) / self.w_len).max(1).min(all);
        (1..=4)
            .map(|waves| (waves * device.multiprocessors / pieces).clamp(1, most))
            .chain([1])
            .map(of_splits)
            .min_by(|a, b| a.clocks.total_cmp(&b.clocks))
            .expect("there are some")
    }
}

/// The cheapest way to cut a weight gradient; `None` where the shape does not fit.
#[allow(clippy::too_many_arguments)]
pub(in crate::ops) fn plan(
    op: &'static str,
    dtype: DType,
    x: Shape,
    w: Shape,
    y: Shape,
    bias: bool,
    conv: Conv2d,
    device: Device,
) -> Result<Option<Plan>> {
    if !matches!(dtype, DType::BF16 | DType::F16) {
        return Ok(None);
    }
    let (x_dims, y_dims) = (dims(op, "x", x)?, dims(op, "dy", y)?);
    size(op, "conv.pad", x.h + 2 * conv.pad)?;
    size(op, "conv.pad", x.w + 2 * conv.pad)?;
    let layer = Layer::new(x, w, y, bias, conv);
    let mut best: Option<(Work, Cut, Tile)> = None;
    for cut in layer.cuts() {
        let fits = |tile: &Tile| {
            tile.images <= MOST
                && (tile.images * x.row_len()).max(tile.images * y.row_len()) < 1 << 31
                && cut.shared(&layer, tile) <= device.shared
        };
        let tiles = layer
            .plain_tiles(fits)
            .into_iter()
            .chain(layer.position_tiles(fits));
        for tile in tiles {
            let work = layer.work(&cut, &tile, &device);
            if best
                .as_ref()
                .is_none_or(|(least, ..)| work.clocks < least.clocks)
            {
                best = Some((work, cut, tile));
            }
        }
    }
    let Some((work, cut, tile)) = best else {
        return Ok(None);
    };
    let (step, gap) = layer.step_and_gap();
    let (down, across) = (y.h.div_ceil(tile.rows), y.w.div_ceil(tile.cols));
    let tiles = y.n.div_ceil(tile.images) * down * across;
    let stages = cut.stages(&tile);
    let p = WeightGrad {
        x: x_dims,
        y: y_dims,
        k: w.h as u32,
        stride: size(op, "conv.stride", conv.stride)?,
        pad: size(op, "conv.pad", conv.pad)?,
        group_in: layer.group_in as u32,
        group_out: layer.group_out as u32,
        merged: layer.merged as u32,
        supergroups: layer.supergroups as u32,
        channel_blocks: cut.channel_blocks as u32,
        window_blocks: cut.window_blocks as u32,
        tap_blocks: layer.tap_blocks as u32,
        log_rows: cut.log_rows as u32,
        log_cols: cut.log_cols as u32,
        log_parts: cut.log_parts() as u32,
        taps: layer.taps as u32,
        warp_windows: cut.warp_windows as u32,
        images: tile.images as u32,
        rows: tile.rows as u32,
        cols: tile.cols as u32,
        pixels: tile.pixels() as u32,
        down: down as u32,
        across: across as u32,
        tiles: size(op, "dy", tiles)?,
        split_tiles: work.tiles as u32,
        patch_rows: tile.patch_rows as u32,
        patch_cols: tile.patch_cols as u32,
        windows: cut.windows as u32,
        log_windows: cut.windows.next_power_of_two().ilog2(),
        pitch: pitch(cut.windows) as u32,
        row_pitch: cut.row_pitch(&tile) as u32,
        image_pitch: cut.image_pitch(&tile) as u32,
        step: step as u32,
        gap: gap as u32,
        dy_pitch: cut.dy_pitch() as u32,
        stage: cut.stage(&tile) as u32,
        dy_at: cut.dy_at(&tile) as u32,
        stages: stages as u32,
        shared: cut.shared(&layer, &tile) as u32,
        vector_x: x.c.is_multiple_of(8).into(),
        vector_y: y.c.is_multiple_of(8).into(),
        bias: bias.into(),
        direct: (work.splits == 1).into(),
    };
    Ok(Some(Plan {
        p,
        skip: tile.skip,
        grid: [size(op, "x", work.pieces * work.splits)?, 1, 1],
        work,
    }))
}

impl Plan {
    /// Floats of the partial sums; none where they are added to dw at once.
    pub fn partial_len(&self, w: Shape) -> usize {
        let bias = if self.p.bias == 1 { w.n } else { 0 };
        match self.work.splits {
            1 => 0,
            splits => splits * (w.len() + bias),
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub fn launch(
        &self,
        gpu: &Gpu,
        dtype: DType,
        dw: Ptr,
        db: Ptr,
        dy: Ptr,
        x: Ptr,
        noise: &Fused,
    ) -> Result<()> {
        kernels::conv2d_mma_weight_grad(
            gpu,
            dtype,
            noise.mode,
            self.skip,
            self.grid,
            self.p.shared,
            dw,
            db,
            dy,
            x,
            self.p,
            noise.rows,
            noise.draw,
        )
    }
}

#[cfg(test)]
mod tests;
