use super::philox::{KEY_STEP, ROUNDS};
use super::{Noise, Normals, Row, Rows};
use crate::error::Result;
use crate::gpu::kernels::noise as kernels;
use crate::gpu::kernels::{Divisor, Draw};
use crate::gpu::{Gpu, Ptr};
use crate::ops::spans::{divisor, span};
use crate::tensor::{Shape, Tensor};

/// The key of every round of Philox: kernels read them from the constant bank, where an instruction
/// takes an operand for nothing.
fn round_keys(mut key: [u32; 2]) -> [u32; 2 * ROUNDS] {
    let mut keys = [0; 2 * ROUNDS];
    for round in keys.chunks_mut(2) {
        round.copy_from_slice(&key);
        key = [0, 1].map(|i| key[i].wrapping_add(KEY_STEP[i]));
    }
    keys
}

impl Noise {
    /// What kernels take, for images of `c` channels.
    pub(in crate::ops) fn draw(&self, c: usize) -> Draw {
        let seed = self.key.seed;
        Draw {
            keys: round_keys([seed as u32, (seed >> 32) as u32]),
            purpose_layer: (self.key.purpose as u32) << 16 | u32::from(self.layer),
            blocks: c.div_ceil(self.normals.per_block()) as u32,
            sigma: self.sigma,
        }
    }
}

/// A fused kernel's noise, or none: with sigma 0 the kernel draws nothing, so that the bits stay.
pub(in crate::ops) struct Fused {
    /// 0 none, 1 fast, 2 precise.
    pub mode: u32,
    pub rows: Ptr,
    pub draw: Draw,
    /// Divides by the pixels of an image.
    pub row_pixels: Divisor,
}

impl Fused {
    /// No noise.
    pub fn none() -> Self {
        Fused {
            mode: 0,
            rows: Ptr::null(),
            draw: Draw {
                keys: [0; 2 * ROUNDS],
                purpose_layer: 0,
                blocks: 0,
                sigma: 0.0,
            },
            row_pixels: divisor(1),
        }
    }

    /// For images of this shape.
    pub fn new(gpu: &Gpu, noise: Option<&Noise>, shape: Shape) -> Result<Self> {
        let row_pixels = divisor(shape.h * shape.w);
        match noise.filter(|noise| noise.sigma != 0.0) {
            Some(noise) => Ok(Fused {
                mode: match noise.normals {
                    Normals::Fast => 1,
                    Normals::Precise => 2,
                },
                rows: noise.key.rows.ptr(gpu)?,
                draw: noise.draw(shape.c),
                row_pixels,
            }),
            None => Ok(Fused {
                row_pixels,
                ..Fused::none()
            }),
        }
    }
}

pub(super) fn forward(gpu: &Gpu, x: &Tensor, noise: &Noise) -> Result<Tensor> {
    let (shape, t) = (x.shape(), x.dtype());
    let (span, grid) = span("noise::forward", shape.pixels(), shape.c)?;
    let fused = Fused::new(gpu, Some(noise), shape)?;
    let mut y = Tensor::uninit(gpu, shape, t)?;
    let (to, rows) = (y.ptr_mut()?, fused.rows);
    let (precise, draw) = (noise.normals == Normals::Precise, fused.draw);
    let row_pixels = fused.row_pixels;
    kernels::noise_forward(
        gpu,
        t,
        span.vector(),
        precise,
        grid,
        0,
        to,
        x.ptr(),
        rows,
        draw,
        row_pixels,
        span,
    )?;
    Ok(y)
}

/// Blocks `first .. first + blocks` of every row.
fn run_words(gpu: &Gpu, rows: &Rows, draw: Draw, first: u32, blocks: u32) -> Result<Vec<[u32; 4]>> {
    let mut words = gpu.alloc::<u32>(4 * blocks as usize * rows.len())?;
    let grid = [blocks.div_ceil(256), rows.len() as u32, 1];
    let (to, rows) = (words.ptr_mut(), rows.ptr(gpu)?);
    kernels::noise_words(gpu, grid, 0, to, rows, first, blocks, draw)?;
    Ok(bytemuck::cast_slice(&words.to_vec()?).to_vec())
}

pub(super) fn words(gpu: &Gpu, noise: &Noise, shape: Shape) -> Result<Vec<[u32; 4]>> {
    let draw = noise.draw(shape.c);
    let blocks = (shape.h * shape.w) as u32 * draw.blocks;
    run_words(gpu, &noise.key.rows, draw, 0, blocks)
}

pub(super) fn philox(gpu: &Gpu, counter: [u32; 4], key: [u32; 2]) -> Result<[u32; 4]> {
    let [first, id, purpose_layer, draw] = counter;
    let rows = Rows::from([Row { id, draw }]);
    let draw = Draw {
        keys: round_keys(key),
        purpose_layer,
        blocks: 1,
        sigma: 0.0,
    };
    Ok(run_words(gpu, &rows, draw, first, 1)?[0])
}
