//! Random numbers outside the noise layers: shuffles, crops, flips, initial weights.

use std::convert::Infallible;

use rand::{Rng, TryRng};

use crate::ops::noise::philox4x32_10;

/// A stream of random numbers named by values: the same seed, tag and index give the same stream
/// on every machine, whatever was drawn before.
///
/// Philox4x32-10 under the key of the noise layers, with a counter of its own: word 0 counts
/// blocks, words 1 and 3 are the index, word 2 is `2^31 + tag`. A noise layer's word 2 is
/// `purpose * 2^16 + layer` and below `6 * 2^16`, so no stream ever shares a block with noise. A
/// stream repeats after 2^34 words.
///
/// It is a [`rand::Rng`], so `rand`'s extension traits (shuffles, ranges) work on it:
///
/// ```
/// use noiseforge::rng::Stream;
/// use rand::RngExt;
/// use rand::seq::SliceRandom;
///
/// let (seed, epoch) = (7, 3);
/// let mut stream = Stream::new(seed, 1, epoch);
/// let mut order: Vec<usize> = (0..10).collect();
/// order.shuffle(&mut stream);
/// let flip = stream.random_bool(0.5);
/// # let _ = flip;
/// ```
#[derive(Debug, Clone)]
pub struct Stream {
    key: [u32; 2],
    counter: [u32; 4],
    words: [u32; 4],
    /// Words of `words` already given away.
    used: usize,
}

impl Stream {
    /// The stream of this seed for this use (`tag`, of which the low 31 bits count) and this
    /// `index` (an epoch, an image, a parameter).
    pub fn new(seed: u64, tag: u32, index: u64) -> Self {
        Stream {
            key: [seed as u32, (seed >> 32) as u32],
            counter: [0, index as u32, tag | 1 << 31, (index >> 32) as u32],
            words: [0; 4],
            used: 4,
        }
    }

    fn word(&mut self) -> u32 {
        if self.used == self.words.len() {
            self.words = philox4x32_10(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    /// Uniform in `[0, 1)`, a multiple of 2^-53.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (-53f64).exp2()
    }

    /// Normal with mean 0 and variance 1, by Box-Muller from 106 bits.
    pub fn normal(&mut self) -> f64 {
        // 1 - uniform is in (0, 1], where the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

impl TryRng for Stream {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.word())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let low = u64::from(self.word());
        Ok(u64::from(self.word()) << 32 | low)
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        for chunk in dst.chunks_mut(4) {
            chunk.copy_from_slice(&self.word().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}
