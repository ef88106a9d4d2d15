//! What several tests share.
// Each test program uses its share.
#![allow(dead_code)]

pub mod attacks;
pub mod command;

/// Values in [-1, 1) without pattern, exact in f32: a linear congruential generator's upper bits.
pub fn values(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f64 / (1 << 23) as f64 - 1.0
        })
        .collect()
}
