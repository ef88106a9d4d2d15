//! Ensembles over noise draws: repeated rows, averages and their gradients, votes.

use noiseforge::ops::ensemble::{
    Average, combine, combine_backward, concat_rows, repeat, repeat_rows, sum_draws, votes,
};
use noiseforge::ops::noise::{Row, Rows};
use noiseforge::tensor::{DType, Shape};
use noiseforge::{Result, Tensor};

use crate::harness::{DTYPES, epsilon, once, rounded, run, values};
use crate::numbers::{get_u32, put_u32};

/// Images, draws and classes: less and more than a warp's lanes, less and more than a block's rows.
const SIZES: [(usize, usize, usize); 6] = [
    (1, 2, 2),
    (3, 5, 10),
    (2, 33, 7),
    (9, 3, 33),
    (1, 50, 10),
    (2, 2, 100),
];

fn logits(n: usize, classes: usize, dtype: DType) -> Tensor {
    let mut z = values(Shape::new(n, 1, 1, classes), 21);
    z.data_mut::<f32>().iter_mut().for_each(|v| *v *= 8.0);
    rounded(&z, dtype)
}

fn doubles(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F64).unwrap()
}

/// In f64, rounded to f32 and to the dtype.
#[track_caller]
fn assert_rounded(found: &Tensor, exact: &Tensor, dtype: DType) {
    let half_ulp = epsilon(dtype) + epsilon(DType::F32);
    for (f, e) in found.to_f64_vec().iter().zip(exact.to_f64_vec()) {
        let smallest = (-25f64).exp2();
        assert!(
            (f - e).abs() <= 1.001 * half_ulp * e.abs() + smallest,
            "{dtype}: {f} for {e}"
        );
    }
}

#[test]
fn averages_and_their_gradients_match_the_cpu() {
    for (n, draws, classes) in SIZES {
        for average in [Average::Probabilities, Average::Logits] {
            for dtype in DTYPES {
                let z = logits(n * draws, classes, dtype);
                let g = rounded(&values(Shape::new(n, 1, 1, classes), 22), dtype);
                let found = run(|gpu| {
                    let z = z.to_gpu(gpu)?.to_dtype(dtype)?;
                    let g = g.to_gpu(gpu)?.to_dtype(dtype)?;
                    let dz = combine_backward(&z, &g, draws, average)?;
                    Ok(vec![combine(&z, draws, average)?, dz])
                });
                let (z, g) = (doubles(&z), doubles(&g));
                assert_rounded(&found[0], &combine(&z, draws, average).unwrap(), dtype);
                let dz = combine_backward(&z, &g, draws, average).unwrap();
                assert_rounded(&found[1], &dz, dtype);
            }
        }
    }
}

#[test]
fn probabilities_that_underflow_still_have_a_logarithm() {
    let nan = f32::NAN;
    let z = vec![
        0.0,
        -500.0,
        0.0,
        -501.0, // one class is out of reach
        0.0,
        f32::NEG_INFINITY,
        0.0,
        f32::NEG_INFINITY, // and one is impossible
        0.0,
        1.0,
        nan,
        0.0,
    ];
    let z = Tensor::from_vec(Shape::new(6, 1, 1, 2), z).unwrap();
    let g = values(Shape::new(3, 1, 1, 2), 1);
    let found = run(|gpu| {
        let (z, g) = (z.to_gpu(gpu)?, g.to_gpu(gpu)?);
        let dz = combine_backward(&z, &g, 2, Average::Probabilities)?;
        Ok(vec![combine(&z, 2, Average::Probabilities)?, dz])
    });
    let scores = found[0].data::<f32>();
    let expected = -500.0 + ((1.0 + (-1f64).exp()) / 2.0).ln();
    assert!((f64::from(scores[1]) - expected).abs() < 1e-4);
    assert_eq!(scores[3], f32::NEG_INFINITY);
    assert!(scores[4].is_nan() && scores[5].is_nan());
    assert!(found[1].data::<f32>()[..8].iter().all(|v| v.is_finite()));
}

#[test]
fn rows_are_repeated_summed_and_joined() {
    for (shape, draws) in [
        (Shape::new(3, 5, 7, 3), 4),
        (Shape::new(4, 4, 4, 2), 3),
        (Shape::new(1, 1, 1, 1), 2),
        (Shape::new(2, 16, 17, 8), 2),
        (Shape::new(3, 1, 1, 8), 1),
    ] {
        for dtype in DTYPES {
            let x = rounded(&values(shape, 23), dtype);
            let range = shape.n / 2..shape.n;
            let found = run(|gpu| {
                let x = x.to_gpu(gpu)?.to_dtype(dtype)?;
                let all = repeat(&x, 0..shape.n, draws)?;
                let part = repeat(&x, range.clone(), draws)?;
                let sum = sum_draws(&all, draws)?;
                let joined = concat_rows(&[part.clone(), x.clone(), part.clone()])?;
                Ok(vec![all, part, sum, joined])
            });
            let all = repeat(&x, 0..shape.n, draws).unwrap();
            let part = repeat(&x, range, draws).unwrap();
            assert_eq!(found[0].data::<f32>(), all.data::<f32>());
            assert_eq!(found[1].data::<f32>(), part.data::<f32>());
            // Summed in f32 in the same order, rounded once.
            let sum = rounded(&sum_draws(&all, draws).unwrap(), dtype);
            assert_eq!(found[2].data::<f32>(), sum.data::<f32>());
            let joined = concat_rows(&[part.clone(), x.clone(), part]).unwrap();
            assert_eq!(found[3].data::<f32>(), joined.data::<f32>());
        }
    }
}

#[test]
fn names_of_rows_are_repeated_on_the_device() {
    let rows: Rows = (0..300)
        .map(|id| Row {
            id: 7 * id,
            draw: id % 5,
        })
        .collect();
    for (range, draws) in [(0..300, 3), (17..18, 50), (0..300, 1), (4..4, 2)] {
        let found = run(|gpu| {
            let repeated =
                repeat_rows(&rows_of(&rows), range.clone(), draws, Some(gpu))?.to_host()?;
            let words: Vec<u32> = repeated.iter().flat_map(|r| [r.id, r.draw]).collect();
            Ok(vec![put_u32(gpu, &words)?])
        });
        let host = repeat_rows(&rows, range, draws, None).unwrap();
        let expected: Vec<u32> = host.iter().flat_map(|r| [r.id, r.draw]).collect();
        assert_eq!(get_u32(&found[0]), expected);
    }
}

/// A list of its own: a list remembers the device it was uploaded to.
fn rows_of(rows: &Rows) -> Rows {
    rows.iter().copied().collect()
}

#[test]
fn votes_are_counted() {
    for (n, draws, classes) in SIZES {
        for dtype in DTYPES {
            let z = logits(n * draws, classes, dtype);
            let found = run(|gpu| {
                let counts = votes(&z.to_gpu(gpu)?.to_dtype(dtype)?, draws)?;
                Ok(vec![put_u32(gpu, &counts)?])
            });
            let expected = votes(&z, draws).unwrap();
            assert_eq!(get_u32(&found[0]), expected);
            assert_eq!(expected.iter().sum::<u32>() as usize, n * draws);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    once(|gpu| {
        let z = logits(6, 3, DType::F32).to_gpu(gpu)?;
        assert_eq!(
            combine(&z, 4, Average::Logits).unwrap_err().to_string(),
            "ensemble::combine: draws: expected a divisor of 6 rows, found 4"
        );
        assert_eq!(
            repeat(&z, 2..7, 2).unwrap_err().to_string(),
            "ensemble::repeat: range: expected rows within 0..6, found 2..7"
        );
        assert_eq!(
            repeat(&z, 0..6, 0).unwrap_err().to_string(),
            "ensemble::repeat: draws: expected at least 1, found 0"
        );
        let g = logits(3, 3, DType::F16).to_gpu(gpu)?.to_dtype(DType::F16)?;
        assert_eq!(
            combine_backward(&z, &g, 2, Average::Logits)
                .unwrap_err()
                .to_string(),
            "ensemble::combine_backward: g: expected [3, 1, 1, 3] f32 on cuda:0, found [3, 1, 1, 3] f16 on cuda:0"
        );
        let wide = Tensor::zeros(Shape::new(2, 1, 1, 6145), DType::F32).to_gpu(gpu)?;
        let g = Tensor::zeros(Shape::new(1, 1, 1, 6145), DType::F32).to_gpu(gpu)?;
        let error = combine_backward(&wide, &g, 2, Average::Probabilities).unwrap_err();
        assert_eq!(
            error.to_string(),
            "ensemble::combine_backward: z: expected at most 6144 classes, found [2, 1, 1, 6145]"
        );
        let rows: Rows = vec![Row {
            id: 0,
            draw: 1 << 31,
        }]
        .into();
        assert_eq!(
            repeat_rows(&rows, 0..1, 2, Some(gpu))
                .unwrap_err()
                .to_string(),
            "ensemble::repeat_rows: rows: expected draw * 2 to fit in 32 bits, found 2147483648"
        );
        Ok(())
    })
}
