//! Loops compiled for several instruction sets, and their split over threads.
//!
//! The crate is built for the baseline of its target (SSE2 on x86-64). [`multiversion!`] compiles
//! one loop again for AVX2 and AVX-512 and picks at run time. The compiler neither contracts
//! `a * b + c` nor reorders sums by itself, so every version gives the same bits.

use std::mem::MaybeUninit;

use rayon::prelude::*;

/// Elements a thread takes at a time: 64 KiB of f32, which stays in the second-level cache.
pub(crate) const BLOCK: usize = 16 * 1024;

/// Defines a function over `T: Real` whose body is compiled for AVX-512, AVX2 and the baseline.
macro_rules! multiversion {
    ($(
        $(#[$meta:meta])*
        fn $name:ident<$t:ident>($($arg:ident: $ty:ty),* $(,)?) $body:block
    )*) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        fn $name<$t: $crate::tensor::Real>($($arg: $ty),*) {
            #[inline(always)]
            fn body<$t: $crate::tensor::Real>($($arg: $ty),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512<$t: $crate::tensor::Real>($($arg: $ty),*) {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2<$t: $crate::tensor::Real>($($arg: $ty),*) {
                    body($($arg),*)
                }
                match $crate::ops::isa::Isa::current() {
                    // SAFETY: the processor was asked for all four features.
                    $crate::ops::isa::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: the processor was asked for AVX2.
                    $crate::ops::isa::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::ops::isa::Isa::Portable => {}
                }
            }
            body($($arg),*)
        }
    )*};
}
pub(crate) use multiversion;

/// Calls `f(start, block)` for consecutive blocks of `out`, on all threads if `work` (elements
/// read and written) is more than a block. The split depends on the lengths only.
pub(crate) fn for_blocks<T: Send>(
    work: usize,
    out: &mut [T],
    block: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    if work <= BLOCK {
        for (i, out) in out.chunks_mut(block).enumerate() {
            f(i * block, out);
        }
    } else {
        out.par_chunks_mut(block)
            .enumerate()
            .for_each(|(i, out)| f(i * block, out));
    }
}

/// A new vector of `len` elements, written by `f` as in [`for_blocks`]: not filled with zeros first,
/// which would cost as much as the cheapest ops themselves.
///
/// # Safety
/// `f` writes every element of every block it is given.
pub(crate) unsafe fn written_by<T: Copy + Send>(
    len: usize,
    block: usize,
    f: impl Fn(usize, &mut [MaybeUninit<T>]) + Sync,
) -> Vec<T> {
    let mut out = Vec::with_capacity(len);
    for_blocks(len, &mut out.spare_capacity_mut()[..len], block, f);
    // SAFETY: the capacity is at least `len`, and the caller vouches that `f` wrote the elements.
    unsafe { out.set_len(len) };
    out
}

/// Elements of a block that holds whole groups of `len` elements: about [`BLOCK`], at least one group.
pub(crate) fn block_of(len: usize) -> usize {
    (BLOCK / len).max(1) * len
}
