//! The tensor cores' convolutions: every blocking against the CPU, and against each other to the bit.

use noiseforge::gpu::{Gpu, Options};
use noiseforge::ops::batch_norm::Activation;
use noiseforge::ops::conv2d;
use noiseforge::ops::fused_conv2d::{self, Epilogue};
use noiseforge::ops::noise::{self, Key, Noise, Normals, Purpose};
use noiseforge::ops::noisy_conv2d;
use noiseforge::ops::pool2d::Pool2d;
use noiseforge::tensor::DType;
use noiseforge::{Result, Tensor};

use crate::batch_norm::normalised;
use crate::conv2d::{Case, Inputs, input_grads};
use crate::harness::{Reference, epsilon, open_as, run_with, values};

/// n, h, w, c_in, c_out, k, stride, pad, groups.
#[rustfmt::skip]
const CASES: &[[usize; 9]] = &[
    // Several chunks of channels, ragged pixels and columns; more columns than a block has.
    [3, 6, 5, 72, 40, 3, 1, 1, 1],
    [1, 8, 9, 40, 136, 3, 1, 1, 1],
    [1, 17, 18, 32, 24, 3, 1, 1, 1],
    // Small images: whole ones in a tile, by position where there are enough.
    [17, 4, 4, 64, 40, 3, 1, 1, 1],
    [33, 2, 2, 40, 70, 3, 1, 1, 1],
    // One tap: several patches ahead. Strides, with phases of one tap, of two, and of none.
    [3, 5, 6, 136, 48, 1, 1, 0, 1],
    [2, 7, 6, 72, 24, 1, 2, 0, 1],
    [2, 9, 8, 40, 48, 3, 2, 1, 1],
    [2, 6, 7, 72, 24, 2, 1, 1, 1],
    [1, 11, 9, 40, 24, 5, 3, 2, 1],
    // Few channels: several taps in a slab.
    [2, 9, 7, 3, 64, 3, 1, 1, 1],
    [2, 6, 9, 12, 20, 5, 1, 2, 1],
    [1, 9, 9, 5, 8, 3, 2, 0, 1],
    // Groups of 4, 8, 24 and 64 channels, and as many as do not fill the last supergroup.
    [2, 6, 5, 64, 64, 3, 1, 1, 16],
    [2, 5, 6, 40, 80, 3, 1, 1, 5],
    [2, 5, 5, 48, 96, 1, 1, 0, 2],
    [1, 6, 6, 128, 64, 3, 1, 1, 2],
    // A linear layer.
    [130, 1, 1, 70, 10, 1, 1, 0, 1],
];

fn draw(n: usize, normals: Normals) -> Noise {
    Noise {
        key: Key::consecutive(5, Purpose::Test, 100, n, 3),
        layer: 2,
        sigma: 0.7,
        normals,
    }
}

/// y, y of the noisy input, dx, y of the input that the noise was added to before, and dx gated in both ways.
fn results(gpu: &Gpu, case: &Case, dtype: DType, normals: Normals) -> Result<Vec<Tensor>> {
    let i = case.inputs(dtype);
    let activation = |t: &Tensor| t.to_gpu(gpu)?.to_dtype(dtype);
    let (x, dy) = (activation(&i.x)?, activation(&i.dy)?);
    let (w, b) = (i.w.to_gpu(gpu)?, i.b.to_gpu(gpu)?);
    let b = case.bias.then_some(&b);
    let noise = draw(case.x.n, normals);
    let noisy = noise::forward(&x, &noise)?;
    let [dx, gated, masked] = input_grads(case, &dy, &w, &x)?;
    Ok(vec![
        conv2d::forward(&x, &w, b, case.conv)?,
        noisy_conv2d::forward(&x, &noise, &w, b, case.conv)?,
        dx,
        conv2d::forward(&noisy, &w, b, case.conv)?,
        gated,
        masked,
    ])
}

/// y and dx (where there is a bias with something else added to it).
fn on_cpu(case: &Case, i: &Inputs, dtype: DType) -> Vec<Tensor> {
    let [x, dy, w, b] = [&i.x, &i.dy, &i.w, &i.b].map(|t| t.to_dtype(dtype).unwrap());
    let [dx, ..] = input_grads(case, &dy, &w, &x).unwrap();
    vec![
        conv2d::forward(&x, &w, case.bias.then_some(&b), case.conv).unwrap(),
        dx,
    ]
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.data::<f32>().iter().map(|v| v.to_bits()).collect()
}

#[test]
fn every_blocking_gives_the_cpus_results_and_the_same_bits() {
    for (at, case) in CASES.iter().copied().map(Case::new).enumerate() {
        let dtype = [DType::BF16, DType::F16][at % 2];
        let normals = [Normals::Fast, Normals::Fast, Normals::Precise][at % 3];
        let i = case.inputs(dtype);
        let (exact, single) = (on_cpu(&case, &i, DType::F64), on_cpu(&case, &i, DType::F32));
        let mut first: Option<Vec<Tensor>> = None;
        // Blockings 4 to 6 are for small images.
        let blockings = if case.x.h <= 4 { 0..7 } else { 0..4 };
        for blocking in blockings {
            let options = Options {
                blocking: Some(blocking),
                ..Options::default()
            };
            let found = run_with(
                || open_as(options),
                |gpu| results(gpu, &case, dtype, normals),
            );
            let what = format!("{case:?} {dtype} blocking {blocking}");
            assert!(bits(&found[1]) == bits(&found[3]), "{what}: noise");
            assert!(bits(&found[0]) != bits(&found[1]), "{what}: no noise");
            assert!(bits(&found[4]) == bits(&found[5]), "{what}: the gate");
            for (i, found) in [&found[0], &found[2]].into_iter().enumerate() {
                let reference = Reference {
                    exact: &exact[i],
                    single: &single[i],
                };
                reference.assert_close(&format!("{what} {}", ["y", "dx"][i]), found, dtype);
            }
            match &first {
                None => first = Some(found),
                Some(first) => {
                    for (a, b) in first.iter().zip(&found) {
                        assert!(bits(a) == bits(b), "{what}: other bits than blocking 0");
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    for case in CASES.iter().copied().map(Case::new) {
        let row = case.x.n - 1;
        let i = case.inputs(DType::BF16);
        let found = run_with(
            || open_as(Options::default()),
            |gpu| {
                let activation = |t: &Tensor| t.to_gpu(gpu)?.to_dtype(DType::BF16);
                let all = draw(case.x.n, Normals::Fast);
                let mut alone = all.clone();
                alone.key.rows = [all.key.rows[row]].into();
                let (x, dy, w) = (activation(&i.x)?, activation(&i.dy)?, i.w.to_gpu(gpu)?);
                let y = noisy_conv2d::forward(&x, &all, &w, None, case.conv)?;
                let dx = conv2d::input_grad(&dy, &w, case.x, case.conv)?;
                let (x, dy) = (x.gather_rows(&[row])?, dy.gather_rows(&[row])?);
                Ok(vec![
                    y.gather_rows(&[row])?,
                    dx.gather_rows(&[row])?,
                    noisy_conv2d::forward(&x, &alone, &w, None, case.conv)?,
                    conv2d::input_grad(&dy, &w, x.shape(), case.conv)?,
                ])
            },
        );
        assert!(bits(&found[0]) == bits(&found[2]), "{case:?} y");
        assert!(bits(&found[1]) == bits(&found[3]), "{case:?} dx");
    }
}

/// A tensor with everything behind it, and the running statistics that it moved.
fn everything(gpu: &Gpu, case: &Case, dtype: DType) -> Result<Vec<Tensor>> {
    let i = case.inputs(dtype);
    let x = i.x.to_gpu(gpu)?.to_dtype(dtype)?;
    let (w, b) = (i.w.to_gpu(gpu)?, i.b.to_gpu(gpu)?);
    let next = draw(case.x.n, Normals::Fast);
    let epilogue = Epilogue {
        statistics: true,
        activation: Activation::BoundedRelu(0.5),
        pool: (case.y.h > 1 && case.y.w > 1).then_some(Pool2d { k: 2, stride: 2 }),
        noise: Some(&next),
        record: true,
        ..Epilogue::default()
    };
    let (y, extras) = fused_conv2d::forward(&x, &w, Some(&b), case.conv, &epilogue)?;
    let dy = values(y.shape(), 8).to_gpu(gpu)?.to_dtype(dtype)?;
    let dv = fused_conv2d::output_grad(dy, case.y, epilogue.pool, &extras)?;
    // The result itself plays no part.
    let v = Tensor::zeros(case.y, DType::F32).to_gpu(gpu)?;
    let moved = normalised(v, extras.statistics)?.split_off(1);
    Ok([vec![y, dv], moved].concat())
}

#[test]
fn what_follows_does_not_depend_on_the_blocking() {
    // Enough tiles that their statistics are merged in two steps.
    let many = [70, 6, 6, 8, 40, 3, 1, 1, 1];
    for case in CASES.iter().chain([&many]).copied().map(Case::new) {
        let i = case.inputs(DType::BF16);
        let on_cpu = |dtype: DType| {
            let to = |t: &Tensor| t.to_dtype(dtype).unwrap();
            let v = conv2d::forward(&to(&i.x), &to(&i.w), Some(&to(&i.b)), case.conv).unwrap();
            normalised(v, None).unwrap().split_off(1)
        };
        let (exact, single) = (on_cpu(DType::F64), on_cpu(DType::F32));
        let mut first: Option<Vec<Tensor>> = None;
        let blockings = if case.x.h <= 4 { 0..7 } else { 0..4 };
        for blocking in blockings {
            let options = Options {
                blocking: Some(blocking),
                ..Options::default()
            };
            let found = run_with(
                || open_as(options),
                |gpu| everything(gpu, &case, DType::BF16),
            );
            let what = format!("{case:?} blocking {blocking}");
            for i in 0..2 {
                let reference = Reference {
                    exact: &exact[i],
                    single: &single[i],
                };
                let what = format!("{what} {}", ["mean", "variance"][i]);
                // A tensor core cuts off what the sum of 16 products has behind the 24th bit, always towards
                // zero (Fasi et al. 2021), so values shrink alike: by 2^-23 of themselves a sum at most, and
                // their variance twice as much.
                let sums = (case.w.row_len() as f64 / 16.0).ceil();
                let cut = (1 + i) as f64 * sums * (-23f64).exp2();
                reference.assert_within(&what, &found[2 + i], DType::F32, cut);
            }
            match &first {
                None => first = Some(found),
                Some(first) => {
                    assert!(bits(&first[0]) == bits(&found[0]), "{what}: y");
                    assert!(bits(&first[1]) == bits(&found[1]), "{what}: gradient");
                }
            }
        }
    }
}

/// The values that survive rounding to tf32: 10 bits of mantissa.
fn tf32(x: &Tensor) -> Tensor {
    let round = |v: &f32| f32::from_bits((v.to_bits() + 0x1000) & !0x1FFF);
    Tensor::from_vec::<f32>(x.shape(), x.data::<f32>().iter().map(round).collect()).unwrap()
}

#[test]
fn tf32_rounds_the_operands_and_nothing_else() {
    for case in CASES.iter().step_by(2).copied().map(Case::new) {
        let mut i = case.inputs(DType::F32);
        // Without tf32 the result has the bits of the exact operands' convolution, with it not.
        let exact_operands = once_each(&i.x, &i.w, &case);
        assert!(
            bits(&exact_operands[0]) != bits(&exact_operands[1]),
            "{case:?}: tf32 was not used"
        );
        (i.x, i.w, i.dy) = (tf32(&i.x), tf32(&i.w), tf32(&i.dy));
        let (exact, single) = (on_cpu(&case, &i, DType::F64), on_cpu(&case, &i, DType::F32));
        for blocking in [1, 3] {
            let options = Options {
                tf32: true,
                blocking: Some(blocking),
                ..Options::default()
            };
            let found = run_with(
                || open_as(options),
                |gpu| {
                    let to = |t: &Tensor| t.to_gpu(gpu);
                    let (x, dy, w, b) = (to(&i.x)?, to(&i.dy)?, to(&i.w)?, to(&i.b)?);
                    let b = case.bias.then_some(&b);
                    let noise = draw(case.x.n, Normals::Fast);
                    let noisy = noise::forward(&x, &noise)?;
                    let [dx, gated, masked] = input_grads(&case, &dy, &w, &x)?;
                    Ok(vec![
                        conv2d::forward(&x, &w, b, case.conv)?,
                        dx,
                        noisy_conv2d::forward(&x, &noise, &w, b, case.conv)?,
                        conv2d::forward(&noisy, &w, b, case.conv)?,
                        gated,
                        masked,
                    ])
                },
            );
            for (i, name) in ["y", "dx"].into_iter().enumerate() {
                let reference = Reference {
                    exact: &exact[i],
                    single: &single[i],
                };
                reference.assert_close(&format!("{case:?} {name}"), &found[i], DType::F32);
            }
            assert!(bits(&found[2]) == bits(&found[3]), "{case:?}: noise");
            assert!(bits(&found[4]) == bits(&found[5]), "{case:?}: the gate");
        }
    }
}

/// y with and without tf32.
fn once_each(x: &Tensor, w: &Tensor, case: &Case) -> Vec<Tensor> {
    [false, true]
        .map(|tf32| {
            let options = Options {
                tf32,
                ..Options::default()
            };
            let found = run_with(
                || open_as(options),
                |gpu| {
                    let (x, w) = (x.to_gpu(gpu)?, w.to_gpu(gpu)?);
                    Ok(vec![conv2d::forward(&x, &w, None, case.conv)?])
                },
            );
            found.into_iter().next().unwrap()
        })
        .into()
}

/// Weights are rounded to the activations' type, to the nearest: one product of one channel each.
#[test]
fn weights_are_rounded_to_nearest() {
    let case = Case::new([2, 3, 3, 8, 40, 1, 1, 0, 1]);
    for dtype in [DType::BF16, DType::F16] {
        let w = values(case.w, 9);
        let mut x = Tensor::zeros(case.x, DType::F32);
        x.data_mut::<f32>()[3] = 1.0;
        let found = run_with(
            || open_as(Options::default()),
            |gpu| {
                let x = x.to_gpu(gpu)?.to_dtype(dtype)?;
                Ok(vec![conv2d::forward(&x, &w.to_gpu(gpu)?, None, case.conv)?])
            },
        );
        for (o, &found) in found[0].data::<f32>()[..40].iter().enumerate() {
            let exact = w.data::<f32>()[o * 8 + 3];
            assert!(
                f64::from((found - exact).abs()) <= epsilon(dtype) * f64::from(exact.abs()),
                "{dtype} {o}: {found} for {exact}"
            );
        }
    }
}
