//! Gaussian noise from a counter: `y = x + sigma * z`, `z ~ N(0, 1)`.

#[cfg(target_arch = "x86_64")]
mod avx512;
pub(super) mod gpu;
mod normals;
mod philox;
mod rows;
mod run;

use rayon::prelude::*;

use crate::dispatch;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::ops::isa::Isa;
use crate::tensor::{DType, Device, Real, Shape, Tensor};

pub use philox::philox4x32_10;
pub use rows::{Row, Rows};

/// What a draw is for. Draws of different purposes never coincide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A training step.
    Train = 0,
    /// Evaluation and ensemble inference.
    Eval = 1,
    /// Inside an attack.
    Attack = 2,
    /// Certification.
    Certify = 3,
    /// Tests.
    Test = 4,
    /// Beside a training step: the attack of adversarial training, a teacher's pass.
    Auxiliary = 5,
}

/// Names every random variable of one pass through a network: a value, never hidden state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The user's seed.
    pub seed: u64,
    /// What the draw is for.
    pub purpose: Purpose,
    /// One entry per row of the batch.
    pub rows: Rows,
}

impl Key {
    /// The key of a batch whose rows have consecutive ids `first..first + n` and one draw.
    pub fn consecutive(seed: u64, purpose: Purpose, first: u32, n: usize, draw: u32) -> Self {
        let rows = (0..n as u32)
            .map(|i| Row {
                id: first.wrapping_add(i),
                draw,
            })
            .collect();
        Key {
            seed,
            purpose,
            rows,
        }
    }
}

/// Whether a GPU's convolution over `c` channels draws the noise on its input best while it loads it, other
/// than in a pass before: on tensor cores each block of output channels draws it again. Measured on an H100
/// (benches/record/2026-11-27-h100): with 64 channels and more a convolution with noise in its load takes 1.5 to
/// 2.0 times as long as one without, 1x1 ones of few channels 1.1 times, a pass before it 1.1 to 1.6 times; with
/// 3 channels they are equal.
/// On CUDA cores, in f32, it costs 1 to 6%.
pub fn in_load(dtype: DType, c: usize) -> bool {
    const FEW: usize = 16;
    dtype == DType::F32 || c < FEW
}

/// How words become normals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Normals {
    /// 8 normals a block, 20-bit radius and 12-bit angle; largest |z| is 5.40.
    #[default]
    Fast,
    /// 4 normals a block (so `ceil(c / 4)` blocks a pixel, not `ceil(c / 8)`), 32-bit radius and
    /// angle; largest |z| is 6.76. For certification.
    Precise,
}

impl Normals {
    /// Normals one block gives: the channels it serves.
    const fn per_block(self) -> usize {
        match self {
            Normals::Fast => 8,
            Normals::Precise => 4,
        }
    }
}

/// One noise layer's draw: `x + sigma * z(key, layer)`.
#[derive(Debug, Clone)]
pub struct Noise {
    /// Whose draw.
    pub key: Key,
    /// The layer's number in its network; 0 is the noise on the image.
    pub layer: u16,
    /// Standard deviation, in the unit of what it is added to; at least 0.
    pub sigma: f32,
    /// How words become normals.
    pub normals: Normals,
}

/// `y = x + sigma * z`; `x` and `y` are `[n, h, w, c]` and `noise.key.rows` has `n` entries.
/// The gradient is the identity.
///
/// One fused multiply-add in the tensor's type, for 16-bit types in f32 and then one rounding; `z` is
/// the same f32 number for f32 and f64. On a GPU precise normals are the same bits as on the CPU, fast
/// ones come from approximations and are as close as `kernels/noise.cuh` says. `sigma = 0` copies the
/// bits of `x`.
///
/// # Errors
/// What [`check_shape`] refuses.
pub fn forward(x: &Tensor, noise: &Noise) -> Result<Tensor> {
    let shape = x.shape();
    check_shape("noise::forward", noise, shape)?;
    if noise.sigma == 0.0 || shape.is_empty() {
        return Ok(x.clone());
    }
    if let Some(gpu) = x.gpu() {
        return gpu::forward(gpu, x, noise);
    }
    dispatch!(x.dtype(), T => {
        let mut y = vec![T::default(); shape.len()];
        add_rows(noise, shape, x.data::<T>(), &mut y);
        Tensor::from_vec(shape, y)
    })
}

/// The integers behind the noise on images of this shape: the words of the blocks
/// `pixel * blocks + block in the pixel` of every row, row after row. They are the same on every
/// device.
///
/// Errors: as [`forward`]; a fault of the device.
pub fn words(noise: &Noise, shape: Shape, device: &Device) -> Result<Vec<[u32; 4]>> {
    check_shape("noise::words", noise, shape)?;
    let blocks = shape.h * shape.w * shape.c.div_ceil(noise.normals.per_block());
    if blocks >= 1 << 31 || shape.n >= 1 << 16 {
        let expected = "fewer than 2^31 blocks a row and 65536 rows";
        return Err(Error::argument("noise::words", "shape", expected, shape));
    }
    if let Device::Gpu(gpu) = device {
        return gpu::words(gpu, noise, shape);
    }
    let (seed, layer) = (noise.key.seed, noise.layer);
    let layer = (noise.key.purpose as u32) << 16 | u32::from(layer);
    let key = [seed as u32, (seed >> 32) as u32];
    let row = |&Row { id, draw }: &Row| {
        (0..blocks).map(move |block| philox4x32_10([block as u32, id, layer, draw], key))
    };
    Ok(noise.key.rows.iter().flat_map(row).collect())
}

/// [`philox4x32_10`] on a GPU, for its known answers.
#[doc(hidden)]
pub fn philox4x32_10_on(gpu: &Gpu, counter: [u32; 4], key: [u32; 2]) -> Result<[u32; 4]> {
    gpu::philox(gpu, counter, key)
}

/// Cuts the rows into pieces of whole pixels and adds their noise in parallel.
fn add_rows<T: Real>(noise: &Noise, shape: Shape, x: &[T], y: &mut [T]) {
    let pixels = (PIECE / shape.c).max(1);
    let row_len = shape.row_len();
    y.par_chunks_mut(row_len)
        .zip(x.par_chunks(row_len))
        .enumerate()
        .for_each(|(row, (y, x))| {
            let draw = RowNoise::new(noise, row, shape.c);
            y.par_chunks_mut(pixels * shape.c)
                .zip(x.par_chunks(pixels * shape.c))
                .enumerate()
                .for_each(|(piece, (y, x))| draw.add(piece * pixels, x, y));
        });
}

/// Elements one task adds noise to: tens of microseconds of work.
const PIECE: usize = 1 << 15;

/// Checks sigma (finite, not negative) and the number of rows; for the ops that draw noise.
/// They check that the counter is wide enough for their shape with [`check_shape`].
pub fn check(op: &'static str, noise: &Noise, rows: usize) -> Result<()> {
    if !(noise.sigma.is_finite() && noise.sigma >= 0.0) {
        return Err(Error::argument(
            op,
            "noise.sigma",
            "a finite number of at least 0",
            noise.sigma,
        ));
    }
    if noise.key.rows.len() != rows {
        return Err(Error::argument(
            op,
            "noise.key.rows",
            format_args!("{rows} entries, one per row of the batch"),
            noise.key.rows.len(),
        ));
    }
    Ok(())
}

/// [`check`], and that an image of this shape has no more blocks than the 32-bit counter word
/// that numbers them can tell apart.
pub fn check_shape(op: &'static str, noise: &Noise, shape: Shape) -> Result<()> {
    check(op, noise, shape.n)?;
    let blocks = shape
        .h
        .checked_mul(shape.w)
        .and_then(|pixels| pixels.checked_mul(shape.c.div_ceil(noise.normals.per_block())));
    if blocks.is_none_or(|blocks| blocks as u64 > 1 << 32) {
        return Err(Error::argument(
            op,
            "x",
            format_args!(
                "at most 2^32 blocks of {} channels in a row",
                noise.normals.per_block()
            ),
            shape,
        ));
    }
    Ok(())
}

/// The draw of one row: adds noise to runs of its channels. What fused ops call while they read.
#[derive(Debug, Clone, Copy)]
pub struct RowNoise {
    draw: run::Draw,
    c: usize,
    normals: Normals,
    isa: Isa,
}

impl RowNoise {
    /// The draw of batch row `row` for images of `c` channels. Panics if the batch has no such
    /// row: [`check`] first.
    pub fn new(noise: &Noise, row: usize, c: usize) -> Self {
        let seed = noise.key.seed;
        let Row { id, draw } = noise.key.rows[row];
        let layer = (noise.key.purpose as u32) << 16 | u32::from(noise.layer);
        RowNoise {
            draw: run::Draw {
                key: [seed as u32, (seed >> 32) as u32],
                rest: [id, layer, draw],
                sigma: noise.sigma,
                blocks: c.div_ceil(noise.normals.per_block()) as u32,
            },
            c,
            normals: noise.normals,
            isa: Isa::current(),
        }
    }

    /// The same draw computed with another instruction set, for tests that compare them.
    #[doc(hidden)]
    pub fn with_isa(self, isa: Isa) -> Self {
        assert!(Isa::available().contains(&isa), "{isa:?} is not there");
        RowNoise { isa, ..self }
    }

    /// `dst = src + sigma * z` for `pixels` consecutive pixels starting at pixel index
    /// `first_pixel` (`h * W + w`), all channels.
    /// `src` and `dst` hold `pixels * c` elements, channels innermost. Bit-identical to the same
    /// elements of [`forward`], however the row is cut; sixteen blocks (128 channels, or 16 narrow
    /// pixels) fill the vectors, fewer cost as much as eight or sixteen.
    pub fn add<T: Real>(&self, first_pixel: usize, src: &[T], dst: &mut [T]) {
        self.add_channels(first_pixel, 0, self.c, src, dst);
    }

    /// The same for channels `c0 .. c0 + width` only (`c0` a multiple of 8), gathering from rows
    /// of `c` channels in `src` (which starts at channel 0 of `first_pixel`) into a dense
    /// `[pixels, width]` `dst`.
    pub fn add_channels<T: Real>(
        &self,
        first_pixel: usize,
        c0: usize,
        width: usize,
        src: &[T],
        dst: &mut [T],
    ) {
        debug_assert!(c0.is_multiple_of(8) && c0 + width <= self.c);
        if width == 0 {
            return;
        }
        debug_assert!(dst.len().is_multiple_of(width));
        if self.draw.sigma == 0.0 {
            for (dst, src) in dst.chunks_exact_mut(width).zip(src.chunks(self.c)) {
                dst.copy_from_slice(&src[c0..c0 + width]);
            }
            return;
        }
        let run = run::Run {
            first_pixel: first_pixel as u32,
            c: self.c,
            c0,
            width,
            src,
            dst,
        };
        run::add(self.isa, self.normals == Normals::Precise, &self.draw, run);
    }
}
