//! Random choices of the data pipeline: a function of the seed, the use, the epoch and the image.

use rand::Rng;

use crate::rng::Stream;

/// What draws are for; the tags of [`Stream`] that belong to this module.
#[derive(Debug, Clone, Copy)]
pub(super) enum Use {
    SyntheticTrain = 0x0da7_a001,
    SyntheticTest = 0x0da7_a002,
    Augment = 0x0da7_a003,
    Shuffle = 0x0da7_a004,
}

/// The draws that belong to one image in one epoch.
pub(super) struct Draws(Stream);

impl Draws {
    pub fn new(seed: u64, purpose: Use, epoch: u32, index: u32) -> Self {
        let index = u64::from(epoch) << 32 | u64::from(index);
        Draws(Stream::new(seed, purpose as u32, index))
    }

    /// Uniform in [0, 1), a multiple of 2^-24.
    pub fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform in [low, high).
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// Uniform in 0..n, for 0 < n < 2^32; the bias of multiply-and-shift is below n / 2^32.
    pub fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f32) -> bool {
        self.unit() < probability
    }

    /// Two independent standard normals (Box-Muller).
    pub fn normals(&mut self) -> [f32; 2] {
        // 1 - unit is in (0, 1], where the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * self.unit()).sin_cos();
        [radius * cos, radius * sin]
    }
}
