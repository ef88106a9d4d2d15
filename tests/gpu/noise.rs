//! Noise: the integers are the CPU's, precise normals too, fast ones as close as they are said to be.

use noiseforge::ops::noise::{
    self, Key, Noise, Normals, Purpose, Row, philox4x32_10, philox4x32_10_on,
};
use noiseforge::tensor::{DType, Device, Shape};
use noiseforge::{Result, Tensor};

use crate::harness::{DTYPES, epsilon, once, rounded, run, values};

const BOTH: [Normals; 2] = [Normals::Fast, Normals::Precise];

/// Narrow, whole blocks, half a block more, several blocks, more than a warp's 256 channels.
const SHAPES: [Shape; 8] = [
    Shape::new(1, 1, 1, 1),
    Shape::new(3, 5, 7, 3),
    Shape::new(2, 3, 3, 5),
    Shape::new(2, 4, 3, 8),
    Shape::new(1, 3, 5, 12),
    Shape::new(2, 9, 3, 24),
    Shape::new(3, 2, 3, 64),
    Shape::new(1, 2, 3, 273),
];

fn noise(rows: usize, normals: Normals) -> Noise {
    let row = |i| Row {
        id: 1000 + 7 * i,
        draw: u32::MAX - i,
    };
    Noise {
        key: Key {
            seed: 0x0123_4567_89AB_CDEF,
            purpose: Purpose::Attack,
            rows: (0..rows as u32).map(row).collect(),
        },
        layer: 300,
        sigma: 0.7,
        normals,
    }
}

/// The same noise for another device: a list of rows belongs to the first that asks for it.
pub fn anew(noise: &Noise) -> Noise {
    Noise {
        key: Key {
            rows: noise.key.rows.host().unwrap().into(),
            ..noise.key.clone()
        },
        ..noise.clone()
    }
}

#[test]
fn philox_gives_the_known_answers() {
    // Lines of Random123's kat_vectors; one word set at a time against the CPU.
    let known = [
        (
            [0; 4],
            [0; 2],
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
        ),
        (
            [!0; 4],
            [!0; 2],
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
        ),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    once(|gpu| {
        for (counter, key, answer) in known {
            assert_eq!(philox4x32_10_on(gpu, counter, key).unwrap(), answer);
        }
        for word in 0..6 {
            let mut all = [0; 6];
            all[word] = 0x8000_0001;
            let [counter @ .., low, high] = all;
            let key = [low, high];
            let words = philox4x32_10_on(gpu, counter, key).unwrap();
            assert_eq!(words, philox4x32_10(counter, key));
        }
    });
}

#[test]
fn the_integers_are_the_cpus() {
    for shape in SHAPES {
        for normals in BOTH {
            let noise = noise(shape.n, normals);
            let expected = noise::words(&noise, shape, &Device::Cpu).unwrap();
            run(|gpu| {
                let words = noise::words(&anew(&noise), shape, &Device::Gpu(gpu.clone()))?;
                assert_eq!(words, expected, "{shape} {normals:?}");
                Ok(vec![])
            });
        }
    }
}

/// How far a fast normal of radius `r` may be off, by the PTX manual's bounds on lg2, sqrt, sin and
/// cos and the roundings between them; and the CPU's own error.
fn bound(r: f64) -> f64 {
    let radius = 2e-7 / r + 3e-7 * r;
    let angle = (-20.5f64).exp2() + 5e-7;
    radius + angle * r + 1e-6
}

#[test]
fn normals_are_those_of_the_cpu() {
    let mut worst = 0.0f64;
    for shape in SHAPES {
        for normals in BOTH {
            let noise = noise(shape.n, normals);
            // The radii, from normals on whole pairs of channels.
            let paired = Tensor::zeros(shape.with_c(shape.c.next_multiple_of(8)), DType::F32);
            let unit = Noise {
                sigma: 1.0,
                ..noise.clone()
            };
            let z = noise::forward(&paired, &unit).unwrap();
            for dtype in DTYPES {
                let x = rounded(&values(shape, 1), dtype);
                let exact = noise::forward(&x, &noise).unwrap();
                let y = run(|gpu| {
                    let x = x.to_gpu(gpu)?.to_dtype(dtype)?;
                    Ok(vec![noise::forward(&x, &anew(&noise))?])
                });
                let y = y[0].data::<f32>();
                if normals == Normals::Precise {
                    assert_eq!(y, rounded(&exact, dtype).data::<f32>(), "{shape} {dtype}");
                    continue;
                }
                for (i, (&y, &exact)) in y.iter().zip(exact.data::<f32>()).enumerate() {
                    let (pixel, channel) = (i / shape.c, i % shape.c);
                    let pair = &z.data::<f32>()[pixel * paired.shape().c + channel / 2 * 2..][..2];
                    let r = f64::from(pair[0]).hypot(f64::from(pair[1]));
                    let error = (f64::from(y) - f64::from(exact)).abs();
                    let rounding = 2.0 * epsilon(dtype) * f64::from(exact).abs();
                    let allowed = 0.7 * bound(r) + rounding;
                    assert!(
                        error <= allowed,
                        "{shape} {dtype} [{i}]: {y} for {exact}, r {r}"
                    );
                    if dtype == DType::F32 {
                        worst = worst.max(error / 0.7);
                    }
                }
            }
        }
    }
    println!("fast normals: {worst:.2e} from the CPU's at most");
}

#[test]
fn without_sigma_the_bits_stay() {
    let x = Tensor::from_vec(Shape::vector(3), vec![-0.0f32, 1.5, f32::NAN]).unwrap();
    let noise = Noise {
        sigma: 0.0,
        ..noise(1, Normals::Fast)
    };
    let y = run(|gpu| Ok(vec![noise::forward(&x.to_gpu(gpu)?, &noise)?]));
    let bits = |t: &Tensor| {
        t.data::<f32>()
            .iter()
            .map(|v| v.to_bits())
            .collect::<Vec<_>>()
    };
    assert_eq!(bits(&y[0]), bits(&x));
}

#[test]
fn a_row_does_not_depend_on_its_batch() -> Result<()> {
    let shape = Shape::new(5, 3, 5, 13);
    let x = values(shape, 2);
    let all = noise(5, Normals::Fast);
    let whole = run(|gpu| Ok(vec![noise::forward(&x.to_gpu(gpu)?, &anew(&all))?]));
    let rows = [3, 0];
    let some = Noise {
        key: Key {
            rows: rows.iter().map(|&i| all.key.rows[i]).collect(),
            ..all.key.clone()
        },
        ..all.clone()
    };
    let x = x.gather_rows(&rows)?;
    let part = run(|gpu| Ok(vec![noise::forward(&x.to_gpu(gpu)?, &anew(&some))?]));
    assert_eq!(
        part[0].data::<f32>(),
        whole[0].gather_rows(&rows)?.data::<f32>()
    );
    Ok(())
}

#[test]
fn refuses_what_does_not_fit() {
    once(|gpu| {
        let x = values(Shape::new(2, 1, 1, 3), 1).to_gpu(gpu).unwrap();
        let error = noise::forward(&x, &noise(3, Normals::Fast)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "noise::forward: noise.key.rows: expected 2 entries, one per row of the batch, found 3"
        );
    });
}
