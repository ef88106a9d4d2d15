//! How the GPU paths of ops over pixels are cut among blocks (`kernels/channels.cuh`), from the shape
//! alone: the order of every sum is the same on every device.

use crate::error::{Error, Result};
use crate::gpu::kernels::{Divisor, Span};
use crate::gpu::{Gpu, Ptr};
use crate::tensor::Tensor;

/// Threads of a block.
const THREADS: usize = 256;
/// Blocks that fill a large GPU several times over; a thread takes more pixels only when there are
/// more blocks than these.
const BLOCKS: usize = 1024;
/// Pixels a thread of an elementwise kernel takes at most: what belongs to its channels is loaded
/// once for all of them.
const EACH: usize = 8;

/// The cut of a tensor for the kernels that go over it element by element.
pub(super) fn span(op: &'static str, pixels: usize, c: usize) -> Result<(Span, [u32; 3])> {
    span_of(op, pixels, c, EACH)
}

/// The cut with at most `most` pixels a thread.
///
/// Errors: 2^31 pixels or more.
pub(super) fn span_of(
    op: &'static str,
    pixels: usize,
    c: usize,
    most: usize,
) -> Result<(Span, [u32; 3])> {
    if pixels >= 1 << 31 || c >= 1 << 31 {
        let expected = "fewer than 2^31 pixels and channels on a GPU";
        let found = format!("{pixels} pixels of {c} channels");
        return Err(Error::argument(op, "x", expected, found));
    }
    let groups = c.div_ceil(8).max(1);
    let log_lanes = groups.next_power_of_two().ilog2().min(5);
    let rows = THREADS >> log_lanes;
    let columns = groups.div_ceil(1 << log_lanes);
    let each = (pixels * columns).div_ceil(rows * BLOCKS).clamp(1, most);
    let span = Span {
        pixels: pixels as u32,
        c: c as u32,
        log_lanes,
        each: each as u32,
    };
    let grid = [pixels.div_ceil(rows * each) as u32, columns as u32, 1];
    Ok((span, grid))
}

impl Span {
    /// Pixels that one block takes.
    pub(super) fn pixels_per_block(&self) -> u32 {
        (THREADS as u32 >> self.log_lanes) * self.each
    }

    /// Whether kernels may load and store 16 bytes at a time.
    pub(super) fn vector(&self) -> bool {
        self.c.is_multiple_of(8)
    }
}

/// What `kernels/divide.cuh` divides by; below 2^31.
pub(super) fn divisor(divisor: usize) -> Divisor {
    let d = divisor.max(1) as u64;
    if d == 1 {
        return Divisor {
            divisor: 1,
            multiplier: 0,
            shift: 0,
        };
    }
    let shift = d.next_power_of_two().ilog2() - 1;
    Divisor {
        divisor: d as u32,
        multiplier: (1u64 << (32 + shift)).div_ceil(d) as u32,
        shift,
    }
}

/// An elementwise op's input and output: the same memory if nobody else has it.
pub(super) struct Reused {
    /// To be read.
    pub from: Ptr,
    /// To be written.
    pub to: Ptr,
    /// What `to` points into: the op's result.
    pub y: Tensor,
    /// Keeps what `from` points into.
    _x: Option<Tensor>,
}

/// Errors: not enough device memory.
pub(super) fn reuse(gpu: &Gpu, x: Tensor) -> Result<Reused> {
    let from = x.ptr();
    let (mut y, _x) = match x.is_unique() {
        true => (x, None),
        false => (Tensor::uninit(gpu, x.shape(), x.dtype())?, Some(x)),
    };
    let to = y.ptr_mut()?;
    Ok(Reused { from, to, y, _x })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_is_exact() {
        let divisors = [
            1,
            2,
            3,
            5,
            6,
            7,
            9,
            31,
            32,
            33,
            1000,
            1023,
            1024,
            65537,
            (1 << 31) - 1,
        ];
        for d in divisors {
            let Divisor {
                multiplier, shift, ..
            } = divisor(d);
            let quotient = |n: u32| match d {
                1 => n,
                _ => ((u64::from(n) * u64::from(multiplier)) >> 32) as u32 >> shift,
            };
            let edges = (0..200u64).flat_map(|q| [q * d as u64, q * d as u64 + d as u64 - 1]);
            let largest = (1u64 << 31) - 1;
            let last = (0..200).map(|i| largest - i);
            let strewn = (0..20_000u64).map(|i| i * 107_374 % largest);
            for n in edges.chain(last).chain(strewn).filter(|&n| n <= largest) {
                assert_eq!(u64::from(quotient(n as u32)), n / d as u64, "{n} / {d}");
            }
        }
    }

    #[test]
    fn spans_cover_everything_once() {
        for c in [1, 3, 8, 9, 24, 64, 257, 2048] {
            for pixels in [1, 2, 255, 1000, 1 << 20, (1 << 31) - 1] {
                for most in [1, 8, 64] {
                    let (span, grid) = span_of("op", pixels, c, most).unwrap();
                    let block = span.pixels_per_block() as usize;
                    assert!(grid[0] as usize * block >= pixels);
                    assert!((grid[0] as usize - 1) * block < pixels);
                    assert!(((grid[1] as usize) << span.log_lanes) * 8 >= c);
                    assert!(grid[1] < 65_536 && span.each as usize <= most);
                    // A thread's first pixel is computed in 32 bits.
                    assert!(grid[0] as u64 * block as u64 <= u64::from(u32::MAX));
                }
            }
        }
        assert!(span_of("op", 1 << 31, 1, 1).is_err());
    }
}
