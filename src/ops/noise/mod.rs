//! Gaussian noise from a counter: `y = x + sigma * z`, `z ~ N(0, 1)`.

mod philox;

use std::sync::Arc;

use crate::error::Result;
use crate::tensor::{Real, Tensor};

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
}

/// Which random variables one row of a batch sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Row {
    /// The image's index in its data set or, in training, in the global batch.
    pub id: u32,
    /// The training step, or the index of the ensemble's or attack's draw.
    pub draw: u32,
}

/// Names every random variable of one pass through a network: a value, never hidden state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The user's seed.
    pub seed: u64,
    /// What the draw is for.
    pub purpose: Purpose,
    /// One entry per row of the batch.
    pub rows: Arc<[Row]>,
}

impl Key {
    /// The key of a batch whose rows have consecutive ids `first..first + n` and one draw.
    pub fn consecutive(seed: u64, purpose: Purpose, first: u32, n: usize, draw: u32) -> Self {
        let rows = (0..n as u32)
            .map(|i| Row {
                id: first + i,
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

/// How words become normals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Normals {
    /// 8 normals a block, 20-bit radius and 12-bit angle; largest |z| is 5.40.
    #[default]
    Fast,
    /// 4 normals a block, 32-bit radius and angle; largest |z| is 6.7. For certification.
    Precise,
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
pub fn forward(_x: &Tensor, _noise: &Noise) -> Result<Tensor> {
    unimplemented!()
}

/// Checks sigma (finite, not negative) and the number of rows; for the ops that draw noise.
pub fn check(_op: &'static str, _noise: &Noise, _rows: usize) -> Result<()> {
    unimplemented!()
}

/// The draw of one row: adds noise to runs of its channels. What fused ops call while they read.
#[derive(Debug, Clone, Copy)]
pub struct RowNoise {
    // key words, purpose/layer word, row id, draw, sigma, normals, blocks per pixel
}

impl RowNoise {
    /// The draw of batch row `row` for images of `c` channels.
    pub fn new(_noise: &Noise, _row: usize, _c: usize) -> Self {
        unimplemented!()
    }

    /// `dst = src + sigma * z` for `pixels` consecutive pixels starting at pixel index
    /// `first_pixel` (`h * W + w`), all channels.
    /// `src` and `dst` hold `pixels * c` elements, channels innermost. Bit-identical to the same
    /// elements of [`forward`], however the row is cut.
    pub fn add<T: Real>(&self, _first_pixel: usize, _src: &[T], _dst: &mut [T]) {
        unimplemented!()
    }

    /// The same for channels `c0 .. c0 + width` only (`c0` a multiple of 8), gathering from rows
    /// of `c` channels in `src` (which starts at channel 0 of `first_pixel`) into a dense
    /// `[pixels, width]` `dst`.
    pub fn add_channels<T: Real>(
        &self,
        _first_pixel: usize,
        _c0: usize,
        _width: usize,
        _src: &[T],
        _dst: &mut [T],
    ) {
        unimplemented!()
    }
}
