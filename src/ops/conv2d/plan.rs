//! How the GPU's convolutions are cut into tiles. A plan changes no result: the order of each sum
//! depends on the kernel's size and the channels alone (`kernels/conv2d.cu`).

use super::Conv2d;
use crate::error::{Error, Result};
use crate::gpu::kernels::{Dims, Direct, Outer, Patch, Tile};
use crate::ops::spans::divisor;
use crate::tensor::Shape;

/// Channels a thread copies at a time.
const WINDOW: usize = 8;

/// Kernels larger than this do not fit: one of their rows has to.
const MAX_KERNEL: usize = 512;

/// A size as the kernels take it. Sizes and positions with their padding are counted in 31 bits.
pub(super) fn size(op: &'static str, arg: &'static str, value: usize) -> Result<u32> {
    match u32::try_from(value) {
        Ok(value) if value <= i32::MAX as u32 => Ok(value),
        _ => Err(Error::argument(op, arg, "sizes below 2^31 on a GPU", value)),
    }
}

pub(super) fn dims(op: &'static str, arg: &'static str, shape: Shape) -> Result<Dims> {
    // A row's pixels and channels are counted together as well.
    size(op, arg, shape.row_len())?;
    Ok(Dims {
        n: size(op, arg, shape.n)?,
        h: size(op, arg, shape.h)?,
        w: size(op, arg, shape.w)?,
        c: size(op, arg, shape.c)?,
    })
}

/// What the kernels' `patch::divide` divides by.
pub(super) fn magic(divisor: usize) -> u32 {
    ((1usize << 31).div_ceil(divisor)) as u32
}

/// Windows that a group's channels meet, at most: windows begin at multiples of 8, groups do not.
pub(super) fn windows(channels: usize, groups: usize) -> usize {
    let aligned = 1 << channels.trailing_zeros().min(3);
    let before = if groups == 1 { 0 } else { WINDOW - aligned };
    (before + channels).div_ceil(WINDOW)
}

/// A grid of pixels to be cut into tiles, and what a tile's pixels read.
#[derive(Clone, Copy)]
struct Grid {
    n: usize,
    rows: usize,
    cols: usize,
    /// Taps down and across.
    taps: [usize; 2],
    /// Pixels of the patch from one pixel to the next.
    step: usize,
    windows: usize,
    /// Most pixels of a tile, most floats of a patch.
    pixels: usize,
    floats: usize,
}

impl Grid {
    /// Floats from one pixel of the patch to the next.
    fn pitch(&self) -> usize {
        self.windows * WINDOW + 4
    }

    /// The cheapest tile by `cost(pixels, pixels of the patch)`, with its patch of `taps[0]` kernel
    /// rows and what all tiles cost; `None` if no patch fits.
    fn cut(&self, cost: impl Fn(usize, usize) -> usize) -> Option<(usize, Tile, Patch)> {
        let mut best: Option<(usize, [usize; 5])> = None;
        for cols in parts(self.cols, self.pixels) {
            for rows in parts(self.rows, self.pixels / cols) {
                let patch_rows = (rows - 1) * self.step + self.taps[0];
                let patch_cols = (cols - 1) * self.step + self.taps[1];
                let patch = patch_rows * patch_cols;
                let fit = self.floats / (patch * self.pitch());
                let images = (self.pixels / (rows * cols)).min(fit).min(self.n);
                if images == 0 {
                    continue;
                }
                let tiles =
                    self.n.div_ceil(images) * self.rows.div_ceil(rows) * self.cols.div_ceil(cols);
                let total = tiles * cost(images * rows * cols, images * patch);
                if best.is_none_or(|(least, _)| total < least) {
                    best = Some((total, [images, rows, cols, patch_rows, patch_cols]));
                }
            }
        }
        let (total, [images, rows, cols, patch_rows, patch_cols]) = best?;
        let tile = Tile {
            images: images as u32,
            rows: rows as u32,
            cols: cols as u32,
            row_magic: magic(rows),
            col_magic: magic(cols),
            down: self.rows.div_ceil(rows) as u32,
            across: self.cols.div_ceil(cols) as u32,
        };
        let patch = Patch {
            rows: patch_rows as u32,
            cols: patch_cols as u32,
            windows: self.windows as u32,
            row_magic: magic(patch_rows),
            col_magic: magic(patch_cols),
            window_magic: magic(self.windows),
            pitch: self.pitch() as u32,
            step: self.step as u32,
            gap: 1,
            draws: divisor(1),
        };
        Some((total, tile, patch))
    }

    /// Tiles of all images.
    fn tiles(&self, tile: &Tile) -> usize {
        self.n.div_ceil(tile.images as usize) * tile.down as usize * tile.across as usize
    }
}

/// Sizes of equal parts of `len`, at most `most` each: all large ones, halves of them, and 1.
pub(super) fn parts(len: usize, most: usize) -> impl Iterator<Item = usize> {
    let fewest = len.div_ceil(most);
    let counts = (0..8).chain((3..).map(|i| 1 << i)).map(move |i| fewest + i);
    let mut last = 0;
    counts
        .map(move |count| len.div_ceil(count))
        .scan(false, |done, size| {
            (!*done).then(|| {
                *done = size == 1;
                size
            })
        })
        .filter(move |&size| std::mem::replace(&mut last, size) != size)
}

/// Bytes of dynamic shared memory that a patch takes.
fn shared(tile: &Tile, patch: &Patch) -> u32 {
    tile.images * patch.rows * patch.cols * patch.pitch * size_of::<f32>() as u32
}

/// Blocks of the grid.
fn blocks(op: &'static str, count: usize) -> Result<[u32; 3]> {
    Ok([size(op, "x", count)?, 1, 1])
}

fn refuse_large_kernel(op: &'static str, w: Shape) -> Result<()> {
    if w.h > MAX_KERNEL {
        let expected = format_args!("a kernel of at most {MAX_KERNEL} x {MAX_KERNEL} on a GPU");
        return Err(Error::argument(op, "w", expected, w));
    }
    Ok(())
}

/// Launch of a forward convolution or an input gradient.
pub(super) struct DirectPlan {
    pub p: Direct,
    /// Output channels of a block.
    pub cols: u32,
    pub grid: [u32; 3],
    pub shared: u32,
}

/// From `x` to `y`; with `grad` from dy, of shape `y`, to dx.
pub(super) fn direct(
    op: &'static str,
    grad: bool,
    x: Shape,
    w: Shape,
    y: Shape,
    conv: Conv2d,
) -> Result<DirectPlan> {
    /// Pixels of a tile; floats of a patch, beside 18 KiB of weights.
    const PIXELS: usize = 128;
    const FLOATS: usize = 10 << 10;
    refuse_large_kernel(op, w)?;
    let (from, to) = if grad { (y, x) } else { (x, y) };
    let (k, stride) = (w.h, conv.stride);
    // The taps that meet a pixel, the pixels that meet the same ones, and how many such phases.
    let (taps, row_phases, col_phases) = match grad {
        true => (k.div_ceil(stride), stride.min(to.h), stride.min(to.w)),
        false => (k, 1, 1),
    };
    let phase = |size: usize| if grad { size.div_ceil(stride) } else { size };
    // One tap reads no pixels between two pixels of a stride.
    let (step, gap) = match grad {
        true => (1, 1),
        false if k == 1 => (1, stride),
        false => (stride, 1),
    };
    // A stage is about 72 deep whatever the taps. These are powers of two.
    let windows = match taps * taps {
        1 => 4,
        2..=4 => 2,
        _ => 1,
    };
    let mut grid = Grid {
        n: to.n,
        rows: phase(to.h),
        cols: phase(to.w),
        taps: [taps, taps],
        step,
        windows,
        pixels: PIXELS,
        floats: FLOATS,
    };
    // Kernels of many rows come a few rows at a time: the patch is copied more often, but its tile is
    // larger. Costs are instructions of a thread for eight channels: 64 products of each tap and
    // channel, about 100 for each eight elements it copies.
    let mut best: Option<(usize, usize, Tile, Patch)> = None;
    let mut band = taps;
    loop {
        grid.taps[0] = band;
        let bands = taps.div_ceil(band);
        let cost = |_, patch: usize| taps * taps * 512 + bands * patch.div_ceil(PIXELS) * 100;
        if let Some((total, tile, patch)) = grid.cut(cost)
            && best.is_none_or(|(least, ..)| total < least)
        {
            best = Some((total, band, tile, patch));
        }
        if band == 1 {
            break;
        }
        band = band.div_ceil(2);
    }
    let (_, band, tile, patch) = best.expect("a row of MAX_KERNEL pixels fits");
    let patch = Patch {
        gap: gap as u32,
        ..patch
    };

    let c_out = to.c / conv.groups;
    let places = grid.tiles(&tile) * row_phases * col_phases * conv.groups;
    // Few channels waste most of 64. A thread of the narrow kernel does an eighth of the work in about
    // a third of the time, so it pays as well where the wide one leaves most of the GPU idle.
    let depth = k * k * from.c / conv.groups;
    let idle = places * c_out.div_ceil(64) < 64 && depth >= 512;
    let cols = if c_out <= 16 || idle { 8 } else { 64 };
    let blocks_of_channels = c_out.div_ceil(cols);
    size(op, "conv.pad", to.h.max(from.h) + 2 * conv.pad)?;
    size(op, "conv.pad", to.w.max(from.w) + 2 * conv.pad)?;
    Ok(DirectPlan {
        p: Direct {
            from: dims(op, if grad { "dy" } else { "x" }, from)?,
            to: dims(op, if grad { "x_shape" } else { "y" }, to)?,
            k: k as u32,
            stride: size(op, "conv.stride", stride)?,
            pad: size(op, "conv.pad", conv.pad)?,
            groups: size(op, "conv.groups", conv.groups)?,
            row_phases: row_phases as u32,
            col_phases: col_phases as u32,
            tile,
            patch,
            band: band as u32,
            blocks: size(op, "w", blocks_of_channels)?,
        },
        cols: cols as u32,
        grid: blocks(op, places * blocks_of_channels)?,
        shared: shared(&tile, &patch),
    })
}

/// Launch of a weight gradient.
pub(super) struct OuterPlan {
    pub p: Outer,
    pub grid: [u32; 3],
    pub shared: u32,
    pub splits: usize,
}

impl OuterPlan {
    /// Floats of the partial sums.
    pub fn partial_len(&self, w: Shape) -> usize {
        let bias = if self.p.bias == 1 {
            self.splits * w.n
        } else {
            0
        };
        self.p.partial_rows as usize * w.len() + bias
    }
}

pub(super) fn outer(
    op: &'static str,
    x: Shape,
    w: Shape,
    y: Shape,
    bias: bool,
    conv: Conv2d,
) -> Result<OuterPlan> {
    /// Pixels of a tile, output channels of a block, pairs of a tap and a window that a block has
    /// threads for.
    const PIXELS: usize = 64;
    const CHANNELS: usize = 64;
    const SLOTS: usize = 36;
    /// Floats of a patch, beside 19 KiB of dy and tables.
    const FLOATS: usize = 14 << 10;
    /// Blocks that fill a large GPU twice over, and the most floats that partial sums may take.
    const BLOCKS: usize = 528;
    const PARTIAL_LEN: usize = 16 << 20;
    refuse_large_kernel(op, w)?;
    let (k, area) = (w.h, w.h * w.h);
    let group_windows = windows(w.c, conv.groups);
    let (step, gap) = if k == 1 {
        (1, conv.stride)
    } else {
        (conv.stride, 1)
    };

    // What a block owns: as many windows as possible of those choices that keep its threads busiest.
    let mut best: Option<(usize, Choice, Grid, Tile, Patch)> = None;
    struct Choice {
        taps: usize,
        parts: usize,
        tap_blocks: usize,
        window_blocks: usize,
    }
    for windows in (1..=group_windows.min(8)).rev() {
        let tap_blocks = area.div_ceil(SLOTS / windows);
        let taps = area.div_ceil(tap_blocks);
        let choice = Choice {
            taps,
            parts: SLOTS / (windows * taps),
            tap_blocks,
            window_blocks: group_windows.div_ceil(windows),
        };
        let rows = if tap_blocks == 1 {
            k
        } else {
            k.min((taps + k - 2) / k + 1)
        };
        let grid = Grid {
            n: y.n,
            rows: y.h,
            cols: y.w,
            taps: [rows, k],
            step,
            windows,
            pixels: PIXELS,
            floats: FLOATS,
        };
        // Instructions of a thread: about 77 for each of its pixels, 100 for each eight elements it
        // copies, 200 for the tile.
        let cost = |pixels: usize, patch: usize| {
            let copies = (pixels * 8).div_ceil(288) + (patch * windows).div_ceil(288);
            pixels.div_ceil(choice.parts) * 77 + copies * 100 + 200
        };
        let Some((total, tile, patch)) = grid.cut(cost) else {
            continue;
        };
        let total = total * tap_blocks * choice.window_blocks;
        if best.as_ref().is_none_or(|(least, ..)| total < *least) {
            best = Some((total, choice, grid, tile, patch));
        }
    }
    let (_, choice, grid, tile, patch) = best.expect("two rows of MAX_KERNEL pixels fit");
    let patch = Patch {
        gap: gap as u32,
        ..patch
    };

    let channel_blocks = (y.c / conv.groups).div_ceil(CHANNELS);
    let pieces = conv.groups * channel_blocks * choice.tap_blocks * choice.window_blocks;
    let tiles = grid.tiles(&tile);
    let most = PARTIAL_LEN / (choice.parts * w.len());
    let splits = BLOCKS.div_ceil(pieces).min(most).clamp(1, tiles);
    let split_tiles = tiles.div_ceil(splits);
    let splits = tiles.div_ceil(split_tiles);
    size(op, "conv.pad", x.h + 2 * conv.pad)?;
    size(op, "conv.pad", x.w + 2 * conv.pad)?;
    Ok(OuterPlan {
        p: Outer {
            x: dims(op, "x", x)?,
            y: dims(op, "dy", y)?,
            k: k as u32,
            stride: size(op, "conv.stride", conv.stride)?,
            pad: size(op, "conv.pad", conv.pad)?,
            groups: size(op, "conv.groups", conv.groups)?,
            taps: choice.taps as u32,
            windows: patch.windows,
            parts: choice.parts as u32,
            channel_blocks: channel_blocks as u32,
            tap_blocks: choice.tap_blocks as u32,
            window_blocks: choice.window_blocks as u32,
            tiles: size(op, "dy", tiles)?,
            split_tiles: split_tiles as u32,
            partial_rows: (splits * choice.parts) as u32,
            bias: bias.into(),
            tile,
            patch,
        },
        grid: blocks(op, splits * pieces)?,
        shared: shared(&tile, &patch),
        splits,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_patch(tile: &Tile, patch: &Patch, pixels: u32, floats: u32) {
        assert!(tile.images >= 1 && tile.images * tile.rows * tile.cols <= pixels);
        let len = tile.images * patch.rows * patch.cols * patch.pitch;
        assert!(len <= floats, "{patch:?}");
        assert!(patch.pitch / 4 % 2 == 1 && patch.pitch > patch.windows * 8);
        // The kernels divide by multiplication.
        let divide =
            |value: u32, magic: u32| ((u64::from(2 * value) * u64::from(magic)) >> 32) as u32;
        for value in 0..patch.windows * len / patch.pitch {
            assert_eq!(divide(value, patch.window_magic), value / patch.windows);
            assert_eq!(divide(value, patch.col_magic), value / patch.cols);
            assert_eq!(divide(value, patch.row_magic), value / patch.rows);
        }
        for value in 0..pixels {
            assert_eq!(divide(value, tile.col_magic), value / tile.cols);
            assert_eq!(divide(value, tile.row_magic), value / tile.rows);
        }
    }

    #[test]
    fn every_shape_has_a_plan() {
        let sizes = [1, 2, 3, 5, 7, 13, 32, 67, 224, 600];
        for (i, h) in sizes.into_iter().enumerate() {
            for (k, c_in, c_out, groups) in [
                (1, 3, 64, 1),
                (1, 512, 10, 1),
                (2, 40, 24, 8),
                (3, 3, 64, 1),
                (3, 512, 512, 1),
                (3, 30, 30, 30),
                (5, 20, 20, 2),
                (7, 3, 64, 1),
                (32, 8, 8, 1),
                (512, 24, 2, 1),
            ] {
                for stride in [1, 2, 3, 50, 1000] {
                    let conv = Conv2d {
                        stride,
                        pad: if h < k { k } else { k / 2 },
                        groups,
                    };
                    let x = Shape::new([1, 7, 300][i % 3], h, sizes[(i + 3) % 10], c_in);
                    let w = Shape::new(c_out, k, k, c_in / groups);
                    let Ok(y) = conv.output_shape("test", x, w) else {
                        continue;
                    };
                    for grad in [false, true] {
                        let plan = direct("test", grad, x, w, y, conv).unwrap();
                        check_patch(&plan.p.tile, &plan.p.patch, 128, 10 << 10);
                        assert!(plan.p.patch.windows * 8 <= 72);
                    }
                    let plan = outer("test", x, w, y, true, conv).unwrap();
                    check_patch(&plan.p.tile, &plan.p.patch, 64, 14 << 10);
                    assert!(plan.p.taps * plan.p.windows * plan.p.parts <= 36);
                    assert!(plan.p.taps * plan.p.tap_blocks >= (k * k) as u32);
                    assert!(plan.splits as u32 * plan.p.split_tiles >= plan.p.tiles);
                }
            }
        }
    }

    #[test]
    fn tiles_of_usual_layers_are_full() {
        let conv = Conv2d {
            stride: 1,
            pad: 1,
            groups: 1,
        };
        for (size, c) in [(32, 64), (16, 128), (8, 256), (4, 512), (2, 512)] {
            let shape = Shape::new(128, size, size, c);
            let w = Shape::new(c, 3, 3, c);
            let tile = direct("test", false, shape, w, shape, conv).unwrap().p.tile;
            assert_eq!(tile.images * tile.rows * tile.cols, 128, "{size}: {tile:?}");
            let tile = outer("test", shape, w, shape, false, conv).unwrap().p.tile;
            assert!(
                tile.images * tile.rows * tile.cols >= 48,
                "{size}: {tile:?}"
            );
        }
    }
}
