//! The noise op: words, normals, and which draw an element sees.

use noiseforge::ops::noise::{self, Isa, Key, Noise, Normals, Purpose, RowNoise};

fn noise(normals: Normals, sigma: f32) -> Noise {
    Noise {
        key: Key::consecutive(7, Purpose::Test, 5, 1, 3),
        layer: 2,
        sigma,
        normals,
    }
}

/// Random123's `kat_vectors` (the first three) and one word set at a time.
#[test]
fn philox_known_answers() {
    let cases: [([u32; 4], [u32; 2], [u32; 4]); 3] = [
        (
            [0; 4],
            [0; 2],
            [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
        ),
        (
            [!0; 4],
            [!0; 2],
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
        ),
        (
            [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
            [0xa4093822, 0x299f31d0],
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
        ),
    ];
    for (counter, key, expected) in cases {
        assert_eq!(noise::philox4x32_10(counter, key), expected);
    }
}

fn reference(n: &Noise, c: usize, len: usize) -> Vec<f64> {
    let per = if n.normals == Normals::Fast { 8 } else { 4 };
    let blocks = c.div_ceil(per);
    (0..len)
        .map(|i| {
            let (p, ch) = (i / c, i % c);
            let w = noise::philox4x32_10(
                [(p * blocks + ch / per) as u32, 5, 4 * 65536 + 2, 3],
                [7, 0],
            );
            let tau = std::f64::consts::TAU;
            let (u, t) = if per == 8 {
                let v = w[ch % 8 / 2];
                (
                    ((v >> 12) as f64 + 0.5) / 1048576.0,
                    tau * ((v & 0xfff) as f64 + 0.5) / 4096.0,
                )
            } else {
                let j = ch % 4 / 2 * 2;
                let unit = 4294967296.0;
                (
                    (w[j] as f64 + 0.5) / unit,
                    tau * (w[j + 1] as f64 + 0.5) / unit,
                )
            };
            let r = (-2.0 * u.ln()).sqrt();
            if ch % 2 == 0 {
                r * t.cos()
            } else {
                r * t.sin()
            }
        })
        .collect()
}

#[test]
fn normals_follow_the_formula() {
    for normals in [Normals::Fast, Normals::Precise] {
        let n = noise(normals, 1.0);
        for c in [1, 3, 4, 5, 8, 20, 64] {
            let len = 4096 * c;
            let x = vec![0f32; len];
            let mut y = vec![f32::NAN; len];
            RowNoise::new(&n, 0, c).add(0, &x, &mut y);
            let mut worst = 0f64;
            for (a, b) in y.iter().zip(reference(&n, c, len)) {
                worst = worst.max((*a as f64 - b).abs());
            }
            println!("{normals:?} {c} {worst:e}");
            assert!(worst < 1e-6);
            for isa in Isa::available() {
                let mut other = vec![f32::NAN; len];
                RowNoise::new(&n, 0, c).with_isa(isa).add(0, &x, &mut other);
                assert!(
                    y.iter()
                        .zip(&other)
                        .all(|(a, b)| a.to_bits() == b.to_bits())
                );
            }
        }
    }
}
