//! Philox4x32-10, a counter-based generator (Salmon, Moraes, Dror, Shaw: "Parallel random
//! numbers: as easy as 1, 2, 3", 2011): a bijection of 128-bit counters for every 64-bit key,
//! so any block of any stream is computed on its own.

/// Multipliers of counter words 0 and 2.
pub(super) const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What the key words grow by from round to round: the golden ratio and sqrt(3) - 1.
pub(super) const KEY_STEP: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
pub(super) const ROUNDS: usize = 10;

/// The four words of one block.
///
/// Words are in the order of the reference implementation (Random123): `counter[0]` is the word
/// that counts fastest, `key[0]` the low half of a 64-bit seed.
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [first, rest @ ..] = counter;
    blocks(&[first], rest, key).map(|[word]| word)
}

/// `N` blocks side by side whose counters differ in word 0 only; `result[j][i]` is word `j` of
/// the block of counter `(first[i], rest)`.
///
/// A lane is 64 bits wide and only its low half means anything: the low half of a product can
/// then stay where the multiplier left it, and one shift fetches the high half.
#[inline(always)]
pub(super) fn blocks<const N: usize>(
    first: &[u32; N],
    rest: [u32; 3],
    mut key: [u32; 2],
) -> [[u32; N]; 4] {
    let mut c = [[0u64; N]; 4];
    for i in 0..N {
        c[0][i] = u64::from(first[i]);
        c[1][i] = u64::from(rest[0]);
        c[2][i] = u64::from(rest[1]);
        c[3][i] = u64::from(rest[2]);
    }
    let low = |v: u64| v & 0xFFFF_FFFF;
    for _ in 0..ROUNDS {
        #[expect(clippy::needless_range_loop, reason = "four arrays in step")]
        for i in 0..N {
            let p0 = low(c[0][i]) * u64::from(MULTIPLIERS[0]);
            let p1 = low(c[2][i]) * u64::from(MULTIPLIERS[1]);
            c[0][i] = (p1 >> 32) ^ c[1][i] ^ u64::from(key[0]);
            c[1][i] = p1;
            c[2][i] = (p0 >> 32) ^ c[3][i] ^ u64::from(key[1]);
            c[3][i] = p0;
        }
        key[0] = key[0].wrapping_add(KEY_STEP[0]);
        key[1] = key[1].wrapping_add(KEY_STEP[1]);
    }
    c.map(|words| words.map(|word| word as u32))
}
