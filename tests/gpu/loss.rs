//! Softmax, cross-entropy, argmax.

use noiseforge::ops::loss::{
    Metrics, Totals, argmax, cross_entropy, cross_entropy_step, log_softmax, softmax,
};
use noiseforge::ops::step::{LossScale, Scale};
use noiseforge::tensor::{DType, Shape};
use noiseforge::{Result, Tensor};

use crate::harness::{DTYPES, epsilon, once, rounded, run, values};
use crate::numbers::{get_f64, get_u32, put_f64, put_u32};

/// Rows and classes: one of each, less and more than a warp's lanes, less and more than a block's rows.
const SIZES: [(usize, usize); 7] = [
    (1, 1),
    (1, 2),
    (3, 10),
    (9, 32),
    (17, 33),
    (8, 100),
    (2, 1000),
];

/// Logits in about [-8, 8] that survive rounding to a dtype.
fn logits(n: usize, classes: usize, dtype: DType) -> Tensor {
    let mut z = values(Shape::new(n, 1, 1, classes), 11);
    z.data_mut::<f32>().iter_mut().for_each(|v| *v *= 8.0);
    rounded(&z, dtype)
}

fn labels(n: usize, classes: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 7 % classes) as u32).collect()
}

fn doubles(z: &Tensor) -> Tensor {
    z.to_dtype(DType::F64).unwrap()
}

/// The GPU rounds once from f64 to f32 and once more to a 16-bit type.
#[track_caller]
fn assert_rounded(found: &Tensor, exact: &Tensor, dtype: DType, what: &str) {
    // Half of the smallest f16 where results vanish.
    let smallest = (-25f64).exp2();
    let half_ulp = epsilon(dtype) * (1.0 + 1e-6) + epsilon(DType::F32);
    for (f, e) in found.to_f64_vec().iter().zip(exact.to_f64_vec()) {
        let error = (f - e).abs();
        assert!(
            error <= half_ulp * e.abs() + smallest,
            "{what} {dtype}: {f} for {e}"
        );
    }
}

#[test]
fn losses_and_gradients_match_the_cpu() {
    for (n, classes) in SIZES {
        let labels = labels(n, classes);
        for dtype in DTYPES {
            let z = logits(n, classes, dtype);
            let found = run(|gpu| {
                let (loss, grad) = cross_entropy(&z.to_gpu(gpu)?.to_dtype(dtype)?, &labels)?;
                Ok(vec![put_f64(gpu, &loss)?, grad])
            });
            let (loss, grad) = cross_entropy(&doubles(&z), &labels).unwrap();
            // Both sum in f64, in different orders.
            let ulps = (4 + classes) as f64 * f64::EPSILON;
            for (f, e) in get_f64(&found[0]).iter().zip(&loss) {
                assert!(
                    (f - e).abs() <= ulps * (1.0 + e.abs()),
                    "{n}x{classes} {dtype}: {f} for {e}"
                );
            }
            assert_rounded(&found[1], &grad, dtype, "gradient");
        }
    }
}

#[test]
fn softmax_matches_the_cpu() {
    for (n, classes) in SIZES {
        for dtype in DTYPES {
            let z = logits(n, classes, dtype);
            let found = run(|gpu| {
                let z = z.to_gpu(gpu)?.to_dtype(dtype)?;
                Ok(vec![softmax(&z)?, log_softmax(&z)?])
            });
            assert_rounded(&found[0], &softmax(&doubles(&z)).unwrap(), dtype, "softmax");
            assert_rounded(
                &found[1],
                &log_softmax(&doubles(&z)).unwrap(),
                dtype,
                "log softmax",
            );
        }
    }
}

#[test]
fn no_digit_is_lost_and_nothing_overflows() {
    let shape = Shape::new(4, 1, 1, 2);
    let z = vec![50.0, 0.0, 3e38, -3e38, -1e38, -1e38, f32::NEG_INFINITY, 0.0];
    let z = Tensor::from_vec(shape, z).unwrap();
    let labels = [0, 1, 0, 1];
    let found = run(|gpu| {
        let (loss, grad) = cross_entropy(&z.to_gpu(gpu)?, &labels)?;
        Ok(vec![put_f64(gpu, &loss)?, grad])
    });
    let (loss, grad) = cross_entropy(&z, &labels).unwrap();
    // ln(1 + e^-50): all of it would be lost in 1 + e^-50.
    for (f, e) in get_f64(&found[0]).iter().zip(&loss) {
        assert!((f - e).abs() <= 1e-14 * e.abs(), "{f} for {e}");
    }
    assert_rounded(&found[1], &grad, DType::F32, "gradient");
    let small = found[1].data::<f32>()[1];
    assert!((f64::from(small) * 4.0 / (-50f64).exp() - 1.0).abs() < 1e-6);
}

#[test]
fn argmax_takes_the_first_of_equals_and_a_nan() {
    let mut rows = vec![
        vec![1.0, 4.0, 4.0, 0.0],
        vec![0.0; 4],
        vec![9.0, f32::NAN, 99.0, f32::NAN],
        vec![f32::NEG_INFINITY; 4],
        vec![f32::INFINITY, f32::NAN, f32::INFINITY, 0.0],
    ];
    for row in &mut rows {
        // Equals and NaNs in other lanes and later turns of a warp.
        let again = row.clone();
        row.extend(vec![f32::NEG_INFINITY; 30]);
        row.extend(again);
    }
    let shape = Shape::new(rows.len(), 1, 1, rows[0].len());
    let z = Tensor::from_vec(shape, rows.concat()).unwrap();
    for dtype in DTYPES {
        let found = run(|gpu| put_all(gpu, &argmax(&z.to_gpu(gpu)?.to_dtype(dtype)?)?));
        assert_eq!(get_u32(&found[0]), [1, 0, 1, 0, 1]);
        assert_eq!(argmax(&z).unwrap(), [1, 0, 1, 0, 1]);
    }
}

fn put_all(gpu: &noiseforge::gpu::Gpu, values: &[u32]) -> Result<Vec<Tensor>> {
    Ok(vec![put_u32(gpu, values)?])
}

/// Two steps, then three replays of a captured one: the same sums as on the CPU.
#[test]
fn steps_add_up_without_waiting() {
    let (n, classes) = (300, 7);
    let labels = labels(n, classes);
    let z = logits(n, classes, DType::F32);
    let found = run(|gpu| {
        let z = z.to_gpu(gpu)?;
        let labels = gpu.upload(&labels)?;
        let mut metrics = Metrics::new(gpu)?;
        let mut scale = LossScale::new(gpu, DType::F16)?;
        let scaled = cross_entropy_step(&z, &labels, Some(&scale), &mut metrics)?;
        scale.set(Scale {
            scale: 0.5,
            ..scale.read()?
        })?;
        let halved = cross_entropy_step(&z, &labels, Some(&scale), &mut metrics)?;
        let (graph, plain) = gpu.capture(|| cross_entropy_step(&z, &labels, None, &mut metrics))?;
        for _ in 0..3 {
            graph.launch()?;
        }
        let t = metrics.read()?;
        let counts = [
            t.correct,
            t.rows,
            t.not_finite,
            t.steps,
            t.first_bad.is_some().into(),
        ];
        let counts = counts.map(|v| v as u32);
        Ok(vec![
            put_f64(gpu, &[t.loss])?,
            put_u32(gpu, &counts)?,
            scaled,
            halved,
            plain,
        ])
    });
    let (losses, grad) = cross_entropy(&z, &labels).unwrap();
    let loss = 5.0 * losses.iter().sum::<f64>();
    assert!((get_f64(&found[0])[0] / loss - 1.0).abs() < 1e-12);
    let predictions = argmax(&z).unwrap();
    let right = predictions
        .iter()
        .zip(&labels)
        .filter(|(p, l)| p == l)
        .count() as u32;
    assert!(right > 0);
    assert_eq!(get_u32(&found[1]), [5 * right, 5 * n as u32, 0, 5, 0]);
    for (t, factor) in [(&found[2], 65_536.0), (&found[3], 0.5), (&found[4], 1.0)] {
        for (f, e) in t.data::<f32>().iter().zip(grad.data::<f32>()) {
            // A power of two changes no digit.
            assert!(
                (f / factor - e).abs() <= 2.0 * f32::EPSILON * e.abs(),
                "{f} for {e}"
            );
        }
    }
}

#[test]
fn rows_that_are_not_finite_are_counted_and_dated() -> Result<()> {
    let good = logits(3, 4, DType::F32);
    let mut bad = good.clone();
    bad.data_mut::<f32>()[5] = f32::NAN;
    bad.data_mut::<f32>()[8] = f32::INFINITY;
    once(|gpu| {
        let (good, bad) = (good.to_gpu(gpu)?, bad.to_gpu(gpu)?);
        let labels = gpu.upload(&[0, 1, 3])?;
        let mut metrics = Metrics::new(gpu)?;
        for z in [&good, &bad, &bad] {
            cross_entropy_step(z, &labels, None, &mut metrics)?;
        }
        let totals = metrics.read()?;
        assert_eq!((totals.not_finite, totals.first_bad), (4, Some(1)));
        assert!(!totals.loss.is_finite());
        // A label that is no class is no reading past the row's end.
        metrics.set(Totals {
            steps: 10,
            ..Totals::default()
        })?;
        let labels = gpu.upload(&[0, 4, u32::MAX])?;
        cross_entropy_step(&good, &labels, None, &mut metrics)?;
        let totals = metrics.read()?;
        assert_eq!(
            (totals.not_finite, totals.first_bad, totals.steps),
            (2, Some(10), 11)
        );
        Ok(())
    })
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let z = logits(2, 3, DType::F32);
    once(|gpu| {
        let on_gpu = z.to_gpu(gpu)?;
        assert_eq!(
            cross_entropy(&on_gpu, &[2, 3]).unwrap_err().to_string(),
            "loss::cross_entropy: labels: expected classes below 3, found 3 in row 1"
        );
        let image = Tensor::zeros(Shape::new(1, 2, 2, 3), DType::F32).to_gpu(gpu)?;
        assert_eq!(
            softmax(&image).unwrap_err().to_string(),
            "loss::softmax: logits: expected [n, 1, 1, classes], found [1, 2, 2, 3]"
        );
        let mut metrics = Metrics::new(gpu)?;
        let labels = gpu.upload(&[0, 1, 2])?;
        let mut error = |z: &Tensor| {
            let result = cross_entropy_step(z, &labels, None, &mut metrics);
            result.unwrap_err().to_string()
        };
        assert_eq!(
            error(&on_gpu),
            "loss::cross_entropy_step: labels: expected 2 elements on cuda:0, found 3 elements on cuda:0"
        );
        assert_eq!(
            error(&z),
            "loss::cross_entropy_step: logits: expected a tensor on a GPU, found [2, 1, 1, 3] f32 on the CPU"
        );
        Ok(())
    })
}
