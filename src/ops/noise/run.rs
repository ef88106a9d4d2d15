//! Adding a row's noise to a run of its pixels: counters, words, normals and the addition, sixteen
//! blocks at a time.
//!
//! There is one source of the arithmetic. It is written over arrays of lanes and compiled once per
//! instruction set; since it consists of IEEE operations only, all compilations give the same bits.

use super::normals;
use super::philox;
use crate::ops::isa::Isa;
use crate::tensor::Real;

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

/// Normals of sixteen blocks at most, and room for a whole vector behind them; on a cache line of
/// its own, for whole vectors that cross none.
#[repr(align(64))]
pub(super) struct Buffer(pub [f32; 16 * 8 + 16]);

/// Computes normals into a buffer; one implementation per instruction set.
trait Fill {
    /// The first `USED` normals of 16 (or, if `half`, 8) blocks, block after block at a distance
    /// of `stride <= USED`.
    fn fill<const PRECISE: bool, const USED: usize>(
        draw: &Draw,
        first: &[u32; 16],
        half: bool,
        stride: usize,
        z: &mut Buffer,
    );
}

/// Adds; `width > 0`.
pub(super) fn add<T: Real>(isa: Isa, precise: bool, draw: &Draw, run: Run<'_, T>) {
    match isa {
        // SAFETY: `isa` came from `Isa::current` or `Isa::available`, which asked the processor.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { add_avx512(precise, draw, run) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { add_avx2(precise, draw, run) },
        _ => by_width::<T, Lanes>(precise, draw, run),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
fn add_avx512<T: Real>(precise: bool, draw: &Draw, run: Run<'_, T>) {
    by_width::<T, Avx512>(precise, draw, run);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn add_avx2<T: Real>(precise: bool, draw: &Draw, run: Run<'_, T>) {
    by_width::<T, Lanes>(precise, draw, run);
}

/// Picks how many of a block's normals are computed: all of them, or for narrow runs (an image
/// has three channels) the first half.
#[inline(always)]
fn by_width<T: Real, F: Fill>(precise: bool, draw: &Draw, run: Run<'_, T>) {
    if precise {
        chunks::<T, F, true, 4, 4>(draw, run);
    } else if run.width <= 4 {
        chunks::<T, F, false, 4, 8>(draw, run);
    } else {
        chunks::<T, F, false, 8, 8>(draw, run);
    }
}

/// Sixteen blocks at a time. A block serves `CHANNELS`; `USED` of its normals are computed.
#[inline(always)]
fn chunks<T: Real, F: Fill, const PRECISE: bool, const USED: usize, const CHANNELS: usize>(
    draw: &Draw,
    run: Run<'_, T>,
) {
    let Run {
        first_pixel,
        c,
        c0,
        width,
        src,
        dst,
    } = run;
    let run_blocks = width.div_ceil(CHANNELS);
    let total = dst.len() / width * run_blocks;
    let gap = draw.blocks - run_blocks as u32;
    // A lone block is cut to the run's width at once; then, as with whole blocks, the normals lie
    // as the elements do.
    let stride = if run_blocks == 1 { width } else { CHANNELS };
    let dense = width == c && (run_blocks == 1 || width == run_blocks * CHANNELS);

    let mut buffer = Buffer([0.0; 144]);
    let mut counter = first_pixel * draw.blocks + (c0 / CHANNELS) as u32;
    // The next block: where it is in its pixel, and its pixel in the run.
    let (mut block, mut pixel) = (0, 0);
    let mut done = 0;
    while done < total {
        let n = (total - done).min(16);
        let mut first = [0u32; 16];
        if gap == 0 {
            for (i, word) in first.iter_mut().enumerate() {
                *word = counter.wrapping_add(i as u32);
            }
            counter = counter.wrapping_add(16);
        } else {
            let mut b = block;
            for word in &mut first[..n] {
                *word = counter;
                b += 1;
                let wrap = b == run_blocks;
                counter = counter.wrapping_add(1 + if wrap { gap } else { 0 });
                b = if wrap { 0 } else { b };
            }
        }
        F::fill::<PRECISE, USED>(draw, &first, n <= 8, stride, &mut buffer);
        let z = &buffer.0;
        if dense {
            let (at, len) = (done * stride, n * stride);
            let (x, y) = (&src[at..at + len], &mut dst[at..at + len]);
            if len == 128 {
                add_slice(draw.sigma, &z[..128], &x[..128], &mut y[..128]);
            } else {
                add_slice(draw.sigma, &z[..len], x, y);
            }
        } else {
            for z in z.chunks_exact(stride).take(n) {
                let channel = block * CHANNELS;
                let (from, to) = (pixel * c + c0 + channel, pixel * width + channel);
                let len = stride.min(width - channel);
                let (x, y) = (&src[from..from + len], &mut dst[to..to + len]);
                if len == 8 {
                    add_slice(draw.sigma, &z[..8], &x[..8], &mut y[..8]);
                } else {
                    add_slice(draw.sigma, &z[..len], x, y);
                }
                block += 1;
                if block == run_blocks {
                    (block, pixel) = (0, pixel + 1);
                }
            }
        }
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

/// Arrays of lanes, for the compiler to put into the registers it has.
struct Lanes;

impl Fill for Lanes {
    #[inline(always)]
    fn fill<const PRECISE: bool, const USED: usize>(
        draw: &Draw,
        first: &[u32; 16],
        half: bool,
        stride: usize,
        z: &mut Buffer,
    ) {
        if half {
            let first: &[u32; 8] = first[..8].try_into().expect("8 of 16");
            lanes::<PRECISE, USED, 8>(draw, first, stride, &mut z.0);
        } else {
            lanes::<PRECISE, USED, 16>(draw, first, stride, &mut z.0);
        }
    }
}

/// The normals of `N` blocks. A function and not a closure: closures are not compiled for the
/// instruction set of the function they are inlined into.
#[inline(always)]
fn lanes<const PRECISE: bool, const USED: usize, const N: usize>(
    draw: &Draw,
    first: &[u32; N],
    stride: usize,
    z: &mut [f32; 144],
) {
    let words = philox::blocks(first, draw.rest, draw.key);
    let mut wide = [0.0; 128];
    #[expect(clippy::needless_range_loop, reason = "lane i of several words")]
    for i in 0..N {
        for j in 0..USED / 2 {
            let at = i * USED + 2 * j;
            [wide[at], wide[at + 1]] = if PRECISE {
                normals::precise(words[2 * j][i], words[2 * j + 1][i])
            } else {
                normals::fast(words[j][i])
            };
        }
    }
    if stride == USED {
        z[..N * USED].copy_from_slice(&wide[..N * USED]);
    } else {
        for (wide, z) in wide
            .chunks_exact(USED)
            .zip(z.chunks_exact_mut(stride))
            .take(N)
        {
            z.copy_from_slice(&wide[..stride]);
        }
    }
}

/// AVX-512; only ever used below [`add_avx512`].
#[cfg(target_arch = "x86_64")]
struct Avx512;

#[cfg(target_arch = "x86_64")]
impl Fill for Avx512 {
    #[inline(always)]
    fn fill<const PRECISE: bool, const USED: usize>(
        draw: &Draw,
        first: &[u32; 16],
        half: bool,
        stride: usize,
        z: &mut Buffer,
    ) {
        // SAFETY: the only caller is compiled for these instructions, and `add` asked for them.
        unsafe { super::avx512::fill::<PRECISE, USED>(draw, first, half, stride, z) }
    }
}
