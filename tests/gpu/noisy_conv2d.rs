//! noisy_conv2d against noise followed by conv2d, bit for bit, in every dtype.

use noiseforge::gpu::Gpu;
use noiseforge::ops::conv2d;
use noiseforge::ops::noise::{self, Key, Noise, Normals, Purpose};
use noiseforge::ops::noisy_conv2d;
use noiseforge::tensor::DType;
use noiseforge::{Result, Tensor};

use crate::conv2d::{CASES, Case};
use crate::harness::{Reference, once, run};

fn draw(n: usize, sigma: f32, normals: Normals) -> Noise {
    Noise {
        key: Key::consecutive(5, Purpose::Test, 100, n, 3),
        layer: 2,
        sigma,
        normals,
    }
}

/// y, dw and db of the fused op, then of the op on `noisy`, which is made of x.
fn both(
    gpu: &Gpu,
    case: &Case,
    dtype: DType,
    noise: &Noise,
    noisy: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let i = case.inputs(dtype);
    let activation = |t: &Tensor| t.to_gpu(gpu)?.to_dtype(dtype);
    let (mut x, dy) = (i.x.clone(), activation(&i.dy)?);
    // Adding +0 would lose the sign of -0.
    x.data_mut::<f32>()[0] = -0.0;
    let x = activation(&x)?;
    let (w, b) = (i.w.to_gpu(gpu)?, i.b.to_gpu(gpu)?);
    let mut found = Vec::new();
    for fused in [true, false] {
        let (mut dw, mut db) = (i.dw.to_gpu(gpu)?, i.db.to_gpu(gpu)?);
        let b = case.bias.then_some(&b);
        if fused {
            found.push(noisy_conv2d::forward(&x, noise, &w, b, case.conv)?);
            noisy_conv2d::weight_grad(&dy, &x, noise, &mut dw, Some(&mut db), case.conv)?;
        } else {
            let x = noisy(&x)?;
            found.push(conv2d::forward(&x, &w, b, case.conv)?);
            conv2d::weight_grad(&dy, &x, &mut dw, Some(&mut db), case.conv)?;
        }
        found.extend([dw, db]);
    }
    Ok(found)
}

#[track_caller]
fn assert_same(case: &Case, dtype: DType, found: &[Tensor]) {
    for (i, name) in ["y", "dw", "db"].into_iter().enumerate() {
        let bits =
            |t: &Tensor| -> Vec<u32> { t.data::<f32>().iter().map(|v| v.to_bits()).collect() };
        assert!(
            bits(&found[i]) == bits(&found[i + 3]),
            "{case:?} {dtype} {name}"
        );
    }
}

#[test]
fn is_noise_then_convolution_to_the_bit() {
    for (at, case) in CASES.iter().copied().map(Case::new).enumerate() {
        let check = |normals, dtype| {
            let found = run(|gpu| {
                let noise = draw(case.x.n, 0.7, normals);
                both(gpu, &case, dtype, &noise, |x| noise::forward(x, &noise))
            });
            assert_same(&case, dtype, &found);
        };
        // All in f32; types and precise normals by turns.
        check(Normals::Fast, DType::F32);
        match at % 3 {
            0 => check(Normals::Precise, DType::F32),
            1 => check(Normals::Fast, DType::BF16),
            _ => check(Normals::Fast, DType::F16),
        }
    }
}

#[test]
fn without_deviation_is_the_convolution_to_the_bit() {
    for case in CASES.iter().step_by(4).copied().map(Case::new) {
        let found = run(|gpu| {
            let none = draw(case.x.n, 0.0, Normals::Fast);
            both(gpu, &case, DType::F32, &none, |x| Ok(x.clone()))
        });
        assert_same(&case, DType::F32, &found);
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    for case in CASES
        .iter()
        .copied()
        .map(Case::new)
        .filter(|case| case.x.n > 1)
    {
        let i = case.inputs(DType::F32);
        let row = case.x.n - 1;
        let found = run(|gpu| {
            let all = draw(case.x.n, 0.7, Normals::Fast);
            let mut alone = all.clone();
            alone.key.rows = [all.key.rows[row]].into();
            let (x, w) = (i.x.to_gpu(gpu)?, i.w.to_gpu(gpu)?);
            let y = noisy_conv2d::forward(&x, &all, &w, None, case.conv)?;
            let x = x.gather_rows(&[row])?;
            let only = noisy_conv2d::forward(&x, &alone, &w, None, case.conv)?;
            Ok(vec![y.gather_rows(&[row])?, only])
        });
        assert_eq!(found[0].data::<f32>(), found[1].data::<f32>(), "{case:?}");
    }
}

/// The CPU draws the same noise, but for the last bits of fast normals.
#[test]
fn agrees_with_the_cpu() {
    for case in CASES.iter().copied().map(Case::new) {
        let i = case.inputs(DType::F32);
        let results = |to: &dyn Fn(&Tensor) -> Result<Tensor>| {
            let noise = draw(case.x.n, 0.7, Normals::Precise);
            let (x, w, dy, mut dw) = (to(&i.x)?, to(&i.w)?, to(&i.dy)?, to(&i.dw)?);
            noisy_conv2d::weight_grad(&dy, &x, &noise, &mut dw, None, case.conv)?;
            Ok(vec![
                noisy_conv2d::forward(&x, &noise, &w, None, case.conv)?,
                dw,
            ])
        };
        let found = once(|gpu| -> Result<Vec<Tensor>> {
            let found: Vec<Tensor> = results(&|t| t.to_gpu(gpu))?;
            found.iter().map(Tensor::to_cpu).collect()
        })
        .unwrap();
        let on_cpu = |dtype| results(&|t| t.to_dtype(dtype)).unwrap();
        let (exact, single) = (on_cpu(DType::F64), on_cpu(DType::F32));
        for (i, name) in ["y", "dw"].into_iter().enumerate() {
            let reference = Reference {
                exact: &exact[i],
                single: &single[i],
            };
            reference.assert_close(&format!("{case:?} {name}"), &found[i], DType::F32);
        }
    }
}

#[test]
fn bad_arguments_are_named() {
    let case = Case::new([2, 5, 7, 3, 10, 3, 1, 1, 1]);
    let i = case.inputs(DType::F32);
    once(|gpu| {
        let (x, w) = (i.x.to_gpu(gpu).unwrap(), i.w.to_gpu(gpu).unwrap());
        let refused = |w: &Tensor, noise: &Noise| {
            let found = noisy_conv2d::forward(&x, noise, w, None, case.conv);
            found.unwrap_err().to_string()
        };
        let noise = draw(2, 0.7, Normals::Fast);
        assert_eq!(
            refused(&i.w, &noise),
            "noisy_conv2d::forward: w: expected [10, 3, 3, 3] f32 on cuda:0, found [10, 3, 3, 3] f32 on the CPU"
        );
        assert_eq!(
            refused(&w, &draw(3, 0.7, Normals::Fast)),
            "noisy_conv2d::forward: noise.key.rows: expected 2 entries, one per row of the batch, found 3"
        );
        assert_eq!(
            refused(&w, &draw(2, -1.0, Normals::Fast)),
            "noisy_conv2d::forward: noise.sigma: expected a finite number of at least 0, found -1"
        );
        let mut dw = w.zeros_like().unwrap();
        let found = noisy_conv2d::weight_grad(&i.dy, &x, &noise, &mut dw, None, case.conv);
        assert_eq!(
            found.unwrap_err().to_string(),
            "noisy_conv2d::weight_grad: dy: expected [2, 5, 7, 10] f32 on cuda:0, found [2, 5, 7, 10] f32 on the CPU"
        );
    });
}
