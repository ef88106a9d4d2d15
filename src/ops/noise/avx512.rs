//! The words and normals of `philox` and `normals` with AVX-512: operation for operation the
//! same arithmetic, so the same bits. Comments here are about lanes; the formulas stand there.
//!
//! Every function is `unsafe` for one reason: its caller must be compiled for AVX-512 F and DQ, and
//! run on a processor that has them. They are inlined into that caller by force, which functions
//! with a `target_feature` of their own cannot be, and hold no closures, which would not be.
#![allow(unsafe_op_in_unsafe_fn)]

use std::arch::x86_64::*;

use super::normals::{COS, LN, MINUS_TWO_LN2, SIN, STEP, TURN};
use super::philox::{KEY_STEP, MULTIPLIERS, ROUNDS};
use super::run::{Buffer, Draw};

/// The first `used` normals of 16 (or, if `half`, 8) blocks whose word 0 is in `first`, `stride <=
/// used` of them kept, block after block. `used` is 4 or 8, and 4 if `PRECISE`.
#[inline(always)]
pub(super) unsafe fn fill<const PRECISE: bool, const USED: usize>(
    draw: &Draw,
    first: &[u32; 16],
    half: bool,
    stride: usize,
    z: &mut Buffer,
) {
    // 16 words are the 64 bytes this reads.
    let first = _mm512_loadu_si512(first.as_ptr().cast());
    let low = eight::<PRECISE, USED>(draw, _mm512_castsi512_si256(first));
    store::<USED>(low, stride, &mut z.0);
    if !half {
        let high = eight::<PRECISE, USED>(draw, _mm512_extracti32x8_epi32::<1>(first));
        store::<USED>(high, stride, &mut z.0[8 * stride..]);
    }
}

/// Writes 8 blocks of `USED` normals, `stride` of each.
#[inline(always)]
unsafe fn store<const USED: usize>(normals: [__m512; 4], stride: usize, z: &mut [f32]) {
    let per_vector = 16 / USED;
    let mut keep = 0u16;
    for i in 0..per_vector {
        keep |= ((1 << stride) - 1) << (i * USED);
    }
    for i in 0..8 / per_vector {
        let to = &mut z[i * per_vector * stride..][..16];
        let mut v = normals[i];
        if stride < USED {
            v = _mm512_maskz_compress_ps(keep, v);
        }
        // `to` is 16 floats, which this writes. What lies behind the kept ones is written next.
        _mm512_storeu_ps(to.as_mut_ptr(), v);
    }
}

/// The normals of 8 blocks in the order of blocks and channels: 4 vectors if `USED` is 8, else 2.
#[inline(always)]
unsafe fn eight<const PRECISE: bool, const USED: usize>(
    draw: &Draw,
    first: __m256i,
) -> [__m512; 4] {
    let [w0, w1, w2, w3] = blocks(first, draw.rest, draw.key);
    // Four lanes of 128 bits: the pairs of words of block g and of block g + 4. Unpacking cosine
    // and sine inside the lanes then gives blocks 0 to 3 and 4 to 7.
    let interleave = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    let none = _mm512_setzero_ps();
    if PRECISE {
        let u = _mm512_permutexvar_epi64(interleave, pair(w0, w2));
        let v = _mm512_permutexvar_epi64(interleave, pair(w1, w3));
        let [a, b] = unpack(precise(u, v));
        [a, b, none, none]
    } else if USED == 4 {
        let [a, b] = unpack(fast(_mm512_permutexvar_epi64(interleave, pair(w0, w1))));
        [a, b, none, none]
    } else {
        // The same with four words a block: lane g holds half a block of the first two and, in
        // its upper part, of the next two blocks.
        let (w01, w23) = (pair(w0, w1), pair(w2, w3));
        let low = _mm512_setr_epi64(0, 2, 8, 10, 1, 3, 9, 11);
        let high = _mm512_setr_epi64(4, 6, 12, 14, 5, 7, 13, 15);
        let [a, b] = unpack(fast(_mm512_permutex2var_epi64(w01, low, w23)));
        let [c, d] = unpack(fast(_mm512_permutex2var_epi64(w01, high, w23)));
        [a, b, c, d]
    }
}

/// The low halves of two vectors of 64-bit lanes, alternating.
#[inline(always)]
unsafe fn pair(even: __m512i, odd: __m512i) -> __m512i {
    _mm512_mask_shuffle_epi32::<0b10_10_00_00>(even, 0xAAAA, odd)
}

#[inline(always)]
unsafe fn unpack([cos, sin]: [__m512; 2]) -> [__m512; 2] {
    [_mm512_unpacklo_ps(cos, sin), _mm512_unpackhi_ps(cos, sin)]
}

/// Philox on 8 lanes of 64 bits of which the low halves count.
#[inline(always)]
unsafe fn blocks(first: __m256i, rest: [u32; 3], mut key: [u32; 2]) -> [__m512i; 4] {
    let (m0, m1) = (all(MULTIPLIERS[0]), all(MULTIPLIERS[1]));
    let (mut c1, mut c2, mut c3) = (all(rest[0]), all(rest[1]), all(rest[2]));
    let mut c0 = _mm512_cvtepu32_epi64(first);
    for _ in 0..ROUNDS {
        let p0 = _mm512_mul_epu32(c0, m0);
        let p1 = _mm512_mul_epu32(c2, m1);
        (c0, c1) = (mix(p1, c1, key[0]), p1);
        (c2, c3) = (mix(p0, c3, key[1]), p0);
        key[0] = key[0].wrapping_add(KEY_STEP[0]);
        key[1] = key[1].wrapping_add(KEY_STEP[1]);
    }
    [c0, c1, c2, c3]
}

/// The high half of a product, mixed with another word and the key.
#[inline(always)]
unsafe fn mix(product: __m512i, other: __m512i, key: u32) -> __m512i {
    let high = _mm512_srli_epi64::<32>(product);
    _mm512_xor_si512(_mm512_xor_si512(high, other), all(key))
}

#[inline(always)]
unsafe fn all(word: u32) -> __m512i {
    _mm512_set1_epi64(i64::from(word))
}

#[inline(always)]
unsafe fn fast(word: __m512i) -> [__m512; 2] {
    let one = _mm512_set1_epi32(1);
    let odd = _mm512_or_si512(_mm512_srli_epi32::<11>(word), one);
    let (exponent, t) = split::<21>(_mm512_cvtepi32_ps(odd));
    let r = radius(exponent, t);
    let half = _mm512_set1_epi32(1 << 21);
    let offset = _mm512_or_si512(_mm512_slli_epi32::<22>(word), half);
    point(r, _mm512_slli_epi32::<20>(word), offset)
}

#[inline(always)]
unsafe fn precise(u: __m512i, v: __m512i) -> [__m512; 2] {
    let float = _mm512_cvtepu32_ps(u);
    let (exponent, t) = split::<32>(_mm512_add_ps(float, _mm512_set1_ps(0.5)));
    let complement = _mm512_cvtepu32_ps(_mm512_xor_si512(u, _mm512_set1_epi32(-1)));
    let from_one = _mm512_fmadd_ps(
        complement,
        _mm512_set1_ps(-STEP),
        _mm512_set1_ps(-0.5 * STEP),
    );
    let near_one = _mm512_testn_epi32_mask(exponent, exponent);
    let r = radius(exponent, _mm512_mask_blend_ps(near_one, t, from_one));
    let half = _mm512_set1_epi32(2);
    point(r, v, _mm512_or_si512(_mm512_slli_epi32::<2>(v), half))
}

#[inline(always)]
unsafe fn split<const BITS: i32>(u: __m512) -> (__m512i, __m512) {
    let bits = _mm512_castps_si512(u);
    let sqrt_half = std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32;
    let exponent = _mm512_and_si512(
        _mm512_sub_epi32(bits, _mm512_set1_epi32(sqrt_half + (BITS << 23))),
        _mm512_set1_epi32(!0x7F_FFFF),
    );
    let scaled = _mm512_castsi512_ps(_mm512_sub_epi32(bits, exponent));
    let scale = _mm512_set1_ps(f32::from_bits(((127 - BITS) as u32) << 23));
    let t = _mm512_fmadd_ps(scaled, scale, _mm512_set1_ps(-1.0));
    (exponent, t)
}

#[inline(always)]
unsafe fn radius(exponent: __m512i, t: __m512) -> __m512 {
    let p = polynomial(&LN, t);
    let scale = _mm512_set1_ps(MINUS_TWO_LN2);
    let e = _mm512_mul_ps(_mm512_cvtepi32_ps(exponent), scale);
    _mm512_sqrt_ps(_mm512_fmadd_ps(t, p, e))
}

#[inline(always)]
unsafe fn point(r: __m512, turn: __m512i, offset: __m512i) -> [__m512; 2] {
    let x = _mm512_mul_ps(_mm512_cvtepi32_ps(offset), _mm512_set1_ps(TURN));
    let y = _mm512_mul_ps(x, x);
    let s = _mm512_mul_ps(polynomial(&SIN, y), x);
    let c = polynomial(&COS, y);
    let quarter = _mm512_add_epi32(turn, _mm512_set1_epi32(1 << 29));
    let next = _mm512_add_epi32(turn, _mm512_set1_epi32(3 << 29));
    let swap = _mm512_test_epi32_mask(quarter, _mm512_set1_epi32(1 << 30));
    let cos = signed(_mm512_mask_blend_ps(swap, c, s), next);
    let sin = signed(_mm512_mask_blend_ps(swap, s, c), quarter);
    [_mm512_mul_ps(r, cos), _mm512_mul_ps(r, sin)]
}

/// `value` with its sign flipped where the top bit of `sign` is set.
#[inline(always)]
unsafe fn signed(value: __m512, sign: __m512i) -> __m512 {
    let sign = _mm512_and_si512(sign, _mm512_set1_epi32(i32::MIN));
    _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(value), sign))
}

/// Horner's rule, coefficients lowest first.
#[inline(always)]
unsafe fn polynomial<const N: usize>(coefficients: &[f32; N], x: __m512) -> __m512 {
    let mut p = _mm512_set1_ps(coefficients[N - 1]);
    for i in 1..N {
        p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(coefficients[N - 1 - i]));
    }
    p
}
