//! Vectors of each instruction set, and the tiles made of them.

use super::{Kernel, RawTile};

/// One vector register.
trait Lanes: Copy {
    type Element: Copy;
    const COUNT: usize;

    /// # Safety
    /// `from` is good for a read of one element; the processor has the instruction set.
    unsafe fn splat(from: *const Self::Element) -> Self;

    /// # Safety
    /// `from` is good for a read of `COUNT` elements; the processor has the instruction set.
    unsafe fn load(from: *const Self::Element) -> Self;

    /// # Safety
    /// `to` is good for a write of `COUNT` elements; the processor has the instruction set.
    unsafe fn store(self, to: *mut Self::Element);

    /// `self * b + c`.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
}

/// A tile of `ROWS` rows and `VECTORS` vectors of columns.
///
/// # Safety
/// As [`Kernel::body`].
#[inline(always)]
unsafe fn tile<V: Lanes, const ROWS: usize, const VECTORS: usize>(t: &RawTile<V::Element>) {
    // SAFETY: the caller vouches for every pointer of the tile and for the instruction set.
    unsafe {
        let mut c: [[V; VECTORS]; ROWS] = if t.start.is_null() {
            std::array::from_fn(|m| std::array::from_fn(|v| V::load(t.c[m].add(v * V::COUNT))))
        } else {
            std::array::from_fn(|_| std::array::from_fn(|v| V::load(t.start.add(v * V::COUNT))))
        };
        let a: [*const V::Element; ROWS] = std::array::from_fn(|m| t.a[m]);
        for r in 0..t.run_count {
            let run = &*t.runs.add(r);
            let mut at = run.a;
            let mut b = t.b.add(run.b);
            for _ in 0..run.len {
                let columns: [V; VECTORS] = std::array::from_fn(|v| V::load(b.add(v * V::COUNT)));
                for (c, a) in c.iter_mut().zip(a) {
                    let row = V::splat(a.add(at));
                    for (c, column) in c.iter_mut().zip(columns) {
                        *c = row.mul_add(column, *c);
                    }
                }
                at += t.a_step;
                b = b.wrapping_add(t.b_step);
            }
        }
        for (c, to) in c.iter().zip(t.c) {
            for (v, c) in c.iter().enumerate() {
                c.store(to.add(v * V::COUNT));
            }
        }
    }
}

/// Plain Rust; the compiler makes of it what the target's baseline allows.
#[derive(Clone, Copy)]
struct Plain<T, const N: usize>([T; N]);

impl<T: num_traits::Float, const N: usize> Lanes for Plain<T, N> {
    type Element = T;
    const COUNT: usize = N;

    #[inline(always)]
    unsafe fn splat(from: *const T) -> Self {
        // SAFETY: the caller vouches for the read.
        Plain([unsafe { *from }; N])
    }

    #[inline(always)]
    unsafe fn load(from: *const T) -> Self {
        // SAFETY: the caller vouches for the read; element alignment is all an array needs.
        Plain(unsafe { *from.cast::<[T; N]>() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut T) {
        // SAFETY: the caller vouches for the write.
        unsafe { *to.cast::<[T; N]>() = self.0 }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // Where the target has no fused multiply-add, `mul_add` would be a library call.
        let fused = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
        Plain(std::array::from_fn(|i| match fused {
            true => self.0[i].mul_add(b.0[i], c.0[i]),
            false => self.0[i] * b.0[i] + c.0[i],
        }))
    }
}

macro_rules! kernels {
    ($($(#[$attribute:meta])* $name:ident: $vector:ty, $rows:literal x $vectors:literal;)*) => {
        $(
            /// # Safety
            /// As [`Kernel::body`].
            $(#[$attribute])*
            unsafe fn $name(t: &RawTile<<$vector as Lanes>::Element>) {
                // SAFETY: the caller vouches for the pointers and for the instruction set.
                unsafe { tile::<$vector, $rows, $vectors>(t) }
            }
        )*
    };
}

macro_rules! kernel {
    ($body:path, $vector:ty, $rows:literal x $vectors:literal) => {
        Kernel {
            rows: $rows,
            cols: <$vector as Lanes>::COUNT * $vectors,
            body: $body,
        }
    };
}

kernels! {
    portable_f32: Plain<f32, 8>, 4 x 1;
    portable_f64: Plain<f64, 4>, 4 x 1;
}

/// 4 rows: with SSE2's 16 registers of 4 lanes that leaves room for the operands.
pub(super) const PORTABLE_F32: &[Kernel<f32>] = &[kernel!(portable_f32, Plain<f32, 8>, 4 x 1)];

/// See [`PORTABLE_F32`].
pub(super) const PORTABLE_F64: &[Kernel<f64>] = &[kernel!(portable_f64, Plain<f64, 4>, 4 x 1)];

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{AVX2, AVX512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    impl Lanes for __m512 {
        type Element = f32;
        const COUNT: usize = 16;

        #[inline(always)]
        unsafe fn splat(from: *const f32) -> Self {
            // SAFETY: the caller vouches for the read and for AVX-512.
            unsafe { _mm512_set1_ps(*from) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller vouches for the read and for AVX-512.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller vouches for the write and for AVX-512.
            unsafe { _mm512_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            // SAFETY: the caller vouches for AVX-512.
            unsafe { _mm512_fmadd_ps(self, b, c) }
        }
    }

    impl Lanes for __m256 {
        type Element = f32;
        const COUNT: usize = 8;

        #[inline(always)]
        unsafe fn splat(from: *const f32) -> Self {
            // SAFETY: the caller vouches for the read and for AVX2.
            unsafe { _mm256_broadcast_ss(&*from) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller vouches for the read and for AVX2.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller vouches for the write and for AVX2.
            unsafe { _mm256_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            // SAFETY: the caller vouches for FMA.
            unsafe { _mm256_fmadd_ps(self, b, c) }
        }
    }

    kernels! {
        #[target_feature(enable = "avx512f")]
        avx512_four: __m512, 6 x 4;
        #[target_feature(enable = "avx512f")]
        avx512_two: __m512, 12 x 2;
        #[target_feature(enable = "avx512f")]
        avx512_one: __m512, 12 x 1;
        #[target_feature(enable = "avx2,fma")]
        avx2_two: __m256, 6 x 2;
        #[target_feature(enable = "avx2,fma")]
        avx2_one: __m256, 12 x 1;
    }

    /// Of 32 registers, 24 or 12 hold sums. The last is for 8 columns or fewer, where half a
    /// register would idle.
    pub(in super::super) const AVX512: &[Kernel<f32>] = &[
        kernel!(avx512_four, __m512, 6 x 4),
        kernel!(avx512_two, __m512, 12 x 2),
        kernel!(avx512_one, __m512, 12 x 1),
        kernel!(avx2_one, __m256, 12 x 1),
    ];

    /// Of 16 registers, 12 hold sums.
    pub(in super::super) const AVX2: &[Kernel<f32>] = &[
        kernel!(avx2_two, __m256, 6 x 2),
        kernel!(avx2_one, __m256, 12 x 1),
    ];
}
