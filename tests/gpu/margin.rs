//! The Carlini-Wagner margin.

use noiseforge::ops::loss::argmax;
use noiseforge::ops::margin::{Direction, attack_step, forward_backward};
use noiseforge::tensor::{DType, Shape};
use noiseforge::{Result, Tensor};

use crate::harness::{DTYPES, once, rounded, run, values};
use crate::numbers::{get_f64, get_u32, put_f64, put_u32};

const SIZES: [(usize, usize); 5] = [(1, 2), (3, 10), (9, 32), (17, 33), (8, 100)];

/// Logits with ties: multiples of 1/4.
fn logits(n: usize, classes: usize) -> Tensor {
    let mut z = values(Shape::new(n, 1, 1, classes), 12);
    let coarse = |v: &mut f32| *v = (*v * 8.0).round() / 4.0;
    z.data_mut::<f32>().iter_mut().for_each(coarse);
    z
}

fn classes_of(n: usize, classes: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 7 % classes) as u32).collect()
}

/// Differences of two logits are exact in f64, so margins are the CPU's to the bit; weights are
/// rounded to the gradient's type.
#[test]
fn margins_and_gradients_are_the_cpus() {
    for (n, classes) in SIZES {
        let (z, t) = (logits(n, classes), classes_of(n, classes));
        let weight: Vec<f64> = (0..n).map(|i| 0.3 + i as f64).collect();
        for direction in [Direction::Away, Direction::Towards] {
            for kappa in [0.0, 0.5, 100.0] {
                for dtype in DTYPES {
                    let found = run(|gpu| {
                        let z = z.to_gpu(gpu)?.to_dtype(dtype)?;
                        let (margins, grad) = forward_backward(&z, &t, direction, kappa, &weight)?;
                        Ok(vec![put_f64(gpu, &margins)?, grad])
                    });
                    let (margins, grad) =
                        forward_backward(&z, &t, direction, kappa, &weight).unwrap();
                    assert_eq!(get_f64(&found[0]), margins);
                    assert_eq!(found[1].data::<f32>(), rounded(&grad, dtype).data::<f32>());
                }
            }
        }
    }
}

/// The verdict is the attack's own: the prediction meets the criterion, and the margin is at most
/// `-kappa`.
#[test]
fn a_step_judges_by_the_prediction() {
    let (n, classes, scale) = (40, 4, 0.25);
    let (mut z, t) = (logits(n, classes), classes_of(n, classes));
    z.data_mut::<f32>()[5] = f32::NAN;
    z.data_mut::<f32>()[8] = f32::INFINITY;
    for direction in [Direction::Away, Direction::Towards] {
        for kappa in [0.0, 0.5] {
            let found = run(|gpu| {
                let (z, t) = (z.to_gpu(gpu)?, gpu.upload(&t)?);
                let mut margins = gpu.alloc(n)?;
                let (graph, grad) =
                    gpu.capture(|| attack_step(&z, &t, direction, kappa, scale, &mut margins))?;
                graph.launch()?;
                let margins = margins.to_vec()?;
                let values: Vec<f64> = margins.iter().map(|m| m.value).collect();
                let flags: Vec<u32> = margins.iter().flat_map(|m| [m.met, m.not_finite]).collect();
                Ok(vec![put_f64(gpu, &values)?, put_u32(gpu, &flags)?, grad])
            });
            let (margins, grad) =
                forward_backward(&z, &t, direction, kappa, &vec![scale.into(); n]).unwrap();
            let predictions = argmax(&z).unwrap();
            let met = |i: usize| {
                let hit = match direction {
                    Direction::Away => predictions[i] != t[i],
                    Direction::Towards => predictions[i] == t[i],
                };
                hit && margins[i] <= -kappa
            };
            let bad = |i: usize| [1, 2].contains(&i) as u32;
            let flags: Vec<u32> = (0..n).flat_map(|i| [met(i).into(), bad(i)]).collect();
            assert_eq!(get_u32(&found[1]), flags);
            assert!((0..n).any(met) && !(0..n).all(met));
            for (f, e) in get_f64(&found[0]).iter().zip(&margins) {
                assert!(f == e || (f.is_nan() && e.is_nan()), "{f} for {e}");
            }
            assert_eq!(found[2].data::<f32>(), grad.data::<f32>());
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    once(|gpu| {
        let z = logits(2, 3).to_gpu(gpu)?;
        let error = forward_backward(&z, &[0, 7], Direction::Away, 0.0, &[1.0; 2]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "margin::forward_backward: classes: expected classes below 3, found 7 in row 1"
        );
        let t = gpu.upload(&[0, 1])?;
        let mut margins = gpu.alloc(1)?;
        let mut error = |z: &Tensor, kappa| {
            let result = attack_step(z, &t, Direction::Away, kappa, 1.0, &mut margins);
            result.unwrap_err().to_string()
        };
        assert_eq!(
            error(&z, -1.0),
            "margin::attack_step: kappa: expected a finite number, at least 0, found -1"
        );
        assert_eq!(
            error(&z, 0.0),
            "margin::attack_step: margins: expected 2 elements on cuda:0, found 1 elements on cuda:0"
        );
        let one = Tensor::zeros(Shape::new(2, 1, 1, 1), DType::F32).to_gpu(gpu)?;
        assert_eq!(
            error(&one, 0.0),
            "margin::attack_step: logits: expected at least 2 classes, found [2, 1, 1, 1]"
        );
        Ok(())
    })
}
