//! The change of variables of the C&W attack, and the attack's step.

use noiseforge::gpu::kernels::Margin;
use noiseforge::ops::adam::{self, Adam};
use noiseforge::ops::noise::Row;
use noiseforge::ops::tanh_space::{
    Attacked, Iterates, backward, from_image, squared_distances, to_image, to_image_as,
};
use noiseforge::tensor::{DType, Shape};
use noiseforge::{Result, Tensor};

use crate::harness::{DTYPES, epsilon, once, rounded, run, values};
use crate::numbers::{get_f64, get_u32, put_f64, put_u32};

/// Rows of one element, of no whole vector, of whole vectors, of more than a block's.
const SHAPES: [Shape; 5] = [
    Shape::new(1, 1, 1, 1),
    Shape::new(3, 5, 7, 3),
    Shape::new(2, 4, 4, 3),
    Shape::new(2, 1, 1, 2056),
    Shape::new(1, 9, 41, 3),
];

/// Pixels in [0, 1] that survive rounding to a dtype; the first are saturated.
fn images(shape: Shape, seed: u64, dtype: DType) -> Tensor {
    let mut x = values(shape, seed);
    x.data_mut::<f32>()
        .iter_mut()
        .for_each(|v| *v = 0.5 + 0.5 * *v);
    for (v, edge) in x.data_mut::<f32>().iter_mut().skip(1).zip([0.0, 1.0]) {
        *v = edge;
    }
    rounded(&x, dtype)
}

fn doubles(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F64).unwrap()
}

#[test]
fn images_go_there_and_back() {
    for shape in SHAPES {
        for dtype in DTYPES {
            for shrink in [1.0, 0.999_999] {
                let x = images(shape, 1, dtype);
                let found = run(|gpu| {
                    let w = from_image(&x.to_gpu(gpu)?.to_dtype(dtype)?, shrink)?;
                    let back = to_image_as(&w, dtype)?;
                    Ok(vec![w, back])
                });
                let w = from_image(&doubles(&x), shrink).unwrap().to_f64_vec();
                for (f, e) in found[0].to_f64_vec().iter().zip(w) {
                    // In f64, rounded once.
                    let error = (f - e).abs();
                    assert!(*f == e || error <= 6e-8 * e.abs() + 1e-12, "{f} for {e}");
                }
                let exact = to_image(&doubles(&found[0])).unwrap();
                for (f, e) in found[1].to_f64_vec().iter().zip(exact.to_f64_vec()) {
                    // tanh to 2 ulp, an addition, a rounding.
                    let error = (f - e).abs();
                    assert!(error <= 2e-7 + epsilon(dtype) * e, "{dtype}: {f} for {e}");
                }
            }
        }
    }
}

#[test]
fn distances_and_gradients_match_the_cpu() {
    for shape in SHAPES {
        for dtype in DTYPES {
            let (adversarial, x) = (images(shape, 1, dtype), images(shape, 2, dtype));
            let df = rounded(&values(shape, 3), dtype);
            let found = run(|gpu| {
                let to = |t: &Tensor| t.to_gpu(gpu)?.to_dtype(dtype);
                let (a, x, df) = (to(&adversarial)?, to(&x)?, to(&df)?);
                let (squared, dw) = backward(&a, &x, &df)?;
                let distances = squared_distances(&a, &x)?;
                Ok(vec![put_f64(gpu, &squared)?, put_f64(gpu, &distances)?, dw])
            });
            let (squared, dw) =
                backward(&doubles(&adversarial), &doubles(&x), &doubles(&df)).unwrap();
            for t in &found[..2] {
                // Differences are rounded to f32 before they are squared.
                for (f, e) in get_f64(t).iter().zip(&squared) {
                    assert!((f / e - 1.0).abs() < 2.5e-7, "{f} for {e}");
                }
            }
            // Six roundings of values up to 3.
            for (f, e) in found[2].to_f64_vec().iter().zip(dw.to_f64_vec()) {
                assert!((f - e).abs() <= 1e-6, "{f} for {e}");
            }
        }
    }
}

const ADAM: Adam = Adam {
    lr: 0.05,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
};

/// What a made-up network says at a step: success in some rows and steps, margins that fall and stall.
fn margins(n: usize, step: usize) -> Vec<Margin> {
    let margin = |row: usize| {
        let met = (row + step).is_multiple_of(3);
        Margin {
            // Row 1 never gets better; the check for progress stops it.
            value: if met {
                0.0
            } else {
                2.0 + if row == 1 { 9.0 * step as f64 } else { 0.0 }
            },
            met: met.into(),
            not_finite: u32::from(row == 0 && step == 4),
        }
    };
    (0..n).map(margin).collect()
}

/// The attack's loop as `attacks::carlini_wagner` runs it on the CPU, in f32: images, bests and states.
fn reference(
    x: &Tensor,
    df: &Tensor,
    c: &[f64],
    steps: usize,
    check_every: usize,
) -> (Tensor, Vec<Tensor>, Vec<Attacked>) {
    let n = x.shape().n;
    let zero = Attacked {
        c: 0.0,
        best: f64::INFINITY,
        squared: 0.0,
        previous: f64::INFINITY,
        steps: 0,
        success: 0,
        stalled: 0,
        active: 1,
        not_finite: 0,
        first_bad: 0,
    };
    let mut state: Vec<Attacked> = c.iter().map(|&c| Attacked { c, ..zero }).collect();
    let mut best: Vec<Tensor> = (0..n).map(|r| x.gather_rows(&[r]).unwrap()).collect();
    let mut w = from_image(x, 0.999_999).unwrap();
    let (mut m, mut v) = (w.zeros_like().unwrap(), w.zeros_like().unwrap());
    let len = x.shape().row_len();
    for step in 0..steps {
        let adversarial = to_image(&w).unwrap();
        let mut weighted = df.clone();
        for (row, s) in weighted.data_mut::<f32>().chunks_mut(len).zip(&state) {
            row.iter_mut().for_each(|v| *v *= s.c as f32);
        }
        let (squared, dw) = backward(&adversarial, x, &weighted).unwrap();
        let mut t = vec![0; n];
        for (r, (s, margin)) in state.iter_mut().zip(margins(n, step)).enumerate() {
            if s.active == 0 {
                continue;
            }
            t[r] = s.steps + 1;
            s.squared = squared[r];
            s.success = margin.met;
            if margin.met == 1 && squared[r] < s.best {
                s.best = squared[r];
                best[r] = adversarial.gather_rows(&[r]).unwrap();
            }
            if check_every > 0 && step % check_every == 0 {
                let loss = s.squared + s.c * margin.value;
                s.stalled = if loss <= 0.9999 * s.previous {
                    0
                } else {
                    s.stalled + 1
                };
                s.previous = loss;
                s.active = (s.stalled < 2).into();
            }
            s.steps += 1;
            if margin.not_finite > 0 {
                s.not_finite += 1;
                s.first_bad = s.steps;
            }
        }
        adam::step(&mut w, &dw, &mut m, &mut v, &t, ADAM).unwrap();
    }
    (to_image(&w).unwrap(), best, state)
}

fn counts(s: &Attacked) -> [u32; 6] {
    [
        s.steps,
        s.success,
        s.stalled,
        s.active,
        s.not_finite,
        s.first_bad,
    ]
}

#[test]
fn steps_follow_the_attack_on_the_cpu() {
    for (shape, steps, check_every) in [
        (SHAPES[0], 7, 2),
        (SHAPES[1], 9, 2),
        (SHAPES[2], 9, 2),
        (SHAPES[2], 5, 0),
        (SHAPES[3], 3, 1),
    ] {
        let n = shape.n;
        let c: Vec<f64> = (0..n).map(|r| 0.5 + r as f64).collect();
        let rows: Vec<Row> = (0..n as u32)
            .map(|r| Row {
                id: 9 - r,
                draw: 100,
            })
            .collect();
        for dtype in DTYPES {
            let x = images(shape, 4, DType::F32);
            let df = rounded(&values(shape, 5), dtype);
            let scale = 64.0;
            let found = run(|gpu| {
                let x = x.to_gpu(gpu)?;
                let mut scaled = df.clone();
                scaled
                    .data_mut::<f32>()
                    .iter_mut()
                    .for_each(|v| *v *= scale);
                let df = scaled.to_gpu(gpu)?.to_dtype(dtype)?;
                let mut it =
                    Iterates::new(&x, dtype, 0.999_999, &c, &rows, ADAM, check_every as u32)?;
                let mut said = gpu.upload(&margins(n, 0))?;
                let (graph, ()) = gpu.capture(|| it.step(&df, &said, scale))?;
                for step in 0..steps {
                    said.write(&margins(n, step))?;
                    graph.launch()?;
                }
                let state = it.read()?;
                let numbers: Vec<f64> = state
                    .iter()
                    .flat_map(|s| [s.squared, s.best, s.previous])
                    .collect();
                let counted: Vec<u32> = state.iter().flat_map(counts).collect();
                let kept: Vec<usize> = (0..n).rev().step_by(2).collect();
                let kept = it.gather(&kept)?;
                assert_eq!(kept.rows().len(), n.div_ceil(2));
                assert_eq!(kept.read()?.len(), n.div_ceil(2));
                Ok(vec![
                    put_f64(gpu, &numbers)?,
                    put_u32(gpu, &counted)?,
                    it.last()?,
                    it.best().clone(),
                    it.image().clone(),
                    kept.last()?,
                ])
            });
            let (last, best, state) = reference(&x, &df, &c, steps, check_every);
            let counted: Vec<u32> = state.iter().flat_map(counts).collect();
            assert_eq!(get_u32(&found[1]), counted, "{shape} {dtype}");
            let numbers = state.iter().flat_map(|s| [s.squared, s.best, s.previous]);
            for (f, e) in get_f64(&found[0]).iter().zip(numbers) {
                // At first the distance is all rounding.
                assert!(*f == e || (f - e).abs() < 1e-4 * e + 1e-9, "{f} for {e}");
            }
            // A few ulp of w a step, where Adam's first steps are of lr whatever the gradient.
            let close = |f: &Tensor, e: &[f64], more: f64| {
                for (f, e) in f.to_f64_vec().iter().zip(e) {
                    assert!((f - e).abs() <= 1e-5 + more, "{shape} {dtype}: {f} for {e}");
                }
            };
            let best: Vec<f64> = best.iter().flat_map(Tensor::to_f64_vec).collect();
            close(&found[2], &last.to_f64_vec(), 0.0);
            close(&found[3], &best, 0.0);
            close(&found[4], &found[2].to_f64_vec(), epsilon(dtype));
            let kept: Vec<usize> = (0..n).rev().step_by(2).collect();
            assert_eq!(
                found[5].data::<f32>(),
                found[2].gather_rows(&kept).unwrap().data::<f32>()
            );
        }
    }
}

/// The names of the noise are the rows' own, one draw further after each of their steps.
#[test]
fn draws_advance_with_the_rows() -> Result<()> {
    let shape = SHAPES[1];
    once(|gpu| {
        let x = images(shape, 4, DType::F32).to_gpu(gpu)?;
        let rows: Vec<Row> = (0..3)
            .map(|r| Row {
                id: 9 - r,
                draw: 100 * r,
            })
            .collect();
        let mut it = Iterates::new(&x, DType::F32, 1.0, &[1.0; 3], &rows, ADAM, 0)?;
        let df = x.zeros_like()?;
        let said = gpu.upload(&margins(3, 0))?;
        let before = it.rows();
        assert_eq!(before.len(), 3);
        it.step(&df, &said, 1.0)?;
        it.step(&df, &said, 1.0)?;
        // The list is the same, its draws have moved on: the expanded list shows them.
        let expanded = noiseforge::ops::ensemble::repeat_rows(&before, 0..3, 2, Some(gpu))?;
        let expanded = expanded.to_host()?;
        let draws: Vec<(u32, u32)> = expanded.iter().map(|r| (r.id, r.draw)).collect();
        assert_eq!(
            draws,
            [(9, 4), (9, 5), (8, 204), (8, 205), (7, 404), (7, 405)]
        );
        Ok(())
    })
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let shape = Shape::new(2, 1, 300, 1);
    once(|gpu| {
        for (at, bad, shown) in [(0, 1.5, "1.5"), (299, -0.25, "-0.25"), (5, f32::NAN, "NaN")] {
            let mut x = images(shape, 1, DType::F32);
            x.data_mut::<f32>()[at] = bad;
            x.data_mut::<f32>()[400] = 7.0;
            assert_eq!(
                from_image(&x.to_gpu(gpu)?, 1.0).unwrap_err().to_string(),
                format!("tanh_space::from_image: x: expected pixels in [0, 1], found {shown}")
            );
        }
        let x = images(shape, 1, DType::F32).to_gpu(gpu)?;
        let half = x.to_dtype(DType::F16)?;
        assert_eq!(
            to_image(&half).unwrap_err().to_string(),
            "tanh_space::to_image: w: expected [2, 1, 300, 1] f32 on cuda:0, found [2, 1, 300, 1] f16 on cuda:0"
        );
        assert_eq!(
            squared_distances(&x, &half).unwrap_err().to_string(),
            "tanh_space::squared_distances: b: expected [2, 1, 300, 1] f32 on cuda:0, found [2, 1, 300, 1] f16 on cuda:0"
        );
        let rows = [Row { id: 0, draw: 0 }; 2];
        let error = |x: &Tensor, c: &[f64], rows: &[Row]| {
            let it = Iterates::new(x, DType::F32, 1.0, c, rows, ADAM, 0);
            it.err().unwrap().to_string()
        };
        assert_eq!(
            error(&x, &[1.0], &rows),
            "Iterates::new: c: expected 2 entries, one per row, found 1"
        );
        assert_eq!(
            error(&x, &[1.0, -1.0], &rows),
            "Iterates::new: c: expected a finite number, at least 0, found -1"
        );
        assert_eq!(
            error(&half, &[1.0; 2], &rows),
            "Iterates::new: x: expected [2, 1, 300, 1] f32 on cuda:0, found [2, 1, 300, 1] f16 on cuda:0"
        );
        let mut it = Iterates::new(&x, DType::F32, 1.0, &[1.0; 2], &rows, ADAM, 0)?;
        let said = gpu.upload(&margins(1, 0))?;
        assert_eq!(
            it.step(&x, &said, 1.0).unwrap_err().to_string(),
            "Iterates::step: margins: expected 2 elements on cuda:0, found 1 elements on cuda:0"
        );
        Ok(())
    })
}
