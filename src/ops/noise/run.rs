//! Adding a row's noise to a run of its pixels: counters, words, normals and the addition, sixteen
//! blocks at a time.
//!
//! There is one source of the arithmetic. It is written over arrays of lanes and compiled once per
//! instruction set; since it consists of IEEE operations only, all compilations give the same bits.

use super::normals;
use super::philox;
use crate::tensor::Real;

/// Instruction sets the arithmetic is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// What the target guarantees.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F and DQ.
    Avx512,
}

impl Isa {
    /// Those this processor runs, the fastest last.
    pub fn available() -> impl Iterator<Item = Isa> {
        [Isa::Portable, Isa::Avx2, Isa::Avx512]
            .into_iter()
            .filter(|isa| isa.runs())
    }

    /// The fastest this processor runs.
    pub(super) fn best() -> Isa {
        if Isa::Avx512.runs() {
            Isa::Avx512
        } else if Isa::Avx2.runs() {
            Isa::Avx2
        } else {
            Isa::Portable
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn runs(self) -> bool {
        match self {
            Isa::Portable => true,
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Isa::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512dq")
                    && Isa::Avx2.runs()
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn runs(self) -> bool {
        self == Isa::Portable
    }
}

/// Which counters a run of blocks has, and what its normals are scaled by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draw {
    pub key: [u32; 2],
    /// Counter words 1 to 3.
    pub rest: [u32; 3],
    pub sigma: f32,
    /// Blocks per pixel.
    pub blocks: u32,
}

/// Channels `c0 .. c0 + width` of pixels `first_pixel ..`, out of rows of `c` channels. `src`
/// starts at channel 0 of the first pixel; `dst` is dense, `[pixels, width]`.
pub(super) struct Run<'a, T> {
    pub first_pixel: u32,
    pub c: usize,
    pub c0: usize,
    pub width: usize,
    pub src: &'a [T],
    pub dst: &'a mut [T],
}

/// Normals of sixteen blocks at most.
type Buffer = [f32; 16 * 8];

/// Adds; `width > 0`.
pub(super) fn add<T: Real>(isa: Isa, precise: bool, draw: &Draw, run: Run<'_, T>) {
    match isa {
        // SAFETY: `isa` came from `Isa::best` or `Isa::available`, which asked the processor.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { add_avx512(precise, draw, run) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { add_avx2(precise, draw, run) },
        _ => by_words(precise, draw, run),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
fn add_avx512<T: Real>(precise: bool, draw: &Draw, run: Run<'_, T>) {
    by_words(precise, draw, run);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn add_avx2<T: Real>(precise: bool, draw: &Draw, run: Run<'_, T>) {
    by_words(precise, draw, run);
}

/// Picks how many of a block's normals are computed: all of them, or for narrow runs (an image
/// has three channels) those that are used.
#[inline(always)]
fn by_words<T: Real>(precise: bool, draw: &Draw, run: Run<'_, T>) {
    match (precise, run.width) {
        (false, 1..=2) => chunks::<T, false, 2>(draw, run),
        (false, 3..=4) => chunks::<T, false, 4>(draw, run),
        (false, _) => chunks::<T, false, 8>(draw, run),
        (true, 1..=2) => chunks::<T, true, 2>(draw, run),
        (true, _) => chunks::<T, true, 4>(draw, run),
    }
}

/// `USED` normals of each block are computed.
#[inline(always)]
fn chunks<T: Real, const PRECISE: bool, const USED: usize>(draw: &Draw, run: Run<'_, T>) {
    let per_block = if PRECISE { 4 } else { 8 };
    let Run {
        first_pixel,
        c,
        c0,
        width,
        src,
        dst,
    } = run;
    let run_blocks = width.div_ceil(per_block);
    let pixels = dst.len() / width;
    let total = pixels * run_blocks;
    let base = first_pixel * draw.blocks + (c0 / per_block) as u32;
    // Without gaps: the blocks are consecutive, their normals too.
    let dense = width == c && width == run_blocks * per_block;
    let mut z: Buffer = [0.0; 128];
    let (mut pixel, mut k) = (0, 0);
    let mut done = 0;
    while done < total {
        let lanes = if total - done > 8 { 16 } else { 8 };
        let mut first = [0u32; 16];
        let (mut p, mut b) = (pixel, k);
        for word in &mut first[..lanes] {
            *word = base + p as u32 * draw.blocks + b as u32;
            b += 1;
            if b == run_blocks {
                b = 0;
                p += 1;
            }
        }
        if lanes == 16 {
            fill::<PRECISE, USED, 16>(draw, &first, &mut z);
        } else {
            let half: &[u32; 8] = first[..8].try_into().expect("8 of 16");
            fill::<PRECISE, USED, 8>(draw, half, &mut z);
        }
        let n = lanes.min(total - done);
        if dense {
            let at = done * per_block;
            let len = n * per_block;
            add_slice(
                draw.sigma,
                &z[..len],
                &src[at..at + len],
                &mut dst[at..at + len],
            );
        } else {
            let (mut p, mut b) = (pixel, k);
            for block in 0..n {
                let channel = b * per_block;
                let len = per_block.min(width - channel);
                let from = p * c + c0 + channel;
                let to = p * width + channel;
                add_slice(
                    draw.sigma,
                    &z[block * USED..block * USED + len],
                    &src[from..from + len],
                    &mut dst[to..to + len],
                );
                b += 1;
                if b == run_blocks {
                    b = 0;
                    p += 1;
                }
            }
        }
        (pixel, k) = (p, b);
        done += n;
    }
}

/// `dst = src + sigma z`, one rounding.
#[inline(always)]
fn add_slice<T: Real>(sigma: f32, z: &[f32], src: &[T], dst: &mut [T]) {
    let sigma = T::of(f64::from(sigma));
    for ((y, &x), &z) in dst.iter_mut().zip(src).zip(z) {
        *y = sigma.mul_add(T::of(f64::from(z)), x);
    }
}

/// The first `USED` normals of `N` blocks, block after block.
#[inline(always)]
fn fill<const PRECISE: bool, const USED: usize, const N: usize>(
    draw: &Draw,
    first: &[u32; N],
    z: &mut Buffer,
) {
    let words = philox::blocks(first, draw.rest, draw.key);
    if PRECISE {
        let pairs = USED / 2;
        for i in 0..N {
            for j in 0..pairs {
                let at = i * USED + 2 * j;
                [z[at], z[at + 1]] = normals::precise(words[2 * j][i], words[2 * j + 1][i]);
            }
        }
    } else {
        let used = USED / 2;
        for i in 0..N {
            for j in 0..used {
                let at = i * USED + 2 * j;
                [z[at], z[at + 1]] = normals::fast(words[j][i]);
            }
        }
    }
}
