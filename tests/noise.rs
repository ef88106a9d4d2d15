//! The noise op: words, which draw an element sees, and the numbers themselves. Their distribution
//! is tested in `noise_distribution.rs`.

use noiseforge::ops::isa::Isa;
use noiseforge::ops::noise::{self, Key, Noise, Normals, Purpose, Row, RowNoise};
use noiseforge::{DType, Shape, Tensor};

const BOTH: [Normals; 2] = [Normals::Fast, Normals::Precise];
/// Ragged, narrow, whole blocks, and more than sixteen blocks a pixel.
const CHANNELS: [usize; 10] = [1, 2, 3, 4, 5, 8, 12, 20, 64, 136];

fn noise(rows: &[(u32, u32)], normals: Normals) -> Noise {
    Noise {
        key: Key {
            seed: 0x0123_4567_89AB_CDEF,
            purpose: Purpose::Attack,
            rows: rows.iter().map(|&(id, draw)| Row { id, draw }).collect(),
        },
        layer: 300,
        sigma: 0.7,
        normals,
    }
}

/// Values of all magnitudes, so that another order of rounding would show.
fn values(len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 7919 % 1009) as f32 - 504.0) * 0.0371)
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn forward(x: &[f32], shape: Shape, noise: &Noise) -> Vec<f32> {
    let x = Tensor::from_vec(shape, x.to_vec()).unwrap();
    noise::forward(&x, noise).unwrap().data::<f32>().to_vec()
}

/// The first three are lines of Random123's `kat_vectors`; the others, from an independent
/// implementation that reproduces those three, set one word at a time.
#[test]
fn philox_known_answers() {
    let cases: [([u32; 4], [u32; 2], [u32; 4]); 11] = [
        (
            [0, 0, 0, 0],
            [0, 0],
            [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
        ),
        (
            [!0, !0, !0, !0],
            [!0, !0],
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
        ),
        (
            [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
            [0xa4093822, 0x299f31d0],
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
        ),
        (
            [1, 0, 0, 0],
            [0, 0],
            [0xf8e4cca4, 0x5cb200db, 0xb1a574eb, 0x097eff67],
        ),
        (
            [0, 1, 0, 0],
            [0, 0],
            [0x6ad0c5ec, 0xea236249, 0x73a459f5, 0x074944b3],
        ),
        (
            [0, 0, 1, 0],
            [0, 0],
            [0x844515e1, 0xf08d6eaa, 0x0f19c053, 0x83f875f0],
        ),
        (
            [0, 0, 0, 1],
            [0, 0],
            [0x2dce73e5, 0x1348e23f, 0xfcf8e0ec, 0xa287aadb],
        ),
        (
            [0, 0, 0, 0],
            [1, 0],
            [0xe3e80670, 0xe50a0ebc, 0x95f222c0, 0xb615aa27],
        ),
        (
            [0, 0, 0, 0],
            [0x2a, 0],
            [0x9ceaf053, 0x77f5493b, 0x12bf50ad, 0x5742b3d7],
        ),
        (
            [!0, 0, 0, 0],
            [0x4d2, 0x162e],
            [0xbd43f7f2, 0x124b2075, 0xf4ac8100, 0x67d4fd7e],
        ),
        (
            [0, 1, 0, 0],
            [0x4d2, 0x162e],
            [0x3e7ac402, 0xffc18279, 0x976564b4, 0x83bcaa9e],
        ),
    ];
    for (counter, key, expected) in cases {
        assert_eq!(noise::philox4x32_10(counter, key), expected);
    }
}

/// Element by element from the definition, in f64: counter, words, Box-Muller.
fn definition(noise: &Noise, row: usize, c: usize, element: usize) -> f64 {
    let per_block = match noise.normals {
        Normals::Fast => 8,
        Normals::Precise => 4,
    };
    let (pixel, channel) = (element / c, element % c);
    let block = pixel * c.div_ceil(per_block) + channel / per_block;
    let Row { id, draw } = noise.key.rows[row];
    let layer = noise.key.purpose as u32 * 65536 + u32::from(noise.layer);
    let seed = noise.key.seed;
    let words = noise::philox4x32_10(
        [block as u32, id, layer, draw],
        [seed as u32, (seed >> 32) as u32],
    );
    let (u, turn) = match noise.normals {
        Normals::Fast => {
            let word = words[channel % 8 / 2];
            let (a, b) = (word >> 12, word & 0xFFF);
            (
                (f64::from(a) + 0.5) / 1048576.0,
                (f64::from(b) + 0.5) / 4096.0,
            )
        }
        Normals::Precise => {
            let pair = channel % 4 / 2 * 2;
            let unit = |word: u32| (f64::from(word) + 0.5) / 4294967296.0;
            (unit(words[pair]), unit(words[pair + 1]))
        }
    };
    let r = (-2.0 * u.ln()).sqrt();
    let t = std::f64::consts::TAU * turn;
    if channel % 2 == 0 {
        r * t.cos()
    } else {
        r * t.sin()
    }
}

#[test]
fn every_element_sees_the_draw_of_the_definition() {
    for normals in BOTH {
        let noise = Noise {
            sigma: 1.0,
            ..noise(&[(41, 9), (u32::MAX, 0), (0, 1 << 31)], normals)
        };
        for c in CHANNELS {
            let shape = Shape::new(3, 3, 7, c);
            let y = forward(&vec![0.0; shape.len()], shape, &noise);
            for (i, &y) in y.iter().enumerate() {
                let (row, element) = (i / shape.row_len(), i % shape.row_len());
                let expected = definition(&noise, row, c, element);
                // The documented accuracy of the normals.
                assert!(
                    (f64::from(y) - expected).abs() < 1e-6,
                    "{normals:?} c {c} element {i}: {y} and not {expected}"
                );
            }
        }
    }
}

/// Changing these numbers is a breaking change.
#[test]
fn values_are_stable() {
    let draw = |normals| {
        let noise = Noise {
            sigma: 1.0,
            key: Key::consecutive(42, Purpose::Eval, 5, 1, 3),
            layer: 0,
            normals,
        };
        bits(&forward(&[0.0; 6], Shape::new(1, 1, 2, 3), &noise))
    };
    assert_eq!(
        draw(Normals::Fast),
        [
            0x3EF2567D, 0x3E9F8430, 0xBF905B0C, 0x3F3E55DD, 0x3F6A7AF3, 0xBFD688BA
        ]
    );
    assert_eq!(
        draw(Normals::Precise),
        [
            0xBEABE84D, 0x3EE9B636, 0xBF64D00D, 0x3E910275, 0x3F92966D, 0x3F068A0B
        ]
    );
}

#[test]
fn instruction_sets_agree_bit_for_bit() {
    println!("compared: {:?}", Isa::available());
    for normals in BOTH {
        let noise = noise(&[(3, 4)], normals);
        for c in CHANNELS {
            for pixels in [1, 2, 5, 16, 17, 40] {
                let x = values(c * pixels);
                let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                let draw = |isa| {
                    let draw = RowNoise::new(&noise, 0, c).with_isa(isa);
                    let mut y = vec![f32::NAN; c * pixels];
                    let mut wide_y = vec![f64::NAN; c * pixels];
                    draw.add(1000, &x, &mut y);
                    draw.add(1000, &wide, &mut wide_y);
                    let wide_bits: Vec<u64> = wide_y.iter().map(|y| y.to_bits()).collect();
                    (bits(&y), wide_bits)
                };
                let portable = draw(Isa::Portable);
                for &isa in Isa::available() {
                    assert!(
                        draw(isa) == portable,
                        "{isa:?} {normals:?} c {c} pixels {pixels}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_batch_around_it() {
    let rows = [(7, 0), (2, 5), (900, 1), (2, 6), (7, 0)];
    for normals in BOTH {
        let shape = Shape::new(rows.len(), 5, 6, 24);
        let len = shape.row_len();
        let x = values(shape.len());
        let together = forward(&x, shape, &noise(&rows, normals));
        for (i, &row) in rows.iter().enumerate() {
            let x = &x[i * len..][..len];
            let alone = forward(x, shape.with_n(1), &noise(&[row], normals));
            assert_eq!(bits(&alone), bits(&together[i * len..][..len]), "row {i}");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_how_it_is_cut() {
    for normals in BOTH {
        let noise = noise(&[(1, 2)], normals);
        for c in CHANNELS {
            let shape = Shape::new(1, 6, 7, c);
            let x = values(shape.len());
            let whole = bits(&forward(&x, shape, &noise));
            let draw = RowNoise::new(&noise, 0, c);
            for cut in [1, 3, 16, 41] {
                let mut y = vec![f32::NAN; shape.len()];
                for first in (0..42).step_by(cut) {
                    let range = first * c..(first + cut).min(42) * c;
                    draw.add(first, &x[range.clone()], &mut y[range]);
                }
                assert_eq!(bits(&y), whole, "{normals:?} c {c} cut {cut}");
            }
            // Channel by channel: pixels 10 to 30, and any width.
            for c0 in (0..c).step_by(8) {
                for width in [1, 3, 8, 13, 24, 64] {
                    let width = width.min(c - c0);
                    let mut y = vec![f32::NAN; 20 * width];
                    draw.add_channels(10, c0, width, &x[10 * c..30 * c], &mut y);
                    let expected: Vec<u32> = (10..30)
                        .flat_map(|pixel| &whole[pixel * c + c0..][..width])
                        .copied()
                        .collect();
                    assert_eq!(
                        bits(&y),
                        expected,
                        "{normals:?} c {c} c0 {c0} width {width}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_does_not_matter() {
    // More than one piece a row, and ragged.
    let shape = Shape::new(3, 64, 65, 11);
    let x = values(shape.len());
    let noise = noise(&[(1, 1), (2, 1), (3, 1)], Normals::Fast);
    let with = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(|| bits(&forward(&x, shape, &noise)))
    };
    let one = with(1);
    assert!(with(2) == one && with(5) == one);
}

#[test]
fn sigma_zero_copies_every_bit() {
    let odd = [
        0x8000_0000,
        0x7FC1_2345,
        0xFF80_0001,
        0x0000_0001,
        0x7F80_0000,
    ];
    let x: Vec<f32> = (0..80).map(|i| f32::from_bits(odd[i % 5])).collect();
    let wide: Vec<f64> = (0..80)
        .map(|i| f64::from_bits(u64::from(odd[i % 5]) << 32 | 1))
        .collect();
    let noise = Noise {
        sigma: 0.0,
        ..noise(&[(1, 1)], Normals::Fast)
    };
    let shape = Shape::new(1, 2, 2, 20);
    assert_eq!(bits(&forward(&x, shape, &noise)), bits(&x));
    let y = noise::forward(&Tensor::from_vec(shape, wide.clone()).unwrap(), &noise).unwrap();
    assert!(
        y.data::<f64>()
            .iter()
            .zip(&wide)
            .all(|(y, x)| y.to_bits() == x.to_bits())
    );
    let draw = RowNoise::new(&noise, 0, 20);
    let mut y = vec![1.0; 80];
    draw.add(0, &x, &mut y);
    assert_eq!(bits(&y), bits(&x));
    let mut y = vec![1.0; 16];
    draw.add_channels(0, 16, 4, &x, &mut y);
    let expected: Vec<f32> = x.chunks(20).flat_map(|x| &x[16..]).copied().collect();
    assert_eq!(bits(&y), bits(&expected));
}

#[test]
fn both_types_see_the_same_draw_and_round_once() {
    for normals in BOTH {
        let noise = noise(&[(1, 1), (2, 1)], normals);
        let shape = Shape::new(2, 9, 5, 12);
        let unit = Noise {
            sigma: 1.0,
            ..noise.clone()
        };
        let z = forward(&vec![0.0; shape.len()], shape, &unit);
        let x = values(shape.len());
        let y = forward(&x, shape, &noise);
        let wide = Tensor::from_vec(shape, x.clone())
            .unwrap()
            .to_dtype(DType::F64)
            .unwrap();
        let wide = noise::forward(&wide, &noise).unwrap();
        for i in 0..shape.len() {
            // The product of two f32 is exact in f64: this is the sum, rounded once.
            let exact = f64::from(x[i]) + f64::from(noise.sigma) * f64::from(z[i]);
            assert_eq!(wide.data::<f64>()[i], exact);
            assert_eq!(y[i], noise.sigma.mul_add(z[i], x[i]));
        }
    }
}

#[test]
fn an_empty_tensor_stays_empty() {
    let noise = noise(&[], Normals::Fast);
    for shape in [Shape::new(0, 3, 3, 3), Shape::new(0, 0, 0, 0)] {
        assert!(forward(&[], shape, &noise).is_empty());
    }
}

#[test]
fn bad_arguments_are_refused() {
    let good = noise(&[(1, 1), (2, 1)], Normals::Fast);
    let x = Tensor::zeros(Shape::new(2, 1, 1, 3), DType::F32);
    let text = |noise: &Noise| noise::forward(&x, noise).unwrap_err().to_string();
    for (sigma, found) in [
        (-0.5, "-0.5"),
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
        (f32::NEG_INFINITY, "-inf"),
    ] {
        let noise = Noise {
            sigma,
            ..good.clone()
        };
        assert_eq!(
            text(&noise),
            format!(
                "noise::forward: noise.sigma: expected a finite number of at least 0, found {found}"
            )
        );
    }
    let mut noise = good.clone();
    noise.key.rows = [Row { id: 1, draw: 1 }].into();
    assert_eq!(
        text(&noise),
        "noise::forward: noise.key.rows: expected 2 entries, one per row of the batch, found 1"
    );
    assert_eq!(
        noise::check("conv", &noise, 4).unwrap_err().to_string(),
        "conv: noise.key.rows: expected 4 entries, one per row of the batch, found 1"
    );
}

#[test]
fn an_image_with_too_many_blocks_is_refused() {
    let noise = noise(&[(1, 1)], Normals::Fast);
    let full = Shape::new(1, 1 << 16, 1 << 16, 8);
    noise::check_shape("op", &noise, full).unwrap();
    let text = |shape, noise: &Noise| {
        noise::check_shape("op", noise, shape)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        text(full.with_c(9), &noise),
        "op: x: expected at most 2^32 blocks of 8 channels in a row, found [1, 65536, 65536, 9]"
    );
    let precise = Noise {
        normals: Normals::Precise,
        ..noise.clone()
    };
    assert_eq!(
        text(full, &precise),
        "op: x: expected at most 2^32 blocks of 4 channels in a row, found [1, 65536, 65536, 8]"
    );
    assert!(text(Shape::new(1, usize::MAX, 2, 1), &noise).starts_with("op: x: expected"));
}

#[test]
fn words_are_those_behind_the_noise() {
    let noise = noise(&[(7, 9), (1, 2)], Normals::Precise);
    let shape = Shape::new(2, 1, 2, 5);
    let words = noise::words(&noise, shape, &noiseforge::tensor::Device::Cpu).unwrap();
    // Two blocks of four channels a pixel, two pixels, two rows.
    assert_eq!(words.len(), 8);
    let key = [0x89AB_CDEF, 0x0123_4567];
    let layer = Purpose::Attack as u32 * 65536 + 300;
    assert_eq!(words[3], noise::philox4x32_10([3, 7, layer, 9], key));
    assert_eq!(words[4], noise::philox4x32_10([0, 1, layer, 2], key));
}
