//! Convolutions on tensor cores by `mma.sync`: which shapes fit and how they are cut.
//! The kernels are in `kernels/conv2d_mma.cu`.
//!
//! Whether a convolution runs here depends on its shape without the batch, so that a row has the same
//! bits in any batch; the tile depends on everything and changes no result.

mod launch;

pub(in crate::ops) use launch::{Operands, packed};

use super::model::{Block, Card, Times};
use super::plan::{dims, magic, parts, size};
use super::{Conv2d, wgmma};
use crate::error::Result;
use crate::gpu::kernels::{Gemm, Packing, Tile};
use crate::gpu::tuning::Tuning;
use crate::ops::spans::divisor;
use crate::tensor::{DType, Shape};

/// How many warps share a block, as the kernels have it.
const WARPS: usize = 4;
const STAGES: usize = 3;
const MAX_TAPS: usize = 64;
/// Bytes of a slab's row.
const SLAB: usize = 64;
/// Most dynamic shared memory of a block: the smallest devices have 99 KiB, tables included.
const SHARED: usize = 92 << 10;

/// A block's part of the product, by its number in the kernels (`gemm::Shape`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::ops) struct Blocking {
    pub number: u32,
    pub rows: usize,
    pub cols: usize,
    /// Warps are stacked, each as wide as the block.
    pub tall: bool,
    /// Rows are ordered by position: whole images, 16 or a multiple, taps on padding left out.
    pub by_position: bool,
}

const fn blocking(
    number: u32,
    rows: usize,
    cols: usize,
    tall: bool,
    by_position: bool,
) -> Blocking {
    Blocking {
        number,
        rows,
        cols,
        tall,
        by_position,
    }
}

const BLOCKINGS: [Blocking; 7] = [
    blocking(0, 128, 128, false, false),
    blocking(1, 128, 64, false, false),
    blocking(2, 64, 64, false, false),
    blocking(3, 128, 32, true, false),
    blocking(4, 256, 64, true, true),
    blocking(5, 256, 32, true, true),
    blocking(6, 64, 64, false, true),
];

/// The blockings that f32 has kernels for.
const TF32: [u32; 2] = [1, 3];

/// What a launch does beside the convolution itself, as far as it bears on the tiles.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Demands<'a> {
    /// A 2x2 max pool behind it.
    pub pool: bool,
    /// Noise in the operand load.
    pub noise: bool,
    /// Only this blocking, where it fits; for tests and measurements.
    pub blocking: Option<u32>,
    /// What was measured on the device.
    pub tuning: Option<&'a Tuning>,
    /// The device to cut for.
    pub card: Card,
}

/// A launch.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Plan {
    pub blocking: Blocking,
    pub gemm: Gemm,
    pub packing: Packing,
    pub dtype: DType,
    pub blocks: usize,
    /// Dynamic shared memory of a block.
    pub shared: usize,
    /// What the model says.
    pub times: Times,
    /// On a device of compute capability 9.0, by `wgmma` instead.
    pub wgmma: Option<wgmma::Plan>,
}

/// Channels of a group, of the operand and of the result, and what a product makes of them.
struct Channels {
    /// Groups made dense together, and how many such supergroups.
    merge: usize,
    supergroups: usize,
    /// Of a supergroup.
    from: usize,
    to: usize,
    /// Windows of 8 channels in a chunk, and chunks.
    windows: usize,
    chunks: usize,
    /// Units of a tap where a slab holds several taps.
    narrow: usize,
}

fn channels(
    from: usize,
    to: usize,
    groups: usize,
    taps: usize,
    phases: bool,
    dtype: DType,
) -> Option<Channels> {
    let (from, to) = (from / groups, to / groups);
    let least = from.min(to);
    // A group of 4 channels wastes three quarters of the arithmetic; fewer are better off elsewhere.
    if groups > 1 && least < 4 {
        return None;
    }
    let merge = if groups == 1 {
        1
    } else {
        16usize.div_ceil(least).min(groups)
    };
    let supergroups = groups.div_ceil(merge);
    let (from, to) = (from * merge, to * merge);
    // Windows begin at multiples of 8 in the tensor.
    if supergroups > 1 && (from % 8 != 0 || to % 8 != 0) {
        return None;
    }
    let units_of_window = dtype.size() / 2;
    let windows = from.div_ceil(8);
    let chunk = 4 / units_of_window;
    if windows * units_of_window <= 2 && !phases {
        let narrow = windows * units_of_window;
        if (taps * narrow).div_ceil(4) > MAX_TAPS {
            return None;
        }
        return Some(Channels {
            merge,
            supergroups,
            from,
            to,
            windows,
            chunks: 1,
            narrow,
        });
    }
    let chunks = windows.div_ceil(chunk);
    Some(Channels {
        merge,
        supergroups,
        from,
        to,
        windows: chunk,
        chunks,
        narrow: 0,
    })
}

/// A convolution's shape as the plan sees it.
struct Problem {
    n: usize,
    /// Rows and columns of one phase.
    rows: usize,
    cols: usize,
    /// Taps of a phase, down and across.
    taps: usize,
    step: usize,
    pitch: usize,
    buffers: usize,
    dtype: DType,
    pool: bool,
    noise: bool,
    stages: usize,
    chunks: usize,
    windows: usize,
}

/// A tile with its patch.
#[derive(Clone, Copy)]
struct Cut {
    images: usize,
    rows: usize,
    cols: usize,
    patch_rows: usize,
    patch_cols: usize,
}

impl Cut {
    fn patch_pixels(&self) -> usize {
        self.images * self.patch_rows * self.patch_cols
    }

    fn tiles(&self, problem: &Problem) -> usize {
        problem.n.div_ceil(self.images)
            * problem.rows.div_ceil(self.rows)
            * problem.cols.div_ceil(self.cols)
    }
}

/// Bytes that a tile's slabs and patches take in shared memory; the results pass through it as well.
fn shared(blocking: &Blocking, problem: &Problem, cut: &Cut) -> usize {
    let slabs = STAGES * blocking.cols * SLAB;
    let patches = problem.buffers * cut.patch_pixels() * problem.pitch;
    let sources = cut.patch_pixels() * 12;
    let windows = if blocking.tall { 4 } else { 8 };
    let results = blocking.rows * (windows * 8 + 8) * 4;
    (slabs + patches + sources).max(results)
}

/// Tiles of `blocking.rows` pixels that fit.
fn cuts(blocking: Blocking, problem: &Problem) -> Vec<Cut> {
    if blocking.by_position {
        let area = problem.rows * problem.cols;
        let images = blocking.rows / area.max(1);
        let even = problem.rows.is_multiple_of(2) && problem.cols.is_multiple_of(2);
        let sixteens = images > 0 && images.is_multiple_of(16);
        if !even || !sixteens || images * area != blocking.rows {
            return Vec::new();
        }
        return vec![Cut {
            images,
            rows: problem.rows,
            cols: problem.cols,
            patch_rows: problem.rows,
            patch_cols: problem.cols,
        }];
    }
    let even = |size: usize| {
        if problem.pool {
            size.next_multiple_of(2)
        } else {
            size
        }
    };
    let mut cuts = Vec::new();
    for cols in parts(problem.cols, blocking.rows).map(even) {
        if cols > blocking.rows {
            continue;
        }
        for rows in parts(problem.rows, blocking.rows / cols).map(even) {
            let images = (blocking.rows / (rows * cols)).min(problem.n);
            if images == 0 {
                continue;
            }
            cuts.push(Cut {
                images,
                rows,
                cols,
                patch_rows: (rows - 1) * problem.step + problem.taps,
                patch_cols: (cols - 1) * problem.step + problem.taps,
            });
        }
    }
    cuts
}

/// Passes over the banks that ldmatrix takes for eight rows of a tile, of which there should be one.
fn conflicts(blocking: &Blocking, problem: &Problem, cut: &Cut) -> usize {
    let mut units = [0; 8];
    let (mut row, mut col) = (0, 0);
    for _ in 0..8 {
        let pixel = match blocking.by_position {
            true => col,
            false => row * problem.step * cut.patch_cols + col * problem.step,
        };
        // Eight units of 16 bytes are all banks.
        units[pixel * problem.pitch / 16 % 8] += 1;
        col += 1;
        if !blocking.by_position && col == cut.cols {
            (row, col) = (row + 1, 0);
        }
    }
    units.into_iter().max().unwrap_or(1)
}

/// What the model says of a launch of so many blocks; `bytes` of memory are read and written in all.
fn times(
    blocking: &Blocking,
    problem: &Problem,
    cut: &Cut,
    card: &Card,
    blocks: usize,
    bytes: f64,
) -> Times {
    let share = match blocking.by_position {
        // Taps inside of the image, of a kernel of three.
        true => {
            let inside = |size: usize| (3 * size - 2) as f64 / (3 * size) as f64;
            inside(problem.rows) * inside(problem.cols)
        }
        false => 1.0,
    };
    let kept = if problem.pool { 0.25 } else { 1.0 };
    let block = Block {
        blocking,
        dtype: problem.dtype,
        noise: problem.noise,
        stages: problem.stages,
        share,
        chunks: problem.chunks,
        windows: cut.patch_pixels() * problem.windows,
        window: 8 * problem.dtype.size(),
        conflicts: conflicts(blocking, problem, cut),
        shared: shared(blocking, problem, cut),
        result: (blocking.rows * blocking.cols * problem.dtype.size()) as f64 * kept,
    };
    block.times(card, blocks, bytes)
}

/// The names under which plans are measured; see [`Tuning`].
pub(in crate::ops) const KERNEL: &str = "mma";

/// What an operation is called in a table of measurements.
pub(in crate::ops) fn operation(grad: bool) -> &'static str {
    match grad {
        true => "input grad",
        false => "forward",
    }
}

/// The numbers of all blockings.
pub(in crate::ops) fn numbers() -> impl Iterator<Item = u32> {
    BLOCKINGS.iter().map(|blocking| blocking.number)
}

/// A shape as a table of measurements has it.
pub(in crate::ops) fn sizes(x: Shape, w: Shape, conv: Conv2d) -> [usize; 8] {
    [x.h, x.w, x.c, w.n, w.h, conv.stride, conv.pad, conv.groups]
}

/// From `x` to `y`; with `grad` from dy, of shape `y`, to dx. `None`: this convolution does not fit, for a
/// reason that its batch has no part in.
#[allow(clippy::too_many_arguments)]
pub(in crate::ops) fn plan(
    op: &'static str,
    grad: bool,
    dtype: DType,
    x: Shape,
    w: Shape,
    y: Shape,
    conv: Conv2d,
    demands: Demands<'_>,
) -> Result<Option<Plan>> {
    let (from, to) = if grad { (y, x) } else { (x, y) };
    let (k, stride) = (w.h, conv.stride);
    let phased = grad && stride > 1;
    let phases = if phased {
        [stride.min(to.h), stride.min(to.w)]
    } else {
        [1, 1]
    };
    let taps = if phased { k.div_ceil(stride) } else { k };
    if k * k > MAX_TAPS || (phased && demands.pool) {
        return Ok(None);
    }
    let Some(channels) = channels(from.c, to.c, conv.groups, k * k, phased, dtype) else {
        return Ok(None);
    };
    let (step, gap) = match grad {
        true => (1, 1),
        false if k == 1 => (1, stride),
        false => (stride, 1),
    };
    let phase = |size: usize| if phased { size.div_ceil(stride) } else { size };
    let slabs = match channels.narrow {
        0 => channels.chunks * k * k,
        narrow => (k * k * narrow).div_ceil(4),
    };
    let stages = match channels.narrow {
        0 => channels.chunks * taps * taps,
        _ => slabs,
    };
    // Patches arrive STAGES - 1 stages after their copy began, and have to get their noise in a stage
    // before their chunk's turn. The fewest taps that a phase may have decide.
    let fewest = if channels.narrow > 0 || !phased {
        stages / channels.chunks
    } else {
        (k / stride).max(1).pow(2)
    };
    let buffers = match channels.chunks {
        1 => 1,
        _ => 1 + STAGES.div_ceil(fewest),
    };
    let problem = Problem {
        n: to.n,
        rows: phase(to.h),
        cols: phase(to.w),
        taps,
        step,
        // An odd number of 16-byte units: eight pixels lie in different banks.
        pitch: match channels.narrow {
            0 => SLAB + 16,
            units => (units | 1) * 16,
        },
        buffers,
        dtype,
        pool: demands.pool,
        noise: demands.noise,
        stages,
        chunks: channels.chunks,
        windows: channels.windows,
    };
    // Of memory: everything once.
    let kept = if demands.pool { 4 } else { 1 };
    let bytes = (dtype.size() * (from.len() + to.len() / kept + w.len())) as f64;
    let measured = demands.tuning.and_then(|tuning| {
        let operation = operation(grad);
        tuning.blocking(operation, dtype, KERNEL, x.n, sizes(x, w, conv))
    });
    let same = !phased
        && stride == 1
        && (from.h, from.w) == (to.h, to.w)
        && k == 3
        && channels.narrow == 0;
    let columns = channels.to.next_multiple_of(32);
    let mut best: Option<(Times, Blocking, Cut, usize)> = None;
    // A blocking that was asked for, or measured, may not fit; then any does.
    for wanted in [demands.blocking.or(measured), None] {
        for blocking in BLOCKINGS {
            let excluded = wanted.is_some_and(|number| number != blocking.number)
                || (blocking.by_position && !same)
                || (dtype == DType::F32 && !TF32.contains(&blocking.number));
            if excluded {
                continue;
            }
            for cut in cuts(blocking, &problem) {
                if shared(&blocking, &problem, &cut) > SHARED {
                    continue;
                }
                let blocks = cut.tiles(&problem)
                    * phases[0]
                    * phases[1]
                    * channels.supergroups
                    * channels.to.div_ceil(blocking.cols);
                let times = times(&blocking, &problem, &cut, &demands.card, blocks, bytes);
                if best.is_none_or(|(least, ..)| times.chip() < least.chip()) {
                    best = Some((times, blocking, cut, blocks));
                }
            }
        }
        if best.is_some() {
            break;
        }
    }
    let Some((times, blocking, cut, blocks)) = best else {
        return Ok(None);
    };

    size(op, "conv.pad", to.h.max(from.h) + 2 * conv.pad)?;
    size(op, "conv.pad", to.w.max(from.w) + 2 * conv.pad)?;
    size(op, "x", from.pixels().max(to.pixels()))?;
    let windows = channels.windows;
    let gemm = Gemm {
        from: dims(op, if grad { "dy" } else { "x" }, from)?,
        to: dims(op, if grad { "x_shape" } else { "y" }, to)?,
        k: k as u32,
        stride: size(op, "conv.stride", stride)?,
        pad: size(op, "conv.pad", conv.pad)?,
        grad: grad.into(),
        row_phases: phases[0] as u32,
        col_phases: phases[1] as u32,
        supergroups: channels.supergroups as u32,
        from_channels: channels.from as u32,
        to_channels: channels.to as u32,
        blocks: channels.to.div_ceil(blocking.cols) as u32,
        slab_rows: columns as u32,
        slabs: slabs as u32,
        narrow: channels.narrow as u32,
        chunks: channels.chunks as u32,
        log_windows: windows.next_power_of_two().trailing_zeros(),
        tile: Tile {
            images: cut.images as u32,
            rows: cut.rows as u32,
            cols: cut.cols as u32,
            row_magic: magic(cut.rows),
            col_magic: magic(cut.cols),
            down: problem.rows.div_ceil(cut.rows) as u32,
            across: problem.cols.div_ceil(cut.cols) as u32,
        },
        patch_rows: cut.patch_rows as u32,
        patch_cols: cut.patch_cols as u32,
        patch_row_magic: magic(cut.patch_rows),
        patch_col_magic: magic(cut.patch_cols),
        patch_pixels: cut.patch_pixels() as u32,
        pitch: problem.pitch as u32,
        step: step as u32,
        gap: gap as u32,
        buffers: buffers as u32,
        vectors: from.c.is_multiple_of(8).into(),
        draws: divisor(1),
    };
    let packing = Packing {
        rows_group: (to.c / conv.groups) as u32,
        channels_group: (from.c / conv.groups) as u32,
        taps: (k * k) as u32,
        groups: conv.groups as u32,
        merge: channels.merge as u32,
        rows: columns as u32,
        slabs: slabs as u32,
        supergroups: channels.supergroups as u32,
        narrow: channels.narrow as u32,
        transposed: grad.into(),
    };
    size(op, "x", blocks)?;
    Ok(Some(Plan {
        blocking,
        gemm,
        packing,
        dtype,
        blocks,
        shared: shared(&blocking, &problem, &cut),
        times,
        wgmma: None,
    }))
}
