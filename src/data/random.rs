//! Random choices of the data pipeline, counted and not remembered.

/// What a stream of draws is for. Streams of different uses never coincide.
#[derive(Debug, Clone, Copy)]
pub(super) enum Use {
    SyntheticTrain,
    SyntheticTest,
    Augment,
    Shuffle,
}

/// The draws that belong to one `(seed, use, epoch, index)`.
pub(super) struct Draws {
    state: u64,
}

impl Draws {
    pub fn new(seed: u64, purpose: Use, epoch: u32, index: u32) -> Self {
        let mut state = mix(seed ^ 0x6e6f_6973_6566_6f72);
        state = mix(state ^ (u64::from(epoch) << 8 | purpose as u64));
        Draws {
            state: mix(state ^ u64::from(index)),
        }
    }

    pub fn word(&mut self) -> u32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.state) >> 32) as u32
    }

    /// Uniform in [0, 1), 24 bits.
    pub fn unit(&mut self) -> f32 {
        (self.word() >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform in [low, high).
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// Uniform in 0..n, for `0 < n < 2^32`; the bias of multiply-and-shift is below n / 2^32.
    pub fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.word()) * n as u64) >> 32) as usize
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f32) -> bool {
        self.unit() < probability
    }

    /// Two independent standard normals (Box-Muller).
    pub fn normals(&mut self) -> [f32; 2] {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * self.unit()).sin_cos();
        [radius * cos, radius * sin]
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
